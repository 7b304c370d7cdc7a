"""What must not grow: states under churn, contexts under gaps, cells that were removed."""

from __future__ import annotations

import pytest

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Enable,
    Increment,
    KindTag,
    Operation,
    Remove,
    Update,
)
from quorate.crdt.codec import encode_state
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import (
    EnableWinsFlag,
    GSet,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
)
from tests.crdt.support import pair, sync

pytestmark = pytest.mark.shared

NUMBER_BYTES = 40  # by which the counters in contexts and cells may get longer


def test_a_hundred_thousand_additions_and_removals_leave_no_growth() -> None:
    replica, _other = pair(ORSet)
    sizes = []
    for number in range(100_000):
        replica.apply(Add(number % 10))
        replica.apply(Remove(number % 10))
        if number % 20_000 == 9:
            sizes.append(len(encode_state(replica.state)))
    assert replica.value() == set()
    assert replica.state.context.width() == 1
    assert max(sizes) <= sizes[0] + 8
    assert sizes[-1] < 40


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        (PNCounter, [Increment(5), Decrement(5)]),
        (LWWRegister, [Assign("a"), Assign("b")]),
        (MVRegister, [Assign("a"), Clear()]),
        (EnableWinsFlag, [Enable(), Disable()]),
        (ORSet, [Add("x"), Remove("x")]),
        (ORSet, [Add("x")]),
        (GSet, [Add("x")]),
        (ORMap, [Update("k", int(KindTag.PN_COUNTER), Increment()), Remove("k")]),
        (ORMap, [Update("k", int(KindTag.LWW_REGISTER), Assign("x")), Remove("k")]),
    ],
)
def test_two_replicas_that_change_the_same_thing_for_ever_stay_small(
    kind: type[Kind], operations: list[Operation]
) -> None:
    left, right = pair(kind)
    sizes = []
    for number in range(2000):
        for operation in operations:
            deltas = [left.apply(operation, wall_ms=number), right.apply(operation, wall_ms=number)]
            for replica, delta in ((left, deltas[1]), (right, deltas[0])):
                closing = replica.tidy(replica.join(delta))
                if closing is not None:
                    (right if replica is left else left).join(closing)
        if number % 500 == 50:
            sizes.append(len(encode_state(left.state)))
    sync(left, right)
    assert left.state == right.state
    assert max(sizes) <= sizes[0] + NUMBER_BYTES


def test_counters_that_others_remove_are_dropped_by_their_owners() -> None:
    """Ten thousand keys, each begun by one and removed by the other."""
    left, right = pair(ORMap)
    for number in range(10_000):
        key = f"k{number}"
        right.join(left.apply(Update(key, int(KindTag.PN_COUNTER), Increment(2))))
        removal = right.apply(Remove(key))
        assert right.value() == {}
        closing = left.tidy(left.join(removal))
        assert closing is not None
        right.join(closing)
    assert left.state == right.state
    assert left.state.count() == 0
    assert left.state.context.width() == 2


def test_a_context_with_gaps_shrinks_when_they_close() -> None:
    left, right = pair(ORSet)
    deltas = [left.apply(Add(number)) for number in range(2000)]
    for delta in deltas[::2]:
        right.join(delta)
    wide = right.state.context.width()
    for delta in deltas[1::2]:
        right.join(delta)
    assert wide > 1000
    assert right.state.context.width() == 1
    assert right.state == left.state
