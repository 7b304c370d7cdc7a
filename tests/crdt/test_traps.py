"""Failures of others, each with the test that would have caught it here.

Those that are of networks, disks and membership have their tests where these are.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Enable,
    Increment,
    KindTag,
    Operation,
    Remove,
    Update,
)
from quorate.crdt.bounded import rights
from quorate.crdt.clock import WALL_MS_MAX, Stamp, observe
from quorate.crdt.codec import decode_delta, encode_delta, encode_state
from quorate.crdt.context import CausalContext, pointwise_minimum
from quorate.crdt.delta import SPLIT_BYTES_MIN, Delta, merge_all, split, strip
from quorate.crdt.dots import make_actor
from quorate.crdt.folding import fold_state, plan, takes
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import (
    BoundedCounter,
    EnableWinsFlag,
    GCounter,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
)
from quorate.crdt.registers import newest_stamp
from quorate.crdt.replica import MemoryReplica
from quorate.crdt.state import State
from quorate.errors import (
    ClockDriftError,
    CrdtError,
    InsufficientRightsError,
    TypeMismatchError,
)
from tests.crdt.support import ALL, pair, sync
from tests.sharing import under_other_hashes

ROOT = Path(__file__).resolve().parents[2]
HOUR_MS = 3_600_000
NOON_MS = 1_800_000_000_000


def at(key: str, tag: KindTag, operation: Operation) -> Update:
    return Update(key, int(tag), operation)


def three(kind: type[Kind]) -> list[MemoryReplica]:
    return [MemoryReplica(kind, make_actor(member, 1)) for member in (1, 2, 3)]


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_ms", [-HOUR_MS, HOUR_MS])
def test_trap_1_a_skewed_clock_loses_no_write_and_wins_none(skew_ms: int) -> None:
    """Who writes after having read is later, whatever the clocks say; each member in turn."""
    left, right = pair(LWWRegister)
    for turn in range(6):
        writer, reader = (left, right) if turn % 2 else (right, left)
        wall_ms = NOON_MS + turn + (skew_ms if writer is left else 0)
        writer.apply(Assign(turn), wall_ms=wall_ms)
        assert writer.value() == turn, "one's own write is read at once"
        reader.join(writer)
        assert reader.value() == turn


def test_trap_1_a_clock_that_went_back_drops_no_write_of_its_own() -> None:
    """Riak answered ok and dropped it."""
    left, _right = pair(LWWRegister)
    left.apply(Assign("before"), wall_ms=NOON_MS)
    left.apply(Assign("after"), wall_ms=NOON_MS - HOUR_MS)
    assert left.value() == "after"
    again = MemoryReplica(LWWRegister, make_actor(1, 2), left.state.copy())
    again.apply(Assign("restarted"), wall_ms=0)
    assert again.value() == "restarted"


def test_trap_1_a_clock_an_hour_ahead_drags_no_other_along() -> None:
    with pytest.raises(ClockDriftError):
        observe(Stamp(NOON_MS, 0), Stamp(NOON_MS + HOUR_MS, 0), NOON_MS)


def test_trap_1_stamps_are_told_before_a_delta_is_joined() -> None:
    left, right = pair(ORMap)
    left.apply(at("a", KindTag.LWW_REGISTER, Assign(1)), wall_ms=NOON_MS + HOUR_MS)
    left.apply(at("b", KindTag.LWW_REGISTER, Assign(1)), wall_ms=NOON_MS)
    assert newest_stamp(left.state.as_delta()) == Stamp(NOON_MS + HOUR_MS, 1)
    assert newest_stamp(right.apply(at("s", KindTag.OR_SET, Add(1)))) == Stamp(0, 0)
    assert newest_stamp(right.apply(Remove("s"))) == Stamp(0, 0)


def test_trap_1_the_last_stamp_there_is_blocks_no_register_for_good() -> None:
    left, right = pair(LWWRegister)
    payload = WALL_MS_MAX.to_bytes(8, "big") + b"\xff" * 4 + bytes(8) + b"\x01"
    left.join(Delta(LWWRegister.tag, {(b"",): (((right.actor, 1, payload),), ())}))
    with pytest.raises(CrdtError, match="clear"):
        left.apply(Assign(2))
    left.apply(Clear())
    left.apply(Assign(2))
    assert left.value() == 2


def test_trap_2_counts_since_boot_as_wall_times_only_decide_between_concurrent_writes() -> None:
    """delta_crdt took the machine's monotonic clock: of two boots, the older one always won."""
    left, right = pair(LWWRegister)
    left.apply(Assign("long up"), wall_ms=10**9)
    right.join(left)
    right.apply(Assign("just booted"), wall_ms=5)
    left.join(right)
    assert left.value() == right.value() == "just booted"


