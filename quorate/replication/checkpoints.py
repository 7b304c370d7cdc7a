"""When to write the machines' state to the store, and how much log to keep behind it.

A checkpoint starts after so many bytes of applied entries: that bounds what a restart has to
replay. The log is cut behind the checkpoint *before* the last one, so that a follower that was
away for less than that catches up from the log, without a snapshot.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

import msgspec

from quorate.base.limits import MIB
from quorate.base.types import BEFORE_FIRST, LogIndex, NodeId, Term
from quorate.consensus.messages import EntryId
from quorate.errors import ClosedError, DiskFullError, QuorateError, UnavailableError
from quorate.replication.disk import JobRunner, run_job
from quorate.replication.machines import Checkpoint
from quorate.replication.recovery import encode_saved_membership
from quorate.replication.replica import Replica
from quorate.storage.interfaces import LogStore, StateStore, StoreMeta

_logger = logging.getLogger("quorate.checkpoints")

#: A follower, or a snapshot stream, may hold back the cutting of the log up to this size.
LOG_HELD_BYTES_MAX = 512 * MIB
#: After a failed checkpoint (a full disk), applied bytes must not ask for the next one at once.
RETRY_S = 5.0
#: How often a capture looks whether the log is durable as far as it is applied, and how long it
#: waits for that: a full or stalled disk must not keep a node from stopping.
DURABLE_POLL_S = 0.002
DURABLE_WAIT_S = 10.0
#: Members' checkpoints fall on different thirds of the interval, by the node's number: all apply
#: the same bytes, and were they to write at the same time, no majority would be fast meanwhile.
#: With a million keys three at once let an eighth of the usual puts through, for 2.7 s.
STAGGER = 3


class CheckpointStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start; *last_s*: how long the last one took."""

    written: int
    failed: int
    last_index: LogIndex
    last_s: float


