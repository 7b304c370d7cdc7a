"""Locks on simulated clusters, on virtual time: each complaint on record about locks, as a test.

The numbers in the names are those of the list of complaints; what is asked for stands in the
docstrings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate import Database
from quorate.client.claims import IDLE_S_MAX
from quorate.client.locks import Lock
from quorate.errors import (
    ClosedError,
    FencedError,
    LeaseLostError,
    LockLostError,
    LockTimeoutError,
    QuorateError,
)

TTL_S = 5.0


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    with SimulatedCluster(seed=4) as made:
        yield made
        assert made.problems == []


def connect(cluster: SimulatedCluster, name: str, **options: Any) -> Database:
    return cluster.connect(name, **{"stall_timeout": 0.5, "connect_timeout": 0.5, **options})


class Holder:
    """A client that takes the lock "l" and keeps it, on a host of its own; and what it noticed."""

    def __init__(self, cluster: SimulatedCluster, name: str, **options: Any) -> None:
        self.cluster = cluster
        self.name = name
        self.db = connect(cluster, name, **options)
        self.lock: Lock
        self.acquired_s = 0.0
        self.lost_s = 0.0
        self.error: BaseException | None = None
        self.task = cluster.spawn(name, self._hold())

    async def _hold(self) -> None:
        self.lock = self.db.lock("l", ttl=TTL_S)
        try:
            async with self.lock:
                self.acquired_s = self.cluster.now_s
                self.lock.on_lost(self._on_lost)
                await asyncio.Event().wait()
        except BaseException as error:
            self.error = error
            raise

    def _on_lost(self) -> None:
        self.lost_s = self.cluster.now_s

    @property
    def held(self) -> bool:
        return bool(self.acquired_s) and self.lock.held

    async def acquired(self) -> None:
        await until(lambda: self.acquired_s)

    async def over(self) -> None:
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()


async def until(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110  virtual time costs nothing
            await asyncio.sleep(0.01)


def play(cluster: SimulatedCluster, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await cluster.start(3)
        await story()
        await asyncio.sleep(1)
        cluster.heal()
        await cluster.converged()

    cluster.run(whole())


def test_complaint_18_a_holder_that_was_stopped_cannot_write_over_its_successor(
    cluster: SimulatedCluster,
) -> None:
    """No fencing tokens: a paused process goes on where it stood, and writes."""

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        token = first.lock.token
        fence = first.lock.fence
        cluster.pause("alice")
        second = Holder(cluster, "bob")
        await second.acquired()
        assert second.lock.token > token
        await second.db.kv.put("k", "bob's", fence=second.lock.fence)
        cluster.resume("alice")
        with pytest.raises(FencedError):
            await cluster.call("alice", put(first.db, fence))
        await first.over()
        assert isinstance(first.error, LockLostError)
        assert not first.lock.held
        assert second.lock.held
        second.task.cancel()
        await second.over()

    async def put(db: Database, fence: Any) -> None:
        await db.kv.put("k", "alice's", fence=fence)

    play(cluster, story)


def test_complaint_13_loss_is_heard_of_before_another_can_hold(cluster: SimulatedCluster) -> None:
    """Lock loss is the user's problem: here it cancels the work, in time, with no node in reach."""

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(1)
        cluster.partition([["alice"], [*cluster.members, "bob"]])
        await first.over()
        ended_s = cluster.now_s
        assert isinstance(first.error, LockLostError)
        assert first.lost_s
        assert not second.acquired_s
        await second.acquired()
        assert second.acquired_s >= ended_s
        cluster.heal()
        second.task.cancel()
        await second.over()

    play(cluster, story)


@pytest.mark.parametrize("rate", [0.96, 1.04])
def test_a_holder_whose_clock_runs_otherwise_still_hears_in_time(
    cluster: SimulatedCluster, rate: float
) -> None:
    async def story() -> None:
        first = Holder(cluster, "alice")
        cluster.set_clock_rate("alice", rate)
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(2)
        cluster.partition([["alice"], [*cluster.members, "bob"]])
        await first.over()
        assert first.lost_s
        assert not second.acquired_s
        await second.acquired()
        cluster.heal()
        second.task.cancel()
        await second.over()

    play(cluster, story)


def test_complaint_g_clocks_that_jump_hand_no_lock_over(cluster: SimulatedCluster) -> None:
    """Client wall clocks within commands: a clock eleven seconds ahead stole a lock of ten."""

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        names: list[int | str] = [*cluster.members, "alice", "bob"]
        for name in names:
            cluster.jump_wall_clock(name, 11_000)
            await asyncio.sleep(1)
            cluster.jump_wall_clock(name, -50_000)
            await asyncio.sleep(1)
        assert first.lock.held
        assert not second.acquired_s
        for each in (first, second):
            each.task.cancel()
            await each.over()

    play(cluster, story)


