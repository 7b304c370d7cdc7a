"""How records look on disk and in a snapshot: checksums, keys, counts, positions. Pure functions.

Shapes, all checksums CRC-32 (zlib), all integers little-endian unless said otherwise:

* A *regular* key has 1 to 511 bytes (what LMDB can hold) and is stored as it is; its stored value
  is the value followed by the record's checksum.
* Any other key is *irregular* and lives in a second database of the table: the empty key under the
  byte 00, a longer one under its first 479 bytes and the 32-byte BLAKE2b of the whole. The stored
  value is the key's length (2 bytes), the whole key, the value, the record's checksum.
* A record's checksum covers the table's name, the key and the value, so that a record can neither
  change nor turn up elsewhere. LMDB has no checksums of its own.
* A table's *seal* is the number of its records and the sum of their checksums. It is written in the
  transaction that writes the records: a page that was lost, or came back from an earlier life with
  every record valid, shows as a sum that does not fit.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final
from zlib import crc32

import msgspec

from quorate.base.limits import KEY_BYTES_MAX
from quorate.consensus.messages import EntryId
from quorate.errors import (
    FormatVersionError,
    InvalidArgumentError,
    LimitExceededError,
    StoreCorruptionError,
)
from quorate.storage.durable import REJOIN
from quorate.storage.interfaces import SnapshotChunk, StoreMeta

LAYOUT_VERSION: Final = 1
CHECK_BYTES: Final = 4
REGULAR_KEY_BYTES_MAX: Final = 511  # LMDB's own limit (MDB_MAXKEYSIZE)
STORED_KEY_BYTES_MAX: Final = 2 * KEY_BYTES_MAX  # room for what a machine adds to a user's key
TABLES_MAX: Final = 256  # each costs LMDB a slot in every transaction
TABLE_NAME_BYTES_MAX: Final = 200

_HASH_BYTES: Final = 32
PREFIX_BYTES: Final = REGULAR_KEY_BYTES_MAX - _HASH_BYTES
_EMPTY_KEY_STORED: Final = b"\0"  # sorts before every longer stored key
_KEY_SIZE: Final = struct.Struct("<H")
_SEAL: Final = struct.Struct("<QQ")
_SUM_MASK: Final = (1 << 64) - 1


class Seal(msgspec.Struct, frozen=True):
    """What a table promises about itself."""

    count: int
    checks: int

    def plus(self, count: int, checks: int) -> Seal:
        """The seal after records came (positive) or went (negative)."""
        return Seal(self.count + count, (self.checks + checks) & _SUM_MASK)


EMPTY_SEAL: Final = Seal(0, 0)


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where in which checkpoint a snapshot stands; what a chunk's opaque position holds."""

    applied: EntryId
    table: str
    key: bytes


_position_decoder = msgspec.msgpack.Decoder(Position)
_meta_decoder = msgspec.msgpack.Decoder(StoreMeta)


class _MetaVersion(msgspec.Struct, frozen=True):
    format_version: int = 1


_version_decoder = msgspec.msgpack.Decoder(_MetaVersion)


def table_seed(table: str) -> int:
    """Where the checksums of a table's records start."""
    return crc32(table.encode())


def check_table_name(table: str) -> None:
    """Raises LimitExceededError or InvalidArgumentError unless *table* can name a table."""
    if not table or "\0" in table:
        raise InvalidArgumentError(f"a table's name is empty or holds a NUL: {table!r}")
    if len(table.encode()) > TABLE_NAME_BYTES_MAX:
        raise LimitExceededError(f"a table's name is over {TABLE_NAME_BYTES_MAX} bytes: {table!r}")


def check_key(table: str, key: bytes) -> None:
    """Raises LimitExceededError if *key* is longer than ``STORED_KEY_BYTES_MAX``."""
    if len(key) > STORED_KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a key of table {table!r} has {len(key)} bytes, the most is {STORED_KEY_BYTES_MAX}"
        )


def is_regular(key: bytes) -> bool:
    """Whether LMDB can hold *key* as it is."""
    return 0 < len(key) <= REGULAR_KEY_BYTES_MAX


def irregular_key(key: bytes) -> bytes:
    """The stored form of a key that LMDB cannot hold. Keeps the order of the first 479 bytes."""
    if not key:
        return _EMPTY_KEY_STORED
    return key[:PREFIX_BYTES] + blake2b(key, digest_size=_HASH_BYTES).digest()


def irregular_value(key: bytes, value: bytes, check: int) -> bytes:
    """The stored value of an irregular key."""
    return b"".join((_KEY_SIZE.pack(len(key)), key, value, check.to_bytes(CHECK_BYTES, "little")))


def irregular_full_key(table: str, stored: bytes) -> bytes:
    """The whole key in an irregular record's stored value (its checksum is not looked at)."""
    size = _KEY_SIZE.unpack_from(stored)[0] if len(stored) >= _KEY_SIZE.size else 0
    if len(stored) < _KEY_SIZE.size + size + CHECK_BYTES:
        what = f"table {table!r}: a record with a long key is cut short"
        raise StoreCorruptionError(f"{what}. {REJOIN}")
    return stored[_KEY_SIZE.size : _KEY_SIZE.size + size]


def open_irregular(
    table: str, seed: int, stored_key: bytes, stored: bytes
) -> tuple[bytes, bytes, int]:
    """Key, value and checksum of an irregular record, checked.

    Raises:
        StoreCorruptionError: it is not what was written.
    """
    key = irregular_full_key(table, stored)
    value = stored[_KEY_SIZE.size + len(key) : -CHECK_BYTES]
    check = crc32(value, crc32(key, seed))
    if check != stored_check(stored) or stored_key != irregular_key(key):
        raise damaged_record(table, key)
    return key, value, check


def stored_check(stored: bytes) -> int:
    """The checksum that a stored value ends with; 0 if it is too short to have one."""
    return int.from_bytes(stored[-CHECK_BYTES:], "little") if len(stored) >= CHECK_BYTES else 0


def damaged_record(table: str, key: bytes) -> StoreCorruptionError:
    """The error for a record that is not what was written."""
    shown = key if len(key) <= 64 else key[:61] + b"..."
    return StoreCorruptionError(
        f"table {table!r}, key {shown!r}: the record's checksum does not fit. {REJOIN}"
    )


def damaged_table(table: str, promised: Seal, found: Seal) -> StoreCorruptionError:
    """The error for a table whose records are each valid, but not those of its checkpoint."""
    return StoreCorruptionError(
        f"table {table!r} holds {found.count} records with checksum sum {found.checks:#x} but"
        f" promises {promised.count} with {promised.checks:#x}: pages were lost or came back."
        f" {REJOIN}"
    )


def with_check(content: bytes, name: bytes) -> bytes:
    """A record of the meta database, checksummed together with its name."""
    return content + crc32(content, crc32(name)).to_bytes(CHECK_BYTES, "little")


def without_check(stored: bytes, name: bytes) -> bytes:
    """The content of a record of the meta database.

    Raises:
        StoreCorruptionError: it is not what was written.
    """
    content = stored[:-CHECK_BYTES]
    if len(stored) < CHECK_BYTES or crc32(content, crc32(name)) != stored_check(stored):
        what = f"the store's own record {name!r} is damaged (checksum)"
        raise StoreCorruptionError(f"{what}. {REJOIN}")
    return content


def encode_seal(seal: Seal) -> bytes:
    """16 bytes: count and sum of checksums."""
    return _SEAL.pack(seal.count, seal.checks)


def decode_seal(content: bytes) -> Seal:
    """Raises StoreCorruptionError unless *content* is as long as a seal."""
    if len(content) != _SEAL.size:
        what = f"a table's seal has {len(content)} bytes, not {_SEAL.size}"
        raise StoreCorruptionError(f"{what}. {REJOIN}")
    return Seal(*_SEAL.unpack(content))


def check_layout(content: bytes, where: str) -> None:
    """Raises FormatVersionError if the store was laid out by a newer quorate."""
    version = int.from_bytes(content, "little")
    if version > LAYOUT_VERSION:
        raise newer_format(where, version)


def newer_format(where: str, version: int) -> FormatVersionError:
    """The error for a store of *version*, which this quorate does not know."""
    return FormatVersionError(
        f"{where} has format {version}, this quorate knows up to {LAYOUT_VERSION}: start the"
        " newer quorate that wrote it"
    )


def encode_meta(meta: StoreMeta) -> bytes:
    """Raises InvalidArgumentError for a format that this version does not write."""
    if meta.format_version != LAYOUT_VERSION:
        raise InvalidArgumentError(f"cannot write format {meta.format_version}")
    return msgspec.msgpack.encode(meta)


def decode_meta(content: bytes, where: str) -> StoreMeta:
    """Raises FormatVersionError for a newer version, StoreCorruptionError for no meta at all."""
    try:
        version = _version_decoder.decode(content).format_version
        if version > LAYOUT_VERSION:
            raise newer_format(where, version)
        return _meta_decoder.decode(content)
    except msgspec.DecodeError as error:
        what = f"{where}: the checkpoint's meta is no meta: {error}"
        raise StoreCorruptionError(f"{what}. {REJOIN}") from error


def encode_position(applied: EntryId, table: str, key: bytes) -> bytes:
    """What a chunk that ends with *key* of *table* gives as its position."""
    return msgspec.msgpack.encode(Position(applied, table, key))


def decode_position(position: bytes, applied: EntryId) -> tuple[str, bytes]:
    """Table and key after which to continue; ``("", b"")`` for the start.

    Raises:
        InvalidArgumentError: no position, or one of another checkpoint: continuing there would
            mix two states.
    """
    if not position:
        return "", b""
    try:
        found = _position_decoder.decode(position)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"not a snapshot position: {error}") from error
    if found.applied != applied:
        raise InvalidArgumentError(
            f"the position belongs to the checkpoint at {found.applied}, this one is at {applied}:"
            " start the snapshot again"
        )
    return found.table, found.key


class ChunkOrder:
    """Refuses snapshot chunks that do not follow each other: tables sorted, keys ascending."""

    def __init__(self) -> None:
        self._table = ""
        self._key: bytes | None = None

    def check(self, chunk: SnapshotChunk) -> None:
        """Raises StoreCorruptionError, and changes nothing, unless *chunk* may come next."""
        if not chunk.records:
            raise StoreCorruptionError("a snapshot chunk without records")
        if chunk.table < self._table:
            raise _out_of_order(chunk.table, chunk.records[0][0], self._table, self._key)
        last = self._key if chunk.table == self._table else None
        for key, _ in chunk.records:
            if last is not None and key <= last:
                raise _out_of_order(chunk.table, key, chunk.table, last)
            last = key

    def accept(self, chunk: SnapshotChunk) -> None:
        """*chunk* was checked and kept."""
        self._table, self._key = chunk.table, chunk.records[-1][0]


def _out_of_order(
    table: str, key: bytes, last_table: str, last_key: bytes | None
) -> StoreCorruptionError:
    return StoreCorruptionError(
        f"snapshot out of order: table {table!r} key {key[:64]!r} does not come after table"
        f" {last_table!r} key {(last_key or b'')[:64]!r}; send the snapshot again from the start"
    )
