"""A real directory that is watched while a store works in it, to derive what a crash would leave.

LMDB maps its file, so it cannot run on a disk in memory. Instead every operation of the ``Files``
layer is preceded by a *moment*: a photo of the directory, and of what of it is surely durable. From
a moment follow all states that the end of the process or a power cut at that point may leave:

* a killed process leaves the directory as it is;
* a power cut undoes any subset of the names made, moved or removed since the directory's last
  fsync, and of each file may keep the content that was last synced instead of the present one.

Names are watched at the top of the directory: what is below moves with them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from quorate.storage.element_environment import ElementEnvironment
from quorate.storage.environment import Environment
from quorate.storage.files import File, OsFileSystem

#: A file's bytes, or the entries of a directory. Locks are not content, and left out.
Content = bytes | dict[str, bytes]
_IGNORED = frozenset({"LOCK", "lock.mdb"})


class Thing(NamedTuple):
    """A file or directory at the top: what it holds, and what of that is synced."""

    content: Content
    synced: Content


class Moment(NamedTuple):
    """What is there before the operation *operation*. *names* and *durable* lead to things by
    their numbers; *pending* are changes of names that a power cut may undo."""

    operation: str
    names: dict[str, int]
    durable: dict[str, int]
    pending: tuple[tuple[tuple[str, int | None], ...], ...]
    things: dict[int, Thing]


State = dict[str, Content]


def read_content(path: Path) -> Content:
    """Everything of a file, or of a directory of files."""
    if path.is_dir():
        inside = sorted(path.iterdir())
        return {each.name: each.read_bytes() for each in inside if each.name not in _IGNORED}
    return path.read_bytes()


def write_state(directory: Path, state: State) -> None:
    """Lay *state* out in an empty *directory*."""
    for name, content in state.items():
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        else:
            (directory / name).mkdir()
            for inner, data in content.items():
                (directory / name / inner).write_bytes(data)


def after_kill(moment: Moment) -> State:
    """What the next process finds when this one was killed."""
    return {name: moment.things[number].content for name, number in moment.names.items()}


def after_power_cuts(moment: Moment) -> Iterator[tuple[str, State]]:
    """What the next boot may find, each once, with a word on which choice led there."""
    seen: list[State] = []
    for choice, state in _power_cuts(moment):
        if state not in seen:
            seen.append(state)
            yield choice, state


def _power_cuts(moment: Moment) -> Iterator[tuple[str, State]]:
    choices = itertools.product((False, True), repeat=len(moment.pending))
    for kept in choices:
        names = dict(moment.durable)
        for change, keep in zip(moment.pending, kept, strict=True):
            for name, number in change if keep else ():
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
        shown = "".join("1" if keep else "0" for keep in kept)
        for what in ("content", "synced"):
            things = {name: getattr(moment.things[at], what) for name, at in names.items()}
            yield f"names {shown}, {what}", things
        # A directory that is being removed may have lost its files and not yet its name.
        for name in names:
            if name not in moment.names and isinstance(moment.things[names[name]].content, dict):
                state = {each: moment.things[at].content for each, at in names.items()}
                yield f"names {shown}, {name} emptied", {**state, name: {}}


class WatchedFile:
    """A file whose changing operations are moments."""

    def __init__(self, disk: WatchedFileSystem, file: File, path: str) -> None:
        self._disk = disk
        self._file = file
        self._path = path

    def pread(self, size_bytes: int, offset: int) -> bytes:
        """See ``File``, as all methods here."""
        return self._file.pread(size_bytes, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._disk.before("pwrite", self._path)
        self._file.pwrite(data, offset)

    def fdatasync(self) -> None:
        self._disk.before("fdatasync", self._path)
        self._file.fdatasync()
        self._disk.synced(self._path)

    def fsync(self) -> None:
        self._disk.before("fsync", self._path)
        self._file.fsync()
        self._disk.synced(self._path)

    def size_bytes(self) -> int:
        return self._file.size_bytes()

    def truncate(self, size_bytes: int) -> None:
        self._disk.before("truncate", self._path)
        self._file.truncate(size_bytes)

    def allocate(self, size_bytes: int) -> None:
        self._disk.before("allocate", self._path)
        self._file.allocate(size_bytes)

    def drop_cache(self, size_bytes: int = 0) -> None:
        self._file.drop_cache(size_bytes)

    def close(self) -> None:
        self._file.close()


class WatchedFileSystem(OsFileSystem):
    """The real disk below *root*, recorded in ``moments`` (if *record*), one operation failing.

    *fail* is (number of the operation, errno) or None.
    """

    def __init__(
        self, root: Path, *, record: bool = True, fail: tuple[int, int] | None = None
    ) -> None:
        self._root = root
        self._record = record
        self._fail = fail
        self.moments: list[Moment] = []
        self.operations = 0
        self._fresh = itertools.count()
        self._names: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: list[tuple[tuple[str, int | None], ...]] = []
        self._things: dict[int, Thing] = {}
        #: What the files of a directory hold durably, whose names in it may not be durable yet.
        self._unnamed: dict[int, Content] = {}
        self._look(durable=True)

    def holds(self, path: str) -> bool:
        """Whether *path* is on this disk."""
        return Path(path).is_relative_to(self._root)

    def moment(self, operation: str) -> None:
        """Take a photo."""
        if self._record:
            self._look(durable=False)
            things = dict(self._things)
            names, durable = dict(self._names), dict(self._durable)
            self.moments.append(Moment(operation, names, durable, tuple(self._pending), things))

    def adopt(self, moment: Moment) -> None:
        """This directory was laid out as ``after_kill`` left it: know what of it is durable."""
        self._names, self._durable = dict(moment.names), dict(moment.durable)
        self._pending, self._things = list(moment.pending), dict(moment.things)
        self._fresh = itertools.count(max(moment.things, default=-1) + 1)
        self._unnamed = {
            number: thing.content
            for number, thing in moment.things.items()
            if isinstance(thing.synced, dict) and thing.synced != thing.content
        }

    def before(self, kind: str, path: str) -> None:
        """An operation is about to happen; may raise in its place."""
        number = self.operations
        self.operations += 1
        self.moment(f"{number} {kind} {Path(path).name}")
        if self._fail is not None and self._fail[0] == number:
            raise OSError(self._fail[1], os.strerror(self._fail[1]), path)

    def synced(self, path: str) -> None:
        """The file *path*, or a file in the directory, is durable as it is now."""
        inside = Path(path).relative_to(self._root).parts
        self._look(durable=False)
        number = self._names.get(inside[0])
        if not self._record or number is None:
            return
        content = read_content(self._root / inside[0])
        if number in self._unnamed:
            self._unnamed[number] = content
        else:
            self._things[number] = self._things[number]._replace(synced=content)

    def create(self, path: str) -> File:
        self.before("create", path)
        file = super().create(path)
        self._look(durable=False)
        return WatchedFile(self, file, path)

    def open(self, path: str) -> File:
        return WatchedFile(self, super().open(path), path)

    def rename(self, old: str, new: str) -> None:
        self.before("rename", new)
        super().rename(old, new)
        if not self._record:
            return
        was, now = Path(old).name, Path(new).name
        number = self._names.pop(was)
        self._names[now] = number
        self._pending.append(((was, None), (now, number)))

    def unlink(self, path: str) -> None:
        self.before("unlink", path)
        super().unlink(path)
        self._look(durable=False)

    def fsync_dir(self, path: str) -> None:
        self.before("fsync_dir", path)
        super().fsync_dir(path)
        if Path(path) == self._root:
            self._look(durable=False)
            self._pending.clear()
            self._durable = dict(self._names)
        number = self._names.get(Path(path).name)
        if number in self._unnamed:
            content = self._unnamed.pop(number)
            self._things[number] = self._things[number]._replace(synced=content)

    def makedirs(self, path: str) -> None:
        self.before("makedirs", path)
        super().makedirs(path)
        self._look(durable=True)

    def _look(self, *, durable: bool) -> None:
        """Bring names and contents up to date with the directory."""
        if not self._record or not self._root.is_dir():
            return
        found = {each.name for each in self._root.iterdir() if each.name not in _IGNORED}
        for name in sorted(set(self._names) - found):
            del self._names[name]
            self._pending.append(((name, None),))
        for name in sorted(found):
            content = read_content(self._root / name)
            number = self._names.get(name)
            if number is None:
                number = self._names[name] = next(self._fresh)
                empty: Content = {} if isinstance(content, dict) else b""
                self._things[number] = Thing(content, content if durable else empty)
                if isinstance(content, dict):
                    self._unnamed[number] = {}
                if durable:
                    self._durable[name] = number
                else:
                    self._pending.append(((name, number),))
            self._things[number] = self._things[number]._replace(content=content)


@contextmanager
def lmdb_watched(
    disk: WatchedFileSystem, kind: type[Environment | ElementEnvironment] = Environment
) -> Iterator[None]:
    """Tell *disk* of LMDB's own syncs: those asked for, and the one in each durable commit."""
    sync: Callable[[Any], None] = kind.sync
    writing: Callable[[Any], AbstractContextManager[object]] = kind.writing

    def watched_sync(self: Environment | ElementEnvironment) -> None:
        if not disk.holds(self.path):
            sync(self)
            return
        disk.before("lmdb sync", self.path)
        sync(self)
        disk.synced(self.path)

    @contextmanager
    def watched_writing(self: Environment | ElementEnvironment) -> Iterator[object]:
        if not disk.holds(self.path):
            with writing(self) as transaction:
                yield transaction
            return
        disk.before("lmdb commit", self.path)
        with writing(self) as transaction:
            yield transaction
        if _commits_are_synced(self):
            disk.synced(self.path)

    setattr(kind, "sync", watched_sync)  # noqa: B010  of either kind
    setattr(kind, "writing", watched_writing)  # noqa: B010
    try:
        yield
    finally:
        setattr(kind, "sync", sync)  # noqa: B010
        setattr(kind, "writing", writing)  # noqa: B010


def _commits_are_synced(environment: Environment | ElementEnvironment) -> bool:
    flags: Callable[[], dict[str, object]] = environment._env.flags  # noqa: SLF001  no other way
    return bool(flags()["sync"])


def open_handles() -> int:
    """How many descriptors this process has open: a test for leaks."""
    handles = Path("/proc/self/fd")
    return len(list(handles.iterdir())) if handles.is_dir() else 0