class Checkpointer:
    """Writes checkpoints off the loop, one at a time, and cuts the log.

    *lock* is held while the store is written or replaced: a snapshot's install takes it too.
    *on_disk_full*: a checkpoint found no space; nothing was lost. Any other failure of the store
    or the log stops the node.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        log: LogStore,
        store: StateStore,
        meta: StoreMeta | None,
        store_runner: JobRunner,
        log_runner: JobRunner,
        interval_bytes: int,
        on_disk_full: Callable[[str], None],
    ) -> None:
        self.lock = asyncio.Lock()
        self._replica = replica
        self._log = log
        self._store = store
        self._store_runner = store_runner
        self._log_runner = log_runner
        self._interval_bytes = interval_bytes
        self._on_disk_full = on_disk_full
        nothing = EntryId(BEFORE_FIRST, Term(0))
        self._last = nothing if meta is None else meta.applied
        self._before_last = nothing
        self._at_bytes = self._staggered(0)
        self._holds: dict[NodeId, LogIndex] = {}
        self._due_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[LogIndex]] = set()
        self._retry_at_s = 0.0
        self._written = 0
        self._failed = 0
        self._last_s = 0.0

    def on_applied(self) -> None:
        """Called after every applied slice: is one due?"""
        due = self._replica.applied_bytes - self._at_bytes >= self._interval_bytes
        if not due or self._due_task is not None or self._replica.stopped:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._retry_at_s:
            self._due_task = loop.create_task(self._run_due())

    def hold(self, node: NodeId, index: LogIndex) -> None:
        """Keep the log after *index* for *node* (a snapshot is on its way to it)."""
        self._holds[node] = index

    def release(self, node: NodeId) -> None:
        """*node* needs no more than the rest."""
        self._holds.pop(node, None)

    def installed(self, floor: EntryId) -> None:
        """A snapshot replaced store and log."""
        self._last = self._before_last = floor
        self._at_bytes = self._staggered(self._replica.applied_bytes)

    def _staggered(self, at_bytes: int) -> int:
        """As if the last checkpoint had been earlier; once is enough, all later ones keep it."""
        node = self._replica.core.state.config.node_id
        return at_bytes - self._interval_bytes * (node % STAGGER) // STAGGER

    def statistics(self) -> CheckpointStatistics:
        """Counters for metrics."""
        return CheckpointStatistics(
            written=self._written,
            failed=self._failed,
            last_index=self._last.index,
            last_s=self._last_s,
        )

    async def stop(self) -> None:
        """Wait for what is under way; it is short, and its transaction whole or not at all."""
        if self._due_task is not None:
            await asyncio.wait((self._due_task,))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def checkpoint(self) -> LogIndex:
        """Write one now; returns the index it covers. Goes on if the caller is cancelled: while
        the store is being written, nobody else may begin to.

        Raises:
            ClosedError: the node is stopping.
            UnavailableError: the own log is not durable as far as it is applied.
            DiskFullError, StorageError: nothing was written.
        """
        task = asyncio.get_running_loop().create_task(self._checkpoint())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[LogIndex]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited may be gone; it is told all the same

    async def _checkpoint(self) -> LogIndex:
        self._check_ready()  # not behind an install, which takes as long as its disk does
        async with self.lock:
            self._check_ready()
            if self._replica.applied != self._last.index:
                await self._write()
            return self._last.index

    def _check_ready(self) -> None:
        if self._replica.stopped or not self._replica.ready:
            raise ClosedError("the node is stopping, or is loading a snapshot")

    async def _run_due(self) -> None:
        try:
            await self.checkpoint()
        except QuorateError as error:
            self._retry_at_s = asyncio.get_running_loop().time() + RETRY_S
            if not self._replica.stopped:
                _logger.warning("checkpoint failed, the log stays whole: %s", error)
        except Exception as error:  # noqa: BLE001 - a broken claim stops the node
            self._replica.fail(error)
        finally:
            self._due_task = None

    async def _write(self) -> None:
        replica = self._replica
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        # A checkpoint must not run ahead of the own log: a restart would find a hole between them.
        while replica.core.state.persisted < replica.applied:
            await asyncio.sleep(DURABLE_POLL_S)
            if replica.stopped:
                raise ClosedError("the node is stopping")
            if loop.time() - began_s > DURABLE_WAIT_S:
                raise UnavailableError("the disk of this node does not keep up with its log")
        began_s = loop.time()
        index, membership = replica.core.state.members.step_at(replica.applied)
        captured = replica.machines.take_checkpoint(encode_saved_membership(index, membership))
        at_bytes = replica.applied_bytes
        try:
            await run_job(self._store_runner, functools.partial(self._write_store, captured))
        except BaseException as error:
            replica.machines.checkpoint_failed(captured)
            self._failed += 1
            self._retry_at_s = loop.time() + RETRY_S
            if isinstance(error, DiskFullError):
                self._on_disk_full(str(error))
            elif isinstance(error, Exception):
                replica.fail(error)  # the store is unusable: the page cache may have lost a write
            raise
        self._written += 1
        self._last_s = loop.time() - began_s
        self._at_bytes = at_bytes
        self._before_last, self._last = self._last, captured.meta.applied
        await self._cut()

    def _write_store(self, captured: Checkpoint) -> None:
        """On the store's thread. The pages that a checkpoint touches would count as this process's
        memory from then on: 170 MB with a million keys."""
        self._store.checkpoint(captured.meta, captured.changes())
        self._store.release_pages()

    async def _cut(self) -> None:
        target = self._cut_target()
        floor = self._replica.core.state.log.floor
        if target.index <= floor.index or self._replica.stopped:
            return
        try:
            new_floor = await run_job(self._log_runner, lambda: self._log.cut(target))
        except Exception as error:
            self._replica.fail(error)
            raise
        if new_floor.index > floor.index:
            self._replica.compacted(new_floor)

    def _cut_target(self) -> EntryId:
        """Behind the checkpoint before the last one, and behind what somebody still needs, unless
        that would keep too much."""
        target = self._before_last
        needed = self._replica.core.first_index_needed()
        wanted = [*self._holds.values(), *([LogIndex(needed - 1)] if needed else [])]
        lowest = min(wanted, default=target.index)
        if lowest < target.index and self._log.size_bytes() < LOG_HELD_BYTES_MAX:
            log = self._replica.core.state.log
            term = log.term_at(lowest)
            return log.floor if term is None else EntryId(lowest, term)
        return target
