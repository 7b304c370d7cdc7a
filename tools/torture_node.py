"""Crashes between the log and the store of one node; ``torture`` runs it.

Each of the two is atomic by itself (``torture_wal``, ``torture_store``); here it is their order
that is tested: log first, cut only behind a checkpoint, a snapshot swapped in before the log is
reset to it. Both are recovered together, as a node does when it starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.config import CoreConfig
from quorate.consensus.membership import Membership
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import QuorateError
from quorate.replication.recovery import encode_saved_membership, recover
from quorate.storage.interfaces import SnapshotChunk, StoreMeta
from quorate.storage.memory_files import Hook, MemoryFileSystem, SimulatedCrashError, crash_before
from quorate.storage.memory_store import MemoryImage, MemoryStateStore
from quorate.storage.wal import WriteAheadLog
from tools.torture_model import Effort, Tally, crashes, hard, open_log

FOUNDERS = Membership(voters=(NodeId(1),))


class Known(NamedTuple):
    """What the node was told is durable: hard state, last entry, and where the store is."""

    hard_state: HardState
    last: EntryId
    applied: int


class Run(NamedTuple):
    """A life that ended in a crash, or (*finished*) did not."""

    disk: MemoryFileSystem
    image: MemoryImage
    acknowledged: Known
    pending: Known
    finished: bool


class Node:
    """A log, a store, and what was acknowledged of them."""

    def __init__(self, disk: MemoryFileSystem, image: MemoryImage) -> None:
        self.disk = disk
        self.log: WriteAheadLog = open_log(disk)
        self.store = MemoryStateStore(image)
        self.known = self.pending = Known(hard(0, 0, 0), EntryId(LogIndex(0), Term(0)), 0)

    def start(self) -> None:
        """Found the node: entry 1 is its membership."""
        self.pending = Known(hard(1, 0, 1), _id(1, 1), 0)
        config = CoreConfig(node_id=NodeId(1))
        recover(self.log, self.store, config, random.Random(1), FOUNDERS)
        self.known = self.pending

    def append(self, term: int, commit: int, *sizes: int) -> None:
        """Entries after the last one."""
        first = self.known.last.index + 1
        entries = [
            Entry(LogIndex(first + number), Term(term), 0, bytes([number + 1]) * size)
            for number, size in enumerate(sizes)
        ]
        state = hard(term, 1, commit)
        last = _id(first + len(sizes) - 1, term)
        self._do(lambda: self.log.append(entries, state), state, last, self.known.applied)

    def checkpoint(self, index: int, term: int) -> None:
        """A durable checkpoint at *index*, then the log cut behind it."""
        meta, known = _meta(_id(index, term), None), self.known
        changes = {"t": [(b"k", b"%d" % index)]}
        self._do(lambda: self.store.checkpoint(meta, changes), known.hard_state, known.last, index)
        self._do(lambda: self.log.cut(_id(index, term)), known.hard_state, known.last, index)

    def install(self, index: int, term: int) -> None:
        """A snapshot swapped in, then the log reset to it."""
        known = self.known.hard_state
        vote = known.vote if known.term == term else 0  # nobody was voted for in a new term
        floor, state = _id(index, term), hard(term, vote, index)

        def swap() -> None:
            installer = self.store.installer()
            installer.add(SnapshotChunk("t", ((b"k", b"%d" % index),), b""))
            installer.finish(_meta(floor, floor), 1)

        # Once the store is swapped, recovery resets the log: so both steps have one outcome.
        self.pending = Known(state, floor, index)
        self._touch()
        swap()
        self.log.reset(floor, state)
        self.known = self.pending

    def _do(
        self, call: Callable[[], object], state: HardState, last: EntryId, applied: int
    ) -> None:
        self.pending = Known(state, last, applied)
        self._touch()
        call()
        self.known = self.pending

    def _touch(self) -> None:
        """Steps of the store in memory are no operations of the disk: stand in for one, so that
        there is a crash before each."""
        self.disk.operate("fsync", "store")


def _id(index: int, term: int) -> EntryId:
    return EntryId(LogIndex(index), Term(term))


def _meta(applied: EntryId, installed: EntryId | None) -> StoreMeta:
    return StoreMeta(
        applied=applied,
        time_ms=applied.index,
        membership=encode_saved_membership(LogIndex(1), FOUNDERS),
        state_hash=b"12345678",
        installed=installed,
    )


def _live(node: Node) -> None:
    """A life with all there is."""
    node.start()
    node.append(1, 1, 200, 300)
    node.append(1, 3, 400)
    node.checkpoint(2, 1)
    node.append(2, 4, 500, 10)
    node.checkpoint(5, 2)
    node.append(2, 6, 700)
    node.install(30, 3)
    node.append(3, 30, 60)
    node.append(3, 31, 900, 900)
    node.checkpoint(31, 3)
    node.append(4, 33, 50)
    node.install(31 + 20, 4)
    node.checkpoint(51, 4)
    node.append(4, 51, 20)


def live(hook: Hook | None) -> Run:
    """One life until the crash."""
    disk, image = MemoryFileSystem(hook), MemoryImage()
    node = Node(disk, image)
    try:
        _live(node)
    except SimulatedCrashError:
        disk.hook = None
        return Run(disk, image, node.known, node.pending, finished=False)
    return Run(disk, image, node.known, node.known, finished=True)


def crash_points() -> Iterator[tuple[int, Run]]:
    """The life crashed before each of its changing operations in turn, and after the last."""
    number = 0
    while True:
        run = live(crash_before(number))
        yield number, run
        if run.finished:
            return
        number += 1


def crash_everywhere(effort: Effort, tally: Tally) -> None:
    """Power lost before every operation: log and store fit, and hold what was acknowledged."""
    for number, run in crash_points():
        tally.count("crash points")
        for picks in crashes(run.disk, effort, f"node {number}"):
            tally.count("reorderings")
            replay = f"crash before operation {number}, outcome {picks}"
            image = MemoryImage()
            image.checkpoint = run.image.checkpoint
            _check(run.disk.after_crash(picks), image, run, tally, replay)


def _check(disk: MemoryFileSystem, image: MemoryImage, run: Run, tally: Tally, replay: str) -> None:
    log, store = open_log(disk), MemoryStateStore(image)
    try:
        config = CoreConfig(node_id=NodeId(1))
        recover(log, store, config, random.Random(1), FOUNDERS)
        log.close()
        found = open_log(disk).recover()
    except QuorateError as error:
        tally.violation(f"{replay}: refused: {type(error).__name__}: {error}")
        return
    finally:
        store.close()
    tally.count("recovered")
    term = found.metas[-1].term if found.metas else found.floor.term
    applied = 0 if image.checkpoint.meta is None else image.checkpoint.meta.applied.index
    known = Known(found.hard_state, _id(found.floor.index + len(found.metas), term), applied)
    if known not in _mixed(run):
        tally.violation(f"{replay}: {known}, not {run.acknowledged} or {run.pending}")
    if applied < found.floor.index:
        tally.violation(f"{replay}: the log begins after {found.floor}, the store is at {applied}")


def _mixed(run: Run) -> list[Known]:
    """Acknowledged or pending. A new node that crashed is founded when it starts again."""
    return [run.acknowledged, run.pending, *([FOUNDED] if run.acknowledged.last.index == 0 else [])]


FOUNDED = Known(hard(1, 0, 1), _id(1, 1), 0)
