"""What every kind of data is: operations to deltas, leaves to a value, and what its leaves hold.

A kind is a class that is never instantiated and keeps nothing. It works on the elements below some
*prefix* of a ``View``: its own, when it is the whole of the data, or the place of its key in a map.
``operate`` is the one entrance for changes: it is pure, and the delta it returns changes nothing
until it is joined, by this replica first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, NamedTuple

from quorate.base.crdt_operations import KindTag, Operation
from quorate.base.invariants import must
from quorate.crdt.clock import NEVER, Stamp
from quorate.crdt.delta import NOTHING_ELSE, Delta, bare
from quorate.crdt.dots import Leaf, Part, Path, dots_of
from quorate.crdt.view import View
from quorate.errors import CrdtFormatError, TypeMismatchError

Parts = dict[Path, Part]

#: The one segment of kinds that have a single element: what stands there is their leaf.
ONLY: Final = b""


class Moment(NamedTuple):
    """By whom and when a mutation is made: its dot (*actor*, *counter*), which nothing else ever
    gets, and the stamp of the actor's clock, which only registers look at."""

    actor: int
    counter: int
    stamp: Stamp = NEVER


class Kind(ABC):
    """One kind of data. ``tag`` stands for it in bytes, ``name`` in sentences."""

    tag: ClassVar[KindTag]
    name: ClassVar[str]
    cells: ClassVar[bool] = False  #: its leaves are cells: folding moves and sums them up

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "tag" in cls.__dict__:
            must(cls.tag not in KINDS, "one kind for one tag", tag=cls.tag)
            KINDS[cls.tag] = cls

    # --- changes ------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        """What *operation* makes of the elements below *prefix*.

        Raises:
            CrdtError: it is not allowed here, with the reason.
            InvalidArgumentError: an argument cannot work, or outgrows a limit.
        """

    @classmethod
    def removal(cls, view: View, prefix: Path, actor: int) -> Parts:
        """What it takes to undo everything that *view* holds below *prefix*, and nothing else.

        *actor* is who removes; ``NO_ACTOR`` for a removal that another may carry out.
        """
        del actor
        return {path: ((), dots_of(leaf)) for path, leaf in view.scan(prefix)}

    # --- reading ------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def value(cls, view: View, prefix: Path) -> Any:  # noqa: ANN401  each kind has its own
        """What the elements below *prefix* amount to."""

    @classmethod
    def counts(cls, leaf: Leaf) -> bool:
        """Whether a leaf makes its key present in a map; a counter's spent cell does not."""
        return bool(leaf)

    @classmethod
    def present(cls, view: View, prefix: Path) -> bool:
        """Whether there is anything below *prefix*."""
        return any(cls.counts(leaf) for _path, leaf in view.scan(prefix))

    # --- its leaves ---------------------------------------------------------------------------

    @classmethod
    def locate(cls, path: Path) -> tuple[type[Kind], int]:
        """Whose leaf stands at *path*, and how many segments come before that kind's own.

        Raises:
            CrdtFormatError: no leaf can stand there.
        """
        del path
        return cls, 0

    @classmethod
    def check_place(cls, path: Path) -> None:
        """Refuse keys on the way to the leaf at *path* that can be none.

        Raises:
            CrdtFormatError: with what is wrong.
        """
        del path

    @classmethod
    @abstractmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        """Refuse what cannot stand at *own*, the part of the path that is this kind's.

        Raises:
            CrdtFormatError: with what is wrong.
        """

    @classmethod
    def spent(cls, own: Path, leaf: Leaf, actor: int) -> bool:
        """Whether *actor* alone ever changes this leaf, and all of it has been undone by others:
        then it may be dropped by *actor*, see ``tidy``."""
        del own, leaf, actor
        return False

    @classmethod
    def place_of_dead(cls, own: Path, heir: Callable[[int], int]) -> Path | None:
        """Of a kind with ``cells``: where what an actor that is no more left at *own* stands once
        it was folded, *heir* being who took over from each; None when it says nothing then."""
        del heir
        return own

    @classmethod
    def counts_when_dead(cls, leaf: Leaf) -> bool:
        """Of a kind with ``cells``: whether what actors that are no more left in a cell says
        anything yet."""
        return bool(leaf)


KINDS: Final[dict[int, type[Kind]]] = {}
"""All kinds by their tags; ``quorate.crdt.kinds`` fills it."""


def kind_of(tag: int) -> type[Kind]:
    """The kind with that tag.

    Raises:
        CrdtFormatError: there is none, at least not in this version.
    """
    kind = KINDS.get(tag)
    if kind is None:
        raise CrdtFormatError(f"no kind of data has the number {tag}: of a newer version, perhaps")
    return kind


def operate(kind: type[Kind], view: View, operation: Operation, at: Moment) -> Delta:
    """The delta of one operation; nothing changes before it is joined.

    Raises:
        CrdtError: the kind, or the data as it is here, does not allow it, with the reason.
        InvalidArgumentError: an argument cannot work, or outgrows a limit.
    """
    if view.sees(at.actor, at.counter):
        must(False, "dots are given once", actor=at.actor, counter=at.counter)  # noqa: FBT003
    parts = kind.mutate(view, (), operation, at)
    for leaf, _gone in parts.values():
        for actor, counter, _payload in leaf:
            if counter == at.counter and actor == at.actor:
                return Delta(kind.tag, parts, NOTHING_ELSE)
    return Delta(kind.tag, parts, bare((at.actor, at.counter)))


def tidy(kind: type[Kind], view: View, paths: list[Path], at: Moment) -> Delta | None:
    """Drops those of *paths* that only ``at.actor`` ever changes and that others have undone.

    Of the cell of a counter that another replica removed something must stay until its owner has
    seen the removal: this is the owner's part. To be called with the elements that a join changed;
    None when there is nothing to drop, and then the dot was not used.
    """
    parts: Parts = {}
    for path in paths:
        leaf = view.leaf(path)
        owner, depth = kind.locate(path)
        if leaf and owner.spent(path[depth:], leaf, at.actor):
            parts[path] = ((), dots_of(leaf))
    return Delta(kind.tag, parts, bare((at.actor, at.counter))) if parts else None


def check_element(kind: type[Kind], path: Path, leaf: Leaf) -> None:
    """Refuse what cannot stand at *path* in data of *kind*.

    Raises:
        CrdtFormatError: with what is wrong.
    """
    owner, depth = kind.locate(path)
    kind.check_place(path)
    owner.check(path[depth:], leaf)


def elements(view: View) -> Iterator[tuple[Path, Leaf]]:
    """Every element, in the order of their keys."""
    return view.scan(())


def wrong_operation(kind: type[Kind], operation: Operation) -> TypeMismatchError:
    """What to raise when *kind* has no such operation."""
    return TypeMismatchError(f"{kind.name} has no operation {type(operation).__name__}")


def check_only(kind: type[Kind], own: Path) -> None:
    """Refuse any place but the only one.

    Raises:
        CrdtFormatError: it is another.
    """
    if own != (ONLY,):
        raise CrdtFormatError(f"{kind.name} has one element, not one at {own!r:.80}")


def check_marks(kind: type[Kind], leaf: Leaf) -> None:
    """Refuse payloads where dots alone count.

    Raises:
        CrdtFormatError: there is one.
    """
    if any(payload != b"" for _actor, _counter, payload in leaf):
        raise CrdtFormatError(f"an element of {kind.name} carries a payload")
