"""Each rule of workflows, by itself."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.base.limits import MIB, REPLY_BYTES_MAX
from quorate.base.results import Failure
from quorate.base.task_commands import Attend, Cancel, Requeue
from quorate.base.task_queries import WatchWorker
from quorate.base.task_specs import BLOCKED, CANCELLED, DEAD, DONE, READY, RUNNING, SCHEDULED, Task
from quorate.base.workflow_commands import (
    OPTIONAL,
    SIGNAL,
    SLEEP,
    WEAK,
    WF_CANCELLED,
    WF_COMPENSATED,
    WF_DONE,
    WF_FAILED,
    WF_RUNNING,
    WORKFLOW_STATE_NAMES,
    After,
    CancelWorkflow,
    ListNodes,
    ListWorkflows,
    Node,
    NodeInfo,
    Signal,
    Spawn,
    Submit,
    Submitted,
    WorkflowEvent,
    WorkflowInfo,
    WorkflowQuery,
)
from tests.tasks.support import WALL_AHEAD_MS, TaskNode


class Flow:
    """A workflow on a node with one strong worker."""

    def __init__(self, *nodes: Node, load: int = 100, **more: Any) -> None:
        self.node = TaskNode()
        self.worker = self.node.worker(load=load)
        result = self.node.one(Submit("flow", nodes, **more))
        assert isinstance(result, Submitted), result
        self.id = result.workflow
        self.ids = dict(zip([each.name for each in nodes], result.tasks, strict=True))

    def nodes(self) -> dict[str, NodeInfo]:
        return {each.name: each for each in self.node.ask(ListNodes(self.id)).nodes}

    def states(self) -> dict[str, int]:
        return {name: each.state for name, each in self.nodes().items()}

    def info(self) -> WorkflowInfo:
        found = self.node.ask(WorkflowQuery(self.id))
        assert isinstance(found, WorkflowInfo), found
        return found

    def _running(self, name: str) -> tuple[int, int]:
        found = self.nodes()[name]
        assert found.state == RUNNING, (name, found)
        return found.task, found.attempt

    def done(self, name: str, result: bytes = b"") -> None:
        assert self.node.done(self.worker, *self._running(name), result).stale == ()

    def fail(self, name: str) -> None:
        assert self.node.fail(self.worker, *self._running(name), final=True).stale == ()
        self.node.one(Attend(self.worker))


def run(name: str, *after: str | After, **more: Any) -> Node:
    waits = tuple(After(each) if isinstance(each, str) else each for each in after)
    return Node(name, Task("f"), waits, **more)


def diamond(**more: Any) -> Flow:
    return Flow(run("a"), run("b", "a"), run("c", "a"), run("d", "b", "c"), **more)


def test_a_diamond_runs_in_its_order_and_hands_results_on() -> None:
    flow = diamond()
    assert flow.states() == {"a": RUNNING, "b": BLOCKED, "c": BLOCKED, "d": BLOCKED}
    flow.done("a", b"1")
    assert flow.states() == {"a": DONE, "b": RUNNING, "c": RUNNING, "d": BLOCKED}
    flow.done("c", b"3")
    assert flow.states()["d"] == BLOCKED
    flow.done("b", b"2")
    ((_, event),) = [each for each in flow.node.told if hasattr(each[1], "tasks")]
    (assignment,) = event.tasks
    assert (assignment.workflow, assignment.node) == (flow.id, "d")
    assert [(each.node, each.result) for each in assignment.inputs] == [("b", b"2"), ("c", b"3")]
    flow.done("d")
    assert (flow.info().state, flow.info().done) == (WF_DONE, 4)
    events = [each.what for _, each in flow.node.told if isinstance(each, WorkflowEvent)]
    assert events == ["done"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ((run("a", "b"), run("b", "a")), "in a cycle: 'a', 'b'"),
        ((run("a", "a"),), "in a cycle: 'a'"),
        ((run("a", "x"),), "waits for 'x', which is not there"),
        ((run("a"), run("a")), "two nodes 'a'"),
        ((run("a"), run("b", "a", "a")), "the same node twice"),
    ],
)
def test_what_is_no_workflow_is_refused_whole(nodes: tuple[Node, ...], said: str) -> None:
    node = TaskNode()
    result = node.one(Submit("flow", nodes))
    assert isinstance(result, Failure)
    assert result.code == "bad-workflow"
    assert said in result.message
    assert node.ask(ListWorkflows()).workflows == ()
    assert node.system().ready == 0


def test_fail_fast_stops_the_rest() -> None:
    flow = Flow(run("a"), run("b"), run("c", "b"), run("d"), load=2)
    assert flow.states() == {"a": RUNNING, "b": RUNNING, "c": BLOCKED, "d": READY}
    flow.fail("a")
    states = flow.states()
    assert (states["a"], states["c"], states["d"]) == (DEAD, CANCELLED, CANCELLED)
    assert [(task, why) for _, task, _, why in flow.node.stops()] == []
    assert flow.node.info(flow.ids["b"]).stopping
    flow.done("b")
    info = flow.info()
    assert (WORKFLOW_STATE_NAMES[info.state], info.cause) == ("failed", "a")
    assert (info.done, info.dead, info.cancelled) == (1, 1, 2)


def test_without_fail_fast_what_does_not_depend_on_it_goes_on() -> None:
    flow = Flow(
        run("a"),
        run("b", "a"),
        run("c", After("a", OPTIONAL)),
        run("d", "b"),
        run("e"),
        run("f", After("a", WEAK), After("b", OPTIONAL)),
        fail_fast=False,
    )
    flow.fail("a")
    states = flow.states()
    assert (states["b"], states["d"]) == (CANCELLED, CANCELLED)
    assert (states["c"], states["e"], states["f"]) == (RUNNING, RUNNING, RUNNING)
    assert flow.nodes()["b"].error_kind == "upstream"
    for name in "cef":
        flow.done(name)
    assert (flow.info().state, flow.info().cause) == (WF_FAILED, "a")


def test_a_weak_one_is_not_waited_for() -> None:
    flow = Flow(run("a"), run("b", After("a", WEAK)))
    assert flow.states() == {"a": RUNNING, "b": RUNNING}


def test_compensation_undoes_what_was_done_the_last_first() -> None:
    undo = Task("undo", b"x")
    flow = Flow(
        run("a", undo=undo), run("b", "a", undo=undo), run("c", "b", undo=undo), run("d", "c")
    )
    for name in "abc":
        flow.done(name, name.encode())
    flow.fail("d")
    order = []
    for name in ("undo c", "undo b", "undo a"):
        running = [each for each, state in flow.states().items() if state == RUNNING]
        assert running == [name]
        order += running
        flow.done(name)
    assert flow.info().state == WF_COMPENSATED
    assert order == ["undo c", "undo b", "undo a"]


def test_a_compensation_that_fails_is_said_and_the_others_run() -> None:
    undo = Task("undo")
    flow = Flow(run("a", undo=undo), run("b", "a", undo=undo), run("c", "b"))
    flow.done("a")
    flow.done("b")
    flow.fail("c")
    flow.fail("undo b")
    flow.done("undo a")
    assert flow.info().state == WF_FAILED


def test_no_more_of_it_at_once_than_it_says() -> None:
    flow = Flow(*[run(name) for name in "abcde"], running_max=2)
    assert [flow.states()[name] for name in "abcde"] == [RUNNING, RUNNING, *[BLOCKED] * 3]
    flow.done("a")
    assert flow.states()["c"] == RUNNING
    for name in "bcde":
        flow.done(name)
    assert flow.info().state == WF_DONE


def test_a_worker_that_comes_back_is_told_of_workflow_and_inputs_again() -> None:
    flow = Flow(run("a"), run("b", "a"))
    flow.done("a", b"x")
    (assigned,) = flow.node.tasks.watch(WatchWorker(flow.worker)).backlog
    (assignment,) = assigned.tasks
    assert (assignment.workflow, assignment.node) == (flow.id, "b")
    assert [each.result for each in assignment.inputs] == [b"x"]
    assert assignment.reason == "least-loaded"


def test_sleeping_is_durable() -> None:
    flow = Flow(
        run("a"),
        Node("nap", Task("-", delay_ms=5_000), (After("a"),), SLEEP),
        Node("b", Task("f", delay_ms=1_000), (After("nap"),)),
    )
    flow.done("a")
    flow.node.restart()
    flow.node.wait(4_999)
    assert flow.states()["nap"] == SCHEDULED
    flow.node.wait(1)
    assert (flow.states()["nap"], flow.states()["b"]) == (DONE, SCHEDULED)
    flow.node.wait(1_000)
    flow.done("b")
    assert flow.info().state == WF_DONE


def test_sleeping_until_a_time_of_day() -> None:
    flow = Flow(
        run("a"),
        Node("nap", Task("-", at_ms=WALL_AHEAD_MS + 9_000), (After("a"),), SLEEP),
        Node("over", Task("-", at_ms=WALL_AHEAD_MS), (After("a"),), SLEEP),
        Node("b", Task("f", at_ms=WALL_AHEAD_MS + 10_000), (After("nap"),)),
    )
    flow.node.wait(2_000 - flow.node.time_ms)
    flow.done("a")
    assert (flow.states()["nap"], flow.states()["over"]) == (SCHEDULED, DONE)
    flow.node.wait(6_999)
    assert flow.states()["nap"] == SCHEDULED
    flow.node.wait(1)
    assert (flow.states()["nap"], flow.states()["b"]) == (DONE, SCHEDULED)
    flow.node.wait(1_000)
    flow.done("b")
    assert flow.info().state == WF_DONE


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_counts_once_and_may_come_early(early: bool) -> None:
    flow = Flow(run("a"), Node("go", Task("-"), (After("a"),), SIGNAL), run("b", "go"))
    if early:
        assert flow.node.one(Signal(flow.id, "go", b"yes")).new
    flow.done("a")
    if not early:
        assert flow.states()["go"] == BLOCKED
        assert flow.node.one(Signal(flow.id, "go", b"yes")).new
    assert not flow.node.one(Signal(flow.id, "go", b"no")).new
    assert flow.nodes()["go"].result == b"yes"
    flow.done("b")
    assert flow.info().state == WF_DONE
    assert isinstance(flow.node.one(Signal(flow.id, "b")), Failure)


def test_a_running_task_maps_and_what_comes_after_joins() -> None:
    flow = Flow(run("split"), run("join", "split"))
    task, attempt = flow._running("split")
    parts = tuple(run(f"part {n}") for n in range(3))
    spawn = Spawn(flow.worker, task, attempt, parts, ("join",))
    assert len(flow.node.one(spawn).tasks) == 3
    assert flow.node.one(spawn).tasks == (0, 0, 0)
    flow.done("split")
    assert flow.states()["join"] == BLOCKED
    for n in (2, 0, 1):
        flow.done(f"part {n}", b"%d" % n)
    (assignment,) = [
        each for _, event in flow.node.told if hasattr(event, "tasks") for each in event.tasks
    ]
    assert [each.result for each in assignment.inputs] == [b"", b"0", b"1", b"2"]
    flow.done("join")
    assert flow.info().state == WF_DONE
    (stale,) = flow.node.one(spawn).stale
    assert (stale.task, stale.state, stale.worker) == (task, DONE, flow.worker)


def test_spawning_what_cannot_be_is_refused() -> None:
    flow = Flow(run("split"), run("other"), run("join", "split"))
    task, attempt = flow._running("split")
    for nodes, before in (
        ((run("x"),), ("other",)),
        ((run("x"),), ("nobody",)),
        ((run("x", "y"),), ()),
    ):
        result = flow.node.one(Spawn(flow.worker, task, attempt, nodes, before))
        assert isinstance(result, Failure)


def test_spawning_what_would_wait_for_itself_is_refused() -> None:
    flow = Flow(run("split"), run("join", "split"), run("end", "join"))
    task, attempt = flow._running("split")
    for after in ("join", "end", After("end", OPTIONAL)):
        result = flow.node.one(Spawn(flow.worker, task, attempt, (run("x", after),), ("join",)))
        assert isinstance(result, Failure)
        assert "'x'" in result.message
        assert "in a cycle" in result.message
    parts = (run("x"), run("y", "x", After("end", WEAK)), run("z", "end"))
    assert not isinstance(
        flow.node.one(Spawn(flow.worker, task, attempt, parts[:2], ("join",))), Failure
    )
    assert not isinstance(flow.node.one(Spawn(flow.worker, task, attempt, parts[2:])), Failure)
    for name in ("split", "x", "y", "join", "end", "z"):
        flow.done(name)
    assert flow.info().state == WF_DONE


def test_who_is_named_twice_joins_once() -> None:
    flow = Flow(run("split"), run("join", "split"))
    task, attempt = flow._running("split")
    flow.node.one(Spawn(flow.worker, task, attempt, (run("x"),), ("join", "join")))
    for name in ("split", "x", "join"):
        flow.done(name)
    assert flow.info().state == WF_DONE


def test_a_workflow_that_is_cancelled_ends_and_undoes_if_it_is_to() -> None:
    for undo in (False, True):
        flow = Flow(run("a", undo=Task("undo")), run("b", "a"), run("c", "b"))
        flow.done("a")
        assert flow.node.one(CancelWorkflow(flow.id, undo)).new
        assert not flow.node.one(CancelWorkflow(flow.id)).new
        flow.node.fail(flow.worker, *flow._running("b"), cancelled=True)
        if undo:
            flow.done("undo a")
        assert flow.info().state == (WF_COMPENSATED if undo else WF_CANCELLED)


def test_a_node_that_is_cancelled_alone_is_a_failure() -> None:
    flow = Flow(run("a"), run("b", "a"), load=0)
    flow.node.one(Cancel((flow.ids["a"],)))
    assert flow.info().state == WF_FAILED


def test_a_node_that_died_is_not_requeued() -> None:
    flow = Flow(run("a"))
    flow.fail("a")
    assert flow.node.one(Requeue((flow.ids["a"],))).tasks == ()


def test_nodes_beside_each_other_run_on_one_worker() -> None:
    flow = Flow(run("a"), run("b", "a", beside="a"))
    other = flow.node.worker("other", load=100)
    for _ in range(50):
        flow.node.put()
    assert other
    flow.done("a")
    assert flow.node.info(flow.ids["b"]).worker == flow.worker


def test_a_large_workflow_is_stopped_and_forgotten_a_part_at_a_time() -> None:
    flow = Flow(run("a"), *[run(f"n{n}", "a") for n in range(900)], keep_ms=1_000)
    flow.node.one(CancelWorkflow(flow.id))
    for _ in range(3):
        flow.node.wait(0)
    flow.node.fail(flow.worker, *flow._running("a"), cancelled=True)
    assert flow.info().state == WF_CANCELLED
    flow.node.wait(1_001)
    for _ in range(3):
        flow.node.wait(0)
    assert flow.node.ask(ListWorkflows()).workflows == ()
    tables = flow.node.tasks.ledger.tables
    for table in (tables.kin, tables.nodes, tables.children, tables.ended, tables.live):
        assert len(table) == 0, table


def test_what_is_undone_after_a_large_workflow_was_stopped_is_not_stopped() -> None:
    rest = [run(f"m{n:03}", "b") for n in range(498)]
    flow = Flow(run("a", undo=Task("undo")), run("b", "a"), *rest)
    flow.done("a")
    flow.fail("b")
    for _ in range(3):
        flow.node.wait(0)
    task, _ = flow._running("undo a")
    assert not flow.node.info(task).stopping
    flow.done("undo a")
    assert flow.info().state == WF_COMPENSATED


def test_nothing_is_left_of_a_workflow_that_is_forgotten() -> None:
    undo = Task("undo")
    flow = Flow(run("a", undo=undo), run("b", undo=undo), run("c"), keep_ms=0, load=3)
    for name in "ab":
        flow.done(name)
    flow.node.one(CancelWorkflow(flow.id))
    flow.fail("c")  # to stop it, but it does not say so
    other = Flow(run("a"), keep_ms=0)
    other.fail("a")
    for each in (flow, other):
        assert each.info().ended_ms
        each.node.wait(1)
        tables = each.node.tasks.ledger.tables
        for table in (tables.workflows, tables.undo, tables.compensations, tables.dead):
            assert len(table) == 0, table
        assert len(tables.specs) == 0
    # It would run by itself, as if it were a task of nobody's.
    assert other.node.one(Requeue((other.ids["a"],))).tasks == ()


def test_results_of_nodes_are_kept_as_long_as_the_workflow() -> None:
    flow = Flow(run("a"), run("b", "a"))
    flow.done("a", b"x")
    flow.node.wait(30_000)
    assert flow.nodes()["a"].result == b"x"
    flow.node.restart()
    assert flow.info().state == WF_RUNNING


def test_a_page_of_nodes_ends_before_its_results_outgrow_a_reply() -> None:
    flow = Flow(*(Node(name, Task("f")) for name in "abcdefghi"))
    for each in flow.nodes().values():
        assert flow.node.done(flow.worker, each.task, each.attempt, b"x" * MIB).stale == ()
    first = flow.node.ask(ListNodes(flow.id))
    assert first.more
    assert sum(len(each.result) for each in first.nodes) < REPLY_BYTES_MAX - MIB
    second = flow.node.ask(ListNodes(flow.id, first.nodes[-1].name))
    assert "".join(each.name for each in (*first.nodes, *second.nodes)) == "abcdefghi"
    assert not second.more
