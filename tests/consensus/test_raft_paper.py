"""The Raft paper (5 to 8, figure 2) and Ongaro's thesis (3, 4, 6, 9, 10), a sentence at a time.

The id of a case is the sentence that it holds the core to. Membership and reads (thesis 4 and 6)
stand in ``test_raft_thesis.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorate.base.types import LogIndex, Term
from quorate.consensus.events import SnapshotOffered
from quorate.consensus.membership import Membership
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryId,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Role, SendAppend
from tests.consensus.harness import plain
from tests.consensus.solo import FOURTH, ME, PEER, THIRD, Solo, append_request

SENTENCES: list[object] = []


def sentence(text: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(case: Callable[[], None]) -> Callable[[], None]:
        SENTENCES.append(pytest.param(case, id=text))
        return case

    return note


def message_of(kind: type, term: int) -> Message:
    at, zero = Term(term), LogIndex(0)
    made: dict[type, Message] = {
        VoteRequest: VoteRequest(at, PEER, ME, zero, Term(0)),
        VoteReply: VoteReply(at, PEER, ME, granted=False),
        AppendRequest: append_request((1, 1), term=term),
        AppendReply: AppendReply(at, PEER, ME, ok=True, index=LogIndex(1), hint_index=zero,
                                 hint_term=Term(0), round=0),
        Heartbeat: Heartbeat(at, PEER, ME, zero, 1),
        HeartbeatReply: HeartbeatReply(at, PEER, ME, 1, zero, sticky=False),
        ReadIndexRequest: ReadIndexRequest(at, PEER, ME, 1),
        ReadIndexReply: ReadIndexReply(at, PEER, ME, 1, zero),
        TimeoutNow: TimeoutNow(at, PEER, ME),
    }  # fmt: skip
    return made[kind]


KINDS = [VoteRequest, VoteReply, AppendRequest, AppendReply, Heartbeat, HeartbeatReply,
         ReadIndexRequest, ReadIndexReply, TimeoutNow]  # fmt: skip


@pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: f"5.1: a larger term, in a {kind.__name__}, becomes one's own"
)
def test_newer_term(kind: type) -> None:
    solo = Solo(term=1)
    solo.step(message_of(kind, 7))
    assert solo.state.term == 7
    assert solo.state.role is Role.FOLLOWER


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind is not VoteRequest],
    ids=lambda kind: f"5.1: a leader whose term is out of date, by {kind.__name__}, reverts",
)
def test_leader_reverts(kind: type) -> None:
    solo = Solo().lead()
    solo.step(message_of(kind, 9))
    assert (solo.state.role, solo.state.term) == (Role.FOLLOWER, 9)


@sentence("5.1: a candidate whose term is out of date reverts to follower")
def _() -> None:
    solo = Solo()
    solo.campaign()
    assert solo.state.role is Role.CANDIDATE
    solo.step(message_of(VoteReply, 9))
    assert (solo.state.role, solo.state.term) == (Role.FOLLOWER, 9)


@sentence("5.1: a vote request with a stale term is refused")
def _() -> None:
    solo = Solo(term=5)
    assert solo.vote_request(4, (9, 4)) is False
    assert solo.only(VoteReply).term == 5


@sentence("5.1: an append request with a stale term is refused")
def _() -> None:
    solo = Solo(term=5)
    solo.append((1, 1), 2, term=4)
    assert solo.terms() == [1]
    assert solo.only(HeartbeatReply).term == 5


@sentence("5.1: a heartbeat with a stale term is refused")
def _() -> None:
    solo = Solo(term=5)
    solo.heartbeat(4)
    assert solo.state.leader == 0
    assert solo.only(HeartbeatReply).term == 5


@sentence("5.1: stale answers are dropped")
def _() -> None:
    solo = Solo().lead().settle()
    solo.propose()
    for kind in (AppendReply, HeartbeatReply, VoteReply, ReadIndexReply, TimeoutNow):
        solo.step(message_of(kind, 1))
        assert solo.sent == []
    assert solo.state.role is Role.LEADER


@sentence("5.2: when servers start up, they begin as followers")
def _() -> None:
    assert Solo(terms=(1, 2), term=3, vote=1).state.role is Role.FOLLOWER


@sentence("5.2: a server remains follower as long as it hears from a leader")
def _() -> None:
    solo = Solo()
    for _ in range(20):
        solo.heartbeat(2)
        solo.tick(9)
        assert solo.state.role is Role.FOLLOWER


@sentence("5.2: leaders send periodic heartbeats to all followers")
def _() -> None:
    solo = Solo((1, 2, 3), learners=(4,)).lead().settle()
    for _ in range(5):
        solo.tick(2)
        assert [m.target for m in solo.sent_of(Heartbeat)] == [2, 3, 4]
        solo.echo(2)


@sentence("5.2: without communication over an election timeout an election begins")
def _() -> None:
    solo = Solo()
    solo.tick(9)
    assert solo.sent == []
    solo.tick(11)
    assert {m.target for m in solo.sent_of(VoteRequest)} == {2, 3}


@sentence("5.2: a candidate increments its term, votes for itself, asks all others in parallel")
def _() -> None:
    solo = Solo(range(1, 6), term=4)
    solo.campaign()
    assert (solo.state.term, solo.state.vote, solo.state.role) == (5, ME, Role.CANDIDATE)
    requests = [m for m in solo.sent_of(VoteRequest) if not m.pre]
    solo = Solo(range(1, 6), term=4)
    solo.timeout()
    solo.pre_votes(2, 3)
    requests = [m for m in solo.sent_of(VoteRequest) if not m.pre]
    assert [(m.target, m.term) for m in requests] == [(2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("size", "votes", "wins"),
    [
        pytest.param(
            size, votes, 2 * (votes + 1) > size, id=f"5.2: {votes} votes of {size} servers"
        )
        for size in (3, 4, 5, 7)
        for votes in range(size)
    ],
)
def test_majority(size: int, votes: int, *, wins: bool) -> None:
    solo = Solo(range(1, size + 1))
    solo.campaign()
    solo.votes(*range(2, 2 + votes))
    assert (solo.state.role is Role.LEADER) == wins


@sentence("5.2: a single server elects itself")
def _() -> None:
    assert Solo((1,)).lead().state.term == 2


@sentence("5.2: at most one candidate gets the vote of a term, first come first served")
def _() -> None:
    solo = Solo(term=2)
    assert solo.vote_request(3, (1, 1), sender=2) is True
    assert solo.vote_request(3, (9, 2), sender=3) is False


@sentence("5.2: the same candidate gets the same answer again")
def _() -> None:
    solo = Solo(term=2)
    assert solo.vote_request(3, (1, 1)) is True
    assert solo.vote_request(3, (1, 1)) is True


@sentence("5.2: a vote already given in the present term is kept")
def _() -> None:
    solo = Solo(term=3, vote=3)
    assert solo.vote_request(3, (9, 3), sender=2) is False
    assert solo.vote_request(3, (9, 3), sender=3) is True


@sentence("5.2: a newer term forgets the vote")
def _() -> None:
    solo = Solo(term=3, vote=3)
    assert solo.vote_request(4, (9, 3), sender=2) is True


@sentence("5.2: who follows a leader of the term gives no vote in it")
def _() -> None:
    solo = Solo()
    solo.heartbeat(3, sender=3)
    solo.state.sticky_until = 0
    assert solo.vote_request(3, (9, 3), sender=2) is False


@sentence("5.2: granting a vote restarts the election timer")
def _() -> None:
    solo = Solo()
    solo.tick(9)
    solo.vote_request(2, (1, 1))
    solo.tick(9)
    assert solo.state.role is Role.FOLLOWER


@sentence("5.2: refusing a vote does not restart the election timer")
def _() -> None:
    solo = Solo(terms=(1, 2))
    solo.tick(9)
    before = solo.state.elapsed
    solo.vote_request(2, (1, 1))
    assert solo.state.elapsed == before


@sentence("5.2: the winner sends heartbeats to all of the other servers")
def _() -> None:
    solo = Solo(range(1, 6)).lead(2, 3)
    assert [m.target for m in solo.sent_of(Heartbeat)] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", [AppendRequest, Heartbeat])
@pytest.mark.parametrize("pre", [True, False], ids=["pre-candidate", "candidate"])
def test_candidate_recognises_the_leader(kind: type, *, pre: bool) -> None:
    """5.2: a candidate that hears a leader of a term as large as its own returns to follower."""
    solo = Solo()
    if pre:
        solo.timeout()
    else:
        solo.campaign()
    solo.step(message_of(kind, solo.state.term))
    assert (solo.state.role, solo.state.leader) == (Role.FOLLOWER, PEER)


@sentence("5.2: a candidate refuses a leader of a smaller term and stays candidate")
def _() -> None:
    solo = Solo(term=4)
    solo.campaign()
    solo.append((1, 1), 2, term=4)
    assert solo.state.role is Role.CANDIDATE


@sentence("5.2: after a split vote each candidate times out and begins a new election")
def _() -> None:
    solo = Solo((1, 2, 3, 4))
    solo.campaign()
    solo.votes(2)
    solo.campaign()
    assert (solo.state.role, solo.state.term) == (Role.CANDIDATE, 3)


@sentence("5.2: votes of an earlier election do not count in the next")
def _() -> None:
    solo = Solo(range(1, 6))
    solo.campaign()
    solo.votes(2)
    solo.campaign()
    solo.votes(3)
    assert solo.state.role is Role.CANDIDATE
    solo.step(VoteReply(Term(2), FOURTH, ME, granted=True))
    assert solo.state.role is Role.CANDIDATE


@sentence("5.2: a candidate that a majority refused gives up")
def _() -> None:
    solo = Solo()
    solo.campaign()
    solo.votes(2, 3, granted=False)
    assert solo.state.role is Role.FOLLOWER


@sentence("5.2: election timeouts are chosen from a fixed interval, all of it")
def _() -> None:
    solo = Solo()
    seen = set()
    for _ in range(400):
        solo.heartbeat(2)
        seen.add(solo.state.election_timeout)
    assert seen == set(range(10, 20))


@sentence("5.2: two servers draw different timeouts")
def _() -> None:
    draws = [[], []]  # type: list[list[int]]
    for seed in range(2):
        solo = Solo(seed=seed)
        for _ in range(20):
            solo.heartbeat(2)
            draws[seed].append(solo.state.election_timeout)
    assert draws[0] != draws[1]


@sentence("5.2: votes of those who are no voters do not count")
def _() -> None:
    solo = Solo(range(1, 6), learners=(6, 7))
    solo.campaign()
    solo.votes(6, 7, 8, 9)
    assert solo.state.role is Role.CANDIDATE


# --- 5.3 log replication -----------------------------------------------------------------------


@sentence("5.3: a command is appended and sent in parallel to each of the other servers")
def _() -> None:
    solo = Solo(range(1, 6)).lead().settle()
    solo.propose(b"x")
    assert solo.out.proposed == 3
    assert [(m.target, m.prev_index, m.last_index) for m in solo.sent_of(SendAppend)] == [
        (node, 2, 3) for node in (2, 3, 4, 5)
    ]


@sentence("5.3: an entry stores the term in which the leader received it")
def _() -> None:
    solo = Solo(term=6).lead().settle()
    solo.propose(b"x")
    assert solo.terms() == [1, 7, 7]


@sentence("5.3: an entry is committed once a majority holds it")
def _() -> None:
    solo = Solo(range(1, 6)).lead().settle()
    solo.propose()
    assert solo.ack(2, 3).commit == 0
    assert solo.ack(3, 3).commit == 3


@sentence("5.3: committing an entry commits all before it, also those of earlier leaders")
def _() -> None:
    solo = Solo(terms=(1, 1, 2, 2), commit=1).lead()
    assert solo.ack(2, 5).commit == 5


@sentence("5.3: the leader keeps track of the highest committed index and sends it along")
def _() -> None:
    solo = Solo().lead().settle()
    solo.propose()
    solo.ack(2, 3)
    solo.propose()
    assert {m.commit for m in solo.sent_of(SendAppend)} == {3}
    solo.tick(2)
    assert {m.commit for m in solo.sent_of(Heartbeat)} == {3}


@sentence("5.3: once a follower learns that an entry is committed, it applies it")
def _() -> None:
    solo = Solo()
    solo.append((1, 1), 2, 2, term=2, commit=2)
    assert solo.out.commit == 2
    assert solo.heartbeat(2, commit=3).commit == 3


@sentence("5.3: an append names the index and term before its first entry")
def _() -> None:
    solo = Solo(terms=(1, 2, 2)).lead(2)
    order = solo.sent_of(SendAppend)[0]
    assert (order.prev_index, order.prev_term) == (3, 2)


@sentence("5.3: nextIndex starts just after the last entry of the leader's log")
def _() -> None:
    solo = Solo(terms=(1, 2, 2, 2))
    solo.lead()
    assert {p.next for p in solo.state.progress.values()} == {5}


@sentence("figure 2, AppendEntries 2: refused if there is no entry at prevLogIndex")
def _() -> None:
    solo = Solo(terms=(1, 1))
    solo.append((5, 2), 2, term=2)
    assert not solo.only(AppendReply).ok
    assert solo.terms() == [1, 1]


@sentence("figure 2, AppendEntries 2: refused if the entry at prevLogIndex has another term")
def _() -> None:
    solo = Solo(terms=(1, 1))
    solo.append((2, 2), 2, term=2)
    assert not solo.only(AppendReply).ok


@sentence("figure 2, AppendEntries 3: a conflicting entry and all after it are deleted")
def _() -> None:
    solo = Solo(terms=(1, 2, 2, 2), term=2)
    solo.append((1, 1), 3, term=3)
    assert solo.terms() == [1, 3]


@sentence("figure 2, AppendEntries 3: what does not conflict is not deleted")
def _() -> None:
    solo = Solo(terms=(1, 2, 2, 2))
    solo.append((1, 1), 2, term=2)
    assert solo.terms() == [1, 2, 2, 2]
    assert solo.only(AppendReply).index == 2


@sentence("figure 2, AppendEntries 4: only entries not already in the log are appended")
def _() -> None:
    solo = Solo(terms=(1, 2))
    solo.append((1, 1), 2, 2, 2, term=2)
    assert solo.out.persist is not None
    assert [entry.index for entry in solo.out.persist.entries] == [3, 4]


@sentence("figure 2, AppendEntries 5: commitIndex = min(leaderCommit, index of last new entry)")
def _() -> None:
    solo = Solo(terms=(1, 2, 2))
    assert solo.append((1, 1), 2, term=2, commit=9).commit == 2
    assert solo.append((2, 2), 2, term=2, commit=9).commit == 3


@sentence("figure 2, AppendEntries 5: a smaller leaderCommit does not lower commitIndex")
def _() -> None:
    solo = Solo(terms=(1, 1, 1), commit=3)
    assert solo.append((3, 1), 2, term=2, commit=1).commit == 0
    assert solo.state.commit == 3


@sentence("5.3: a heartbeat commits nothing that was not matched with this leader")
def _() -> None:
    solo = Solo(terms=(1, 2, 2))
    assert solo.heartbeat(3, commit=3).commit == 0
    solo.append((3, 2), term=3)
    assert solo.heartbeat(3, commit=3).commit == 3


@sentence("5.3: what matched an earlier leader need not match a new one")
def _() -> None:
    solo = Solo(terms=(1,))
    solo.append((1, 1), 2, 2, term=2, sender=2)
    assert solo.heartbeat(3, sender=3, commit=3).commit == 0


FIGURE_7 = [  # logs of possible followers when the leader of term 8 comes to power
    ("a", (1, 1, 1, 4, 4, 5, 5, 6, 6)),
    ("b", (1, 1, 1, 4)),
    ("c", (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6)),
    ("d", (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7)),
    ("e", (1, 1, 1, 4, 4, 4, 4)),
    ("f", (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3)),
]
LEADER_7 = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize(
    "terms",
    [
        pytest.param(log, id=f"figure 7, follower {name}, is brought in line")
        for name, log in FIGURE_7
    ],
)
def test_figure_7(terms: tuple[int, ...]) -> None:
    """The leader finds the last common entry, with at most one probe per term that differs."""
    leader = Solo((1, 2), terms=LEADER_7, term=7).lead()
    follower = Solo((1, 2), terms=terms, term=7)
    follower.core.state.node_id = PEER
    order = next(m for m in leader.sent if isinstance(m, SendAppend))
    for _probe in range(3):  # one per term that differs, not per entry
        entries = tuple(
            Entry(LogIndex(i), Term(leader.terms()[i - 1] or 0), int(EntryKind.BATCH), b"")
            for i in range(order.prev_index + 1, order.last_index + 1)
        )
        follower.step(
            AppendRequest(order.term, ME, PEER, order.prev_index, order.prev_term, entries,
                          order.commit, 0)
        )  # fmt: skip
        reply = follower.only(AppendReply)
        leader.step(reply)
        orders = leader.sent_of(SendAppend)
        order = orders[0] if orders else order
    assert follower.terms() == leader.terms()
    assert leader.state.match[PEER] == 11


@sentence("5.3: a refusal moves nextIndex back, over whole terms with the follower's hint")
def _() -> None:
    solo = Solo(terms=(1, 1, 4, 4, 5, 5)).lead()
    solo.refuse(2, 6, (5, 3))  # the follower's last entry of a term at most 5 is (5, 3)
    assert solo.only(SendAppend).prev_index == 2


@sentence("5.3: the leader retries append requests until all followers store all entries")
def _() -> None:
    solo = Solo().lead().settle()
    solo.propose()
    for _ in range(2):
        solo.tick(2)
        solo.echo(3, verified=2)
    assert solo.only(SendAppend).last_index == 3


@sentence("5.3: a leader never overwrites or deletes entries in its own log")
def _() -> None:
    solo = Solo(terms=(1, 2, 3)).lead()
    before = solo.terms()
    solo.refuse(2, 3, (1, 1))
    solo.refuse(3, 3, (0, 0))
    assert solo.terms() == before


@sentence("5.3: if the match is known, nextIndex never goes below it")
def _() -> None:
    solo = Solo(terms=(1, 2, 3)).lead().settle()
    solo.refuse(2, 2, (0, 0))
    assert solo.state.progress[PEER].next == solo.state.log.last_index + 1


# --- 5.4 safety --------------------------------------------------------------------------------

UP_TO_DATE = [
    ((3, 2), True, "the same log"),
    ((4, 2), True, "same last term, longer"),
    ((2, 2), False, "same last term, shorter"),
    ((1, 3), True, "later last term, though shorter"),
    ((9, 1), False, "earlier last term, though longer"),
]


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
@pytest.mark.parametrize(
    ("last", "granted"),
    [pytest.param(last, ok, id=f"5.4.1: {why}") for last, ok, why in UP_TO_DATE],
)
def test_up_to_date(last: tuple[int, int], *, granted: bool, pre: bool) -> None:
    """The voter denies its vote if its own log is more up-to-date than the candidate's."""
    assert Solo(terms=(1, 2, 2)).vote_request(4, last, pre=pre) is granted


