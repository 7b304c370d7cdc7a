"""A whole replica whose disk, network and peers are played by the test."""

from __future__ import annotations

import asyncio

import pytest

from quorate.base.frames import QueryFailed, SubmitFailed
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import PeerLost, SnapshotOffered
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    EntryId,
    HardState,
    Heartbeat,
    HeartbeatReply,
    ReadIndexReply,
    ReadIndexRequest,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import SendAppend
from quorate.errors import (
    ClosedError,
    DiskFullError,
    InvariantViolationError,
    NotLeaderError,
    OutcomeUnknownError,
    ReadOnlyError,
    StorageError,
    UnavailableError,
)
from quorate.replication.batch import batch_time_ms
from quorate.replication.clock import Clock
from quorate.replication.recovery import bootstrap
from quorate.storage.memory_log import MemoryLogStore
from tests.replication.driving import (
    ME,
    TWO,
    Rig,
    Tally,
    batch_entry,
    counts,
    entry,
    hit,
    loop_clock,
    three,
    turns,
    virtually,
)

#: After so long the next entry leaves although another is on its way.
SOON_S = 0.01


def codes(rig: Rig) -> list[str]:
    return [each.code if isinstance(each, SubmitFailed) else "ok" for each in rig.answers]


# --- nothing that promises durability leaves before it is durable ---------------------------------


def test_an_append_is_acknowledged_when_its_write_has_ended_even_when_writes_merge() -> None:
    async def main() -> None:
        rig = Rig()
        rig.append(entry(2, 2), prev=(1, 1), term=2)
        rig.append(entry(3, 2), prev=(2, 2), term=2)  # these two will share one write
        rig.append(entry(4, 2), prev=(3, 2), term=2)
        assert rig.net.take(AppendReply) == []
        report = rig.disk.work()
        assert rig.net.take(AppendReply) == []  # on disk, but nobody said so yet
        report()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [2]
        assert len(rig.disk.jobs) == 1
        report = rig.disk.work()
        assert rig.net.take(AppendReply) == []
        report()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [3, 4]
        assert [e.index for e in rig.log.read(LogIndex(2), LogIndex(9), 99)] == [2, 3, 4]

    virtually(main())


def test_a_vote_leaves_after_it_is_on_disk() -> None:
    async def main() -> None:
        rig = Rig()
        ask = VoteRequest(
            term=Term(5), sender=TWO, target=ME, last_index=LogIndex(9), last_term=Term(4),
            pre=False, transfer=False,
        )  # fmt: skip
        rig.replica.receive(ask)
        rig.replica.receive(ask)
        assert rig.net.take(VoteReply) == []
        rig.disk.step()
        assert [(each.term, each.granted) for each in rig.net.take(VoteReply)] == [(5, True)] * 2

    virtually(main())


def test_a_promise_made_while_an_older_write_is_under_way_waits_for_its_own() -> None:
    async def main() -> None:
        rig = Rig()
        rig.append(entry(2, 2), prev=(1, 1), term=2)
        report = rig.disk.work()
        rig.append(entry(3, 2), prev=(2, 2), term=2)
        report()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [2]
        rig.append(prev=(3, 2), term=2)  # a probe of what is not on disk yet
        assert rig.net.take(AppendReply) == []
        rig.disk.step()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [3, 3]

    virtually(main())


def test_a_leader_counts_itself_after_its_own_fsync() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.submit("a")
        await turns()
        index = rig.state.log.last_index
        assert {each.prev_index + 1 for each in rig.net.take(AppendRequest)} == {index}
        assert rig.answers == []
        rig.disk.step()
        assert rig.answers == []  # one of three
        rig.ack(index)
        await turns()
        assert counts(rig.answers[0]) == [1]

    virtually(main())


def test_a_failed_write_stops_everything_and_promises_nothing() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.submit("a")
        await turns()
        rig.net.sent.clear()
        rig.disk.error = StorageError("fsync failed")
        rig.disk.step()
        assert codes(rig) == [OutcomeUnknownError.code]
        assert [str(error) for error in rig.failures] == ["fsync failed"]
        assert rig.replica.stopped
        rig.append(entry(2, 9), prev=(1, 1), term=9)
        await asyncio.sleep(2)
        assert rig.net.sent == []
        assert not rig.disk.jobs
        with pytest.raises(ClosedError):
            rig.submit("b")

    virtually(main())


