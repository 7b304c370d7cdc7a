"""What a step tells the driver to do. The order of the fields is the order of the duties."""

from __future__ import annotations

import enum

import msgspec

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.membership import Membership
from quorate.consensus.messages import Entry, EntryId, HardState, Message


class Role(enum.Enum):
    """Raft figure 4, and the pre-candidate of thesis 9.6."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Refusal(enum.Enum):
    """Why a proposal, change or transfer was not taken; nothing happened."""

    NOT_LEADER = "this node does not lead"
    TRANSFERRING = "leadership is being handed over"
    OVERLOADED = "too much is proposed and not yet committed"
    TERM_NOT_COMMITTED = "the leader has not yet committed an entry of its own term"
    CHANGE_PENDING = "another membership change is not finished"
    LEARNER_BEHIND = "the learner has not caught up"
    QUORUM_LOST = "too few voters of the new configuration are reachable"
    BAD_CHANGE = "the change makes no sense for the present members"
    BAD_TARGET = "the target is not another voter"
    UNREACHABLE_TARGET = "the target is not reachable"


class SendAppend(msgspec.Struct, frozen=True, gc=False):
    """An ``AppendRequest`` without its entries: the driver fills in those after *prev_index* up to
    *last_index* from its log (a read error there stops the node; nothing malformed leaves)."""

    term: Term
    sender: NodeId
    target: NodeId
    prev_index: LogIndex
    prev_term: Term
    last_index: LogIndex
    commit: LogIndex
    round: int


class Persist(msgspec.Struct, frozen=True):
    """One durable write. *reset*: first drop the whole log, which then begins after that entry
    (a snapshot is installed). Entries at or below the last index replace what was there."""

    id: int
    hard_state: HardState
    entries: tuple[Entry, ...] = ()
    reset: EntryId | None = None


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """A read of *context* may be served once *index* is applied; 0: refused, retry anew."""

    context: int
    index: LogIndex


class RoleChange(msgspec.Struct, frozen=True, gc=False):
    """How the node stands after the step. *leader*: 0 if it knows none."""

    role: Role
    term: Term
    leader: NodeId


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """1. Hand ``persist`` to the disk; it reports back with ``events.Persisted``.
    2. Send ``messages`` at once: they promise nothing that is not durable.
    3. Send ``after_persist`` once everything handed to the disk so far is durable.
    4. Apply the log up to ``commit``.
    5. The rest is news.
    """

    persist: Persist | None = None
    messages: tuple[Message | SendAppend, ...] = ()
    after_persist: tuple[Message, ...] = ()
    commit: LogIndex = LogIndex(0)  #: 0: unchanged
    read_states: tuple[ReadState, ...] = ()
    snapshots: tuple[NodeId, ...] = ()  #: followers that need one streamed to them
    install: EntryId | None = None  #: swap in the offered snapshot, together with ``persist``
    proposed: LogIndex = LogIndex(0)  #: index of the first entry of a proposal that was taken
    refusal: Refusal | None = None
    refusal_detail: str = ""
    role_change: RoleChange | None = None
    membership: Membership | None = None  #: the configuration now in force, if it changed
