"""Which entries a log holds and where they lie, 21 bytes each; and the rules of appending.

Pure bookkeeping: no file is touched here. Relies on, and keeps, one order: of two live entries
the one with the higher index was written later, so locations never fall with the index.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from quorate.base.invariants import must
from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.storage.files import SECTOR_BYTES
from quorate.storage.interfaces import EntryMeta

KIND_MAX = 255
_SEGMENT_SHIFT = 32


class Run(NamedTuple):
    """Neighbouring entries *first* to *last* that lie in one frame; *size_bytes* of payload."""

    segment: int
    offset: int
    first: int
    last: int
    size_bytes: int


def check_append(
    floor: EntryId,
    last: EntryId,
    entries: Sequence[Entry],
    present: HardState,
    new: HardState | None,
) -> None:
    """What every caller of ``LogStore.append`` owes, checked before anything is written.

    Raises:
        InvariantViolationError: the append would leave a log that recovery rightly refuses.
    """
    state = present if new is None else new
    must(state.term >= present.term, "terms never go back", was=present, now=state)
    last_index: int = last.index
    if entries:
        index: int = entries[0].index
        must(index > floor.index, "appends stay above the floor", index=index, floor=floor)
        must(index <= last_index + 1, "appends leave no gap", index=index, last=last)
        for entry in entries:
            must(entry.index == index, "entries are contiguous", index=entry.index, expected=index)
            must(0 <= entry.kind <= KIND_MAX, "a kind is one byte", kind=entry.kind)
            index += 1
        last_index = index - 1
    must(
        state.commit <= last_index, "what is committed is in the log", state=state, last=last_index
    )


class EntryTable:
    """Terms, sizes, kinds and locations of the live entries above *floor*."""

    def __init__(self, floor: EntryId) -> None:
        self.floor = floor
        self.payload_bytes = 0
        self._terms = array("Q")
        self._sizes = array("I")
        self._kinds = array("B")
        #: Segment number in the upper 32 bits, sector number in the lower.
        self._locations = array("Q")

    def __len__(self) -> int:
        return len(self._terms)

    @property
    def last(self) -> EntryId:
        """The newest entry, or the floor."""
        if not self._terms:
            return self.floor
        return EntryId(LogIndex(self.floor.index + len(self._terms)), Term(self._terms[-1]))

    def term(self, index: int) -> Term:
        """Term of the entry at *index*, from the floor to the last."""
        if index == self.floor.index:
            return self.floor.term
        return Term(self._terms[index - self.floor.index - 1])

    def replace(self, entries: Sequence[Entry], segment: int, offset: int) -> None:
        """The log now ends with *entries*, which lie in the frame at *offset* of *segment*."""
        self._truncate(entries[0].index - self.floor.index - 1)
        location = segment << _SEGMENT_SHIFT | offset // SECTOR_BYTES
        for entry in entries:
            size = len(entry.payload)
            self._terms.append(entry.term)
            self._sizes.append(size)
            self._kinds.append(entry.kind)
            self._locations.append(location)
            self.payload_bytes += size

    def first_in(self, segment: int) -> EntryId:
        """The entry just before the first live one that lies in *segment* or later."""
        position = bisect_left(self._locations, segment << _SEGMENT_SHIFT)
        index = LogIndex(self.floor.index + position)
        return EntryId(index, self.term(index))

    def segment(self, index: int) -> int:
        """Number of the segment that holds the entry at *index*."""
        return self._locations[index - self.floor.index - 1] >> _SEGMENT_SHIFT

    def raise_floor(self, floor: EntryId) -> None:
        """Forget the entries up to *floor*."""
        count = floor.index - self.floor.index
        self.payload_bytes -= sum(self._sizes[:count])
        for column in (self._terms, self._sizes, self._kinds, self._locations):
            del column[:count]
        self.floor = floor

    def runs(self, first: int, last: int, size_bytes_max: int) -> list[Run]:
        """Where to read *first* to *last*, ending before *size_bytes_max* of payload is passed,
        but with at least one entry."""
        found: list[Run] = []
        position, end = first - self.floor.index - 1, last - self.floor.index
        left = size_bytes_max
        while position < end:
            location, start, run_bytes = self._locations[position], position, 0
            while position < end and self._locations[position] == location:
                size = self._sizes[position]
                if size > left and (found or position > start):
                    end = position
                    break
                left -= size
                run_bytes += size
                position += 1
            if position > start:
                index = self.floor.index + 1 + start
                segment, sector = location >> _SEGMENT_SHIFT, location & (1 << _SEGMENT_SHIFT) - 1
                end_index = index + position - start - 1
                found.append(Run(segment, sector * SECTOR_BYTES, index, end_index, run_bytes))
        return found

    def metas(self) -> list[EntryMeta]:
        """What the core must know of each entry, in index order."""
        columns = zip(self._terms, self._kinds, self._sizes, strict=True)
        return [EntryMeta(Term(term), kind, size) for term, kind, size in columns]

    def _truncate(self, count: int) -> None:
        if count == len(self._terms):
            return
        self.payload_bytes -= sum(self._sizes[count:])
        for column in (self._terms, self._sizes, self._kinds, self._locations):
            del column[count:]
