"""A worker's pulse: what keeps it alive in the eyes of the cluster, apart from what it works on.

A lease stands for the worker: it is renewed three times in its time to live, whatever the worker
does, and all tasks that it has go with it. Tasks that ask for a heartbeat get one three times in
their interval.

Code that blocks the loop of the worker must not look like a dead worker. So on a handle that
reaches the cluster over a network, the pulse has a thread, a loop and a connection of its own, and
needs nothing of the worker's loop but a turn of the interpreter, which the interpreter gives to
each thread every few milliseconds. What can still stop it: a C extension that holds the
interpreter's lock for longer than the lease lives, and whatever stops the whole process. With a
node in this very process the pulse is on the loop of the node, as nothing would be gained: who
blocks that blocks the node too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Protocol

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_commands import Held, Report
from quorate.client.codec import AnyFuture
from quorate.client.database import Database
from quorate.client.leases import Lease
from quorate.client.task_answers import Key
from quorate.client.tasks import Tasks
from quorate.errors import ClosedError, QuorateError

BEATS_PER_INTERVAL: Final = 3


class Pulse(Protocol):
    """See the module. All of it is for the worker's loop."""

    async def start(self, lost: Callable[[], None]) -> int:
        """Have a lease granted, whose id this returns; *lost*: called when it is lost.

        Raises:
            QuorateError: none was granted.
        """

    @property
    def alive(self) -> bool:
        """Whether the lease surely stands at this moment."""

    def serve(self, worker: int) -> None:
        """Beats are for this worker."""

    def beat(self, key: Key, interval_s: float) -> None:
        """Report an attempt as alive, so often that it never was silent for so long."""

    def forget(self, key: Key) -> None:
        """It is over."""

    def quiet(self) -> None:
        """All are."""

    async def stop(self) -> None:
        """Give the lease back."""


class Beats:
    """Reports attempts as alive, all in one command, on the loop of the handle of *tasks*."""

    def __init__(self, tasks: Tasks, keys: dict[Key, float]) -> None:
        self._tasks = tasks
        self._keys = keys  # and intervals; written by the worker
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.worker = 0

    def look(self) -> None:
        """There may be something to report, sooner than planned."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        shortest_s = min(tuple(self._keys.values()), default=0.0)
        if shortest_s:
            self._timer = self._loop.call_later(shortest_s / BEATS_PER_INTERVAL, self._beat)

    def close(self) -> None:
        """No more beats."""
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        for some in _portions(tuple(self._keys)):
            with contextlib.suppress(QuorateError):  # the next one comes soon
                self._tasks.run(Report(self.worker, some)).add_done_callback(_pass_over)
        self._timer = None
        self.look()


def _portions(keys: tuple[Key, ...]) -> Iterator[tuple[Held, ...]]:
    rest = iter(keys)
    while some := tuple(Held(*key) for key in islice(rest, TASK_BATCH_MAX)):
        yield some


def _pass_over(future: AnyFuture) -> None:
    if not future.cancelled():
        future.exception()  # what is stale, the worker's watch tells


class LoopPulse:
    """On the worker's own loop, over the worker's own handle."""

    def __init__(self, db: Database, ttl: float, name: str) -> None:
        self._db = db
        self._lease: Lease = db.lease(ttl=ttl, name=name)
        self._keys: dict[Key, float] = {}
        self._beats = Beats(db.tasks, self._keys)

    async def start(self, lost: Callable[[], None]) -> int:
        """See ``Pulse``."""
        await self._lease.grant()
        self._lease.on_lost(lost)
        return self._lease.id

    @property
    def alive(self) -> bool:
        """See ``Pulse``."""
        return self._lease.alive

    def serve(self, worker: int) -> None:
        """See ``Pulse``."""
        self._beats.worker = worker

    def beat(self, key: Key, interval_s: float) -> None:
        """See ``Pulse``."""
        sooner = interval_s < min(self._keys.values(), default=interval_s + 1)
        self._keys[key] = interval_s
        if sooner:
            self._beats.look()

    def forget(self, key: Key) -> None:
        """See ``Pulse``."""
        self._keys.pop(key, None)

    def quiet(self) -> None:
        """See ``Pulse``."""
        self._keys.clear()
        self._beats.close()

    async def stop(self) -> None:
        """See ``Pulse``."""
        self.quiet()
        await self._lease.__aexit__()


class ThreadPulse:
    """On a thread of its own, over *db*, which is its own."""

    def __init__(self, db: Database, ttl: float, name: str) -> None:
        self._db = db
        self._ttl = ttl
        self._name = name
        self._lease: Lease | None = None
        self._keys: dict[Key, float] = {}
        self._beats: Beats | None = None
        self._lost: Callable[[], None] = _nothing
        self._outside = asyncio.get_running_loop()
        self._started: asyncio.Future[int] = self._outside.create_future()
        self._ended = asyncio.Event()
        self._inside: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._stopped = False

    async def start(self, lost: Callable[[], None]) -> int:
        """See ``Pulse``."""
        self._lost = lost
        # A daemon: a process that ends without stopping its worker must not wait for it.
        threading.Thread(target=self._run, name="quorate-pulse", daemon=True).start()
        try:
            return await asyncio.shield(self._started)
        except BaseException:
            await self.stop()
            raise

    @property
    def alive(self) -> bool:
        """See ``Pulse``."""
        return self._lease is not None and self._lease.alive

    def serve(self, worker: int) -> None:
        """See ``Pulse``."""
        if self._beats is not None:
            self._beats.worker = worker

    def beat(self, key: Key, interval_s: float) -> None:
        """See ``Pulse``."""
        sooner = interval_s < min(self._keys.values(), default=interval_s + 1)
        self._keys[key] = interval_s
        if sooner and self._beats is not None:
            self._call_inside(self._beats.look)

    def forget(self, key: Key) -> None:
        """See ``Pulse``."""
        self._keys.pop(key, None)

    def quiet(self) -> None:
        """See ``Pulse``."""
        self._keys.clear()

    async def stop(self) -> None:
        """See ``Pulse``."""
        self._stopped = True
        self._keys.clear()
        if self._stopping is not None:
            self._call_inside(self._stopping.set)
        await self._ended.wait()

    # --- on the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._serve())
        except BaseException as raised:  # noqa: BLE001  raised where the pulse was started
            error = raised
        self._call_outside(lambda: self._over(error))

    async def _serve(self) -> None:
        self._inside = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stopped:
            raise ClosedError("the worker was stopped")
        async with self._db as db, db.lease(ttl=self._ttl, name=self._name) as lease:
            self._lease = lease
            self._beats = Beats(db.tasks, self._keys)
            lease.on_lost(lambda: self._call_outside(self._lost))
            self._call_outside(lambda: self._started.set_result(lease.id))
            await self._stopping.wait()
            self._beats.close()

    def _call_inside(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # it is over
            if self._inside is not None:
                self._inside.call_soon_threadsafe(what)

    def _call_outside(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the worker's loop is closed
            self._outside.call_soon_threadsafe(what)

    def _over(self, error: BaseException | None) -> None:
        self._ended.set()
        if not self._started.done():
            self._started.set_exception(error or ClosedError("the worker was stopped"))
            self._started.exception()  # whoever starts it has it
        elif error is not None and not self._stopped:
            self._lost()


def _nothing() -> None:
    return None


def make_pulse(db: Database, ttl: float, name: str) -> Pulse:
    """A pulse for a worker that works over *db*."""
    twin = db.twin()
    return LoopPulse(db, ttl, name) if twin is None else ThreadPulse(twin, ttl, name)