@sentence("5.4.1: a vote request carries the candidate's last entry")
def _() -> None:
    solo = Solo(terms=(1, 2, 2))
    solo.timeout()
    assert {(m.last_index, m.last_term) for m in solo.sent_of(VoteRequest)} == {(3, 2)}


@sentence("5.4.1: after a snapshot the last entry is the snapshot's")
def _() -> None:
    solo = Solo(terms=(), floor=(7, 3), commit=7)
    solo.timeout()
    assert {(m.last_index, m.last_term) for m in solo.sent_of(VoteRequest)} == {(7, 3)}
    assert solo.vote_request(5, (6, 3), pre=True) is False


@sentence("5.4.2: entries of earlier terms are never committed by counting replicas")
def _() -> None:
    solo = Solo(range(1, 6), terms=(1, 2), commit=1).lead()
    for node in (2, 3, 4, 5):
        assert solo.ack(node, 2).commit == 0


@sentence("5.4.2: an entry of the own term commits all before it indirectly")
def _() -> None:
    solo = Solo(range(1, 6), terms=(1, 2), commit=1).lead()
    solo.ack(2, 2)
    solo.ack(3, 3)
    assert solo.ack(4, 3).commit == 3


@sentence("5.5: repeated append requests do no harm and are answered alike")
def _() -> None:
    solo = Solo()
    solo.append((1, 1), 2, 2, term=2, commit=2)
    first = solo.only(AppendReply)
    solo.append((1, 1), 2, 2, term=2, commit=2)
    again = solo.only(AppendReply)
    assert solo.out.persist is None
    assert first.ok
    assert again.ok
    assert again.index <= first.index


