"""``db.tasks`` on a real node in this process, without workers or with one that is played."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import Database
from quorate.base.task_commands import Complete, Done, Fail, Failed, Register
from quorate.base.task_queries import TaskEvent, WorkerEvent
from quorate.base.task_specs import FOR_A_TIME, UNTIL_STARTED, Needs, Retry
from quorate.client.task_watch import TaskWatch
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    LimitExceededError,
    QueueFullError,
    TaskNotFoundError,
    TaskPayloadError,
    TaskPendingError,
    WatchLaggingError,
    WorkerNotFoundError,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made:
        yield made


async def played(db: Database, load: int = 10) -> int:
    """A worker that only takes."""
    lease = await db.grant_lease(60)
    worker: int = (await db.tasks.run(Register("played", lease, load))).worker
    return worker


async def complete(db: Database, worker: int, *tasks: int, attempt: int = 1) -> None:
    done = tuple(Done(task, attempt, b"r%d" % task) for task in tasks)
    await db.tasks.run(Complete(worker, done))


async def test_a_task_is_enqueued_with_all_that_is_said_of_it(db: Database) -> None:
    task = await db.tasks.enqueue(
        "f",
        b"p",
        queue="mail",
        priority="high",
        key="tenant",
        delay=5,
        retries=7,
        backoff=0.5,
        backoff_max=9,
        backoff_factor=3,
        jitter=0.25,
        fatal=[KeyError, "Other"],
        timeout=None,
        heartbeat=2,
        expires=60,
        crashes=1,
        keep=10,
        unique="one",
        unique_for=30,
        capabilities=["gpu", "big"],
        excluded={"w2"},
        prefers="w3",
        headers={"trace": "1"},
    )
    info = await db.tasks.info(task)
    assert info.spec is not None
    options = info.spec.options
    assert options is not None
    assert options.unique is not None
    assert (info.spec.queue, info.spec.priority, info.spec.key) == ("mail", 3, b"tenant")
    assert (info.spec.function, info.spec.payload, info.spec.delay_ms) == ("f", b"p", 5000)
    assert options.retry == Retry(7, 500, 9000, 3.0, 0.25, ("KeyError", "Other"))
    assert (options.timeout_ms, options.heartbeat_ms, options.expires_ms) == (0, 2000, 60_000)
    assert (options.crashes, options.keep_ms, options.prefers) == (1, 10_000, "w3")
    assert (options.unique.key, options.unique.hold, options.unique.hold_ms) == (
        b"one",
        FOR_A_TIME,
        30_000,
    )
    assert options.needs == Needs(("big", "gpu"), "", ("w2",))
    assert options.headers == (("trace", "1"),)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"function": ""}, "function is a name of 1 to"),
    ({"payload": "text"}, "a payload is bytes, not str"),
    ({"payload": b"x" * (1 << 20) + b"y"}, "over the limit"),
    ({"queue": "q" * 300}, "queue is a name"),
    ({"priority": 11}, "a priority is 0 to 9"),
    ({"priority": "big"}, "a priority is 0 to 9"),
    ({"delay": -1}, "delay is a number of seconds"),
    ({"at": datetime(2030, 1, 1)}, "at is a datetime with a time zone"),  # noqa: DTZ001
    ({"at": 5}, "at is a datetime with a time zone"),
    ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 1}, "a delay or a time"),
    ({"timeout": float("nan")}, "timeout is a number of seconds"),
    ({"retries": -1}, "retries is a number"),
    ({"jitter": 2.0}, "a task cannot be so"),
    ({"backoff_factor": "x"}, "a task cannot be so"),
    ({"unique": ""}, "at least one byte"),
    ({"unique": "a", "unique_until": "never"}, "unique_until is"),
    ({"unique": "a", "unique_until": "ended", "unique_for": 1}, "not both"),
    ({"capabilities": "gpu"}, "several names"),
    ({"worker": "a", "excluded": ["a"]}, "both required and excluded"),
    ({"worker": "a", "beside": 3}, "beside another one"),
    ({"headers": {"a": 1}}, "a task cannot be so"),
    ({"colour": "red"}, "a task has no 'colour'"),
    ({"payload": b"x", "args": (1,)}, "a payload, or args and kwargs"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=lambda each: str(each)[:40])
def test_what_a_task_cannot_be_is_said_before_anything_is_sent(
    given: dict[str, Any], said: str
) -> None:
    arguments: dict[str, Any] = {"function": "f", **given}
    with pytest.raises(InvalidArgumentError, match=said):
        quorate.connect("127.0.0.1:1").tasks.task(**arguments)


def test_an_argument_that_cannot_be_packed_is_named() -> None:
    tasks = quorate.connect("127.0.0.1:1").tasks
    with pytest.raises(TaskPayloadError, match="argument 2 of task 'f', of type object"):
        tasks.task("f", args=(1, object()))
    with pytest.raises(TaskPayloadError, match="argument 'x' of task 'f', of type complex"):
        tasks.task("f", kwargs={"x": 1j})
    with pytest.raises(TaskPayloadError, match="the limit is"):
        tasks.task("f", args=(b"x" * (1 << 20), b"y"))


async def test_a_batch_goes_in_whole_or_not_at_all(db: Database) -> None:
    await db.tasks.configure("small", depth_max=3)
    specs = [db.tasks.task("f", args=(n,), queue="small") for n in range(4)]
    with pytest.raises(QueueFullError, match="4 more are too many"):
        await db.tasks.enqueue_many(specs)
    with pytest.raises(LimitExceededError, match="1001 tasks"):
        await db.tasks.enqueue_many([specs[0]] * 1001)
    found = await db.tasks.enqueue_many(specs[:3])
    assert len(set(found.tasks)) == 3
    assert (await db.tasks.enqueue_many([])).tasks == ()
    info = await db.tasks.queue("small")
    assert info is not None
    assert info.ready == 3
    assert await db.tasks.queue("none") is None


async def test_whoever_holds_a_unique_key_is_who_others_get(db: Database) -> None:
    first = await db.tasks.enqueue("f", unique="k", unique_until="started")
    assert await db.tasks.enqueue("g", unique="k") == first
    again = await db.tasks.enqueue_many([db.tasks.task("f", unique="k"), db.tasks.task("f")])
    assert again.tasks[0] == first
    assert again.known == (0,)
    info = await db.tasks.info(first)
    assert info.spec is not None
    assert info.spec.options is not None
    assert info.spec.options.unique is not None
    assert info.spec.options.unique.hold == UNTIL_STARTED


async def test_endings_are_told_however_they_came(db: Database) -> None:
    worker = await played(db)
    done, dead, gone, late = [await db.tasks.enqueue("f", retries=0) for _ in range(4)]
    waiting = asyncio.ensure_future(db.tasks.wait([done, dead, gone, done, 999]))
    await complete(db, worker, done)
    await db.tasks.run(Fail(worker, (Failed(dead, 1, "Kind", "why"),)))
    await db.tasks.cancel(gone)
    await db.tasks.run(Fail(worker, (Failed(gone, 1, cancelled=True),)))
    found = await asyncio.wait_for(waiting, 5)
    assert [each.what for each in found] == ["done", "dead", "cancelled", "done", "unknown"]
    assert found[0].result == b"r%d" % done
    assert (found[1].kind, found[1].error) == ("Kind", "why")
    # Whoever asks later hears the same, at once.
    again = await db.tasks.wait([done, dead, gone])
    assert [each.what for each in again] == ["done", "dead", "cancelled"]
    assert again[0].result == found[0].result
    with pytest.raises(TaskPendingError, match=f"1 of 2 tasks, {late} among them"):
        await db.tasks.wait([done, late], timeout=0.02)
    with pytest.raises(InvalidArgumentError, match="id is a number"):
        await db.tasks.wait([0])


async def test_what_ends_in_the_turn_in_which_time_is_up_has_ended(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    ending: asyncio.Future[TaskEvent] = loop.create_future()
    event = TaskEvent("done", 7, 6, "f", "default", 1, 1, 0)
    monkeypatch.setattr(db.tasks.endings, "expect", lambda _task: ending)
    monkeypatch.setattr(db.tasks.endings, "forget", lambda _task, _ending: None)
    waiting = asyncio.ensure_future(db.tasks.wait([7], timeout=0.02))
    loop.call_later(0.01, ending.set_result, event)
    await asyncio.sleep(0)
    time.sleep(0.03)  # noqa: ASYNC251  so that both are due in one turn
    assert await waiting == (event,)


async def test_those_who_wait_in_one_turn_share_a_watch_and_leave_none(db: Database) -> None:
    worker = await played(db, 1000)
    added = await db.tasks.enqueue_many([db.tasks.task("f")] * 300)
    waits = [asyncio.ensure_future(db.tasks.wait([task])) for task in added.tasks]
    await db.tasks.system()
    watches = db.watches
    assert len(watches._subscriptions) == 1
    for wait in waits[:100]:
        wait.cancel()
    await complete(db, worker, *added.tasks[50:])
    assert len(await asyncio.gather(*waits[100:])) == 200
    await db.tasks.system()
    assert not watches._subscriptions
    assert not db.tasks.endings._waited


async def test_what_a_new_leader_does_not_know_yet_is_not_taken_for_unknown(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node answers a watch from what it has applied so far."""
    worker = await played(db)
    task = await db.tasks.enqueue("f")
    waiting = asyncio.ensure_future(db.tasks.wait([task]))
    await db.tasks.system()
    db.tasks.endings.ended(TaskEvent("unknown", task, 0, "", "", 0, 0, 0))
    await db.tasks.system()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await complete(db, worker, task)
    assert (await asyncio.wait_for(waiting, 5))[0].what == "done"