def test_complaint_4_two_that_ask_at_once_do_not_both_get_it(cluster: SimulatedCluster) -> None:
    """The same lock to both nodes at start-up."""

    async def story() -> None:
        holders = [Holder(cluster, f"c{number}") for number in range(5)]
        for _ in holders:
            await until(lambda: any(each.held for each in holders))
            (held,) = [each for each in holders if each.held]
            held.task.cancel()
            await held.over()
        tokens = [each.error for each in holders]
        assert all(isinstance(each, asyncio.CancelledError) for each in tokens)

    play(cluster, story)


@pytest.mark.parametrize("how", ["timeout", "cancel", "die"])
def test_complaint_14_who_stops_waiting_leaves_no_orphan(
    cluster: SimulatedCluster, how: str
) -> None:
    """A contender that gave up stayed in line, and the lock was stuck for ever."""

    async def impatient(db: Database) -> None:
        with pytest.raises(LockTimeoutError):
            await db.lock("l", ttl=TTL_S).acquire(timeout=1)

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        if how == "timeout":
            await cluster.call("bob", impatient(connect(cluster, "bob")))
        else:
            second = Holder(cluster, "bob")
            await asyncio.sleep(1)
            if how == "cancel":
                second.task.cancel()
                await second.over()
            else:
                cluster.crash_client("bob")
                await asyncio.sleep(2 * TTL_S)
        await asyncio.sleep(1)
        status = await first.db.lock_status("l")
        assert status.waiter_count == 0
        assert status.holder_count == 1
        first.task.cancel()
        await first.over()
        assert (await first.db.lock_status("l")).kind == ""

    play(cluster, story)


@pytest.mark.parametrize("seed", range(6))
def test_no_orphan_though_the_leader_dies_while_one_gives_up(seed: int) -> None:
    """The acquiring, its withdrawal, or both may be lost, or come late, or twice."""
    with SimulatedCluster(seed=seed) as cluster:

        async def give_up(db: Database, after_s: float) -> None:
            with pytest.raises((LockTimeoutError, QuorateError)):
                await db.lock("l", ttl=60.0).acquire(timeout=after_s)

        async def story() -> None:
            holder = connect(cluster, "alice")
            lock = holder.lock("l", ttl=60.0)
            await cluster.call("alice", lock.acquire())
            others = [connect(cluster, f"c{number}") for number in range(4)]
            tasks = [
                cluster.spawn(f"c{number}", give_up(db, 0.01 + 0.4 * number))
                for number, db in enumerate(others)
            ]
            leader = await cluster.wait_leader()
            await asyncio.sleep(0.01)
            cluster.crash(leader)
            await asyncio.gather(*tasks)
            await cluster.restart(leader)
            await asyncio.sleep(10)
            assert (await holder.lock_status("l")).waiter_count == 0
            await cluster.call("alice", lock.release())
            assert (await holder.lock_status("l")).kind == ""

        play(cluster, story)
        assert cluster.problems == []


def test_complaint_15_who_waits_on_a_handle_that_is_closed_hears_of_it(
    cluster: SimulatedCluster,
) -> None:
    """acquire hangs on a closed client."""

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(1)
        await cluster.call("bob", second.db.close())
        await second.over()
        assert isinstance(second.error, ClosedError | LeaseLostError)
        await cluster.call("alice", first.db.close())
        await first.over()
        assert isinstance(first.error, LockLostError)
        third = Holder(cluster, "carol")
        before_s = cluster.now_s
        await third.acquired()
        assert third.acquired_s - before_s < 1.0, "what a closed handle held is free at once"
        third.task.cancel()
        await third.over()

    play(cluster, story)


def test_complaint_15_releasing_while_hearing_of_a_loss_does_not_deadlock(
    cluster: SimulatedCluster,
) -> None:
    """Release inside a state listener deadlocked."""

    async def hold(db: Database, heard: list[object]) -> None:
        lock = db.lock("l", ttl=TTL_S)
        await lock.acquire()

        async def release() -> None:
            with pytest.raises(LockLostError):
                await lock.release()
            heard.append("released")

        lock.on_lost(lambda: heard.append(asyncio.ensure_future(release())))
        heard.append(await lock.lost)
        await until(lambda: "released" in heard)

    async def story() -> None:
        db = connect(cluster, "alice")
        heard: list[object] = []
        task = cluster.spawn("alice", hold(db, heard))
        await asyncio.sleep(1)
        await db.revoke_lease((await db.list_leases()).leases[0].lease)
        await task
        assert "was revoked" in heard

    play(cluster, story)


@pytest.mark.parametrize("at", ["held", "waiting"])
def test_complaint_11_the_leader_may_die_while_one_holds_and_another_waits(
    cluster: SimulatedCluster, at: str
) -> None:
    """Clients that do not fail over. The lock is neither lost nor handed over, and the line goes
    on where it stood."""

    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(1)
        token = first.lock.token
        leader = await cluster.wait_leader()
        cluster.crash(leader)
        if at == "held":
            await cluster.wait_leader()
            await asyncio.sleep(2 * TTL_S)
            assert first.lock.held
            assert first.lock.token == token
            assert not second.acquired_s
        first.task.cancel()  # in the other case, while there is no leader
        await first.over()
        await second.acquired()
        assert second.lock.token > token
        await cluster.restart(leader)
        second.task.cancel()
        await second.over()

    play(cluster, story)


