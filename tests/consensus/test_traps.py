"""The traps in which other implementations were caught, as far as the core is concerned: one test
per trap, named by it, with the source of the lesson."""

from __future__ import annotations

import msgspec
import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import (
    ChangeMembership,
    Compacted,
    PeerLost,
    Persisted,
    ReadIndex,
    SnapshotOffered,
    Tick,
    TransferLeadership,
)
from quorate.consensus.membership import ChangeKind, MemberChange, Membership
from quorate.consensus.messages import (
    AppendReply,
    Entry,
    EntryId,
    EntryKind,
    HeartbeatReply,
    ReadIndexReply,
    TimeoutNow,
    VoteReply,
    validate,
)
from quorate.consensus.output import ReadState, Refusal, Role
from quorate.errors import InvariantViolationError
from tests.consensus.harness import Cluster, Member, Read, plain, quick_config
from tests.consensus.solo import FIFTH, FOURTH, ME, PEER, THIRD, Solo, append_request
from tests.consensus.wiping import run_wiping


def own_entry_committed(member: Member | None) -> bool:
    if member is None:
        return False
    state = member.core.state
    return state.log.term_at(state.commit) == state.term


def led(cluster: Cluster) -> Member:
    """The cluster's leader, with an entry of its term committed."""
    cluster.run_until(lambda: own_entry_committed(cluster.leader()), 200, "a leader")
    leader = cluster.leader()
    assert leader is not None
    return leader


def isolate(cluster: Cluster, *nodes: NodeId) -> None:
    for node in nodes:
        for other in cluster.members:
            if other not in nodes:
                cluster.blocked[node, other] = cluster.blocked[other, node] = True


@pytest.mark.parametrize("reached_disk", [0, 1])
def test_trap_1_vote_not_on_disk_before_the_reply(reached_disk: int) -> None:
    """Raft figure 2; PySyncObj issue 84. A crash at any point leaves one vote per term."""
    cluster = Cluster((1, 2, 3))
    cluster.faults.disk_max = 5
    cluster.run(15)
    for _ in range(12):
        for member in cluster.members.values():
            cluster.run(3)
            member.crash(reached_disk)
            member.start()
    cluster.run(60)  # ClusterChecks has watched every vote and every leader
    assert len(cluster.checks.leaders) >= 1


def test_trap_2_only_entries_of_the_own_term_commit_by_counting() -> None:
    """Raft 5.4.2, figure 8; LogCabin issue 44. The whole figure is scenarios/figure_8.txt."""
    solo = Solo(range(1, 6), terms=(1, 2)).lead()
    for node in (2, 3, 4, 5):
        assert solo.ack(node, 2).commit == 0
    solo.ack(2, 3)
    assert solo.ack(3, 3).commit == 3


def test_trap_3_matching_entries_are_never_truncated() -> None:
    """hashicorp/raft issue 113. Whatever prefix of its appends arrives again, the tail stays."""
    entries = [append_request((i, 1 if i == 1 else 2), 2, term=2, commit=i) for i in range(1, 8)]
    solo = Solo()
    for request in entries:
        solo.step(request)
    for request in (*reversed(entries), append_request((1, 1), 2, 2, term=2)):
        solo.step(request)
        assert solo.state.log.last_index == 8
        assert solo.out.persist is None


