"""``db.workflows``: tasks that wait for others, submitted whole, and what becomes of them.

    flow = Workflow("nightly")
    flow.add("extract", "extract-orders", args=("2026-11-21",))
    flow.add("load", "load-orders", after=["extract"])
    run = await db.workflows.submit(flow)
    await run.wait()

A ``Workflow`` is only a description: nothing is sent before ``submit``. All that is waited for,
counted and decided afterwards is state of the cluster; whoever submitted it may go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeVar, Unpack

import msgspec

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_specs import KEEP_MS_DEFAULT, TASK_MACHINE, Task
from quorate.base.workflow_commands import (
    BLOCKING,
    OPTIONAL,
    RUN,
    SIGNAL,
    SLEEP,
    WEAK,
    WF_CANCELLED,
    WORKFLOW_STATE_NAMES,
    After,
    CancelWorkflow,
    ListNodes,
    ListWorkflows,
    Node,
    NodeInfo,
    Signal,
    Submit,
    Submitted,
    WatchWorkflow,
    WorkflowEvent,
    WorkflowInfo,
    WorkflowQuery,
)
from quorate.client.operations import Bytes
from quorate.client.settings import check_timeout
from quorate.client.task_payloads import pack_arguments, pack_result
from quorate.client.task_settings import TaskSettings, duration_ms, make_task
from quorate.client.tasks import Tasks
from quorate.errors import (
    InvalidArgumentError,
    LimitExceededError,
    QuorateError,
    TaskPendingError,
    WorkflowNotFoundError,
)

T = TypeVar("T", bound=msgspec.Struct)
State = Literal["running", "stopping", "compensating", "done", "failed", "compensated", "cancelled"]
#: What a workflow has come to when it has ended.
ENDS: Final = frozenset({"done", "failed", "compensated", "cancelled"})

_decode_events: Final = msgspec.msgpack.Decoder(list[WorkflowEvent]).decode


class Workflow:
    """The description of a workflow. *fail_fast*: when a task gives up, what has not begun never
    will, and what runs is told to stop; otherwise what does not depend on it goes on. *at_once*: so
    many of its tasks are with workers, or wait for one, at a time; None: all that may. *keep*:
    seconds for which it is known after its end, with all results.

    Names are of nodes within the workflow. *after*: nodes that must be done first; if one of them
    is not, this one never runs. *after_any_end*: nodes that must have ended, however. *inputs*:
    nodes that are not waited for. What they all came to, the task gets with its arguments
    (``TaskContext.inputs``).
    """

    def __init__(
        self,
        name: str,
        *,
        fail_fast: bool = True,
        at_once: int | None = None,
        keep: float = KEEP_MS_DEFAULT / 1000,
    ) -> None:
        self.name = name
        self.fail_fast = fail_fast
        self.at_once = at_once
        self.keep = keep
        self.nodes: list[Node] = []

    def add(
        self,
        name: str,
        function: str,
        payload: bytes = b"",
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        after: Iterable[str] = (),
        after_any_end: Iterable[str] = (),
        inputs: Iterable[str] = (),
        same_worker_as: str = "",
        undo: Task | None = None,
        key: Bytes = b"",
        **settings: Unpack[TaskSettings],
    ) -> str:
        """A task. *same_worker_as*: one of *after*; run by the same worker. *undo*: a task
        (``db.tasks.task``) that runs if this one was done and the workflow fails: the last one done
        is undone first. *delay* counts from when nothing is waited for any more. Returns *name*.

        Raises:
            InvalidArgumentError: one of the arguments cannot be; the text names it.
            TaskPayloadError: *args* or *kwargs* cannot be packed.
        """
        if args or kwargs:
            if payload:
                raise InvalidArgumentError("a task has a payload, or args and kwargs")
            payload = pack_arguments(args, kwargs or {}, f"node {name!r}")
        task = make_task(function, payload, {**settings, **({"key": key} if key else {})})
        waits = _waits(after, after_any_end, inputs)
        return self._add(lambda: Node(name, task, waits, RUN, undo, same_worker_as))

    def sleep(
        self,
        name: str,
        seconds: float = 0,
        *,
        until: datetime | None = None,
        after: Iterable[str] = (),
    ) -> str:
        """A time that has to pass after all of *after* are done, or, with *until*, to come: a
        datetime with a time zone; whoever restarts meanwhile. Returns *name*."""
        task = make_task("-", b"", {"delay": seconds, "at": until})
        waits = _waits(after, (), ())
        return self._add(lambda: Node(name, task, waits, SLEEP))

    def signal(self, name: str, *, after: Iterable[str] = (), timeout: float | None = None) -> str:
        """Something that somebody has to say (``Run.signal``); it may come early. *timeout*: so
        many seconds after the workflow began it is too late, and the node is dead. Returns *name*.
        """
        options = {} if timeout is None else {"expires": timeout}
        task = make_task("-", b"", options)
        waits = _waits(after, (), ())
        return self._add(lambda: Node(name, task, waits, SIGNAL))

    def _add(self, make: Callable[[], Node]) -> str:
        if len(self.nodes) >= TASK_BATCH_MAX:
            raise LimitExceededError(
                f"a workflow is submitted with up to {TASK_BATCH_MAX} nodes; running tasks may add "
                "more"
            )
        node = checked(make)
        self.nodes.append(node)
        return node.name

    def command(self) -> Submit:
        """As it goes to the cluster."""
        keep_ms = duration_ms("keep", self.keep)
        nodes, at_once = tuple(self.nodes), self.at_once or 0
        return checked(lambda: Submit(self.name, nodes, self.fail_fast, at_once, keep_ms))


class Run:
    """A workflow that was submitted. Made by ``Workflows``."""

    def __init__(self, tasks: Tasks, id_: int) -> None:
        self._tasks = tasks
        self.id = id_

    def __repr__(self) -> str:
        return f"<Run of workflow {self.id}>"

    async def info(self, *, timeout: float | None = None) -> WorkflowInfo:
        """How it stands.

        Raises:
            WorkflowNotFoundError: it is forgotten.
        """
        found: WorkflowInfo = await self._tasks.ask(WorkflowQuery(self.id), timeout)
        return found

    async def nodes(self, *, timeout: float | None = None) -> dict[str, NodeInfo]:
        """Its nodes, by name, with their results."""
        found: dict[str, NodeInfo] = {}
        last = ""
        while True:
            page = await self._tasks.ask(ListNodes(self.id, last), timeout)
            found |= {each.name: each for each in page.nodes}
            if not page.more:
                return found
            last = page.nodes[-1].name

    async def signal(
        self, node: str, value: object = None, *, timeout: float | None = None
    ) -> bool:
        """Say what *node* waits for; False: it has been said before. *value*: anything that a task
        may return. It is the result of the node, and an input of those that wait for it.

        Raises:
            TaskPayloadError: it cannot be packed, or is too long.
        """
        given = pack_result(value, f"the signal {node!r}")
        command = checked(lambda: Signal(self.id, node, given))
        return bool((await self._tasks.run(command, timeout)).new)

    async def cancel(self, *, undo: bool = False, timeout: float | None = None) -> bool:
        """Cancel all that has not ended; *undo*: and undo what was done. False: it is ending, or
        has ended."""
        command = CancelWorkflow(self.id, undo)
        return bool((await self._tasks.run(command, timeout)).new)

    async def wait(self, *, timeout: float | None = None) -> WorkflowInfo:
        """Wait until it has ended, and how. Nothing is polled. *timeout*: seconds in all.

        Raises:
            TaskPendingError: it had not ended by then; it goes on.
            WorkflowNotFoundError: it is forgotten.
        """
        try:
            async with asyncio.timeout(None if timeout is None else check_timeout(timeout)):
                async for event in self.progress():
                    if event.what in ENDS:
                        break
                return await self.info()
        except TimeoutError as error:
            if isinstance(error, QuorateError):
                raise
            text = f"workflow {self.id} had not ended within {timeout:g} s"
            raise TaskPendingError(text) from None

    async def progress(self) -> AsyncIterator[WorkflowEvent]:
        """How it stands, at once and whenever that has changed, until it has ended; what was missed
        while a connection was lost is not told, only what came of it.

        Raises:
            WorkflowNotFoundError: it is forgotten.
        """
        news: asyncio.Queue[WorkflowEvent | QuorateError] = asyncio.Queue()
        subscription = self._tasks.watches.open(
            TASK_MACHINE,
            lambda: WatchWorkflow(self.id),
            _ignore,
            lambda _index, events: _put_all(news, events),
            news.put_nowait,
        )
        try:
            while True:
                event = await news.get()
                while not news.empty() and isinstance(event, WorkflowEvent):
                    if event.what in ENDS:
                        break
                    event = news.get_nowait()  # only the latest is of use
                if isinstance(event, QuorateError):
                    raise event
                if event.what == "unknown":
                    raise WorkflowNotFoundError(f"there is no workflow {self.id}, or not any more")
                yield event
                if event.what in ENDS:
                    return
        finally:
            subscription.close()


class Workflows:
    """``db.workflows``."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def submit(self, workflow: Workflow, *, timeout: float | None = None) -> Run:
        """Begin a workflow: whole, or not at all. It is durable on a majority when this returns.

        Raises:
            WorkflowError: a name is there twice, or not at all, or nodes wait for each other.
            QueueFullError: a queue has no room for all its tasks.
        """
        result: Submitted = await self._tasks.run(workflow.command(), timeout)
        return Run(self._tasks, result.workflow)

    def run(self, workflow: int) -> Run:
        """One that was submitted, by its id."""
        return Run(self._tasks, checked(lambda: WorkflowQuery(workflow)).workflow)

    async def list(
        self, state: State | None = None, *, page: int = 100, timeout: float | None = None
    ) -> AsyncIterator[WorkflowInfo]:
        """``async for info in db.workflows.list("failed")``: by id; of one *state*, None: all."""
        number = 0
        if state is not None:
            if state not in WORKFLOW_STATE_NAMES[1 : WF_CANCELLED + 1]:
                names = ", ".join(WORKFLOW_STATE_NAMES[1:])
                raise InvalidArgumentError(f"a workflow is {names}, not {state!r}")
            number = WORKFLOW_STATE_NAMES.index(state)
        after = 0
        while True:
            query = checked(partial(ListWorkflows, number, after, page))
            found = await self._tasks.ask(query, timeout)
            for info in found.workflows:
                yield info
            after = found.next
            if not after:
                return


def _waits(
    after: Iterable[str], after_any_end: Iterable[str], inputs: Iterable[str]
) -> tuple[After, ...]:
    kinds = ((after, BLOCKING), (after_any_end, OPTIONAL), (inputs, WEAK))
    if any(isinstance(names, str) for names, _ in kinds):
        raise InvalidArgumentError("nodes that are waited for are given as a list of names")
    return tuple(After(name, kind) for names, kind in kinds for name in names)


def checked(make: Callable[[], T]) -> T:
    """What *make* makes, as a node will read it.

    Raises:
        InvalidArgumentError: it would not.
    """
    try:
        value = make()
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))
    except InvalidArgumentError:
        raise
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(str(error)) from error


def _put_all(news: asyncio.Queue[WorkflowEvent | QuorateError], events: msgspec.Raw) -> None:
    for event in _decode_events(events):
        news.put_nowait(event)


def _ignore(_index: int) -> None:
    """The first event tells how it stands."""
