"""Faults of links: cut, slow, lossy, thin, reset; among nodes, and between clients and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jepsen_like.processes.nemesis.stage import Stage
from jepsen_like.processes.proxy import CLIENTS, Condition
from jepsen_like.processes.shapes import SHAPES, Links, cut_off
from jepsen_like.systems.system import System

#: One node loses all others. This comes so many times more often than each of the other shapes, to
#: a node that has run for a while, if there is one: what it does then is of interest.
ISOLATED: Final = "isolated"
ISOLATED_MORE: Final = 3
SETTLED_S: Final = 4.0


class Partition:
    """Links among nodes go dead, in the shapes of ``processes.shapes``; clients are not cut off.
    Half of the time the connections break as well, so that what was under way never arrives."""

    name = "partition"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        network, random = stage.system.network, stage.random
        nodes = await _ordered(stage)
        if len(nodes) < 2:
            return
        shape = random.choice([*SHAPES, *(ISOLATED,) * ISOLATED_MORE])
        if shape == ISOLATED:
            nodes.sort(key=lambda number: not _settled(stage, number))
        links = SHAPES[shape](nodes)
        if not links:
            return
        breaks = random.random() < 0.5
        what = f"{shape}, first {nodes[0]}: {_shown(links)}"
        async with stage.fault("partition", what, cut_off(nodes, links)):
            network.set(self.name, links, Condition(blocked=True))
            if breaks:
                network.reset(links)
            await stage.hold(1.5 if shape == ISOLATED else 0.3, 6.0)
            network.heal(self.name)


class Slow:
    """Links among nodes, and from clients, get slow, lossy or thin."""

    name = "slow"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        network, random = stage.system.network, stage.random
        conditions = (
            Condition(delay_s=0.05, jitter_s=0.05),
            Condition(delay_s=0.3, jitter_s=0.4),
            Condition(loss=0.2),
            Condition(bytes_per_s=20_000.0),
            Condition(delay_s=0.01, jitter_s=0.5, loss=0.05),
        )
        condition = random.choice(conditions)
        ends = [CLIENTS, *stage.system.nodes]
        links = [(a, b) for a in ends for b in ends if a != b]
        if random.random() < 0.6:
            links = random.sample(links, max(len(links) // 3, 1))
        what = f"{len(links)} links: {condition.shown()}"
        async with stage.fault("slow", what, _of_clients(links)):
            network.set(self.name, links, condition)
            await stage.hold(0.5, 5.0)
            network.heal(self.name)


class Reset:
    """Connections break in the middle of a frame, one link or many, again and again."""

    name = "reset"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        random = stage.random
        ends = [CLIENTS, *stage.system.nodes]
        links = [(a, b) for a in ends for b in ends if a != b]
        chosen = sorted(random.sample(links, random.randint(1, len(links))))
        rounds = random.randint(1, 8)
        what = f"{len(chosen)} links, {rounds} times"
        async with stage.fault("reset", what, _of_clients(chosen)):
            for _ in range(rounds):
                stage.system.network.reset(chosen)
                await stage.hold(0.05, 0.5)


class Clients:
    """Clients reach only some of the nodes: not the leader, one way only, or only one."""

    name = "clients"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        network, random = stage.system.network, stage.random
        nodes = await _ordered(stage)
        cut = random.choice((nodes[:1], nodes[1:], nodes))
        there = [(CLIENTS, node) for node in cut]
        back = [(node, CLIENTS) for node in cut]
        links = random.choice((there, back, there + back))
        async with stage.fault("clients", f"cut off: {_shown(links)}", cut):
            network.set(self.name, links, Condition(blocked=True))
            if random.random() < 0.5:
                network.reset(links)
            await stage.hold(0.3, 4.0)
            network.heal(self.name)


def _of_clients(links: Links) -> set[int]:
    """Nodes whose links to or from clients are among *links*."""
    return {end for link in links if CLIENTS in link for end in link if end != CLIENTS}


def _settled(stage: Stage, number: int) -> bool:
    """Whether it has run for a while, and no fault has hold of it."""
    node = stage.system.nodes[number]
    return node.running and not node.claimed and node.age_s >= SETTLED_S


async def _ordered(stage: Stage) -> list[int]:
    """All nodes, shuffled; half of the time the leader comes first."""
    nodes = list(stage.system.nodes)
    stage.random.shuffle(nodes)
    if stage.random.random() < 0.5:
        leader = await stage.system.leader()
        if leader in nodes:
            nodes.remove(leader)
            nodes.insert(0, leader)
    return nodes


def _shown(links: Links | Sequence[tuple[int, int]]) -> str:
    names = {CLIENTS: "clients"}
    return ", ".join(f"{names.get(a, a)}→{names.get(b, b)}" for a, b in links)
