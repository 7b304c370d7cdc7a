"""A workflow of many nodes is stopped a part at a time, and none of them begins meanwhile."""

from __future__ import annotations

import pytest

from quorate.base.results import Failure
from quorate.base.task_commands import Assign, Unregister
from quorate.base.task_specs import ASSIGNED, CANCELLED, READY, RUNNING, Task
from quorate.base.workflow_commands import WF_CANCELLED, CancelWorkflow, Node
from quorate.errors import TaskStateError
from quorate.tasks import dispatching, workflow_sweeps
from tests.tasks.support import TaskNode
from tests.tasks.test_workflows import Flow


@pytest.fixture(autouse=True)
def _one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_sweeps, "SWEEP_NODES_MAX", 1)


def flow_of(count: int) -> Flow:
    """Nodes a, b, c …, of which none waits for another; the first has begun."""
    return Flow(*(Node(chr(ord("a") + at), Task("f")) for at in range(count)), load=1)


def running(flow: Flow) -> str:
    return "".join(name for name, state in flow.states().items() if state == RUNNING)


def test_who_is_ready_does_not_begin() -> None:
    flow = flow_of(7)
    later = flow.node.put()
    flow.node.one(CancelWorkflow(flow.id))
    assert flow.states()["e"] == READY
    flow.done("a")  # which makes room
    assert not running(flow)
    assert flow.node.state(later) == RUNNING
    flow.node.wait(0)
    assert flow.info().state == WF_CANCELLED


def test_who_is_ready_is_not_claimed() -> None:
    flow = flow_of(7)
    later = flow.node.put()
    flow.node.one(CancelWorkflow(flow.id))
    assert [each.task for each in flow.node.claim(flow.worker, 5)] == [later]
    assert running(flow) == "a"


def test_one_entry_stops_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "STOPS_MAX", 1)
    flow = flow_of(9)
    node = flow.node
    later, other = node.put(), node.put(priority=4)
    node.one(CancelWorkflow(flow.id))
    flow.done("a")
    assert node.state(other) == RUNNING  # another line goes on
    node.done(flow.worker, other, 1)
    node.restart()
    for left in (5, 4, 3, 2, 1):
        assert not running(flow)
        assert list(flow.states().values()).count(READY) == left
        assert node.machines.next_deadline_ms() == 0
        node.wait(0)
    assert node.state(later) == RUNNING
    assert flow.info().state == WF_CANCELLED


def test_what_is_in_store_does_not_begin() -> None:
    flow = flow_of(7)
    worker = flow.node.worker("v", load=1, prefetch=3)
    assert (flow.states()["e"], running(flow)) == (ASSIGNED, "ab")
    flow.node.one(CancelWorkflow(flow.id))
    (stale,) = flow.node.begin(worker, flow.ids["e"], 1).stale
    assert (stale.state, flow.states()["e"]) == (CANCELLED, CANCELLED)
    assert running(flow) == "ab"


def test_what_is_in_store_is_not_taken_over() -> None:
    flow = flow_of(7)
    flow.node.worker("v", load=1, prefetch=5)
    flow.node.one(CancelWorkflow(flow.id))
    flow.node.worker("u", load=1)
    assert ASSIGNED in flow.states().values()
    assert running(flow) == "ab"


def test_nobody_gets_it_by_order() -> None:
    flow = flow_of(5)
    flow.node.one(CancelWorkflow(flow.id))
    refused = flow.node.one(Assign(flow.ids["e"], 0))
    assert isinstance(refused, Failure)
    assert refused.code == TaskStateError.code


def test_a_node_that_was_restarted_stops_the_same_in_the_same_entry() -> None:
    """It looks at all that is ready, where the others may know that nothing has changed."""
    nodes = [Node(name, Task("f", queue="far" if name > "c" else "default")) for name in "abcdef"]
    flow = Flow(*nodes, load=9)
    node, twin = flow.node, TaskNode()
    worker = node.worker("v", load=1, queues=("near",))  # free, and serves none of them
    for name in "abc":
        flow.done(name)
    node.one(Unregister(flow.worker))
    assert worker in node.tasks.ledger.crew.free
    assert flow.states()["e"] == READY
    for payload in node.log:
        twin.feed(payload)
    node.restart()
    node.one(CancelWorkflow(flow.id))  # its first part is of nodes that have ended
    for _ in range(9):
        twin.time_ms = node.time_ms
        twin.feed(node.log[-1])
        assert node.machines.state_hash == twin.machines.state_hash
        node.wait(0)


def test_what_breaks_off_while_it_stops_takes_nothing_from_the_next_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "STOPS_MAX", 2)
    flow = flow_of(9)
    node, twin = flow.node, TaskNode()
    node.one(CancelWorkflow(flow.id))
    for payload in node.log:
        twin.feed(payload)
    for each in (node, twin):
        each.tasks.breaks = {"finish": 2}
    flow.done("a")
    twin.time_ms = node.time_ms
    for payload in node.log[len(twin.log) :]:
        twin.feed(payload)
    for each in (node, twin):
        each.tasks.breaks = {}
    node.restart()
    node.claim(flow.worker, 5)
    twin.feed(node.log[-1])
    assert node.machines.state_hash == twin.machines.state_hash
