"""Folding forgets names and sums up what nobody counts any more; no value is other after it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Increment,
    KindTag,
    Operation,
    Remove,
    Transfer,
    Update,
)
from quorate.crdt.bounded import rights
from quorate.crdt.cells import COMMON
from quorate.crdt.context import CausalContext
from quorate.crdt.dots import Leaf, Path, epoch_of, make_actor, member_of
from quorate.crdt.folding import (
    as_here,
    begin_fold,
    counters,
    fold_state,
    gather_at,
    generation_of,
    is_finished,
    is_preparing,
    is_whole,
    join_behind,
    plan,
    takes,
)
from quorate.crdt.kinds import BoundedCounter, ORMap, ORSet, PNCounter
from quorate.crdt.replica import MemoryReplica
from quorate.crdt.state import State
from quorate.errors import CrdtError, InvalidArgumentError, NotObservedError
from tests import sharing
from tests.crdt.folded_world import FoldedWorld
from tests.crdt.specification import Known
from tests.crdt.support import operations, pair, sync

SITES = st.integers(0, 2)
KEYS = st.sampled_from(["k", "l"])
COUNTS = [KindTag.PN_COUNTER, KindTag.G_COUNTER]


def counting() -> st.SearchStrategy[Operation]:
    """Mostly counters in maps, where folding has work to do."""
    raises = st.builds(
        Update, KEYS, st.sampled_from(COUNTS), st.builds(Increment, st.integers(1, 5))
    )
    clears = st.builds(Update, KEYS, st.sampled_from(COUNTS), st.just(Clear()))
    removals = st.builds(Remove, KEYS)
    nested = st.builds(Update, st.just("m"), st.just(KindTag.OR_MAP), st.one_of(raises, removals))
    others = operations(ORMap, but=(BoundedCounter,))
    return st.one_of(raises, raises, clears, removals, nested, others)


class FoldingMachine(RuleBasedStateMachine):
    """Whatever comes between the steps of folding, everybody reads what is specified."""

    def __init__(self) -> None:
        super().__init__()
        self.world = FoldedWorld(ORMap)
        self.tokens: list[tuple[bytes, Known]] = []

    @rule(at=SITES, operation=counting())
    def operate(self, at: int, operation: Operation) -> None:
        self.world.operate(self.world.sites[at], operation)

    @rule(at=SITES, operation=counting(), other=SITES, another=counting())
    def operate_apart(self, at: int, operation: Operation, other: int, another: Operation) -> None:
        self.world.operate(self.world.sites[at], operation)
        self.world.operate(self.world.sites[other], another)

    @rule(at=SITES, source=SITES)
    def deliver(self, at: int, source: int) -> None:
        site = self.world.sites[at]
        for actor in site.lacking(self.world.sites[source])[:1]:
            site.deliver(actor)

    @rule(at=SITES, source=SITES)
    def pull(self, at: int, source: int) -> None:
        self.world.sites[at].pull(self.world.sites[source])

    @rule(at=SITES)
    def restart(self, at: int) -> None:
        self.world.sites[at].restart()

    @rule(at=SITES)
    def read(self, at: int) -> None:
        site = self.world.sites[at]
        if site.complete() and len(self.tokens) < 4:
            self.tokens.append((site.replica.observe(), dict(site.known)))

    @precondition(lambda self: self.tokens)
    @rule(at=SITES, data=st.data())
    def remove_what_was_read(self, at: int, data: st.DataObject) -> None:
        token, known = data.draw(st.sampled_from(self.tokens))
        removal: Operation = Clear(token)
        if known and data.draw(st.booleans()):
            removal = Remove(data.draw(st.sampled_from(sorted(known, key=repr)))[0], token)
        self.world.operate(self.world.sites[at], removal, known)

    @rule()
    def hear_all(self) -> None:
        self.world.hear_all()

    @rule(order=st.permutations([0, 1, 2]), count=st.integers(1, 6), restart=st.booleans())
    def go_on(self, order: list[int], count: int, restart: bool) -> None:
        """Further than luck would bring it; records are passed on only if nothing else helps."""
        world = self.world
        if restart and not world.preparing and not world.closed():
            self.restart(order[0])
        for _ in range(count):
            stepped = any(world.sites[at].step() for at in order)
            if not stepped and not world.lead():
                world.hear_all()

    def teardown(self) -> None:
        self.world.settle_down()
        self.world.check_equal()
        for site in self.world.sites:
            assert site.complete()
            site.agree()
            assert site.stage == 3 * self.world.generation
            lives = {actor for actor, _f, _l in site.replica.state.context.runs()}
            assert lives <= {each.replica.actor for each in self.world.sites}


def few_counters() -> st.SearchStrategy[Operation]:
    """Two counters, one of them deeper."""
    raises = st.builds(Update, st.just("k"), st.just(KindTag.PN_COUNTER), st.just(Increment(1)))
    deeper = st.builds(Update, st.just("m"), st.just(KindTag.OR_MAP), raises)
    removals = st.sampled_from([Remove("k"), Remove("m"), Clear()])
    return st.one_of(raises, deeper, removals)


class Drive:
    """Takes a world through one fold, with what *data* says in between."""

    def __init__(self, world: FoldedWorld, data: st.DataObject, operation: Any) -> None:
        self.world = world
        self.data = data
        self.operation = operation
        self.tokens: list[tuple[bytes, Known]] = []

    def site(self) -> Any:
        return self.world.sites[self.data.draw(SITES)]

    def happen(self, most: int) -> None:
        for what in self.data.draw(st.lists(st.sampled_from("ooooddsspt"), max_size=most)):
            site = self.site()
            match what:
                case "o":
                    self.world.operate(site, self.data.draw(self.operation))
                case "d":
                    for actor in site.lacking(self.site())[:1]:
                        site.deliver(actor)
                case "p":
                    site.pull(self.site())
                case "t":
                    self.use_token(site)
                case _:
                    site.step()

    def use_token(self, site: Any) -> None:
        """Read, or remove what was read, perhaps elsewhere and before a fold."""
        if self.world.kind is not ORMap:
            return
        if site.complete() and (not self.tokens or self.data.draw(st.booleans())):
            self.tokens.append((site.replica.observe(), dict(site.known)))
        elif self.tokens:
            token, known = self.data.draw(st.sampled_from(self.tokens))
            self.world.operate(site, Clear(token), known)

    def fold(self) -> None:
        world = self.world
        for site in world.sites:
            world.operate(site, self.data.draw(self.operation))
        self.happen(6)
        for at in self.data.draw(st.sets(SITES, min_size=1)):
            world.sites[at].restart()
        before = world.generation
        for _ in range(40):
            self.happen(2)
            if world.generation > before:
                break
            if not world.lead() and not any(site.step() for site in world.sites):
                world.hear_all()
        self.happen(12)


@pytest.mark.parametrize(
    "examples", [sharing.examples(30), pytest.param(2_000, marks=pytest.mark.deep)]
)
def test_sums_are_exact_whatever_runs_beside_the_fold(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        world = FoldedWorld(ORMap)
        drive = Drive(world, data, few_counters())
        for _ in range(data.draw(st.integers(1, 3))):
            drive.fold()
        world.settle_down()
        world.check_equal()
        for site in world.sites:
            site.agree()

    check()


@pytest.mark.parametrize(
    "examples", [sharing.examples(60), pytest.param(3_000, marks=pytest.mark.deep)]
)
def test_who_folds_reads_what_the_specification_says(examples: int) -> None:
    run_state_machine_as_test(
        FoldingMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rights_are_spent_once_and_inherited() -> None:
    """No schedule makes a bounded counter negative, and no right is lost for good."""

    @settings(
        max_examples=sharing.examples(30), deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        world = FoldedWorld(BoundedCounter, specified=False)
        amounts = st.integers(1, 4)
        gifts = st.builds(Transfer, st.integers(1, 3), st.integers(1, 4), amounts)
        raises, lowers = st.builds(Increment, amounts), st.builds(Decrement, amounts)
        drive = Drive(world, data, st.one_of(raises, gifts, gifts, lowers))
        for _ in range(data.draw(st.integers(1, 3))):
            drive.fold()
        world.settle_down()
        for site in world.sites:  # of lives that never began, nobody inherits
            while epoch_of(site.replica.actor) < 5:
                site.restart()
        world.settle_down()
        world.check_equal()
        left = world.sites[0].replica.value()
        assert left == total(world)
        for site in world.sites:
            mine = rights(site.replica.state, (), site.replica.actor)
            assert mine >= 0
            assert not mine or world.operate(site, Decrement(mine))
            left -= mine
        assert left == 0, "all rights are with somebody who lives"

    check()


def total(world: FoldedWorld) -> int:
    """What all operations that were carried out come to."""
    events = [event for record in world.records.values() for event in record.events]
    found = 0
    for event in events:
        if isinstance(event.operation, Increment):
            found += event.operation.by
        elif isinstance(event.operation, Decrement):
            found -= event.operation.by
    return found


# --- one thing at a time --------------------------------------------------------------------------


def finish(state: State, *actors: int) -> State:
    state.finishing = frozenset(actors)
    return state


def folded(replica: MemoryReplica, heirs: dict[int, int], generation: int = 1) -> State:
    return fold_state(finish(replica.state, *heirs), plan(generation, heirs))


def entries(state: State) -> dict[Path, Leaf]:
    return dict(state.scan(()))


def test_names_are_forgotten_and_elements_stay_as_they_are() -> None:
    left, right = pair(ORSet)
    left.apply(Add("x"))
    right.apply(Add("y"))
    sync(left, right)
    before = entries(left.state)
    left.state = folded(left, {right.actor: left.actor})
    assert entries(left.state) == before
    assert left.value() == {"x", "y"}
    assert left.state.context.actors() == [left.actor]
    assert left.state.sees(right.actor, 10**9)
    assert not left.state.sees(make_actor(2, 2), 1)


def test_what_the_dead_counted_becomes_one_entry_that_a_removal_takes() -> None:
    state = MemoryReplica(PNCounter, make_actor(1, 1)).state
    for epoch in range(1, 51):
        replica = MemoryReplica(PNCounter, make_actor(1, epoch), state)
        replica.apply(Increment(2))
        replica.apply(Decrement(1))
        state = replica.state
        if epoch % 10 == 0:
            gone = dict.fromkeys(state.context.actors()[:-1], replica.actor)
            state = folded(replica, dict.fromkeys(gone, replica.actor), epoch // 10)
            assert [len(leaf) for leaf in entries(state).values()] == [1, 1]
    assert PNCounter.value(state, ()) == 50
    assert state.context.actors() == [make_actor(1, 50)]
    last = MemoryReplica(PNCounter, make_actor(2, 1), state)
    removal = last.apply(Clear())
    assert removal.elements[COMMON,][1]
    assert (COMMON,) not in entries(last.state)
    assert last.value() == 0


def test_what_was_all_undone_leaves_nothing() -> None:
    left, right = pair(PNCounter)
    right.apply(Increment(5))
    left.join(right)
    left.apply(Clear())
    assert len(entries(left.state)) == 1, "marked as undone"
    assert entries(folded(left, {right.actor: left.actor})) == {}


def test_without_settling_two_removals_of_different_parts_would_not_add_up() -> None:
    """Why everybody must have what was removed before: sums do not say of what."""
    counts = [MemoryReplica(PNCounter, make_actor(member, 1)) for member in (1, 2, 3, 4)]
    one, two, *gone = counts
    for removing, raising in zip((one, two), gone, strict=True):
        raising.apply(Increment(1))
        removing.join(raising)
        removing.apply(Clear())  # has seen one of the two
    for replica in (one, two):
        for raising in gone:
            replica.join(raising)
    heirs = {each.actor: one.actor for each in gone}
    settled = one.state.copy()
    settled.join(two.state)
    assert PNCounter.value(settled, ()) == 0
    early, late = folded(one, heirs), folded(two, heirs)
    early.join(late)
    assert PNCounter.value(early, ()) == 1, "one of the removals is lost"


def test_an_heir_does_not_retire_in_the_same_fold() -> None:
    one, two = make_actor(1, 1), make_actor(2, 1)
    cases: list[dict[int, int]] = [{one: two, two: one}, {one: two, make_actor(2, 3): one}]
    for heirs in cases:
        with pytest.raises(CrdtError, match="who goes as well"):
            plan(1, heirs)


def test_folds_go_one_after_the_other_and_only_of_what_is_finished() -> None:
    left, right = pair(ORSet)
    right.apply(Add(1))
    sync(left, right)
    fold = plan(2, {right.actor: left.actor})
    with pytest.raises(CrdtError, match="not the next"):
        fold_state(finish(left.state, right.actor), fold)
    with pytest.raises(CrdtError, match="may be here"):
        fold_state(finish(left.state), plan(1, {right.actor: left.actor}))
    left.state = folded(left, {right.actor: left.actor})
    with pytest.raises(CrdtError, match="generation"):
        left.join(right)
    assert is_finished([left.actor], [left.state.context, right.state.context])
    right.apply(Add(2))
    left.apply(Add(3))
    assert not is_finished([left.actor], [left.state.context, right.state.context])


@pytest.mark.parametrize(
    ("stage", "taken"),
    [(0, range(2)), (1, range(4)), (2, range(1, 5)), (3, range(1, 5)), (4, range(1, 7))],
)
def test_what_is_taken_at_which_stage(stage: int, taken: range) -> None:
    assert [stamp for stamp in range(9) if takes(stage, stamp)] == list(taken)
    assert generation_of(stage) == (stage + 1) // 3
    assert is_whole(stage) == (stage != 2)
    assert is_preparing(stage) == (stage in {1, 4})


def test_rights_that_were_given_to_one_who_was_gone_go_to_the_heir() -> None:
    world = FoldedWorld(BoundedCounter, specified=False)
    shop, kiosk, _other = world.sites
    assert world.operate(shop, Increment(10))
    assert world.operate(shop, Transfer(2, 1, 4))
    kiosk.restart()
    assert world.operate(shop, Transfer(2, 1, 1)), "it has not heard yet"
    world.hear_all()
    assert not world.operate(kiosk, Decrement(1)), "who knows what the life before has spent"
    world.settle_down()
    assert rights(kiosk.replica.state, (), kiosk.replica.actor) == 5
    assert world.operate(kiosk, Decrement(5))
    with pytest.raises(InvalidArgumentError, match="is over"):
        shop.replica.apply(Transfer(2, 1, 1))
    world.settle_down()
    world.check_equal()
    assert shop.replica.value() == 5


def test_a_token_takes_all_that_the_dead_counted_or_is_refused() -> None:
    left, right = pair(PNCounter)
    left.apply(Increment(1))
    right.apply(Increment(2))
    left.join(right)
    partial = left.observe()
    right.apply(Increment(3))
    left.join(right)
    whole = left.observe()
    finish(left.state, right.actor)
    copy = left.state.copy()
    with pytest.raises(NotObservedError, match="again"):
        left.apply(Clear(partial))
    left.apply(Clear(whole))
    assert left.value() == 0
    left.apply(Clear(partial))  # nothing is left that it could get wrong
    again = MemoryReplica(PNCounter, left.actor, copy)
    again.counter = left.counter
    again.state = fold_state(copy, plan(1, {right.actor: left.actor}))
    with pytest.raises(NotObservedError, match="again"):
        again.apply(Clear(whole))
    again.apply(Clear(again.observe()))
    assert again.value() == 0


def test_who_is_set_back_takes_what_the_others_have() -> None:
    """Element by element, with other elements of its own; what it counted anew is added."""
    left, right = pair(ORMap)
    reborn = MemoryReplica(ORMap, make_actor(3, 2))
    count = Update("n", KindTag.PN_COUNTER, Increment(1))
    for replica in (left, right):
        replica.apply(count)
        replica.apply(Update("s", KindTag.OR_SET, Add(member_of(replica.actor))))
    reborn.join(right)  # what its backup has
    right.apply(count)
    right.apply(Update("s", KindTag.OR_SET, Remove(2)))
    right.apply(Update("s", KindTag.OR_SET, Add("late")))
    sync(left, right)
    left.state = folded(left, {right.actor: left.actor})
    reborn.apply(count)
    reborn.apply(Update("s", KindTag.OR_SET, Add("mine")))
    theirs, mine = left.state, reborn.state
    paths = dict.fromkeys([*entries(mine), *entries(theirs)])
    joined = {
        path: join_behind(
            ORMap,
            path,
            mine.leaf(path),
            theirs.leaf(path),
            mine.sees,
            theirs.sees,
            theirs.finished,
        )
        for path in paths
    }
    after = State(ORMap.tag)
    after.replace(joined)
    assert ORMap.value(after, ()) == {"n": 4, "s": {1, "late", "mine"}}


def test_a_delta_made_where_nothing_was_folded_yet_takes_all_of_the_common_cell() -> None:
    left, right = pair(PNCounter)
    gone = MemoryReplica(PNCounter, make_actor(3, 1))
    older = MemoryReplica(PNCounter, make_actor(3, 2))
    for each in (gone, older):
        each.apply(Increment(5))
    sync(left, right, gone, older)
    fold = plan(1, {gone.actor: left.actor, older.actor: left.actor})
    for replica in (left, right):
        finish(replica.state, gone.actor, older.actor)
    removal = right.apply(Clear())
    left.state = fold_state(left.state, fold)
    left.state.join(as_here(removal, 1, left.state, 3, left.state.finished))
    assert left.value() == 0
    # And the other way round, with the work half done.
    right, _ = pair(PNCounter)
    right.join(gone)
    right.join(older)
    half = begin_fold(finish(right.state, gone.actor, older.actor), fold)
    done = fold_state(right.state, fold)
    remover = MemoryReplica(PNCounter, make_actor(2, 1), done)
    half.join(as_here(remover.apply(Clear()), 3, half, 2, half.finished))
    for prefix, owner in counters(PNCounter, half.scan(())).items():
        gather_at(half, prefix, owner, fold)
    assert PNCounter.value(half, ()) == 0
    assert half == remover.state


def test_contexts_are_the_same_where_nothing_is_missing() -> None:
    some, more = CausalContext.of([(1, 1), (2, 1)]), CausalContext.of([(1, 1), (2, 1), (3, 1)])
    assert is_finished([1, 2], [some, more])
    assert not is_finished([3], [some, more])


def test_a_map_shows_a_counter_of_the_dead_with_nothing_left() -> None:
    """Up and down by as much is not the same as removed."""
    left, right = pair(ORMap)
    right.apply(Update("n", KindTag.PN_COUNTER, Increment(2)))
    right.apply(Update("n", KindTag.PN_COUNTER, Decrement(2)))
    right.apply(Update("r", KindTag.LWW_REGISTER, Assign(1)))
    left.join(right)
    left.state = folded(left, {right.actor: left.actor})
    assert left.value() == {"n": 0, "r": 1}
