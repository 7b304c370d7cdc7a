"""Seeded worlds in which everything goes wrong: loss, cuts, crashes, old and empty disks, journals
cut short. In the end all nodes hold the same, and all of what they were bound to keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import Value
from quorate.base.crdt_operations import (
    Add,
    Assign,
    Increment,
    KindTag,
    Operation,
    Remove,
    Update,
)
from quorate.errors import QuorateError
from quorate.replication.converging import engine, folding, pulling, serving, stability
from tests.converging.ranges import forget_records
from tests.converging.tiers import Node, World

SET, COUNTER, MAP = KindTag.OR_SET, KindTag.PN_COUNTER, KindTag.OR_MAP
KEYS = ("k", "l")
LEVELS = ("eventual", "causal", "quorum", "strong")


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Bounds so small that a few elements are many."""
    for name, value in {
        "RANGE_ELEMENTS": 8,
        "RANGES_MAX": 2,
        "ELEMENTS_MAX": 3,
        "FINGERPRINTS_MAX": 16,
    }.items():
        patch.setattr(serving, name, value)
        patch.setattr(pulling, name, value, raising=False)
    patch.setattr(pulling, "FEW", 2)
    patch.setattr(pulling, "GUESS", 1)
    patch.setattr(pulling, "CELL_BYTES", 1)  # sketches seem cheap
    patch.setattr(engine, "JOURNAL_BYTES_MAX", 2_000)


def make_restless(patch: pytest.MonkeyPatch) -> None:
    """Lives are folded as soon as they are over."""
    for module, name in (
        (stability, "QUIET_S"),
        (stability, "STABLE_S"),
        (stability, "PROPOSE_S"),
        (folding, "BEHIND_S"),
    ):
        patch.setattr(module, name, vars(module)[name] / 20)


