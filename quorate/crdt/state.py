"""Whole replicas in memory: twins of durable ones, which keep the same leaves one to a key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from quorate.base.invariants import must
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import EMPTY_PART, Delta, join_element
from quorate.crdt.dots import Leaf, Part, Path
from quorate.errors import TypeMismatchError

Node: TypeAlias = "dict[bytes, Node] | Leaf"  # a branch, or a leaf with something alive


class State:
    """A replica of data of one kind (by its *tag*): leaves under paths, and a causal context."""

    __slots__ = ("_root", "context", "tag")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.context = CausalContext()
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
        return self.context.contains(actor, counter)

    # --- the lattice --------------------------------------------------------------------------

    def join(self, other: Delta | State) -> list[Path]:
        """Take over all that *other* knows; returns the elements that changed.

        It makes no difference whether *other* comes as one delta, as its parts or as a whole
        replica, in which order, or how often.

        Raises:
            TypeMismatchError: it is of another kind; nothing changed.
        """
        delta = other.as_delta() if isinstance(other, State) else other
        if delta.tag != self.tag:
            raise TypeMismatchError(f"data of kind {self.tag} cannot take in kind {delta.tag}")
        changed = [path for path, part in delta.elements.items() if self._join(path, part, delta)]
        if not delta.closed and not self.context.is_disjoint(delta.rest):
            changed += self._drop_dead(delta)
        self._account(delta)
        return changed

    def as_delta(self) -> Delta:
        """All that this replica knows, as one open delta; shares the context, so do not keep it."""
        elements: dict[Path, Part] = {path: (leaf, ()) for path, leaf in self.scan(())}
        return Delta(self.tag, elements, self.context, closed=False)

    def copy(self) -> State:
        """A replica of its own that knows the same."""
        twin = State(self.tag)
        twin.context = self.context.copy()
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

    def _join(self, path: Path, part: Part, delta: Delta) -> bool:
        old = self.leaf(path)
        new = join_element(old, part, delta.rest, self.context.contains)
        if new == old:
            return False
        self._put(path, new)
        return True

    def _drop_dead(self, delta: Delta) -> list[Path]:
        """Drop what the rest of an open delta says is dead, wherever it is alive here."""
        changed = []
        for path, leaf in list(self.scan(())):
            if path in delta.elements:
                continue
            left = join_element(leaf, EMPTY_PART, delta.rest, self.context.contains)
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

    def _branch(self, path: Path) -> Node | None:
        node: Node | None = self._root
        for segment in path:
            if not isinstance(node, dict):
                return None
            node = node.get(segment)
        return node

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