async def test_who_waits_hears_that_the_handle_was_closed(tmp_path: Path) -> None:
    async with quorate.open(tmp_path) as db:
        task = await db.tasks.enqueue("f")
        waiting = asyncio.ensure_future(db.tasks.wait([task]))
        await db.tasks.system()
    with pytest.raises(ClosedError):
        await asyncio.wait_for(waiting, 5)


async def test_tasks_are_listed_peeked_cancelled_requeued_and_purged(db: Database) -> None:
    worker = await played(db, 0)
    added = (await db.tasks.enqueue_many([db.tasks.task("f", queue="a")] * 7)).tasks
    other = await db.tasks.enqueue("g", queue="b", delay=60)
    assert [each.task async for each in db.tasks.list("ready", "a", page=3)] == [*added]
    assert [each.task async for each in db.tasks.list(after=added[4])] == [*added[5:], other]
    assert [each.task for each in await db.tasks.peek("a", 2)] == [*added[:2]]
    assert await db.tasks.cancel(added[0], other, 12345) == (added[0], other)
    assert await db.tasks.cancel(other) == ()
    found = await db.tasks.holdings(worker)
    assert found.tasks == ()
    with pytest.raises(WorkerNotFoundError):
        await db.tasks.holdings(worker + 1)
    assert await db.tasks.requeue(added[0]) == ()
    assert await db.tasks.purge("cancelled") == 2
    assert await db.tasks.purge("ready", "a") == 6
    with pytest.raises(TaskNotFoundError):
        await db.tasks.info(other)
    with pytest.raises(InvalidArgumentError, match="a state is one of"):
        await db.tasks.purge("weird")  # type: ignore[arg-type]
    system = await db.tasks.system()
    assert (system.ready, system.scheduled, system.idle) == (0, 0, 1)


