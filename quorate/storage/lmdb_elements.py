"""The element store on LMDB, in an environment of its own.

    crdt/LOCK               held while the store is open
    crdt/elements/          the environment: data.mdb, lock.mdb
    crdt/elements.partial/  the same while it is being made

Invariants owned here:

* A write is one LMDB transaction with both of its syncs on. What is read was committed so: readers
  begin at the last commit, and a commit is seen by others only when it is durable.
* No reader outlives a call but one, which every commit gives back. So it is always at the last
  commit: it pins no pages that a write could use again, and never meets a map that moves.
* What is served was checked: every record by its checksum, and when the store is opened the pages'
  structure (``lmdb_pages``), the names and the tables' seals (``element_environment``).

Threads: one writes at a time, any may read meanwhile. The lock is held for a read and for giving
the reader back, never while a write works or waits for the disk. Never use a store across ``fork``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Final, TypeVar

import msgspec

from quorate.base.limits import KIB, MIB
from quorate.errors import ClosedError, DiskFullError, StorageError
from quorate.storage import element_tables as tables
from quorate.storage import store_format as form
from quorate.storage.allocator import mapped_bytes
from quorate.storage.directory import DirectoryLock
from quorate.storage.durable import disk_errors
from quorate.storage.element_environment import ElementEnvironment
from quorate.storage.element_tables import Page, Transaction
from quorate.storage.elements import (
    PAGE_BYTES_DEFAULT,
    check_change,
    check_page,
    check_table_count,
)
from quorate.storage.environment import MapFullError
from quorate.storage.files import FileSystem, OsFileSystem
from quorate.storage.interfaces import Change
from quorate.storage.lmdb_opening import (
    MAP_BYTES_DEFAULT,
    LmdbError,
    lmdb_errors,
    translated,
    trust_only_the_disk,
)
from quorate.storage.lmdb_pages import check_data_file

T = TypeVar("T")

#: Memory that mapped pages of the file may take when the store is read through, before it is given
#: back: the system could take it at any time, but it counts as this process's. Where the records of
#: one page are followed by those of a far one, reading more than that takes up to half longer.
MAPPED_BYTES_MAX: Final = 32 * MIB
#: How many bytes of records are read in pages before the next look at that.
PAGED_BYTES: Final = 256 * KIB


class ElementStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters for metrics and for people; sizes in bytes."""

    records: int
    map_bytes: int
    used_bytes: int
    file_bytes: int
    map_growths: int


