"""`quorate tasks`, in this process, against a node process."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from quorate import App, Worker, connect
from quorate.errors import TaskGiveUpError
from tests.tasks.cli import Run


@pytest.fixture
def run(quorate_cli: Run) -> Run:
    return partial(quorate_cli, "tasks")


def work(endpoint: str, queue: str) -> None:
    """A worker does all there is."""
    app = App("shop")

    @app.task(name="add")
    async def add(one: int, other: int = 0) -> int:
        return one + other

    @app.task(name="break")
    async def broken() -> None:
        raise TaskGiveUpError("out of\x1b[31m stock")

    async def story() -> None:
        async with connect(endpoint) as db, Worker(db, app, queues=[queue]):
            left = 1
            async with asyncio.timeout(20):
                while left:
                    await asyncio.sleep(0.02)
                    queues = await db.tasks.queues()
                    left = sum(each.ready + each.running for each in queues if each.name == queue)

    asyncio.run(story())


def put(run: Run, *arguments: str) -> str:
    said = run("put", *arguments)
    assert (said.status, said.err) == (0, ""), said
    return said.out.strip()


@pytest.mark.processes
def test_tasks_are_put_looked_at_and_tended(endpoint: str, run: Run) -> None:
    task = put(run, "add", "1", "-q", "a", "--priority", "high", "--key", "t", "--unique", "u")
    assert put(run, "add", "5", "-q", "a", "--unique", "u") == task
    late = put(run, "add", "2", "-q", "a", "--at", "2999-01-01T00:00+01:00")
    assert "ISO 8601" in run("put", "add", "--at", "noon").err
    assert "time zone" in run("put", "add", "--at", "2999-01-01").err
    said = run("list", "-q", "a")
    assert said.out.splitlines() == [
        f"{task}\tready\tadd\ta\tattempt 0",
        f"{late}\tscheduled\tadd\ta\tattempt 0",
    ]
    shown: dict[str, Any] = json.loads(run("show", task, "--json").out)
    assert (shown["state"], shown["args"], shown["priority"], shown["key"]) == (
        "ready", [1], 3, "t",
    )  # fmt: skip
    assert run("cancel", late).out == f"cancelled: {late}\n"
    again = run("cancel", late, "--json")
    assert (again.status, json.loads(again.out)) == (4, {"cancelled": [], "not": [int(late)]})
    assert run("pause", "a").status == 0
    assert "a (paused)" in run("stats").out
    assert run("resume", "a").status == 0
    work(endpoint, "a")
    assert json.loads(run("show", task, "--json").out)["result"] == 1
    assert run("list", "--state", "done", "-q", "a").out.startswith(f"{task}\tdone")


@pytest.mark.processes
def test_dead_tasks_are_shown_and_requeued(endpoint: str, run: Run) -> None:
    task = put(run, "break", "-q", "b")
    work(endpoint, "b")
    said = run("dead", "-q", "b")
    why = "quorate.errors.TaskGiveUpError: out of\\x1b[31m stock"
    assert said.out == f"{task}\tdead\tbreak\tb\tattempt 1\t{why}\n"
    assert run("requeue", task).out == f"requeued: {task}\n"
    assert run("requeue", task).status == 4
    assert run("dead", "-q", "b").out == ""


@pytest.mark.processes
def test_counts_are_shown_again_and_again(run: Run) -> None:
    put(run, "add", "-q", "c")
    page = run("top", "--count", "2", "--interval", "0.01").out
    assert page.count("places of") == 2
    rows = [line.split() for line in page.splitlines()]
    assert ["c", "1", "0", "0", "0", "0", "0"] in [row[:7] for row in rows]
    stats = json.loads(run("stats", "--json").out)
    assert {"system", "queues", "workers"} <= stats.keys()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("show", "999999"), 4, "never was, or is forgotten"),
        (("list", "--state", "lost"), 2, "lost"),
        (("put", "f", "--priority", "huge"), 2, "huge"),
        (("put", ""), 2, "function"),
        (("top", "--interval", "0"), 2, "--interval is some seconds"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    run: Run, arguments: tuple[str, ...], status: int, said: str
) -> None:
    found = run(*arguments)
    assert found.status == status, found
    assert said in found.err
    assert found.err.count("\n") == 1
