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
    numbers_of,
    own_entry,
    owner_of,
    raised,
    segment_of,
)
from quorate.crdt.counters import check_amount
from quorate.crdt.delta import Delta, bare
from quorate.crdt.dots import NO_ACTOR, Leaf, Path, dots_of, make_actor
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
    cells = True

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
            if view.finished(receiver):
                raise InvalidArgumentError(
                    f"life {operation.epoch} of member {operation.member} is over: transfer to the "
                    f"present one"
                )
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
        owner_of(own[0])
        owner_of(own[1])
        check_cell(leaf, NO_ACTOR, 2 if own[0] == own[1] else 1)

    @classmethod
    def place_of_dead(cls, own: Path, heir: Callable[[int], int]) -> Path | None:
        """The heir has the rights of those it takes over from; what they gave each other, and the
        heir, it has anyway."""
        giver, receiver = (segment_of(heir(owner_of(segment))) for segment in own)
        return (giver, receiver) if giver != receiver or own[0] == own[1] else None


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


def passed_on(
    kind: type[Kind], view: View, path: Path, at: Moment, heir: Callable[[int], int]
) -> Delta | None:
    """What ``at.actor`` gave to an actor that is no more, in its cell at *path* in data of *kind*,
    given to the *heir* instead; None if there is nothing, and then the dot was not used. Nobody but
    the giver may do this, as with any cell."""
    *prefix, giver, receiver = path
    mine = tuple(entry for entry in view.leaf(path) if entry[0] == at.actor)
    if giver != segment_of(at.actor) or not mine or not view.finished(owner_of(receiver)):
        return None
    parts: Parts = {path: ((), dots_of(mine))}
    to = segment_of(heir(owner_of(receiver)))
    if to != giver:
        amount = sum(numbers_of(entry)[0] for entry in mine)
        parts.update(_raise(view, (*prefix, giver, to), at, (amount,)))
    return Delta(kind.tag, parts, bare((at.actor, at.counter)))


def _raise(view: View, path: Path, at: Moment, by: tuple[int, ...]) -> Parts:
    return {path: ((raised(own_entry(view.leaf(path), at, len(by)), by),), ())}


def _must_hold(view: View, prefix: Path, actor: int, needed: int) -> None:
    available = rights(view, prefix, actor)
    if available < needed:
        raise InsufficientRightsError(
            f"this takes {needed} rights, {available} are here: have some transferred, or lower "
            f"the counter where they are",
            needed=needed,
            available=available,
        )
