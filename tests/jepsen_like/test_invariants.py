"""Each cluster-wide invariant, shown a history that breaks it and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from msgspec.structs import replace

from jepsen_like.simulation.claims import Before, Disk, majority, quorum
from jepsen_like.simulation.invariants import Invariants
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.config import CoreConfig
from quorate.consensus.core import Core
from quorate.consensus.membership import Membership, MembershipHistory, encode_membership
from quorate.consensus.messages import (
    AppendReply,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Role
from quorate.consensus.state import PendingPersist, State

NODES = (1, 2, 3)
MEMBERS = Membership(voters=tuple(map(NodeId, NODES)))


def state_of(
    node: int, *, term: int = 1, terms: tuple[int, ...] = (1,), commit: int = 1, vote: int = 0
) -> State:
    """As recovered from a disk that holds entries of *terms*."""
    core = Core(
        CoreConfig(node_id=NodeId(node)),
        Random(node),
        hard_state=HardState(Term(term), NodeId(vote), LogIndex(commit)),
        floor=EntryId(LogIndex(0), Term(0)),
        terms=[Term(each) for each in terms],
        sizes_bytes=[1] * len(terms),
        members=MembershipHistory(MEMBERS, LogIndex(1)),
    )
    return core.state


def entry(index: int, term: int, payload: bytes = b"x") -> Entry:
    return Entry(LogIndex(index), Term(term), int(EntryKind.BATCH), payload)


class Fake:
    """Three disks that hold entry 1 of term 1, and the invariants that watch them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.invariants = Invariants(lambda: self.now_s)
        self.disks: dict[int, Disk] = {}
        for node in NODES:
            self.start(node)

    def start(self, node: int, checkpoint: int = 0, **state: object) -> Disk:
        made = state_of(node, **state)  # type: ignore[arg-type]
        disk = self.invariants.started(node, f"i{node}", made, checkpoint)
        self.disks[node] = disk
        return disk

    def wait(self, node: int, ticks: int) -> None:
        """So much time passes, and the clock of *node* says so."""
        state = self.disks[node].state
        self.now_s += ticks * state.config.tick_ms / 1000
        state.tick += ticks
        self.invariants.time_passed(self.disks[node])

    def append(self, node: int, *entries: Entry, durable: bool = True) -> None:
        """Of the node's own term, or an older one."""
        state = self.disks[node].state
        before = Before(state)
        for each in entries:
            state.log.append(each)
        if durable:
            state.persisted = state.log.last_index
        self.invariants.stepped(self.disks[node], before, entries)

    def commit(self, node: int, index: int) -> None:
        state = self.disks[node].state
        before = Before(state)
        state.commit = LogIndex(index)
        self.invariants.stepped(self.disks[node], before, ())

    def lead(self, node: int, term: int, voters: tuple[int, ...] = NODES) -> None:
        state = self.disks[node].state
        for voter in voters:
            held = self.disks[voter]
            self.invariants.votes.setdefault((voter, held.incarnation, term), node)
        before = Before(state)
        state.term, state.vote, state.role = Term(term), NodeId(node), Role.LEADER
        self.invariants.stepped(self.disks[node], before, ())

    @property
    def names(self) -> list[str]:
        return [violation.name for violation in self.invariants.found]


def test_a_sound_history_breaks_nothing() -> None:
    fake = Fake()
    fake.lead(1, 2)
    for node in NODES[:2]:
        fake.append(node, entry(2, 2))
    fake.commit(1, 2)
    fake.invariants.applied(fake.disks[1], 2, 2, b"x")
    fake.invariants.state_at(fake.disks[1], 2, b"h")
    fake.invariants.execute(fake.disks[1], 7, 1, 2)
    fake.invariants.answered(fake.disks[1], 7, 1, 2)
    fake.commit(2, 2)
    fake.invariants.execute(fake.disks[2], 7, 1, 2)
    fake.invariants.read(fake.disks[2], fake.invariants.commit_max, 2)
    fake.invariants.ordered(fake.disks[1], 1, 2)
    fake.lead(2, 3)
    fake.start(1, 1, term=2, terms=(1, 2), commit=1, vote=1)
    assert fake.names == []