def test_what_waits_for_a_stalled_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.replication.disk.HELD_MAX", 10)

    async def main() -> None:
        rig = Rig()
        for _ in range(50):
            rig.heartbeat(2)
        rig.disk.drain()
        assert len(rig.net.take(HeartbeatReply)) == 10

    virtually(main())


def test_a_full_disk_is_waited_out_and_makes_the_node_read_only() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.submit("a")
        await turns()
        rig.disk.error = DiskFullError("full")
        rig.disk.step()
        assert "full" in rig.replica.read_only
        with pytest.raises(ReadOnlyError):
            rig.submit("b")
        rig.submit("-b")  # it frees space
        await asyncio.sleep(0.3)
        rig.disk.drain()
        rig.ack(rig.state.log.last_index)
        await turns()
        rig.disk.drain()
        rig.ack(rig.state.log.last_index)
        await turns()
        assert codes(rig) == ["ok", "ok"]
        assert not rig.failures

    virtually(main())


# --- answers to submissions ----------------------------------------------------------------------


def test_commands_of_one_turn_share_an_entry_and_so_do_those_that_wait() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        start = rig.state.log.last_index
        for _ in range(3):
            for tag in "abc":
                rig.submit(tag)
            await turns()
        assert start < rig.state.log.last_index < start + 3  # the rest fills up
        for _ in range(3):
            rig.disk.drain()
            rig.ack(rig.state.log.last_index)
            await turns()
        assert start < rig.state.log.last_index <= start + 3
        assert [counts(each) for each in rig.answers] == [[n] for n in range(1, 10)]

    virtually(main())


def test_a_deposed_leader_refuses_what_is_queued_and_waits_for_what_is_in_the_log() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        index = rig.state.log.last_index
        for at in range(3):
            await asyncio.sleep(SOON_S)
            rig.submit(str(at))
        rig.depose()
        assert codes(rig) == [NotLeaderError.code]  # the queued one
        with pytest.raises(NotLeaderError):
            rig.submit("x")
        # The new leader has the first of the two, and overwrites the second.
        term = rig.state.term
        rig.append(entry(index + 2, term), prev=(index + 1, term - 1), term=term, commit=index + 2)
        await turns()
        assert codes(rig) == [NotLeaderError.code, "ok", NotLeaderError.code]
        assert sorted(key for key, _ in rig.tally.tags.items()) == [b"0"]

    virtually(main())


def test_an_earlier_leaderships_entries_do_not_block_the_next() -> None:
    """Term 1 proposes at 3 and 4; the leader of term 2 makes the log shorter; term 3 begins at 3
    again, below what is still waited for."""

    async def main() -> None:
        rig = Rig()
        rig.append(*[entry(at, 2) for at in range(2, 5)], prev=(1, 1), term=2)
        rig.disk.drain()
        await rig.lead(commit=False)
        for tag in "ab":
            rig.submit(tag)
            await asyncio.sleep(SOON_S)
        rig.depose()
        term = rig.state.term
        rig.append(entry(2, term), prev=(1, 1), term=term)  # truncates to 1, then appends 2
        rig.disk.drain()
        await rig.lead()
        assert rig.state.log.last_index == 3
        rig.submit("c")
        await turns()
        assert rig.state.log.last_index == 4
        rig.disk.drain()
        rig.ack(4)
        await turns()
        assert codes(rig) == ["ok"]  # c, at 4; a and b, at 6 and 7, are not decided
        for tag in "defg":
            rig.submit(tag)
            await turns()
            rig.disk.drain()
            rig.ack(rig.state.log.last_index)
            await turns()
        assert codes(rig) == ["ok", "ok", "not-leader", "ok", "not-leader", "ok", "ok"]
        assert sorted(key for key, _ in rig.tally.tags.items()) == [b"c", b"d", b"e", b"f", b"g"]

    virtually(main())


