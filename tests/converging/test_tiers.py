"""The second tier by itself: what is written anywhere arrives everywhere, in whatever way."""

from __future__ import annotations

import asyncio

import pytest

from quorate.base.crdt_frames import Contains, Names, Observe, Value
from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Enable,
    Increment,
    KindTag,
    Remove,
    Update,
)
from quorate.errors import TypeMismatchError, UnavailableError
from tests.converging.tiers import World

SET, COUNTER = KindTag.OR_SET, KindTag.PN_COUNTER


def test_what_one_writes_all_get() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await one.write("s", SET, Add("a"), Add("b"))
        await two.write("c", COUNTER, Increment(3))
        await three.write("r", KindTag.LWW_REGISTER, Assign({"x": 1}))
        await world.converged()
        for node in (one, two, three):
            assert await node.value("s", SET) == [["a", "b"], b""]
            assert await node.value("c", COUNTER) == 3
            assert await node.value("r", KindTag.LWW_REGISTER) == {"x": 1}
        assert world.loop.time() < 1.0

    World().run(story)
