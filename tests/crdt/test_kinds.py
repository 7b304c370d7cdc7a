"""What each kind does, step by step: the table of docs/crdts.md, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.base.crdt_operations import (
    AMOUNT_MAX,
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Edit,
    Enable,
    Increment,
    KindTag,
    Operation,
    Remove,
    Transfer,
    Update,
)
from quorate.base.limits import CRDT_NESTING_MAX
from quorate.crdt.bounded import all_rights, rights
from quorate.crdt.codec import decode_delta, encode_delta
from quorate.crdt.delta import Delta
from quorate.crdt.dots import NUMBER_MAX, epoch_of, make_actor, member_of
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import (
    BoundedCounter,
    DisableWinsFlag,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
    Text,
    TwoPSet,
)
from quorate.crdt.replica import MemoryReplica
from quorate.errors import (
    CrdtError,
    CrdtFormatError,
    InsufficientRightsError,
    InvalidArgumentError,
    LimitExceededError,
    NotObservedError,
    QuorateError,
    TypeMismatchError,
)
from tests.crdt.support import ALL, ALL_NAMES, pair, resolved, sync

EMPTY: dict[str, Any] = {
    "BoundedCounter": 0,
    "DisableWinsFlag": True,
    "EnableWinsFlag": False,
    "GCounter": 0,
    "GSet": frozenset(),
    "LWWRegister": None,
    "MVRegister": [],
    "ORMap": {},
    "ORSet": frozenset(),
    "PNCounter": 0,
    "Text": [],
    "TwoPSet": frozenset(),
}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_what_is_read_before_the_first_write(kind: type[Kind]) -> None:
    replica, _other = pair(kind)
    assert replica.value() == EMPTY[kind.name]


@pytest.mark.parametrize(
    ("kind", "common", "mine", "theirs", "expected"),
    [
        (GCounter, [Increment(1)], [Increment(2)], [Increment(4)], 7),
        (GCounter, [Increment(8)], [Clear()], [Increment(4)], 4),
        (PNCounter, [Increment(1)], [Increment(2)], [Decrement(4)], -1),
        (PNCounter, [Increment(8)], [Clear()], [Decrement(4)], -4),
        (PNCounter, [Increment(8)], [Clear()], [Clear()], 0),
        (LWWRegister, [], [Assign("a")], [Assign("b")], "b"),
        (LWWRegister, [], [Assign("a"), Assign("aa")], [Assign("b")], "aa"),
        (LWWRegister, [Assign("x")], [Clear()], [Assign("b")], "b"),
        (MVRegister, [Assign("x")], [Assign("b")], [Assign("a")], ["a", "b"]),
        (MVRegister, [], [Assign("a")], [Assign("a")], ["a"]),
        (MVRegister, [Assign("x")], [], [Assign("a")], ["a"]),
        (LWWRegister, [Assign("x")], [], [Assign("a")], "a"),
        (MVRegister, [Assign("x")], [Clear()], [Assign("a")], ["a"]),
        (GSet, [Add(1)], [Add(2)], [Add(3)], {1, 2, 3}),
        (GSet, [Add(1), Add(2)], [Clear()], [Add(2)], {2}),
        (ORSet, [Add(1)], [Remove(1)], [Add(1)], {1}),
        (ORSet, [Add(1)], [Remove(1)], [Add(2)], {2}),
        (ORSet, [Add(1)], [Remove(1), Add(1)], [Remove(1)], {1}),
        (ORSet, [Add(1), Add(2)], [Clear()], [Add(1)], {1}),
        (TwoPSet, [Add(1)], [Remove(1)], [Add(1)], set()),
        (TwoPSet, [Add(1), Remove(1)], [Clear()], [], set()),
        (EnableWinsFlag, [Enable()], [Disable()], [Enable()], True),
        (EnableWinsFlag, [Enable()], [Disable()], [], False),
        (EnableWinsFlag, [Enable()], [Clear()], [Enable()], True),
        (DisableWinsFlag, [Disable()], [Enable()], [Disable()], False),
        (DisableWinsFlag, [Disable()], [Enable()], [], True),
        (DisableWinsFlag, [], [Disable()], [Enable()], False),
        (DisableWinsFlag, [Disable()], [Clear()], [], True),
        (Text, [Edit(b"a")], [Edit(b"a")], [Edit(b"b")], [b"a", b"a", b"b"]),
        (Text, [Edit(b"a")], [Edit(b"ab", ALL_NAMES)], [Edit(b"c")], [b"ab", b"c"]),
        (Text, [Edit(b"a")], [Edit(b"ab", ALL_NAMES)], [Edit(b"ac", ALL_NAMES)], [b"ab", b"ac"]),
        (Text, [Edit(b"a")], [Clear()], [Edit(b"b")], [b"b"]),
        (Text, [Edit(b"a")], [Clear()], [Edit(b"ab", ALL_NAMES)], [b"ab"]),
    ],
)
def test_concurrent_operations(
    kind: type[Kind],
    common: list[Operation],
    mine: list[Operation],
    theirs: list[Operation],
    expected: Any,
) -> None:
    left, right = pair(kind)
    for operation in common:
        left.apply(operation)
    sync(left, right)
    for operation in mine:
        left.apply(resolved(operation, left.state))
    for operation in theirs:
        right.apply(resolved(operation, right.state))
    sync(left, right)
    assert left.value() == right.value() == expected
    assert left.state == right.state


# --- refusals -------------------------------------------------------------------------------------

HAS: dict[type[Kind], set[type[Operation]]] = {
    GCounter: {Increment, Clear},
    PNCounter: {Increment, Decrement, Clear},
    BoundedCounter: {Increment, Decrement, Transfer},
    LWWRegister: {Assign, Clear},
    MVRegister: {Assign, Clear},
    GSet: {Add, Clear},
    TwoPSet: {Add, Remove, Clear},
    ORSet: {Add, Remove, Clear},
    ORMap: {Update, Remove, Clear},
    EnableWinsFlag: {Enable, Disable, Clear},
    DisableWinsFlag: {Enable, Disable, Clear},
    Text: {Edit, Clear},
}
ONE_OF_EACH: list[Operation] = [
    Increment(),
    Decrement(),
    Transfer(2, 1, 1),
    Assign(1),
    Add(1),
    Remove(1),
    Enable(),
    Disable(),
    Clear(),
    Edit(b"u"),
    Update("k", KindTag.G_COUNTER, Increment()),
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
@pytest.mark.parametrize("operation", ONE_OF_EACH, ids=lambda each: type(each).__name__)
def test_operations_of_other_kinds_are_refused(kind: type[Kind], operation: Operation) -> None:
    replica, _other = pair(kind)
    if type(operation) in HAS[kind]:
        if kind is not BoundedCounter:
            replica.apply(operation)
        return
    with pytest.raises(TypeMismatchError, match=kind.name):
        replica.apply(operation)
    assert replica.counter == 0
    assert not replica.state.context, "a refused operation takes no dot"


@pytest.mark.parametrize("by", [0, -1, True, 1.0, "1"])
def test_counting_by_nothing_is_refused(by: Any) -> None:
    for kind in (GCounter, PNCounter, BoundedCounter):
        replica, _other = pair(kind)
        with pytest.raises(InvalidArgumentError):
            replica.apply(Increment(by))


def test_a_counter_does_not_run_over() -> None:
    replica, _other = pair(PNCounter)
    replica.apply(Increment(AMOUNT_MAX))
    with pytest.raises(LimitExceededError):
        replica.apply(Increment(1))
    assert replica.value() == AMOUNT_MAX


def test_what_a_two_phase_set_lost_does_not_come_back() -> None:
    replica, other = pair(TwoPSet)
    replica.apply(Add("x"))
    replica.apply(Remove("x"))
    with pytest.raises(CrdtError, match="ORSet"):
        replica.apply(Add("x"))
    other.join(replica)
    with pytest.raises(CrdtError):
        other.apply(Add("x"))
    assert not replica.apply(Remove("never there")).elements


@pytest.mark.parametrize(("member", "epoch"), [(0, 1), (1, 0), (NUMBER_MAX + 1, 1), (1, -1)])
def test_what_is_no_actor_is_refused(member: int, epoch: int) -> None:
    with pytest.raises(InvalidArgumentError):
        make_actor(member, epoch)


def test_actors_sort_as_their_numbers() -> None:
    actors = [make_actor(1, 1), make_actor(1, 9), make_actor(2, 1), make_actor(NUMBER_MAX, 3)]
    assert actors == sorted(actors)
    assert [(member_of(a), epoch_of(a)) for a in actors] == [
        (1, 1),
        (1, 9),
        (2, 1),
        (NUMBER_MAX, 3),
    ]


def test_only_its_owner_drops_a_cell_that_was_undone() -> None:
    left, right = pair(PNCounter)
    left.apply(Increment(5))
    right.join(left)
    removal = right.apply(Clear())
    cells = right.state.as_delta().touches()
    assert right.tidy(cells) is None
    raised = left.apply(Increment(1))
    assert left.tidy(left.join(removal)) is None, "what was added meanwhile is in it"
    right.join(raised)
    assert left.value() == right.value() == 1
    left.join(right.apply(Clear()))
    assert left.tidy(cells) is not None
    assert left.state.count() == 0


# --- bounded counters -----------------------------------------------------------------------------


def test_rights_are_given_and_spent() -> None:
    left, right = pair(BoundedCounter)
    left.apply(Increment(10))
    sync(left, right)
    with pytest.raises(InsufficientRightsError) as caught:
        right.apply(Decrement(1))
    assert (caught.value.needed, caught.value.available) == (1, 0)
    left.apply(Transfer(2, 1, 6))
    with pytest.raises(InsufficientRightsError):
        left.apply(Decrement(5))
    with pytest.raises(InsufficientRightsError):
        left.apply(Transfer(2, 1, 5))
    sync(left, right)
    right.apply(Decrement(6))
    left.apply(Decrement(4))
    sync(left, right)
    assert left.value() == right.value() == 0
    assert all_rights(left.state, ()) == {left.actor: 0, right.actor: 0}
    right.apply(Increment(2))
    assert rights(right.state, (), right.actor) == 2


def test_below_zero_is_never_shown_though_the_increment_is_still_to_come() -> None:
    left, right = pair(BoundedCounter)
    left.apply(Increment(10))
    left.apply(Transfer(2, 1, 6))
    right.join(left)
    spent = right.apply(Decrement(6))
    third, _other = pair(BoundedCounter)
    third.join(spent)
    assert third.value() == 0
    third.join(left)
    assert third.value() == 4


def test_a_bounded_counter_is_not_removed_from_a_map() -> None:
    left, _right = pair(ORMap)
    left.apply(Update("stock", KindTag.BOUNDED_COUNTER, Increment(1)))
    left.apply(Update("other", KindTag.OR_SET, Add(1)))
    for removal in (Remove("stock"), Clear()):
        with pytest.raises(CrdtError, match="bounded counter"):
            left.apply(removal)
    left.apply(Remove("other"))
    assert left.value() == {"stock": 1}


# --- maps -----------------------------------------------------------------------------------------


def at(key: Any, tag: KindTag, operation: Operation) -> Update:
    return Update(key, int(tag), operation)


def test_maps_nest_any_kind() -> None:
    left, right = pair(ORMap)
    left.apply(at("cart", KindTag.OR_MAP, at("apple", KindTag.PN_COUNTER, Increment(2))))
    right.apply(at("cart", KindTag.OR_MAP, at("pear", KindTag.PN_COUNTER, Increment(1))))
    right.apply(at(("a", 1), KindTag.MV_REGISTER, Assign("x")))
    sync(left, right)
    assert left.value() == {"cart": {"apple": 2, "pear": 1}, ("a", 1): ["x"]}
    left.apply(at("cart", KindTag.OR_MAP, Remove("apple")))
    right.apply(at("cart", KindTag.OR_MAP, at("apple", KindTag.PN_COUNTER, Decrement(5))))
    sync(left, right)
    assert left.value() == right.value() == {"cart": {"apple": -5, "pear": 1}, ("a", 1): ["x"]}
    left.apply(Remove("cart"))
    right.join(left)
    assert right.value() == {("a", 1): ["x"]}


def test_an_empty_thing_under_a_key_is_no_key() -> None:
    left, right = pair(ORMap)
    left.apply(at("tags", KindTag.OR_SET, Add("red")))
    left.apply(at("on", KindTag.ENABLE_WINS_FLAG, Enable()))
    left.apply(at("n", KindTag.PN_COUNTER, Increment(1)))
    sync(left, right)
    right.apply(at("tags", KindTag.OR_SET, Remove("red")))
    right.apply(at("on", KindTag.ENABLE_WINS_FLAG, Disable()))
    right.apply(at("n", KindTag.PN_COUNTER, Clear()))
    assert right.value() == {}
    sync(left, right)
    assert left.value() == {}


def test_a_counter_at_zero_is_there_unless_it_was_removed() -> None:
    left, _right = pair(ORMap)
    left.apply(at("n", KindTag.PN_COUNTER, Increment(3)))
    left.apply(at("n", KindTag.PN_COUNTER, Decrement(3)))
    assert left.value() == {"n": 0}


def test_a_second_kind_under_a_key_is_refused_where_the_first_is_known() -> None:
    left, right = pair(ORMap)
    left.apply(at("k", KindTag.OR_SET, Add(1)))
    right.join(left)
    with pytest.raises(TypeMismatchError, match="holds ORSet, not PNCounter"):
        right.apply(at("k", KindTag.PN_COUNTER, Increment(1)))
    right.apply(Remove("k"))
    right.apply(at("k", KindTag.PN_COUNTER, Increment(1)))
    left.join(right)
    assert left.value() == {"k": 1}


def test_two_kinds_begun_at_once_both_stay_and_the_lower_tag_shows() -> None:
    left, right = pair(ORMap)
    left.apply(at("k", KindTag.OR_SET, Add(1)))
    right.apply(at("k", KindTag.PN_COUNTER, Increment(7)))
    sync(left, right)
    assert left.value() == right.value() == {"k": 7}
    assert ORMap.conflicts(left.state) == {"k": {"PNCounter": 7, "ORSet": {1}}}
    third = MemoryReplica(ORMap, make_actor(3, 1), left.state.copy())
    third.apply(Remove("k"))
    assert third.value() == {}, "what does not show goes as well"
    left.apply(at("k", KindTag.OR_SET, Add(2)))
    right.apply(at("k", KindTag.PN_COUNTER, Clear()))
    sync(left, right)
    assert left.value() == {"k": {1, 2}}
    assert ORMap.conflicts(left.state) == {}
    left.apply(Remove("k"))
    assert left.value() == {}


def test_maps_are_nested_to_a_bound() -> None:
    left, _right = pair(ORMap)
    operation: Operation = at("n", KindTag.G_COUNTER, Increment(1))
    for _ in range(CRDT_NESTING_MAX - 1):
        operation = at("k", KindTag.OR_MAP, operation)
    left.apply(operation)
    with pytest.raises(LimitExceededError, match="nested"):
        left.apply(at("k", KindTag.OR_MAP, operation))
    ((path, leaf),) = left.state.scan(())
    for levels, refused in ((0, False), (1, True)):
        deeper = Delta(KindTag.OR_MAP, {(b"\xa1k", b"\x09") * levels + path: (leaf, ())})
        if refused:
            with pytest.raises(CrdtFormatError):
                decode_delta(encode_delta(deeper))
        else:
            assert decode_delta(encode_delta(deeper)) == deeper


@pytest.mark.parametrize("tag", [0, 13, 255, -1])
def test_an_unknown_kind_under_a_key_is_refused(tag: int) -> None:
    left, _right = pair(ORMap)
    with pytest.raises(InvalidArgumentError, match="no kind"):
        left.apply(Update("k", tag, Increment()))


# --- removing what was observed -------------------------------------------------------------------


def test_a_removal_takes_what_its_author_saw() -> None:
    left, right = pair(ORSet)
    left.apply(Add("x"))
    left.apply(Add("y"))
    seen = left.observe()
    only_x = left.observe("x")
    left.apply(Add("x"))
    right.join(left)
    right.apply(Remove("x", seen))
    assert right.value() == {"x", "y"}
    right.apply(Remove("y", only_x))
    assert right.value() == {"x", "y"}, "the token says nothing of y"
    right.apply(Remove("y", seen))
    assert right.value() == {"x"}
    right.apply(Clear(right.observe()))
    assert right.value() == set()


def test_a_removal_of_what_has_not_arrived_is_refused() -> None:
    left, right = pair(ORSet)
    left.apply(Add("x"))
    seen = left.observe()
    with pytest.raises(NotObservedError):
        right.apply(Remove("x", seen))
    assert right.counter == 0
    right.join(left)
    right.apply(Remove("x", seen))
    assert right.value() == set()


def test_a_counter_is_cleared_as_far_as_it_was_read() -> None:
    left, right = pair(ORMap)
    left.apply(at("n", KindTag.PN_COUNTER, Increment(5)))
    seen = left.observe("n")
    left.apply(at("n", KindTag.PN_COUNTER, Increment(2)))
    right.join(left)
    right.apply(Remove("n", seen))
    sync(left, right)
    assert left.value() == right.value() == {"n": 2}
    left.apply(Remove("n", seen))
    assert left.value() == {"n": 2}, "a removal that comes twice removes nothing more"


def test_tokens_of_other_things_are_refused() -> None:
    left, _right = pair(ORSet)
    delta = left.apply(Add("x"))
    other, _third = pair(TwoPSet)
    other.apply(Add("x"))
    for token in (b"", b"junk", encode_delta(delta), other.observe()):
        with pytest.raises(QuorateError):
            left.apply(Remove("x", token))
    assert left.value() == {"x"}
    assert left.counter == 1
