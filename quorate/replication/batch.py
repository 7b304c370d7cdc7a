"""The payload of a log entry: one *batch* of everything that reached the leader in one loop turn.

The core never looks inside. Submissions keep the shape in which they came off the wire
(``frames.Submit``): commands stay ``msgspec.Raw`` until a machine's typed decoder reads a whole
run of them in one call. So ``Submit`` is a disk format too, under the same rule of growth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from quorate.base.frames import Submit
from quorate.consensus.messages import Entry, EntryKind
from quorate.errors import WireFormatError

#: Far beyond any clock; so that a deadline counted from it stays a 64-bit number.
TIME_MS_MAX: Final = 2**62
Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """*time_ms*: cluster time, monotonic over the log; *wall_ms*: the leader's wall clock, Unix
    milliseconds, for display only; *seed*: 64 random bits for machines that need chance."""

    time_ms: Time
    wall_ms: Time
    seed: Annotated[int, msgspec.Meta(ge=0)]
    submissions: tuple[Submit, ...]


class _BatchHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    time_ms: Time
    wall_ms: Time


#: A text that is not UTF-8 has an error of its own, and so has endless nesting.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_head_decoder = msgspec.msgpack.Decoder(_BatchHead)


def encode_batch(batch: Batch) -> bytes:
    """The payload of a log entry."""
    return _encoder.encode(batch)


def decode_batch(payload: bytes) -> Batch:
    """Raises WireFormatError, never a msgspec exception."""
    try:
        return _decoder.decode(payload)
    except _UNREADABLE as error:
        raise WireFormatError(f"log entry payload is not a batch: {error}") from error


def batch_time_ms(payload: bytes) -> int:
    """Cluster time of an encoded batch, without decoding its submissions."""
    try:
        return _head_decoder.decode(payload).time_ms
    except _UNREADABLE as error:
        raise WireFormatError(f"log entry payload is not a batch: {error}") from error


def last_time_ms(entries: Sequence[Entry]) -> int:
    """Cluster time of the last batch among *entries*, 0 if there is none. What cannot be read does
    not count: apply ignores it too."""
    for entry in reversed(entries):
        if entry.kind == EntryKind.BATCH:
            with contextlib.suppress(WireFormatError):
                return batch_time_ms(entry.payload)
    return 0