@sentence("figure 2: term, vote and log are on disk before any answer (thesis 3.8)")
def _() -> None:
    solo = Solo()
    solo.disk = False
    solo.vote_request(2, (1, 1), sender=3)
    assert solo.sent == []
    solo.finish()
    assert solo.only(VoteReply).granted
    solo.append((1, 1), 2, term=2, sender=2)
    assert solo.sent_of(AppendReply) == []
    solo.finish()
    assert solo.only(AppendReply).index == 2


@sentence("figure 2: the vote requests of a candidate wait for its vote for itself")
def _() -> None:
    solo = Solo()
    solo.disk = False
    solo.campaign()
    assert solo.sent == []
    solo.finish()
    assert len(solo.sent_of(VoteRequest)) == 2


@sentence("figure 2: votes that come before the own one is on disk wait for it")
def _() -> None:
    solo = Solo()
    solo.timeout()
    solo.disk = False
    solo.pre_votes(2)
    solo.votes(2, 3)
    assert solo.state.role is Role.CANDIDATE
    solo.finish()
    assert solo.state.role is Role.LEADER


# --- 7 log compaction --------------------------------------------------------------------------


def offer_of(index: int, term: int, *, members: Membership | None = None) -> SnapshotOffered:
    return SnapshotOffered(
        term=Term(3),
        sender=PEER,
        id=EntryId(LogIndex(index), Term(term)),
        membership=members or plain((1, 2, 3)),
        membership_index=LogIndex(1),
    )


