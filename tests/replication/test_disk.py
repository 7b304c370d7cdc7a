"""The log's writer with a disk that finishes when it is told to."""

from __future__ import annotations

import asyncio
import threading

import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState, HeartbeatReply
from quorate.consensus.output import Persist
from quorate.errors import DiskFullError, InvariantViolationError, StorageError
from quorate.replication import disk as module
from quorate.replication.disk import DiskThread, Held, LogWriter, run_job
from quorate.storage.memory_log import MemoryLogStore
from tests.replication.driving import ManualRunner, entry, virtually


class Desk:
    def __init__(self) -> None:
        self.log = MemoryLogStore()
        self.log.recover()
        self.calls: list[tuple[object, ...]] = []
        self.runner = ManualRunner()
        self.durable: list[int] = []
        self.failures: list[BaseException] = []
        self.full = 0
        self.writer = LogWriter(
            self,  # type: ignore[arg-type]
            self.runner,
            on_durable=self.durable.append,
            on_failure=self.failures.append,
            on_disk_full=self._on_full,
        )
        self.id = 0
        self.full_next = ""

    def _on_full(self) -> None:
        self.full += 1

    def append(self, entries: list[Entry], hard_state: HardState) -> None:
        self.calls.append(("append", [each.index for each in entries], hard_state.term))
        self.log.append(entries, hard_state)

    def reset(self, floor: EntryId, hard_state: HardState) -> None:
        self._full("reset")
        self.calls.append(("reset", floor.index))
        self.log.reset(floor, hard_state)

    def swap(self) -> None:
        self._full("swap")
        self.calls.append(("swap",))

    def _full(self, what: str) -> None:
        if self.full_next == what:
            self.full_next = ""
            raise DiskFullError("full")

    def write(self, *indexes: int, term: int = 1, reset: int = 0, size: int = 0) -> None:
        self.id += 1
        hard = HardState(Term(term), NodeId(0), LogIndex(0))
        if reset:
            floor = EntryId(LogIndex(reset), Term(1))
            self.writer.write_reset(Persist(self.id, hard, (), floor), self.swap)
            return
        entries = tuple(entry(index, term, b"x" * size) for index in indexes)
        self.writer.write(Persist(self.id, hard, entries))


def test_what_piles_up_during_a_write_shares_the_next() -> None:
    desk = Desk()
    desk.write(1)
    desk.write(2, 3)
    desk.write(term=2)
    desk.write(4, term=2)
    desk.runner.step()
    assert desk.durable == [1]
    assert desk.writer.durable_id == 1
    desk.runner.step()
    assert desk.durable == [1, 4]
    assert desk.calls == [("append", [1], 1), ("append", [2, 3, 4], 2)]
    assert desk.writer.idle


def test_an_overwrite_is_a_write_of_its_own() -> None:
    desk = Desk()
    desk.write(1, 2, 3)
    for indexes in ((4,), (3, 4), (5,), (2,)):
        desk.write(*indexes)
    desk.runner.drain()
    assert [call[1] for call in desk.calls] == [[1, 2, 3], [4], [3, 4, 5], [2]]
    assert desk.durable == [1, 2, 4, 5]


def test_a_long_queue_is_not_one_long_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES_MAX", 100)
    desk = Desk()
    for index in range(1, 8):
        desk.write(index, size=60)
    desk.runner.drain()
    assert [call[1] for call in desk.calls] == [[1], [2, 3], [4, 5], [6, 7]]


def test_a_reset_stands_between_the_writes_before_and_after_it() -> None:
    desk = Desk()
    desk.write(1)
    desk.write(2)
    desk.write(reset=50)
    desk.write(51)
    desk.write(reset=60)
    desk.write(61)
    desk.runner.drain()
    expected = [("append", [1], 1), ("append", [2], 1), ("swap",), ("reset", 50)]
    expected += [("append", [51], 1), ("swap",), ("reset", 60), ("append", [61], 1)]
    assert desk.calls == expected
    assert desk.durable == [1, 2, 3, 4, 5, 6]


