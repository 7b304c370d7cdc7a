"""`quorate workflows`, `schedules`, and the tables of `tasks`, against a node process."""

from __future__ import annotations

import asyncio

import pytest

from quorate import App, Worker, Workflow, connect
from quorate.coordinator import TABLES, VIEWS, Coordinator
from tests.tasks.cli import Run


@pytest.fixture
def run(quorate_cli: Run) -> Run:
    return quorate_cli


async def begun(endpoint: str) -> tuple[int, int]:
    """A workflow that waits for somebody, and one that fails."""
    waits = Workflow("wa[i]ts")
    waits.add("first", "f")
    waits.signal("word", after=["first"])
    fails = Workflow("fails")
    fails.add("bad", "bad", retries=0)
    fails.add("child", "f", after=["bad"])
    app = App("flows")

    @app.task(name="f")
    async def f() -> int:
        return 7

    @app.task(name="bad")
    async def bad() -> None:
        raise ValueError("no\x1b[31m")

    async with connect(endpoint) as db, Worker(db, app, name="w"):
        runs = [await db.workflows.submit(each) for each in (waits, fails)]
        await runs[1].wait(timeout=10)
        async for event in runs[0].progress():
            if event.done:
                break
        return runs[0].id, runs[1].id


@pytest.mark.processes
def test_workflows_are_looked_at_signalled_and_cancelled(endpoint: str, run: Run) -> None:
    waits, fails = asyncio.run(begun(endpoint))
    page = run("workflows", "list").out.splitlines()
    assert [line.split() for line in page[1:]] == [
        [str(waits), "wa[i]ts", "running", "1/2"], [str(fails), "fails", "failed", "2/2", "bad"],
    ]  # fmt: skip
    (row,) = run("workflows", "list", "--state", "failed", "--json").rows
    assert (row["workflow"], row["cause"], row["dead"]) == (fails, "bad", 1)
    (shown,) = run("workflows", "show", str(fails), "--json").rows
    assert {node["node"]: node["state"] for node in shown["tasks"]} == {
        "bad": "dead", "child": "cancelled",
    }  # fmt: skip
    assert "no\\x1b[31m" in run("workflows", "show", str(fails)).out
    assert run("workflows", "show", str(fails), "--follow").status == 4
    assert run("workflows", "signal", str(waits), "word", "go").status == 0
    assert run("workflows", "signal", str(waits), "word").status == 4
    followed = run("workflows", "show", str(waits), "--follow")
    assert followed.status == 0
    assert "done" in followed.out
    assert "wa[i]ts done" in followed.err
    assert "100%" in followed.err
    events = run("workflows", "show", str(waits), "-f", "--json").rows
    assert (events[0]["what"], events[-1]["tasks"][0]["result"]) == ("done", 7)
    late = run("workflows", "cancel", str(waits), "--json")
    assert (late.status, late.rows) == (4, [{"cancelled": False}])
    for command in (("show",), ("cancel",), ("signal",)):
        more = ("x",) if command == ("signal",) else ()
        gone = run("workflows", *command, "999", *more)
        assert (gone.status, gone.err.count("\n")) == (4, 1)
    assert run("workflows", "list", "--state", "lost").status == 2


@pytest.mark.processes
def test_schedules_are_added_and_tended(run: Run) -> None:
    assert run("schedules", "list").out == ""
    add = ("schedules", "add", "sweep", "f", "1", "x", "-q", "s")
    assert run(*add, "--every", "3600", "--no-overlap").status == 0
    assert run("schedules", "add", "report", "f", "--cron", "0 7 * * *", "--paused").status == 0
    page = run("schedules", "list").out.splitlines()
    assert [line.split()[0] for line in page[1:]] == ["report", "sweep"]
    assert "every 3600 s" in page[2]
    (row,) = run("schedules", "show", "sweep", "--json").rows
    assert (row["function"], row["args"], row["overlap"]) == ("f", [1, "x"], False)
    assert "0 7 * * *" in run("schedules", "show", "report").out
    task = run("schedules", "trigger", "sweep").out.strip()
    assert run("schedules", "trigger", "sweep", "--json").rows == [{"task": None}]
    assert run("tasks", "cancel", task).status == 0
    assert run("schedules", "pause", "sweep").status == 0
    assert run("schedules", "show", "sweep", "--json").rows[0]["paused"]
    assert run("schedules", "resume", "sweep", "--json").rows[0]["paused"] is False
    assert run("schedules", "remove", "sweep").status == 0
    for command in ("show", "pause", "resume", "trigger", "remove"):
        gone = run("schedules", command, "sweep")
        assert (gone.status, gone.out, gone.err.count("\n")) == (4, "", 1)
    bad = run("schedules", "add", "x", "f", "--cron", "never")
    assert (bad.status, bad.err.count("\n")) == (2, 1)
    assert run("schedules", "add", "x", "f").status == 2
    assert run("schedules", "add", "x", "f", "--every", "1", "--misfire", "maybe").status == 2


@pytest.mark.processes
def test_tables_and_views_are_printed(endpoint: str, run: Run) -> None:
    names = [row["name"] for row in run("tasks", "tables", "--json").rows]
    assert names == [*TABLES, *VIEWS]

    async def prepare() -> None:
        async with connect(endpoint) as db:
            it = await Coordinator(db).start()
            await it.state.put("k", {"n": 1})
            await it.submit_task({"type": "f", "payload": "p", "delay_ms": 60_000})

    asyncio.run(prepare())
    for name in names:
        said = run("tasks", "view", name)
        assert (said.status, said.err) == (0, "")
        assert len(run("tasks", "view", name, "--json", "--limit", "1").rows) <= 1
    assert run("tasks", "view", "distributed_state", "--json").rows[0]["value"] == {"n": 1}
    assert any(row["payload"] == "p" for row in run("tasks", "view", "task_queue", "--json").rows)
    assert run("tasks", "workers").status == 0
    wrong = run("tasks", "view", "secrets")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)


@pytest.mark.processes
def test_a_task_is_given_to_a_worker_by_hand(endpoint: str, run: Run) -> None:
    async def prepare() -> tuple[int, list[int]]:
        async with connect(endpoint) as db:
            it = await Coordinator(db).start()
            manager = it.get_worker_manager()
            queues = ("byhand",)
            workers = [
                await manager.register({"name": name, "queues": queues}) for name in ("a", "b")
            ]
            return await it.submit_task({"type": "f", "queue": "byhand"}), workers

    task, (first, second) = asyncio.run(prepare())
    given = run("tasks", "assign", str(task), "--json").rows
    assert given == [{"task": task, "worker": second, "attempt": 2}]
    said = run("tasks", "assign", str(task), "-w", str(first)).out
    assert said == f"worker {first}, attempt 3\n"
    again = run("tasks", "assign", str(task), "-w", str(first))
    assert (again.status, again.err.count("\n")) == (4, 1)
    assert run("tasks", "assign", "999999").status == 4
    assert run("tasks", "assign", str(task), "-w", "999999").status == 1
