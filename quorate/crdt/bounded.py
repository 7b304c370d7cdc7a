"""BoundedCounter: never below zero, though no replica asks another before it lowers.

After Balegas et al., "Extending eventually consistent cloud databases for enforcing numeric
invariants" (2015). Whoever raises the counter by n holds n *rights*; lowering by n spends n of
one's own; rights are given away by ``Transfer``. A replica that has too few refuses, with the
number that it has. Cells are (giver, receiver): the diagonal has what an actor raised and lowered,
the others what was given in all. All of it only grows, and only its giver raises it, which is why
nobody can spend a right twice.

It cannot be cleared or removed from a map: whoever removes has not seen what others are spending.
"""

from __future__ import annotations

from collections.abc import Callable

from quorate.base.crdt_operations import Decrement, Increment, KindTag, Operation, Transfer
from quorate.crdt.cells import (
    check_cell,
    fold_segment,
    numbers_of,
    one_for_the_dead,
    own_entry,
    owner_of,
    raised,
    segment_of,
)
from quorate.crdt.counters import check_amount
from quorate.crdt.dots import Entry, Leaf, Path, dots_of, make_actor
from quorate.crdt.kind import Kind, Moment, Parts, wrong_operation
from quorate.crdt.view import View
from quorate.errors import (
    CrdtError,
    CrdtFormatError,
    InsufficientRightsError,
    InvalidArgumentError,
)


class BoundedCounter(Kind):
    """Goes up freely, and down as far as the rights of the replica go; never below zero."""

    tag = KindTag.BOUNDED_COUNTER
    name = "BoundedCounter"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        own = segment_of(at.actor)
        if isinstance(operation, Increment):
            check_amount(operation.by)
            return _raise(view, (*prefix, own, own), at, (operation.by, 0))
        if isinstance(operation, Decrement):
            check_amount(operation.by)
            _must_hold(view, prefix, at.actor, operation.by)
            return _raise(view, (*prefix, own, own), at, (0, operation.by))
        if isinstance(operation, Transfer):
            receiver = make_actor(operation.member, operation.epoch)
            check_amount(operation.amount)
            if receiver == at.actor:
                raise InvalidArgumentError("rights are transferred to another actor")
            _must_hold(view, prefix, at.actor, operation.amount)
            return _raise(view, (*prefix, own, segment_of(receiver)), at, (operation.amount,))
        raise wrong_operation(cls, operation)

    @classmethod
    def removal(cls, view: View, prefix: Path, actor: int) -> Parts:
        del actor
        if cls.present(view, prefix):
            raise CrdtError(
                "a bounded counter is not removed: others may be spending rights to it; lower it "
                "to zero instead"
            )
        return {}

    @classmethod
    def value(cls, view: View, prefix: Path) -> int:
        """What is left, as far as is known here. Of what others lowered, the increments that they
        had rights from may be still to come; below zero it never was."""
        total = 0
        for path, leaf in view.scan(prefix):
            if path[-1] == path[-2]:
                for entry in leaf:
                    up, down = numbers_of(entry)
                    total += up - down
        return max(0, total)

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        if len(own) != 2:
            raise CrdtFormatError(f"a cell of {cls.name} has the path {own!r:.80}")
        owner_of(own[1])
        check_cell(leaf, owner_of(own[0]), 2 if own[0] == own[1] else 1)

    @classmethod
    def fold_path(cls, own: Path, heir: Callable[[int], int]) -> Path | None:
        """The heir has the rights of those it takes over from; what they gave each other, and the
        heir, it has anyway."""
        giver, receiver = fold_segment(own[0], heir), fold_segment(own[1], heir)
        return (giver, receiver) if giver != receiver or own[0] == own[1] else None

    @classmethod
    def fold_leaf(cls, leaf: Leaf) -> Leaf:
        return one_for_the_dead(leaf)


def rights(view: View, prefix: Path, actor: int) -> int:
    """How far *actor* may lower the counter at *prefix*, as far as is known here; of its own
    rights an actor knows all that it spent, so it never has fewer than this says."""
    held = 0
    for path, leaf in view.scan(prefix):
        giver, receiver = owner_of(path[-2]), owner_of(path[-1])
        for entry in leaf:
            numbers = numbers_of(entry)
            if giver == receiver == actor:
                held += numbers[0] - numbers[1]
            elif receiver == actor:
                held += numbers[0]
            elif giver == actor:
                held -= numbers[0]
    return held


def all_rights(view: View, prefix: Path) -> dict[int, int]:
    """The rights of every actor that has, or had, any; whom to ask for a transfer."""
    actors: dict[int, None] = {}
    for path, _leaf in view.scan(prefix):
        actors[owner_of(path[-2])] = None
        actors[owner_of(path[-1])] = None
    return {actor: rights(view, prefix, actor) for actor in sorted(actors)}


def _raise(view: View, path: Path, at: Moment, by: tuple[int, ...]) -> Parts:
    """The own entry raised. There is more than one after those who were given rights have folded
    into one heir: then they become one, under the dot of now."""
    leaf = view.leaf(path)
    mine = [entry for entry in leaf if entry[0] == at.actor]
    if len(mine) <= 1:
        return {path: ((raised(own_entry(leaf, at, len(by)), by),), ())}
    total: Entry = (at.actor, at.counter, (0,) * len(by))
    for entry in mine:
        total = raised(total, numbers_of(entry))
    return {path: ((raised(total, by),), dots_of(tuple(mine)))}


def _must_hold(view: View, prefix: Path, actor: int, needed: int) -> None:
    available = rights(view, prefix, actor)
    if available < needed:
        raise InsufficientRightsError(
            f"this takes {needed} rights, {available} are here: have some transferred, or lower "
            f"the counter where they are",
            needed=needed,
            available=available,
        )
