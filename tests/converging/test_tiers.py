"""The second tier by itself: what is written anywhere arrives everywhere, in whatever way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from quorate.base.crdt_frames import (
    CRDT_WATCH,
    Contains,
    CrdtWrite,
    Names,
    Observe,
    Position,
    Rights,
    Value,
    WatchCrdt,
)
from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Enable,
    Increment,
    KindTag,
    Remove,
    Transfer,
    Update,
)
from quorate.base.frames import Happened, Watch
from quorate.consensus.membership import Membership
from quorate.crdt.dots import epoch_of
from quorate.errors import (
    InsufficientRightsError,
    QuorateError,
    SequenceError,
    StorageError,
    TypeMismatchError,
    UnavailableError,
)
from quorate.replication.converging.committing import Arrived, Commit
from quorate.replication.converging.view import ELEMENTS
from quorate.replication.transport import CrdtKnown, CrdtRecord
from tests.converging.tiers import World

SET, COUNTER, BOUNDED = KindTag.OR_SET, KindTag.PN_COUNTER, KindTag.BOUNDED_COUNTER
REGISTER, MAP, FLAG = KindTag.LWW_REGISTER, KindTag.OR_MAP, KindTag.ENABLE_WINS_FLAG


def test_what_one_writes_all_get() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await one.write("s", SET, Add("a"), Add("b"))
        await two.write("c", COUNTER, Increment(3))
        await three.write("r", REGISTER, Assign({"x": 1}))
        await two.write("f", FLAG, Enable())
        await one.write("m", MAP, Update("k", COUNTER, Increment(2)), Update("l", SET, Add(1)))
        await world.converged()
        for node in (one, two, three):
            answers, _ = await node.ask(
                Value("s", SET),
                Value("c", COUNTER),
                Value("r", REGISTER),
                Value("f", FLAG),
                Value("m", MAP),
                Value("m", MAP, (("l", SET),)),
                Contains("s", SET, "b"),
                Contains("m", MAP, "z"),
                Names(),
            )
            assert answers == [
                [["a", "b"], b""],
                3,
                {"x": 1},
                True,
                [[["k", COUNTER, 2], ["l", SET, None]], b""],
                [[1], b""],
                True,
                False,
                [
                    [
                        ["c", [COUNTER]],
                        ["f", [FLAG]],
                        ["m", [MAP]],
                        ["r", [REGISTER]],
                        ["s", [SET]],
                    ],
                    b"",
                ],
            ]
        assert world.loop.time() < 1.0

    World().run(story)


def test_a_node_cut_off_takes_writes_and_all_are_there_after_healing() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await one.write("s", SET, Add("x"))
        await world.converged()
        world.separate((1,), (2, 3))
        await one.write("s", SET, Remove("x"), Add("of one"))
        await two.write("s", SET, Add("x"), Add("of two"))  # at the same time: the add wins
        await one.write("c", COUNTER, Increment(5))
        await three.write("c", COUNTER, Decrement(2))
        assert await one.value("s", SET) == [["of one"], b""]
        world.heal()
        await world.converged()
        assert await three.value("s", SET) == [["x", "of one", "of two"], b""]
        assert await three.value("c", COUNTER) == 3

    World().run(story)


def test_nodes_that_lack_each_others_writes_are_behind_each_other() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        await world.converged()
        world.lets_through = lambda _from, _to, frame: not isinstance(frame, CrdtRecord)
        await asyncio.gather(one.write("s", SET, Add(1)), two.write("s", SET, Add(2)))
        await asyncio.sleep(2)
        for node, other in ((one, "2"), (two, "1")):
            assert node.tier is not None
            assert node.tier.describe()["peers_behind"][other] == 1

    World().run(story)


@pytest.mark.parametrize("level", ["quorum", "strong"])
def test_a_write_says_who_has_not_confirmed_it(level: str) -> None:
    async def story(world: World) -> None:
        one, _two, three = world.nodes.values()
        written = await one.write("c", COUNTER, Increment(), level=level)
        assert written.unconfirmed == ()
        holders = [n for n in world.nodes.values() if n.engine.covers(marks(written.position))]
        assert len(holders) >= (2 if level == "quorum" else 3)
        world.separate((1, 2), (3,))
        written = await one.write("c", COUNTER, Increment(), level=level)
        assert written.unconfirmed == (() if level == "quorum" else (3,))
        written = await three.write("c", COUNTER, Increment(), level=level)
        assert written.unconfirmed == (1, 2)
        world.heal()
        await world.converged()
        assert await one.value("c", COUNTER) == 3  # what was not confirmed was not lost

    World().run(story)


def marks(position: Position) -> dict[int, int]:
    return {mark.member << 32 | mark.epoch: mark.sequence for mark in position.marks}


def test_who_is_asked_is_what_the_membership_says_now() -> None:
    async def story(world: World) -> None:
        one = world.nodes[1]
        world.separate((1,), (2, 3))
        assert (await one.write("c", COUNTER, Increment(), level="quorum")).unconfirmed == (2, 3)
        joint = msgspec.structs.replace(world.membership, voters=(1,), voters_old=(1, 2, 3))
        world.membership = joint
        assert (await one.write("c", COUNTER, Increment(), level="quorum")).unconfirmed == (2, 3)
        world.membership = joint.without_old()
        assert (await one.write("c", COUNTER, Increment(), level="quorum")).unconfirmed == ()

    World().run(story)


def test_before_others_vote_they_have_what_a_majority_confirmed() -> None:
    async def story(world: World) -> None:
        one, two, three, four = world.nodes.values()
        world.membership = Membership((1, 2, 3), learners=(4,))
        await four.write("s", SET, Add("begin a life"))
        await world.converged()
        world.separate((1, 2), (3, 4))
        written = await one.write("c", COUNTER, Increment(), level="quorum")
        assert written.unconfirmed == ()
        with pytest.raises(UnavailableError, match=r"\[3, 4\], who are to vote"):
            await two.tier.levels.hand_over((2, 3, 4), 1.0)  # else 3 and 4 were a quorum
        await two.tier.levels.hand_over((1, 2, 3), 1.0)
        world.heal()
        await two.tier.levels.hand_over((2, 3, 4), 2.0)
        world.separate((1, 2), (3, 4))
        world.membership = Membership((2, 3, 4))
        assert await three.value("c", COUNTER, level="quorum") == 1

    World(4).run(story)


def test_a_quorum_read_sees_what_a_quorum_write_left_elsewhere() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await three.write("c", COUNTER, Increment())
        await world.converged()
        world.separate((1, 2), (3,))
        await one.write("c", COUNTER, Increment(), level="quorum")
        with pytest.raises(UnavailableError, match="answered by members"):
            await three.value("c", COUNTER, level="quorum")
        world.heal()
        world.separate((1,), (3,))  # two has it and passes it on: the author cannot
        assert await three.value("c", COUNTER, level="quorum") == 2
        with pytest.raises(UnavailableError):
            await three.value("c", COUNTER, level="strong")
        world.heal()
        assert await two.value("c", COUNTER, level="strong") == 2

    World().run(story)


def test_who_has_nothing_asks_those_who_leave_before_it_votes_alone() -> None:
    async def story(world: World) -> None:
        one, two = world.nodes.values()
        world.lets_through = lambda _from, _to, frame: isinstance(frame, CrdtKnown)
        await one.write("c", COUNTER, Increment())
        await asyncio.sleep(0.1)  # a leader has applied what was committed before it led
        with pytest.raises(UnavailableError):
            await two.tier.levels.hand_over((2,), 1.0)
        world.lets_through = lambda *_: True
        await two.tier.levels.hand_over((2,), 5.0)
        world.separate((1,), (2,))
        assert await two.value("c", COUNTER) == 1

    World(2).run(story)


def test_no_node_shows_what_was_made_on_top_of_something_without_that() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        for node in world.nodes.values():
            await node.write("lives", SET, Add(node.number))
        await world.converged()
        world.separate((1,), (3,))
        await one.write("f", FLAG, Enable())
        while not await two.value("f", FLAG):  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.01)
        began_s = world.loop.time()
        await two.write("s", SET, Add("the flag was up"))
        seen = [[], b""]
        while seen == [[], b""]:
            flag = await three.value("f", FLAG)
            seen = await three.value("s", SET)
            assert seen == [[], b""] or flag or await three.value("f", FLAG)
            await asyncio.sleep(0.005)
        assert await three.value("f", FLAG)
        assert world.loop.time() - began_s < 1.0  # asked for, not only relayed in the end
        # Nor does a write count as confirmed where it has no effect yet.
        await one.write("f", FLAG, Disable())
        while await two.value("f", FLAG):  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.01)
        await two.write("f", FLAG, Disable(), level="strong")
        assert not await three.value("f", FLAG)

    World().run(story)


def test_a_token_is_waited_for() -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        written = await one.write("s", SET, Add("a"))
        assert await three.value("s", SET, level="causal", after=written.position) == [["a"], b""]
        world.separate((1, 2), (3,))
        written = await one.write("s", SET, Add("b"))
        later = await two.write("s", SET, Add("c"), after=written.position)
        assert set(written.position.marks) <= set(later.position.marks)
        with pytest.raises(UnavailableError, match="have not arrived"):
            await three.value("s", SET, level="causal", after=later.position)
        world.heal()
        assert await three.value("s", SET, level="causal", after=later.position) == [
            ["a", "b", "c"],
            b"",
        ]
        world.index = 7
        with pytest.raises(UnavailableError, match="applied the log"):
            await three.value("s", SET, level="causal", after=Position(8))

    World().run(story)


def test_a_frame_that_comes_again_is_carried_out_once() -> None:
    async def story(world: World) -> None:
        one = world.nodes[1]
        first = one.write("c", COUNTER, Increment(), sequence=5)
        again = one.write("c", COUNTER, Increment(), sequence=5)
        await asyncio.gather(first, again)  # while the first is under way
        await one.write("c", COUNTER, Increment(), sequence=5)  # after it
        one.crash()
        one.start()
        await one.write("c", COUNTER, Increment(), sequence=5)  # after a restart
        assert await one.value("c", COUNTER) == 1
        frame = CrdtWrite(one.client, 9, 8, 3, (Update("c", COUNTER, Increment()),))
        done: asyncio.Future[Any] = world.loop.create_future()
        one.tier.write(frame, done.set_result)
        await done
        with pytest.raises(SequenceError):  # a late copy, whose answer the client had
            await one.write("c", COUNTER, Increment(), sequence=7)
        assert await one.value("c", COUNTER) == 2

    World().run(story)


def test_every_start_is_another_life() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        life = one.engine.own.actor
        old = one.image.copy()
        await one.write("s", SET, Add("b"))
        await world.converged()
        one.crash()
        one.image = old  # a backup
        one.start()
        await one.write("s", SET, Add("c"))
        assert one.engine.own.actor > life
        await world.converged()
        assert await two.value("s", SET) == [["a", "b", "c"], b""]
        assert await one.value("s", SET) == [["a", "b", "c"], b""]

    World().run(story)


def test_who_holds_folding_up_is_told() -> None:
    async def story(world: World) -> None:
        world.leader = 2
        one, two, three = world.nodes.values()
        for node in (one, two, three):
            await node.write("s", SET, Add(node.number))
        await world.converged()
        three.crash()
        one.crash()
        one.start()
        await one.write("s", SET, Add("again"))
        await asyncio.sleep(10.0)
        assert two.tier is not None
        assert two.tier.describe()["folding_waits_for"] == [3]
        three.start()
        await three.write("s", SET, Add("back"))
        await asyncio.sleep(20.0)
        assert two.tier.describe()["folding_waits_for"] == []

    World().run(story)


def test_without_the_log_a_life_begins_all_the_same_and_is_admitted_later() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        await world.converged()
        one.crash()
        world.separate((1,), (2, 3))
        one.log_reachable = False
        one.start()
        began_s = world.loop.time()
        await one.write("s", SET, Add("b"))
        assert world.loop.time() - began_s < 2.5
        assert epoch_of(one.engine.own.actor) > 100
        world.heal()
        await asyncio.sleep(2.0)
        assert await two.value("s", SET) == [["a"], b""]  # nobody knows that life
        one.log_reachable = True
        await world.converged()
        assert await two.value("s", SET) == [["a", "b"], b""]
        assert not one.engine.living.problem

    World().run(story)


def test_a_life_that_ended_before_the_log_heard_of_it_is_admitted_all_the_same() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        await world.converged()
        one.log_reachable = False
        world.separate((1,), (2, 3))
        for name in ("b", "c"):  # two lives, of which the log knows nothing
            one.crash()
            one.start()
            await one.write("s", SET, Add(name))
        one.crash()
        one.log_reachable = True
        world.heal()
        one.start()
        await one.write("s", SET, Add("d"))
        await world.converged()
        assert await two.value("s", SET) == [["a", "b", "c", "d"], b""]

    World().run(story)


def test_what_cannot_be_is_refused_and_the_rest_of_the_frame_is_not() -> None:
    async def story(world: World) -> None:
        one = world.nodes[1]
        await one.write("x", SET, Add(1))
        with pytest.raises(TypeMismatchError, match="holds ORSet"):
            await one.write("x", COUNTER, Increment())
        with pytest.raises(TypeMismatchError):
            await one.value("x", COUNTER)
        frame = CrdtWrite(
            one.client,
            50,
            49,
            3,
            (Update("x", SET, Add(2)), Update("x", SET, Increment()), Update("x", SET, Add(3))),
        )
        done: asyncio.Future[Any] = world.loop.create_future()
        one.tier.write(frame, done.set_result)
        results = (await done).results
        assert [result and result.code for result in results] == [None, "type-mismatch", None]
        assert await one.value("x", SET) == [[1, 2, 3], b""]
        for bad in (
            CrdtWrite(b"short", 51, 0, 3, frame.operations),
            CrdtWrite(one.client, 51, 51, 3, frame.operations),
            CrdtWrite(one.client, 51, 50, 9, frame.operations),
            CrdtWrite(one.client, 51, 50, 3, ()),
        ):
            with pytest.raises(QuorateError):
                one.tier.write(bad, done.set_result)

    World().run(story)


def test_what_waits_behind_a_record_that_could_not_be_joined_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record is left out rather than stop the node; those behind it do not wait for ever."""
    join, failed = Commit.join, []

    def fail_once(commit: Commit, record: Arrived) -> bool:
        if record.sequence == 2 and len(failed) < 3:
            failed.append(record)
            raise MemoryError("no room for it just now")
        return join(commit, record)

    async def story(world: World) -> None:
        for number in range(4):
            await world.nodes[1].write("s", SET, Add(number))
        await world.converged()
        assert await world.nodes[3].value("s", SET) == [[0, 1, 2, 3], b""]

    monkeypatch.setattr(Commit, "join", fail_once)
    World().run(story)
    assert len(failed) == 3


