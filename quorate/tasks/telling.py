"""What watchers of the task machine hear, and under which keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from quorate.base.limits import TASK_ASSIGNED_BYTES_MAX
from quorate.base.task_commands import Assignment
from quorate.base.task_queries import Assigned, Stop, TaskEvent, WorkerEvent
from quorate.base.task_specs import TASK_MACHINE, Task
from quorate.base.workflow_commands import WorkflowEvent
from quorate.replication.machine import Context
from quorate.tasks.records import WorkflowRecord, options_of

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


def size_of(task: Assignment) -> int:
    """Of what a worker is told, the bytes that are a client's to choose."""
    size = len(task.payload) + len(task.key) + len(task.function) + len(task.queue)
    for name, text in task.headers:
        size += len(name) + len(text)
    for each in task.inputs:
        size += len(each.node) + len(each.result or b"")
    return size


def in_parts(tasks: Sequence[Assignment]) -> Iterator[Sequence[Assignment]]:
    """*tasks*, so many at once as one event may hold; of one that is larger, alone."""
    start = size = 0
    for at, each in enumerate(tasks):
        more = size_of(each)
        size += more
        if at > start and size > TASK_ASSIGNED_BYTES_MAX:
            yield tasks[start:at]
            start, size = at, more
    if tasks:
        yield tasks[start:]


def tell_assigned(context: Context, worker: int, tasks: Sequence[Assignment]) -> None:
    """The worker that got them."""
    context.effects.append((TASK_MACHINE, worker_topic(worker), Assigned(tuple(tasks))))


def shown_assignment(
    task: int,
    spec: Task,
    attempt: int,
    due_ms: int,
    errors: int,
    crashes: int,
    reason: str,
    *,
    running: bool,
) -> Assignment:
    """What a worker must know of a task."""
    options = options_of(spec)
    return Assignment(
        task,
        attempt,
        running,
        spec.function,
        spec.payload,
        spec.queue,
        spec.key,
        due_ms,
        options.timeout_ms,
        options.heartbeat_ms,
        errors,
        crashes,
        reason,
        options.headers,
    )
