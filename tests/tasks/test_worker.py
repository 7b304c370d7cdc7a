"""Workers over a real node in this process: what they run, how it stops, and how they go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import App, Completion, Database, Worker, Workflow, ops
from quorate.base.task_commands import Complete, Register
from quorate.base.workflow_commands import WORKFLOW_STATE_NAMES
from quorate.errors import (
    ClosedError,
    FencedError,
    InvalidArgumentError,
    TaskCancelledError,
    TaskFailedError,
    UnavailableError,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made:
        yield made


class Scene:
    """An app whose tasks wait until they are let go, and tell what became of them."""

    def __init__(self) -> None:
        self.app = app = App("scene")
        self.begun: list[tuple[int, int]] = []
        self.told: list[str] = []
        self.go = asyncio.Event()
        self.release = threading.Event()

        @app.task(name="wait", backoff=0.01)
        async def wait(value: int = 0) -> int:
            context = app.context()
            self.begun.append((context.id, context.attempt))
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.told.append(context.reason)
                raise
            return value

        @app.task(name="block", backoff=0.01)
        def block() -> str:
            context = app.context()
            self.begun.append((context.id, context.attempt))
            while not self.release.is_set() and not context.wait_cancelled(0.005):
                pass
            return context.reason or "let go"

        @app.task(name="deaf", backoff=0.01)
        def deaf() -> None:
            self.begun.append((app.context().id, app.context().attempt))
            self.release.wait(10)

        @app.task(name="stubborn", backoff=0.01)
        async def stubborn() -> None:
            while not self.release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)

        @app.task(name="fail", retries=0)
        async def fail() -> None:
            raise ValueError("x")

        @app.task(name="quick")
        async def quick(value: int) -> int:
            return value

        self.wait, self.block, self.deaf, self.fail, self.quick = wait, block, deaf, fail, quick

    async def until_begun(self, count: int) -> None:
        await until(lambda: len(self.begun) >= count)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    made.release.set()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110  what is looked at tells nobody
            await asyncio.sleep(0.002)


async def until_so(ask: Callable[[], Awaitable[object]], answer: object) -> None:
    async with asyncio.timeout(10):
        while await ask() != answer:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.005)


async def end_lease(db: Database) -> None:
    """As an operator does, or an outage."""
    (info,) = await db.tasks.workers()
    await db.revoke_lease(info.lease)


async def test_as_many_run_at_once_as_was_said(db: Database, scene: Scene) -> None:
    async with Worker(db, scene.app, name="w", concurrency=3, prefetch=2) as worker:
        results = [await scene.wait.submit(n) for n in range(6)]
        await scene.until_begun(3)
        assert worker.running == 3
        (info,) = await db.tasks.workers()
        assert (info.name, info.state, info.model) == ("w", "busy", "scene")
        assert (info.load, info.prefetch, info.tasks, info.stored) == (3, 2, 5, 2)
        scene.go.set()
        assert await asyncio.gather(*results) == list(range(6))
        assert worker.statistics().done == 6
        assert worker.statistics().stale == 0
    (info,) = await db.tasks.workers(gone=True)
    assert (info.state, info.done, info.crashed) == ("gone", 6, 0)
    assert [each.attempt for each in [await r.info() for r in results]] == [1] * 6


async def test_what_ended_in_one_turn_is_said_in_one_command(
    db: Database, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    run = db.tasks.run

    def spy(command: object, timeout: float | None = None) -> Any:
        sent.append(command)
        return run(command, timeout)

    monkeypatch.setattr(db.tasks, "run", spy)
    async with Worker(db, scene.app, concurrency=100):
        added = await db.tasks.enqueue_many([scene.quick.make(n) for n in range(100)])
        results = [scene.quick.result_of(each) for each in added.tasks]
        assert await asyncio.gather(*results) == list(range(100))
    said = [each for each in sent if isinstance(each, Complete)]
    assert sum(len(each.tasks) for each in said) == 100
    assert len(said) <= 3


async def test_a_task_is_stopped_when_it_is_cancelled(db: Database, scene: Scene) -> None:
    async with Worker(db, scene.app):
        coroutine, thread = await scene.wait.submit(), await scene.block.submit()
        await scene.until_begun(2)
        assert await coroutine.cancel()
        assert await thread.cancel()
        with pytest.raises(TaskCancelledError):
            await coroutine
        assert scene.told == ["cancelled"]
        # Code that heard of it and came to its end all the same is done: once, whichever it is.
        assert await thread == "cancelled"


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(
    db: Database, scene: Scene
) -> None:
    async with Worker(db, scene.app) as worker:
        result = await scene.wait.options(timeout=0.1).submit(5)
        await scene.until_begun(2)
        assert scene.told == ["timeout"]
        scene.go.set()
        assert await result == 5
        assert [attempt for _, attempt in scene.begun] == [1, 2]
        assert worker.statistics().dropped == 1
        await until(lambda: not worker.lingering)


async def test_who_lost_the_lease_stops_everything_and_comes_back_as_another(
    db: Database, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # whatever tests before this one have set
    async with Worker(db, scene.app, name="w") as worker:
        first = worker.id
        result = await scene.wait.submit(8)
        await scene.until_begun(1)
        await end_lease(db)
        await scene.until_begun(2)
        assert scene.told == ["lost"]
        assert worker.id > first
        scene.go.set()
        assert await result == 8
        info = await result.info()
        assert (info.attempt, info.worker) == (2, worker.id)
        assert worker.statistics().registrations == 2
    assert "registers anew" in caplog.text


async def test_what_a_worker_writes_under_an_attempt_that_is_over_is_refused(
    db: Database, scene: Scene
) -> None:
    outcomes: list[str] = []

    @scene.app.task(name="writer", backoff=0.01)
    async def write() -> None:
        context = scene.app.context()
        if context.attempt == 1:
            with contextlib.suppress(asyncio.CancelledError):  # a zombie
                await end_lease(db)
                await asyncio.sleep(10)
        try:
            await db.kv.put("k", f"{context.attempt}", fence=context.fence)
            outcomes.append(f"{context.attempt} wrote")
        except FencedError:
            outcomes.append(f"{context.attempt} was refused")

    async with Worker(db, scene.app):
        await (await write.submit())
        await until(lambda: len(outcomes) == 2)
    assert sorted(outcomes) == ["1 was refused", "2 wrote"]
    found = await db.kv.get("k")
    assert found is not None
    assert found.value == b"2"


async def test_a_worker_that_leaves_gives_back_what_it_has_not_begun(
    db: Database, scene: Scene
) -> None:
    worker = await Worker(db, scene.app, concurrency=1, prefetch=2).start()
    results = [await scene.wait.submit(n) for n in range(3)]
    await scene.until_begun(1)
    draining = asyncio.ensure_future(worker.drain())
    await until(lambda: worker.statistics().given_back == 2)
    late = await scene.wait.submit(3)
    scene.go.set()
    await draining
    assert await results[0] == 0
    infos = [await each.info() for each in (*results[1:], late)]
    assert [(each.state, each.errors, each.crashes) for each in infos] == [(3, 0, 0)] * 3
    async with Worker(db, scene.app):
        assert await asyncio.gather(*results, late) == [0, 1, 2, 3]
    with pytest.raises(InvalidArgumentError, match="started once"):
        await worker.start()


async def test_what_does_not_end_within_the_grace_is_stopped_and_given_back(
    db: Database, scene: Scene
) -> None:
    worker = await Worker(db, scene.app, name="w", grace=0.05).start()
    results: list[Any] = [await scene.wait.submit(), await scene.block.submit()]
    await scene.until_begun(2)
    began = time.monotonic()
    await worker.drain()
    assert time.monotonic() - began < 1.0
    assert scene.told == ["drained"]
    assert await results[1] == "drained"  # it came to its end in time
    info = await results[0].info()
    assert (info.state, info.attempt, info.errors, info.crashes) == (3, 1, 0, 0)


async def test_a_second_call_hurries_the_first(db: Database, scene: Scene) -> None:
    worker = await Worker(db, scene.app).start()
    await scene.wait.submit()
    await scene.until_begun(1)
    draining = asyncio.ensure_future(worker.drain())
    await asyncio.sleep(0.01)
    await worker.drain()
    await asyncio.wait_for(draining, 2)
    assert scene.told == ["drained"]


async def test_a_worker_that_goes_at_once_is_handed_nothing_more(
    db: Database, scene: Scene
) -> None:
    scene.app.use(db)
    for _ in range(4):
        await scene.wait.submit()
    worker = Worker(db, scene.app, concurrency=1, prefetch=1)
    await worker.start()
    await scene.until_begun(1)
    await worker.drain(0)
    assert worker.statistics().given_back <= 3
    left = [info async for info in db.tasks.list()]
    assert len(left) == 4
    assert all(info.attempt <= 1 and not info.crashes for info in left)
    assert not await db.tasks.workers()


@pytest.mark.parametrize("which", ["deaf", "stubborn"])
async def test_code_that_does_not_stop_takes_a_place_until_it_does(
    db: Database, scene: Scene, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr("quorate.client.task_post.LINGER_S", 0.01)

    async def load() -> int:
        (info,) = await db.tasks.workers()
        return info.load

    async with Worker(db, scene.app, concurrency=2, error_pause=0.01) as worker:
        function = scene.app.functions[which]
        result = await function.options(timeout=0.1, retries=0).submit()
        with pytest.raises(TaskFailedError):
            await result
        await until_so(load, 1)
        assert len(worker.lingering) == 1
        assert await (await scene.quick.submit(1)) == 1
        scene.release.set()
        await until_so(load, 2)


async def test_failures_in_a_row_are_a_pause_not_the_end(db: Database, scene: Scene) -> None:
    async with Worker(db, scene.app, concurrency=1, error_pause=0.2):
        failed = [await scene.fail.submit() for _ in range(3)]
        await db.tasks.wait([each.id for each in failed])
        (info,) = await db.tasks.workers()
        assert info.state == "error"
        began = time.monotonic()
        assert await (await scene.quick.submit(2)) == 2
        assert time.monotonic() - began > 0.1


async def test_code_says_how_far_it_is_from_any_thread(db: Database, scene: Scene) -> None:
    @scene.app.task(name="threaded")
    def threaded() -> None:
        for part in range(50):
            scene.app.context().progress(part / 100, f"part {part}")
        scene.app.context().progress(note="nearly")
        scene.begun.append((0, 0))
        scene.release.wait(10)

    async with Worker(db, scene.app):
        result = await threaded.submit()
        await scene.until_begun(1)

        async def note() -> str:
            return (await result.info()).note

        await until_so(note, "nearly")
        assert (await result.info()).permille == 490
        scene.release.set()
        await result


async def test_tasks_that_ask_for_heartbeats_get_them(db: Database, scene: Scene) -> None:
    async with Worker(db, scene.app):
        result = await scene.wait.options(heartbeat=0.15, retries=0).submit(4)
        await asyncio.sleep(0.5)
        scene.go.set()
        assert await result == 4


async def test_what_is_said_too_late_is_dropped(
    db: Database, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # whatever tests before this one have set
    """A worker that hears nothing of its watch, as if its connection stood still."""
    async with Worker(db, scene.app) as worker:
        result = await scene.wait.options(timeout=0.1, retries=0).submit()
        await scene.until_begun(1)
        post = worker._post
        assert post is not None
        post._watch.pause()
        await db.tasks.wait([result.id])
        scene.go.set()
        await until(lambda: worker.statistics().stale == 1)
        post._watch.resume()
        assert await (await scene.quick.submit(1)) == 1
        assert worker.running == 0
    assert "came too late: it is dead, attempt 1" in caplog.text


async def test_what_was_taken_away_while_nobody_told_is_stopped(db: Database, scene: Scene) -> None:
    async with Worker(db, scene.app) as worker:
        result = await scene.wait.options(timeout=0.1, retries=0).submit()
        await scene.until_begun(1)
        post = worker._post
        assert post is not None
        post._watch.pause()
        await db.tasks.wait([result.id])
        assert scene.told == []
        post._watch.resume()
        await until(lambda: scene.told == ["moved"])
        assert worker.running == 0


async def test_a_watch_that_begins_anew_neither_loses_nor_repeats(
    db: Database, scene: Scene
) -> None:
    async with Worker(db, scene.app, concurrency=4) as worker:
        results = [await scene.wait.submit(n) for n in range(2)]
        await scene.until_begun(2)
        post = worker._post
        assert post is not None
        post._watch.pause()
        results += [await scene.wait.submit(n) for n in (2, 3)]
        await results[0].cancel()
        post._watch.resume()
        await scene.until_begun(4)
        await until(lambda: scene.told == ["cancelled"])
        scene.go.set()
        assert await asyncio.gather(*results[1:]) == [1, 2, 3]
        assert len(scene.begun) == 4
        # A node that has not come as far as this client knows is not believed.
        post._heard += 1_000
        post._watch.pause()
        post._watch.resume()
        await asyncio.sleep(0.05)
        assert post._watch.id == 0 or post._watch.paused


async def test_a_task_of_a_workflow_knows_what_came_before_and_adds_to_it(
    db: Database, scene: Scene
) -> None:
    context = scene.app.context

    @scene.app.task(name="split", backoff=0.01)
    async def split(words: list[str]) -> int:
        more = Workflow("more")
        for word in words:
            more.add(f"count {word}", "count", args=(word,), after=["split"])
        added = await context().spawn(more, before=["sum"])
        again = await context().spawn(more.nodes, before=["sum"])
        assert added.workflow == context().workflow
        assert again.tasks == (0, 0)  # they are there already
        if context().attempt == 1:
            raise ValueError("and once more")
        return len(words)

    @scene.app.task(name="count")
    def count(word: str) -> tuple[str, int]:
        assert context().inputs == {"split": 2}
        return word, len(word)

    @scene.app.task(name="sum")
    async def total() -> dict[str, Any]:
        return dict(context().inputs)

    flow = Workflow("words")
    flow.add("split", "split", args=(["a", "bcd"],), backoff=0.01)
    flow.add("sum", "sum", after=["split"])
    async with Worker(db, scene.app):
        run = await db.workflows.submit(flow)
        assert WORKFLOW_STATE_NAMES[(await run.wait(timeout=10)).state] == "done"
        nodes = await run.nodes()
        found = await total.result_of(nodes["sum"].task)
        assert found == {"split": 2, "count a": ["a", 1], "count bcd": ["bcd", 3]}

        @scene.app.task(name="alone", retries=0)
        async def alone() -> None:
            assert (context().workflow, context().node, context().inputs) == (0, "", {})
            await context().spawn([])

        with pytest.raises(TaskFailedError, match="is part of no workflow"):
            await (await alone.submit())


async def test_a_completion_and_its_writes_are_one(db: Database, scene: Scene) -> None:
    runs: list[int] = []

    @scene.app.task(name="book", backoff=0.01, retries=2)
    async def book(value: int) -> Completion[int]:
        runs.append(scene.app.context().attempt)
        return Completion(
            value, [ops.put("booked", str(value))], compare=[ops.version("open") == 1]
        )

    @scene.app.task(name="wrong")
    def wrong() -> Completion[None]:
        return Completion(None, ["no operation"])  # type: ignore[list-item]

    async with Worker(db, scene.app, error_pause=0.01) as worker:
        result = await book.submit(7)
        await until(lambda: runs == [1])
        await db.kv.put("open", "yes")
        assert await result == 7
        assert 2 <= len(runs) <= 3
        found = await db.kv.get("booked")
        assert found is not None
        assert found.value == b"7"
        with pytest.raises(TaskFailedError, match="attempt 1: 'no operation' is not one of"):
            await (await wrong.submit())
        assert worker.statistics().done == 1
        await db.kv.delete("open")
        with pytest.raises(TaskFailedError, match="attempt 3") as raised:
            await (await book.submit(8))
        assert raised.value.kind == "NotTogetherError"
        assert (await db.kv.get("booked")) == found


async def test_what_follows_a_completion_is_enqueued_with_it_or_not_at_all(
    db: Database, scene: Scene
) -> None:
    packed: list[int] = []

    @scene.app.task(name="pack", queue="packing")
    def pack(value: int) -> None:
        packed.append(value)

    @scene.app.task(name="order", backoff=0.01, retries=1)
    async def order(value: int) -> Completion[str]:
        several = [pack.make(value), pack.make(value + 1)]
        return Completion("ordered", [ops.put("last", str(value))], tasks=several)

    await db.tasks.configure("packing", depth_max=3)
    async with Worker(db, scene.app, queues=["default"]) as worker:
        assert await (await order.submit(1)) == "ordered"
        with pytest.raises(TaskFailedError, match="holds 2 of 3 tasks, and 2 more") as raised:
            await (await order.submit(5))
        assert raised.value.kind == "QueueFullError"
        last = await db.kv.get("last")
        assert last is not None
        assert last.value == b"1"
        assert worker.statistics().done == 1
    async with Worker(db, scene.app, queues=["packing"]):
        await until(lambda: packed == [1, 2])


async def test_a_burst_ends_when_there_is_nothing_more_to_do(db: Database, scene: Scene) -> None:
    scene.app.use(db)
    results = [await scene.quick.submit(n) for n in range(5)]
    await scene.quick.options(queue="other").submit(1)
    worker = Worker(db, scene.app, queues=["default"], concurrency=2)
    await asyncio.wait_for(worker.run(burst=True), 5)
    assert worker.statistics().done == 5
    assert await asyncio.gather(*results) == list(range(5))
    info = await db.tasks.queue("other")
    assert info is not None
    assert info.ready == 1


async def test_run_ends_when_it_is_told_to_or_the_handle_is_closed(
    tmp_path: Path, scene: Scene
) -> None:
    async with quorate.open(tmp_path) as db:
        worker = Worker(db, scene.app)
        running = asyncio.ensure_future(worker.run())
        await until(lambda: worker.id)
        worker.stop()
        await asyncio.wait_for(running, 5)
        worker = Worker(db, scene.app)
        running = asyncio.ensure_future(worker.run())
        await until(lambda: worker.id)
    with pytest.raises(ClosedError):
        await asyncio.wait_for(running, 5)
    unreachable = quorate.connect("127.0.0.1:1", timeout=0.1)
    with pytest.raises(UnavailableError):
        await Worker(unreachable, scene.app).start()


async def test_a_worker_whose_registration_has_no_answer_leaves_no_ghost(
    db: Database, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = db.tasks.run

    async def deaf(command: object) -> None:
        await run(command)
        raise UnavailableError("no answer")

    def spy(command: object, timeout: float | None = None) -> Any:
        if isinstance(command, Register):
            return asyncio.ensure_future(deaf(command))
        return run(command, timeout)

    monkeypatch.setattr(db.tasks, "run", spy)
    with pytest.raises(UnavailableError, match="no answer"):
        await Worker(db, scene.app).start()
    assert await db.tasks.workers() == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": 0}, "concurrency is a number from 1"),
        ({"prefetch": -1}, "prefetch is a number from 0"),
        ({"queues": "mail"}, "queues are several names"),
        ({"ttl": 0.1}, "a ttl is"),
        ({"grace": -1}, "grace is a number of seconds"),
        ({"name": "x" * 300}, "a worker is a name"),
    ],
)
def test_what_a_worker_cannot_be_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        Worker(quorate.connect("127.0.0.1:1"), App("a"), **given)


async def test_a_worker_leaves_also_when_nobody_hears_it(tmp_path: Path, scene: Scene) -> None:
    config = quorate.NodeConfig(node_id=1, data=str(tmp_path), listen="127.0.0.1:0")
    node = quorate.Node(config)
    await node.start()
    async with quorate.connect(node.address) as db:
        worker = await Worker(db, scene.app, ttl=1.0, grace=30).start()
        await scene.wait.submit()
        await scene.until_begun(1)
        await node.stop()
        scene.go.set()
        began = time.monotonic()
        await worker.drain()
        assert time.monotonic() - began < 5


async def test_over_a_network_the_lease_lives_on_a_thread_of_its_own(
    tmp_path: Path, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = quorate.NodeConfig(node_id=1, data=str(tmp_path), listen="127.0.0.1:0")
    node = quorate.Node(config)
    await node.start()
    try:
        async with quorate.connect(node.address) as db:
            scene.app.use(db)
            async with Worker(db, scene.app, ttl=1.0) as worker:
                names = {each.name for each in threading.enumerate()}
                assert "quorate-pulse" in names
                result = await scene.wait.options(heartbeat=0.2, retries=0).submit(1)
                await asyncio.sleep(1.3)
                assert worker.statistics().registrations == 1
                scene.go.set()
                assert await result == 1
                await end_lease(db)
                await until(lambda: worker.statistics().registrations == 2)
                assert await (await scene.quick.submit(3)) == 3
            assert await db.tasks.workers() == ()
            leases = await db.list_leases()
            assert not [each for each in leases.leases if each.name.startswith("worker")]
        await until(lambda: "quorate-pulse" not in {t.name for t in threading.enumerate()})
    finally:
        await node.stop()
