"""What is derived from the records of one queue: counts, keys, lines, and what its rules allow."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from quorate.base.task_specs import DONE, NO_NEEDS, PRIORITY_MAX, READY, Needs, Task
from quorate.tasks.lines import Key, Line
from quorate.tasks.records import LiveRecord, QueueRecord, needs_of

NO_RULES: Final = QueueRecord()
#: Later than any time there is.
NEVER_MS: Final = 2**63 - 1


class Queue:
    """One queue. *stands*: see ``Line``. *full_at_us*: of the rate of the queue (key None) or
    of one of its keys, 0 if nothing is used up."""

    __slots__ = (
        "_full_at_us",
        "_sleeping",
        "_stands",
        "counts",
        "keys",
        "lines",
        "name",
        "named",
        "now_ms",
        "plain",
        "ready",
        "rules",
        "running",
    )

    def __init__(
        self,
        name: str,
        rules: QueueRecord,
        stands: Callable[[int, Line, bytes], bool],
        full_at_us: Callable[[str, bytes | None], int],
    ) -> None:
        self.name = name
        self.rules = rules
        self.counts = [0] * DONE  # by state
        self.running = 0  # tasks that workers have
        self.ready = 0
        self.keys: dict[bytes, Key] = {}
        self.named = 0  # keys but the empty one
        self.plain: list[Line | None] = [None] * (PRIORITY_MAX + 1)  # of tasks without needs
        self.lines: dict[tuple[Needs, int], Line] = {}
        self.now_ms = 0  # for ``allowed``
        self._stands = stands
        self._full_at_us = full_at_us
        self._sleeping: list[tuple[int, bytes]] = []  # keys over their rate, and until when

    @property
    def live(self) -> int:
        """Tasks that have not ended."""
        return sum(self.counts)

    @property
    def keyed(self) -> bool:
        """Whether what is handed out of one line may change what is next in another."""
        return bool(self.named or self.rules.key_running_max or self.rules.key_rate)

    # --- what changes ---------------------------------------------------------------------------

    def line(self, task: Task, live: LiveRecord) -> Line:
        """Where a ready task stands."""
        priority = task.priority
        if task.options is None and not live.pin:
            line = self.plain[priority]
            if line is None:
                line = self.plain[priority] = self._new_line(NO_NEEDS, priority)
            return line
        needs = needs_of(task, live)
        if needs == NO_NEEDS:
            return self.line(_PLAIN[priority], _UNPINNED)
        line = self.lines.get((needs, priority))
        if line is None:
            line = self.lines[needs, priority] = self._new_line(needs, priority)
        return line

    def _new_line(self, needs: Needs, priority: int) -> Line:
        return Line(self.name, needs, priority, self._turn_of, self._stands)

    def leave(self, line: Line, task: int, key: bytes) -> None:
        """*task* is not ready any more."""
        line.remove(task, key)
        if not line.count and line.needs is not NO_NEEDS:
            del self.lines[line.needs, line.priority]

    def _turn_of(self, key: bytes) -> int:
        found = self.keys.get(key)
        return 0 if found is None else found.turn

    def admit(self, key: bytes) -> None:
        """*key* may be allowed again."""
        for line in self.all_lines():
            line.admit(key)

    def admit_all(self) -> None:
        """Other rules hold."""
        self._sleeping.clear()
        for line in self.all_lines():
            for key in list(line.counts):
                line.admit(key)

    def all_lines(self) -> list[Line]:
        """In no order that means anything."""
        return [*(line for line in self.plain if line is not None), *self.lines.values()]

    # --- what is allowed ------------------------------------------------------------------------

    def open_at(self, now_ms: int) -> bool:
        """Whether anything of it may be handed out at *now_ms*; wakes keys whose time has come."""
        self.now_ms = now_ms
        sleeping = self._sleeping
        while sleeping and sleeping[0][0] <= now_ms:
            self.admit(heapq.heappop(sleeping)[1])
        rules = self.rules
        if rules.paused or (rules.running_max and self.running >= rules.running_max):
            return False
        return not rules.rate or self._free_at_ms(None, rules.rate) <= now_ms

    def opens_ms(self) -> int:
        """When time alone may make something of it eligible."""
        rules = self.rules
        wake_ms = self._sleeping[0][0] if self._sleeping else NEVER_MS
        if not rules.paused and rules.rate:
            free_ms = self._free_at_ms(None, rules.rate)
            if free_ms > self.now_ms:
                wake_ms = min(wake_ms, free_ms)
        return wake_ms

    def allowed(self, key: bytes) -> bool:
        """Whether a task of *key* may be handed out now."""
        rules = self.rules
        if rules.key_running_max and self.keys[key].running >= rules.key_running_max:
            return False  # admitted again when one of them ends
        if not rules.key_rate:
            return True
        free_ms = self._free_at_ms(key, rules.key_rate)
        if free_ms > self.now_ms:
            heapq.heappush(self._sleeping, (free_ms, key))
            return False
        return True

    def _free_at_ms(self, key: bytes | None, rate: int) -> int:
        """When the next one is within the rate: *rate* of them may be begun at once, and one more
        after each *rate*-th part of the time (the generic cell rate algorithm, ITU-T I.371)."""
        at_once_us = (rate - 1) * self._step_us(rate)
        return -(-(self._full_at_us(self.name, key) - at_once_us) // 1000)

    def _step_us(self, rate: int) -> int:
        """The *rate*-th part of the time, rounded up: no more than *rate* come in all of it."""
        return -(-self.rules.rate_ms * 1000 // rate)

    def used_at_us(self, key: bytes | None, rate: int) -> int:
        """What ``full_at_us`` becomes when one is begun at ``now_ms``."""
        begun_us = max(self._full_at_us(self.name, key), self.now_ms * 1000)
        return begun_us + self._step_us(rate)

    def priority_at(self, line: Line, since_ms: int) -> int:
        """Of a task of *line* that is ready since then."""
        ageing_ms = self.rules.ageing_ms
        if not ageing_ms:
            return line.priority
        return line.priority + max(self.now_ms - since_ms, 0) // ageing_ms


_PLAIN: Final = tuple(Task("-", priority=priority) for priority in range(PRIORITY_MAX + 1))
_UNPINNED: Final = LiveRecord(READY, 0, 0)
