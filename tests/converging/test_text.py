"""What a node answers about large data: texts page by page, and no frame that outgrows all."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from quorate.base.crdt_frames import CrdtRead, Value
from quorate.base.crdt_operations import Assign, Edit, KindTag, Update
from quorate.base.levels import LEVELS
from quorate.base.limits import FRAME_BYTES_MAX, MIB
from tests.converging.tiers import World

TEXT, REGISTER, MAP = KindTag.TEXT, KindTag.LWW_REGISTER, KindTag.OR_MAP


def test_a_text_comes_page_by_page_and_what_is_merged_stands_behind_it() -> None:
    async def story(world: World) -> None:
        node = world.nodes[1]
        large = [bytes((number,)) * (MIB - 100) for number in (1, 2, 3)]
        for update in large:
            await node.write("t", TEXT, Edit(update))
        (answer,), _ = await node.ask(Value("t", TEXT))
        first, rest = answer
        assert [update for _name, update in first] == large[:2]
        names = tuple(name for name, _update in first)
        await node.write("t", TEXT, Edit(b"merged", names))
        (answer,), _ = await node.ask(Value("t", TEXT, (), rest))
        assert [update for _name, update in answer[0]] == [large[2], b"merged"]
        assert answer[1] == b""
        await node.write("m", MAP, Update("k", TEXT, Edit(b"u")))
        (page, text), _ = await node.ask(Value("m", MAP), Value("m", MAP, (("k", TEXT),)))
        assert page == [[["k", TEXT, None]], b""]
        assert [update for _name, update in text[0]] == [b"u"]

    World(1).run(story)


def test_answers_that_do_not_fit_into_a_frame_are_asked_for_again() -> None:
    async def story(world: World) -> None:
        node = world.nodes[1]
        await node.write("r", REGISTER, Assign("x" * (MIB - 100)))
        told: list[Any] = []
        frame = CrdtRead(1, LEVELS.index("eventual"), (Value("r", REGISTER),) * 30)
        assert node.tier is not None
        node.tier.read(frame, told.append)
        await asyncio.sleep(1)
        assert len(told[0].results) < FRAME_BYTES_MAX
        results = msgspec.msgpack.decode(told[0].results)
        fitting = [len(each) for each in results].index(2)
        assert fitting > 1
        assert all(each[0] == "limit-exceeded" for each in results[fitting:])
        assert len(results) == 30

    World(1).run(story)
