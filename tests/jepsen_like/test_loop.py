from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from jepsen_like.simulation.hosts import PROCESS, Host, HostClock, Process
from jepsen_like.simulation.loop import StuckError, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def a_process(loop: VirtualLoop, *, rate: float = 1.0, start_s: float = 0.0) -> Process:
    clock = HostClock(loop.true_time, start_s=start_s, rate=rate)
    return Host("h", 1, "127.0.0.1", clock).begin()


def test_time_jumps_from_timer_to_timer(loop: VirtualLoop) -> None:
    async def story() -> list[float]:
        seen = []
        for _ in range(3):
            await asyncio.sleep(1000)
            seen.append(asyncio.get_running_loop().time())
        return seen

    assert loop.run_until_complete(story()) == [1000, 2000, 3000]


def test_timers_of_one_instant_run_in_the_order_they_were_set(loop: VirtualLoop) -> None:
    seen: list[int] = []
    for number in range(5):
        loop.call_later(1, seen.append, number)
    loop.call_later(0.5, seen.append, -1)
    loop.run_until_complete(asyncio.sleep(2))
    assert seen == [-1, 0, 1, 2, 3, 4]


def test_a_cancelled_timer_does_not_run(loop: VirtualLoop) -> None:
    seen: list[int] = []
    handle = loop.call_later(1, seen.append, 1)
    handle.cancel()
    assert handle.cancelled()
    loop.run_until_complete(asyncio.sleep(2))
    assert seen == []


def test_timeouts_and_the_executor_work_as_on_any_loop(loop: VirtualLoop) -> None:
    async def story() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.sleep(4)
        assert loop.now_s == 3
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, max, 3, 4)

    assert loop.run_until_complete(story()) == 4


def test_waiting_for_what_never_comes_is_an_error(loop: VirtualLoop) -> None:
    async def story() -> None:
        await loop.create_future()

    with pytest.raises(StuckError):
        loop.run_until_complete(story())


def test_an_instant_that_never_ends_is_an_error(loop: VirtualLoop) -> None:
    async def story() -> None:
        while True:  # noqa: ASYNC110  on purpose
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="without time passing"):
        loop.run_until_complete(story())


def test_an_exception_in_a_callback_is_a_problem(loop: VirtualLoop) -> None:
    process = a_process(loop)
    loop.soon(process, lambda: 1 // 0)
    loop.run_until_complete(asyncio.sleep(1))
    assert [problem.process for problem in loop.problems] == ["h"]
    assert "ZeroDivisionError" in loop.problems[0].text


# --- hosts ----------------------------------------------------------------------------------------


def test_tasks_and_callbacks_inherit_their_process(loop: VirtualLoop) -> None:
    process = a_process(loop)
    seen = []

    async def inner() -> None:
        await asyncio.sleep(1)
        seen.append(PROCESS.get())
        asyncio.get_running_loop().call_later(1, lambda: seen.append(PROCESS.get()))
        await asyncio.get_running_loop().create_task(leaf())

    async def leaf() -> None:
        seen.append(PROCESS.get())

    async def story() -> None:
        await loop.spawn(process, inner())
        assert PROCESS.get() is None
        await asyncio.sleep(2)

    loop.run_until_complete(story())
    assert seen == [process] * 3


def test_a_fast_clock_fires_early_and_a_change_of_rate_moves_timers(loop: VirtualLoop) -> None:
    process = a_process(loop, rate=2.0, start_s=500.0)
    fired: list[tuple[float, float]] = []

    async def sleeper() -> None:
        for _ in range(2):
            await asyncio.sleep(10)
            fired.append((loop.true_time(), loop.time()))

    async def story() -> None:
        task = loop.spawn(process, sleeper())
        await asyncio.sleep(6)
        process.host.clock.set_rate(0.5)
        loop.retime(process)
        await task

    loop.run_until_complete(story())
    # 10 of its seconds take 5; then 2 more by the fast clock, and 8 at half the pace.
    assert fired == [(5.0, 510.0), (22.0, 520.0)]


def test_a_wall_clock_jumps_and_a_monotonic_one_does_not(loop: VirtualLoop) -> None:
    clock = HostClock(loop.true_time, wall_ms=1_000_000)
    clock.jump_wall(-5000)
    assert (clock.wall_ms(), clock.monotonic_s()) == (995_000, 0.0)


def test_a_dead_process_never_runs_again_and_leaves_no_warning(loop: VirtualLoop) -> None:
    process = a_process(loop)
    seen: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(1)
            seen.append("ran on")
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    async def story() -> None:
        loop.spawn(process, main())
        await asyncio.sleep(0.5)
        loop.kill(process)
        await asyncio.sleep(2)

    loop.run_until_complete(story())
    loop.close()
    gc.collect()
    assert seen == []
    assert loop.problems == []


def test_a_paused_process_finds_everything_when_it_goes_on(loop: VirtualLoop) -> None:
    process = a_process(loop)
    seen: list[tuple[float, str]] = []

    async def main() -> None:
        for name in "abc":
            await asyncio.sleep(1)
            seen.append((loop.true_time(), name))

    async def story() -> None:
        task = loop.spawn(process, main())
        await asyncio.sleep(1.5)
        loop.pause(process)
        await asyncio.sleep(10)
        assert [name for _, name in seen] == ["a"]
        loop.resume(process)
        await task

    loop.run_until_complete(story())
    assert seen == [(1.0, "a"), (11.5, "b"), (12.5, "c")]


def test_what_ends_with_the_simulation_may_still_want_a_task(loop: VirtualLoop) -> None:
    def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.get_running_loop().create_task(coroutine)

    async def forever() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            spawn(asyncio.sleep(1))

    process = a_process(loop)

    async def story() -> None:
        loop.spawn(process, forever())
        loop.create_task(forever())
        await asyncio.sleep(1)

    loop.run_until_complete(story())
    loop.finish([process])
    gc.collect()
