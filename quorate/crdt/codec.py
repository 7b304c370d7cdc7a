"""Canonical bytes of deltas, whole replicas and single elements: equal data is equal bytes.

MessagePack arrays: version, tag of the kind, closed or open, runs of the context by actor, and the
elements in the order of their keys. Of a closed delta the runs are those of its rest; of an open
one, of its whole context. Decoding checks everything (bounds, order, that each leaf can stand where
it stands) and then that encoding gives the same bytes again, so no second form of anything gets in.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec

from quorate.base.limits import FRAME_BYTES_MAX, VALUE_BYTES_MAX
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta, path_of
from quorate.crdt.dots import (
    COUNTER_MAX,
    NUMBER_MAX,
    Dots,
    Entry,
    Leaf,
    Path,
    Payload,
    dots_of,
    epoch_of,
    member_of,
)
from quorate.crdt.kind import Kind, check_element, kind_of
from quorate.crdt.state import State
from quorate.errors import CrdtFormatError, InvariantViolationError

VERSION: Final = 1

_WireEntry = tuple[int, int, int, bytes | tuple[int, ...]]  # member, epoch, counter, payload
_WireDot = tuple[int, int, int]


class _Actor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All runs of one actor, flat: first, last, first, last, ..."""

    member: int
    epoch: int
    runs: tuple[int, ...]