def two_leaders(fake: Fake) -> None:
    fake.lead(1, 2)
    fake.lead(2, 2)


def log_matching(fake: Fake) -> None:
    fake.append(1, entry(2, 1, b"a"))
    fake.append(2, entry(2, 1, b"b"))


def leader_completeness(fake: Fake) -> None:
    for node in NODES[:2]:
        fake.append(node, entry(2, 1))
    fake.commit(1, 2)
    fake.lead(3, 2)


def committed_changed(fake: Fake) -> None:
    for node in NODES[:2]:
        fake.append(node, entry(2, 1))
    fake.commit(1, 2)
    fake.disks[3].state.term = Term(2)
    fake.append(3, entry(2, 2))
    fake.commit(3, 2)


def committed_not_durable(fake: Fake) -> None:
    fake.append(1, entry(2, 1))
    fake.append(2, entry(2, 1), durable=False)
    fake.commit(1, 2)


def two_votes(fake: Fake) -> None:
    fake.start(1, term=2, vote=2)
    fake.start(1, term=2, vote=3)


def durable_lost_entry(fake: Fake) -> None:
    fake.append(1, entry(2, 1))
    fake.start(1)


def durable_lost_term(fake: Fake) -> None:
    fake.start(1, term=5)
    fake.start(1, term=4)


def checkpoint_went_back(fake: Fake) -> None:
    fake.append(1, entry(2, 1))
    fake.append(2, entry(2, 1))
    fake.commit(1, 2)
    fake.invariants.ordered(fake.disks[1], 2, 2)
    fake.start(1, terms=(1, 1), commit=1)


def applied_not_committed(fake: Fake) -> None:
    fake.invariants.applied(fake.disks[1], 2, 1, b"x")


def applied_another(fake: Fake) -> None:
    for node in NODES:
        fake.append(node, entry(2, 1, b"a"))
    fake.commit(1, 2)
    fake.invariants.applied(fake.disks[2], 2, 1, b"b")


def state_differs(fake: Fake) -> None:
    fake.invariants.state_at(fake.disks[1], 1, b"a")
    fake.invariants.state_at(fake.disks[2], 1, b"b")


def acknowledged_early(fake: Fake) -> None:
    fake.invariants.answered(fake.disks[1], 0, 1, 2)


def acknowledged_elsewhere(fake: Fake) -> None:
    fake.invariants.execute(fake.disks[1], 7, 1, 1)
    fake.append(1, entry(2, 1))
    fake.append(2, entry(2, 1))
    fake.commit(1, 2)
    fake.invariants.answered(fake.disks[1], 7, 1, 2)


def executed_twice(fake: Fake) -> None:
    fake.invariants.execute(fake.disks[1], 7, 1, 1)
    fake.invariants.execute(fake.disks[2], 7, 1, 2)


def stale_read(fake: Fake) -> None:
    fake.invariants.read(fake.disks[1], 5, 4)


def membership_differs(fake: Fake) -> None:
    changed = Membership(voters=(NodeId(1), NodeId(2)))
    payload = encode_membership(changed)
    made = Entry(LogIndex(2), Term(1), int(EntryKind.MEMBERSHIP), payload)
    for node in NODES:
        fake.append(node, made)
    fake.disks[1].state.members.append(LogIndex(2), changed)
    fake.commit(1, 2)
    fake.commit(2, 2)  # it still believes in the old configuration


def wiped_admitted(fake: Fake) -> None:
    fake.disks[1] = fake.invariants.started(1, "new", state_of(1), 0)
    fake.disks[1].state.leader = NodeId(2)
    fake.append(1, entry(2, 1))