@pytest.mark.parametrize("who", ["a peer", "a client"])
def test_a_node_that_cannot_read_its_disk_stops_and_has_all_after_its_next_start(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        one, two, three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        await world.converged()

        def unreadable(table: str, _key: bytes) -> bytes | None:
            if table == ELEMENTS:
                raise StorageError("the disk failed while reading elements")
            return None

        monkeypatch.setattr(two.store, "get", unreadable)
        writing = asyncio.ensure_future(three.write("s", SET, Add("b"), Add("c")))
        if who == "a client":
            with pytest.raises(QuorateError, match="disk failed") as caught:
                await two.write("s", SET, Add("d"))
            assert not caught.value.definite
        await writing
        while not two.failures:  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.01)
        assert two.engine.stopped
        two.failures.clear()
        two.crash()
        two.start()
        await world.converged()
        values, _token = await two.value("s", SET)
        assert [each for each in values if each != "d"] == ["a", "b", "c"]

    World().run(story)


def test_a_removal_takes_what_was_observed() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("s", SET, Add("a"))
        [seen], position = await one.ask(Observe("s", SET, "a"))
        await one.write("s", SET, Add("a"))
        await two.write("s", SET, Remove("a", seen), after=position)
        await world.converged()
        assert await two.value("s", SET) == [["a"], b""]
        await two.write("s", SET, Clear())
        assert await two.value("s", SET) == [[], b""]

    World().run(story)


