"""What handing out must not do, however seldom it comes to that."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.base.fencing import Fence
from quorate.base.task_commands import (
    Cancel,
    Complete,
    Configure,
    Done,
    Enqueue,
    Fail,
    Failed,
    Requeue,
    Settle,
)
from quorate.base.task_queries import Assigned, Peek
from quorate.base.task_specs import (
    DONE,
    HIGH,
    READY,
    RUNNING,
    UNTIL_STARTED,
    Needs,
    Options,
    Retry,
    Task,
    Unique,
)
from quorate.errors import InvalidArgumentError
from quorate.tasks import crew, dispatching, ledger, life, machine, telling
from tests.tasks.support import TaskNode


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


def test_a_key_at_its_limit_is_at_it_in_all_lines(node: TaskNode) -> None:
    node.one(Configure("default", key_running_max=1))
    node.enqueue(Task("f", key=b"x"), Task("f", key=b"x", priority=HIGH), Task("f", key=b"y"))
    worker = node.worker(load=0)
    assert [each.task for each in node.claim(worker, 5)] == [2, 3]


def test_keys_take_turns_across_lines(node: TaskNode) -> None:
    needs = Options(needs=Needs(("gpu",)))
    node.enqueue(
        Task("f", key=b"x"), Task("f", key=b"y"), Task("f", key=b"x", options=needs),
        Task("f", key=b"y", options=needs),
    )  # fmt: skip
    worker = node.worker(load=0, capabilities=("gpu",))
    assert [each.task for each in node.claim(worker, 5)] == [1, 2, 3, 4]


def test_what_is_stolen_in_the_entry_that_gave_it_is_told_to_the_thief_only(
    node: TaskNode,
) -> None:
    node.one(Configure("default", paused=True))
    large = node.worker("l", load=1, prefetch=9)
    small = node.worker("s", load=2)
    first, second, third = node.enqueue(*[Task("f")] * 3)
    node.one(Configure("default"))
    assert sorted(node.assigned()) == [(large, first, 1), (small, second, 1), (small, third, 2)]
    assert node.stops() == []


def test_nothing_of_a_paused_queue_is_stolen(node: TaskNode) -> None:
    node.worker("v", load=1, prefetch=2)
    node.enqueue(*[Task("f")] * 3)
    node.one(Configure("default", paused=True))
    node.worker("t")
    assert node.assigned() == []
    node.one(Configure("default"))
    assert len(node.assigned()) == 1


def test_who_is_loaded_enough_does_not_steal(node: TaskNode) -> None:
    node.one(Settle(load_max=400))
    victim = node.worker("v", load=1, prefetch=3)
    node.enqueue(Task("f"), Task("f"))
    assert {worker for worker, _, _ in node.assigned()} == {victim}
    node.one(Configure("other"))
    thief = node.worker("t", load=2, queues=("other",))
    node.put(queue="other")
    assert [(worker, task) for worker, task, _ in node.assigned()] == [(thief, 3)]
    node.one(Settle(load_max=400))
    assert node.assigned() == []


def test_a_stolen_task_is_not_counted_twice_by_a_rate(node: TaskNode) -> None:
    node.one(Configure("default", rate=2, rate_ms=1_000))
    node.worker("v", load=1, prefetch=1)
    node.enqueue(*[Task("f")] * 3)
    thief = node.worker("t", load=2)
    assert [task for _, task, _ in node.assigned()] == [2]
    node.wait(500)
    assert [(worker, task) for worker, task, _ in node.assigned()] == [(thief, 3)]


def test_no_more_are_begun_at_once_than_the_rate_says_however_it_divides(node: TaskNode) -> None:
    node.one(Configure("default", rate=600, rate_ms=1))
    node.worker(load=2_000)
    node.enqueue(*[Task("f")] * 700)
    assert len(node.assigned()) == 600


def test_a_worker_hears_of_much_in_several_events(
    node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "TASK_ASSIGNED_BYTES_MAX", 116)
    monkeypatch.setattr(dispatching, "TASK_ASSIGNED_BYTES_MAX", 116)
    worker = node.worker(load=4)
    sizes = (60, 40, 1, 200)
    node.enqueue(*[Task("f", b"x" * size) for size in sizes])
    parts = [[each.task for each in event.tasks] for _, event in node.told
             if isinstance(event, Assigned)]  # fmt: skip
    assert parts == [[1, 2], [3], [4]]
    node.enqueue(*[Task("f", b"x" * size) for size in sizes])
    assert [each.task for each in node.claim(worker, 9)] == [5, 6]
    assert [each.task for each in node.claim(worker, 9)] == [7, 8]


@pytest.mark.parametrize("strategy", ["least-loaded", "round-robin", "random", "weighted"])
def test_a_worker_has_no_more_bytes_than_it_can_be_told_at_once(
    strategy: str, node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it has is one answer when its link breaks."""
    for module in (crew, dispatching):
        monkeypatch.setattr(module, "WORKER_HELD_BYTES_MAX", 124)  # names are 8 of each
    node.one(Settle(strategy=strategy))
    worker = node.worker(load=9)
    tasks = node.enqueue(*[Task("f", b"x" * size) for size in (60, 39, 1, 200, 5)])
    assert [task for _, task, _ in node.assigned()] == list(tasks[:3])
    assert node.claim(worker, 9) == []
    node.done(worker, tasks[2], 1)
    assert [task for _, task, _ in node.assigned()] == [tasks[3]]  # one may go past it
    node.done(worker, tasks[3], 1)
    assert [task for _, task, _ in node.assigned()] == [tasks[4]]


