"""One client against nodes that misbehave: what is sent and promised, what callers are told."""

# scripts see frames of all kinds

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from quorate.base.frames import (
    AdminRequest,
    Hello,
    Query,
    QueryReply,
    Refused,
    Submit,
    SubmitReply,
    Welcome,
)
from quorate.base.kv_commands import GetResult, PutResult
from quorate.base.session_commands import SessionOpened
from quorate.client.database import Database, connect
from quorate.client.settings import WINDOW_BATCHES_MAX
from quorate.errors import (
    ClosedError,
    DeadlineExceededError,
    InvalidArgumentError,
    MembershipError,
    NotLeaderError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    ReadOnlyError,
    RefusedError,
    SessionExpiredError,
    UnavailableError,
)
from tests.client.fake_cluster import (
    FINE,
    GARBAGE,
    LOST_REPLY,
    LOST_REQUEST,
    SILENT,
    FakeCluster,
    FakeNode,
    Fault,
    fake_cluster,
)


@pytest.fixture
async def lone() -> AsyncIterator[FakeCluster]:
    async with fake_cluster() as cluster:
        yield cluster


@pytest.fixture
async def three() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(3) as cluster:
        yield cluster


def once(fault: Fault, kind: type = Submit) -> Any:
    """A script that misbehaves on the first request with users' data of that kind only."""
    left = [fault]

    def script(_node: FakeNode, frame: Any) -> Fault:
        if not isinstance(frame, kind) or not left:
            return FINE
        if isinstance(frame, Submit) and frame.runs[0].machine != "kv":
            return FINE
        return left.pop()

    return script


def always(fault: Fault, kind: type = Submit) -> Any:
    def script(_node: FakeNode, frame: Any) -> Fault:
        session = isinstance(frame, Submit) and frame.runs[0].machine != "kv"
        return fault if isinstance(frame, kind) and not session else FINE

    return script


async def number(db: Database, key: str = "n") -> int:
    item = await db.kv.get(key)
    return 0 if item is None else int(item.value)


async def outcome(call: Any) -> BaseException | object:
    try:
        return await call
    except QuorateError as error:
        return error


# --- coalescing ----------------------------------------------------------------------------------


async def test_calls_of_one_turn_leave_in_one_frame(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("first", "opens the session")
        await asyncio.gather(*(db.kv.put(f"k{at}", "v") for at in range(100)))
        assert len(lone.submits()) == 2
        reads = [db.kv.get(f"k{at}") for at in range(100)]
        assert all(await asyncio.gather(*reads))
        assert sum(isinstance(frame, Query) for frame in lone.requests) == 1


async def test_busy_lanes_share_frames(lone: FakeCluster) -> None:
    """Lanes that were answered together ask together again."""

    async def lane(at: int) -> None:
        for _ in range(10):
            await db.kv.put(f"k{at}", "v")

    async with connect(lone.endpoints) as db:
        await asyncio.gather(*(lane(at) for at in range(50)))
        assert len(lone.submits()) <= 12


async def test_calls_before_opening_wait_for_it(lone: FakeCluster) -> None:
    db = connect(lone.endpoints)
    first = await asyncio.gather(*(db.kv.increment("n") for _ in range(10)))
    assert sorted(result.value for result in first) == list(range(1, 11))
    await db.close()


async def test_a_batch_is_cut_at_its_limits(lone: FakeCluster) -> None:
    """Ten thousand commands, four megabytes: what is more goes into the next frame."""
    async with connect(lone.endpoints) as db:
        await asyncio.gather(*(db.kv.put(f"k{at}", bytes(500_000)) for at in range(20)))
        assert len(lone.submits()) >= 3
        assert await db.kv.count() == 20


async def test_a_full_queue_refuses_and_recovers(
    lone: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.client.turns.QUEUE_BYTES_MAX", 8_000_000)
    async with connect(lone.endpoints, timeout=10) as db:
        await db.kv.put("k", "v")
        lone.script = always(Fault(delay_s=0.02))
        calls = [
            asyncio.ensure_future(outcome(db.kv.put("k", bytes(1_000_000)))) for _ in range(30)
        ]
        results = await asyncio.gather(*calls)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        assert refused
        assert all(error.definite for error in refused)
        assert len(refused) + sum(not isinstance(r, QuorateError) for r in results) == 30
        lone.script = always(FINE)
        await db.kv.put("k", "v")


# --- exactly once --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(LOST_REPLY, id="the reply is lost with the connection"),
        pytest.param(LOST_REQUEST, id="the request is lost with the connection"),
        pytest.param(GARBAGE, id="the reply is garbage"),
        pytest.param(Fault(answer="outcome-unknown"), id="done, but the node cannot say so"),
        pytest.param(Fault(apply=False, answer="outcome-unknown"), id="not done, likewise"),
        pytest.param(Fault(apply=False, answer="overloaded"), id="overloaded"),
        pytest.param(Fault(apply=False, answer="not-leader"), id="denied, yet it leads"),
        pytest.param(Fault(apply=False, answer="unavailable"), id="unavailable for a moment"),
        pytest.param(Fault(answer="twice"), id="answered twice"),
        pytest.param(Fault(answer="once", hang_up=True), id="answered, then lost"),
    ],
)
async def test_a_write_takes_effect_once(lone: FakeCluster, fault: Fault) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("first", "opens the session")
        lone.script = once(fault)
        result = await db.kv.increment("n")
        assert result.value == 1
        assert await number(db) == 1
        assert (await db.kv.increment("n")).value == 2
        same = [frame for frame in lone.submits() if frame.sequence == lone.submits()[1].sequence]
        assert all((frame.session, frame.runs) == (1, same[0].runs) for frame in same)
        assert max(lone.executed.values()) == 1


