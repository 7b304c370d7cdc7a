"""The state of the machines: named tables of frozen records, with undo, dirty tracking and a hash.

A ``Table`` maps byte keys to frozen records. Because a record is replaced and never changed, a
reference to it is a copy of it, and three things become cheap that are dear elsewhere:

* *Undo.* Every change leaves (table, key, old record) in a journal that all tables share. A command
  that raises is undone by walking it backwards.
* *Checkpoint.* Every change also lands in the table's ``changed`` dict, and at the end of an entry
  in its ``dirty`` dict. ``take_dirty`` swaps the latter for an empty one: that is a consistent
  capture of the state, in constant time, and another thread encodes it at leisure.
* *Hash.* The entry's ``changed`` dicts, encoded, are what the rolling state hash is fed.

Determinism: the order of a dict after a restart is not its order before, so a table has no
iteration in dict order. ``items`` and ``range`` go by key.

This module knows nothing of machines and entries, and of storage only what may be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Generic, TypeVar

import msgspec

from quorate.base.invariants import must
from quorate.errors import (
    ConfigError,
    InvalidArgumentError,
    LimitExceededError,
    StoreCorruptionError,
)
from quorate.replication.ordered_keys import OrderedKeys
from quorate.storage.store_format import STORED_KEY_BYTES_MAX, TABLES_MAX, check_table_name

R = TypeVar("R", bound=msgspec.Struct)

#: Records that ``Table.load`` decodes between two turns of its caller: about 4 ms.
LOAD_SLICE_RECORDS: Final = 10_000

#: Dirty records of one table: the record now in the table, or None if the key was deleted.
Dirty = dict[bytes, Any]

#: (table, key, record before or None, whether the entry had changed the key before).
_Undo = tuple["Table[Any]", bytes, Any, bool]


_encode_record: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above every key that begins with *prefix*; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


class Table(Generic[R]):
    """Map of byte keys to frozen records of one type. Made by ``Tables.table``.

    ``get(key)`` gives the record or None. It is the dict's own bound method (of a packed table, one
    of ours): a Python-level wrapper would double its 30 ns, and machines call it for every command.

    An ordered table also keeps its keys sorted; only keys that appear or go away pay for it.

    A record is stored as it will come back from disk: encoded and decoded again, so that one which
    could not come back is refused at once, and one that holds a list does not share it with the
    command. A *trusted* table skips this (0.3 us): its machine vouches for the fields' types.

    A *packed* table keeps records encoded and decodes them for whoever asks (0.25 us). Its million
    records are one object each in the place of four or five: less memory, and fewer cache misses
    at every change, which is what a large table costs most. ``get_stored`` gives the encoded form
    (the dict's own method again), ``decode`` makes a record of it.

    A *derived* table is left out of the state hash: what stands in it follows, by this code alone,
    from changes of other tables, which are hashed. It is stored and sent like any other. Its
    records are taken to be many and short-lived: one that came and went since the last capture
    leaves nothing to be written, where another table leaves a deletion.
    """

    __slots__ = (
        "_changed",
        "_dirty",
        "_encoded_name",
        "_fresh",
        "_journal",
        "_keys",
        "_packed",
        "_records",
        "_stored_form",
        "decode",
        "derived",
        "get",
        "get_stored",
        "name",
        "record_type",
        "size",
    )

    def __init__(
        self,
        name: str,
        record_type: type[R],
        *,
        ordered: bool,
        trusted: bool,
        packed: bool,
        derived: bool,
        journal: list[_Undo],
    ) -> None:
        self.name = name
        self._encoded_name = _encode_record(name)
        self.record_type = record_type
        self.derived = derived
        #: Records, or their encoded forms if the table is packed.
        self._records: dict[bytes, Any] = {}
        self._packed = packed
        self.get: Callable[[bytes], R | None] = self._unpack if packed else self._records.get
        #: What is stored under a key: the encoded record if the table is packed.
        self.get_stored: Callable[[bytes], Any] = self._records.get
        #: As ``len``, in a third of the time: for tables that are empty as a rule.
        self.size: Callable[[], int] = self._records.__len__
        self._keys = OrderedKeys() if ordered else None
        self._journal = journal
        self._changed: Dirty = {}
        self._dirty: Dirty = {}
        #: Of a derived table, keys that the last capture did not know.
        self._fresh: set[bytes] | None = set() if derived else None
        self.decode: Callable[[bytes], R] = msgspec.msgpack.Decoder(record_type).decode
        #: What a record is stored as, if that is not the record itself.
        self._stored_form: Callable[[R], Any] | None = None if trusted else self._come_back
        if packed:
            self._stored_form = _encode_record if trusted else self._checked_and_packed

    @property
    def ordered(self) -> bool:
        """Whether ``range`` and ``count`` may be used."""
        return self._keys is not None

    @property
    def dirty_count(self) -> int:
        """Keys changed since ``take_dirty``."""
        return len(self._dirty)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    def _unpack(self, key: bytes) -> R | None:
        found = self._records.get(key)
        return None if found is None else self.decode(found)

    def _shown(self, found: Any) -> R:  # noqa: ANN401
        """What is stored, as a record."""
        record: R = self.decode(found) if self._packed else found
        return record

    # --- changing -----------------------------------------------------------------------------

    def put(self, key: bytes, record: R) -> Any:  # noqa: ANN401
        """Store *record* under *key*, replacing what was there. Returns it as it is stored:
        encoded, if the table is packed.

        Raises:
            TypeError: the key is not bytes, or the record not of the table's type, or a field of
                it not of its declared type; nothing changed.
            LimitExceededError: the key is longer than ``STORED_KEY_BYTES_MAX``.
        """
        if record.__class__ is not self.record_type:
            raise TypeError(f"table {self.name} holds {self.record_type.__name__} records")
        stored: Any = record
        if self._stored_form is not None:
            stored = self._stored_form(record)
        changed = self._changed
        old = self.get_stored(key)
        if old is None:
            if key.__class__ is not bytes:
                raise TypeError(f"keys of table {self.name} are bytes")
            if len(key) > STORED_KEY_BYTES_MAX:
                raise LimitExceededError(
                    f"a key of table {self.name} has {len(key)} bytes, the most is "
                    f"{STORED_KEY_BYTES_MAX}"
                )
            if self._keys is not None:
                self._keys.add(key)
            if self._fresh is not None and key not in changed and key not in self._dirty:
                self._fresh.add(key)
        self._journal.append((self, key, old, key in changed))
        self._records[key] = changed[key] = stored
        return stored

    def _come_back(self, record: R) -> R:
        try:
            found = self.decode(_encode_record(record))
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"a {self.record_type.__name__} for table {self.name} could not be read back: "
                f"{error}"
            ) from error
        return found

    def _checked_and_packed(self, record: R) -> bytes:
        return _encode_record(self._come_back(record))

    def delete(self, key: bytes) -> R | None:
        """Remove *key* and return its record, or None if there was none."""
        old = self._records.pop(key, None)
        if old is None:
            return None
        if self._keys is not None:
            self._keys.remove(key)
        changed = self._changed
        self._journal.append((self, key, old, key in changed))
        changed[key] = None
        return self._shown(old)

    # --- reading in key order ------------------------------------------------------------------

    def items(self) -> Iterator[tuple[bytes, R]]:
        """Every (key, record) by key. Sorts all keys first if the table is not ordered, so that
        is for ``loaded``, not for ``apply``. Nothing may be changed while it runs."""
        records, shown = self._records, self._shown
        for key in sorted(records) if self._keys is None else self._keys:
            yield key, shown(records[key])

    def range(
        self,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, R]]:
        """At most *limit* records with *start* <= key < *end* (None: to the last), by key.

        Nothing may be changed while it runs. Ordered tables only.
        """
        records, shown = self._records, self._shown
        for key in islice(self.keys(start, end, reverse=reverse), limit):
            yield key, shown(records[key])

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Keys of the same range. Nothing may be changed while it runs. Ordered tables only."""
        keys = self._sorted_keys()
        if end is not None and end <= start:
            return iter(())
        return keys.between(start, end, reverse=reverse)

    def range_prefix(
        self, prefix: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, R]]:
        """As ``range``, of all keys that begin with *prefix*."""
        return self.range(prefix, prefix_end(prefix), reverse=reverse, limit=limit)

    def count(self, start: bytes = b"", end: bytes | None = None) -> int:
        """How many keys the range has: at most 0.1 ms for a million. Ordered tables only."""
        return self._sorted_keys().count(start, end)

    def _sorted_keys(self) -> OrderedKeys:
        keys = self._keys
        if keys is None:
            raise TypeError(f"table {self.name} is not ordered, so it has no ranges")
        return keys

    # --- undo, hash, checkpoint: for Tables and Machines ---------------------------------------

    def _undo(self, key: bytes, old: Any, *, was_changed: bool) -> None:  # noqa: ANN401
        """Take back the newest change, which was to *key*."""
        if old is None:
            del self._records[key]
            if self._keys is not None:
                self._keys.remove(key)
        else:
            if self._keys is not None and key not in self._records:
                self._keys.add(key)
            self._records[key] = old
        if was_changed:
            self._changed[key] = old
        else:
            del self._changed[key]  # it was inserted last, so the order of the others stands

    def _seal(self, encode_into: Callable[[Any, bytearray, int], None], buffer: bytearray) -> None:
        """End of an entry: encode what changed behind *buffer*, and make it dirty.

        Keys and records as two lists: as one dict, the encoder's deterministic mode (which sorts
        the sets inside a record) would sort the keys as well.
        """
        changed = self._changed
        if not self.derived:
            buffer += self._encoded_name
            encode_into(list(changed), buffer, -1)
            encode_into(list(changed.values()), buffer, -1)
        if self._fresh is not None:
            self._forget_gone(self._fresh)
        if self._dirty:
            self._dirty.update(changed)
            changed.clear()
        else:
            self._dirty = changed
            self._changed = {}

    def _forget_gone(self, fresh: set[bytes]) -> None:
        """Records that no capture has seen leave nothing behind."""
        changed = self._changed
        gone = [key for key, stored in changed.items() if stored is None and key in fresh]
        for key in gone:
            del changed[key]
            self._dirty.pop(key, None)
            fresh.discard(key)

    def take_dirty(self) -> Dirty:
        """What changed since the last call; the caller owns the dict, and nobody changes it."""
        taken = self._dirty
        self._dirty = {}
        if self._fresh is not None:
            self._fresh = set()
        return taken

    def restore_dirty(self, taken: Dirty) -> None:
        """The checkpoint of *taken* failed: it is dirty again, beneath what changed since."""
        self._dirty = taken | self._dirty

    # --- loading and clearing ------------------------------------------------------------------

    def load(
        self, records: Iterable[tuple[bytes, bytes]], slice_records: int = LOAD_SLICE_RECORDS
    ) -> Iterator[int]:
        """Fill the empty table from encoded records in key order; nothing of it is dirty. A
        generator, so that the caller can give the event loop a turn: yields after every
        *slice_records* records.

        Raises:
            StoreCorruptionError: a record does not decode; the text names table and key.
        """
        must(not self._records, "a table is loaded once", table=self.name)
        target, decode, ordered = self._records, self.decode, self._keys
        packed = self._packed
        source = iter(records)
        key = b""
        while part := list(islice(source, slice_records)):
            try:
                for key, encoded in part:
                    record = decode(encoded)
                    target[key] = encoded if packed else record
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise StoreCorruptionError(
                    f"record {key!r} of table {self.name} is not a "
                    f"{self.record_type.__name__}: {error}; rejoin this node from its peers"
                ) from error
            if ordered is not None:
                ordered.extend([key for key, _ in part])
            yield len(part)

    def clear(self, slice_records: int = LOAD_SLICE_RECORDS) -> Iterator[int]:
        """Forget everything, in slices as ``load``: freeing a million records takes 0.2 s."""
        records = self._records
        self._changed = {}
        self._dirty = {}
        self._fresh = None if self._fresh is None else set()
        if self._keys is not None:
            self._keys.clear()
        while records:
            count = min(slice_records, len(records))
            for _ in range(count):
                records.popitem()
            yield count

    def __repr__(self) -> str:
        return f"<Table {self.name}: {len(self)} {self.record_type.__name__} records>"


