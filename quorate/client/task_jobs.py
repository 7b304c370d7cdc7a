"""One attempt at a task, as it is run: its code, what is around it, and how it is stopped."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, thread
from concurrent.futures import Future as ThreadFuture
from typing import Any, Final

from quorate.base.limits import TASK_ERROR_MAX, TASK_NAME_MAX
from quorate.base.task_commands import Assignment, Failed
from quorate.client.task_answers import Key
from quorate.client.task_app import App, Middleware, TaskFunction
from quorate.client.task_context import CURRENT, Completion, TaskContext, stop
from quorate.errors import TaskGiveUpError, TaskPayloadError, TaskRetryError

#: Why code is to stop. "cancelled", and what the cluster says besides, comes from it.
CANCELLED: Final = "cancelled"
DRAINED: Final = "drained"
LOST: Final = "lost"

#: Files between the worker and the code of the task.
_NOT_SHOWN: Final = frozenset((__file__, thread.__file__, asyncio.futures.__file__))

#: Kinds of errors that no code of the application has raised.
UNKNOWN_FUNCTION: Final = "unknown-function"
BAD_PAYLOAD: Final = "bad-payload"


class Job:
    """An attempt. *ended*: called once, on the loop, when its code is over; unless the code is a
    thread that was given up: then ``lingers`` is true, and *left* is called when that is over."""

    __slots__ = (
        "_app", "_begun", "_ended", "_left", "_pool", "_task", "completion", "context", "dropped",
        "failure", "key", "lingers", "result", "threaded",
    )  # fmt: skip

    def __init__(
        self,
        app: App,
        pool: Callable[[], Executor],
        context: TaskContext,
        ended: Callable[[Job], None],
        left: Callable[[Job], None],
    ) -> None:
        self._app = app
        self._pool = pool
        self._ended = ended
        self._left = left
        self._task: asyncio.Task[None] | None = None
        self._begun = False
        assignment = context.assignment
        self.key: Key = (assignment.task, assignment.attempt)
        self.context = context
        self.dropped = False  #: it is not the worker's any more: what comes of it is of no interest
        self.result: bytes | None = None
        self.completion: Completion[Any] | None = None  #: what goes with the result
        self.failure: Failed | None = None
        self.threaded = False  #: its code runs in a thread
        self.lingers = False

    def start(self) -> None:
        """Run it."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self, why: str) -> None:
        """Have its code stop: a coroutine is cancelled, a thread is told."""
        stop(self.context, why)
        # A task that has not made its first step would never make it.
        if self._begun and not self.threaded and self._task is not None:
            self._task.cancel()

    def drop(self, why: str) -> None:
        """It is not the worker's any more. A thread that goes on is left to itself."""
        self.dropped = True
        stop(self.context, why)
        if self._begun and self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        self._begun = True
        context = self.context
        assignment = context.assignment
        CURRENT.set(context)
        function: TaskFunction[Any, Any, Any] | None = None
        try:
            if context.cancelled:
                raise asyncio.CancelledError  # noqa: TRY301  as it would be a moment later
            function = self._app.functions.get(assignment.function)
            if function is None:
                self.failure = self._unknown(assignment)
            else:
                args, kwargs = function.read(assignment.payload)
                hooks = self._app.hooks
                if hooks:
                    call = functools.partial(self._call, function, args, kwargs)
                    value = await _around(hooks, context, call)
                elif function.is_async:
                    value = await function.function(*args, **kwargs)
                else:
                    value = await self._in_thread(function, args, kwargs)
                if isinstance(value, Completion):
                    self.completion, value = value, value.value
                self.result = function.pack(value)
        except asyncio.CancelledError as error:
            self.failure = self._stopped(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001  code may raise anything
            self.failure = self._failed(error, function)
        self._ended(self)

    async def _call(
        self,
        function: TaskFunction[Any, Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401
        if function.is_async:
            return await function.function(*args, **kwargs)
        return await self._in_thread(function, args, kwargs)

    async def _in_thread(
        self,
        function: TaskFunction[Any, Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401
        loop = asyncio.get_running_loop()
        inside = contextvars.copy_context()
        call = functools.partial(inside.run, function.function, *args, **kwargs)
        running: ThreadFuture[Any] = self._pool().submit(call)
        self.threaded = True
        try:
            value = await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if not running.cancel() and not running.done():
                self.lingers = True
                running.add_done_callback(lambda _: _tell(loop, self._left, self))
            raise
        finally:
            self.threaded = False
        return value

    # --- what came of it ------------------------------------------------------------------------

    def _unknown(self, assignment: Assignment) -> Failed:
        text = f"app {self._app.name!r} of this worker has no task {assignment.function!r}"
        return Failed(*self.key, UNKNOWN_FUNCTION, text)

    def _stopped(self, error: BaseException) -> Failed:
        why = self.context.reason
        if why:
            return Failed(*self.key, why, f"stopped: {why}", cancelled=why == CANCELLED)
        return self._failed(error, None)

    def _failed(self, error: BaseException, function: TaskFunction[Any, Any, Any] | None) -> Failed:
        kind = type(error).__name__[:TASK_NAME_MAX]
        if isinstance(error, TaskPayloadError):
            return Failed(*self.key, BAD_PAYLOAD, _cut(str(error)), final=True)
        if isinstance(error, TaskRetryError):
            after_ms = None if error.after is None else max(round(error.after * 1000), 0)
            return Failed(*self.key, kind, _cut(str(error)), after_ms=after_ms)
        final = isinstance(error, TaskGiveUpError) or (
            function is not None and isinstance(error, function.fatal)
        )
        return Failed(*self.key, kind, describe(error), final=final)

    def __repr__(self) -> str:
        return f"<Job of {self.context!r}>"


async def _around(
    hooks: Sequence[Middleware], context: TaskContext, call: Callable[[], Awaitable[Any]]
) -> Any:  # noqa: ANN401
    """*call* with *hooks* around it, the first outermost."""
    for hook in reversed(hooks):
        call = functools.partial(hook, context, call)
    return await call()


def _tell(loop: asyncio.AbstractEventLoop, left: Callable[[Job], None], job: Job) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(left, job)


def describe(error: BaseException) -> str:
    """An error as text: its name and message first, then where it was raised, the innermost last,
    as much of it as is kept."""
    head = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    shown = [each for each in frames if each.filename not in _NOT_SHOWN]
    trace = "".join(traceback.format_list(shown)).rstrip()
    if len(head) + len(trace) + 1 > TASK_ERROR_MAX:
        head = head[: TASK_ERROR_MAX // 2]
        trace = "..." + trace[len(head) + 4 - TASK_ERROR_MAX :]
    return f"{head}\n{trace}" if trace else head


def _cut(text: str) -> str:
    return text[:TASK_ERROR_MAX]
