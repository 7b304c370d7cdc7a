"""The recent end of the log in memory: what is sent to followers and applied, mostly at once.

The driver adds entries here when it hands them to the disk, so nothing waits for a read back.
Entries leave when they are applied *and* the cache is over its size; a follower that needs older
ones is served from the file.
"""

from __future__ import annotations

from collections.abc import Sequence

from quorate.base.invariants import must
from quorate.base.types import LogIndex
from quorate.consensus.messages import Entry


class LogCache:
    """A window of consecutive entries ``first_index .. last_index``."""

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._entries: list[Entry] = []
        self._first = LogIndex(1)
        self.size_bytes = 0

    @property
    def last_index(self) -> LogIndex:
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

    def trim(self, applied: LogIndex) -> None:
        """Let go of entries up to *applied* while the cache is over its size."""
        if self.size_bytes <= self._size_bytes_max:
            return
        drop = 0
        limit = min(applied - self._first + 1, len(self._entries))
        target = (
            self._size_bytes_max * 3 // 4
        )  # a quarter at once: deleting from a list's head moves it
        while drop < limit and self.size_bytes > target:
            self.size_bytes -= len(self._entries[drop].payload)
            drop += 1
        del self._entries[:drop]
        self._first = LogIndex(self._first + drop)