def test_rights_of_a_bounded_counter_move() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        await one.write("stock", BOUNDED, Increment(10))
        await two.write("s", SET, Add("begin a life"))
        await world.converged()
        with pytest.raises(InsufficientRightsError):
            await two.write("stock", BOUNDED, Decrement(1))
        [[here, shares]], _ = await two.ask(Rights("stock"))
        assert here == 0
        member, epoch, _held = next(share for share in shares if share[0] == 2)
        await one.write("stock", BOUNDED, Transfer(member, epoch, 4))
        await world.converged()
        await two.write("stock", BOUNDED, Decrement(4))
        await world.converged()
        assert await one.value("stock", BOUNDED) == 6

    World().run(story)


def test_who_watches_hears_of_changes_here_and_elsewhere() -> None:
    async def story(world: World) -> None:
        one, two, _three = world.nodes.values()
        heard: list[Any] = []
        request = msgspec.Raw(msgspec.msgpack.encode(WatchCrdt("s")))
        watchers = one.tier.watchers
        feed = watchers.open(
            Watch(1, CRDT_WATCH, request), lambda frame: heard.append(frame) or True
        )
        await one.write("s", SET, Add(1))
        await asyncio.sleep(0.05)
        await two.write("s", SET, Add(2))
        await two.write("other", SET, Add(2))
        await world.converged()
        await asyncio.sleep(0.05)
        assert len([frame for frame in heard if isinstance(frame, Happened)]) == 2
        watchers.close(feed)
        assert not len(watchers)

    World().run(story)
