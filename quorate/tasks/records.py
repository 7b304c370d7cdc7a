"""The tables of the task machine, their records and keys.

A live task is two records: the description (``Task``), which is written once, and ``LiveRecord``,
small, which is replaced with every step. What a task comes to in the end is a third one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from quorate.base.task_specs import NO_NEEDS, NO_OPTIONS, Needs, Options, Task
from quorate.replication.tables import Table, Tables

R = TypeVar("R", bound=msgspec.Struct)


class LiveRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task that has not ended. Times are cluster time, in milliseconds.

    *attempt*: number of the latest one, 0 before the first: the fencing token. *worker*: who has
    it, 0 for nobody. *since_ms*: it came to this state. *due_ms*: something is to happen then; 0:
    nothing. *after_ms*: not before. *waits*: for so many other tasks. *begun*: an attempt has run.
    *stopping*: its worker was told to stop. *pin*: the name of the one worker that may run it.
    *reason*: why its worker got it. *size*: bytes that were handed to it: arguments, and inputs.
    """

    state: int
    enqueued_ms: int
    since_ms: int
    due_ms: int = 0
    attempt: int = 0
    worker: int = 0
    errors: int = 0
    crashes: int = 0
    after_ms: int = 0
    waits: int = 0
    begun: bool = False
    stopping: bool = False
    pin: str = ""
    reason: str = ""
    size: int = 0


class TrialRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What went wrong with a live task so far. *workers*: that failed or died of it, the latest
    last."""

    workers: tuple[int, ...]
    kind: str
    error: str


class ProgressRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far the present attempt is, as its worker says."""

    permille: int
    note: str


class EndedRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task that is done or cancelled. *begun_ms*: its last attempt began, 0: none did.
    *keep_ms*: cluster time at which it is forgotten."""

    state: int
    function: str
    queue: str
    attempt: int
    worker: int
    enqueued_ms: int
    begun_ms: int
    ended_ms: int
    keep_ms: int
    result: bytes = b""
    kind: str = ""
    error: str = ""


class DeadRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task in the dead-letter queue. Its description is kept."""

    attempt: int
    worker: int
    enqueued_ms: int
    died_ms: int
    errors: int
    crashes: int
    workers: tuple[int, ...]
    kind: str
    error: str


class UniqueRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who holds a key. *until_ms*: of one that is held for a time, else 0."""

    task: int
    until_ms: int


class TurnRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When a key of a queue had its turn last, or came: the lowest is next."""

    turn: int


class RateRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*full_at_us*: cluster time in microseconds at which nothing of the rate is used up."""

    full_at_us: int


class QueueRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The rules of a queue, as in ``Configure``."""

    paused: bool = False
    running_max: int = 0
    key_running_max: int = 0
    rate: int = 0
    key_rate: int = 0
    rate_ms: int = 1_000
    ageing_ms: int = 0
    depth_max: int = 0


class TotalsRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What has happened in a queue since it is there. *waited_ms*: that tasks were ready, or in
    store, before they were begun for the first time; *ran_ms*: of all attempts that ended well."""

    enqueued: int = 0
    begun: int = 0
    done: int = 0
    died: int = 0
    cancelled: int = 0
    purged: int = 0
    requeued: int = 0
    failures: int = 0
    crashes: int = 0
    timeouts: int = 0
    waited_ms: int = 0
    ran_ms: int = 0


class WorkerRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A worker, as in ``Register``. *state*: "active", "draining", "error" (after failures in a
    row), "gone". *seen_ms*: it registered, attended or finished something. *gone_ms*: 0 while it
    is there."""

    name: str
    lease: int
    load: int
    prefetch: int
    capabilities: tuple[str, ...]
    queues: tuple[str, ...]
    weight: int
    model: str
    state: str
    registered_ms: int
    seen_ms: int
    gone_ms: int = 0
    done: int = 0
    failed: int = 0
    crashed: int = 0
    ran_ms: int = 0
    failures_in_row: int = 0


class SettingsRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rules for all queues, as in ``Settle``. *last_worker*: whom round-robin chose last."""

    strategy: str = "least-loaded"
    running_max: int = 0
    load_max: int = 1000
    capabilities: bool = True
    affinity: bool = True


class WorkflowRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A workflow. *left*: nodes that have not ended; *active*: nodes that workers have, or may
    get. *undone*: compensations asked for and not yet begun are numbered below this. *undo*:
    compensate, when all has ended; *flawed*: a compensation failed. *keep_ms*: a duration."""

    name: str
    state: int
    fail_fast: bool
    running_max: int
    keep_ms: int
    started_ms: int
    total: int
    left: int
    active: int = 0
    done: int = 0
    dead: int = 0
    cancelled: int = 0
    undone: int = 0
    undo: bool = False
    flawed: bool = False
    cause: str = ""
    ended_ms: int = 0


class KinRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a task is within its workflow. *parents*: tasks that it comes after. *beside*: one of
    them, 0: none. *undoes*: the task that it compensates, 0: none. *kinds*: how it waits for
    the first of *parents*; for the others, which were put before it later, as ``BLOCKING``."""

    workflow: int
    node: str
    kind: int
    parents: tuple[int, ...]
    beside: int = 0
    undoes: int = 0
    kinds: tuple[int, ...] = ()


class SweepRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Work on all nodes of a workflow, of which an entry does a part. *what*: ``STOP_NODES`` or
    ``FORGET_NODES``; *after*: the last name that was dealt with."""

    what: int
    after: str


class UndoRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A compensation, of the node of a workflow that was done as the n-th."""

    task: int
    spec: Task


class SignalRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A signal that has come."""

    payload: bytes


class ScheduleRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A schedule, as in ``PutSchedule``. *next_ms*: wall time for cron, 0 until it is worked out;
    cluster time for every_ms."""

    task: Task
    cron: str
    zone: str
    every_ms: int
    misfire: str
    overlap: bool
    paused: bool
    revision: int
    next_ms: int
    last_ms: int = 0
    last_task: int = 0
    fired: int = 0
    skipped: int = 0


class GroupRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A group of coordinators. It stays when all have left, so that epochs only grow."""

    epoch: int
    leader: int | str | None
    count: int
    numbers: bool


class MemberRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member of a group."""

    member: int | str
    lease: int


class NumberRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A number: the highest id given out, or the worker that had the last turn."""

    number: int


#: The only key of tables that hold one record, and keys of the table of numbers.
ONLY = b"only"
LAST_TASK = b"task"
LAST_WORKER = b"worker"
LAST_CHOSEN = b"chosen"
LAST_WORKFLOW = b"workflow"
LAST_SCHEDULE = b"schedule"

STOP_NODES = 1
FORGET_NODES = 2


class TaskTables:
    """All of them, in one place. Keys: ids are 8 bytes, names are UTF-8."""

    def __init__(self, tables: Tables) -> None:
        def ordered(name: str, record: type[R]) -> Table[R]:
            return tables.table(f"tasks.{name}", record, ordered=True, trusted=True)

        def plain(name: str, record: type[R]) -> Table[R]:
            return tables.table(f"tasks.{name}", record, trusted=True)

        self.specs: Table[Task] = plain("specs", Task)
        self.live: Table[LiveRecord] = ordered("live", LiveRecord)
        self.trials: Table[TrialRecord] = plain("trials", TrialRecord)
        self.progress: Table[ProgressRecord] = plain("progress", ProgressRecord)
        self.ended: Table[EndedRecord] = ordered("ended", EndedRecord)
        self.dead: Table[DeadRecord] = ordered("dead", DeadRecord)
        self.unique: Table[UniqueRecord] = plain("unique", UniqueRecord)
        #: By the task that is waited for, and the one that waits.
        self.beside: Table[NumberRecord] = ordered("beside", NumberRecord)
        self.turns: Table[TurnRecord] = plain("turns", TurnRecord)
        self.rates: Table[RateRecord] = ordered("rates", RateRecord)
        self.queues: Table[QueueRecord] = ordered("queues", QueueRecord)
        self.totals: Table[TotalsRecord] = ordered("totals", TotalsRecord)
        self.workers: Table[WorkerRecord] = ordered("workers", WorkerRecord)
        self.settings: Table[SettingsRecord] = plain("settings", SettingsRecord)
        self.workflows: Table[WorkflowRecord] = ordered("workflows", WorkflowRecord)
        #: Tasks of a workflow: what they are; their ids, by workflow and name; what they wait for,
        #: by parent and child; those that wait as enough of it runs, by workflow and task.
        self.kin: Table[KinRecord] = plain("kin", KinRecord)
        self.nodes: Table[NumberRecord] = ordered("nodes", NumberRecord)
        self.children: Table[NumberRecord] = ordered("children", NumberRecord)
        self.gated: Table[NumberRecord] = ordered("gated", NumberRecord)
        #: By task; then, once the node is done, by workflow and number.
        self.compensations: Table[UndoRecord] = plain("compensations", UndoRecord)
        self.undo: Table[UndoRecord] = ordered("undo", UndoRecord)
        self.signals: Table[SignalRecord] = ordered("signals", SignalRecord)
        self.sweeps: Table[SweepRecord] = ordered("sweeps", SweepRecord)
        self.schedules: Table[ScheduleRecord] = ordered("schedules", ScheduleRecord)
        self.groups: Table[GroupRecord] = plain("groups", GroupRecord)
        #: By group and id; and by lease, group and id.
        self.members: Table[MemberRecord] = ordered("members", MemberRecord)
        self.bound: Table[MemberRecord] = ordered("bound", MemberRecord)
        self.numbers: Table[NumberRecord] = plain("numbers", NumberRecord)


#: Key of a task or worker: ``number.to_bytes(8, "big")`` in half the time, ten times in each life.
id_key: Final[Callable[[int], bytes]] = struct.Struct(">Q").pack


def id_of(key: bytes) -> int:
    """The id in a key of one, or the last one in a key of several."""
    return int.from_bytes(key[-8:], "big")


def pair_key(first: int, second: int) -> bytes:
    """Key of what belongs to two ids, in the order of the first."""
    return first.to_bytes(8, "big") + second.to_bytes(8, "big")


def node_key(workflow: int, node: str) -> bytes:
    """Key of a node of a workflow, in the order of the names."""
    return workflow.to_bytes(8, "big") + node.encode()


def scoped(queue: str, key: bytes) -> bytes:
    """Key of what belongs to a key of a queue, and of nothing else."""
    name = queue.encode()
    return len(name).to_bytes(2, "big") + name + key


def options_of(task: Task) -> Options:
    """What it says, or the defaults."""
    return NO_OPTIONS if task.options is None else task.options


def needs_of(task: Task, live: LiveRecord) -> Needs:
    """What it asks of its worker, now that it may have been pinned to one."""
    options = task.options
    needs = NO_NEEDS if options is None or options.needs is None else options.needs
    return msgspec.structs.replace(needs, worker=live.pin) if live.pin else needs
