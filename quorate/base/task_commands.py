"""Commands of the task machine and their results, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning. Commands refuse fields that they do not
know. Results use tags from 1; ``Failure`` is 0.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from quorate.base.lease_commands import LeaseId
from quorate.base.limits import (
    TASK_BATCH_MAX,
    TASK_ERROR_MAX,
    TASK_NAME_MAX,
    VALUE_BYTES_MAX,
    WORKER_LOAD_MAX,
)
from quorate.base.results import Failure
from quorate.base.task_specs import (
    Capabilities,
    Count,
    Duration,
    Name,
    NameOrNone,
    Task,
    TaskId,
    TaskIdOrNone,
    check_sorted,
)
from quorate.errors import InvalidArgumentError

WorkerId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Load = Annotated[int, msgspec.Meta(ge=0, le=WORKER_LOAD_MAX)]
TaskIds = Annotated[tuple[TaskId, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]
ErrorText = Annotated[str, msgspec.Meta(max_length=TASK_ERROR_MAX)]
#: How a worker is chosen for a task, where several could take it.
Strategy = Literal["least-loaded", "round-robin", "capability-match", "random", "weighted"]

#: Why a worker got a task: by a strategy, or one of these.
REASON_REQUIRED: Final = "required"
REASON_PREFERRED: Final = "preferred"
REASON_BESIDE: Final = "beside"
REASON_CLAIMED: Final = "claimed"
REASON_STOLEN: Final = "stolen"
REASON_ASSIGNED: Final = "assigned"  # by whoever said so
REASON_MOVED: Final = "moved"  # likewise, away from another worker


# --- queues -----------------------------------------------------------------------------------


class Enqueue(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """All of *tasks*, or none of them. Result: ``Enqueued``."""

    tasks: Annotated[tuple[Task, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]


class Cancel(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """What has not begun never will; the worker of what has begun is told to stop, and has
    *grace_ms* to say how it ended. *waiting_only*: nothing becomes of what runs. Result:
    ``Changed``."""

    tasks: TaskIds
    grace_ms: Duration = 30_000
    waiting_only: bool = False


class Requeue(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """Take dead tasks out of the dead-letter queue: they are ready again, errors and crashes count
    from 0, attempts go on. Not those whose queue is full, whose unique key another has, or which
    belong to a workflow. Result: ``Changed``."""

    tasks: TaskIds


class Purge(
    msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True, gc=False
):
    """Forget tasks of *queue* ("": of all) with an id above *after* that have been in *state*
    ("done" and "cancelled": results; "dead"; "ready" and "scheduled": tasks that wait, which
    nobody will ever run) for *older_ms*; at most *limit*. Result: ``Purged``."""

    state: Literal["done", "cancelled", "dead", "ready", "scheduled"]
    queue: NameOrNone = ""
    older_ms: Duration = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=TASK_BATCH_MAX)] = TASK_BATCH_MAX
    after: TaskIdOrNone = 0


class Configure(
    msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True, gc=False
):
    """Rules of a queue from now on. *paused*: nothing of it is handed out. *running_max*: as many
    at once; *key_running_max*: as many of one key; 0: no limit. *rate*: so many are begun in
    *rate_ms*, *rate* at once at most; *key_rate*: the same of one key; 0: no limit. *ageing_ms*:
    who waits so long is served as if one priority higher, and so on; 0: strict priorities.
    *depth_max*: so many that have not ended, more are refused; 0: no limit. Result: ``Configured``.
    """

    queue: Name
    paused: bool = False
    running_max: Count = 0
    key_running_max: Count = 0
    rate: Count = 0
    key_rate: Count = 0
    rate_ms: Duration = 1_000
    ageing_ms: Duration = 0
    depth_max: Count = 0

    def __post_init__(self) -> None:
        if (self.rate or self.key_rate) and not self.rate_ms:
            raise InvalidArgumentError("a rate is of some time: rate_ms cannot be 0")


class Settle(
    msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True, gc=False
):
    """Rules for all queues and workers from now on. *strategy*: see ``Strategy``. *running_max*: as
    many tasks at once in all; 0: no limit. *load_max*: no task for a worker whose load is above
    this part (thousandths) of what it takes. *capabilities*, *affinity*: whether what tasks need
    and prefer counts. Result: ``Settled``."""

    strategy: Strategy = "least-loaded"
    running_max: Count = 0
    load_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    capabilities: bool = True
    affinity: bool = True


class Pause(
    msgspec.Struct, frozen=True, array_like=True, tag=7, forbid_unknown_fields=True, gc=False
):
    """Hand out nothing of *queue*, or again; its other rules stay. Result: ``Configured``."""

    queue: Name
    paused: bool = True


class Assign(
    msgspec.Struct, frozen=True, array_like=True, tag=8, forbid_unknown_fields=True, gc=False
):
    """*task* is for *worker*, or (0) for any but the one that has it, out of its turn; but within
    what the task needs, what the worker takes and the limits of all and of the queue. It must be
    ready, or a worker must have it, who then has it no more. Result: ``Claimed``, with this task;
    or a failure "task-state", "no-available-worker", "task-not-found" or "worker-not-found"."""

    task: TaskId
    worker: TaskIdOrNone = 0


# --- workers ----------------------------------------------------------------------------------


class Register(
    msgspec.Struct, frozen=True, array_like=True, tag=11, forbid_unknown_fields=True, gc=False
):
    """A worker, which is there as long as its *lease* stands. *load*: tasks that it runs at once;
    0: it only claims. *prefetch*: tasks that it has in store besides. *queues*: that it serves;
    none: all. *weight*: for the strategy "weighted". *model*: to show. Result: ``Registered``."""

    name: Name
    lease: LeaseId
    load: Load
    prefetch: Load = 0
    capabilities: Capabilities = ()
    queues: Annotated[tuple[Name, ...], msgspec.Meta(max_length=TASK_NAME_MAX)] = ()
    weight: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    model: NameOrNone = ""

    def __post_init__(self) -> None:
        check_sorted("capabilities", self.capabilities)
        check_sorted("queues", self.queues)


class Attend(
    msgspec.Struct, frozen=True, array_like=True, tag=12, forbid_unknown_fields=True, gc=False
):
    """A worker says how it is: "active" (which also clears an error), "draining" (no more tasks),
    and of how many tasks it is capable from now on (None: as before). Result: ``Attended``."""

    worker: WorkerId
    state: Literal["active", "draining"] = "active"
    load: Load | None = None
    prefetch: Load | None = None


class Unregister(
    msgspec.Struct, frozen=True, array_like=True, tag=13, forbid_unknown_fields=True, gc=False
):
    """The worker is gone; what it had is ready again, and nothing is held against it. Result:
    ``Attended``."""

    worker: WorkerId


# --- what workers do with tasks ---------------------------------------------------------------


class Claim(
    msgspec.Struct, frozen=True, array_like=True, tag=21, forbid_unknown_fields=True, gc=False
):
    """At most *count* tasks that are ready, beyond what the worker's load is. They are running.
    Result: ``Claimed``."""

    worker: WorkerId
    count: Annotated[int, msgspec.Meta(ge=1, le=TASK_BATCH_MAX)]


class Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An attempt that a worker believes to be its own."""

    task: TaskId
    attempt: Attempt


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An attempt that came to a *result*."""

    task: TaskId
    attempt: Attempt
    result: Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)] = b""


class Failed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An attempt that failed. *kind*: name of the error, which the task's ``Retry.fatal`` may
    name. *final*: do not try again. *after_ms*: try again after so long, whatever the task's
    ``Retry`` says of times; None: as it says. *cancelled*: it stopped because it was told to."""

    task: TaskId
    attempt: Attempt
    kind: NameOrNone = ""
    error: ErrorText = ""
    final: bool = False
    after_ms: Duration | None = None
    cancelled: bool = False


