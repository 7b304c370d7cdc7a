"""A worker: runs the tasks of an app, as they are handed to it.

    async with quorate.connect(...) as db:
        await Worker(db, app, queues=["mail"], concurrency=100).run()

Tasks are pushed: a worker with room for one has it one message after it was enqueued. Coroutines
run on this loop, plain functions in threads. A task runs under an attempt number, and whatever the
worker says of it counts only as long as that is the present one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, Self

import msgspec

from quorate.base.limits import TASK_NAME_MAX, WORKER_LOAD_MAX
from quorate.base.task_commands import Register, Registered
from quorate.client.database import Database
from quorate.client.leases import LEASE_TTL_S_DEFAULT, check_ttl
from quorate.client.task_app import App
from quorate.client.task_jobs import Job
from quorate.client.task_post import Counts, Post
from quorate.client.task_pulse import Pulse, make_pulse
from quorate.client.task_settings import check_name, sorted_names
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    LeaseLostError,
    QuorateError,
)

CONCURRENCY_DEFAULT: Final = 10
GRACE_S_DEFAULT: Final = 30.0  # for what runs when the worker drains
ERROR_PAUSE_S_DEFAULT: Final = 1.0
TASKS_MAX_MAX: Final = 10**9
#: Code that was told to stop at the end of a drain has so long to do so.
STOP_S: Final = 1.0
#: Between two tries to be registered anew: a fraction of an election, growing to a few.
REGISTER_RETRY_S_MIN: Final = 0.05
REGISTER_RETRY_S_MAX: Final = 2.0

_logger = logging.getLogger(__name__)


class WorkerStatistics(msgspec.Struct, frozen=True):
    """What a worker has done since it was made. *begun*: attempts. *done*, *failed*: of them, as
    the cluster has taken it. *given_back*: without being held against them. *dropped*: stopped, as
    they were not the worker's any more; *stale*: so by the time they had ended. *running*: now;
    *lingering*: code that was to stop, and goes on. *registrations*: 1, and one for each lease
    that was lost."""

    worker: int
    running: int
    begun: int
    done: int
    failed: int
    given_back: int
    dropped: int
    stale: int
    lingering: int
    registrations: int


class Worker:
    """See the module. ``async with`` begins, and drains at the end; ``run`` until ``stop``.

    Args:
        db: a handle, open as long as the worker works. Reached over a network, the worker keeps
            its lease alive over a connection and on a thread of its own, so that code that blocks
            the loop does not look like a dead worker.
        app: whose tasks it runs.
        name: shown to operators, and what ``worker=``, ``prefers=`` and ``excluded=`` of tasks
            mean; not necessarily unique. ["host:process"]
        queues: that it serves; none: all.
        concurrency: tasks that it runs at once.
        prefetch: tasks that it has in store besides. They cost one more round trip each, and are
            taken over by workers that have nothing to do.
        capabilities: what it can do, for tasks that ask for it.
        weight: for the strategy "weighted".
        ttl: seconds after which its tasks are run elsewhere if it dies, or is cut off; it then
            stops what it runs before that.
        grace: seconds for which running tasks may go on when it drains.
        error_pause: after three failures in a row a worker gets no more tasks, until it says
            that it is well: which it does so many seconds later.
        tasks_max: attempts after which ``run`` comes to its end, as if it was stopped: for code
            that leaks. Those that the worker has by then are run or given back. 0: any number.

    Raises:
        InvalidArgumentError: one of them cannot be.
    """

    def __init__(
        self,
        db: Database,
        app: App,
        *,
        name: str = "",
        queues: Iterable[str] = (),
        concurrency: int = CONCURRENCY_DEFAULT,
        prefetch: int = 0,
        capabilities: Iterable[str] = (),
        weight: int = 1,
        ttl: float = LEASE_TTL_S_DEFAULT,
        grace: float = GRACE_S_DEFAULT,
        error_pause: float = ERROR_PAUSE_S_DEFAULT,
        tasks_max: int = 0,
    ) -> None:
        self.app = app
        self.name = check_name("a worker", name or f"{socket.gethostname()}:{os.getpid()}")
        self.queues = sorted_names("queues", queues)
        self.capabilities = sorted_names("capabilities", capabilities)
        self.concurrency = _check_number("concurrency", concurrency, 1, WORKER_LOAD_MAX)
        self.prefetch = _check_number("prefetch", prefetch, 0, WORKER_LOAD_MAX)
        self.weight = _check_number("weight", weight, 1, 1000)
        self.ttl = check_ttl(ttl) / 1000
        self.grace = _check_seconds("grace", grace)
        self.error_pause = _check_seconds("error_pause", error_pause)
        self.tasks_max = _check_number("tasks_max", tasks_max, 0, TASKS_MAX_MAX)
        self.counts = Counts()
        #: Attempts that are not this worker's any more, and whose code goes on.
        self.lingering: set[Job] = set()
        self._db = db
        self._threads: Executor | None = None
        self._post: Post | None = None
        self._pulse: Pulse | None = None
        self._registrations = 0
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._drained = False
        self._hurried = False

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Register, and begin with what there is to do; ``async with`` does this.

        Raises:
            InvalidArgumentError: annotations of a task cannot be used, or it was started before.
            QuorateError: no node could be reached, or it was refused.
        """
        if self._keeper is not None or self._drained:
            raise InvalidArgumentError("a worker is started once; make another one")
        self.app.resolve()
        if not self.app.in_use:
            self.app.use(self._db)
        await self._db.open()
        post = await self._register()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(post))
        self._keeper.add_done_callback(self._kept)
        return self

    async def run(self, *, burst: bool = False) -> None:
        """Start, work until ``stop`` is called, and drain. *burst*: until there is nothing more for
        this worker to do now; what is scheduled for later is not waited for.

        Raises:
            QuorateError: as ``start``; or the handle was closed, or the cluster refuses a worker.
        """
        async with self:
            if burst:
                await self._until_idle()
            else:
                await self._stopping.wait()

    async def registered(self) -> None:
        """Until it is registered for the first time; for ever, if it never is."""
        await self._until(lambda: self.id != 0)

    def stop(self) -> None:
        """Have ``run`` come to its end. Not thread-safe."""
        self._stopping.set()

    async def drain(self, grace: float | None = None) -> None:
        """Take no more tasks, give back those that have not begun, wait up to *grace* seconds
        (None: those of the worker) for the others, stop the rest, give them back, and go. Nothing
        is held against a task that is given back. A second call hurries the first: what runs is
        stopped at once.

        Raises:
            QuorateError: the worker had ended before, for this reason.
        """
        limit_s = self.grace if grace is None else _check_seconds("grace", grace)
        self._stopping.set()
        if self._drained:
            self._hurried = True
            self.changed()
            return
        self._drained = True
        keeper, post = self._keeper, self._post
        if post is not None and not post.lost:
            await self._drain(post, limit_s)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if self._pulse is not None:
            await self._pulse.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if keeper is not None and not keeper.cancelled():
            keeper.result()

    async def _drain(self, post: Post, grace_s: float) -> None:
        # Aside: if nobody hears it, what runs comes to its end all the same.
        telling = asyncio.ensure_future(post.take_no_more())
        await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until(lambda: post.running == 0 or post.lost or self._hurried)
        telling.cancel()
        if post.running:
            _logger.info("worker %s stops %d tasks", self.name, post.running)
            post.stop_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._until(lambda: post.running == 0 or post.lost)
        if not post.lost:
            await post.leave(min(self.ttl, self._db.timeout))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exception: object) -> None:
        await self.drain()

    # --- being registered -----------------------------------------------------------------------

    async def _register(self) -> Post:
        pulse = make_pulse(self._db, self.ttl, f"worker {self.name}"[:TASK_NAME_MAX])
        posts: list[Post] = []

        def lose() -> None:
            for each in posts:
                each.lose()

        try:
            lease = await pulse.start(lose)
            registered: Registered = await self._db.tasks.run(
                Register(
                    self.name,
                    lease,
                    self.concurrency,
                    self.prefetch,
                    self.capabilities,
                    self.queues,
                    self.weight,
                    self.app.name,
                )
            )
            _check_alive(pulse)
            pulse.serve(registered.worker)
            post = Post(self, self._db.tasks, pulse, registered.worker)
        except BaseException:
            await pulse.stop()  # if it was registered after all, that goes with the lease
            raise
        posts.append(post)
        self._post, self._pulse = post, pulse
        self._registrations += 1
        self.changed()
        if self.lingering:
            post.attend()
        _logger.info("worker %s is registered as %d", self.name, registered.worker)
        return post

    async def _keep(self, post: Post) -> None:
        """Be registered anew whenever the lease was lost."""
        while True:
            error = await post.over
            if self._stopping.is_set():
                return
            if error is not None:
                raise error
            _logger.warning(
                "worker %s was lost as %d: all that it ran is stopped, it registers anew",
                self.name,
                post.worker,
            )
            if self._pulse is not None:
                await self._pulse.stop()
            retry_s = REGISTER_RETRY_S_MIN
            while True:
                try:
                    post = await self._register()
                    break
                except ClosedError:
                    raise
                except QuorateError as failed:
                    _logger.warning("worker %s is not registered yet: %s", self.name, failed)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, REGISTER_RETRY_S_MAX)

    def _kept(self, _task: asyncio.Task[None]) -> None:
        """There is no use in going on."""
        self._stopping.set()
        self.changed()

    # --- how it stands --------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Its number, 0 before it is registered; another one after a lost lease."""
        return 0 if self._post is None else self._post.worker

    @property
    def running(self) -> int:
        """Tasks whose code runs now."""
        return 0 if self._post is None else self._post.running

    def statistics(self) -> WorkerStatistics:
        """Counters since it was made."""
        counts = self.counts
        return WorkerStatistics(
            self.id, self.running, counts.begun, counts.done, counts.failed, counts.given_back,
            counts.dropped, counts.stale, len(self.lingering), self._registrations,
        )  # fmt: skip

    async def _until_idle(self) -> None:
        """Until it has nothing, and a look at the cluster later still has nothing: whatever this
        worker could run would have been handed to it by then."""
        while not self._stopping.is_set():
            await self._until(lambda: self._idle or self._stopping.is_set())
            post = self._post
            if post is not None:
                await post.answers.settled()
                if not self._idle or post.answers.unsettled:
                    continue
            before = self.counts.begun
            await self._db.tasks.system()
            if self._idle and self.counts.begun == before:
                return

    @property
    def _idle(self) -> bool:
        post = self._post
        return post is not None and not post.lost and not post.busy

    async def _until(self, what: Callable[[], bool]) -> None:
        while not what():
            self._changed.clear()
            await self._changed.wait()

    # --- for its post ---------------------------------------------------------------------------

    def pool(self) -> Executor:
        """Threads for tasks that are not coroutines."""
        if self._threads is None:
            # A loop that brings a time of its own has to know of threads that work.
            made = getattr(asyncio.get_running_loop(), "thread_pool", ThreadPoolExecutor)
            self._threads = made(self.concurrency, f"quorate-task-{self.name}")
        return self._threads

    def changed(self) -> None:
        """Something began or ended."""
        self._changed.set()
        if self.tasks_max and self.counts.begun >= self.tasks_max:
            self._stopping.set()

    def left(self, job: Job) -> None:
        """Code that was left to itself, maybe under another number, is over."""
        self.lingering.discard(job)
        self.changed()
        if self._post is not None:
            self._post.attend()

    def __repr__(self) -> str:
        return f"<Worker {self.name!r}, number {self.id}, runs {self.running}>"


def _check_alive(pulse: Pulse) -> None:
    if not pulse.alive:
        raise LeaseLostError("the cluster took longer to register a worker than its lease lives")


def _check_number(name: str, number: int, low: int, high: int) -> int:
    given: object = number
    if isinstance(given, int) and not isinstance(given, bool) and low <= given <= high:
        return number
    raise InvalidArgumentError(f"{name} is a number from {low} to {high}, not {number!r}")


def _check_seconds(name: str, seconds: float) -> float:
    given: object = seconds
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < 10**7:
        return float(given)
    raise InvalidArgumentError(f"{name} is a number of seconds from 0, not {seconds!r}")
