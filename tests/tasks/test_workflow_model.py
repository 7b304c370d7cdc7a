"""Whatever becomes of their nodes: workflows of the machine against those of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from quorate.base.lease_commands import RevokeLease
from quorate.base.results import Failure
from quorate.base.task_commands import (
    Attend,
    Cancel,
    Changed,
    Complete,
    Done,
    Fail,
    Failed,
    GiveBack,
    Held,
    Requeue,
    Settlement,
    Stale,
)
from quorate.base.task_queries import Assigned
from quorate.base.task_specs import BLOCKED, CANCELLED, DEAD, DONE, RUNNING, Task
from quorate.base.workflow_commands import (
    SIGNAL,
    After,
    CancelWorkflow,
    ListNodes,
    ListWorkflows,
    Node,
    Signal,
    Signalled,
    Spawn,
    Submit,
    Submitted,
    WorkflowEvent,
)
from quorate.tasks import workflow_sweeps
from quorate.tasks.records import id_of, pair_key
from tests import sharing
from tests.tasks.support import TaskNode
from tests.tasks.workflow_graphs import ONCE, graphs, renamed
from tests.tasks.workflow_model import Model
from tests.tasks.workflow_steps import LIVE, Flow, Step

#: So few nodes are stopped or forgotten in one entry that it takes several.
SWEEP_MAX = 3
LEASE_MS = 3_600_000
NAMES = ("n", "m", "n")
some = st.integers(0, 99)
times = st.sampled_from((0, 0, 0, 0, 1, 100, 200, 250, 500, 1_000, 30_000))
#: Break the command after so many moves of tasks; None: do not.
breaks = st.sampled_from((*[None] * 12, 0, 1, 99))


class WorkflowsAgainstAModel(RuleBasedStateMachine):
    """*node* restarts, *twin* never does; *model* is what both should be."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(workflow_sweeps, "SWEEP_NODES_MAX", SWEEP_MAX)
        self.node, self.twin, self.model = TaskNode(), TaskNode(), Model(SWEEP_MAX)
        self.node.time_ms = 1_000
        self.leases: dict[int, int] = {}
        self.register()

    def teardown(self) -> None:
        self.patch.undo()

    # --- entries --------------------------------------------------------------------------------

    def entry(self, machine: str, commands: list[Any], judge: Callable[[list[Any]], None]) -> None:
        """One entry on both nodes; *judge* does the same to the model."""
        results = self.node.run(machine, *commands)
        self.follow()
        model = self.model
        model.pass_to(self.node.time_ms)
        judge(results)
        model.finish()
        self.check()

    def follow(self) -> None:
        self.twin.time_ms = self.node.time_ms
        for payload in self.node.log[len(self.twin.log) :]:
            self.twin.feed(payload)
        assert self.twin.machines.state_hash == self.node.machines.state_hash

    def do(
        self, command: Any, foretell: Callable[[], Any], ms: int = 0, broken: int | None = None
    ) -> None:
        """*foretell*: the same to the model, and the result; None: it is refused."""
        self.node.time_ms += ms
        for node in (self.node, self.twin):
            node.tasks.breaks = {} if broken is None else {0: broken}

        def judge(results: list[Any]) -> None:
            expected = None if broken is not None else foretell()
            if expected is None:
                assert isinstance(results[0], Failure), results[0]
            else:
                assert results[0] == expected

        # Failures in a row count nothing here: the crew is always well.
        self.entry("tasks", [command, *map(Attend, self.model.hands)], judge)
        for node in (self.node, self.twin):
            node.tasks.breaks = {}

    # --- choosing -------------------------------------------------------------------------------

    def step(self, at: int, *states: int) -> Step | None:
        """A node in one of *states*."""
        found = [each for each in self.model.steps.values() if each.state in (states or (RUNNING,))]
        return found[at % len(found)] if found else None

    def flow(self, at: int) -> Flow | None:
        found = list(self.model.flows.values())
        return found[-1 - at % len(found)] if found else None

    # --- what may happen ------------------------------------------------------------------------

    @rule(
        nodes=graphs(), fail_fast=st.booleans(), running_max=st.sampled_from((0, 0, 1, 2)),
        keep_ms=st.sampled_from((0, 500, 60_000)), ms=times, broken=breaks,
    )  # fmt: skip
    def submit(
        self, nodes: tuple[Node, ...], running_max: int, keep_ms: int, ms: int, broken: Any,
        *, fail_fast: bool,
    ) -> None:  # fmt: skip
        command = Submit("flow", nodes, fail_fast, running_max, keep_ms)

        def foretell() -> Any:
            flow = self.model.submit(command)
            return flow and Submitted(flow.id, tuple(flow.nodes[each.name].id for each in nodes))

        self.do(command, foretell, ms, broken)

    @rule(at=some, data=st.data(), stale=st.booleans(), broken=breaks)
    def spawn(self, at: int, data: Any, broken: Any, *, stale: bool) -> None:
        waited_for = {id_ for each in self.model.live() for id_ in each.waits}
        found = [each for each in self.model.live() if each.state == RUNNING]
        found = [each for each in found if each.id in waited_for] or found
        if not found:
            return
        step = found[at // 2 % len(found)]
        flow = self.model.of[step.id]
        there = tuple(name for name, each in flow.nodes.items() if not each.undoes)
        nodes = data.draw(graphs(there))
        if at % 4:  # names of their own
            own = {each.name for each in nodes} - set(there[: at % 4])
            nodes = tuple(renamed(each, own) for each in nodes)
        waiting = [each.name for each in flow.own if step.id in each.waits]
        names = st.sampled_from(waiting if waiting and at % 5 else [*there, "z"])
        before = tuple(data.draw(st.lists(names, max_size=2)))
        attempt = step.attempt + (stale and at % 5 == 0)
        command = Spawn(step.worker, step.id, attempt, nodes, before)

        def foretell() -> Any:
            return self.spawned(command, step)

        self.do(command, foretell, 0, broken)

    def spawned(self, command: Spawn, step: Step) -> Any:
        model, flow = self.model, self.model.of[step.id]
        if command.attempt != step.attempt:
            return self.stale(step)
        new = tuple(each for each in command.nodes if each.name not in flow.nodes)
        if not model.may_spawn(command, new):
            return None
        model.add(flow, new, tuple(flow.nodes[name] for name in dict.fromkeys(command.before)))
        ids = tuple(flow.nodes[each.name].id if each in new else 0 for each in command.nodes)
        return Submitted(flow.id, ids)

    def stale(self, step: Step) -> Any:
        """What whoever is late is told; *step* is as it is now."""
        return Settlement((Stale(step.id, step.state, step.attempt, step.worker),))

    @rule(at=some, ms=times, broken=breaks)
    def complete(self, at: int, ms: int, broken: Any) -> None:
        self.settle(at, ms, broken, lambda step: Complete(
            step.worker, (Done(step.id, step.attempt, b"r"),)),
            lambda step: self.model.end(step, DONE, result=b"r"))  # fmt: skip

    @rule(at=some)
    def complete_at_once(self, at: int) -> None:
        self.complete(at, 0, None)

    @rule(at=some, final=st.booleans(), ms=times, broken=breaks)
    def fail(self, at: int, ms: int, broken: Any, *, final: bool) -> None:
        self.settle(at, ms, broken, lambda step: Fail(
            step.worker, (Failed(step.id, step.attempt, "Bad", final=final),)),
            lambda step: self.model.fail(step, "Bad", final=final))  # fmt: skip

    @rule(at=some, broken=breaks)
    def give_back(self, at: int, broken: Any) -> None:
        self.settle(at, 0, broken, lambda step: GiveBack(
            step.worker, (Held(step.id, step.attempt),)), self.model.give_back)  # fmt: skip

    def settle(
        self, at: int, ms: int, broken: Any, command: Callable[[Step], Any],
        act: Callable[[Step], None],
    ) -> None:  # fmt: skip
        step = self.step(at)
        if step is None:
            return
        worker, attempt = step.worker, step.attempt

        def foretell() -> Any:
            now = self.model.steps.get(step.id)
            if now is None:
                return Settlement((Stale(step.id, 0, 0, 0),))
            if (now.worker, now.attempt, now.state) != (worker, attempt, RUNNING):
                return self.stale(now)
            act(now)
            return Settlement(())

        self.do(command(step), foretell, ms, broken)

    @rule(at=some, ms=times, broken=breaks)
    def signal(self, at: int, ms: int, broken: Any) -> None:
        flow = self.flow(at)
        if flow is None:
            return
        found = [each.name for each in flow.own if each.kind == SIGNAL] or [*flow.nodes, "z"]
        if at % 10 == 0:
            found = [*flow.nodes, "z"]
        self.tell(flow, found[at % len(found)], b"%d" % at, ms, broken)

    def tell(self, flow: Flow, name: str, payload: bytes, ms: int, broken: Any) -> None:
        def foretell() -> Any:
            step = flow.nodes.get(name) if flow.id in self.model.flows else None
            if step is None or step.kind != SIGNAL:
                return None
            return Signalled(self.model.signal(flow, step, payload))

        self.do(Signal(flow.id, name, payload), foretell, ms, broken)

    @rule(at=some, undo=st.booleans(), ms=times, broken=breaks)
    def cancel_workflow(self, at: int, ms: int, broken: Any, *, undo: bool) -> None:
        flow = self.flow(at)
        if flow is not None:

            def foretell() -> Any:
                if flow.id not in self.model.flows:
                    return None
                return Signalled(self.model.stop(flow, undo=undo))

            self.do(CancelWorkflow(flow.id, undo), foretell, ms, broken)

    @rule(at=some, broken=breaks)
    def cancel(self, at: int, broken: Any) -> None:
        step = self.step(at, *LIVE)
        if step is not None and at % 3 == 0:

            def foretell() -> Any:
                if step.state not in LIVE:
                    return Changed(())
                self.model.cancel(step, 100)
                return Changed((step.id,))

            self.do(Cancel((step.id,), grace_ms=100), foretell, 0, broken)

    @rule(at=some)
    def requeue(self, at: int) -> None:
        task = 1 + at % (self.model.last_task + 1)  # nothing of a workflow is ever requeued
        self.do(Requeue((task,)), lambda: Changed(()))

    @rule(ms=times)
    def pass_by(self, ms: int) -> None:
        self.node.time_ms += ms
        self.entry("tasks", [], lambda _: None)

    @rule()
    def register(self) -> None:
        if len(self.model.hands) < 2:
            lease, name = self.node.lease(LEASE_MS), NAMES[len(self.model.names) % len(NAMES)]
            self.model.pass_to(self.node.time_ms)
            self.model.finish()  # of the entry of the lease
            worker = self.node.worker(name, 1_000, lease=lease)
            self.follow()
            self.leases[worker] = lease
            self.model.pass_to(self.node.time_ms)
            self.model.hands[worker] = self.model.names[worker] = name
            self.model.finish()
            self.check()

    @rule(at=some, ms=times)
    def die(self, at: int, ms: int) -> None:
        hands = list(self.model.hands)
        if hands and at % 2:
            worker = hands[at % len(hands)]
            self.node.time_ms += ms
            lease = RevokeLease(self.leases.pop(worker))
            self.entry("leases", [lease], lambda _: self.model.lose(worker))

    @rule()
    def restart(self) -> None:
        self.node.restart()

    @rule(at=some)
    def end_of_all(self, at: int) -> None:
        """With workers that come to an end with what they get, most often a good one, and all
        signals, every workflow ends."""
        if not self.model.hands:
            self.register()
        grown: set[int] = set()
        for turn in range(200):
            awaited = [each for each in self.model.live()
                       if each.kind == SIGNAL and each.payload is None]  # fmt: skip
            chosen = at * (turn + 1)
            found = [each for each in self.model.live() if each.state == RUNNING]
            if turn == 2 and at % 4 == 3:
                self.cancel_workflow(0, 0, None, undo=at % 8 == 7)
            step = found[chosen % len(found)] if found else None
            if step and step.id not in grown and chosen % 3 != 1:
                grown.add(step.id)
                self.grow(step, chosen)
            if self.step(0) is not None and chosen % 7 == 6:
                self.fail(chosen, 0, None, final=True)
            elif self.step(0) is not None:
                self.complete(chosen, 0, None)
            elif awaited:
                self.tell(self.model.of[awaited[0].id], awaited[0].name, b"", 0, None)
            elif self.model.live() or not all(each.ended for each in self.model.flows.values()):
                self.pass_by(250)
            else:
                return
        pinned = {each.pin for each in self.model.live()}
        assert pinned - {"", *self.model.hands.values()}, "only who waits for somebody may"

    def grow(self, step: Step, at: int) -> None:
        """A node more, before one that waits for *step*."""
        flow = self.model.of[step.id]
        joins = [each.name for each in flow.own if step.id in each.waits]
        blocked = [each.name for each in flow.own if each.state == BLOCKED]
        if joins and step.state == RUNNING and step.name[0] != "x":  # or there is no end of it
            after = (After(blocked[at % len(blocked)]),) if blocked and at % 3 == 2 else ()
            node = Node(f"x{step.id}", Task("f", options=ONCE), after)
            before = (joins[at % len(joins)],) * (1 + at % 2)
            command = Spawn(step.worker, step.id, step.attempt, (node,), before)
            self.do(command, lambda: self.spawned(command, step))

    # --- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        self.check_handed()
        self.check_nodes()
        self.check_tables()
        model, told = self.model, [
            (event.what, event.workflow) for _, event in self.node.told
            if isinstance(event, WorkflowEvent) and event.what != "progress"
        ]  # fmt: skip
        assert told == model.told
        for flow in model.flows.values():
            assert flow.ended or flow.sweep or any(
                each.state in LIVE for each in flow.nodes.values()
            ), f"workflow {flow.id} has nothing left to do, and has not ended"  # fmt: skip

    def check_handed(self) -> None:
        """Who got what, with what came before it."""
        model = self.model
        got = {(int.from_bytes(keys[0][1:], "big"), each.task): each
               for keys, event in self.node.told if isinstance(event, Assigned)
               for each in event.tasks}  # fmt: skip
        assert sorted(task for _, task in got) == sorted(each.id for each in model.given)
        for (worker, task), each in got.items():
            step = model.steps[task]
            assert worker in model.able(step)
            step.worker = worker
            assert (each.workflow, each.node, each.running) == (
                model.of[task].id, step.name, True)  # fmt: skip
            parents = [model.steps[id_] for id_ in step.parents]
            assert [tuple(msgspec.structs.astuple(found)) for found in each.inputs] == [
                (found.name, found.id, found.state, found.result) for found in parents]  # fmt: skip

    def check_nodes(self) -> None:
        """What anybody sees of workflows and nodes, and what stands in the tables of tasks."""
        model, node = self.model, self.node
        assert list(node.ask(ListWorkflows()).workflows) == [
            each.info() for _, each in sorted(model.flows.items())]  # fmt: skip
        for flow in model.flows.values():
            found = node.ask(ListNodes(flow.id)).nodes
            assert [(each.name, each.task, each.kind, each.state, each.attempt, each.result,
                     each.error_kind, list(each.after), list(each.after_kinds))
                    for each in found] == [
                (name, each.id, each.kind, each.state, each.attempt, each.result, each.why,
                 each.parents, each.kinds)
                for name, each in sorted(flow.nodes.items())]  # fmt: skip
        tables = node.tasks.ledger.tables
        assert [(id_of(key), each.state, each.enqueued_ms, each.since_ms, each.due_ms, each.attempt,
                 each.worker, each.errors, each.crashes, each.after_ms, each.begun, each.stopping,
                 each.pin) for key, each in tables.live.items()] == [
            (each.id, each.state, each.enqueued, each.since, each.due, each.attempt, each.worker,
             each.errors, each.crashes, each.after, each.begun, each.stopping, each.pin)
            for each in sorted(model.live(), key=lambda each: each.id)]  # fmt: skip

    def check_tables(self) -> None:
        """There is no more than is needed."""
        model, tables = self.model, self.node.tasks.ledger.tables
        steps = sorted(model.steps.values(), key=lambda each: each.id)
        ended = [each.id for each in steps if each.state in (DONE, CANCELLED)]
        assert [id_of(key) for key, _ in tables.ended.items()] == ended
        dead = [each.id for each in steps if each.state == DEAD]
        assert [id_of(key) for key, _ in tables.dead.items()] == dead
        assert len(tables.specs) == len(model.live()) + len(dead)
        assert {id_of(key) for key, _ in tables.kin.items()} == {each.id for each in steps}
        assert {(id_of(key[:8]), id_of(key)): each.number for key, each in tables.children.items()
                } == {(parent, each.id): how
                      for each in steps for parent, how in each.waits.items()}  # fmt: skip
        assert set(tables.gated.keys()) == {
            pair_key(model.of[each.id].id, each.id) for each in steps if each.gated}  # fmt: skip
        assert len(tables.signals) == sum(each.payload is not None for each in steps)
        assert {id_of(key) for key, _ in tables.compensations.items()} == {
            each.id for each in steps if each.undo and not each.settled}  # fmt: skip
        assert len(tables.undo) == sum(len(each.to_undo) for each in model.flows.values())
        assert {id_of(key): each.after for key, each in tables.sweeps.items()} == {
            each.id: each.sweep[1] for each in model.flows.values() if each.sweep}  # fmt: skip


TestWorkflowsAgainstAModel = WorkflowsAgainstAModel.TestCase
TestWorkflowsAgainstAModel.settings = settings(
    max_examples=sharing.examples(60), stateful_step_count=30, deadline=None
)


@pytest.mark.deep
def test_for_long() -> None:
    search = settings(max_examples=1_500, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(WorkflowsAgainstAModel, settings=search)
