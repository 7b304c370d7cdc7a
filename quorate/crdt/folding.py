"""Folding: giving the dots of actors that are no more to one number, so that contexts stay small.

Every start of a member may be a new actor, and members are replaced; without folding each of them
would stay in every context for ever. A ``Fold`` retires some actors at one place of the log. Their
dots become dots of ``NO_ACTOR``, one behind the other, each at a number of its own: a mere change
of names, so nothing that holds between dots is different after it. Their cells in counters go to an
heir, and of those that nobody raises any more one entry is left. The context gives all of them
together one number.

**When.** All replicas must fold by the same ``Fold``, and translate (``fold_delta``) what they get
from those that have not done so yet. A fold may be carried out when, for the actors that retire,

1. no mutation can come any more: they are fenced off, and the last counter of each is known;
2. every member has reported a context that covers these dots (``covers_retired``);
3. every member has reported, *after* 2 held everywhere, a context that covers all that any
   member had reported in 2 (``covers_reports``), and what was reported had been joined in whole.
   Removals by a token that was taken before 2 held are refused from then on.

2 makes the renaming total. 3 makes sums of cells exact: a removal from a cell that not all knew of
has reached all by then, and a later one is of a whole cell. The minimum of what members report
(``context.pointwise_minimum``) is the stability frontier; only members of the current configuration
count, so a dead one delays folding until it is removed, and no longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from quorate.base.invariants import must
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta
from quorate.crdt.dots import COUNTER_MAX, NO_ACTOR, Dots, Entry, Leaf, Part, Path
from quorate.crdt.kind import kind_of
from quorate.crdt.state import State
from quorate.errors import CrdtError


class Retired(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One actor that is no more: its *last* counter, the number *before* its dots' new ones, and
    the *heir* of its cells."""

    actor: int
    last: int
    before: int
    heir: int


class Fold(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step of folding; *generation* counts them. To be built by ``plan`` from the log."""

    generation: int
    retired: tuple[Retired, ...]
    folded: int  # dots of ``NO_ACTOR`` in every context after it


def plan(generation: int, folded: int, last: Mapping[int, int], heirs: Mapping[int, int]) -> Fold:
    """The fold of generation *generation* that retires the actors of *last*.

    *folded* is the number of the last fold, 0 before the first. *heirs* says who takes over the
    cells of each: a later life of the member, or another member that stays.

    Raises:
        CrdtError: an heir retires as well, or the numbers are used up.
    """
    retired, before = [], folded
    for actor in sorted(last):
        heir = heirs[actor]
        if heir in last or heir == NO_ACTOR:
            raise CrdtError(f"the actor {actor} cannot leave its cells to {heir}, who goes as well")
        retired.append(Retired(actor, last[actor], before, heir))
        before += last[actor]
    if before > COUNTER_MAX:
        raise CrdtError("the dots of retired actors have used up 63 bits")
    return Fold(generation, tuple(retired), before)


def covers_retired(fold: Fold, reports: Iterable[CausalContext]) -> bool:
    """Whether all of *reports* (one for every member) hold all dots that are to be renamed."""
    return all(
        report.covers(CausalContext.from_runs([(each.actor, 1, each.last)]))
        for report in reports
        for each in fold.retired
        if each.last
    )


def covers_reports(later: Iterable[CausalContext], earlier: Iterable[CausalContext]) -> bool:
    """Whether each of the *later* reports holds all dots that any of the *earlier* ones held."""
    total = CausalContext()
    for report in earlier:
        total.update(report)
    return all(report.covers(total) for report in later)


def fold_state(state: State, fold: Fold) -> State:
    """The replica *state* after *fold*, as a new one.

    Raises:
        CrdtError: it lacks dots that are to be renamed, or holds more of a retired actor than the
            fold knows; it is too early to fold here, and nothing changed.
    """
    _must_hold_all(state.context, fold)
    folded = State(state.tag)
    folded.join(fold_delta(state.as_delta(), fold, whole=True))
    return folded


def fold_delta(delta: Delta, fold: Fold, *, whole: bool = False) -> Delta:
    """*delta*, from a replica that had not folded yet, for one that has. *whole*: it is all that
    a replica knows, so entries that nobody raises any more may become one.

    Raises:
        CrdtError: it holds dots of a retired actor that the fold does not know of.
    """
    names = _Names(fold)
    kind = kind_of(delta.tag)
    elements: dict[Path, Part] = {}
    rest = fold_context(delta.rest, fold)
    for path in delta.touches():
        leaf, gone = delta.elements[path]
        owner, depth = kind.locate(path)
        own = owner.fold_path(path[depth:], names.heir)
        renamed, dead = names.leaf(leaf), names.dots(gone)
        if own is None:
            rest.update(CausalContext.of((*((a, c) for a, c, _p in renamed), *dead)))
            continue
        place = (*path[:depth], *own)
        there, gone_there = elements.get(place, ((), ()))
        elements[place] = (tuple(sorted((*there, *renamed))), tuple(sorted((*gone_there, *dead))))
    if whole:
        for place, (leaf, gone) in elements.items():
            owner, _depth = kind.locate(place)
            elements[place] = (owner.fold_leaf(leaf), gone)
    return Delta(delta.tag, elements, rest, closed=delta.closed)


def fold_context(context: CausalContext, fold: Fold) -> CausalContext:
    """What was accounted for before *fold*, under the names after it.

    Raises:
        CrdtError: it holds dots of a retired actor that the fold does not know of.
    """
    names = _Names(fold)
    return CausalContext.from_runs(names.run(*run) for run in context.runs())


def strangers(delta: Delta, known: Iterable[int]) -> list[int]:
    """The actors of *delta* that are neither in *known* nor folded: of a member that was removed,
    or of a life that has retired. What they have to say is refused, not joined."""
    expected = {NO_ACTOR, *known}
    return [actor for actor in delta.context().actors() if actor not in expected]


def _must_hold_all(context: CausalContext, fold: Fold) -> None:
    held = context.runs_of(NO_ACTOR)
    before = min((each.before for each in fold.retired), default=fold.folded)
    if held != ([(1, before)] if before else []):
        raise CrdtError(f"the fold {fold.generation} is not the next one here")
    for each in fold.retired:
        if context.runs_of(each.actor) != ([(1, each.last)] if each.last else []):
            raise CrdtError(
                f"actor {each.actor} cannot be folded yet: {each.last} mutations of it are known "
                f"to the cluster, and {context.runs_of(each.actor)} here"
            )


class _Names:
    """The new names of one fold."""

    def __init__(self, fold: Fold) -> None:
        self._retired = {each.actor: each for each in fold.retired}

    def heir(self, actor: int) -> int:
        retired = self._retired.get(actor)
        return actor if retired is None else retired.heir

    def run(self, actor: int, first: int, last: int) -> tuple[int, int, int]:
        retired = self._retired.get(actor)
        if retired is None:
            return actor, first, last
        if last > retired.last:
            raise CrdtError(
                f"actor {actor} retired with {retired.last} mutations, and this speaks of {last}: "
                f"it comes from a node that was removed"
            )
        return NO_ACTOR, retired.before + first, retired.before + last

    def dots(self, dots: Dots) -> Dots:
        return tuple(sorted(self.run(actor, counter, counter)[:2] for actor, counter in dots))

    def leaf(self, leaf: Leaf) -> Leaf:
        entries: list[Entry] = []
        for actor, counter, payload in leaf:
            name, number, _last = self.run(actor, counter, counter)
            must(number > 0, "a renamed dot has a number", actor=actor, counter=counter)
            entries.append((name, number, payload))
        return tuple(sorted(entries))
