"""Sessions of repair: what comes meanwhile, what goes on meanwhile, and how they fail."""

from __future__ import annotations

import asyncio

import pytest

from quorate.base.crdt_operations import Add, Remove
from quorate.base.types import NodeId
from quorate.errors import UnavailableError
from quorate.replication.converging import engine
from quorate.replication.converging.pulling import PATIENCE_S
from quorate.replication.converging.reconciling import RELEASE_S
from quorate.replication.transport import (
    CrdtFrame,
    CrdtGone,
    CrdtRecord,
    CrdtServed,
)
from tests.converging.ranges import (
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
