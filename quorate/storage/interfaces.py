"""What a node needs from its disk. Files and memory twins implement the same protocols and pass
the same contract tests (``tests/storage/``).

All calls block; the node makes them on its disk thread, never on the event loop. A failed write
or fsync leaves the object unusable (every later call raises ``StorageError``): the page cache may
have dropped what the kernel could not write, so retrying would acknowledge lost data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import Entry, EntryId, HardState


class EntryMeta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the core must know of an entry without holding its payload."""

    term: Term
    kind: int
    size_bytes: int


class RecoveredLog(msgspec.Struct, frozen=True):
    """What a log holds when it is opened.

    *floor* names the entry just before the first kept one (``EntryId(0, 0)`` for a whole log);
    ``metas[i]`` describes the entry at index ``floor.index + 1 + i``.
    """

    hard_state: HardState
    floor: EntryId
    metas: Sequence[EntryMeta]


class LogStore(Protocol):
    """The replicated log and the hard state, append-only.

    ``read`` may be called from another thread than the writer's; all else from one thread.
    """

    def recover(self) -> RecoveredLog:
        """What survived; called once, first.

        Raises:
            LogCorruptionError: a damaged record that is not the torn tail of an unfinished write.
            FormatVersionError: written by a newer version.
        """
        ...

    def append(self, entries: Sequence[Entry], hard_state: HardState | None) -> None:
        """Make both durable with one write and one fsync.

        ``entries`` are contiguous. If ``entries[0].index`` is at or below the last index, the log
        is truncated from there in the same durable step. On return both are durable; on
        ``StorageError`` neither may be assumed and the log is unusable. ``DiskFullError`` means
        nothing was written and the log stays usable.
        """
        ...

    def read(self, first: LogIndex, last: LogIndex, size_bytes_max: int) -> list[Entry]:
        """Entries *first* to at most *last*, stopping before *size_bytes_max* of payload is passed
        (but always at least one entry). Checked again on reading.

        Raises:
            KeyError: *first* is at or below the floor, or above the last index.
            LogCorruptionError: the bytes read back are not those that were written.
        """
        ...

    def cut(self, floor: EntryId) -> EntryId:
        """Forget entries at or below ``floor.index``, as far as whole segments allow; returns the
        new floor, which may be lower than asked for but never higher."""
        ...

    def reset(self, floor: EntryId, hard_state: HardState) -> None:
        """Durably drop every entry; the log now begins after *floor* (snapshot installed)."""
        ...

    def size_bytes(self) -> int:
        """Bytes of entries kept, for metrics and for deciding when to checkpoint."""
        ...

    def close(self) -> None:
        """Release files. Idempotent."""
        ...


class StoreMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says of itself; written in the same transaction as the records."""

    format_version: int = 1
    #: The last entry that the records include.
    applied: EntryId
    #: Cluster time of that entry, milliseconds.
    time_ms: int
    #: Encoded ``consensus.membership`` history as of *applied*.
    membership: bytes
    #: Rolling hash of the applied state, 8 bytes.
    state_hash: bytes
    #: Version of each machine whose records these are, by name.
    machine_versions: dict[str, int] = {}
    #: Set when the records came as a snapshot: the log must contain this entry or be reset to it.
    installed: EntryId | None = None


#: Changed records of one table: key, and the encoded record or None for a delete.
Change = tuple[bytes, bytes | None]


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True):
    """A run of records of one table, in key order.

    *position* is opaque: handing it to ``SnapshotReader.chunks`` continues after this chunk.
    """

    table: str
    records: tuple[tuple[bytes, bytes], ...]
    position: bytes


class SnapshotReader(Protocol):
    """One consistent view of the last checkpoint, held open until ``close``."""

    @property
    def meta(self) -> StoreMeta: ...
    @property
    def record_count(self) -> int: ...
    def chunks(self, after: bytes, size_bytes: int) -> Iterator[SnapshotChunk]:
        """Chunks of about *size_bytes*, from the start (``b""``) or after a chunk's position."""
        ...

    def close(self) -> None: ...


class SnapshotInstaller(Protocol):
    """Builds a store beside the present one and swaps it in. Not durable until ``finish``."""

    def add(self, chunk: SnapshotChunk) -> None:
        """Chunks in order, each once; a chunk that does not follow the last is refused
        (``StoreCorruptionError``)."""
        ...

    def finish(self, meta: StoreMeta, record_count: int) -> None:
        """Make the new store durable, check the count, and replace the old one in one atomic
        step. On return the owning ``StateStore`` serves the new records; after a crash at any
        point the directory holds either the old store whole or the new one whole."""
        ...

    def abort(self) -> None:
        """Throw the unfinished store away. Idempotent."""
        ...


class StateStore(Protocol):
    """Checkpoints of the machines' tables: ordered byte keys to encoded records, per table."""

    def meta(self) -> StoreMeta | None:
        """Of the last checkpoint, or None for a fresh store."""
        ...

    def tables(self) -> list[str]:
        """Names of the tables that hold records, sorted."""
        ...

    def load(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Every record of *table* in key order; the bytes are copies."""
        ...

    def checkpoint(self, meta: StoreMeta, changes: Mapping[str, Iterable[Change]]) -> None:
        """Write all changes and *meta* in one durable transaction, or nothing.

        ``changes`` may hand out its records lazily: the iterables are consumed once, in order.

        Raises:
            DiskFullError: no space; nothing was changed and the store stays usable.
        """
        ...

    def snapshot(self) -> SnapshotReader:
        """Open a consistent view of the last checkpoint; several may be open at once."""
        ...

    def installer(self) -> SnapshotInstaller:
        """Start to receive a snapshot; at most one at a time (a second call aborts the first)."""
        ...

    def release_pages(self) -> bool:
        """Give back the memory that ``load`` filled with pages of the data file; call it after the
        last ``load``. False, having done nothing, while a ``load`` or a snapshot is open."""
        ...

    def size_bytes(self) -> int:
        """Bytes on disk."""
        ...

    def close(self) -> None:
        """Release files. Idempotent."""
        ...