@pytest.mark.parametrize("via", ["heartbeat", "append", "read", "snapshot"])
def test_trap_4_commit_past_the_last_verified_index(via: str) -> None:
    """ra issue 508; PySyncObj acknowledges what no replica holds. A deposed leader with entries of
    its own does not commit them because the new leader's index is larger."""
    solo = Solo().lead().settle()
    solo.propose(b"mine")
    solo.propose(b"mine too")
    solo.heartbeat(9, sender=2)
    match via:
        case "heartbeat":
            solo.heartbeat(9, sender=2, commit=4)
        case "append":
            solo.append((2, 2), term=9, commit=4)
        case "read":
            from_leader = ReadState(5, LogIndex(4))
            solo.step(ReadIndex(5))
            reply = ReadIndexReply(Term(9), PEER, ME, 5, LogIndex(4))
            assert solo.step(reply).read_states == (from_leader,)
        case _:
            offer = SnapshotOffered(Term(9), PEER, EntryId(LogIndex(4), Term(8)),
                                    plain((1, 2, 3)), LogIndex(1))  # fmt: skip
            assert solo.step(offer).install is not None
            assert solo.state.log.last_term == 8
            return
    assert solo.state.commit == 2


def test_trap_5_an_answer_of_an_earlier_leadership_counts_for_nothing() -> None:
    """PySyncObj counts acknowledgements without terms."""
    solo = Solo().lead()
    old = solo.append_reply(2, 9, ok=True)
    solo.heartbeat(5)
    solo.lead()
    assert solo.state.term == 6
    assert solo.step(old).commit == 0
    assert solo.state.match.get(PEER, 0) == 0


def test_trap_5_a_vote_delivered_twice_is_one_vote() -> None:
    """PySyncObj: one vote, twice on the wire, makes a leader among five."""
    solo = Solo(range(1, 6))
    solo.campaign()
    for _ in range(5):
        solo.step(VoteReply(Term(2), PEER, ME, granted=True))
    assert solo.state.role is Role.CANDIDATE


def test_trap_6_a_change_before_the_own_no_op_is_committed() -> None:
    """raft-dev, 2015: two leaders change the membership in turn, and majorities that do not meet
    commit. The second one must first commit an entry of its own term, which ends the first."""
    cluster = Cluster((1, 2, 3, 4))
    one = led(cluster)
    isolate(cluster, one.node)
    add = MemberChange(ChangeKind.ADD_LEARNER, NodeId(5), "n5:1")
    assert one.step(ChangeMembership((add,))).refusal is None
    cluster.run_until(lambda: cluster.leader() not in (one, None), 100, "another leader")
    two = cluster.leader()
    assert two is not None
    remove = ChangeMembership((MemberChange(ChangeKind.REMOVE, one.node),))
    if two.commit < two.core.state.log.last_index:
        assert two.step(remove).refusal is Refusal.TERM_NOT_COMMITTED
    led(cluster)
    assert two.step(remove).refusal is None
    cluster.run(30)
    cluster.blocked.clear()
    cluster.run(60)
    assert two.core.state.membership.voters == tuple(n for n in (1, 2, 3, 4) if n != one.node)
    assert one.core.state.members.at(LogIndex(one.commit)).learners == ()


def test_trap_7_several_changes_at_once() -> None:
    """cowsql/raft issue 150; PySyncObj accepts six uncommitted changes."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    isolate(cluster, leader.node)
    changes = [MemberChange(ChangeKind.ADD_LEARNER, NodeId(n), f"n{n}:1") for n in (7, 8, 9)]
    refusals = [leader.step(ChangeMembership((change,))).refusal for change in changes]
    assert refusals == [None, Refusal.CHANGE_PENDING, Refusal.CHANGE_PENDING]


def test_trap_7_a_removed_voter_does_not_disturb() -> None:
    """Thesis 4.2.3: it never learns that it was removed, and campaigns for ever."""
    cluster = Cluster((1, 2, 3, 4))
    leader = led(cluster)
    victim = next(node for node in cluster.members if node != leader.node)
    isolate(cluster, victim)
    cluster.run(5)
    leader.step(ChangeMembership((MemberChange(ChangeKind.REMOVE, victim),)))
    cluster.run(30)
    cluster.blocked.clear()
    term = leader.core.state.term
    cluster.run(500)
    assert leader.leads
    assert leader.core.state.term == term
    assert not cluster.members[victim].leads


def test_trap_8_the_configuration_at_an_index_is_the_same_everywhere() -> None:
    """openraft issue 1808, etcd issue 11510. A member that slept through changes and gets them in
    a snapshot follows the configuration of the snapshot, not its own stale one."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    asleep = next(node for node in cluster.members if node != leader.node)
    isolate(cluster, asleep)
    joiner = cluster.add(NodeId(4))
    joiner.start()
    add = MemberChange(ChangeKind.ADD_LEARNER, NodeId(4), "n4:1")
    leader.step(ChangeMembership((add,)))
    cluster.run(20)
    leader.step(ChangeMembership((MemberChange(ChangeKind.PROMOTE, NodeId(4)),)))
    cluster.run(20)
    leader.checkpoint()
    leader.compact(0)
    cluster.blocked.clear()
    cluster.run(60)
    sleeper = cluster.members[asleep]
    assert sleeper.disk.floor.index > 1, "a snapshot was installed"
    assert sleeper.core.state.membership.voters == (1, 2, 3, 4)
    sleeper.crash(0)
    sleeper.start()
    assert sleeper.core.state.membership.voters == (1, 2, 3, 4)