async def test_reads_and_looks_are_asked_again(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        for fault in (LOST_REPLY, GARBAGE, Fault(answer="unavailable"), Fault(answer="overloaded")):
            lone.script = once(fault, Query)
            assert await db.kv.get("k")
            lone.script = once(fault, Query)
            assert await db.kv.get("k", level="eventual")
            lone.script = once(fault, AdminRequest)
            assert (await db.status())["node"] == 1


async def test_replies_are_acknowledged_in_order(lone: FakeCluster) -> None:
    """The cluster may forget only what arrived: an unanswered batch holds the watermark down."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("first", "v")
        lone.script = once(Fault(delay_s=0.05))
        slow = asyncio.ensure_future(db.kv.increment("n"))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        for _ in range(3):
            await db.kv.increment("m")
        held = lone.submits()[-1]
        await slow
        await db.kv.increment("m")
        assert held.acknowledged < lone.submits()[1].sequence <= lone.submits()[-1].acknowledged


# --- the leader ----------------------------------------------------------------------------------


async def test_follows_elections(three: FakeCluster) -> None:
    async with connect(three.endpoints) as db:
        for leader in (1, 3, 2, 1):
            if leader != three.leader:
                three.lead(leader)
            await db.kv.increment("n")
            assert db.statistics().leader == leader
        assert await number(db) == 4


async def test_a_killed_leader_is_replaced_at_once(three: FakeCluster) -> None:
    async with connect(three.endpoints) as db:
        await db.kv.increment("n")
        await three.nodes[1].stop()
        call = asyncio.ensure_future(db.kv.increment("n"))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        three.lead(2)
        assert (await call).value == 2
        assert time.monotonic() - began < 0.5


async def test_a_silent_leader_is_given_up(three: FakeCluster) -> None:
    """A machine that lost its power closes no connections."""
    async with connect(three.endpoints, stall_timeout=0.2, connect_timeout=0.2) as db:
        await db.kv.increment("n")
        three.script = lambda node, _frame: SILENT if node.number == 1 else FINE
        call = asyncio.ensure_future(db.kv.increment("n"))
        await asyncio.sleep(0.02)
        three.leader, three.term = 2, 2  # and node 1 has not heard of it
        three.nodes[1].told = (1, 1)
        assert (await call).value == 2


async def test_a_slow_answer_is_waited_for(lone: FakeCluster) -> None:
    """The node is probed, and lives: no new connection."""
    async with connect(lone.endpoints, stall_timeout=0.1) as db:
        await db.kv.put("k", "v")
        lone.script = once(Fault(delay_s=0.5))
        await db.kv.increment("n")
        assert db.statistics().connects == 1


async def test_a_node_that_owes_a_whole_window_is_given_up(lone: FakeCluster) -> None:
    """It lives, yet answers no write: the window would stay full for ever."""
    async with connect(lone.endpoints, stall_timeout=0.2) as db:
        await db.kv.put("k", "v")
        lone.script = always(SILENT)
        for _ in range(WINDOW_BATCHES_MAX):
            await asyncio.wait(
                [asyncio.ensure_future(db.kv.put("k", "v", timeout=0.05))], timeout=0
            )
        await asyncio.sleep(0.06)
        lone.script = always(FINE)
        await db.kv.put("k", "v")


async def test_a_node_that_owes_a_session_is_given_up(lone: FakeCluster) -> None:
    """It lives, yet never answers who opens one: nobody could ever write."""
    opened: list[Submit] = []

    def leave_the_first(_node: FakeNode, frame: Any) -> Fault:
        if not (isinstance(frame, Submit) and frame.session == 0):
            return FINE
        opened.append(frame)
        return SILENT if len(opened) == 1 else FINE

    lone.script = leave_the_first
    async with connect(lone.endpoints, stall_timeout=0.1) as db:
        with pytest.raises(NotSentError):
            await db.kv.put("k", "v", timeout=0.02)
        await db.kv.put("k", "v", timeout=5)
        assert (len(opened), db.statistics().connects) == (2, 2)


async def test_a_session_that_takes_long_to_open_is_waited_for(lone: FakeCluster) -> None:
    """Each time that it is asked for again, it may take twice as long."""
    lone.script = lambda _node, frame: Fault(delay_s=0.15 if isinstance(frame, Submit) else 0)
    async with connect(lone.endpoints, stall_timeout=0.05) as db:
        await db.kv.put("k", "v", timeout=5)
        assert db.statistics().connects <= 4


async def test_what_nobody_waits_for_keeps_no_session_from_being_opened(lone: FakeCluster) -> None:
    async with connect(lone.endpoints, session_ttl=1, stall_timeout=0.1) as db:
        await db.kv.put("k", "v")
        lone.script = once(SILENT)
        first = asyncio.ensure_future(outcome(db.kv.increment("n", timeout=0.05)))
        await asyncio.sleep(0.01)
        lone.pass_time(2000)
        second = asyncio.ensure_future(outcome(db.kv.increment("n", timeout=0.05)))
        assert isinstance(await first, DeadlineExceededError)
        assert isinstance(await second, QuorateError)
        assert await db.kv.increment("n", timeout=5)


async def test_one_live_endpoint_is_enough(three: FakeCluster) -> None:
    await three.nodes[1].stop()
    three.lead(3)
    async with connect(f"127.0.0.1:1,{three.nodes[1].endpoint},{three.nodes[2].endpoint}") as db:
        await db.kv.put("k", "v")
        assert db.statistics().leader == 3


async def test_members_are_learned(three: FakeCluster) -> None:
    """One endpoint given; that node dies, and the others are known from it."""
    async with connect(three.nodes[1].endpoint) as db:
        await db.kv.put("k", "v")
        await three.nodes[1].stop()
        three.lead(2)
        await db.kv.put("k", "v")


async def test_a_leader_out_of_reach_is_reached_through_another() -> None:
    async with fake_cluster(2, members_known=False) as cluster:
        cluster.lead(2)
        cluster.relays = True
        async with connect(cluster.nodes[1].endpoint) as db:
            await db.kv.put("k", "v")
            assert db.statistics().relayed
            assert cluster.nodes[2].dials == 0


async def test_a_dead_cluster_is_not_hammered(lone: FakeCluster) -> None:
    """Calls that keep coming do not cut the pauses between attempts short."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        lone.greeting = lambda _node, _hello: None  # accepts, and then nothing
        node = lone.nodes[1]
        node.drop()
        lone.greeting = lambda _node, _hello: Refused("unavailable", "starting")
        before = node.dials
        calls = []
        for _ in range(100):
            calls.append(asyncio.ensure_future(outcome(db.kv.put("k", "v", timeout=1))))
            await asyncio.sleep(0.003)
        assert node.dials - before < 20
        lone.greeting = None
        assert not any(isinstance(r, QuorateError) for r in await asyncio.gather(*calls))


async def test_a_node_that_hangs_up_at_every_request_is_not_hammered(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        lone.script = always(GARBAGE)
        before = lone.nodes[1].dials
        with pytest.raises(DeadlineExceededError, match="not a frame") as caught:
            await db.kv.increment("n", timeout=0.5)
        assert not caught.value.definite
        assert lone.nodes[1].dials - before < 20
        lone.script = always(FINE)
        assert await number(db) == 1  # every repetition was answered from the session


# --- what callers are told -----------------------------------------------------------------------


async def test_a_deadline_ends_every_call_when_nobody_answers() -> None:
    db = connect("127.0.0.1:1", timeout=0.1)
    calls = [db.kv.put("k", "v"), db.kv.get("k"), db.kv.get("k", level="eventual"), db.status()]
    began = time.monotonic()
    for error in await asyncio.gather(*map(outcome, calls)):
        assert isinstance(error, NotSentError)
        assert error.definite
        assert "127.0.0.1:1" in str(error)
    assert time.monotonic() - began < 1
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await db.open()


async def test_a_deadline_ends_every_call_when_the_node_is_silent(lone: FakeCluster) -> None:
    async with connect(lone.endpoints, timeout=0.1) as db:
        await db.kv.put("k", "v", timeout=1)
        lone.script = lambda _node, _frame: SILENT
        calls = [db.kv.put("k", "v"), db.kv.get("k"), db.checkpoint(timeout=0.1), db.status()]
        for error in await asyncio.gather(*map(outcome, calls)):
            assert isinstance(error, DeadlineExceededError)
            assert isinstance(error, TimeoutError)
            assert not error.definite


@pytest.mark.parametrize("linked", [False, True])
async def test_each_call_has_its_own_deadline(lone: FakeCluster, linked: bool) -> None:
    """Calls of different turns that wait for the same thing do not share a deadline."""
    db = connect(lone.endpoints)
    if linked:
        await db.open()
        lone.lead(0)
    else:
        lone.greeting = lambda _node, _hello: Refused("unavailable", "not yet")
    calls = [asyncio.ensure_future(outcome(db.kv.put("k", "v", timeout=0.15)))]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    calls.append(asyncio.ensure_future(outcome(db.kv.put("k", "v", timeout=0.15))))
    await calls[0]
    assert not calls[1].done()
    await calls[1]
    assert time.monotonic() - began >= 0.14
    await db.close()


async def test_a_deadline_without_a_leader_is_definite(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        lone.lead(0)
        for call in (db.kv.put("k", "v", timeout=0.1), db.kv.get("k", timeout=0.1)):
            error = await outcome(call)
            assert isinstance(error, NotSentError)
            assert "no leader" in str(error)


async def test_a_refused_batch_that_nobody_waits_for_is_never_sent_again(
    lone: FakeCluster,
) -> None:
    """``NotSentError`` is definite, so the cluster must not get it after all."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")

        def refuse(_node: FakeNode, frame: Any) -> Fault:
            if isinstance(frame, Submit):
                lone.lead(0)
            return Fault(apply=False, answer="not-leader")

        lone.script = refuse
        error = await outcome(db.kv.increment("n", timeout=0.1))
        assert isinstance(error, NotSentError)
        assert "as ordered" in str(error)
        lone.script = always(FINE)
        lone.lead(1)
        assert (await db.kv.increment("n")).value == 1


async def test_a_batch_that_somebody_else_still_waits_for_is_no_certainty(
    lone: FakeCluster,
) -> None:
    """Two calls in one batch, refused, and one deadline passes: both will be sent again."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        await asyncio.sleep(0.01)
        lone.script = always(Fault(apply=False, answer="not-leader"))
        patient = asyncio.ensure_future(db.kv.increment("n", timeout=5))
        error = await outcome(db.kv.increment("n", timeout=0.1))
        assert isinstance(error, DeadlineExceededError)
        lone.script = always(FINE)
        assert (await patient).value == 2


async def test_a_refusal_after_a_lost_sending_is_no_certainty(lone: FakeCluster) -> None:
    """The second sending is refused for certain; the first may have happened, and has."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        faults = [LOST_REPLY, Fault(apply=False, answer="read-only")]
        lone.script = lambda _node, frame: faults.pop(0) if isinstance(frame, Submit) else FINE
        error = await outcome(db.kv.increment("n"))
        assert isinstance(error, OutcomeUnknownError)
        assert not error.definite
        lone.script = always(Fault(apply=False, answer="read-only"))
        error = await outcome(db.kv.increment("n"))
        assert isinstance(error, ReadOnlyError)
        assert error.definite
        assert await number(db) == 1


async def test_a_vague_answer_is_no_certainty(lone: FakeCluster) -> None:
    """The node had done it when it could no longer say so; later refusals do not undo that."""
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        for vague in ("outcome-unknown", "closed"):
            faults = [Fault(answer=vague), Fault(apply=False, answer="read-only")]
            lone.script = lambda _node, frame, faults=faults: (
                faults.pop(0) if isinstance(frame, Submit) and faults else FINE
            )
            assert isinstance(await outcome(db.kv.increment("n")), OutcomeUnknownError)
            lone.script = always(Fault(answer=vague))
            error = await outcome(db.kv.increment("n", timeout=0.1))
            assert isinstance(error, DeadlineExceededError)
            lone.script = always(FINE)
        assert await number(db) == 4


async def test_an_expired_session_is_an_explicit_error(lone: FakeCluster) -> None:
    """What was under way may have happened; what had not left goes on in a new session."""
    async with connect(lone.endpoints, session_ttl=1) as db:
        await db.kv.increment("n")
        lone.script = once(LOST_REQUEST)
        lone.greeting = lambda _node, _hello: Refused("unavailable", "not yet")
        call = asyncio.ensure_future(outcome(db.kv.increment("n")))
        await asyncio.sleep(0.05)
        lone.pass_time(2000)
        queued = asyncio.ensure_future(db.kv.increment("n"))
        lone.greeting = None
        error = await call
        assert isinstance(error, SessionExpiredError)
        assert not error.definite
        assert (await queued).value == 2
        assert db.statistics().session == 2


async def test_an_idle_session_is_kept_alive(lone: FakeCluster) -> None:
    async with connect(lone.endpoints, session_ttl=1) as db:
        await db.kv.put("k", "v")
        await asyncio.sleep(0.8)
        beats = [f for f in lone.requests if isinstance(f, Submit) and f.session == 1]
        assert 2 <= len(beats) <= 4


async def test_closing_ends_the_session(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
    last = lone.requests[-1]
    assert isinstance(last, Submit)
    assert last.runs[0].machine == "sessions"


async def test_closing_ends_all_calls(lone: FakeCluster) -> None:
    db = await connect(lone.endpoints).open()
    await db.kv.put("k", "v")
    lone.script = lambda _node, _frame: SILENT
    sent = [db.kv.put("k", "v"), db.checkpoint()]
    calls = [asyncio.ensure_future(outcome(call)) for call in sent]
    await asyncio.sleep(0.01)
    lone.lead(0)
    await asyncio.sleep(0.01)
    calls.append(asyncio.ensure_future(outcome(db.kv.put("k", "v"))))
    calls.append(asyncio.ensure_future(outcome(db.kv.get("k"))))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    await asyncio.gather(db.close(), db.close())
    assert time.monotonic() - began < 1
    kinds = [type(error) for error in await asyncio.gather(*calls)]
    assert kinds == [OutcomeUnknownError, OutcomeUnknownError, ClosedError, ClosedError]
    for _ in range(3):
        with pytest.raises(ClosedError):
            await db.kv.put("k", "v")
        with pytest.raises(ClosedError):
            await db.status()
    with pytest.raises(ClosedError):
        await db.open()


async def test_closing_what_was_never_opened() -> None:
    db = connect("127.0.0.1:1")
    await db.close()
    with pytest.raises(ClosedError):
        await db.kv.get("k")


async def test_a_cancelled_call_is_not_sent(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        kept = asyncio.ensure_future(db.kv.increment("n"))
        dropped = asyncio.ensure_future(db.kv.increment("n"))
        await asyncio.sleep(0)
        dropped.cancel()
        await asyncio.wait([kept, dropped])
        with contextlib.suppress(asyncio.CancelledError):
            await dropped
        assert await number(db) == 1


async def test_a_cancelled_call_under_way_disturbs_nobody(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        await db.kv.put("k", "v")
        lone.script = once(Fault(delay_s=0.5))
        kept = asyncio.ensure_future(db.kv.increment("n"))
        given_up = asyncio.ensure_future(db.kv.increment("n"))
        with pytest.raises(TimeoutError):  # by then they have long left, in one frame
            await asyncio.wait_for(given_up, 0.25)
        assert (await kept).value == 1
        assert await number(db) == 2


async def test_refused_by_all_is_told_at_once(lone: FakeCluster) -> None:
    began = time.monotonic()
    with pytest.raises(RefusedError, match="cluster fake"):
        await connect(lone.endpoints, cluster="another").open()
    assert time.monotonic() - began < 1


async def test_a_stranger_at_the_port() -> None:
    """Not a node at all: named in the error, and no hang."""

    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(UnavailableError, match="not a frame"):
            await connect(f"127.0.0.1:{port}", timeout=0.3).open()


async def test_welcomes_that_make_no_sense(lone: FakeCluster) -> None:
    for answer in (Refused("no-such-code", ""), Welcome(1, "fake", 1, "", 9, 1, ())):
        lone.greeting = lambda _node, _hello, answer=answer: answer
        error = await outcome(connect(lone.endpoints, timeout=0.3).kv.put("k", "v"))
        assert isinstance(error, NotSentError)


# --- administration and one node -----------------------------------------------------------------


async def test_administration_goes_to_the_leader(three: FakeCluster) -> None:
    three.lead(2)
    async with connect(three.nodes[1].endpoint) as db:
        assert (await db.add_member(4, "h:1"))["address"] == "h:1"
        assert (await db.promote(4))["method"] == "members.promote"
        assert (await db.demote(4))["node"] == 4
        assert (await db.set_address(4, "h:2"))["method"] == "members.address"
        assert (await db.transfer_leader(3))["target"] == 3
        assert (await db.checkpoint())["method"] == "checkpoint"
        with pytest.raises(MembershipError, match="not now"):
            await db.remove_member(4)
        assert db.statistics().leader == 2


async def test_a_change_whose_answer_is_lost_is_asked_for_again_as_such(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        lone.script = once(LOST_REPLY, AdminRequest)
        await db.promote(4)
        asked = [frame for frame in lone.requests if isinstance(frame, AdminRequest)]
        assert [frame.arguments.get("again", False) for frame in asked] == [False, True]
        assert {frame.id for frame in asked} == {asked[0].id}


async def test_a_change_that_may_have_been_made_is_no_certainty(lone: FakeCluster) -> None:
    async with connect(lone.endpoints) as db:
        lone.script = once(LOST_REPLY, AdminRequest)
        waiting = asyncio.ensure_future(outcome(db.promote(4, timeout=0.3)))
        await asyncio.sleep(0.02)
        lone.lead(0)
        assert not getattr(await waiting, "definite", False)


async def test_looking_needs_no_leader(lone: FakeCluster) -> None:
    lone.lead(0)
    async with connect(lone.endpoints) as db:
        assert (await db.status())["node"] == 1
        assert (await db.members())["node"] == 1
        with pytest.raises(NotSentError):
            await db.checkpoint(timeout=0.1)


async def test_staying_with_one_node(three: FakeCluster) -> None:
    async with connect(three.endpoints) as db:
        await db.kv.put("k", "v")
    for node in three.nodes.values():
        three.requests.clear()
        seen: list[int] = []
        three.script = lambda at, _frame, seen=seen: seen.append(at.number) or FINE
        async with connect(node.endpoint, follow_leader=False) as one:
            item = await one.kv.get("k")
            assert item is not None
            assert (await one.status())["node"] == node.number
            assert set(seen) == {node.number}
            (query,) = (frame for frame in three.requests if isinstance(frame, Query))
            assert query.linearizable
            with pytest.raises(InvalidArgumentError, match="follow_leader"):
                await one.kv.put("k", "v")
            if node.number != three.leader:
                with pytest.raises(NotLeaderError):
                    await one.promote(4)


async def test_one_node_that_cannot_serve_is_asked_again(three: FakeCluster) -> None:
    async with connect(three.nodes[2].endpoint, follow_leader=False) as one:
        three.script = once(Fault(answer="unavailable"), Query)
        assert await one.kv.get("k") is None
        three.script = always(Fault(answer="unavailable"), Query)
        before = len(three.requests)
        assert isinstance(await outcome(one.kv.get("k", timeout=0.1)), DeadlineExceededError)
        assert len(three.requests) - before < 110
        await three.nodes[2].stop()
        assert isinstance(await outcome(one.kv.get("k", timeout=0.1)), TimeoutError)
        assert not any(isinstance(f, Hello) and f.relay for f in three.requests)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "5"},
        {"connect_timeout": -1},
        {"session_ttl": 0.1},
        {"session_ttl": 1e6},
        {"name": "x" * 300},
        {"tls": True},
    ],
    ids=repr,
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        connect("127.0.0.1:1", **options)


@pytest.mark.parametrize(
    "endpoints", ["", "nowhere", ":1", "h:0", "h:65536", "h:1,", "a b:1", "::1:5", [], [3], 7]
)
def test_endpoints_are_checked(endpoints: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        connect(endpoints)


def test_endpoints_come_in_many_shapes() -> None:
    for endpoints in ("a:1,b:2", ["a:1", "b:2"], ("a:1,b:2",), "[::1]:5", " a:1 , b:2 "):
        connect(endpoints)
    with pytest.raises(InvalidArgumentError, match="one node"):
        connect("a:1,b:2", follow_leader=False)


# --- a node in this process ----------------------------------------------------------------------


class HandWritten:
    """A node of this process whose every answer the test gives itself."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.answer: Any = None
        self.lose: Any = None
        self.closed = False

    def connect(self, on_frame: Any, on_lost: Any) -> HandWritten:
        self.answer, self.lose = on_frame, on_lost
        return self

    def receive(self, frame: Any) -> None:
        self.frames.append(frame)
        if isinstance(frame, Hello):
            welcome = Welcome(1, "c", 1, "i", 1, 1, ())
            asyncio.get_running_loop().call_soon(self.answer, welcome)

    def close(self) -> None:
        self.closed = True

    def reply(self, submit: Submit, *results: Any) -> None:
        raw = msgspec.Raw(msgspec.msgpack.encode([results]))
        self.answer(SubmitReply(submit.sequence, 1, raw))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_answers_that_come_together_are_followed_by_one_frame() -> None:
    """Two frames in one read wake two tasks, whose next calls share a frame."""
    node = HandWritten()

    async def lane() -> None:
        for _ in range(2):
            await db.kv.put("k", "v")

    async with connect(node) as db:
        lanes = [asyncio.ensure_future(lane())]
        await settle()
        node.reply(node.frames[-1], SessionOpened(1, 10**9))
        await settle()
        lanes.append(asyncio.ensure_future(lane()))
        await settle()
        first, second = node.frames[-2:]
        count = len(node.frames)
        node.reply(first, PutResult(1))
        node.reply(second, PutResult(2))
        await settle()
        assert len(node.frames) == count + 1
        node.reply(node.frames[-1], PutResult(3), PutResult(4))
        await asyncio.gather(*lanes)
    assert node.closed


async def test_a_lost_node_of_this_process_is_asked_again() -> None:
    node = HandWritten()
    async with connect(node) as db:
        read = asyncio.ensure_future(db.kv.get("k"))
        await settle()
        node.lose(ClosedError("stopped"))
        await asyncio.sleep(0.05)
        queries = [frame for frame in node.frames if isinstance(frame, Query)]
        assert len(queries) == 2
        raw = msgspec.Raw(msgspec.msgpack.encode([[GetResult(0, None)]]))
        node.answer(QueryReply(queries[0].id, 1, raw))
        assert await read is None


async def test_opening_a_handle_that_is_in_use_does_not_close_it() -> None:
    nobody = "127.0.0.1:1"
    db = connect(nobody, timeout=0.1)
    try:
        with pytest.raises(QuorateError):
            await db.kv.get("k")
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await db.open()
        with pytest.raises(QuorateError) as failed:
            await db.kv.get("k")
        assert not isinstance(failed.value, ClosedError)
    finally:
        await db.close()
    unused = connect(nobody, timeout=0.1)
    with pytest.raises(UnavailableError):
        await unused.open()
    with pytest.raises(ClosedError):
        await unused.kv.get("k")
