"""When writes are answered at other levels than the usual one; reads that wait for an entry."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from quorate.base.frames import QueryFailed, QueryReply, Submit, SubmitAccepted, SubmitFailed
from quorate.base.levels import ANSWER_APPLIED, ANSWER_DURABLE, ANSWER_EVERYWHERE
from quorate.base.types import LogIndex, NodeId
from quorate.consensus.messages import Heartbeat
from quorate.errors import BadCommandError, NotLeaderError, OverloadedError, UnavailableError
from quorate.replication import acknowledging as module
from quorate.replication import reading
from quorate.replication.transport import AppliedRequest, StateDigest
from tests.replication.driving import (
    THREE,
    TWO,
    Rig,
    batch_entry,
    counts,
    entry,
    hit,
    how_many,
    turns,
    virtually,
)


def at(level: int, *tags: str, session: int = 0) -> Submit:
    return msgspec.structs.replace(hit(*tags or ("a",), session=session), level=level)


def ask(rig: Rig, submit: Submit) -> None:
    rig.replica.submit(submit, rig.answers.append)


def digest(rig: Rig, node: NodeId, index: int) -> None:
    rig.replica.receive(StateDigest(node, LogIndex(index), b"x" * 8))


def answered(rig: Rig) -> list[tuple[int, tuple[int, ...]]]:
    """Index and unconfirmed members of each reply."""
    return [(each.index, each.unconfirmed) for each in rig.answers]  # type: ignore[union-attr]


# --- durable on one node -------------------------------------------------------------------------


def test_an_eventual_write_is_answered_after_the_own_fsync_and_before_any_commit() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE))
        await turns()
        report = rig.disk.work()
        assert rig.answers == [], "written, but nobody said that it is durable"
        report()
        index, term = rig.state.log.last_index, rig.state.term
        assert rig.answers == [SubmitAccepted(1, index, term)]
        assert rig.state.commit < index
        rig.ack(index)
        await rig.settle()
        assert rig.tally.count == 1
        assert len(rig.answers) == 1, "its commit is not news"

    virtually(main())


def test_of_two_entries_only_the_durable_one_is_accepted() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE))
        await turns()
        report = rig.disk.work()
        ask(rig, msgspec.structs.replace(at(ANSWER_DURABLE), sequence=2))
        await asyncio.sleep(0.02)  # so long the second entry waits for the first
        last = rig.state.log.last_index
        report()
        assert rig.answers == [SubmitAccepted(1, last - 1, rig.state.term)]
        rig.disk.drain()
        assert rig.answers[1:] == [SubmitAccepted(2, last, rig.state.term)]

    virtually(main())


def test_a_commit_before_the_own_fsync_answers_it_too() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE))
        await turns()
        index, term = rig.state.log.last_index, rig.state.term
        rig.ack(index)
        rig.ack(index, sender=3)
        await rig.settle()
        assert rig.answers == [SubmitAccepted(1, index, term)]
        rig.disk.drain()
        assert len(rig.answers) == 1

    virtually(main())


def test_an_accepted_write_that_is_overwritten_is_not_reported_again() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE))
        await turns()
        rig.disk.drain()
        index, term = rig.state.log.last_index, rig.state.term
        rig.append(entry(index, term + 1), prev=(index - 1, term), term=term + 1, commit=index)
        rig.disk.drain()
        await rig.settle()
        assert rig.replica.applied == index
        assert rig.answers == [SubmitAccepted(1, index, term)]
        assert rig.tally.count == 0

    virtually(main())


def test_one_that_was_overwritten_before_it_was_durable_was_never_accepted() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE))
        await turns()
        report = rig.disk.work()
        index, term = rig.state.log.last_index, rig.state.term
        rig.append(entry(index, term + 1), prev=(index - 1, term), term=term + 1, commit=index)
        report()
        rig.disk.drain()
        await rig.settle()
        (answer,) = rig.answers
        assert isinstance(answer, SubmitFailed)
        assert answer.code == NotLeaderError.code

    virtually(main())


def test_under_a_session_that_is_gone_it_waits_for_the_refusal() -> None:
    """Else a client whose session has expired would lose every write, and never hear of it."""

    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(ANSWER_DURABLE, session=7))
        await turns()
        rig.disk.drain()
        assert rig.answers == []
        rig.ack(rig.state.log.last_index)
        await rig.settle()
        (answer,) = rig.answers
        assert isinstance(answer, SubmitFailed)
        assert answer.code == "session-expired"

    virtually(main())


def test_a_mixed_entry_answers_each_at_its_own_time() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        ask(rig, at(0))
        ask(rig, msgspec.structs.replace(at(ANSWER_DURABLE), sequence=2))
        await turns()
        rig.disk.drain()
        assert [each.sequence for each in rig.answers] == [2]
        rig.ack(rig.state.log.last_index)
        await rig.settle()
        assert [each.sequence for each in rig.answers] == [2, 1]

    virtually(main())


# --- applied everywhere --------------------------------------------------------------------------


async def _committed(rig: Rig, *submits: Submit) -> int:
    """They are applied at the leader; the index of their entry."""
    for submit in submits:
        ask(rig, submit)
    await turns()
    rig.disk.drain()
    rig.net.sent.clear()
    rig.ack(rig.state.log.last_index)
    await rig.settle()
    return int(rig.state.log.last_index)


def test_a_strong_write_is_answered_when_every_voter_has_applied_it() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        index = await _committed(rig, *[at(ANSWER_EVERYWHERE)] * 3)
        assert rig.answers == []
        kinds = [type(each) for each in rig.net.sent if not isinstance(each, StateDigest)]
        assert kinds == [Heartbeat, Heartbeat, AppliedRequest, AppliedRequest], (
            "shared by all three"
        )
        asked = rig.net.take(AppliedRequest)
        assert [each.index for each in asked] == [index, index]
        digest(rig, TWO, index)
        digest(rig, THREE, index - 1)
        assert rig.answers == []
        digest(rig, THREE, index + 5)
        assert answered(rig) == [(index, ())] * 3
        assert [counts(each) for each in rig.answers] == [[1], [2], [3]]

    virtually(main())


def test_who_has_not_confirmed_in_time_is_named() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.replica.start()
        index = await _committed(rig, at(ANSWER_EVERYWHERE))
        digest(rig, TWO, index)
        for _ in range(50):  # its peers answer, so that it goes on leading
            rig.ack(index)
            await asyncio.sleep(module.CONFIRM_S / 50 - 0.001)
        assert rig.answers == []
        await asyncio.sleep(0.1)
        assert answered(rig) == [(index, (THREE,))]
        digest(rig, THREE, index)
        assert len(rig.answers) == 1
        rig.replica.stop()

    virtually(main())


@pytest.mark.parametrize("how", ["deposed", "stopped"])
def test_one_that_is_applied_is_never_left_without_an_answer(how: str) -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        index = await _committed(rig, at(ANSWER_EVERYWHERE))
        digest(rig, TWO, index)
        if how == "deposed":
            rig.depose()
        else:
            rig.replica.stop()
        assert answered(rig) == [(index, (THREE,))]

    virtually(main())


def test_the_word_of_a_member_ends_with_its_connection() -> None:
    """It may have died since, and come back with less applied."""

    async def main() -> None:
        rig = Rig()
        await rig.lead()
        digest(rig, TWO, 100)
        digest(rig, THREE, 100)
        index = await _committed(rig, at(ANSWER_EVERYWHERE))
        assert answered(rig) == [(index, ())]
        rig.replica.peer_lost(THREE)
        again = await _committed(rig, at(ANSWER_EVERYWHERE))
        assert len(rig.answers) == 1
        digest(rig, THREE, again)
        assert answered(rig)[1:] == [(again, ())]

    virtually(main())


def test_a_refused_one_and_an_unknown_level() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        with pytest.raises(BadCommandError, match="level 9"):
            ask(rig, at(9))
        await _committed(rig, at(ANSWER_EVERYWHERE, session=7))
        (answer,) = rig.answers
        assert isinstance(answer, SubmitFailed), "nothing was done, so there is nothing to confirm"
        rig.depose()
        with pytest.raises(NotLeaderError):
            ask(rig, at(ANSWER_EVERYWHERE))

    virtually(main())


def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 3)

    async def main() -> None:
        rig = Rig()
        await rig.lead()
        index = await _committed(rig, *[at(ANSWER_EVERYWHERE)] * 3)
        with pytest.raises(OverloadedError):
            ask(rig, at(ANSWER_EVERYWHERE))
        ask(rig, at(0))
        digest(rig, TWO, index)
        digest(rig, THREE, index)
        ask(rig, at(ANSWER_EVERYWHERE))

    virtually(main())


def test_a_follower_says_what_it_has_applied_as_soon_as_it_has() -> None:
    async def main() -> None:
        rig = Rig(prompt=True)
        rig.append(batch_entry(2, 2, hit("a")), batch_entry(3, 2, hit("b")), prev=(1, 1), term=2)
        await rig.settle()
        rig.replica.receive(AppliedRequest(TWO, LogIndex(3)))
        assert rig.net.digests() == []
        rig.heartbeat(2, commit=2)
        await rig.settle()
        rig.net.sent.clear()
        rig.heartbeat(2, commit=3)
        await rig.settle()
        assert rig.net.digests()[-1].index == 3
        rig.replica.receive(AppliedRequest(TWO, LogIndex(3)))
        assert [each.index for each in rig.net.digests()] == [3]
        rig.heartbeat(2, commit=3)
        await rig.settle()
        assert len(rig.net.digests()) == 1, "asked once, answered once; and one with the heartbeat"

    virtually(main())


# --- reads that follow an entry ------------------------------------------------------------------


def test_a_causal_read_waits_until_its_entry_is_applied() -> None:
    async def main() -> None:
        rig = Rig(prompt=True)
        rig.append(batch_entry(2, 2, hit("a")), batch_entry(3, 2, hit("b")), prev=(1, 1), term=2)
        await rig.settle()
        rig.heartbeat(2, commit=2)
        await rig.settle()
        for number, after in ((1, 2), (2, 3), (3, 2)):
            query = msgspec.structs.replace(how_many(number, linearizable=False), after=after)
            rig.replica.query(query, rig.reads.append)
        assert [(each.id, counts(each)) for each in rig.reads] == [(1, [1]), (3, [1])]
        rig.heartbeat(2, commit=3)
        await rig.settle()
        answer = rig.reads[-1]
        assert isinstance(answer, QueryReply)
        assert (answer.id, answer.index, counts(answer)) == (2, 3, [2])

    virtually(main())


def test_a_member_that_is_behind_sends_the_read_elsewhere_after_a_moment() -> None:
    async def main() -> None:
        rig = Rig()
        rig.replica.start()
        early = msgspec.structs.replace(how_many(1, linearizable=False), after=10**18)
        rig.replica.query(early, rig.reads.append)
        await asyncio.sleep(reading.BEHIND_GIVE_UP_S / 2)
        rig.replica.query(msgspec.structs.replace(early, id=2), rig.reads.append)
        assert rig.reads == []
        await asyncio.sleep(reading.BEHIND_GIVE_UP_S / 2 + 0.05)
        (answer,) = rig.reads
        assert isinstance(answer, QueryFailed)
        assert (answer.id, answer.code) == (1, UnavailableError.code)
        rig.replica.stop()
        assert [each.id for each in rig.reads] == [1, 2]

    virtually(main())


# --- members at which clients watch ---------------------------------------------------------------


def watched_digest(rig: Rig, node: NodeId, *, watched: bool) -> None:
    rig.replica.receive(StateDigest(node, LogIndex(1), b"x" * 8, watched))


def test_where_clients_watch_a_commit_is_told_at_once() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()

        async def told() -> bool:
            rig.net.sent.clear()
            index = await _committed(rig, at(ANSWER_APPLIED))
            await turns()
            beats = rig.net.take(Heartbeat)
            assert all(each.commit == index for each in beats)
            return bool(beats)

        assert not await told()
        watched_digest(rig, TWO, watched=True)
        assert await told()
        watched_digest(rig, TWO, watched=False)
        assert not await told()
        watched_digest(rig, THREE, watched=True)
        assert await told()
        rig.replica.peer_lost(THREE)
        assert not await told()

    virtually(main())


def test_while_more_is_under_way_its_own_commit_tells() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        watched_digest(rig, TWO, watched=True)
        ask(rig, at(ANSWER_APPLIED))
        await turns()
        rig.disk.drain()
        first = rig.state.log.last_index
        ask(rig, msgspec.structs.replace(at(ANSWER_APPLIED), sequence=2))
        await turns()
        rig.net.sent.clear()
        rig.ack(first)
        await turns()
        assert (rig.state.commit, rig.state.log.last_index) == (first, first + 1)
        assert not rig.net.take(Heartbeat)
        rig.disk.drain()
        rig.ack(first + 1)
        await turns()
        assert [each.commit for each in rig.net.take(Heartbeat)] == [first + 1] * 2

    virtually(main())
