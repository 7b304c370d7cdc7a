"""Traps of repairs between replicas, each where others have been caught, each with the test that it
is not one here."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from quorate.base.crdt_operations import Add, Assign, Remove
from quorate.base.limits import KIB
from quorate.replication.converging import serving
from quorate.replication.converging.scanning import SLICE_ELEMENTS
from quorate.replication.transport import (
    CrdtElements,
    CrdtFrame,
    CrdtRecord,
)
from tests.converging.ranges import (
    REGISTER,
    SET,
    count,
    elements,
    fill,
    forget_records,
    keeps_elements,
    sessions,
    until,
)
from tests.converging.tiers import World


def test_trap_8_one_lost_record_is_sent_again() -> None:
    """Or, if it is gone by then, made up for by ranges; what came after it waits."""

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, "a")
        await world.converged()
        lost: list[int] = []

        def loses_one(_source: int, _target: int, frame: CrdtFrame) -> bool:
            if isinstance(frame, CrdtRecord) and not lost:
                lost.append(frame.sequence)
                return False
            return True

        world.lets_through = loses_one
        for cut in (False, True):
            lost.clear()
            await one.write("s", SET, Remove("a"), Add(f"b{cut}"))
            await one.write("s", SET, Add("a"), Add(f"c{cut}"))
            if cut:
                forget_records(one)
            await world.converged()
            assert len(lost) == 1
            assert sessions(two) == (int(cut), 0)
        assert await elements(two) == {"a", "bFalse", "cFalse", "bTrue", "cTrue"}

    World(2).run(story)


def test_trap_9_a_part_of_the_elements_never_comes_with_the_whole_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiny frames, and a session that breaks off after some: what is left is taken for unknown,
    not for removed, by both sides."""
    keeps_elements(monkeypatch, 1)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, *range(60))
        await world.converged()
        two.crash()
        two.wipe()
        forget_records(one, three)
        world.separate((2,), (3,))
        two.start()
        await until(lambda: count(two) >= 10)
        one.crash()
        assert two.engine.view.context.count() == 0
        await asyncio.sleep(1.0)
        world.heal()
        await two.write("s", SET, Add("mine"))
        await world.converged()
        one.start()
        await world.converged()
        assert await elements(one) == {*range(60), "mine"}

    World().run(story)


def test_trap_10_a_record_goes_once_to_each_peer_and_never_back() -> None:
    async def story(world: World) -> None:
        sent: Counter[tuple[int, int, int, int]] = Counter()

        def counts(source: int, target: int, frame: CrdtFrame) -> bool:
            if isinstance(frame, CrdtRecord):
                sent[source, target, frame.actor, frame.sequence] += 1
            return True

        world.lets_through = counts
        world.in_order = True
        for at in range(5):
            await asyncio.gather(
                *[fill(node, f"{node.number}{at}") for node in world.nodes.values()]
            )
        await world.converged()
        await asyncio.sleep(5.0)
        assert sum(sent.values()) == 5 * 4 * 5
        for (source, _target, actor, _sequence), times in sent.items():
            assert times == 1
            assert source == actor >> 32

    World(5).run(story)


def test_trap_10_in_a_ring_records_pass_each_link_in_one_direction() -> None:
    async def story(world: World) -> None:
        sent: Counter[tuple[int, int, int, int]] = Counter()

        def counts(source: int, target: int, frame: CrdtFrame) -> bool:
            if isinstance(frame, CrdtRecord):
                sent[min(source, target), max(source, target), frame.actor, frame.sequence] += 1
            return True

        world.lets_through = counts
        world.in_order = True
        for one, two in ((1, 3), (1, 4), (2, 4), (2, 5), (3, 5)):
            world.separate((one,), (two,))
        await fill(world.nodes[1], "a")
        await world.converged()
        await asyncio.sleep(5.0)
        assert max(sent.values()) == 1

    World(5).run(story)


def test_trap_17_frames_are_bounded() -> None:
    """Large values travel one by one, small ones as many as fit."""

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        for number in range(12):
            await one.write(f"r{number}", REGISTER, Assign("x" * (100 * KIB)))
        await one.write("large", REGISTER, Assign("x" * (1000 * KIB)))
        await fill(one, *range(1000))
        frames: list[list[int]] = []

        def measures(_source: int, _target: int, frame: CrdtFrame) -> bool:
            if isinstance(frame, CrdtElements):
                frames.append([len(key) + len(leaf) for key, leaf in frame.elements])
            return True

        world.lets_through = measures
        two.crash()
        two.wipe()
        forget_records(one)
        two.start()
        await world.converged()
        assert all(sum(sizes) <= 256 * KIB or len(sizes) == 1 for sizes in frames)
        assert max(map(len, frames)) == serving.ELEMENTS_MAX
        assert max(map(max, filter(None, frames))) > 1000 * KIB

    World(2).run(story)


def test_trap_20_no_turn_of_the_loop_looks_at_much(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(3000))
        await world.converged()
        world.separate((1,), (2,))
        await fill(one, *range(3000, 3100))
        forget_records(one)
        looked_at: Counter[int] = Counter()
        for node in (one, two):
            page = node.store.page

            def counts(*arguments: Any, _page: Any = page) -> Any:
                records = _page(*arguments)
                looked_at[world.loop.steps] += len(records)
                return records

            monkeypatch.setattr(node.store, "page", counts)
        world.heal()
        await until(lambda: sessions(two)[0])
        assert sum(looked_at.values()) > 6000
        assert max(looked_at.values()) <= 2 * SLICE_ELEMENTS

    World(2).run(story)