async def test_rules_are_what_was_said(db: Database) -> None:
    await db.tasks.configure("q", paused=True, rate=3, rate_per=0.5, ageing=2)
    info = await db.tasks.queue("q")
    assert info is not None
    assert (info.paused, info.rate, info.rate_ms, info.ageing_ms) == (True, 3, 500, 2000)
    await db.tasks.settle(strategy="weighted", running_max=5, load_max=0.9, affinity=False)
    system = await db.tasks.system()
    assert (system.strategy, system.running_max, system.load_max) == ("weighted", 5, 900)
    assert (system.capabilities, system.affinity) == (True, False)


async def test_what_happens_is_seen_by_whoever_looks_on(db: Database) -> None:
    async with db.tasks.watch() as everything, db.tasks.watch("q") as one:
        worker = await played(db)
        task = await db.tasks.enqueue("f", queue="q")
        await db.tasks.enqueue("f", queue="r")
        await complete(db, worker, task)
        seen = [each async for each in _first(everything, 6)]
        assert [each.what for each in seen if isinstance(each, WorkerEvent)] == ["registered"]
        mine = [each.what async for each in _first(one, 3)]
        assert mine == ["enqueued", "started", "done"]
        assert all(not each.result for each in seen if isinstance(each, TaskEvent))


async def _first(watch: TaskWatch, count: int) -> AsyncIterator[Any]:
    async with asyncio.timeout(5):
        async for event in watch:
            yield event
            count -= 1
            if not count:
                return


async def test_who_looks_on_and_takes_nothing_is_told(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.client.task_watch.BUFFER_EVENTS_MAX", 10)
    async with db.tasks.watch("q") as watch:
        await db.tasks.enqueue_many([db.tasks.task("f", queue="q")] * 20)
        with pytest.raises(WatchLaggingError):
            _ = [each async for each in watch]
