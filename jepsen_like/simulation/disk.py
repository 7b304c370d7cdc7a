"""A host's disk: files under the real write-ahead log, what is durable under the stores' twins.

Jobs of the node's disk threads run at one instant of simulated time, in order for each thread,
some while after they were asked for; a crash in between leaves the job done in part. What a crash
leaves of unsynced bytes is drawn by ``crash``.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any, Final, Literal, TypeVar
from zlib import crc32

import msgspec

from jepsen_like.simulation.hosts import Host, Process
from jepsen_like.simulation.loop import VirtualLoop
from quorate.errors import DiskFullError, StorageError
from quorate.storage.durable import disk_errors
from quorate.storage.elements import PAGE_BYTES_DEFAULT
from quorate.storage.files import SECTOR_BYTES
from quorate.storage.interfaces import Change, StoreMeta
from quorate.storage.memory_elements import ElementImage, MemoryElementStore
from quorate.storage.memory_files import (
    CHANGING,
    MemoryFileSystem,
    Operation,
    crash_before,
)
from quorate.storage.memory_store import MemoryImage, MemoryStateStore

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

#: How often a job is over some while before its node hears of it.
EARLY_CHANCE: Final = 0.3
#: How often the job that a crash meets had begun.
INTERRUPTED_CHANCE: Final = 0.7
#: A crash meets a job before an operation of it below this number, or after the last.
INTERRUPTED_OPERATIONS: Final = 8
#: How often elements are on the disk after all when their sync failed.
REACHED_CHANCE: Final = 0.5
#: What an unfaulted disk has free.
FREE_BYTES: Final = 64 * 2**30
_SYNCS: Final = frozenset({"fdatasync", "fsync", "fsync_dir"})
_GROWS: Final = frozenset({"create", "pwrite", "allocate", "rename"})
_READS: Final = frozenset({"pread", "open", "listdir"})
_WRITES: Final = frozenset({"pwrite", "create", "truncate", "allocate", "rename", "unlink"})

FaultKind = Literal["read", "write", "sync"]
_MEMBERS: Final[Mapping[FaultKind, frozenset[str]]] = {
    "read": _READS, "write": _WRITES, "sync": _SYNCS,
}  # fmt: skip

#: What a crash leaves of what was not synced: any part of it, nothing, or all.
Kept = Literal["any", "nothing", "all"]


class DiskSettings(msgspec.Struct, kw_only=True):
    """*job_s_min*, *job_s_max*: how long a job takes, mostly near the least. *quick*: small writes
    may run on the event loop itself, as on a fast disk. *honest_fsync* False: a sync that was
    asked for does nothing; the kernel writes everything back only every *writeback_s*."""

    job_s_min: float = 0.000_1
    job_s_max: float = 0.003
    quick: bool = False
    honest_fsync: bool = True
    writeback_s: float = 5.0


class _Fault(msgspec.Struct):
    kinds: frozenset[str]
    code: int
    until_s: float
    left: int  # how many more operations fail


class Backup(msgspec.Struct, frozen=True):
    """A copy of a disk; see ``SimulatedDisk.backup``."""

    files: MemoryFileSystem
    checkpoint: Any
    elements: ElementImage


class SimulatedDisk:
    """See the module. *files*, *image* and *elements* are what survives."""

    def __init__(
        self, loop: VirtualLoop, host: Host, random: Random, settings: DiskSettings | None = None
    ) -> None:
        self.settings = settings or DiskSettings()
        self.files = MemoryFileSystem(self._operate)
        self.files.honest_fsync = self.settings.honest_fsync
        self.image = MemoryImage()
        self.elements = ElementImage()
        self.operations = 0
        self._loop = loop
        self._host = host
        self._random = random
        self._faults: list[_Fault] = []
        self._full_until_s = 0.0
        self._stalled_until_s = 0.0
        self._runners: list[SimulatedRunner] = []
        self._written_back: Any = self.image.checkpoint
        self._elements_written_back = ElementImage()

    # --- for the node ----------------------------------------------------------------------------

    def runner(self, process: Process, name: str) -> SimulatedRunner:
        """A thread of *process* for jobs on this disk."""
        made = SimulatedRunner(self._loop, process, self, self._random, name)
        self._runners.append(made)
        return made

    def open_store(self, _path: str) -> SimulatedStore:
        """The state store; its checkpoints survive whole, or not at all."""
        self.check("open", "state")
        return SimulatedStore(self)

    def open_elements(self, _path: str) -> SimulatedElements:
        """The element store; its writes survive whole, or not at all."""
        with disk_errors("opening the element store"):
            self.check("open", "crdt")
        return SimulatedElements(self, self._random)

    def free_bytes(self) -> int:
        """As ``statvfs`` says."""
        return 0 if self.is_full else FREE_BYTES

    def job_s(self) -> float:
        """How long a job takes that begins now."""
        settings, draw = self.settings, self._random.random()
        usual_s = (
            settings.job_s_min + (settings.job_s_max - settings.job_s_min) * draw * draw * draw
        )
        return max(self._stalled_until_s - self._loop.now_s, 0.0) + usual_s

    def note_checkpoint(self, index: int) -> None:
        """A checkpoint up to *index* was written."""
        self._loop.trace.add(self._loop.now_s, "job", self._host.number, index, "checkpoint")

    def note_elements(self, changes: Mapping[str, list[Change]]) -> None:
        """These were written."""
        count = sum(map(len, changes.values()))
        self._loop.trace.add(
            self._loop.now_s,
            "job",
            self._host.number,
            crc32(repr(changes).encode()),
            f"{count} elements",
        )

    def is_quick(self) -> bool:
        """Whether a small write may run on the event loop now."""
        return self.settings.quick and self._stalled_until_s <= self._loop.now_s

    # --- faults ----------------------------------------------------------------------------------

    def fail(
        self,
        kind: FaultKind,
        *,
        code: int = errno.EIO,
        for_s: float = 1e9,
        count: int = 1_000_000_000,
    ) -> None:
        """Operations of *kind* fail with errno *code*, for a while or so many times."""
        self._faults.append(_Fault(_MEMBERS[kind], code, self._loop.now_s + for_s, count))

    def fill(self, for_s: float = 1e9) -> None:
        """No space is left, for a while."""
        self._full_until_s = self._loop.now_s + for_s

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits."""
        return self._loop.now_s < self._full_until_s

    @property
    def is_sick(self) -> bool:
        """Whether jobs fail, or wait, as long as some fault lasts."""
        now_s = self._loop.now_s
        failing = any(fault.left > 0 and now_s < fault.until_s for fault in self._faults)
        return failing or self.is_full or now_s < self._stalled_until_s

    def stall(self, for_s: float) -> None:
        """No job ends for so long."""
        self._stalled_until_s = max(self._stalled_until_s, self._loop.now_s + for_s)

    def mend(self) -> None:
        """No more faults, and room again."""
        self._faults.clear()
        self._full_until_s = self._stalled_until_s = 0.0

    def check(self, kind: str, path: str) -> None:
        """Fail as the present faults say.

        Raises:
            OSError: the operation fails.
        """
        if self._full_until_s and kind in _GROWS and self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        for fault in self._faults:
            if kind in fault.kinds and fault.left > 0 and self._loop.now_s < fault.until_s:
                fault.left -= 1
                raise OSError(fault.code, os.strerror(fault.code), path)

    def _operate(self, operation: Operation) -> None:
        """Called before each operation on a file."""
        self.operations += 1
        if operation.kind in CHANGING and not operation.path.endswith("LOCK"):
            trace = self._loop.trace
            what = f"{operation.kind} {operation.path} {operation.offset} {operation.size}"
            trace.add(self._loop.now_s, "disk", self._host.number, crc32(what.encode()), what)
        if self._faults or self._full_until_s:
            self.check(operation.kind, operation.path)

    # --- crashes ---------------------------------------------------------------------------------

    def crash(self, *, kept: Kept = "any") -> None:
        """The machine loses power: a job under way is done in part, unsynced bytes are lost or
        torn. Leaves the disk ready for the next boot."""
        self._interrupt()
        self._next_files(self.files.after_crash(self._picks(kept)))
        if not self.settings.honest_fsync and kept != "all":
            self.image.checkpoint = self._written_back
            self.elements = self._elements_written_back.copy()

    def kill(self) -> None:
        """Only the process dies: a job under way is done in part, the page cache lives on."""
        self._interrupt()
        self._next_files(self.files.after_kill())

    def _interrupt(self) -> None:
        """Each thread's present job gets as far as chance has it."""
        runners, self._runners = self._runners, []
        for runner in runners:
            most = self._random.randint(1, INTERRUPTED_OPERATIONS)  # an append has but two
            runner.interrupt(self._random.randrange(most), self.files)
        self.files.kill()

    def _picks(self, kept: Kept) -> list[int]:
        counts = self.files.uncertain()
        if kept == "nothing":
            return [0] * len(counts)
        if kept == "all":
            return [count - 1 for count in counts]
        return [self._random.randrange(count) for count in counts]

    def _next_files(self, files: MemoryFileSystem) -> None:
        self._set(files, self.image.checkpoint, self.elements.copy())

    def _set(
        self,
        files: MemoryFileSystem,
        checkpoint: Any,  # noqa: ANN401  opaque
        elements: ElementImage,
    ) -> None:
        files.hook = self._operate
        files.honest_fsync = self.settings.honest_fsync
        self.files = files
        self.image = MemoryImage()
        self.image.checkpoint = checkpoint
        self.elements = elements
        self._runners.clear()

    # --- what an operator, or bad luck, does to the disk of a stopped node ----------------------

    def wipe(self) -> None:
        """A new, empty disk."""
        self._next_files(MemoryFileSystem())
        self.image.checkpoint = self._written_back = MemoryImage().checkpoint
        self.elements, self._elements_written_back = ElementImage(), ElementImage()

    def backup(self) -> Backup:
        """A copy of what is durable now; of a running node, too."""
        picks = [0] * len(self.files.uncertain())
        files = self.files.after_crash(picks)
        return Backup(files, self.image.checkpoint, self.elements.copy())

    def restore(self, backup: Backup) -> None:
        """Put *backup* in the place of everything."""
        self._set(backup.files.after_crash([]), backup.checkpoint, backup.elements.copy())

    def log_files(self) -> list[str]:
        """Paths of the log's files, in order."""
        return [path for path in self.files.paths() if "/log/" in path]

    def flip_bit(self, random: Random) -> str:
        """Change one bit of the log where something was written; says where, "" if nothing is."""
        paths = [path for path in self.log_files() if self._used_bytes(path)]
        if not paths:
            return ""
        path = paths[random.randrange(len(paths))]
        content = bytearray(self.files.content(path))
        at = random.randrange(self._used_bytes(path))
        content[at] ^= 1 << random.randrange(8)
        self.files.damage(path, content)
        return f"bit flipped at byte {at} of {path}"

    def truncate(self, random: Random) -> str:
        """Cut one of the log's files short; says where, "" if there is none."""
        paths = self.log_files()
        if not paths:
            return ""
        path = paths[random.randrange(len(paths))]
        content = self.files.content(path)
        size = random.randrange(max(len(content), 1))
        self.files.damage(path, content[:size])
        return f"{path} cut from {len(content)} to {size} bytes"

    def _used_bytes(self, path: str) -> int:
        """Up to the end of the last sector that is not blank."""
        size = len(self.files.content(path).rstrip(b"\0"))
        return -(-size // SECTOR_BYTES) * SECTOR_BYTES

    def write_back(self) -> None:
        """For a disk whose syncs do nothing: everything reaches it after all."""
        self._written_back = self.image.checkpoint
        self._elements_written_back = self.elements.copy()
        self.files.write_back()


class SimulatedStore(MemoryStateStore):
    """The state store on a disk that fails."""

    def __init__(self, disk: SimulatedDisk) -> None:
        super().__init__(disk.image)
        self._disk = disk

    def load(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """As the protocol says."""
        with disk_errors(f"loading table {table} of the state store"):
            self._disk.check("pread", "state")
        return super().load(table)

    def checkpoint(self, meta: StoreMeta, changes: Mapping[str, Iterable[Change]]) -> None:
        """As the protocol says."""
        self._check_write()
        super().checkpoint(meta, changes)
        self._disk.note_checkpoint(meta.applied.index)

    def _finish(self, meta: StoreMeta, build: Any) -> None:  # noqa: ANN401  private to the twin
        self._check_write()
        super()._finish(meta, build)
        self._disk.note_checkpoint(meta.applied.index)

    def _check_write(self) -> None:
        with disk_errors("writing a checkpoint"):
            self._disk.check("pwrite", "state")
            self._disk.check("fdatasync", "state")


class SimulatedElements(MemoryElementStore):
    """The element store on a disk that fails. *random*: what a failed sync leaves."""

    def __init__(self, disk: SimulatedDisk, random: Random) -> None:
        super().__init__(disk.elements)
        self._disk = disk
        self._random = random

    def get(self, table: str, key: bytes) -> bytes | None:
        """As the protocol says."""
        self._check_read()
        return super().get(table, key)

    def page(
        self,
        table: str,
        start: bytes,
        end: bytes | None,
        limit: int,
        bytes_max: int = PAGE_BYTES_DEFAULT,
    ) -> list[tuple[bytes, bytes]]:
        """As the protocol says."""
        self._check_read()
        return super().page(table, start, end, limit, bytes_max)

    def last(self, table: str, end: bytes | None = None) -> tuple[bytes, bytes] | None:
        """As the protocol says."""
        self._check_read()
        return super().last(table, end)

    def commit(self, changes: Mapping[str, list[Change]]) -> None:
        """Make checked changes. If the sync fails, they are there after a restart or not."""
        self.check_usable()
        try:
            with disk_errors("writing elements"):
                self._disk.check("pwrite", "crdt")
        except DiskFullError:
            raise
        except StorageError as error:
            self.fail(error)
            raise
        try:
            with disk_errors("syncing elements"):
                self._disk.check("fdatasync", "crdt")
        except StorageError as error:
            if self._random.random() < REACHED_CHANCE:
                self._make(changes)
            self.fail(error)
            raise
        self._make(changes)

    def _make(self, changes: Mapping[str, list[Change]]) -> None:
        super().commit(changes)
        self._disk.note_elements(changes)

    def _check_read(self) -> None:
        with disk_errors("reading elements"):
            self._disk.check("pread", "crdt")


class SimulatedRunner:
    """A ``JobRunner`` on virtual time; *disk* says how long a job takes."""

    def __init__(
        self,
        loop: VirtualLoop,
        process: Process,
        disk: SimulatedDisk,
        random: Random,
        name: str,
    ) -> None:
        self.name = name
        self._loop = loop
        self._process = process
        self._disk = disk
        self._random = random
        self._jobs: deque[tuple[Callable[[], Any], Done]] = deque()
        self._busy = False
        self._scheduled = False  # a quick job, on the loop
        self._behind: list[tuple[Callable[[], Any], Done]] = []

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """As ``DiskThread.run``."""
        if self._scheduled:
            self._behind.append((job, done))
            return
        self._jobs.append((job, done))
        if not self._busy:
            self._start()

    def quick(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> bool:
        """As ``QuickDisk.quick``."""
        if self._busy or self._jobs or self._scheduled or not self._disk.is_quick():
            return False
        self._scheduled = True
        self._loop.soon(self._process, self._run_quick, job, done)
        return True

    def stop(self) -> None:
        """Finish what is queued, at once."""
        while self._jobs:
            job, done = self._jobs.popleft()
            self._loop.soon(self._process, done, *_outcome(job))

    def interrupt(self, operations: int, files: MemoryFileSystem) -> None:
        """The process dies: the present job gets as far as the operation of that number."""
        if self._jobs and self._random.random() < INTERRUPTED_CHANCE:
            files.hook = crash_before(operations)
            _outcome(self._jobs[0][0])
        self._jobs.clear()
        self._behind.clear()

    def _start(self) -> None:
        self._busy = True
        now_s, job_s = self._loop.now_s, self._disk.job_s()
        if self._random.random() < EARLY_CHANCE:
            early_s = now_s + job_s * self._random.random()
            self._loop.schedule(early_s, self._process, self._work_early, now_s + job_s)
        else:
            self._loop.schedule(now_s + job_s, self._process, self._work)

    def _work(self) -> None:
        if self._jobs:
            job, done = self._jobs.popleft()
            self._report(done, *_outcome(job))
        else:
            self._busy = False

    def _work_early(self, end_s: float) -> None:
        """The job is done some while before the node hears of it."""
        if self._jobs:
            job, done = self._jobs.popleft()
            self._loop.schedule(end_s, self._process, self._report, done, *_outcome(job))
        else:
            self._busy = False

    def _report(self, done: Done, result: Any, error: BaseException | None) -> None:  # noqa: ANN401
        self._busy = False
        if self._jobs:
            self._start()
        done(result, error)

    def _run_quick(self, job: Callable[[], Any], done: Done) -> None:
        result, error = _outcome(job)
        self._scheduled = False
        behind, self._behind = self._behind, []
        for each in behind:
            self.run(*each)
        done(result, error)


def _outcome(job: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return job(), None
    except BaseException as error:  # noqa: BLE001  as a disk thread does
        return None, error
