"""Where the systems that this one descends from fell short of their own text: one test for each.

They are numbered as in the list that was made of them. 19 to 22 are about message brokers,
executors over them and the figures of their simulations, of which this room has none.
"""

from __future__ import annotations

import pytest

from quorate.base.results import Failure
from quorate.base.task_commands import Attend, Attended, Cancel, Claim, Enqueue, Settle
from quorate.base.task_queries import TaskEvent, WatchTasks
from quorate.base.task_specs import (
    ASSIGNED,
    BLOCKED,
    DEAD,
    READY,
    RUNNING,
    SCHEDULED,
    Needs,
    Options,
    Retry,
    Task,
)
from quorate.base.workflow_commands import (
    OPTIONAL,
    WF_DONE,
    WF_FAILED,
    After,
    ListNodes,
    Node,
    Submit,
    WorkflowQuery,
)
from quorate.client.coordinator import eta_ms
from quorate.coordinator import CoordinatorConfig
from tests.tasks.support import TaskNode

GUIDE = CoordinatorConfig()


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


def test_1_attempts_wait_as_long_as_the_backoff_says(node: TaskNode) -> None:
    worker = node.worker(lease=node.lease(600_000))
    task = node.put(retry=Retry(8, 1_000, 60_000, 2.0))
    waits = []
    for attempt in range(1, 9):
        node.fail(worker, task, attempt)
        node.one(Attend(worker))  # three failures in a row are enough of a sign otherwise
        info = node.info(task)
        assert info.state == SCHEDULED
        waits.append(info.due_ms - node.time_ms)
        node.wait(waits[-1] - 1)
        assert node.state(task) == SCHEDULED
        node.wait(1)
        assert node.state(task) == RUNNING
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]


def test_2_in_turn_is_in_turn_and_not_whoever_is_idle_first(node: TaskNode) -> None:
    node.one(Settle("round-robin"))
    workers = [node.worker(name, 9) for name in "abc"]
    got = []
    for _ in range(7):
        task = node.put()
        got.append(node.info(task).worker)
        node.done(got[-1], task, 1)  # all are idle, each time
    assert got == [*workers, *workers, workers[0]]


def test_3_what_is_dequeued_is_nobody_elses(node: TaskNode) -> None:
    one, two = node.worker("a", 0), node.worker("b", 0)
    tasks = node.enqueue(*[Task("f")] * 5)
    first, second = node.run("tasks", Claim(one, 3), Claim(two, 3))
    taken = [each.task for each in (*first.tasks, *second.tasks)]
    assert sorted(taken) == sorted(tasks)


def test_4_what_a_dead_worker_had_is_anothers(node: TaskNode) -> None:
    lease = node.lease(5_000)
    dies = node.worker("dies", lease=lease)
    task = node.put()
    lives = node.worker("lives", lease=node.lease(60_000))
    node.wait(5_000)
    info = node.info(task)
    assert (info.worker, info.attempt, info.workers) == (lives, 2, (dies,))


def test_5_a_worker_is_dead_at_the_threshold_and_not_before(node: TaskNode) -> None:
    worker = node.worker(lease=node.lease(GUIDE.dead_worker_threshold_ms))
    begun_ms = node.time_ms
    node.wait(89_999)
    assert worker in node.tasks.ledger.crew.workers
    node.wait(90_001 - (node.time_ms - begun_ms))
    assert worker not in node.tasks.ledger.crew.workers


def test_5_each_setting_of_the_balancer_changes_a_decision(node: TaskNode) -> None:
    plain = node.worker("plain", 10)
    needy = node.put(needs=Needs(("gpu",)))
    picky = node.put(needs=Needs(worker="absent"))
    assert (node.state(needy), node.state(picky)) == (READY, READY)
    node.one(Settle(capabilities=False))
    assert (node.info(needy).worker, node.state(picky)) == (plain, READY)
    node.one(Settle(affinity=False))
    assert node.info(picky).worker == plain
    node.one(Settle(load_max=200))
    tasks = [node.put() for _ in range(3)]  # at 0.2 one more, above none
    assert [node.state(task) for task in tasks] == [RUNNING, READY, READY]
    node.one(Settle(load_max=900))
    assert node.system().running == 5


