"""Folding: forgetting the names of actors that are no more, so that contexts stay small.

Every start of a member may be a new actor, and members are replaced; without folding each of them
would stay in every context for ever. A *fold* retires some actors, the same ones in the same order
on every replica. What it does to a replica:

* Their dots are left out of its context and count as seen, all that there ever could be: of each
  member one number says up to which of its actors (``State.retired``). Dots in leaves keep their
  names, so nothing is rewritten for this, however much there is.
* What they left in counters is gathered (``gather``): in plain counters in a common cell, which
  nobody raises, as one entry; in bounded ones with their heirs, who may spend it.

An actor is *finished* on a replica when it is no more and all that it ever did has been joined
there. Its cell in a counter will not grow, so a removal takes it for good, as it takes any element,
where that of a living actor would only be marked as undone. A fold is made in three steps.

1. **Closing.** The actors are fenced off and the last mutation of each is known (or which is the
   last that any member has; what came after it is lost, and is refused if it turns up). Every
   member joins all of them. From then on they are finished for it, and what it observed before is
   no longer good for a removal of counters (``observing`` sees to that).
2. **Settling.** When they are finished for all members, each of them joins all that any of them
   had joined by then.
3. **Folding**, everywhere, as soon as the log says so. A replica that has not done 1 and 2 must not
   (it was set back to an old backup, or is new): it takes everything from one that has, joining it
   by ``join_behind``.

*Why no dot is lost or comes back.* By 1, a replica that folds has accounted for every dot of the
retired that any member has; that it counts more dots as seen, which nobody has, makes no
difference to any join with another member.

*Why sums are exact.* After 1, of what finished actors left in one counter a removal takes all or
nothing: whoever removes has all of it, and nobody adds to it. By 2, all removals from before, which
may have taken less, are everywhere. So when they fold, replicas have the same entries of the dead
in a counter, with the same numbers, or none if it was removed meanwhile; those that have them come
to the same sum under the same dot. A removal that was made by a replica before it folded, and is
joined by another after, or the other way round, also takes all: ``exact`` says so in the terms of
whoever joins it. That holds in the middle of the work, too: counters may be gathered one by one.

*Why no right is spent twice.* What a finished actor held can be spent by its heir alone, once it
folds, and the actor itself is no more. A right that somebody gave to an actor that was gone is
passed on by its giver (``bounded.passed_on``), as all cells are changed by their owner alone.

Only members of the present configuration count: one that is away delays folding until it comes
back, or is removed, and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from quorate.crdt.cells import COMMON, one_for_the_dead, owner_of
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta
from quorate.crdt.dots import Entry, Leaf, Part, Path, dots_of, epoch_of, join_leaves, member_of
from quorate.crdt.kind import Kind, kind_of
from quorate.crdt.state import State
from quorate.crdt.view import View
from quorate.errors import CrdtError

Finished = Callable[[int], bool]
Sees = Callable[[int, int], bool]


class Fold(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step of folding. *heirs*: (actor, who takes over its rights), of each that retires."""

    generation: int
    heirs: tuple[tuple[int, int], ...]

    def retired_after(self, before: Mapping[int, int]) -> dict[int, int]:
        """By member, the last actor that is retired, after this fold as after those *before*."""
        retired = dict(before)
        for actor, _heir in self.heirs:
            member = member_of(actor)
            retired[member] = max(retired.get(member, 0), epoch_of(actor))
        return retired

    def heir_of(self, actor: int) -> int:
        """Who takes over from *actor*, itself if it does not retire. What an actor that retired
        before was given late goes to the heir of its member's next one that does."""
        heirs = dict(self.heirs)
        later = [
            each
            for each in heirs
            if member_of(each) == member_of(actor) and epoch_of(each) >= epoch_of(actor)
        ]
        return heirs[min(later)] if later else actor


def plan(generation: int, heirs: Mapping[int, int]) -> Fold:
    """The fold number *generation*, of the actors of *heirs*: a later one of the member, or one of
    another member that stays.

    Raises:
        CrdtError: an heir retires as well.
    """
    for actor, heir in heirs.items():
        if epoch_of(heir) <= max(
            (epoch_of(each) for each in heirs if member_of(each) == member_of(heir)), default=0
        ):
            raise CrdtError(f"actor {actor} cannot leave anything to {heir}, who goes as well")
    return Fold(generation, tuple(sorted(heirs.items())))


def is_finished(actors: Iterable[int], reports: Iterable[CausalContext]) -> bool:
    """Whether all of *reports* (one for every member) have the same dots of each of *actors*."""
    everyone = list(reports)
    return all(
        report.runs_of(actor) == everyone[0].runs_of(actor)
        for actor in actors
        for report in everyone
    )


# --- how far a replica has come -------------------------------------------------------------------
#
# One number that only grows, three *stages* for each fold: it is done (0, 3, 6, ...), the actors of
# the next are finished here (1, 4, 7, ...), the next has begun (2, 5, 8, ...). Mutations are passed
# on with the stage of who made them.


def generation_of(stage: int) -> int:
    """How many folds have been begun."""
    return (stage + 1) // 3


def is_whole(stage: int) -> bool:
    """Whether no fold has been begun that is not done: such a replica may be compared with others
    of its generation, and its elements joined to theirs."""
    return stage % 3 != GATHERING


def is_preparing(stage: int) -> bool:
    """Whether the actors of the next fold are finished."""
    return stage % 3 == PREPARED


PREPARED: Final = 1
GATHERING: Final = 2


def takes(stage: int, stamp: int) -> bool:
    """Whether a replica at *stage* may join what was mutated at stage *stamp*, by ``as_here``. What
    is too old for it was everywhere before the fold that came between; if it was not, its author
    was set back to an old backup."""
    done = 3 * generation_of(stage)
    return done - 2 <= stamp <= (done + 3 if is_preparing(stage) else done + 1)