def test_stop_answers_everybody() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        for number in range(3):
            rig.query(number)
            await turns()
        for at in range(3):
            await asyncio.sleep(SOON_S)
            rig.submit(str(at))
        rig.replica.stop()
        rig.replica.stop()
        assert sorted(codes(rig)) == [ClosedError.code] + [OutcomeUnknownError.code] * 2
        assert [each.id for each in rig.reads] == [0, 1, 2]
        assert all(isinstance(each, QueryFailed) for each in rig.reads)
        rig.disk.drain()
        await asyncio.sleep(2)
        assert len(rig.answers) == 3

    virtually(main())


def test_a_broken_claim_in_the_core_stops_the_node() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.submit("a")
        await turns()
        rig.replica.receive(
            AppendReply(
                term=rig.state.term,
                sender=TWO,
                target=ME,
                ok=True,
                index=LogIndex(99),
                hint_index=LogIndex(0),
                hint_term=Term(0),
                round=0,
            )
        )
        assert isinstance(rig.failures[0], InvariantViolationError)
        assert codes(rig) == [OutcomeUnknownError.code]

    virtually(main())


def test_a_lost_connection_reported_in_the_middle_of_a_step_waits_for_its_end() -> None:
    async def main() -> None:
        rig = Rig()
        inside: list[bool] = []
        step = rig.replica.core.step

        def watched(event: object) -> object:
            if isinstance(event, PeerLost):
                inside.append(rig.replica._performing)
            return step(event)  # type: ignore[arg-type]

        rig.replica.core.step = watched  # type: ignore[assignment,method-assign]
        rig.net.on_members = lambda: rig.replica.peer_lost(NodeId(3))
        rig.replica._transport.set_members({})  # outside: at once
        assert inside == [False]
        rig.replica._performing = True
        rig.replica.peer_lost(NodeId(3))
        rig.replica._performing = False
        assert inside == [False]
        await turns()
        assert inside == [False, False]

    virtually(main())


# --- the log in the file is not always the log ----------------------------------------------------


def overwritten(last: int = 8) -> MemoryLogStore:
    """A log as a restart finds it: entry 1, then hits of term 2 that nobody committed."""
    log = MemoryLogStore()
    log.recover()
    bootstrap(log, three())
    stale = [batch_entry(at, 2, hit(f"stale{at}")) for at in range(2, last + 1)]
    log.append(stale, HardState(Term(2), NodeId(0), LogIndex(1)))
    log.close()
    return log


def test_what_was_overwritten_is_never_applied_from_the_file() -> None:
    """After a restart nothing is in memory. A new leader overwrites 5 to 8 and commits them before
    this member's own disk has written them."""

    async def main() -> None:
        rig = Rig(overwritten())
        rig.replica.start()
        fresh = [batch_entry(at, 3, hit(f"fresh{at}")) for at in range(5, 9)]
        rig.append(*fresh, prev=(4, 2), term=3, commit=8)
        await rig.settle()
        assert rig.replica.applied == 8
        expected = {b"stale2", b"stale3", b"stale4", b"fresh5", b"fresh6", b"fresh7", b"fresh8"}
        assert {key for key, _ in rig.tally.tags.items()} == expected
        assert not rig.failures
        rig.replica.stop()

    virtually(main())


def test_a_new_leader_never_sends_what_was_overwritten() -> None:
    async def main() -> None:
        rig = Rig(overwritten())
        fresh = [batch_entry(at, 3, hit(f"fresh{at}")) for at in range(5, 9)]
        rig.append(*fresh, prev=(4, 2), term=3)
        rig.disk.jobs.clear()  # a stalled disk: the file keeps the old entries for now
        sender = rig.replica._sender
        state = rig.state
        for first in (3, 5):
            order = SendAppend(
                term=state.term, sender=ME, target=TWO, prev_index=LogIndex(first - 1),
                prev_term=Term(2), last_index=LogIndex(8), commit=LogIndex(1), round=1,
            )  # fmt: skip
            sender.send(order)
        rig.reader.drain()
        sent = [e for each in rig.net.take(AppendRequest) for e in each.entries]
        assert [(e.index, e.term) for e in sent] == [
            (3, 2), (4, 2), (5, 3), (6, 3), (7, 3), (8, 3), (5, 3), (6, 3), (7, 3), (8, 3),
        ]  # fmt: skip
        assert not rig.failures

    virtually(main())


