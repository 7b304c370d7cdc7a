"""Repair by ranges: a node that lacks records which nobody has any more comes to hold the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from quorate.base.crdt_frames import Observe, Value
from quorate.base.crdt_operations import Add, Assign, Increment, KindTag, Remove
from quorate.base.limits import KIB
from quorate.base.types import NodeId
from quorate.crdt.context import CausalContext
from quorate.errors import UnavailableError
from quorate.replication.converging import engine, pulling, serving
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.pulling import PATIENCE_S
from quorate.replication.converging.reconciling import RELEASE_S
from quorate.replication.converging.scanning import SLICE_ELEMENTS
from quorate.replication.transport import (
    CrdtElements,
    CrdtFetch,
    CrdtFrame,
    CrdtGone,
    CrdtRecord,
    CrdtServed,
)
from tests.converging.tiers import Node, World

SET, COUNTER, REGISTER = KindTag.OR_SET, KindTag.PN_COUNTER, KindTag.LWW_REGISTER


def forget_records(*nodes: Node) -> None:
    """Their journals were cut: whoever lacks records has to compare ranges with them."""
    for node in nodes:
        table = node.image.tables.get("journal")
        for key in [] if table is None else list(table.keys):
            table.change(key, None)
        if node.tier is not None:
            node.engine._floors.clear()


async def fill(node: Node, *elements: object) -> None:
    for at in range(0, len(elements), 500):
        await node.write("s", SET, *[Add(each) for each in elements[at : at + 500]])


async def elements(node: Node) -> set[Any]:
    found: set[Any] = set()
    start: bytes | None = None
    while start != b"":
        (answer,), _ = await node.ask(Value("s", SET, (), start or b""))
        found |= set(answer[0])
        start = answer[1]
    return found


def count(node: Node) -> int:
    """Elements on its disk."""
    table = node.image.tables.get("elements")
    return 0 if table is None else len(table.keys)


def is_deaf(node: Node) -> bool:
    """Whether it drops records: it is taking ranges over."""
    return node.tier is not None and node.tier.disseminating.deaf


def sessions(node: Node) -> tuple[int, int]:
    """How many came to their end, and how many were given up."""
    assert node.tier is not None
    return node.tier.reconciling.done, node.tier.reconciling.given_up


async def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not true():
        assert loop.time() < end_s
        await asyncio.sleep(0.001)


def keeps_elements(patch: pytest.MonkeyPatch, elements_max: int) -> None:
    """So few elements in one frame."""
    for module in (serving, pulling):
        patch.setattr(module, "ELEMENTS_MAX", elements_max)


# --- what comes out -----------------------------------------------------------------------------


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


# --- traps of such repairs ----------------------------------------------------------------------


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


# --- records and a session ------------------------------------------------------------------------


def test_a_record_that_comes_meanwhile_brings_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that a third node added, and the server saw removed: its record comes to the
    puller when the range of that element is done."""
    keeps_elements(monkeypatch, 2)

    async def story(world: World) -> None:
        server, puller, third = world.nodes.values()
        world.separate((1, 3), (2,))
        await third.write("a", SET, Add("gone"))
        await world.converged(among=(1, 3))
        await server.write("a", SET, Remove("gone"))
        await fill(server, *range(40))
        forget_records(server)
        world.separate((1,), (3,))
        world.lets_through = lambda source, target, _: {source, target} != {2, 3}
        world.heal()
        await until(lambda: count(puller) >= 4)
        world.lets_through = lambda *_: True
        world.connect(2, 3)
        await until(lambda: sessions(puller)[0])
        assert len(await elements(puller)) == 40
        await world.converged()
        assert await puller.value("a", SET) == [[], b""]

    World().run(story)


