"""Folding changes names, sums up what nobody counts any more, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Decrement,
    Increment,
    KindTag,
    Remove,
    Transfer,
    Update,
)
from quorate.crdt.bounded import all_rights, rights
from quorate.crdt.codec import decode_state, encode_state
from quorate.crdt.context import CausalContext
from quorate.crdt.dots import NO_ACTOR, make_actor
from quorate.crdt.folding import (
    Fold,
    covers_reports,
    covers_retired,
    fold_context,
    fold_delta,
    fold_state,
    plan,
    strangers,
)
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import BoundedCounter, ORMap, ORSet, PNCounter
from quorate.crdt.replica import MemoryReplica
from quorate.errors import CrdtError, QuorateError
from tests.crdt.support import ALL, REPLICAS, Step, World, operations, pair, steps, sync, world


def retire(made: World, member: int) -> Fold:
    """The fold that retires *member*, whose cells go to the next one."""
    gone, heir = made.replicas[member], made.replicas[(member + 1) % REPLICAS]
    return plan(1, 0, {gone.actor: gone.counter}, {gone.actor: heir.actor})


def everyone_knows(made: World) -> None:
    for _round in range(3):
        for replica in made.replicas:
            for other in made.replicas:
                made.changed(replica, replica.join(other))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_folding_changes_no_value_and_no_comparison(kind: type[Kind], data: st.DataObject) -> None:
    """Some fold early, some late; what those who are late still say is translated."""
    made = world(kind, data.draw(steps(kind)))
    everyone_knows(made)
    member = data.draw(st.integers(0, REPLICAS - 1))
    fold = retire(made, member)
    left = [replica for replica in made.replicas if replica is not made.replicas[member]]
    values = [replica.value() for replica in left]
    early, late = left[0], left[1]
    early.state = fold_state(early.state, fold)
    assert early.value() == values[0]
    assert made.replicas[member].actor not in early.state.context.actors()
    assert decode_state(encode_state(early.state)) == early.state

    more: list[Any] = []
    for replica in data.draw(st.permutations([early, late, late])):
        operation = data.draw(operations(kind))
        try:
            delta = replica.apply(operation)
        except QuorateError:
            continue  # refused: no operation then
        more.append(delta if replica is early else fold_delta(delta, fold))
    late_before = late.value()
    late.state = fold_state(late.state, fold)
    assert late.value() == late_before
    for replica in (early, late):
        for delta in more:
            replica.join(delta)
    early.join(late)
    late.join(early)
    assert early.state == late.state
    assert early.value() == late.value()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["raise 1", "raise 2", "raise 3", "remove", "sync"]), max_size=12))
def test_sums_are_exact_when_a_removal_runs_beside_the_fold(script: list[str]) -> None:
    """One of those who stay removes the counter before it folds, the other has folded already."""
    replicas = [MemoryReplica(ORMap, make_actor(member, 1)) for member in (1, 2, 3, 4)]
    raise_it = Update("n", int(KindTag.PN_COUNTER), Increment(3))
    for number, step in enumerate(script):
        match step.split():
            case ["raise", member]:
                replicas[int(member)].apply(raise_it)
            case ["remove"]:
                replicas[number % 4].apply(Remove("n"))
            case _:
                sync(*replicas)
    sync(*replicas)
    early, late, *gone = replicas
    last = {each.actor: each.counter for each in gone}
    fold = plan(1, 0, last, dict.fromkeys(last, early.actor))
    removal = late.apply(Remove("n"))
    early.apply(raise_it)
    early.state = fold_state(early.state, fold)
    early.join(fold_delta(removal, fold))
    late.state = fold_state(late.state, fold)
    early.join(late)
    late.join(early)
    assert early.value() == late.value() == {"n": 3}
    assert early.state == late.state


def test_counters_of_many_lives_become_one_entry() -> None:
    state, folded = MemoryReplica(PNCounter, make_actor(1, 1)).state, 0
    for epoch in range(1, 51):
        replica = MemoryReplica(PNCounter, make_actor(1, epoch), state)
        replica.apply(Increment(2))
        replica.apply(Decrement(1))
        state = replica.state
        if epoch % 10 == 0:
            last = {actor: 2 for actor in state.context.actors() if actor != NO_ACTOR}
            del last[replica.actor]
            fold = plan(epoch, folded, last, dict.fromkeys(last, replica.actor))
            folded, state = fold.folded, fold_state(state, fold)
            ((_path, leaf),) = state.scan(())
            assert len(leaf) == 2, "one of the dead, one of the living"
    assert PNCounter.value(state, ()) == 50
    assert state.context.actors() == [NO_ACTOR, replica.actor]


def test_the_heir_goes_on_counting_and_spends_what_it_inherited() -> None:
    replicas = [MemoryReplica(BoundedCounter, make_actor(member, 1)) for member in (1, 2, 3)]
    one, two, three = replicas
    one.apply(Increment(10))
    one.apply(Transfer(2, 1, 4))
    two.join(one)
    two.apply(Transfer(3, 1, 1))
    two.apply(Transfer(1, 1, 1))
    sync(*replicas)
    three.apply(Transfer(2, 1, 1))
    sync(*replicas)
    before = all_rights(one.state, ())
    fold = plan(1, 0, {two.actor: two.counter}, {two.actor: three.actor})
    for replica in (one, three):
        replica.state = fold_state(replica.state, fold)
    assert rights(one.state, (), one.actor) == before[one.actor]
    assert rights(one.state, (), three.actor) == before[two.actor] + before[three.actor]
    one.apply(Transfer(3, 1, 2))
    sync(one, three)
    three.apply(Decrement(rights(three.state, (), three.actor)))
    one.apply(Decrement(rights(one.state, (), one.actor)))
    sync(one, three)
    assert one.value() == three.value() == 0
    assert one.state == three.state


def test_gifts_to_several_that_retired_are_one_again_after_the_next() -> None:
    one = MemoryReplica(BoundedCounter, make_actor(1, 1))
    one.apply(Increment(10))
    lives = [MemoryReplica(BoundedCounter, make_actor(2, epoch)) for epoch in (1, 2, 3)]
    for life in lives:
        one.apply(Transfer(2, life.actor & 0xFF, 1))
    heir = lives[-1]
    last = {life.actor: 0 for life in lives[:-1]}
    one.state = fold_state(one.state, plan(1, 0, last, dict.fromkeys(last, heir.actor)))
    widest = max(len(leaf) for _path, leaf in one.state.scan(()))
    assert widest == 3
    delta = one.apply(Transfer(2, 3, 1))
    heir.join(one)
    heir.join(delta)
    assert max(len(leaf) for _path, leaf in one.state.scan(())) == 1
    assert rights(heir.state, (), heir.actor) == 4
    assert rights(one.state, (), one.actor) == 6


# --- when -----------------------------------------------------------------------------------------


def test_a_fold_waits_for_all_that_is_to_be_renamed() -> None:
    left, right = pair(ORSet)
    for number in range(5):
        right.apply(Add(number))
    fold = plan(1, 0, {right.actor: 5}, {right.actor: left.actor})
    with pytest.raises(CrdtError, match="cannot be folded yet"):
        fold_state(left.state, fold)
    reports = [left.state.context, right.state.context]
    assert not covers_retired(fold, reports)
    left.join(right)
    assert covers_retired(fold, reports)
    right.apply(Add("more than is known"))
    with pytest.raises(CrdtError, match="cannot be folded yet"):
        fold_state(right.state, fold)
    with pytest.raises(CrdtError, match="removed"):
        fold_context(right.state.context, fold)


def test_the_second_round_waits_for_what_the_first_reported() -> None:
    first = [CausalContext.of([(1, 1), (1, 2)]), CausalContext.of([(1, 1), (2, 1)])]
    both = CausalContext.of([(1, 1), (1, 2), (2, 1)])
    assert not covers_reports([both, first[1]], first)
    assert not covers_reports(first, first)
    assert covers_reports([both, both], first)
    assert covers_reports([both], [])


def test_folds_go_one_after_the_other() -> None:
    left, right = pair(ORSet)
    right.apply(Add(1))
    left.apply(Add(2))
    sync(left, right)
    heir = make_actor(3, 1)
    first = plan(1, 0, {right.actor: 1}, {right.actor: heir})
    second = plan(2, first.folded, {left.actor: 1}, {left.actor: heir})
    with pytest.raises(CrdtError, match="not the next"):
        fold_state(left.state, second)
    once = fold_state(left.state, first)
    with pytest.raises(CrdtError, match="not the next"):
        fold_state(once, first)
    twice = fold_state(once, second)
    assert twice.context.vector == {NO_ACTOR: 2}
    assert ORSet.value(twice, ()) == {1, 2}


def test_an_heir_does_not_retire_in_the_same_fold() -> None:
    one, two = make_actor(1, 1), make_actor(2, 1)
    for heirs in ({one: two, two: one}, {one: NO_ACTOR, two: one}):
        with pytest.raises(CrdtError):
            plan(1, 0, {one: 1, two: 1}, heirs)
    with pytest.raises(CrdtError, match="63 bits"):
        plan(1, 2**63 - 1, {one: 1}, {one: two})


def test_who_never_wrote_folds_too() -> None:
    left, _right = pair(ORSet)
    left.apply(Add(1))
    fold = plan(1, 0, {make_actor(9, 9): 0}, {make_actor(9, 9): left.actor})
    assert fold_state(left.state, fold) == left.state


def test_contexts_fold_as_states_do() -> None:
    made = world(ORMap, [Step(0, 0, Update("k", int(KindTag.LWW_REGISTER), Assign(1)), 0, 0)])
    everyone_knows(made)
    fold = retire(made, 0)
    state = made.replicas[1].state
    assert fold_context(state.context, fold) == fold_state(state, fold).context
    assert strangers(fold_state(state, fold).as_delta(), []) == []
