"""Deltas: what changed, as a piece of the same lattice that whole replicas are points of.

A delta claims, for some dots, whether they are alive and where. A mutation makes a small one, a
whole replica can be seen as a large one, and ``merge`` joins any two. The dots that a delta speaks
of are its leaves', those *gone* from its elements, and those in *rest*. A *closed* delta says that
the dots in its rest never were in any leaf, so that joining it looks at its elements only; of an
open one (a whole replica) any element may lose a dot that the rest names.

``split`` cuts a delta into bounded parts each of which is true by itself: they may arrive in any
order, twice, or not at all. In particular no part says more of elements that it does not carry
than that certain dots are dead. A subset of the elements under the whole context would be a lie:
its receiver would take all other elements for removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from quorate.base.invariants import must
from quorate.crdt.context import CausalContext
from quorate.crdt.dots import (
    Dot,
    Entry,
    Leaf,
    Part,
    Path,
    Payload,
    dots_of,
    join_leaves,
    join_payloads,
)
from quorate.crdt.view import View

NOTHING_ELSE: Final = CausalContext()  # the rest of most deltas; never changed by anyone


class Delta:
    """A piece of what a replica knows. *tag*: the kind of the whole data. Never changed."""

    __slots__ = ("closed", "elements", "rest", "tag")

    def __init__(
        self,
        tag: int,
        elements: Mapping[Path, Part],
        rest: CausalContext = NOTHING_ELSE,
        *,
        closed: bool = True,
    ) -> None:
        self.tag = tag
        self.elements = elements
        self.rest = rest
        self.closed = closed

    def context(self) -> CausalContext:
        """Every dot that it speaks of."""
        total = self.rest.copy()
        for leaf, gone in self.elements.values():
            for actor, counter, _payload in leaf:
                total.add(actor, counter)
            for actor, counter in gone:
                total.add(actor, counter)
        return total

    def leaves(self) -> dict[Path, Leaf]:
        """The elements in which something is alive."""
        return {path: leaf for path, (leaf, _gone) in self.elements.items() if leaf}

    def touches(self) -> list[Path]:
        """The elements that joining it may change, in order; of an open delta, others too."""
        return sorted(self.elements, key=path_order)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same: the same dots, alive in the same leaves."""
        if not isinstance(other, Delta):
            return NotImplemented
        return (self.tag, self.leaves()) == (other.tag, other.leaves()) and (
            self.context() == other.context()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Delta(tag={self.tag}, elements={dict(self.elements)!r}, rest={self.rest!r}, "
            f"closed={self.closed})"
        )


def path_order(path: Path) -> tuple[tuple[int, bytes], ...]:
    """The key that paths are sorted by: the order of ``path_key``, without making it."""
    return tuple([(len(segment), segment) for segment in path])


def path_key(path: Path) -> bytes:
    """One key for one element: every segment behind its length, so that what lies below a path
    are the keys that begin with the path's own key."""
    return b"".join([len(segment).to_bytes(2, "big") + segment for segment in path])


def path_of(key: bytes) -> Path:
    """The path of which *key* is the key.

    Raises:
        InvariantViolationError: no path has it.
    """
    segments, at = [], 0
    while at < len(key):
        end = at + 2 + int.from_bytes(key[at : at + 2], "big")
        segments.append(key[at + 2 : end])
        at = end
    must(at == len(key) and bool(segments), "a key is a row of segments", key=key)
    return tuple(segments)


def merge(one: Delta, two: Delta) -> Delta:
    """The join of two deltas: what both say together."""
    must(one.tag == two.tag, "deltas of the same data", one=one.tag, two=two.tag)
    elements: dict[Path, Part] = {}
    for path, part in one.elements.items():
        elements[path] = _join_parts(part, two.elements.get(path, EMPTY_PART), one.rest, two.rest)
    for path, part in two.elements.items():
        if path not in elements:
            elements[path] = _join_parts(EMPTY_PART, part, one.rest, two.rest)
    rest = one.rest
    if two.rest:
        rest = rest.copy()
        rest.update(two.rest)
    return Delta(one.tag, elements, rest, closed=one.closed and two.closed)


def join_element(
    old: Leaf, part: Part, rest: CausalContext, sees: Callable[[int, int], bool]
) -> Leaf:
    """What becomes of one element, *old*, of a replica that has accounted for what it *sees*, when
    it joins a delta with this *part* for the element and this *rest*.

    A durable replica joins a closed delta by this for each element that the delta touches, and
    then accounts for the delta's whole context, all in one transaction. Of an open delta it has
    to look at every other element too, with ``EMPTY_PART``.
    """
    leaf, gone = part
    if not old:
        if len(leaf) == 1:  # by far the most common: something new
            return () if sees(leaf[0][0], leaf[0][1]) else leaf
        if not leaf:
            return ()

    def theirs_sees(actor: int, counter: int) -> bool:
        return (actor, counter) in gone or rest.contains(actor, counter)

    return join_leaves(old, leaf, sees, theirs_sees)


EMPTY_PART: Final[Part] = ((), ())


def _join_parts(
    mine: Part, theirs: Part, mine_rest: CausalContext, theirs_rest: CausalContext
) -> Part:
    (mine_leaf, mine_gone), (theirs_leaf, theirs_gone) = mine, theirs
    mine_dead, theirs_dead = frozenset(mine_gone), frozenset(theirs_gone)

    def mine_sees(actor: int, counter: int) -> bool:
        return (actor, counter) in mine_dead or mine_rest.contains(actor, counter)

    def theirs_sees(actor: int, counter: int) -> bool:
        return (actor, counter) in theirs_dead or theirs_rest.contains(actor, counter)

    leaf = join_leaves(mine_leaf, theirs_leaf, mine_sees, theirs_sees)
    alive = frozenset(dots_of(leaf))
    seen = {*mine_gone, *theirs_gone, *dots_of(mine_leaf), *dots_of(theirs_leaf)}
    return leaf, tuple(sorted(dot for dot in seen if dot not in alive))


def merge_all(deltas: Iterable[Delta]) -> Delta | None:
    """The join of all of them; None for none. Costs as much as they are long together."""
    opened: Delta | None = None
    elements: dict[Path, Part] = {}
    rest = CausalContext()
    tags: list[int] = []
    for delta in deltas:
        must(not tags or delta.tag == tags[0], "deltas of the same data", tags=tags, tag=delta.tag)
        if not delta.closed:
            opened = delta if opened is None else merge(opened, delta)
            continue
        tags = [delta.tag]
        for path, part in delta.elements.items():
            held = elements.get(path)
            if held is not None:  # rests of closed deltas say nothing of elements
                part = _join_parts(held, part, NOTHING_ELSE, NOTHING_ELSE)  # noqa: PLW2901
            elements[path] = part
        rest.update(delta.rest)
    if not tags:
        return opened
    closed = Delta(tags[0], elements, rest)
    return closed if opened is None else merge(opened, closed)


def strip(delta: Delta, view: View) -> Delta | None:
    """What of a closed delta is news to *view*; None if nothing is.

    Joining it has the same effect as joining all of *delta*, and it is what is worth passing on:
    deltas that travel on unstripped cost as much as whole replicas (Enes, Almeida, Baquero and
    Leitão, "Efficient synchronization of state-based CRDTs", 2019).
    """
    must(delta.closed, "only closed deltas are stripped", delta=delta.tag)
    elements: dict[Path, Part] = {}
    for path, (leaf, gone) in delta.elements.items():
        mine = {(actor, counter): payload for actor, counter, payload in view.leaf(path)}
        alive = tuple(entry for entry in leaf if _is_news(entry, mine, view))
        dead = tuple(dot for dot in gone if dot in mine or not view.sees(*dot))
        if alive or dead:
            elements[path] = (alive, dead)
    rest = CausalContext.of(
        (actor, counter)
        for actor, first, last in delta.rest.runs()
        for counter in range(first, last + 1)
        if not view.sees(actor, counter)
    )
    return Delta(delta.tag, elements, rest) if elements or rest else None


def _is_news(entry: Entry, mine: dict[Dot, Payload], view: View) -> bool:
    actor, counter, payload = entry
    held = mine.get((actor, counter))
    if held is not None:
        return join_payloads(held, payload) != held
    return not view.sees(actor, counter)


# --- cutting into messages ------------------------------------------------------------------------

DOT_BYTES: Final = 5 + 5 + 9  # the most that member, epoch and counter take
RUN_BYTES: Final = DOT_BYTES + 9
SPLIT_BYTES_MIN: Final = 4 * RUN_BYTES  # what stands around the elements, and two runs


def part_bytes(path: Path, part: Part) -> int:
    """No less than what an element takes in a message."""
    leaf, gone = part
    size = 16 + sum(map(len, path)) + 5 * len(path) + DOT_BYTES * (len(leaf) + len(gone))
    for _actor, _counter, payload in leaf:
        size += 6 + (len(payload) if isinstance(payload, bytes) else 9 * len(payload))
    return size


def split(delta: Delta, bytes_max: int) -> Iterator[Delta]:
    """*delta* in parts of at most *bytes_max* encoded, or of one element if that takes more.

    The join of all parts is *delta*, in whatever order they come, and each of them is below it.
    """
    must(bytes_max >= SPLIT_BYTES_MIN, "room for some runs", bytes_max=bytes_max)
    room = bytes_max - 2 * RUN_BYTES  # for what stands around the elements
    chunk: dict[Path, Part] = {}
    size = 0
    for path in delta.touches():
        part = delta.elements[path]
        more = part_bytes(path, part)
        if chunk and size + more > room:
            yield Delta(delta.tag, chunk)
            chunk, size = {}, 0
        chunk[path] = part
        size += more
    if chunk:
        yield Delta(delta.tag, chunk)
    yield from _split_rest(delta, room)


def _split_rest(delta: Delta, room: int) -> Iterator[Delta]:
    """What is dead, or never was alive, in parts that name no element."""
    alive = CausalContext.of(
        dot for _path, (leaf, _gone) in delta.elements.items() for dot in dots_of(leaf)
    )
    runs = list(delta.rest.minus(alive).runs())
    count = room // RUN_BYTES
    for at in range(0, len(runs), count):
        rest = CausalContext.from_runs(runs[at : at + count])
        yield Delta(delta.tag, {}, rest, closed=delta.closed)


def bare(dot: Dot) -> CausalContext:
    """The rest of a delta whose mutation left nothing alive under its own dot."""
    context = CausalContext()
    context.add(*dot)
    return context
