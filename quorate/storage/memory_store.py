"""The twin of the state store in memory: the same contract, for the simulator and for tests.

What would survive a crash is a ``MemoryImage``; a ``MemoryStateStore`` opens one, and a second one
over the same image sees what a restarted node would see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from quorate.base.invariants import must
from quorate.errors import (
    ClosedError,
    DirectoryInUseError,
    DiskFullError,
    InvalidArgumentError,
    LimitExceededError,
)
from quorate.storage import store_format as form
from quorate.storage.interfaces import Change, StoreMeta
from quorate.storage.snapshots import StoreSnapshotInstaller, StoreSnapshotReader
from quorate.storage.store_format import Seal

Tables = Mapping[str, Mapping[bytes, bytes]]


class _Checkpoint(msgspec.Struct, frozen=True):
    """One checkpoint; never changed, only replaced, so that a view needs no copy of it."""

    meta: StoreMeta | None
    tables: Tables


class MemoryImage:
    """What the disk would hold: the last whole checkpoint."""

    def __init__(self) -> None:
        self.checkpoint = _Checkpoint(None, {})
        self.opened = False
        #: More bytes of keys and values than this do not fit: ``DiskFullError``.
        self.size_bytes_max: int | None = None

    def put(self, checkpoint: _Checkpoint) -> None:
        """Replace the checkpoint, or raise DiskFullError and change nothing."""
        size = _size_bytes(checkpoint.tables)
        if self.size_bytes_max is not None and size > self.size_bytes_max:
            raise DiskFullError(
                f"no space for {size} bytes, {self.size_bytes_max} are allowed; nothing was"
                " changed; delete records or allow more"
            )
        self.checkpoint = checkpoint


class MemoryStateStore:
    """``StateStore`` over an image; see there. One at a time, as with a directory.

    Raises:
        DirectoryInUseError: the image is open.
    """

    def __init__(self, image: MemoryImage | None = None) -> None:
        self.image = MemoryImage() if image is None else image
        if self.image.opened:
            raise DirectoryInUseError("the image is in use by another store; close that one")
        self.image.opened = True
        self._views: list[_View] = []
        self._installer: StoreSnapshotInstaller | None = None
        self._closed = False

    def meta(self) -> StoreMeta | None:
        return self._usable().checkpoint.meta

    def tables(self) -> list[str]:
        return sorted(self._usable().checkpoint.tables)

    def load(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        yield from _View(self._usable().checkpoint).records(table, None)

    def checkpoint(self, meta: StoreMeta, changes: Mapping[str, Iterable[Change]]) -> None:
        image = self._usable()
        form.encode_meta(meta)  # refuses what the store on disk refuses
        for name in changes:
            form.check_table_name(name)
        last = image.checkpoint
        if last.meta is not None:
            must(
                meta.applied.index >= last.meta.applied.index,
                "checkpoints never go back",
                last=last.meta.applied,
                next=meta.applied,
            )
        tables = dict(last.tables)
        for name, of_table in changes.items():
            tables[name] = _changed(name, tables.get(name, {}), of_table)
        image.put(_Checkpoint(meta, _checked_tables(tables)))

    def snapshot(self) -> StoreSnapshotReader:
        view = _View(self._usable().checkpoint)
        reader = StoreSnapshotReader(view)
        self._views = [each for each in self._views if each.is_open]
        self._views.append(view)
        return reader

    def installer(self) -> StoreSnapshotInstaller:
        self._usable()
        self._abandon()
        build = _Build()
        self._installer = StoreSnapshotInstaller(
            build, lambda meta: self._finish(meta, build), self._abandon
        )
        return self._installer

    def release_pages(self) -> bool:
        """Nothing to give back."""
        self._usable()
        return not any(view.is_open for view in self._views)

    def size_bytes(self) -> int:
        return _size_bytes(self._usable().checkpoint.tables)

    def close(self) -> None:
        if self._closed:
            return
        self._abandon()
        self._closed = True
        self.image.opened = False
        for view in self._views:
            view.close()

    def _usable(self) -> MemoryImage:
        if self._closed:
            raise ClosedError("the state store in memory was closed")
        return self.image

    def _finish(self, meta: StoreMeta, build: _Build) -> None:
        image = self._usable()
        form.encode_meta(meta)
        last = image.checkpoint.meta
        if last is not None and meta.applied.index < last.applied.index:
            raise InvalidArgumentError(
                f"the snapshot ends at {meta.applied}, this store is at {last.applied} already:"
                " an older state is not installed over a newer one"
            )
        image.put(_Checkpoint(meta, _checked_tables(build.tables)))
        self._installer = None

    def _abandon(self) -> None:
        installer, self._installer = self._installer, None
        if installer is not None:
            installer.detach()


class _View:
    """A checkpoint that is being read."""

    def __init__(self, checkpoint: _Checkpoint) -> None:
        self.lock: AbstractContextManager[object] = nullcontext()
        self._checkpoint: _Checkpoint | None = checkpoint

    @property
    def is_open(self) -> bool:
        return self._checkpoint is not None

    def check_open(self) -> None:
        self._open()

    def meta(self) -> StoreMeta | None:
        return self._open().meta

    def seals(self) -> dict[str, Seal]:
        tables = self._open().tables
        return {name: Seal(len(tables[name]), 0) for name in sorted(tables)}

    def records(self, name: str, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        table = self._open().tables.get(name, {})
        for key in sorted(table):
            if after is None or key > after:
                yield key, table[key]

    def close(self) -> None:
        self._checkpoint = None

    def _open(self) -> _Checkpoint:
        if self._checkpoint is None:
            raise ClosedError("the view of the state store was closed; open a new one")
        return self._checkpoint


class _Build:
    """A snapshot that is being received."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {}

    def append(self, name: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        self.tables.setdefault(name, {}).update(records)


def _changed(
    name: str, table: Mapping[bytes, bytes], changes: Iterable[Change]
) -> dict[bytes, bytes]:
    copy = dict(table)
    for key, value in changes:
        form.check_key(name, key)
        if value is None:
            copy.pop(key, None)
        else:
            copy[key] = value
    return copy


def _checked_tables(tables: Tables) -> Tables:
    held = {name: table for name, table in tables.items() if table}
    if len(held) > form.TABLES_MAX:
        raise LimitExceededError(f"more than {form.TABLES_MAX} tables in one store")
    return held


def _size_bytes(tables: Tables) -> int:
    return sum(len(key) + len(value) for each in tables.values() for key, value in each.items())
