"""One open LMDB environment: its tables, consistent views of it, and stores under construction.

LMDB is handed in, opened, by ``store``, with the ``Guard`` that turns its errors into ours.
An environment's own records (format, meta, seals) stand in a database of their own, each with a
checksum; see ``store_format``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any, Final, TypeAlias

from quorate.base.invariants import must
from quorate.base.limits import MIB
from quorate.errors import ClosedError, DiskFullError, LimitExceededError, StoreCorruptionError
from quorate.storage import store_format as form
from quorate.storage.durable import NO_SPACE_CODES, REJOIN
from quorate.storage.interfaces import Change, StoreMeta
from quorate.storage.store_format import EMPTY_SEAL, Seal
from quorate.storage.store_tables import (
    Table,
    append_records,
    read_after,
    read_all,
)

#: With less room than this in the map, a checkpoint remembers the changes it consumed, to write
#: them again in a larger map. With more, a checkpoint would have to be larger than that to fail.
REPLAY_BELOW_BYTES: Final = 16 * 1024 * MIB
#: Whole pages of any size that LMDB uses.
_PROBE_BYTES: Final = 64 * 1024
_META_DB: Final = b"quorate"
_REGULAR: Final = b"r/"
_IRREGULAR: Final = b"i/"
_FORMAT_NAME: Final = b"format"
_META_NAME: Final = b"meta"
_SEAL_PREFIX: Final = b"seal/"

#: ``lmdb.Environment`` and ``lmdb.Transaction``, which only ``lmdb_opening`` may name.
LmdbEnvironment: TypeAlias = Any
LmdbTransaction: TypeAlias = Any
#: Turns LMDB's errors inside a block into ours; the text says what is being done.
Guard: TypeAlias = Callable[[str], AbstractContextManager[None]]


class MapFullError(Exception):
    """The transaction did not fit into the map and was aborted; grow it and try again."""


@contextmanager
def writing(environment: LmdbEnvironment, path: str) -> Iterator[LmdbTransaction]:
    """One atomic change: committed at the end of the block, undone if anything raises.

    Raises:
        DiskFullError: no space, where LMDB only says that a write was cut short.
    """
    try:
        with environment.begin(write=True) as transaction:
            yield transaction
    except Exception as error:
        # LMDB reports a short write as EIO. The change is undone either way, and the next one
        # writes and syncs every page of its own anew, so that it may be tried again.
        if getattr(error, "code", None) == errno.EIO and _disk_is_full(path):
            raise DiskFullError(
                f"no space while writing {path}: {error}; nothing was changed; free space or raise"
                " the quota"
            ) from error
        raise


def _disk_is_full(path: str) -> bool:
    """Whether the data file cannot grow. What a successful try adds is never read."""
    try:
        with open(os.path.join(path, "data.mdb"), "ab") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in NO_SPACE_CODES
    return False


class Environment:
    """One open LMDB environment: its tables and the records it keeps about itself."""

    def __init__(self, path: str, opened: LmdbEnvironment, guard: Guard) -> None:
        self.path = path
        self.guard = guard
        #: Views that are open; owned by the store, which guards them with its lock.
        self.views: set[View] = set()
        self._env = opened
        try:
            with self.guard(f"opening {path}"):
                self._env.reader_check()  # slots of processes that died would pin old pages
                self._meta_db = self._env.open_db(_META_DB)
                self._tables = self._open_tables()
        except BaseException:
            self._env.close()
            raise

    @property
    def map_bytes(self) -> int:
        return int(self._env.info()["map_size"])

    @property
    def used_bytes(self) -> int:
        """Bytes of the map that were ever used."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def begin_reading(self) -> LmdbTransaction:
        """A consistent view until it is aborted; any thread may use it, one at a time."""
        return self._env.begin()

    def writing(self) -> AbstractContextManager[LmdbTransaction]:
        """See ``writing``."""
        return writing(self._env, self.path)

    def ensure_tables(self, names: Iterable[str]) -> None:
        """Create what tables are missing, empty: an empty table is as good as none.

        In a transaction of its own: a handle does not survive the failure of the transaction that
        created its database.
        """
        missing = [name for name in names if name not in self._tables]
        if len(self._tables) + len(missing) > form.TABLES_MAX:
            raise LimitExceededError(f"more than {form.TABLES_MAX} tables in one store")
        if missing:
            with self.writing() as transaction:
                opened = {name: self._open_table(name, transaction) for name in missing}
            self._tables.update(opened)

    def table_names(self) -> list[str]:
        """Every table that was ever written, sorted."""
        return sorted(self._tables)

    def has_table(self, name: str) -> bool:
        return name in self._tables

    def table(self, name: str) -> Table:
        return self._tables[name]

    def seal(self, transaction: LmdbTransaction, name: str) -> Seal:
        """Raises StoreCorruptionError if it is damaged."""
        content = self._own(transaction, _SEAL_PREFIX + name.encode())
        return EMPTY_SEAL if content is None else form.decode_seal(content)

    def put_seal(self, transaction: LmdbTransaction, name: str, seal: Seal) -> None:
        self._put_own(transaction, _SEAL_PREFIX + name.encode(), form.encode_seal(seal))

    def meta(self, transaction: LmdbTransaction) -> StoreMeta | None:
        """Raises StoreCorruptionError or FormatVersionError."""
        layout = self._own(transaction, _FORMAT_NAME)
        if layout is None:
            raise self._incomplete("it does not say that it is a store of quorate")
        form.check_layout(layout, self.path)
        content = self._own(transaction, _META_NAME)
        return None if content is None else form.decode_meta(content, self.path)

    def put_meta(self, transaction: LmdbTransaction, meta: StoreMeta) -> None:
        self._put_own(transaction, _META_NAME, form.encode_meta(meta))

    def put_layout(self) -> None:
        """Say what this environment is; the first thing written into a new one."""
        with self.writing() as transaction:
            self._put_own(transaction, _FORMAT_NAME, form.LAYOUT_VERSION.to_bytes(4, "little"))

    def sync(self) -> None:
        """Make durable what was committed without a sync."""
        self._env.sync(True)  # noqa: FBT003 (py-lmdb's own signature)

    def grow(self, map_bytes: int) -> None:
        """Enlarge the map; every transaction must have ended."""
        must(not self.views, "no view is open while the map moves", views=len(self.views))
        self._env.set_mapsize(map_bytes)

    def probe(self) -> None:
        """Raises StorageError if LMDB gave the environment up after a failure."""
        with self.guard(f"looking at {self.path} after a failure"):
            self._env.begin(write=True).abort()

    def close(self) -> None:
        self._env.close()

    def check_complete(self, transaction: LmdbTransaction) -> None:
        """Refuse a store from which a name went missing: LMDB checks no name, and what is not
        found under its own would be taken for what was never written.

        Raises:
            StoreCorruptionError: a table without seal, a seal without table, records without meta.
        """
        names = {bytes(name) for name, _ in transaction.cursor(db=self._meta_db)}
        sealed = {name for name in names if name.startswith(_SEAL_PREFIX)}
        tables = {_SEAL_PREFIX + name.encode() for name in self._tables}
        strange = names - sealed - {_FORMAT_NAME, _META_NAME}
        if strange or not sealed <= tables:
            raise self._incomplete(f"it has records named {sorted(strange | sealed - tables)}")
        if sealed and _META_NAME not in names:
            raise self._incomplete("it has tables and no meta")
        for name, table in self._tables.items():
            held = transaction.stat(table.regular)["entries"]
            held += transaction.stat(table.irregular)["entries"]
            if held and _SEAL_PREFIX + name.encode() not in sealed:
                raise self._incomplete(f"table {name!r} has {held} records and no seal")

    def _incomplete(self, what: str) -> StoreCorruptionError:
        return StoreCorruptionError(f"{self.path} is damaged: {what}. {REJOIN}")

    def _open_tables(self) -> dict[str, Table]:
        with self._env.begin() as transaction:
            names = {bytes(name) for name, _ in transaction.cursor()} - {_META_DB}
        regular = {name[len(_REGULAR) :] for name in names if name.startswith(_REGULAR)}
        irregular = {name[len(_IRREGULAR) :] for name in names if name.startswith(_IRREGULAR)}
        if regular != irregular or len(names) != len(regular) + len(irregular):
            raise self._incomplete(f"its databases are {sorted(names)}")
        try:
            found = sorted(name.decode() for name in regular)
        except UnicodeDecodeError as error:
            raise self._incomplete("a table's name is damaged") from error
        return {name: self._open_table(name, None) for name in found}

    def _open_table(self, name: str, transaction: LmdbTransaction | None) -> Table:
        encoded = name.encode()
        regular = self._env.open_db(_REGULAR + encoded, txn=transaction)
        return Table(name, regular, self._env.open_db(_IRREGULAR + encoded, txn=transaction))

    def _own(self, transaction: LmdbTransaction, name: bytes) -> bytes | None:
        stored = transaction.get(name, db=self._meta_db)
        return None if stored is None else form.without_check(stored, name)

    def _put_own(self, transaction: LmdbTransaction, name: bytes, content: bytes) -> None:
        transaction.put(name, form.with_check(content, name), db=self._meta_db)


