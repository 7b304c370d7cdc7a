"""What concerns all nodes of a workflow - to stop it, to forget it - a part in each entry."""

from __future__ import annotations

from typing import Final

from quorate.base.task_specs import ASSIGNED, CANCELLED, RUNNING
from quorate.replication.deadlines import Deadlines
from quorate.replication.machine import Context
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.records import (
    FORGET_NODES,
    STOP_NODES,
    SweepRecord,
    WorkflowRecord,
    id_key,
    id_of,
    node_key,
)

#: Nodes that one entry deals with for a workflow that is stopped or forgotten: some 10 ms.
SWEEP_NODES_MAX: Final = 500
#: How long workers have to stop tasks of a workflow that is stopped.
STOP_GRACE_MS: Final = 30_000

STOPPED: Final = "workflow-stopped"


class Sweeper:
    """Goes over the nodes of workflows that are stopped or forgotten, by workflow and name."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life
        self.forgetting = Deadlines(self._forget_at)

    def load(self) -> None:
        """The tables are new."""
        self.forgetting.load(
            (record.ended_ms + record.keep_ms, id_of(key))
            for key, record in self._ledger.tables.workflows.items()
            if record.ended_ms
        )

    def _forget_at(self, workflow: int) -> int | None:
        found = self._ledger.tables.workflows.get(id_key(workflow))
        if found is None or not found.ended_ms or id_key(workflow) in self._ledger.tables.sweeps:
            return None
        return found.ended_ms + found.keep_ms

    def forget_later(self, workflow: int, record: WorkflowRecord) -> None:
        """*workflow* has ended."""
        self.forgetting.add(record.ended_ms + record.keep_ms, workflow)

    def expire(self, now_ms: int) -> None:
        """Workflows whose time to be known is over."""
        for workflow in self._ledger.due(self.forgetting, now_ms):
            self._ledger.tables.sweeps.put(id_key(workflow), SweepRecord(FORGET_NODES, ""))

    def sweep(self, context: Context) -> None:
        """A part of what concerns all nodes of workflows that are stopped or forgotten."""
        tables = self._ledger.tables
        room = SWEEP_NODES_MAX
        for key, sweep in list(tables.sweeps.range(limit=SWEEP_NODES_MAX)):
            workflow = id_of(key)
            if key not in tables.sweeps:
                continue
            start = node_key(workflow, sweep.after) + (b"\0" if sweep.after else b"")
            end = id_key(workflow + 1)
            rows = list(tables.nodes.range(start, end, limit=room))
            for row, node in rows:
                if sweep.what == STOP_NODES:
                    self.stop(node.number, context)
                else:
                    self._forget(row, node.number)
            room -= max(len(rows), 1)
            if key in tables.sweeps:
                last = rows[-1][0][8:].decode() if rows else ""
                self._go_on(key, sweep, last, whole=room > 0)
            if room <= 0:
                return

    def _go_on(self, key: bytes, sweep: SweepRecord, last: str, *, whole: bool) -> None:
        tables = self._ledger.tables
        if not whole:
            tables.sweeps.put(key, SweepRecord(sweep.what, last or sweep.after))
            return
        tables.sweeps.delete(key)
        if sweep.what == FORGET_NODES:
            tables.workflows.delete(key)

    def is_stopped(self, task: int) -> bool:
        """Whether it is of a workflow that is being stopped, and does not begin any more, though
        no entry may have come to it."""
        tables = self._ledger.tables
        if not tables.sweeps.size():
            return False
        kin = tables.kin.get(id_key(task))
        sweep = None if kin is None else tables.sweeps.get(id_key(kin.workflow))
        return sweep is not None and sweep.what == STOP_NODES

    def stop(self, task: int, context: Context) -> None:
        """End a node that runs nowhere; tell the worker of one that runs."""
        tables, key = self._ledger.tables, id_key(task)
        live, spec = tables.live.get(key), tables.specs.get(key)
        if live is None or spec is None:
            return
        if live.state == RUNNING:
            if not live.stopping:
                self._life.stop(task, spec, live, STOP_GRACE_MS, context)
            return
        if live.state == ASSIGNED:
            self._life.take_back(live.worker, task, live.attempt, context)
        error = "its workflow was stopped"
        self._life.end(task, spec, live, CANCELLED, context, b"", STOPPED, error)

    def _forget(self, row: bytes, task: int) -> None:
        tables, key = self._ledger.tables, id_key(task)
        tables.nodes.delete(row)
        tables.kin.delete(key)
        tables.ended.delete(key)
        tables.signals.delete(row)
        if tables.dead.delete(key) is not None:  # nobody could tell any more that it is a node
            tables.specs.delete(key)
        # Compensations that nobody asked for: at most one for each node.
        undo = next(tables.undo.range_prefix(row[:8], limit=1), None)
        if undo is not None:
            tables.undo.delete(undo[0])
