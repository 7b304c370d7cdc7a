"""Whole replicas in memory: twins of durable ones, which keep the same leaves one to a key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from quorate.base.invariants import must
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import EMPTY_PART, Delta, join_element
from quorate.crdt.dots import Leaf, Part, Path, epoch_of, member_of
from quorate.errors import CrdtError, TypeMismatchError

Node: TypeAlias = "dict[bytes, Node] | Leaf"  # a branch, or a leaf with something alive


class State:
    """A replica of data of one kind (by its *tag*): leaves under paths, and a causal context."""

    __slots__ = ("_root", "context", "finishing", "generation", "retired", "tag")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.context = CausalContext()
        self.generation = 0  #: of folding
        #: By member, its last actor that was folded: of it and of those before, all dots are in.
        self.retired: dict[int, int] = {}
        self.finishing: frozenset[int] = frozenset()  #: to be folded next, and all known here
        self._root: dict[bytes, Node] = {}

    # --- View ---------------------------------------------------------------------------------

    def leaf(self, path: Path) -> Leaf:
        node: Node | None = self._root
        for segment in path:
            if not isinstance(node, dict):
                return ()
            node = node.get(segment)
        return node if isinstance(node, tuple) else ()

    def scan(self, prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        node = self._branch(prefix)
        if node is not None:
            yield from _walk(prefix, node)

    def branches(self, prefix: Path) -> Iterator[bytes]:
        node = self._branch(prefix)
        if isinstance(node, dict):
            yield from _in_order(node)

    def sees(self, actor: int, counter: int) -> bool:
        return self.context.contains(actor, counter) or self._is_retired(actor)

    def finished(self, actor: int) -> bool:
        return actor in self.finishing or self._is_retired(actor)

    def _is_retired(self, actor: int) -> bool:
        return epoch_of(actor) <= self.retired.get(member_of(actor), 0)

    # --- the lattice --------------------------------------------------------------------------

    def join(self, other: Delta | State) -> list[Path]:
        """Take over all that *other* knows; returns the elements that changed.

        It makes no difference whether *other* comes as one delta, as its parts or as a whole
        replica, in which order, or how often.

        A replica of another generation is not joined (``folding`` says what to do), and a delta is
        taken to be of this one.

        Raises:
            TypeMismatchError: it is of another kind; nothing changed.
            CrdtError: it is of another generation; nothing changed.
        """
        if isinstance(other, State):
            self._check_generation(other)
        delta = other.as_delta() if isinstance(other, State) else other
        if delta.tag != self.tag:
            raise TypeMismatchError(f"data of kind {self.tag} cannot take in kind {delta.tag}")
        rest = delta.rest if delta.closed else self._with_retired(delta.rest)
        changed = [path for path, part in delta.elements.items() if self._join(path, part, rest)]
        if not delta.closed and (self.retired or not self.context.is_disjoint(rest)):
            changed += self._drop_dead(delta, rest)
        self._account(delta)
        return changed

    def _check_generation(self, other: State) -> None:
        if self.generation != other.generation:
            raise CrdtError(
                f"a replica of generation {other.generation} cannot be joined to one of "
                f"generation {self.generation}"
            )

    def _with_retired(self, context: CausalContext) -> CausalContext:
        """*context*, of a whole replica, with the dots of actors that were folded that are alive
        here: the other replica has seen all there ever were."""
        if not self.retired:
            return context
        whole = context.copy()
        for _path, leaf in self.scan(()):
            for actor, counter, _payload in leaf:
                if self._is_retired(actor):
                    whole.add(actor, counter)
        return whole

    def as_delta(self) -> Delta:
        """All that this replica knows, as one open delta; shares the context, so do not keep it."""
        elements: dict[Path, Part] = {path: (leaf, ()) for path, leaf in self.scan(())}
        return Delta(self.tag, elements, self.context, closed=False)

    def copy(self) -> State:
        """A replica of its own that knows the same."""
        twin = State(self.tag)
        twin.context = self.context.copy()
        twin.generation = self.generation
        twin.retired = dict(self.retired)
        twin.finishing = self.finishing
        for path, leaf in self.scan(()):
            twin._put(path, leaf)
        return twin

    def count(self) -> int:
        """How many elements have something alive."""
        return sum(1 for _ in self.scan(()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return (self.tag, self._root) == (other.tag, other._root) and self.context == other.context

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"State(tag={self.tag}, {dict(self.scan(()))!r}, {self.context!r})"

    # --- inside -------------------------------------------------------------------------------

    def _join(self, path: Path, part: Part, rest: CausalContext) -> bool:
        old = self.leaf(path)
        new = join_element(old, part, rest, self.sees)
        if new == old:
            return False
        self._put(path, new)
        return True

    def _drop_dead(self, delta: Delta, rest: CausalContext) -> list[Path]:
        """Drop what the rest of an open delta says is dead, wherever it is alive here."""
        changed = []
        for path, leaf in list(self.scan(())):
            if path in delta.elements:
                continue
            left = join_element(leaf, EMPTY_PART, rest, self.sees)
            if left != leaf:
                self._put(path, left)
                changed.append(path)
        return changed

    def _account(self, delta: Delta) -> None:
        context = self.context
        for leaf, gone in delta.elements.values():
            for actor, counter, _payload in leaf:
                context.add(actor, counter)
            for actor, counter in gone:
                context.add(actor, counter)
        if delta.rest:
            context.update(delta.rest)
        if self.retired:
            self.forget_retired()

    def forget_retired(self) -> None:
        """Take out of the context what ``retired`` says anyway."""
        gone = [actor for actor in self.context.actors() if self._is_retired(actor)]
        if gone:
            self.context = self.context.without(gone)

    def _branch(self, path: Path) -> Node | None:
        node: Node | None = self._root
        for segment in path:
            if not isinstance(node, dict):
                return None
            node = node.get(segment)
        return node

    def replace(self, leaves: Mapping[Path, Leaf]) -> None:
        """Put *leaves* in place of what was there, without a word of who did it: for folding."""
        for path, leaf in leaves.items():
            self._put(path, leaf)

    def _put(self, path: Path, leaf: Leaf) -> None:
        """Put *leaf* in place of what was there; branches that end up empty are cut off."""
        if not leaf:
            self._cut(path)
            return
        node = self._root
        for segment in path[:-1] if len(path) > 1 else ():
            below = node.setdefault(segment, {})
            must(isinstance(below, dict), "no leaf on the way to a leaf", path=path)
            node = below  # type: ignore[assignment]
        node[path[-1]] = leaf

    def _cut(self, path: Path) -> None:
        trail: list[dict[bytes, Node]] = []
        node: Node | None = self._root
        for segment in path:
            if not isinstance(node, dict):
                return
            trail.append(node)
            node = node.get(segment)
        for branch, segment in zip(reversed(trail), reversed(path), strict=True):
            branch.pop(segment, None)
            if branch:
                return


def _in_order(node: dict[bytes, Node]) -> list[bytes]:
    return sorted(node, key=lambda segment: (len(segment), segment))


def _walk(path: Path, node: Node) -> Iterator[tuple[Path, Leaf]]:
    if isinstance(node, tuple):
        yield path, node
        return
    for segment in _in_order(node):
        yield from _walk((*path, segment), node[segment])
