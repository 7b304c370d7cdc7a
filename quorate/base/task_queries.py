"""Queries of the task machine, what they answer, and what its watches tell.

These are wire formats, as in ``task_commands``.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.results import Failure
from quorate.base.task_commands import Assignment, Strategy, TaskIds, WorkerId
from quorate.base.task_specs import (
    CANCELLED,
    Capabilities,
    NameOrNone,
    Task,
    TaskId,
    TaskIdOrNone,
)

TASK_LIST_MAX: Final = 1_000  # rows in one answer

ListLimit = Annotated[int, msgspec.Meta(ge=1, le=TASK_LIST_MAX)]
StateOrNone = Annotated[int, msgspec.Meta(ge=0, le=CANCELLED)]


# --- queries ----------------------------------------------------------------------------------


class TaskQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One task. Result: ``TaskInfo``, or a failure "task-not-found"."""

    task: TaskId


class ListTasks(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Tasks with an id above *after*, by id: of one *state* (0: all that have not ended; dead and
    done ones only if asked for) and of one *queue* ("": of all). Looks at no more than ten times
    *limit* tasks; ``TaskList.next`` is where to go on. Result: ``TaskList``."""

    state: StateOrNone = 0
    queue: NameOrNone = ""
    after: TaskIdOrNone = 0
    limit: ListLimit = TASK_LIST_MAX


class ListQueues(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """Queues with a name above *after*, by name. Result: ``QueueList``."""

    after: NameOrNone = ""
    limit: ListLimit = TASK_LIST_MAX


class ListWorkers(
    msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True, gc=False
):
    """Workers with an id above *after*, by id. *gone*: also those that are there no more. Result:
    ``WorkerList``."""

    after: TaskIdOrNone = 0
    limit: ListLimit = TASK_LIST_MAX
    gone: bool = False


class Holdings(
    msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True, gc=False
):
    """What a worker has. Result: ``WorkerHoldings``, or a failure "worker-not-found"."""

    worker: WorkerId


class System(
    msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True, gc=False
):
    """Everything together. Result: ``SystemInfo``."""


class Peek(
    msgspec.Struct, frozen=True, array_like=True, tag=7, forbid_unknown_fields=True, gc=False
):
    """The ready tasks of a queue in the order in which they were enqueued, by priority. Result:
    ``TaskList``."""

    queue: NameOrNone
    limit: ListLimit = 1


class ChooseWorker(
    msgspec.Struct, frozen=True, array_like=True, tag=8, forbid_unknown_fields=True, gc=False
):
    """Who would get a task that asks for *capabilities*, by *strategy*: the choice that the machine
    itself makes. *last*: whom round-robin chose last; *seed*: of chance, where there is any.
    Result: ``WorkerList`` of one, or a failure "no-available-worker"."""

    strategy: Strategy = "least-loaded"
    capabilities: Capabilities = ()
    last: TaskIdOrNone = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


TaskQueries = (
    TaskQuery | ListTasks | ListQueues | ListWorkers | Holdings | System | Peek | ChooseWorker
)


# --- answers ----------------------------------------------------------------------------------


class TaskInfo(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """One task. Times are cluster time, 0 for what has not come. *spec*: None once it is done or
    cancelled. *workers*: on which it failed, the latest last. *result*: of one that is done.
    *reason*: why the worker that has it got it."""

    task: int
    state: int
    function: str
    queue: str
    enqueued_ms: int
    since_ms: int
    due_ms: int
    attempt: int
    worker: int
    errors: int
    crashes: int
    waits: int = 0
    permille: int | None = None
    note: str = ""
    kind: str = ""
    error: str = ""
    workers: tuple[int, ...] = ()
    result: bytes = b""
    stopping: bool = False
    spec: Task | None = None
    reason: str = ""


class TaskList(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*next*: the ``after`` to go on with; 0: that was all."""

    tasks: tuple[TaskInfo, ...]
    next: int


class QueueInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One queue: how many tasks of it are in each state now, its rules, and what has happened in
    it since it is there. *oldest_ms*: since when the oldest ready task is ready, 0: there is
    none."""

    name: str
    scheduled: int
    blocked: int
    ready: int
    assigned: int
    running: int
    oldest_ms: int
    paused: bool
    running_max: int
    key_running_max: int
    rate: int
    key_rate: int
    rate_ms: int
    ageing_ms: int
    depth_max: int
    enqueued: int
    begun: int
    done: int
    died: int
    cancelled: int
    purged: int
    requeued: int
    failures: int
    crashes: int
    timeouts: int
    waited_ms: int
    ran_ms: int


class QueueList(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """*more*: there are others behind them."""

    queues: tuple[QueueInfo, ...]
    more: bool


class WorkerInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One worker. *state*: "idle", "busy", "draining", "error", "gone". *tasks*: that it has;
    *stored*: those of them that it has not begun."""

    worker: int
    name: str
    state: str
    lease: int
    load: int
    prefetch: int
    tasks: int
    stored: int
    capabilities: tuple[str, ...]
    queues: tuple[str, ...]
    weight: int
    model: str
    registered_ms: int
    seen_ms: int
    gone_ms: int
    done: int
    failed: int
    crashed: int
    ran_ms: int
    failures_in_row: int


class WorkerList(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """*more*: there are others behind them."""

    workers: tuple[WorkerInfo, ...]
    more: bool


class WorkerHoldings(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """*stopping*: those that were told to stop."""

    tasks: tuple[Assignment, ...]
    stopping: tuple[int, ...]


class SystemInfo(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """*now_ms*: cluster time. Counts of tasks by state, of queues, and of workers that are there
    by state. *load*: tasks that workers have; *capacity*: that they take."""

    now_ms: int
    scheduled: int
    blocked: int
    ready: int
    assigned: int
    running: int
    done_kept: int
    dead: int
    queues: int
    idle: int
    busy: int
    draining: int
    failing: int
    gone: int
    load: int
    capacity: int
    strategy: str
    running_max: int
    load_max: int
    capabilities: bool
    affinity: bool


TaskAnswer = Failure | TaskInfo | TaskList | QueueList | WorkerList | WorkerHoldings | SystemInfo


# --- watches ----------------------------------------------------------------------------------


class WatchWorker(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """What is handed to a worker, and what is taken from it. The first event is all that it has
    (``Assigned.whole``)."""

    worker: WorkerId


class WatchTasks(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """What becomes of these; of those that have ended, at once: ``TaskEvent``. *running*: of those
    that run, too, at once, that they have "started"."""

    tasks: TaskIds
    running: bool = False


class WatchQueue(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """What happens to all tasks of a queue, or ("") of all: ``TaskEvent`` without results; and,
    of all, to workers: ``WorkerEvent``."""

    queue: NameOrNone = ""


TaskWatch = WatchWorker | WatchTasks | WatchQueue


class Assigned(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Tasks for the worker. *whole*: that is all it has; otherwise these are new."""

    tasks: tuple[Assignment, ...]
    whole: bool = False


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """An attempt is to be stopped. *why*: "cancelled": say how it ended; "timeout", "stolen",
    "moved": it is not the worker's any more, and nothing is to be said."""

    task: int
    attempt: int
    why: str


class TaskEvent(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Something happened to a task: "enqueued", "scheduled", "blocked", "ready", "assigned",
    "started", "given-back", "stolen", "failed" (it is tried again), "timeout", "crashed",
    "stopping", "requeued"; and, once and last, "done", "dead", "cancelled"; "unknown": it never
    was, or is forgotten. *state*: what it is now. *kind*, *error*: why, of those that failed."""

    what: str
    task: int
    state: int
    function: str
    queue: str
    attempt: int
    worker: int
    at_ms: int
    kind: str = ""
    error: str = ""
    result: bytes = b""


class WorkerEvent(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Something happened to a worker: "registered", "active", "draining", "error", "gone"."""

    what: str
    worker: int
    name: str
    at_ms: int
