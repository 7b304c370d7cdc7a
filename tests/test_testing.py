"""What quorate.testing promises to those who test their code with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import testing
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    StuckError,
    TaskFailedError,
    VirtualTimeError,
)
from quorate.testing import World, plugin, running

pytest_plugins = ("pytester",)

DAY_S = 86_400


class Visits(quorate.Replicated):
    """Counts."""

    count: quorate.Table[str, int]

    @quorate.replicated
    def hit(self) -> int:
        self.count.put("", self.count.get("", 0) + 1)
        return self.count[""]


def told(story: Any, **settings: Any) -> Any:
    """What *story* returns, and that it took no time to speak of."""
    began_s = time.perf_counter()
    try:
        return testing.cluster(**settings).run(story, patience=25)
    finally:
        assert time.perf_counter() - began_s < 30


def test_time_passes_only_while_nothing_is_to_be_done() -> None:
    order: list[tuple[float, str]] = []

    async def sleep(hours: float, name: str) -> None:
        await asyncio.sleep(hours * 3600)
        order.append((asyncio.get_running_loop().time() / 3600, name))

    async def story() -> float:
        await asyncio.gather(sleep(3, "c"), sleep(1, "a"), sleep(2, "b"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30 * DAY_S):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    began_s = time.perf_counter()
    assert testing.run(story) == 3 * 3600 + 30 * DAY_S
    assert time.perf_counter() - began_s < 5
    assert order == [(1, "a"), (2, "b"), (3, "c")]


def test_a_retry_after_a_day_takes_milliseconds() -> None:
    app = quorate.App("t")
    seen: list[datetime] = []

    async def story(world: World) -> float:
        @app.task(name="send", queue="mail", retries=2, backoff=DAY_S, backoff_max=10 * DAY_S)
        async def send(address: str) -> str:
            seen.append(world.now())
            if len(seen) < 3:
                raise ConnectionError("no network")
            return address

        async with world.worker(app):
            result = await send.submit("ada")
            await world.settle()
            (task,) = world.enqueued("mail")
            assert (task.state, task.attempt, task.args) == ("scheduled", 1, ("ada",))
            assert task.due == world.start + timedelta(days=1)
            assert "no network" in task.error
            began_s = time.perf_counter()
            await world.run_until_idle()
            took_s = time.perf_counter() - began_s
            assert await result == "ada"
        return took_s

    took_s = told(story)
    assert [round((at - seen[0]) / timedelta(hours=1), 4) for at in seen] == [0, 24, 72]
    assert took_s < 5


def test_who_waits_for_a_result_needs_no_more_than_to_wait() -> None:
    app = quorate.App("t")

    @app.task(name="late")
    async def late() -> str:
        await asyncio.sleep(100)
        return "here"

    async def story(world: World) -> timedelta:
        async with world.worker(app):
            assert await (await late.options(delay=7 * DAY_S).submit()) == "here"
        return world.now() - world.start

    assert told(story) - timedelta(days=7, seconds=100) < timedelta(seconds=1)


def test_cron_ticks_at_its_time_of_day() -> None:
    ticks: list[str] = []

    async def story(world: World) -> None:
        app = quorate.App("t")

        @app.task(name="report")
        async def report() -> None:
            ticks.append(world.now().strftime("%a %H:%M"))

        async with world.worker(app):
            await world.db.schedules.put("r", "report", cron="0 7 * * mon-fri", zone="UTC")
            await world.db.schedules.put("e", "report", every=DAY_S * 1.5)
            await world.advance(days=4)
            assert world.now() - world.start - timedelta(days=4) < timedelta(seconds=1)

    told(story, start=datetime(2026, 3, 5, 12, tzinfo=UTC))  # a Thursday
    assert ticks == ["Fri 07:00", "Sat 00:00", "Sun 12:00", "Mon 07:00"]


def test_a_workflow_sleeps_for_days_and_its_signal_runs_out() -> None:
    app = quorate.App("t")

    @app.task(name="step")
    async def step() -> int:
        return 1

    async def story(world: World) -> None:
        flow = quorate.Workflow("f")
        flow.sleep("pause", 3 * DAY_S)
        flow.add("then", "step", after=["pause"])
        flow.signal("approved", after=["then"], timeout=10 * DAY_S)
        flow.add("last", "step", after=["approved"])
        async with world.worker(app):
            run = await world.db.workflows.submit(flow)
            await world.advance(days=2, hours=23)
            nodes = await run.nodes()
            assert nodes["then"].result == b""
            await world.advance(hours=2)
            nodes = await run.nodes()
            assert nodes["then"].result == b"\x01"
            info = await run.wait()  # for the signal, which does not come
            assert info.cause == "approved"
            assert timedelta(days=10) <= world.now() - world.start < timedelta(days=10, seconds=1)

    told(story)


def test_a_lock_goes_with_the_lease_of_who_is_cut_off() -> None:
    async def story(world: World) -> None:
        other = world.connect("other")
        theirs = other.lock("l", ttl=20, cancel_on_loss=False)
        await theirs.acquire()
        await world.advance(hours=1)  # it is renewed
        ours = world.db.lock("l")
        assert not await ours.try_acquire()
        world.cut_off(other)
        await world.advance(seconds=10)
        assert not await ours.try_acquire()
        await world.advance(seconds=15)
        assert not theirs.alive
        assert await ours.try_acquire()
        world.heal(other)
        await other.kv.put("k", "back")
        with pytest.raises(InvalidArgumentError, match="only handles that"):
            world.cut_off(world.db)

    told(story)


def test_a_worker_that_dies_leaves_its_tasks_to_others() -> None:
    app = quorate.App("t")
    begun: list[int] = []
    ended: list[int] = []

    @app.task(name="long")
    async def long() -> None:
        attempt = app.context().attempt
        begun.append(attempt)
        await asyncio.sleep(60)
        ended.append(attempt)

    async def story(world: World) -> None:
        first, second = world.worker(app, ttl=30), world.worker(app, ttl=30)
        await first.start()
        result = await long.submit()
        await world.settle()
        await second.start()
        world.worker_dies(first)
        await world.advance(seconds=15)
        assert begun == [1]
        await world.advance(seconds=20)
        assert begun == [1, 2]
        await result
        await second.drain()
        assert ended == [2]

    told(story)


def test_a_restart_keeps_what_was_acknowledged() -> None:
    app = quorate.App("t")

    @app.task(name="later")
    async def later() -> str:
        return "done"

    async def story(world: World) -> None:
        await world.db.kv.put("k", "v")
        visits = world.db.machine(Visits)
        assert await visits.hit() == 1
        async with world.worker(app):
            result = await later.options(delay=3600).submit()
            for restarts in range(2):
                await world.restart()
                assert (await visits.hit()) == restarts + 2
                assert (await world.db.kv.get("k")).value == b"v"
            assert await result == "done"

    told(story, machines=[Visits()])


def test_a_plain_function_runs_in_a_thread_for_which_the_clock_stands_still() -> None:
    app = quorate.App("t")
    threads: list[bool] = []

    @app.task(name="plain", timeout=1)
    def plain(value: int) -> int:
        time.sleep(0.03)
        threads.append(threading.current_thread() is threading.main_thread())
        return value

    async def story(world: World) -> None:
        ticker = asyncio.create_task(asyncio.sleep(1e6))  # the clock would jump if it could
        async with world.worker(app):
            assert await (await plain.submit(7)) == 7
        assert await asyncio.to_thread(lambda: time.sleep(0.01) or 3) == 3
        assert world.now() == world.start
        ticker.cancel()

    told(story)
    assert threads == [False]


def test_a_thread_that_never_ends_is_given_up() -> None:
    over = threading.Event()

    async def story() -> None:
        await asyncio.to_thread(over.wait)

    with pytest.raises(StuckError, match=r"1 threads still worked after 0\.2 s"):
        running.run_for(0.2, story)
    over.set()


def test_who_waits_for_ever_is_told_where() -> None:
    async def story(world: World) -> None:
        cleaned = False
        try:
            async with world.worker(quorate.App("t")):
                await world.db.kv.put("k", "v")
                await asyncio.Event().wait()  # for ever
        finally:
            await world.db.kv.put("cleaned", "up")
            cleaned = True
        assert cleaned

    with pytest.raises(StuckError, match=r"(?s)waits for ever.*# for ever"):
        told(story)

    async def nothing() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StuckError, match="nothing is left that could happen"):
        testing.run(nothing)


def test_a_test_that_goes_on_and_on_is_given_up() -> None:
    async def polls() -> None:
        while True:  # noqa: ASYNC110  what must not hang
            await asyncio.sleep(1)

    async def spins() -> None:
        while True:  # noqa: ASYNC110  what must not hang
            await asyncio.sleep(0)

    for story in (polls, spins):
        with pytest.raises(StuckError, match=r"not over after 0\.2 s of real time"):
            running.run_for(0.2, story)


def test_real_time_and_real_networks_are_refused() -> None:
    async def story() -> None:
        with pytest.raises(VirtualTimeError, match="no connection on virtual time"):
            await asyncio.open_connection("127.0.0.1", 1)
        with pytest.raises(VirtualTimeError, match="no subprocess"):
            await asyncio.create_subprocess_exec("true")
        with socket.socket() as bare, pytest.raises(VirtualTimeError, match="no socket"):
            await asyncio.get_running_loop().sock_recv(bare, 1)
        assert await asyncio.to_thread(subprocess.call, ["true"]) == 0
        assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)

    testing.run(story)


async def test_a_world_on_real_time_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"run it with quorate\.testing\.run"):
        async with testing.cluster():
            pass
    with pytest.raises(ClosedError, match="not entered"):
        _ = testing.cluster().db


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="with a time zone"):
        testing.cluster(start=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidArgumentError, match="no coroutine function"):
        testing.run(lambda: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidArgumentError, match="patience"):
        running.run_for(-1, asyncio.Event().wait)

    async def story(world: World) -> None:
        with pytest.raises(InvalidArgumentError, match="a state is one of"):
            world.enqueued(state="lost")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="does not go back"):
            await world.advance(seconds=-1)
        with pytest.raises(ClosedError, match="entered once"):
            async with world:
                pass

    told(story)


def test_enqueued_tasks_are_shown_with_their_arguments() -> None:
    app = quorate.App("t")

    @app.task(name="mail", queue="mail", priority="high", key=lambda a, **_: a)
    async def mail(address: str, *, urgent: bool) -> None:
        raise ValueError(address, urgent)

    async def story(world: World) -> None:
        app.use(world.db)
        await mail.submit("ada", urgent=True)
        soon = world.now() + timedelta(minutes=1)
        await mail.options(at=soon, headers={"trace": "1"}).submit("bob", urgent=False)
        await world.db.tasks.enqueue("other", b"\xc1", queue="o")
        first, second = world.enqueued("mail", "mail")
        assert (first.args, first.kwargs, first.key) == (("ada",), {"urgent": True}, b"ada")
        assert (first.state, first.priority, first.due) == ("ready", 3, None)
        assert second.due == world.now() + timedelta(minutes=1)
        assert second.headers == {"trace": "1"}
        assert world.enqueued("mail", state="ready") == [first]
        assert [each.payload for each in world.enqueued("o")] == [b"\xc1"]
        await world.run_until_idle()  # nobody takes what is ready
        assert {each.state for each in world.enqueued()} == {"ready"}

    told(story)


def test_a_task_that_fails_for_good_is_in_the_dead_letter_queue() -> None:
    app = quorate.App("t")

    @app.task(name="bad", retries=1, backoff=3600)
    async def bad() -> None:
        raise ValueError("always")

    async def story(world: World) -> None:
        async with world.worker(app):
            result = await bad.submit()
            await world.advance(minutes=59)
            assert [each.attempt for each in world.enqueued()] == [1]
            await world.advance(minutes=1)
            assert world.enqueued() == []  # what is due by then is done by then
            with pytest.raises(TaskFailedError, match="always"):
                await result
        (dead,) = world.enqueued(state="dead")
        assert (dead.function, dead.attempt) == ("bad", 2)

    told(story)


def test_equal_runs_are_equal() -> None:
    app = quorate.App("t")
    worlds: list[World] = []
    times: list[float] = []

    @app.task(name="bad", retries=4, backoff=60, jitter=0.9)
    async def bad() -> None:
        times.append((worlds[-1].now() - worlds[-1].start).total_seconds())
        raise ValueError

    async def story(world: World) -> list[float]:
        worlds.append(world)
        times.clear()
        async with world.worker(app, name="w"):
            await bad.submit()
            await world.run_until_idle()
        assert len(times) == 5
        return list(times)

    assert told(story) == told(story) != told(story, seed=1)


def test_the_plugin_is_found_under_the_name_of_its_module() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    plugins = project["project"]["entry-points"]["pytest11"]
    assert plugins == {plugin.__name__: plugin.__name__}


def test_the_plugin_has_a_world_for_plain_tests_and_for_coroutines(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import asyncio
        from datetime import datetime, UTC
        import pytest
        import quorate.testing

        def test_plain(quorate_world):
            async def story(world):
                await world.advance(days=1)
                assert (world.now() - world.start).days == 1
            quorate_world.run(story)

        @pytest.mark.quorate_world(start=datetime(2026, 1, 1, tzinfo=UTC))
        async def test_coroutine(quorate_world, tmp_path):
            await quorate_world.db.kv.put("k", str(tmp_path))
            await asyncio.sleep(86400)
            assert quorate_world.now() >= datetime(2026, 1, 2, tzinfo=UTC)

        @quorate.testing.virtual_time
        async def test_decorated(tmp_path):
            async with quorate.testing.cluster() as world:
                await world.advance(hours=24)

        async def test_that_hangs(quorate_world):
            await asyncio.Event().wait()
        """
    )
    result = pytester.runpytest_inprocess(
        "-p", "quorate.testing.plugin", "-p", "no:asyncio", "-p", "no:xdist", "--strict-markers"
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*StuckError: the test waits for ever*"])