@sentence("7: a snapshot of entries not in the log replaces all of it")
def _() -> None:
    solo = Solo(terms=(1, 1, 1))
    assert solo.step(offer_of(5, 2)).install == EntryId(LogIndex(5), Term(2))
    assert (solo.state.commit, solo.state.log.last_index, solo.state.persisted) == (5, 5, 5)


@sentence("7: a snapshot that conflicts with the log replaces all of it")
def _() -> None:
    solo = Solo(terms=(1, 1, 1, 1, 1, 1))
    assert solo.step(offer_of(5, 2)).install is not None
    assert solo.state.log.last_index == 5


@sentence("7: a snapshot of a prefix of the log keeps what follows")
def _() -> None:
    solo = Solo(terms=(1, 1, 2, 2))
    output = solo.step(offer_of(3, 2))
    assert (output.install, output.commit) == (None, 3)
    assert solo.terms() == [1, 1, 2, 2]


@sentence("7: a snapshot behind the commit index changes nothing")
def _() -> None:
    solo = Solo(terms=(1, 1, 2, 2), commit=4)
    output = solo.step(offer_of(3, 2))
    assert (output.install, output.commit) == (None, 0)
    assert solo.state.commit == 4


@sentence("7: a snapshot of a deposed leader is ignored")
def _() -> None:
    solo = Solo(term=5)
    assert solo.step(offer_of(9, 2)).install is None
    assert solo.state.leader == 0


