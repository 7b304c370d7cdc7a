"""A leader's state on its way to a member, through a channel that the test holds in its hands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.membership import Membership
from quorate.consensus.messages import NUMBER_MAX, EntryId
from quorate.errors import DiskFullError, StorageError, StoreCorruptionError, UnavailableError
from quorate.replication import snapshots as module
from quorate.replication.checkpoints import Checkpointer
from quorate.replication.recovery import encode_saved_membership
from quorate.replication.snapshots import (
    SnapshotBegin,
    SnapshotData,
    SnapshotEnd,
    SnapshotFrame,
    SnapshotReceiver,
    SnapshotResult,
    SnapshotResume,
    SnapshotSender,
)
from quorate.storage.interfaces import SnapshotChunk
from tests.replication.driving import ME, THREE, TWO, Rig, batch_entry, hit, three, turns, virtually
from tests.replication.fake_cluster import MemoryChannel


class End(Rig):
    """A member with prompt disks, its checkpointer, and both sides of snapshots."""

    def __init__(self, me: NodeId = ME) -> None:
        super().__init__(me=me, prompt=True)
        self.checkpointer = Checkpointer(
            self.replica,
            log=self.log,
            store=self.store,
            meta=self.recovered.meta,
            store_runner=self.reader,
            log_runner=self.disk,
            interval_bytes=10**9,
            on_disk_full=lambda reason: None,  # noqa: ARG005
        )
        self.receiver = SnapshotReceiver(
            self.replica, self.checkpointer, self.store, self.reader, self.failures.append
        )
        self.replica.snapshot_sent = self._sent  # type: ignore[method-assign]
        self.reports: list[tuple[int, int, bool]] = []

    def _sent(self, node: NodeId, index: LogIndex, *, ok: bool) -> None:
        self.reports.append((node, index, ok))


class Wire(MemoryChannel):
    """Breaks after *frames* of what the leader sends; *touch* may change a frame."""

    def __init__(self) -> None:
        super().__init__(Random(1))
        self.left = 10**9
        self.touch: Callable[[SnapshotFrame], SnapshotFrame] = lambda frame: frame
        self.passed: list[SnapshotFrame] = []

    async def send(self, frame: SnapshotFrame) -> None:
        if self.left == 0:
            self.close()
        self.left -= 1
        self.passed.append(frame)
        await super().send(self.touch(frame))


class Pair:
    """A leader with a checkpoint of *hits*, and a member that has nothing of it."""

    def __init__(self) -> None:
        self.leader, self.member = End(), End(TWO)
        self.wires: list[Wire] = []
        self.prepare: Callable[[Wire], None] = lambda wire: None  # noqa: ARG005
        self.served: list[asyncio.Task[None]] = []
        leader = self.leader
        self.sender = SnapshotSender(
            leader.replica, leader.checkpointer, leader.store, leader.reader, self._dial, 10**6
        )

    async def begin(self, hits: int = 60) -> None:
        await self.leader.lead()
        for at in range(0, hits, 20):
            self.leader.submit(*[f"{at + each:04}" for each in range(20)])
            await turns()
            self.leader.ack(self.leader.state.log.last_index)
            await turns()
        await self.leader.checkpointer.checkpoint()
        self.member.append(prev=(1, 1), term=self.term, sender=1)

    @property
    def term(self) -> int:
        term: int = self.leader.state.term
        return term

    @property
    def index(self) -> int:
        meta = self.leader.store.meta()
        assert meta is not None
        return meta.applied.index

    async def _dial(self, node: NodeId) -> Wire:
        assert node == TWO
        wire = Wire()
        self.wires.append(wire)
        self.prepare(wire)
        loop = asyncio.get_running_loop()
        self.served.append(loop.create_task(self.member.receiver.serve(wire.pair(), ME)))
        return wire

    async def send(self) -> tuple[int, int, bool]:
        self.sender.request(TWO)
        self.sender.request(TWO)  # one at a time
        assert self.sender.active == 1
        await asyncio.gather(*self.sender._tasks.values())
        await asyncio.gather(*self.served)
        assert self.sender.active == 0
        return self.leader.reports.pop()

    def check_same(self) -> None:
        assert self.member.replica.ready
        assert self.member.machines.state_hash == self.leader.machines.state_hash
        assert self.member.tally.count == self.leader.tally.count
        meta = self.member.store.meta()
        assert meta is not None
        assert meta.applied == meta.installed
        assert self.member.state.log.floor == meta.applied
        assert not self.member.failures

    def frames(self, kind: type[Any]) -> list[int]:
        """How many of *kind* went over each wire."""
        return [sum(isinstance(each, kind) for each in wire.passed) for wire in self.wires]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)


def test_the_state_arrives_and_the_member_goes_on_from_it() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        assert await pair.send() == (TWO, pair.index, True)
        pair.check_same()
        assert pair.sender.sent_count == pair.member.receiver.installed_count == 1
        assert pair.frames(SnapshotData)[0] > 5
        index, term = pair.index, pair.term
        pair.member.append(
            batch_entry(index + 1, term, hit("after")), prev=(index, term), term=term,
            commit=index + 1, sender=1,
        )  # fmt: skip
        await pair.member.settle()
        assert pair.member.tally.count == pair.leader.tally.count + 1

    virtually(main())


def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        breaks = iter((0, 4, 5))
        pair.prepare = lambda wire: setattr(wire, "left", next(breaks, 10**9))
        assert await pair.send() == (TWO, pair.index, True)
        pair.check_same()
        sent = pair.frames(SnapshotData)
        assert len(sent) == 4
        keys = [
            record[0]
            for wire in pair.wires
            for frame in wire.passed
            if isinstance(frame, SnapshotData)
            for record in msgspec.msgpack.decode(frame.chunk, type=SnapshotChunk).records
        ]
        assert len(keys) < 60 + 3 * 12  # only what broke on its way comes twice

    virtually(main())


def test_a_member_that_cannot_be_reached_is_given_up_and_looked_at_afresh() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        tries = []

        async def dial(_node: NodeId) -> Wire:
            tries.append(asyncio.get_running_loop().time())
            raise UnavailableError("down")

        pair.sender._dial = dial
        began_s = asyncio.get_running_loop().time()
        assert await pair.send() == (TWO, pair.index, False)
        assert len(tries) == module.TRIES_MAX
        pause_s = asyncio.get_running_loop().time() - tries[-1]
        assert pause_s >= module.FAILED_PAUSE_S
        assert tries[-1] - began_s > 4
        assert not pair.leader.checkpointer._holds

    virtually(main())


def damage(frame: SnapshotFrame) -> SnapshotFrame:
    """A record says that its tag was hit twice."""
    if isinstance(frame, SnapshotData) and b"0030" in frame.chunk:
        return SnapshotData(frame.chunk.replace(b"\x92\x01", b"\x92\x02"), frame.checksum)
    return frame


def lose(frame: SnapshotFrame) -> SnapshotFrame:
    """An empty chunk in place of one: its checksum is right."""
    if isinstance(frame, SnapshotData) and b"0059" in frame.chunk:
        return SnapshotEnd()
    return frame


def claim_more(frame: SnapshotFrame) -> SnapshotFrame:
    if isinstance(frame, SnapshotBegin):
        return msgspec.structs.replace(frame, record_count=frame.record_count + 1)
    return frame


def other_table(frame: SnapshotFrame) -> SnapshotFrame:
    if isinstance(frame, SnapshotData):
        chunk = msgspec.msgpack.encode(SnapshotChunk("../x", ((b"", b""),), b""))
        return SnapshotData(chunk, module.crc32(chunk))
    return frame


def no_chunk(frame: SnapshotFrame) -> SnapshotFrame:
    return (
        SnapshotData(b"\xc1", module.crc32(b"\xc1")) if isinstance(frame, SnapshotData) else frame
    )


@pytest.mark.parametrize("touch", [damage, lose, claim_more, other_table, no_chunk])
def test_a_damaged_or_incomplete_snapshot_is_refused_and_comes_anew(
    touch: Callable[[SnapshotFrame], SnapshotFrame],
) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        pair.prepare = lambda wire: setattr(wire, "touch", touch)
        before = pair.member.machines.state_hash
        assert await pair.send() == (TWO, pair.index, False)
        assert pair.member.machines.state_hash == before
        assert pair.member.state.log.floor.index == 0
        assert pair.member.store.meta() is None
        assert not pair.member.failures
        pair.prepare = lambda wire: None  # noqa: ARG005
        assert (await pair.send())[2]
        pair.check_same()

    virtually(main())


def begin_frame(pair: Pair, **changes: Any) -> SnapshotBegin:
    meta = pair.leader.store.meta()
    assert meta is not None
    parts = {"term": Term(pair.term), "sender": ME, "record_count": 60, **changes}
    inner = {name: parts.pop(name) for name in list(parts) if name in meta.__struct_fields__}
    return SnapshotBegin(meta=msgspec.structs.replace(meta, **inner), **parts)


STRANGER = Membership(voters=(NodeId(0),))
WRONG: list[dict[str, Any]] = [
    {"sender": THREE},
    {"sender": TWO},
    {"term": Term(0)},
    {"term": Term(NUMBER_MAX + 1)},
    {"applied": EntryId(LogIndex(-5), Term(1))},
    {"applied": EntryId(LogIndex(NUMBER_MAX + 1), Term(1))},
    {"applied": EntryId(LogIndex(50), Term(10**6))},
    {"applied": EntryId(LogIndex(50), Term(0))},
    {"record_count": -1},
    {"record_count": 2**64},
    {"time_ms": -1},
    {"time_ms": 2**63},
    {"state_hash": b""},
    {"format_version": 2},
    {"membership": b""},
    {"membership": encode_saved_membership(LogIndex(1), STRANGER)},
    {"membership": encode_saved_membership(LogIndex(10**6), three())},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_an_announcement_that_cannot_be_true_goes_no_further(changes: dict[str, Any]) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        here = MemoryChannel(Random(1))
        sender = changes.get("sender", ME) if changes.get("sender") == TWO else ME
        serving = asyncio.get_running_loop().create_task(
            pair.member.receiver.serve(here.pair(), sender)
        )
        await here.send(begin_frame(pair, **changes))
        with pytest.raises(UnavailableError):
            await here.receive()
        await serving
        assert not pair.member.failures
        assert pair.member.state.term == pair.term
        assert (await pair.send())[2]  # nothing of it is left

    virtually(main())


@pytest.mark.parametrize("frame", [SnapshotEnd(), SnapshotResume(b""), SnapshotResult(ok=True)])
def test_a_stream_that_does_not_keep_to_the_order_is_closed(frame: SnapshotFrame) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        for frames in ([frame], [begin_frame(pair), SnapshotResume(b"")]):
            here = MemoryChannel(Random(1))
            serving = asyncio.get_running_loop().create_task(
                pair.member.receiver.serve(here.pair(), ME)
            )
            for each in frames:
                await here.send(each)
            await serving
            assert here.closed
        assert not pair.member.failures

    virtually(main())


def test_a_deposed_leaders_stream_is_refused_at_the_start_and_at_the_end() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        pair.member.heartbeat(pair.term + 1, sender=3)
        assert await pair.send() == (TWO, pair.index, False)
        assert pair.frames(SnapshotData) == [0]

        pair = Pair()
        await pair.begin()

        def at_the_end(frame: SnapshotFrame) -> SnapshotFrame:
            if isinstance(frame, SnapshotEnd):
                pair.member.heartbeat(pair.term + 1, sender=3)
            return frame

        pair.prepare = lambda wire: setattr(wire, "touch", at_the_end)
        assert await pair.send() == (TWO, pair.index, False)
        assert pair.member.store.meta() is None
        assert pair.member.replica.ready

    virtually(main())


def test_a_leader_that_resigns_stops_sending() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()

        def resign(frame: SnapshotFrame) -> SnapshotFrame:
            if isinstance(frame, SnapshotData):
                pair.leader.depose(sender=3)
            return frame

        pair.prepare = lambda wire: setattr(wire, "touch", resign)
        assert await pair.send() == (TWO, pair.index, False)
        assert pair.frames(SnapshotData) == [1]

    virtually(main())


def test_what_is_not_needed_any_more_is_not_sent() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        entries = pair.leader.log.read(LogIndex(2), LogIndex(pair.index), 10**9)
        pair.member.append(*entries, prev=(1, 1), term=pair.term, commit=pair.index, sender=1)
        await turns(20)
        assert await pair.send() == (TWO, pair.index, True)
        assert pair.frames(SnapshotData) == [0]
        assert pair.member.receiver.installed_count == 0

    virtually(main())


def test_a_snapshot_overtaken_by_the_log_while_it_came_is_not_installed() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        entries = pair.leader.log.read(LogIndex(2), LogIndex(pair.index), 10**9)

        def overtake(frame: SnapshotFrame) -> SnapshotFrame:
            if isinstance(frame, SnapshotEnd):
                pair.member.append(
                    *entries, prev=(1, 1), term=pair.term, commit=pair.index, sender=1
                )
            return frame

        pair.prepare = lambda wire: setattr(wire, "touch", overtake)
        assert await pair.send() == (TWO, pair.index, True)
        await pair.member.settle()
        assert pair.member.receiver.installed_count == 0
        assert pair.member.machines.state_hash == pair.leader.machines.state_hash
        assert pair.member.state.log.floor.index == 0

    virtually(main())


def test_a_newer_stream_takes_over_from_one_that_hangs() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        old = MemoryChannel(Random(1))
        hanging = asyncio.get_running_loop().create_task(pair.member.receiver.serve(old.pair(), ME))
        await old.send(begin_frame(pair))
        assert isinstance(await old.receive(), SnapshotResume)
        assert (await pair.send())[2]
        await hanging
        assert old.closed
        pair.check_same()

    virtually(main())


def test_a_stream_of_an_earlier_term_does_not_take_over() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        loop = asyncio.get_running_loop()
        new, old = MemoryChannel(Random(1)), MemoryChannel(Random(1))
        serving = [loop.create_task(pair.member.receiver.serve(new.pair(), THREE))]
        await new.send(begin_frame(pair, term=Term(pair.term + 5), sender=THREE))
        assert isinstance(await new.receive(), SnapshotResume)
        serving.append(loop.create_task(pair.member.receiver.serve(old.pair(), ME)))
        await old.send(begin_frame(pair))
        assert isinstance(await old.receive(), SnapshotResult)
        assert not new.closed
        new.close()
        await asyncio.gather(*serving)

    virtually(main())


def test_the_pace_is_kept() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        pair.sender._bytes_per_s = 1000
        began_s = asyncio.get_running_loop().time()
        assert (await pair.send())[2]
        size = sum(
            len(frame.chunk) for frame in pair.wires[0].passed if isinstance(frame, SnapshotData)
        )
        took_s = asyncio.get_running_loop().time() - began_s
        assert size / 1000 - 0.1 < took_s < size / 1000 + 0.5

    virtually(main())


def test_a_newer_machines_snapshot_is_refused_before_it_replaces_anything() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        here = MemoryChannel(Random(1))
        serving = asyncio.get_running_loop().create_task(
            pair.member.receiver.serve(here.pair(), ME)
        )
        await here.send(begin_frame(pair, machine_versions={"tally": 2}))
        answer = await here.receive()
        assert isinstance(answer, SnapshotResult)
        assert not answer.ok
        assert "update this node" in answer.message
        await serving

    virtually(main())


@pytest.mark.parametrize(
    ("error", "stops"),
    [(DiskFullError("full"), False), (StorageError("fsync"), True), (KeyError("bug"), True)],
)
def test_what_goes_wrong_here_is_told_apart(error: Exception, stops: bool) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()
        installer = pair.member.store.installer

        def failing() -> Any:
            made = installer()

            def add(_chunk: SnapshotChunk) -> None:
                raise error

            made.add = add  # type: ignore[method-assign]
            return made

        pair.member.store.installer = failing  # type: ignore[method-assign]
        pair.sender.request(TWO)
        await asyncio.sleep(0.5)
        assert bool(pair.member.failures) == stops
        await pair.sender.stop()
        assert pair.sender.active == 0

    virtually(main())


def test_a_state_that_does_not_load_stops_the_node_and_a_stop_does_not_look_like_it() -> None:
    async def main() -> None:
        for cancelled in (False, True):
            pair = Pair()
            await pair.begin()
            gate = asyncio.Event()

            def restore(_store: Any) -> Any:
                gate.set()  # noqa: B023
                yield 1
                if not cancelled:  # noqa: B023
                    raise StoreCorruptionError("damaged")
                yield 2

            pair.member.machines.restore = restore  # type: ignore[method-assign]
            pair.sender.request(TWO)
            await gate.wait()
            if cancelled:
                pair.served[0].cancel()
            await asyncio.gather(*pair.served, return_exceptions=True)
            expected = [] if cancelled else [StoreCorruptionError]
            assert [type(each) for each in pair.member.failures][:1] == expected
            await pair.sender.stop()

    virtually(main())


def test_a_damaged_own_checkpoint_stops_the_leader() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.begin()

        def damaged() -> Any:
            raise StoreCorruptionError("damaged")

        pair.leader.store.snapshot = damaged  # type: ignore[method-assign]
        pair.sender.request(TWO)
        await asyncio.sleep(2)
        assert [type(each) for each in pair.leader.failures] == [StoreCorruptionError]

    virtually(main())