class _Element(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    path: tuple[bytes, ...]
    leaf: tuple[_WireEntry, ...]
    gone: tuple[_WireDot, ...]


class _Delta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    tag: int
    closed: bool
    context: tuple[_Actor, ...]
    elements: tuple[_Element, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_delta = msgspec.msgpack.Decoder(_Delta).decode
_decode_leaf = msgspec.msgpack.Decoder(tuple[_WireEntry, ...]).decode
_decode_context = msgspec.msgpack.Decoder(tuple[_Actor, ...]).decode

# --- elements -------------------------------------------------------------------------------------


def encode_leaf(leaf: Leaf) -> bytes:
    """The canonical bytes of one leaf, as a durable replica keeps them under ``path_key``."""
    return _encode(_wire_leaf(leaf))


def decode_leaf(encoded: bytes) -> Leaf:
    """The leaf of canonical bytes that this node has written itself: of ``encode_leaf``.

    Raises:
        CrdtFormatError: they are no leaf.
    """
    try:
        return _leaf(_decode_leaf(encoded))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CrdtFormatError(f"{encoded[:40]!r} is no leaf: {error}") from error


def decode_element(kind: type[Kind], key: bytes, encoded: bytes) -> tuple[Path, Leaf]:
    """One element of data of *kind*, from its key and its leaf.

    Raises:
        CrdtFormatError: they are not canonical, or no such element can be.
    """
    try:
        path = path_of(key)
        leaf = _leaf(_decode_leaf(encoded))
    except (msgspec.DecodeError, InvariantViolationError, RecursionError) as error:
        raise CrdtFormatError(f"the element {key[:40]!r} is damaged: {error}") from error
    check_element(kind, path, leaf)
    if not leaf or encode_leaf(leaf) != encoded:
        raise CrdtFormatError(f"the element {key[:40]!r} is not in canonical form")
    return path, leaf


# --- contexts -------------------------------------------------------------------------------------


def encode_context(context: CausalContext) -> bytes:
    """The canonical bytes of a context."""
    return _encode(_wire_context(context))


def decode_context(encoded: bytes) -> CausalContext:
    """The context of canonical bytes.

    Raises:
        CrdtFormatError: they are not.
    """
    try:
        context = _context(_decode_context(encoded))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CrdtFormatError(f"the context is damaged: {error}") from error
    if encode_context(context) != encoded:
        raise CrdtFormatError("the context is not in canonical form")
    return context


# --- deltas and whole replicas --------------------------------------------------------------------


def encode_delta(delta: Delta) -> bytes:
    """The canonical bytes of a delta: with what is gone, when it is closed."""
    listed = delta.closed
    context = delta.rest
    if not listed:
        context = delta.context()
    elif context:
        context = delta.rest.minus(
            CausalContext.of(
                dot for leaf, gone in delta.elements.values() for dot in (*dots_of(leaf), *gone)
            )
        )
    elements = [
        _Element(path, _wire_leaf(leaf), _wire_dots(gone) if listed else ())
        for path, (leaf, gone) in ((path, delta.elements[path]) for path in delta.touches())
        if leaf or (listed and gone)
    ]
    return _encode(
        _Delta(VERSION, delta.tag, listed, _wire_context(context), tuple(elements)),
    )


def decode_delta(encoded: bytes, *, bytes_max: int = FRAME_BYTES_MAX) -> Delta:
    """The delta of canonical bytes.

    Raises:
        CrdtFormatError: they are longer than *bytes_max*, not canonical, of a newer version, or
            hold what cannot be.
    """
    if len(encoded) > bytes_max:
        raise CrdtFormatError(f"a delta of {len(encoded)} bytes, at most {bytes_max}")
    try:
        wire = _decode_delta(encoded)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CrdtFormatError(f"{encoded[:40]!r} is no delta: {error}") from error
    if wire.version != VERSION:
        raise CrdtFormatError(f"the delta has format {wire.version}, this node knows {VERSION}")
    kind = kind_of(wire.tag)
    elements = {}
    for element in wire.elements:
        leaf, gone = _leaf(element.leaf), _dots(element.gone)
        check_element(kind, element.path, leaf)
        elements[element.path] = (leaf, gone)
    delta = Delta(wire.tag, elements, _context(wire.context), closed=wire.closed)
    _check_dots_once(delta)
    if encode_delta(delta) != encoded:
        raise CrdtFormatError("the delta is not in canonical form")
    return delta


def encode_state(state: State) -> bytes:
    """The canonical bytes of a whole replica."""
    return encode_delta(state.as_delta())


def decode_state(encoded: bytes, *, bytes_max: int = FRAME_BYTES_MAX) -> State:
    """The replica of canonical bytes.

    Raises:
        CrdtFormatError: as ``decode_delta``, or they are those of a part only.
    """
    delta = decode_delta(encoded, bytes_max=bytes_max)
    if delta.closed:
        raise CrdtFormatError("these bytes are a delta, not a whole replica: join it into one")
    state = State(delta.tag)
    state.join(delta)
    return state


def _check_dots_once(delta: Delta) -> None:
    """A dot in two leaves would be removed from both by whoever removes it from one."""
    met = set()
    for leaf, gone in delta.elements.values():
        for dot in (*dots_of(leaf), *gone):
            if dot in met:
                raise CrdtFormatError(f"the dot {dot} stands in the delta twice")
            met.add(dot)


# --- wire and memory ------------------------------------------------------------------------------


def _wire_leaf(leaf: Leaf) -> tuple[_WireEntry, ...]:
    return tuple([(a >> 32, a & NUMBER_MAX, counter, payload) for a, counter, payload in leaf])


def _wire_dots(dots: Dots) -> tuple[_WireDot, ...]:
    return tuple([(a >> 32, a & NUMBER_MAX, counter) for a, counter in dots])


def _wire_context(context: CausalContext) -> tuple[_Actor, ...]:
    return tuple(
        _Actor(
            member_of(actor),
            epoch_of(actor),
            tuple(number for run in context.runs_of(actor) for number in run),
        )
        for actor in context.actors()
    )


def _actor(member: int, epoch: int) -> int:
    if not (1 <= member <= NUMBER_MAX and 1 <= epoch <= NUMBER_MAX):
        raise CrdtFormatError(f"no actor is member {member}, epoch {epoch}")
    return member << 32 | epoch


def _counter(counter: int) -> int:
    if not 1 <= counter <= COUNTER_MAX:
        raise CrdtFormatError(f"no dot has the counter {counter}")
    return counter


def _leaf(wire: tuple[_WireEntry, ...]) -> Leaf:
    leaf: list[Entry] = [
        (_actor(member, epoch), _counter(counter), _payload(payload))
        for member, epoch, counter, payload in wire
    ]
    if any(one[:2] >= two[:2] for one, two in pairwise(leaf)):
        raise CrdtFormatError("the dots of a leaf are out of order")
    return tuple(leaf)


def _payload(payload: Payload) -> Payload:
    if isinstance(payload, bytes):
        if len(payload) > VALUE_BYTES_MAX + 64:
            raise CrdtFormatError(f"a payload of {len(payload)} bytes")
    elif any(not 0 <= number <= COUNTER_MAX for number in payload):
        raise CrdtFormatError(f"a payload has numbers out of range: {payload}")
    return payload


def _dots(wire: tuple[_WireDot, ...]) -> Dots:
    dots = tuple([(_actor(m, e), _counter(counter)) for m, e, counter in wire])
    if any(one >= two for one, two in pairwise(dots)):
        raise CrdtFormatError("dots are out of order")
    return dots


def _context(wire: tuple[_Actor, ...]) -> CausalContext:
    context = CausalContext()
    for each in wire:
        actor = _actor(each.member, each.epoch)
        if len(each.runs) % 2:
            raise CrdtFormatError("a run of a context has no end")
        for first, last in zip(each.runs[::2], each.runs[1::2], strict=True):
            if not 1 <= first <= last <= COUNTER_MAX:
                raise CrdtFormatError(f"no run goes from {first} to {last}")
            context.add_run(actor, first, last)
    return context