def test_who_has_bytes_enough_steals_nothing(
    node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "WORKER_HELD_BYTES_MAX", 100)
    thief = node.worker("b", load=2)
    (large,) = node.enqueue(Task("f", b"x" * 100))
    node.worker("a", load=1, prefetch=2)
    _, second = node.enqueue(*[Task("f", b"x" * 60)] * 2)
    assert thief not in {worker for worker, _, _ in node.assigned()}
    node.done(thief, large, 1)
    assert [each[:2] for each in node.assigned()] == [(thief, second)]


def test_beside_another_task_there_are_no_names_of_workers() -> None:
    for needs in (Needs(worker="a"), Needs(excluded=("a",))):
        with pytest.raises(InvalidArgumentError, match="names no workers"):
            Options(beside=1, needs=needs)


def test_a_revived_task_runs_beside_its_other_again(node: TaskNode) -> None:
    a = node.worker("a", load=5)
    first = node.put()
    second = node.put(beside=first)
    node.fail(a, second, 1, final=True)
    node.worker("b", load=500)
    node.one(Requeue((second,)))
    assert node.assigned() == [(a, second, 2)]


def test_a_key_held_until_the_start_is_let_go_of_by_a_revived_task_too(node: TaskNode) -> None:
    unique = Unique(b"k", UNTIL_STARTED)
    worker = node.worker()
    task = node.put(unique=unique)
    node.fail(worker, task, 1, final=True)
    node.one(Requeue((task,)))
    assert node.state(task) == RUNNING
    assert node.put(unique=unique) != task


def test_a_known_task_is_answered_by_a_full_queue(node: TaskNode) -> None:
    node.one(Configure("default", depth_max=1))
    spec = Task("f", options=Options(unique=Unique(b"k")))
    (task,) = node.enqueue(spec)
    assert node.one(Enqueue((spec, spec))).tasks == (task, task)


def test_peeking_shows_each_task_once(node: TaskNode) -> None:
    node.enqueue(Task("f"), Task("f"))
    worker = node.worker(load=0)
    (got,) = node.claim(worker)
    node.give_back(worker, got.task, got.attempt)
    assert [each.task for each in node.ask(Peek("default", 5)).tasks] == [1, 2]


