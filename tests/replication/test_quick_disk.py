"""Small jobs on the event loop while the disk is fast, and the pipeline of entries."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from quorate.replication.disk import QuickDisk
from quorate.replication.pipeline import IN_FLIGHT_MAX, PATIENCE_S, Pipeline

Names = list[tuple[str, str]]


@pytest.fixture
async def disk() -> AsyncIterator[QuickDisk]:
    made = QuickDisk("test", asyncio.get_running_loop(), quick_s=0.05, slow_s=0.1, pause_s=0.15)
    yield made
    await asyncio.to_thread(made.stop)


def noting(seen: Names, name: str, *, takes_s: float = 0.0) -> Callable[[], str]:
    def job() -> str:
        seen.append((name, threading.current_thread().name))
        time.sleep(takes_s)
        return name

    return job


async def until(what: Callable[[], object]) -> None:
    for _ in range(500):
        if what():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come true")


async def test_a_quick_job_runs_on_the_loop_in_a_later_turn(disk: QuickDisk) -> None:
    seen: Names = []
    done: list[object] = []
    assert disk.quick(noting(seen, "a"), lambda result, error: done.append((result, error)))
    assert not seen
    await asyncio.sleep(0)
    assert seen == [("a", threading.main_thread().name)]
    assert done == [("a", None)]


async def test_an_error_is_handed_over_as_from_the_thread(disk: QuickDisk) -> None:
    done: list[BaseException | None] = []

    def fail() -> None:
        raise OSError("broken")

    assert disk.quick(fail, lambda _result, error: done.append(error))
    await asyncio.sleep(0)
    assert isinstance(done[0], OSError)


async def test_no_quick_job_beside_one_on_the_thread(disk: QuickDisk) -> None:
    seen: Names = []
    done: list[object] = []
    disk.run(noting(seen, "slow", takes_s=0.05), lambda result, _: done.append(result))
    assert not disk.quick(noting(seen, "quick"), lambda result, _: done.append(result))
    await until(lambda: done)
    assert disk.quick(noting(seen, "quick"), lambda result, _: done.append(result))
    await asyncio.sleep(0)
    assert done == ["slow", "quick"]
    assert seen[0][1] != seen[1][1]


async def test_jobs_for_the_thread_wait_for_a_scheduled_quick_one(disk: QuickDisk) -> None:
    seen: Names = []
    done: list[object] = []
    assert disk.quick(noting(seen, "first", takes_s=0.02), lambda result, _: done.append(result))
    disk.run(noting(seen, "second"), lambda result, _: done.append(result))
    disk.run(noting(seen, "third"), lambda result, _: done.append(result))
    time.sleep(0.05)  # noqa: ASYNC251  the thread would have run them by now
    assert not seen
    await until(lambda: len(done) == 3)
    assert [name for name, _ in seen] == ["first", "second", "third"]
    assert done == ["first", "second", "third"]


async def test_a_stall_sends_jobs_to_the_thread_for_a_while(disk: QuickDisk) -> None:
    seen: Names = []
    assert disk.quick(noting(seen, "stall", takes_s=0.11), lambda *_: None)
    await asyncio.sleep(0)
    assert not disk.quick(noting(seen, "x"), lambda *_: None)
    await asyncio.sleep(0.2)
    assert disk.quick(noting(seen, "y"), lambda *_: None)
    await asyncio.sleep(0)
    assert [name for name, _ in seen] == ["stall", "y"]


async def test_a_disk_that_is_slow_on_average_is_left_to_the_thread() -> None:
    disk = QuickDisk("test", asyncio.get_running_loop(), quick_s=0.001, slow_s=1.0, pause_s=5.0)
    try:
        ran = 0
        while disk.quick(lambda: time.sleep(0.004), lambda *_: None):
            await asyncio.sleep(0)
            ran += 1
            assert ran < 50
        assert ran > 1
    finally:
        await asyncio.to_thread(disk.stop)


async def test_the_next_entry_waits_and_is_called_for_in_time() -> None:
    flushed: list[float] = []
    loop = asyncio.get_running_loop()
    pipeline = Pipeline(lambda: flushed.append(loop.time()))
    assert pipeline.may_propose(0)
    pipeline.proposed()
    began_s = loop.time()
    assert not pipeline.may_propose(1)
    assert not pipeline.may_propose(1)
    await until(lambda: flushed)
    assert flushed[0] - began_s >= PATIENCE_S * 0.9
    assert pipeline.may_propose(1)
    assert not pipeline.may_propose(IN_FLIGHT_MAX)
    assert pipeline.may_propose(0)
    pipeline.proposed()
    assert not pipeline.may_propose(1)
    pipeline.stop()
    await asyncio.sleep(PATIENCE_S * 2)
    assert len(flushed) == 1
