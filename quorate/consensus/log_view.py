"""The log as the core sees it: the term, kind and size of each entry, never a payload.

The driver holds the bytes. So the core stays small and pure, and a disk read for a slow follower
can happen outside of a step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from quorate.base.invariants import must
from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import APPEND_ENTRIES_MAX, Entry, EntryId


class LogView:
    """Entries after *floor*, which stands for everything a checkpoint or snapshot covers."""

    __slots__ = ("_sizes", "_terms", "floor", "last_index")

    def __init__(self, floor: EntryId, terms: Sequence[Term], sizes_bytes: Sequence[int]) -> None:
        must(len(terms) == len(sizes_bytes), "a term and a size per entry")
        self.floor = floor
        self._terms = list(terms)
        self._sizes = list(sizes_bytes)
        self.last_index = LogIndex(floor.index + len(self._terms))

    @property
    def last_term(self) -> Term:
        return self._terms[-1] if self._terms else self.floor.term

    def term_at(self, index: LogIndex) -> Term | None:
        """None: not in the log, or below its floor."""
        at = index - self.floor.index - 1
        if at == -1:
            return self.floor.term
        return self._terms[at] if 0 <= at < len(self._terms) else None

    def append(self, entry: Entry) -> None:
        must(entry.index == self.last_index + 1, "no gaps", index=entry.index, last=self.last_index)
        self._terms.append(entry.term)
        self._sizes.append(len(entry.payload))
        self.last_index = entry.index

    def truncate(self, last: LogIndex) -> None:
        """Drop the entries after *last*."""
        must(last >= self.floor.index, "nothing below the floor is dropped", last=last)
        keep = last - self.floor.index
        del self._terms[keep:]
        del self._sizes[keep:]
        self.last_index = last

    def compact(self, floor: EntryId) -> None:
        """Forget the entries up to *floor*, which must be in the log."""
        term = self.term_at(floor.index)
        must(term == floor.term, "the new floor is an entry of this log", floor=floor, term=term)
        drop = floor.index - self.floor.index
        del self._terms[:drop]
        del self._sizes[:drop]
        self.floor = floor

    def reset(self, floor: EntryId) -> None:
        """Begin anew after a snapshot."""
        self.floor = floor
        self._terms.clear()
        self._sizes.clear()
        self.last_index = floor.index

    def end_of_run(self, first: LogIndex, size_bytes_max: int) -> tuple[LogIndex, int]:
        """Last index to send with *first* so that payloads stay within the bound (always at least
        one entry, if there is one) and entries within theirs, and their size in bytes."""
        at = first - self.floor.index - 1
        end = min(at + APPEND_ENTRIES_MAX, len(self._sizes))
        size = 0
        for offset in range(at, end):
            if size + self._sizes[offset] > size_bytes_max and offset > at:
                return LogIndex(self.floor.index + offset), size
            size += self._sizes[offset]
        return LogIndex(self.floor.index + end), size

    def size_between(self, after: LogIndex, last: LogIndex) -> int:
        """Bytes of payload of the entries in ``(after, last]``."""
        base = self.floor.index
        return sum(self._sizes[max(after - base, 0) : last - base])

    def last_with_term_at_most(self, index: LogIndex, term: Term) -> EntryId:
        """The last entry at or before *index* whose term is at most *term* (thesis 5.3).

        Terms never fall along a log, so everything after it surely differs from a log whose
        entry at *index* has *term*. Never below the floor.
        """
        end = max(min(index, self.last_index) - self.floor.index, 0)
        at = bisect_right(self._terms, term, 0, end)
        found = LogIndex(self.floor.index + at)
        return EntryId(found, self._terms[at - 1] if at else self.floor.term)