class Begin(
    msgspec.Struct, frozen=True, array_like=True, tag=22, forbid_unknown_fields=True, gc=False
):
    """The worker begins with tasks that it had in store. Only those that the result does not name
    may run. Result: ``Settlement``."""

    worker: WorkerId
    tasks: Annotated[tuple[Held, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]


class Complete(
    msgspec.Struct, frozen=True, array_like=True, tag=23, forbid_unknown_fields=True, gc=False
):
    """Attempts that ended well. *follow*: tasks that come of the one attempt there is, which are
    enqueued with its end, or not at all. Result: ``Settlement``."""

    worker: WorkerId
    tasks: Annotated[tuple[Done, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]
    follow: Annotated[tuple[Task, ...], msgspec.Meta(max_length=TASK_BATCH_MAX)] = ()

    def __post_init__(self) -> None:
        if self.follow and len(self.tasks) > 1:
            raise InvalidArgumentError("tasks follow one attempt; complete the others apart")


class Fail(
    msgspec.Struct, frozen=True, array_like=True, tag=24, forbid_unknown_fields=True, gc=False
):
    """Attempts that failed. Result: ``Settlement``."""

    worker: WorkerId
    tasks: Annotated[tuple[Failed, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]


class GiveBack(
    msgspec.Struct, frozen=True, array_like=True, tag=25, forbid_unknown_fields=True, gc=False
):
    """The worker will not run these after all: they are ready again, in their old place, and
    nothing is held against them. Result: ``Settlement``."""

    worker: WorkerId
    tasks: Annotated[tuple[Held, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]


class Report(
    msgspec.Struct, frozen=True, array_like=True, tag=26, forbid_unknown_fields=True, gc=False
):
    """Attempts that are alive, and how far they are (*permille* and a word; None: no change).
    Result: ``Settlement``, which names also those that were told to stop."""

    worker: WorkerId
    tasks: Annotated[tuple[Held, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]
    permille: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    note: Annotated[str, msgspec.Meta(max_length=TASK_ERROR_MAX)] = ""


TaskCommand = (
    Enqueue
    | Cancel
    | Requeue
    | Purge
    | Configure
    | Settle
    | Pause
    | Assign
    | Register
    | Attend
    | Unregister
    | Claim
    | Begin
    | Complete
    | Fail
    | GiveBack
    | Report
)


# --- results ----------------------------------------------------------------------------------


class Enqueued(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """One id for each task, in their order. *known*: places in it of those that are not new, as
    their unique key was held."""

    tasks: tuple[int, ...]
    known: tuple[int, ...] = ()


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*tasks*: those that it was true of; the others had ended, or are not known."""

    tasks: tuple[int, ...]


class Purged(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """*count*: forgotten by this command. *next*: the ``after`` to go on with; 0: that was all."""

    count: int
    next: int


class Configured(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The rules stand."""


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The rules stand."""


class Registered(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*worker*: its id, from 1; never given out again, whatever its name."""

    worker: int


class Attended(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """*tasks*: as many the worker has; of one that was unregistered: had."""

    tasks: int


class Input(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a node before came to. *state*: as in ``task_specs``. *result*: None if all inputs
    together were too long: ask for the task."""

    node: str
    task: int
    state: int
    result: bytes | None


class Assignment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task for a worker. *attempt*: the fencing token of this attempt. *running*: it may begin
    at once; otherwise ``Begin`` comes first. *due_ms*: cluster time of its end at the latest, 0:
    none. *errors*, *crashes*: of attempts before. *reason*: why this worker. *workflow*, *node*,
    *inputs*: of a task of a workflow."""

    task: int
    attempt: int
    running: bool
    function: str
    payload: bytes
    queue: str
    key: bytes
    due_ms: int
    timeout_ms: int
    heartbeat_ms: int
    errors: int
    crashes: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()
    workflow: int = 0
    node: str = ""
    inputs: tuple[Input, ...] = ()


class Claimed(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """What there was; of ``Assign``: that task."""

    tasks: tuple[Assignment, ...]


class Stale(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An attempt that is not the present one. *attempt*, *worker*: of whoever has or had it last;
    *state*: what the task is now (``task_specs``), 0: not known any more. *stop*: it is the
    present one, but was told to stop."""

    task: int
    state: int
    attempt: int
    worker: int
    stop: bool = False


class Settlement(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """All was done that was asked, but for *stale*, of which nothing was done. *followed*: ids of
    the tasks of ``Complete.follow``."""

    stale: tuple[Stale, ...] = ()
    followed: tuple[int, ...] = ()


TaskResult = (
    Failure
    | Enqueued
    | Changed
    | Purged
    | Configured
    | Settled
    | Registered
    | Attended
    | Claimed
    | Settlement
)