def removed_early(fake: Fake) -> None:
    """Only a majority of the old voters, itself among them, can end the joint configuration."""
    fake.lead(1, 2)
    joint = replace(MEMBERS, voters=MEMBERS.voters[1:], voters_old=MEMBERS.voters)
    made = Entry(LogIndex(2), Term(2), int(EntryKind.MEMBERSHIP), encode_membership(joint))
    for node in NODES:
        fake.append(node, made)
        fake.disks[node].state.members.append(LogIndex(2), joint)
    fake.commit(1, 2)
    fake.invariants.removed(1)


@pytest.mark.parametrize("at", [1, 2], ids=["committed", "not-committed"])
def test_only_who_is_known_to_be_alone_need_not_wait(at: int) -> None:
    fake = Fake()
    disk = fake.disks[1]
    disk.state.members = MembershipHistory(Membership(voters=(NodeId(1),)), LogIndex(at))
    disk.promised_s = 0.0
    disk.state.tick += disk.state.config.election_ticks_max
    fake.invariants.granted(disk, 1)
    assert fake.names == ([] if at == 1 else ["lease-promise"])


def elected_without_votes(fake: Fake) -> None:
    fake.lead(1, 2, voters=(1,))


def elected_by_some_founders(fake: Fake) -> None:
    """Who has not met the third may have met a second that forgot what it promised."""
    state = fake.disks[1].state
    founders = replace(MEMBERS, incarnations=tuple((NodeId(node), "") for node in NODES))
    state.members = MembershipHistory(founders, LogIndex(1))
    fake.lead(1, 2, voters=(1, 2))


def stale_ack(fake: Fake) -> None:
    fake.lead(1, 2)
    state = fake.disks[1].state
    state.match[NodeId(2)] = LogIndex(1)
    fake.invariants.answered_by(fake.disks[1], heartbeat_reply(term=1, round_number=1), None)


def vote_against_a_promise(fake: Fake) -> None:
    fake.invariants.granted(fake.disks[1], 2)
    fake.invariants.promised(fake.disks[1])
    fake.wait(1, 0)
    fake.wait(1, fake.disks[1].state.config.election_ticks_min)
    fake.invariants.granted(fake.disks[1], 2)
    assert fake.names == []
    fake.invariants.promised(fake.disks[1])
    fake.invariants.granted(fake.disks[1], 2)


def lease_without_promises(fake: Fake) -> None:
    fake.lead(1, 2)
    fake.invariants.promised(fake.disks[2])
    fake.invariants.leased(fake.disks[1])
    assert fake.names == []
    fake.invariants.time_passed(fake.disks[2])
    fake.disks[2].state.tick = fake.disks[2].promised_until
    fake.invariants.leased(fake.disks[1])


@pytest.mark.parametrize("joint", [True, False])
def test_a_lease_needs_promises_of_the_voters_there_are(*, joint: bool) -> None:
    fake = Fake()
    fake.lead(1, 2)
    fake.invariants.promised(fake.disks[2])
    state, old = fake.disks[1].state, MEMBERS.voters if joint else ()
    changed = Membership(voters=tuple(map(NodeId, (1, 3, 4))), voters_old=old)
    state.members = MembershipHistory(changed, LogIndex(1))
    fake.start(4)
    fake.invariants.promised(fake.disks[4])
    fake.invariants.leased(fake.disks[1])
    assert fake.names == []
    fake.disks[4].promised_lately, fake.disks[4].promised_until = False, 0
    fake.invariants.leased(fake.disks[1])
    assert fake.names == ["lease-not-backed"]


def test_a_promise_counts_from_the_tick_after_it() -> None:
    fake = Fake()
    disk = fake.disks[1]
    least = disk.state.config.election_ticks_min
    fake.invariants.promised(disk)
    fake.wait(1, least)
    fake.wait(1, least - 1)
    fake.invariants.granted(disk, 1)
    assert fake.names == ["lease-promise"]
    fake.wait(1, 1)
    fake.invariants.granted(disk, 1)
    assert fake.names == ["lease-promise"]


