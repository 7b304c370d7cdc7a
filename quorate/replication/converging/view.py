"""What operations see of CRDT data: the elements of the store, under those of the open batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from quorate.base.limits import MIB
from quorate.crdt.codec import decode_leaf, encode_leaf
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta, join_element, path_key, path_of
from quorate.crdt.dots import NUMBER_MAX, Dot, Leaf, Path
from quorate.errors import LimitExceededError
from quorate.storage.elements import ElementStore
from quorate.storage.interfaces import Change

ELEMENTS: Final = "elements"

PAGE_RECORDS: Final = 256
PAGE_BYTES: Final = MIB
#: Elements that one operation may look at: some 50 ms. Larger data is cleared piece by piece.
SCAN_MAX: Final = 20_000


def key_after(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with *prefix*; None: there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else None


class Elements:
    """A ``View`` of the durable elements alone: what is read, and what is passed on.

    *context*, *retired* (by member, the last life whose dots all count as seen) are shared with
    their owner, who changes them; so are *finishing*: lives that the next fold takes, and that are
    whole here.
    """

    def __init__(
        self,
        store: ElementStore,
        context: CausalContext,
        retired: Mapping[int, int],
        finishing: Collection[int] = (),
    ) -> None:
        self.store = store
        self.context = context
        self.retired = retired
        self.finishing = finishing

    def sees(self, actor: int, counter: int) -> bool:
        """Whether the replica has accounted for that dot."""
        if self.context.contains(actor, counter):
            return True
        retired = self.retired
        return bool(retired) and actor & NUMBER_MAX <= retired.get(actor >> 32, 0)

    def finished(self, actor: int) -> bool:
        """Whether that life is over, and all its records are here: see ``crdt.folding``."""
        return actor in self.finishing or actor & NUMBER_MAX <= self.retired.get(actor >> 32, 0)

    def leaf(self, path: Path) -> Leaf:
        """What is alive in one element."""
        encoded = self.store.get(ELEMENTS, path_key(path))
        return () if encoded is None else decode_leaf(encoded)

    def scan(self, prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        """Every element below *prefix*, in the order of their keys."""
        below = path_key(prefix)
        for key, encoded in self.range(below, key_after(below)):
            yield path_of(key), decode_leaf(encoded)

    def range(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The elements with keys from *start* up to but not including *end*."""
        while True:
            page = self.store.page(ELEMENTS, start, end, PAGE_RECORDS, PAGE_BYTES)
            yield from page
            if not page:
                return
            start = page[-1][0] + b"\0"

    def branches(self, prefix: Path) -> Iterator[bytes]:
        """The segments right behind *prefix*, in order."""
        yield from self.branches_after(prefix, b"")

    def branches_after(self, prefix: Path, segment: bytes) -> Iterator[bytes]:
        """The same, behind *segment*; b"": from the beginning."""
        below = path_key(prefix)
        end, depth = key_after(below), len(prefix)
        start = key_after(below + path_key((segment,))) if segment else below
        while start is not None:
            found = self.first(start, end)
            if found is None:
                return
            segment = path_of(found)[depth]
            yield segment
            start = key_after(below + path_key((segment,)))

    def first(self, start: bytes, end: bytes | None) -> bytes | None:
        """The first key from *start* on, before *end*."""
        page = self.store.page(ELEMENTS, start, end, 1, PAGE_BYTES)
        return page[0][0] if page else None