def test_a_node_that_was_restarted_finds_out_when_a_rate_lets_it_go_on(node: TaskNode) -> None:
    node.one(Configure("default", rate=1, rate_ms=1_000))
    node.worker(load=5)
    node.enqueue(Task("f"), Task("f"))
    assert node.machines.next_deadline_ms() == 1_000
    node.restart()
    assert node.machines.next_deadline_ms() == 0  # at once: then it knows
    node.run("tasks")
    assert node.machines.next_deadline_ms() == 1_000


def test_a_number_that_was_taken_back_is_not_taken_for_another_task(node: TaskNode) -> None:
    """It stays in the line of the command that was undone, and is given out again."""
    node.put(key=b"x")
    node.tasks.breaks = {0: 99}
    node.run("tasks", Enqueue((Task("f", key=b"x"),)))
    node.tasks.breaks = {}
    node.put(queue="other", key=b"x")
    node.put(key=b"x")
    worker = node.worker(load=0, queues=("default",))
    assert [each.task for each in node.claim(worker, 9)] == [1, 3]


def test_results_over_their_number_are_forgotten_though_a_command_was_undone(
    node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "TASK_RESULTS_KEPT_MAX", 1)
    worker = node.worker(load=4)
    ids = node.enqueue(*[Task("f", options=Options(keep_ms=100 + at)) for at in range(4)])
    node.done(worker, ids[0], 1)
    done: list[Any] = [Done(each, 1) for each in ids[1:]]
    node.tasks.breaks = {0: 99}
    node.run("tasks", Complete(worker, tuple(done)))
    node.tasks.breaks = {}
    assert node.state(ids[0]) == DONE
    node.wait(100)
    assert len(node.tasks.ledger.tables.ended) == 0


def test_what_was_due_when_an_entry_broke_off_is_due_in_the_next(node: TaskNode) -> None:
    task = node.put(delay_ms=100)
    node.tasks.breaks = {"expire": 0}
    node.wait(100)
    node.tasks.breaks = {}
    node.wait(1)
    assert node.state(task) == READY