def test_memory_is_bounded_for_a_member_that_applies_slowly() -> None:
    async def main() -> None:
        rig = Rig(cache_bytes=4000)
        for at in range(2, 402):
            rig.append(batch_entry(at, 2, hit("x" * 50)), prev=(at - 1, 2 if at > 2 else 1), term=2)
            rig.disk.drain()
        cache = rig.replica._cache
        assert cache.size_bytes < 4 * 4000 + 200
        rig.heartbeat(2, commit=401)
        await rig.settle()
        assert rig.replica.applied == 401
        assert rig.tally.count == 400
        assert not rig.failures

    virtually(main())


# --- reads ---------------------------------------------------------------------------------------


def test_a_read_waits_for_its_round_and_for_apply() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.query()
        await turns()
        beats = rig.net.take(Heartbeat)
        assert {beat.target for beat in beats} == {2, 3}
        assert rig.reads == []
        rig.ack(rig.state.log.last_index)  # echoes the round
        assert counts(rig.reads[0]) == [0]
        rig.query(2, linearizable=False)
        assert counts(rig.reads[1]) == [0]

    virtually(main())


def test_reads_without_a_leader_are_given_up_after_a_while() -> None:
    async def main() -> None:
        rig = Rig()
        rig.replica.start()
        rig.query()
        await asyncio.sleep(1)
        assert rig.reads == []  # an election is shorter than that
        await asyncio.sleep(2)
        assert [each.code for each in rig.reads if isinstance(each, QueryFailed)] == [
            UnavailableError.code
        ]
        rig.replica.stop()

    virtually(main())


# --- time ----------------------------------------------------------------------------------------


