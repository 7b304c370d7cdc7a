"""What a number may be at some time, when numbers are added to it concurrently.

A read must give a value between two bounds: what was surely added before it began, with every
other addition that had begun before it ended counted only as far as it helps the bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from jepsen_like.checkers.models import NEVER


class Addition(NamedTuple):
    """*number* was added at some time between the two places in the history; *end* ``NEVER``: or
    not at all."""

    number: int
    start: int
    end: int = NEVER


class Bounds:
    """Of a number that begins as *initial*. One question costs the logarithm of the additions."""

    def __init__(self, initial: int, additions: Sequence[Addition]) -> None:
        self._initial = initial
        by_end = sorted((each.end, each.number) for each in additions if each.end != NEVER)
        self._ends = [end for end, _number in by_end]
        self._sure = [0, *accumulate(number for _end, number in by_end)]
        by_start = sorted((each.start, each.number) for each in additions)
        self._starts = [start for start, _number in by_start]
        self._gains = [0, *accumulate(max(number, 0) for _start, number in by_start)]
        self._losses = [0, *accumulate(min(number, 0) for _start, number in by_start)]
        self._sure_gains = [0, *accumulate(max(number, 0) for _end, number in by_end)]
        self._sure_losses = [0, *accumulate(min(number, 0) for _end, number in by_end)]

    def between(self, start: int, end: int) -> tuple[int, int]:
        """The least and the greatest value that a read from *start* to *end* may give."""
        done = bisect_left(self._ends, start)
        begun = bisect_left(self._starts, end)
        sure = self._initial + self._sure[done]
        lower = sure + self._losses[begun] - self._sure_losses[done]
        upper = sure + self._gains[begun] - self._sure_gains[done]
        return lower, upper
