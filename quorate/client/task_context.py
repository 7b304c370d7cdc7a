"""What running code knows of the task that it runs for: ``app.context()``.

One object for each attempt, the same for the code, for middleware around it, and in the thread that
synchronous code runs in. All of it may be used from any thread.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Generic, Protocol, TypeVar

from quorate.base.fencing import Fence
from quorate.base.kv_commands import Compare, Operation
from quorate.base.task_commands import Assignment
from quorate.base.task_specs import DONE, TASK_MACHINE, Task
from quorate.base.workflow_commands import Node, Submitted
from quorate.client.task_payloads import unpack_result
from quorate.client.workflows import Workflow
from quorate.errors import InvalidArgumentError

R = TypeVar("R")


class Hands(Protocol):
    """What a context does through its worker."""

    def report(self, context: TaskContext, permille: int | None, note: str) -> None:
        """Say how far it is: permille (None: no change), and a word. Of any thread."""

    async def spawn(
        self, context: TaskContext, nodes: tuple[Node, ...], before: tuple[str, ...]
    ) -> Submitted:
        """Add nodes to its workflow."""


class Completion(Generic[R]):
    """Returned by a task: complete it with *value*, do *then* (made with ``quorate.ops``), and
    enqueue *tasks* (made with ``db.tasks.task``, or ``make`` of a task), in one transaction, if all
    of *compare* hold. Either all of it happens or nothing. If it cannot be so, the attempt has
    failed."""

    __slots__ = ("compare", "tasks", "then", "value")

    def __init__(
        self,
        value: R,
        then: Iterable[Operation] = (),
        *,
        compare: Iterable[Compare] = (),
        tasks: Iterable[Task] = (),
    ) -> None:
        self.value = value
        self.tasks = tuple(tasks)
        self.then = tuple(then)
        self.compare = tuple(compare)


class TaskContext:
    """One attempt at a task."""

    def __init__(self, assignment: Assignment, worker: str, worker_id: int, hands: Hands) -> None:
        self.assignment = assignment  #: as it was handed out
        self.worker = worker  #: name of the worker
        self.worker_id = worker_id
        self.reason = ""  #: why it is to stop: "cancelled", "timeout", "moved" and so on
        self._hands = hands
        self._inputs: dict[str, Any] | None = None
        self._cancelled = False
        self._flag: threading.Event | None = None  # made for the first who waits: it costs 5 us

    # --- what it is -----------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Id of the task."""
        return self.assignment.task

    @property
    def attempt(self) -> int:
        """Number of the attempt: higher than that of every one before. The fencing token."""
        return self.assignment.attempt

    @property
    def function(self) -> str:
        """Name under which it was enqueued."""
        return self.assignment.function

    @property
    def queue(self) -> str:
        """Where it was enqueued."""
        return self.assignment.queue

    @property
    def key(self) -> bytes:
        """The key that it shares a line with."""
        return self.assignment.key

    @property
    def errors(self) -> int:
        """Attempts before that failed."""
        return self.assignment.errors

    @property
    def crashes(self) -> int:
        """Workers before that died."""
        return self.assignment.crashes

    @property
    def headers(self) -> Mapping[str, str]:
        """What travels with it."""
        return dict(self.assignment.headers)

    @property
    def fence(self) -> Fence:
        """For writes that must not happen once this attempt is not the present one any more:
        ``await db.kv.put(key, value, fence=context.fence)``."""
        return Fence(TASK_MACHINE, self.id.to_bytes(8, "big"), self.attempt)

    # --- in a workflow --------------------------------------------------------------------------

    @property
    def workflow(self) -> int:
        """Id of the workflow that it is part of, 0: of none."""
        return self.assignment.workflow

    @property
    def node(self) -> str:
        """Its name in the workflow."""
        return self.assignment.node

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the nodes before came to, by name: those that are done. One whose result did not
        come along, as all together were too long, is not in it: ``assignment.inputs`` has its
        task.

        Raises:
            TaskPayloadError: a result is not msgpack.
        """
        if self._inputs is None:
            self._inputs = {
                each.node: unpack_result(each.result, Any, f"node {each.node!r}")
                for each in self.assignment.inputs
                if each.state == DONE and each.result is not None
            }
        return self._inputs

    async def spawn(
        self, nodes: Workflow | Iterable[Node], *, before: Iterable[str] = ()
    ) -> Submitted:
        """For coroutines: add nodes to the workflow that this task is part of. Nodes whose names
        are there already are skipped, so a later attempt may say the same again. *before*: nodes
        that wait for all of the new ones besides; they must come after this one.

        Raises:
            InvalidArgumentError: it is part of no workflow.
            WorkflowError: a name is not there, or nodes would wait for each other.
            FencedError: this attempt is not the present one any more.
        """
        if not self.workflow:
            raise InvalidArgumentError(f"{self!r} is part of no workflow")
        given = nodes.nodes if isinstance(nodes, Workflow) else nodes
        return await self._hands.spawn(self, tuple(given), tuple(before))

    # --- what it does ---------------------------------------------------------------------------

    def progress(self, part: float | None = None, note: str = "") -> None:
        """Say how far it is: *part* from 0 to 1, and a word; either may be left out. Returns at
        once; of several in a short time the last one counts."""
        given: object = part
        if given is not None and not (isinstance(given, int | float) and 0 <= given <= 1):
            raise InvalidArgumentError(f"progress is a number from 0 to 1, not {part!r}")
        self._hands.report(self, None if part is None else round(part * 1000), note)

    @property
    def cancelled(self) -> bool:
        """Whether the code is to stop. A coroutine is cancelled besides; a thread cannot be, so
        synchronous code that takes long looks at this now and then, and returns or raises."""
        return self._cancelled

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """For synchronous code: sleep for *timeout* seconds, or until it is to stop; whether it
        is. For one thread at a time."""
        flag = self._flag
        if flag is None:
            flag = self._flag = threading.Event()
        # ``stop`` first notes that it is so, and then looks for a flag to set.
        return self._cancelled or flag.wait(timeout)

    def __repr__(self) -> str:
        return f"<task {self.id} {self.function!r}, attempt {self.attempt}>"


def stop(context: TaskContext, reason: str) -> None:
    """For the worker: the code is to stop."""
    if not context.cancelled:
        context.reason = reason
        context._cancelled = True  # noqa: SLF001  code must not be able to stop itself by accident
        flag = context._flag  # noqa: SLF001
        if flag is not None:
            flag.set()


CURRENT: Final[ContextVar[TaskContext | None]] = ContextVar("quorate_task", default=None)


def current_context() -> TaskContext:
    """The context of the task that is running here.

    Raises:
        InvalidArgumentError: none is.
    """
    found = CURRENT.get()
    if found is None:
        raise InvalidArgumentError("no task is running here: this is for code that a worker runs")
    return found


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling *function* makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  an object with an async __call__
    )
