"""`db.workflows` and `db.schedules` on a real node in this process, with a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import quorate
from quorate import App, Database, Worker, Workflow, ops
from quorate.base.fencing import Fence
from quorate.base.task_commands import Register
from quorate.base.task_specs import DEAD, DONE
from quorate.base.workflow_commands import WORKFLOW_STATE_NAMES
from quorate.client.task_payloads import unpack_arguments, unpack_result
from quorate.client.together import Attempt
from quorate.errors import (
    InvalidArgumentError,
    NotTogetherError,
    TaskPendingError,
    WorkflowError,
    WorkflowNotFoundError,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made:
        yield made


@pytest.fixture
def app() -> App:
    app = App("flows")

    @app.task(name="add")
    async def add(value: int) -> int:
        inputs = app.context().assignment.inputs
        return value + sum(each.result[0] for each in inputs if each.result)

    @app.task(name="hear")
    async def hear() -> str:
        return f"said by {app.context().inputs['go']['by']}"

    @app.task(name="break", retries=0)
    async def broken() -> None:
        raise ValueError("broken")

    return app


def name_of(state: int) -> str:
    return WORKFLOW_STATE_NAMES[state]


async def test_a_workflow_runs_and_its_progress_is_told(db: Database, app: App) -> None:
    flow = Workflow("sum")
    flow.add("a", "add", args=(1,))
    flow.add("b", "add", args=(2,), after=["a"])
    flow.add("c", "add", args=(3,), after=["a"])
    flow.add("d", "add", args=(4,), after=["b", "c"], same_worker_as="b")
    run = await db.workflows.submit(flow)

    async def look_on() -> list[tuple[str, int]]:
        return [(event.what, event.done) async for event in run.progress()]

    looking = asyncio.ensure_future(look_on())
    async with Worker(db, app, concurrency=4):
        info = await run.wait(timeout=10)
    seen = await looking
    assert (name_of(info.state), info.done) == ("done", 4)
    assert seen[-1] == ("done", 4)
    nodes = await run.nodes()
    assert {name: each.result[0] for name, each in nodes.items()} == {
        "a": 1, "b": 3, "c": 4, "d": 11,
    }  # fmt: skip
    assert [each.workflow async for each in db.workflows.list("done")] == [run.id]
    assert [each async for each in db.workflows.list("failed")] == []


async def test_what_was_done_is_undone_when_it_fails(db: Database, app: App) -> None:
    flow = Workflow("saga", keep=30 * 86_400)
    flow.add("book", "add", args=(1,), undo=db.tasks.task("add", args=(0,)))
    flow.add("pay", "break", after=["book"], retries=0)
    flow.add("send", "add", args=(1,), after=["pay"])
    flow.add("tell", "add", args=(1,), after_any_end=["pay"], inputs=["book"])
    run = await db.workflows.submit(flow)
    async with Worker(db, app):
        info = await run.wait(timeout=10)
    assert (name_of(info.state), info.cause) == ("compensated", "pay")
    nodes = await run.nodes()
    assert (nodes["pay"].state, nodes["undo book"].state) == (DEAD, DONE)


async def test_signals_sleeps_cancelling_and_waiting(db: Database, app: App) -> None:
    flow = Workflow("slow", at_once=1, fail_fast=False)
    flow.signal("go", timeout=60)
    flow.sleep("nap", 0.05, after=["go"])
    flow.add("a", "add", args=(1,), after=["nap"], key="tenant", priority="high")
    flow.add("heard", "hear", after=["go"])
    run = await db.workflows.submit(flow)
    with pytest.raises(TaskPendingError, match=f"workflow {run.id} had not ended"):
        await run.wait(timeout=0.05)
    assert await run.signal("go", {"by": "Ada"})
    assert not await run.signal("go", "again")
    async with Worker(db, app):
        assert name_of((await run.wait(timeout=10)).state) == "done"
    assert unpack_result((await run.nodes())["heard"].result) == "said by Ada"
    assert not await run.cancel()
    other = await db.workflows.submit(flow)
    assert await db.workflows.run(other.id).cancel(undo=True)
    assert name_of((await other.wait(timeout=10)).state) == "cancelled"


async def test_what_cannot_be_is_refused(db: Database) -> None:
    flow = Workflow("bad")
    flow.add("a", "f", after=["b"])
    with pytest.raises(WorkflowError, match="'b', which is not there"):
        await db.workflows.submit(flow)
    with pytest.raises(InvalidArgumentError, match="as a list of names"):
        flow.add("c", "f", after="ab")
    with pytest.raises(InvalidArgumentError, match="beside"):
        flow.add("c", "f", same_worker_as="b")
    with pytest.raises(InvalidArgumentError, match="compensations"):
        flow.add("undo a", "f")
    with pytest.raises(InvalidArgumentError):
        await db.workflows.submit(Workflow("empty"))
    with pytest.raises(InvalidArgumentError, match="a workflow is running, "):
        [each async for each in db.workflows.list("lost")]  # type: ignore[arg-type]
    with pytest.raises(WorkflowNotFoundError):
        await db.workflows.run(99).info()
    with pytest.raises(WorkflowNotFoundError):
        await db.workflows.run(99).wait()
    with pytest.raises(WorkflowNotFoundError):
        await db.workflows.run(99).signal("go")


async def test_schedules_are_put_shown_and_removed(db: Database) -> None:
    await db.schedules.put("often", "add", args=(7,), every=0.05, queue="q", overlap=False)
    await db.schedules.put("weekly", "add", every=7 * 86_400)
    assert await db.schedules.remove("weekly")
    await db.schedules.put("daily", "add", args=(1,), cron="30 4 * * *", zone="Europe/Berlin")
    async with asyncio.timeout(10):
        while not await db.tasks.peek("q"):  # noqa: ASYNC110  the node's own time
            await asyncio.sleep(0.02)
    (task,) = await db.tasks.peek("q")
    assert task.spec is not None
    assert unpack_arguments(task.spec.payload) == ([7], {})
    async with asyncio.timeout(10):
        while True:
            daily, often = [each async for each in db.schedules.list()]
            if daily.next_ms:
                break
            await asyncio.sleep(0.02)
    assert (daily.name, daily.fired, daily.next_ms % 60_000) == ("daily", 0, 0)
    assert (often.every_ms, often.overlap) == (50, False)
    assert await db.schedules.remove("often")
    assert not await db.schedules.remove("often")
    for more in ({"cron": "x"}, {"cron": "* * * * *", "zone": "Mars"}, {}, {"every": -1}):
        with pytest.raises(InvalidArgumentError):
            await db.schedules.put("bad", "add", **more)  # type: ignore[arg-type]


async def test_keys_and_tasks_in_one_transaction(db: Database) -> None:
    task = db.tasks.task("add", args=(1,), unique="order/7")
    done = await db.together([ops.missing("k")], then=[ops.put("k", "v")], tasks=[task, task])
    assert done.txn is not None
    assert done.txn.succeeded
    assert done.known == (1,)
    with pytest.raises(NotTogetherError, match="its comparisons do not hold"):
        await db.together([ops.missing("k")], tasks=[db.tasks.task("add")])
    assert (await db.tasks.system()).ready == 1
    lease = await db.grant_lease(60)
    worker = (await db.tasks.run(Register("w", lease, 1))).worker
    stale = Attempt(worker, done.tasks[0], 9)
    with pytest.raises(NotTogetherError, match="attempt 1 of task"):
        await db.together(then=[ops.put("k", "w")], completes=stale)
    last = Attempt(worker, done.tasks[0], 1, b"\x07")
    both = await db.together(then=[ops.put("k", "w")], tasks=[task], completes=last)
    assert len(both.tasks) == 1
    assert both.tasks != done.tasks[:1]
    (ended,) = await db.tasks.wait(done.tasks[:1])
    assert (ended.what, ended.result) == ("done", b"\x07")
    for more in (
        {},
        {"then": ["k"]},
        {"tasks": [1]},
        {"tasks": [task], "fence": Fence("tasks", b"x", 1)},
    ):
        with pytest.raises(InvalidArgumentError):
            await db.together(**more)  # type: ignore[arg-type]