def test_trap_9_an_older_snapshot_over_newer_state() -> None:
    """Raft 7; RedisLabs/raft issue 49. Neither the state nor the log go back."""
    solo = Solo(terms=(1, 1, 2, 2), commit=4)
    offer = SnapshotOffered(Term(3), PEER, EntryId(LogIndex(2), Term(1)), plain((1, 2)),
                            LogIndex(1))  # fmt: skip
    output = solo.step(offer)
    assert (output.install, output.persist and output.persist.reset) == (None, None)
    assert solo.state.membership.voters == (1, 2, 3)
    assert solo.only(AppendReply).index == 4


def test_trap_10_a_stale_read_at_a_leader_that_was_asleep() -> None:
    """etcd issue 20418. Paused, deposed, awake again: it must not answer from its own memory."""
    cluster = Cluster((1, 2, 3))
    old = led(cluster)
    old.paused = True
    cluster.run_until(lambda: cluster.leader() is not old, 100, "a new leader")
    new = led(cluster)
    cluster.propose(new, b"new")
    cluster.run(20)
    old.paused = False
    cluster.reads[1] = Read(old.node, cluster.checks.commit_max)
    old.step(ReadIndex(1, old.now_ms))  # before anything in its sockets is read
    cluster.run(30)
    assert 1 not in cluster.reads, "refused, or served at the right index: checked when granted"


def test_trap_10_a_read_before_the_own_term_is_committed() -> None:
    solo = Solo(terms=(1, 1, 1), commit=1).lead()
    solo.step(ReadIndex(1))
    solo.echo(2, verified=1)
    assert solo.out.read_states == ()


def test_trap_11_a_lease_that_outlives_a_transfer() -> None:
    """openraft leader-lease notes. The target overrides the promise on which the lease stands."""
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.lead().settle()
    solo.tick(2)
    solo.echo(2, sticky=True)
    solo.step(TransferLeadership(THIRD))
    assert solo.only(TimeoutNow).target == THIRD
    assert solo.step(ReadIndex(1, solo.now_ms)).read_states == ()


def test_trap_11_a_lease_counted_from_the_answer() -> None:
    """tikv issue 964. The promise of a voter began when the heartbeat was on its way."""
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.lead().settle()
    solo.tick(2)
    round_number, sent_ms = solo.state.round, solo.now_ms
    solo.tick(1)
    at = LogIndex(2)
    solo.step(
        HeartbeatReply(
            solo.state.term, PEER, ME, round_number, at, sticky=True, durable=at, promise_ms=100
        )
    )
    assert solo.state.lease_until_ms == sent_ms + solo.state.config.lease_ms


