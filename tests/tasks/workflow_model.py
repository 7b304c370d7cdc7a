"""The rules of workflows as anybody would write them down: each node and whom it still waits for.

Tasks go to any worker that there is, as many as there are; which one, the machine chooses, and the
model takes over. All else is foretold: states, times, counts, inputs, the order of compensations.
What a workflow counts is not kept here but counted, of the nodes as they are.
"""

from __future__ import annotations

from collections import deque

from quorate.base.task_specs import (
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    NO_RETRY,
    READY,
    RUNNING,
    SCHEDULED,
)
from quorate.base.workflow_commands import (
    BLOCKING,
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
    Node,
    Spawn,
    Submit,
)
from tests.tasks.workflow_graphs import has_cycle, is_wrong
from tests.tasks.workflow_steps import LIVE, Flow, Step

#: How long a worker has to stop a task of a workflow that is stopped.
GRACE_MS = 30_000


class Model:
    """*sweep_max*: as many nodes of workflows are stopped or forgotten in one entry."""

    def __init__(self, sweep_max: int) -> None:
        self.sweep_max = sweep_max
        self.now = 0
        self.flows: dict[int, Flow] = {}
        self.steps: dict[int, Step] = {}
        self.of: dict[int, Flow] = {}  # by the id of a node
        self.hands: dict[int, str] = {}
        self.names: dict[int, str] = {0: ""}  # of all workers that ever were
        self.last_task = self.last_flow = 0
        self.told: list[tuple[str, int]] = []
        self.given: list[Step] = []  # in the entry at hand
        self._ended: deque[Step] = deque()
        self._settling = False

    def live(self) -> list[Step]:
        return [each for each in self.steps.values() if each.state in LIVE]

    def tell(self, what: str, flow: Flow) -> None:
        self.told.append((what, flow.id))

    # --- an entry -------------------------------------------------------------------------------

    def pass_to(self, now: int) -> None:
        """It begins."""
        self.now, self.told, self.given = now, [], []
        while due := [(each.due, each.id) for each in self.live() if 0 < each.due <= now]:
            self._act(self.steps[min(due)[1]])
        for flow in self.flows.values():
            if flow.ended and flow.sweep is None and flow.ended + flow.spec.keep_ms <= now:
                flow.sweep = ("forget", "")

    def _act(self, step: Step) -> None:
        if step.stopping:
            self.end(step, CANCELLED, "no-answer")
        elif step.state == RUNNING:
            self.fail(step, "timeout")
        elif step.state == SCHEDULED and step.after <= self.now:
            if step.kind == SLEEP:
                self.end(step, DONE)
            else:
                self.wait(step)
        else:
            self.end(step, DEAD, "expired")

    def finish(self) -> None:
        """It ends: what is stopped or forgotten, then what workers get."""
        room = self.sweep_max
        for flow in [each for _, each in sorted(self.flows.items()) if each.sweep]:
            if not flow.sweep or not room:
                continue
            what, behind = flow.sweep
            names = sorted(name for name in flow.nodes if name > behind)[:room]
            for name in names:
                if what == "stop":
                    self._stop(flow.nodes[name])
                else:
                    self._forget(flow, flow.nodes[name])
            room = max(room - max(len(names), 1), 0)
            if flow.sweep is None:  # the last node has ended by it
                continue
            flow.sweep = None if room else (what, names[-1] if names else behind)
            if room and what == "forget":
                del self.flows[flow.id]
        while self._round():
            pass

    def _round(self) -> bool:
        """Ready nodes, one after the other, until none is left in the lines that there were at the
        beginning. Those of a workflow that is being stopped end in the place of beginning."""
        lines = {each.pin for each in self._ready()}
        changed = False
        while found := [each for each in self._ready() if each.pin in lines]:
            changed = True
            step = min(found, key=lambda each: each.id)
            flow = self.of[step.id]
            if flow.sweep and flow.sweep[0] == "stop":
                self._stop(step)
            else:
                self._begin(step)
            if not any(each.pin == step.pin for each in self._ready()):
                lines.discard(step.pin)
        return changed

    def _ready(self) -> list[Step]:
        return [each for each in self.live() if each.state == READY and self.able(each)]

    def _begin(self, step: Step) -> None:
        step.state, step.begun, step.since = RUNNING, True, self.now
        step.attempt += 1
        timeout = step.options.timeout_ms
        step.due = self.now + timeout if timeout else 0
        self.given.append(step)

    def able(self, step: Step) -> list[int]:
        """Workers that may have it."""
        return [each for each, name in self.hands.items() if step.pin in ("", name)]

    def _stop(self, step: Step) -> None:
        if step.state == RUNNING:
            self.cancel(step, GRACE_MS)
        elif step.state in LIVE:
            self.end(step, CANCELLED, "workflow-stopped")

    def _forget(self, flow: Flow, step: Step) -> None:
        del flow.nodes[step.name], self.steps[step.id], self.of[step.id]
        if not step.undoes:
            flow.gone[step.state] = flow.gone.get(step.state, 0) + 1
        if flow.to_undo:
            flow.to_undo.pop(0)  # of which there are no more than nodes

    # --- what becomes of a task -----------------------------------------------------------------

    def wait(self, step: Step, wait_ms: int = 0) -> None:
        """No worker has it, and but for the time it could begin."""
        step.worker, step.stopping, step.since = 0, False, self.now
        step.after = self.now + wait_ms if wait_ms else 0
        step.state = SCHEDULED if wait_ms else READY
        step.due = min((each for each in (step.after, step.expires) if each), default=0)

    def cancel(self, step: Step, grace_ms: int) -> None:
        if step.state != RUNNING:
            self.end(step, CANCELLED)
        elif not step.stopping:
            step.stopping, step.due = True, max(self.now + grace_ms, 1)

    def fail(self, step: Step, kind: str, *, final: bool = False) -> None:
        retry = step.options.retry or NO_RETRY
        step.errors += 1
        if step.stopping:
            self.end(step, CANCELLED, kind)
        elif final or step.errors > retry.retries:
            self.end(step, DEAD, kind)
        else:
            self.wait(step, int(min(retry.base_ms * retry.factor ** (step.errors - 1),
                                    retry.max_ms)))  # fmt: skip

    def lose(self, worker: int) -> None:
        """A worker dies."""
        for step in sorted(self.live(), key=lambda each: each.id):
            if step.worker != worker:
                continue
            if step.stopping:
                self.end(step, CANCELLED, "crashed")
                continue
            step.crashes += 1
            if step.crashes > step.options.crashes:
                self.end(step, DEAD, "crashed")
            else:
                self.wait(step)
        del self.hands[worker]

    def give_back(self, step: Step) -> None:
        if step.stopping:
            self.end(step, CANCELLED)
        else:
            self.wait(step)

    def end(self, step: Step, state: int, why: str = "", result: bytes = b"") -> None:
        """Whatever the end is, others hear of it, one after the other."""
        step.state, step.why, step.result, step.due, step.stopping = state, why, result, 0, False
        step.gated = False
        self._ended.append(step)
        if self._settling:
            return
        self._settling = True
        while self._ended:
            self._settle(self._ended.popleft())
        self._settling = False

    # --- what follows from it -------------------------------------------------------------------

    def _settle(self, step: Step) -> None:
        flow, done = self.of[step.id], step.state == DONE
        step.settled = True
        if step.undoes:
            flow.flawed = flow.flawed or not done
            self._close(flow)
            return
        if done and step.undo:
            flow.to_undo.append(step)
        if not done and flow.state == WF_RUNNING:
            flow.undo = flow.undo or not flow.cause
            flow.cause = flow.cause or step.name
            if flow.spec.fail_fast and flow.left:
                self._halt(flow)
        for child in sorted(flow.own, key=lambda each: each.id):
            how = child.waits.pop(step.id, 0)
            if not how or child.state != BLOCKED:
                continue
            if how == BLOCKING and not done:
                self.end(child, CANCELLED, "upstream")
            else:
                self._look_at(flow, child)
        if flow.state == WF_RUNNING:
            for child in sorted(flow.own, key=lambda each: each.id):
                if child.gated:
                    self._look_at(flow, child)
        self._close(flow)

    def _halt(self, flow: Flow) -> None:
        flow.state, flow.sweep = WF_STOPPING, ("stop", "")
        self.tell("stopping", flow)

    def _look_at(self, flow: Flow, step: Step) -> None:
        """It begins, if it waits for nothing any more and there is room for it."""
        if step.state != BLOCKED or step.waits:
            return
        delay = step.spec.delay_ms
        if step.kind == SIGNAL:
            if step.payload is not None:
                self.end(step, DONE, result=step.payload)
        elif step.kind == SLEEP and not delay:
            self.end(step, DONE)
        elif step.kind == SLEEP or step.undoes or (
            not flow.spec.running_max or flow.active < flow.spec.running_max
        ):  # fmt: skip
            step.gated = False
            if step.beside:
                step.pin = self.names[self.steps[step.beside].worker]
            self.wait(step, delay)
        else:
            step.gated = True

    def _close(self, flow: Flow) -> None:
        if flow.left:
            return
        flow.sweep = None
        if flow.undo and flow.to_undo:
            done = flow.to_undo.pop()
            if flow.state != WF_COMPENSATING:
                flow.state = WF_COMPENSATING
                self.tell("compensating", flow)
            assert done.undo is not None
            step = self._enter(flow, Step(0, "undo " + done.name, done.undo, undoes=done.id,
                                          parents=[done.id], kinds=[BLOCKING]))  # fmt: skip
            self._look_at(flow, step)
            return
        if flow.state == WF_COMPENSATING:
            flow.state = WF_FAILED if flow.flawed else WF_COMPENSATED
        elif flow.cause:
            flow.state = WF_FAILED
        else:
            flow.state = WF_CANCELLED if flow.state == WF_STOPPING else WF_DONE
        flow.ended = max(self.now, 1)
        self.tell(WORKFLOW_STATE_NAMES[flow.state], flow)

    # --- commands -------------------------------------------------------------------------------

    def _enter(self, flow: Flow, step: Step) -> Step:
        self.last_task += 1
        step.id, step.enqueued, step.since = self.last_task, self.now, self.now
        step.due = step.expires
        self.steps[step.id] = flow.nodes[step.name] = step
        self.of[step.id] = flow
        return step

    def submit(self, command: Submit) -> Flow | None:
        """None: refused."""
        if is_wrong(command.nodes, {}):
            return None
        self.last_flow += 1
        flow = self.flows[self.last_flow] = Flow(self.last_flow, command, self.now)
        self.tell("started", flow)
        self.add(flow, command.nodes)
        return flow

    def add(self, flow: Flow, nodes: tuple[Node, ...], joins: tuple[Step, ...] = ()) -> None:
        """*nodes* are new, and *joins* wait for them too."""
        flow.total += len(nodes)
        new = [self._enter(flow, Step(0, each.name, each.task, each.kind, each.undo))
               for each in nodes]  # fmt: skip
        for step, node in zip(new, nodes, strict=True):
            step.parents = [flow.nodes[each.node].id for each in node.after]
            step.kinds = [each.kind for each in node.after]
            step.beside = flow.nodes[node.beside].id if node.beside else 0
            step.waits = {
                id_: kind for id_, kind in zip(step.parents, step.kinds, strict=True)
                if kind != WEAK and self.steps[id_].state in LIVE
            }  # fmt: skip
        for join in joins:
            join.waits |= {each.id: BLOCKING for each in new}
            if join.state in LIVE:
                join.parents += [each.id for each in new]
                join.kinds += [BLOCKING] * len(new)
        for step in [each for each in new if not each.waits]:
            self._look_at(flow, step)

    def may_spawn(self, command: Spawn, new: tuple[Node, ...]) -> bool:
        """Whether the running task may add the nodes that are *new*."""
        flow, nodes = self.of[command.task], self.of[command.task].nodes
        lost = [each for node in new for each in node.after
                if each.kind == BLOCKING and each.node in nodes
                and nodes[each.node].state in (DEAD, CANCELLED)]  # fmt: skip
        if flow.state != WF_RUNNING or lost or is_wrong(new, nodes):
            return False
        if any(each not in nodes or command.task not in nodes[each].waits
               for each in command.before):  # fmt: skip
            return False
        waits = {each.name: [self.steps[id_].name for id_ in each.waits]
                 for each in nodes.values() if each.state == BLOCKED}  # fmt: skip
        for node in new:
            waits[node.name] = [each.node for each in node.after if each.kind != WEAK]
        for name in command.before:
            if name in waits:
                waits[name] += [each.name for each in new]
        return not has_cycle(waits)

    def stop(self, flow: Flow, *, undo: bool) -> bool:
        if flow.state != WF_RUNNING:
            return False
        flow.undo, flow.cause = undo, ""
        self._halt(flow)
        return True

    def signal(self, flow: Flow, step: Step, payload: bytes) -> bool:
        if step.payload is not None or step.state not in LIVE:
            return False
        step.payload = payload
        self._look_at(flow, step)
        return True
