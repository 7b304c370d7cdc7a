"""Cells: the leaves of counters, one for each actor, whose numbers only that actor raises.

A cell has the dot of the mutation that began it, and keeps it while its numbers grow: of one dot,
joining takes the greater of each number. So a counter takes one leaf per actor, however often it is
raised. A dot store alone would then let a removal take increments that its author never saw, or
give back what it removed: the "reset anomaly" of counters in maps (Riak's documentation has it;
Baquero, Almeida and Lerche, "The problem with embedded CRDT counters", 2016). Here a removal writes
into the cell how much of it was seen and removed, which only grows too. What was not seen stays,
exactly. When the owner of a cell sees that all of it was removed, it drops the cell, and begins its
next one with another dot; nobody else may, not knowing what the owner has added meanwhile.

When an actor is no more and a replica has all that it ever did, its cell is as good as the
replica's own: whoever removes it has seen all of it. ``folding`` puts such cells into a common one.
"""

from __future__ import annotations

from typing import Final

from quorate.base.crdt_operations import AMOUNT_MAX
from quorate.crdt.dots import NO_ACTOR, NUMBER_MAX, Entry, Leaf
from quorate.crdt.kind import Moment
from quorate.errors import CrdtFormatError, LimitExceededError

SEGMENT_BYTES: Final = 8


def segment_of(actor: int) -> bytes:
    """The segment of the cells of *actor*; sorts as actors do."""
    return actor.to_bytes(SEGMENT_BYTES, "big")


COMMON: Final = segment_of(NO_ACTOR)
"""The segment of the cell that actors leave to all when they are no more."""


def owner_of(segment: bytes) -> int:
    """The actor whose segment it is.

    Raises:
        CrdtFormatError: it is nobody's.
    """
    actor = int.from_bytes(segment, "big")
    if len(segment) != SEGMENT_BYTES or not (actor >> 32 and actor & NUMBER_MAX):
        raise CrdtFormatError(f"{segment[:40]!r} names no actor")
    return actor


def own_entry(leaf: Leaf, at: Moment, numbers: int) -> Entry:
    """The entry that ``at.actor`` raises: the one that it began, or a new one with *numbers*
    zeros under the dot of now."""
    for entry in leaf:
        if entry[0] == at.actor:
            return entry
    return (at.actor, at.counter, (0,) * numbers)


def numbers_of(entry: Entry) -> tuple[int, ...]:
    """What a cell's entry carries."""
    payload = entry[2]
    if isinstance(payload, bytes):
        raise CrdtFormatError(f"a cell carries {payload[:40]!r} and no numbers")
    return payload


def raised(entry: Entry, by: tuple[int, ...]) -> Entry:
    """*entry* with its numbers raised, each by its own amount.

    Raises:
        LimitExceededError: one of them would leave 63 bits.
    """
    numbers = tuple(a + b for a, b in zip(numbers_of(entry), by, strict=True))
    if max(numbers) > AMOUNT_MAX:
        raise LimitExceededError(f"a counter's own part would pass {AMOUNT_MAX}")
    return (entry[0], entry[1], numbers)


def one_for_the_dead(entries: Leaf) -> Leaf:
    """Entries of actors that are no more, added up into the one with the last dot; as they are, in
    the unlikely case that this would leave 63 bits."""
    if len(entries) < 2:
        return entries
    sums = tuple(sum(numbers) for numbers in zip(*map(numbers_of, entries), strict=True))
    if max(sums) > AMOUNT_MAX:
        return entries
    actor, counter, _payload = entries[-1]
    return ((actor, counter, sums),)


def check_cell(leaf: Leaf, owner: int, numbers: int) -> None:
    """Refuse a leaf that cannot be a cell of *owner* with so many *numbers*. ``NO_ACTOR``: of
    anybody, who may be no more.

    Raises:
        CrdtFormatError: it cannot.
    """
    for entry in leaf:
        if owner not in {entry[0], NO_ACTOR}:
            raise CrdtFormatError("a cell holds a dot that is not its owner's")
        if len(numbers_of(entry)) != numbers:
            raise CrdtFormatError(f"a cell has {len(numbers_of(entry))} numbers, not {numbers}")
