"""Sending and receiving a state store record by record, in chunks that can be resumed.

The order of chunks is part of the contract: tables sorted by name, keys ascending. The reader
produces it, the installer insists on it, so that no record can be lost or come twice unnoticed.
This module must not know how records are stored: it works on a ``View`` and a ``Build``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from quorate.base.invariants import must
from quorate.errors import ClosedError, InvalidArgumentError, StoreCorruptionError
from quorate.storage import store_format as form
from quorate.storage.interfaces import SnapshotChunk, StoreMeta
from quorate.storage.store_format import ChunkOrder, Seal

#: What a record costs in a chunk beside its bytes: the headers of an array and two byte strings.
_RECORD_OVERHEAD_BYTES = 8


class View(Protocol):
    """One consistent view of a store."""

    @property
    def lock(self) -> AbstractContextManager[object]: ...
    def meta(self) -> StoreMeta | None: ...
    def seals(self) -> dict[str, Seal]: ...
    def records(self, name: str, after: bytes | None) -> Iterator[tuple[bytes, bytes]]: ...
    def check_open(self) -> None: ...
    def close(self) -> None: ...


class Build(Protocol):
    """A store under construction."""

    def append(self, name: str, records: Sequence[tuple[bytes, bytes]]) -> None: ...


class StoreSnapshotReader:
    """``SnapshotReader`` over a view; see there."""

    def __init__(self, view: View) -> None:
        self._view = view
        try:
            meta = view.meta()
            must(meta is not None, "a snapshot is of a checkpoint")
            self._seals = view.seals()
        except BaseException:
            view.close()
            raise
        self._meta: StoreMeta = meta  # type: ignore[assignment]

    @property
    def meta(self) -> StoreMeta:
        return self._meta

    @property
    def record_count(self) -> int:
        return sum(seal.count for seal in self._seals.values())

    def chunks(self, after: bytes, size_bytes: int) -> Iterator[SnapshotChunk]:
        """See ``SnapshotReader.chunks``; a record larger than *size_bytes* is a chunk of its own.

        Raises:
            InvalidArgumentError: *after* is no position of this checkpoint.
            StoreCorruptionError: a record is damaged.
            ClosedError: the reader or its store was closed.
        """
        if size_bytes < 1:
            raise InvalidArgumentError(f"a chunk of {size_bytes} bytes")
        applied = self._meta.applied
        last_table, last_key = form.decode_position(after, applied)
        for name in self._seals:
            if name < last_table:
                continue
            resumed = after and name == last_table
            records = self._view.records(name, last_key if resumed else None)
            while batch := self._take(records, size_bytes):
                position = form.encode_position(applied, name, batch[-1][0])
                yield SnapshotChunk(name, tuple(batch), position)

    def close(self) -> None:
        """End the view. Idempotent."""
        self._view.close()

    def _take(
        self, records: Iterator[tuple[bytes, bytes]], size_bytes: int
    ) -> list[tuple[bytes, bytes]]:
        """About *size_bytes* of records, at least one; none at the end."""
        batch: list[tuple[bytes, bytes]] = []
        room = size_bytes
        with self._view.lock:
            self._view.check_open()
            for record in records:
                batch.append(record)
                room -= len(record[0]) + len(record[1]) + _RECORD_OVERHEAD_BYTES
                if room <= 0:
                    break
        return batch


class StoreSnapshotInstaller:
    """``SnapshotInstaller`` over a build; see there. *finish* and *abandon* are the owner's."""

    def __init__(
        self, build: Build, finish: Callable[[StoreMeta], None], abandon: Callable[[], None]
    ) -> None:
        self._build: Build | None = build
        self._finish = finish
        self._abandon = abandon
        self._order = ChunkOrder()
        self._count = 0

    def add(self, chunk: SnapshotChunk) -> None:
        """Add the next chunk, or nothing of it.

        Raises:
            StoreCorruptionError: it does not follow the last one.
            DiskFullError: no space; the chunk may be added again.
        """
        build = self._open_build()
        form.check_table_name(chunk.table)
        self._order.check(chunk)
        for key, _ in chunk.records:
            form.check_key(chunk.table, key)
        build.append(chunk.table, chunk.records)
        self._order.accept(chunk)
        self._count += len(chunk.records)

    def finish(self, meta: StoreMeta, record_count: int) -> None:
        """See ``SnapshotInstaller.finish``.

        Raises:
            StoreCorruptionError: records are missing, or too many came; nothing was changed.
            DiskFullError: no space; nothing was changed, and it may be tried again.
        """
        self._open_build()
        if self._count != record_count:
            raise StoreCorruptionError(
                f"the snapshot has {self._count} records, its sender counted {record_count}: send"
                " it again from the start"
            )
        self._finish(meta)
        self._build = None

    def abort(self) -> None:
        """Throw the unfinished store away. Idempotent, also after ``finish``."""
        if self._build is not None:
            self._build = None
            self._abandon()

    def detach(self) -> None:
        """The owner threw the build away."""
        self._build = None

    def _open_build(self) -> Build:
        if self._build is None:
            raise ClosedError("this snapshot was finished or given up; start a new installer")
        return self._build