@sentence("7: a snapshot's answer waits for the disk")
def _() -> None:
    solo = Solo()
    solo.disk = False
    solo.step(offer_of(5, 2))
    assert solo.sent_of(AppendReply) == []
    solo.finish()
    assert solo.only(AppendReply).index == 5


@sentence("7: the snapshot's configuration holds from then on")
def _() -> None:
    solo = Solo((1, 2))
    output = solo.step(offer_of(5, 2, members=plain((1, 2, 4))))
    assert output.membership == plain((1, 2, 4))


@sentence("7: a follower that needs entries already cut is sent a snapshot")
def _() -> None:
    solo = Solo(terms=(3, 3), floor=(6, 2), commit=6).lead()
    solo.refuse(2, 8, (4, 2))
    solo.refuse(2, 6, (4, 2))
    assert solo.out.snapshots == (PEER,)
    assert solo.sent_of(SendAppend) == []


# --- 8, 3.10: leaders come and go --------------------------------------------------------------


@sentence("8: a new leader commits a no-op of its own term first")
def _() -> None:
    solo = Solo(terms=(1, 1), commit=1)
    solo.campaign()
    solo.votes(2)
    persisted = solo.out.persist
    assert persisted is not None
    assert [(e.index, e.term, e.kind) for e in persisted.entries] == [(3, 2, EntryKind.NOOP)]


