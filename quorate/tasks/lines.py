"""Who is next: the ready tasks of a queue, in lines.

A line is for the tasks of one queue that need the same of a worker and have the same priority. In
it stand the keys, by whose turn it is, and of each key its tasks, by id, which is the order in
which they were enqueued. So a task that nobody can run holds up its own line only, and a key with
a million tasks holds up nobody.

All of it is derived from the tables. A line keeps exact counts; its heaps may hold what is no
longer ready, or is no longer allowed to run, and shed it when it comes to the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from quorate.base.task_specs import Needs

#: Tasks of a key that have left its heap otherwise than by its top, beside those that are ready.
STALE_MAX: Final = 1_000


class Key:
    """What a queue has of one key: tasks that have not ended, and those that workers have."""

    __slots__ = ("live", "running", "turn")

    def __init__(self) -> None:
        self.live = 0
        self.running = 0
        self.turn = 0


class Line:
    """See the module. *turn_of*: of a key. *stands*: whether a task stands in this line, under a
    key: a number in a heap may be of a task that has gone elsewhere since, or even, if the command
    that drew it was taken back, of another one."""

    __slots__ = (
        "_heaps",
        "_ring",
        "_ringed",
        "_stands",
        "_turn_of",
        "count",
        "counts",
        "needs",
        "priority",
        "queue",
    )

    def __init__(
        self,
        queue: str,
        needs: Needs,
        priority: int,
        turn_of: Callable[[bytes], int],
        stands: Callable[[int, Line, bytes], bool],
    ) -> None:
        self.queue = queue
        self.needs = needs
        self.priority = priority
        self.count = 0  # ready tasks
        self.counts: dict[bytes, int] = {}  # the same, by key
        self._heaps: dict[bytes, list[int]] = {}
        self._ring: list[tuple[int, bytes]] = []  # (no later than its turn, key)
        self._ringed: dict[bytes, int] = {}  # the turn under which a key stands in the ring
        self._turn_of = turn_of
        self._stands = stands

    def add(self, task: int, key: bytes) -> None:
        """*task* is ready."""
        self.count += 1
        counts = self.counts
        count = counts.get(key)
        if count is None:
            counts[key] = 1
            self._heaps[key] = [task]
            self.admit(key)
        else:
            counts[key] = count + 1
            heapq.heappush(self._heaps[key], task)

    def remove(self, key: bytes) -> None:
        """A task of *key* is not ready any more."""
        self.count -= 1
        left = self.counts[key] - 1
        if left:
            self.counts[key] = left
            heap = self._heaps[key]
            if len(heap) > 2 * left + STALE_MAX:
                self._heaps[key] = sorted(self._standing(heap, key))
        else:
            del self.counts[key], self._heaps[key]

    def admit(self, key: bytes) -> None:
        """*key* may have its turn (again), if something of it is ready: it had left the line as
        it was at its limit; or its turn has become an earlier one."""
        if key in self.counts:
            turn = self._turn_of(key)
            shown = self._ringed.get(key)
            if shown is None or turn < shown:
                self._ringed[key] = turn
                heapq.heappush(self._ring, (turn, key))

    def head(self, allowed: Callable[[bytes], bool]) -> tuple[int, bytes] | None:
        """The next task and its key. Keys that are not *allowed* leave the line until they are
        admitted again."""
        ring = self._ring
        while ring:
            turn, key = ring[0]
            if self._ringed.get(key) != turn:  # it stands elsewhere, with an earlier turn
                heapq.heappop(ring)
                continue
            if key not in self.counts:
                heapq.heappop(ring)
                del self._ringed[key]
                continue
            present = self._turn_of(key)
            if present != turn:
                self._ringed[key] = present
                heapq.heapreplace(ring, (present, key))
                continue
            if not allowed(key):
                heapq.heappop(ring)
                del self._ringed[key]
                continue
            heap = self._heaps[key]
            while not self._stands(heap[0], self, key):
                heapq.heappop(heap)
            return heap[0], key
        return None

    def first(self, count: int) -> list[int]:
        """The lowest *count* ready tasks, by id. Looks at the heads of all keys."""
        found: list[int] = []
        for key, heap in self._heaps.items():
            found.extend(heapq.nsmallest(count, self._standing(heap, key)))
        return sorted(found)[:count]

    def _standing(self, heap: list[int], key: bytes) -> list[int]:
        return [task for task in dict.fromkeys(heap) if self._stands(task, self, key)]
