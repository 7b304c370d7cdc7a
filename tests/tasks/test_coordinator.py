"""``quorate.coordinator`` on a real node in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import quorate
from quorate import App, Database, Worker, testing
from quorate.base.task_commands import Assignment
from quorate.base.task_queries import Assigned, Stop
from quorate.client.coordinator_inbox import Inbox
from quorate.coordinator import (
    Coordinator,
    CoordinatorConfig,
    LoadBalancerConfig,
    NoAvailableWorkerError,
    OptimisticLockError,
    RetryPolicy,
    TaskNotFoundError,
    TaskStateError,
    TaskTimeoutError,
    WorkerNotFoundError,
    create_default_coordinator,
)
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    LimitExceededError,
    TaskCancelledError,
    TaskFailedError,
    TaskPendingError,
    WorkflowError,
)

#: Retries at once, and no part of a worker kept free.
QUICK = CoordinatorConfig(
    default_retry_policy=RetryPolicy(max_retries=1, base_delay_ms=1),
    load_balancer=LoadBalancerConfig(max_load_threshold=1.0),
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made:
        yield made


async def made(db: Database, config: CoordinatorConfig = QUICK) -> Coordinator:
    return await Coordinator(db, config).start()


async def worker(it: Coordinator, name: str = "w", load: int = 2, **more: Any) -> int:
    return await it.get_worker_manager().register({"name": name, "max_load": load, **more})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)


def test_defaults_are_those_of_the_guide() -> None:
    config = CoordinatorConfig()
    assert (config.heartbeat_check_interval_ms, config.timeout_check_interval_ms) == (
        30_000,
        10_000,
    )
    assert (config.dead_worker_threshold_ms, config.max_concurrent_tasks) == (90_000, 50)
    assert config.default_task_timeout_ms == 300_000
    retry = config.default_retry_policy
    assert (retry.max_retries, retry.base_delay_ms, retry.max_delay_ms) == (3, 1_000, 60_000)
    assert retry.backoff_factor == 2
    balancer = config.load_balancer
    assert (balancer.consider_capabilities, balancer.respect_affinity) == (True, True)
    assert (balancer.strategy, balancer.max_load_threshold) == ("least-loaded", 0.9)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: CoordinatorConfig(dead_worker_threshold_ms=10), "dead_worker_threshold_ms"),
        (lambda: CoordinatorConfig(timeout_check_interval_ms=0), "timeout_check_interval_ms"),
        (lambda: CoordinatorConfig(max_concurrent_tasks=0), "max_concurrent_tasks"),
        (lambda: CoordinatorConfig(queue=""), "queue"),
        (lambda: LoadBalancerConfig(max_load_threshold=0), "max_load_threshold"),
        (lambda: LoadBalancerConfig(strategy="best"), "strategy"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(backoff_factor=0.5), "1.0"),
    ],
)
def test_settings_that_cannot_be_are_named(make: Any, names: str) -> None:
    with pytest.raises(InvalidArgumentError, match=names):
        make()


async def test_a_task_from_its_submission_to_its_result(db: Database) -> None:
    it = await made(db)
    await it.start()  # harmless
    queue, distributor = it.get_queue(), it.get_distributor()
    id_ = await worker(it, "w", model_name="m", capabilities=("b", "a"))
    low = await it.submit_task({"type": "f", "payload": [1, {"x": 2}], "priority": "high"})
    given = await distributor.assign_next(timeout=5)
    assert given is not None
    assert (given.task_id, given.worker_id, given.attempt) == (low, id_, 1)
    assert (given.type, given.payload, given.running) == ("f", [1, {"x": 2}], False)
    assert (await queue.get(low)).status == "assigned"
    assert await distributor.assign_next() is None
    with pytest.raises(TaskPendingError):
        await distributor.get_result(low)
    with pytest.raises(TaskStateError, match="is assigned"):  # it was not started
        await distributor.complete_task(low)
    started = await distributor.start_task(low)
    assert started.running
    assert await distributor.start_task(started) is started
    assert [row.id for row in await queue.get_running()] == [low]
    await distributor.complete_task(started, True, {"y": 3})
    assert await distributor.get_result(low) == {"y": 3}
    with pytest.raises(TaskStateError):
        await distributor.complete_task(started)
    (row,) = await it.tables.task_results()
    assert (row.task_id, row.status, row.result, row.worker_id) == (low, "completed", {"y": 3}, id_)
    assert (await it.get_worker_manager().get(id_)).model_name == "m"
    assert await it.shutdown()
    with pytest.raises(ClosedError):
        await it.submit_task({"type": "f"})


async def test_errors_are_tried_again_and_end_among_the_dead_letters(db: Database) -> None:
    it = await made(db)
    distributor = it.get_distributor()
    id_ = await worker(it)
    task = await it.submit_task({"type": "f", "payload": "p", "timeout_ms": 60_000})
    for error in (ValueError("no"), "Net: down"):
        given = await distributor.assign_next(timeout=5)
        assert given is not None
        await distributor.start_task(given)
        await distributor.complete_task(given, ok=False, error=error)
    with pytest.raises(TaskFailedError, match="Net: down") as failed:
        await distributor.get_result(task, timeout=5)
    assert failed.value.details == {"task": task, "kind": "Net", "error": "Net: down"}
    (row,) = await it.get_dead_letters()
    assert (row.payload, row.kind, row.attempts, row.workers_tried) == ("p", "Net", 2, (id_, id_))
    assert await it.retry_dead_letter(task)
    assert not await it.retry_dead_letter(task)
    given = await distributor.assign_next(timeout=5)
    assert given is not None
    assert given.attempt == 3
    await distributor.complete_task(await distributor.start_task(given))
    assert await it.purge_completed(older_than_ms=60_000) == 0
    assert await it.purge_completed() == 1
    with pytest.raises(TaskNotFoundError):
        await distributor.get_result(task)
    fussy = {"max_retries": 5, "base_delay_ms": 1, "retryable_errors": ("Net",)}
    task = await it.submit_task({"type": "f", "retry_policy": fussy, "timeout_ms": 1})
    given = await distributor.assign_next(timeout=5)
    assert given is not None
    await distributor.start_task(given)
    with pytest.raises(TaskTimeoutError):  # which is none of its retryable errors
        await distributor.get_result(task, timeout=5)
    await it.shutdown()


async def test_batches_are_whole_and_dequeued_by_one_each(db: Database) -> None:
    it = await made(db)
    queue = it.get_queue()
    many: list[Any] = [{"type": "f", "payload": n} for n in range(999)]
    for bad in (
        {"type": ""},
        {"type": "f", "priority": "top"},
        {"payload": 1},
        {"type": "f", "x": 1},
    ):
        with pytest.raises(InvalidArgumentError):
            await it.submit_tasks([*many, bad])
    with pytest.raises(TaskNotFoundError):
        await it.submit_tasks([*many, {"type": "f", "affinity": {"same_worker_as": 77}}])
    with pytest.raises(LimitExceededError):
        await it.submit_tasks([*many, *many])
    with pytest.raises(WorkerNotFoundError):
        await it.submit_task({"type": "f", "affinity": {"required_worker": 77}})
    assert (await queue.get_stats()).pending == 0
    tasks = await it.submit_tasks(many[:12])
    urgent = await it.submit_task({"type": "f", "priority": "urgent"})
    assert [row.id for row in await queue.peek(2)] == [urgent, tasks[0]]
    assert len(await queue.get_pending()) == 13
    other = await it.submit_task({"type": "f", "priority": "urgent", "queue": "b"})
    pending = [row.task_id for row in await it.views.v_pending_tasks(3)]
    assert pending == [urgent, other, tasks[0]]
    taken = await asyncio.gather(*(queue.dequeue() for _ in range(14)))
    assert sorted(each.task_id for each in taken if each) == [*tasks, urgent]
    assert [each for each in taken if each is None] == [None]
    stats = await queue.get_stats()
    assert (stats.pending, stats.running) == (0, 13)
    assert not await it.shutdown(timeout=0)
    assert (await db.tasks.system()).ready == 14  # not one is lost


async def test_steps_that_are_none_are_refused(db: Database) -> None:
    it = await made(db)
    queue = it.get_queue()
    task = await it.submit_task({"type": "f", "retry_policy": {"max_retries": 0}})
    with pytest.raises(TaskStateError, match="pending, and may become assigned, cancelled"):
        await queue.update_status(task, "running")
    with pytest.raises(InvalidArgumentError):
        await queue.update_status(task, "gone")  # type: ignore[arg-type]
    id_ = await worker(it, "one")
    other = await worker(it, "two")
    await queue.update_status(task, "pending")
    assert (await queue.get(task)).worker_id in (id_, other)  # and at once with one again
    assert (await queue.update_status(task, "running")).status == "running"
    with pytest.raises(TaskStateError, match="is running, and may become"):
        await queue.update_status(task, "running")
    assert (await queue.update_status(task, "failed", error="Bad: it")).status == "dead"
    assert (await queue.update_status(task, "pending")).status == "assigned"
    await queue.update_status(task, "running")
    assert (await queue.update_status(task, "completed", result=1)).status == "completed"
    with pytest.raises(TaskStateError, match="nothing else"):
        await queue.update_status(task, "pending")
    await it.shutdown()


async def test_tasks_are_moved_cancelled_and_told_so(db: Database) -> None:
    it = await made(db)
    distributor = it.get_distributor()
    one, two = await worker(it, "one"), await worker(it, "two", load=1)
    told: list[tuple[int, int, str]] = []
    it.on_stop(lambda given, why: told.append((given.task_id, given.attempt, why)))
    task = await it.submit_task({"type": "f", "affinity": {"required_worker": one}})
    given = await distributor.assign_next(timeout=5)
    assert given is not None
    assert given.reason == "required"
    with pytest.raises(NoAvailableWorkerError):
        await distributor.reassign_task(given)
    free = await it.submit_task({"type": "f"})
    mine = await distributor.assign_next(timeout=5)
    assert mine is not None
    started = await distributor.start_task(mine)
    moved = await distributor.reassign_task(started)
    assert (moved.worker_id, moved.attempt) == ({one: two, two: one}[mine.worker_id], 2)
    with pytest.raises(TaskStateError, match="attempt 2"):
        await distributor.complete_task(started)
    again = await distributor.assign_next(timeout=5)
    assert again is not None
    assert (again.attempt, again.reason) == (2, "moved")
    assert await distributor.cancel_task(task)
    await distributor.start_task(again)
    assert await distributor.cancel_task(free)
    await until(lambda: len(told) == 3)
    assert told == [(free, 1, "moved"), (task, 1, "moved"), (free, 2, "cancelled")]
    await distributor.complete_task(again, ok=False, error="stopped")
    with pytest.raises(TaskCancelledError):
        await distributor.get_result(free, timeout=5)
    assert not await distributor.cancel_task(free)
    assert [row.failed for row in await it.tables.worker_metrics()] == [0, 0]
    await it.shutdown()


async def test_workers_live_by_their_heartbeats(db: Database) -> None:
    config = CoordinatorConfig(
        dead_worker_threshold_ms=1_000, heartbeat_check_interval_ms=100,
        timeout_check_interval_ms=600_000, load_balancer=LoadBalancerConfig(max_load_threshold=1.0),
    )  # fmt: skip
    it = await made(db, config)
    manager, distributor = it.get_worker_manager(), it.get_distributor()
    dies = await worker(it, "dies", load=1)
    lives = await worker(it, "lives", load=1, capabilities=("gpu", "big"))
    tasks = [await it.submit_task({"type": "f", "timeout_ms": 5_000}) for _ in range(2)]
    assert {row.reason for row in await it.tables.worker_assignments()} == {"least-loaded"}
    first = await distributor.assign_next(timeout=5)
    assert first is not None
    assert first.worker_id == dies
    await distributor.start_task(first)
    (candidate,) = await distributor.check_timeouts()
    assert (candidate.task_id, candidate.worker_id) == (first.task_id, dies)
    stale = False
    async with asyncio.timeout(20):
        while len(await manager.get_active()) == 2:
            beat = await manager.heartbeat(
                {"worker_id": lives, "status": "busy", "current_load": 9}
            )
            assert beat.current_load == 1  # whatever it says
            stale = stale or [row.id for row in await it.views.v_stale_workers()] == [dies]
            await asyncio.sleep(0.05)
    assert stale
    with pytest.raises(WorkerNotFoundError):
        await manager.heartbeat({"worker_id": dies})
    assert (await manager.get(dies)).status == "offline"
    second = await distributor.assign_next(timeout=5)
    assert second is not None
    await distributor.complete_task(await distributor.start_task(second))
    third = await distributor.assign_next(timeout=5)  # what the dead one had
    assert third is not None
    assert (third.task_id, third.worker_id, third.attempt) == (tasks[0], lives, 2)
    assert [row.id for row in await manager.get_with_capabilities(["gpu"])] == [lives]
    assert await manager.get_with_capabilities(["gpu", "tpu"]) == []
    assert await manager.unregister(lives) == 1
    assert (await it.get_queue().get(tasks[0])).status == "pending"
    await it.shutdown()


async def test_looks_are_taken_and_say_what_they_see(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    config = CoordinatorConfig(
        dead_worker_threshold_ms=60_000, heartbeat_check_interval_ms=10,
        timeout_check_interval_ms=10,
    )  # fmt: skip
    caplog.set_level(logging.INFO, "quorate.client.coordinator")
    it = await made(db, config)
    await worker(it, "idler")
    await until(lambda: "idler) was silent for" in caplog.text)
    await it.stop()
    await it.stop()
    count = caplog.text.count("was silent")
    assert count == 1  # said once
    await it.shutdown()


async def test_who_is_chosen_and_why(db: Database) -> None:
    config = CoordinatorConfig(max_concurrent_tasks=2)
    it = await made(db, config)
    manager = it.get_worker_manager()
    with pytest.raises(NoAvailableWorkerError):
        await manager.select_worker()
    one = await worker(it, "one", load=1)
    two = await worker(it, "two", load=4, capabilities=("gpu",))
    turns = [(await manager.select_worker("round-robin")).id for _ in range(4)]
    assert turns == [one, two, one, two]
    assert (await manager.select_worker("random", ["gpu"])).id == two
    assert await manager.increment_load(two, 9) == 4
    assert (await manager.select_worker()).id == one
    assert await manager.decrement_load(two, 2) == 2
    assert (await manager.get(two)).max_load == 2
    assert await manager.decrement_load(two, 9) == 0
    with pytest.raises(WorkerNotFoundError):
        await manager.increment_load(77)
    tasks = [await it.submit_task({"type": "f", "capabilities": ["gpu"]}) for _ in range(3)]
    queue = it.get_queue()
    assert [(await queue.get(each)).status for each in tasks] == ["assigned", "assigned", "pending"]
    system = await db.tasks.system()
    assert (system.running_max, system.load_max) == (2, 900)
    await it.shutdown()


async def test_workflows_end_one_way_or_the_other(db: Database) -> None:
    it = await made(db)
    app = App("flow")

    @app.task(name="double")
    async def double(payload: int) -> int:
        if payload < 0:
            raise ValueError("negative")
        return 2 * payload

    @app.task(name="sum")
    async def total() -> int:
        return sum(value or 0 for value in app.context().inputs.values())

    def diamond(*payloads: int) -> dict[str, Any]:
        tasks: list[dict[str, Any]] = [
            {"id": f"d{at}", "type": "double", "payload": payload, "depends_on": ["first"]}
            for at, payload in enumerate(payloads)
        ]
        first = {"id": "first", "type": "double", "payload": 1}
        last = {"id": "last", "type": "sum", "depends_on": [each["id"] for each in tasks]}
        return {"id": "w", "name": "diamond", "tasks": [first, *tasks, last]}

    async with Worker(db, app, concurrency=4):
        good = await it.execute_workflow(diamond(1, 2), timeout=10)
        assert (good.id, good.status, good.errors) == ("w", "done", {})
        assert good.results == {"first": 2, "d0": 2, "d1": 4, "last": 6}
        bad = await it.execute_workflow(diamond(-1, 2), timeout=10)
        assert (bad.status, bad.cause) == ("failed", "d0")
        assert "last" not in bad.results
        assert "negative" in bad.errors["d0"]
        goes_on = diamond(-1, 2) | {"fail_fast": False}
        rest = await it.execute_workflow(goes_on, timeout=10)
        assert (rest.status, rest.results) == ("failed", {"first": 2, "d1": 4})
    cycle = {"id": "c", "tasks": [{"id": "a", "type": "f", "depends_on": ["a"]}]}
    unknown = {"id": "c", "tasks": [{"id": "a", "type": "f", "depends_on": ["b"]}]}
    for wrong in (cycle, unknown):
        with pytest.raises(WorkflowError):
            await it.submit_workflow(wrong)
    rows = await it.tables.task_dependencies()
    assert {(row.task, row.depends_on, row.type) for row in rows} >= {("last", "d0", "blocking")}
    assert all(row.satisfied for row in rows if row.workflow == good.workflow)
    await it.shutdown()


async def test_state_is_changed_from_the_version_that_was_read(db: Database) -> None:
    it, other = await made(db), await made(db)
    assert await it.state.get("a") is None
    first = await it.state.compare_and_set("a", {"n": 1}, 0)
    with pytest.raises(OptimisticLockError) as stale:
        await other.state.compare_and_set("a", {"n": 9}, 0)
    assert stale.value.details == {"key": "a", "expected": 0, "actual": first.version}
    second = await other.state.compare_and_set("a", {"n": 2}, first.version)
    with pytest.raises(OptimisticLockError):
        await it.state.compare_and_set("a", {"n": 3}, first.version)
    with pytest.raises(OptimisticLockError):
        await it.state.delete("a", first.version)
    assert await it.state.get("a") == second
    put = await it.state.put("b", [1])
    assert put.version > second.version
    assert await it.state.list() == [second, put] == await it.tables.distributed_state()
    await it.state.delete("a", second.version)
    with pytest.raises(OptimisticLockError):  # it was another one, of the same value
        await it.state.compare_and_set("a", {"n": 2}, second.version)
    for wrong in ("", None):
        with pytest.raises(InvalidArgumentError):
            await it.state.get(wrong)  # type: ignore[arg-type]

    async def add(coordinator: Coordinator) -> None:
        for _ in range(5):
            while True:
                row = await coordinator.state.get("n")
                value, version = (row.value, row.version) if row else (0, 0)
                try:
                    await coordinator.state.compare_and_set("n", value + 1, version)
                    break
                except OptimisticLockError:
                    continue

    await asyncio.gather(add(it), add(other), add(it))
    found = await it.state.get("n")
    assert found is not None
    assert found.value == 15
    await it.shutdown()
    await other.shutdown()


async def test_views_are_what_the_tables_say(db: Database) -> None:
    it = await made(db)
    assert (await it.get_progress()).percent_complete == 0
    distributor = it.get_distributor()
    one, _ = await worker(it, "one", load=2), await worker(it, "two", load=1)
    for priority in ("low", "high", "normal", "high", "urgent", "low"):
        await it.submit_task({"type": "f", "priority": priority})
    for ok in (True, False, True):
        given = await distributor.assign_next(timeout=5)
        assert given is not None
        started = await distributor.start_task(given)
        await asyncio.sleep(0.02)  # what is counted is milliseconds of cluster time
        await distributor.complete_task(started, ok, error="e")
    queue = await it.tables.task_queue()
    ready = [row for row in queue if row.state == "ready"]
    pending = await it.views.v_pending_tasks()
    assert [row.task_id for row in pending] == [
        row.id for row in sorted(ready, key=lambda row: (-row.priority, row.id))
    ]
    counts = {status: sum(row.status == status for row in queue)
              for status in ("pending", "assigned", "running")}  # fmt: skip
    done = await it.tables.task_results()
    health, progress = await it.get_health(), await it.get_progress()
    assert (health.pending_tasks, health.assigned_tasks, health.running_tasks) == tuple(
        counts.values()
    )
    assert health.completed_tasks == len(done) == 2
    active = await it.views.v_active_workers()
    assert health.avg_load_factor == sum(row.current_load / row.max_load for row in active) / 2
    assert health.idle_workers + health.busy_workers == 2
    assert progress.total == len(queue) + len(done) == 6
    assert progress.percent_complete == pytest.approx(100 * 2 / 6)
    assert progress.eta_ms is not None
    held = [(row.id, row.worker_id) for row in queue if row.worker_id]
    assert held == [(row.task_id, row.worker_id) for row in await it.tables.worker_assignments()]
    metrics = await it.tables.worker_metrics()
    assert sum(row.completed for row in metrics) == len(done)
    (totals,) = await db.tasks.queues()
    assert sum(row.total_run_ms for row in metrics) == totals.ran_ms > 0
    performance = await it.get_performance_summary()
    assert [row.success_rate for row in performance] == [
        row.completed / max(row.completed + row.failed, 1) if row.completed + row.failed else 1
        for row in metrics
    ]
    (summary,), (depth,) = await it.views.v_task_execution_summary(), await it.views.v_queue_depth()
    assert (summary.completed, summary.failures, depth.ready) == (2, 1, len(ready))
    assert await it.views.v_timeout_candidates() == []
    with pytest.raises(InvalidArgumentError):
        await it.views.v_active_workers(0)
    assert one in [row.id for row in await it.tables.workers()]
    await it.shutdown()


async def test_a_coordinator_of_its_own(tmp_path: Path) -> None:
    async with create_default_coordinator(tmp_path / "data", QUICK) as it:
        id_ = await worker(it, load=5)
        distributor = it.get_distributor()
        tasks = await it.submit_tasks([{"type": "f"} for _ in range(5)])
        running = []
        for _ in tasks:
            given = await distributor.assign_next(timeout=5)
            assert given is not None
            running.append(await distributor.start_task(given))

        async def finish() -> None:
            for given in running:
                await asyncio.sleep(0.01)
                await distributor.complete_task(given, True, given.task_id)

        ending = asyncio.create_task(finish())
        await asyncio.sleep(0)
        assert await it.shutdown()  # waits for all five
        await ending
    async with quorate.open(tmp_path / "data") as db:
        assert [info.task async for info in db.tasks.list("done")] == tasks
        assert {info.worker async for info in db.tasks.list("done")} == {id_}


class Looking(Coordinator):
    """*looks*: at which times, in seconds, it looked at what."""

    looks: list[tuple[str, int]]

    async def _look_at_workers(self) -> None:
        self.looks.append(("workers", round(asyncio.get_running_loop().time() - self.began)))
        await super()._look_at_workers()

    async def _look_at_times(self) -> None:
        self.looks.append(("times", round(asyncio.get_running_loop().time() - self.began)))
        await super()._look_at_times()

    began: float


def test_the_times_of_the_guide(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "quorate.client.coordinator")

    async def story(world: testing.World) -> None:
        it = Looking(world.db)
        it.looks, it.began = [], asyncio.get_running_loop().time()
        await it.start()
        manager, distributor = it.get_worker_manager(), it.get_distributor()
        dies = await worker(it, "dies", load=3)
        task = await it.submit_task({"type": "f"})
        given = await distributor.assign_next(timeout=5)
        assert given is not None
        await distributor.start_task(given)
        await world.advance(seconds=55)
        assert await it.views.v_stale_workers() == []
        assert caplog.text == ""
        async with Worker(world.db, App("idle"), name="idle", queues=["none"]):
            await world.advance(seconds=34.9)
            first, second = await manager.get_active()
            assert (first.id, first.stale, second.name, second.stale) == (dies, True, "idle", False)
            assert second.silence_ms < 10_000  # it says nothing, but its lease is renewed
        assert "was silent for" not in caplog.text  # at the look at 60 s they were not yet
        await world.advance(seconds=1)
        assert await manager.get_active() == []
        assert (await it.get_queue().get(task)).status == "pending"
        await world.advance(seconds=10)
        assert [at for what, at in it.looks if what == "workers"] == [30, 60, 90]
        assert [at for what, at in it.looks if what == "times"] == [*range(10, 101, 10)]
        slow = await worker(it, "slow")
        for _ in range(4):  # it lives, and what it runs is not in time
            given = await distributor.assign_next(timeout=70)
            assert given is not None
            await distributor.start_task(given)
            for _ in range(5):
                await world.advance(seconds=60)
                await manager.heartbeat({"worker_id": slow})
        with pytest.raises(TaskTimeoutError):
            await distributor.get_result(task)
        await it.shutdown()

    testing.cluster().run(story)


# --- what is heard of workers ---------------------------------------------------------------------


class Told:
    """A cluster that tells one worker what the test says."""

    def __init__(self) -> None:
        self.stops: list[tuple[int, int, str]] = []
        self.inbox = Inbox(lambda: self)  # type: ignore[arg-type, return-value]
        self.inbox.on_stop.append(
            lambda given, why: self.stops.append((given.task_id, given.attempt, why))
        )
        self.inbox.follow(1)

    def open(self, *callbacks: Any) -> Told:
        self.on_events, self.on_failed = callbacks[3], callbacks[4]
        return self

    def close(self) -> None:
        """Nothing to close."""

    def tell(self, *events: Assigned | Stop) -> None:
        self.on_events(1, msgspec.Raw(msgspec.msgpack.encode(events)))

    def taken(self) -> list[tuple[int, int]]:
        found = iter(self.inbox.take, None)
        return [(given.task_id, given.attempt) for given in found if given is not None]


def attempt(task: int, number: int = 1) -> Assignment:
    return Assignment(task, number, False, "f", b"", "q", b"", 0, 0, 0, 0, 0, "")


async def test_what_a_worker_has_is_told_once_and_forgotten_when_it_is_gone() -> None:
    told = Told()
    told.tell(Assigned((attempt(1), attempt(2), attempt(3))))
    told.tell(Assigned((attempt(1), attempt(2), attempt(3)), whole=True))
    assert told.taken() == [(1, 1), (2, 1), (3, 1)]
    told.tell(Stop(1, 1, "cancelled"), Stop(2, 1, "stolen"), Stop(9, 1, "moved"))
    assert told.inbox.known(1).attempt == 1  # it is still to say how that ended
    with pytest.raises(TaskStateError):
        told.inbox.known(2)
    told.tell(Assigned((attempt(3, 2), attempt(4)), whole=True))  # after a connection was lost
    assert told.stops == [(1, 1, "cancelled"), (2, 1, "stolen"), (1, 1, "moved"), (3, 1, "moved")]
    told.tell(Assigned((attempt(5),)), Stop(5, 1, "moved"))  # before anybody asked for it
    assert told.taken() == [(3, 2), (4, 1)]
    gone: list[int] = []
    told.inbox.on_gone = gone.append
    told.on_failed(WorkerNotFoundError("gone"))
    assert (gone, told.stops[-2:]) == ([1], [(3, 2, "moved"), (4, 1, "moved")])
    assert told.inbox.running == 0


async def test_each_event_is_told_once_under_its_name(db: Database) -> None:
    it = await made(db)
    async with it.events() as events:
        distributor = it.get_distributor()
        id_ = await worker(it)
        policy = {"max_retries": 1, "base_delay_ms": 0}
        good = await it.submit_task({"type": "f"})
        bad = await it.submit_task({"type": "f", "retry_policy": policy})
        run = await it.submit_workflow({"id": "w", "tasks": [{"id": "a", "type": "f"}]})
        for _ in range(4):
            given = await distributor.assign_next(timeout=5)
            assert given is not None
            await distributor.start_task(given)
            await distributor.complete_task(given, given.task_id != bad, error="Bad: it")
        await run.wait(timeout=5)
        await it.get_worker_manager().unregister(id_)
        told = []
        async with asyncio.timeout(5):
            async for event in events:
                told.append(event)
                if event.name == "worker:offline":
                    break
    of_task = {
        task: [(each.name, each.attempt) for each in told
               if each.name.startswith("task") and each.id == task]
        for task in (good, bad)
    }  # fmt: skip
    assert of_task[good] == [
        ("task:enqueued", 0), ("task:assigned", 1), ("task:started", 1), ("task:completed", 1),
    ]  # fmt: skip
    once = [("task:assigned", 1), ("task:started", 1), ("task:failed", 1)]
    again = [(name, 2) for name, _ in once]
    assert of_task[bad] == [("task:enqueued", 0), *once, *again]
    assert [each.final for each in told if each.name == "task:failed"] == [False, True]
    others = [each.name for each in told if not each.name.startswith("task")]
    assert others == [
        "worker:registered", "workflow:started", "workflow:completed", "worker:offline",
    ]  # fmt: skip
    assert events.gaps == 0
    await it.shutdown()


async def test_a_coordinator_whose_cluster_is_gone_ends_all_the_same(tmp_path: Path) -> None:
    it = await create_default_coordinator(tmp_path, QUICK).start()
    await worker(it)
    assert await it.get_queue().dequeue() is None
    await it.db.close()
    with pytest.raises(ClosedError):
        await it.get_queue().dequeue()
    with contextlib.suppress(ClosedError):
        await it.shutdown()
    assert await it.shutdown()  # it was
    with pytest.raises(ClosedError):
        await it.start()
