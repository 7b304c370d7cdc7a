"""What the second tier keeps beside its elements: records, what it knows of itself, and requests.

A *record* is what one group commit of one life of a node did: a closed delta. The records of a life
are numbered from 1 without a gap, and travel, are joined and are confirmed in that order. A
*frontier* says of each life up to which record a node has joined them all: unlike a causal context,
which says what is accounted for, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from quorate.base.crdt_frames import Mark, Position, Refusal
from quorate.base.limits import MIB
from quorate.crdt.codec import decode_context, encode_context
from quorate.crdt.context import CausalContext
from quorate.crdt.dots import NUMBER_MAX
from quorate.errors import CrdtError, FormatVersionError, StoreCorruptionError

JOURNAL: Final = "journal"
REQUESTS: Final = "requests"
META: Final = "meta"
META_KEY: Final = b"self"
FORMAT: Final = 1

#: What the operations of one record may come to: one frame always holds it.
RECORD_BYTES_MAX: Final = 4 * MIB

Frontier = dict[int, int]
"""By actor, the sequence up to which all its records are joined and durable."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One row of the journal, by actor and sequence. *generation*: the stage of folding at which
    its author was. *after*: what its author had joined of others, as far as its
    record before this one does not say so; it is joined where all of that is. Of this node's own
    records alone: *first*: counter of the first dot; *before*: what stood in cells of its own that
    it raised, and that were there before, each by its key."""

    generation: int
    delta: bytes
    after: tuple[tuple[int, int], ...] = ()
    first: int = 0
    before: tuple[tuple[bytes, tuple[int, ...]], ...] = ()


class Requests(msgspec.Struct, frozen=True, array_like=True):
    """One row by client: the frames that were done and whose answers it may not have, each with
    the actor and sequence of its last record, and its results. *wall_ms*: of the last.
    *acknowledged*: it has all answers up to here, and a frame from before is a late copy."""

    wall_ms: int
    acknowledged: int
    done: dict[int, tuple[int, int, tuple[Refusal | None, ...]]]


class Own(msgspec.Struct, frozen=True, array_like=True):
    """What a node knows of itself, written with every batch. *actor* 0: it never took a write.
    *retired*: by member, the last life that was folded away. *ahead*: elements here may show what
    these records did, beyond the frontier. *floors*: by actor, the journal is of use only behind
    that record; what is left before it is to be deleted. *generation*: the stage of folding
    (``crdt.folding``); *finishing*: the lives that the next fold takes, if it is prepared here.
    *lived*: number of the last life of this node that wrote here."""

    version: int
    actor: int
    counter: int
    sequence: int
    wall_ms: int
    logical: int
    generation: int
    retired: dict[int, int]
    context: bytes
    frontier: dict[int, int]
    journal_bytes: int = 0
    ahead: dict[int, int] = {}
    floors: dict[int, int] = {}
    finishing: tuple[int, ...] = ()
    lived: int = 0


NEW: Final = Own(FORMAT, 0, 0, 0, 0, 0, 0, {}, encode_context(CausalContext()), {})

_encoder = msgspec.msgpack.Encoder()
_decode_own = msgspec.msgpack.Decoder(Own).decode
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_requests = msgspec.msgpack.Decoder(Requests).decode
encode = _encoder.encode


def decode_own(encoded: bytes | None) -> tuple[Own, CausalContext]:
    """What a store says of itself; ``NEW`` of an empty one.

    Raises:
        StoreCorruptionError, FormatVersionError: it cannot be read.
    """
    if encoded is None:
        return NEW, CausalContext()
    try:
        own = _decode_own(encoded)
        if own.version > FORMAT:
            raise FormatVersionError(
                f"the CRDT data was written in format {own.version}, this version knows {FORMAT}: "
                f"run the version that wrote it, or a later one"
            )
        return own, decode_context(own.context)
    except (msgspec.DecodeError, CrdtError) as error:
        raise StoreCorruptionError(f"the store of CRDT data is damaged: {error}") from error


def decode_record(encoded: bytes) -> Record:
    """A row of the journal.

    Raises:
        StoreCorruptionError: it is none.
    """
    try:
        return _decode_record(encoded)
    except msgspec.DecodeError as error:
        raise StoreCorruptionError(f"a record of the journal cannot be read: {error}") from error


def decode_requests(encoded: bytes | None) -> Requests:
    """A client's row; an empty one if there is none.

    Raises:
        StoreCorruptionError: it cannot be read.
    """
    if encoded is None:
        return Requests(0, 0, {})
    try:
        return _decode_requests(encoded)
    except msgspec.DecodeError as error:
        raise StoreCorruptionError(f"the requests of a client cannot be read: {error}") from error


def journal_key(actor: int, sequence: int) -> bytes:
    """The key of a record: sorts by actor, then by sequence."""
    return actor.to_bytes(8, "big") + sequence.to_bytes(8, "big")


def parse_journal_key(key: bytes) -> tuple[int, int]:
    """Actor and sequence of a record's key."""
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")


FOLDS: Final = 0
"""In marks, the place of an actor that stands for how often lives were folded away."""


def position_of(frontier: Mapping[int, int], index: int, folds: int) -> Position:
    """A frontier as a client carries it, with all that went in so many *folds*."""
    return Position(
        index,
        ((Mark(0, FOLDS, folds),) if folds else ())
        + tuple(
            Mark(actor >> 32, actor & NUMBER_MAX, frontier[actor])
            for actor in sorted(frontier)
            if frontier[actor]
        ),
    )


def marks_of(position: Position) -> Frontier:
    """The records that a position names."""
    return {mark.member << 32 | mark.epoch: mark.sequence for mark in position.marks}


def raise_to(frontier: Frontier, more: Mapping[int, int]) -> None:
    """Let *frontier* hold what *more* holds, too."""
    for actor, sequence in more.items():
        if sequence > frontier.get(actor, 0):
            frontier[actor] = sequence


def pairs(frontier: Mapping[int, int], actors: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(actor, sequence) of those of *actors* that are in *frontier*, in order."""
    return tuple((actor, frontier[actor]) for actor in sorted(actors) if frontier.get(actor, 0))