def test_rates_fade_at_the_same_index_everywhere(
    node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DUE_WORK_MAX", 2)
    node.one(Configure("default", key_rate=100, rate_ms=1_000))
    node.worker(load=50)
    for key in (b"x", b"x", b"x", b"y"):
        node.put(key=key)
    twin = TaskNode()
    for payload in node.log:
        twin.feed(payload)
    twin.time_ms = node.time_ms
    twin.restart()
    node.wait(1_000)
    twin.feed(node.log[-1])
    assert node.machines.state_hash == twin.machines.state_hash


def test_a_worker_that_fails_thrice_is_said_to(node: TaskNode) -> None:
    worker = node.worker(load=3)
    ids = node.enqueue(*[Task("f", options=Options(retry=Retry(0)))] * 3)
    node.one(Fail(worker, tuple(Failed(each, 1) for each in ids)))
    assert "error" in [getattr(event, "what", "") for _, event in node.told]


def test_a_fence_of_a_task_holds_for_the_attempt_that_runs(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    fence = Fence("tasks", task.to_bytes(8, "big"), 1)
    assert node.tasks.holds(fence) is True
    node.give_back(worker, task, 1)
    assert node.tasks.holds(fence) is False
    assert node.one(Cancel((task,))).tasks == (task,)


def test_a_key_that_comes_again_is_first_again(node: TaskNode) -> None:
    """Its place in line is that of its turn now, not of the one it had."""
    node.one(Configure("default", paused=True))
    node.enqueue(Task("f"), Task("f"), Task("f", key=b"x"), Task("f", key=b"x"))
    node.one(Configure("default"))
    worker = node.worker(load=0)
    assert [each.task for each in node.claim(worker, 2)] == [1, 3]
    assert [each.task for each in node.claim(worker, 1)] == [2]
    again = node.give_back(worker, 2, 1)
    assert again.stale == ()
    node.one(Cancel((1, 2)))
    node.done(worker, 1, 1)
    new = node.put()
    node.restart()
    twin = TaskNode()
    for payload in node.log:
        twin.feed(payload)
    assert [each.task for each in node.claim(worker, 1)] == [new]
    twin.feed(node.log[-1])
    assert twin.machines.state_hash == node.machines.state_hash


def test_no_more_of_a_queue_run_at_once_than_it_says(node: TaskNode) -> None:
    node.one(Configure("default", running_max=2))
    worker = node.worker(load=9)
    node.enqueue(*[Task("f")] * 4)
    assert [task for _, task, _ in node.assigned()] == [1, 2]
    node.done(worker, 2, 1)
    assert [task for _, task, _ in node.assigned()] == [3]


def test_of_two_that_steal_the_lower_number_is_first(node: TaskNode) -> None:
    """However they came to have room."""
    victim = node.worker("v", load=1, prefetch=2)
    node.enqueue(*[Task("f")] * 3)
    node.one(Configure("default", paused=True))
    first, second = node.worker("s"), node.worker("t")
    assert node.enqueue(*[Task("f", queue="other")] * 2) == (4, 5)
    assert sorted(node.assigned()) == [(first, 4, 1), (second, 5, 1)]
    node.one(Configure("default"))
    assert node.assigned() == []
    done = (Complete(second, (Done(5, 1),)), Complete(first, (Done(4, 1),)))
    node.run("tasks", *done)
    assert node.assigned() == [(first, 3, 2), (second, 2, 2)]
    assert node.stops() == [(victim, 3, 1, "stolen"), (victim, 2, 1, "stolen")]


def test_who_waited_runs_beside_it_though_another_has_less_to_do(node: TaskNode) -> None:
    node.one(Configure("later", paused=True))
    first = node.put(queue="later")
    second = node.put(beside=first)
    a = node.worker("a", load=5, queues=("default", "later"))
    node.worker("b", load=500, queues=("default",))
    node.one(Configure("later"))
    assert node.assigned() == [(a, first, 1), (a, second, 1)]


def test_what_happened_in_queues_that_are_gone_is_forgotten_when_they_are_many(
    node: TaskNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "TASK_QUEUES_MAX", 3)
    node.put(queue="kept")
    for queue in "abcd":
        node.one(Cancel((node.put(queue=queue),)))
    names = [key for key, _ in node.tasks.ledger.tables.totals.items()]
    assert names == [b"c", b"d", b"kept"]


def test_a_node_whose_handing_out_breaks_off_does_not_try_without_end(node: TaskNode) -> None:
    node.worker()
    node.tasks.breaks = {"finish": 0}
    node.put(key=b"k")
    node.restart()
    node.tasks.breaks = {"finish": 0}
    assert node.machines.next_deadline_ms() == 0
    node.run("tasks")
    assert node.machines.next_deadline_ms() not in (0, node.time_ms)
    node.tasks.breaks = {}
    node.run("tasks")
    assert node.state(1) == RUNNING


def test_nothing_is_told_where_nobody_watches_and_all_else_is_the_same(node: TaskNode) -> None:
    deaf = TaskNode()
    watched: list[bytes] = []
    deaf.machines.heard = lambda _name, initials: any(each in watched for each in initials)
    for each in (node, deaf):
        worker = each.worker()
        task = each.put()
        assert any(keys[0][:1] == b"w" for keys, _ in each.told)  # workers are told in any case
        each.done(worker, task, 1)
    assert not any(keys[0][:1] in {b"t", b"q"} for keys, _ in deaf.told)
    assert any(keys[0][:1] == b"t" for keys, _ in node.told)
    watched.append(b"q")
    for each in (node, deaf):
        each.put()
    assert deaf.told == node.told
    assert deaf.machines.state_hash == node.machines.state_hash
