"""Deadlines of things that are renewed far more often than they end.

It is lazy: a renewal touches nothing here, so an item may stand too early, never too late. Items
are mended as they come to the top, so things end in the order of (deadline, id) however stale this
was - which a restart changes, and the log must not.

Most deadlines come in order, being so and so long after a clock that only advances. They stand in
a list; only the others in a heap. The first of 200,000 costs no more than the first of ten (from a
heap: 1.5 us).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

Item = TypeVar("Item", int, bytes)

#: Deadlines of what has ended that are kept until they come to the top, beside one per live one.
STALE_MAX: Final = 1000


class Deadlines(Generic[Item]):
    """*deadline_of*: of an id, in cluster time; None once it has ended."""

    __slots__ = ("_at", "_deadline_of", "_heap", "_line")

    def __init__(self, deadline_of: Callable[[Item], int | None]) -> None:
        self._deadline_of: Callable[[Item], int | None] = deadline_of
        #: Both of (no later than its deadline, id); of the line, what is before ``_at`` has gone.
        self._line: list[tuple[int, Item]] = []
        self._at = 0
        self._heap: list[tuple[int, Item]] = []

    def __len__(self) -> int:
        """With what has ended and not come to the top yet."""
        return len(self._line) - self._at + len(self._heap)

    def load(self, items: Iterable[tuple[int, Item]]) -> None:
        """Begin anew with these (deadline, id)."""
        self._line, self._at, self._heap = sorted(items), 0, []

    def add(self, deadline_ms: int, item: Item) -> None:
        """A new id."""
        new = (deadline_ms, item)
        line = self._line
        if self._at == len(line) or new >= line[-1]:
            line.append(new)
        else:
            heapq.heappush(self._heap, new)

    def first_ms(self) -> int | None:
        """The earliest deadline of what has not ended."""
        first = self._mend()
        return None if first is None else first[0]

    def take(self, now_ms: int) -> Item | None:
        """The first id whose deadline has come; it is to be ended before the next is asked for."""
        first = self._first()
        if first is None or first[0] > now_ms:  # none is later than it shows
            return None
        first = self._mend()
        if first is None or first[0] > now_ms:
            return None
        self._drop()
        return first[1]

    def due(self, now_ms: int) -> Iterator[Item]:
        """Ids whose deadline has come, in order; each is to be ended before the next is asked
        for."""
        while (item := self.take(now_ms)) is not None:
            yield item

    def put_back(self, item: Item) -> None:
        """It was due, and what was done about it was taken back."""
        deadline_ms = self._deadline_of(item)
        if deadline_ms is not None:
            self.add(deadline_ms, item)

    def sweep(self, live_count: int) -> None:
        """Drop what has ended, if that is most of it."""
        if len(self) > 2 * live_count + STALE_MAX:
            both = self._line[self._at :] + self._heap
            self.load(each for each in both if self._deadline_of(each[1]) is not None)

    def _first(self) -> tuple[int, Item] | None:
        """What shows the earliest deadline."""
        line, at, heap = self._line, self._at, self._heap
        if at < len(line):
            first = line[at]
            return heap[0] if heap and heap[0] < first else first
        return heap[0] if heap else None

    def _drop(self) -> None:
        """Forget what is first."""
        line, at, heap = self._line, self._at, self._heap
        if heap and (at == len(line) or heap[0] < line[at]):
            heapq.heappop(heap)
            return
        self._at = at + 1
        if at > STALE_MAX and 2 * at > len(line):
            del line[: at + 1]
            self._at = 0

    def _mend(self) -> tuple[int, Item] | None:
        """What is first, once that is the true deadline of something that lives."""
        while (first := self._first()) is not None:
            shown_ms, item = first
            deadline_ms = self._deadline_of(item)
            if deadline_ms is not None and deadline_ms <= shown_ms:
                return first
            self._drop()
            if deadline_ms is not None:
                self.add(deadline_ms, item)
        return None
