"""CRDT data through handles, on whole nodes in virtual time: what each level gives when nodes are
cut off or lost, and what becomes of a session. ``docs/consistency.md`` names these tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any, get_args

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate import Database, Level, ORSet, Receipt
from quorate.client.levels import parse_token
from quorate.errors import (
    DeadlineExceededError,
    OutcomeUnknownError,
    QuorateError,
    UnavailableError,
    UnconfirmedError,
)

LEVELS: tuple[Level, ...] = get_args(Level)


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    with SimulatedCluster(seed=5) as made:
        yield made
        assert made.problems == []


async def connect(cluster: SimulatedCluster, name: str, *numbers: int, **options: Any) -> Database:
    """A handle whose connections all begin on the host of *name*."""
    options = {"stall_timeout": 0.4, "connect_timeout": 0.4, "timeout": 6.0, **options}
    db = cluster.connect(name, *numbers, **options)

    async def begin() -> None:
        await db.converging.first_welcome(5)

    await cluster.call(name, begin())
    return db


async def pinned(cluster: SimulatedCluster, number: int) -> Database:
    return await connect(cluster, f"at{number}", number, follow_leader=False)


async def started(cluster: SimulatedCluster) -> tuple[int, list[int]]:
    """Three nodes: the leader, and the others."""
    await cluster.start(3)
    leader = await cluster.wait_leader()
    return leader, [number for number in cluster.members if number != leader]


async def agree(*handles: Database, name: str, value: int) -> None:
    """Until all of them see *value*, at whatever node they are."""
    async with asyncio.timeout(30):
        for db in handles:
            while await db.counter(name).value(level="eventual") != value:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except QuorateError as error:
        return error


def test_every_level_answers_and_says_what_it_gave(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        db = await connect(cluster, "alice")
        visits = db.counter("visits")
        assert await visits.value() == 0
        for number, level in enumerate(LEVELS):
            wrote, read = Receipt(), Receipt()
            await visits.increment(level=level, receipt=wrote)
            assert (wrote.level, wrote.may_be_lost) == (level, False)
            assert await visits.value(level=level, receipt=read) == number + 1
            assert read.level == level
            assert parse_token(wrote.token)[1].marks <= parse_token(read.token)[1].marks
            assert wrote.token.startswith(f"q2:{db.cluster}:")

    cluster.run(story())


def test_after_a_quorum_write_a_quorum_read_anywhere_sees_it(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        everywhere = [await pinned(cluster, number) for number in cluster.members]
        for number in range(12):
            await everywhere[number % 3].set("s").add(number, level="quorum")
            for db in everywhere:
                assert await db.set("s").contains(number, level="quorum")
        await everywhere[0].set("s").add("all", level="strong")
        for db in everywhere:
            assert await db.set("s").contains("all", level="eventual")

    cluster.run(story())


def test_a_node_that_is_cut_off_goes_on(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, others = await started(cluster)
        alone = await pinned(cluster, leader)
        rest = await pinned(cluster, others[0])
        await alone.counter("c").increment(level="strong")
        cluster.partition([[leader, f"at{leader}"], [*others, f"at{others[0]}"]])
        await asyncio.sleep(2)
        assert alone.statistics().leader in {0, leader}
        for level in ("eventual", "causal"):
            await alone.counter("c").increment(10, level=level)
        assert await alone.counter("c").value() == 21
        assert await alone.counter("c").value(level="eventual") == 21
        for level in ("quorum", "strong"):
            receipt = Receipt()
            error = await outcome(alone.counter("c").increment(100, level=level, receipt=receipt))
            assert isinstance(error, UnconfirmedError)
            assert set(error.members) == set(others)
            assert receipt.level == "causal"
            read = await outcome(alone.counter("c").value(level=level))
            assert isinstance(read, UnavailableError)
        await rest.counter("c").increment(1000, level="quorum")
        strong = await outcome(rest.counter("c").increment(1000, level="strong"))
        assert isinstance(strong, UnconfirmedError)
        assert strong.members == (leader,)
        assert await rest.counter("c").value() == 2001
        cluster.heal()
        await agree(alone, rest, name="c", value=2221)
        assert await rest.counter("c").value(level="strong") == 2221
        before = await rest.crdt_digest()
        assert await alone.crdt_digest() == before
        await rest.counter("c").increment()
        assert (await rest.crdt_digest())["digest"] != before["digest"]

    cluster.run(story())


def test_a_token_carries_a_session_to_another_node(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        leader, (lagging, _) = await started(cluster)
        alice, bob = await pinned(cluster, leader), await pinned(cluster, lagging)
        await alice.crdt("cart", ORSet).clear(level="strong")
        await cluster.converged()
        assert await bob.set("cart").value() == frozenset()
        cluster.cut(leader, lagging)
        cluster.cut(6 - leader - lagging, lagging)
        mine = alice.at("causal")
        await mine.set("cart").add("book")
        theirs = bob.at("causal", mine.token)
        assert await theirs.at("eventual").set("cart").value() == frozenset()
        with pytest.raises(UnavailableError, match=f"members \\[{leader}\\]"):
            await theirs.set("cart").value()
        late = await outcome(theirs.set("cart").add("pen", timeout=3))
        assert isinstance(late, DeadlineExceededError), "the node has it, and waits"
        assert await bob.set("cart").value() == frozenset(), "another session waits for nothing"
        cluster.heal()
        assert await theirs.set("cart").value() >= {"book"}
        assert parse_token(theirs.token)[1].marks >= parse_token(mine.token)[1].marks

    cluster.run(story())


def test_a_token_of_the_log_is_waited_for_by_crdt_data(cluster: SimulatedCluster) -> None:
    """And the other way round: a session that saw the log through one tier sees it in the other."""

    async def story() -> None:
        leader, (lagging, other) = await started(cluster)
        alice, bob = await connect(cluster, "alice", leader), await pinned(cluster, lagging)
        await alice.counter("orders").increment(level="strong")
        cluster.cut(leader, lagging)
        cluster.cut(other, lagging)
        mine = alice.at("causal")
        await mine.kv.put("order/1", "paid")
        theirs = bob.at("causal", mine.token)
        with pytest.raises(UnavailableError, match="applied the log up to"):
            await theirs.counter("orders").value(timeout=3)
        assert await bob.counter("orders").value() == 1
        cluster.heal()
        assert await theirs.counter("orders").value() == 1
        index = parse_token(theirs.token)[1].index
        assert index >= parse_token(mine.token)[1].index
        back = bob.at("causal", theirs.token)
        found = await back.kv.get("order/1")
        assert found is not None
        assert found.value == b"paid"

    cluster.run(story())


def test_a_handle_goes_on_elsewhere_and_counts_once(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        _leader, (first, second) = await started(cluster)
        db = await connect(cluster, "alice", first, second)
        await db.counter("c").increment(level="quorum")
        assert db.converging.node == first
        cluster.crash(first, power=False)
        await asyncio.sleep(0.5)
        counter = db.counter("c")
        for level in ("quorum", "causal", "eventual"):
            await counter.increment(level=level)
            assert await counter.value(level=level) >= 2
        assert db.converging.node != first
        error = await outcome(counter.increment(level="strong"))
        assert isinstance(error, UnconfirmedError)
        assert error.members == (first,)
        assert isinstance(await outcome(counter.value(level="strong")), UnavailableError)
        cluster.restart(first)
        back = await pinned(cluster, second)
        await agree(db, back, name="c", value=5)
        assert await counter.value(level="strong") == 5

    cluster.run(story())


def test_what_a_killed_node_may_have_done_is_asked_of_it(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        _leader, (first, second) = await started(cluster)
        db = await connect(cluster, "alice", first, second)
        counter = db.counter("c")
        await counter.increment(level="strong")
        total, calls = 1, []
        for number in range(40):
            calls.append(asyncio.ensure_future(outcome(counter.increment(timeout=8))))
            await asyncio.sleep(0.002)
            if number == 20:
                cluster.crash(first)
        cluster.restart(first)
        outcomes = await asyncio.gather(*calls)
        total += outcomes.count(None)
        assert total == 41, [each for each in outcomes if each is not None]
        await agree(db, name="c", value=total)
        assert await counter.value(level="strong") == total
        gone = db.converging.node
        cluster.crash(gone)
        error = await outcome(counter.increment(timeout=1))
        assert isinstance(error, OutcomeUnknownError)
        assert f"node {gone} may have done it" in str(error)

    cluster.run(story())


def test_a_watch_sees_what_others_write(cluster: SimulatedCluster) -> None:
    async def story() -> None:
        await started(cluster)
        writer, reader = [await pinned(cluster, number) for number in (1, 2)]
        found: list[Any] = []

        async def watch() -> None:
            async with reader.set("s").watch() as values:
                async for value in values:
                    found.append(value)
                    if len(value) == 30:
                        return

        task = cluster.spawn("at2", watch())
        for number in range(30):
            await writer.set("s").add(number)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await task
        assert found[-1] == {*range(30)}
        assert found == sorted(found, key=len), "nothing goes back"

    cluster.run(story())
