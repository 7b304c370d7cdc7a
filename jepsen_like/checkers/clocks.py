"""When clocks were bent further than a lease's holder allows for.

A holder stops to believe in its grant a margin before the lease can end, by its own clock. Where
clocks run at half or twice their pace, or leap, no margin helps, and what a holder believes is no
evidence; fencing tokens are for that. The fault injector writes such times into the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from jepsen_like.history import NEMESIS, Event

#: Kinds of events of the nemesis; each has a value with "id" and "do": "begin" or "end".
BENDING: Final = frozenset(("clock-rate", "clock-jump", "clock-strobe"))


class Window(NamedTuple):
    """From *begin_ns* to *end_ns* on the run's clock."""

    begin_ns: int
    end_ns: int


class Bent:
    """The windows of a history. *aftermath_ns*: for so long after one ended, leases that were
    reckoned by bent clocks are still in force."""

    def __init__(self, history: Sequence[Event], aftermath_ns: int) -> None:
        found: list[Window] = []
        began: dict[int, int] = {}
        for event in history:
            if event.process != NEMESIS or event.f not in BENDING:
                continue
            number = event.value["id"]
            if event.value["do"] == "begin":
                began[number] = event.time_ns
            elif number in began:
                found.append(Window(began.pop(number), event.time_ns + aftermath_ns))
        last_ns = history[-1].time_ns if history else 0
        found += [Window(begin_ns, last_ns) for begin_ns in began.values()]
        self.windows: Final = tuple(sorted(found))

    def touches(self, begin_ns: int, end_ns: int) -> bool:
        """Whether any clock was bent, or its lease still in force, between the two times."""
        return any(each.begin_ns <= end_ns and begin_ns <= each.end_ns for each in self.windows)
