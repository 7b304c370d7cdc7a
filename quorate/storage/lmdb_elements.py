"""The element store on LMDB, in an environment of its own.

    crdt/LOCK               held while the store is open
    crdt/elements/          the environment: data.mdb, lock.mdb
    crdt/elements.partial/  the same while it is being made

Invariants owned here:

* A write is one LMDB transaction with both of its syncs on. What is read was committed so: readers
  begin at the last commit, and a commit is seen by others only when it is durable.
* No reader outlives a call but one, which is given back by every commit and is thus always at the
  last one: it pins no pages that a write could use again, and never meets a map that moves.
* What is served was checked: every record by its checksum, and when the store is opened the pages'
  structure (``lmdb_pages``), the names and the tables' seals.

Threads: one writes at a time, any may read meanwhile; the lock is held for a read and for giving
the reader back, never while a write works or waits for the disk. Never use a store across ``fork``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Final, TypeVar

import msgspec

from quorate.errors import (
    ClosedError,
    DiskFullError,
    FormatVersionError,
    StorageError,
    StoreCorruptionError,
)
from quorate.storage import element_tables as tables
from quorate.storage import store_format as form
from quorate.storage.directory import DirectoryLock
from quorate.storage.durable import REJOIN, disk_errors
from quorate.storage.element_tables import ElementTable, Page, TableWriter, Transaction
from quorate.storage.elements import (
    ELEMENT_TABLES_MAX,
    PAGE_BYTES_DEFAULT,
    check_change,
    check_page,
    check_table_count,
)
from quorate.storage.environment import MapFullError, writing
from quorate.storage.files import FileSystem, OsFileSystem
from quorate.storage.interfaces import Change
from quorate.storage.lmdb_opening import (
    MAP_BYTES_DEFAULT,
    LmdbEnvironment,
    LmdbError,
    lmdb_errors,
    open_lmdb,
    translated,
    trust_only_the_disk,
)
from quorate.storage.lmdb_pages import check_data_file

T = TypeVar("T")

_LAYOUT_VERSION: Final = 1
_OWN_DB: Final = b"quorate"
_TOP: Final = b"r/"
_DEEP: Final = b"i/"
_FORMAT_NAME: Final = b"elements"
_LEDGER_NAME: Final = b"ledger"


class _Ledger(msgspec.Struct, frozen=True, array_like=True):
    """What the store promises about itself: each table's seal, and a space that no key is in."""

    seals: dict[str, form.Seal] = {}
    next_space: int = 1


_ledger_decoder = msgspec.msgpack.Decoder(_Ledger)


class ElementStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters for metrics and for people; sizes in bytes."""

    records: int
    map_bytes: int
    used_bytes: int
    file_bytes: int
    map_growths: int


class _Environment:
    """The open data file: its tables, and the records that it keeps about itself."""

    def __init__(self, path: str, opened: LmdbEnvironment) -> None:
        self.path = path
        self.env = opened
        self.tables: dict[str, ElementTable] = {}
        self.ledger = _Ledger()
        try:
            with lmdb_errors(f"opening {path}"):
                opened.reader_check()  # slots of processes that died would pin old pages
                self._own = opened.open_db(_OWN_DB)
        except BaseException:
            opened.close()
            raise

    def initialize(self) -> None:
        """Say what this file is; the first thing written into a new one."""
        with lmdb_errors(f"creating {self.path}"):
            with writing(self.env, self.path) as transaction:
                version = _LAYOUT_VERSION.to_bytes(4, "little")
                self._put_own(transaction, _FORMAT_NAME, version)
                self._put_own(transaction, _LEDGER_NAME, msgspec.msgpack.encode(self.ledger))
            self.env.sync(True)  # noqa: FBT003 (py-lmdb's own signature)

    def load(self) -> None:
        """Read what the file says of itself, and check that nothing is missing.

        Raises:
            StoreCorruptionError: a name, a table or a record is missing, or damaged.
            FormatVersionError: written by a newer quorate.
        """
        with lmdb_errors(f"opening {self.path}"):
            with self.env.begin() as reader:
                self.ledger = self._read_ledger(reader)
                names = {bytes(name) for name, _ in reader.cursor()} - {_OWN_DB}
            found = sorted(name[len(_TOP) :] for name in names if name.startswith(_TOP))
            if names != {prefix + name for prefix in (_TOP, _DEEP) for name in found}:
                raise self._damaged(f"its databases are {sorted(names)}")
            try:
                self._open_tables([name.decode() for name in found])
            except UnicodeDecodeError as error:
                raise self._damaged("a table's name is damaged") from error
            with self.env.begin() as reader:
                self._check_tables(reader)

    def _read_ledger(self, reader: Transaction) -> _Ledger:
        names = {bytes(name) for name, _ in reader.cursor(self._own)}
        if names != {_FORMAT_NAME, _LEDGER_NAME}:
            raise self._damaged(f"it has records named {sorted(names)}")
        version = int.from_bytes(self._get_own(reader, _FORMAT_NAME), "little")
        if version > _LAYOUT_VERSION:
            raise FormatVersionError(
                f"{self.path} has format {version}, this quorate knows up to {_LAYOUT_VERSION}:"
                " start the newer quorate that wrote it"
            )
        try:
            return _ledger_decoder.decode(self._get_own(reader, _LEDGER_NAME))
        except msgspec.DecodeError as error:
            raise self._damaged(f"its ledger is none: {error}") from error

    def _check_tables(self, reader: Transaction) -> None:
        seals = self.ledger.seals
        if not seals.keys() <= self.tables.keys():
            raise self._damaged(f"tables are missing: {sorted(seals.keys() - self.tables.keys())}")
        for name, table in self.tables.items():
            found, promised = tables.whole_seal(reader, table), seals.get(name, form.EMPTY_SEAL)
            if found != promised:
                raise form.damaged_table(name, promised, found)

    def missing_tables(self, names: Iterable[str]) -> list[str]:
        """Those of *names* that are not there yet."""
        return [name for name in names if name not in self.tables]

    def create_tables(self, names: list[str]) -> dict[str, ElementTable]:
        """Make empty tables, in a transaction of their own: a handle does not survive the failure
        of the transaction that created its database."""
        made = {}
        with writing(self.env, self.path) as transaction:
            for name in names:
                encoded = name.encode()
                top = self.env.open_db(_TOP + encoded, transaction)
                made[name] = ElementTable(name, top, self.env.open_db(_DEEP + encoded, transaction))
        return made

    def write(self, changes: Mapping[str, list[Change]]) -> None:
        """One attempt of a write; all tables are there."""
        next_space = self.ledger.next_space

        def take_space() -> int:
            nonlocal next_space
            next_space += 1
            return next_space - 1

        seals = dict(self.ledger.seals)
        with writing(self.env, self.path) as transaction:
            for name, of_table in changes.items():
                writer = TableWriter(transaction, self.tables[name], take_space)
                writer.write(of_table)
                seals[name] = seals.get(name, form.EMPTY_SEAL).plus(writer.count, writer.checks)
            ledger = _Ledger(seals, next_space)
            self._put_own(transaction, _LEDGER_NAME, msgspec.msgpack.encode(ledger))
        self.ledger = ledger

    def grow(self, size_bytes_max: int) -> None:
        """Enlarge the map; no transaction is open.

        Raises:
            DiskFullError: it may not grow.
        """
        map_bytes = self.env.info()["map_size"]
        if map_bytes >= size_bytes_max:
            raise DiskFullError(
                f"{self.path} may not grow beyond {size_bytes_max} bytes; nothing was changed;"
                " delete records or allow more"
            )
        self.env.set_mapsize(min(2 * map_bytes, size_bytes_max))

    def _open_tables(self, names: Iterable[str]) -> None:
        for name in names:
            top = self.env.open_db(_TOP + name.encode())
            self.tables[name] = ElementTable(name, top, self.env.open_db(_DEEP + name.encode()))

    def _get_own(self, reader: Transaction, name: bytes) -> bytes:
        return form.without_check(reader.get(name, b"", self._own), name)

    def _put_own(self, transaction: Transaction, name: bytes, content: bytes) -> None:
        transaction.put(name, form.with_check(content, name), db=self._own)

    def _damaged(self, what: str) -> StoreCorruptionError:
        return StoreCorruptionError(f"{self.path} is damaged: {what}. {REJOIN}")


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
        self._lock = Lock()  # guards the reader
        self._reader: Transaction | None = None
        self._pid = os.getpid()
        self._failed: StorageError | None = None
        self._closed = False
        self._growths = 0
        with disk_errors(f"opening the element store {self.directory}"):
            files.makedirs(self.directory)
        self._directory_lock = DirectoryLock(self.directory, files)
        try:
            with disk_errors(f"opening the element store {self.directory}"):
                self._environment = _open(
                    files, self.directory, min(map_bytes, self._size_bytes_max)
                )
        except BaseException:
            self._directory_lock.release()
            raise
        self._tables = self._environment.tables

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
                return page.records
            except LmdbError as error:
                raise translated(error, f"reading table {table!r}") from error

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
            info = environment.env.info()
            return ElementStatistics(
                records=sum(seal.count for seal in environment.ledger.seals.values()),
                map_bytes=info["map_size"],
                used_bytes=(info["last_pgno"] + 1) * environment.env.stat()["psize"],
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
        self._environment.env.close()
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
        with lmdb_errors(f"reading {self.directory}"):
            self._reader = reader = self._environment.env.begin()
        return reader

    def _give_reader_back(self) -> None:
        """The next read begins anew, at the last commit, or is refused."""
        with self._lock:
            self._drop_reader()

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.abort()

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
            self._give_reader_back()  # it does not know their databases
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
                with lmdb_errors(f"looking at {self.directory} after a failure"):
                    self._environment.env.begin(write=True).abort()  # or did LMDB give up?
                raise

    def _grow(self) -> None:
        with self._lock:
            self._drop_reader()
            with lmdb_errors(f"growing the map of {self.directory}"):
                self._environment.grow(self._size_bytes_max)
        self._growths += 1


def _open(files: FileSystem, directory: str, map_bytes: int) -> _Environment:
    """The store in *directory*, made if there is none. Raises ``OSError`` too."""
    path = os.path.join(directory, "elements")
    _remove(files, path + ".partial")
    # A process that died in the first opening may have left the name undone on disk.
    files.fsync_dir(directory)
    if not files.exists(path):
        _create(files, path, map_bytes)
    data_path = os.path.join(path, "data.mdb")
    if files.exists(data_path):
        trust_only_the_disk(files, data_path)
    check_data_file(data_path)
    environment = _Environment(path, _opened(path, map_bytes, durable=True))
    try:
        environment.load()
    except BaseException:
        environment.env.close()
        raise
    return environment


def _create(files: FileSystem, path: str, map_bytes: int) -> None:
    """A new store that has its name when it is durable."""
    partial = path + ".partial"
    files.makedirs(partial)
    environment = _Environment(partial, _opened(partial, map_bytes, durable=False))
    try:
        environment.initialize()
    finally:
        environment.env.close()
    files.fsync_dir(partial)
    files.rename(partial, path)
    files.fsync_dir(os.path.dirname(path))


def _opened(path: str, map_bytes: int, *, durable: bool) -> LmdbEnvironment:
    return open_lmdb(path, map_bytes, databases_max=2 * ELEMENT_TABLES_MAX + 1, durable=durable)


def _remove(files: FileSystem, path: str) -> None:
    if files.exists(path):
        shutil.rmtree(path)