def as_here(delta: Delta, stamp: int, view: View, stage: int, retired: Finished) -> Delta:
    """A closed *delta* that was made at stage *stamp* in the terms of *view*, at *stage*, which has
    *retired* some actors."""
    if stamp == stage and is_whole(stage):
        return delta
    prepared = stamp >= 3 * generation_of(stage) + PREPARED
    return exact(delta, view, view.finished if prepared else retired)


# --- a replica ------------------------------------------------------------------------------------


def fold_state(state: State, fold: Fold) -> State:
    """The replica *state* after *fold*, as a new one.

    Raises:
        CrdtError: the fold is not the next one here, or some actor is not ``finishing``.
    """
    folded = begin_fold(state, fold)
    for prefix, owner in counters(kind_of(state.tag), folded.scan(())).items():
        gather_at(folded, prefix, owner, fold)
    return folded


def begin_fold(state: State, fold: Fold) -> State:
    """The same, but for the counters, which are to be gathered next.

    Raises:
        CrdtError: as ``fold_state``.
    """
    if fold.generation != state.generation + 1:
        raise CrdtError(f"fold {fold.generation} is not the next one of {state.generation}")
    missing = [actor for actor, _heir in fold.heirs if actor not in state.finishing]
    if missing:
        raise CrdtError(f"actors {missing} cannot be folded: not all that they did may be here")
    folded = state.copy()
    folded.generation = fold.generation
    folded.retired = fold.retired_after(state.retired)
    folded.finishing = state.finishing - {actor for actor, _heir in fold.heirs}
    folded.forget_retired()
    return folded


def gather_at(state: State, prefix: Path, owner: type[Kind], fold: Fold) -> None:
    """Gather the counter of kind *owner* at *prefix*."""
    depth = len(prefix)
    cells = [(path[depth:], leaf) for path, leaf in state.scan(prefix)]
    gathered = gather(owner, cells, state.finished, fold.heir_of)
    state.replace({(*prefix, *own): leaf for own, leaf in gathered.items()})


def counters(kind: type[Kind], elements: Iterable[tuple[Path, Leaf]]) -> dict[Path, type[Kind]]:
    """Where counters stand among *elements* of data of *kind*, and which."""
    found: dict[Path, type[Kind]] = {}
    for path, _leaf in elements:
        owner, depth = kind.locate(path)
        if owner.cells:
            found[path[:depth]] = owner
    return found


def gather(
    owner: type[Kind],
    cells: Iterable[tuple[Path, Leaf]],
    finished: Finished,
    heir: Callable[[int], int],
) -> dict[Path, Leaf]:
    """The cells that change, and to what, when what *finished* actors left in one counter of kind
    *owner* is put where it belongs. *cells*: all of it, by their own paths within the counter."""
    before = dict(cells)
    after: dict[Path, list[Entry]] = {}
    dead: dict[Path, list[Entry]] = {}
    for own, leaf in before.items():
        after[own] = [entry for entry in leaf if not finished(entry[0])]
        left = [entry for entry in leaf if finished(entry[0])]
        place = owner.place_of_dead(own, heir) if left else None
        if place is not None:
            dead.setdefault(place, []).extend(left)
    for place, entries in dead.items():
        sums = one_for_the_dead(tuple(sorted(entries)))
        if owner.counts_when_dead(sums):
            after.setdefault(place, []).extend(sums)
    leaves = {own: tuple(sorted(entries)) for own, entries in after.items()}
    return {own: leaf for own, leaf in leaves.items() if leaf != before.get(own, ())}


# --- what comes from a replica that has folded less, or more --------------------------------------


def exact(delta: Delta, view: View, finished: Finished) -> Delta:
    """A closed *delta*, of a replica for which the actors of *finished* were finished, for *view*,
    for which they are, too, wherever either has put what they left.

    What it removes of that in a counter, it removes all. It cannot add to it.
    """
    kind = kind_of(delta.tag)
    elements: dict[Path, Part] = {}
    emptied: dict[Path, None] = {}
    for path, part in delta.elements.items():
        owner, depth = kind.locate(path)
        if not owner.cells or not _is_dead(path[depth:], finished):
            elements[path] = part
        elif part[1]:
            emptied[path[:depth]] = None
    for prefix in emptied:
        depth = len(prefix)
        for path, leaf in view.scan(prefix):
            if _is_dead(path[depth:], finished):
                elements[path] = ((), dots_of(leaf))
    return Delta(delta.tag, elements, delta.rest)


def _is_dead(own: Path, finished: Finished) -> bool:
    """Whether a cell is that of an actor that is no more, or the common one."""
    return own[0] == COMMON or finished(owner_of(own[0]))


def join_behind(
    kind: type[Kind],
    path: Path,
    mine: Leaf,
    theirs: Leaf,
    mine_sees: Sees,
    theirs_sees: Sees,
    retired: Finished,
) -> Leaf:
    """As ``join_leaves``, of one element of data of *kind*, for a replica that cannot fold and
    takes everything from one that has, *retired* being what that one has retired.

    It does not know more of the retired than the other does, and in counters what it knows stands
    elsewhere: there it takes what the other has. Removals of it that it alone has made (of old
    data, set back from a backup) are not carried over; what they removed stays.
    """
    owner, _depth = kind.locate(path)
    if not owner.cells:
        return join_leaves(mine, theirs, mine_sees, theirs_sees)
    living = join_leaves(
        tuple(entry for entry in mine if not retired(entry[0])),
        tuple(entry for entry in theirs if not retired(entry[0])),
        mine_sees,
        theirs_sees,
    )
    return tuple(sorted((*living, *(entry for entry in theirs if retired(entry[0])))))
