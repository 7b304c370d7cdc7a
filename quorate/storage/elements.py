"""What the converging tier needs of its disk: ordered records in a few tables, far too many for
memory, read one by one or in pages, and changed by durable transactions.

``lmdb_elements.LmdbElementStore`` keeps them in LMDB, ``memory_elements.MemoryElementStore`` in
memory; one suite of tests holds both to this contract (``tests/storage/test_elements.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from quorate.base.invariants import must
from quorate.base.limits import (
    CRDT_KEY_BYTES_MAX,
    CRDT_NESTING_MAX,
    FRAME_BYTES_MAX,
    KIB,
    MIB,
)
from quorate.errors import InvalidArgumentError, LimitExceededError
from quorate.storage.interfaces import Change

#: Of one key. An element's is its path: names of maps within maps, each as long as a key may be.
ELEMENT_KEY_BYTES_MAX: Final = 128 * KIB
#: Of one value; a journal record is the largest, and travels in one frame.
ELEMENT_VALUE_BYTES_MAX: Final = FRAME_BYTES_MAX
#: Keys and values of one page, unless another bound is given.
PAGE_BYTES_DEFAULT: Final = 1 * MIB
#: Tables of one store.
ELEMENT_TABLES_MAX: Final = 16

must(
    ELEMENT_KEY_BYTES_MAX >= (CRDT_NESTING_MAX + 2) * (CRDT_KEY_BYTES_MAX + 64),
    "the deepest path of the longest keys is a key",
)


class ElementStore(Protocol):
    """Tables of records in the order of their keys; a table that nobody wrote is empty.

    One thread writes at a time. Any thread may read meanwhile, and sees the state before a write or
    after it, never between; no call keeps anything of the store in use when it has returned.

    Every method raises ``ClosedError`` after ``close``, and ``StorageError`` once a write failed
    for another reason than a full disk: what is on the disk is then not known, and the store stays
    unusable until it is opened anew.
    """

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of *key*, or None.

        Raises:
            StoreCorruptionError: the record is not what was written.
        """
        ...

    def page(
        self,
        table: str,
        start: bytes,
        end: bytes | None,
        limit: int,
        bytes_max: int = PAGE_BYTES_DEFAULT,
    ) -> list[tuple[bytes, bytes]]:
        """The first records from *start* on and before *end* (None: up to the last), in order.

        At most *limit* of them, and as many as fit into *bytes_max*, but always one if there is
        one: only an empty page says that there are no more. The next page starts at the last key
        followed by a zero byte.

        Raises:
            StoreCorruptionError: a record is not what was written.
        """
        ...

    def last(self, table: str, end: bytes | None = None) -> tuple[bytes, bytes] | None:
        """The record with the greatest key before *end* (None: of all), or None.

        Raises:
            StoreCorruptionError: the record is not what was written.
        """
        ...

    def write(self, changes: Mapping[str, Iterable[Change]]) -> None:
        """Make all *changes* in one durable transaction, or none of them. Blocks for the disk.

        Within a table a later change of a key replaces an earlier one. In the order of the keys
        they are made faster.

        Raises:
            DiskFullError: no space; nothing was changed and the store stays usable.
            InvalidArgumentError, LimitExceededError: a key, a value or a table's name; nothing was
                changed.
            StorageError: the disk failed; the changes are there or not, and the store is unusable.
        """
        ...

    def size_bytes(self) -> int:
        """Bytes on disk."""
        ...

    def close(self) -> None:
        """Release files. Idempotent. The caller has seen to it that no other call is under way."""
        ...


def check_change(table: str, key: bytes, value: bytes | None) -> None:
    """Raises InvalidArgumentError or LimitExceededError unless a store can make this change."""
    if not key:
        raise InvalidArgumentError(f"an empty key in table {table!r}")
    if len(key) > ELEMENT_KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a key of table {table!r} has {len(key)} bytes, the most is {ELEMENT_KEY_BYTES_MAX}"
        )
    if value is not None and len(value) > ELEMENT_VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"a value of table {table!r} has {len(value)} bytes, the most is"
            f" {ELEMENT_VALUE_BYTES_MAX}"
        )


def check_page(limit: int, bytes_max: int) -> None:
    """Raises InvalidArgumentError unless a page may be bounded so."""
    if limit < 1 or bytes_max < 1:
        raise InvalidArgumentError(f"a page of {limit} records and {bytes_max} bytes")


def check_table_count(count: int) -> None:
    """Raises LimitExceededError if a store would have more tables than it may."""
    if count > ELEMENT_TABLES_MAX:
        raise LimitExceededError(f"more than {ELEMENT_TABLES_MAX} tables in one element store")