class OpenBatch(Elements):
    """The same with the changes of a batch on top, until that is durable: a ``View`` for whoever
    makes them."""

    def __init__(
        self,
        store: ElementStore,
        context: CausalContext,
        retired: Mapping[int, int],
        finishing: Collection[int] = (),
    ) -> None:
        super().__init__(store, context.copy(), retired, finishing)
        self._leaves: dict[bytes, Leaf] = {}
        self._keys: list[bytes] = []  # of these, in order
        #: What was looked up, with its key: an operation reads what its join reads again.
        self._met: dict[Path, tuple[bytes, Leaf]] = {}
        #: By name or key of a map, the kinds below it: every operation on it asks. One that is
        #: no longer there does no harm, whoever asks looks whether anything of it is.
        self._kinds: dict[Path, list[bytes]] = {}
        self._looked_at = 0

    def allow(self) -> None:
        """The next operation may look at ``SCAN_MAX`` elements."""
        self._looked_at = 0

    def leaf(self, path: Path) -> Leaf:
        """What is alive in one element."""
        return self._meet(path)[1]

    def _meet(self, path: Path) -> tuple[bytes, Leaf]:
        met = self._met.get(path)
        if met is None:
            key = path_key(path)
            encoded = self.store.get(ELEMENTS, key)
            met = self._met[path] = (key, () if encoded is None else decode_leaf(encoded))
        return met

    def branches(self, prefix: Path) -> Iterator[bytes]:
        """The segments right behind *prefix*, in order."""
        if not len(prefix) % 2:
            return super().branches(prefix)
        kinds = self._kinds.get(prefix)
        if kinds is None:
            kinds = self._kinds[prefix] = list(super().branches(prefix))
        return iter(kinds)

    def scan(self, prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        """Every element below *prefix*, in the order of their keys.

        Raises:
            LimitExceededError: there are more than one operation may look at.
        """
        below = path_key(prefix)
        end = key_after(below)
        mine = self._keys[bisect_left(self._keys, below) :]
        if end is not None:
            mine = mine[: bisect_left(mine, end)]
        at = 0
        for key, encoded in self.range(below, end):
            while at < len(mine) and mine[at] < key:
                yield from self._mine(mine[at])
                at += 1
            if at < len(mine) and mine[at] == key:
                yield from self._mine(key)
                at += 1
            else:
                self._look(key)
                yield path_of(key), decode_leaf(encoded)
        for key in mine[at:]:
            yield from self._mine(key)

    def _mine(self, key: bytes) -> Iterator[tuple[Path, Leaf]]:
        leaf = self._leaves[key]
        if leaf:
            self._look(key)
            yield path_of(key), leaf

    def _look(self, key: bytes) -> None:
        self._looked_at += 1
        if self._looked_at > SCAN_MAX:
            raise LimitExceededError(
                f"this takes a look at more than {SCAN_MAX} elements, as {path_of(key)[-1]!r:.80}: "
                f"remove them one by one, or some at a time"
            )

    def first(self, start: bytes, end: bytes | None) -> bytes | None:
        """The first key from *start* on, before *end*, with something alive."""
        at = bisect_left(self._keys, start)
        mine = None
        while at < len(self._keys) and (end is None or self._keys[at] < end):
            if self._leaves[self._keys[at]]:
                mine = self._keys[at]
                break
            at += 1
        key = super().first(start, mine or end)
        if key is None or self._leaves.get(key, True):
            return mine if key is None else key
        for found, _encoded in self.range(key, mine or end):  # the batch has emptied some
            if self._leaves.get(found, True):
                return found
        return mine

    # --- changes ------------------------------------------------------------------------------

    def join(self, delta: Delta) -> list[Path]:
        """Take a closed delta in; returns the elements that changed."""
        changed = []
        for path, part in delta.elements.items():
            old = self._meet(path)[1]
            new = join_element(old, part, delta.rest, self.sees)
            if new != old:
                self.put(path, new)
                changed.append(path)
        self.account(delta)
        return changed

    def account(self, delta: Delta) -> None:
        """Account for all dots that *delta* speaks of."""
        context, retired = self.context, self.retired
        for leaf, gone in delta.elements.values():
            for actor, counter, _payload in leaf:
                if not retired or actor & NUMBER_MAX > retired.get(actor >> 32, 0):
                    context.add(actor, counter)
            for actor, counter in gone:
                if not retired or actor & NUMBER_MAX > retired.get(actor >> 32, 0):
                    context.add(actor, counter)
        if delta.rest:
            context.update(delta.rest.without(self._retired_in(delta.rest)))

    def account_for(self, dots: Iterable[Dot]) -> None:
        """Account for these dots."""
        context, retired = self.context, self.retired
        for actor, counter in dots:
            if not retired or actor & NUMBER_MAX > retired.get(actor >> 32, 0):
                context.add(actor, counter)

    def account_for_all(self, context: CausalContext, retired: Mapping[int, int]) -> None:
        """Account for all dots of *context*, and for those of all lives that are *retired*."""
        self.retired = retired
        self.context.update(context)
        self.context = self.context.without(self._retired_in(self.context))

    def _retired_in(self, context: CausalContext) -> list[int]:
        retired = self.retired
        if not retired:
            return []
        return [
            actor for actor in context.actors() if actor & NUMBER_MAX <= retired.get(actor >> 32, 0)
        ]

    def put(self, path: Path, leaf: Leaf) -> None:
        """Put *leaf* in place of what was there."""
        key = self._meet(path)[0]
        if key not in self._leaves:
            insort(self._keys, key)
            for depth in range(1, len(path), 2):
                kinds = self._kinds.get(path[:depth])
                if kinds is not None and path[depth] not in kinds:
                    insort(kinds, path[depth])
        self._leaves[key] = leaf
        self._met[path] = (key, leaf)

    def changes(self) -> list[Change]:
        """What the store is to write."""
        return [
            (key, encode_leaf(self._leaves[key]) if self._leaves[key] else None)
            for key in self._keys
        ]