def test_trap_14_a_leader_with_a_stalled_disk() -> None:
    """hashicorp/raft issue 503, etcd issue 13527: it keeps sending heartbeats, and nobody else may
    lead. Here leadership moves, and nothing acknowledged is lost."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    leader.disk.stalled_until = cluster.now + 400
    cluster.propose(leader, b"kept")
    cluster.run_until(
        lambda: (m := cluster.leader()) is not None and m is not leader, 150, "leadership moves"
    )
    new = led(cluster)
    assert any(entry.payload == b"kept" for entry in new.log)
    cluster.run(250)
    assert not leader.leads


def connect_only(cluster: Cluster, links: list[tuple[int, int]]) -> None:
    allowed = {frozenset(link) for link in links}
    for one in cluster.members:
        for other in cluster.members:
            cluster.blocked[one, other] = frozenset((one, other)) not in allowed


TOPOLOGIES = {
    "bridge": [(1, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 5)],
    "ring of majorities": [(1, 2), (2, 3), (3, 4), (4, 5), (5, 1)],
    "hub": [(3, 1), (3, 2), (3, 4), (3, 5)],
    "one link down": [(a, b) for a in range(1, 6) for b in range(a + 1, 6) if (a, b) != (1, 5)],
}


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("first", [1, 3])
def test_trap_21_partial_partitions(name: str, first: int) -> None:
    """Cloudflare, November 2020; decentralizedthoughts, December 2020. Where one member reaches a
    majority there is soon a stable leader, and terms do not run away."""
    cluster = Cluster(range(1, 6), seed=first)
    member = cluster.members[NodeId(first)]
    member.core.state.elapsed = 100
    assert led(cluster) is member
    connect_only(cluster, TOPOLOGIES[name])
    cluster.run(200)
    leader = led(cluster)
    term = leader.core.state.term
    assert term <= 8
    cluster.propose(leader, b"x")
    cluster.run(800)
    assert leader.leads, "the leader is stable"
    assert leader.core.state.term == term
    assert leader.commit == leader.core.state.log.last_index


def test_trap_21_a_disruptive_server() -> None:
    """Thesis 4.2.3 and 9.6: back from isolation, it deposes nobody."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    away = next(node for node in cluster.members if node != leader.node)
    isolate(cluster, away)
    cluster.run(300)
    cluster.blocked.clear()
    term = leader.core.state.term
    cluster.run(100)
    assert leader.leads
    assert leader.core.state.term == term
    assert cluster.members[away].core.state.leader == leader.node


