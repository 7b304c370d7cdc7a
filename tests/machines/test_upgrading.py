"""Rolling upgrades of whole nodes: safe at every step, refused while a member's code is too old."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

import quorate
from jepsen_like.simulation.cluster import SimulatedCluster
from jepsen_like.simulation.invariants import Invariants
from jepsen_like.simulation.members import ClusterSettings
from jepsen_like.simulation.observing import observe
from quorate.client.database import Database
from quorate.errors import (
    BadCommandError,
    DeadlineExceededError,
    FormatVersionError,
    NotSentError,
    QuorateError,
    UpgradeError,
)
from tests.machines.test_declaring import New, Old
from tests.sharing import turn


class World:
    """A simulated cluster whose nodes start with the code that was installed last."""

    def __init__(self, seed: int, *machines: type[quorate.Machine]) -> None:
        self.code: tuple[type[quorate.Machine], ...] = machines
        settings = ClusterSettings(
            machines=lambda: [each() for each in self.code], checkpoint_bytes=1500
        )
        self.cluster = SimulatedCluster(seed, settings)
        self.invariants = Invariants(lambda: self.cluster.now_s)
        self.stopped: list[tuple[int, BaseException]] = []
        self.cluster.on_node = lambda _number, node: observe(
            node, self.invariants, lambda number, error: self.stopped.append((number, error))
        )

    def run(self, story: Any) -> None:
        with self.cluster as cluster:
            cluster.run(story)
            assert not self.invariants.found, self.invariants.found
            assert not cluster.problems

    async def begin(self, count: int = 3) -> Database:
        await self.cluster.start(count)
        await self.cluster.wait_leader()
        return self.cluster.connect("alice", timeout=20.0)

    async def install(self, number: int, *machines: type[quorate.Machine]) -> None:
        """As an operator does: stop the node, change the code, start it."""
        await self.cluster.stop(number)
        self.code = machines
        await self.cluster.restart(number)
        await self.cluster.wait_leader()

    def hashes(self) -> dict[bytes, None]:
        return {node.machines.state_hash: None for node in self.cluster.nodes.values()}

    def versions(self) -> list[int]:
        return [node.machines.registry.version("shop") for node in self.cluster.nodes.values()]


@pytest.mark.parametrize("seed", range(3))
def test_a_rolling_upgrade_is_safe_at_every_step(seed: int) -> None:
    world = World(seed, Old)
    cluster = world.cluster

    async def story() -> None:
        db = await world.begin()
        shop = db.machine(New)  # a client may be ahead of the cluster
        total = 0

        async def use() -> None:
            nonlocal total
            for _ in range(10):
                total += 3
                assert await shop.add(3) == total
            with pytest.raises(BadCommandError):
                await shop.clear()
            with pytest.raises(BadCommandError):
                await shop.add(3, "a note")
            await cluster.converged()
            assert len(world.hashes()) == 1
            assert await db.machine(Old).sum() == total

        await use()
        for number in (1, 2, 3):
            if number == 3:
                with pytest.raises(UpgradeError, match=r"node 3 \(version 1\)"):
                    await db.upgrade("shop")
            await world.install(number, New)
            await use()
        with pytest.raises(QuorateError):
            await db.upgrade("nobody")
        assert await db.upgrade("shop") == {
            "machine": "shop", "version": 2, "before": 1, "behind": {},
        }  # fmt: skip
        assert (await db.upgrade("shop"))["before"] == 2
        assert await shop.add(3, "doubled") == total + 6
        assert await shop.sum_and_notes() == (total + 6, ["doubled"])
        with pytest.raises(BadCommandError):
            await db.machine(Old).sum()
        await cluster.converged()
        assert len(world.hashes()) == 1
        assert world.versions() == [2, 2, 2]
        # The log is replayed under the versions that wrote it, from a checkpoint or without one.
        cluster.crash_all()
        await cluster.restart_all()
        await cluster.wait_leader()
        assert (await shop.sum_and_notes())[0] == total + 6
        await cluster.converged()
        assert len(world.hashes()) == 1
        assert world.versions() == [2, 2, 2]

    world.run(story())
    assert not world.stopped


@pytest.mark.parametrize("seed", turn(range(5)))
def test_an_upgrade_amid_crashes_happens_once_and_for_all(seed: int) -> None:
    world = World(100 + seed, Old)
    cluster, random = world.cluster, Random(seed)

    async def crash_one() -> None:
        number = random.choice((1, 2, 3))
        cluster.crash(number, power=random.random() < 0.5)
        await asyncio.sleep(random.uniform(0.0, 0.6))
        await cluster.restart(number)

    async def upgrade(db: Database) -> None:
        while True:
            try:
                if (await db.upgrade("shop", timeout=3.0))["version"] == 2:
                    return
            except QuorateError:
                await asyncio.sleep(0.05)

    async def story() -> None:
        db = await world.begin()
        shop = db.machine(New)
        steps: list[int] = []
        done = False

        async def use() -> None:
            last = 0
            while not done or len(steps) < 20:
                total = await shop.add(3, timeout=60.0)
                steps.append(total - last)
                last = total

        using = cluster.spawn("alice", use())
        for number in (1, 2, 3):
            await crash_one()
            await world.install(number, New)
        upgrading = asyncio.ensure_future(upgrade(db))
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.0, 0.1))
            await crash_one()
        await upgrading
        await crash_one()
        await asyncio.sleep(0.5)
        done = True
        await using
        assert set(steps) == {3, 6}, steps
        assert steps == sorted(steps)
        await cluster.converged()
        assert len(world.hashes()) == 1
        assert world.versions() == [2, 2, 2]

    world.run(story())
    assert not world.stopped


def test_code_that_lacks_a_version_in_force_stops_and_says_what_to_install() -> None:
    world = World(5, New)
    cluster = world.cluster

    async def story() -> None:
        db = await world.begin()
        assert await db.machine(New).clear() == 0  # a new machine begins at its code's version
        await cluster.converged()
        assert world.versions() == [2, 2, 2]
        number = next(each for each in (1, 2, 3) if each != cluster.leader())
        await cluster.stop(number)
        world.code = (Old,)
        with pytest.raises((FormatVersionError, QuorateError)):
            await cluster.restart(number)
            await db.machine(New).clear()
            await cluster.members[number].node.wait_stopped()  # type: ignore[union-attr]
        failure = cluster.members[number].failure
        assert isinstance(failure, FormatVersionError), failure
        assert "version 2" in str(failure)
        world.code = (New,)
        await cluster.restart(number)
        assert await db.machine(New).clear() == 0
        await cluster.converged()

    world.run(story())


def test_a_new_machine_comes_in_when_a_majority_and_all_that_are_connected_have_it() -> None:
    world = World(6)
    cluster = world.cluster

    async def story() -> None:
        db = await world.begin()
        await world.install(1, Old)
        await world.install(2, Old)
        await cluster.transfer_to(db, 1)
        with pytest.raises((NotSentError, DeadlineExceededError), match="not in force yet"):
            await db.machine(Old).add(1, timeout=2.0)
        await cluster.converged()
        assert len(world.hashes()) == 1
        await world.install(3, Old)
        assert await db.machine(Old).add(1) == 1
        await cluster.converged()
        assert world.versions() == [1, 1, 1]

    async def transfer_to(db: Database, number: int) -> None:
        await db.transfer_leader(number)

    cluster.transfer_to = transfer_to  # type: ignore[attr-defined]
    world.run(story())
    assert not world.stopped


def test_an_upgrade_waits_for_members_that_nobody_hears_of() -> None:
    world = World(7, New)
    cluster = world.cluster

    async def story() -> None:
        db = await world.begin()
        await db.machine(New).clear()
        number = next(each for each in (1, 2, 3) if each != cluster.leader())
        cluster.crash(number, power=False)
        await asyncio.sleep(1.0)  # the leader notices
        with pytest.raises(UpgradeError, match=f"not connected: node {number}"):
            await db.upgrade("shop")

    world.run(story())


def test_a_member_that_is_given_a_snapshot_gets_the_versions_with_it() -> None:
    world = World(8, Old)
    cluster = world.cluster

    async def story() -> None:
        db = await world.begin()
        shop = db.machine(New)
        await shop.add(1)
        for number in (1, 2, 3):
            await world.install(number, New)
        await db.upgrade("shop")
        for _ in range(100):
            await shop.add(1)
        await db.checkpoint()
        await cluster.add(4)
        await db.add_member(4, cluster.address(4))
        await shop.add(1)
        await cluster.converged()
        assert world.versions() == [2, 2, 2, 2]
        assert len(world.hashes()) == 1

    world.run(story())
    assert not world.stopped


def test_clients_cannot_raise_versions() -> None:
    world = World(9, Old)

    async def story() -> None:
        db = await world.begin(1)
        with pytest.raises(BadCommandError, match="takes commands of nodes only"):
            await db.machine("versions").execute([1, "shop", 2])

    world.run(story())