def test_who_waited_through_a_long_outage_waits_on(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(1)
        cluster.crash_all()
        await asyncio.sleep(4 * TTL_S)
        assert isinstance(first.error, LockLostError)
        assert not second.task.done()
        await cluster.restart_all()
        await second.acquired()
        second.task.cancel()
        await second.over()

    play(cluster, story)


def test_a_grant_that_came_while_the_connection_was_away_is_found(
    cluster: SimulatedCluster,
) -> None:
    async def story() -> None:
        first = Holder(cluster, "alice")
        await first.acquired()
        second = Holder(cluster, "bob")
        await asyncio.sleep(1)
        cluster.partition([["bob"], [*cluster.members, "alice"]])
        first.task.cancel()
        await first.over()
        await asyncio.sleep(2)
        assert not second.acquired_s
        cluster.heal()
        await second.acquired()
        second.task.cancel()
        await second.over()

    play(cluster, story)


def test_who_has_stood_still_sees_at_once_that_it_does_not_hold_any_more(
    cluster: SimulatedCluster,
) -> None:
    """Without a turn of the loop in between: between two lines of the caller's code."""
    seen: list[tuple[object, ...]] = []

    async def hold(db: Database) -> None:
        async with db.election("e", ttl=TTL_S, cancel_on_loss=False) as election:
            lease = election._granted().desk.lease
            seen.append((election.is_leader, lease.alive))
            lease._good_until = asyncio.get_running_loop().time() - 0.001
            seen.append((election.is_leader, lease.alive, lease.good_for))

    async def story() -> None:
        with pytest.raises(LockLostError):
            await cluster.call("alice", hold(connect(cluster, "alice")))
        assert seen == [(True, True), (False, False, 0.0)]

    play(cluster, story)


def test_a_client_that_used_a_lock_once_does_not_renew_a_lease_for_ever(
    cluster: SimulatedCluster,
) -> None:
    async def use(db: Database) -> None:
        async with db.lock("l", ttl=TTL_S):
            pass

    async def story() -> None:
        db = connect(cluster, "alice")
        await cluster.call("alice", use(db))
        assert (await db.list_leases()).count == 1
        await asyncio.sleep(2 * IDLE_S_MAX)
        assert (await db.list_leases()).count == 0
        await cluster.call("alice", use(db))
        assert (await db.list_leases()).count == 1

    play(cluster, story)


def test_parties_of_a_barrier_pass_though_the_leader_dies(cluster: SimulatedCluster) -> None:
    passed: list[str] = []

    async def party(db: Database, name: str) -> None:
        await db.barrier("b", 3, ttl=60.0).wait()
        passed.append(name)

    async def story() -> None:
        names = ["alice", "bob", "carol"]
        dbs = [connect(cluster, name) for name in names]
        tasks = [
            cluster.spawn(name, party(db, name))
            for name, db in zip(names[:2], dbs[:2], strict=True)
        ]
        await asyncio.sleep(1)
        leader = await cluster.wait_leader()
        cluster.cut_both("alice", leader)
        cluster.partition([["alice"], [*cluster.members, "bob", "carol"]])
        tasks.append(cluster.spawn("carol", party(dbs[2], "carol")))
        await asyncio.sleep(1)
        assert sorted(passed) == ["bob", "carol"]
        cluster.heal()
        await asyncio.gather(*tasks)
        assert sorted(passed) == names
        cluster.crash(await cluster.wait_leader())
        await cluster.wait_leader()

    cluster.run(_started(cluster, story))


async def _started(
    cluster: SimulatedCluster, story: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    await cluster.start(3)
    await story()


def test_observers_see_each_epoch_once_and_in_order(cluster: SimulatedCluster) -> None:
    seen: list[tuple[bytes, int] | None] = []

    async def look(db: Database) -> None:
        async for leader in db.election("e").observe():
            seen.append((leader.value, leader.epoch) if leader else None)  # noqa: PERF401  as it comes

    async def lead(db: Database, value: str, seconds: float) -> None:
        async with db.election("e", value, ttl=TTL_S):
            await asyncio.sleep(seconds)

    async def story() -> None:
        task = cluster.spawn("eve", look(connect(cluster, "eve")))
        await asyncio.sleep(1)
        leaders = [
            cluster.spawn(name, lead(connect(cluster, name), name, 3.0)) for name in ("a", "b", "c")
        ]
        await asyncio.sleep(1)
        cluster.crash(leader := await cluster.wait_leader())
        await asyncio.gather(*leaders)
        await asyncio.sleep(1)
        await cluster.restart(leader)
        task.cancel()
        await asyncio.wait([task])
        assert seen[0] is None
        assert seen[-1] is None
        epochs = [each[1] for each in seen if each is not None]
        assert len(epochs) == 3
        assert epochs == sorted(set(epochs))

    play(cluster, story)
