"""Registers: LWWRegister shows the last write by stamp, MVRegister all writes that none replaced.

A write replaces whatever its replica had seen, whichever clock says what. Only among writes that
had not seen each other the stamp decides, then the actor, then the bytes of the value, so the order
is total. A write is stamped later than all it replaces, even if the clock of its node is behind:
no write is ever dropped in favour of an older one that its author had seen.
"""

from __future__ import annotations

from typing import Any, Final

from quorate.base.crdt_operations import Assign, Clear, KindTag, Operation
from quorate.crdt.clock import LOGICAL_MAX, NEVER, WALL_MS_MAX, Stamp, successor
from quorate.crdt.delta import Delta
from quorate.crdt.dots import Leaf, Path, Payload, dots_of
from quorate.crdt.kind import (
    ONLY,
    Kind,
    Moment,
    Parts,
    check_only,
    kind_of,
    wrong_operation,
)
from quorate.crdt.observing import cleared
from quorate.crdt.values import decode_value, encode_value
from quorate.crdt.view import View
from quorate.errors import CrdtError, CrdtFormatError

#: A payload of LWWRegister begins with wall time, logical time and actor, big-endian, so that the
#: order of payloads is the order of writes.
WALL_BYTES: Final = 8
LOGICAL_BYTES: Final = 4
ACTOR_BYTES: Final = 8
STAMP_BYTES: Final = WALL_BYTES + LOGICAL_BYTES + ACTOR_BYTES


class LWWRegister(Kind):
    """One value: of concurrent writes, the one with the greatest stamp. None before the first."""

    tag = KindTag.LWW_REGISTER
    name = "LWWRegister"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Assign):
            path = (*prefix, ONLY)
            seen = view.leaf(path)
            newest = max((_stamp(_bytes(payload)) for _a, _c, payload in seen), default=NEVER)
            stamp = max(at.stamp, successor(newest))
            if stamp.wall_ms > WALL_MS_MAX:
                raise CrdtError("the register holds the last stamp there is: clear it first")
            payload = _prefix(stamp, at.actor) + encode_value(operation.value)
            return {path: (((at.actor, at.counter, payload),), dots_of(seen))}
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def value(cls, view: View, prefix: Path) -> Any:  # noqa: ANN401  whatever was written
        leaf = view.leaf((*prefix, ONLY))
        if not leaf:
            return None
        return decode_value(max(_bytes(payload) for _a, _c, payload in leaf)[STAMP_BYTES:])

    @classmethod
    def stamp(cls, view: View, prefix: Path = ()) -> Stamp:
        """When the value that is shown was written, by the clock of its author."""
        leaf = view.leaf((*prefix, ONLY))
        return max((_stamp(_bytes(payload)) for _a, _c, payload in leaf), default=NEVER)

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        check_only(cls, own)
        for _actor, _counter, payload in leaf:
            data = _bytes(payload)
            if len(data) <= STAMP_BYTES or _stamp(data).wall_ms > WALL_MS_MAX:
                raise CrdtFormatError("a write carries no stamp")
            decode_value(data[STAMP_BYTES:])


class MVRegister(Kind):
    """Every value that no other write has replaced: a list in the order of their bytes, each once.
    Empty before the first write; more than one after concurrent writes, until the next."""

    tag = KindTag.MV_REGISTER
    name = "MVRegister"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Assign):
            path = (*prefix, ONLY)
            entry = (at.actor, at.counter, encode_value(operation.value))
            return {path: ((entry,), dots_of(view.leaf(path)))}
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def value(cls, view: View, prefix: Path) -> list[Any]:
        leaf = view.leaf((*prefix, ONLY))
        return [
            decode_value(data) for data in sorted({_bytes(payload) for _a, _c, payload in leaf})
        ]

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        check_only(cls, own)
        for _actor, _counter, payload in leaf:
            decode_value(_bytes(payload))


def newest_stamp(delta: Delta) -> Stamp:
    """The latest stamp that any write in *delta* carries; ``NEVER`` without writes.

    Whoever takes deltas in hands it to ``clock.observe`` first: then clocks stay near each other,
    and what comes from a clock far ahead is told before it is joined.
    """
    newest, kind = NEVER, kind_of(delta.tag)
    for path, (leaf, _gone) in delta.elements.items():
        if leaf and kind.locate(path)[0] is LWWRegister:
            newest = max(newest, *(_stamp(_bytes(payload)) for _a, _c, payload in leaf))
    return newest


def _prefix(stamp: Stamp, actor: int) -> bytes:
    return (
        stamp.wall_ms.to_bytes(WALL_BYTES, "big")
        + min(stamp.logical, LOGICAL_MAX).to_bytes(LOGICAL_BYTES, "big")
        + actor.to_bytes(ACTOR_BYTES, "big")
    )


def _stamp(payload: bytes) -> Stamp:
    return Stamp(
        int.from_bytes(payload[:WALL_BYTES], "big"),
        int.from_bytes(payload[WALL_BYTES : WALL_BYTES + LOGICAL_BYTES], "big"),
    )


def _bytes(payload: Payload) -> bytes:
    if not isinstance(payload, bytes):
        raise CrdtFormatError(f"a write carries {payload!r} and no value")
    return payload
