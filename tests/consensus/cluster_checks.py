"""What several members together must keep: checked after every step of any of them.

The five safety properties of Raft figure 3, and what quorate adds: nothing is promised before it
is durable, a commit stands on a quorum of durable logs, reads are linearizable, and the
configuration at an index is the same on every member.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from quorate.consensus.events import Event, SnapshotOffered
from quorate.consensus.membership import Membership, decode_membership
from quorate.consensus.messages import (
    AppendReply,
    Entry,
    EntryKind,
    HeartbeatReply,
    Message,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Output, Persist, Role

if TYPE_CHECKING:
    from tests.consensus.harness import Cluster, Member, Read


def majority(voters: tuple[int, ...], holders: set[int]) -> bool:
    """On purpose not ``quorate.consensus.quorum``: a second opinion."""
    return 2 * sum(1 for voter in voters if voter in holders) > len(voters)


def quorum(membership: Membership, holders: set[int]) -> bool:
    old = membership.voters_old
    return majority(membership.voters, holders) and (not old or majority(old, holders))


class ClusterChecks:
    """Remembers everything that must never be contradicted."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.leaders: dict[int, int] = {}  # term -> node
        self.votes: dict[tuple[int, int], int] = {}  # (voter, term) -> candidate
        self.facts: dict[tuple[int, int], tuple[int | None, int, bytes]] = {}
        self.committed: list[Entry | None] = [None]  # by index
        self.commit_terms: list[int] = [0]  # term in which that entry was committed, ascending
        self.configs: list[tuple[int, Membership]] = []  # of committed entries
        self.before: tuple[int, Role, Membership, int] = (0, Role.FOLLOWER, Membership(()), 0)

    @property
    def commit_max(self) -> int:
        return len(self.committed) - 1

    # --- around a step --------------------------------------------------------------------------

    def before_step(self, member: Member) -> None:
        state = member.core.state
        self.before = (state.commit, state.role, state.membership, state.members.index)

    def started(self, member: Member) -> None:
        """What a disk gives back may be behind, but never beside, what was committed."""
        for entry in member.disk.entries:
            self._know(entry, member.disk.term_at(entry.index - 1))
        self._check_commit(member, member.disk.floor.index, member.core.state.membership, 0)

    def after_step(self, member: Member, event: Event, output: Output) -> None:
        state = member.core.state
        commit, role, membership, members_index = self.before
        if state.role is Role.LEADER and role is not Role.LEADER:
            self._became_leader(member)
        if state.commit > commit and output.install is None:
            self._check_commit(member, commit, membership, members_index)
        persisted = state.persisted
        if output.install is None and persisted > state.log.floor.index:
            assert member.disk.holds(persisted, state.log.term_at(persisted) or 0), (
                f"node {member.node} believes that entry {persisted} is durable, and it is not"
            )

    def _became_leader(self, member: Member) -> None:
        state = member.core.state
        other = self.leaders.setdefault(state.term, member.node)
        assert other == member.node, f"two leaders in term {state.term}: {other}, {member.node}"
        # A leader that is late to learn of its election owes nothing to the terms after its own.
        last = bisect_left(self.commit_terms, state.term) - 1
        entry = self.committed[last]
        assert entry is not None or last == 0
        if entry is not None and last > state.log.floor.index:
            assert state.log.term_at(entry.index) == entry.term, (
                f"leader completeness: node {member.node} leads term {state.term} without the "
                f"committed entry {last} of term {entry.term}"
            )

    # --- commits --------------------------------------------------------------------------------

    def _check_commit(
        self, member: Member, after: int, membership: Membership, members_index: int
    ) -> None:
        state = member.core.state
        floor = state.log.floor.index
        for index in range(max(after, floor) + 1, state.commit + 1):
            entry = member.log[index - floor - 1]
            if index <= self.commit_max:
                known = self.committed[index]
                assert known is not None
                assert (known.term, known.payload) == (entry.term, entry.payload), (
                    f"committed entry {index} differs on node {member.node}"
                )
            else:
                self._commit_first(member, entry, membership, members_index)
        self._check_config(member)

    def _commit_first(
        self, member: Member, entry: Entry, membership: Membership, members_index: int
    ) -> None:
        """Somebody sees this entry committed before all others: it must stand on a quorum."""
        assert entry.index == self.commit_max + 1, "commits leave no gap"
        state = member.core.state
        if entry.index > 1:  # entry 1 is written by hand on every founder
            holders = self.holders(entry)
            now_holds = state.membership if entry.index > members_index else membership
            assert quorum(membership, holders) or quorum(now_holds, holders), (
                f"node {member.node} ({state.role.value}) committed entry {entry.index} of term "
                f"{entry.term}, which is durable on {sorted(holders)} only, with {membership}"
            )
        self.committed.append(entry)
        self.commit_terms.append(max(self.commit_terms[-1], state.term))
        if entry.kind == EntryKind.MEMBERSHIP:
            self.configs.append((entry.index, decode_membership(entry.payload)))

    def holders(self, entry: Entry) -> set[int]:
        """On whose disks it is."""
        return {
            other.node
            for other in self.cluster.members.values()
            if other.disk.holds(entry.index, entry.term)
        }

    def config_at(self, index: int) -> tuple[int, Membership] | None:
        for step in reversed(self.configs):
            if step[0] <= index:
                return step
        return None

    def _check_config(self, member: Member) -> None:
        state = member.core.state
        expected = self.config_at(state.commit)
        found = state.members.step_at(state.commit)
        assert expected is None or found == expected, (
            f"configuration at {state.commit} on node {member.node}: {found}, elsewhere {expected}"
        )

    # --- logs -----------------------------------------------------------------------------------

    def appended(self, member: Member, persist: Persist) -> None:
        log = member.core.state.log
        for entry in persist.entries:
            self._know(entry, log.term_at(entry.index - 1))  # type: ignore[arg-type]

    def _know(self, entry: Entry, previous_term: int | None) -> None:
        """Log matching: an index and a term name one entry, and with it all before it."""
        fact = (previous_term, entry.kind, entry.payload)
        known = self.facts.setdefault((entry.index, entry.term), fact)
        assert known == fact, f"entry {entry.index} of term {entry.term}: {known} and {fact}"

    def applied(self, member: Member, entry: Entry) -> None:
        known = self.committed[entry.index] if entry.index <= self.commit_max else None
        assert known is not None, f"node {member.node} applies {entry.index}, not committed"
        assert known == entry, f"node {member.node} applies another entry {entry.index}"

    def installed(self, member: Member, offer: SnapshotOffered) -> None:
        assert offer.id.index <= self.commit_max, "a snapshot holds only what is committed"
        entry = self.committed[offer.id.index]
        assert entry is not None
        assert entry.term == offer.id.term
        self._check_config(member)

    # --- promises -------------------------------------------------------------------------------

    def sent(self, member: Member, message: Message) -> None:
        """At the moment a message leaves, the disk must already vouch for it."""
        disk = member.disk
        if isinstance(message, VoteRequest | VoteReply) and message.pre:
            return
        where = f"node {member.node} sent {message} with {disk.hard} on disk"
        assert disk.hard.term >= message.term, f"a term before it was durable: {where}"
        vote = None
        if isinstance(message, VoteRequest):
            vote = member.node
        elif isinstance(message, VoteReply) and message.granted:
            vote = message.target
        if vote is not None:
            durable = disk.hard.term > message.term or disk.hard.vote == vote
            assert durable, f"a vote before it was durable: {where}"
            other = self.votes.setdefault((member.node, message.term), vote)
            assert other == vote, f"node {member.node} voted twice in {message.term}: {where}"
        index = 0
        if isinstance(message, AppendReply) and message.ok:
            index = message.index
        elif isinstance(message, HeartbeatReply):
            index = message.durable
        if index:
            durable = disk.hard.term > message.term or disk.last >= index
            assert durable, f"an append was acknowledged before it was durable: {where}"

    def read_granted(self, member: Member, read: Read, index: int) -> None:
        assert index >= read.floor, (
            f"stale read: node {member.node} may read at {index}, but {read.floor} was committed "
            "before the read began"
        )
