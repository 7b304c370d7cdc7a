"""Each rule of queues and workers, by itself."""

from __future__ import annotations

import msgspec
import pytest

from quorate.base.results import Failure
from quorate.base.task_commands import (
    Attend,
    Cancel,
    Configure,
    Enqueue,
    Held,
    Pause,
    Purge,
    Report,
    Requeue,
    Settle,
    Unregister,
)
from quorate.base.task_queries import (
    ListQueues,
    ListTasks,
    ListWorkers,
    Peek,
    TaskQuery,
    WatchTasks,
    WorkerEvent,
)
from quorate.base.task_specs import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    FOR_A_TIME,
    HIGH,
    LOW,
    READY,
    RUNNING,
    SCHEDULED,
    UNTIL_STARTED,
    Needs,
    Options,
    Retry,
    Task,
    Unique,
)
from quorate.errors import InvalidArgumentError
from quorate.tasks import machine
from tests.tasks.support import WALL_AHEAD_MS, TaskNode


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


# --- enqueueing and handing out -------------------------------------------------------------------


def test_a_task_comes_to_a_worker_with_room_in_the_entry_that_enqueues_it(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(payload=b"x")
    assert node.assigned() == [(worker, task, 1)]
    assert node.state(task) == RUNNING
    assert node.done(worker, task, 1, b"y").stale == ()
    assert (node.state(task), node.info(task).result) == (DONE, b"y")


def test_tasks_of_a_batch_are_all_taken_or_none(node: TaskNode) -> None:
    node.one(Configure("small", depth_max=2))
    result = node.one(Enqueue((Task("f"), *[Task("f", queue="small")] * 3)))
    assert isinstance(result, Failure)
    assert result.code == "queue-full"
    assert node.system().ready == 0


def test_first_in_first_out_within_a_priority_and_urgent_ones_first(node: TaskNode) -> None:
    low = node.put(priority=LOW)
    first, second = node.put(), node.put()
    high = node.put(priority=HIGH)
    worker = node.worker(load=0)
    assert [each.task for each in node.claim(worker, 10)] == [high, first, second, low]


def test_keys_take_turns_whatever_their_backlog(node: TaskNode) -> None:
    a = [node.put(key=b"a") for _ in range(4)]
    b = [node.put(key=b"b") for _ in range(2)]
    (none,) = [node.put()]
    worker = node.worker(load=0)
    order = [each.task for each in node.claim(worker, 10)]
    assert order == [none, a[0], b[0], a[1], b[1], a[2], a[3]]


def test_a_waiting_low_priority_ages(node: TaskNode) -> None:
    node.one(Configure("default", ageing_ms=1_000))
    low = node.put(priority=LOW)
    node.wait(3_000)
    high = node.put(priority=HIGH)
    worker = node.worker(load=0)
    assert [each.task for each in node.claim(worker, 2)] == [low, high]


def test_a_task_that_nobody_can_run_holds_up_nobody(node: TaskNode) -> None:
    stuck = node.put(needs=Needs(("gpu",)), priority=HIGH)
    worker = node.worker()
    task = node.put()
    assert node.assigned() == [(worker, task, 1)]
    assert node.state(stuck) == READY
    other = node.worker("g", capabilities=("gpu", "tpu"))
    assert node.assigned() == [(other, stuck, 1)]


def test_a_delayed_task_is_never_handed_out_before_its_time(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(delay_ms=5_000)
    assert node.state(task) == SCHEDULED
    node.wait(4_999)
    assert node.assigned() == []
    node.wait(1)
    assert node.assigned() == [(worker, task, 1)]


def test_a_time_of_day_is_reckoned_by_the_wall_clock_of_its_entry(node: TaskNode) -> None:
    node.wait(3_000 - node.time_ms)
    now, past = node.put(at_ms=WALL_AHEAD_MS + 3_000), node.put(at_ms=1)
    assert (node.state(now), node.state(past)) == (READY, READY)
    task = node.put(at_ms=WALL_AHEAD_MS + 8_000)
    assert (node.state(task), node.info(task).due_ms) == (SCHEDULED, 8_000)
    node.restart()
    node.wait(4_999)
    assert node.state(task) == SCHEDULED
    node.wait(1)
    assert node.state(task) == READY
    expired = node.put(at_ms=WALL_AHEAD_MS + 10**12, expires_ms=100)
    node.wait(100)
    assert node.state(expired) == DEAD


def test_a_task_has_a_delay_or_a_time_of_day() -> None:
    with pytest.raises(InvalidArgumentError, match="a delay or a time"):
        Task("f", delay_ms=1, at_ms=1)
    array = ["f", b"", "q", 2, b"", 1, None, 1]
    with pytest.raises(msgspec.ValidationError, match="a delay or a time"):
        msgspec.convert(array, Task)


def test_a_paused_queue_hands_out_nothing_until_it_goes_on(node: TaskNode) -> None:
    node.one(Configure("default", paused=True))
    worker = node.worker()
    task = node.put()
    assert node.assigned() == []
    node.one(Configure("default"))
    assert node.assigned() == [(worker, task, 1)]


def test_pausing_leaves_the_other_rules(node: TaskNode) -> None:
    node.one(Configure("default", running_max=1))
    node.worker(load=5)
    node.one(Pause("default"))
    node.enqueue(Task("f"), Task("f"))
    assert node.assigned() == []
    node.one(Pause("default", paused=False))
    assert len(node.assigned()) == 1


# --- limits ---------------------------------------------------------------------------------------


def test_no_more_of_a_queue_or_key_run_at_once_than_its_rules_say(node: TaskNode) -> None:
    node.one(Configure("default", running_max=3, key_running_max=1))
    worker = node.worker(load=0)
    a = [node.put(key=b"a") for _ in range(2)]
    b = [node.put(key=b"b") for _ in range(2)]
    c = [node.put(key=b"c") for _ in range(2)]
    assert [each.task for each in node.claim(worker, 10)] == [a[0], b[0], c[0]]
    node.done(worker, b[0], 1)
    assert [each.task for each in node.claim(worker, 10)] == [b[1]]


def test_no_more_are_begun_in_a_time_than_the_rate_says(node: TaskNode) -> None:
    node.one(Configure("default", rate=2, rate_ms=1_000))
    node.worker(load=100)
    node.enqueue(*[Task("f")] * 6)
    assert len(node.assigned()) == 2
    node.wait(499)
    assert node.assigned() == []
    node.wait(1)
    assert len(node.assigned()) == 1
    node.wait(1_000)
    assert len(node.assigned()) == 2
    node.wait(500)
    node.wait(500)
    node.wait(10_000)
    assert len(node.tasks.ledger.tables.rates) == 0


def test_a_rate_of_a_key_does_not_hold_up_other_keys(node: TaskNode) -> None:
    node.one(Configure("default", key_rate=1, rate_ms=1_000))
    node.worker(load=100)
    a = [node.put(key=b"a") for _ in range(2)]
    assert node.state(a[1]) == READY
    b = node.put(key=b"b")
    assert node.state(b) == RUNNING
    node.wait(1_000)
    assert node.state(a[1]) == RUNNING


def test_the_cap_of_all_queues(node: TaskNode) -> None:
    node.one(Settle(running_max=2))
    node.worker(load=100)
    ids = node.enqueue(Task("f"), Task("f", queue="b"), Task("f", queue="c"))
    assert [node.state(each) for each in ids] == [RUNNING, RUNNING, READY]


# --- failing --------------------------------------------------------------------------------------


def test_retries_wait_1_2_and_4_seconds_and_then_the_task_is_dead(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    for attempt, wait_ms in enumerate((1_000, 2_000, 4_000), 1):
        node.fail(worker, task, attempt, kind="ValueError", error="no")
        assert node.state(task) == SCHEDULED
        node.one(Attend(worker))
        node.wait(wait_ms - 1)
        assert node.state(task) == SCHEDULED
        node.wait(1)
        assert node.assigned() == [(worker, task, attempt + 1)]
    node.fail(worker, task, 4, kind="ValueError", error="still no")
    info = node.info(task)
    assert (info.state, info.errors, info.attempt) == (DEAD, 4, 4)
    assert (info.kind, info.error, info.workers) == ("ValueError", "still no", (worker,) * 4)
    assert info.spec == Task("f")


def test_some_errors_are_never_tried_again(node: TaskNode) -> None:
    worker = node.worker(load=5)
    fatal = node.put(retry=Retry(fatal=("TypeError",)))
    node.fail(worker, fatal, 1, kind="TypeError")
    final = node.put()
    node.fail(worker, final, 1, final=True)
    assert (node.state(fatal), node.state(final)) == (DEAD, DEAD)


def test_a_dead_task_is_requeued_with_a_clean_record_and_a_higher_attempt(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    node.fail(worker, task, 1, final=True)
    assert node.one(Requeue((task, 77))).tasks == (task,)
    assert node.assigned() == [(worker, task, 2)]
    assert node.info(task).errors == 0
    assert node.one(Requeue((task,))).tasks == ()


def test_a_full_queue_takes_no_dead_task_back(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(queue="small")
    node.fail(worker, task, 1, final=True)
    node.one(Configure("small", depth_max=2, paused=True))
    other, _ = node.put(queue="small"), node.put(queue="small")
    assert node.one(Requeue((task,))).tasks == ()
    node.one(Cancel((other,)))
    assert node.one(Requeue((task,))).tasks == (task,)


def test_unique_keys_have_a_bound(node: TaskNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TASK_UNIQUE_MAX", 2)
    for key in (b"a", b"b", b"a"):
        node.put(unique=Unique(key, FOR_A_TIME, 1_000))
    result = node.one(Enqueue((Task("f", options=Options(unique=Unique(b"c"))),)))
    assert (result.code, node.system().ready) == ("queue-full", 2)
    node.wait(1_000)
    node.put(unique=Unique(b"c"))
    assert node.system().ready == 3


def test_an_attempt_that_takes_too_long_is_over_and_its_worker_is_told(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(timeout_ms=1_000, retry=Retry(1))
    node.wait(1_000)
    assert node.stops() == [(worker, task, 1, "timeout")]
    assert node.state(task) == SCHEDULED
    (stale,) = node.done(worker, task, 1).stale
    assert (stale.task, stale.state, stale.attempt) == (task, SCHEDULED, 1)


def test_an_attempt_that_must_report_and_does_not_is_over(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(heartbeat_ms=500, timeout_ms=1_200)
    node.time_ms += 400
    node.one(Report(worker, (Held(task, 1),), 250, "a quarter"))
    assert (node.info(task).permille, node.info(task).note) == (250, "a quarter")
    node.wait(400)
    assert node.state(task) == RUNNING
    node.one(Report(worker, (Held(task, 1),)))
    node.wait(399)
    assert node.state(task) == RUNNING
    node.wait(1)
    assert node.state(task) == SCHEDULED


def test_a_heartbeat_leaves_nothing_behind(node: TaskNode) -> None:
    worker = node.worker(load=2)
    task, other = node.put(heartbeat_ms=500, timeout_ms=0), node.put(heartbeat_ms=700)
    for _ in range(50):
        node.time_ms += 400
        node.one(Report(worker, (Held(task, 1), Held(other, 1))))
    deadlines = node.tasks.ledger.deadlines
    assert len(deadlines) == 2
    node.restart()
    node.wait(499)
    assert (node.state(task), node.state(other)) == (RUNNING, RUNNING)
    node.wait(201)
    assert (node.state(task), node.state(other)) == (SCHEDULED, SCHEDULED)


def test_a_task_that_does_not_begin_in_time_is_dead(node: TaskNode) -> None:
    task, delayed = node.put(expires_ms=1_000), node.put(expires_ms=1_000, delay_ms=900)
    node.wait(999)
    assert (node.state(task), node.state(delayed)) == (READY, READY)
    node.wait(1)
    assert (node.info(task).kind, node.info(delayed).kind) == ("expired", "expired")


# --- workers that go ------------------------------------------------------------------------------


def test_what_a_dead_worker_had_runs_elsewhere_in_the_same_entry(node: TaskNode) -> None:
    lease = node.lease(10_000)
    worker = node.worker("a", lease=lease)
    task = node.put()
    other = node.worker("b")
    assert node.assigned() == []
    node.wait(9_999)
    assert node.state(task) == RUNNING
    node.wait(1)
    assert node.assigned() == [(other, task, 2)]
    info = node.info(task)
    assert (info.crashes, info.errors) == (1, 0)
    (stale,) = node.done(worker, task, 1).stale
    assert (stale.state, stale.attempt, stale.worker) == (RUNNING, 2, other)
    assert node.done(other, task, 2).stale == ()
    (late,) = node.done(worker, task, 1).stale
    assert (late.state, late.worker) == (DONE, other)


def test_a_task_that_kills_its_workers_is_dead_after_some(node: TaskNode) -> None:
    task = node.put(crashes=2)
    for _ in range(3):
        lease = node.lease()
        node.worker(lease=lease)
        node.revoke(lease)
    info = node.info(task)
    assert (info.state, info.crashes, info.errors, info.kind) == (DEAD, 3, 0, "crashed")


def test_a_worker_that_leaves_hands_back_and_nothing_is_held_against_it(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    assert node.one(Attend(worker, "draining")).tasks == 1
    other = node.put()
    assert node.state(other) == READY
    assert node.one(Unregister(worker)).tasks == 1
    assert (node.state(task), node.info(task).crashes) == (READY, 0)
    assert node.ask(ListWorkers()).workers == ()
    (gone,) = node.ask(ListWorkers(gone=True)).workers
    assert gone.state == "gone"


def test_three_failures_in_a_row_put_a_worker_aside_until_it_says_it_is_well(
    node: TaskNode,
) -> None:
    worker = node.worker(load=3)
    for task in node.enqueue(*[Task("f")] * 3):
        node.fail(worker, task, 1)
    assert [event.what for _, event in node.told if isinstance(event, WorkerEvent)] == ["error"]
    node.wait(1_000)
    assert node.assigned() == []
    node.one(Attend(worker))
    assert len(node.assigned()) == 3


# --- what is in store -----------------------------------------------------------------------------


def test_what_is_in_store_must_be_begun_and_may_be_stolen_until_then(node: TaskNode) -> None:
    victim = node.worker("v", load=1, prefetch=3)
    tasks = [node.put() for _ in range(4)]
    assert [node.state(each) for each in tasks] == [RUNNING, ASSIGNED, ASSIGNED, ASSIGNED]
    (stale,) = node.done(victim, tasks[1], 1).stale
    assert stale.state == ASSIGNED
    thief = node.worker("t", load=1)
    assert node.assigned() == [(thief, tasks[3], 2)]
    assert node.stops() == [(victim, tasks[3], 1, "stolen")]
    (stale,) = node.begin(victim, tasks[3], 1).stale
    assert (stale.worker, stale.attempt) == (thief, 2)
    node.done(victim, tasks[0], 1)
    assert node.begin(victim, tasks[1], 1).stale == ()
    assert node.state(tasks[1]) == RUNNING


# --- who gets it ----------------------------------------------------------------------------------


def test_nothing_overtakes_what_its_worker_has_in_store(node: TaskNode) -> None:
    worker = node.worker(load=1, prefetch=1)
    first, second, third = (node.put() for _ in range(3))
    assert [node.state(each) for each in (first, second, third)] == [RUNNING, ASSIGNED, READY]
    node.done(worker, first, 1)
    assert [node.state(each) for each in (second, third)] == [ASSIGNED, ASSIGNED]
    assert node.begin(worker, second, 1).stale == ()
    assert [node.state(each) for each in (second, third)] == [RUNNING, ASSIGNED]


def test_the_least_loaded_worker_gets_it(node: TaskNode) -> None:
    a, b = node.worker("a", load=4), node.worker("b", load=2)
    got = [node.assigned()[0][0] for _ in range(6) if node.put()]
    assert got == [a, b, a, a, b, a]


def test_round_robin_goes_on_where_it_was(node: TaskNode) -> None:
    node.one(Settle("round-robin"))
    workers = [node.worker(name, load=9) for name in "abc"]
    got = [node.assigned()[0][0] for _ in range(7) if node.put()]
    assert got == [*workers, *workers, workers[0]]


def test_capability_match_wastes_no_rare_ability(node: TaskNode) -> None:
    node.one(Settle("capability-match"))
    able = node.worker("able", load=9, capabilities=("gpu", "x"))
    plain = node.worker("plain", load=9)
    node.put()
    assert node.assigned()[0][0] == plain
    node.put(needs=Needs(("gpu",)))
    assert node.assigned()[0][0] == able


def test_weighted_goes_by_free_places(node: TaskNode) -> None:
    node.one(Settle("weighted"))
    small, large = node.worker("s", load=1_000), node.worker("l", load=9_000)
    node.enqueue(*[Task("f")] * 1_000)
    got = [worker for worker, _, _ in node.assigned()]
    assert 50 < got.count(small) < 150
    assert got.count(large) == 1_000 - got.count(small)


def test_a_required_worker_is_waited_for(node: TaskNode) -> None:
    node.worker("a", load=5)
    task = node.put(needs=Needs(worker="b"))
    assert node.state(task) == READY
    b = node.worker("b")
    assert node.assigned() == [(b, task, 1)]


def test_an_excluded_worker_never_gets_it_and_a_preferred_one_if_it_can(node: TaskNode) -> None:
    a, b = node.worker("a", load=5), node.worker("b", load=1)
    node.put(prefers="b")
    assert node.assigned()[0][0] == b
    node.put(prefers="b")
    assert node.assigned()[0][0] == a
    task = node.put(needs=Needs(excluded=("a",)))
    assert node.state(task) == READY


def test_beside_another_task(node: TaskNode) -> None:
    node.one(Configure("later", paused=True))
    first = node.put(queue="later")
    second = node.put(beside=first)
    assert node.state(second) == BLOCKED
    node.worker("a", load=0)
    b = node.worker("b", load=5, queues=("default", "later"))
    node.one(Configure("later"))
    assert node.assigned() == [(b, first, 1), (b, second, 1)]


def test_beside_a_task_that_nobody_knows_is_refused(node: TaskNode) -> None:
    result = node.one(Enqueue((Task("f", options=Options(beside=99)),)))
    assert isinstance(result, Failure)
    assert result.code == "task-not-found"


# --- unique keys ----------------------------------------------------------------------------------


def test_a_unique_key_is_held_until_its_task_ends_however_it_ends(node: TaskNode) -> None:
    unique = Unique(b"k")
    task = node.put(unique=unique)
    result = node.one(Enqueue((Task("f"), Task("f", options=Options(unique=unique)))))
    assert (result.tasks[1], result.known) == (task, (1,))
    node.one(Cancel((task,)))
    assert node.put(unique=unique) != task


def test_a_unique_key_until_started_and_for_a_time(node: TaskNode) -> None:
    first = node.put(unique=Unique(b"s", UNTIL_STARTED))
    node.worker()
    assert node.state(first) == RUNNING
    assert node.put(unique=Unique(b"s", UNTIL_STARTED)) != first
    timed = node.put(unique=Unique(b"t", FOR_A_TIME, 1_000), queue="other")
    node.one(Cancel((timed,)))
    assert node.put(unique=Unique(b"t", FOR_A_TIME, 1_000), queue="other") == timed
    node.wait(1_000)
    assert node.put(unique=Unique(b"t", FOR_A_TIME, 1_000), queue="other") != timed


# --- cancelling, purging --------------------------------------------------------------------------


def test_cancelling_reaches_the_worker_and_does_not_wait_for_ever(node: TaskNode) -> None:
    worker = node.worker()
    task, waiting = node.put(), node.put()
    assert node.one(Cancel((task, waiting, 99), grace_ms=1_000)).tasks == (task, waiting)
    assert node.stops() == [(worker, task, 1, "cancelled")]
    assert (node.state(task), node.state(waiting)) == (RUNNING, CANCELLED)
    node.wait(1_000)
    assert node.state(task) == CANCELLED
    other = node.put()
    node.one(Cancel((other,)))
    node.fail(worker, other, 1, cancelled=True)
    assert node.state(other) == CANCELLED


def test_only_what_waits_may_be_cancelled_and_nothing_becomes_of_what_runs(node: TaskNode) -> None:
    worker = node.worker(prefetch=1)
    running, stored, waiting, later = node.put(), node.put(), node.put(), node.put(delay_ms=5_000)
    cancelled = node.one(Cancel((running, stored, waiting, later, 99), waiting_only=True)).tasks
    assert cancelled == (stored, waiting, later)
    assert node.stops() == [(worker, stored, 1, "moved")]
    assert node.info(running).stopping is False
    node.done(worker, running, 1)
    assert node.state(running) == DONE


def test_a_watch_tells_which_tasks_run_already_if_asked(node: TaskNode) -> None:
    node.worker()
    running, waiting = node.put(), node.put()
    watch = node.tasks.watch
    assert list(watch(WatchTasks((running, waiting))).backlog) == []
    (told,) = watch(WatchTasks((running, waiting), running=True)).backlog
    assert (told.what, told.task, told.state, told.attempt) == ("started", running, RUNNING, 1)


def test_a_task_that_completes_although_it_was_cancelled_is_done(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    node.one(Cancel((task,)))
    node.done(worker, task, 1)
    assert node.state(task) == DONE


def test_purging_forgets_and_says_where_to_go_on(node: TaskNode) -> None:
    ids = node.enqueue(*[Task("f")] * 5)
    first = node.one(Purge("ready", limit=3))
    assert (first.count, first.next) == (3, ids[2])
    rest = node.one(Purge("ready", after=first.next))
    assert (rest.count, rest.next) == (2, 0)
    assert node.ask(ListTasks()).tasks == ()


def test_results_are_forgotten_when_their_time_is_over(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(keep_ms=1_000)
    node.done(worker, task, 1)
    node.wait(999)
    assert node.state(task) == DONE
    node.wait(1)
    assert isinstance(node.ask(TaskQuery(task)), Failure)


def test_what_happened_in_a_queue_is_known_when_it_is_empty(node: TaskNode) -> None:
    worker = node.worker()
    node.done(worker, node.put(queue="a"), 1)
    node.one(Configure("b", running_max=1))
    a, b = node.ask(ListQueues()).queues
    assert (a.name, a.done, a.ready, b.name) == ("a", 1, 0, "b")
    assert node.ask(ListQueues(after="a", limit=1)).queues == (b,)
    node.restart()


def test_peeking_takes_nothing(node: TaskNode) -> None:
    first, second = node.put(), node.put(priority=HIGH)
    assert [each.task for each in node.ask(Peek("default", 5)).tasks] == [second, first]
    assert node.state(first) == READY


def test_a_restart_changes_nothing(node: TaskNode) -> None:
    node.worker("a", load=2, prefetch=1)
    for key in (b"", b"x", b"y"):
        for _ in range(3):
            node.put(key=key)
    node.restart()
    node.put(key=b"x")
    node.restart()
