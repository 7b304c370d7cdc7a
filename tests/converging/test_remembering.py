"""What is sent again to a node that lost its memory is not done twice, nor is what it remembers."""

from __future__ import annotations

import asyncio

import pytest

from quorate.base.crdt_operations import Increment, KindTag
from quorate.errors import OutcomeUnknownError
from quorate.replication.converging.remembering import HEARD_S
from quorate.storage.memory_elements import ElementImage
from tests.converging.tiers import Node, World

COUNTER = KindTag.PN_COUNTER


async def sent_again(node: Node, sequence: int, within_s: float = 3.0) -> None:
    """As a client does: until there is an answer."""
    end_s = node.world.loop.time() + within_s
    while True:
        try:
            await node.write("c", COUNTER, Increment(), sequence=sequence, again=True)
        except OutcomeUnknownError:
            if node.world.loop.time() > end_s:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def test_a_write_of_before_the_store_was_lost_is_not_done_again() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("c", COUNTER, Increment(), sequence=1)
        await world.converged()
        one.crash()
        one.image = ElementImage()
        one.start()
        with pytest.raises(OutcomeUnknownError, match="lost or set back"):
            await sent_again(one, 1)
        await one.write("c", COUNTER, Increment(), sequence=2)  # not of before
        await world.converged()
        assert await two.value("c", COUNTER) == 2
        one.crash()
        one.start()  # what it forgot, it forgot before this process began
        await sent_again(one, 2)
        await sent_again(one, 3)
        await world.converged()
        assert await two.value("c", COUNTER) == 3

    World().run(story)


def test_a_write_of_before_the_store_was_set_back_is_not_done_again() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("c", COUNTER, Increment(), sequence=1)
        same_life = one.image.copy()
        await one.write("c", COUNTER, Increment(), sequence=2)
        await world.converged()
        one.crash()
        one.image = same_life
        one.start()
        with pytest.raises(OutcomeUnknownError, match=r"node . has . records"):
            await sent_again(one, 2)
        await sent_again(one, 1)
        assert await two.value("c", COUNTER) == 2
        older = one.image.copy()
        one.crash()
        one.start()
        await one.write("c", COUNTER, Increment(), sequence=4)
        await world.converged()
        one.crash()
        one.image = older  # of the life before
        world.separate((1,), (2, 3))
        one.start()
        with pytest.raises(OutcomeUnknownError, match="the log knows life"):
            await sent_again(one, 4)
        world.heal()
        await world.converged()
        assert await two.value("c", COUNTER) == 3

    World().run(story)


def test_what_a_node_surely_did_not_do_is_done_when_it_comes_again() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await one.write("c", COUNTER, Increment(), sequence=1)
        await world.converged()
        three.crash()
        for sequence in (2, 3):  # lives that write nothing are no reason for doubt
            one.crash()
            one.start()
            began_s = world.loop.time()
            await sent_again(one, sequence)
            assert world.loop.time() - began_s >= HEARD_S, "the third may know better"
        await world.converged()
        three.start()
        one.crash()
        one.start()
        began_s = world.loop.time()
        await sent_again(one, 4)
        assert world.loop.time() - began_s < 1.0
        await world.converged()
        assert await two.value("c", COUNTER) == 4

    World().run(story)
