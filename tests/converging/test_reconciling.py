"""Repair by ranges: a node that lacks records which nobody has any more comes to hold the same."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import Observe
from quorate.base.crdt_operations import Add, Assign, Increment, Remove
from quorate.base.types import NodeId
from quorate.crdt.context import CausalContext
from quorate.errors import UnavailableError
from quorate.replication.converging import pulling, serving
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.engine import Engine
from quorate.replication.transport import (
    CrdtFetch,
    CrdtFrame,
)
from tests.converging.ranges import (
    COUNTER,
    REGISTER,
    SET,
    count,
    elements,
    fill,
    forget_records,
    is_deaf,
    keeps_elements,
    sessions,
    until,
)
from tests.converging.tiers import Node, World


def test_a_wiped_node_gets_everything() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, *range(700))
        await two.write("c", COUNTER, Increment(3))
        await three.write("r", REGISTER, Assign({"x": 1}))
        await three.write("s", SET, Remove(5), Remove(6))
        await world.converged()
        three.crash()
        three.wipe()
        forget_records(one, two)
        three.start()
        await three.write("s", SET, Add("mine"))
        await world.converged()
        assert sessions(three) == (1, 0)
        assert await three.value("c", COUNTER) == 3
        assert await elements(three) == {*range(700), "mine"} - {5, 6}

    World().run(story)


def test_a_difference_costs_less_than_three_times_itself() -> None:
    """100 elements added and 100 removed, anywhere among 3,000."""

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        names = [f"user-{number:06}" for number in range(3000)]
        Random(7).shuffle(names)
        await fill(one, *names[:2900])
        await world.converged()
        world.separate((1,), (2,))
        await fill(one, *names[2900:])
        await one.write("s", SET, *[Remove(each) for each in names[:100]])
        forget_records(one)
        before, after = (node.image.tables["elements"].records for node in (two, one))
        changed = sorted({*before} ^ {*after})
        assert len(changed) == 200
        difference = sum(len(key) + len(before.get(key) or after[key]) for key in changed)
        world.bytes = 0
        world.heal()
        await until(lambda: sessions(two)[0])
        assert world.bytes <= 3 * difference, (world.bytes, difference)
        await world.converged()

    World(2).run(story)


def test_operations_go_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written on the side that takes over stays; what it removes does not come back; what
    the other removed, and this side adds again, is there."""
    keeps_elements(monkeypatch, 10)

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(400))
        await world.converged()
        world.separate((1,), (2,))
        await one.write("s", SET, *[Remove(each) for each in range(200)])
        await fill(one, *range(400, 500))
        forget_records(one)
        world.heal()
        for at in range(0, 400, 40):
            await until(lambda: is_deaf(two) or sessions(two)[0])
            await two.write("s", SET, Add(at), Add(f"new {at}"), Remove(at + 1))
            await asyncio.sleep(0.002)
        assert not sessions(two)[0]
        await world.converged()
        again = set(range(0, 400, 40))
        kept = {*range(200, 500)} - {each + 1 for each in again}
        assert await elements(two) == kept | again | {f"new {each}" for each in again}

    World(2).run(story)


def test_clients_have_turns_while_ranges_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranges are worked at side by side, and always one of them wants to be joined."""
    keeps_elements(monkeypatch, 5)
    monkeypatch.setattr(serving, "RANGE_ELEMENTS", 100)

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(500))
        await fill(two, "mine")
        await world.converged()
        world.separate((1,), (2,))
        await fill(one, *range(500, 2000))
        forget_records(one)
        world.heal()
        await until(lambda: count(two) > 600)
        commits = 0
        run = two.runner.run

        def counts(job: Any, done: Any) -> None:
            nonlocal commits
            commits += 1
            run(job, done)

        monkeypatch.setattr(two.runner, "run", counts)
        most = 0
        for each in range(20):
            before = commits
            await two.write("c", COUNTER, Increment(each + 1))
            most = max(most, commits - before)
        assert not sessions(two)[0]
        assert most <= 2  # after the one that was under way, one range, and then this
        await world.converged()

    World(2).run(story)


def test_what_was_taken_over_can_be_removed_as_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the session is not over, and not all accounted for."""
    keeps_elements(monkeypatch, 5)

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(300))
        two.crash()
        two.wipe()
        forget_records(one)
        two.start()
        await until(lambda: count(two) > 20)
        element = min(await elements(two))
        (token,), _ = await two.ask(Observe("s", SET, element))
        await two.write("s", SET, Remove(element, token))
        assert not sessions(two)[0]
        await world.converged()
        assert await elements(one) == {*range(300)} - {element}

    World(2).run(story)


