"""Repair by ranges: a node that lacks records which nobody has any more comes to hold the same."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from quorate.base.crdt_operations import Add, Assign, Increment, KindTag, Remove
from quorate.base.types import NodeId
from tests.converging.tiers import Node, World

SET, COUNTER, REGISTER = KindTag.OR_SET, KindTag.PN_COUNTER, KindTag.LWW_REGISTER


def forget_records(node: Node) -> None:
    """The node's journal was cut: whoever lacks records has to compare ranges with it."""
    table = node.image.tables.get("journal")
    for key in [] if table is None else list(table.keys):
        table.change(key, None)
    if node.tier is not None:
        node.engine._floors.clear()


async def fill(node: Node, name: str, *elements: object) -> None:
    for at in range(0, len(elements), 500):
        await node.write(name, SET, *[Add(each) for each in elements[at : at + 500]])


def test_a_wiped_node_gets_everything() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, "s", *range(700))
        await two.write("c", COUNTER, Increment(3))
        await three.write("r", REGISTER, Assign({"x": 1}))
        await three.write("s", SET, Remove(5), Remove(6))
        await world.converged()
        three.crash()
        three.wipe()
        for node in (one, two):
            forget_records(node)
        three.start()
        await three.write("s", SET, Add("mine"))
        await world.converged()
        assert await three.value("c", COUNTER) == 3
        assert len((await one.value("s", SET))[0]) == 699

    World().run(story)
