"""How long a node takes to stop, in virtual time: nobody waits for what cannot happen."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster

ORDERS = [(3, order) for order in itertools.permutations((1, 2, 3))]
ORDERS += [(5, (1, 2, 3, 4, 5)), (5, (5, 3, 1, 4, 2))]


@pytest.mark.parametrize(("count", "order"), ORDERS)
def test_members_that_stop_one_after_the_other_wait_for_nobody(
    count: int, order: tuple[int, ...]
) -> None:
    """As a deployment stops: soon nobody is left to hand leadership over to, or to elect it."""

    async def story() -> None:
        await cluster.start(count)
        await cluster.wait_leader()
        for number in order:
            began_s = cluster.now_s
            await cluster.stop(number)
            assert cluster.now_s - began_s < 0.3, f"node {number}, after {order}"

    with SimulatedCluster(seed=4) as cluster:
        cluster.run(story())


@pytest.mark.parametrize("count", [3, 5])
def test_members_that_stop_together_wait_for_nobody(count: int) -> None:
    async def story() -> None:
        await cluster.start(count)
        await cluster.wait_leader()
        began_s = cluster.now_s
        await asyncio.gather(*(cluster.stop(number) for number in cluster.members))
        assert cluster.now_s - began_s < 0.3

    with SimulatedCluster(seed=4) as cluster:
        cluster.run(story())
