"""Workflows: commands, results, queries and events, shared by node and client.

Wire and disk formats, as in ``task_commands``; they belong to the same machine.

A *workflow* is a set of tasks with names, some of which wait for others. It is submitted whole, and
comes to an end whatever becomes of its tasks.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.limits import TASK_BATCH_MAX, TASK_NAME_MAX, VALUE_BYTES_MAX
from quorate.base.task_commands import Attempt, WorkerId
from quorate.base.task_specs import (
    KEEP_MS_DEFAULT,
    Count,
    Duration,
    Name,
    NameOrNone,
    Task,
    TaskId,
    TaskIdOrNone,
    check_beside,
)
from quorate.errors import InvalidArgumentError

#: What a task is to one that comes after it. A *blocking* one must be done first: if it is not,
#: the other one never runs. An *optional* one must have ended, however. A *weak* one is not waited
#: for: what it came to is an input if it is there by then.
BLOCKING: Final = 1
OPTIONAL: Final = 2
WEAK: Final = 3

#: What a node is: a task for workers; a time (its ``delay_ms``) to pass; a signal to come.
RUN: Final = 1
SLEEP: Final = 2
SIGNAL: Final = 3

#: How a workflow stands. The first three are left again.
WF_RUNNING: Final = 1
WF_STOPPING: Final = 2  #: a task failed (or it was cancelled): what has not begun never will
WF_COMPENSATING: Final = 3
WF_DONE: Final = 4
WF_FAILED: Final = 5
WF_COMPENSATED: Final = 6
WF_CANCELLED: Final = 7

WORKFLOW_STATE_NAMES: Final = (
    "unknown",
    "running",
    "stopping",
    "compensating",
    "done",
    "failed",
    "compensated",
    "cancelled",
)

WORKFLOW_TASKS_MAX: Final = 10_000
WORKFLOW_LIST_MAX: Final = 1_000

WorkflowId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class After(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a node waits for. *kind*: see above."""

    node: Name
    kind: Annotated[int, msgspec.Meta(ge=BLOCKING, le=WEAK)] = BLOCKING


