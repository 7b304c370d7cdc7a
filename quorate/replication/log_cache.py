"""The recent end of the log in memory: what is sent to followers and applied, mostly at once.

The driver adds entries here when it hands them to the disk, so nothing waits for a read back.
Entries leave when they are durable and applied *and* the cache is over its size; a follower that
needs older ones is served from the file.

What readers of the file rely on: everything below ``first_index`` is durable there in the form
that the core knows, everything from ``first_index`` on is here. The file may still hold entries
that were overwritten a moment ago, and never is asked for those.
"""

from __future__ import annotations

from collections.abc import Sequence

from quorate.base.invariants import must
from quorate.base.types import LogIndex
from quorate.consensus.messages import Entry

#: Entries that are durable but not applied leave too when the cache is so many times its size:
#: a member that catches up writes faster than it applies.
UNAPPLIED_FACTOR = 4


class LogCache:
    """A window of consecutive entries ``first_index .. last_index``."""

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._entries: list[Entry] = []
        self._first = LogIndex(1)
        self.size_bytes = 0

    @property
    def first_index(self) -> LogIndex:
        """Of the first entry here, or of the next one to come if the cache is empty."""
        return self._first

    @property
    def last_index(self) -> LogIndex:
        """Of the last entry here; ``first_index - 1`` if the cache is empty."""
        return LogIndex(self._first + len(self._entries) - 1)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append; entries at or below the last index replace it and all after it."""
        if not entries:
            return
        first = entries[0].index
        if not self._entries:
            self._first = first
        elif first <= self.last_index:
            self.truncate(LogIndex(first - 1))
            if not self._entries:
                self._first = first
        must(first == self.last_index + 1, "no gaps", first=first, last=self.last_index)
        self._entries.extend(entries)
        self.size_bytes += sum(len(entry.payload) for entry in entries)

    def truncate(self, last: LogIndex) -> None:
        """Drop the entries after *last*."""
        keep = max(last - self._first + 1, 0)
        for entry in self._entries[keep:]:
            self.size_bytes -= len(entry.payload)
        del self._entries[keep:]

    def reset(self, last: LogIndex) -> None:
        """Empty the cache; the next entry will be ``last + 1``."""
        self._entries.clear()
        self.size_bytes = 0
        self._first = LogIndex(last + 1)

    def get(self, index: LogIndex) -> Entry | None:
        at = index - self._first
        return self._entries[at] if 0 <= at < len(self._entries) else None

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...] | None:
        """Entries *first* to *last*, or None if not all of them are here."""
        at = first - self._first
        end = last - self._first + 1
        if at < 0 or end > len(self._entries):
            return None
        return tuple(self._entries[at:end])

    def trim(self, applied: LogIndex, durable: LogIndex) -> None:
        """Let go of entries that are durable, and up to *applied*, while the cache is over its
        size; of those after *applied* too while it is far over."""
        if self.size_bytes <= self._size_bytes_max:
            return
        # A quarter of it at once: deleting from a list's head moves the list.
        self._drop(LogIndex(min(applied, durable)), self._size_bytes_max * 3 // 4)
        if self.size_bytes > self._size_bytes_max * UNAPPLIED_FACTOR:
            self._drop(durable, self._size_bytes_max * (UNAPPLIED_FACTOR - 1))

    def _drop(self, last: LogIndex, target_bytes: int) -> None:
        drop = 0
        limit = min(last - self._first + 1, len(self._entries))
        while drop < limit and self.size_bytes > target_bytes:
            self.size_bytes -= len(self._entries[drop].payload)
            drop += 1
        del self._entries[:drop]
        self._first = LogIndex(self._first + drop)
