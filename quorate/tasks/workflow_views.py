"""What is answered and told of workflows."""

from __future__ import annotations

from quorate.base.limits import RANGE_BYTES_MAX
from quorate.base.results import Failure
from quorate.base.task_specs import DEAD
from quorate.base.workflow_commands import (
    BLOCKING,
    WORKFLOW_STATE_NAMES,
    ListNodes,
    ListWorkflows,
    NodeInfo,
    NodeList,
    WatchWorkflow,
    WorkflowEvent,
    WorkflowInfo,
    WorkflowList,
    WorkflowQuery,
)
from quorate.errors import WorkflowNotFoundError
from quorate.replication.machine import Interest
from quorate.tasks.records import TaskTables, WorkflowRecord, id_key, id_of, node_key
from quorate.tasks.telling import whole, workflow_event, workflow_topic

#: Rows that one ``ListWorkflows`` looks at, as a multiple of what it may answer.
LOOK_FACTOR = 10
_ID_MAX = 2**63 - 1


def workflow(tables: TaskTables, query: WorkflowQuery) -> WorkflowInfo | Failure:
    """One workflow."""
    record = tables.workflows.get(id_key(query.workflow))
    return _none(query.workflow) if record is None else _info(query.workflow, record)


def workflows(tables: TaskTables, query: ListWorkflows) -> WorkflowList:
    """A page of workflows."""
    if query.after >= _ID_MAX:
        return WorkflowList((), 0)
    look_max = query.limit * LOOK_FACTOR
    found: list[WorkflowInfo] = []
    seen = last = 0
    for key, record in tables.workflows.range(id_key(query.after + 1), limit=look_max):
        seen, last = seen + 1, id_of(key)
        if query.state in (0, record.state):
            found.append(_info(last, record))
            if len(found) >= query.limit:
                break
    whole_ = seen < look_max and len(found) < query.limit
    return WorkflowList(tuple(found), 0 if whole_ else last)


def nodes(tables: TaskTables, query: ListNodes) -> NodeList | Failure:
    """A page of nodes."""
    if id_key(query.workflow) not in tables.workflows:
        return _none(query.workflow)
    start = node_key(query.workflow, query.after) + (b"\0" if query.after else b"")
    end = id_key(query.workflow + 1)
    rows = list(tables.nodes.range(start, end, limit=query.limit + 1))
    shown: list[NodeInfo] = []
    size = 0
    for row, found in rows[: query.limit]:
        shown.append(_node(tables, row[8:].decode(), found.number))
        size += len(shown[-1].result)
        if size > RANGE_BYTES_MAX:  # of results; names and errors are short
            break
    return NodeList(tuple(shown), len(rows) > len(shown))


def _node(tables: TaskTables, name: str, task: int) -> NodeInfo:
    key = id_key(task)
    kin, live, dead = tables.kin.get(key), tables.live.get(key), tables.dead.get(key)
    ended = tables.ended.get(key)
    kind, parents = (0, ()) if kin is None else (kin.kind, kin.parents)
    kinds = () if kin is None else kin.kinds
    kinds += (BLOCKING,) * (len(parents) - len(kinds))
    if live is not None:
        return NodeInfo(name, task, kind, live.state, live.attempt, b"", "", "", parents, kinds)
    if ended is not None:
        return NodeInfo(
            name,
            task,
            kind,
            ended.state,
            ended.attempt,
            ended.result,
            ended.kind,
            ended.error,
            parents,
            kinds,
        )
    if dead is not None:
        return NodeInfo(
            name, task, kind, DEAD, dead.attempt, b"", dead.kind, dead.error, parents, kinds
        )
    return NodeInfo(name, task, kind, 0, 0, b"", "", "", parents, kinds)


def watch(tables: TaskTables, request: WatchWorkflow, now_ms: int) -> Interest:
    """How a workflow stands, from now on."""
    record = tables.workflows.get(id_key(request.workflow))
    if record is None:
        event = WorkflowEvent("unknown", request.workflow, "", 0, 0, 0, 0, 0, now_ms)
    else:
        what = WORKFLOW_STATE_NAMES[record.state] if record.ended_ms else "progress"
        event = workflow_event(what, request.workflow, record, now_ms)
    return Interest(whole, keys=(workflow_topic(request.workflow),), backlog=(event,))


def _info(workflow_: int, record: WorkflowRecord) -> WorkflowInfo:
    return WorkflowInfo(
        workflow_,
        record.name,
        record.state,
        record.fail_fast,
        record.running_max,
        record.total,
        record.active,
        record.done,
        record.dead,
        record.cancelled,
        record.cause,
        record.started_ms,
        record.ended_ms,
    )


def _none(workflow_: int) -> Failure:
    text = f"there is no workflow {workflow_}, or not any more"
    return Failure(WorkflowNotFoundError.code, text)