def test_trap_21_a_member_with_a_higher_term_is_heard() -> None:
    """Pre-vote alone would shut it out for ever: its term must reach the leader."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    other = cluster.members[next(node for node in cluster.members if node != leader.node)]
    other.step(VoteReply(Term(9), THIRD, other.node, granted=False))
    assert other.core.state.term == 9
    cluster.run(80)
    now = led(cluster)
    assert now.core.state.term > 9
    assert other.core.state.leader == now.node or other is now


def test_trap_22_alone_and_before_its_fsync() -> None:
    """etcd issue 14370: a cluster of one acknowledges what its disk does not hold."""
    solo = Solo((1,)).lead()
    solo.disk = False
    assert solo.propose().commit == 0
    solo.finish()
    assert solo.state.commit == 3


def test_trap_24_founders_elect_together_until_their_directories_are_named() -> None:
    """dragonboat issue 256, openraft issue 1385: a wiped member votes again. Before any log names
    the data directories, nobody can tell; so nobody is elected without the vote of all."""
    cluster = Cluster()
    named = tuple((node, "") for node in (ME, PEER, THIRD))
    cluster.found(msgspec.structs.replace(plain((1, 2, 3)), incarnations=named))
    isolate(cluster, THIRD)
    cluster.run(200)
    assert cluster.leader() is None
    assert {member.core.state.term for member in cluster.members.values()} == {1}
    cluster.blocked.clear()
    leader = led(cluster)
    remove = MemberChange(ChangeKind.REMOVE, next(n for n in cluster.members if n != leader.node))
    assert leader.step(ChangeMembership((remove,))).refusal is Refusal.CHANGE_PENDING
    record = [MemberChange(ChangeKind.INCARNATION, n, incarnation=f"i{n}") for n in cluster.members]
    assert leader.step(ChangeMembership(tuple(record))).refusal is None
    cluster.run(20)
    assert [m.core.state.membership.unmet() for m in cluster.members.values()] == [(), (), ()]
    isolate(cluster, leader.node)
    cluster.run_until(lambda: cluster.leader() is not leader, 200, "a leader of the other two")


def test_trap_24_a_learner_without_a_name_is_not_promoted() -> None:
    cluster = Cluster()
    cluster.found(msgspec.structs.replace(plain((1,)), incarnations=((ME, "i1"),)))
    leader = led(cluster)
    cluster.add(PEER).start()
    add = MemberChange(ChangeKind.ADD_LEARNER, PEER, "n2:1")
    promote = ChangeMembership((MemberChange(ChangeKind.PROMOTE, PEER),))
    leader.step(ChangeMembership((add,)))
    cluster.run(30)
    output = leader.step(promote)
    assert output.refusal is Refusal.LEARNER_BEHIND
    assert "data directory" in output.refusal_detail
    name = MemberChange(ChangeKind.INCARNATION, PEER, incarnation="i2")
    assert leader.step(ChangeMembership((name,))).refusal is None
    cluster.run(20)
    assert leader.step(promote).refusal is None


@pytest.mark.parametrize("seed", range(12))
def test_trap_24_a_minority_of_wiped_disks_loses_nothing(seed: int) -> None:
    run_wiping(seed, 400)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(1000, 4000, 100))
def test_trap_24_a_minority_of_wiped_disks_loses_nothing_deep(first: int) -> None:
    for seed in range(first, first + 100):
        run_wiping(seed, 800)


def test_trap_25_a_malformed_append_neither_leaves_nor_enters() -> None:
    """openraft issue 1795: a read error became an append without a previous entry."""
    request = append_request((3, 1), 2, 2, term=2)
    gap = Entry(LogIndex(6), Term(2), int(EntryKind.BATCH), b"")
    broken = type(request)(
        request.term, request.sender, request.target, request.prev_index, request.prev_term,
        (request.entries[0], gap), request.commit, request.round,
    )  # fmt: skip
    assert validate(request, sender=PEER, target=ME) is None
    assert validate(broken, sender=PEER, target=ME) is not None


def test_trap_27_commit_by_a_broken_order_statistic() -> None:
    """openraft issue 1802. Five voters, unequal followers; test_quorum.py has the brute force."""
    solo = Solo(range(1, 6)).lead().settle()
    for _ in range(4):
        solo.propose()
    solo.ack(2, 6)
    solo.ack(3, 3)
    assert solo.state.commit == 3
    solo.ack(4, 5)
    assert solo.state.commit == 5


def test_a_lost_last_acknowledgement_does_not_stop_the_commit() -> None:
    """Found here: the answer to the last append is lost, nothing else is proposed, and the commit
    would wait for ever. The next heartbeat's answer says it again."""
    cluster = Cluster((1, 2, 3))
    leader = led(cluster)
    cluster.run(20)
    cluster.propose(leader, b"x")
    for node in cluster.members:
        if node != leader.node:
            cluster.blocked[node, leader.node] = True
    cluster.run(4)
    cluster.blocked.clear()
    cluster.run(6)
    assert leader.commit == leader.core.state.log.last_index


def test_a_full_window_of_lost_acknowledgements_opens_again() -> None:
    cluster = Cluster((1, 2))
    leader = led(cluster)
    cluster.run(20)
    other = next(node for node in cluster.members if node != leader.node)
    cluster.blocked[other, leader.node] = True
    for _ in range(6):
        cluster.propose(leader, b"x")
    cluster.run(4)
    cluster.blocked.clear()
    cluster.run(10)
    assert leader.commit == leader.core.state.log.last_index


