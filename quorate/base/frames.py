"""Frames of the wire protocol, except those between members' cores (``consensus.messages``).

A connection carries length-prefixed frames: four bytes, big-endian, of length, then that many
bytes of msgpack. Every frame is an array whose first item is its tag. A new field goes last in
its class with a default; a tag never changes its meaning; unknown tags are refused.

The first frame of a connection is ``Hello``; the answer is ``Welcome`` or ``Refused``. What comes
after depends on the role that the hello asked for.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from quorate.base.crdt_frames import CrdtAnswer, CrdtFailed, CrdtRead, CrdtWrite, CrdtWritten
from quorate.base.limits import FRAME_BYTES_MAX
from quorate.errors import LimitExceededError, WireFormatError

WIRE_VERSION: Final = 1  # grows only when an old node could misread a new one
LENGTH_BYTES: Final = 4

#: What decoding hostile bytes may raise: msgspec's DecodeError and UnicodeDecodeError are both
#: ValueErrors, and deep nesting is a RecursionError.
UNDECODABLE: Final = (ValueError, RecursionError)

ROLE_CLIENT: Final = "client"
ROLE_PEER: Final = "peer"
ROLE_SNAPSHOT: Final = "snapshot"


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First frame of every connection. *cluster*: the id the caller expects, "" for any (clients
    that connect for the first time). *node*, *incarnation*: of a member, 0 and "" for a client.
    *relay*: the caller cannot reach the leader itself: splice this connection through to it."""

    version: int
    role: str
    cluster: str = ""
    node: int = 0
    incarnation: str = ""
    relay: bool = False


class MemberInfo(msgspec.Struct, frozen=True, array_like=True):
    """One member. *role*: "voter", "learner" or "leaving". *address*: "host:port"."""

    node: int
    address: str
    role: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The connection stands. *leader* 0: not known now; a ``LeaderInfo`` follows when it is.
    *machines*: by name, the versions of its machines that the node's code has. *process*: a number
    that no other process of this node has."""

    version: int
    cluster: str
    node: int
    incarnation: str
    leader: int
    term: int
    members: tuple[MemberInfo, ...]
    machines: dict[str, int] = {}
    process: int = 0


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The connection does not stand, and why; *code* names an error class. Then it is closed."""

    code: str
    message: str


