"""Lives of tasks by bare commands: one client that submits in batches, and is the worker besides.

No app, no functions, no futures of single tasks: what is left is what the cluster itself can do,
and the packing and unpacking of what goes there and back.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from bench.processes import BenchError
from bench.systems.task_peer import PAYLOAD
from quorate.base.limits import WORKER_LOAD_MAX
from quorate.base.task_commands import Complete, Done, Enqueue, Register, Settlement, Unregister
from quorate.base.task_queries import Assigned, Stop, WatchWorker
from quorate.base.task_specs import TASK_MACHINE
from quorate.client.database import Database
from quorate.errors import QuorateError

#: Tasks in one command, enqueued or completed.
BATCH: Final = 64
#: Batches of which not all tasks are done.
BATCHES: Final = 32
QUEUE: Final = "protocol"
LEASE_S: Final = 60.0
_WAIT_S: Final = 60.0

_decode_events: Final = msgspec.msgpack.Decoder(list[Assigned | Stop]).decode


class Lives:
    """The worker's side: what is handed over is done at once, in batches."""

    def __init__(self, db: Database, worker: int) -> None:
        self._db = db
        self._worker = worker
        self._done: list[Done] = []
        self._planned = False
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self.count = 0  #: completed, as the cluster has confirmed
        self._watch = db.watches.open(
            TASK_MACHINE,
            lambda: WatchWorker(worker),
            lambda _index: None,
            self._on_events,
            self._fail,
        )

    async def until(self, count: int) -> None:
        """Until so many are done.

        Raises:
            BenchError: something failed.
        """
        while self.count < count:
            if self._error is not None:
                raise BenchError(f"a command of tasks failed: {self._error}") from self._error
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """No more tasks."""
        self._watch.close()

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for event in _decode_events(events):
            if isinstance(event, Assigned):
                self._done += [Done(each.task, each.attempt) for each in event.tasks]
        while len(self._done) >= BATCH:
            batch, self._done = tuple(self._done[:BATCH]), self._done[BATCH:]
            self._complete(batch)
        if self._done and not self._planned:
            self._planned = True  # the rest of a batch that came in two entries may follow at once
            asyncio.get_running_loop().call_soon(self._complete_rest)

    def _complete_rest(self) -> None:
        self._planned = False
        if self._done:
            batch, self._done = tuple(self._done), []
            self._complete(batch)

    def _complete(self, batch: tuple[Done, ...]) -> None:
        future = self._db.tasks.run(Complete(self._worker, batch))
        future.add_done_callback(lambda done: self._heard(done, len(batch)))

    def _heard(self, future: asyncio.Future[Settlement], count: int) -> None:
        error = future.exception()
        if error is not None:
            self._fail(error)
        elif stale := future.result().stale:
            self._fail(BenchError(f"task {stale[0].task} was somebody else's"))
        else:
            self.count += count
            self._changed.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._changed.set()


async def protocol_lives(db: Database, seconds: float) -> float:
    """Whole lives per second, from the begin of the first to the end of the last."""
    async with db.lease(ttl=LEASE_S) as lease:
        register = Register("protocol", lease.id, WORKER_LOAD_MAX, queues=(QUEUE,))
        worker = (await db.tasks.run(register)).worker
        lives = Lives(db, worker)
        try:
            count, took_s = await _drive(db, lives, seconds)
        finally:
            lives.close()
            await _leave(db, worker)
    return count / took_s


async def _drive(db: Database, lives: Lives, seconds: float) -> tuple[int, float]:
    command = Enqueue((db.tasks.task("nobody", PAYLOAD, queue=QUEUE),) * BATCH)
    began = time.perf_counter()
    count = 0

    async def lane() -> None:
        nonlocal count
        while time.perf_counter() - began < seconds:
            await db.tasks.run(command)
            count += BATCH
            await lives.until(count - (BATCHES - 1) * BATCH)

    async with asyncio.timeout(seconds + _WAIT_S):
        await asyncio.gather(*(lane() for _ in range(BATCHES)))
        await lives.until(count)
    return count, time.perf_counter() - began


async def _leave(db: Database, worker: int) -> None:
    try:
        await db.tasks.run(Unregister(worker))
    except QuorateError as error:
        raise BenchError(f"the worker could not leave: {error}") from error
