"""Handles of CRDT data, over sockets against replicas in memory: every kind, levels, watches."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from quorate.base.crdt_frames import NOWHERE, CrdtRead, CrdtWrite, Mark, Position
from quorate.base.crdt_operations import Increment, KindTag, Update
from quorate.base.frames import Query
from quorate.base.levels import LEVELS
from quorate.client import crdt, crdt_maps, sync, sync_crdt
from quorate.client.crdt import BoundedCounter, DisableWinsFlag, GCounter, GSet, MVRegister, TwoPSet
from quorate.client.crdt_maps import KINDS, ORMap
from quorate.client.database import Database, connect
from quorate.client.levels import Receipt, parse_token
from quorate.errors import (
    ClosedError,
    CrdtError,
    DeadlineExceededError,
    InsufficientRightsError,
    InvalidArgumentError,
    LimitExceededError,
    NotObservedError,
    TokenError,
    TypeMismatchError,
    UnavailableError,
    UnconfirmedError,
)
from tests.client.fake_cluster import FINE, SILENT, FakeCluster, Fault, fake_cluster


@pytest.fixture
async def lone() -> AsyncIterator[FakeCluster]:
    async with fake_cluster() as cluster:
        yield cluster


@pytest.fixture
async def db(lone: FakeCluster) -> AsyncIterator[Database]:
    async with connect(lone.endpoints, timeout=2) as made:
        yield made


def _frames(cluster: FakeCluster, kind: type) -> list[Any]:
    return [frame for frame in cluster.requests if isinstance(frame, kind)]


# --- kinds ----------------------------------------------------------------------------------------


async def test_counters(db: Database) -> None:
    visits = db.counter("visits")
    await visits.increment()
    await visits.increment(4)
    await visits.decrement(2)
    assert await visits.value() == 3
    seen = await visits.observe()
    await visits.increment(10)
    await visits.clear(observed=seen)
    assert await visits.value() == 10
    await visits.clear()
    assert await db.counter("visits").value() == 0
    grows = db.crdt("grows", GCounter)
    await grows.increment(7)
    assert await grows.value() == 7


async def test_bounded_counters_name_what_is_missing(db: Database) -> None:
    stock = db.crdt("stock", BoundedCounter)
    await stock.increment(10)
    await stock.decrement(3)
    await stock.transfer(2, 4)
    rights = await stock.rights()
    assert rights.here == 3
    assert (2, 1, 4) in rights.shares
    with pytest.raises(InsufficientRightsError) as refused:
        await stock.decrement(4)
    assert (refused.value.needed, refused.value.available) == (4, 3)
    assert refused.value.definite
    with pytest.raises(CrdtError, match="no life of member 9"):
        await stock.transfer(9, 1)
    assert await stock.value() == 7
    nested = db.map("shop").crdt("stock", BoundedCounter)
    await nested.increment(2)
    assert (await nested.rights()).here == 2


async def test_registers_and_flags(db: Database) -> None:
    colour = db.register("colour")
    assert await colour.value() is None
    told: dict[str, Any] = {"rgb": [1, 2, (3,)]}
    call = asyncio.ensure_future(colour.assign(told))
    await asyncio.sleep(0)
    told["rgb"].append(4)  # after the call: it has its own copy
    await call
    assert await colour.value() == {"rgb": [1, 2, [3]]}
    many = db.crdt("many", MVRegister)
    await many.assign(b"x")
    assert await many.value() == [b"x"]
    flag, other = db.flag("on"), db.crdt("off", DisableWinsFlag)
    assert (await flag.value(), await other.value()) == (False, True)
    await flag.enable()
    await other.disable()
    assert (await flag.value(), await other.value()) == (True, False)


async def test_sets_come_page_by_page(lone: FakeCluster, db: Database) -> None:
    tags = db.set("tags")
    await tags.add("a", b"b", 3, ("x", (1, "y")), "c", "d", "e")
    await tags.remove("a")
    lone.requests.clear()
    assert await tags.value() == {b"b", 3, ("x", (1, "y")), "c", "d", "e"}
    assert len(_frames(lone, CrdtRead)) == 2
    assert {element async for element in tags} == await tags.value()
    assert await tags.count() == 6
    assert await tags.contains(b"b")
    assert not await tags.contains("a")
    await tags.add()
    gone = db.crdt("gone", TwoPSet)
    await gone.add("x")
    await gone.remove("x")
    with pytest.raises(CrdtError):
        await gone.add("y", "x")
    assert await gone.value() == {"y"}
    await db.crdt("grow", GSet).add("1")


async def test_a_removal_takes_what_was_observed() -> None:
    async with fake_cluster(2) as cluster, connect(cluster.nodes[1].endpoint) as db:
        drafts = db.set("drafts")
        await drafts.add("a")
        seen = await drafts.observe("a")
        await drafts.add("a")
        await drafts.remove("a", observed=seen)
        assert await drafts.contains("a")
        async with connect(cluster.nodes[2].endpoint, follow_leader=False) as other:
            with pytest.raises(NotObservedError):
                await other.set("drafts").remove("a", observed=seen)
            cluster.nodes[2].data.join(cluster.nodes[1].data)
            await other.set("drafts").remove("a", observed=seen)
            await other.set("drafts").clear()
            assert await other.set("drafts").value() == frozenset()


async def test_maps_hold_everything(lone: FakeCluster, db: Database) -> None:
    cart = db.map("cart")
    await cart.counter("apple").increment(2)
    await cart.set("tags").add("red")
    await cart.map("more").map("deep").register("note").assign("x")
    await cart.flag(("gift", 1)).enable()
    assert await cart.value() == {
        "apple": 2,
        "tags": {"red"},
        "more": {"deep": {"note": "x"}},
        ("gift", 1): True,
    }
    assert {key async for key in cart} == {"apple", "tags", "more", ("gift", 1)}
    assert {key: value async for key, value in cart.map("more").items()} == {"deep": {"note": "x"}}
    with pytest.raises(TypeMismatchError):
        await cart.set("apple").add("x")
    seen = await cart.observe("apple")
    await cart.counter("apple").increment()
    await cart.remove("apple", observed=seen)
    assert await cart.counter("apple").value() == 1
    await cart.remove("apple")
    assert not await cart.contains("apple")
    assert await cart.contains("tags")
    assert await cart.conflicts() == {}
    assert repr(cart.map("more").register(2)) == "<LWWRegister 'cart'['more'][2]>"
    assert cart.map("more").register(2).keys_to_it == ("more", 2)
    assert [tuple(each) async for each in db.crdt_names("ca")] == [("cart", ("ORMap",))]
    await db.remove_crdt("cart")
    assert await cart.value() == {}
    assert [each async for each in db.crdt_names()] == []


async def test_two_kinds_under_one_key_are_shown(lone: FakeCluster, db: Database) -> None:
    other = fake_cluster()
    async with other as elsewhere, connect(elsewhere.endpoints) as there:
        elsewhere.nodes[1].data.replica.actor += 1 << 32  # another member's
        await there.map("m").set("k").add("x")
        await db.map("m").counter("k").increment(3)
        lone.nodes[1].data.join(elsewhere.nodes[1].data)
    assert await db.map("m").value() == {"k": 3}
    assert await db.map("m").conflicts() == {"k": {"PNCounter": 3, "ORSet": {"x"}}}
    assert [key async for key in db.map("m")] == ["k"]


def _bad() -> Iterator[Any]:
    yield lambda db: db.counter("")
    yield lambda db: db.set(b"bytes")
    yield lambda db: db.crdt("x", int)
    yield lambda db: db.crdt("x", crdt.Data)
    yield lambda db: db.counter("x\ud800")
    yield lambda db: db.counter("x" * 5000)
    for amount in (0, -1, True, 1.0, 2**63):
        yield lambda db, amount=amount: db.counter("c").increment(amount)
    for element in (None, 1.5, True, {"a": 1}, ((((((((((1,),),),),),),),),),), ("a", None), 2**70):
        yield lambda db, element=element: db.set("s").add(element)
        yield lambda db, element=element: db.set("s").add("fine", element, timeout=60)
    nested: Any = []
    for _ in range(100):
        nested = [nested]
    for value in (nested, {1.5: 2}, {1, 2}, object(), 2**70, "\ud800"):
        yield lambda db, value=value: db.register("r").assign(value)
    yield lambda db: db.set("s").add("x", level="weak")
    yield lambda db: db.set("s").add("x", level=["causal"])
    yield lambda db: db.set("s").add("x", timeout=0)
    yield lambda db: db.crdt("b", BoundedCounter).transfer(0, 1)
    yield lambda db: db.set("s").watch(pause=-1)


async def test_bad_arguments_are_refused_here() -> None:
    db = connect("127.0.0.1:1")
    for number, call in enumerate(_bad()):
        with pytest.raises((InvalidArgumentError, LimitExceededError)):
            await call(db)
            pytest.fail(f"call number {number} was taken")
    await db.close()


async def test_maps_are_nested_up_to_a_limit(db: Database) -> None:
    inner: ORMap = db.map("m")
    for depth in range(15):
        inner = inner.map(depth)
    with pytest.raises(LimitExceededError):
        inner.counter("one too deep")


# --- frames, levels, sessions ---------------------------------------------------------------------


async def test_calls_of_one_turn_share_a_frame_at_one_level(
    lone: FakeCluster, db: Database
) -> None:
    tags = db.set("tags")
    await tags.add("first")
    lone.requests.clear()
    levels: Any = (None, "causal", "eventual", "eventual", "strong", "quorum")
    await asyncio.gather(*(tags.add("x", level=level) for level in levels))
    sent = [(LEVELS[each.level], len(each.operations)) for each in _frames(lone, CrdtWrite)]
    assert sent == [("causal", 1), ("causal", 1), ("eventual", 2), ("strong", 1), ("quorum", 1)]
    await asyncio.gather(*(tags.add(number) for number in range(2500)))
    assert [len(each.operations) for each in _frames(lone, CrdtWrite)[5:]] == [1000, 1000, 500]
    last = _frames(lone, CrdtWrite)[-1]
    assert last.acknowledged < last.sequence


async def test_what_is_answered_is_acknowledged(lone: FakeCluster, db: Database) -> None:
    for number in range(3):
        await db.set("s").add(number)
    sent = [(each.sequence, each.acknowledged) for each in _frames(lone, CrdtWrite)]
    assert sent == [(1, 0), (2, 1), (3, 2)]
    assert {each.client for each in _frames(lone, CrdtWrite)} == {sent_by(lone)}


def sent_by(cluster: FakeCluster) -> bytes:
    client: bytes = _frames(cluster, CrdtWrite)[0].client
    assert len(client) == 16
    return client


async def test_sessions_carry_both_tiers(lone: FakeCluster, db: Database) -> None:
    data = lone.nodes[1].data
    session = db.at("causal")
    put = await session.kv.put("k", "v")
    assert put.revision
    index = data.index = parse_token(session.token)[1].index
    await session.counter("c").increment()
    assert _frames(lone, CrdtWrite)[-1].after == Position(index)
    assert session.token == f"q2:fake:{index}:1.1.1"
    data.index = index + 5  # what the node has applied when it answers
    assert await session.counter("c").value() == 1
    assert _frames(lone, CrdtRead)[-1].after == Position(index, (Mark(1, 1, 1),))
    lone.script = lambda _node, _frame: Fault(apply=False, answer="unavailable")
    with pytest.raises(DeadlineExceededError):
        await session.kv.get("k", timeout=0.02)
    lone.script = lambda _node, _frame: FINE
    assert _frames(lone, Query)[-1].after == index + 5
    elsewhere = db.at("eventual", session.token)
    await elsewhere.counter("c").value()
    assert _frames(lone, CrdtRead)[-1].after == NOWHERE
    await elsewhere.at("quorum").counter("c").increment()
    assert _frames(lone, CrdtWrite)[-1].after == Position(index + 5, (Mark(1, 1, 1),))
    assert _frames(lone, CrdtWrite)[-1].level == LEVELS.index("quorum")


async def test_a_plain_handle_follows_what_its_crdt_calls_have_seen(
    lone: FakeCluster, db: Database
) -> None:
    """Not the log: a node that is cut off would never come to what the leader said last."""
    await db.kv.put("k", "v")
    lone.nodes[1].data.index = 9
    await db.set("s").add("x")
    await db.set("s").contains("x")
    assert _frames(lone, CrdtRead)[-1].after == Position(0, (Mark(1, 1, 1),))
    assert LEVELS[_frames(lone, CrdtRead)[-1].level] == "causal"


async def test_receipts(lone: FakeCluster, db: Database) -> None:
    lone.nodes[1].data.index = 4
    receipts = [Receipt() for _ in range(3)]
    await asyncio.gather(
        db.counter("c").increment(receipt=receipts[0]),
        db.counter("c").increment(level="eventual", receipt=receipts[1]),
    )
    assert [each.level for each in receipts[:2]] == ["causal", "eventual"]
    assert parse_token(receipts[0].token) == ("fake", Position(4, (Mark(1, 1, 1),)))
    assert parse_token(receipts[1].token)[1].index == receipts[1].index == 4
    with pytest.raises(InvalidArgumentError):
        await db.counter("c").increment(0, receipt=receipts[2])
    assert receipts[2].token == ""
    with pytest.raises(TypeMismatchError):
        await db.set("c").add("x", receipt=receipts[2])
    assert receipts[2].token, "it was refused by a state that was seen"
    assert "level='causal'" in repr(receipts[2])
    await db.set("many").add(*range(2500), receipt=receipts[0])
    assert receipts[0].token == f"q2:fake:4:1.1.{lone.nodes[1].data.marks[1]}"
    answers = [Position(4, (Mark(1, 1, 7),)), Position(3, (Mark(1, 1, 5), Mark(2, 1, 1)))]
    receipts[1].fill(None, "", NOWHERE)
    for level, answer in zip(("quorum", "causal"), answers, strict=True):
        receipts[1].fill_more(level, "fake", answer)  # type: ignore[arg-type]
    assert parse_token(receipts[1].token)[1] == Position(4, (Mark(1, 1, 7), Mark(2, 1, 1)))
    assert receipts[1].level == "causal"


async def test_what_was_not_confirmed_is_said(lone: FakeCluster, db: Database) -> None:
    lone.nodes[1].data.unconfirmed = (2, 3)
    receipt = Receipt()
    outcomes: Any = await asyncio.gather(
        db.counter("c").increment(level="strong", receipt=receipt),
        db.crdt("c", GCounter).increment(level="strong"),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], UnconfirmedError)
    assert outcomes[0].members == (2, 3)
    assert not outcomes[0].definite
    assert "node 1" in str(outcomes[0])
    assert isinstance(outcomes[1], TypeMismatchError), "a refusal stays one"
    assert receipt.level == "causal"
    assert receipt.token


async def test_a_token_of_another_cluster_is_refused_by_the_first_call(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        with pytest.raises(TokenError):
            await db.at("causal", "q2:other:0:1.1.1").counter("c").value()
    db = connect(lone.endpoints)
    view = db.at("causal", "q2:other:0:1.1.1")
    with pytest.raises(TokenError):
        await view.counter("c").increment()
    with pytest.raises(UnavailableError):
        await db.at("causal", "q2:fake:0:2.1.1").counter("c").increment(timeout=0.05)
    assert not lone.nodes[1].data.executed
    await db.close()


# --- watches --------------------------------------------------------------------------------------


async def test_a_watch_gives_the_last_value(lone: FakeCluster, db: Database) -> None:
    counter = db.counter("c")
    found = []
    begun = asyncio.Event()

    async def watch() -> None:
        async with counter.watch(pause=0.005) as values:
            async for value in values:
                found.append(value)
                begun.set()
                if value == 300:
                    return

    task = asyncio.create_task(watch())
    await begun.wait()
    for _ in range(100):
        await asyncio.gather(*(counter.increment() for _ in range(3)), db.set("other").add("x"))
    async with asyncio.timeout(2):
        await task
    assert found[0] == 0
    assert found == sorted(set(found)), "each value once, and none older than the one before"
    assert len(found) < 200, "what changes all the time is not read all the time"


async def test_what_changes_while_it_is_read_is_told(lone: FakeCluster, db: Database) -> None:
    data, counter = lone.nodes[1].data, db.counter("c")

    def increment() -> None:
        data.replica.apply(Update("c", KindTag.PN_COUNTER, Increment(1)))
        data.tell("c")

    async with counter.watch(pause=0) as values:
        assert await anext(values) == 0
        data.meanwhile = increment
        await counter.increment()
        async with asyncio.timeout(2):
            assert [await anext(values), await anext(values)] == [1, 2]


async def test_a_watch_goes_where_the_connection_goes() -> None:
    async with fake_cluster(2) as cluster, connect(cluster.endpoints) as db:
        await db.set("s").add("a", level="eventual")
        async with db.set("s").watch(pause=0) as values:
            assert await anext(values) == {"a"}
            reads = len(_frames(cluster, CrdtRead))
            cluster.script = lambda _node, frame: SILENT if isinstance(frame, CrdtRead) else FINE
            waiting = asyncio.ensure_future(anext(values))
            await db.set("s").add("c")
            async with asyncio.timeout(2):
                while len(_frames(cluster, CrdtRead)) == reads:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            waiting.cancel()  # loses nothing
            cluster.script = lambda _node, _frame: FINE
            async with asyncio.timeout(2):
                assert await anext(values) == {"a", "c"}
            await cluster.nodes[1].stop()
            cluster.nodes[2].data.join(cluster.nodes[1].data)
            while db.converging.node != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await db.set("s").add("b")
            async with asyncio.timeout(2):
                while await anext(values) != {"a", "b", "c"}:
                    pass
            await values.close()
            with pytest.raises(StopAsyncIteration):
                await anext(values)


async def test_a_watch_that_cannot_begin_or_go_on(lone: FakeCluster) -> None:
    db = connect("127.0.0.1:1", timeout=0.1)
    with pytest.raises(UnavailableError, match="did not begin"):
        async with db.flag("f").watch():
            pass
    await db.close()
    async with connect(lone.endpoints) as db:
        values = db.flag("f").watch()
        with pytest.raises(InvalidArgumentError, match="async with"):
            await anext(values)
        async with values:
            assert await anext(values) is False
            with pytest.raises(InvalidArgumentError, match="once"):
                await values.__aenter__()
            waiting = asyncio.ensure_future(anext(values))
            await asyncio.sleep(0)
            await db.close()
            with pytest.raises(ClosedError):
                await waiting


# --- the synchronous twin -------------------------------------------------------------------------


def test_the_twins_have_the_same_names_and_arguments() -> None:
    assert {*sync_crdt.TWINS} == {*KINDS.values()}
    pairs: list[tuple[type, type]] = [*sync_crdt.TWINS.items()]
    for theirs, ours in [*pairs, (crdt_maps.Converging, sync_crdt.Converging)]:
        assert theirs.__name__ == ours.__name__
        for name, member in inspect.getmembers(theirs, inspect.isfunction):
            if not name.startswith("_"):
                twin = inspect.signature(getattr(ours, name))
                assert [each.name for each in twin.parameters.values()] == [
                    each.name for each in inspect.signature(member).parameters.values()
                ], f"{theirs.__name__}.{name}"


def _use_without_await(endpoints: str) -> None:
    with sync.connect(endpoints, timeout=2) as db:
        db.counter("c").increment(3)
        assert db.counter("c").value() == 3
        db.set("s").add(*range(10))
        assert {*db.set("s")} == db.set("s").value() == {*range(10)}
        cart = db.map("cart")
        cart.set("tags").add("red")
        cart.crdt("many", MVRegister).assign(1)
        cart.map("deep").register("r").assign("x")
        cart.counter("n").increment()
        cart.flag("f").enable()
        assert cart.value() == {
            "tags": {"red"}, "many": [1], "deep": {"r": "x"}, "n": 1, "f": True
        }  # fmt: skip
        assert {*cart} == {key for key, _value in cart.items()} == {*cart.value()}
        assert db.crdt("stock", BoundedCounter).rights().here == 0
        session = db.at("causal")
        session.register("r").assign("y")
        assert db.at("causal", session.token).register("r").value() == "y"
        assert session.flag("f").name == "f"
        assert cart.counter("n").keys_to_it == ("n",)
        assert repr(cart.counter("n")) == "<PNCounter 'cart'['n']>"
        assert len([*db.crdt_names()]) == 4
        db.remove_crdt("cart")
        with db.counter("c").watch(pause=0) as values:
            assert next(values) == 3
            assert values.wait(0.02) == []
            db.counter("c").increment()
            assert values.wait(2) == [4]
            values.close()
            assert [*values] == []


async def test_without_await(lone: FakeCluster) -> None:
    await asyncio.to_thread(_use_without_await, lone.endpoints)
