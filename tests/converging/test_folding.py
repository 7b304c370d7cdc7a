"""Folding by whole tiers: restarts leave no names behind, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from random import Random

import pytest

from quorate.base.crdt_frames import NOWHERE, CrdtWrite, CrdtWritten, Mark, Observe, Rights, Value
from quorate.base.crdt_operations import Add, Clear, Decrement, Increment, KindTag, Remove, Transfer
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.crdt.cells import COMMON
from quorate.crdt.dots import epoch_of, make_actor, member_of
from quorate.crdt.folding import is_whole
from quorate.errors import NotObservedError, QuorateError, UnavailableError
from quorate.replication.converging import folding as folding_module
from quorate.replication.converging.lives import PrepareFold
from quorate.replication.converging.stability import QUIET_S
from quorate.replication.transport import CrdtElements, CrdtRanges
from tests.converging.tiers import Node, World

COUNT, SET, STOCK = KindTag.PN_COUNTER, KindTag.OR_SET, KindTag.BOUNDED_COUNTER


async def until(true: Callable[[], object], within_s: float = 40.0) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not true():
        assert loop.time() < end_s
        await asyncio.sleep(0.05)


def alive(world: World) -> list[Node]:
    return [node for node in world.nodes.values() if node.tier is not None]


async def folded(world: World, generation: int) -> None:
    """Until everybody has folded so often."""
    await until(lambda: all(node.engine.own.generation == 3 * generation for node in alive(world)))
    await world.converged()


def restart(*nodes: Node) -> None:
    for node in nodes:
        node.crash()
        node.start()


async def remove(node: Node, name: str) -> None:
    assert node.tier is not None
    node.sequence += 1
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    frame = CrdtWrite(node.client, node.sequence, 0, 2, (Remove(name),))
    node.tier.write(frame, answer.set_result)
    assert isinstance(await answer, CrdtWritten)


async def elements(node: Node, name: str) -> list[object]:
    items, rest = await node.value(name, SET)
    assert not rest
    return sorted(items, key=repr)


def check_small(world: World) -> None:
    """Of each member, no more than its present life has a name."""
    for node in alive(world):
        actors = node.engine.view.context.actors()
        assert len({member_of(actor) for actor in actors}) == len(actors), actors
        assert not [actor for actor in node.engine.frontier if node.engine.is_retired(actor)]


def test_restarts_leave_no_names_and_change_no_value() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        nodes = one, two, three = tuple(world.nodes.values())
        for time in range(1, 4):
            for node in nodes:
                await node.write("n", COUNT, Increment(time))
                await node.write("s", SET, Add(f"{node.number}-{time}"))
            await world.converged()
            restart(*nodes)
            await folded(world, time)
            assert not one.engine.view.context.actors(), "nobody has written since"
        for node in nodes:
            assert await node.value("n", COUNT) == 18
            assert len(await elements(node, "s")) == 9
        counts = [each for each in one.leaves().items() if each[0][1] == bytes([COUNT])]
        ((path, leaf),) = counts
        assert path[-1] == COMMON
        assert len(leaf) == 1
        await two.write("s", SET, Remove("1-1"), Add("new"))
        assert one.tier is not None
        await one.tier.pull(NodeId(2))
        await remove(two, "n")
        await world.converged()
        assert await three.value("n", COUNT) == 0
        assert "new" in await elements(three, "s")
        assert len(await elements(three, "s")) == 9
        check_small(world)

    World(3).run(story)


def test_nobody_is_folded_while_a_member_is_away_and_all_when_it_is_removed() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two, three):
            await node.write("n", COUNT, Increment(1))
        await world.converged()
        await until(lambda: one.tier and one.tier.reports.others())
        three.crash()
        restart(two)
        await asyncio.sleep(20)
        assert one.lives.generation == 0
        world.membership = Membership((NodeId(1), NodeId(2)))
        await folded(world, 2)
        assert one.lives.is_expelled(3)
        assert one.lives.is_retired(make_actor(3, 1))
        assert await two.value("n", COUNT) == 3
        check_small(world)

    World(3).run(story)


def test_who_was_away_amid_a_fold_catches_up() -> None:
    """It was prepared, and it removes and counts on while the others have folded."""

    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two, three):
            for name in ("n", "m", "kept"):
                await node.write(name, COUNT, Increment(1))
        await world.converged()
        restart(two)
        await until(lambda: three.engine.own.generation == 1)
        three.log_reachable = False
        await until(lambda: one.engine.own.generation == 3)
        await three.write("n", COUNT, Increment(5))
        await remove(three, "m")
        await remove(one, "n")
        await until(lambda: one.engine.frontier == two.engine.frontier)
        await until(lambda: one.engine.frontier.items() <= three.engine.frontier.items())
        assert three.engine.own.generation == 1, "it takes what the others say all the same"
        for node in (one, two, three):
            values = [await node.value(name, COUNT) for name in ("m", "kept")]
            assert values == [0, 3]
            assert await node.value("n", COUNT) in {0, 5}
        three.log_reachable = True
        await folded(world, 1)

    World(3).run(story)


def test_rights_of_earlier_lives_are_inherited_and_what_came_late_is_passed_on() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        shop, kiosk, _third = world.nodes.values()
        await shop.write("stock", STOCK, Increment(10))
        await kiosk.write("other", SET, Add(1))
        await shop.write("stock", STOCK, Transfer(2, 1, 4))
        await world.converged()
        kiosk.crash()
        await shop.write("stock", STOCK, Transfer(2, 1, 1))
        kiosk.start()
        with pytest.raises(QuorateError, match="rights"):
            await kiosk.write("stock", STOCK, Decrement(1))
        await folded(world, 1)
        (mine, all_of_them), _ = (await kiosk.ask(Rights("stock")))[0][0], None
        assert mine == 5, all_of_them
        await kiosk.write("stock", STOCK, Decrement(5))
        await shop.write("stock", STOCK, Decrement(5))
        await world.converged()
        assert await shop.value("stock", STOCK) == 0

    World(3).run(story)


@pytest.mark.parametrize("blank", [False, True])
def test_who_was_set_back_behind_a_fold_takes_over_from_the_others(blank: bool) -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two, three):
            await node.write("n", COUNT, Increment(1))
            await node.write("s", SET, Add(node.number))
        await world.converged()
        backup = copy.deepcopy(three.image)
        restart(two)
        await two.write("n", COUNT, Increment(10))
        await two.write("s", SET, Remove(1))
        await folded(world, 1)
        three.crash()
        three.image = backup
        three.image.opened = False
        if blank:
            three.wipe()
        three.start()
        await three.write("n", COUNT, Increment(100))
        await three.write("s", SET, Add("while behind"))
        await folded(world, 2)
        for node in (one, two, three):
            assert await node.value("n", COUNT) == 113
            assert await elements(node, "s") == ["while behind", 2, 3]
        await remove(three, "n")
        await world.converged()
        assert await one.value("n", COUNT) == 0
        check_small(world)

    World(3).run(story)


def test_when_all_are_behind_the_first_goes_on_with_what_there_is() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        nodes = one, two, _three = tuple(world.nodes.values())
        for node in nodes:
            await node.write("n", COUNT, Increment(1))
        await world.converged()
        backups = {node: copy.deepcopy(node.image) for node in nodes}
        restart(two)
        await folded(world, 1)
        await one.write("n", COUNT, Increment(1))
        for node in nodes:
            node.crash()
            node.image = backups[node]
            node.image.opened = False
        for node in nodes:
            node.start()
        await folded(world, 2)
        for node in nodes:
            assert await node.value("n", COUNT) == 3
        check_small(world)

    World(3).run(story)


def test_a_life_that_another_process_closed_is_left() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, _three = world.nodes.values()
        await one.write("n", COUNT, Increment(1))
        before = one.engine.own.actor
        world.log.begin(1)
        await until(lambda: one.engine.own.actor not in {0, before})
        await one.write("n", COUNT, Increment(1))
        assert epoch_of(one.engine.own.actor) == 3
        await folded(world, 1)
        assert await two.value("n", COUNT) == 2

    World(3).run(story)


def test_a_life_begun_without_the_log_is_admitted_when_a_later_one_is_known() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        _one, two, three = world.nodes.values()
        await two.write("n", COUNT, Increment(1))
        await world.converged()
        three.log_reachable = False
        await three.write("n", COUNT, Increment(1))
        passed_by = three.engine.own.actor
        for above in (1, 2):  # other processes were there meanwhile
            world.log.adopt(3, epoch_of(passed_by) + above)
        await asyncio.sleep(QUIET_S + 2)
        assert not world.log.lives.preparing, "it is waited for"
        three.log_reachable = True
        await until(lambda: epoch_of(three.engine.own.actor) == epoch_of(passed_by) + 3)
        await three.write("n", COUNT, Increment(1))
        await folded(world, 1)
        assert await two.value("n", COUNT) == 3
        assert three.tier is not None
        assert not three.tier.engine.living.problem
        assert world.log.lives.is_retired(passed_by)

    World(3).run(story)


def test_what_was_never_admitted_holds_folding_up_and_says_so() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        await two.write("n", COUNT, Increment(1))
        await world.converged()
        three.log_reachable = False
        await three.write("n", COUNT, Increment(1))
        orphan = three.engine.own.actor
        for above in (1, 2):  # other processes were there meanwhile
            world.log.adopt(3, epoch_of(orphan) + above)
        world.log.submit(PrepareFold(1, ((orphan + 1, 0),)))  # and the last one's disk is gone
        three.log_reachable = True
        await until(lambda: three.tier and three.tier.folding.problem, 60)
        assert "never admitted" in three.tier.folding.problem  # type: ignore[union-attr]
        assert one.engine.own.generation == 1
        assert one.tier is not None
        assert one.tier.stability.waits_for() == [3]

    World(3).run(story)


def test_a_token_from_before_a_fold_is_refused() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, _three = world.nodes.values()
        await one.write("n", COUNT, Increment(1))
        await two.write("n", COUNT, Increment(1))
        await world.converged()
        token = (await one.ask(Observe("n", COUNT)))[0][0]
        restart(two)
        await folded(world, 1)
        with pytest.raises(NotObservedError):
            await one.write("n", COUNT, Clear(token))
        token = (await one.ask(Observe("n", COUNT)))[0][0]
        await one.write("n", COUNT, Clear(token))
        assert await one.value("n", COUNT) == 0

    World(3).run(story)


def test_a_new_node_is_not_taken_for_one_that_has_what_was_folded() -> None:
    """Nobody alive has written anything: a token says so, and asks for all there was before."""

    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two):
            await node.write("n", COUNT, Increment(1))
        await world.converged()
        three.crash()
        three.wipe()
        world.membership = Membership((NodeId(1), NodeId(2)))
        restart(one, two)
        await folded(world, 1)
        _values, position = await one.ask(Value("n", COUNT))
        assert position.marks == (Mark(0, 0, 1),)
        world.membership = Membership((NodeId(1), NodeId(2), NodeId(3)))
        three.start()
        for level in ("causal", "quorum"):
            after = position if level == "causal" else NOWHERE
            assert await three.value("n", COUNT, level=level, after=after) == 2
        three.crash()
        three.wipe()
        world.separate((3,), (1, 2))
        three.start()
        with pytest.raises(UnavailableError, match=r"\[3\], who are to vote"):
            await one.tier.levels.hand_over((3,), 1.0)  # no life is left, and what they wrote is
        with pytest.raises(UnavailableError, match="earlier lives"):
            await three.value("n", COUNT, level="causal", after=position)

    World(3).run(story)


def test_who_is_still_taking_over_folds_nothing_though_it_leads() -> None:
    """Of a fold that it was not there for it knows the number, and lacks what went in it."""

    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two):
            await node.write("n", COUNT, Increment(1))
        await world.converged()
        three.crash()
        three.wipe()
        world.membership = Membership((NodeId(1), NodeId(2)))
        restart(one, two)
        await folded(world, 1)
        world.membership = Membership((NodeId(1), NodeId(2), NodeId(3)))
        world.lets_through = lambda _from, _to, frame: (
            not isinstance(frame, CrdtRanges | CrdtElements)
        )
        three.start()
        await until(lambda: three.engine.own.generation)
        world.leader = 3
        restart(one, two, three)
        for node in (one, two, three):
            await node.write("n", COUNT, Increment(1))
        restart(one, two, three)
        await asyncio.sleep(4 * QUIET_S)
        assert one.lives.generation == 1
        world.lets_through = lambda *_: True
        await folded(world, 2)
        assert await three.value("n", COUNT) == 5

    World(3).run(story)


def test_if_nobody_is_left_who_had_all_the_last_goes_on_with_what_it_has() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two = world.nodes.values()
        await one.write("n", COUNT, Increment(1))
        two.crash()
        world.membership = Membership((NodeId(1),))
        restart(one)
        await folded(world, 1)
        world.membership = Membership((NodeId(1), NodeId(2)))
        world.lets_through = lambda _from, _to, frame: (
            not isinstance(frame, CrdtRanges | CrdtElements)
        )
        two.wipe()
        two.start()
        await until(lambda: two.engine.own.generation)
        one.crash()
        world.membership, world.leader = Membership((NodeId(2),)), 2
        await two.write("n", COUNT, Increment(1))
        restart(two)
        await folded(world, 2)
        assert await two.value("n", COUNT) == 1

    World(2).run(story)


@pytest.mark.parametrize(
    "seed", [1, 2, *[pytest.param(seed, marks=pytest.mark.deep) for seed in range(3, 120)]]
)
def test_counts_are_exact_through_restarts_cuts_and_folds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged is there once, what was removed is not, and all are byte-equal."""
    monkeypatch.setattr(folding_module, "SLICE_PLACES", 2)

    async def story(world: World) -> None:
        world.leader = 1
        random = Random(seed)
        nodes = list(world.nodes.values())
        sure = unsure = 0
        for _ in range(12):
            for node in random.sample(nodes, 2):
                amount = random.randint(1, 9)
                try:
                    async with asyncio.timeout(5):
                        await node.write("n", COUNT, Increment(amount))
                        sure += amount
                        await node.write(f"m{random.randint(0, 5)}", COUNT, Increment(1))
                        if random.random() < 0.5:
                            await remove(node, f"m{random.randint(0, 5)}")
                        await node.write("s", SET, Add(random.randint(0, 20)))
                except (QuorateError, TimeoutError):
                    unsure += amount
            if random.random() < 0.7:
                restart(random.choice(nodes))
            if random.random() < 0.3:
                alone = random.randint(1, 3)
                world.separate((alone,), tuple(n.number for n in nodes if n.number != alone))
            else:
                world.heal()
            await asyncio.sleep(random.choice([0.1, 1, 8]))
        world.heal()
        await until(lambda: len(alive(world)) == 3)
        await until(lambda: not nodes[0].lives.closed(), 90)
        await folded(world, nodes[0].lives.generation)
        for node in nodes:
            assert is_whole(node.engine.own.generation)
            assert sure <= await node.value("n", COUNT) <= sure + unsure
            for name in range(6):
                assert await node.value(f"m{name}", COUNT) >= 0
        check_small(world)

    World(3, seed, loss=0.05).run(story)