@pytest.mark.parametrize("asked_for", ["a sketch", "elements"])
def test_answers_are_of_what_is_there_by_then(
    monkeypatch: pytest.MonkeyPatch, asked_for: str
) -> None:
    """A range grows, and what differs in it changes, between two questions about it."""
    for module in (serving, pulling):
        monkeypatch.setattr(module, "FINGERPRINTS_MAX", 250)

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(200))
        await one.write("c", COUNTER, Increment(1))
        await world.converged()
        world.separate((1,), (2,))
        await fill(one, *range(1000, 1010))
        await one.write("c", COUNTER, Increment(2))
        forget_records(one)
        changed: list[asyncio.Future[None]] = []

        def delays(_source: int, _target: int, frame: CrdtFrame) -> bool:
            if not isinstance(frame, CrdtFetch) or changed:
                return True
            if asked_for == "elements" and not frame.fingerprints:
                return True
            changed.append(asyncio.ensure_future(change()))
            return False

        async def change() -> None:
            await one.write("s", SET, Remove(1005), Remove(150))
            await one.write("c", COUNTER, Increment(4))
            if asked_for == "a sketch":
                await fill(one, *range(300, 500))

        world.lets_through = delays
        world.heal()
        await world.converged()
        assert len(changed) == 1
        assert await two.value("c", COUNTER) == 7
        assert len(await elements(two)) == 208 + 200 * (asked_for == "a sketch")

    World(2).run(story)


def test_equal_data_is_equal_in_digests() -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await asyncio.gather(fill(one, *range(50)), fill(two, *range(30, 80)))
        await world.converged()
        assert one.tier is not None
        assert two.tier is not None
        assert await one.tier.digest() == await two.tier.digest()
        world.separate((1,), (2,))
        await one.write("s", SET, Remove(3))
        assert await one.tier.digest() != await two.tier.digest()

    World(2).run(story)


def test_pulls_end_differences_that_no_record_speaks_of() -> None:
    """An element that is missing as if it had been removed: nobody notices by itself."""

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(100))
        await world.converged()
        table = two.image.tables["elements"]
        table.change(table.keys[10], None)
        assert await elements(two) < await elements(one)
        assert one.tier is not None
        assert two.tier is not None
        await two.tier.pull(NodeId(1))
        await one.tier.pull(NodeId(2))
        await world.converged()
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await two.tier.pull(NodeId(9))

    World(2).run(story)


# --- lives that were folded ---------------------------------------------------------------------


async def fold(node: Node, generation: int, retired: dict[int, int]) -> None:
    """What a fold leaves behind of lives without counters."""

    def work(here: Engine) -> Commit:
        commit = here.open()
        commit.begin_at(3 * generation)
        commit.complete(CausalContext(), {}, retired)
        return commit

    node.engine.alone(work)
    await until(lambda: node.engine.own.generation == 3 * generation)


def test_a_blank_node_gets_what_folded_lives_left() -> None:
    """No record speaks of it, and its dots count as seen by all who have folded."""

    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(20))
        await one.write("s", SET, Remove(3))
        await world.converged()
        one.crash()
        one.start()
        two.crash()
        two.wipe()
        await fold(one, 1, {1: 1})
        assert not one.engine.frontier
        two.start()
        await until(lambda: sessions(two)[0])
        assert two.engine.own.generation == 3
        assert two.engine.own.retired == {1: 1}
        assert await elements(two) == {*range(20)} - {3}
        await two.write("s", SET, Remove(4))
        await world.converged()
        assert await elements(one) == {*range(20)} - {3, 4}
        assert one.tier is not None
        await one.tier.pull(NodeId(2))

    World(2).run(story)


def test_nodes_that_folded_differently_take_over_nothing() -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await fill(one, *range(20))
        await world.converged()
        await fold(one, 1, {7: 1})
        assert one.tier is not None
        assert two.tier is not None
        for tier, other in ((one.tier, 2), (two.tier, 1)):
            with pytest.raises(UnavailableError, match="of folding"):
                await tier.pull(NodeId(other))

    World(2).run(story)


def test_what_is_on_its_way_to_the_disk_is_compared_as_well() -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        await one.write("s", SET, Add("before"))
        await world.converged()
        held: list[tuple[Any, Any]] = []
        run = two.runner.run
        two.runner.run = lambda job, done: held.append((job, done))
        await one.write("s", SET, Add("x"))
        while not held:  # noqa: ASYNC110  on virtual time a poll costs nothing
            await asyncio.sleep(0.01)
        await one.write("s", SET, Remove("x"))
        pulled = asyncio.ensure_future(two.tier.pull(NodeId(1)))
        await asyncio.sleep(0.2)
        two.runner.run = run
        for job in held:
            run(*job)
        await pulled
        await world.converged()
        assert (await two.value("s", SET))[0] == ["before"]

    World(2).run(story)
