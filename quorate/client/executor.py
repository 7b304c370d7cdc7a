"""``QuorateExecutor``: an executor of ``concurrent.futures`` whose calls are tasks of the cluster.

    with quorate.sync.connect("a:7400,b:7400,c:7400") as db, QuorateExecutor(db, app) as pool:
        future = pool.submit(send, "ada@example.org", "hello")
        print(future.result())

A call is durable from the moment on at which ``future.enqueued()`` returns, and is run by whichever
worker has room: elsewhere, or one of the executor's own. Code does not travel, only names and
arguments: what can be submitted is a task of an ``App``.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

from quorate.base.limits import TASK_BATCH_MAX, WORKER_LOAD_MAX
from quorate.base.task_queries import TaskEvent
from quorate.base.task_specs import DONE, Task
from quorate.client.database import Database as AsyncDatabase
from quorate.client.executor_line import (
    DROPPED,
    ENQUEUED,
    SENT,
    UNSENT,
    Call,
    Line,
    News,
    unknown,
)
from quorate.client.sync import Database
from quorate.client.task_app import App, TaskFunction, failure_of
from quorate.client.task_payloads import unpack_result
from quorate.client.task_waiting import UNKNOWN
from quorate.client.task_worker import GRACE_S_DEFAULT, Worker
from quorate.errors import (
    ClosedError,
    ExecutorShutdownError,
    InvalidArgumentError,
    OverloadedError,
    QuorateError,
)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: Calls that have not ended, of one executor: ``submit`` blocks beyond. Each may be a watch of its
#: own, of which a handle has ``SUBSCRIPTIONS_MAX``.
OUTSTANDING_DEFAULT: Final = 10_000

_logger = logging.getLogger(__name__)

_open_executors: weakref.WeakSet[QuorateExecutor] = weakref.WeakSet()


class TaskFuture(Future[R]):
    """A call that was submitted. As any future, but for this:

    * ``running()`` is true from the first attempt on, also between attempts.
    * ``cancel()`` asks the cluster, and blocks meanwhile: True, and the task will never run; or
      False, as it has begun, has ended, or the cluster did not answer.
    * ``result()`` raises ``TaskFailedError``, with the text of the error and where it was raised at
      the worker; ``TaskCancelledError`` if somebody else has cancelled the task; and
      ``OutcomeUnknownError`` if how it ended is not known.
    """

    def __init__(
        self, executor: QuorateExecutor, function: TaskFunction[Any, R, Any], spec: Task
    ) -> None:
        super().__init__()
        self._executor = executor
        self._function = function
        self._spec: Task | None = spec
        self._durable: threading.Event | None = None
        self._notified = False
        self.cancelling = False  #: the cluster was asked
        self.stage = UNSENT  #: for the executor
        self.task = 0  #: id of the task, 0 as long as it is not durable

    def enqueued(self, timeout: float | None = None) -> int:
        """Wait until the task is durable on a majority, or has ended otherwise; its id.

        Raises:
            TimeoutError: *timeout* seconds have passed.
            CancelledError: it was cancelled before.
            QuorateError: it was refused, or nobody knows.
        """
        with self._executor.lock:
            if self._durable is None:
                self._durable = threading.Event()
                if self.task or self.done():
                    self._durable.set()
        if not self._durable.wait(timeout):
            raise TimeoutError(f"the task was not durable within {timeout:g} s")
        if not self.task:
            self.result(0)
        return self.task

    def cancel(self) -> bool:
        """See the class.

        Raises:
            RuntimeError: on the loop of the executor's handle, which would wait for itself.
        """
        if not self.done() and not self.running():
            self._executor.cancel_some((self,))
        return self.cancelled()

    # --- for the executor -----------------------------------------------------------------------

    def take_spec(self) -> Task | None:
        """See ``Call``."""
        with self._executor.lock:
            spec, self._spec = self._spec, None
            if self.stage != UNSENT:
                return None
            self.stage = SENT
            return spec

    def drop(self) -> bool:
        """Whether it was not sent, and will not be. Under the executor's lock."""
        if self.stage == UNSENT:
            self.stage, self._spec = DROPPED, None
        return self.stage == DROPPED

    def now_enqueued(self, task: int) -> None:
        """See ``Call``."""
        self.task, self.stage = task, ENQUEUED
        self.wake()

    def wake(self) -> None:
        """Whoever waits for it to be durable waits no longer."""
        with self._executor.lock:
            durable = self._durable
        if durable is not None:
            durable.set()

    def now_cancelled(self) -> bool:
        """It will never run; False: that comes too late."""
        cancelled = super().cancel()
        if cancelled:
            self._notify()
            self.wake()
        return cancelled

    def now_started(self) -> None:
        """It has been begun once."""
        if not self.done():
            self._notify()

    def _notify(self) -> None:
        """To be done once, by whoever comes first; it looks at what is the case."""
        with self._executor.lock:
            first, self._notified = not self._notified, True
        if first:
            self.set_running_or_notify_cancel()

    def now_ended(self, news: TaskEvent | QuorateError) -> None:
        """It has ended, or nobody knows."""
        if self.done():
            return
        here = isinstance(news, TaskEvent) and news.what == "cancelled" and self.cancelling
        if here and self.now_cancelled():
            return
        with contextlib.suppress(InvalidStateError):  # it was cancelled in this very moment
            try:
                value = self._outcome(news)
            except Exception as error:  # noqa: BLE001  a model may raise anything when it is read
                self.set_exception(error)
            else:
                self.set_result(value)
        self.wake()

    def _outcome(self, news: TaskEvent | QuorateError) -> R:
        if isinstance(news, QuorateError):
            raise news
        if news.state == DONE:
            name = f"task {news.task} {self._function.name!r}"
            value: R = unpack_result(news.result, self._function.shape.returns, name)
            return value
        if news.what == UNKNOWN:
            raise unknown(news.task, "it ended, and was forgotten")
        error = failure_of(news, self._function.name)
        if news.error:
            error.add_note(f"At the worker:\n{news.error}")
        raise error


