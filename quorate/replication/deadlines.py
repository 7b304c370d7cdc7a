"""Deadlines of things that are renewed far more often than they end.

A heap that is lazy: a renewal does not touch it, so an item may be too early, never too late. Items
are mended as they come to the top, so things end in the order of (deadline, id) however stale the
heap was - which a restart changes, and the log must not.
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

    __slots__ = ("_deadline_of", "_heap")

    def __init__(self, deadline_of: Callable[[Item], int | None]) -> None:
        self._deadline_of: Callable[[Item], int | None] = deadline_of
        self._heap: list[tuple[int, Item]] = []  # (no later than its deadline, id)

    def load(self, items: Iterable[tuple[int, Item]]) -> None:
        """Begin anew with these (deadline, id)."""
        self._heap = list(items)
        heapq.heapify(self._heap)

    def add(self, deadline_ms: int, item: Item) -> None:
        """A new id."""
        heapq.heappush(self._heap, (deadline_ms, item))

    def first_ms(self) -> int | None:
        """The earliest deadline of what has not ended."""
        self._mend()
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> Iterator[Item]:
        """Ids whose deadline has come, in order; each is to be ended before the next is asked
        for."""
        while self._heap and self._heap[0][0] <= now_ms:  # none is later than it shows
            self._mend()
            if self._heap and self._heap[0][0] <= now_ms:
                yield heapq.heappop(self._heap)[1]

    def put_back(self, item: Item) -> None:
        """It was due, and what was done about it was taken back."""
        deadline_ms = self._deadline_of(item)
        if deadline_ms is not None:
            self.add(deadline_ms, item)

    def sweep(self, live_count: int) -> None:
        """Drop what has ended, if that is most of it."""
        if len(self._heap) > 2 * live_count + STALE_MAX:
            self._heap = [each for each in self._heap if self._deadline_of(each[1]) is not None]
            heapq.heapify(self._heap)

    def _mend(self) -> None:
        """Until the top of the heap is the true deadline of something that lives."""
        heap = self._heap
        while heap:
            shown_ms, item = heap[0]
            deadline_ms = self._deadline_of(item)
            if deadline_ms is None:
                heapq.heappop(heap)
            elif deadline_ms > shown_ms:
                heapq.heapreplace(heap, (deadline_ms, item))
            else:
                return
