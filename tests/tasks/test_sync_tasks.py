"""``db.tasks``, ``db.workflows`` and ``db.schedules`` without ``await``, on a real node."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import quorate
from quorate import App, Worker, Workflow, sync
from quorate.base.task_queries import TaskEvent
from quorate.client import database
from quorate.errors import TaskCancelledError, TaskFailedError, TaskPayloadError, TaskPendingError

app = App("sync")


@app.task(name="double")
def double(value: int, /, **more: int) -> int:
    return 2 * value + sum(more.values())


@app.task(name="fail", retries=0)
def fail() -> None:
    raise ValueError("no")


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync.Database]:
    with sync.open(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture
def worker(db: sync.Database) -> Iterator[None]:
    """On the handle's own loop."""
    found: list[Worker] = []

    async def start(twin: database.Database) -> None:
        found.append(await Worker(twin, app, queues=["default"]).start())

    db._run(start)
    yield
    db._run(lambda _twin: found[0].drain(0))


@pytest.mark.usefixtures("worker")
def test_a_call_is_submitted_and_its_result_had(db: sync.Database) -> None:
    sent = db.tasks.submit(double, 21, self=1, function=-1)  # names of parameters on the way
    assert sent.get(timeout=10) == 42
    assert (sent.info().function, sent.info().state) == ("double", 6)
    assert not sent.cancel()
    assert db.tasks.result_of(double, sent.id).get() == 42
    with pytest.raises(TaskFailedError) as caught:
        db.tasks.submit(fail).get()
    assert "ValueError: no" in caught.value.error
    assert "in fail" in caught.value.error
    with pytest.raises(TaskPayloadError, match="cannot be called so"):
        db.tasks.submit(double)  # type: ignore[call-arg]


def test_what_nobody_runs_is_pending_until_it_is_cancelled(db: sync.Database) -> None:
    sent = db.tasks.submit(double.options(queue="nobody's"), 1)
    with pytest.raises(TaskPendingError):
        sent.get(timeout=0.02)
    assert sent.cancel()
    with pytest.raises(TaskCancelledError):
        sent.get()


def test_enqueueing_looking_and_tending(db: sync.Database) -> None:
    ids = db.tasks.enqueue_many(
        db.tasks.task("f", args=(n,), queue="tended") for n in range(5)
    ).tasks
    one = db.tasks.enqueue("f", queue="tended", priority="high")
    assert [info.task for info in db.tasks.list(queue="tended", page=2)] == [*ids, one]
    assert [info.task for info in db.tasks.peek("tended")] == [one]
    found = db.tasks.queue("tended")
    assert found is not None
    assert (found.ready, db.tasks.info(one).function) == (6, "f")
    db.tasks.configure("tended", running_max=1)
    db.tasks.pause("tended")
    assert [info.paused for info in db.tasks.queues() if info.name == "tended"] == [True]
    db.tasks.resume("tended")
    assert db.tasks.cancel(one) == (one,)
    assert db.tasks.wait([one], timeout=5)[0].what == "cancelled"
    assert db.tasks.wait_one(one).what == "cancelled"
    assert db.tasks.purge("ready", "tended") == 5
    assert db.tasks.look(ids[0]) is not None
    assert db.tasks.system().ready == 0


def test_a_watch_is_an_iterator(db: sync.Database) -> None:
    with db.tasks.watch("watched") as events:
        assert events.wait(0.01) is None
        task = db.tasks.enqueue("f", queue="watched")
        event = next(events)
        assert isinstance(event, TaskEvent)
        assert (event.what, event.task) == ("enqueued", task)
        db.tasks.cancel(task)
        found = events.wait(5)
        assert found is not None
        assert found.what == "cancelled"
        assert events.gaps == 0
        closer = threading.Timer(0.05, events.close)
        closer.start()
        assert list(events) == []  # another thread has closed it
        closer.join()
        assert events.wait(1) is None


async def test_closing_a_watch_ends_the_loop_over_it(tmp_path: Path) -> None:
    async with quorate.open(tmp_path) as db:
        watch = await db.tasks.watch().begun()
        looking = asyncio.ensure_future(_all(watch))
        await asyncio.sleep(0.01)
        watch.close()
        assert await asyncio.wait_for(looking, 5) == []
        assert await watch.take() == []


async def _all(watch: object) -> list[object]:
    return [event async for event in watch]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("worker")
def test_a_workflow(db: sync.Database) -> None:
    flow = Workflow("flow")
    flow.add("a", "double", args=(1,))
    flow.signal("said", after=["a"])
    flow.add("b", "double", args=(2,), after=["said"])
    run = db.workflows.submit(flow)
    assert run.signal("said")
    assert not run.signal("said")
    assert [event.what for event in run.progress()][-1] == "done"
    assert run.wait(timeout=5).done == 3
    assert {name: node.result for name, node in run.nodes().items()}["b"] == b"\x04"
    assert db.workflows.run(run.id).info().name == "flow"
    assert [info.workflow for info in db.workflows.list("done")] == [run.id]
    assert not run.cancel()


def test_a_schedule(db: sync.Database) -> None:
    db.schedules.put("tick", "f", every=3600, queue="ticks")
    assert [info.name for info in db.schedules.list()] == ["tick"]
    assert db.schedules.remove("tick")
    assert not db.schedules.remove("tick")


def test_threads_wait_at_the_same_time(db: sync.Database) -> None:
    task = db.tasks.enqueue("f", queue="nobody's")
    ends: list[str] = []
    threads = [
        threading.Thread(target=lambda: ends.append(db.tasks.wait([task])[0].what))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    db.tasks.cancel(task)
    for thread in threads:
        thread.join(5)
    assert ends == ["cancelled"] * 3
