"""Tasks, workflows and schedules without ``await``: every call is that of the asynchronous handle.

with quorate.sync.connect("a:7400,b:7400,c:7400") as db:
    sent = db.tasks.submit(send, "ada@example.org", "hello")  # a function made by @app.task
    print(sent.get(timeout=60))
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from quorate.base.task_queries import TaskInfo
from quorate.base.workflow_commands import WorkflowEvent
from quorate.client import schedules, task_app, task_watch, tasks, workflows
from quorate.client.settings import check_timeout
from quorate.client.sync_crdt import over
from quorate.client.sync_kv import listed
from quorate.client.workflows import Workflow

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: Runs what it is given on the loop of the asynchronous twin, which it hands in.
OnTwin = Callable[[Callable[[A], Coroutine[Any, Any, Any]]], Any]


class _Twin(Generic[A]):
    """*run*: with the asynchronous one of the same name."""

    def __init__(self, run: OnTwin[A]) -> None:
        self._run = run


def _blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    def call(self: _Twin[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        places: Any = [listed(item) for item in args]
        named: Any = {name: listed(item) for name, item in kwargs.items()}
        result: T = self._run(lambda twin: method(twin, *places, **named))
        return result

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[A, P], AsyncIterator[T]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """A generator of this thread over what is fetched on the loop, many at a time."""

    def iterate(self: _Twin[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        async def begin(twin: A) -> AsyncIterator[T]:
            return method(twin, *args, **kwargs)

        found: AsyncIterator[T] = self._run(begin)
        yield from over(lambda call: self._run(lambda _twin: call()), lambda: found)

    functools.update_wrapper(iterate, method)
    return iterate


class TaskWatch:
    """As the asynchronous ``TaskWatch``, for ``with`` and ``for``. For one thread at a time;
    another may close it, which ends the iteration."""

    def __init__(self, twin: task_watch.TaskWatch, run: OnTwin[Any]) -> None:
        self._twin = twin
        self._run = run
        self._events: deque[task_watch.Event] = deque()

    @property
    def gaps(self) -> int:
        """As ``TaskWatch.gaps``."""
        return self._twin.gaps

    def begun(self) -> Self:
        """As ``TaskWatch.begun``."""
        self._run(lambda _tasks: self._twin.begun())
        return self

    def close(self) -> None:
        """As ``TaskWatch.close``."""

        async def end(_tasks: object) -> None:
            self._twin.close()

        self._run(end)

    def __enter__(self) -> Self:
        return self.begun()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[task_watch.Event]:
        return self

    def __next__(self) -> task_watch.Event:
        """Waits for the next one."""
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def wait(self, timeout: float) -> task_watch.Event | None:
        """The next event, if there is one within *timeout* seconds."""
        try:
            return self._next(check_timeout(timeout))
        except TimeoutError:
            return None

    def _next(self, timeout: float | None) -> task_watch.Event | None:
        if not self._events:

            async def take(_tasks: object) -> list[task_watch.Event]:
                async with asyncio.timeout(timeout):
                    return await self._twin.take()

            self._events.extend(self._run(take))
        return self._events.popleft() if self._events else None


class Tasks(_Twin[tasks.Tasks]):
    """As the asynchronous ``Tasks``."""

    task = staticmethod(tasks.Tasks.task)
    enqueue = _blocking(tasks.Tasks.enqueue)
    enqueue_one = _blocking(tasks.Tasks.enqueue_one)
    enqueue_many = _blocking(tasks.Tasks.enqueue_many)
    wait = _blocking(tasks.Tasks.wait)
    wait_one = _blocking(tasks.Tasks.wait_one)
    look = _blocking(tasks.Tasks.look)
    info = _blocking(tasks.Tasks.info)
    list = _iterating(tasks.Tasks.list)
    peek = _blocking(tasks.Tasks.peek)
    queues = _blocking(tasks.Tasks.queues)
    queue = _blocking(tasks.Tasks.queue)
    workers = _blocking(tasks.Tasks.workers)
    holdings = _blocking(tasks.Tasks.holdings)
    system = _blocking(tasks.Tasks.system)
    assign = _blocking(tasks.Tasks.assign)
    cancel = _blocking(tasks.Tasks.cancel)
    requeue = _blocking(tasks.Tasks.requeue)
    purge = _blocking(tasks.Tasks.purge)
    pause = _blocking(tasks.Tasks.pause)
    resume = _blocking(tasks.Tasks.resume)
    configure = _blocking(tasks.Tasks.configure)
    settle = _blocking(tasks.Tasks.settle)

    def watch(self, queue: str = "") -> TaskWatch:
        """As ``Tasks.watch``, for ``with`` and ``for``."""

        async def make(twin: tasks.Tasks) -> task_watch.TaskWatch:
            return twin.watch(queue)

        return TaskWatch(self._run(make), self._run)

    # --- typed tasks ----------------------------------------------------------------------------

    def submit(
        self, function: task_app.TaskFunction[P, R, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result[R]:
        """As ``await function.submit(...)``, on this handle, whatever the app uses; of a function
        with other settings: ``db.tasks.submit(send.options(delay=60), ...)``.

        Raises:
            TaskPayloadError: the function cannot be called so, or an argument cannot be packed.
            QueueFullError: the queue has as many tasks as it may.
        """
        task = function.make(*args, **kwargs)
        id_: int = self._run(lambda twin: twin.enqueue_one(task))
        return self.result_of(function, id_)

    def result_of(self, function: task_app.TaskFunction[Any, R, Any], task: int, /) -> Result[R]:
        """A handle of a call of *function* that was submitted before, by its id."""

        async def make(twin: tasks.Tasks) -> task_app.Result[R]:
            return function.result_of(task, twin)

        return Result(self._run(make), self._run)


class Result(Generic[R]):
    """As the asynchronous ``Result``. Made by ``Tasks.submit``."""

    def __init__(self, twin: task_app.Result[R], run: OnTwin[Any]) -> None:
        self._twin = twin
        self._run = run

    @property
    def id(self) -> int:
        """Of the task."""
        return self._twin.id

    def get(self, timeout: float | None = None) -> R:
        """As ``Result.get``: blocks until it has ended."""
        value: R = self._run(lambda _tasks: self._twin.get(timeout))
        return value

    def info(self) -> TaskInfo:
        """As ``Result.info``."""
        info: TaskInfo = self._run(lambda _tasks: self._twin.info())
        return info

    def cancel(self, *, grace: float = 30.0) -> bool:
        """As ``Result.cancel``."""
        cancelled: bool = self._run(lambda _tasks: self._twin.cancel(grace=grace))
        return cancelled

    def __repr__(self) -> str:
        return repr(self._twin)


class Run(_Twin[workflows.Run]):
    """As the asynchronous ``Run``. Made by ``Workflows``."""

    def __init__(self, twin: workflows.Run, run: OnTwin[Any]) -> None:
        super().__init__(lambda call: run(lambda _workflows: call(twin)))
        self.id = twin.id

    info = _blocking(workflows.Run.info)
    nodes = _blocking(workflows.Run.nodes)
    signal = _blocking(workflows.Run.signal)
    cancel = _blocking(workflows.Run.cancel)
    wait = _blocking(workflows.Run.wait)

    def progress(self) -> Iterator[WorkflowEvent]:
        """As ``Run.progress``: blocks between the changes."""

        async def begin(twin: workflows.Run) -> AsyncIterator[WorkflowEvent]:
            return twin.progress()

        events: AsyncIterator[WorkflowEvent] = self._run(begin)

        async def turn(_twin: workflows.Run) -> WorkflowEvent | None:
            return await anext(events, None)

        while (event := self._run(turn)) is not None:
            yield event

    def __repr__(self) -> str:
        return f"<Run of workflow {self.id}>"


class Workflows(_Twin[workflows.Workflows]):
    """As the asynchronous ``Workflows``."""

    def submit(self, workflow: Workflow, *, timeout: float | None = None) -> Run:
        """As ``Workflows.submit``."""
        return Run(self._run(lambda twin: twin.submit(workflow, timeout=timeout)), self._run)

    def run(self, workflow: int) -> Run:
        """As ``Workflows.run``."""

        async def find(twin: workflows.Workflows) -> workflows.Run:
            return twin.run(workflow)

        return Run(self._run(find), self._run)

    list = _iterating(workflows.Workflows.list)


class Schedules(_Twin[schedules.Schedules]):
    """As the asynchronous ``Schedules``."""

    put = _blocking(schedules.Schedules.put)
    get = _blocking(schedules.Schedules.get)
    pause = _blocking(schedules.Schedules.pause)
    resume = _blocking(schedules.Schedules.resume)
    trigger = _blocking(schedules.Schedules.trigger)
    remove = _blocking(schedules.Schedules.remove)
    list = _iterating(schedules.Schedules.list)
