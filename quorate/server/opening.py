"""What a node recovers from its disk when it starts, and the threads that serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from quorate.base.types import NodeId
from quorate.consensus.config import CoreConfig
from quorate.consensus.membership import Membership
from quorate.replication.disk import JobRunner, run_job
from quorate.replication.machines import Machines
from quorate.replication.recovery import Recovered, recover
from quorate.server.config import TICK_MS, NodeConfig
from quorate.server.platform import Platform
from quorate.storage.directory import DataDirectory, Identity
from quorate.storage.elements import ElementStore
from quorate.storage.interfaces import StateStore
from quorate.storage.wal import WriteAheadLog


class Disk(NamedTuple):
    """The log, the stores, and a thread for each; *recovered*: the core as it was left."""

    log: WriteAheadLog
    store: StateStore
    elements: ElementStore
    log_runner: JobRunner
    store_runner: JobRunner
    element_runner: JobRunner
    read_runner: JobRunner
    recovered: Recovered


async def open_disk(
    directory: DataDirectory,
    identity: Identity,
    config: NodeConfig,
    platform: Platform,
    machines: Machines,
    founders: Membership | None,
    closers: list[Callable[[], object]],
) -> Disk:
    """Recover log, stores and *machines*. What is to be closed is added to *closers*, which run
    from the last to the first.

    Raises:
        StorageError: something is damaged, of a newer format, or cannot be written.
    """
    loop = asyncio.get_running_loop()
    log_runner = platform.log_runner(loop)
    store_runner, read_runner = platform.thread("store", loop), platform.thread("read", loop)
    element_runner = platform.thread("crdt", loop)
    runners = (log_runner, store_runner, read_runner, element_runner)
    closers.extend(each.stop for each in runners)
    log = WriteAheadLog(
        directory.log_path,
        files=platform.files,
        segment_bytes=platform.segment_bytes,
        identity=int(identity.incarnation[:16], 16),
        spawn=lambda job: read_runner.run(job, _ignore_result),
    )
    closers.insert(1, log.close)  # closed after the threads have ended
    store = await run_job(store_runner, lambda: platform.open_store(directory.state_path))
    closers.insert(1, store.close)
    elements = await run_job(
        element_runner, lambda: platform.open_elements(directory.elements_path)
    )
    closers.insert(1, elements.close)
    core_config = platform.core_config(_core_config(config))
    recovered = await run_job(
        log_runner, lambda: recover(log, store, core_config, platform.random, founders)
    )
    await run_job(log_runner, directory.confirm_log)
    for _ in machines.restore(store):
        await asyncio.sleep(0)
    await run_job(store_runner, store.release_pages)
    return Disk(
        log, store, elements, log_runner, store_runner, element_runner, read_runner, recovered
    )


def _ignore_result(_result: object, _error: BaseException | None) -> None:
    """Preparing a segment reports nothing: without it, the next append does the work."""


def _core_config(config: NodeConfig) -> CoreConfig:
    ticks = config.election_timeout_ms // TICK_MS
    return CoreConfig(
        node_id=NodeId(config.node_id),
        election_ticks_min=ticks,
        election_ticks_max=2 * ticks,
        heartbeat_ticks=config.heartbeat_ms // TICK_MS,
        lease_reads=config.lease_reads,
        lease_ms=config.election_timeout_ms * 3 // 4,
        tick_ms=TICK_MS,
        fast_failover=config.fast_failover and not config.lease_reads,
    )
