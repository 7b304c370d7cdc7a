"""What the death of a worker costs: how soon its tasks run elsewhere, and what the others lose."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import msgspec

from bench import processes
from bench.processes import BenchError
from bench.task_app import nothing, stay
from quorate.client.database import Database

WORKERS: Final = 4
#: Of each: tasks at once, so many that the processors are what limits them all; and the time after
#: which its tasks run elsewhere.
CONCURRENCY: Final = 400
TTL_S: Final = 3.0
#: Tasks that run when the worker dies, and for how long.
STAYING: Final = 40
STAY_S: Final = TTL_S + 3.0
BACKLOG: Final = 400_000
BATCH: Final = 1_000
WINDOW_S: Final = 3.0
WAIT_S: Final = 60.0
QUEUE: Final = "lives"


class Deaths(msgspec.Struct, frozen=True):
    """*late_s*: the last task of a killed worker began elsewhere so long after the worker's lease
    could have ended at the latest. *before*, *after*: tasks done in a second until a worker was
    killed, and from then until its lease had ended and two seconds more."""

    late_s: float
    moved: int
    before: float
    after: float


class _Staff:
    """Worker processes, by number."""

    def __init__(self, directory: Path, endpoints: str) -> None:
        self._directory = directory
        self._endpoints = endpoints
        self._processes: dict[int, Popen[bytes]] = {}

    def start(self, number: int) -> None:
        """One more."""
        command = [sys.executable, "-m", "quorate", "worker", "bench.task_app:app"]
        command += ["--connect", self._endpoints, "--concurrency", str(CONCURRENCY)]
        command += ["--queues", QUEUE, "--ttl", str(TTL_S), "--name", f"deaths-{number}"]
        log = self._directory / f"deaths-{number}.log"
        self._processes[number] = processes.start(command, log)

    def kill(self, number: int) -> None:
        """With SIGKILL."""
        processes.kill(self._processes.pop(number))

    def end(self) -> None:
        """All of them."""
        for number in list(self._processes):
            self.kill(number)


async def deaths(db: Database, directory: Path, endpoints: str) -> Deaths:
    """Two of four workers die, one after the other. Nobody else serves the queue.

    Raises:
        BenchError: the workers do not come, or nothing was moved.
    """
    staff = _Staff(directory, endpoints)
    try:
        for number in range(WORKERS):
            staff.start(number)
        await _until_there(db, WORKERS)
        late_s, moved = await _moving(staff)
        staff.start(0)
        await _until_there(db, WORKERS)
        before, after = await _losing(db, staff)
    finally:
        staff.end()
        await db.tasks.purge("ready", QUEUE)
    return Deaths(late_s, moved, before, after)


async def _until_there(db: Database, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(await db.tasks.workers()) != count:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def _moving(staff: _Staff) -> tuple[float, int]:
    tasks = [await stay.submit(STAY_S) for _ in range(STAYING)]
    await asyncio.sleep(1.0)
    staff.kill(0)
    killed = time.monotonic()
    begun = await asyncio.gather(*(_result(task) for task in tasks))
    moved = [each - killed for each in begun if each > killed]
    if not moved:
        raise BenchError("the worker that was killed had no tasks")
    return max(moved) - TTL_S, len(moved)


async def _result(task: Any) -> float:  # noqa: ANN401  a handle of the app's
    found: float = await task
    return found


async def _losing(db: Database, staff: _Staff) -> tuple[float, float]:
    batch = [nothing.make(b"") for _ in range(BATCH)]
    await db.tasks.pause(QUEUE)
    for _ in range(BACKLOG // BATCH):
        await db.tasks.enqueue_many(batch)
    await db.tasks.resume(QUEUE)
    await asyncio.sleep(1.0)
    before = await _done_per_s(db, WINDOW_S)
    staff.kill(1)
    after = await _done_per_s(db, TTL_S + 2.0)
    return before, after


async def _done_per_s(db: Database, seconds: float) -> float:
    began, count = time.perf_counter(), await _done(db)
    await asyncio.sleep(seconds)
    per_s = (await _done(db) - count) / (time.perf_counter() - began)
    queue = await db.tasks.queue(QUEUE)
    if queue is None or not queue.ready:
        raise BenchError(f"{BACKLOG} tasks were not enough to keep the workers busy")
    return per_s


async def _done(db: Database) -> int:
    queue = await db.tasks.queue(QUEUE)
    return 0 if queue is None else queue.done
