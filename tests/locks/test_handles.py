"""Handles of leases, locks, semaphores, elections and barriers, on a real node in this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import quorate
from quorate import Database
from quorate.client import leases as leases_module
from quorate.client.clocks import clock_of
from quorate.client.elections import Leader
from quorate.client.locks import Lock
from quorate.errors import (
    AlreadyHeldError,
    ClosedError,
    FencedError,
    InvalidArgumentError,
    LeaseExpiredError,
    LeaseLostError,
    LimitExceededError,
    LockLostError,
    LockMismatchError,
    LockTimeoutError,
    NotHeldError,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made:
        yield made


async def end_lease(db: Database, lock: Lock) -> None:
    """As an operator does, or an outage."""
    await db.revoke_lease(lock._granted().desk.lease.id)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110  what is looked at tells nobody
            await asyncio.sleep(0.005)


# --- leases ---------------------------------------------------------------------------------------


async def test_a_lease_is_kept_alive_until_it_is_given_back(db: Database) -> None:
    async with db.lease(ttl=1.0, name="mine") as lease:
        await asyncio.sleep(1.5)
        assert 0.0 < lease.good_for <= 0.9
        assert 0.3 < await lease.time_to_live() <= 1.0
        assert (await db.lease_status(lease.id)).name == "mine"
    assert not lease.alive
    assert not lease.lost.is_set()
    with pytest.raises(LeaseExpiredError):
        await lease.time_to_live()


async def test_what_ends_a_lease_is_heard_at_once(db: Database) -> None:
    heard = []
    lease = await db.lease(ttl=60).grant()
    undo = lease.on_lost(lambda: heard.append("never"))
    lease.on_lost(lambda: heard.append("now"))
    undo()
    await db.revoke_lease(lease.id)
    assert await asyncio.wait_for(lease.lost.wait(), 1) == "was revoked"
    assert lease.lost.is_set()
    assert heard == ["now"]
    lease.on_lost(lambda: heard.append("late"))
    assert heard == ["now", "late"]
    assert not await lease.revoke()


async def test_a_callback_that_fails_does_not_keep_the_others_from_hearing(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await db.lease().grant()
    heard: list[int] = []
    lease.on_lost(lambda: heard.append(1 // 0))
    lease.on_lost(lambda: heard.append(2))
    await db.revoke_lease(lease.id)
    await lease.lost
    assert heard == [2]
    assert "a callback for a loss failed" in caplog.text


async def test_all_leases_are_renewed_by_one_command(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    submit = db.submit

    def spy(codec: Any, item: object, *rest: Any) -> Any:
        sent.append(item)
        return submit(codec, item, *rest)

    monkeypatch.setattr(db, "submit", spy)
    leases = await asyncio.gather(*(db.lease(ttl=1.0).grant() for _ in range(50)))
    sent.clear()
    await asyncio.sleep(1.2)
    assert all(lease.alive for lease in leases)
    assert 2 <= len(sent) <= 4
    assert {type(each).__name__ for each in sent} == {"RenewLeases"}


async def test_a_guard_stops_its_body_and_says_why(db: Database) -> None:
    lease = await db.lease().grant()

    async def work() -> None:
        async with lease.guard():
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    await db.revoke_lease(lease.id)
    with pytest.raises(LeaseLostError, match=r"lease \d+ was revoked"):
        await task
    with pytest.raises(LeaseLostError):
        async with lease.guard():
            pytest.fail("the body ran")


async def test_a_cancellation_from_elsewhere_passes_through_a_guard(db: Database) -> None:
    lease = await db.lease().grant()
    caught: list[int] = []

    async def work(*, both: bool) -> None:
        try:
            async with lease.guard():
                if both:
                    task = asyncio.current_task()
                    assert task is not None
                    lease.on_lost(task.cancel)
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            caught.append(task.cancelling())
            raise

    task = asyncio.create_task(work(both=False))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    task = asyncio.create_task(work(both=True))
    await asyncio.sleep(0.01)
    await db.revoke_lease(lease.id)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caught == [1, 1]


async def test_a_body_that_ends_by_itself_hears_of_a_loss_and_is_not_cancelled_later(
    db: Database,
) -> None:
    lease = await db.lease().grant()
    with pytest.raises(LeaseLostError):
        async with lease.guard():
            with contextlib.suppress(asyncio.CancelledError):  # as some libraries do
                await db.revoke_lease(lease.id)
                await asyncio.sleep(60)
    other = await db.lease().grant()
    with pytest.raises(LeaseLostError):
        async with other.guard():
            other.end("ended by the body's own task")
    await asyncio.sleep(0)  # would raise what was left behind


async def test_an_error_of_the_body_is_not_hidden_by_a_loss(db: Database) -> None:
    lease = await db.lease().grant()
    with pytest.raises(ZeroDivisionError):
        async with lease.guard():
            try:
                await db.revoke_lease(lease.id)
                await asyncio.sleep(60)
            finally:
                _ = 1 // 0


def test_a_process_that_stood_still_sees_it_within_one_turn_of_uvloop(tmp_path: Path) -> None:
    """No timer has run, and no frame was read."""

    async def story() -> None:
        async with quorate.open(tmp_path) as db:
            lease = await db.lease(ttl=1.0).grant()
            assert lease.good_for > 0.0
            time.sleep(1.0)  # noqa: ASYNC251  as if stopped
            assert not lease.alive
            assert lease.good_for == 0.0
            await lease.lost

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has it")
@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_time_in_which_the_machine_slept_counts(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = new_loop()
    try:
        monkeypatch.setattr(time, "clock_gettime", lambda clock: (clock, 1e6))
        found: object = clock_of(loop)()
        assert found == (time.CLOCK_BOOTTIME, 1e6)
    finally:
        monkeypatch.undo()
        loop.close()


def test_a_loop_that_brings_its_own_time_is_believed() -> None:
    class Slow(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return 7.0

    loop = Slow()
    try:
        assert clock_of(loop)() == 7.0
    finally:
        loop.close()


async def test_what_cannot_be_a_lease_is_refused(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ttl in (0.5, 1e9, float("nan"), "10"):
        with pytest.raises(InvalidArgumentError):
            db.lease(ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        db.lease(name="x" * 300)
    lease = db.lease()
    with pytest.raises(NotHeldError):
        await lease.revoke()
    await lease.grant()
    with pytest.raises(InvalidArgumentError):
        await lease.grant()
    monkeypatch.setattr(leases_module, "HELD_LEASES_MAX", 1)
    with pytest.raises(LimitExceededError):
        await db.lease().grant()


# --- locks ----------------------------------------------------------------------------------------


async def test_acquire_and_release_are_two_commands_and_nothing_else(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = db.lock("l")
    async with lock:
        pass
    sent: list[str] = []
    submit, ask = db.submit, db.ask

    def spy(codec: Any, item: object, *rest: Any) -> Any:
        sent.append(type(item).__name__)
        return submit(codec, item, *rest)

    def asked(codec: Any, item: object, *rest: Any) -> Any:
        sent.append(type(item).__name__)
        return ask(codec, item, *rest)

    monkeypatch.setattr(db, "submit", spy)
    monkeypatch.setattr(db, "ask", asked)
    async with lock:
        pass
    async with db.lock("another"):
        pass
    assert sent == ["Acquire", "Release"] * 2


async def test_the_line_is_served_in_order(db: Database) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with db.lock("l") as lock:
            order.append(number)
            tokens.append(lock.token)
            await asyncio.sleep(0.01)

    tokens: list[int] = []
    async with db.lock("another"):
        pass
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(work(number))
            await asyncio.sleep(0.002)
    assert order == list(range(10))
    assert tokens == sorted(tokens)


async def test_a_lost_lock_cancels_the_body_and_the_fence_is_refused(db: Database) -> None:
    lock = db.lock("l")

    async def work() -> None:
        async with lock:
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await until(lambda: lock.held)
    fence = lock.fence
    await db.kv.put("k", "fenced", fence=fence)
    await end_lease(db, lock)
    with pytest.raises(LockLostError, match="another may have it by now"):
        await task
    assert lock.lost.is_set()
    assert not lock.held
    with pytest.raises(FencedError):
        await db.kv.put("k", "too late", fence=fence)
    async with lock:
        assert lock.token > fence.token
        assert not lock.lost.is_set()


async def test_a_body_that_will_not_be_cancelled_hears_of_the_loss_at_its_end(
    db: Database,
) -> None:
    heard = []
    with pytest.raises(LockLostError):
        async with db.lock("l", cancel_on_loss=False) as lock:
            lock.on_lost(lambda: heard.append(1))
            await end_lease(db, lock)
            await lock.lost
            await asyncio.sleep(0.01)
            assert not lock.held
    assert heard == [1]


async def test_a_lock_released_within_its_body_is_not_missed(db: Database) -> None:
    async with db.lock("l") as lock:
        await lock.release()
        with pytest.raises(NotHeldError):
            _ = lock.token
        async with db.lock("l"):
            pass


async def test_trying_and_waiting_for_a_time(db: Database) -> None:
    mine, other = db.lock("l"), db.lock("l")
    assert await mine.try_acquire()

    async def elsewhere() -> None:
        assert not await other.try_acquire()
        began = time.monotonic()
        with pytest.raises(LockTimeoutError):
            await other.acquire(timeout=0.1)
        assert time.monotonic() - began < 1
        with pytest.raises(InvalidArgumentError):
            await other.acquire(timeout=-1)

    await asyncio.create_task(elsewhere())
    await until_free_of_waiters(db, "l")
    await mine.release()
    with pytest.raises(NotHeldError):
        await mine.release()
    assert await other.try_acquire()


async def until_free_of_waiters(db: Database, name: str) -> None:
    async with asyncio.timeout(5):
        while (await db.lock_status(name)).waiter_count:  # noqa: ASYNC110  asked anew
            await asyncio.sleep(0.01)


async def test_reentrant_use_is_refused_with_a_clear_error(db: Database) -> None:
    async with db.lock("l") as lock:
        with pytest.raises(AlreadyHeldError, match="by this very handle"):
            await lock.acquire()
        with pytest.raises(AlreadyHeldError, match="not reentrant"):
            await db.lock("l").acquire()
        assert not await db.lock("l").try_acquire()
        async with db.lock("another"):
            pass
    async with db.rwlock("rw").reader():
        with pytest.raises(AlreadyHeldError):
            await db.rwlock("rw").writer().acquire(timeout=1)
    async with db.semaphore("s", 2), db.semaphore("s", 2):
        pass
    async with db.lock("l"):
        pass


async def test_one_handle_serves_one_task_at_a_time(db: Database) -> None:
    async with db.lock("l"):
        shared = db.lock("l")
        first = asyncio.create_task(shared.acquire())
        await asyncio.sleep(0.01)
        with pytest.raises(AlreadyHeldError, match="is being acquired"):
            await shared.acquire()
    await first
    await shared.release()


async def test_cancelled_at_any_moment_nothing_is_left(db: Database) -> None:
    """From before the command leaves to after the grant is there."""
    async with db.lock("warm"):
        pass
    for turns in range(30):
        lock = db.lock("l")
        task = asyncio.create_task(lock.acquire())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():  # it had come to its end, so the caller holds it
            await lock.release()
        async with asyncio.timeout(5):
            while (await db.lock_status("l")).kind:  # noqa: ASYNC110  asked anew
                await asyncio.sleep(0.005)


async def test_a_thousand_wait_and_each_gets_its_turn(db: Database) -> None:
    count = 0

    async def work() -> None:
        nonlocal count
        async with db.lock("l"):
            count += 1

    await asyncio.gather(*(work() for _ in range(1000)))
    assert count == 1000
    assert (await db.lock_status("l")).kind == ""


async def test_readers_share_and_writers_do_not(db: Database) -> None:
    inside = 0
    most = 0
    rwlock = db.rwlock("rw")

    async def read() -> None:
        nonlocal inside, most
        async with rwlock.reader():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.02)
            inside -= 1

    async def write() -> None:
        async with rwlock.writer():
            assert inside == 0
            await asyncio.sleep(0.01)

    await asyncio.gather(read(), read(), write(), read(), read(), write())
    assert most == 2


async def test_a_semaphore_lets_in_as_many_as_it_says(db: Database) -> None:
    inside = 0

    async def work(take: int) -> None:
        nonlocal inside
        async with db.semaphore("s", 3, take=take):
            inside += take
            assert inside <= 3
            await asyncio.sleep(0.01)
            inside -= take

    await asyncio.gather(*(work(1 + number % 3) for number in range(12)))
    async with db.semaphore("s", 3) as semaphore:
        with pytest.raises(LockMismatchError, match="'s' is in use as a semaphore of 3"):
            await db.semaphore("s", 4).acquire()
        assert (await semaphore.status()).free == 2
    for permits, take in ((0, 1), (3, 4), (True, 1), (2**40, 1)):
        with pytest.raises(InvalidArgumentError):
            db.semaphore("s", permits, take=take)


async def test_a_name_is_bytes_or_text_of_some_length(db: Database) -> None:
    assert db.lock(b"\xff").name == b"\xff"
    with pytest.raises(InvalidArgumentError):
        db.lock("")
    with pytest.raises(LimitExceededError):
        db.lock("x" * 1025)
    with pytest.raises(NotHeldError):
        _ = db.lock("l").fence


async def test_closing_the_handle_gives_back_what_it_held(tmp_path: Path) -> None:
    async with quorate.open(tmp_path) as db:
        lock = db.lock("l")
        await lock.acquire()
        await db.close()
        assert lock.lost.is_set()
        with pytest.raises(LockLostError):
            await lock.release()
        with pytest.raises(ClosedError):
            await db.lock("l").acquire()


# --- elections ------------------------------------------------------------------------------------


async def test_an_election_has_one_leader_and_those_who_look_on(db: Database) -> None:
    seen: list[Leader | None] = []
    ready = asyncio.Event()

    async def look() -> None:
        async with db.election("e").observe() as changes:
            async for leader in changes:
                seen.append(leader)
                ready.set()

    task = asyncio.create_task(look())
    await ready.wait()
    first, second = db.election("e", "first"), db.election("e")
    epoch = await first.campaign()
    assert first.is_leader
    assert await second.leader() == Leader(b"first", epoch)
    campaign = asyncio.create_task(second.campaign("second", timeout=5))
    await asyncio.sleep(0.01)
    assert not second.is_leader
    await first.proclaim("still first")
    await until(lambda: Leader(b"still first", epoch) in seen)
    await first.resign()
    later = await campaign
    assert later > epoch
    await second.resign()
    with pytest.raises(NotHeldError):
        await second.proclaim("nobody")
    await until(lambda: seen[-1] is None and len(seen) > 1)
    assert await first.leader() is None
    assert Leader(b"second", later) in seen
    task.cancel()
    await asyncio.wait([task])
    with pytest.raises(LimitExceededError):
        db.election("e", "x" * 5000)


async def test_who_looks_on_hears_when_the_handle_is_closed(db: Database) -> None:
    async def look() -> None:
        async for _ in db.election("e").observe():
            pass

    task = asyncio.create_task(look())
    await asyncio.sleep(0.05)
    await db.close()
    with pytest.raises(ClosedError):
        await task


# --- barriers -------------------------------------------------------------------------------------


async def test_a_barrier_lets_through_round_after_round(db: Database) -> None:
    waiting = 0

    async def party() -> None:
        nonlocal waiting
        barrier = db.barrier("b", 3)
        for _ in range(3):
            waiting += 1
            await barrier.wait(timeout=5)
            waiting -= 1

    await asyncio.gather(*(party() for _ in range(3)))
    assert waiting == 0
    assert (await db.barrier("b", 3).status()).parties == 0


async def test_who_gives_up_at_a_barrier_is_not_counted(db: Database) -> None:
    barrier = db.barrier("b", 2)
    with pytest.raises(LockTimeoutError):
        await barrier.wait(timeout=0.05)
    async with asyncio.timeout(5):
        while (await barrier.status()).parties:  # noqa: ASYNC110  asked anew
            await asyncio.sleep(0.01)
    first = asyncio.create_task(barrier.wait())
    await asyncio.sleep(0.02)
    with pytest.raises(AlreadyHeldError):
        await barrier.wait()
    with pytest.raises(LockMismatchError):
        await db.barrier("b", 3).wait()
    await db.barrier("b", 2).wait()
    await first
    for parties in (0, True, 10**9):
        with pytest.raises(InvalidArgumentError):
            db.barrier("b", parties)


async def test_those_inside_a_double_barrier_enter_and_leave_together(db: Database) -> None:
    inside: set[int] = set()

    async def party(number: int) -> None:
        barrier = db.double_barrier("b", 3)
        async with barrier:
            inside.add(number)
            await asyncio.sleep(0.02 * number)
            assert len(inside) == 3, "none has left before all were there"
            with pytest.raises(AlreadyHeldError):
                await barrier.enter()
        assert not (await barrier.status()).inside

    await asyncio.gather(*(party(number) for number in range(3)))
    with pytest.raises(NotHeldError):
        await db.double_barrier("b", 3).leave()


async def test_a_party_inside_whose_lease_is_lost_has_left(db: Database) -> None:
    one, two = db.double_barrier("b", 2, ttl=10), db.double_barrier("b", 2, ttl=20)
    await asyncio.gather(one.enter(), two.enter())
    assert one._inside is not None
    await db.revoke_lease(one._inside[0].lease.id)
    await two.leave(timeout=5)
    with pytest.raises(LeaseLostError):
        await one.leave()
