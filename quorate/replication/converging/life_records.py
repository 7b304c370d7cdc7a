"""What the machine of lives keeps: see ``lives``."""

from __future__ import annotations

import msgspec

#: (actor, sequence), in order of the actors, each once.
Marks = tuple[tuple[int, int], ...]


class LifeRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A life that is not folded, under its actor. *rescuing*: it is of an estate, and not all is
    there; *after*: whoever has these records has all of it."""

    nonce: int
    rescuing: bool = False
    after: Marks = ()


class MemberRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*highest*: number of its last life; *retired*: of the last that was folded; *open*: of the
    one that is not over, 0: none. *folded*: up to which record the last lives that were folded
    were there, by their numbers; *forgotten*: the last one that was dropped from that."""

    highest: int = 0
    retired: int = 0
    open: int = 0
    expelled: bool = False
    folded: Marks = ()
    forgotten: int = 0


class MarkRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One life in the stable frontier."""

    sequence: int


class FoldedAway(msgspec.Struct, frozen=True, array_like=True):
    """The last fold. *heirs*: (actor, heir) of each life that went; *settled*: what every member
    had then, these lives included."""

    generation: int
    heirs: Marks
    settled: Marks


class RescueRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A life that was rescued, for good. *since*, *estate*: as in ``Rescuing``; *upto*: its last
    record then, 0: not all is there."""

    since: int
    estate: int
    upto: int = 0


class FoldingRecord(msgspec.Struct, frozen=True, array_like=True):
    """*generation*: how many folds there were; *changes*: how often lives began, or were closed by
    an expulsion; *preparing*: the lives that go next, with their last records, () for none."""

    generation: int = 0
    changes: int = 0
    preparing: Marks = ()
    fold: FoldedAway | None = None
