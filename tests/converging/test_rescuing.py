"""What a removed node alone has comes to the members by an operator's order: all of it, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import Rights, Value
from quorate.base.crdt_operations import (
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
from quorate.base.results import Failure
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.crdt.dots import epoch_of, make_actor, member_of
from quorate.errors import (
    CommandError,
    QuorateError,
    StorageError,
    UnavailableError,
)
from quorate.replication.converging.lives import (
    FOLDED_MAX,
    FoldLives,
    PrepareFold,
    Rescue,
    Rescued,
)
from quorate.replication.converging.records import JOURNAL, journal_key
from quorate.replication.converging.rescuing import Source
from quorate.replication.converging.stability import QUIET_S
from quorate.server.rescue import Account, check_spare, plan, preview, rescue
from quorate.storage.memory_elements import ElementImage, MemoryElementStore
from tests.converging.tiers import Node, World

Kinds = KindTag
COUNT, SET, STOCK = Kinds.PN_COUNTER, Kinds.OR_SET, Kinds.BOUNDED_COUNTER


async def until(true: Callable[[], object], within_s: float = 60.0) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not true():
        assert loop.time() < end_s
        await asyncio.sleep(0.05)


class Operator:
    """Asks the nodes of a world what ``admin_rescue`` answers. *dies_after*: so many pieces."""

    def __init__(self, world: World, leader: int = 1, *, dies_after: int = 10**9) -> None:
        self.world = world
        self.leader = leader
        self.left = dies_after

    async def call(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        lives, node = self.world.log.lives, self.world.nodes[self.leader]
        assert node.tier is not None
        if method == "crdt.lives":
            members = list(map(int, self.world.membership.members()))
            return {"lives": [self._life(each) for each in given["actors"]], "members": members}
        if method == "crdt.rescue":
            result = self.world.log.submit(Rescue(given["actor"]))
            await until(lambda: node.lives.estate(given["actor"]))
            return {"since": result.since, "estate": result.estate}
        if method == "crdt.merge":
            self.left -= 1
            if self.left < 0:
                raise UnavailableError("the operator's machine was switched off")
            short = await node.tier.rescuing.take(given["estate"], given["delta"])
            return {"node": self.leader, "short": [[list(one.path), one.amount] for one in short]}
        after = node.tier.rescuing.after()
        command = Rescued(given["actor"], given["estate"], given["upto"], after)
        assert not isinstance(self.world.log.submit(command), Failure)
        await until(lambda: not lives.estate(given["actor"]))
        return {}

    def _life(self, actor: int) -> dict[str, Any]:
        lives, engine = self.world.log.lives, self.world.nodes[self.leader].engine
        told = {"actor": actor, "has": engine.frontier.get(actor, 0), "waits": False, "why": ""}
        member = member_of(actor) in self.world.membership.members()
        if member and lives.admits(actor, over=True):
            return {**told, "since": -1, "why": "start it"}
        try:
            return {**told, "since": lives.since(actor)}
        except CommandError as error:
            return {**told, "since": -1, "why": str(error), "waits": lives.is_admitted(actor)}

    async def rescue(self, source: Source, **options: Any) -> Account:
        left = await plan(source, self.call, wait_s=40, **options)
        return await rescue(source, left, self.call)


def source_of(node: Node) -> Source:
    return Source(node.number, MemoryElementStore(node.image.copy()))


def drop(world: World, *members: int) -> None:
    """These are the members from now on."""
    world.membership = Membership(tuple(map(NodeId, members)))


async def settled(world: World) -> None:
    """Until the two that are left have folded what is over, and hold the same."""
    lives = world.log.lives
    await until(lambda: not lives.closed())
    left = [node for node in world.nodes.values() if node.tier is not None]
    await until(lambda: all(node.engine.own.generation == 3 * lives.generation for node in left))
    await world.converged(30, among=(1, 2))


async def lose_third(world: World, *, heals: bool = False) -> None:
    """The third node is stopped, having been cut off, and removed; or it *heals*."""
    three = world.nodes[3]
    if heals:
        three.log_reachable = True
        world.heal()
        await world.converged(30)
        return
    three.crash()
    drop(world, 1, 2)
    known = world.log.lives
    await until(lambda: not [actor for actor in known.known() if member_of(actor) == 3])
    await settled(world)


def cut_off(world: World) -> None:
    world.separate((1, 2), (3,))
    world.nodes[3].log_reachable = False


def restart(node: Node) -> None:
    node.crash()
    node.start()


NAMES: list[tuple[str, KindTag]] = [
    ("n", COUNT),
    ("g", Kinds.G_COUNTER),
    ("s", SET),
    ("gs", Kinds.G_SET),
    ("2p", Kinds.TWO_P_SET),
    ("lww", Kinds.LWW_REGISTER),
    ("mv", Kinds.MV_REGISTER),
    ("on", Kinds.ENABLE_WINS_FLAG),
    ("off", Kinds.DISABLE_WINS_FLAG),
    ("m", Kinds.OR_MAP),
    ("t", Kinds.TEXT),
    ("stock", STOCK),
]


async def values(node: Node) -> dict[str, Any]:
    found = {name: await node.value(name, kind) for name, kind in NAMES if name != "t"}
    texts, _rest = await node.value("t", Kinds.TEXT)
    found["t"] = sorted(update for _name, update in texts)
    for kind, key in [(COUNT, "c"), (SET, "e")]:
        ((value,), _) = await node.ask(Value("m", Kinds.OR_MAP, ((key, kind),)))
        found[f"m.{key}"] = value
    return found


def operations(random: Random) -> Iterator[tuple[str, KindTag, Operation]]:
    """Of all kinds; without those of which a rescue says that they cannot be had."""
    while True:
        name, kind = random.choice(NAMES)
        word = random.choice("abcde")
        made: dict[KindTag, list[Operation]] = {
            COUNT: [Increment(random.randint(1, 9)), Decrement(random.randint(1, 9))],
            Kinds.G_COUNTER: [Increment(random.randint(1, 9))],
            SET: [Add(word), Add(word), Remove(word), Clear()],
            Kinds.G_SET: [Add(word), Add(word), Add(word), Clear()],
            Kinds.TWO_P_SET: [Add(word), Remove(word)],
            Kinds.LWW_REGISTER: [Assign(random.randint(0, 99))],
            Kinds.MV_REGISTER: [Assign(random.randint(0, 99)), Clear()],
            Kinds.ENABLE_WINS_FLAG: [Enable(), Disable()],
            Kinds.DISABLE_WINS_FLAG: [Enable(), Disable()],
            Kinds.OR_MAP: [
                Update("c", COUNT, Increment(random.randint(1, 9))),
                Update("e", SET, Add(word)),
                Update("e", SET, Remove(word)),
            ],
            Kinds.TEXT: [Edit(random.randbytes(4))],
            STOCK: [Increment(random.randint(1, 9))],
        }
        yield name, kind, random.choice(made[kind])


async def busy(node: Node, made: Iterator[tuple[str, KindTag, Operation]], count: int) -> None:
    for _ in range(count):
        name, kind, operation = next(made)
        try:
            await node.write(name, kind, operation)
        except QuorateError as error:
            assert "two-phase" in str(error)  # noqa: PT017


async def history(world: World, seed: int, *, heals: bool) -> dict[str, Any]:
    """All nodes work, the third one alone for a while, in two lives; then it heals, or it is
    removed and rescued, with an operator who is cut off, too."""
    world.leader = 1
    one, two, three = world.nodes.values()
    made = operations(Random(seed))
    for node in (one, two, three):
        await busy(node, made, 12)
    await world.converged()
    cut_off(world)
    for _ in range(2):
        await busy(three, made, 12)
        await busy(one, made, 6)
        restart(three)
    await busy(three, made, 4)
    await busy(two, made, 6)
    await lose_third(world, heals=heals)
    if not heals:
        source = source_of(three)
        for leader, pieces in ((1, 5), (2, 9), (1, 2)):
            with pytest.raises(UnavailableError, match="switched off"):
                await Operator(world, leader, dies_after=pieces).rescue(source)
            await asyncio.sleep(QUIET_S + 2)  # what is not all there is not folded
        account = await Operator(world, 2).rescue(source)
        assert epoch_of(account.left[0].actor) == 1
        assert len(account.left) >= 2
        assert not account.lacking
        await world.converged(30, among=(1, 2))
        after = await values(one)
        assert await Operator(world).rescue(source) == Account([], [], 0, [])
        await settled(world)  # estates and all
        assert await values(one) == await values(two) == after
        assert world.log.lives.known() == world.log.lives.present()
        return after
    return await values(one)


@pytest.mark.parametrize("seed", range(2))
def test_a_rescue_comes_to_what_the_node_itself_would_have_brought(seed: int) -> None:
    rescued = World(3, seed).run(lambda world: history(world, seed, heals=False))
    healed = World(3, seed).run(lambda world: history(world, seed, heals=True))
    assert rescued == healed


def test_removals_made_alone_take_what_they_saw_and_still_stands() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        await one.write("n", COUNT, Increment(10))
        for name in ("n", "m"):
            await three.write(name, COUNT, Increment(5))
        await one.write("s", SET, Add("a"), Add("b"))
        await world.converged()
        cut_off(world)
        await three.write("n", COUNT, Increment(3))
        await three.write("n", COUNT, Clear())  # all that it saw
        await three.write("n", COUNT, Increment(2))
        await three.write("s", SET, Remove("a"), Remove("b"))
        await three.write("m", COUNT, Increment(3))
        restart(three)
        await three.write("m", COUNT, Clear())  # in a later life
        await one.write("n", COUNT, Increment(100))
        await one.write("s", SET, Add("b"))
        await lose_third(world)
        account = await Operator(world, 2).rescue(source_of(three))
        await settled(world)
        assert {tuple(each) for each in account.lacking} == {
            ("m", "PNCounter", 0),
            ("n", "PNCounter", 0),
        }
        changes = {each.name: tuple(each)[2:] for each in account.changes}
        assert changes == {"m": (0, 0, 3, 0), "n": (0, 0, 5, 0), "s": (0, 2, 0, 0)}
        assert await one.value("n", COUNT) == 100 + 2 + 5, "what was folded stays"
        assert await one.value("s", SET) == [["b"], b""], "the later add was not seen"
        assert await two.value("n", COUNT) == 107
        assert await one.value("m", COUNT) == 5
        await two.write("s", SET, Add("c"))
        await world.converged(among=(1, 2))
        for node in (one, two):  # all dots are accounted for
            assert not node.engine.view.context.cloud.keys() & set(world.log.lives.present())

    World(3).run(story)


def test_a_bounded_counter_is_lowered_as_far_as_there_are_rights() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for name in ("stock", "seats"):
            await three.write(name, STOCK, Increment(10))
        await world.converged()
        cut_off(world)
        await three.write("stock", STOCK, Decrement(4))
        await three.write("stock", STOCK, Increment(1))
        await three.write("stock", STOCK, Transfer(2, 1, 2))
        await three.write("seats", STOCK, Decrement(7))
        await lose_third(world)
        heir = one if await holds(one, "seats") else two
        await heir.write("seats", STOCK, Decrement(8))  # what the third one sold, too
        account = await Operator(world, heir.number).rescue(source_of(three))
        await settled(world)
        assert [tuple(each) for each in account.lacking] == [("seats", "BoundedCounter", 5)]
        assert await one.value("stock", STOCK) == 10 - 4 + 1
        assert await one.value("seats", STOCK) == 0, "never below"
        assert sum([await holds(node, "stock") for node in (one, two)]) == 7
        assert sum([await holds(node, "seats") for node in (one, two)]) == 0
        assert await Operator(world).rescue(source_of(three)) == Account([], [], 0, [])

    async def holds(node: Node, name: str) -> int:
        ((mine, _shares),), _position = await node.ask(Rights(name))
        return int(mine)

    World(3).run(story)


def test_an_estate_is_not_folded_before_everybody_has_it() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        await three.write("n", COUNT, Increment(1))
        await world.converged()
        cut_off(world)
        await three.write("n", COUNT, Increment(1))
        await lose_third(world)
        before = two.engine.own.generation
        world.separate((1,), (2,))
        await Operator(world).rescue(source_of(three))
        await asyncio.sleep(QUIET_S + 3)
        assert world.log.lives.preparing
        assert two.engine.own.generation == before
        world.heal()
        await settled(world)
        assert await two.value("n", COUNT) == await one.value("n", COUNT) == 2

    World(3).run(story)


def test_who_is_a_member_is_to_be_started_and_what_may_still_come_is_waited_for() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, _two, three = world.nodes.values()
        await three.write("n", COUNT, Increment(1))
        await world.converged()
        cut_off(world)
        await three.write("n", COUNT, Increment(1))
        three.crash()
        with pytest.raises(UnavailableError, match="still a member, start it"):
            await plan(source_of(three), Operator(world).call, wait_s=2)
        three.start()
        await three.write("n", COUNT, Increment(1))
        three.crash()
        source = source_of(three)
        actors = list(source.lives())
        asked = await Operator(world).call("crdt.lives", {"actors": actors})
        assert [each["why"] for each in asked["lives"]][1:] == ["start it"]
        drop(world, 1, 2)
        left = await plan(source, Operator(world).call, wait_s=30)
        assert [each.actor for each in left] == actors
        before = await one.value("n", COUNT)
        account = preview(source, left)
        assert [tuple(each) for each in account.changes] == [("n", "PNCounter", 0, 0, 2, 0)]
        assert await one.value("n", COUNT) == before == 1
        # Records that are kept no more cannot be told from those that the members have.
        row = journal_key(left[0].actor, left[0].last)
        MemoryElementStore(three.image).write({JOURNAL: [(row, None)]})
        three.image.opened = False
        source = source_of(three)
        with pytest.raises(StorageError, match="does not keep all"):
            await plan(source, Operator(world).call, wait_s=1)
        await Operator(world).rescue(source, incomplete=True)
        assert await one.value("n", COUNT) == 2

    World(3).run(story)


def test_a_life_folded_long_ago_is_refused() -> None:
    async def story(world: World) -> None:
        lives = world.log.lives
        actor = make_actor(3, 1)
        assert lives.since(actor) == 0, "the log never knew it"
        world.log.begin(3)
        with pytest.raises(CommandError, match="not folded yet"):
            lives.since(actor)
        refused = world.log.submit(Rescue(actor))
        assert "not folded yet" in refused.message
        refused = world.log.submit(Rescued(make_actor(3, 9), 5, 1, ()))
        assert "is not being rescued" in refused.message
        for generation in range(1, FOLDED_MAX + 2):
            epoch = world.log.begin(3)
            last = ((make_actor(3, epoch - 1), generation),)
            world.log.submit(PrepareFold(generation, last))
            world.log.submit(FoldLives(generation, lives.changes, last))
        assert lives.generation == FOLDED_MAX + 1
        assert lives.since(make_actor(3, 2)) == 2
        with pytest.raises(CommandError, match="too long ago"):
            lives.since(actor)

    World(1).run(story)


def test_what_is_set_aside_frees_folding_and_can_be_rescued() -> None:
    async def story(world: World) -> None:
        world.leader = 1
        one, two, three = world.nodes.values()
        for node in (one, two):
            await node.write("n", COUNT, Increment(1))
        await world.converged()
        three.log_reachable = False
        await three.write("n", COUNT, Increment(10))
        orphan = three.engine.own.actor
        for above in (1, 2):  # other processes were there meanwhile, whose disk is gone
            world.log.adopt(3, epoch_of(orphan) + above)
        world.log.submit(PrepareFold(1, ((orphan + 1, 0),)))
        three.log_reachable = True
        await until(lambda: epoch_of(three.engine.own.actor) == epoch_of(orphan) + 3)
        await three.write("n", COUNT, Increment(100))  # on top of what nobody takes
        await until(lambda: three.tier and three.tier.folding.problem)
        assert one.engine.own.generation == 1
        assert await one.value("n", COUNT) == 2
        three.crash()
        aside, three.image = three.image, ElementImage()
        await check_spare(Source(3, MemoryElementStore(aside.copy())), Operator(world).call)
        three.start()
        await until(three.leaves)
        await settled(world)
        assert one.tier is not None
        assert one.tier.stability.waits_for() == []
        account = await Operator(world).rescue(Source(3, MemoryElementStore(aside.copy())))
        assert [each.actor for each in account.left] == [orphan, orphan + 3]
        await settled(world)
        await world.converged()
        for node in (one, two, three):
            assert await node.value("n", COUNT) == 112

    World(3).run(story)
