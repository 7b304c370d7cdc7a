"""One record for each element is enough: a replica of sorted keys and bytes, beside the one in
memory, that reads and writes only what a delta touches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.crdt.codec import decode_context, decode_element, encode_context, encode_leaf
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import EMPTY_PART, Delta, join_element, path_key, path_of
from quorate.crdt.digest import element_digest, range_digest, stored_digest
from quorate.crdt.dots import Leaf, Path
from quorate.crdt.kind import Kind, Moment, elements, operate
from quorate.errors import QuorateError
from tests import sharing
from tests.crdt.support import ALL, operations, steps, world


class Records:
    """What a store with ordered keys offers, and a ``View`` on it."""

    def __init__(self, kind: type[Kind]) -> None:
        self.kind = kind
        self.keys: list[bytes] = []
        self.records: dict[bytes, bytes] = {}
        self.context = encode_context(CausalContext())
        self.read: set[bytes] = set()

    def leaf(self, path: Path) -> Leaf:
        key = path_key(path)
        self.read.add(key)
        encoded = self.records.get(key)
        return decode_element(self.kind, key, encoded)[1] if encoded else ()

    def scan(self, prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        start = path_key(prefix)
        for key in self.keys[bisect_left(self.keys, start) :]:
            if not key.startswith(start):
                return
            self.read.add(key)
            yield decode_element(self.kind, key, self.records[key])

    def branches(self, prefix: Path) -> Iterator[bytes]:
        """By seeking behind each branch, not by reading it."""
        at = bisect_left(self.keys, path_key(prefix))
        while at < len(self.keys) and self.keys[at].startswith(path_key(prefix)):
            path = path_of(self.keys[at])
            yield path[len(prefix)]
            behind = path_key(path[: len(prefix) + 1]) + b"\xff" * 3
            at = bisect_left(self.keys, behind)

    def sees(self, actor: int, counter: int) -> bool:
        return decode_context(self.context).contains(actor, counter)

    def finished(self, actor: int) -> bool:
        del actor
        return False

    def join(self, delta: Delta) -> None:
        context = decode_context(self.context)
        paths = delta.touches()
        if not delta.closed:
            paths = sorted({*paths, *(path for path, _leaf in list(self.scan(())))})
        for path in paths:
            part = delta.elements.get(path, EMPTY_PART)
            self._put(path, join_element(self.leaf(path), part, delta.rest, context.contains))
        context.update(delta.context())
        self.context = encode_context(context)

    def _put(self, path: Path, leaf: Leaf) -> None:
        key = path_key(path)
        if leaf and key not in self.records:
            insort(self.keys, key)
        elif not leaf and key in self.records:
            self.keys.remove(key)
            del self.records[key]
        if leaf:
            self.records[key] = encode_leaf(leaf)


@settings(max_examples=sharing.examples(20), deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_records_follow_the_replica(kind: type[Kind], data: st.DataObject) -> None:
    made = world(kind, data.draw(steps(kind)))
    replica, records = made.replicas[0], Records(kind)
    records.join(replica.state.as_delta())
    for _ in range(3):
        change: Any = data.draw(st.sampled_from(made.pieces()) | operations(kind))
        if not isinstance(change, Delta):
            at = Moment(replica.actor, replica.counter + 1)
            try:
                change = operate(kind, records, change, at)
            except QuorateError as refused:
                with pytest.raises(type(refused)):
                    operate(kind, replica.state, change, at)
                continue
            replica.counter += 1
        records.read.clear()
        replica.join(change)
        records.join(change)
        if change.closed:
            assert records.read <= set(map(path_key, change.touches()))
        assert dict(elements(records)) == dict(elements(replica.state))
        assert list(elements(records)) == list(elements(replica.state))
        assert kind.value(records, ()) == replica.value()
        assert records.context == encode_context(replica.state.context)
        digests = [stored_digest(key, records.records[key]) for key in records.keys]
        assert digests == [element_digest(*each) for each in elements(replica.state)]
        assert range_digest(elements(records)) == sum(digests) % 2**128
