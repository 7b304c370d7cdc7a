"""Ongaro's thesis, chapters 3.10, 4 and 6, a sentence at a time: transfer, membership, reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import (
    Announce,
    Compacted,
    PeerLost,
    PeerReached,
    ReadIndex,
    SnapshotSent,
    TransferLeadership,
)
from quorate.consensus.membership import ChangeKind, Membership, decode_membership
from quorate.consensus.messages import (
    EntryId,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteRequest,
)
from quorate.consensus.output import ReadState, Refusal, Role, SendAppend
from quorate.errors import InvariantViolationError
from tests.consensus.harness import plain
from tests.consensus.solo import FOURTH, ME, PEER, THIRD, Solo, append_request

SENTENCES: list[object] = []
ADD, PROMOTE, DEMOTE, REMOVE = (
    ChangeKind.ADD_LEARNER,
    ChangeKind.PROMOTE,
    ChangeKind.DEMOTE,
    ChangeKind.REMOVE,
)


def sentence(text: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(case: Callable[[], None]) -> Callable[[], None]:
        SENTENCES.append(pytest.param(case, id=text))
        return case

    return note


def leader(voters: tuple[int, ...] = (1, 2, 3), learners: tuple[int, ...] = ()) -> Solo:
    """Leads, and an entry of its term is committed on all."""
    return Solo(voters, learners=learners).lead().settle()


# --- 3.10 leadership transfer ------------------------------------------------------------------


@sentence("3.10: the prior leader stops accepting client requests")
def _() -> None:
    solo = leader()
    solo.propose()
    solo.step(TransferLeadership(PEER))
    assert solo.propose().refusal is Refusal.TRANSFERRING
    assert solo.change((REMOVE, 3)).refusal is Refusal.TRANSFERRING


@sentence("3.10: the target's log is brought up to date, then it is told to time out")
def _() -> None:
    solo = leader()
    solo.propose()
    solo.step(TransferLeadership(PEER))
    assert solo.sent_of(TimeoutNow) == []
    solo.ack(2, 3)
    assert solo.only(TimeoutNow).target == PEER


@sentence("3.10: a target that is up to date is told at once")
def _() -> None:
    solo = leader()
    solo.step(TransferLeadership(THIRD))
    assert solo.only(TimeoutNow).target == THIRD


@sentence("3.10: without a name the best follower is chosen")
def _() -> None:
    solo = leader()
    solo.propose()
    solo.ack(3, 3)
    solo.step(TransferLeadership(NodeId(0)))
    assert solo.only(TimeoutNow).target == THIRD


@sentence("3.10: the target starts an election at once, and its requests say so")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    solo.step(TimeoutNow(Term(2), PEER, ME))
    assert (solo.state.role, solo.state.term) == (Role.CANDIDATE, 3)
    assert all(m.transfer and not m.pre for m in solo.sent_of(VoteRequest))


@sentence("3.10: only the leader can tell to time out")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    solo.step(TimeoutNow(Term(2), THIRD, ME))
    assert solo.state.role is Role.FOLLOWER


@sentence("3.10: a learner does not campaign, though told to")
def _() -> None:
    solo = Solo((2, 3), learners=(1,))
    solo.heartbeat(2)
    solo.step(TimeoutNow(Term(2), PEER, ME))
    assert solo.state.role is Role.FOLLOWER


@sentence("3.10: who hears a leader votes all the same in a transfer")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    assert solo.vote_request(3, (1, 1), sender=3) is None
    assert solo.vote_request(3, (1, 1), sender=3, transfer=True) is True


@sentence("3.10: if it does not complete within an election timeout, the leader goes on")
def _() -> None:
    solo = leader()
    solo.step(TransferLeadership(PEER))
    for _ in range(20):
        solo.tick()
        solo.echo(3)
    assert solo.propose().refusal is None


@pytest.mark.parametrize("target", [1, 4, 9])
def test_transfer_needs_another_voter(target: int) -> None:
    assert leader((1, 2, 3), (4,)).step(TransferLeadership(NodeId(target))).refusal is (
        Refusal.BAD_TARGET
    )


@sentence("3.10: a target that was not heard lately is refused")
def _() -> None:
    solo = leader()
    for _ in range(12):
        solo.tick(2)
        solo.echo(3)
    assert solo.step(TransferLeadership(PEER)).refusal is Refusal.UNREACHABLE_TARGET


# --- 4 membership ------------------------------------------------------------------------------


@sentence("4.1: a server uses the new configuration as soon as it is in its log: a leader")
def _() -> None:
    solo = leader()
    solo.change((ADD, 4))
    assert solo.out.membership == plain((1, 2, 3), (4,))
    assert [m.target for m in solo.sent_of(SendAppend)] == [2, 3, 4]


@sentence("4.1: a server uses the new configuration as soon as it is in its log: a follower")
def _() -> None:
    solo = Solo()
    new = plain((1, 2, 3, 4, 5))
    output = solo.step(append_request((1, 1), 2, term=2, members=new))
    assert (output.membership, output.commit) == (new, 0)
    solo.timeout()
    assert {m.target for m in solo.sent_of(VoteRequest)} == {2, 3, 4, 5}


@sentence("4.1: a server falls back to the previous configuration if the entry is removed")
def _() -> None:
    solo = Solo()
    solo.step(append_request((1, 1), 2, term=2, members=plain((1, 2, 3, 4))))
    output = solo.append((1, 1), 3, term=3, sender=3)
    assert output.membership == plain((1, 2, 3))


@sentence("4.1: a second change is refused until the first is committed")
def _() -> None:
    solo = leader()
    solo.change((ADD, 4))
    assert solo.change((ADD, 5)).refusal is Refusal.CHANGE_PENDING
    solo.ack(2, 3)
    assert solo.change((ADD, 5)).refusal is None


@sentence("4.1: a change is refused until an entry of the own term is committed")
def _() -> None:
    solo = Solo().lead()
    assert solo.change((ADD, 4)).refusal is Refusal.TERM_NOT_COMMITTED
    solo.ack(2, 2)
    assert solo.change((ADD, 4)).refusal is None


@sentence("4.1: only a leader changes the membership")
def _() -> None:
    assert Solo().change((ADD, 4)).refusal is Refusal.NOT_LEADER


@sentence("4.1: a server accepts appends from a leader outside its configuration")
def _() -> None:
    solo = Solo()
    solo.append((1, 1), 2, term=2, sender=9)
    assert solo.state.leader == 9


@sentence("4.1: a server votes for a candidate outside its configuration")
def _() -> None:
    assert Solo().vote_request(2, (5, 1), sender=9) is True


@sentence("4.2.1: learners get the log and count in no majority")
def _() -> None:
    solo = leader((1, 2, 3), (4, 5))
    solo.propose()
    assert {m.target for m in solo.sent_of(SendAppend)} == {2, 3, 4, 5}
    solo.ack(4, 3)
    assert solo.ack(5, 3).commit == 0
    assert solo.ack(2, 3).commit == 3


@sentence("4.2.1: a learner does not campaign")
def _() -> None:
    solo = Solo((2, 3), learners=(1,))
    solo.tick(100)
    assert (solo.sent, solo.state.role) == ([], Role.FOLLOWER)


@sentence("4.2.1: a learner that lags is not promoted")
def _() -> None:
    solo = leader((1, 2, 3), (4,))
    for _ in range(6):
        solo.propose()
    solo.ack(2, 8)
    assert solo.change((PROMOTE, 4)).refusal is Refusal.LEARNER_BEHIND
    solo.ack(4, 8)
    assert solo.change((PROMOTE, 4)).refusal is None


@sentence("4.2.1: a learner that is silent is not promoted")
def _() -> None:
    solo = leader((1, 2, 3), (4,))
    for _ in range(12):
        solo.tick(2)
        solo.echo(2)
    assert solo.change((PROMOTE, 4)).refusal is Refusal.LEARNER_BEHIND


@sentence("4.2.1: a node is not added and promoted at once")
def _() -> None:
    assert leader().change((ADD, 4), (PROMOTE, 4)).refusal is Refusal.BAD_CHANGE


@sentence("4.2: a change whose new majority is not there is refused")
def _() -> None:
    solo = leader()
    for _ in range(12):
        solo.tick(2)
        solo.echo(2)
    assert solo.change((REMOVE, 2)).refusal is Refusal.QUORUM_LOST
    assert solo.change((REMOVE, 3)).refusal is None


@sentence("4.2.2: a leader that is removed leads until that is committed, then resigns")
def _() -> None:
    solo = leader()
    solo.change((REMOVE, 1))
    solo.ack(2, 3)
    solo.ack(3, 3)
    assert solo.state.role is Role.LEADER
    solo.ack(2, 4)
    assert solo.state.role is Role.LEADER
    solo.ack(3, 4)
    assert (solo.state.role, solo.state.commit) == (Role.FOLLOWER, 4)
    assert solo.only(TimeoutNow).target in {PEER, THIRD}


@sentence("4.2.2: a leader that is removed does not count itself")
def _() -> None:
    solo = leader((1, 2))
    solo.change((REMOVE, 1))
    solo.ack(2, 3)
    assert solo.state.membership == plain((2,))
    assert solo.state.commit == 3
    assert solo.state.persisted == 4
    assert solo.ack(2, 4).commit == 4


@sentence("4.2.2: a demoted leader resigns likewise, and stays a learner")
def _() -> None:
    solo = leader()
    solo.change((DEMOTE, 1))
    solo.ack(2, 3)
    solo.ack(3, 3)
    solo.ack(2, 4)
    solo.ack(3, 4)
    assert solo.state.membership == plain((2, 3), (1,))
    assert solo.state.role is Role.FOLLOWER


@sentence("4.2.2: who is left out by an uncommitted configuration still starts elections")
def _() -> None:
    solo = Solo()
    solo.step(append_request((1, 1), 2, term=2, members=plain((2, 3))))
    solo.timeout()
    assert {m.target for m in solo.sent_of(VoteRequest)} == {2, 3}


@sentence("4.2.2: and does not count its own vote")
def _() -> None:
    solo = Solo()
    solo.step(append_request((1, 1), 2, term=2, members=plain((2, 3))))
    solo.timeout()
    solo.pre_votes(2)
    assert solo.state.role is Role.PRE_CANDIDATE
    solo.pre_votes(3)
    solo.votes(2)
    assert solo.state.role is Role.CANDIDATE
    solo.votes(3)
    assert solo.state.role is Role.LEADER


@sentence("4.2.2: who is left out by a committed configuration is silent")
def _() -> None:
    solo = Solo()
    solo.step(append_request((1, 1), 2, term=2, commit=2, members=plain((2, 3))))
    solo.tick(100)
    assert solo.sent == []


@pytest.mark.parametrize("pre", [True, False], ids=["pre-vote", "vote"])
@pytest.mark.parametrize("term", [2, 3, 99])
def test_sticky(term: int, *, pre: bool) -> None:
    """4.2.3: within the minimum election timeout of hearing a leader, no vote and no new term."""
    solo = Solo()
    solo.heartbeat(2)
    solo.tick(9)
    assert solo.vote_request(term, (9, 2), sender=3, pre=pre) is None
    assert solo.state.term == 2


@sentence("4.2.3: after the minimum election timeout votes are given again")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    solo.state.election_timeout = 19
    solo.tick(10)
    assert solo.vote_request(3, (9, 2), sender=3) is True


@sentence("4.2.3: a leader does not step down for a vote request")
def _() -> None:
    solo = leader()
    assert solo.vote_request(9, (9, 9), sender=3) is None
    assert solo.state.role is Role.LEADER


@sentence("4.2.3: a term learned otherwise does not end the promise")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    solo.step(HeartbeatReply(Term(7), THIRD, ME, 1, LogIndex(0), sticky=False))
    assert solo.state.term == 7
    assert solo.vote_request(8, (9, 7), sender=3) is None


# --- 4.3 joint consensus -----------------------------------------------------------------------


def joint(old: tuple[int, ...], *changes: tuple[ChangeKind, int]) -> Solo:
    learners = tuple(node for kind, node in changes if kind is PROMOTE)
    solo = leader(old, learners)
    output = solo.change(*changes)
    assert output.refusal is None, output
    assert solo.state.membership.joint
    return solo


@sentence("4.3: log entries go to all servers of both configurations")
def _() -> None:
    solo = joint((1, 2, 3), (PROMOTE, 4), (PROMOTE, 5), (REMOVE, 2))
    solo.propose()
    assert {m.target for m in solo.sent_of(SendAppend)} == {2, 3, 4, 5}


@sentence("4.3: commit needs separate majorities of both: the old alone does not do")
def _() -> None:
    solo = joint((1, 2, 3), (PROMOTE, 4), (PROMOTE, 5), (PROMOTE, 6))
    solo.ack(2, 3)
    assert solo.ack(3, 3).commit == 0
    assert solo.ack(4, 3).commit == 3


@sentence("4.3: commit needs separate majorities of both: the new alone does not do")
def _() -> None:
    solo = joint((1, 2, 3), (PROMOTE, 4), (PROMOTE, 5), (REMOVE, 2), (REMOVE, 3))
    solo.ack(4, 3)
    assert solo.ack(5, 3).commit == 0
    assert solo.ack(3, 3).commit == 3


@sentence("4.3: an election needs separate majorities of both")
def _() -> None:
    members = Membership(voters=(ME, FOURTH, NodeId(5)), voters_old=(ME, PEER, THIRD))
    for winners, wins in (((4, 5), False), ((2, 3), False), ((2, 4), True)):
        solo = Solo(membership=members)
        solo.timeout()
        solo.pre_votes(2, 3, 4, 5)
        solo.votes(*winners)
        assert (solo.state.role is Role.LEADER) == wins


@sentence("4.3: once the joint configuration is committed, the new one is appended")
def _() -> None:
    solo = joint((1, 2, 3), (REMOVE, 3))
    output = solo.ack(2, 3)
    assert output.persist is not None
    entry = output.persist.entries[0]
    assert (entry.index, entry.kind) == (4, EntryKind.MEMBERSHIP)
    assert decode_membership(entry.payload) == plain((1, 2))


@sentence("4.3: the old configuration may still decide alone until the joint one is there")
def _() -> None:
    solo = leader()
    solo.propose()
    solo.change((REMOVE, 3))
    assert solo.ack(2, 3).commit == 3
    assert solo.state.membership.joint


@sentence("4.3: a leader elected in the joint configuration completes the change")
def _() -> None:
    members = Membership(voters=(ME, PEER), voters_old=(ME, PEER, THIRD))
    solo = Solo(membership=members)
    solo.lead()
    assert solo.state.membership.joint
    solo.ack(2, 2)
    assert not solo.state.membership.joint
    assert solo.state.membership.voters == (1, 2)


@sentence("4.3: the next change waits until the joint configuration is left and that is committed")
def _() -> None:
    solo = joint((1, 2, 3), (REMOVE, 3))
    assert solo.change((ADD, 9)).refusal is Refusal.CHANGE_PENDING
    solo.ack(2, 3)
    assert solo.change((ADD, 9)).refusal is Refusal.CHANGE_PENDING
    solo.ack(2, 4)
    assert solo.change((ADD, 9)).refusal is None


@sentence("4.3: a removed server gets no more appends")
def _() -> None:
    solo = joint((1, 2, 3), (REMOVE, 3))
    solo.ack(2, 3)
    assert {m.target for m in solo.sent_of(SendAppend)} == {2}
    solo.ack(3, 3)
    assert solo.sent == []


@sentence("4.3: a swap of voters is one change")
def _() -> None:
    solo = joint((1, 2, 3), (PROMOTE, 4), (REMOVE, 3))
    assert solo.state.membership.voters == (1, 2, 4)
    solo.ack(2, 3)
    solo.ack(4, 3)
    assert solo.state.membership == plain((1, 2, 4))


# --- 6 client interaction ----------------------------------------------------------------------


@sentence("6.2: a leader that reaches no majority for an election timeout steps down")
def _() -> None:
    solo = leader(tuple(range(1, 6)))
    for _ in range(11):
        solo.tick(2)
        solo.echo(2)
    assert solo.state.role is Role.FOLLOWER


@sentence("6.2: a leader that reaches a majority stays")
def _() -> None:
    solo = leader(tuple(range(1, 6)))
    for _ in range(30):
        solo.tick(2)
        solo.echo(2)
        solo.echo(3)
    assert solo.state.role is Role.LEADER


@sentence("6.2: a connection is no sign that anybody follows")
def _() -> None:
    solo = leader()
    for _ in range(15):
        solo.tick(2)
        solo.step(PeerLost(PEER))
        solo.step(PeerReached(PEER))
    assert solo.state.role is Role.FOLLOWER


@sentence("6.4: a read waits for heartbeats, begun after it, from a majority")
def _() -> None:
    solo = leader(tuple(range(1, 6)))
    solo.step(ReadIndex(7))
    assert solo.out.read_states == ()
    assert len(solo.sent_of(Heartbeat)) == 4
    solo.echo(2)
    assert solo.out.read_states == ()
    assert solo.echo(3).read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: heartbeats begun before the read do not count")
def _() -> None:
    solo = leader()
    solo.tick(2)
    early = HeartbeatReply(Term(2), PEER, ME, solo.state.round, LogIndex(2), sticky=False)
    solo.step(ReadIndex(7))
    assert solo.step(early).read_states == ()


@sentence("6.4: the same follower heard twice is one of a majority")
def _() -> None:
    solo = leader(tuple(range(1, 6)))
    solo.step(ReadIndex(7))
    for _ in range(3):
        assert solo.echo(2).read_states == ()


@sentence("6.4: an append's answer confirms the round it belongs to")
def _() -> None:
    solo = leader()
    solo.step(ReadIndex(7))
    output = solo.ack(2, 2, round_number=solo.state.round)
    assert output.read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: a commit index that somebody waits for travels in a round of its own")
def _() -> None:
    solo = leader()
    solo.step(Announce())
    assert [each.commit for each in solo.sent_of(Heartbeat)] == [2, 2]
    follower = Solo()
    follower.step(Announce())
    assert follower.sent == []


@sentence("6.4: learners' heartbeats confirm nothing")
def _() -> None:
    solo = leader((1, 2, 3), (4, 5))
    solo.step(ReadIndex(7))
    solo.echo(4)
    assert solo.echo(5).read_states == ()


@sentence("6.4: in a joint configuration both majorities must answer")
def _() -> None:
    solo = joint((1, 2, 3), (PROMOTE, 4), (PROMOTE, 5), (PROMOTE, 6))
    solo.step(ReadIndex(7))
    solo.echo(2)
    assert solo.echo(3).read_states == ()
    assert solo.echo(4).read_states == (ReadState(7, LogIndex(2)),)
    solo = joint((1, 2, 3), (PROMOTE, 4), (PROMOTE, 5), (REMOVE, 2), (REMOVE, 3))
    solo.step(ReadIndex(7))
    solo.echo(4)
    assert solo.echo(5).read_states == (), "the new one alone does not do either"
    assert solo.echo(2).read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: the read index is the commit index when the read came, not when it was confirmed")
def _() -> None:
    solo = leader()
    solo.step(ReadIndex(7))
    solo.propose()
    solo.ack(2, 3)
    assert solo.echo(3).read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: a new leader lets reads wait until an entry of its own term is committed")
def _() -> None:
    solo = Solo().lead()
    solo.step(ReadIndex(7))
    solo.echo(2, verified=1)
    solo.echo(3, verified=1)
    assert solo.out.read_states == ()
    solo.ack(2, 2)
    assert solo.out.read_states == ()
    assert solo.echo(2).read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: alone, a leader needs no round")
def _() -> None:
    solo = leader((1,))
    assert solo.step(ReadIndex(7)).read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4: a leader that resigns refuses the reads that wait")
def _() -> None:
    solo = leader()
    solo.step(ReadIndex(7))
    solo.step(ReadIndexRequest(Term(2), PEER, ME, 8))
    output = solo.heartbeat(5, sender=3)
    assert output.read_states == (ReadState(7, LogIndex(0)),)


@sentence("6.4: a follower asks its leader")
def _() -> None:
    solo = Solo()
    solo.heartbeat(2)
    solo.step(ReadIndex(7))
    assert solo.only(ReadIndexRequest).target == PEER
    output = solo.step(ReadIndexReply(Term(2), PEER, ME, 7, LogIndex(5)))
    assert output.read_states == (ReadState(7, LogIndex(5)),)


@sentence("6.4: the answer to a follower commits nothing that it has not matched")
def _() -> None:
    solo = Solo(terms=(1, 1, 1))
    solo.heartbeat(2)
    assert solo.step(ReadIndexReply(Term(2), PEER, ME, 7, LogIndex(3))).commit == 0


@sentence("6.4: without a leader a read is refused at once")
def _() -> None:
    assert Solo().step(ReadIndex(7)).read_states == (ReadState(7, LogIndex(0)),)


@sentence("6.4: a follower that is asked refuses")
def _() -> None:
    solo = Solo(term=2)
    solo.step(ReadIndexRequest(Term(2), PEER, ME, 8))
    assert solo.only(ReadIndexReply).index == 0


@sentence("6.4: reads that wait are bounded")
def _() -> None:
    solo = leader()
    for context in range(4096):
        solo.step(ReadIndexRequest(Term(2), PEER, ME, context))
    solo.step(ReadIndexRequest(Term(2), PEER, ME, 5000))
    assert [m.index for m in solo.sent_of(ReadIndexReply)] == [0]


def leased() -> Solo:
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.lead().settle()
    solo.tick(2)
    solo.echo(2, sticky=True)
    return solo


@sentence("6.4.1: with a lease the leader answers reads without a round")
def _() -> None:
    solo = leased()
    output = solo.step(ReadIndex(7, solo.now_ms + 69))
    assert output.read_states == (ReadState(7, LogIndex(2)),)


@sentence("6.4.1: the lease runs from when the heartbeat was sent")
def _() -> None:
    solo = leased()
    sent_ms = solo.now_ms
    solo.tick()
    solo.echo(2, sticky=True)
    assert solo.step(ReadIndex(7, sent_ms + 70)).read_states == ()


@sentence("6.4.1: who has not promised to refuse votes does not extend the lease")
def _() -> None:
    solo = leased()
    solo.tick(2)
    solo.echo(3, sticky=False)
    assert solo.step(ReadIndex(7, solo.now_ms + 60)).read_states == ()


@sentence("6.4.1: a process that was frozen finds its lease over")
def _() -> None:
    solo = leased()
    assert solo.step(ReadIndex(7, solo.now_ms + 5000)).read_states == ()


@sentence("6.4.1: without the option there is no lease")
def _() -> None:
    solo = leader()
    solo.tick(2)
    solo.echo(2, sticky=True)
    assert solo.step(ReadIndex(7, solo.now_ms)).read_states == ()


@sentence("6.4.1: a member that restarted may have promised: it gives no vote at first")
def _() -> None:
    solo = Solo(lease_reads=1)
    solo.tick(9)
    assert solo.vote_request(2, (1, 1)) is None
    solo.tick()
    assert solo.vote_request(2, (1, 1)) is True


# --- flow, snapshots, disks --------------------------------------------------------------------


@sentence("10.2.2: appends are pipelined, up to a bound of messages")
def _() -> None:
    solo = leader((1, 2))
    for _ in range(10):
        solo.propose()
        solo.ack(2, 2)
    assert solo.state.progress[PEER].next == 3 + 4


@sentence("10.2.2: appends are pipelined, up to a bound of bytes")
def _() -> None:
    solo = Solo((1, 2), inflight_bytes_max=100, inflight_messages_max=99).lead().settle()
    for _ in range(10):
        solo.propose(b"x" * 40)
    assert solo.state.progress[PEER].inflight_bytes == 120


@sentence("10.2.2: an append is not larger than its bound, save for a single large entry")
def _() -> None:
    solo = Solo((1, 2), append_bytes_max=100, inflight_bytes_max=9999).lead()
    for size in (40, 40, 40, 300, 1):
        solo.propose(b"x" * size)
    solo.ack(2, 2)
    assert [(m.prev_index + 1, m.last_index) for m in solo.sent_of(SendAppend)] == [
        (3, 4), (5, 5), (6, 6), (7, 7),
    ]  # fmt: skip


@sentence("flow: only a leader takes proposals and hands over")
def _() -> None:
    solo = Solo()
    assert solo.propose().refusal is Refusal.NOT_LEADER
    assert solo.step(TransferLeadership(PEER)).refusal is Refusal.NOT_LEADER


@sentence("flow: an acknowledgement of what was never sent is a bug, and named")
def _() -> None:
    with pytest.raises(InvariantViolationError, match="nobody holds more"):
        leader().ack(2, 9)


@sentence("flow: what a live follower still needs is not to be cut")
def _() -> None:
    solo = leader()
    assert solo.core.first_index_needed() == 3
    solo.propose()
    solo.step(PeerLost(PEER))
    solo.ack(3, 3)
    assert solo.core.first_index_needed() == 3
    for _ in range(11):
        solo.tick(2)
        solo.echo(3)
    assert solo.core.first_index_needed() == 4, "node 2 is silent: a snapshot will do"
    assert Solo().core.first_index_needed() == 0


@sentence("flow: rounds that nobody answers do not pile up")
def _() -> None:
    solo = Solo(lease_reads=1).lead().settle()
    for context in range(3000):
        solo.step(ReadIndex(context))
    assert len(solo.state.round_sent_ms) == 1024


@sentence("flow: proposals are refused while too much is not committed")
def _() -> None:
    solo = Solo(uncommitted_bytes_max=100).lead().settle()
    assert solo.propose(b"x" * 500).refusal is None
    assert solo.propose(b"x").refusal is Refusal.OVERLOADED
    solo.ack(2, 3)
    assert solo.propose(b"x").refusal is None


@sentence("flow: a broken connection makes the leader find out anew where the follower stands")
def _() -> None:
    solo = leader((1, 2))
    solo.propose()
    solo.step(PeerLost(PEER))
    solo.propose()
    assert solo.sent == []
    solo.step(PeerReached(PEER))
    order = solo.only(SendAppend)
    assert (order.prev_index, order.last_index) == (2, 4)


@sentence("7: while a snapshot is on its way no appends are sent; then the log goes on")
def _() -> None:
    solo = Solo(terms=(3, 3), floor=(6, 2), commit=6).lead()
    solo.refuse(2, 8, (4, 2))
    solo.refuse(2, 6, (4, 2))
    solo.propose()
    assert {m.target for m in solo.sent_of(SendAppend)} <= {THIRD}
    solo.step(SnapshotSent(PEER, LogIndex(6), ok=True))
    order = solo.only(SendAppend)
    assert order.prev_index == 6


@sentence("7: a snapshot that failed is tried again when the follower speaks")
def _() -> None:
    solo = Solo(terms=(3, 3), floor=(6, 2), commit=6).lead()
    solo.refuse(2, 8, (4, 2))
    solo.refuse(2, 6, (4, 2))
    solo.step(SnapshotSent(PEER, LogIndex(6), ok=False))
    assert solo.out.snapshots == ()
    assert solo.echo(2, verified=4).snapshots == (PEER,)


@sentence("7: a silent follower is sent no snapshot until it speaks")
def _() -> None:
    solo = leader()
    solo.step(PeerLost(PEER))
    solo.propose()
    solo.ack(3, 3)
    solo.step(Compacted(EntryId(LogIndex(3), Term(2))))
    for _ in range(11):
        solo.tick(2)
        solo.echo(3)
    solo.step(PeerReached(PEER))
    assert (solo.out.snapshots, solo.sent) == ((), [])
    assert solo.echo(2, verified=2).snapshots == (PEER,)


@sentence("7: the log is cut behind a checkpoint, and not twice")
def _() -> None:
    solo = Solo(terms=(1, 1, 2), commit=3)
    for _ in range(2):
        solo.step(Compacted(EntryId(LogIndex(2), Term(1))))
        assert solo.state.log.floor.index == 2


@pytest.mark.parametrize("case", SENTENCES)
def test_sentence(case: Callable[[], None]) -> None:
    case()


def test_there_are_enough() -> None:
    assert len(SENTENCES) >= 60
