"""Leaves under paths against the dot stores of the paper, written down as they stand there.

Almeida, Shoker, Baquero, "Delta state replicated data types" (2018), figure 8: DotSet, DotFun and
DotMap are nested dicts here, and contexts are sets of dots.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.crdt.delta import Delta, merge
from quorate.crdt.dots import Leaf, Path, join_payloads
from quorate.crdt.kind import Kind
from quorate.crdt.state import State
from tests import sharing
from tests.crdt.support import ALL, steps, world

Context = frozenset[tuple[int, int]]


def join_dot_set(s: Context, c: Context, s2: Context, c2: Context) -> Context:
    return (s & s2) | (s - c2) | (s2 - c)


def join_dot_fun(m: dict[Any, Any], c: Context, m2: dict[Any, Any], c2: Context) -> dict[Any, Any]:
    joined = {dot: join_payloads(m[dot], m2[dot]) for dot in m if dot in m2}
    joined |= {dot: value for dot, value in m.items() if dot not in c2}
    return joined | {dot: value for dot, value in m2.items() if dot not in c}


def join_dot_map(m: dict[Any, Any], c: Context, m2: dict[Any, Any], c2: Context) -> dict[Any, Any]:
    joined = {}
    for key in m.keys() | m2.keys():
        one, two = m.get(key), m2.get(key)
        is_branch = any(isinstance(at, bytes) for at in (one or two or {}))
        join = join_dot_map if is_branch else join_dot_fun
        below = join(one or {}, c, two or {}, c2)
        if below:
            joined[key] = below
    return joined


def nested(leaves: dict[Path, Leaf]) -> dict[Any, Any]:
    root: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        node = root
        for segment in path[:-1]:
            node = node.setdefault(segment, {})
        node[path[-1]] = {(actor, counter): payload for actor, counter, payload in leaf}
    return root


def dots(delta: Delta) -> Context:
    return frozenset(
        (actor, counter)
        for actor, first, last in delta.context().runs()
        for counter in range(first, last + 1)
    )


@settings(max_examples=sharing.examples(30), deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_join_is_that_of_the_paper(kind: type[Kind], data: st.DataObject) -> None:
    pieces = world(kind, data.draw(steps(kind))).pieces()
    one, two = data.draw(st.sampled_from(pieces)), data.draw(st.sampled_from(pieces))
    expected = join_dot_map(nested(one.leaves()), dots(one), nested(two.leaves()), dots(two))
    both = merge(one, two)
    assert nested(both.leaves()) == expected
    assert dots(both) == dots(one) | dots(two)
    state = State(kind.tag)
    state.join(one)
    state.join(two)
    assert nested(dict(state.scan(()))) == expected
    assert dots(state.as_delta()) == dots(one) | dots(two)


@given(st.data())
def test_a_leaf_without_payloads_is_a_dot_set(data: st.DataObject) -> None:
    some = st.frozensets(st.tuples(st.integers(1, 2), st.integers(1, 4)))
    c, c2 = data.draw(some), data.draw(some)
    s, s2 = c & data.draw(some), c2 & data.draw(some)
    as_fun = join_dot_fun(dict.fromkeys(s, b""), c, dict.fromkeys(s2, b""), c2)
    assert frozenset(as_fun) == join_dot_set(s, c, s2, c2)
