"""Counters: GCounter only grows, PNCounter goes both ways.

A cell has four numbers: raised by, lowered by, and of each what removals have seen and undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from quorate.base.crdt_operations import Clear, Decrement, Increment, KindTag, Operation
from quorate.base.invariants import must
from quorate.crdt.cells import (
    COMMON,
    check_cell,
    numbers_of,
    own_entry,
    owner_of,
    raised,
    segment_of,
)
from quorate.crdt.dots import NO_ACTOR, Leaf, Path, dots_of
from quorate.crdt.kind import Kind, Moment, Parts, wrong_operation
from quorate.crdt.observing import cleared
from quorate.crdt.view import View
from quorate.errors import CrdtFormatError, InvalidArgumentError

NUMBERS: Final = 4  # up, down, up undone, down undone


class _Counter(Kind):
    """What both counters share."""

    goes_down: ClassVar[bool]
    cells = True

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Increment):
            check_amount(operation.by)
            return cls._raise(view, prefix, at, (operation.by, 0, 0, 0))
        if isinstance(operation, Decrement) and cls.goes_down:
            check_amount(operation.by)
            return cls._raise(view, prefix, at, (0, operation.by, 0, 0))
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def _raise(cls, view: View, prefix: Path, at: Moment, by: tuple[int, ...]) -> Parts:
        path = (*prefix, segment_of(at.actor))
        own = raised(own_entry(view.leaf(path), at, NUMBERS), by)
        return {path: ((own,), ())}

    @classmethod
    def removal(cls, view: View, prefix: Path, actor: int) -> Parts:
        """Own cells go, all of them being seen, and so do those of actors that are no more; of
        others' cells, what is seen is marked undone."""
        parts: Parts = {}
        own = {COMMON, segment_of(actor)}
        for path, leaf in view.scan(prefix):
            if path[-1] in own or view.finished(owner_of(path[-1])):
                parts[path] = ((), dots_of(leaf))
            elif cls.counts(leaf):
                parts[path] = (_undone(leaf), ())
        return parts

    @classmethod
    def value(cls, view: View, prefix: Path) -> int:
        total = 0
        for _path, leaf in view.scan(prefix):
            for entry in leaf:
                up, down, up_undone, down_undone = numbers_of(entry)
                total += (up - up_undone) - (down - down_undone)
        return total

    @classmethod
    def counts(cls, leaf: Leaf) -> bool:
        for entry in leaf:
            up, down, up_undone, down_undone = numbers_of(entry)
            if up != up_undone or down != down_undone:
                return True
        return False

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        if len(own) != 1:
            raise CrdtFormatError(f"a cell of {cls.name} has the path {own!r:.80}")
        check_cell(leaf, NO_ACTOR if own[0] == COMMON else owner_of(own[0]), NUMBERS)
        for entry in leaf:
            up, down, up_undone, down_undone = numbers_of(entry)
            if up_undone > up or down_undone > down or (down and not cls.goes_down):
                raise CrdtFormatError(f"a cell of {cls.name} has the numbers {entry[2]!r}")

    @classmethod
    def spent(cls, own: Path, leaf: Leaf, actor: int) -> bool:
        return own[0] == segment_of(actor) and not cls.counts(leaf)

    @classmethod
    def place_of_dead(cls, own: Path, heir: Callable[[int], int]) -> Path | None:
        del own, heir
        return (COMMON,)

    @classmethod
    def counts_when_dead(cls, leaf: Leaf) -> bool:
        return cls.counts(leaf)


class GCounter(_Counter):
    """Only grows, until it is cleared. Concurrent increments add up."""

    tag = KindTag.G_COUNTER
    name = "GCounter"
    goes_down = False


class PNCounter(_Counter):
    """Goes up and down. Concurrent increments and decrements add up."""

    tag = KindTag.PN_COUNTER
    name = "PNCounter"
    goes_down = True


def check_amount(by: int) -> None:
    """Refuse what is no amount to count by.

    Raises:
        InvalidArgumentError: it is below 1, or no integer.
    """
    if type(by) is not int or by < 1:
        raise InvalidArgumentError(f"count by 1 or more, not by {by!r:.80}")


def _undone(leaf: Leaf) -> Leaf:
    entries = []
    for entry in leaf:
        up, down, _up_undone, _down_undone = numbers_of(entry)
        must(_up_undone <= up and _down_undone <= down, "undone is what was done", entry=entry)
        entries.append((entry[0], entry[1], (up, down, up, down)))
    return tuple(entries)
