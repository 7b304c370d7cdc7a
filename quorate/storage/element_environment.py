"""The open data file of an element store: its tables, and the records it keeps about itself.

These stand in a database of their own, each with a checksum: what the file is (``elements``), and
the *ledger*: every table's seal, and the number of the next space (``element_tables``). It is
written in the transaction that changes the tables, so that a page that was lost, or came back from
an earlier life with every record sound, shows as a sum that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from quorate.errors import DiskFullError, FormatVersionError, StoreCorruptionError
from quorate.storage import element_tables as tables
from quorate.storage import store_format as form
from quorate.storage.durable import REJOIN
from quorate.storage.element_tables import Database, ElementTable, TableWriter, Transaction
from quorate.storage.elements import ELEMENT_TABLES_MAX
from quorate.storage.environment import writing
from quorate.storage.interfaces import Change
from quorate.storage.lmdb_opening import LmdbEnvironment, lmdb_errors, open_lmdb

LAYOUT_VERSION: Final = 1
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


class ElementEnvironment:
    """The data file in the directory *path*, made if there is none. *map_bytes*: address space for
    it. Unless *durable*, commits are not synced. ``load`` must follow, in a new file after
    ``initialize``."""

    def __init__(self, path: str, map_bytes: int, *, durable: bool = True) -> None:
        self.path = path
        self.tables: dict[str, ElementTable] = {}
        self.ledger = _Ledger()
        self._map_bytes = map_bytes
        self._durable = durable
        self._own: Database = None
        self._env = self._opened()

    @property
    def map_bytes(self) -> int:
        return int(self._env.info()["map_size"])

    @property
    def used_bytes(self) -> int:
        """Bytes of the map that were ever used."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def begin_reading(self) -> Transaction:
        """What was committed last, until it is aborted."""
        with lmdb_errors(f"reading {self.path}"):
            return self._env.begin()

    def writing(self) -> AbstractContextManager[Transaction]:
        """See ``environment.writing``."""
        return writing(self._env, self.path)

    def sync(self) -> None:
        """Make durable what was committed without a sync."""
        self._env.sync(True)  # noqa: FBT003 (py-lmdb's own signature)

    def initialize(self) -> None:
        """Say durably what this file is; the first thing written into a new one."""
        with lmdb_errors(f"creating {self.path}"):
            self._own = self._env.open_db(_OWN_DB)
            with self.writing() as transaction:
                self._put_own(transaction, _FORMAT_NAME, LAYOUT_VERSION.to_bytes(4, "little"))
                self._put_own(transaction, _LEDGER_NAME, msgspec.msgpack.encode(self.ledger))
            self.sync()

    def load(self) -> None:
        """Read what the file says of itself, and check every record: 1 us each.

        Raises:
            StoreCorruptionError: a name, a table or a record is missing, or damaged.
            FormatVersionError: written by a newer quorate.
        """
        with lmdb_errors(f"opening {self.path}"):
            with self._env.begin() as reader:
                names = {bytes(name) for name, _ in reader.cursor()}
            found = sorted(name[len(_TOP) :] for name in names if name.startswith(_TOP))
            if names != {_OWN_DB, *(prefix + name for prefix in (_TOP, _DEEP) for name in found)}:
                raise self._damaged(f"its databases are {sorted(names)}")
            try:
                self._open_tables([name.decode() for name in found])
            except UnicodeDecodeError as error:
                raise self._damaged("a table's name is damaged") from error
            with self._env.begin() as reader:
                self.ledger = self._read_ledger(reader)
                self._check_tables(reader)
        self.renew()

    def renew(self) -> None:
        """Give back the memory of pages that were read, by closing and opening the file; no
        transaction is open. The pages stay in the system's cache.

        Raises:
            StorageError: the file is closed now.
        """
        self._env.close()
        self._env = self._opened()
        with lmdb_errors(f"opening {self.path} again"):
            self._open_tables(self.tables)

    def missing_tables(self, names: Iterable[str]) -> list[str]:
        """Those of *names* that are not there yet."""
        return [name for name in names if name not in self.tables]

    def create_tables(self, names: Iterable[str]) -> dict[str, ElementTable]:
        """Make empty tables, in a transaction of their own: a handle does not survive the failure
        of the transaction that created its database. They are not in ``tables`` yet."""
        with self.writing() as transaction:
            return {name: self._open_table(transaction, name, create=True) for name in names}

    def write(self, changes: Mapping[str, Iterable[Change]]) -> None:
        """One attempt of a write; all tables are there."""
        next_space = self.ledger.next_space

        def take_space() -> int:
            nonlocal next_space
            next_space += 1
            return next_space - 1

        seals = dict(self.ledger.seals)
        with self.writing() as transaction:
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
        map_bytes = self.map_bytes
        if map_bytes >= size_bytes_max:
            raise DiskFullError(
                f"{self.path} may not grow beyond {size_bytes_max} bytes; nothing was changed;"
                " delete records or allow more"
            )
        with lmdb_errors(f"growing the map of {self.path}"):
            self._map_bytes = min(2 * map_bytes, size_bytes_max)
            self._env.set_mapsize(self._map_bytes)

    def probe(self) -> None:
        """Raises StorageError if LMDB gave the environment up after a failure."""
        with lmdb_errors(f"looking at {self.path} after a failure"):
            self._env.begin(write=True).abort()

    def close(self) -> None:
        """Release the file. Idempotent."""
        self._env.close()

    # --- inside -----------------------------------------------------------------------------------

    def _opened(self) -> LmdbEnvironment:
        opened = open_lmdb(
            self.path,
            self._map_bytes,
            databases_max=2 * ELEMENT_TABLES_MAX + 1,
            durable=self._durable,
        )
        opened.reader_check()  # slots of processes that died would pin old pages
        return opened

    def _open_tables(self, names: Iterable[str]) -> None:
        with self._env.begin(write=True) as transaction:
            self._own = self._env.open_db(_OWN_DB, transaction, create=False)
            for name in list(names):
                self.tables[name] = self._open_table(transaction, name, create=False)

    def _open_table(self, transaction: Transaction, name: str, *, create: bool) -> ElementTable:
        top = self._env.open_db(_TOP + name.encode(), transaction, create=create)
        deep = self._env.open_db(_DEEP + name.encode(), transaction, create=create)
        return ElementTable(name, top, deep)

    def _read_ledger(self, reader: Transaction) -> _Ledger:
        names = {bytes(name) for name, _ in reader.cursor(self._own)}
        if names != {_FORMAT_NAME, _LEDGER_NAME}:
            raise self._damaged(f"it has records named {sorted(names)}")
        version = int.from_bytes(self._get_own(reader, _FORMAT_NAME), "little")
        if version > LAYOUT_VERSION:
            raise FormatVersionError(
                f"{self.path} has format {version}, this quorate knows up to {LAYOUT_VERSION}:"
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

    def _get_own(self, reader: Transaction, name: bytes) -> bytes:
        return form.without_check(reader.get(name, b"", self._own), name)

    def _put_own(self, transaction: Transaction, name: bytes, content: bytes) -> None:
        transaction.put(name, form.with_check(content, name), db=self._own)

    def _damaged(self, what: str) -> StoreCorruptionError:
        return StoreCorruptionError(f"{self.path} is damaged: {what}. {REJOIN}")
