"""Records of an element store inside a transaction: keys of any length in their order, checksums.

LMDB holds keys of at most 511 bytes. So a key is cut into *pieces* of 480 bytes, and a table is a
tree of *spaces*, each a run of pieces in order:

* The first space is a database of its own (``r/TABLE``), in which nearly all keys stand whole.
* A key that is longer has its first piece there, followed by a zero byte, with the number of
  another space as its value: it *leads* to that one, where the rest of the key is, again whole or
  cut. No key of a space is longer than a piece, so what leads to a space stands just where all the
  keys that begin with that piece belong, and walking the spaces is walking the keys in order.
* All other spaces share a database (``i/TABLE``); the number of the space (8 bytes, big-endian,
  never used again) is put before each piece.

A key of n bytes so costs one look-up for each 480 of them, however many others begin the same.

What is stored is the value followed by the CRC-32 of the database's name, the key there and the
value, so that a record can neither change nor turn up elsewhere. A table's *seal* (count and sum of
the checksums, see ``store_format``) covers all its records, also those that lead to spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias
from zlib import crc32

from quorate.base.invariants import must
from quorate.errors import StoreCorruptionError
from quorate.storage import store_format as form
from quorate.storage.durable import REJOIN
from quorate.storage.interfaces import Change
from quorate.storage.store_format import EMPTY_SEAL, Seal

PIECE_BYTES: Final = 480
#: A CRC-32 over bytes that end with their own CRC-32, little-endian.
RESIDUE: Final = 0x2144DF1C
_SPACE_BYTES: Final = 8
_LEADS: Final = b"\0"

must(
    _SPACE_BYTES + PIECE_BYTES + len(_LEADS) <= form.REGULAR_KEY_BYTES_MAX,
    "what leads from one space to the next is a key of LMDB",
)

#: ``lmdb.Transaction`` and so on, which only ``lmdb_opening`` may name.
Transaction: TypeAlias = Any
Cursor: TypeAlias = Any
Database: TypeAlias = Any


class ElementTable:
    """The two databases of one table, and what their checksums start with."""

    __slots__ = ("deep", "deep_seed", "name", "seed", "top")

    def __init__(self, name: str, top: Database, deep: Database) -> None:
        self.name = name
        self.top = top
        self.deep = deep
        self.seed = crc32(b"r/" + name.encode())
        self.deep_seed = crc32(b"i/" + name.encode())


# --- reading --------------------------------------------------------------------------------------


def get(reader: Transaction, table: ElementTable, key: bytes) -> bytes | None:
    """The value of a key of any length.

    Raises:
        StoreCorruptionError: the record is not what was written.
    """
    database, seed, space = table.top, table.seed, b""
    while len(key) > PIECE_BYTES:
        leading = space + key[:PIECE_BYTES] + _LEADS
        stored = reader.get(leading, None, database)
        if stored is None:
            return None
        space = _opened(table, leading, stored, seed)
        key, database, seed = key[PIECE_BYTES:], table.deep, table.deep_seed
    stored = reader.get(space + key, None, database)
    return None if stored is None else _opened(table, space + key, stored, seed)


def _opened(table: ElementTable, key: bytes, stored: bytes, seed: int) -> bytes:
    """What is stored, without its checksum.

    Raises:
        StoreCorruptionError: the checksum does not fit.
    """
    if crc32(stored, crc32(key, seed)) != RESIDUE:
        raise form.damaged_record(table.name, key)
    return stored[:-4]


class Page:
    """Collects the records from *start* on and before *end*, up to *limit* and *bytes_max*."""

    __slots__ = ("_limit", "_reader", "_table", "left_bytes", "records")

    def __init__(
        self, reader: Transaction, table: ElementTable, limit: int, bytes_max: int
    ) -> None:
        self.records: list[tuple[bytes, bytes]] = []
        self._reader = reader
        self._table = table
        self._limit = limit
        self.left_bytes = bytes_max

    def fill(self, start: bytes, end: bytes | None) -> None:
        """Collect. Raises StoreCorruptionError: a record is not what was written."""
        cursor = self._reader.cursor(self._table.top)
        self._walk(cursor, self._table.seed, b"", b"", start, end)

    def _walk(
        self,
        cursor: Cursor,
        seed: int,
        space: bytes,
        before: bytes,
        start: bytes,
        end: bytes | None,
    ) -> bool:
        """One space and those below it; *start* and *end* are relative to *before*, the pieces
        that led here. False: the page is full. The loop is kept bare: it runs for every record."""
        first = space + (start if len(start) <= PIECE_BYTES else start[:PIECE_BYTES] + _LEADS)
        if first and not cursor.set_range(first):
            return True
        stop = space + end if end is not None else _behind(space)
        name, records, limit = self._table.name, self.records, self._limit
        whole, offset = len(space) + PIECE_BYTES, len(space)
        for key, stored in cursor:
            if stop is not None and key >= stop:
                break
            if crc32(stored, crc32(key, seed)) != RESIDUE:
                raise form.damaged_record(name, key)
            if len(key) > whole:
                if not self._descend(key[offset:-1], stored[:-4], before, start, end):
                    return False
                continue
            found = before + key[offset:] if offset else key
            self.left_bytes -= len(found) + len(stored) - 4
            if self.left_bytes < 0 and records:
                return False
            records.append((found, stored[:-4]))
            if len(records) >= limit:
                return False
        return True

    def _descend(
        self, piece: bytes, space: bytes, before: bytes, start: bytes, end: bytes | None
    ) -> bool:
        """The space that *piece* leads to."""
        start = start[PIECE_BYTES:] if start.startswith(piece) else b""
        end = end[PIECE_BYTES:] if end is not None and end.startswith(piece) else None
        cursor = self._reader.cursor(self._table.deep)
        return self._walk(cursor, self._table.deep_seed, space, before + piece, start, end)


def _behind(space: bytes) -> bytes | None:
    """What all keys of a space are below; None: the first space, which has a database alone."""
    return _encode_space(int.from_bytes(space, "big") + 1) if space else None


def _encode_space(number: int) -> bytes:
    return number.to_bytes(_SPACE_BYTES, "big")


def last(reader: Transaction, table: ElementTable, end: bytes | None) -> tuple[bytes, bytes] | None:
    """The record with the greatest key before *end*.

    Raises:
        StoreCorruptionError: a record is not what was written.
    """
    return None if end == b"" else _last(reader, table, b"", b"", end)


def _last(
    reader: Transaction, table: ElementTable, space: bytes, before: bytes, end: bytes | None
) -> tuple[bytes, bytes] | None:
    """Of one space and those below it; *end* is relative to *before*."""
    database, seed = (table.deep, table.deep_seed) if space else (table.top, table.seed)
    stop = _behind(space) if end is None else space + end
    if end is not None and len(end) > PIECE_BYTES:
        stop = space + end[:PIECE_BYTES] + _LEADS
        stored = reader.get(stop, None, database)
        if stored is not None:
            piece, below = end[:PIECE_BYTES], _opened(table, stop, stored, seed)
            found = _last(reader, table, below, before + piece, end[PIECE_BYTES:])
            if found is not None:
                return found
    cursor = reader.cursor(database)
    is_there = cursor.prev() if stop and cursor.set_range(stop) else cursor.last()
    if not is_there or not cursor.key().startswith(space):
        return None
    key, stored = cursor.item()
    value, rest = _opened(table, key, stored, seed), key[len(space) :]
    if len(rest) <= PIECE_BYTES:
        return before + rest, value
    found = _last(reader, table, value, before + rest[:-1], None)
    if found is None:
        what = f"table {table.name!r}: a record leads to space {value.hex()}, which is empty"
        raise StoreCorruptionError(f"{what}. {REJOIN}")
    return found


def whole_seal(reader: Transaction, table: ElementTable) -> Seal:
    """The seal of what is there, after every record was checked: 1 us each.

    Raises:
        StoreCorruptionError: a record is not what was written.
    """
    count = checks = 0
    for database, seed in ((table.top, table.seed), (table.deep, table.deep_seed)):
        for key, stored in reader.cursor(database):
            if crc32(stored, crc32(key, seed)) != RESIDUE:
                raise form.damaged_record(table.name, key)
            checks += int.from_bytes(stored[-4:], "little")
            count += 1
    return EMPTY_SEAL.plus(count, checks)


# --- writing --------------------------------------------------------------------------------------


class TableWriter:
    """Changes one table within a transaction. *next_space* gives numbers that no space ever had.

    ``count`` and ``checks``: what the changes add to the table's seal.
    """

    def __init__(
        self, transaction: Transaction, table: ElementTable, next_space: Callable[[], int]
    ) -> None:
        self.count = 0
        self.checks = 0
        self._transaction = transaction
        self._table = table
        self._next_space = next_space

    def write(self, changes: Iterable[Change]) -> None:
        """Make *changes*, in order. The loop is kept bare: it runs for every change of a commit."""
        seed, to_int = self._table.seed, int.from_bytes
        cursor = self._transaction.cursor(self._table.top)
        replace, pop = cursor.replace, cursor.pop
        count = checks = 0
        for key, value in changes:
            if len(key) > PIECE_BYTES:
                if value is None:
                    self._remove_deep(key)
                else:
                    self._put_deep(key, value)
            elif value is None:
                old = pop(key)
                if old is not None:
                    count -= 1
                    checks -= to_int(old[-4:], "little")
            else:
                check = crc32(value, crc32(key, seed))
                old = replace(key, value + check.to_bytes(4, "little"))
                checks += check
                if old is None:
                    count += 1
                else:
                    checks -= to_int(old[-4:], "little")
        self.count += count
        self.checks += checks

    def _put_deep(self, key: bytes, value: bytes) -> None:
        table, space = self._table, b""
        database, seed = table.top, table.seed
        while len(key) > PIECE_BYTES:
            leading = space + key[:PIECE_BYTES] + _LEADS
            stored = self._transaction.get(leading, None, database)
            if stored is None:
                space = _encode_space(self._next_space())
                self._put(leading, space, database, seed)
            else:
                space = _opened(table, leading, stored, seed)
            key, database, seed = key[PIECE_BYTES:], table.deep, table.deep_seed
        self._put(space + key, value, database, seed)

    def _remove_deep(self, key: bytes) -> None:
        """Remove a record, and what leads to spaces that are then empty."""
        table, space = self._table, b""
        database, seed = table.top, table.seed
        trail = []
        while len(key) > PIECE_BYTES:
            leading = space + key[:PIECE_BYTES] + _LEADS
            stored = self._transaction.get(leading, None, database)
            if stored is None:
                return
            trail.append((leading, database))
            space = _opened(table, leading, stored, seed)
            key, database, seed = key[PIECE_BYTES:], table.deep, table.deep_seed
        self._pop(space + key, database)
        while trail and self._is_empty(space):
            leading, database = trail.pop()
            self._pop(leading, database)
            space = leading[: -PIECE_BYTES - len(_LEADS)]

    def _is_empty(self, space: bytes) -> bool:
        cursor = self._transaction.cursor(self._table.deep)
        return not cursor.set_range(space) or not cursor.key().startswith(space)

    def _put(self, key: bytes, value: bytes, database: Database, seed: int) -> None:
        check = crc32(value, crc32(key, seed))
        stored = value + check.to_bytes(form.CHECK_BYTES, "little")
        old = self._transaction.replace(key, stored, database)
        self.checks += check
        if old is None:
            self.count += 1
        else:
            self.checks -= form.stored_check(old)

    def _pop(self, key: bytes, database: Database) -> None:
        old = self._transaction.pop(key, database)
        if old is not None:
            self.count -= 1
            self.checks -= form.stored_check(old)
