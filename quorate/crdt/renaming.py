"""What a life did, under another name: for lives that can be joined under their own no more.

When lives are folded, whatever dots of theirs a replica lacks count as seen, and gone: it is lost,
and refused if it turns up. That is what becomes of what a member did alone before it was removed.
To have it after all, the mutations that nobody has are given the dots of an *estate*, an actor that
was nobody and stands for that one life for good: (life, 7) becomes (estate, 7).

*Why nothing counts twice.* The new name of a dot depends on its old one alone. So whoever does this
again, on whatever node, however far somebody had come before, makes the same dots, and the join of
what is there already changes nothing; not even when the estate was folded, too.

*What becomes of each kind.* Elements of sets, values, flags, updates of texts: their dots get the
new name. What was removed of others is removed of them, by their own dots: of what was observed,
and no more. Of a counter, the life has one cell, whose numbers go on from what everybody has: in
the estate's cell stands what was added to that (``Names.note``). What it removed of the cells of
others goes as far as these still stand: what was folded into a common cell stays, for a removal
takes all of that or nothing. A bounded counter is lowered as far as there are rights: those that
the life had may be spent by its heir. If the replica has rights, they are given to the estate, and
if it has too few, the rest is *short*: it is not lowered so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

from quorate.crdt.bounded import rights
from quorate.crdt.cells import COMMON, numbers_of, own_entry, owner_of, raised, segment_of
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta, bare, join_element, path_key, strip
from quorate.crdt.dots import Dot, Entry, Leaf, Part, Path, dots_of
from quorate.crdt.kind import Kind, Moment, kind_of
from quorate.crdt.kinds import BoundedCounter, Text
from quorate.crdt.text import dot_of, level_of, name_of
from quorate.crdt.view import View


class Names:
    """The new names of the lives that are rescued."""

    def __init__(self) -> None:
        self._estates: dict[int, tuple[int, int]] = {}  # by life: the new name, the last dot known
        self._bases: dict[tuple[bytes, int], tuple[int, ...]] = {}

    def add(self, actor: int, estate: int, known: int) -> None:
        """What *actor* did behind dot *known* goes by the name *estate*."""
        self._estates[actor] = (estate, known)

    def note(self, key: bytes, actor: int, numbers: tuple[int, ...]) -> None:
        """The cell with this *key* held *numbers* before a record of *actor* that not everybody
        has. The first one counts, so records are to be gone through in order."""
        self._bases.setdefault((key, actor), numbers)

    def base(self, path: Path, actor: int, counter: int) -> tuple[int, ...] | None:
        """What everybody has of the cell that *actor* began by dot *counter*, () for nothing; None
        if there is no more of it than that."""
        if counter > self._estates[actor][1]:
            return ()
        return self._bases.get((path_key(path), actor))

    def estate(self, actor: int) -> int:
        """The new name of *actor*, or its own if it keeps that."""
        return self._estates.get(actor, (actor, 0))[0]

    def dot(self, dot: Dot) -> Dot:
        """The new name of *dot*."""
        actor, counter = dot
        estate, known = self._estates.get(actor, (actor, 0))
        return (estate, counter) if counter > known else dot

    def has(self, actor: int) -> bool:
        """Whether *actor* gets another name."""
        return actor in self._estates

    def rest(self, rest: CausalContext) -> CausalContext:
        """The same dots by their new names."""
        renamed = CausalContext()
        for actor, first, last in rest.runs():
            estate, known = self._estates.get(actor, (actor, 0))
            if first <= min(last, known):
                renamed.add_run(actor, first, min(last, known))
            if last > known:
                renamed.add_run(estate, max(first, known + 1), last)
        return renamed


def renamed(delta: Delta, names: Names, author: int) -> Delta:
    """A closed *delta* of *author*, one of these lives, by the new names."""
    kind = kind_of(delta.tag)
    elements: dict[Path, Part] = {}
    for path, part in delta.elements.items():
        owner, depth = kind.locate(path)
        if owner.cells:
            for place, own in _cells(path, depth, part, names, author):
                _put(elements, place, own)
            continue
        place = path
        if owner is Text:
            place = (*path[:-1], name_of(level_of(path[-1]), names.dot(dot_of(path[-1]))))
        leaf = [(*names.dot((actor, counter)), payload) for actor, counter, payload in part[0]]
        _put(elements, place, (tuple(sorted(leaf)), tuple(sorted(map(names.dot, part[1])))))
    return Delta(delta.tag, elements, names.rest(delta.rest))


def _put(elements: dict[Path, Part], path: Path, part: Part) -> None:
    leaf, gone = elements.get(path, ((), ()))
    elements[path] = (tuple(sorted((*leaf, *part[0]))), tuple(sorted((*gone, *part[1]))))


def _cells(
    path: Path, depth: int, part: Part, names: Names, author: int
) -> Iterator[tuple[Path, Part]]:
    """What of one cell stays where it is, and what stands in the cell of an estate."""
    kept: list[Entry] = []
    leaf, gone = part
    for entry in leaf:
        actor, counter, _payload = entry
        base = names.base(path, actor, counter) if names.has(actor) else None
        if base is None:
            kept.append(entry)
            continue
        if actor != author and base and numbers_of(entry)[2:] != base[2:]:
            kept.append(entry)  # what everybody has was removed, too
        numbers = _less(numbers_of(entry), base)
        if any(numbers[:2]):
            place = _place(path, depth, names)
            yield place, (((names.estate(actor), counter, numbers),), ())
    for actor, counter in gone:
        if names.has(actor) and names.base(path, actor, counter) is not None:
            yield _place(path, depth, names), ((), ((names.estate(actor), counter),))
    known = tuple(dot for dot in gone if names.dot(dot) == dot)
    if kept or known:
        yield path, (tuple(kept), known)


def _place(path: Path, depth: int, names: Names) -> Path:
    return (*path[:depth], *(segment_of(names.estate(owner_of(each))) for each in path[depth:]))


def _less(numbers: tuple[int, ...], base: tuple[int, ...]) -> tuple[int, ...]:
    """What was added to *base*. Removals count on that first, as they took it first."""
    if not base:
        return numbers
    if len(numbers) != 4:
        return tuple(max(0, one - other) for one, other in zip(numbers, base, strict=True))
    up, down, up_undone, down_undone = numbers
    return (
        max(0, up - base[0]),
        max(0, down - base[1]),
        min(max(0, up_undone - base[0]), max(0, up - base[0])),
        min(max(0, down_undone - base[1]), max(0, down - base[1])),
    )


# --- where it is taken in -------------------------------------------------------------------------


class Short(NamedTuple):
    """What of the element at *path* cannot be had. *amount*: so much of a bounded counter was
    lowered by rights that are elsewhere now; 0: a removal, of what was folded since."""

    path: Path
    amount: int = 0


def fitted(
    kind: type[Kind], view: View, delta: Delta, estate: int, at: Moment
) -> tuple[Delta | None, list[Short]]:
    """What of a closed *delta*, in which a life goes by the name *estate*, is news to *view*, as a
    mutation of ``at.actor``; None if nothing is, and then its dot was not used. And what cannot be
    had."""
    elements: dict[Path, Part] = {}
    short: list[Short] = []
    bounded: dict[Path, None] = {}
    for path, part in delta.elements.items():
        owner, depth = kind.locate(path)
        if owner.cells and _is_folded(path[depth], view):
            if path[depth] != segment_of(estate):
                short.append(Short(path))
            continue
        elements[path] = part
        if owner is BoundedCounter and path[depth] == segment_of(estate):
            bounded[path[:depth]] = None
    for prefix in bounded:
        missing = _cover(view, prefix, elements, estate, at)
        if missing:
            short.append(Short(prefix, missing))
    news = strip(Delta(kind.tag, elements, delta.rest), view)
    if news is None:
        return None, short
    alive = any((at.actor, at.counter) in dots_of(leaf) for leaf, _ in news.elements.values())
    if not alive:
        rest = news.rest.copy()
        rest.update(bare((at.actor, at.counter)))
        news = Delta(news.tag, news.elements, rest)
    return news, short


def _is_folded(segment: bytes, view: View) -> bool:
    return segment == COMMON or view.finished(owner_of(segment))


class _Overlaid:
    """The cells of one counter as they will be: enough of a view to count rights."""

    def __init__(self, view: View, prefix: Path, elements: dict[Path, Part]) -> None:
        self._leaves = dict(view.scan(prefix))
        for path, part in elements.items():
            if path[: len(prefix)] == prefix:
                rest = CausalContext()
                self._leaves[path] = join_element(view.leaf(path), part, rest, view.sees)

    def scan(self, _prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        yield from self._leaves.items()


def _cover(view: View, prefix: Path, elements: dict[Path, Part], estate: int, at: Moment) -> int:
    """See to it that *estate* does not spend more rights than it has: give it some of those of
    ``at.actor``, or let it spend less. Returns by how much less."""
    after = _Overlaid(view, prefix, elements)
    lacking = -rights(cast("View", after), prefix, estate)
    if lacking <= 0:
        return 0
    given = min(lacking, max(0, rights(view, prefix, at.actor)))
    if given:
        path = (*prefix, segment_of(at.actor), segment_of(estate))
        elements[path] = ((raised(own_entry(view.leaf(path), at, 1), (given,)),), ())
        lacking -= given
    own = (*prefix, segment_of(estate), segment_of(estate))
    leaf, gone = elements.get(own, ((), ()))
    if lacking and leaf and numbers_of(leaf[0])[1] >= lacking:
        up, down = numbers_of(leaf[0])
        elements[own] = (((leaf[0][0], leaf[0][1], (up, down - lacking)),), gone)
    elif lacking:
        for path in [each for each in elements if each[: len(prefix) + 1] == own[:-1]]:
            del elements[path]
    return lacking