class View:
    """One consistent view of an environment. Every record that it gives out was checked.

    ``lock`` is held by whoever uses the view, so that the store can close it under a reader that
    lives in another thread.
    """

    def __init__(self, environment: Environment, on_close: Callable[[View], None]) -> None:
        self.lock = RLock()
        self.environment = environment
        self._on_close = on_close
        self._transaction: LmdbTransaction | None = environment.begin_reading()

    @property
    def transaction(self) -> LmdbTransaction:
        """Raises ClosedError after ``close``."""
        if self._transaction is None:
            raise ClosedError("the view of the state store was closed; open a new one")
        return self._transaction

    def meta(self) -> StoreMeta | None:
        with self.environment.guard("reading the checkpoint's meta"):
            return self.environment.meta(self.transaction)

    def check_complete(self) -> None:
        """See ``Environment.check_complete``."""
        with self.environment.guard("checking the state store"):
            self.environment.check_complete(self.transaction)

    def seals(self) -> dict[str, Seal]:
        """What each table that holds records promises, in the order of the tables' names."""
        with self.environment.guard("reading the tables' seals"):
            names = self.environment.table_names()
            found = {name: self.environment.seal(self.transaction, name) for name in names}
        return {name: seal for name, seal in found.items() if seal.count}

    def records(self, name: str, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Records of one table in key order, all (None) or those after a key.

        A whole pass also checks the table's seal, at its end.

        Raises:
            StoreCorruptionError: at the damaged record, or at the end.
        """
        with self.environment.guard(f"reading table {name!r}"):
            if not self.environment.has_table(name):
                return
            table, transaction = self.environment.table(name), self.transaction
            if after is None:
                promised = self.environment.seal(transaction, name)
                irregular = transaction.stat(table.irregular)["entries"] > 0
                yield from read_all(transaction, table, promised, has_irregular=irregular)
            else:
                yield from read_after(transaction, table, after)

    def check_open(self) -> None:
        """Raises ClosedError after ``close``."""
        must(self.transaction is not None, "an open view has a transaction")

    def close(self) -> None:
        """End the view. Idempotent."""
        with self.lock:
            transaction, self._transaction = self._transaction, None
            if transaction is not None:
                transaction.abort()
                self._on_close(self)


class Changes:
    """The changes of one checkpoint, which can be had again if they are *kept*."""

    def __init__(self, changes: Mapping[str, Iterable[Change]], *, kept: bool) -> None:
        self.names = list(changes)
        self.kept = kept
        self._rest = {name: iter(of_table) for name, of_table in changes.items()}
        self._seen: dict[str, list[Change]] = {name: [] for name in changes}

    def restart(self) -> None:
        """From the start again, for another attempt.

        Raises:
            DiskFullError: what was consumed was not kept.
        """
        if not self.kept:
            raise DiskFullError(
                f"a checkpoint of more than {REPLAY_BELOW_BYTES} bytes filled the map, which was"
                " enlarged; nothing was changed; write the checkpoint again"
            )

    def of(self, name: str) -> Iterable[Change]:
        return self._remembering(name) if self.kept else self._rest[name]

    def _remembering(self, name: str) -> Iterator[Change]:
        seen = self._seen[name]
        yield from tuple(seen)
        for change in self._rest[name]:
            seen.append(change)
            yield change


class Build:
    """A store under construction: what ``StoreSnapshotInstaller`` fills."""

    def __init__(self, environment: Environment, generation: int, size_bytes_max: int) -> None:
        self.environment = environment
        self.generation = generation
        self._size_bytes_max = size_bytes_max
        self._seals: dict[str, Seal] = {}

    def append(self, name: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Add *records*, which follow all that are there, or none of them.

        Raises:
            DiskFullError: nothing was added.
        """
        environment = self.environment
        while True:
            try:
                with environment.guard("adding a snapshot's records"):
                    more = self._try_append(name, records)
                    self._seals[name] = self._seals.get(name, EMPTY_SEAL).plus(*more)
                return
            except MapFullError:
                grow(environment, self._size_bytes_max)

    def _try_append(self, name: str, records: Sequence[tuple[bytes, bytes]]) -> tuple[int, int]:
        self.environment.ensure_tables([name])
        with self.environment.writing() as transaction:
            return append_records(transaction, self.environment.table(name), records)

    def complete(self, meta: StoreMeta) -> None:
        """Write seals and *meta*, and make everything durable."""
        environment = self.environment
        while True:
            try:
                with environment.guard("completing a snapshot"):
                    with environment.writing() as transaction:
                        for name, seal in self._seals.items():
                            environment.put_seal(transaction, name, seal)
                        environment.put_meta(transaction, meta)
                    environment.sync()
                return
            except MapFullError:
                grow(environment, self._size_bytes_max)


def grow(environment: Environment, size_bytes_max: int) -> None:
    """Raises DiskFullError if the map may not grow, now or at all."""
    if environment.views:
        raise DiskFullError(
            f"the map of {environment.path} is full and cannot grow while"
            f" {len(environment.views)} snapshots are being read; nothing was changed; try again"
            " when they are done"
        )
    if environment.map_bytes >= size_bytes_max:
        raise DiskFullError(
            f"{environment.path} may not grow beyond {size_bytes_max} bytes; nothing was changed;"
            " delete records or allow more"
        )
    with environment.guard(f"growing the map of {environment.path}"):
        environment.grow(min(2 * environment.map_bytes, size_bytes_max))
