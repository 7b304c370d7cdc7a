"""What makes them converge: join laws, deltas equal to whole replicas, bytes equal to data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.crdt_operations import Add, Increment, KindTag, Remove, Update
from quorate.crdt.codec import decode_delta, decode_state, encode_delta, encode_state
from quorate.crdt.delta import Delta, merge, merge_all, path_key, path_of, split, strip
from quorate.crdt.digest import element_digest, range_digest, replaced
from quorate.crdt.kind import Kind, elements
from quorate.crdt.kinds import ORMap, ORSet
from quorate.crdt.state import State
from tests import sharing
from tests.crdt.support import ALL, World, pair, steps, world

QUICK, DEEP = sharing.examples(25), 10_000


def each_kind(test: Any) -> Any:
    """Runs *test(kind, data)* for every kind: a few examples always, 10,000 in a deep run."""

    def run(kind: type[Kind], examples: int) -> None:
        @settings(max_examples=examples, deadline=None)
        @given(st.data())
        def search(data: st.DataObject) -> None:
            test(kind, data)

        search()

    sizes = [QUICK, pytest.param(DEEP, marks=pytest.mark.deep)]
    run.__name__ = test.__name__
    named = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)(run)
    return pytest.mark.parametrize("examples", sizes)(named)


def drawn(kind: type[Kind], data: st.DataObject) -> World:
    return world(kind, data.draw(steps(kind)))


def piece(made: World, data: st.DataObject) -> Delta:
    return data.draw(st.sampled_from(made.pieces()))


def joined(kind: type[Kind], *pieces: Delta | State) -> State:
    state = State(kind.tag)
    for each in pieces:
        state.join(each)
    return state


@each_kind
def test_join_is_commutative_associative_and_idempotent(
    kind: type[Kind], data: st.DataObject
) -> None:
    made = drawn(kind, data)
    a, b, c = (piece(made, data) for _ in range(3))
    assert merge(a, b) == merge(b, a)
    assert encode_delta(merge(a, b)) == encode_delta(merge(b, a))
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert joined(kind, a, b) == joined(kind, b, a) == joined(kind, merge(a, b), a)
    assert joined(kind, joined(kind, a, b), c) == joined(kind, a, joined(kind, b, c))
    assert joined(kind, c, merge(a, b)) == joined(kind, c, a, b) == joined(kind, a, merge(b, c))


@each_kind
def test_join_is_the_least_that_is_above_both(kind: type[Kind], data: st.DataObject) -> None:
    """Inflation, and nothing more than what the two know."""
    made = drawn(kind, data)
    a, b = piece(made, data), piece(made, data)
    both = merge(a, b)
    assert merge(a, both) == both == merge(both, b)
    assert both.context() == merge(b, a).context()
    total = a.context()
    total.update(b.context())
    assert both.context() == total


@each_kind
def test_every_operation_is_an_inflation_by_its_delta(
    kind: type[Kind], data: st.DataObject
) -> None:
    made = world(kind, [])
    for step in data.draw(steps(kind)):
        before, known = made.replicas[step.at].state.copy(), len(made.deltas)
        made.take(step)
        after = made.replicas[step.at].state
        if step.operation is not None and len(made.deltas) > known:
            delta = made.deltas[-1]
            assert joined(kind, before, delta) == after
            assert joined(kind, delta, before) == after
            assert not before.context.covers(delta.context()), "every mutation takes a dot"
        assert joined(kind, before, after) == after


@each_kind
def test_all_deltas_are_the_whole(kind: type[Kind], data: st.DataObject) -> None:
    """Whoever got all deltas, in any order and twice, is where those are that joined replicas."""
    made = drawn(kind, data)
    by_states = joined(kind, *(replica.state for replica in made.replicas))
    shuffled = data.draw(st.permutations(made.deltas))
    extra = data.draw(st.lists(st.sampled_from(shuffled), max_size=5)) if shuffled else []
    by_deltas = joined(kind, *shuffled, *extra)
    assert by_deltas == by_states
    assert encode_state(by_deltas) == encode_state(by_states)
    assert kind.value(by_deltas, ()) == kind.value(by_states, ())
    merged = merge_all(shuffled)
    assert merged is None or joined(kind, merged) == by_states
    some = data.draw(st.permutations(made.pieces()))
    everything = merge_all(some)
    assert everything is not None
    assert everything == by_states.as_delta()
    assert joined(kind, some[0], everything) == by_states


@each_kind
def test_parts_are_true_by_themselves_and_together_the_whole(
    kind: type[Kind], data: st.DataObject
) -> None:
    made = drawn(kind, data)
    whole = piece(made, data)
    parts = list(split(whole, data.draw(st.sampled_from([300, 500, 5000]))))
    for part in parts:
        assert merge(whole, part) == whole, "a part says no more than the whole"
    assert joined(kind, *data.draw(st.permutations(parts))) == joined(kind, whole)
    other = data.draw(st.sampled_from(made.replicas)).state
    assert joined(kind, other, *parts, other) == joined(kind, whole, other)


@each_kind
def test_stripped_deltas_do_the_same(kind: type[Kind], data: st.DataObject) -> None:
    made = drawn(kind, data)
    if not made.deltas:
        return
    delta = data.draw(st.sampled_from(made.deltas))
    for replica in made.replicas:
        after = joined(kind, replica.state, delta)
        news = strip(delta, replica.state)
        assert (news is None) == (after == replica.state)
        if news is not None:
            assert joined(kind, replica.state, news) == after
            assert merge(delta, news) == delta, "no more than was in it"
            again = strip(news, replica.state)
            assert again is not None
            assert encode_delta(again) == encode_delta(news), "nothing redundant is left"


@each_kind
def test_equal_data_is_equal_bytes_and_equal_digests(kind: type[Kind], data: st.DataObject) -> None:
    made = drawn(kind, data)
    states = [replica.state for replica in made.replicas]
    states += [joined(kind, *data.draw(st.permutations(made.deltas)))]
    for one in states:
        for other in states:
            assert (one == other) == (encode_state(one) == encode_state(other))
            same = dict(elements(one)) == dict(elements(other))
            assert same == (range_digest(elements(one)) == range_digest(elements(other)))


@each_kind
def test_bytes_come_back_as_what_they_were(kind: type[Kind], data: st.DataObject) -> None:
    made = drawn(kind, data)
    for each in made.pieces():
        encoded = encode_delta(each)
        again = decode_delta(encoded)
        assert again == each
        assert again.closed == each.closed
        assert encode_delta(again) == encoded
        for path in each.touches():
            assert path_of(path_key(path)) == path
        for part in split(each, 300):
            assert decode_delta(encode_delta(part)) == part
            assert len(encode_delta(part)) <= 300 or len(part.elements) == 1
    for replica in made.replicas:
        assert decode_state(encode_state(replica.state)) == replica.state


@each_kind
def test_digests_of_ranges_follow_their_elements(kind: type[Kind], data: st.DataObject) -> None:
    """What a join says it changed is all that it changed."""
    made = drawn(kind, data)
    state, total = State(kind.tag), 0
    for each in data.draw(st.permutations(made.pieces())):
        before = state.copy()
        for path in state.join(each):
            old = element_digest(path, before.leaf(path))
            total = replaced(total, old, element_digest(path, state.leaf(path)))
        assert total == range_digest(elements(state))
        touched = set(each.touches())
        if each.closed:
            changed = dict(elements(before)).items() ^ dict(elements(state)).items()
            assert {path for path, _leaf in changed} <= touched


@each_kind
def test_views_agree_with_each_other(kind: type[Kind], data: st.DataObject) -> None:
    """Order of scans is the order of keys; branches are the segments of the scan."""
    state = drawn(kind, data).replicas[0].state
    paths = [path for path, _leaf in state.scan(())]
    keys = [path_key(path) for path in paths]
    assert keys == sorted(keys)
    for path in paths:
        for depth in range(len(path)):
            below = [other for other in paths if other[:depth] == path[:depth]]
            assert [found for found, _ in state.scan(path[:depth])] == below
            segments = list(dict.fromkeys(other[depth] for other in below))
            assert list(state.branches(path[:depth])) == segments
            assert [other for other in keys if other.startswith(path_key(path[:depth]))] == [
                path_key(other) for other in below
            ]


def test_a_raised_cell_and_a_removal_are_news() -> None:
    """What a peer lacks is not taken for what it has."""
    left, right = pair(ORMap)
    raise_it = Update("n", int(KindTag.PN_COUNTER), Increment(1))
    right.join(left.apply(raise_it))
    more = left.apply(raise_it)
    news = strip(more, right.state)
    assert news is not None
    assert news == more
    right.join(news)
    assert right.value() == {"n": 2}
    assert strip(more, right.state) is None
    added = left.apply(Update("s", int(KindTag.OR_SET), Add("x")))
    right.join(added)
    news = strip(left.apply(Remove("s")), right.state)
    assert news is not None
    right.join(news)
    assert right.value() == {"n": 2}


def test_a_whole_replica_stays_whole_in_a_merge() -> None:
    """With whatever it is merged, what it no longer holds is removed wherever it is joined."""
    left, right = pair(ORSet)
    right.join(left.apply(Add("x")))
    left.apply(Remove("x"))
    whole = left.state.copy().as_delta()
    more = left.apply(Add("y"))
    for merged in (merge(whole, more), merge(more, whole), merge_all([more, whole])):
        assert merged is not None
        assert not merged.closed
        behind = right.state.copy()
        behind.join(merged)
        assert behind == left.state
