"""Who is next: the ready tasks of a queue, in lines.

A line is for the tasks of one queue that need the same of a worker and have the same priority. In
it stand the keys, by whose turn it is, and of each key its tasks, by id, which is the order in
which they were enqueued. So a task that nobody can run holds up its own line only, and a key with
a million tasks holds up nobody.

All of it is derived from the tables. A line keeps exact counts; beside that it may hold what is no
longer ready, or is no longer allowed to run, and sheds it when it comes to the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from quorate.base.task_specs import Needs

#: Tasks of a key that are kept though they are no longer ready, beside as many as are.
STALE_MAX: Final = 1_000


class Key:
    """What a queue has of one key: tasks that have not ended, and those that workers have."""

    __slots__ = ("live", "running", "turn")

    def __init__(self) -> None:
        self.live = 0
        self.running = 0
        self.turn = 0


class Ready:
    """Tasks of one key in a line, by id, and perhaps some that have left it. New ones come in
    order, so they stand in a list; those that come back, in a heap. The first of a million costs
    no more than the first of ten (from a heap: 2 us)."""

    __slots__ = ("_at", "_back", "_list")

    def __init__(self, task: int) -> None:
        self._list = [task]  # ascending
        self._at = 0  # in the list; all before it have left
        self._back: list[int] | None = None

    def add(self, task: int) -> None:
        """One more."""
        if not self._list or task > self._list[-1]:
            self._list.append(task)
        elif self._back is None:
            self._back = [task]
        else:
            heapq.heappush(self._back, task)

    def skip(self, task: int) -> None:
        """*task* leaves: if it is the first of the list, nobody need look at it again."""
        at = self._at
        if at < len(self._list) and self._list[at] == task:
            self._at = at + 1

    def size(self) -> int:
        """Of all, with those that have left."""
        return len(self._list) - self._at + len(self._back or ())

    def first(self, stands: Callable[[int, Line, bytes], bool], line: Line, key: bytes) -> int:
        """The lowest that stands; there is one."""
        tasks, at, back = self._list, self._at, self._back
        while at < len(tasks) and not stands(tasks[at], line, key):
            at += 1
        if at > STALE_MAX and 2 * at > len(tasks):
            del tasks[:at]
            at = 0
        self._at = at
        if back:
            while back and not stands(back[0], line, key):
                heapq.heappop(back)
            if back and (at >= len(tasks) or back[0] < tasks[at]):
                return back[0]
        return tasks[at]

    def each(self) -> Iterator[int]:
        """All, ascending."""
        tasks = self._list
        in_order = map(tasks.__getitem__, range(self._at, len(tasks)))
        return heapq.merge(in_order, sorted(self._back)) if self._back else in_order

    def set(self, tasks: list[int]) -> None:
        """These, and no others."""
        self._list, self._at, self._back = tasks, 0, None


class Line:
    """See the module. *turn_of*: of a key. *stands*: whether a task stands in this line, under a
    key: a number that was put there may be of a task that has gone elsewhere since, or even, if the
    command that drew it was taken back, of another one."""

    __slots__ = (
        "_ready",
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
        self._ready: dict[bytes, Ready] = {}
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
            self._ready[key] = Ready(task)
            self.admit(key)
        else:
            counts[key] = count + 1
            self._ready[key].add(task)

    def remove(self, task: int, key: bytes) -> None:
        """*task*, of *key*, is not ready any more."""
        self.count -= 1
        left = self.counts[key] - 1
        if left:
            self.counts[key] = left
            ready = self._ready[key]
            ready.skip(task)
            if ready.size() > 2 * left + STALE_MAX:
                ready.set(list(self._standing(ready, key)))
        else:
            del self.counts[key], self._ready[key]

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
            return self._ready[key].first(self._stands, self, key), key
        return None

    def only_head(self) -> tuple[int, bytes]:
        """As ``head``, if all tasks have the empty key, which nothing limits; there is one."""
        return self._ready[b""].first(self._stands, self, b""), b""

    def first(self, count: int) -> list[int]:
        """The lowest *count* ready tasks, by id. Looks at the heads of all keys."""
        found: list[int] = []
        for key, ready in self._ready.items():
            found.extend(islice(self._standing(ready, key), count))
        return sorted(found)[:count]

    def _standing(self, ready: Ready, key: bytes) -> Iterator[int]:
        before = 0
        for task in ready.each():
            if task != before and self._stands(task, self, key):
                yield task
            before = task