def test_records_that_wait_when_a_session_begins_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would be joined one by one, when ranges have been compared already."""
    monkeypatch.setattr(engine, "BATCH_RECORDS", 1)

    async def story(world: World) -> None:
        server, puller, third = world.nodes.values()
        world.in_order = True
        await puller.write("s", SET, Add("mine"))
        await world.converged()
        world.separate((2,), (1, 3))
        for each in range(60):
            await fill(third, each)
        await world.converged(among=(1, 3))
        await server.write("s", SET, *[Remove(each) for each in range(60)])
        world.separate((1,), (3,))
        world.cut.discard(frozenset((2, 3)))
        world.connect(2, 3)
        await until(lambda: puller.engine._arrived)
        await until(lambda: len(next(iter(puller.engine._arrived.values()), ())) > 30)
        world.cut.discard(frozenset((1, 2)))
        world.connect(1, 2)
        assert puller.tier is not None
        await puller.tier.pull(NodeId(1))
        assert await elements(puller) == {"mine"}
        world.heal()
        await world.converged()

    World().run(story)


def test_peers_send_nothing_to_one_that_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_elements(monkeypatch, 5)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, *range(100))
        await three.write("t", SET, Add("first"))
        await world.converged()
        world.separate((1,), (2, 3))
        await fill(one, *range(100, 300))
        forget_records(one)
        world.heal()
        await until(lambda: count(two) >= 120)
        await asyncio.sleep(0.01)
        records = 0

        def counts(_source: int, target: int, frame: CrdtFrame) -> bool:
            nonlocal records
            records += target == 2 and isinstance(frame, CrdtRecord)
            return True

        world.lets_through = counts
        for each in range(10):
            await three.write("t", SET, Add(each))
        assert not sessions(two)[0]
        assert records == 0
        await world.converged()

    World().run(story)


def test_after_a_session_a_gap_in_the_journal_is_no_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records from before those that were skipped are not offered either, while some are left, or
    after a restart; a third node takes over ranges from the one that skipped them."""
    monkeypatch.setattr(engine, "DROPPED_ROWS", 1)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        for each in range(6):
            await fill(one, each)
        await world.converged()
        world.separate((3,), (1, 2))
        for each in range(6, 10):
            await fill(one, each)
        await world.converged(among=(1, 2))
        world.separate((1,), (2,))
        for each in range(10, 30):
            await fill(one, each)
        forget_records(one)
        world.cut.discard(frozenset((1, 2)))
        world.connect(1, 2)
        await until(lambda: sessions(two)[0])
        for each in range(30, 33):
            await fill(one, each)
        await world.converged(among=(1, 2))
        one.crash()
        gone: set[int] = set()

        def notes(source: int, _target: int, frame: CrdtFrame) -> bool:
            if isinstance(frame, CrdtGone):
                gone.add(source)
            if isinstance(frame, CrdtRecord) and frame.actor >> 32 == 1:
                assert three.engine.covers({frame.actor: 30})
            return True

        world.lets_through = notes
        for restart in (False, True):
            assert len(two.engine.own.floors) == 1
            if restart:
                three.crash()
                three.wipe()
                two.crash()
                two.start()
                three.start()
            gone.clear()
            world.cut.discard(frozenset((2, 3)))
            world.connect(2, 3)
            await world.converged()
            assert gone == {2}
            assert await elements(three) == {*range(33)}
        for each in range(20):
            await fill(two, each)
        assert not two.engine.own.floors

    World().run(story)


# --- sessions that fail ---------------------------------------------------------------------------


def test_a_session_without_progress_ends_and_another_peer_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeps_elements(monkeypatch, 5)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, *range(100))
        await world.converged()
        two.crash()
        two.wipe()
        forget_records(one, three)
        two.start()
        await until(lambda: count(two) >= 10)
        assert two.tier is not None
        node = two.tier.reconciling._pull.node  # type: ignore[union-attr]
        world.lets_through = lambda source, _target, frame: (
            source != node or not isinstance(frame, CrdtServed)
        )
        began_s = world.loop.time()
        await until(lambda: not two.tier.disseminating.deaf)  # type: ignore[union-attr]
        assert PATIENCE_S <= world.loop.time() - began_s <= PATIENCE_S + 1.5
        await world.converged()
        assert sessions(two)[0] == 1

    World().run(story)


def test_a_server_that_restarts_knows_no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk is older than what the session began with: to go on would remove what it lost."""
    keeps_elements(monkeypatch, 2)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(one, *range(20))
        older = one.image.copy()
        await fill(one, *range(20, 40))
        await world.converged()
        world.separate((2,), (3,))
        await two.write("s", SET, Add("mine"))
        await two.write("s", SET, Remove(0))
        await fill(one, *range(40, 60))
        await world.converged(among=(1, 3))
        forget_records(one, two, three)
        assert two.tier is not None
        pull = asyncio.ensure_future(two.tier.pull(NodeId(1)))
        await asyncio.sleep(0.012)
        one.crash()
        one.image = older
        one.start()
        with pytest.raises(UnavailableError):
            await pull
        world.heal()
        await world.converged(30.0)
        assert await elements(one) == {*range(1, 60), "mine"}

    World().run(story)


def test_what_only_the_lost_server_had_goes_on_from_who_took_it_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session breaks off because the server's disk is lost, with records that nobody else has:
    what was taken over of them spreads, and nothing that is written on top of it has to wait."""
    keeps_elements(monkeypatch, 2)

    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await fill(three, "old")
        await world.converged()
        world.separate((1,), (2, 3))
        await fill(one, *range(40))
        forget_records(one)
        world.cut.discard(frozenset((1, 2)))
        world.connect(1, 2)
        await until(lambda: count(two) >= 5)
        one.crash()
        one.wipe()
        await two.write("s", SET, Add("on top"))
        taken = await elements(two)
        assert 5 <= len(taken) < 42
        assert three.tier is not None
        with pytest.raises(UnavailableError, match="itself taking over"):
            await three.tier.pull(NodeId(2))
        marks = two.engine.position.marks
        assert [mark.sequence for mark in marks if mark.member == 1]  # a reader has seen of it
        one.start()
        world.heal()
        began_s = world.loop.time()
        await until(lambda: three.engine.covers(two.engine.frontier), 20.0)
        assert world.loop.time() - began_s >= RELEASE_S - 1
        await world.converged(20.0)
        assert await elements(one) == taken
        assert not two.engine.own.ahead

    World().run(story)


def test_nothing_is_taken_of_a_life_that_the_log_does_not_know() -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        one.log_reachable = False
        await asyncio.wait_for(fill(one, "early"), 10.0)
        assert two.tier is not None
        with pytest.raises(UnavailableError, match="has not admitted"):
            await two.tier.pull(NodeId(1))
        assert not two.leaves()
        one.log_reachable = True
        await world.converged()
        await two.tier.pull(NodeId(1))

    World(2).run(story)


# --- lives that were folded -----------------------------------------------------------------------


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
