"""Checkpoints: when, of what, and what is cut behind them."""

from __future__ import annotations

import asyncio

import pytest

from quorate.base.types import LogIndex, Term
from quorate.consensus.events import SnapshotOffered
from quorate.consensus.messages import EntryId
from quorate.errors import ClosedError, DiskFullError, StorageError, UnavailableError
from quorate.replication import checkpoints as module
from quorate.replication.checkpoints import Checkpointer
from quorate.replication.recovery import decode_saved_membership
from tests.replication.driving import (
    TWO,
    ManualRunner,
    Rig,
    batch_entry,
    hit,
    three,
    turns,
    virtually,
)


class Desk(Rig):
    def __init__(self, interval_bytes: int = 10**9) -> None:
        super().__init__()
        self.store_disk = ManualRunner()
        self.full: list[str] = []
        self.checkpointer = Checkpointer(
            self.replica,
            log=self.log,
            store=self.store,
            meta=self.recovered.meta,
            store_runner=self.store_disk,
            log_runner=self.disk,
            interval_bytes=interval_bytes,
            on_disk_full=self.full.append,
        )
        self.replica._on_applied = self.checkpointer.on_applied
        self.last = 1

    async def feed(self, upto: int, *, durable: bool = True) -> None:
        """Entries up to *upto*, committed, and applied."""
        entries = [batch_entry(at, 2, hit(f"t{at}")) for at in range(self.last + 1, upto + 1)]
        self.append(*entries, prev=(self.last, 2 if self.last > 1 else 1), term=2, commit=upto)
        self.last = upto
        if durable:
            self.disk.drain()
        await self.settle()

    async def write(self) -> int:
        task = asyncio.get_running_loop().create_task(self.checkpointer.checkpoint())
        while not task.done():
            await turns()
            self.store_disk.drain()
            self.disk.drain()
            await asyncio.sleep(0.001)
        return task.result()

    @property
    def floor(self) -> int:
        index: int = self.state.log.floor.index
        return index

    @property
    def saved(self) -> int:
        meta = self.store.meta()
        return 0 if meta is None else meta.applied.index


def test_the_log_is_cut_behind_the_checkpoint_before_the_last() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        assert await desk.write() == 5
        assert (desk.saved, desk.floor) == (5, 0)
        assert await desk.write() == 5  # nothing new: nothing written
        await desk.feed(9)
        assert await desk.write() == 9
        assert (desk.saved, desk.floor) == (9, 5)
        meta = desk.store.meta()
        assert meta is not None
        assert meta.state_hash == desk.machines.state_hash
        assert decode_saved_membership(meta.membership).membership == three()
        assert desk.checkpointer.statistics().written == 2

    virtually(main())


def test_a_checkpoint_never_runs_ahead_of_the_own_log() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5, durable=False)
        assert desk.replica.applied == 5  # committed by others, applied from memory
        task = asyncio.get_running_loop().create_task(desk.checkpointer.checkpoint())
        await asyncio.sleep(0.5)
        assert not desk.store_disk.jobs
        desk.disk.drain()
        await asyncio.sleep(0.01)
        desk.store_disk.drain()
        assert await task == 5

    virtually(main())


def test_a_stalled_disk_does_not_hold_a_checkpoint_for_ever() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5, durable=False)
        with pytest.raises(UnavailableError, match="keep up"):
            await desk.checkpointer.checkpoint()
        task = asyncio.get_running_loop().create_task(desk.checkpointer.checkpoint())
        await asyncio.sleep(0.1)
        desk.replica.stop()
        await desk.checkpointer.stop()
        with pytest.raises(ClosedError):
            await task

    virtually(main())


def test_what_changes_while_a_checkpoint_is_written_goes_into_the_next() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        task = asyncio.get_running_loop().create_task(desk.checkpointer.checkpoint())
        await turns()
        await desk.feed(7)
        desk.store_disk.drain()
        assert await task == 5
        assert [key for key, _ in desk.store.load("tally.tags")] == [b"t2", b"t3", b"t4", b"t5"]
        assert await desk.write() == 7
        assert len(list(desk.store.load("tally.tags"))) == 6

    virtually(main())


def test_a_full_disk_loses_nothing_and_waits_before_it_tries_again() -> None:
    async def main() -> None:
        desk = Desk(interval_bytes=1)
        desk.image.size_bytes_max = 3
        await desk.feed(5)
        await turns()
        desk.store_disk.drain()
        await turns()
        assert len(desk.full) == 1
        assert (desk.saved, desk.failures) == (0, [])
        await desk.feed(6)
        assert not desk.store_disk.jobs  # not at once
        desk.image.size_bytes_max = None
        await asyncio.sleep(module.RETRY_S)
        await desk.feed(7)
        await turns()
        desk.store_disk.drain()
        await turns()
        assert desk.saved == 7
        assert len(list(desk.store.load("tally.tags"))) == 6

    virtually(main())


def test_a_failed_store_stops_the_node() -> None:
    async def main() -> None:
        desk = Desk(interval_bytes=1)
        desk.store_disk.error = StorageError("fsync failed")
        await desk.feed(5)
        await turns()
        desk.store_disk.drain()
        await turns()
        assert [str(error) for error in desk.failures] == ["fsync failed"]
        assert desk.replica.stopped

    virtually(main())


def test_a_log_that_cannot_be_cut_stops_the_node() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        await desk.write()
        await desk.feed(9)
        task = asyncio.get_running_loop().create_task(desk.checkpointer.checkpoint())
        await turns()
        desk.store_disk.drain()
        await turns()
        desk.disk.error = StorageError("unlink failed")
        desk.disk.drain()
        with pytest.raises(StorageError):
            await task
        assert [str(error) for error in desk.failures] == ["unlink failed"]

    virtually(main())


def test_a_caller_that_goes_away_leaves_the_checkpoint_whole() -> None:
    """The lock stays taken until the store is written: an install must not begin before."""

    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        task = asyncio.get_running_loop().create_task(desk.checkpointer.checkpoint())
        await turns()
        task.cancel()
        await turns()
        assert desk.checkpointer.lock.locked()
        desk.store_disk.drain()
        await turns()
        assert not desk.checkpointer.lock.locked()
        assert desk.saved == 5
        assert desk.checkpointer.statistics().failed == 0
        await desk.checkpointer.stop()

    virtually(main())


def test_followers_hold_the_log_until_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        await desk.write()
        desk.checkpointer.hold(TWO, LogIndex(3))
        await desk.feed(9)
        await desk.write()
        assert desk.floor == 3
        await desk.feed(12)
        await desk.write()
        assert desk.floor == 3
        monkeypatch.setattr(module, "LOG_HELD_BYTES_MAX", 1)
        await desk.feed(15)
        await desk.write()
        assert desk.floor == 12
        desk.checkpointer.release(TWO)
        desk.checkpointer.release(TWO)

    virtually(main())


def test_no_checkpoint_while_a_snapshot_is_loaded() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.feed(5)
        offer = SnapshotOffered(Term(2), TWO, EntryId(LogIndex(50), Term(2)), three(), LogIndex(1))
        async with desk.checkpointer.lock:
            assert desk.replica.offer_snapshot(offer, lambda: None) is not None
            with pytest.raises(ClosedError, match="loading"):
                await asyncio.wait_for(desk.checkpointer.checkpoint(), 1)  # not behind the lock
            desk.disk.drain()
            desk.checkpointer.installed(offer.id)
        assert desk.checkpointer.statistics().last_index == 50

    virtually(main())


def test_disk_full_is_a_storage_error_that_is_definite() -> None:
    assert DiskFullError.definite