def promise_by_a_fast_clock(fake: Fake) -> None:
    disk = fake.disks[1]
    least = disk.state.config.election_ticks_min
    fake.invariants.promised(disk)
    fake.wait(1, 0)
    disk.state.tick += least // 20
    fake.wait(1, least - least // 20)
    fake.invariants.granted(disk, 2)
    assert fake.names == []
    fake.invariants.promised(disk)
    fake.wait(1, 0)
    disk.state.tick += least // 5
    fake.wait(1, least - least // 5)
    fake.invariants.granted(disk, 2)


def lease_after_a_transfer(fake: Fake) -> None:
    fake.lead(1, 2)
    fake.disks[1].written = (2, 1, 1)
    fake.invariants.promised(fake.disks[2])
    fake.invariants.sent(fake.disks[1], TimeoutNow(Term(2), NodeId(1), NodeId(3)))
    assert fake.names == []
    fake.invariants.leased(fake.disks[1])


def stale_echo(fake: Fake) -> None:
    fake.lead(1, 2)
    fake.disks[1].state.acked_rounds[NodeId(2)] = 7
    fake.invariants.answered_by(fake.disks[1], heartbeat_reply(term=2, round_number=6), None)


def heartbeat_reply(term: int, round_number: int) -> HeartbeatReply:
    return HeartbeatReply(
        term=Term(term), sender=NodeId(2), target=NodeId(1), round=round_number,
        verified=LogIndex(1), sticky=False,
    )  # fmt: skip


def committed_dropped(fake: Fake) -> None:
    for node in NODES[:2]:
        fake.append(node, entry(2, 1))
    fake.commit(1, 2)
    state = fake.disks[2].state
    before = Before(state)
    before.endangered = {2: 1}
    state.truncate(LogIndex(1))
    fake.invariants.stepped(fake.disks[2], before, ())


def committed_by_counting(fake: Fake) -> None:
    for node in NODES[:2]:
        fake.append(node, entry(2, 1))
    fake.lead(1, 2)
    fake.commit(1, 2)


def changed_twice(fake: Fake) -> None:
    fake.lead(1, 2)
    payload = encode_membership(MEMBERS)
    made = Entry(LogIndex(2), Term(2), int(EntryKind.MEMBERSHIP), payload)
    fake.append(1, made)  # nothing of its own term is committed


def leader_without_quorum(fake: Fake) -> None:
    fake.lead(1, 2)
    fake.invariants.ticked(fake.disks[1])
    fake.disks[1].state.tick += 1000
    fake.invariants.ticked(fake.disks[1])


def leader_with_stalled_disk(fake: Fake) -> None:
    fake.lead(1, 2)
    state = fake.disks[1].state
    hard = HardState(Term(2), NodeId(1), LogIndex(1))
    state.pending_persists.append(PendingPersist(1, 0, LogIndex(1), hard))
    state.tick += 1000
    fake.invariants.ticked(fake.disks[1])


def removed_leader(fake: Fake) -> None:
    fake.lead(1, 2)
    state = fake.disks[1].state
    state.members.append(LogIndex(2), Membership(voters=(NodeId(2), NodeId(3))))
    state.commit = LogIndex(2)
    state.log.append(entry(2, 2))
    fake.append(1)


def damage_unnoticed(fake: Fake) -> None:
    fake.append(1, entry(2, 1))
    fake.invariants.tampered(1, damaged=True)
    fake.start(1)


def checkpoint_ahead_of_log(fake: Fake) -> None:
    fake.append(1, entry(2, 1), durable=False)
    fake.invariants.ordered(fake.disks[1], 2, 2)


def lease_early(fake: Fake) -> None:
    fake.invariants.ran_out(fake.disks[1], 2, 5000, [])
    fake.invariants.ran_out(fake.disks[1], 2, 6000, [3])
    assert fake.names == []
    fake.invariants.ran_out(fake.disks[2], 3, 7000, [])
    fake.invariants.ran_out(fake.disks[2], 3, 7999, [4])


def order(fake: Fake) -> None:
    fake.invariants.ordered(fake.disks[1], 1, 0)


BREACHES: dict[Callable[[Fake], None], str] = {
    two_leaders: "two-leaders",
    log_matching: "log-matching",
    leader_completeness: "leader-completeness",
    committed_changed: "committed-changed",
    committed_not_durable: "committed-not-durable",
    two_votes: "two-votes",
    durable_lost_entry: "durable-lost",
    durable_lost_term: "durable-lost",
    checkpoint_went_back: "checkpoint-went-back",
    applied_not_committed: "applied-not-committed",
    applied_another: "applied-not-committed",
    state_differs: "state-differs",
    acknowledged_early: "acknowledged-early",
    acknowledged_elsewhere: "acknowledged-early",
    executed_twice: "executed-twice",
    stale_read: "stale-read",
    membership_differs: "membership-differs",
    order: "order",
    wiped_admitted: "wiped-admitted",
    removed_early: "removed-early",
    elected_without_votes: "elected-without-votes",
    elected_by_some_founders: "elected-without-votes",
    vote_against_a_promise: "lease-promise",
    promise_by_a_fast_clock: "lease-promise",
    lease_without_promises: "lease-not-backed",
    lease_after_a_transfer: "lease-not-backed",
    stale_ack: "stale-answer",
    stale_echo: "stale-answer",
    committed_dropped: "committed-dropped",
    committed_by_counting: "commit-rule",
    changed_twice: "change-rule",
    leader_without_quorum: "zombie-leader",
    leader_with_stalled_disk: "zombie-leader",
    removed_leader: "zombie-leader",
    damage_unnoticed: "durable-lost",
    checkpoint_ahead_of_log: "order",
    lease_early: "lease-early",
}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_each_breach_is_found_and_named(breach: Callable[[Fake], None]) -> None:
    fake = Fake()
    assert fake.names == []
    breach(fake)
    assert BREACHES[breach] in fake.names


@pytest.mark.parametrize(
    "message",
    [
        VoteRequest(Term(2), NodeId(1), NodeId(2), LogIndex(1), Term(1)),
        VoteReply(Term(1), NodeId(1), NodeId(2), granted=True),
        AppendReply(
            term=Term(1), sender=NodeId(1), target=NodeId(2), ok=True, index=LogIndex(2),
            hint_index=LogIndex(0), hint_term=Term(0), round=0,
        ),
        HeartbeatReply(
            term=Term(1), sender=NodeId(1), target=NodeId(2), round=1, verified=LogIndex(2),
            sticky=False, durable=LogIndex(2),
        ),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_a_promise_before_the_disk_vouches_for_it(message: VoteRequest) -> None:
    fake = Fake()
    fake.invariants.sent(fake.disks[1], message)
    assert fake.names == ["promised-not-durable"]
    kept = Fake()
    kept.disks[1].written = (2, 1, 2)
    kept.invariants.sent(kept.disks[1], message)
    assert kept.names == []


def test_a_disk_that_was_tampered_with_makes_no_claims() -> None:
    fake = Fake()
    fake.append(1, entry(2, 1))
    fake.invariants.tampered(1)
    assert not fake.disks[1].holds(2, 1)
    fake.start(1)
    assert fake.names == []


def test_quorums() -> None:
    assert majority((1, 2, 3), (1, 2))
    assert not majority((1, 2, 3, 4), (1, 2))
    joint = Membership(voters=(NodeId(1), NodeId(2)), voters_old=(NodeId(3),))
    assert quorum(joint, (1, 2, 3))
    assert not quorum(joint, (1, 2))