def test_a_reset_without_a_swap_is_a_bug_and_so_is_the_reverse() -> None:
    desk = Desk()
    hard = HardState(Term(1), NodeId(0), LogIndex(0))
    with pytest.raises(InvariantViolationError):
        desk.writer.write(Persist(1, hard, (), EntryId(LogIndex(5), Term(1))))
    with pytest.raises(InvariantViolationError):
        desk.writer.write_reset(Persist(1, hard), desk.swap)


def test_a_full_disk_is_tried_again_and_keeps_the_order() -> None:
    async def main() -> None:
        desk = Desk()
        desk.write(1)
        desk.write(2)
        for _ in range(3):
            desk.runner.error = DiskFullError("full")
            desk.runner.step()
            assert not desk.runner.jobs
            await asyncio.sleep(module.DISK_FULL_RETRY_S + 0.01)
        assert (desk.full, desk.durable) == (3, [])
        desk.runner.drain()
        assert desk.durable == [1, 2]
        assert [call[1] for call in desk.calls] == [[1], [2]]

    virtually(main())


@pytest.mark.parametrize("at", ["swap", "reset"])
def test_a_disk_that_fills_up_during_an_install_is_waited_out(at: str) -> None:
    async def main() -> None:
        desk = Desk()
        desk.full_next = at
        desk.write(reset=50)
        desk.runner.step()
        assert (desk.full, desk.durable) == (1, [])
        await asyncio.sleep(module.DISK_FULL_RETRY_S + 0.01)
        desk.runner.drain()
        assert desk.calls == [("swap",), ("reset", 50)]  # each once
        assert desk.durable == [1]

    virtually(main())


def test_after_a_failure_nothing_is_written_or_reported() -> None:
    desk = Desk()
    desk.write(1)
    desk.write(2)
    desk.runner.error = StorageError("fsync")
    desk.runner.step()
    assert [str(error) for error in desk.failures] == ["fsync"]
    desk.write(3)
    assert not desk.runner.jobs
    assert (desk.durable, desk.writer.durable_id) == ([], 0)


def test_a_stopped_writer_reports_nothing_of_what_is_under_way() -> None:
    async def main() -> None:
        desk = Desk()
        desk.write(1)
        desk.write(2)
        report = desk.runner.work()
        desk.writer.stop()
        report()
        assert (desk.durable, list(desk.runner.jobs)) == ([], [])
        desk.runner.error = DiskFullError("full")
        await asyncio.sleep(1)
        assert not desk.runner.jobs

    virtually(main())


def test_held_messages_leave_in_order_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 5)
    held = Held()
    for at in range(1, 9):
        message = HeartbeatReply(
            term=Term(1), sender=NodeId(1), target=NodeId(2), round=at, verified=LogIndex(0),
            sticky=False,
        )  # fmt: skip
        held.add(at, [message])
    assert [message.round for message in held.release(6)] == [4, 5, 6]  # type: ignore[union-attr]
    assert [message.round for message in held.release(99)] == [7, 8]  # type: ignore[union-attr]
    assert held.dropped_count == 3


async def test_a_thread_runs_jobs_in_order_and_reports_on_the_loop() -> None:
    loop = asyncio.get_running_loop()
    thread = DiskThread("test", loop)
    seen: list[object] = []
    ended = asyncio.Event()

    def fails() -> None:
        raise StorageError("no")

    thread.run(threading.get_ident, lambda result, _: seen.append(result))
    thread.run(fails, lambda _, error: seen.append(str(error)))
    thread.run(lambda: 7, lambda result, _: (seen.append(result), ended.set()))
    await ended.wait()
    assert seen[0] != threading.get_ident()
    assert seen[1:] == ["no", 7]
    assert await run_job(thread, lambda: 8) == 8
    with pytest.raises(StorageError):
        await run_job(thread, fails)
    gate = threading.Event()
    waiting = loop.create_task(run_job(thread, gate.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    assert await run_job(thread, lambda: 9) == 9  # the cancelled one does not disturb
    await loop.run_in_executor(None, thread.stop)
