"""Lives, on whole nodes in virtual time: whoever leads, each process has its own."""

from __future__ import annotations

import asyncio

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate.base.types import NodeId
from quorate.crdt.dots import make_actor
from quorate.replication.transport import LifeRequest


def test_each_process_gets_one_life_whoever_leads_and_the_next_another() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        await cluster.start(3)
        leader = await cluster.wait_leader()
        follower, other = (number for number in cluster.members if number != leader)
        begun = {}
        for number, node in cluster.nodes.items():
            lifeline = node.parts.lifeline
            begun[number] = await cluster.call(number, lifeline.begin())
            assert await cluster.call(number, lifeline.begin()) == begun[number]
        # Cut off, a process waits for its life; what it began meanwhile is adopted, once.
        await cluster.stop(follower)
        await cluster.restart(follower)
        cluster.partition([[follower], [leader, other]])
        node = cluster.nodes[follower]
        waiting = cluster.spawn(follower, node.parts.lifeline.begin())
        await asyncio.sleep(2)
        assert not waiting.done()
        waiting.cancel()
        cluster.heal()
        first, improvised = begun[follower], begun[follower] + 99
        assert await cluster.call(follower, node.parts.lifeline.adopt(improvised))
        assert await cluster.call(follower, node.parts.lifeline.adopt(improvised))
        begun[follower] = await cluster.call(follower, node.parts.lifeline.begin())
        assert begun[follower] > improvised, "that life was over before this process began"
        assert await cluster.call(follower, node.parts.lifeline.adopt(improvised - 1))
        assert not await cluster.call(follower, node.parts.lifeline.adopt(first)), "it was given"
        await cluster.converged()
        for node in cluster.nodes.values():
            expected = tuple(make_actor(each, begun[each]) for each in sorted(begun))
            assert node.lives_machine.present() == expected
            closed = [make_actor(follower, each) for each in (first, improvised - 1, improvised)]
            assert node.lives_machine.closed() == tuple(closed)

    with SimulatedCluster(seed=7) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []


def test_who_was_removed_gets_no_life() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        await cluster.start(3)
        leader = await cluster.wait_leader()
        gone = next(number for number in cluster.members if number != leader)
        db = cluster.connect("operator")
        await cluster.call("operator", db.remove_member(gone))
        cluster.nodes[leader].parts.lifeline.receive(LifeRequest(NodeId(gone), nonce=5))
        await asyncio.sleep(1)
        assert cluster.nodes[leader].lives_machine.epoch_known(gone) == 0

    with SimulatedCluster(seed=8) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []
