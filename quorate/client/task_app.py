"""Typed tasks: functions of this program that a worker runs, wherever it is.

    app = quorate.App("shop")

    @app.task(queue="mail", retries=5)
    async def send(address: str, text: str) -> int: ...

    async with quorate.connect(...) as db:
        app.use(db)
        sent = await send.submit("a@example.org", "hello")  # typed like the function
        print(await sent)  # what it returned, wherever it ran

The function stays what it was: ``await send("a@example.org", "hello")`` calls it, here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from quorate.base.task_queries import TaskEvent, TaskInfo
from quorate.base.task_specs import DONE, Task
from quorate.client.database import Database
from quorate.client.operations import Bytes, as_bytes
from quorate.client.task_context import Completion, TaskContext, current_context, is_async
from quorate.client.task_payloads import (
    Arguments,
    Shape,
    pack_arguments,
    pack_result,
    unpack_result,
)
from quorate.client.task_settings import (
    TaskSettings,
    check_name,
    fatal_classes,
    make_task,
    with_unique,
)
from quorate.client.tasks import Tasks
from quorate.errors import (
    InvalidArgumentError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")  # what calling the function gives: R, or a coroutine that comes to R

#: ``async def hook(context, run)``: does what is to be done before, calls ``await run()`` once,
#: does what is to be done after, and returns what the task came to.
Middleware = Callable[[TaskContext, Callable[[], Awaitable[Any]]], Awaitable[Any]]
#: Makes a key of the arguments of a call.
KeyOf = Callable[..., Bytes]

#: Why a task is dead that was not in time.
_LATE: Final = ("timeout", "expired")


class App:
    """Tasks by name. *name*: of the program, shown to operators as what a worker runs."""

    def __init__(self, name: str) -> None:
        self.name = check_name("an app", name)
        self.functions: dict[str, TaskFunction[Any, Any, Any]] = {}  #: by name of the task
        self.hooks: list[Middleware] = []  #: the first one is outermost
        self._db: Database | None = None

    def use(self, db: Database) -> None:
        """Where tasks are enqueued from now on, unless a call says otherwise. A worker does this,
        for tasks that enqueue others, if nobody has."""
        self._db = db

    @property
    def db(self) -> Database:
        """See ``use``.

        Raises:
            InvalidArgumentError: nobody has said.
        """
        if self._db is None:
            raise InvalidArgumentError(f"app {self.name!r} has no database yet: app.use(db)")
        return self._db

    @property
    def in_use(self) -> bool:
        """Whether ``use`` was called."""
        return self._db is not None

    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, Completion[R]]], /
    ) -> TaskFunction[P, R, Coroutine[Any, Any, Completion[R]]]: ...
    @overload
    def task(
        self, function: Callable[P, Completion[R]], /
    ) -> TaskFunction[P, R, Completion[R]]: ...
    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> TaskFunction[P, R, R]: ...
    @overload
    def task(
        self,
        *,
        name: str = "",
        key: Bytes | KeyOf = b"",
        unique: bool | Bytes | KeyOf = False,
        **settings: Unpack[TaskSettings],
    ) -> _Decorator: ...
    def task(  # type: ignore[misc]  # its keywords are those of the last signature
        self, function: Callable[..., Any] | None = None, /, **given: Any
    ) -> Any:
        """Make a function a task. *name*: by which workers know it ["module.function"]; keep it
        when you move the function, as tasks under the old name may wait. *key*, *unique*: as for
        ``db.tasks.enqueue``, or a function of the arguments; *unique* True: of all arguments. The
        rest is explained at ``TaskSettings``.

        Raises:
            InvalidArgumentError: a setting cannot be, or the name is taken.
        """

        def register(found: Callable[..., Any]) -> TaskFunction[Any, Any, Any]:
            settings = given.copy()
            name = settings.pop("name", "") or _name_of(found)
            key, unique = settings.pop("key", b""), settings.pop("unique", False)
            made: TaskFunction[Any, Any, Any] = TaskFunction(
                self, found, name, key, unique, cast("TaskSettings", settings)
            )
            if made.name in self.functions:
                raise InvalidArgumentError(f"app {self.name!r} has a task {made.name!r} already")
            self.functions[made.name] = made
            return made

        return register if function is None else register(function)

    def middleware(self, hook: Middleware) -> Middleware:
        """Have *hook* around every task that a worker runs; of several, the first is outermost."""
        self.hooks.append(hook)
        return hook

    def context(self) -> TaskContext:
        """Of the task that is running here: its id, attempt, fence, progress.

        Raises:
            InvalidArgumentError: none is.
        """
        return current_context()

    def resolve(self) -> None:
        """Look at the annotations of all tasks, as a worker does before it begins.

        Raises:
            InvalidArgumentError: those of one cannot be resolved, or read from msgpack.
        """
        for function in self.functions.values():
            _ = function.shape


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, Completion[R]]], /
    ) -> TaskFunction[P, R, Coroutine[Any, Any, Completion[R]]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Completion[R]], /
    ) -> TaskFunction[P, R, Completion[R]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R, R]: ...


class TaskFunction(Generic[P, R, C]):
    """A function that is a task. Made by ``App.task``; calling it calls the function."""

    __name__: str
    __qualname__: str

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        key: Bytes | KeyOf,
        unique: bool | Bytes | KeyOf,  # noqa: FBT001  True: of all arguments
        settings: TaskSettings,
    ) -> None:
        # What a class has are no attributes of a function that makes objects of it.
        updated = () if isinstance(function, type) else functools.WRAPPER_UPDATES
        functools.update_wrapper(self, function, updated=updated)
        self.app = app
        self.function = function
        self.name = check_name("a task", name)
        self.is_async = is_async(function)
        self.settings = settings
        #: Errors, with their subclasses, after which there is no further attempt.
        self.fatal = fatal_classes(settings)
        self._key = key
        self._unique = unique
        self._template = self._make_template()

    def _make_template(self) -> Task:
        given: dict[str, Any] = dict(self.settings)
        if not callable(self._key):
            given["key"] = self._key
        if self._unique is not False:
            computed = self._unique is True or callable(self._unique)
            given["unique"] = b"-" if computed else self._unique
        return make_task(self.name, b"", given)

    @functools.cached_property
    def shape(self) -> Shape:
        """Its parameters, and what it returns."""
        return Shape(self.function, self.name, Completion)

    # --- here -----------------------------------------------------------------------------------

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C:
        """The function itself, here and now."""
        made: C = self.function(*args, **kwargs)
        return made

    # --- elsewhere ------------------------------------------------------------------------------

    async def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """Enqueue a call of it; the task is durable on a majority when this returns.

        Raises:
            TaskPayloadError: the function cannot be called so, or an argument, which the text
                names, cannot be packed.
            QueueFullError: the queue has as many tasks as it may.
            QuorateError: as any write.
        """
        task = self.make(*args, **kwargs)
        tasks = self.app.db.tasks
        return Result(tasks, await tasks.enqueue_one(task), self.name, self._returns)

    async def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """As ``submit``."""
        return await self.submit(*args, **kwargs)

    def options(
        self,
        *,
        key: Bytes | KeyOf | None = None,
        unique: bool | Bytes | KeyOf | None = None,
        **settings: Unpack[TaskSettings],
    ) -> TaskFunction[P, R, C]:
        """The same task with other settings, for one call or more:
        ``await send.options(priority="high", delay=60).submit(...)``. A *delay* takes the place of
        the task's *at*, and the other way round."""
        merged: TaskSettings = {**self.settings, **settings}
        if "at" in settings and "delay" not in settings:
            merged.pop("delay", None)
        elif "delay" in settings and "at" not in settings:
            merged.pop("at", None)
        return TaskFunction(
            self.app,
            self.function,
            self.name,
            self._key if key is None else key,
            self._unique if unique is None else unique,
            merged,
        )

    def make(self, /, *args: P.args, **kwargs: P.kwargs) -> Task:
        """The task of a call, for ``db.tasks.enqueue_many``. Raises as ``submit``."""
        self.shape.check(args, kwargs)
        payload = pack_arguments(args, kwargs, f"task {self.name!r}")
        base = self._template
        key = base.key
        if callable(self._key):
            key = as_bytes(self._key(*args, **kwargs), "key")
        task = Task(
            base.function, payload, base.queue, base.priority, key, base.delay_ms, base.options,
            base.at_ms,
        )  # fmt: skip
        if self._unique is True:
            return with_unique(task, _digest(self.name, payload))
        if callable(self._unique):
            return with_unique(task, as_bytes(self._unique(*args, **kwargs), "unique"))
        return task

    def result_of(self, task: int, tasks: Tasks | None = None) -> Result[R]:
        """A handle of a task that was enqueued before, by its id. *tasks*: of the handle to ask;
        None: of the app's."""
        return Result(self.app.db.tasks if tasks is None else tasks, task, self.name, self._returns)

    def _returns(self) -> Any:  # noqa: ANN401
        return self.shape.returns

    # --- at the worker --------------------------------------------------------------------------

    def read(self, payload: bytes) -> Arguments:
        """The arguments of a call.

        Raises:
            TaskPayloadError: they are none, or not of the types that the function has them of.
        """
        return self.shape.read(payload)

    def pack(self, result: Any) -> bytes:  # noqa: ANN401
        """What it came to.

        Raises:
            TaskPayloadError: it cannot be packed.
        """
        return b"" if result is None else pack_result(result, f"task {self.name!r}")

    def __repr__(self) -> str:
        return f"<task {self.name!r} of app {self.app.name!r}>"


class Result(Generic[R]):
    """What a task will have come to: await it, or ask. *id* finds it again later, from anywhere."""

    __slots__ = ("_name", "_returns", "_tasks", "id")

    def __init__(
        self, tasks: Tasks, task: int, name: str = "", returns: Callable[[], Any] | None = None
    ) -> None:
        self._tasks = tasks
        self._name = name
        self._returns = returns
        self.id = task

    def __await__(self) -> Generator[Any, None, R]:
        return self.get().__await__()

    async def get(self, timeout: float | None = None) -> R:
        """What it returned, once it has. *timeout*: seconds to wait, None: ever.

        Raises:
            TaskFailedError: it is dead, and why; TaskTimeoutError: because it was not in time.
            TaskCancelledError: it was cancelled.
            TaskNotFoundError: it is not known any more, as its ``keep`` has passed.
            TaskPendingError: it has not ended within *timeout*; it goes on.
            TaskPayloadError: what it returned is not of the annotated type.
        """
        if timeout is None:
            event = await self._tasks.wait_one(self.id)
        else:
            (event,) = await self._tasks.wait((self.id,), timeout=timeout)
        if event.state == DONE:
            kind = Any if self._returns is None else self._returns()
            value: R = unpack_result(event.result, kind, f"task {self.id} {self._name!r}")
            return value
        raise failure_of(event, self._name)

    async def info(self) -> TaskInfo:
        """How it stands.

        Raises:
            TaskNotFoundError: it is not known any more.
        """
        return await self._tasks.info(self.id)

    async def cancel(self, *, grace: float = 30.0) -> bool:
        """Cancel it; see ``Tasks.cancel``. False: it had ended."""
        return bool(await self._tasks.cancel(self.id, grace=grace))

    def __repr__(self) -> str:
        return f"<Result of task {self.id} {self._name!r}>"


def failure_of(event: TaskEvent, name: str = "") -> Exception:
    """What to raise for a task that did not end well."""
    what = f"task {event.task} {event.function or name!r}"
    if event.what == "dead":
        first, _, _ = event.error.partition("\n")
        kind = TaskTimeoutError if event.kind in _LATE else TaskFailedError
        return kind(
            f"{what} is dead after attempt {event.attempt}: {first or event.kind}",
            event.task,
            event.kind,
            event.error,
        )
    if event.what == "cancelled":
        return TaskCancelledError(f"{what} was cancelled")
    return TaskNotFoundError(f"{what} is not known: it never was, or was forgotten after its end")


def _digest(name: str, payload: bytes) -> bytes:
    """A unique key of all arguments."""
    return hashlib.blake2b(payload, digest_size=16, key=name.encode()[:64]).digest()


def _name_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name:
        raise InvalidArgumentError(f"{function!r} has no name: say name=")
    return f"{module}.{name}"
