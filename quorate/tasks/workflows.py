"""Workflows: tasks that wait for others, and the whole that they make.

What the machine owns:

* A node begins after all that it waits for has ended, and never if one that blocks it was not
  done. That is counted in the entry in which the last of them ends, so nothing joins twice or not
  at all, and nobody polls.
* Every workflow ends: each node does, and with the last of them, and with the last compensation,
  the workflow does.
* What nodes came to is kept until the workflow is forgotten.

A task that ends tells ``ended``; what follows from that - children that will never run, which end
too - is worked off from a list, so that a long chain needs no deep stack. What concerns all nodes
of a large workflow is done a part at a time (``workflow_sweeps``).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from quorate.base.limits import MIB, TASKS_MAX
from quorate.base.results import Failure
from quorate.base.task_commands import Input
from quorate.base.task_specs import (
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    READY,
    STATE_NAMES,
    Task,
)
from quorate.base.workflow_commands import (
    BLOCKING,
    RUN,
    SIGNAL,
    SLEEP,
    WEAK,
    WF_CANCELLED,
    WF_COMPENSATED,
    WF_COMPENSATING,
    WF_DONE,
    WF_FAILED,
    WF_RUNNING,
    WF_STOPPING,
    WORKFLOW_STATE_NAMES,
    WORKFLOW_TASKS_MAX,
    CancelWorkflow,
    Node,
    Signal,
    Signalled,
    Spawn,
    Submit,
    Submitted,
)
from quorate.errors import QueueFullError, WorkflowError, WorkflowNotFoundError
from quorate.replication.machine import Context
from quorate.tasks.graphs import trouble_in
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.records import (
    LAST_WORKFLOW,
    STOP_NODES,
    KinRecord,
    LiveRecord,
    NumberRecord,
    SignalRecord,
    SweepRecord,
    UndoRecord,
    WorkflowRecord,
    id_key,
    id_of,
    node_key,
    options_of,
    pair_key,
)
from quorate.tasks.steps import not_before_ms, waiting
from quorate.tasks.telling import tell_workflow
from quorate.tasks.workflow_sweeps import Sweeper

#: Results of the nodes before that a task gets with its assignment; beyond, it asks for them.
INPUTS_BYTES_MAX: Final = 1 * MIB
UPSTREAM: Final = "upstream"


class Workflows:
    """See the module. *life* tells it of every task of a workflow that ends or is due."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life
        self._ended: deque[tuple[int, int, bool]] = deque()  # task, state, whether it was blocked
        self._working = False
        self.sweeper = Sweeper(ledger, life)

    def load(self) -> None:
        """The tables are new."""
        self._ended.clear()
        self._working = False
        self.sweeper.load()

    def begin(self) -> None:
        """A command or hook begins."""
        self._ended.clear()
        self._working = False

    # --- coming ---------------------------------------------------------------------------------

    def submit(self, command: Submit, context: Context) -> Submitted | Failure:
        """A new workflow, whole."""
        ledger = self._ledger
        trouble = trouble_in(command.nodes, ())
        if trouble:
            return Failure(WorkflowError.code, trouble)
        if len(ledger.tables.kin) + len(command.nodes) > TASKS_MAX:
            return Failure(QueueFullError.code, f"there are {TASKS_MAX} tasks in workflows")
        workflow = ledger.number(LAST_WORKFLOW) + 1
        ledger.tables.numbers.put(LAST_WORKFLOW, NumberRecord(workflow))
        total = len(command.nodes)
        record = WorkflowRecord(
            command.name,
            WF_RUNNING,
            command.fail_fast,
            command.running_max,
            command.keep_ms,
            context.time_ms,
            total,
            total,
        )
        ledger.tables.workflows.put(id_key(workflow), record)
        tell_workflow(context, workflow, record, "started")
        tasks = self._enter(workflow, command.nodes, context)
        return Submitted(workflow, tasks)

    def spawn(self, command: Spawn, context: Context) -> Submitted | Failure:
        """More nodes, by a running one: the attempt is the present one."""
        tables = self._ledger.tables
        kin = tables.kin.get(id_key(command.task))
        if kin is None:
            text = f"task {command.task} belongs to no workflow, so it can add nothing to one"
            return Failure(WorkflowError.code, text)
        workflow = kin.workflow
        key = id_key(workflow)
        record = tables.workflows.get(key)
        if record is None or record.state != WF_RUNNING:
            return Failure(WorkflowError.code, f"workflow {workflow} takes no more nodes")
        nodes = tuple(
            each for each in command.nodes if node_key(workflow, each.name) not in tables.nodes
        )
        trouble = self._trouble_of_spawning(command, nodes, workflow, record)
        if trouble:
            return Failure(WorkflowError.code, trouble)
        count = len(nodes)
        tables.workflows.put(
            key,
            msgspec.structs.replace(record, total=record.total + count, left=record.left + count),
        )
        ids = self._link_before(command, nodes, workflow, context)
        return Submitted(workflow, ids)

    def _trouble_of_spawning(
        self, command: Spawn, nodes: tuple[Node, ...], workflow: int, record: WorkflowRecord
    ) -> str:
        tables = self._ledger.tables
        if record.total + len(nodes) > WORKFLOW_TASKS_MAX:
            return f"workflow {workflow} would have more than {WORKFLOW_TASKS_MAX} nodes"
        known: list[str] = []
        for node in nodes:
            for after in node.after:
                parent = self._node(workflow, after.node)
                if parent:
                    known.append(after.node)
                    if after.kind == BLOCKING and self._never_done(parent):
                        return f"node {node.name!a} waits for {after.node!a}, which was not done"
        trouble = trouble_in(nodes, known)
        if trouble:
            return trouble
        for name in command.before:
            found = tables.nodes.get(node_key(workflow, name))
            if found is None:
                return f"there is no node {name!a}, so nothing can come before it"
            if pair_key(command.task, found.number) not in tables.children:
                return f"node {name!a} does not wait for the task that adds to it"
        return self._cycle_in_spawning(command, nodes, workflow)

    def _cycle_in_spawning(self, command: Spawn, nodes: tuple[Node, ...], workflow: int) -> str:
        """Whether one of *nodes* waits for what is to wait for all of them."""
        tables = self._ledger.tables
        parents: dict[int, tuple[str, str]] = {}
        for node in nodes:
            for after in node.after:
                parent = self._node(workflow, after.node)
                live = tables.live.get(id_key(parent))
                if after.kind != WEAK and live is not None and live.state == BLOCKED:
                    parents.setdefault(parent, (node.name, after.node))
        if not parents:  # as good as always: what runs, or has ended, waits for nobody
            return ""
        later = dict.fromkeys(self._node(workflow, name) for name in command.before)
        left = list(later)
        while left:
            task = left.pop()
            if task in parents:
                name, other = parents[task]
                return (
                    f"nodes wait for each other in a cycle: {name!a} for {other!a}, and that for it"
                )
            for row, _ in tables.children.range_prefix(id_key(task)):
                child = id_of(row)
                if child not in later:
                    later[child] = None
                    left.append(child)
        return ""

    def _never_done(self, task: int) -> bool:
        tables, key = self._ledger.tables, id_key(task)
        ended = tables.ended.get(key)
        return key not in tables.live and (ended is None or ended.state != DONE)

    def _link_before(
        self, command: Spawn, nodes: tuple[Node, ...], workflow: int, context: Context
    ) -> tuple[int, ...]:
        """Enter *nodes*; each becomes one more that the nodes of ``before`` wait for."""
        tables = self._ledger.tables
        names = dict.fromkeys(command.before)  # who is named twice waits for each of them once
        joins = [tables.nodes.get(node_key(workflow, name)) for name in names]
        first = self._ledger.last_task + 1
        new = range(first, first + len(nodes))
        for join in joins:
            if join is None or not nodes:
                continue
            child = join.number
            for parent in new:
                tables.children.put(pair_key(parent, child), NumberRecord(BLOCKING))
            kin, live = tables.kin.get(id_key(child)), tables.live.get(id_key(child))
            spec = tables.specs.get(id_key(child))
            if kin is None or live is None or spec is None:
                continue
            tables.kin.put(
                id_key(child), msgspec.structs.replace(kin, parents=(*kin.parents, *new))
            )
            more = msgspec.structs.replace(live, waits=live.waits + len(nodes))
            self._ledger.move(child, spec, live, more)
        entered = dict(zip([each.name for each in nodes], new, strict=True))
        self._enter(workflow, nodes, context)
        return tuple(entered.get(each.name, 0) for each in command.nodes)

    def _enter(self, workflow: int, nodes: tuple[Node, ...], context: Context) -> tuple[int, ...]:
        """All nodes, blocked; then those that wait for nothing are let go."""
        ledger, tables = self._ledger, self._ledger.tables
        ids = {node.name: ledger.draw() for node in nodes}
        for node in nodes:
            tables.nodes.put(node_key(workflow, node.name), NumberRecord(ids[node.name]))
        free: list[int] = []
        for node in nodes:
            task = ids[node.name]
            waits = 1 if node.kind == SIGNAL else 0
            parents: list[int] = []
            for after in node.after:
                parent = ids.get(after.node) or self._node(workflow, after.node)
                parents.append(parent)
                if after.kind != WEAK and (after.node in ids or id_key(parent) in tables.live):
                    tables.children.put(pair_key(parent, task), NumberRecord(after.kind))
                    waits += 1
            beside = ids.get(node.beside) or self._node(workflow, node.beside)
            kinds = tuple(after.kind for after in node.after)
            kin = KinRecord(workflow, node.name, node.kind, tuple(parents), beside, 0, kinds)
            tables.kin.put(id_key(task), kin)
            if node.undo is not None:
                tables.compensations.put(id_key(task), UndoRecord(task, node.undo))
            self._enter_one(task, node.task, waits, context)
            if not waits:
                free.append(task)
        for task in free:
            self._release(task, context)
        return tuple(ids[node.name] for node in nodes)

    def _node(self, workflow: int, name: str) -> int:
        found = self._ledger.tables.nodes.get(node_key(workflow, name)) if name else None
        return 0 if found is None else found.number

    def _enter_one(self, task: int, spec: Task, waits: int, context: Context) -> None:
        ledger, now_ms = self._ledger, context.time_ms
        expires_ms = options_of(spec).expires_ms
        due_ms = now_ms + expires_ms if expires_ms else 0
        live = LiveRecord(BLOCKED, now_ms, now_ms, due_ms, waits=waits)
        ledger.enter(task, spec, live)
        self._life.came(task, spec, live, context)

    # --- waiting no more ------------------------------------------------------------------------

    def _lessen(self, task: int, context: Context) -> None:
        """*task* waits for one less."""
        tables, key = self._ledger.tables, id_key(task)
        live, spec = tables.live.get(key), tables.specs.get(key)
        if live is None or spec is None or live.state != BLOCKED:
            return
        self._ledger.move(task, spec, live, msgspec.structs.replace(live, waits=live.waits - 1))
        if live.waits == 1:
            self._release(task, context)

    def _release(self, task: int, context: Context) -> None:
        """*task* waits for nothing, but perhaps for its workflow to have room."""
        tables, key = self._ledger.tables, id_key(task)
        kin, live, spec = tables.kin.get(key), tables.live.get(key), tables.specs.get(key)
        if kin is None or live is None or spec is None:
            return
        if kin.kind == SIGNAL:
            signal = tables.signals.get(node_key(kin.workflow, kin.node))
            payload = b"" if signal is None else signal.payload
            self._life.end(task, spec, live, DONE, context, payload)
            return
        after_ms = not_before_ms(spec, context)
        if kin.kind == SLEEP and not after_ms:
            self._life.end(task, spec, live, DONE, context)
            return
        record = tables.workflows.get(id_key(kin.workflow))
        if record is None:
            return
        if kin.kind == RUN and not kin.undoes:
            if record.running_max and record.active >= record.running_max:
                tables.gated.put(pair_key(kin.workflow, task), NumberRecord(task))
                return
            active = msgspec.structs.replace(record, active=record.active + 1)
            tables.workflows.put(id_key(kin.workflow), active)
        now_ms = context.time_ms
        pin = (self._life.name_beside(kin.beside) or "") if kin.beside else ""
        after = waiting(
            options_of(spec), now_ms, live.enqueued_ms, like=live, after_ms=after_ms, pin=pin
        )
        self._ledger.move(task, spec, live, after)
        what = "ready" if after.state == READY else "scheduled"
        self._life.tell(what, task, spec, after.state, live.attempt, 0, context)

    def wake(self, task: int, spec: Task, live: LiveRecord, context: Context) -> bool:
        """The time of *task* has come; True: that was all it waited for, and it is done."""
        kin = self._ledger.tables.kin.get(id_key(task))
        if kin is None or kin.kind != SLEEP:
            return False
        self._life.end(task, spec, live, DONE, context)
        return True

    def signal(self, command: Signal, context: Context) -> Signalled | Failure:
        """A signal has come."""
        tables = self._ledger.tables
        record = tables.workflows.get(id_key(command.workflow))
        key = node_key(command.workflow, command.node)
        node = tables.nodes.get(key)
        kin = None if node is None else tables.kin.get(id_key(node.number))
        if record is None or node is None or kin is None:
            text = f"there is no workflow {command.workflow} with a node {command.node!a}"
            return Failure(WorkflowNotFoundError.code, text)
        if kin.kind != SIGNAL:
            return Failure(WorkflowError.code, f"node {command.node!a} waits for no signal")
        if key in tables.signals or id_key(node.number) not in tables.live:
            return Signalled(new=False)
        tables.signals.put(key, SignalRecord(command.payload))
        self._lessen(node.number, context)
        return Signalled(new=True)

    # --- ending ---------------------------------------------------------------------------------

    def ended(self, task: int, state: int, context: Context, *, blocked: bool) -> None:
        """*task* has ended. *blocked*: before it could begin."""
        self._ended.append((task, state, blocked))
        if self._working:
            return
        self._working = True
        while self._ended:
            self._settle(*self._ended.popleft(), context)
        self._working = False

    def _settle(self, task: int, state: int, blocked: bool, context: Context) -> None:  # noqa: FBT001
        tables = self._ledger.tables
        kin = tables.kin.get(id_key(task))
        record = None if kin is None else tables.workflows.get(id_key(kin.workflow))
        if kin is None or record is None:
            return
        if kin.undoes:
            self._undone(kin, record, state, context)
            return
        changes = {"left": record.left - 1}
        if kin.kind == RUN and not blocked:
            changes["active"] = record.active - 1
        field = {DONE: "done", DEAD: "dead", CANCELLED: "cancelled"}[state]
        changes[field] = getattr(record, field) + 1
        undo = tables.compensations.delete(id_key(task))
        if undo is not None and state == DONE:
            changes["undone"] = record.undone + 1
            tables.undo.put(pair_key(kin.workflow, record.undone), undo)
        tables.gated.delete(pair_key(kin.workflow, task))
        record = msgspec.structs.replace(record, **changes)
        tables.workflows.put(id_key(kin.workflow), record)
        if state != DONE:
            self._note_failure(kin, record, context)
        self._tell_children(task, kin, state, context)
        self._let_in(kin.workflow, context)
        self._close(kin.workflow, context)

    def _note_failure(self, kin: KinRecord, record: WorkflowRecord, context: Context) -> None:
        """A node was not done: what that means for the whole."""
        if record.state != WF_RUNNING:
            return
        record = msgspec.structs.replace(
            record, cause=record.cause or kin.node, undo=record.undo or not record.cause
        )
        if record.fail_fast and record.left:
            record = msgspec.structs.replace(record, state=WF_STOPPING)
            self._ledger.tables.sweeps.put(id_key(kin.workflow), SweepRecord(STOP_NODES, ""))
            tell_workflow(context, kin.workflow, record, "stopping")
        self._ledger.tables.workflows.put(id_key(kin.workflow), record)

    def _tell_children(self, task: int, kin: KinRecord, state: int, context: Context) -> None:
        tables = self._ledger.tables
        for row, kind in list(tables.children.range_prefix(id_key(task))):
            tables.children.delete(row)
            child = id_of(row)
            if kind.number == BLOCKING and state != DONE:
                live, spec = tables.live.get(id_key(child)), tables.specs.get(id_key(child))
                if live is not None and spec is not None:
                    error = f"node {kin.node!a} before it was not done but {STATE_NAMES[state]}"
                    self._life.end(child, spec, live, CANCELLED, context, b"", UPSTREAM, error)
            else:
                self._lessen(child, context)

    def _let_in(self, workflow: int, context: Context) -> None:
        """Nodes that wait for room in their workflow."""
        tables = self._ledger.tables
        while True:
            record = tables.workflows.get(id_key(workflow))
            if record is None or record.state != WF_RUNNING:
                return
            if record.running_max and record.active >= record.running_max:
                return
            row = next(tables.gated.range_prefix(id_key(workflow), limit=1), None)
            if row is None:
                return
            tables.gated.delete(row[0])
            self._release(row[1].number, context)

    def _close(self, workflow: int, context: Context) -> None:
        """The end, if all has ended; or the next compensation."""
        tables, key = self._ledger.tables, id_key(workflow)
        record = tables.workflows.get(key)
        if record is None or record.left:
            if record is not None and record.state == WF_RUNNING:
                tell_workflow(context, workflow, record, "progress")
            return
        tables.sweeps.delete(key)  # nothing is left to stop; what follows must not be
        if record.undo and self._undo_next(workflow, record, context):
            return
        if record.state == WF_COMPENSATING:
            state = WF_FAILED if record.flawed else WF_COMPENSATED
        elif record.cause:
            state = WF_FAILED
        else:
            state = WF_CANCELLED if record.state == WF_STOPPING else WF_DONE
        record = msgspec.structs.replace(record, state=state, ended_ms=max(context.time_ms, 1))
        tables.workflows.put(key, record)
        self.sweeper.forget_later(workflow, record)
        tell_workflow(context, workflow, record, WORKFLOW_STATE_NAMES[state])

    # --- undoing --------------------------------------------------------------------------------

    def _undo_next(self, workflow: int, record: WorkflowRecord, context: Context) -> bool:
        """Begin with the next compensation; False: there is none left."""
        tables = self._ledger.tables
        row = next(tables.undo.range_prefix(id_key(workflow), reverse=True, limit=1), None)
        if row is None:
            return False
        key, undo = row
        tables.undo.delete(key)
        if record.state != WF_COMPENSATING:
            record = msgspec.structs.replace(record, state=WF_COMPENSATING)
            tables.workflows.put(id_key(workflow), record)
            tell_workflow(context, workflow, record, "compensating")
        done = tables.kin.get(id_key(undo.task))
        task = self._ledger.draw()
        name = f"undo {'' if done is None else done.node}"
        kin = KinRecord(workflow, name, RUN, (undo.task,), 0, undo.task)
        tables.kin.put(id_key(task), kin)
        tables.nodes.put(node_key(workflow, name), NumberRecord(task))
        self._enter_one(task, undo.spec, 0, context)
        self._release(task, context)
        return True

    def _undone(self, kin: KinRecord, record: WorkflowRecord, state: int, context: Context) -> None:
        if state != DONE and not record.flawed:
            record = msgspec.structs.replace(record, flawed=True)
            self._ledger.tables.workflows.put(id_key(kin.workflow), record)
        self._close(kin.workflow, context)

    # --- stopping and forgetting ----------------------------------------------------------------

    def cancel(self, command: CancelWorkflow, context: Context) -> Signalled | Failure:
        """Cancel all that has not ended."""
        tables, key = self._ledger.tables, id_key(command.workflow)
        record = tables.workflows.get(key)
        if record is None:
            text = f"there is no workflow {command.workflow}, or not any more"
            return Failure(WorkflowNotFoundError.code, text)
        if record.state != WF_RUNNING:
            return Signalled(new=False)
        record = msgspec.structs.replace(record, state=WF_STOPPING, undo=command.undo, cause="")
        tables.workflows.put(key, record)
        tables.sweeps.put(key, SweepRecord(STOP_NODES, ""))
        tell_workflow(context, command.workflow, record, "stopping")
        return Signalled(new=True)

    # --- for workers ----------------------------------------------------------------------------

    def inputs(self, task: int) -> tuple[int, str, tuple[Input, ...]]:
        """Workflow, node and inputs of *task*; 0 if it belongs to none."""
        tables = self._ledger.tables
        kin = tables.kin.get(id_key(task))
        if kin is None:
            return 0, "", ()
        found: list[Input] = []
        size = 0
        for parent in kin.parents:
            ended, other = tables.ended.get(id_key(parent)), tables.kin.get(id_key(parent))
            name = "" if other is None else other.node
            if ended is None:
                state = DEAD if id_key(parent) in tables.dead else 0
                live = tables.live.get(id_key(parent))
                found.append(Input(name, parent, state if live is None else live.state, b""))
                continue
            size += len(ended.result)
            whole = size <= INPUTS_BYTES_MAX
            found.append(Input(name, parent, ended.state, ended.result if whole else None))
        return kin.workflow, kin.node, tuple(found)