def test_a_late_fsync_does_not_vouch_for_what_replaced_its_entries() -> None:
    """etcd's async_storage_writes_append_aba_race: entries are truncated while their write is
    under way, others take their indexes, then the old write is confirmed."""
    solo = Solo()
    solo.disk = False
    solo.append((1, 1), 2, 2, 2, term=2)
    first = solo.last_persist
    solo.append((2, 2), 3, 3, term=3, sender=3)
    solo.step(Persisted(first))
    assert (solo.state.persisted, solo.state.log.last_index) == (2, 4)
    solo.append((2, 2), 3, term=3, sender=3)
    assert solo.sent_of(AppendReply) == [], "entry 3 of term 3 is not on disk yet"
    solo.finish()
    assert solo.state.persisted == 4


def test_a_cut_that_comes_after_an_installed_snapshot_is_idle() -> None:
    """Found here: the disk thread reports a cut of the log that a snapshot has since replaced."""
    solo = Solo(terms=(1, 1, 1), commit=3)
    solo.step(SnapshotOffered(Term(3), PEER, EntryId(LogIndex(9), Term(2)), plain((1, 2, 3)),
                              LogIndex(1)))  # fmt: skip
    solo.step(Compacted(EntryId(LogIndex(2), Term(1))))
    assert solo.state.log.floor.index == 9


def test_what_is_not_durable_is_not_cut() -> None:
    solo = Solo()
    solo.disk = False
    solo.append((1, 1), 2, term=2, commit=2)
    with pytest.raises(InvariantViolationError, match="only what is committed and durable"):
        solo.step(Compacted(EntryId(LogIndex(2), Term(2))))


def test_a_promise_to_a_lease_survives_a_stray_newer_term() -> None:
    """Found here: a delayed answer with a newer term made the voter forget that it had just
    promised its leader not to vote."""
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.heartbeat(2)
    assert solo.only(HeartbeatReply).sticky
    solo.step(VoteReply(Term(8), FOURTH, ME, granted=False, pre=True))
    assert solo.vote_request(9, (9, 8), sender=3) is None


def test_a_broken_connection_does_not_end_a_promise_to_a_lease() -> None:
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.heartbeat(2)
    solo.step(PeerLost(PEER))
    assert solo.vote_request(3, (9, 2), sender=3) is None
    solo = Solo()
    solo.heartbeat(2)
    solo.step(PeerLost(PEER))
    assert solo.vote_request(3, (9, 2), sender=3) is True


def test_a_lease_of_the_old_voters_ends_when_new_ones_come_in() -> None:
    """Found by a seed: the lease that two of three voters had granted was still counted on when
    other two of three could elect a leader, and those had promised nothing."""
    solo = Solo((1, 2, 3), learners=(4, 5), lease_reads=1)
    solo.tick(10)
    solo.lead().settle()
    solo.tick(2)
    solo.echo(2, sticky=True)
    assert solo.step(ReadIndex(1, solo.now_ms)).read_states == (ReadState(1, LogIndex(2)),)
    gone, come = ChangeKind.REMOVE, ChangeKind.PROMOTE
    solo.change((gone, PEER), (gone, THIRD), (come, FOURTH), (come, FIFTH))
    assert solo.step(ReadIndex(2, solo.now_ms)).read_states == ()
    solo.settle(PEER, FOURTH)  # both majorities have the joint configuration: it is left
    assert solo.state.membership == plain((1, 4, 5))
    assert solo.step(ReadIndex(3, solo.now_ms)).read_states == ()
    solo.echo(4, sticky=True)
    assert solo.step(ReadIndex(4, solo.now_ms)).read_states == (ReadState(4, LogIndex(3)),)