def test_a_member_never_ticks_faster_than_its_clock() -> None:
    """The loop is 15 ms apart, a tick is 10 ms: two rounds are three ticks, not four."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        clock = Clock(lambda: loop.time() * 1.5, loop_clock().wall_ms)
        rig = Rig(prompt=True, clock=clock)
        rig.replica.start()
        await asyncio.sleep(1 / 1.5)
        ticks = rig.state.tick
        assert 98 <= ticks <= 100
        rig.replica.stop()

    virtually(main())


def test_a_long_pause_counts_as_a_few_ticks() -> None:
    async def main() -> None:
        now_s = [0.0]
        rig = Rig(prompt=True, clock=Clock(lambda: now_s[0], lambda: 0))
        rig.replica.start()
        now_s[0] = 100.0
        await asyncio.sleep(0.02)
        assert rig.state.tick == 5
        assert 99_000 < rig.replica.statistics().loop_lag_ms_max < 100_001
        rig.replica.stop()

    virtually(main())


def test_cluster_time_continues_from_the_last_batch_wherever_it_stands() -> None:
    async def main() -> None:
        rig = Rig()
        rig.append(batch_entry(2, 2, hit("a"), time_ms=70_000), entry(3, 2), prev=(1, 1), term=2)
        rig.disk.drain()
        await rig.lead(commit=False)
        rig.submit("b")
        await turns()
        last = rig.state.log.last_index
        proposed = rig.replica._cache.get(last)
        assert proposed is not None
        assert 70_000 <= batch_time_ms(proposed.payload) < 71_000

    virtually(main())


def test_the_leader_brings_the_time_to_machines_that_wait_for_it() -> None:
    async def main() -> None:
        rig = Rig(machines=(Tally(period_ms=300),), prompt=True)
        rig.replica.start()
        await rig.lead()
        applied = rig.replica.applied
        for _ in range(100):
            await asyncio.sleep(0.01)
            rig.ack(rig.state.log.last_index)
            rig.ack(rig.state.log.last_index, sender=3)
        assert 2 <= rig.replica.applied - applied <= 4
        assert rig.machines.time_ms > 600
        rig.replica.stop()

    virtually(main())


# --- snapshots -----------------------------------------------------------------------------------


def offer(index: int, term: int, in_term: int) -> SnapshotOffered:
    return SnapshotOffered(
        Term(in_term), TWO, EntryId(LogIndex(index), Term(term)), three(), LogIndex(1)
    )


def test_an_install_waits_for_older_writes_and_its_promise_for_the_install() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        index = rig.state.log.last_index
        rig.submit("a")
        await turns()
        rig.net.sent.clear()
        done = rig.replica.offer_snapshot(offer(50, 3, 9), lambda: order.append("swap"))
        order: list[str] = []
        assert done is not None
        assert not rig.replica.ready
        with pytest.raises(UnavailableError):
            rig.query(1, linearizable=False)
        rig.append(entry(51, 9), prev=(50, 3), term=9, commit=51)
        assert rig.net.take(AppendReply) == []
        rig.disk.step()  # the hit, written before the offer
        assert rig.log.read(LogIndex(index + 1), LogIndex(index + 1), 999)
        assert rig.net.take(AppendReply) == []
        assert order == []
        rig.disk.step()  # swap and reset
        assert order == ["swap"]
        await turns()
        assert done.done()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [50]
        rig.disk.step()
        assert [reply.index for reply in rig.net.take(AppendReply)] == [51]
        assert rig.replica.applied == 2  # nothing is applied before the state is loaded
        rig.machines._index = 50
        rig.replica.snapshot_loaded()
        await turns()
        assert rig.replica.applied == 51
        assert codes(rig) == [OutcomeUnknownError.code]  # the hit may be in the snapshot, or not

    virtually(main())


def test_a_read_is_never_answered_from_a_state_that_is_being_replaced() -> None:
    async def main() -> None:
        rig = Rig()
        rig.append(entry(2, 9), prev=(1, 1), term=9, commit=2)
        await rig.settle()
        rig.disk.drain()
        assert rig.replica.applied == 2
        rig.query()
        await turns()
        (asked,) = rig.net.take(ReadIndexRequest)
        assert rig.replica.offer_snapshot(offer(50, 3, 9), lambda: None) is not None
        rig.replica.receive(ReadIndexReply(Term(9), TWO, ME, asked.context, LogIndex(2)))
        rig.disk.drain()
        await turns()
        assert rig.reads == []  # entry 2 is applied, but the machines are in pieces
        rig.machines._index = 50
        rig.replica.snapshot_loaded()
        await turns()
        assert counts(rig.reads[0]) == [0]

    virtually(main())


def test_what_is_read_back_while_a_snapshot_is_installed_is_dropped() -> None:
    async def main() -> None:
        rig = Rig(overwritten())
        rig.heartbeat(3)
        rig.append(prev=(8, 2), term=3, commit=8)
        await turns()
        report = rig.reader.work()  # entries 1 to 8
        assert rig.replica.offer_snapshot(offer(50, 3, 9), lambda: None) is not None
        report()
        rig.disk.drain()
        rig.machines._index = 50
        rig.replica.snapshot_loaded()
        await rig.settle()
        assert (rig.replica.applied, rig.tally.count) == (50, 0)
        assert not rig.failures

    virtually(main())


def test_stopping_in_the_middle_of_an_install_tells_who_waits() -> None:
    async def main() -> None:
        rig = Rig()
        done = rig.replica.offer_snapshot(offer(50, 3, 9), lambda: None)
        assert done is not None
        rig.replica.stop()
        with pytest.raises(ClosedError):
            await done
        with pytest.raises(ClosedError):
            rig.replica.offer_snapshot(offer(60, 3, 9), lambda: None)

    virtually(main())


def test_a_snapshot_that_is_not_needed_changes_nothing() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        for stale in (offer(1, 1, rig.state.term + 1), offer(99, 1, 1)):
            assert rig.replica.offer_snapshot(stale, lambda: None) is None
            assert rig.replica.ready

    virtually(main())