class Node(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A task of a workflow. *name*: within it; "undo ..." are names of compensations. *after*:
    others of it. *kind*: see above; the ``delay_ms`` of the task counts from when nothing is waited
    for any more. *undo*: runs, with this one's result as its input, if this one was done and the
    workflow fails: the last one done first, one after the other. *beside*: one of *after*; run by
    the same worker."""

    name: Name
    task: Task
    after: Annotated[tuple[After, ...], msgspec.Meta(max_length=TASK_BATCH_MAX)] = ()
    kind: Annotated[int, msgspec.Meta(ge=RUN, le=SIGNAL)] = RUN
    undo: Task | None = None
    beside: NameOrNone = ""

    def __post_init__(self) -> None:
        if self.name.startswith("undo "):
            raise InvalidArgumentError(f"node {self.name!r}: such names are for compensations")
        options = self.task.options
        if options is not None and (options.unique is not None or options.beside):
            raise InvalidArgumentError(
                f"node {self.name!r}: tasks of a workflow have no unique key, and run beside nodes"
            )
        if self.beside and self.beside not in [each.node for each in self.after]:
            raise InvalidArgumentError(
                f"node {self.name!r} is to run beside {self.beside!r}, but not after it"
            )
        if self.beside and options is not None:
            check_beside(options.needs)


# --- commands ---------------------------------------------------------------------------------


class Submit(
    msgspec.Struct, frozen=True, array_like=True, tag=31, forbid_unknown_fields=True, gc=False
):
    """A new workflow. *fail_fast*: when a task is dead, the rest is cancelled; otherwise what does
    not depend on it goes on. *running_max*: as many of its tasks at once are with workers or wait
    for one; 0: no limit. *keep_ms*: so long it is known after its end, with all results. Refused
    whole if a name is there twice or not at all, or if it has a cycle. Result: ``Submitted``."""

    name: Name
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]
    fail_fast: bool = True
    running_max: Count = 0
    keep_ms: Duration = KEEP_MS_DEFAULT


class Spawn(
    msgspec.Struct, frozen=True, array_like=True, tag=32, forbid_unknown_fields=True, gc=False
):
    """A running task of a workflow adds nodes to it; nodes whose names are there already are
    skipped, so a later attempt may say the same again. *before*: nodes which wait for all of the
    new ones, besides what they wait for (they must come after the running task, so that they have
    not begun). Result: ``Submitted``, or ``Settlement`` if the attempt is stale."""

    worker: WorkerId
    task: TaskId
    attempt: Attempt
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=TASK_BATCH_MAX)]
    before: Annotated[tuple[Name, ...], msgspec.Meta(max_length=TASK_NAME_MAX)] = ()


class Signal(
    msgspec.Struct, frozen=True, array_like=True, tag=33, forbid_unknown_fields=True, gc=False
):
    """What a node of the kind ``SIGNAL`` waits for. The first one counts. Result: ``Signalled``."""

    workflow: WorkflowId
    node: Name
    payload: Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)] = b""


class CancelWorkflow(
    msgspec.Struct, frozen=True, array_like=True, tag=34, forbid_unknown_fields=True, gc=False
):
    """Cancel all that has not ended. *undo*: and undo what was done. Result: ``Signalled``."""

    workflow: WorkflowId
    undo: bool = False


WorkflowCommand = Submit | Spawn | Signal | CancelWorkflow


# --- results ----------------------------------------------------------------------------------


class Submitted(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False):
    """*tasks*: ids, in the order of the nodes; 0 for those that were skipped."""

    workflow: int
    tasks: tuple[int, ...]


class Signalled(msgspec.Struct, frozen=True, array_like=True, tag=32, gc=False):
    """*new*: it made a difference; False: it had been said before, or the workflow had ended."""

    new: bool


# --- queries and answers ----------------------------------------------------------------------


class WorkflowQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=31, forbid_unknown_fields=True, gc=False
):
    """One workflow. Result: ``WorkflowInfo``, or a failure "workflow-not-found"."""

    workflow: WorkflowId


class ListWorkflows(
    msgspec.Struct, frozen=True, array_like=True, tag=32, forbid_unknown_fields=True, gc=False
):
    """Workflows with an id above *after*, by id; of one *state*, 0: of any. Result:
    ``WorkflowList``."""

    state: Annotated[int, msgspec.Meta(ge=0, le=WF_CANCELLED)] = 0
    after: TaskIdOrNone = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=WORKFLOW_LIST_MAX)] = WORKFLOW_LIST_MAX


class ListNodes(
    msgspec.Struct, frozen=True, array_like=True, tag=33, forbid_unknown_fields=True, gc=False
):
    """Nodes of a workflow with a name above *after*, by name. Result: ``NodeList``, or a failure
    "workflow-not-found"."""

    workflow: WorkflowId
    after: NameOrNone = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=WORKFLOW_LIST_MAX)] = WORKFLOW_LIST_MAX


WorkflowQueries = WorkflowQuery | ListWorkflows | ListNodes


class WorkflowInfo(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False):
    """A workflow. *total*: nodes; *done*, *dead*, *cancelled*: of them; *active*: with workers, or
    ready for one. *cause*: the node that failed first. Times: cluster time."""

    workflow: int
    name: str
    state: int
    fail_fast: bool
    running_max: int
    total: int
    active: int
    done: int
    dead: int
    cancelled: int
    cause: str
    started_ms: int
    ended_ms: int


class WorkflowList(msgspec.Struct, frozen=True, array_like=True, tag=32, gc=False):
    """*next*: the ``after`` to go on with; 0: that was all."""

    workflows: tuple[WorkflowInfo, ...]
    next: int


class NodeInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node and its task. *state*: of the task, as in ``task_specs``; 0: it is forgotten. *after*:
    tasks that it comes after; *after_kinds*: in which way, each: see ``After``."""

    name: str
    task: int
    kind: int
    state: int
    attempt: int
    result: bytes
    error_kind: str
    error: str
    after: tuple[int, ...]
    after_kinds: tuple[int, ...] = ()


class NodeList(msgspec.Struct, frozen=True, array_like=True, tag=33, gc=False):
    """*more*: there are others behind them."""

    nodes: tuple[NodeInfo, ...]
    more: bool


# --- watches ----------------------------------------------------------------------------------


class WatchWorkflow(
    msgspec.Struct, frozen=True, array_like=True, tag=31, forbid_unknown_fields=True, gc=False
):
    """How a workflow stands, at once and whenever one of its tasks has ended, until it has ended
    itself: ``WorkflowEvent``."""

    workflow: WorkflowId


class WorkflowEvent(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False):
    """*what*: "started", "progress", "stopping", "compensating", "done", "failed", "compensated",
    "cancelled"; "unknown": there is none. Counts as in ``WorkflowInfo``."""

    what: str
    workflow: int
    name: str
    state: int
    total: int
    done: int
    dead: int
    cancelled: int
    at_ms: int
