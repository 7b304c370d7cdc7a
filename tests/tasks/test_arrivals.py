"""A task that is begun in the step that enqueues it is what it would have become in line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.lease_commands import RevokeLease
from quorate.base.task_commands import Complete, Configure, Done, Enqueue, Settle
from quorate.base.task_queries import Assigned
from quorate.base.task_specs import ASSIGNED, READY, RUNNING, TASK_MACHINE, Options, Task
from quorate.tasks.arrivals import Arrivals
from quorate.tasks.ledger import Ledger
from tests.replication.support import run_of, submit
from tests.tasks.support import TaskNode


class LongWay(TaskNode):
    """All its tasks stand in line first."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks._arrivals.take = lambda _tasks, _context: []  # type: ignore[method-assign]


class Watched:
    """How many tasks took the short way on a node."""

    def __init__(self, node: TaskNode) -> None:
        self.count = 0
        arrivals: Arrivals = node.tasks._arrivals
        take = arrivals.take

        def counted(tasks: Any, context: Any) -> list[int]:
            found = take(tasks, context)
            self.count += len(found)
            return found

        arrivals.take = counted  # type: ignore[method-assign]


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


@pytest.fixture
def watched(node: TaskNode) -> Watched:
    return Watched(node)


PLAIN = Task("f", b"x")
SPECIAL = (
    Task("f", priority=7),
    Task("f", key=b"k"),
    Task("f", queue="other"),
    Task("f", delay_ms=5),
    Task("f", options=Options(timeout_ms=50)),
)

spec = st.one_of(st.just(PLAIN), st.just(PLAIN), st.just(PLAIN), st.sampled_from(SPECIAL))
step = st.one_of(
    st.tuples(st.just("put"), st.lists(spec, min_size=1, max_size=6)),
    st.tuples(st.just("put"), st.lists(st.just(PLAIN), min_size=1, max_size=6)),
    st.tuples(st.just("worker"), st.tuples(st.integers(0, 4), st.integers(0, 3))),
    st.tuples(st.just("done"), st.integers(0, 9)),
    st.tuples(st.just("settle"), st.builds(
        Settle,
        st.sampled_from(["least-loaded", "capability-match", "round-robin", "random", "weighted"]),
        st.sampled_from([0, 0, 3]),
        st.sampled_from([1000, 1000, 500]),
    )),
    st.tuples(st.just("rules"), st.builds(
        Configure, st.just("default"), paused=st.booleans(), running_max=st.sampled_from([0, 2])
    )),
    st.tuples(st.just("wait"), st.integers(1, 60)),
)  # fmt: skip


def play(node: TaskNode, what: str, value: Any) -> Any:
    ledger = node.tasks.ledger
    if what == "put":
        return node.one(Enqueue(tuple(value)))
    if what == "worker":
        load, prefetch = value
        return node.worker(f"w{len(ledger.crew.workers)}", load or 1, prefetch=prefetch)
    if what == "done":
        crew = sorted(ledger.crew.workers.values(), key=lambda each: each.id)
        if crew:
            worker = crew[value % len(crew)]
            begun = [each for each in sorted(worker.held) if each not in worker.stored]
            said = tuple(Done(each, node.info(each).attempt) for each in begun[: value + 1])
            if said:
                return node.one(Complete(worker.id, said))
        return None
    if what == "wait":
        return node.wait(value)
    return node.one(value)


def handed(node: TaskNode) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for keys, event in node.told:
        if isinstance(event, Assigned):
            found.setdefault(keys, []).extend(event.tasks)
    return found


def events(node: TaskNode) -> list[str]:
    return sorted(repr(each) for each in node.told if not isinstance(each[1], Assigned))


@settings(max_examples=200)
@given(st.lists(step, max_size=25))
def test_both_ways_lead_to_the_same(steps: list[tuple[str, Any]]) -> None:
    short, long = TaskNode(), LongWay()
    for what, value in [("worker", (3, 1)), *steps]:
        assert play(short, what, value) == play(long, what, value)
        assert short.machines.state_hash == long.machines.state_hash
        assert short.tasks.ledger.derived() == long.tasks.ledger.derived()
        assert handed(short) == handed(long)
        assert events(short) == events(long)


def test_tasks_that_find_room_take_the_short_way(node: TaskNode, watched: Watched) -> None:
    node.worker(load=3)
    tasks = node.enqueue(*[PLAIN] * 5)
    assert watched.count == 3
    assert [node.state(each) == RUNNING for each in tasks] == [True] * 3 + [False] * 2
    node.enqueue(PLAIN)
    assert watched.count == 3  # others stand before it


@pytest.mark.parametrize("task", SPECIAL)
def test_what_the_short_way_does_not_know_takes_the_long_one(
    node: TaskNode, watched: Watched, task: Task
) -> None:
    node.worker(load=9)
    node.enqueue(PLAIN, task)
    assert watched.count == 0


def test_nobody_begins_before_those_that_wait(node: TaskNode, watched: Watched) -> None:
    node.one(Configure("other", paused=True))
    node.worker(load=9)
    node.put(queue="other")
    assert node.state(node.put()) == RUNNING
    assert watched.count == 0


def test_a_queue_with_rules_keeps_them(node: TaskNode, watched: Watched) -> None:
    node.one(Configure("default", paused=True))
    node.worker(load=9)
    assert node.state(node.put()) == READY
    assert watched.count == 0


def test_a_worker_that_has_others_in_store_begins_with_those(
    node: TaskNode, watched: Watched
) -> None:
    worker = node.worker(load=2, prefetch=2)
    first, *_ = node.enqueue(*[PLAIN] * 4)
    node.done(worker, first, 1)
    assert node.state(node.put()) == ASSIGNED
    assert watched.count == 2


def test_whoever_has_lost_its_lease_gets_nothing_in_the_same_entry(node: TaskNode) -> None:
    lease = node.lease()
    node.worker(lease=lease, load=9)
    node.entry(
        submit(run_of("leases", RevokeLease(lease))),
        submit(run_of(TASK_MACHINE, Enqueue((PLAIN,)))),
    )
    assert node.info(1).attempt == 0


@pytest.mark.parametrize("moves", range(4))
def test_what_breaks_off_leaves_nothing(node: TaskNode, moves: int) -> None:
    worker = node.worker(load=9)
    node.tasks.breaks = {0: moves}
    applied = node.entry(submit(run_of(TASK_MACHINE, Enqueue((PLAIN,) * 3))))
    node.tasks.breaks = {}
    ledger: Ledger = node.tasks.ledger
    assert ledger.derived() == ledger.recount()
    assert not ledger.crew.workers[worker].held
    assert not ledger.tables.live.size()
    assert not [name for name, _, _ in applied.effects if name == TASK_MACHINE]
    assert node.enqueue(PLAIN) == (1,)
    assert node.state(1) == RUNNING
