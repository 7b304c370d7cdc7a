"""A disk in memory that crashes: the twin of ``files.OsFileSystem`` for tests and the simulator.

The model is the weakest disk that still keeps the promises written in ``files``:

* A sector (512 bytes) is written as a whole or not at all. Of each sector changed since the last
  fsync of its file, a crash keeps any one of the contents it had since, or the synced one; each
  sector on its own, so writes are torn and reordered in every way.
* A changed length is kept or not, independently of the sectors.
* Of the creates, renames and unlinks since the last ``fsync_dir``, a crash keeps any subset.
* A failed fsync may have written any part, and what it did not write is never written by a later
  fsync that succeeds: the kernel has marked those pages clean (PostgreSQL's "fsyncgate" of 2018).

Every operation is counted, may be recorded, and may be made to fail or to be the crash.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from quorate.base.invariants import must
from quorate.errors import DirectoryInUseError
from quorate.storage.files import SECTOR_BYTES, File


class SimulatedCrashError(BaseException):
    """The machine stops here. Not an ``Exception``: no handler may carry on after it."""


class Operation(NamedTuple):
    """One request to the disk; *offset* and *size* in bytes, -1 where they mean nothing."""

    number: int
    kind: str
    path: str
    offset: int = -1
    size: int = -1


#: Called before each operation; may raise ``OSError`` or ``SimulatedCrashError`` in its place.
Hook = Callable[[Operation], None]

#: Operations that change something, so that a crash before each of them is a case of its own.
CHANGING = frozenset(
    {
        "create",
        "pwrite",
        "fdatasync",
        "fsync",
        "truncate",
        "allocate",
        "rename",
        "unlink",
        "fsync_dir",
    }
)


class _FileNode:
    """A file: what programs see (*current*), what surely survives (*durable*), what may."""

    def __init__(self, durable: bytes = b"") -> None:
        self.current = bytearray(durable)
        self.durable = bytearray(durable)
        #: Contents since the last sync, by sector, and the lengths.
        self.dirty: dict[int, list[bytes]] = {}
        self.sizes: list[int] = []
        #: As above, but no later sync writes them: they were dirty when a sync failed.
        self.abandoned: dict[int, list[bytes]] = {}
        self.abandoned_sizes: list[int] = []
        self.locked = False

    def sector(self, content: bytearray, number: int) -> bytes:
        start = number * SECTOR_BYTES
        return bytes(content[start : start + SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.current):
            self.resize(end)
        first, last = offset // SECTOR_BYTES, (end + SECTOR_BYTES - 1) // SECTOR_BYTES
        before = [self.sector(self.current, number) for number in range(first, last)]
        self.current[offset:end] = data
        for number, old in zip(range(first, last), before, strict=True):
            new = self.sector(self.current, number)
            # What a failed sync gave up is written again once it is dirty again.
            if new != old or number in self.abandoned:
                self.dirty.setdefault(number, []).append(new)

    def resize(self, size: int) -> None:
        for number in range(size // SECTOR_BYTES, -(-len(self.current) // SECTOR_BYTES)):
            # What is cut off reads as zeros should the file grow again.
            kept = self.sector(self.current[:size], number)
            if kept != self.sector(self.current, number):
                self.dirty.setdefault(number, []).append(kept)
        if size < len(self.current):
            del self.current[size:]
        else:
            self.current.extend(bytes(size - len(self.current)))
        self.sizes.append(size)

    def sync(self) -> None:
        """Everything dirty becomes durable; what was abandoned does not."""
        for number, contents in self.dirty.items():
            self._keep(number, contents[-1])
            self.abandoned.pop(number, None)
        if self.sizes:
            self._set_durable_size(self.sizes[-1])
            self.abandoned_sizes.clear()
        self.dirty.clear()
        self.sizes.clear()

    def fail_sync(self) -> None:
        """A sync failed: any part may be written, the rest never will be."""
        for number, contents in self.dirty.items():
            self.abandoned.setdefault(number, []).extend(contents)
        self.abandoned_sizes.extend(self.sizes)
        self.dirty.clear()
        self.sizes.clear()

    def forget_clean(self) -> None:
        """Drop the cache: what a failed sync gave up, and did not write, is gone from view too."""
        for number in list(self.abandoned):
            if number not in self.dirty:
                del self.abandoned[number]
                start = number * SECTOR_BYTES
                end = min(start + SECTOR_BYTES, len(self.current))
                kept = self.sector(self.durable, number)
                self.current[start:end] = kept[: max(0, end - start)]

    def land(self) -> None:
        """The failed sync had written everything, as it turns out."""
        for number, contents in self.abandoned.items():
            self._keep(number, contents[-1])
        self.abandoned.clear()

    def _keep(self, number: int, content: bytes) -> None:
        end = (number + 1) * SECTOR_BYTES
        if len(self.durable) < end:
            self.durable.extend(bytes(end - len(self.durable)))
        self.durable[end - SECTOR_BYTES : end] = content

    def _set_durable_size(self, size: int) -> None:
        if size < len(self.durable):
            del self.durable[size:]
        else:
            self.durable.extend(bytes(size - len(self.durable)))

    def choices(self) -> list[int]:
        """How many outcomes each uncertain thing has: sectors in order, then the length."""
        sectors = sorted(set(self.dirty) | set(self.abandoned))
        counts = [1 + len(self._candidates(number)) for number in sectors]
        sizes = len(self.abandoned_sizes) + len(self.sizes)
        return [*counts, 1 + sizes] if sizes else counts

    def _candidates(self, number: int) -> list[bytes]:
        return self.abandoned.get(number, []) + self.dirty.get(number, [])

    def survivor(self, picks: Iterator[int]) -> _FileNode:
        """The file as a crash leaves it; pick 0 keeps the synced content."""
        size = len(self.durable)
        after = _FileNode(bytes(self.durable))
        for number in sorted(set(self.dirty) | set(self.abandoned)):
            if pick := next(picks):
                after._keep(number, self._candidates(number)[pick - 1])
        sizes = self.abandoned_sizes + self.sizes
        if sizes and (pick := next(picks)):
            size = sizes[pick - 1]
        after._set_durable_size(size)
        after.current = bytearray(after.durable)
        return after

    def clone(self) -> _FileNode:
        twin = _FileNode()
        twin.current, twin.durable = bytearray(self.current), bytearray(self.durable)
        twin.dirty = {number: list(contents) for number, contents in self.dirty.items()}
        twin.abandoned = {number: list(contents) for number, contents in self.abandoned.items()}
        twin.sizes, twin.abandoned_sizes = list(self.sizes), list(self.abandoned_sizes)
        return twin


class _Change(NamedTuple):
    """A directory operation: names set (to a file) or removed (None), all of them or none."""

    names: tuple[tuple[str, _FileNode | None], ...]


class MemoryFile:
    """An open file of a ``MemoryFileSystem``; dead after the crash of its disk."""

    def __init__(
        self, disk: MemoryFileSystem, node: _FileNode, path: str, *, locks: bool = False
    ) -> None:
        self._disk = disk
        self._node = node
        self._path = path
        self._locks = locks
        self._closed = False

    def _operate(self, kind: str, offset: int = -1, size: int = -1) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "file is closed", self._path)
        self._disk.operate(kind, self._path, offset, size)

    def pread(self, size_bytes: int, offset: int) -> bytes:
        self._operate("pread", offset, size_bytes)
        return bytes(self._node.current[offset : offset + size_bytes])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        try:
            self._operate("pwrite", offset, len(data))
        except OSError:
            # A failed write may have done half, in whole sectors like all that a disk does.
            half = (offset + len(data) // 2) // SECTOR_BYTES * SECTOR_BYTES
            self._node.write(bytes(data[: max(0, half - offset)]), offset)
            raise
        self._node.write(bytes(data), offset)

    def fdatasync(self) -> None:
        self._sync("fdatasync")

    def fsync(self) -> None:
        self._sync("fsync")

    def _sync(self, kind: str) -> None:
        try:
            self._operate(kind)
        except OSError:
            self._node.fail_sync()
            raise
        if self._disk.honest_fsync:
            self._node.sync()

    def size_bytes(self) -> int:
        self._operate("size")
        return len(self._node.current)

    def truncate(self, size_bytes: int) -> None:
        self._operate("truncate", size_bytes)
        self._node.resize(size_bytes)

    def allocate(self, size_bytes: int) -> None:
        self._operate("allocate", size_bytes)
        if size_bytes > len(self._node.current):
            self._node.resize(size_bytes)

    def drop_cache(self, size_bytes: int = 0) -> None:
        self._operate("drop_cache", 0, size_bytes)
        self._node.forget_clean()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._disk.opened -= 1
            if self._locks:
                self._node.locked = False


class MemoryFileSystem:
    """Names and files in memory, with crashes and faults. One thread at a time.

    *hook* is called before every operation. ``operations`` counts them; ``trace`` holds those of
    the kinds in ``CHANGING`` when *record* is set. ``honest_fsync`` False: no sync does anything,
    until ``write_back``.
    """

    def __init__(self, hook: Hook | None = None, *, record: bool = False) -> None:
        self.hook = hook
        self.operations = 0
        self.honest_fsync = True
        self.trace: list[Operation] | None = [] if record else None
        #: Handles open now: a test for leaks.
        self.opened = 0
        self._dead = False
        self._directories = {"/", "."}
        self._current: dict[str, _FileNode] = {}
        self._durable: dict[str, _FileNode] = {}
        self._pending: list[_Change] = []

    # --- FileSystem ---

    def create(self, path: str) -> File:
        self.operate("create", path)
        path = self._check_parent(path)
        node = self._current.get(path)
        if node is None:
            node = _FileNode()
            self._change((path, node))
        else:
            node.resize(0)
        return self._handle(node, path)

    def open(self, path: str) -> File:
        self.operate("open", path)
        return self._handle(self._find(path), path)

    def exists(self, path: str) -> bool:
        path = posixpath.normpath(path)
        return path in self._current or path in self._directories

    def listdir(self, path: str) -> list[str]:
        self.operate("listdir", path)
        path = posixpath.normpath(path)
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        names = [*self._current, *self._directories]
        return sorted({posixpath.basename(n) for n in names if n != path and _parent(n) == path})

    def rename(self, old: str, new: str) -> None:
        self.operate("rename", new)
        node = self._find(old)
        new = self._check_parent(new)
        self._change((posixpath.normpath(old), None), (new, node))

    def unlink(self, path: str) -> None:
        self.operate("unlink", path)
        self._find(path)
        self._change((posixpath.normpath(path), None))

    def fsync_dir(self, path: str) -> None:
        self.operate("fsync_dir", path)
        path = posixpath.normpath(path)
        if not self.honest_fsync:
            return
        kept = []
        for change in self._pending:
            if any(_parent(name) == path for name, _ in change.names):
                _apply(self._durable, change)
            else:
                kept.append(change)
        self._pending = kept

    def makedirs(self, path: str) -> None:
        self.operate("makedirs", path)
        path = posixpath.normpath(path)
        while path not in self._directories:
            self._directories.add(path)
            path = _parent(path)

    def lock(self, path: str) -> File:
        self.operate("lock", path)
        path = self._check_parent(path)
        node = self._current.get(path)
        if node is None:
            node = _FileNode()
            self._change((path, node))
        if node.locked:
            raise DirectoryInUseError(f"{path} is locked: another node of this process uses it")
        node.locked = True
        return self._handle(node, path, locks=True)

    # --- faults and crashes ---

    def operate(self, kind: str, path: str, offset: int = -1, size: int = -1) -> None:
        """Count, record and perhaps fail one operation (called by the handles)."""
        if self._dead:
            raise SimulatedCrashError(f"{kind} {path} after the crash")
        operation = Operation(self.operations, kind, path, offset, size)
        self.operations += 1
        if self.trace is not None and kind in CHANGING:
            self.trace.append(operation)
        if self.hook is not None:
            try:
                self.hook(operation)
            except SimulatedCrashError:
                self._dead = True  # whatever clean-up code tries next must not reach the disk
                raise

    def uncertain(self) -> list[int]:
        """How many outcomes a crash now has for each uncertain thing, in a fixed order.

        The product of the numbers is the count of different crashes; see ``after_crash``.
        """
        counts = [2] * len(self._pending)
        for node in self._nodes():
            counts.extend(node.choices())
        return counts

    def crash_count(self) -> int:
        """How many different states a crash now may leave."""
        return math.prod(self.uncertain())

    def crashes(self) -> Iterator[tuple[int, ...]]:
        """Every list of picks for ``after_crash``; their number is ``crash_count``."""
        return itertools.product(*(range(count) for count in self.uncertain()))

    def after_crash(self, picks: Sequence[int]) -> MemoryFileSystem:
        """The disk that the next boot finds; *picks* as ``uncertain`` counts them, all zero for
        "nothing that was not synced survived". This disk is left as it was."""
        must(len(picks) == len(self.uncertain()), "one pick for each uncertainty", picks=picks)
        pick = iter(picks)
        names = dict(self._durable)
        for change in self._pending:
            if next(pick):
                _apply(names, change)
        survivors = {id(node): node.survivor(pick) for node in self._nodes()}
        after = MemoryFileSystem()
        after._directories = set(self._directories)
        after._durable = {name: survivors[id(node)] for name, node in names.items()}
        after._current = dict(after._durable)
        return after

    def after_kill(self, *, landed: bool = False) -> MemoryFileSystem:
        """What a restarted process finds when only the old one died: the page cache lives on, and
        what was not synced is still not. Handles and locks are gone. This disk is left as it was.

        *landed*: syncs that failed had yet written everything, instead of nothing.
        """
        twins = {id(node): node.clone() for node in self._nodes()}
        for twin in twins.values() if landed else ():
            twin.land()
        after = MemoryFileSystem()
        after._directories = set(self._directories)
        after._durable = {name: twins[id(node)] for name, node in self._durable.items()}
        after._current = {name: twins[id(node)] for name, node in self._current.items()}
        after._pending = [
            _Change(tuple((name, node and twins[id(node)]) for name, node in change.names))
            for change in self._pending
        ]
        return after

    def kill(self) -> None:
        """Every later operation raises ``SimulatedCrashError``: the process is gone."""
        self._dead = True

    def write_back(self) -> None:
        """Everything reaches the disk, as the kernel has it do from time to time."""
        for node in self._nodes():
            node.sync()
        for change in self._pending:
            _apply(self._durable, change)
        self._pending = []

    def paths(self) -> list[str]:
        """Of all files as programs see them, sorted."""
        return sorted(self._current)

    def content(self, path: str) -> bytes:
        """The bytes of a file as programs see them."""
        return bytes(self._find(path).current)

    def damage(self, path: str, content: bytes | bytearray) -> None:
        """The disk changes a file behind everybody's back, in the cache and below it."""
        node = self._find(path)
        node.current[:] = node.durable[:] = content

    def _nodes(self) -> list[_FileNode]:
        """Every file that a crash may leave under some name, in a fixed order."""
        found: dict[int, _FileNode] = {}
        pending = (pair for change in self._pending for pair in change.names)
        for _, node in itertools.chain(self._durable.items(), self._current.items(), pending):
            if node is not None:
                found.setdefault(id(node), node)
        return list(found.values())

    def _handle(self, node: _FileNode, path: str, *, locks: bool = False) -> MemoryFile:
        self.opened += 1
        return MemoryFile(self, node, path, locks=locks)

    def _find(self, path: str) -> _FileNode:
        node = self._current.get(posixpath.normpath(path))
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return node

    def _check_parent(self, path: str) -> str:
        path = posixpath.normpath(path)
        if _parent(path) not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return path

    def _change(self, *names: tuple[str, _FileNode | None]) -> None:
        change = _Change(names)
        self._pending.append(change)
        _apply(self._current, change)


def _parent(path: str) -> str:
    return posixpath.dirname(path) or "."


def _apply(names: dict[str, _FileNode], change: _Change) -> None:
    for name, node in change.names:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def crash_before(number: int) -> Hook:
    """A hook that crashes before the *number*-th changing operation, counted from 0."""
    seen = itertools.count()

    def hook(operation: Operation) -> None:
        if operation.kind in CHANGING and next(seen) == number:
            raise SimulatedCrashError(f"before {operation}")

    return hook


def fail_once(kind: str, number: int, code: int) -> Hook:
    """A hook that lets the *number*-th operation of *kind* (from 0) fail with errno *code*."""
    seen = itertools.count()

    def hook(operation: Operation) -> None:
        if operation.kind == kind and next(seen) == number:
            raise OSError(code, os.strerror(code), operation.path)

    return hook