@sentence("10.2.1: the leader writes to its disk while the followers write to theirs")
def _() -> None:
    solo = Solo().lead().settle()
    solo.disk = False
    solo.propose()
    assert len(solo.sent_of(SendAppend)) == 2
    assert solo.state.persisted == 2


@sentence("10.2.1: the leader may commit before its own disk has the entry")
def _() -> None:
    solo = Solo().lead().settle()
    solo.disk = False
    solo.propose()
    assert solo.ack(2, 3).commit == 0
    assert solo.ack(3, 3).commit == 3


@sentence("10.2.1: the leader counts itself only after its own write")
def _() -> None:
    solo = Solo().lead().settle()
    solo.disk = False
    solo.propose()
    solo.ack(2, 3)
    assert solo.state.commit == 2
    solo.finish()
    assert solo.state.commit == 3


@sentence("9.6: a pre-candidate does not raise its term")
def _() -> None:
    solo = Solo(term=4)
    solo.timeout()
    assert (solo.state.role, solo.state.term) == (Role.PRE_CANDIDATE, 4)
    assert {(m.term, m.pre) for m in solo.sent_of(VoteRequest)} == {(5, True)}
    assert solo.out.persist is None


@sentence("9.6: granting a pre-vote changes neither term nor vote, and may be done for several")
def _() -> None:
    solo = Solo(term=4)
    assert solo.vote_request(5, (1, 1), sender=2, pre=True) is True
    assert solo.vote_request(5, (1, 1), sender=3, pre=True) is True
    assert (solo.state.term, solo.state.vote) == (4, 0)


@sentence("9.6: an election begins only when a majority would vote for the candidate")
def _() -> None:
    solo = Solo(range(1, 6))
    solo.timeout()
    solo.pre_votes(2)
    assert solo.state.role is Role.PRE_CANDIDATE
    solo.pre_votes(2)
    assert solo.state.role is Role.PRE_CANDIDATE
    solo.pre_votes(3)
    assert solo.state.role is Role.CANDIDATE


@sentence("9.6: pre-votes are no votes")
def _() -> None:
    solo = Solo()
    solo.campaign()
    solo.step(VoteReply(Term(3), THIRD, ME, granted=True, pre=True))
    assert (solo.state.role, solo.state.term) == (Role.CANDIDATE, 2)


@sentence("9.6: a refused pre-vote with a newer term brings that term")
def _() -> None:
    solo = Solo(term=2)
    solo.timeout()
    solo.step(VoteReply(Term(6), THIRD, ME, granted=False, pre=True))
    assert (solo.state.role, solo.state.term) == (Role.FOLLOWER, 6)


@pytest.mark.parametrize("case", SENTENCES)
def test_sentence(case: Callable[[], None]) -> None:
    case()


def test_there_are_enough() -> None:
    assert len(SENTENCES) >= 60
