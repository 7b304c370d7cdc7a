"""Which lives were folded away when. A place does not name these: it says how often lives were
folded, and holds all that they wrote. Who folded what is told by nodes, each time for a number of
folds; numbers between are bounded by those around them, for lives only go."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

FOLDS: Final = 0
"""In marks, the place of an actor that stands for how often lives were folded."""

EPOCH_BITS: Final = 32
EPOCH_MAX: Final = 2**EPOCH_BITS - 1

Marks = Mapping[int, int]
"""By actor (member and epoch), a sequence; and under ``FOLDS``, how often lives were folded."""


class Seen(IntEnum):
    """Whether something was visible."""

    NO = 0
    MAYBE = 1
    YES = 2


def life_of(actor: int) -> tuple[int, int]:
    """Member and epoch."""
    return actor >> EPOCH_BITS, actor & EPOCH_MAX


def actor_of(member: int, epoch: int) -> int:
    """The life *epoch* of *member*."""
    return member << EPOCH_BITS | epoch


class Folds:
    """*told*: by number of folds, up to which life of each member all were folded by then."""

    def __init__(self, told: Mapping[int, Mapping[int, int]]) -> None:
        self._numbers = sorted(told)
        self._told = told

    def taken(self, actor: int, folds: int) -> Seen:
        """Whether that life is among those that were folded in the first *folds* times."""
        if folds <= 0:
            return Seen.NO
        member, epoch = life_of(actor)
        if epoch <= self.last_taken(member, folds):
            return Seen.YES
        at = bisect_left(self._numbers, folds)
        if at == len(self._numbers):
            return Seen.MAYBE
        later = self._told[self._numbers[at]].get(member, 0)
        return Seen.NO if epoch > later else Seen.MAYBE

    def last_taken(self, member: int, folds: int) -> int:
        """Up to which life of *member* all were surely folded in the first *folds* times."""
        at = bisect_right(self._numbers, folds)
        return self._told[self._numbers[at - 1]].get(member, 0) if at else 0

    def covers(self, marks: Marks, actor: int, sequence: int) -> Seen:
        """Whether a place with *marks* covers that record."""
        if marks.get(actor, 0) >= sequence:
            return Seen.YES
        return Seen.NO if actor == FOLDS else self.taken(actor, marks.get(FOLDS, 0))