def test_a_promise_to_a_lease_counts_from_when_it_was_given() -> None:
    """A member that stood still finds its leader's heartbeat in a socket before it finds what
    time it is: the ticks that come then have passed before the promise."""
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.heartbeat(2)
    assert solo.only(HeartbeatReply).sticky
    solo.step(Tick(5, solo.now_ms + 50))
    solo.tick(9)
    assert solo.vote_request(3, (9, 2), sender=3) is None
    assert solo.state.role is Role.FOLLOWER, "nor does it vote for itself"
    solo.tick()
    assert solo.vote_request(3, (9, 2), sender=3) is True


def test_who_keeps_a_promise_does_not_vote_for_itself_either() -> None:
    solo = Solo(lease_reads=1)
    solo.tick(10)
    solo.heartbeat(2)
    solo.state.election_timeout = solo.state.config.election_ticks_min
    solo.step(Tick(5, solo.now_ms + 50))
    solo.tick(9)
    assert (solo.state.role, solo.sent) == (Role.FOLLOWER, [])
    solo.tick()
    assert solo.state.role is Role.PRE_CANDIDATE


def test_who_forgets_its_promises_at_a_restart_gives_none() -> None:
    """Only members with ``lease_reads`` wait after a start; a leader may have it and others not."""
    solo = Solo(fast_failover=0)
    solo.heartbeat(2)
    assert not solo.only(HeartbeatReply).sticky


def test_a_lease_is_no_longer_than_what_was_promised() -> None:
    """While an election timeout is raised, node by node, the rest may elect after the old one."""
    solo = Solo(lease_reads=1)
    solo.heartbeat(2)
    assert solo.only(HeartbeatReply).promise_ms == 100
    solo.tick(30)
    solo.lead().settle()
    solo.tick(2)
    solo.echo(2, sticky=True, promise_ms=90)
    assert solo.step(ReadIndex(1, solo.now_ms)).read_states == ()
    solo.echo(2, sticky=True, promise_ms=100)
    assert solo.step(ReadIndex(2, solo.now_ms)).read_states != ()


def test_a_node_that_starts_alone_knows_that_it_is() -> None:
    """Who need not wait for others to lead must not be one whose vote a lease may count on."""
    assert Solo((1,)).state.sole_voter()
    assert not Solo((1, 2)).state.sole_voter()
    assert not Solo((2,)).state.sole_voter()
    joint = Membership(voters=(ME,), voters_old=(ME, PEER, THIRD))
    assert not Solo(membership=joint).state.sole_voter()
    solo = Solo((1, 2, 3))
    solo.step(append_request((1, 1), 2, term=2, commit=1, members=joint))
    solo.step(append_request((2, 2), 2, term=2, commit=2, members=joint.without_old()))
    assert not solo.state.sole_voter(), "who made it so still leads, until it is committed"
    solo.heartbeat(2, commit=3)
    assert solo.state.sole_voter()


def test_only_logs_outside_the_new_configuration_can_win() -> None:
    """Found by a seed: the new configuration is on nodes that it leaves out, and on no voter."""
    cluster = Cluster((1, 2, 3), config=lambda node: quick_config(node, fast_failover=0))
    leader = led(cluster)
    cluster.run(10)
    kept = next(node for node in cluster.members if node != leader.node)
    third = next(node for node in cluster.members if node not in {leader.node, kept})
    removal = [MemberChange(ChangeKind.DEMOTE, node) for node in (leader.node, third)]
    leader.step(ChangeMembership(tuple(removal)))
    cluster.run_until(lambda: not leader.core.state.membership.joint, 50, "joint is left")
    cluster.wire = [item for item in cluster.wire if item[2].target != kept]
    isolate(cluster, kept)
    cluster.run(5)
    leader.crash(99)
    cluster.run(3)
    leader.start()
    cluster.blocked.clear()
    cluster.run_until(lambda: cluster.members[kept].leads, 300, "the one voter leads in the end")
    cluster.run(20)
    assert cluster.members[kept].core.state.membership.voters == (kept,)