def test_trap_3_equal_stamps_have_one_winner_in_any_order() -> None:
    """Values that Python cannot order are compared as bytes; the actor comes first."""
    replicas = three(LWWRegister)
    deltas = [
        replica.apply(Assign(value), wall_ms=NOON_MS)
        for replica, value in zip(replicas, [None, {"a": 1}, ["b"]], strict=True)
    ]
    assert {LWWRegister.stamp(replica.state) for replica in replicas} == {Stamp(NOON_MS, 0)}
    for order in permutations(deltas):
        state = State(LWWRegister.tag)
        for delta in order:
            state.join(delta)
        assert LWWRegister.value(state, ()) == ["b"], "of the third, the greatest actor"


def test_trap_3_the_tie_break_outlives_the_actor() -> None:
    """When dots fold, the winner stays the winner."""
    left, right = pair(LWWRegister)
    left.apply(Assign("low"), wall_ms=NOON_MS)
    right.apply(Assign("high"), wall_ms=NOON_MS)
    sync(left, right)
    assert left.value() == "high"
    left.state.finishing = frozenset([right.actor])
    fold = plan(1, {right.actor: left.actor})
    assert LWWRegister.value(fold_state(left.state, fold), ()) == "high"


# --- lives ----------------------------------------------------------------------------------------


def test_trap_4_a_forgotten_counter_under_the_old_name_would_lose_an_add() -> None:
    """What goes wrong without new epochs, and that an epoch is all it takes."""
    left, right = pair(ORSet)
    backup = left.state.copy()
    left.apply(Add("first"))
    right.join(left)
    as_before = MemoryReplica(ORSet, left.actor, backup.copy())
    lost = as_before.apply(Add("second"))
    right.join(lost)
    assert right.value() == {"first"}, "the same dot again: taken for old"

    reborn = MemoryReplica(ORSet, make_actor(1, 2), backup.copy())
    right.join(reborn.apply(Add("second")))
    reborn.join(right)
    assert reborn.value() == right.value() == {"first", "second"}


@pytest.mark.parametrize("kind", [GCounter, PNCounter, BoundedCounter], ids=lambda k: k.name)
def test_trap_4_an_old_backup_loses_no_increment(kind: type[Kind]) -> None:
    left, right = pair(kind)
    left.apply(Increment(5))
    backup = left.state.copy()
    left.apply(Increment(7))
    right.join(left)
    reborn = MemoryReplica(kind, make_actor(1, 2), backup)
    reborn.apply(Increment(1))
    sync(reborn, right)
    assert reborn.value() == right.value() == 13


def test_trap_4_an_old_backup_spends_no_right_twice() -> None:
    left, right = pair(BoundedCounter)
    left.apply(Increment(5))
    backup = left.state.copy()
    left.apply(Decrement(5))
    right.join(left)
    reborn = MemoryReplica(BoundedCounter, make_actor(1, 2), backup)
    with pytest.raises(InsufficientRightsError):
        reborn.apply(Decrement(5))