class LeaderInfo(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Pushed to every client connection when the leader, its term or the members change."""

    leader: int
    term: int
    members: tuple[MemberInfo, ...]


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive items for one machine. *items*: a msgpack array of commands or queries."""

    machine: str
    items: msgspec.Raw


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Commands of one client, coalesced over one loop turn: the unit of exactly-once.

    *sequence* grows with every submission of a session and names it for ever: a retry carries the
    same commands under the same number. *acknowledged*: every reply up to here has arrived, so the
    cluster may forget them. Session 0 is for commands that need no such protection. *level*: when
    to answer (``base.levels``); it changes nothing of what is applied. Stands in log entries as it
    came off the wire.
    """

    session: int
    sequence: int
    acknowledged: int
    runs: tuple[Run, ...]
    level: int = 0


class SubmitReply(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The batch was applied in the entry at *index*. *results*: one array per run, one item per
    command. *unconfirmed*: voters of which it was asked, and not learnt in time, whether they have
    applied it too."""

    sequence: int
    index: int
    results: msgspec.Raw
    unconfirmed: tuple[int, ...] = ()


class SubmitAccepted(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The batch is on the disk of the leader of *term*, in the entry at *index*, and that is all:
    it may be lost. Nothing more will be said of it."""

    sequence: int
    index: int
    term: int


class SubmitFailed(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """No reply to the batch as a whole; *code* names an error class, whose ``definite`` says
    whether it may have happened."""

    sequence: int
    code: str
    message: str
    retry_after_ms: int = 0


class Query(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Reads of one client, coalesced over one loop turn, answered from one state.
    *linearizable*: after a read-index round; otherwise from the local state, as soon as that has
    come to entry *after*."""

    id: int
    runs: tuple[Run, ...]
    linearizable: bool = True
    after: int = 0


class QueryReply(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """*index*: the applied log index of the state read. *results*: as in ``SubmitReply``."""

    id: int
    index: int
    results: msgspec.Raw


class QueryFailed(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """No answer to the query as a whole; *code* names an error class."""

    id: int
    code: str
    message: str
    retry_after_ms: int = 0


class AdminRequest(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """An operator's call. *method*: see ``server.admin``; *arguments*: plain msgpack values."""

    id: int
    method: str
    arguments: dict[str, Any] = {}


class AdminReply(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """*result*: what the method returned, plain msgpack values."""

    id: int
    result: Any


class AdminFailed(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """The call was refused or failed; *code* names an error class."""

    id: int
    code: str
    message: str
    retry_after_ms: int = 0


class Watch(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Have events of *machine* sent from now on. *request*: what that machine's ``watch_type``
    says. The answer is ``Watching`` or ``WatchEnded``."""

    id: int
    machine: str
    request: msgspec.Raw


class Unwatch(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """End a watch; no answer. What is on its way already may still arrive."""

    id: int


class Watching(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """The watch stands: every matching event of the entries behind *index* will be sent, and
    before them what the request asked for of the past."""

    id: int
    index: int


class Happened(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Matching events, in the order of the log. *index*: no event of an entry up to this one is
    still to come. *events*: an array of what the machine's events are."""

    id: int
    index: int
    events: msgspec.Raw


class WatchEnded(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """No more events come; *code* names an error class. A watch may be begun anew at once if that
    says ``watch-lagging``: the connection did not take what was sent."""

    id: int
    code: str
    message: str
    retry_after_ms: int = 0


ClientFrame = Hello | Submit | Query | AdminRequest | Watch | Unwatch | CrdtWrite | CrdtRead
ServerFrame = (
    Welcome
    | Refused
    | LeaderInfo
    | SubmitReply
    | SubmitAccepted
    | SubmitFailed
    | QueryReply
    | QueryFailed
    | AdminReply
    | AdminFailed
    | Watching
    | Happened
    | WatchEnded
    | CrdtWritten
    | CrdtAnswer
    | CrdtFailed
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(frame: msgspec.Struct) -> bytes:
    """Length prefix and body.

    Raises:
        LimitExceededError: the body is longer than ``FRAME_BYTES_MAX``.
    """
    buffer = bytearray(LENGTH_BYTES)
    _encoder.encode_into(frame, buffer, LENGTH_BYTES)
    size = len(buffer) - LENGTH_BYTES
    if size > FRAME_BYTES_MAX:
        raise LimitExceededError(
            f"a {type(frame).__name__} frame of {size} bytes is over the limit of "
            f"{FRAME_BYTES_MAX}; send less at once"
        )
    buffer[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    return bytes(buffer)


class FrameSplitter:
    """Cuts a byte stream into frame bodies. Bounded: never holds more than one frame's bytes.

    *size_bytes_max* may be lowered until the hello is accepted, so that a stranger cannot make
    the node hold megabytes.
    """

    __slots__ = ("_buffer", "_needed", "size_bytes_max")

    def __init__(self, size_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._needed = LENGTH_BYTES
        self.size_bytes_max = size_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Complete frame bodies, in order, that *data* finished.

        Raises:
            WireFormatError: a length of zero, or over the limit; the stream cannot be resynced.
        """
        buffer = self._buffer
        if not buffer:
            view = data
        else:
            buffer += data
            if len(buffer) < self._needed:
                return []
            view = bytes(buffer)
            buffer.clear()
        frames: list[bytes] = []
        at, end = 0, len(view)
        while end - at >= LENGTH_BYTES:
            start = at + LENGTH_BYTES
            size = int.from_bytes(view[at:start], "big")
            if not 0 < size <= self.size_bytes_max:
                raise WireFormatError(
                    f"frame length {size} is not in 1..{self.size_bytes_max}: "
                    "this is not the quorate protocol, or the stream is damaged"
                )
            if end - start < size:
                self._needed = LENGTH_BYTES + size
                break
            at = start + size
            frames.append(view[start:at])
        else:
            self._needed = LENGTH_BYTES
        if at < end:
            buffer += view[at:]
        return frames
