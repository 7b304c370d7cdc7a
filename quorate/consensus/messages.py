"""What members say to each other, and the log entries they say it about.

Array-like on the wire: a new field goes last in its leaf class and has a default; a tag never
changes its meaning; nothing may inherit fields, or one addition would shift every subclass.
"""

from __future__ import annotations

import enum
from typing import Final, assert_never, get_args

import msgspec

from quorate.base.limits import ENTRY_BYTES_MAX
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.membership import invalid_membership

#: Entries in one append message. Bounds what a step does at once and, with ``append_bytes_max``,
#: the frame: an entry costs some 20 bytes beside its payload.
APPEND_ENTRIES_MAX: Final = 4096
#: Numbers beyond this are damage, not terms or indexes: no cluster lives so long.
NUMBER_MAX: Final = (1 << 63) - 1


class EntryKind(enum.IntEnum):
    """What an entry's payload is; the core looks only into memberships."""

    NOOP = 0  # the first entry of every term (thesis 6.4)
    BATCH = 1  # commands, opaque to the core
    MEMBERSHIP = 2  # an encoded ``membership.Membership``


KINDS: Final = tuple(int(kind) for kind in EntryKind)


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
    """Raft 5.2; *pre*: of a pre-vote (thesis 9.6), which binds nobody."""

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
    *durable*: the part of it that is on the sender's disk; says again what a lost
    ``AppendReply`` said, so that a commit never waits for the next append.
    *sticky*: this voter refuses votes for an election timeout after hearing a leader, and for as
    long after a start, so its echo may count towards a leader lease. *promise_ms*: how long that
    is by its own settings; 0 from older members."""

    term: Term
    sender: NodeId
    target: NodeId
    round: int
    verified: LogIndex
    sticky: bool
    durable: LogIndex = LogIndex(0)
    promise_ms: int = 0


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
#: Their classes.
MESSAGES: Final = frozenset(get_args(Message))


def validate(message: Message, *, sender: NodeId, target: NodeId) -> str | None:
    """Why a decoded message must not reach the core, or None. For the gateway to peers: everything
    behind it trusts what is checked here. *sender*: whom the connection belongs to; *target*: this
    node. Costs a microsecond, and a fraction of one per entry.

    Not checked: whether the message is *true*. A member that lies within the format can break the
    cluster (Raft assumes honest members); that it is a member is what the handshake proves.
    """
    if message.sender != sender or sender < 1:
        return f"it says it comes from node {message.sender}, on the connection of node {sender}"
    if message.target != target:
        return f"it is for node {message.target}, and this is node {target}"
    if sender == target:
        return f"node {sender} sends to itself"
    if not 1 <= message.term <= NUMBER_MAX:
        return f"term {message.term} is not in 1..{NUMBER_MAX}"
    match message:
        case AppendRequest():
            return _invalid_append(message)
        case AppendReply():
            return _invalid_append_reply(message)
        case VoteRequest():
            return _invalid_number("last_index", message.last_index) or _invalid_term(
                "last_term", message.last_term, message.term
            )
        case Heartbeat():
            return _invalid_number("commit", message.commit) or _invalid_number(
                "round", message.round
            )
        case HeartbeatReply():
            if message.durable > message.verified:
                return f"durable {message.durable} is after verified {message.verified}"
            return (
                _invalid_number("round", message.round)
                or _invalid_number("verified", message.verified)
                or _invalid_number("durable", message.durable)
                or _invalid_number("promise_ms", message.promise_ms)
            )
        case ReadIndexRequest():
            return _invalid_number("context", message.context)
        case ReadIndexReply():
            return _invalid_number("context", message.context) or _invalid_number(
                "index", message.index
            )
        case VoteReply() | TimeoutNow():
            return None
        case _:
            assert_never(message)


def _invalid_number(name: str, value: int) -> str | None:
    return None if 0 <= value <= NUMBER_MAX else f"{name} {value} is not in 0..{NUMBER_MAX}"


def _invalid_term(name: str, term: Term, message_term: Term) -> str | None:
    if 0 <= term <= message_term:
        return None
    return f"{name} {term} is not in 0..{message_term}, the term of the message"


def _invalid_append(message: AppendRequest) -> str | None:
    if len(message.entries) > APPEND_ENTRIES_MAX:
        return f"{len(message.entries)} entries are over the limit of {APPEND_ENTRIES_MAX}"
    index, term = message.prev_index, message.prev_term
    complaint = (
        _invalid_number("prev_index", index)
        or _invalid_term("prev_term", term, message.term)
        or _invalid_number("commit", message.commit)
        or _invalid_number("round", message.round)
    )
    if complaint is not None:
        return complaint
    if (index == 0) != (term == 0):
        return f"prev_index {index} with prev_term {term}: only before the first are both 0"
    for entry in message.entries:
        index = LogIndex(index + 1)
        if entry.index != index:
            return f"entry {entry.index} stands where entry {index} should"
        if not max(term, 1) <= entry.term <= message.term:
            return (
                f"entry {index} has term {entry.term}, not in {max(term, 1)}..{message.term}: "
                "terms never fall along a log, nor pass the leader's"
            )
        term = entry.term
        if len(entry.payload) > ENTRY_BYTES_MAX:
            return f"entry {index} has {len(entry.payload)} bytes, the limit is {ENTRY_BYTES_MAX}"
        if entry.kind not in KINDS:
            return f"entry {index} is of the unknown kind {entry.kind}"
        if entry.kind == EntryKind.MEMBERSHIP:
            complaint = invalid_membership(entry.payload)
            if complaint is not None:
                return f"entry {index}: {complaint}"
    return None


def _invalid_append_reply(message: AppendReply) -> str | None:
    if not message.ok and message.hint_index > message.index:
        return f"hint_index {message.hint_index} is after the refused {message.index}"
    return (
        _invalid_number("index", message.index)
        or _invalid_number("hint_index", message.hint_index)
        or _invalid_term("hint_term", message.hint_term, message.term)
        or _invalid_number("round", message.round)
    )
