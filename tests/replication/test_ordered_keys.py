"""The keys of an ordered table against a sorted list."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.replication import ordered_keys
from quorate.replication.ordered_keys import OrderedKeys
from tests import sharing

keys = st.binary(max_size=3)
doings = st.lists(
    st.one_of(
        st.tuples(st.just("add"), keys),
        st.tuples(st.just("add"), keys),
        st.tuples(st.just("remove"), st.integers(0, 100)),
        st.tuples(st.just("remove run"), st.integers(0, 100)),
        st.tuples(st.just("extend"), st.lists(keys, max_size=12)),
        st.tuples(st.just("look"), st.tuples(keys, st.none() | keys, st.booleans())),
    ),
    max_size=60,
)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(doings, st.sampled_from([(4, 2), (8, 3), (512, 64)]))
def test_they_are_those_of_a_sorted_list(life: Any, sizes: tuple[int, int]) -> None:
    model: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered_keys, "BLOCK_KEYS_MAX", sizes[0])
        patch.setattr(ordered_keys, "BLOCK_KEYS_MIN", sizes[1])
        found = OrderedKeys()
        for what, argument in life:
            if what == "add":
                if argument not in model:
                    found.add(argument)
                    model = sorted([*model, argument])
            elif what == "extend":
                new = sorted(set(argument) - set(model))
                found.extend(new)
                model = sorted([*model, *new])
            elif what == "look":
                start, end, reverse = argument
                inside = [key for key in model if start <= key and (end is None or key < end)]
                assert found.count(start, end) == len(inside)
                if end is None or start < end:
                    shown = inside[::-1] if reverse else inside
                    assert list(found.between(start, end, reverse=reverse)) == shown
            else:
                for _ in range(1 if what == "remove" else 6):
                    if model:
                        found.remove(model.pop(argument % len(model)))
            assert len(found) == len(model)
        assert list(found) == model
        assert all(len(block) <= sizes[0] for block in found._blocks)
    found.clear()
    assert not list(found)


def test_keys_that_are_extended_out_of_order_are_sorted_all_the_same() -> None:
    found = OrderedKeys()
    whole = [b"%04d" % (at * 7919 % 5000) for at in range(5000)]
    found.extend(whole[:2500])
    found.extend(whole[2500:])
    assert list(found) == sorted(whole)


def test_the_collector_sees_blocks_as_a_whole_not_their_keys() -> None:
    found = OrderedKeys()
    for at in range(5000):
        found.add(b"%04d" % (at * 7919 % 5000))
    list(found.between(b"1", b"2"))
    assert len(found._blocks) > 5000 // 512
    assert not any(gc.is_tracked(block) for block in found._blocks)