class Swarm:
    """One world. *victim*: the node whose disk may be set back or lost, so that only what a
    majority confirmed has to survive there."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = Random(seed)
        self.nodes = list(world.nodes.values())
        self.victim = self.random.choice(self.nodes)
        self.older = self.victim.image.copy()
        self.tasks: list[asyncio.Task[None]] = []
        self.added: dict[int, bool] = {}  # element: whether it has to be there
        self.removed: dict[int, bool] = {}  # element: whether it has to be gone
        self.counted: dict[int, bool] = {}  # bit: whether it has to be set
        self.count = 0

    # --- clients --------------------------------------------------------------------------------

    def begin(self, story: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(story))

    async def write(self, node: Node, name: str, kind: KindTag, *operations: Operation) -> bool:
        """Whether what was written has to survive."""
        level = self.random.choice(LEVELS)
        if node.tier is None:
            return False
        try:
            written = await asyncio.wait_for(node.write(name, kind, *operations, level=level), 10)
        except (QuorateError, TimeoutError):  # who asked a node that crashed hears nothing more
            return False
        others = {member for member in world_members(self.world) if member != node.number}
        confirmed = level in {"quorum", "strong"} and len(written.unconfirmed) < len(others)
        if level == "quorum" and written.unconfirmed:
            confirmed = False
        return confirmed or node is not self.victim

    def place(self, element: int, operation: Operation) -> tuple[str, KindTag, Operation]:
        """Half of the elements are in a set in a map."""
        if element % 2:
            return "s", SET, operation
        return "m", MAP, Update(KEYS[element // 2 % 2], SET, operation)

    async def add(self, node: Node) -> None:
        elements = []
        for _ in range(self.random.choice((1, 1, 2, 5))):
            self.count += 1
            elements.append(self.count)
            self.added[self.count] = False
        parts = [self.place(each, Add(each)) for each in elements]
        name, kind, _ = parts[0]
        same = [each for each, part in zip(elements, parts, strict=True) if part[0] == name]
        for each in [each for each in elements if each not in same]:
            del self.added[each]
        kept = await self.write(node, name, kind, *[part[2] for part in parts if part[0] == name])
        for each in same:
            self.added[each] = kept

    async def remove(self, node: Node) -> None:
        known = [each for each in self.added if each not in self.removed]
        if not known or node.tier is None:
            return
        element = self.random.choice(known)
        try:
            here = await asyncio.wait_for(elements_at(node), 10)
        except (QuorateError, TimeoutError):
            return
        if element not in here or node.tier is None:
            return
        self.removed[element] = False
        self.removed[element] = await self.write(node, *self.place(element, Remove(element)))

    async def count_up(self, node: Node) -> None:
        bit = len(self.counted)
        if bit < 60:
            self.counted[bit] = False
            self.counted[bit] = await self.write(node, "c", COUNTER, Increment(2**bit))

    async def assign(self, node: Node) -> None:
        self.count += 1
        kind = self.random.choice((KindTag.LWW_REGISTER, KindTag.MV_REGISTER))
        await self.write(node, f"r{kind}", kind, Assign(self.count))

    # --- what goes wrong ------------------------------------------------------------------------

    def fault(self) -> None:
        node = self.random.choice(self.nodes)
        what = self.random.random()
        if what < 0.25:
            self.world.heal()
            if self.random.random() < 0.7:
                others = tuple(each.number for each in self.nodes if each is not node)
                self.world.separate((node.number,), others)
        elif what < 0.45:
            forget_records(node)
        elif what < 0.6:
            self.older = self.victim.image.copy()
        elif what < 0.7:
            node.wall_ahead_ms = self.random.choice((0, 300, -3_600_000, 3_600_000))
        elif what < 0.75:
            node.log_reachable = not node.log_reachable  # and stays up, or its life is no life
        elif node.tier is None:
            node.start()
        elif node.log_reachable and all(each.tier is not None for each in self.nodes):
            node.crash()
            if node is self.victim and self.random.random() < 0.7:
                if self.random.random() < 0.5:
                    node.wipe()
                else:
                    node.image = self.older.copy()
            if self.random.random() < 0.7:
                node.start()

    async def run(self, steps: int = 50) -> None:
        clients: tuple[Callable[[Node], Coroutine[Any, Any, None]], ...] = (
            self.add,
            self.add,
            self.remove,
            self.count_up,
            self.assign,
        )
        for _ in range(steps):
            if self.random.random() < 0.3:
                self.fault()
            node = self.random.choice(self.nodes)
            if node.tier is not None:
                self.begin(self.random.choice(clients)(node))
            await asyncio.sleep(self.random.choice((0.0, 0.002, 0.05, 0.3)))
        self.world.heal()
        self.world.loss = 0.0
        for node in self.nodes:
            node.log_reachable = True
            if node.tier is None:
                node.start()
        await asyncio.gather(*self.tasks)

    async def alike(self) -> bool:
        """Whether all nodes hold the same, and nothing that their places do not name."""
        digests = [await node.tier.digest() for node in self.nodes if node.tier is not None]
        return len(set(digests)) == 1 and not any(node.engine.own.ahead for node in self.nodes)

    async def check(self) -> None:
        await self.world.converged(60.0)
        end_s = self.world.loop.time() + 60.0
        while not await self.alike():  # a repair, or a fold, may still be under way
            assert self.world.loop.time() < end_s, "nodes do not come to hold the same"
            await asyncio.sleep(0.1)
        here = await elements_at(self.nodes[0])
        for element, has_to in self.added.items():
            if element in here:
                assert not self.removed.get(element), f"{element} came back"
            else:
                assert not has_to or element in self.removed, f"{element} was lost"
        assert here <= self.added.keys()
        bits = await self.nodes[0].value("c", COUNTER) if self.counted else 0
        for bit, has_to in self.counted.items():
            assert bits >> bit & 1 or not has_to, f"increment {bit} was lost"
        assert bits < 2 ** len(self.counted)


def world_members(world: World) -> tuple[int, ...]:
    return world.membership.voters


async def elements_at(node: Node) -> set[int]:
    found = set((await node.value("s", SET))[0])
    for key in KEYS:
        found |= set((await node.ask(Value("m", MAP, ((key, SET),))))[0][0][0])
    return found


def run_seed(seed: int, *, folds: bool = False) -> None:
    """*folds*: lives that are over go soon, while all else goes on."""
    random = Random(f"swarm-{seed}")
    world = World(random.choice((2, 3, 3, 4)), seed, loss=random.choice((0.0, 0.05, 0.3)))

    async def story(world: World) -> None:
        swarm = Swarm(world, seed)
        world.leader = int(folds)
        await swarm.run()
        await swarm.check()

    try:
        world.run(story)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


@pytest.mark.parametrize("seed", range(12))
def test_swarm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    if seed % 4 == 3:
        make_restless(monkeypatch)
    run_seed(seed, folds=seed % 4 == 3)


@pytest.mark.deep
@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("first", range(0, 3_000, 100))
def test_many_swarms(first: int, folds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    if folds:
        make_restless(monkeypatch)
    for seed in range(first, first + 100):
        run_seed(seed, folds=folds)