def encode_dirty(dirty: Mapping[bytes, Any]) -> Iterator[tuple[bytes, bytes | None]]:
    """Changes for ``StateStore.checkpoint``, encoded one by one as they are asked for.

    Runs on the disk thread: touches nothing but the captured dict, its frozen records, and an
    encoder of its own.
    """
    encode = msgspec.msgpack.Encoder(order="deterministic").encode
    for key, stored in dirty.items():
        if stored is None or stored.__class__ is bytes:
            yield key, stored
        else:
            yield key, encode(stored)


class Tables:
    """All tables of a node, their common undo journal, and the capture of checkpoints.

    *journal*: changes since it was last cleared, oldest first. Callers that bracket a command
    clear it before or after (``Machines`` does), and may look at its length as a mark.
    """

    __slots__ = ("_by_name", "_encoder", "_sorted", "journal")

    def __init__(self) -> None:
        self.journal: list[_Undo] = []
        self._by_name: dict[str, Table[Any]] = {}
        self._sorted: list[Table[Any]] = []
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")

    def table(
        self,
        name: str,
        record_type: type[R],
        *,
        ordered: bool = False,
        trusted: bool = False,
        packed: bool = False,
        derived: bool = False,
    ) -> Table[R]:
        """A new, empty table of *record_type*, a frozen ``msgspec.Struct`` (``array_like`` and
        ``gc=False`` where its fields allow: a million records are then invisible to the garbage
        collector). *ordered*: with ``range`` and ``count``. *trusted*, *packed*, *derived*: see
        ``Table``.

        Raises:
            ConfigError: the name is taken or not usable, or the type is not a frozen struct.
        """
        try:
            check_table_name(name)
        except InvalidArgumentError as error:
            raise ConfigError(str(error)) from error
        if len(self._by_name) >= TABLES_MAX:
            raise ConfigError(f"no more than {TABLES_MAX} tables, so no {name!r}")
        if name in self._by_name:
            raise ConfigError(f"there are two tables of the name {name!r}")
        config = getattr(record_type, "__struct_config__", None)
        if config is None or not config.frozen:
            raise ConfigError(
                f"records of table {name!r} are {record_type!r}, which must be declared as a "
                "frozen struct: class Record(msgspec.Struct, frozen=True, array_like=True)"
            )
        table = Table(
            name,
            record_type,
            ordered=ordered,
            trusted=trusted,
            packed=packed,
            derived=derived,
            journal=self.journal,
        )
        self._by_name[name] = table
        self._sorted = [self._by_name[each] for each in sorted(self._by_name)]
        return table

    def __iter__(self) -> Iterator[Table[Any]]:
        """Tables by name."""
        return iter(self._sorted)

    def __getitem__(self, name: str) -> Table[Any]:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def record_count(self) -> int:
        """Live records of all tables."""
        return sum(len(table) for table in self._sorted)

    @property
    def dirty_count(self) -> int:
        """Keys that the next checkpoint must write."""
        return sum(table.dirty_count for table in self._sorted)

    def encode(self, table: str, record: msgspec.Struct) -> bytes:
        """The stored form of one record of *table*."""
        must(
            isinstance(record, self._by_name[table].record_type),
            "a record belongs to its table",
            table=table,
            record=type(record).__name__,
        )
        return self._encoder.encode(record)

    def rollback(self, mark: int = 0) -> list[str]:
        """Undo every change behind journal position *mark*; names the tables that were touched."""
        journal = self.journal
        touched: dict[str, None] = {}
        while len(journal) > mark:
            table, key, old, was_changed = journal.pop()
            table._undo(key, old, was_changed=was_changed)  # noqa: SLF001  one unit, two classes
            touched[table.name] = None
        return sorted(touched)

    def seal(self, buffer: bytearray) -> None:
        """End of an entry: append the encoded changes of every table, by table name, to *buffer*;
        they are dirty from now on and cannot be undone."""
        self.journal.clear()
        encode_into = self._encoder.encode_into
        for table in self._sorted:
            if table._changed:  # noqa: SLF001
                table._seal(encode_into, buffer)  # noqa: SLF001

    def take_dirty(self) -> dict[str, Dirty]:
        """Capture everything that changed since the last call. Between entries only."""
        return {table.name: table.take_dirty() for table in self._sorted if table.dirty_count}

    def restore_dirty(self, taken: Mapping[str, Dirty]) -> None:
        """Put a failed checkpoint's changes back, beneath newer ones."""
        for name, dirty in taken.items():
            self._by_name[name].restore_dirty(dirty)

    def clear(self) -> Iterator[int]:
        """Forget all records of all tables, in slices; the tables themselves stay."""
        self.journal.clear()
        for table in self._sorted:
            yield from table.clear()
