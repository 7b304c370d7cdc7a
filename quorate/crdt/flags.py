"""Flags: EnableWinsFlag is off until enabled, DisableWinsFlag is on until disabled.

The winning operation puts one dot in place of those seen; the other takes the dots that were seen.
"""

from __future__ import annotations

from typing import ClassVar

from quorate.base.crdt_operations import Clear, Disable, Enable, KindTag, Operation
from quorate.crdt.dots import Leaf, Path, dots_of
from quorate.crdt.kind import (
    ONLY,
    Kind,
    Moment,
    Parts,
    check_marks,
    check_only,
    wrong_operation,
)
from quorate.crdt.observing import cleared
from quorate.crdt.sets import MARK
from quorate.crdt.view import View


class _Flag(Kind):
    """What both flags share: *wins* is the operation that puts a dot."""

    wins: ClassVar[type[Enable | Disable]]

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        path = (*prefix, ONLY)
        if isinstance(operation, Enable | Disable):
            seen = dots_of(view.leaf(path))
            if isinstance(operation, cls.wins):
                return {path: (((at.actor, at.counter, MARK),), seen)}
            return {path: ((), seen)} if seen else {}
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def value(cls, view: View, prefix: Path) -> bool:
        return bool(view.leaf((*prefix, ONLY))) == (cls.wins is Enable)

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        check_only(cls, own)
        check_marks(cls, leaf)


class EnableWinsFlag(_Flag):
    """Off at first; of a concurrent enable and disable, the enable wins."""

    tag = KindTag.ENABLE_WINS_FLAG
    name = "EnableWinsFlag"
    wins = Enable


class DisableWinsFlag(_Flag):
    """On at first; of a concurrent enable and disable, the disable wins."""

    tag = KindTag.DISABLE_WINS_FLAG
    name = "DisableWinsFlag"
    wins = Disable
