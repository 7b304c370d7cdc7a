"""Tasks are given to a worker by name, or taken from one; and who would be chosen, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from quorate.base.results import Failure
from quorate.base.task_commands import Assign, Cancel, Claimed, Configure, Settle
from quorate.base.task_queries import ChooseWorker, WorkerList
from quorate.base.task_specs import ASSIGNED, DEAD, READY, RUNNING, SCHEDULED, Needs, Retry, Task
from quorate.base.workflow_commands import BLOCKING, OPTIONAL, WEAK, After, ListNodes, Node, Submit
from tests.tasks.support import TaskNode


def code(result: Any) -> str:
    assert isinstance(result, Failure), result
    return result.code


def test_a_ready_task_goes_to_whom_it_is_given_out_of_its_turn() -> None:
    node = TaskNode()
    node.one(Configure("default", running_max=1))
    busy = node.worker("busy")
    other = node.worker("other", load=2)
    running, waits = node.put(), [node.put(), node.put()]
    assert code(node.one(Assign(waits[1], other))) == "no-available-worker"  # the queue's limit
    node.one(Configure("default", paused=True))
    assert code(node.one(Assign(waits[1], other))) == "no-available-worker"
    node.one(Settle(running_max=1))
    node.one(Configure("default", running_max=2))
    assert code(node.one(Assign(waits[1], other))) == "no-available-worker"  # that of all
    assert node.state(waits[1]) == READY
    node.one(Configure("default", paused=True))
    node.one(Settle(running_max=2))
    node.done(busy, running, 1)
    assert [node.state(each) for each in waits] == [READY, READY]
    node.one(Configure("default", running_max=1))
    given = node.info(waits[0])
    assert (given.state, given.reason) == (RUNNING, "least-loaded")
    node.one(Configure("default", running_max=1, key_running_max=1))
    node.done(given.worker, waits[0], 1)
    assert node.info(waits[1]).state == RUNNING


def test_who_is_given_a_task_hears_of_it() -> None:
    node = TaskNode()
    first, second = node.worker("first"), node.worker("second", load=0, prefetch=1)
    node.one(Configure("default", running_max=2))
    kept = node.put()  # first's
    node.one(Configure("b", paused=True))
    task = node.put(queue="b")
    assert code(node.one(Assign(task, second))) == "no-available-worker"
    moved = node.one(Assign(kept, second))
    assert isinstance(moved, Claimed)
    (given,) = moved.tasks
    assert (given.task, given.attempt, given.running, given.reason) == (kept, 2, False, "moved")
    assert node.stops() == [(first, kept, 1, "moved")]
    assert node.assigned() == [(second, kept, 2)]
    assert (node.info(kept).state, node.info(kept).reason) == (ASSIGNED, "moved")
    (late,) = node.done(first, kept, 1).stale  # it is too late to say anything
    assert (late.attempt, late.worker) == (2, second)
    node.begin(second, kept, 2)
    assert node.done(second, kept, 2).stale == ()


def test_to_be_moved_is_not_to_begin_again_as_far_as_rates_go() -> None:
    node = TaskNode()
    first, second = node.worker("first", load=3), node.worker("second", load=3)
    node.one(Configure("default", rate=2, rate_ms=1_000))
    one = node.put()
    assert node.info(one).worker == first
    node.one(Assign(one, second))
    two = node.put()
    assert node.state(two) == RUNNING
    three = node.put()
    assert node.state(three) == READY
    assert code(node.one(Assign(three, first))) == "no-available-worker"
    node.wait(500)
    assert node.state(three) == RUNNING


def test_another_worker_is_found_or_nothing_happens() -> None:
    node = TaskNode()
    small = node.worker("small", load=1)
    task = node.put(needs=Needs(("gpu",)), keep_ms=0)
    assert node.state(task) == READY
    assert code(node.one(Assign(task, small))) == "no-available-worker"
    gpu = node.worker("gpu", load=2, capabilities=("gpu",))
    assert node.info(task).worker == gpu
    assert code(node.one(Assign(task))) == "no-available-worker"
    assert (node.info(task).worker, node.info(task).attempt) == (gpu, 1)
    third = node.worker("third", load=1, capabilities=("big", "gpu"))
    node.one(Assign(task))
    assert (node.info(task).worker, node.info(task).attempt) == (third, 2)
    avoids = node.put(needs=Needs(excluded=("gpu", "third")))
    assert node.info(avoids).worker == small
    assert code(node.one(Assign(avoids, gpu))) == "no-available-worker"
    full = node.put(needs=Needs(worker="gpu"))
    assert code(node.one(Assign(full, third))) == "no-available-worker"
    node.one(Settle(affinity=False))
    assert code(node.one(Assign(full, third))) == "no-available-worker"  # it has no room
    node.done(third, task, 2)
    node.one(Assign(full, third))
    assert node.info(full).worker == third


def test_what_has_no_business_with_a_worker_is_not_given_to_one() -> None:
    node = TaskNode()
    worker, other = node.worker("w"), node.worker("v")
    assert code(node.one(Assign(77))) == "task-not-found"
    later = node.put(delay_ms=1_000)
    assert code(node.one(Assign(later, worker))) == "task-state"
    assert node.state(later) == SCHEDULED
    task = node.put()
    assert code(node.one(Assign(task, 77))) == "worker-not-found"
    assert code(node.one(Assign(task, worker))) == "task-state"  # it is there
    node.one(Cancel((task,)))
    assert code(node.one(Assign(task, other))) == "task-state"  # it is to stop
    node.fail(worker, task, 1, cancelled=True)
    assert code(node.one(Assign(task, other))) == "task-state"
    dead = node.put(retry=Retry(0))
    node.fail(node.info(dead).worker, dead, 1)
    assert code(node.one(Assign(dead, other))) == "task-state"


def test_errors_of_some_kinds_alone_are_tried_again() -> None:
    node = TaskNode()
    worker = node.worker()
    retry = Retry(3, 100, only=("Net", "timeout"))
    task = node.put(retry=retry, timeout_ms=1_000)
    node.wait(1_000)
    assert node.state(task) == SCHEDULED
    node.wait(100)
    node.fail(worker, task, 2, kind="Net")
    assert node.state(task) == SCHEDULED
    node.wait(200)
    node.fail(worker, task, 3, kind="Other")
    assert node.state(task) == DEAD


# --- the choice -----------------------------------------------------------------------------------


def chosen(node: TaskNode, *arguments: Any) -> int:
    found = node.ask(ChooseWorker(*arguments))
    assert isinstance(found, WorkerList), found
    (worker,) = found.workers
    return worker.worker


def test_choices_are_those_that_the_machine_makes() -> None:
    node = TaskNode()
    assert code(node.ask(ChooseWorker())) == "no-available-worker"
    one, two = node.worker("one", 2), node.worker("two", 4, capabilities=("a", "b"))
    three = node.worker("three", 4, capabilities=("a",), weight=2)
    node.worker("full", 0)
    node.put()
    assert node.info(1).worker == one
    assert chosen(node, "least-loaded") == two
    assert chosen(node, "capability-match", ("a",)) == three
    assert chosen(node, "capability-match") == one
    assert code(node.ask(ChooseWorker("random", ("a", "z")))) == "no-available-worker"
    turns, last = [], 0
    for _ in range(7):
        last = chosen(node, "round-robin", (), last)
        turns.append(last)
    assert turns == [one, two, three] * 2 + [one]
    node.one(Settle(capabilities=False))
    assert chosen(node, "random", ("z",), 0, 5) in (one, two, three)


@pytest.mark.parametrize(("strategy", "parts"), [("random", (1, 1, 1)), ("weighted", (1, 4, 8))])
def test_chance_is_fair(strategy: str, parts: tuple[int, ...]) -> None:
    node = TaskNode()
    ids = [node.worker("one", 2), node.worker("two", 4), node.worker("three", 4, weight=2)]
    node.put()  # one has it
    draws = 1_300
    counts = Counter(chosen(node, strategy, (), 0, seed) for seed in range(draws))
    expected = [draws * part / sum(parts) for part in parts]
    off = sum((counts[id_] - want) ** 2 / want for id_, want in zip(ids, expected, strict=True))
    assert off < 13.8  # chi-square, two degrees of freedom: once in a thousand
    again = chosen(node, strategy, (), 0, 7)
    assert all(chosen(node, strategy, (), 0, 7) == again for _ in range(3))


def test_nodes_say_in_which_way_they_wait() -> None:
    node = TaskNode()
    after = (After("a", BLOCKING), After("b", OPTIONAL), After("c", WEAK))
    nodes = (*(Node(name, Task("f")) for name in "abc"), Node("d", Task("f"), after))
    flow = node.one(Submit("w", nodes)).workflow
    found = {each.name: each for each in node.ask(ListNodes(flow)).nodes}
    assert found["d"].after == tuple(found[name].task for name in "abc")
    assert found["d"].after_kinds == (BLOCKING, OPTIONAL, WEAK)
