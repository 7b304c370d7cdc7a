"""Consistency per call, on whole nodes in virtual time: what each level promises, and what becomes
of it when nodes are cut off, paused or lost. ``docs/consistency.md`` names these tests row by row.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from random import Random
from typing import Any, get_args

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate import Accepted, Database, Level, Receipt
from quorate.base.kv_commands import Put, PutResult
from quorate.errors import (
    CommandError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotSentError,
    QuorateError,
    TokenError,
    UnconfirmedError,
)
from quorate.replication.acknowledging import CONFIRM_S
from tests import sharing

LEVELS: tuple[Level, ...] = get_args(Level)
HEARTBEAT_S = 0.05


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    with SimulatedCluster(seed=4) as made:
        yield made
        assert made.problems == []


def connect(cluster: SimulatedCluster, name: str, *numbers: int, **options: Any) -> Database:
    options = {"stall_timeout": 0.4, "connect_timeout": 0.4, **options}
    return cluster.connect(name, *numbers, **options)


def pinned(cluster: SimulatedCluster, number: int) -> Database:
    return connect(cluster, f"at{number}", number, follow_leader=False)


async def started(cluster: SimulatedCluster) -> tuple[int, list[int]]:
    """Three nodes: the leader, and the others."""
    await cluster.start(3)
    leader = await cluster.wait_leader()
    return leader, [number for number in cluster.members if number != leader]


async def value(call: Awaitable[Any]) -> bytes | None:
    found = await call
    return None if found is None else bytes(found.value)


async def took(cluster: SimulatedCluster, call: Awaitable[Any]) -> float:
    began_s = cluster.now_s
    await call
    return cluster.now_s - began_s


# --- all is well ---------------------------------------------------------------------------------


def test_every_level_answers_and_says_what_it_gave(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        last = 0
        for level in LEVELS:
            wrote, read = Receipt(), Receipt()
            result: Any = await db.kv.put("k", level, level=level, receipt=wrote)
            assert type(result) is (Accepted if level == "eventual" else PutResult)
            assert wrote.level == level
            assert wrote.index > last
            assert wrote.may_be_lost == (level == "eventual")
            assert wrote.token == ("" if wrote.may_be_lost else f"q1:{db.cluster}:{wrote.index}")
            await cluster.converged()
            assert await value(db.kv.get("k", level=level, receipt=read)) == level.encode()
            assert (read.level, read.index, read.may_be_lost) == (level, wrote.index, False)
            assert read.token == f"q1:{db.cluster}:{read.index}"
            last = read.index

    cluster.run(story())


def test_every_call_of_the_store_and_of_a_machine_takes_a_level(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        machine = db.machine("kv")
        for level in LEVELS:
            how: Any = {"level": level, "receipt": Receipt()}
            writes = (
                db.kv.put("k", "v", **how),
                db.kv.increment("n", **how),
                db.kv.compare_and_set("c", None, "v", **how),
                db.kv.txn(**how),
                db.kv.delete("k", **how),
                db.kv.delete_range(prefix="k", **how),
                machine.execute(Put(b"k", b"v"), **how),
            )
            reads = (
                db.kv.get("k", **how),
                db.kv.range(**how),
                db.kv.count(**how),
                db.kv.statistics(**how),
                machine.query([1, b"k"], **how),
                anext(db.kv.scan(**how)),
            )
            for write in writes:
                assert (type(await write) is Accepted) == (level == "eventual")
                assert how["receipt"].level == level
            for read in reads:
                await read
                assert how["receipt"].level == level
        with pytest.raises(InvalidArgumentError, match="strong, quorum, causal, eventual"):
            await db.kv.get("k", level="linearizable")  # type: ignore[arg-type]

    cluster.run(story())


def test_a_strong_write_is_seen_at_once_at_every_node(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        everywhere = [pinned(cluster, number) for number in cluster.members]
        for each in everywhere:
            await each.open()
        for number in range(20):
            await db.kv.put("k", str(number), level="strong")
            for each in everywhere:
                assert await value(each.kv.get("k", level="eventual")) == b"%d" % number

    cluster.run(story())


def test_a_strong_write_costs_one_more_round_trip(cluster: SimulatedCluster) -> None:
    """Not a heartbeat interval; and what is written together shares it."""

    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        await db.kv.put("k", "v")
        spent = [await took(cluster, db.kv.put("k", "v", level="strong")) for _ in range(30)]
        assert sorted(spent)[15] < HEARTBEAT_S / 2
        many = [db.kv.put(f"k{number}", "v", level="strong") for number in range(200)]
        assert await took(cluster, asyncio.gather(*many)) < HEARTBEAT_S

    cluster.run(story())


def test_reads_of_a_handle_may_go_to_a_follower(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, followers = await started(cluster)
        writer = connect(cluster, "alice")
        async with connect(cluster, "bob", reads="any") as db:
            await db.kv.get("k")
            await asyncio.sleep(1)
            first = db.statistics().reads_from
            assert first in followers
            for number in range(20):
                await writer.kv.put("k", str(number))
                assert await value(db.kv.get("k")) == b"%d" % number
                view = db.at("causal")
                await view.kv.put("mine", str(number))
                assert await value(view.kv.get("mine")) == b"%d" % number
            before = cluster.nodes[leader].replica.statistics().queries
            await db.kv.get("k", level="eventual")
            assert cluster.nodes[leader].replica.statistics().queries == before
            cluster.crash(first)
            assert await value(db.kv.get("k")) == b"19"
            (second,) = set(followers) - {first}
            assert db.statistics().reads_from in {leader, second}

    cluster.run(story())


def test_reads_fall_back_to_the_leader_and_leave_it_again(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, followers = await started(cluster)
        async with connect(cluster, "bob", reads="any") as db:
            await db.kv.put("k", "v")
            for number in followers:
                cluster.cut_both("bob", number)
            assert await value(db.kv.get("k")) == b"v"
            assert db.statistics().reads_from == leader
            await asyncio.sleep(2)  # it has tried the others, and makes do
            cluster.heal()
            await asyncio.sleep(8)
            assert await value(db.kv.get("k")) == b"v"
            assert db.statistics().reads_from in followers

    cluster.run(story())


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_carries_a_session_to_another_process(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, (lagging, _) = await started(cluster)
        alice, bob = connect(cluster, "alice"), pinned(cluster, lagging)
        await bob.open()
        mine = alice.at("causal")
        assert mine.token == ""
        await mine.kv.put("k", "1", level="strong")
        cluster.cut(leader, lagging)
        await mine.kv.put("k", "2")
        assert mine.token.isascii()
        assert mine.token.isprintable()
        theirs = bob.at("causal", token=mine.token)
        assert await value(theirs.at("eventual").kv.get("k")) == b"1"
        with pytest.raises(DeadlineExceededError, match="not applied entry"):
            await theirs.kv.get("k", timeout=0.6)
        cluster.heal()
        assert await value(theirs.kv.get("k")) == b"2"
        assert theirs.token == mine.token

    cluster.run(story())


def test_tokens_merge_to_the_later_one_and_views_share_a_session(
    cluster: SimulatedCluster,
) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        one, two = db.at("causal"), db.at("causal")
        await one.kv.put("k", "1")
        await two.kv.put("k", "2")
        early, late = one.token, two.token
        one.merge(late)
        two.merge(early)
        two.merge("")
        assert one.token == two.token == late
        closer = one.at("quorum")
        await closer.kv.put("k", "3")
        assert closer.token == one.token != late
        await one.kv.put("k", "4", level="eventual")
        assert one.token == closer.token, "what may be lost is not waited for"
        assert one.at("strong").level == "strong"

    cluster.run(story())


def test_foreign_and_malformed_tokens_are_refused(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        foreign = "q1:elsewhere-0011:7"
        early = db.at("causal", foreign)  # nobody can tell yet
        with pytest.raises(TokenError, match="elsewhere"):
            await early.kv.get("k")
        with pytest.raises(TokenError, match="elsewhere"):
            await early.kv.put("k", "v")
        with pytest.raises(TokenError, match="elsewhere"):
            db.at("causal", foreign)
        for bad in ("7", "q1:x", "q2:x-1:7", f"q1:x:{2**63}", "q1:x:7:more", "q1:x:7\n", 7, None):
            with pytest.raises(TokenError, match="token"):
                db.at("causal", token=bad)  # type: ignore[arg-type]

    cluster.run(story())


def test_a_plain_handle_is_a_session_too(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, (lagging, _) = await started(cluster)
        async with connect(cluster, "bob", reads="any") as db:
            await db.kv.get("k")
            cluster.cut(leader, lagging)
            for number in range(5):
                await db.kv.put("k", str(number))
                assert await value(db.kv.get("k", level="causal")) == b"%d" % number

    cluster.run(story())


# --- the table of faults -------------------------------------------------------------------------


def test_on_the_minority_side(cluster: SimulatedCluster) -> None:
    """A leader cut off from the others: what it still answers, and what becomes of that."""

    async def story() -> None:
        leader, others = await started(cluster)
        db = connect(cluster, "left", timeout=1.5)
        view = db.at("causal")
        await view.kv.put("k", "1")
        cluster.partition([[leader, "left"], others])
        assert isinstance(await db.kv.put("lost", "x", level="eventual"), Accepted)
        assert await value(db.kv.get("k", level="eventual")) == b"1"
        assert await value(view.kv.get("k")) == b"1"
        calls: list[Awaitable[Any]] = [db.kv.put("k", "2", level=at) for at in LEVELS[:3]]
        calls += [db.kv.get("k", level=at) for at in LEVELS[:2]]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, DeadlineExceededError | NotSentError)
        # By now it has given up leading: a write at any level waits for a leader.
        with pytest.raises(NotSentError):
            await db.kv.put("k", "3", level="eventual", timeout=0.5)
        assert await value(db.kv.get("k", level="eventual")) == b"1"
        other = connect(cluster, "right")
        await other.kv.put("right", "y")
        cluster.heal()
        await cluster.converged()
        assert await value(other.kv.get("lost")) is None, "it was accepted, and lost, as was said"

    cluster.run(story())


def test_on_the_majority_side(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, others = await started(cluster)
        db = connect(cluster, "right", timeout=10.0)
        view = db.at("causal")
        await view.kv.put("k", "1")
        cluster.partition([[leader], [*others, "right"]])
        for level in ("quorum", "causal", "eventual"):
            await view.kv.put("k", level, level=level)
            assert await value(view.kv.get("k")) is not None
        with pytest.raises(UnconfirmedError) as caught:
            await db.kv.increment("n", level="strong")
        assert caught.value.members == (leader,)
        assert await value(db.kv.get("n", level="strong")) == b"1"

    cluster.run(story())


def test_when_the_leader_is_killed(cluster: SimulatedCluster) -> None:
    """Whatever was acknowledged stands, except what was said to be uncertain; calls at every level
    go on with the next leader, each once."""

    async def story() -> None:
        leader, others = await started(cluster)
        db = connect(cluster, "alice", timeout=10.0)
        for level in ("quorum", "causal"):
            await db.kv.increment("n", level=level)
        await db.kv.increment("n", level="strong")
        calls = [db.kv.increment("n", level=level) for level in ("quorum", "causal")]
        under_way = asyncio.gather(*calls)
        await asyncio.sleep(0.0005)
        cluster.crash(leader)
        await under_way
        with pytest.raises(UnconfirmedError) as caught:
            await db.kv.increment("n", level="strong")
        assert caught.value.members == (leader,)
        assert (caught.value.result.value, caught.value.definite) == (6, False)
        assert isinstance(await db.kv.increment("n", level="eventual"), Accepted)
        await asyncio.sleep(1)
        for level in LEVELS:
            assert await value(db.kv.get("n", level=level)) == b"7"
        assert await cluster.wait_leader() in others

    cluster.run(story())


def test_an_accepted_write_vanishes_with_its_leader(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, others = await started(cluster)
        db = connect(cluster, "alice", timeout=10.0)
        await db.kv.put("k", "before")
        for number in others:
            cluster.cut(leader, number)
        receipt = Receipt()
        result: Any = await db.kv.put("k", "after", level="eventual", receipt=receipt)
        assert isinstance(result, Accepted)
        assert (receipt.index, receipt.may_be_lost, receipt.token) == (result.index, True, "")
        cluster.crash(leader)
        assert await value(db.kv.get("k")) == b"before"
        await db.kv.put("other", "x")
        cluster.heal()
        await cluster.restart(leader)
        await cluster.converged()
        assert await value(db.kv.get("k")) == b"before"

    cluster.run(story())


def test_an_accepted_write_usually_stands_and_is_done_once(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = connect(cluster, "alice")
        accepted = [await db.kv.increment("n", level="eventual") for _ in range(10)]
        assert [each.index for each in accepted] == sorted({each.index for each in accepted})
        assert (await db.kv.increment("n")).value == 11, "which stands behind them in the log"

    cluster.run(story())


def test_when_a_follower_is_paused(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        _, (paused, _) = await started(cluster)
        db = connect(cluster, "alice")
        view = db.at("causal")
        cluster.pause(paused)
        for level in ("quorum", "causal", "eventual"):
            await view.kv.put("k", level, level=level)
            await view.kv.get("k", level=level)
        assert await value(db.kv.get("k", level="strong")) == b"eventual"
        receipt = Receipt()
        began_s = cluster.now_s
        with pytest.raises(UnconfirmedError) as caught:
            await db.kv.increment("n", level="strong", receipt=receipt)
        assert CONFIRM_S <= cluster.now_s - began_s < CONFIRM_S + 0.1
        assert (caught.value.members, caught.value.index) == ((paused,), receipt.index)
        assert receipt.level == "quorum", "that is what it got"
        assert "do not repeat" in str(caught.value)
        assert await value(db.kv.get("n")) == b"1"
        with pytest.raises(CommandError):  # refused by the machine: nothing to confirm
            await db.kv.increment("k", level="strong")
        with pytest.raises(DeadlineExceededError):
            await db.kv.increment("n", level="strong", timeout=0.3)
        cluster.resume(paused)
        await db.kv.increment("n", level="strong")
        at_it = pinned(cluster, paused)
        assert await value(at_it.kv.get("n", level="eventual")) == b"3"

    cluster.run(story())


def test_a_reader_leaves_a_follower_that_is_behind(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        _, followers = await started(cluster)
        async with connect(cluster, "bob", reads="any") as db:
            view = db.at("causal")
            await view.kv.put("k", "1")
            await asyncio.sleep(1)
            first = db.statistics().reads_from
            assert first in followers
            for other in cluster.members:
                if other != first:
                    cluster.cut_both(first, other)
            await view.kv.put("k", "2")
            assert await value(view.kv.get("k")) == b"2"
            assert db.statistics().reads_from != first
            await asyncio.sleep(0.1)
            assert await value(db.kv.get("k")) == b"2"

    cluster.run(story())


def test_a_reader_of_little_patience_leaves_a_node_that_finds_no_leader(
    cluster: SimulatedCluster,
) -> None:
    """Its calls end sooner than the node refuses them; it hears of that all the same."""

    async def story() -> None:
        _, followers = await started(cluster)
        async with connect(cluster, "bob", reads="any", timeout=0.3) as db:
            await db.kv.put("k", "1")
            await asyncio.sleep(1)
            first = db.statistics().reads_from
            assert first in followers
            for other in cluster.members:
                if other != first:
                    cluster.cut_both(first, other)
            for _ in range(20):
                with contextlib.suppress(DeadlineExceededError):
                    await db.kv.get("k")
            assert db.statistics().reads_from != first
            assert await value(db.kv.get("k")) == b"1"

    cluster.run(story())


def test_a_removed_voter_is_not_waited_for(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        _, (paused, _) = await started(cluster)
        db = connect(cluster, "alice", timeout=10.0)
        await db.kv.put("k", "v")
        cluster.pause(paused)
        write = asyncio.ensure_future(db.kv.put("k", "w", level="strong"))
        await asyncio.sleep(0.2)
        await db.remove_member(paused)
        assert isinstance(await write, PutResult)
        assert isinstance(await db.kv.put("k", "x", level="strong"), PutResult)

    cluster.run(story())


def test_a_strong_write_that_is_sent_again_is_answered_as_the_first_time(
    cluster: SimulatedCluster,
) -> None:
    """Its leader is lost between commit and answer: the next one finds it done, and confirms."""

    async def story() -> None:
        leader, (paused, _) = await started(cluster)
        db = connect(cluster, "alice", timeout=10.0)
        await db.kv.increment("n")
        cluster.pause(paused)
        write = asyncio.ensure_future(db.kv.increment("n", level="strong"))
        await asyncio.sleep(0.3)
        assert not write.done()
        cluster.resume(paused)
        cluster.crash(leader)
        with pytest.raises(UnconfirmedError) as caught:
            await write
        assert (caught.value.members, caught.value.result.value) == ((leader,), 2)
        await cluster.restart(leader)
        await cluster.converged()
        assert await value(db.kv.get("n")) == b"2"
        assert (await db.kv.increment("n", level="strong")).value == 3

    cluster.run(story())


# --- sessions and linearizability under random faults --------------------------------------------


class _Session:
    """One that moves between handles with its token, and what it must not see go back."""

    def __init__(self, handles: list[Database], random: Random) -> None:
        self.handles = handles
        self.random = random
        self.token = ""
        self.revisions: dict[str, int] = {}
        self.revision = 0
        self.done = 0

    async def step(self) -> None:
        view = self.random.choice(self.handles).at("causal", token=self.token)
        key = self.random.choice("ab")
        with contextlib.suppress(QuorateError):
            if self.random.random() < 0.4:
                revision = (await view.kv.put(key, "x")).revision
                assert revision > self.revision, "writes follow the reads and writes before them"
            else:
                found = await view.kv.get(key)
                revision = 0 if found is None else found.mod_revision
                assert revision >= self.revisions.get(key, 0), "what was seen or written is seen"
            self.revisions[key] = revision
            self.revision = max(self.revision, revision)
            self.done += 1
        self.token = view.token


async def _torment(cluster: SimulatedCluster, random: Random, seconds: float) -> None:
    ends_s = cluster.now_s + seconds
    while cluster.now_s < ends_s:
        number = random.choice(list(cluster.members))
        kind = random.randrange(4)
        if kind == 0:
            cluster.pause(number)
        elif kind == 1:
            for other in cluster.members:
                if other != number:
                    cluster.cut_both(number, other)
        elif kind == 2:
            cluster.crash(number)
        else:
            cluster.cut(number, random.choice([n for n in cluster.members if n != number]))
        await asyncio.sleep(random.random() * 1.5)
        cluster.resume(number)
        cluster.heal()
        await cluster.restart_all()
        await asyncio.sleep(random.random())


@pytest.mark.parametrize("seed", sharing.turn(range(6)))
def test_sessions_keep_their_four_guarantees_across_handles(seed: int) -> None:
    """Read your writes, monotonic reads, monotonic writes, writes follow reads."""
    random = Random(seed)

    async def story(cluster: SimulatedCluster) -> None:
        await cluster.start(3)
        handles = [pinned(cluster, number) for number in cluster.members]
        handles += [connect(cluster, f"any{at}", reads="any", timeout=2.0) for at in range(2)]
        handles.append(connect(cluster, "leader", timeout=2.0))
        sessions = [_Session(handles, random) for _ in range(6)]
        faults = asyncio.ensure_future(_torment(cluster, random, 12))

        async def go_on(session: _Session) -> None:
            while not faults.done():
                await session.step()
                await asyncio.sleep(random.random() * 0.05)

        await asyncio.gather(faults, *(go_on(session) for session in sessions))
        assert sum(session.done for session in sessions) > 100

    with SimulatedCluster(seed=seed) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []


@pytest.mark.parametrize("seed", sharing.turn(range(6)))
def test_quorum_reads_at_any_node_stay_linearizable(seed: int) -> None:
    """A counter that one client raises: no read may see less than was acknowledged before it began,
    or than another read had seen by then."""
    random = Random(seed)

    async def story(cluster: SimulatedCluster) -> None:
        await cluster.start(3)
        writer = connect(cluster, "writer", timeout=30.0)
        readers = [pinned(cluster, number) for number in cluster.members]
        readers += [connect(cluster, f"any{at}", reads="any", timeout=5.0) for at in range(3)]
        faults = asyncio.ensure_future(_torment(cluster, random, 12))
        floor = 0
        reads = 0

        async def write() -> None:
            nonlocal floor
            while not faults.done():
                floor = max(floor, (await writer.kv.increment("n")).value)
                await asyncio.sleep(random.random() * 0.02)

        async def read(db: Database) -> None:
            nonlocal floor, reads
            while not faults.done():
                before = floor
                with contextlib.suppress(QuorateError):
                    found = await value(db.kv.get("n", level=random.choice(LEVELS[:2])))
                    assert int(found or b"0") >= before
                    floor = max(floor, int(found or b"0"))
                    reads += 1
                await asyncio.sleep(random.random() * 0.02)

        await asyncio.gather(faults, write(), *(read(db) for db in readers))
        assert reads > 100
        assert floor > 20

    with SimulatedCluster(seed=seed) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []
