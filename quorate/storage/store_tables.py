"""Reading and writing the records of one table inside a transaction.

LMDB is met here only through the few calls of ``Transaction`` and ``Cursor``. The loops are kept
bare: they run for every record of a load and for every change of a checkpoint.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias
from zlib import crc32

from quorate.base.invariants import must
from quorate.storage import store_format as form
from quorate.storage.interfaces import Change
from quorate.storage.store_format import EMPTY_SEAL, Seal

#: An ``lmdb._Database``: opaque here, and typed so loosely because only ``lmdb_opening`` may name
#: it.
Database: TypeAlias = Any


class Cursor(Protocol):
    """What is used of ``lmdb.Cursor``; iterating goes on from where it stands."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...
    def set_range(self, key: bytes, /) -> bool: ...
    def replace(self, key: bytes, value: bytes) -> bytes | None: ...
    def pop(self, key: bytes) -> bytes | None: ...
    def putmulti(
        self, items: Iterable[tuple[bytes, bytes]], *, append: bool
    ) -> tuple[int, int]: ...


class Transaction(Protocol):
    """What is used of ``lmdb.Transaction``."""

    def cursor(self, db: Database) -> Cursor: ...
    def get(self, key: bytes, *, db: Database) -> bytes | None: ...
    def replace(self, key: bytes, value: bytes, *, db: Database) -> bytes | None: ...
    def pop(self, key: bytes, *, db: Database) -> bytes | None: ...


class Table:
    """The two databases of one table (see ``store_format``)."""

    __slots__ = ("irregular", "name", "regular", "seed")

    def __init__(self, name: str, regular: Database, irregular: Database) -> None:
        self.name = name
        self.seed = form.table_seed(name)
        self.regular = regular
        self.irregular = irregular


def read_all(
    transaction: Transaction, table: Table, promised: Seal, *, has_irregular: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Every record in key order, each one checked, and at the end the table's seal.

    Raises:
        StoreCorruptionError: at the damaged record, or at the end.
    """
    if has_irregular:
        return _check_seal(_merged(transaction, table, None), table, promised)
    return _read_regular_only(transaction, table, promised)


def read_after(
    transaction: Transaction, table: Table, after: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """The records after a key, in key order, each one checked (the seal cannot be).

    Raises:
        StoreCorruptionError: at the damaged record.
    """
    return ((key, value) for key, value, _ in _merged(transaction, table, after))


def _read_regular_only(
    transaction: Transaction, table: Table, promised: Seal
) -> Iterator[tuple[bytes, bytes]]:
    """The path of nearly every table: 0.8 us a record."""
    seed, to_int = table.seed, int.from_bytes
    checks = count = 0
    for key, stored in transaction.cursor(db=table.regular):
        value = stored[:-4]
        check = crc32(value, crc32(key, seed))
        if to_int(stored[-4:], "little") != check:
            raise form.damaged_record(table.name, key)
        checks += check
        count += 1
        yield key, value
    _compare_seals(table, promised, EMPTY_SEAL.plus(count, checks))


def _check_seal(
    records: Iterator[tuple[bytes, bytes, int]], table: Table, promised: Seal
) -> Iterator[tuple[bytes, bytes]]:
    checks = count = 0
    for key, value, check in records:
        checks += check
        count += 1
        yield key, value
    _compare_seals(table, promised, EMPTY_SEAL.plus(count, checks))


def _compare_seals(table: Table, promised: Seal, found: Seal) -> None:
    if found != promised:
        raise form.damaged_table(table.name, promised, found)


def _merged(
    transaction: Transaction, table: Table, after: bytes | None
) -> Iterator[tuple[bytes, bytes, int]]:
    """Key, value and checksum of all records, in the order of their whole keys."""
    return heapq.merge(_regular(transaction, table, after), _irregular(transaction, table, after))


def _regular(
    transaction: Transaction, table: Table, after: bytes | None
) -> Iterator[tuple[bytes, bytes, int]]:
    cursor = transaction.cursor(db=table.regular)
    if after and not cursor.set_range(after[: form.REGULAR_KEY_BYTES_MAX]):
        return
    for key, stored in cursor:
        if after is not None and key <= after:
            continue
        value = stored[: -form.CHECK_BYTES]
        check = crc32(value, crc32(key, table.seed))
        if check != form.stored_check(stored):
            raise form.damaged_record(table.name, key)
        yield key, value, check


def _irregular(
    transaction: Transaction, table: Table, after: bytes | None
) -> Iterator[tuple[bytes, bytes, int]]:
    """Long keys that share their stored prefix stand there in the order of their hashes: such a
    group is sorted here by the whole keys. Only its keys are held, not its values."""
    cursor = transaction.cursor(db=table.irregular)
    if after and not cursor.set_range(after[: form.PREFIX_BYTES]):
        return
    for _, group in itertools.groupby(cursor, key=_stored_prefix):
        keys = sorted((form.irregular_full_key(table.name, stored), at) for at, stored in group)
        for key, at in keys:
            if after is None or key > after:
                found = transaction.get(at, db=table.irregular)
                must(found is not None, "a view does not change", table=table.name, key=at)
                yield form.open_irregular(table.name, table.seed, at, found or b"")


def _stored_prefix(pair: tuple[bytes, bytes]) -> bytes:
    return pair[0][: form.PREFIX_BYTES]


def write_changes(
    transaction: Transaction, table: Table, changes: Iterable[Change]
) -> tuple[int, int]:
    """Write one table's changes; returns what they add to the seal: records and checksums.

    The loop is kept bare: it runs once for every record changed since the last checkpoint.
    """
    seed, to_int = table.seed, int.from_bytes
    cursor = transaction.cursor(db=table.regular)
    replace, pop = cursor.replace, cursor.pop
    count = checks = 0
    for key, value in changes:
        if not 0 < len(key) <= 511:  # form.is_regular, without the call
            more = _write_irregular(transaction, table, key, value)
            count += more[0]
            checks += more[1]
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
    return count, checks


def _write_irregular(
    transaction: Transaction, table: Table, key: bytes, value: bytes | None
) -> tuple[int, int]:
    form.check_key(table.name, key)
    at = form.irregular_key(key)
    if value is None:
        old = transaction.pop(at, db=table.irregular)
        return (0, 0) if old is None else (-1, -form.stored_check(old))
    check = crc32(value, crc32(key, table.seed))
    old = transaction.replace(at, form.irregular_value(key, value, check), db=table.irregular)
    return (1, check) if old is None else (0, check - form.stored_check(old))


def append_records(
    transaction: Transaction, table: Table, records: Sequence[tuple[bytes, bytes]]
) -> tuple[int, int]:
    """Write *records*, which follow all that the table holds; returns as ``write_changes``."""
    checks, sealed = 0, []
    for key, value in records:
        if form.is_regular(key):
            check = crc32(value, crc32(key, table.seed))
            checks += check
            sealed.append((key, value + check.to_bytes(form.CHECK_BYTES, "little")))
        else:
            checks += _write_irregular(transaction, table, key, value)[1]
    _, added = transaction.cursor(db=table.regular).putmulti(sealed, append=True)
    must(added == len(sealed), "appended records follow all others", table=table.name)
    return len(records), checks