class QuorateExecutor(Executor):
    """See the module. *db*: open for as long as the executor is. May be used by any thread.

    Args:
        db: a handle of ``quorate.sync``.
        app: whose tasks can be submitted, by the name of their functions or the functions
            themselves.
        workers: that many calls at once are run here: coroutines on the loop of *db*, plain
            functions in threads. 0: by workers elsewhere (``quorate worker MODULE:APP``).
        queues: that these workers serve; none: those of the tasks of *app*.
        grace: seconds for calls of others that these workers still run when the executor is shut
            down, and for all calls at the end of the interpreter.
        outstanding_max: calls that have not ended; ``submit`` blocks as long as there are so many.

    How often a failed call is tried again, and when, is a setting of its task.

    Raises:
        InvalidArgumentError: one of them cannot be.
        QuorateError: with *workers*: no node could be reached, or they were refused.
    """

    def __init__(
        self,
        db: Database,
        app: App,
        *,
        workers: int = 0,
        queues: Iterable[str] = (),
        grace: float = GRACE_S_DEFAULT,
        outstanding_max: int = OUTSTANDING_DEFAULT,
    ) -> None:
        _check(db, app, workers, outstanding_max)
        self.lock = threading.Lock()  #: of this and of the futures' own fields
        self._room = threading.Condition(self.lock)
        self._db = db
        self._app = app
        self._outstanding_max = outstanding_max
        self._shut = ""  # why nothing can be submitted any more
        self._live: dict[TaskFuture[Any], None] = {}
        self._unsent: list[Sequence[TaskFuture[Any]]] = []
        self._by_function: dict[int, TaskFunction[Any, Any, Any]] = {}
        self._news: SimpleQueue[tuple[TaskFuture[Any], News] | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_deliver, args=(self._news, self._ended), name="quorate-executor", daemon=True
        )
        self._tasks: set[asyncio.Task[None]] = set()
        served = tuple(queues)
        if served and not workers:
            raise InvalidArgumentError("queues are for the executor's own workers: say how many")
        self._worker: Worker | None = None
        self._line: Line
        self._end: asyncio.Event

        async def begin(database: AsyncDatabase) -> None:
            if workers:
                self._worker = Worker(
                    database,
                    app,
                    queues=served or _queues_of(app),
                    concurrency=workers,
                    grace=grace,
                    error_pause=0.0,  # that calls fail is the business of who submits them
                )
                await self._worker.start()
            self._line = Line(database.tasks, self._tell)
            self._end = asyncio.Event()
            self._keep(self._live_on())

        db.on_loop(begin)
        self._thread.start()
        _open_executors.add(self)

    # --- submitting -----------------------------------------------------------------------------

    @overload
    def submit(
        self, fn: TaskFunction[P, R, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[R]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Have *fn* called by a worker. Blocks only while ``outstanding_max`` calls have not ended.
        *fn*: a task of the app, also with other settings (``send.options(delay=5)``), or the very
        function that one was made of.

        Raises:
            InvalidArgumentError: *fn* is none of that.
            TaskPayloadError: it cannot be called so, or an argument cannot be packed.
            ExecutorShutdownError: the executor was shut down.
            OverloadedError: too many calls have not ended, and this thread cannot wait for one: a
                callback of a future is called in the thread that tells them of their ends.
        """
        function = self._function_of(fn)
        return self._post(function, (function.make(*args, **kwargs),))[0]

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """What *fn* returns for each, in order. All are submitted now, or *buffersize* ahead of the
        results that were taken. *timeout*: seconds from now for all results. *chunksize*: so many
        are enqueued by one command, or none of them. Whatever is left when the iteration ends early
        is cancelled, as far as it has not begun.

        Raises:
            TimeoutError: while iterating: time is up.
            Exception: as ``submit`` and, while iterating, ``TaskFuture.result``.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else timeout + time.monotonic()
        function = self._function_of(fn)
        calls = (function.make(*args) for args in zip(*iterables, strict=False))
        futures: deque[TaskFuture[Any]] = deque()
        chunk = min(chunksize, TASK_BATCH_MAX, self._outstanding_max, buffersize or chunksize)

        def more(count: int | None) -> None:
            ahead = islice(calls, count)
            while specs := tuple(islice(ahead, chunk)):
                futures.extend(self._post(function, specs))

        try:
            more(buffersize)
        except BaseException:
            self.cancel_some(futures)
            raise

        def results() -> Iterator[Any]:
            try:
                while futures:
                    left = None if end is None else end - time.monotonic()
                    if buffersize is not None:
                        more(1)
                    yield _result_or_cancel([futures.popleft()], left)
            finally:
                self.cancel_some(futures)

        return results()

    def _function_of(self, fn: Callable[..., Any]) -> TaskFunction[Any, Any, Any]:
        if isinstance(fn, TaskFunction):
            if fn.app is self._app:
                return fn
            raise InvalidArgumentError(
                f"{fn!r} cannot be submitted here: this executor is for tasks of app "
                f"{self._app.name!r}"
            )
        functions = self._app.functions
        with self.lock:
            if len(self._by_function) != len(functions):
                self._by_function = {id(each.function): each for each in functions.values()}
            found = self._by_function.get(id(fn))
        if found is not None:
            return found
        raise InvalidArgumentError(
            f"{fn!r} is no task of app {self._app.name!r}. Workers know functions by name, and no "
            "code travels: decorate it with @app.task, or register it by "
            "app.task(name=...)(function), where workers load the app"
        )

    def _post(
        self, function: TaskFunction[Any, Any, Any], specs: Sequence[Task]
    ) -> Sequence[TaskFuture[Any]]:
        with self.lock:
            self._wait_for_room(len(specs))
            futures = [TaskFuture(self, function, spec) for spec in specs]
            self._live.update(dict.fromkeys(futures))
            self._unsent.append(futures)
            first = len(self._unsent) == 1
        if first:
            try:
                self._db.soon(self._send)
            except ClosedError:
                with self.lock:
                    for future in futures:
                        self._live.pop(future, None)
                raise
        return futures

    def _wait_for_room(self, count: int) -> None:
        while not self._shut and len(self._live) + count > self._outstanding_max:
            if self._db.is_here or threading.current_thread() is self._thread:
                raise OverloadedError(
                    f"{len(self._live)} calls have not ended, and no more than "
                    f"{self._outstanding_max} may; this thread cannot wait for one to end"
                )
            self._room.wait()
        if self._shut:
            raise ExecutorShutdownError(f"cannot schedule new futures after {self._shut}")

    def _send(self) -> None:
        with self.lock:
            batches, self._unsent = self._unsent, []
        self._line.send(cast("list[Sequence[Call]]", batches))

    # --- cancelling -----------------------------------------------------------------------------

    def cancel_some(self, futures: Iterable[TaskFuture[Any]]) -> None:
        """Cancel those that have not begun; blocks until the cluster has said which."""
        asked = self._drop(futures)
        if not asked:
            return
        with contextlib.suppress(QuorateError):
            cancelled = self._db.on_loop(lambda _database: self._line.cancel(asked))
            for future in asked:
                if future.task in cancelled and future.now_cancelled():
                    self._release(future)

    def _drop(self, futures: Iterable[TaskFuture[Any]]) -> list[TaskFuture[Any]]:
        """Cancel what was not sent; returns those that the cluster has to be asked about."""
        with self.lock:
            given = [each for each in futures if each in self._live]
            dropped = [each for each in given if each.drop()]
            asked = [each for each in given if each.stage != DROPPED and not each.running()]
            for each in asked:
                each.cancelling = True
        for each in dropped:
            self._release(each)
            each.now_cancelled()
        return asked

    async def _cancel_aside(self, asked: Sequence[TaskFuture[Any]]) -> None:
        """The watch tells which are."""
        with contextlib.suppress(QuorateError):
            await self._line.cancel(asked)

    # --- hearing of ends ------------------------------------------------------------------------

    def _tell(self, call: Call, news: News) -> None:
        self._news.put((cast("TaskFuture[Any]", call), news))

    def _ended(self, future: TaskFuture[Any]) -> None:
        """Before its callbacks are called, which may submit another one."""
        self._release(future)

    def _release(self, future: TaskFuture[Any]) -> None:
        with self.lock:
            self._live.pop(future, None)
            self._room.notify()
        self._end_if_idle()

    # --- the end --------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  as the base class has it
        """No more calls. *cancel_futures*: cancel those that have not begun. *wait*: until all
        others have ended, their callbacks were called, and the executor's own workers have gone;
        what workers elsewhere do not get to is waited for without end. Without *wait*, that happens
        by and by, as long as *db* is open. A second call is as good as the first.

        Raises:
            RuntimeError: with *wait*, in a thread that it would wait for.
        """
        with self.lock:
            self._shut = self._shut or "shutdown"
            self._room.notify_all()
            futures = list(self._live) if cancel_futures else []
        self._end_if_idle()
        if wait and (self._db.is_here or threading.current_thread() is self._thread):
            raise RuntimeError(
                "an executor cannot be waited for in its own callbacks, or on the loop of its "
                "handle: shutdown(wait=False)"
            )
        if wait:
            self.cancel_some(futures)
            self._thread.join()
        elif asked := self._drop(futures):
            with contextlib.suppress(ClosedError):
                self._db.soon(lambda: self._keep(self._cancel_aside(asked)))

    def _end_if_idle(self) -> None:
        with self.lock:
            idle = bool(self._shut) and not self._live
        if idle:
            with contextlib.suppress(ClosedError):
                self._db.soon(self._end.set)

    def _keep(self, made: Any) -> None:  # noqa: ANN401  a coroutine
        task = asyncio.get_running_loop().create_task(made)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live_on(self) -> None:
        """Until all is over, or the handle is closed."""
        try:
            await self._end.wait()
            if self._worker is not None:
                with contextlib.suppress(QuorateError):  # it had ended before
                    await self._worker.drain()
        finally:
            _open_executors.discard(self)
            with self.lock:
                self._shut = self._shut or "its handle was closed"
                self._room.notify_all()
                left = list(self._live)
                unsent = {each for each in left if each.drop()}
            for each in left:
                closed = "the handle was closed before the call was sent"
                sent = unknown(each.task, "the handle was closed")
                self._news.put((each, ClosedError(closed) if each in unsent else sent))
            self._news.put(None)

    def leave(self) -> None:
        """At the end of the interpreter: what was submitted is made durable, and the executor's own
        workers have ``grace`` seconds for what they run. Nothing else is waited for."""
        with self.lock:
            self._shut = self._shut or "interpreter shutdown"
            self._room.notify_all()
        with contextlib.suppress(QuorateError):
            self._db.on_loop(self._leave)

    async def _leave(self, database: AsyncDatabase) -> None:
        self._send()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(database.timeout):
                await self._line.settled()
        if self._worker is not None:
            await self._worker.drain()

    def __repr__(self) -> str:
        return f"<QuorateExecutor of app {self._app.name!r}, {len(self._live)} calls not ended>"


def _deliver(
    news: SimpleQueue[tuple[TaskFuture[Any], News] | None],
    ended: Callable[[TaskFuture[Any]], None],
) -> None:
    """The thread that futures are told in, and that calls their callbacks."""
    while (item := news.get()) is not None:
        future, what = item
        try:
            if isinstance(what, str):
                future.now_started()
            else:
                ended(future)
                future.now_ended(what)
        except BaseException:  # of a callback: ``Exception`` is logged by the future itself
            _logger.exception("a callback of %r has raised", future)
        del item, future, what  # a result belongs to whoever has the future


def _result_or_cancel(held: list[TaskFuture[Any]], timeout: float | None) -> Any:  # noqa: ANN401
    """*held*: one, and nobody else holds it: else its result would live as long as the frame."""
    future = held.pop()
    try:
        try:
            return future.result(timeout)
        finally:
            future.cancel()
    finally:
        del future  # its error holds this frame


def _check(db: object, app: object, workers: object, outstanding_max: object) -> None:
    if not isinstance(db, Database):
        raise InvalidArgumentError(
            "an executor takes a handle of quorate.sync, as quorate.sync.connect(...) or "
            f"quorate.sync.open(...) give one, not {type(db).__name__}; so in programs that await"
        )
    if not isinstance(app, App):
        raise InvalidArgumentError(f"an executor is for the tasks of an App, not {app!r}")
    for name, number, low, high in (
        ("workers", workers, 0, WORKER_LOAD_MAX),
        ("outstanding_max", outstanding_max, 1, OUTSTANDING_DEFAULT),
    ):
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise InvalidArgumentError(f"{name} is a number from {low} to {high}, not {number!r}")


def _queues_of(app: App) -> tuple[str, ...]:
    queues = {each.settings.get("queue", "default") for each in app.functions.values()}
    return tuple(sorted(queues)) or ("default",)


def _leave_all() -> None:
    for executor in list(_open_executors):
        executor.leave()


# Before the handles are closed, which were imported first; what comes last is called first.
getattr(threading, "_register_atexit", atexit.register)(_leave_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_executors.clear)  # they are the parent's