def test_5_errors_that_are_not_retryable_are_not_retried(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(retry=Retry(5, 0, only=("Net",)))
    node.fail(worker, task, 1, kind="Net")
    node.fail(worker, task, 2, kind="Bad")
    assert (node.state(task), node.info(task).attempt) == (DEAD, 2)


def test_5_a_task_that_kills_its_workers_is_not_handed_out_for_ever(node: TaskNode) -> None:
    task = node.put(crashes=2)
    for _ in range(3):
        lease = node.lease()
        node.worker(lease=lease)
        node.revoke(lease)
    assert (node.state(task), node.info(task).kind) == (DEAD, "crashed")


def test_6_the_cap_on_all_is_one_on_all(node: TaskNode) -> None:
    node.one(Settle(running_max=GUIDE.max_concurrent_tasks))
    workers = [node.worker(name, 30) for name in "abc"]
    tasks = node.enqueue(*[Task("f", queue=f"q{at % 3}") for at in range(51)])
    assert [node.state(task) for task in tasks] == [RUNNING] * 50 + [READY]
    node.done(node.info(tasks[0]).worker, tasks[0], 1)
    assert node.state(tasks[50]) == RUNNING
    assert len(workers) == 3


def test_7_the_attempt_after_a_failure_records_its_result(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put(retry=Retry(1, 0))
    node.fail(worker, task, 1, error="no")
    assert node.done(worker, task, 2, b"yes").stale == ()
    assert (node.info(task).result, node.info(task).attempt) == (b"yes", 2)


def test_8_a_late_worker_does_not_win(node: TaskNode) -> None:
    lease = node.lease(5_000)
    late = node.worker("late", lease=lease)
    task = node.put()
    node.revoke(lease)
    prompt = node.worker("prompt")
    (stale,) = node.done(late, task, 1, b"late").stale
    assert (stale.worker, stale.attempt) == (prompt, 2)
    node.done(prompt, task, 2, b"prompt")
    assert node.done(late, task, 1, b"late").stale
    assert node.info(task).result == b"prompt"


def test_9_a_workflow_survives_its_node(node: TaskNode) -> None:
    worker = node.worker(load=1)
    nodes = (Node("a", Task("f")), Node("b", Task("f"), (After("a"),)))
    flow = node.one(Submit("w", nodes))
    node.done(worker, flow.tasks[0], 1)
    node.restart()
    node.done(worker, flow.tasks[1], 1)
    assert node.ask(WorkflowQuery(flow.workflow)).state == WF_DONE


def test_10_what_fails_is_not_submitted_again_for_ever(node: TaskNode) -> None:
    worker = node.worker(load=9)
    spec = Task("f", options=Options(retry=Retry(0)))
    nodes = (
        Node("bad", spec),
        Node("child", spec, (After("bad"),)),
        Node("free", spec),
        Node("after", spec, (After("bad", OPTIONAL),)),
    )
    flow = node.one(Submit("w", nodes, fail_fast=False))
    bad, _, free, after = flow.tasks
    node.fail(worker, bad, 1)
    node.done(worker, free, 1)
    node.done(worker, after, 1)
    info = node.ask(WorkflowQuery(flow.workflow))
    assert (info.state, info.total) == (WF_FAILED, 4)
    assert len(node.tasks.ledger.tables.live) == 0


def test_11_who_waits_is_told_in_the_entry_that_ends_it(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    interest = node.tasks.watch(WatchTasks((task,)))
    node.done(worker, task, 1)
    heard = [event.what for keys, event in node.told
             if isinstance(event, TaskEvent) and set(keys) & set(interest.keys)]  # fmt: skip
    assert heard == ["done"]


def test_12_a_head_that_nobody_can_run_holds_up_nobody(node: TaskNode) -> None:
    worker = node.worker()
    head = node.put(needs=Needs(("gpu",)), priority=4)
    task = node.put()
    assert (node.state(head), node.info(task).worker) == (READY, worker)


def test_13_the_same_worker_is_the_same_or_it_waits(node: TaskNode) -> None:
    refused = node.one(Enqueue((Task("f", options=Options(beside=77)),)))
    assert isinstance(refused, Failure)
    first = node.put()
    beside = node.put(beside=first)
    assert node.state(beside) == BLOCKED
    lease = node.lease()
    mine = node.worker("mine", lease=lease)
    other = node.worker("other", 5)
    node.done(mine, first, 1)
    assert node.info(beside).worker == mine
    node.revoke(lease)
    assert node.state(beside) == READY  # and not other's
    assert node.system().busy == 0
    assert node.worker("mine") != other
    assert node.state(beside) == RUNNING


def test_14_what_a_worker_believes_to_have_changes_nothing(node: TaskNode) -> None:
    worker = node.worker(load=0, prefetch=2)
    node.put()
    assert node.one(Attend(worker)) == Attended(1)
    node.put()
    assert node.one(Attend(worker)) == Attended(2)
    assert node.state(node.put()) == READY


def test_15_what_was_never_written_is(node: TaskNode) -> None:
    worker = node.worker(load=2)
    flow = node.one(Submit("w", (Node("a", Task("f")), Node("b", Task("f"), (After("a"),)))))
    found = {each.name: each for each in node.ask(ListNodes(flow.workflow)).nodes}
    assert found["b"].after == (flow.tasks[0],)  # dependencies
    node.wait(40)
    node.done(worker, flow.tasks[0], 1)
    node.fail(worker, flow.tasks[1], 1)
    record = node.tasks.ledger.crew.workers[worker].record
    assert (record.done, record.failed, record.ran_ms) == (1, 1, 40)  # metrics
    # Versions and stale ones: test_coordinator.


def test_16_three_retries_are_four_attempts(node: TaskNode) -> None:
    worker = node.worker()
    policy = GUIDE.default_retry_policy
    assert policy.max_retries == 3
    task = node.put(retry=policy.retry())
    for attempt in range(1, 5):
        assert node.state(task) == RUNNING
        node.fail(worker, task, attempt)
        node.wait(4_000)
        node.one(Attend(worker))
    assert (node.state(task), node.info(task).attempt) == (DEAD, 4)


def test_17_to_cancel_is_to_tell_the_worker(node: TaskNode) -> None:
    worker, store = node.worker("w"), node.worker("s", load=0, prefetch=1)
    running, stored = node.put(needs=Needs(worker="w")), node.put(needs=Needs(worker="s"))
    assert (node.state(running), node.state(stored)) == (RUNNING, ASSIGNED)
    node.one(Cancel((running, stored)))
    assert node.stops() == [(worker, running, 1, "cancelled"), (store, stored, 1, "moved")]


def test_18_the_time_left_is_that_of_the_work_left() -> None:
    # Ten left, two at once, 300 ms each: five rounds, however long they have waited.
    assert eta_ms(left=10, at_once=2, ran_ms=3_000, completed=10) == 1_500
    assert eta_ms(left=1, at_once=50, ran_ms=3_000, completed=10) == 300
    assert eta_ms(left=0, at_once=0, ran_ms=0, completed=0) == 0
    assert eta_ms(left=5, at_once=0, ran_ms=9, completed=9) is None
    assert eta_ms(left=5, at_once=5, ran_ms=0, completed=0) is None
