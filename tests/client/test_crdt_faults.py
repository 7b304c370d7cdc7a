"""CRDT data when nodes refuse, vanish and come back: nothing lost, nothing twice, nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import CrdtRead, CrdtWrite
from quorate.client.database import Database, connect
from quorate.client.settings import WINDOW_BATCHES_MAX
from quorate.errors import (
    ClosedError,
    DeadlineExceededError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    ReadOnlyError,
    UnavailableError,
)
from tests.client.fake_cluster import (
    FINE,
    LOST_REPLY,
    LOST_REQUEST,
    SILENT,
    FakeCluster,
    FakeNode,
    Fault,
    fake_cluster,
)
from tests.client.fake_crdt import FakeData


@pytest.fixture
async def pair() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(2) as cluster:
        yield cluster


@pytest.fixture
async def db(pair: FakeCluster) -> AsyncIterator[Database]:
    async with connect(pair.endpoints, timeout=2) as made:
        yield made


def _script(cluster: FakeCluster, *faults: Fault, kind: type = CrdtWrite, node: int = 0) -> None:
    left = list(faults)

    def script(at: FakeNode, frame: Any) -> Fault:
        hit = left and isinstance(frame, kind) and node in (0, at.number)
        return left.pop(0) if hit else FINE

    cluster.script = script


def _writes(cluster: FakeCluster) -> list[CrdtWrite]:
    return [frame for frame in cluster.requests if isinstance(frame, CrdtWrite)]


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def _executed(cluster: FakeCluster) -> list[int]:
    return [len(node.data.executed) for node in cluster.nodes.values()]


# --- writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST_REPLY, LOST_REQUEST, Fault(answer="garbage")])
async def test_what_a_node_may_have_done_is_asked_of_it_alone(
    pair: FakeCluster, db: Database, fault: Fault
) -> None:
    _script(pair, fault)
    await db.counter("c").increment()
    assert _executed(pair) == [1, 0]
    first, second = _writes(pair)
    assert first == second
    await db.counter("c").increment(level="eventual")
    assert sum(_executed(pair)) == 2


async def test_new_calls_go_on_elsewhere_while_a_node_owes(pair: FakeCluster, db: Database) -> None:
    _script(pair, LOST_REPLY)
    counter = db.counter("c")
    call = asyncio.ensure_future(counter.increment(timeout=5))
    await _until(lambda: pair.nodes[1].data.executed)
    await pair.nodes[1].stop()
    await _until(lambda: db.converging.node != 1)
    await counter.increment(level="eventual")
    assert _executed(pair) == [1, 1]
    assert not call.done()
    await pair.nodes[1].start()
    await call
    assert _executed(pair) == [1, 1], "answered from what the node remembers"
    assert db.converging.node == 2, "the link that works is kept"
    await asyncio.sleep(0)
    assert not db.converging._debts


async def test_a_node_is_told_what_an_earlier_process_of_it_may_have_done(
    pair: FakeCluster, db: Database
) -> None:
    _script(pair, LOST_REPLY)
    counter = db.counter("c")
    calls = [asyncio.ensure_future(counter.increment(timeout=5))]
    await _until(lambda: pair.nodes[1].data.executed)
    await pair.nodes[1].stop()
    await _until(lambda: db.converging.node != 1)
    await counter.increment(level="eventual")
    pair.nodes[1].process += 1
    await pair.nodes[1].start()
    await asyncio.gather(*calls)
    assert [frame.again for frame in _writes(pair)] == [False, False, True]
    _script(pair, LOST_REPLY)
    await counter.increment(level="eventual")  # the link breaks, the process lives
    assert [frame.again for frame in _writes(pair)][3:] == [False, False]


async def test_nobody_else_knows_what_a_lost_node_did(pair: FakeCluster, db: Database) -> None:
    _script(pair, LOST_REPLY)
    call = asyncio.ensure_future(db.counter("c").increment(timeout=0.3))
    await _until(lambda: pair.nodes[1].data.executed)
    await pair.nodes[1].stop()
    with pytest.raises(OutcomeUnknownError, match="node 1 may have done it"):
        await call
    await db.counter("c").increment(level="eventual")
    assert _executed(pair) == [1, 1]
    await pair.nodes[1].start()
    await asyncio.sleep(0.05)
    assert len(_writes(pair)) == 2, "what was given up is not sent again"


async def test_what_was_never_sent_goes_to_another_node(pair: FakeCluster, db: Database) -> None:
    await db.set("s").contains("x")
    await pair.nodes[1].stop()
    await _until(lambda: db.converging.node == 0)
    await db.counter("c").increment()
    assert _executed(pair) == [0, 1]


@pytest.mark.parametrize("code", ["unavailable", "closed"])
async def test_what_was_surely_not_done_goes_to_another_node(
    pair: FakeCluster, db: Database, code: str
) -> None:
    pair.script = lambda node, frame: (
        Fault(apply=False, answer=code)
        if node.number == 1 and isinstance(frame, CrdtWrite)
        else FINE
    )
    await asyncio.gather(*(db.counter("c").increment() for _ in range(5)))
    assert _executed(pair)[0] == 0
    assert await db.counter("c").value() == 5


async def test_an_overloaded_node_is_asked_again(pair: FakeCluster, db: Database) -> None:
    _script(pair, *[Fault(apply=False, answer="overloaded")] * 3)
    await db.counter("c").increment()
    assert _executed(pair) == [1, 0]
    assert len(_writes(pair)) == 4


async def test_a_refusal_that_others_would_repeat_is_the_answer(
    pair: FakeCluster, db: Database
) -> None:
    _script(pair, Fault(apply=False, answer="read-only"))
    with pytest.raises(ReadOnlyError):
        await db.counter("c").increment()
    _script(pair, LOST_REPLY, Fault(apply=False, answer="read-only"))
    with pytest.raises(OutcomeUnknownError, match="refused when sent again"):
        await db.counter("c").increment()
    assert _executed(pair) == [1, 0]


async def test_a_vague_refusal_is_asked_of_the_same_node_again(
    pair: FakeCluster, db: Database
) -> None:
    _script(pair, Fault(answer="outcome-unknown"))
    await db.counter("c").increment()
    assert _executed(pair) == [1, 0]
    assert len(_writes(pair)) == 2


async def test_deadlines_say_what_is_known(pair: FakeCluster, db: Database) -> None:
    counter = db.counter("c")
    _script(pair, SILENT)
    with pytest.raises(DeadlineExceededError) as late:
        await counter.increment(timeout=0.05)
    assert not late.value.definite
    pair.retry_after_ms = 5000
    _script(pair, Fault(apply=False, answer="overloaded"))
    with pytest.raises(NotSentError, match="overloaded") as unsent:
        await counter.increment(timeout=0.2)
    assert unsent.value.definite
    async with connect(pair.nodes[1].endpoint, follow_leader=False) as pinned:
        with pytest.raises(UnavailableError, match="member 7 have not arrived"):
            await pinned.at("causal", "q2:fake:0:7.1.1").counter("c").increment(timeout=0.2)
        with pytest.raises(UnavailableError, match="entry 99 is not applied"):
            await pinned.at("causal", "q1:fake:99").counter("c").value(timeout=0.2)
    with pytest.raises(NotSentError, match="cannot be reached"):
        await connect("127.0.0.1:1").counter("c").increment(timeout=0.05)
    assert sum(_executed(pair)) == 0


async def test_a_call_that_was_refused_once_may_have_happened_later(
    pair: FakeCluster, db: Database
) -> None:
    await pair.nodes[2].stop()
    _script(pair, Fault(apply=False, answer="unavailable"), Fault(answer="never"))
    with pytest.raises(DeadlineExceededError):
        await db.counter("c").increment(timeout=0.3)
    assert _executed(pair) == [1, 0]


async def test_what_was_given_up_is_not_sent_again(pair: FakeCluster, db: Database) -> None:
    _script(pair, SILENT)
    with pytest.raises(DeadlineExceededError):
        await db.counter("c").increment(timeout=0.05)
    pair.nodes[1].drop()
    await _until(lambda: db.converging.node == 0)
    await pair.nodes[2].stop()
    await db.counter("c").increment()
    assert _executed(pair) == [1, 0]
    assert [frame.sequence for frame in _writes(pair)] == [1, 2]


async def test_only_what_was_answered_is_acknowledged(pair: FakeCluster, db: Database) -> None:
    await pair.nodes[2].stop()
    await db.counter("c").increment()
    _script(pair, Fault(answer="never"))
    first = asyncio.ensure_future(db.counter("c").increment())
    await _until(lambda: len(_writes(pair)) == 2)
    await db.counter("c").increment()
    pair.nodes[1].drop()
    await first
    assert [frame.acknowledged for frame in _writes(pair)] == [0, 1, 1, 1]
    assert await db.counter("c").value() == 3
    assert db.statistics().crdt_frames_resent == 1


async def test_closing_ends_every_call(pair: FakeCluster) -> None:
    db = await connect(pair.endpoints).open()
    pair.script = lambda _node, _frame: SILENT
    sent = asyncio.ensure_future(db.counter("c").increment())
    asked = asyncio.ensure_future(db.counter("c").value())
    await _until(lambda: _writes(pair))
    fresh = asyncio.ensure_future(db.counter("c").increment())
    await asyncio.sleep(0)
    await db.close()
    outcomes = await asyncio.gather(sent, asked, fresh, return_exceptions=True)
    assert [type(each) for each in outcomes] == [OutcomeUnknownError, ClosedError, ClosedError]
    with pytest.raises(ClosedError):
        await db.counter("c").value()


async def test_the_window_and_the_queue_are_bounded(
    pair: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.client.turns.QUEUE_COMMANDS_MAX", 20)
    async with connect(pair.endpoints, timeout=1) as db:
        await db.set("s").add("x")
        pair.script = lambda _node, frame: SILENT if isinstance(frame, CrdtWrite) else FINE
        calls = []
        for number in range(WINDOW_BATCHES_MAX + 20):
            calls.append(asyncio.ensure_future(db.set("s").add(number, timeout=0.5)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await db.set("s").add("one too many")
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [type(each) for each in outcomes]
        assert kinds.count(NotSentError) == 20
        assert kinds.count(DeadlineExceededError) == WINDOW_BATCHES_MAX
        pair.script = lambda _node, _frame: FINE
        await db.set("s").add("after all")  # the link that answers nothing is given up for it


# --- reads ----------------------------------------------------------------------------------------


async def test_a_read_goes_where_it_can_be_answered(pair: FakeCluster, db: Database) -> None:
    second = pair.nodes[2].data
    async with connect(pair.nodes[2].endpoint, follow_leader=False) as other:
        session = other.at("causal")
        await session.counter("c").increment(3)
    assert await db.counter("c").value() == 0, "at node 1, which has not heard of it"
    assert await db.at("causal", session.token).counter("c").value() == 3
    assert db.converging.node == second.node
    assert await db.counter("c").value() == 3
    await pair.nodes[2].stop()
    await _until(lambda: db.converging.node == 0)
    with pytest.raises(UnavailableError, match="records of member 2"):
        await db.counter("c").value(timeout=0.1)  # the handle has seen more than there is here
    assert await db.counter("c").value(level="eventual") == 0
    await db.counter("c").increment(level="eventual")
    pair.nodes[1].data.join(second)
    assert await db.counter("c").value() == 4


async def test_a_node_is_not_left_if_there_is_no_other(pair: FakeCluster) -> None:
    await pair.nodes[2].stop()
    async with connect(pair.endpoints, timeout=2) as db:
        await db.counter("c").increment()
        dials = pair.nodes[1].dials
        _script(pair, *[Fault(apply=False, answer="unavailable")] * 4, kind=CrdtRead)
        calls = asyncio.gather(*(db.counter("c").value() for _ in range(3)))
        for _ in range(20):
            await db.counter("c").increment()  # goes on all the while
        assert await calls
        assert pair.nodes[1].dials == dials


async def test_a_second_address_of_a_node_is_no_other_node(pair: FakeCluster) -> None:
    pair.members = ()
    port = pair.nodes[1].port
    async with connect(f"127.0.0.1:{port},localhost:{port}", timeout=2) as db:
        await db.counter("c").value()
        link = db.converging._connection._link
        _script(pair, *[Fault(apply=False, answer="unavailable")] * 3, kind=CrdtRead)
        await db.counter("c").value()
        assert db.converging._connection._link is link


async def test_a_read_is_asked_again_elsewhere(pair: FakeCluster, db: Database) -> None:
    await db.set("s").add("x", level="eventual")
    pair.nodes[2].data.join(pair.nodes[1].data)
    _script(pair, LOST_REPLY, kind=CrdtRead)
    assert await db.set("s").value() == {"x"}
    _script(pair, Fault(answer="limit-exceeded"), kind=CrdtRead)
    found = await asyncio.gather(*(db.set("s").contains(each) for each in ("x", "y", "z")))
    assert found == [True, False, False], "what is too much together is asked in parts"
    for node in pair.nodes.values():
        node.data.questions_max = 2
    found = await asyncio.gather(*(db.set("s").contains(each) for each in ("y", "z", "x", "x")))
    assert found == [False, False, True, True]


async def test_another_node_that_answers_at_the_address_pays_no_debts(pair: FakeCluster) -> None:
    async with connect(pair.endpoints, timeout=2) as db:
        _script(pair, LOST_REPLY)
        call = asyncio.ensure_future(db.counter("c").increment(timeout=0.4))
        await _until(lambda: pair.nodes[1].data.executed)
        await pair.nodes[1].stop()
        pair.nodes[1].number, pair.nodes[1].data = 3, pair.nodes[2].data
        await pair.nodes[1].start()
        with pytest.raises(OutcomeUnknownError):
            await call
        assert not pair.nodes[2].data.executed


async def test_a_node_that_was_wiped_has_forgotten(pair: FakeCluster, db: Database) -> None:
    await pair.nodes[2].stop()
    _script(pair, LOST_REPLY)
    call = asyncio.ensure_future(db.counter("c").increment(timeout=0.5))
    await _until(lambda: pair.nodes[1].data.executed)
    await pair.nodes[1].stop()
    pair.nodes[1].incarnation, pair.nodes[1].data = "another disk", FakeData(1)
    await pair.nodes[1].start()
    with pytest.raises(OutcomeUnknownError, match="node 1 may have done it"):
        await call
    await db.counter("c").increment()
    assert await db.counter("c").value() == 1


# --- everything at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_increments_count_once_whatever_happens(seed: int) -> None:
    random = Random(seed)
    refusals = ("unavailable", "closed", "overloaded")
    vague = [LOST_REPLY, LOST_REQUEST, Fault(answer="outcome-unknown"), Fault(answer="twice")]

    def script(_node: FakeNode, _frame: Any) -> Fault:
        chance = random.random()
        if chance < 0.2:
            return random.choice(vague)
        return Fault(apply=False, answer=random.choice(refusals)) if chance < 0.3 else FINE

    async with fake_cluster(3) as cluster, connect(cluster.endpoints) as db:
        done, unknown = 0, 0

        async def work() -> None:
            nonlocal done, unknown
            for _ in range(15):
                try:
                    await db.counter("c").increment(level="eventual", timeout=0.3)
                    done += 1
                except QuorateError as error:
                    unknown += not error.definite

        over = asyncio.Event()

        async def trouble() -> None:
            while not over.is_set():  # cancelled, it might leave a listener behind
                await asyncio.sleep(random.random() / 20)
                node = random.choice(list(cluster.nodes.values()))
                await node.stop()
                await asyncio.sleep(random.random() / 50)
                await node.start()

        await db.counter("c").value()
        cluster.script = script
        troubles = asyncio.ensure_future(trouble())
        async with asyncio.timeout(20):
            await asyncio.gather(*(work() for _ in range(4)))
        over.set()
        await troubles
        first = cluster.nodes[1].data
        for node in cluster.nodes.values():
            first.join(node.data)
        kind = first.replica.value()
        assert done <= kind.get("c", 0) <= done + unknown
        assert done > 10
