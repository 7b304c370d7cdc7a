"""The state of one member (Raft figure 2, "State"), and the outbox of the step under way.

Rules live in the modules beside this one: ``election``, ``leader``, ``follower``, ``reads``,
``changes``, ``transfer``. They share this object; only ``roles`` assigns ``role``, ``term`` and
``vote``.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Final

import msgspec

from quorate.base.types import BEFORE_FIRST, NO_NODE, LogIndex, NodeId
from quorate.consensus.config import CoreConfig
from quorate.consensus.log_view import LogView
from quorate.consensus.membership import Membership, MembershipHistory
from quorate.consensus.messages import Entry, EntryId, HardState, Message
from quorate.consensus.output import (
    Output,
    Persist,
    ReadState,
    Refusal,
    Role,
    RoleChange,
    SendAppend,
)
from quorate.consensus.progress import Progress


class PendingPersist:
    """What a write that the disk has not confirmed will make durable.

    *last_index* sinks when the log is truncated while the write is under way, so a late
    confirmation never vouches for an entry that was replaced meanwhile.
    """

    __slots__ = ("id", "last_index", "term", "tick", "vote")

    def __init__(self, persist_id: int, tick: int, last: LogIndex, hard: HardState) -> None:
        self.id = persist_id
        self.tick = tick
        self.last_index = last
        self.term = hard.term
        self.vote = hard.vote


class PendingRead(msgspec.Struct, frozen=True, gc=False):
    """A read that waits for its heartbeat round. *requester*: the follower that asked, or self."""

    context: int
    requester: NodeId
    index: LogIndex
    round: int


class State:
    """One member. Fields are grouped as in figure 2 of the paper."""

    def __init__(
        self,
        config: CoreConfig,
        random: Random,
        hard: HardState,
        log: LogView,
        members: MembershipHistory,
    ) -> None:
        self.config = config
        self.random = random
        self.node_id = config.node_id
        # Persistent: on disk before anybody hears of it.
        self.term = hard.term
        self.vote = hard.vote
        self.log = log
        self.members = members
        # How much of it is on disk.
        self.persisted = log.last_index
        self.persisted_term = hard.term
        self.persisted_vote = hard.vote
        self.pending_persists: deque[PendingPersist] = deque()
        self.last_persist_id = 0
        # Volatile, on everybody.
        self.commit = LogIndex(max(hard.commit, log.floor.index))
        self.role = Role.FOLLOWER
        self.leader: NodeId = NO_NODE
        self.tick = 0
        self.now_ms = 0
        self.elapsed = 0  # ticks since a leader was heard, or an election began
        self.election_timeout = 0
        # Until then no votes are given: a leader was heard. A member that may just have forgotten
        # that it heard one, because it restarted, must assume so if leases rely on it.
        self.sticky_until = config.election_ticks_min if config.lease_reads else 0
        self.heard_since_tick = False  # a leader, and nobody knows how late that tick was
        # Followers: last index known to match this term's leader; no commit index passes it.
        self.verified = self.commit
        # Candidates.
        self.votes: dict[NodeId, bool] = {}
        # Leaders, reinitialised after election.
        self.progress: dict[NodeId, Progress] = {}
        self.match: dict[NodeId, LogIndex] = {}
        self.acked_rounds: dict[NodeId, int] = {}
        self.lease_rounds: dict[NodeId, int] = {}
        self.round = 0
        self.round_sent_ms: deque[tuple[int, int]] = deque()
        self.lease_until_ms = -1
        self.heartbeat_elapsed = 0
        self.uncommitted_bytes = 0
        self.reads: deque[PendingRead] = deque()
        self.reads_early: list[tuple[int, NodeId]] = []
        self.transfer_target: NodeId = NO_NODE
        self.transfer_deadline = 0
        self.transfer_sent = False  # TimeoutNow left in this term: leases are void for good
        # Outbox of the step under way.
        self.out_messages: list[Message | SendAppend] = []
        self.out_after: list[Message] = []
        self.out_entries: list[Entry] = []
        self.out_reads: list[ReadState] = []
        self.out_snapshots: list[NodeId] = []
        self.out_reset: EntryId | None = None
        self.out_proposed = BEFORE_FIRST
        self.out_refusal: Refusal | None = None
        self.out_refusal_detail = ""

    @property
    def membership(self) -> Membership:
        return self.members.current

    def promotable(self) -> bool:
        """May campaign: a voter whose disk answers. So may one that a configuration not yet known
        as committed leaves out: it can be the only one with a log that wins, and then commits the
        configuration without itself (thesis 4.2.2; its own vote is not counted)."""
        return self.members.votes_since(self.commit, self.node_id) and not self.disk_stalled()

    def sole_voter(self) -> bool:
        """Nobody else votes, and nobody else leads: a leader that leaves goes when the
        configuration without it is committed, and holds its lease until then."""
        membership = self.membership
        alone = membership.voters == (self.node_id,) and not membership.joint
        return alone and self.members.index <= self.commit

    def disk_stalled(self) -> bool:
        """The oldest unconfirmed write is too old to trust the disk behind it."""
        return (
            bool(self.pending_persists)
            and self.tick - self.pending_persists[0].tick > self.config.disk_stall_ticks
        )

    def send(self, message: Message) -> None:
        """Leaves at once if this member's term and vote are on disk, else after they are."""
        if self.persisted_term == self.term and self.persisted_vote == self.vote:
            self.out_messages.append(message)
        else:
            self.out_after.append(message)

    def refuse(self, refusal: Refusal, detail: str = "") -> None:
        self.out_refusal = refusal
        self.out_refusal_detail = detail

    def truncate(self, last: LogIndex) -> None:
        """Drop the log after *last*, and every claim about its durability."""
        self.log.truncate(last)
        self.members.truncate(last)
        self.persisted = LogIndex(min(self.persisted, last))
        for pending in self.pending_persists:
            pending.last_index = LogIndex(min(pending.last_index, last))

    def take_output(self, before: Photo) -> Output:
        """Empty the outbox; *before* is what the member was when the step began."""
        persist = self._take_persist(before)
        role = (self.role, self.term, self.leader)
        if (
            persist is None
            and not self.out_messages
            and not self.out_after
            and self.commit == before.commit
            and role == before.role
            and self.out_refusal is None
            and not self.out_reads
            and not self.out_snapshots
            and self.membership is before.membership
        ):
            return _NOTHING
        output = Output(
            persist=persist,
            messages=tuple(self.out_messages),
            after_persist=tuple(self.out_after),
            commit=self.commit if self.commit != before.commit else BEFORE_FIRST,
            read_states=tuple(self.out_reads),
            snapshots=tuple(self.out_snapshots),
            install=self.out_reset,
            proposed=self.out_proposed,
            refusal=self.out_refusal,
            refusal_detail=self.out_refusal_detail,
            role_change=RoleChange(*role) if role != before.role else None,
            membership=self.membership if self.membership is not before.membership else None,
        )
        self.out_messages.clear()
        self.out_after.clear()
        self.out_reads.clear()
        self.out_snapshots.clear()
        self.out_entries.clear()
        self.out_reset = None
        self.out_proposed = BEFORE_FIRST
        self.out_refusal = None
        self.out_refusal_detail = ""
        return output

    def _take_persist(self, before: Photo) -> Persist | None:
        hard_changed = (self.term, self.vote) != (before.role[1], before.vote)
        if not hard_changed and not self.out_entries and self.out_reset is None:
            return None
        self.last_persist_id += 1
        hard = HardState(self.term, self.vote, self.commit)
        self.pending_persists.append(
            PendingPersist(self.last_persist_id, self.tick, self.log.last_index, hard)
        )
        return Persist(
            id=self.last_persist_id,
            hard_state=hard,
            entries=tuple(self.out_entries),
            reset=self.out_reset,
        )


_NOTHING: Final = Output()


class Photo:
    """What a step is compared with when it ends."""

    __slots__ = ("commit", "membership", "role", "vote")

    def __init__(self, state: State) -> None:
        self.role = (state.role, state.term, state.leader)
        self.vote = state.vote
        self.commit = state.commit
        self.membership = state.membership