class LmdbElementStore:
    """``ElementStore`` in the directory *directory*, which is created if need be.

    *size_bytes_max* bounds the data file (None: only the disk does); *map_bytes* is the address
    space reserved at first; *files* stands for the disk in tests (not for LMDB's own file).

    Raises:
        DirectoryInUseError: another process or store has it open.
        StoreCorruptionError: what is there is damaged.
        FormatVersionError: it was written by a newer quorate.
        StorageError: the disk failed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        map_bytes: int = MAP_BYTES_DEFAULT,
        size_bytes_max: int | None = None,
        files: FileSystem | None = None,
    ) -> None:
        self.directory = os.path.abspath(directory)
        self._size_bytes_max = sys.maxsize if size_bytes_max is None else size_bytes_max
        self._files = files = OsFileSystem() if files is None else files
        self._lock = RLock()  # guards the reader, and which tables there are
        self._writing = Lock()  # held by a write, and while the file is opened anew
        self._reader: Transaction | None = None
        self._paged_bytes = 0
        self._pid = os.getpid()
        self._failed: StorageError | None = None
        self._closed = False
        self._growths = 0
        doing = f"opening the element store {self.directory}"
        with disk_errors(doing):
            files.makedirs(self.directory)
        self._directory_lock = DirectoryLock(self.directory, files)
        try:
            with disk_errors(doing):
                map_bytes = min(map_bytes, self._size_bytes_max)
                self._environment = _open(files, self.directory, map_bytes)
        except BaseException:
            self._directory_lock.release()
            raise
        self._tables = self._environment.tables
        self._mapped_bytes = mapped_bytes()

    def get(self, table: str, key: bytes) -> bytes | None:
        """As the protocol says."""
        with self._lock:
            reader = self._reader or self._begin_reading()
            found = self._tables.get(table)
            if found is None or not key:
                return None
            try:
                return tables.get(reader, found, key)
            except LmdbError as error:
                raise translated(error, f"reading table {table!r}") from error

    def page(
        self,
        table: str,
        start: bytes,
        end: bytes | None,
        limit: int,
        bytes_max: int = PAGE_BYTES_DEFAULT,
    ) -> list[tuple[bytes, bytes]]:
        """As the protocol says."""
        check_page(limit, bytes_max)
        with self._lock:
            reader = self._reader or self._begin_reading()
            found = self._tables.get(table)
            if found is None:
                return []
            try:
                page = Page(reader, found, limit, bytes_max)
                page.fill(start, end)
            except LmdbError as error:
                raise translated(error, f"reading table {table!r}") from error
            self._paged_bytes += bytes_max - page.left_bytes
            if self._paged_bytes > PAGED_BYTES:
                self._give_memory_back()
        return page.records

    def last(self, table: str, end: bytes | None = None) -> tuple[bytes, bytes] | None:
        """As the protocol says."""
        with self._lock:
            reader = self._reader or self._begin_reading()
            found = self._tables.get(table)
            if found is None:
                return None
            try:
                return tables.last(reader, found, end)
            except LmdbError as error:
                raise translated(error, f"reading table {table!r}") from error

    def write(self, changes: Mapping[str, Iterable[Change]]) -> None:
        """As the protocol says."""
        pending = {name: list(of_table) for name, of_table in changes.items()}
        for name, of_table in pending.items():
            form.check_table_name(name)
            for key, value in of_table:
                check_change(name, key, value)
        with self._writing:
            self._check_usable()
            with self._stopping_if_failed():
                self._create_missing(pending)
                self._attempt("writing to", lambda: self._environment.write(pending))
            self._give_reader_back()

    def statistics(self) -> ElementStatistics:
        """Counters of this moment."""
        with self._lock:
            self._check_usable()
            environment = self._environment
            return ElementStatistics(
                records=sum(seal.count for seal in environment.ledger.seals.values()),
                map_bytes=environment.map_bytes,
                used_bytes=environment.used_bytes,
                file_bytes=self.size_bytes(),
                map_growths=self._growths,
            )

    def size_bytes(self) -> int:
        """Bytes on disk."""
        self._check_usable()
        with disk_errors("measuring the element store"):
            return os.stat(os.path.join(self._environment.path, "data.mdb")).st_size

    def close(self) -> None:
        """As the protocol says."""
        if self._closed:
            return
        self._closed = True
        self._give_reader_back()
        self._environment.close()
        self._directory_lock.release()

    # --- inside -----------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError(f"the element store in {self.directory} was closed")
        if os.getpid() != self._pid:
            raise StorageError("an element store was used across fork: open it in the child")
        if self._failed is not None:
            raise StorageError(
                f"the element store in {self.directory} failed before and is not used again until"
                f" the node restarts: {self._failed}"
            ) from self._failed

    def _begin_reading(self) -> Transaction:
        """The reader, at the last commit. The lock is held."""
        self._check_usable()
        self._reader = reader = self._environment.begin_reading()
        return reader

    def _give_reader_back(self) -> None:
        """The next read begins anew, at the last commit, or is refused."""
        with self._lock:
            self._drop_reader()

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.abort()

    def _give_memory_back(self) -> None:
        """If it is much, and unless a write is under way: then the next page tries again. The lock
        is held."""
        if mapped_bytes() - self._mapped_bytes <= MAPPED_BYTES_MAX:
            self._paged_bytes = 0
        elif self._writing.acquire(blocking=False):
            try:
                self._drop_reader()
                with self._stopping_if_failed():
                    self._environment.renew()
                self._mapped_bytes = mapped_bytes()
                self._paged_bytes = 0
            finally:
                self._writing.release()

    @contextmanager
    def _stopping_if_failed(self) -> Iterator[None]:
        """After anything but a full disk the store is unusable: the page cache may have dropped
        what the disk refused, and a second attempt would find nothing left to fail on."""
        try:
            yield
        except DiskFullError:
            raise
        except StorageError as error:
            self._failed = error
            self._give_reader_back()
            raise

    def _create_missing(self, names: Iterable[str]) -> None:
        environment = self._environment
        missing = environment.missing_tables(names)
        if missing:
            check_table_count(len(self._tables) + len(missing))
            made = self._attempt("creating tables in", lambda: environment.create_tables(missing))
            with self._lock:
                self._drop_reader()  # it does not know their databases
                self._tables.update(made)

    def _attempt(self, doing: str, change: Callable[[], T]) -> T:
        """Make a change, with a larger map if need be."""
        while True:
            try:
                with lmdb_errors(f"{doing} {self.directory}"):
                    return change()
            except MapFullError:
                self._grow()
            except DiskFullError:
                self._environment.probe()
                raise

    def _grow(self) -> None:
        with self._lock:
            self._drop_reader()
            self._environment.grow(self._size_bytes_max)
        self._growths += 1


def _open(files: FileSystem, directory: str, map_bytes: int) -> ElementEnvironment:
    """The store in *directory*, made if there is none. Raises ``OSError`` too."""
    path = os.path.join(directory, "elements")
    if files.exists(path + ".partial"):
        shutil.rmtree(path + ".partial")
    # A process that died in the first opening may have left the name undone on disk.
    files.fsync_dir(directory)
    if not files.exists(path):
        _create(files, path, map_bytes)
    data_path = os.path.join(path, "data.mdb")
    if files.exists(data_path):
        trust_only_the_disk(files, data_path)
    check_data_file(data_path)
    environment = ElementEnvironment(path, map_bytes)
    try:
        environment.load()
    except BaseException:
        environment.close()
        raise
    return environment


def _create(files: FileSystem, path: str, map_bytes: int) -> None:
    """A new store, which has its name when it is durable."""
    partial = path + ".partial"
    files.makedirs(partial)
    environment = ElementEnvironment(partial, map_bytes, durable=False)
    try:
        environment.initialize()
    finally:
        environment.close()
    files.fsync_dir(partial)
    files.rename(partial, path)
    files.fsync_dir(os.path.dirname(path))
