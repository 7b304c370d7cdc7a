"""What members say to each other, and the log entries they say it about.

Array-like on the wire: a new field goes last in its leaf class and has a default; a tag never
changes its meaning; nothing may inherit fields, or one addition would shift every subclass.
"""

from __future__ import annotations

import enum
import msgspec

from quorate.base.types import LogIndex, NodeId, Term


class EntryKind(enum.IntEnum):
    """What an entry's payload is; the core looks only into memberships."""

    NOOP = 0  # the first entry of every term (thesis 6.4)
    BATCH = 1  # commands, opaque to the core
    MEMBERSHIP = 2  # an encoded ``membership.Membership``


class EntryId(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Names one entry: two logs that agree on an id agree on all before it (Raft 5.3)."""

    index: LogIndex
    term: Term


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One log entry. Shapes: *payload* at most ``limits.ENTRY_BYTES_MAX`` bytes."""

    index: LogIndex
    term: Term
    kind: int
    payload: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be on disk before anybody hears of it (Raft figure 2, "persistent state").

    *commit* is a hint that makes recovery stricter: a log that ends before it has lost entries.
    """

    term: Term
    vote: NodeId
    commit: LogIndex


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Raft 5.2. *pre*: the pre-vote of thesis 9.6 (*term* is the one it would use);
    *transfer*: leadership transfer, overrides stickiness (thesis 4.2.3)."""

    term: Term
    sender: NodeId
    target: NodeId
    last_index: LogIndex
    last_term: Term
    pre: bool = False
    transfer: bool = False


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    term: Term
    sender: NodeId
    target: NodeId
    granted: bool
    pre: bool = False


class AppendRequest(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Raft 5.3. *round*: the leader's latest heartbeat round, echoed by the reply."""

    term: Term
    sender: NodeId
    target: NodeId
    prev_index: LogIndex
    prev_term: Term
    entries: tuple[Entry, ...]
    commit: LogIndex
    round: int


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """*ok*: everything up to *index* matches the leader's log and is on the sender's disk.
    Otherwise *index* is the refused ``prev_index`` and the hint is the sender's last entry whose
    term is at most ``prev_term``: the leader need not probe between (thesis 5.3, "nextIndex")."""

    term: Term
    sender: NodeId
    target: NodeId
    ok: bool
    index: LogIndex
    hint_index: LogIndex
    hint_term: Term
    round: int


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Claims leadership and starts a round; a quorum of echoes confirms it (thesis 6.4)."""

    term: Term
    sender: NodeId
    target: NodeId
    commit: LogIndex
    round: int


class HeartbeatReply(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """*verified*: last index known to match this leader's log, durable or not: shows lost appends.
    *sticky*: this voter refuses votes for an election timeout after hearing a leader, so its
    echo may count towards a leader lease."""

    term: Term
    sender: NodeId
    target: NodeId
    round: int
    verified: LogIndex
    sticky: bool


class ReadIndexRequest(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """A follower asks for an index that makes its local read linearizable (thesis 6.4)."""

    term: Term
    sender: NodeId
    target: NodeId
    context: int


class ReadIndexReply(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """*index* 0: refused (not the leader, or no entry of its term committed yet)."""

    term: Term
    sender: NodeId
    target: NodeId
    context: int
    index: LogIndex


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """The leader hands over: the target campaigns at once (thesis 3.10)."""

    term: Term
    sender: NodeId
    target: NodeId


Message = (
    VoteRequest
    | VoteReply
    | AppendRequest
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | ReadIndexRequest
    | ReadIndexReply
    | TimeoutNow
)