def test_trap_5_ten_thousand_restarts_leave_no_trace() -> None:
    """Every life counts, adds and writes; behind the frontier all of them are one number."""
    replica = MemoryReplica(ORMap, make_actor(1, 1))
    sizes, first = [], 1
    for epoch in range(1, 10_001):
        replica = MemoryReplica(ORMap, make_actor(1, epoch), replica.state)
        replica.apply(at("visits", KindTag.PN_COUNTER, Increment(1)))
        if epoch % 5 == 0:
            replica.apply(at("last", KindTag.LWW_REGISTER, Assign(epoch % 100)), wall_ms=epoch)
            replica.apply(at("tags", KindTag.OR_SET, Add(epoch % 3)))
        if epoch % 100 == 0:
            gone = [actor for actor in replica.state.context.actors() if actor != replica.actor]
            replica.state.finishing = frozenset(gone)
            fold = plan(epoch // 100, dict.fromkeys(gone, replica.actor))
            replica = MemoryReplica(ORMap, replica.actor, fold_state(replica.state, fold))
            sizes.append(len(encode_state(replica.state)))
            first = epoch
    assert first == 10_000
    assert replica.value() == {"visits": 10_000, "last": 0, "tags": {0, 1, 2}}
    assert max(sizes) <= sizes[0] + 30, "numbers get longer, nothing else does"
    assert replica.state.context.actors() == [replica.actor]


# --- increments -----------------------------------------------------------------------------------


def test_trap_7_an_increment_that_arrives_ten_times_counts_once() -> None:
    """A dot says that it is the same delta again."""
    left, right = pair(PNCounter)
    deltas = [left.apply(Increment(3)), left.apply(Decrement(1)), left.apply(Increment(2))]
    for delta in Random(7).choices(deltas, k=20) + deltas:
        right.join(delta)
    assert right.value() == 4


# --- delivery -------------------------------------------------------------------------------------


def test_trap_8_a_lost_delta_is_made_up_for_by_any_whole_replica() -> None:
    """Drop exactly one, every one in turn: nothing that comes later hides the loss for good."""
    for lost in range(6):
        left, right = pair(ORSet)
        script = [Add("a"), Add("b"), Remove("a"), Add("a"), Remove("b"), Remove("a")]
        deltas = [left.apply(operation) for operation in script]
        for number, delta in enumerate(deltas):
            if number != lost:
                right.join(delta)
        right.join(left.state)
        assert right.state == left.state
        assert encode_state(right.state) == encode_state(left.state)


def test_trap_8_deltas_in_any_order_lose_no_removal() -> None:
    left, _right = pair(ORSet)
    deltas = [left.apply(operation) for operation in (Add("a"), Remove("a"), Add("a"), Remove("a"))]
    for order in permutations(deltas):
        state = State(ORSet.tag)
        for delta in order:
            state.join(delta)
        assert state == left.state
        assert ORSet.value(state, ()) == set()


def test_trap_9_parts_of_one_element_each_remove_nothing_else() -> None:
    """delta_crdt stored the whole context beside a few keys, and the others looked removed."""
    left, right = pair(ORSet)
    for number in range(40):
        left.apply(Add(number))
    for number in range(0, 40, 3):
        left.apply(Remove(number))
    parts = list(split(left.state.as_delta(), SPLIT_BYTES_MIN))
    assert max(len(part.elements) for part in parts) == 1
    for part in reversed(parts):
        before = right.value()
        right.join(part)
        assert before <= right.value()
    assert right.state == left.state
    third, _other = pair(ORSet)
    third.join(left.state)
    for part in parts:
        third.join(part)
    assert third.state == left.state, "parts say nothing of what they do not carry"


def test_trap_10_what_a_peer_has_is_not_sent_on() -> None:
    """Ten members in a ring, each passing on what is news to it: every dot passes once."""
    members = [MemoryReplica(ORSet, make_actor(number + 1, 1)) for number in range(10)]
    waiting: list[list[Delta]] = [[] for _ in members]
    for member in members:
        delta = member.apply(Add(member.actor))
        for peer in range(10):
            if peer != members.index(member):
                waiting[peer].append(delta)
    sent = 0
    for _round in range(12):
        taken, waiting = waiting, [[] for _ in members]
        for number, deltas in enumerate(taken):
            whole = merge_all(deltas)
            news = None if whole is None else strip(whole, members[number].state)
            if news is None:
                continue
            members[number].join(news)
            sent += len(news.elements)
            waiting[(number + 1) % 10].append(news)
    assert all(member.state == members[0].state for member in members)
    assert sent == 90, "nine others heard of each of ten adds, once"


def test_trap_11_a_removal_takes_no_more_than_was_seen() -> None:
    left, right = pair(ORSet)
    left.apply(Add("x"))
    seen = left.observe()
    left.apply(Add("x"))
    left.apply(Add("y"))
    left.apply(Clear(seen))
    right.join(left)
    assert right.value() == {"x", "y"}


# --- maps -----------------------------------------------------------------------------------------


def test_trap_12_what_is_put_under_a_removed_key_again_begins_from_nothing() -> None:
    """Akka's ORMap brought the old value back: removed and added again, merged with a stale one."""
    left, right = pair(ORMap)
    stale = MemoryReplica(ORMap, make_actor(3, 1))
    left.apply(at("cart", KindTag.OR_SET, Add("old")))
    sync(left, right, stale)
    left.apply(Remove("cart"))
    left.apply(at("cart", KindTag.OR_SET, Add("new")))
    right.join(left)
    for replica in (right, stale, left):
        replica.join(stale)
        replica.join(left)
        assert replica.value() == {"cart": {"new"}}


@pytest.mark.parametrize("kind", [KindTag.PN_COUNTER, KindTag.G_COUNTER])
def test_trap_12_of_a_counter_that_is_removed_and_raised_at_once_only_the_raise_stays(
    kind: KindTag,
) -> None:
    """Riak's counterexample: 5 are seen and removed while 1 is added; 6, or 0, would be wrong."""
    for removed_by_owner_too in (False, True):
        left, right = pair(ORMap)
        for _ in range(5):
            left.apply(at("likes", kind, Increment(1)))
        right.join(left)
        removal = right.apply(Remove("likes"))
        if removed_by_owner_too:
            left.apply(Remove("likes"))
        raised = left.apply(at("likes", kind, Increment(1)))
        left.join(removal)
        right.join(raised)
        sync(left, right)
        assert left.value() == right.value() == {"likes": 1}
        again = right.apply(Remove("likes"))
        assert right.value() == {}
        left.tidy(left.join(again))
        left.apply(at("likes", kind, Increment(2)))
        sync(left, right)
        assert left.value() == right.value() == {"likes": 2}


def test_trap_12_a_map_inside_a_removed_map_does_not_come_back() -> None:
    """Riak's other one: a removal deep inside is not lost when the field above is removed first."""
    left, right = pair(ORMap)
    inner = at("inner", KindTag.OR_SET, Add("x"))
    left.apply(at("outer", KindTag.OR_MAP, inner))
    right.join(left)
    right.apply(at("outer", KindTag.OR_MAP, at("inner", KindTag.OR_SET, Remove("x"))))
    left.apply(Remove("outer"))
    left.apply(at("outer", KindTag.OR_MAP, at("other", KindTag.OR_SET, Add("y"))))
    sync(left, right)
    assert left.value() == right.value() == {"outer": {"other": {"y"}}}


# --- members --------------------------------------------------------------------------------------


def test_trap_13_a_removed_member_with_an_old_disk_is_told_apart() -> None:
    left, right = pair(ORSet)
    gone = MemoryReplica(ORSet, make_actor(3, 1))
    gone.apply(Add("kept"))
    sync(left, right, gone)
    old_disk = gone.state.copy()
    unseen = MemoryReplica(ORSet, gone.actor, old_disk)
    unseen.counter = 1
    unseen.apply(Add("never sent"))
    for replica in (left, right):
        replica.state.finishing = frozenset([gone.actor])
        replica.state = fold_state(replica.state, plan(1, {gone.actor: left.actor}))
    assert not takes(3, 0), "what it says was made too long ago"
    with pytest.raises(CrdtError, match="generation"):
        left.join(unseen)
    left.state.join(unseen.state.as_delta())  # were it taken all the same
    assert left.value() == right.value() == {"kept"}


def test_trap_14_only_members_count_for_the_frontier() -> None:
    alive = CausalContext.from_runs([(1, 1, 100), (2, 1, 100)])
    dead = CausalContext.from_runs([(1, 1, 3)])
    assert pointwise_minimum([alive, alive, dead]) == dead
    assert pointwise_minimum([alive, alive]) == alive


def test_trap_15_a_deleted_key_leaves_nothing_but_its_dots() -> None:
    replica, _other = pair(ORMap)
    empty = len(encode_state(replica.state))
    for number in range(1000):
        key = f"key-{number}"
        replica.apply(at(key, KindTag.OR_MAP, at("n", KindTag.PN_COUNTER, Increment(1))))
        replica.apply(at(key, KindTag.OR_MAP, at("s", KindTag.OR_SET, Add("x"))))
        replica.apply(Remove(key))
    assert replica.value() == {}
    assert replica.state.count() == 0
    assert len(encode_state(replica.state)) <= empty + 10


# --- bytes ----------------------------------------------------------------------------------------

HISTORIES: dict[type[Kind], list[Operation]] = {
    GCounter: [Increment(3)],
    PNCounter: [Increment(3), Decrement(9)],
    BoundedCounter: [Increment(3)],
    LWWRegister: [Assign({"b": 1, "a": -0.0})],
    MVRegister: [Assign({"b": 1, "a": 2.5})],
    EnableWinsFlag: [Enable()],
    ORSet: [Add(element) for element in ("b", "a", 300, 3, ("x", 1), "")] + [Remove("b")],
    ORMap: [at("k", KindTag.OR_SET, Add("b")), at("k", KindTag.OR_SET, Add("a"))],
}


@pytest.mark.parametrize("kind", HISTORIES, ids=lambda kind: kind.name)
def test_trap_16_the_same_data_by_any_way_is_the_same_bytes(kind: type[Kind]) -> None:
    replicas = three(kind)
    deltas = [replica.apply(each) for replica in replicas for each in HISTORIES[kind]]
    random, encoded = Random(16), set()
    for _ in range(30):
        random.shuffle(deltas)
        state = State(kind.tag)
        for delta in deltas:
            state.join(delta)
        encoded.add(encode_state(state))
    assert len(encoded) == 1


def shown() -> str:
    """All bytes that come of the histories."""
    found: list[str] = []
    for kind, script in HISTORIES.items():
        replica, other = pair(kind)
        for each in script:
            replica.apply(each)
            other.apply(each)
        other.join(replica)
        found.append(encode_state(other.state).hex())
        found += [encode_delta(part).hex() for part in split(other.state.as_delta(), 200)]
        found.append(other.observe().hex() if kind is not BoundedCounter else "")
    return " ".join(found)


def test_trap_16_bytes_do_not_depend_on_the_hashes_of_a_process() -> None:
    """Two processes under two hash seeds, with strings in sets and dicts."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.crdt.test_traps import shown; print(shown())"],
        cwd=ROOT,
        env=under_other_hashes(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == shown()


def test_trap_17_large_data_travels_in_bounded_messages() -> None:
    left, right = pair(ORMap)
    for number in range(300):
        left.apply(at(f"k{number}", KindTag.LWW_REGISTER, Assign("x" * 500)))
        if number % 2:
            left.apply(Remove(f"k{number - 1}"))
    messages = [encode_delta(part) for part in split(left.state.as_delta(), 4096)]
    assert len(messages) > 10
    assert max(map(len, messages)) <= 4096
    Random(17).shuffle(messages)
    for message in messages:
        right.join(decode_delta(message, bytes_max=4096))
    assert right.state == left.state


# --- invariants and kinds -------------------------------------------------------------------------


def test_trap_19_a_stock_never_goes_below_zero_and_says_what_is_left() -> None:
    replicas = three(BoundedCounter)
    replicas[0].apply(Increment(3))
    sync(*replicas)
    sold = 0
    for replica in replicas * 3:
        left = rights(replica.state, (), replica.actor)
        if left:
            replica.apply(Decrement(1))
            sold += 1
            continue
        with pytest.raises(InsufficientRightsError) as caught:
            replica.apply(Decrement(2))
        assert (caught.value.needed, caught.value.available) == (2, 0)
    sync(*replicas)
    assert sold == 3
    assert [replica.value() for replica in replicas] == [0, 0, 0]


def test_trap_21_data_of_another_kind_is_not_joined() -> None:
    for kind in ALL:
        for other in ALL:
            state = State(kind.tag)
            if kind is other:
                assert state.join(State(other.tag)) == []
                continue
            with pytest.raises(TypeMismatchError):
                state.join(State(other.tag))
            with pytest.raises(TypeMismatchError):
                state.join(Delta(other.tag, {}, closed=True))


def test_trap_22_a_join_says_what_changed_and_repeats_say_nothing() -> None:
    left, right = pair(ORSet)
    deltas = [left.apply(Add("x")), left.apply(Add("y")), left.apply(Remove("x"))]
    merged = merge_all(deltas)
    assert merged is not None
    changed = right.join(merged)
    assert [path[-1] for path in changed] == [b"\xa1y"], "x came and went: nobody is told"
    assert not any(right.join(each) for each in [*deltas, merged, left.state])
