"""What can happen to a core, besides a message from a peer."""

from __future__ import annotations

import msgspec

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.membership import MemberChange, Membership
from quorate.consensus.messages import EntryId, Message


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time passed. *now_ms*: the driver's monotonic clock, used only to date leader leases."""

    ticks: int = 1
    now_ms: int = 0


class Propose(msgspec.Struct, frozen=True):
    """Append one entry per payload. Answered by ``Output.proposed`` or ``Output.refusal``."""

    payloads: tuple[bytes, ...]


class ChangeMembership(msgspec.Struct, frozen=True):
    """Answered as ``Propose``; the change is done when the entry *and*, for a change of voters,
    the one that leaves the joint configuration are committed."""

    changes: tuple[MemberChange, ...]


class TransferLeadership(msgspec.Struct, frozen=True, gc=False):
    """Hand over to *target*, or to the best follower if 0 (thesis 3.10)."""

    target: NodeId


class ReadIndex(msgspec.Struct, frozen=True, gc=False):
    """Find an index that makes a local read linearizable; answered by ``Output.read_states``.
    *context* is never used twice, not even for a retry."""

    context: int
    now_ms: int = 0


class Announce(msgspec.Struct, frozen=True, gc=False):
    """Somebody waits until all members have applied what is committed: tell them now how far that
    is, not with the next heartbeat. Nothing happens at a member that does not lead."""


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """The disk finished everything up to ``Output.persist.id`` = *id*."""

    id: int


class Compacted(msgspec.Struct, frozen=True):
    """The log now begins after *floor*, which a durable checkpoint covers."""

    floor: EntryId


class SnapshotSent(msgspec.Struct, frozen=True, gc=False):
    """The transfer to *node* of a snapshot at *index* ended; *ok*: it said it installed it."""

    node: NodeId
    index: LogIndex
    ok: bool


class SnapshotOffered(msgspec.Struct, frozen=True):
    """A whole snapshot has arrived from *sender*, leader of *term*: install it? Answered by
    ``Output.install`` (yes) or its absence (not needed, or stale)."""

    term: Term
    sender: NodeId
    id: EntryId
    membership: Membership
    membership_index: LogIndex


class PeerLost(msgspec.Struct, frozen=True, gc=False):
    """The connection to *node* broke: what was sent may not have arrived."""

    node: NodeId


class PeerReached(msgspec.Struct, frozen=True, gc=False):
    """A connection to *node* stands."""

    node: NodeId


#: What is no message of a member.
Demand = (
    Tick
    | Propose
    | ChangeMembership
    | TransferLeadership
    | ReadIndex
    | Announce
    | Persisted
    | Compacted
    | SnapshotSent
    | SnapshotOffered
    | PeerLost
    | PeerReached
)
Event = Message | Demand
