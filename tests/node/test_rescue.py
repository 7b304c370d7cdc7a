"""A node that was removed while it was cut off, on whole nodes in virtual time: its data is refused
when it returns, and comes to the members, once, when an operator says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate import Database
from quorate.errors import CommandError, UnavailableError, UnconfirmedError
from quorate.replication.converging.rescuing import Source
from quorate.server.rescue import Account, Call, plan, rescue
from quorate.storage.memory_elements import MemoryElementStore


def calls_of(db: Database, dies_after: int = 10**9) -> Call:
    """As the command line calls; its process dies after so many pieces."""
    left = dies_after

    async def call(method: str, given: dict[str, Any]) -> dict[str, Any]:
        nonlocal left
        left -= method == "crdt.merge"
        if left < 0:
            raise KeyboardInterrupt
        return await db._call(method, given, None, 20.0)

    return call


async def seen(db: Database) -> tuple[int, int, Any]:
    level = "quorum"
    return (
        await db.counter("sold").value(level=level),
        await db.set("orders").count(level=level),
        await db.register("last").value(level=level),
    )


async def lose_a_node(cluster: SimulatedCluster) -> Source:
    """A node takes writes alone, for as long as the others need to remove it, and returns."""
    await cluster.start(3)
    leader = await cluster.wait_leader()
    gone = max(number for number in cluster.members if number != leader)
    rest = [number for number in cluster.members if number != gone]
    shop = cluster.connect("shop", gone, follow_leader=False, timeout=8.0)
    operator = cluster.connect("operator", *rest, timeout=8.0)
    await shop.counter("sold").increment(5)
    await shop.set("orders").add("first", level="strong")
    cluster.partition([[gone, "shop"], [*rest, "operator"]])
    await asyncio.sleep(1)
    for number in range(20):
        await shop.counter("sold").increment(level="eventual")
        await shop.set("orders").add(number, level="eventual")
    await shop.set("orders").remove("first", level="eventual")
    await shop.register("last").assign("from the shop", level="eventual")
    await operator.counter("sold").increment(100, level="quorum")
    source = Source(gone, MemoryElementStore(cluster.disk(gone).elements.copy()))
    with pytest.raises(UnavailableError, match="still a member"):
        await plan(source, calls_of(operator), wait_s=0)
    await operator.remove_member(gone)
    await asyncio.sleep(10)  # its life is folded
    cluster.heal()
    await asyncio.sleep(3)
    with pytest.raises(UnconfirmedError):  # it stands there, and is no more lost than the others
        await shop.counter("sold").increment(level="quorum", timeout=3)
    assert await seen(operator) == (105, 1, None), "what it alone has is refused"
    cluster.crash(gone, power=False)
    return Source(gone, MemoryElementStore(cluster.disk(gone).elements.copy()))


def test_what_a_removed_node_acknowledged_comes_back_once_by_an_operators_order() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        source = await lose_a_node(cluster)
        operator = cluster.connect("operator", timeout=8.0)
        left = await plan(source, calls_of(operator), wait_s=40)
        assert [each.since < each.last for each in left] == [True]
        for pieces in (0, 7, 25):
            with pytest.raises(KeyboardInterrupt):
                await rescue(source, left, calls_of(operator, pieces))
            await operator.transfer_leader()  # the next one goes to another node
        account = await rescue(source, left, calls_of(operator))
        assert not account.lacking
        told = {each.name: (each.added, each.removed, each.raised) for each in account.changes}
        assert told == {"last": (1, 0, 0), "orders": (20, 1, 0), "sold": (0, 0, 21)}
        assert await seen(operator) == (126, 20, "from the shop")
        for _ in range(2):
            again = await plan(source, calls_of(operator), wait_s=40)
            assert await rescue(source, again, calls_of(operator)) == Account([], [], 0, [])
            assert await seen(operator) == (126, 20, "from the shop")
            await asyncio.sleep(15)  # and what went by the other name was folded
        for node in cluster.nodes.values():
            crdt = node.status()["crdt"]
            assert (crdt["folding_waits_for"], crdt["problem"]) == ([], "")
            lives = node.lives_machine
            assert lives.known() == lives.present()
        with pytest.raises(CommandError, match="nothing is being rescued"):
            await calls_of(operator)("crdt.merge", {"estate": left[0].estate, "delta": b""})

    with SimulatedCluster(seed=11) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []
