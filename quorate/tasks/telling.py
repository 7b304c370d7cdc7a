"""What watchers of the task machine hear, and under which keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from quorate.base.limits import TASK_ASSIGNED_BYTES_MAX
from quorate.base.task_commands import Assignment, Input
from quorate.base.task_queries import Assigned, Stop, TaskEvent, WorkerEvent
from quorate.base.task_specs import RUNNING, TASK_MACHINE, Task
from quorate.base.workflow_commands import WorkflowEvent
from quorate.replication.machine import Context
from quorate.tasks.records import LiveRecord, WorkflowRecord, options_of

ALL_QUEUES = b"q"
WORKERS = b"q"  # no queue has an empty name


def whole(key: bytes, event: Any) -> Any:  # noqa: ANN401, ARG001
    """Send an event as it is."""
    return event


def task_topic(task: int) -> bytes:
    """Key of the events of a task."""
    return b"t" + task.to_bytes(8, "big")


def queue_topic(queue: str) -> bytes:
    """Key of the events of all tasks of a queue."""
    return b"q" + queue.encode()


def worker_topic(worker: int) -> bytes:
    """Key of the events for a worker."""
    return b"w" + worker.to_bytes(8, "big")


class TaskEvents:
    """What happened to tasks in one command, each for whoever watches the task or its queue. Made
    into events when somebody looks: that is 2 us for a task from its beginning to its end."""

    __slots__ = ("_at_ms", "steps")

    #: With what the keys of these events begin.
    topics: Final = (b"t", b"q")

    def __init__(self, at_ms: int) -> None:
        self._at_ms = at_ms
        #: (what, task, description, state, attempt, worker, kind, error, result)
        self.steps: list[tuple[str, int, Task, int, int, int, str, str, bytes]] = []

    def __iter__(self) -> Iterator[tuple[tuple[bytes, ...], TaskEvent]]:
        at_ms = self._at_ms
        for what, task, spec, state, attempt, worker, kind, error, result in self.steps:
            queue = spec.queue
            event = TaskEvent(
                what,
                task,
                state,
                spec.function,
                queue,
                attempt,
                worker,
                at_ms,
                kind,
                error,
                result,
            )
            yield (task_topic(task), queue_topic(queue)), event


def tell_worker(context: Context, event: WorkerEvent) -> None:
    """Whoever watches everything."""
    context.effects.append((TASK_MACHINE, WORKERS, event))


def workflow_topic(workflow: int) -> bytes:
    """Key of the events of a workflow."""
    return b"f" + workflow.to_bytes(8, "big")


def group_topic(group: str) -> bytes:
    """Key of the events of a group of coordinators."""
    return b"g" + group.encode()


def workflow_event(what: str, workflow: int, record: WorkflowRecord, at_ms: int) -> WorkflowEvent:
    """How it stands."""
    return WorkflowEvent(
        what,
        workflow,
        record.name,
        record.state,
        record.total,
        record.done,
        record.dead,
        record.cancelled,
        at_ms,
    )


def tell_workflow(context: Context, workflow: int, record: WorkflowRecord, what: str) -> None:
    """Whoever watches the workflow, or everything."""
    event = workflow_event(what, workflow, record, context.time_ms)
    keys = (workflow_topic(workflow), WORKERS)
    context.effects.append((TASK_MACHINE, None, ((keys, event),)))


def tell_stop(context: Context, worker: int, task: int, attempt: int, why: str) -> None:
    """The worker of an attempt."""
    if worker:
        context.effects.append((TASK_MACHINE, worker_topic(worker), Stop(task, attempt, why)))


def size_of(spec: Task, inputs: Sequence[Input] = ()) -> int:
    """Of what a worker is told of a task, the bytes that are a client's to choose."""
    size = len(spec.payload) + len(spec.key) + len(spec.function) + len(spec.queue)
    if spec.options is not None:
        for name, text in spec.options.headers:
            size += len(name) + len(text)
    for each in inputs:
        size += len(each.node) + len(each.result or b"")
    return size


#: Id, description and record of a task that a worker has.
Given = tuple[int, Task, LiveRecord]


def _in_parts(tasks: Sequence[Given]) -> Iterator[Sequence[Given]]:
    """*tasks*, so many at once as one event may hold; of one that is larger, alone."""
    start = size = 0
    for at, (_, _, live) in enumerate(tasks):
        size += live.size
        if at > start and size > TASK_ASSIGNED_BYTES_MAX:
            yield tasks[start:at]
            start, size = at, live.size
    if tasks:
        yield tasks[start:]


class Handed:
    """What workers got, each for whoever watches the worker; *show* makes what that one is told of
    a task, when somebody looks: that is 1 us each, and of the nodes one has the worker."""

    __slots__ = ("_handed", "_show")

    #: With what the keys of these events begin.
    topics: Final = (b"w",)

    def __init__(
        self, handed: Mapping[int, Sequence[Given]], show: Callable[[Given], Assignment]
    ) -> None:
        self._handed = handed
        self._show = show

    def __iter__(self) -> Iterator[tuple[tuple[bytes, ...], Assigned]]:
        for worker in sorted(self._handed):
            for part in _in_parts(self._handed[worker]):
                yield (worker_topic(worker),), Assigned(tuple(map(self._show, part)))


def tell_handed(
    context: Context, handed: Mapping[int, Sequence[Given]], show: Callable[[Given], Assignment]
) -> None:
    """The workers that got them."""
    context.effects.append((TASK_MACHINE, None, Handed(handed, show)))


def shown_assignment(
    given: Given, workflow: int, node: str, inputs: tuple[Input, ...]
) -> Assignment:
    """What a worker must know of a task. *workflow*, *node*, *inputs*: see ``Kinship``."""
    task, spec, live = given
    options = options_of(spec)
    return Assignment(
        task,
        live.attempt,
        live.state == RUNNING,
        spec.function,
        spec.payload,
        spec.queue,
        spec.key,
        live.due_ms,
        options.timeout_ms,
        options.heartbeat_ms,
        live.errors,
        live.crashes,
        live.reason,
        options.headers,
        workflow,
        node,
        inputs,
    )
