"""How levels leave the client: which calls share a frame, and what answers come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from quorate.base.crdt_frames import Position
from quorate.base.frames import Submit, SubmitAccepted
from quorate.base.kv_commands import Put
from quorate.base.levels import ANSWERS, Accepted
from quorate.client.database import connect
from quorate.client.levels import Receipt, parse_token
from quorate.errors import (
    CommandError,
    InvalidArgumentError,
    TokenError,
    UnconfirmedError,
)
from tests.client.fake_cluster import FINE, LOST_REPLY, FakeCluster, fake_cluster


@pytest.fixture
async def lone() -> AsyncIterator[FakeCluster]:
    async with fake_cluster() as cluster:
        yield cluster


async def test_calls_of_one_turn_share_a_frame_only_at_one_level(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("first", "opens the session")
        lone.requests.clear()
        levels: Any = ("quorum", "causal", "eventual", "eventual", "strong", "quorum")
        results = await asyncio.gather(*(db.kv.put("k", "v", level=at) for at in levels))
        sent = [frame.level for frame in lone.submits()]
        assert sent == [ANSWERS["quorum"], ANSWERS["eventual"], ANSWERS["strong"], 0]
        assert [type(each) is Accepted for each in results] == [at == "eventual" for at in levels]


async def test_reads_that_follow_different_entries_do_not_wait_for_one_another(
    lone: FakeCluster,
) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        early, late = (db.at("causal", f"q1:{lone.name}:{index}") for index in (3, 10**6))
        lone.requests.clear()
        await asyncio.gather(
            db.kv.get("k"),
            early.kv.get("k"),
            early.kv.count(),
            late.kv.get("k"),
            db.kv.get("k", level="eventual"),
        )
        asked = [(each.linearizable, each.after) for each in lone.requests]
        assert asked == [(True, 0), (False, 3), (False, 10**6), (False, 0)]


async def test_each_call_gets_its_own_receipt(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        receipts = [Receipt() for _ in range(3)]
        await db.kv.put("k", "v", receipt=receipts[0])
        await asyncio.gather(
            db.kv.put("k", "w", receipt=receipts[1]), db.kv.get("k", receipt=receipts[2])
        )
        assert receipts[0].index < receipts[1].index
        assert {each.level for each in receipts} == {"quorum"}
        assert parse_token(receipts[1].token) == (lone.name, Position(receipts[1].index))
        with pytest.raises(CommandError):
            await db.kv.increment("k", receipt=receipts[0])
        assert receipts[0].index > receipts[1].index, "refused, and that is in the log"
        with pytest.raises(InvalidArgumentError):
            await db.kv.get("", receipt=receipts[1])
        assert "index=" in repr(receipts[1])


async def test_an_answer_at_a_lower_level_than_asked_is_passed_over(lone: FakeCluster) -> None:
    """Should a node accept what was to be committed, the call goes on waiting."""
    async with connect(lone.endpoints, timeout=0.3) as db:
        await db.kv.put("first", "opens the session")
        client = db._client
        assert client is not None
        call = asyncio.ensure_future(db.kv.put("k", "v"))
        await asyncio.sleep(0)
        client.on_frame(SubmitAccepted(2, 99, 1))
        client.on_frame(SubmitAccepted(77, 99, 1))
        assert (await call).revision == 2


async def test_an_unconfirmed_write_says_so_and_what_it_came_to(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("text", "opens the session")
        lone.unconfirmed = (2, 3)
        outcomes: Any = await asyncio.gather(
            db.kv.increment("n", level="strong"),
            db.kv.increment("text", level="strong"),
            db.machine("kv").execute(Put(b"k", b"v"), level="strong"),
            return_exceptions=True,
        )
        good, bad, plain = outcomes
        assert isinstance(good, UnconfirmedError)
        assert (good.members, good.result.value, good.definite) == ((2, 3), 1, False)
        assert "2, 3" in str(good)
        assert isinstance(bad, CommandError)
        assert isinstance(plain, UnconfirmedError), "also without a type for its results"


async def test_an_eventual_write_is_sent_again_like_any_other(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("first", "opens the session")
        faults = [LOST_REPLY]
        lone.script = lambda _node, frame: (
            faults.pop() if faults and isinstance(frame, Submit) else FINE
        )
        assert isinstance(await db.kv.increment("n", level="eventual"), Accepted)
        assert max(lone.executed.values()) == 1
        assert [each.level for each in lone.submits()[-2:]] == [ANSWERS["eventual"]] * 2


async def test_reads_is_leader_or_any() -> None:
    for options in ({"reads": "all"}, {"reads": "any", "follow_leader": False}):
        with pytest.raises(InvalidArgumentError, match="reads="):
            connect("127.0.0.1:1", **options)
    with pytest.raises(TokenError):
        connect("127.0.0.1:1").at("causal", "nonsense")
    with pytest.raises(InvalidArgumentError):
        connect("127.0.0.1:1").at("weak")  # type: ignore[arg-type]
