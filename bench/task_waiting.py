"""What claiming costs where many tasks wait: two clusters in turns, one with few, one with many."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final

from bench.cluster import QuorateCluster
from bench.measure import median
from bench.processes import BenchError
from bench.systems.task_peer import PAYLOAD
from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_commands import Claim, Claimed, Complete, Done, Enqueue, Register
from quorate.client.database import Database, connect

FEW: Final = 1_000
MANY: Final = 1_000_000
QUEUE: Final = "waiting"
#: Tasks in one command, and commands under way.
BATCH: Final = 64
LANES: Final = 8
LEASE_S: Final = 600.0
_FILLING: Final = 8
#: After the filling, until all nodes have written it down.
_SETTLE_S: Final = 15.0


async def claims(parent: Path, rounds: int, seconds: float) -> dict[int, float]:
    """Tasks claimed and completed per second, by how many wait: as many are enqueued meanwhile.

    Raises:
        BenchError: a claim brought nothing.
    """
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    async with contextlib.AsyncExitStack() as stack:
        handles = {}
        for count in found:
            directory = parent / f"waiting-{count}"
            directory.mkdir()
            cluster = stack.enter_context(QuorateCluster(directory))
            handles[count] = await stack.enter_async_context(connect(cluster.endpoints, timeout=60))
        for count, db in handles.items():
            await _fill(db, count)
        print(f"{MANY:,} tasks wait", flush=True)
        await asyncio.sleep(_SETTLE_S)
        for _ in range(rounds):
            for count, db in handles.items():
                found[count].append(await _cycle(db, seconds))
    return {count: median(each) for count, each in found.items()}


async def _fill(db: Database, count: int) -> None:
    command = Enqueue((db.tasks.task("nobody", PAYLOAD, queue=QUEUE),) * TASK_BATCH_MAX)
    left = count // TASK_BATCH_MAX

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            await db.tasks.run(command)

    await asyncio.gather(*(lane() for _ in range(_FILLING)))


async def _cycle(db: Database, seconds: float) -> float:
    """A worker that is handed nothing, and claims: its load is 0."""
    more = Enqueue((db.tasks.task("nobody", PAYLOAD, queue=QUEUE),) * BATCH)
    async with db.lease(ttl=LEASE_S) as lease:
        worker = (await db.tasks.run(Register("claims", lease.id, 0, queues=(QUEUE,)))).worker
        count = 0

        async def lane() -> None:
            nonlocal count
            while time.perf_counter() - began < seconds:
                await db.tasks.run(more)
                claimed: Claimed = await db.tasks.run(Claim(worker, BATCH))
                if len(claimed.tasks) < BATCH:
                    raise BenchError(f"a claim of {BATCH} brought {len(claimed.tasks)} tasks")
                done = tuple(Done(each.task, each.attempt) for each in claimed.tasks)
                await db.tasks.run(Complete(worker, done))
                count += BATCH

        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(LANES)))
        return count / (time.perf_counter() - began)
