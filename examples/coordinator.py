"""A coordinator in five parts: tasks, a workflow, who may run what, failures, and how all stands.

    python examples/coordinator.py

It plays its workers itself, against a node of its own in a temporary directory. In production the
workers are processes of their own, with a coordinator each on `quorate.connect(...)`, or
`quorate worker` (see docs/coordinator.md).
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

from quorate import App, Worker
from quorate.coordinator import (
    Coordinator,
    CoordinatorConfig,
    NoAvailableWorkerError,
    RetryPolicy,
    TaskAssignment,
    create_default_coordinator,
)
from quorate.errors import TaskFailedError


async def work(coordinator: Coordinator, count: int) -> list[TaskAssignment]:
    """Do the next *count* tasks that workers of this coordinator get: square numbers, and fail at
    what is none."""
    distributor = coordinator.get_distributor()
    done = []
    for _ in range(count):
        given = await distributor.assign_next(timeout=10)
        if given is None:
            raise SystemExit("no worker got anything to do")
        await distributor.start_task(given)  # its time runs; from here on it may fail
        if isinstance(given.payload, int):
            await distributor.complete_task(given, ok=True, result=given.payload**2)
        else:
            error = f"TypeError: {given.payload!r} has no square"
            await distributor.complete_task(given, ok=False, error=error)
        done.append(given)
    return done


async def tasks(coordinator: Coordinator) -> None:
    """1. Workers register, tasks are submitted; urgent ones go first, results are kept."""
    manager = coordinator.get_worker_manager()
    for name in ("ada", "bob"):
        await manager.register({"name": name, "max_load": 2, "model_name": "squarer"})
    ids = await coordinator.submit_tasks(
        [{"type": "square", "payload": number, "priority": "high"} for number in range(6)]
    )
    await work(coordinator, len(ids))
    results = [await coordinator.get_distributor().get_result(each) for each in ids]
    print(f"1. squares: {results}", flush=True)
    if results != [number**2 for number in range(6)]:
        raise SystemExit("a square is wrong, or lost")


async def workflow(coordinator: Coordinator) -> None:
    """2. Tasks that depend on each other, run by typed functions. Whoever leads, or dies."""
    app = App("report")

    @app.task(name="fetch")
    async def fetch(source: str) -> int:
        return len(source)

    @app.task(name="add-up")
    async def add_up() -> int:
        return sum(value or 0 for value in app.context().inputs.values())

    report: dict[str, Any] = {
        "id": "report-1",
        "name": "report",
        "fail_fast": True,
        "tasks": [
            {"id": "orders", "type": "fetch", "payload": "orders"},
            {"id": "visits", "type": "fetch", "payload": "visits"},
            {"id": "total", "type": "add-up", "depends_on": ["orders", "visits"]},
        ],
    }
    async with Worker(coordinator.db, app, name="reporter"):
        outcome = await coordinator.execute_workflow(report, timeout=30)
    print(f"2. workflow {outcome.id}: {outcome.status}, {outcome.results}", flush=True)
    if outcome.results["total"] != len("orders") + len("visits"):
        raise SystemExit("the workflow has added up something else")


async def affinity(coordinator: Coordinator) -> None:
    """3. What a task needs of its worker, and which one it names."""
    manager, distributor = coordinator.get_worker_manager(), coordinator.get_distributor()
    gpu = await manager.register({"name": "gpu-1", "capabilities": ["gpu", "vision"]})
    seen = await coordinator.submit_task({"type": "square", "payload": 12, "capabilities": ["gpu"]})
    (first,) = await work(coordinator, 1)
    beside = await coordinator.submit_task(
        {"type": "square", "payload": 13, "affinity": {"same_worker_as": seen}}
    )
    (second,) = await work(coordinator, 1)
    elsewhere = {"excluded_workers": [gpu], "preferred_worker": "bob"}
    await coordinator.submit_task({"type": "square", "payload": 14, "affinity": elsewhere})
    (third,) = await work(coordinator, 1)
    names = [(await manager.get(each.worker_id)).name for each in (first, second, third)]
    print(f"3. tasks {seen} and {beside} ran on {names[0]}, the next on {names[2]}", flush=True)
    if names != ["gpu-1", "gpu-1", "bob"] or second.reason != "beside":
        raise SystemExit(f"they ran on {names}")
    try:
        await manager.select_worker("capability-match", ["quantum"])
    except NoAvailableWorkerError as error:
        print(f"   as it should be: {error}", flush=True)
    if await distributor.assign_next():
        raise SystemExit("somebody got what nobody asked for")


async def failures(coordinator: Coordinator) -> None:
    """4. What fails is tried again, after a pause, and then lies among the dead letters."""
    policy = RetryPolicy(max_retries=2, base_delay_ms=10, backoff_factor=2.0)
    task = await coordinator.submit_task(
        {"type": "square", "payload": "seven", "retry_policy": policy}
    )
    attempts = await work(coordinator, 3)
    try:
        await coordinator.get_distributor().get_result(task, timeout=10)
    except TaskFailedError as error:
        print(f"4. {error}", flush=True)
    (letter,) = await coordinator.get_dead_letters()
    if (letter.task_id, letter.attempts) != (task, len(attempts)):
        raise SystemExit(f"among the dead letters is {letter}")
    heard = {each.worker_id for each in attempts}
    for worker in heard:  # three failures in a row would keep a worker from getting more
        await coordinator.get_worker_manager().heartbeat({"worker_id": worker})
    await coordinator.retry_dead_letter(task)
    await coordinator.get_distributor().cancel_task(task)


async def monitoring(coordinator: Coordinator) -> None:
    """5. Workers and tasks by what they are, how far all is, and how well each worker does."""
    health, progress = await coordinator.get_health(), await coordinator.get_progress()
    print(
        f"5. {health.idle_workers} idle workers, {health.running_tasks} running tasks, "
        f"load {health.avg_load_factor:.2f}; {progress.percent_complete:.0f} % of {progress.total}",
        flush=True,
    )
    for row in await coordinator.get_performance_summary():
        rate, mean_ms = row.success_rate, row.avg_duration_ms
        print(f"   {row.name}: {rate:.0%} of {row.completed + row.failed}, {mean_ms:.1f} ms each")
    if progress.percent_complete != 100 or health.running_tasks:
        raise SystemExit("something is left")


async def main() -> None:
    """All five, one after the other."""
    config = CoordinatorConfig(max_concurrent_tasks=50)
    with tempfile.TemporaryDirectory() as folder:
        async with create_default_coordinator(folder, config) as coordinator:
            for part in (tasks, workflow, affinity, failures, monitoring):
                await part(coordinator)


if __name__ == "__main__":
    asyncio.run(main())
