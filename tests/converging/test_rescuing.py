"""What a removed node alone has comes to the members by an operator's order: all of it, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import Value
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
    MembershipError,
    QuorateError,
    StorageError,
    UnavailableError,
)
from quorate.replication.converging.lives import Rescue, Rescued
from quorate.replication.converging.records import JOURNAL
from quorate.replication.converging.rescuing import Source
from quorate.replication.converging.stability import QUIET_S
from quorate.server.rescue import Account, plan, preview, rescue
from quorate.storage.memory_elements import MemoryElementStore
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
    return Source(node.number, MemoryElementStore(node.image))


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
        assert [epoch_of(each.actor) for each in account.left][0] == 1
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


@pytest.mark.parametrize("seed", range(3))
def test_a_rescue_comes_to_what_the_node_itself_would_have_brought(seed: int) -> None:
    rescued = World(3, seed).run(lambda world: history(world, seed, heals=False))
    healed = World(3, seed).run(lambda world: history(world, seed, heals=True))
    assert rescued == healed
