"""Checks the structure of an LMDB data file before LMDB opens it.

LMDB trusts its pages: one flipped bit in a size or a page number makes it read outside its map and
end the process, or overwrite live pages. It has no checksums against that, so the file is walked
here first, in Python, 0.5 us a record. What is checked is what LMDB relies on:

* both meta pages are whole and one transaction apart;
* every page of every tree lies in the file, knows its own number, is of the kind and at the depth
  that its parent expects, and is reached once;
* every node lies within its page and has a key that LMDB can hold; the keys of a page lie between
  its parent's separators;
* the counts of pages and records that each database keeps of itself are true;
* no page is both in use and on the list of free pages;
* the file ends where it says, or before pages that are free.

The records' own bytes are not looked at: ``store_format``'s checksums and seals cover those.

Layout (lmdb 0.9, mdb.c, 64-bit, native byte order). Page: number u64, pad u16, flags u16, lower
u16, upper u16, then u16 offsets of the nodes up to *lower*. Overflow page: a u32 count of pages
stands in place of *lower* and *upper*. Node: u16 low, u16 high, u16 flags, u16 key size, key, data;
low and high are the data's size, or in a branch together with the flags the child's page number.
Database: pad u32, flags u16, depth u16, then u64 counts of branch, leaf and overflow pages and of
records, and u64 root. Meta page: page header, magic u32, version u32, address u64, map size u64,
databases of free pages and of names, last page u64, transaction u64.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from quorate.errors import FormatVersionError, StoreCorruptionError
from quorate.storage.durable import REJOIN

_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_NO_PAGE: Final = (1 << 64) - 1
_PAGE_HEADER_BYTES: Final = 16
_NODE_HEADER_BYTES: Final = 8
_KEY_BYTES_MAX: Final = 511  # LMDB's own limit (MDB_MAXKEYSIZE)
_DEPTH_MAX: Final = 32  # LMDB's own limit (CURSOR_STACK)
_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_OVERFLOW: Final = 0x04
_META: Final = 0x08
_BIG_DATA: Final = 0x01
_SUB_DATABASE: Final = 0x02
_INTEGER_KEYS: Final = 0x08

_PAGE: Final = struct.Struct("=QHHHH")
_OVERFLOW_PAGE: Final = struct.Struct("=QHHI")
_NODE: Final = struct.Struct("=HHHH")
_NUMBER: Final = struct.Struct("=Q")
_DATABASE: Final = struct.Struct("=IHHQQQQQ")
_META_HEAD: Final = struct.Struct("=IIQQ")
_META_TAIL: Final = struct.Struct("=QQ")
_META_BYTES: Final = _PAGE_HEADER_BYTES + _META_HEAD.size + 2 * _DATABASE.size + _META_TAIL.size


class _Database(NamedTuple):
    """What a database says of itself."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class _Meta(NamedTuple):
    page_bytes: int
    free: _Database
    names: _Database
    last_page: int
    transaction: int


class _Step(NamedTuple):
    """A page to visit: how deep it is, and the keys that its parent promises: from *low*, and
    below *high* unless that is None."""

    page: int
    level: int
    low: bytes
    high: bytes | None


def check_data_file(path: str) -> None:
    """Walk the whole file.

    Raises:
        StoreCorruptionError: something is not as LMDB wrote it; the text names the page.
        FormatVersionError: the file is of an LMDB whose pages this version cannot check.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) < 2 * _META_BYTES:
                raise _damaged(path, "it is cut short")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _Walk(path, content).check()
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    except struct.error as error:  # a size that leads outside the file
        raise _damaged(path, str(error)) from error


def _damaged(path: str, what: str) -> StoreCorruptionError:
    return StoreCorruptionError(f"{path} is damaged: {what}. {REJOIN}")


class _Walk:
    """One pass over one file."""

    def __init__(self, path: str, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._meta = self._newest_meta()
        self._page_bytes = self._meta.page_bytes
        self._pages = min(self._meta.last_page + 1, len(content) // self._page_bytes)
        self._used = bytearray(self._pages)

    def check(self) -> None:
        names = [data for _, data in self._database(self._meta.names, "names")]
        for data in names:
            for _ in self._database(_Database(*_DATABASE.unpack_from(data)), "table"):
                pass
        free = [data for _, data in self._database(self._meta.free, "free list")]
        absent = sum(self._check_free(data) for data in free)
        # The file may end before free pages that were never written, and only before these.
        if absent != self._meta.last_page + 1 - self._pages:
            raise self._wrong(self._pages, f"the file ends here, not at {self._meta.last_page}")

    # --- the meta pages ---------------------------------------------------------------------------

    def _newest_meta(self) -> _Meta:
        first = self._read_meta(0, 0)
        second = self._read_meta(1, first.page_bytes)
        if first.page_bytes != second.page_bytes:
            raise self._wrong(1, "the meta pages disagree about the page size")
        for number, meta in enumerate((first, second)):
            # Transaction n writes meta page n % 2; both pages start with transaction 0.
            if meta.transaction and meta.transaction % 2 != number:
                raise self._wrong(number, f"it cannot hold transaction {meta.transaction}")
        newest, other = sorted((first, second), key=lambda meta: meta.transaction, reverse=True)
        if newest.transaction - other.transaction not in (0, 1):
            raise self._wrong(0, "the meta pages are more than one transaction apart")
        return newest

    def _read_meta(self, number: int, base: int) -> _Meta:
        page, _, flags, _, _ = _PAGE.unpack_from(self._content, base)
        at = base + _PAGE_HEADER_BYTES
        magic, version, _, _ = _META_HEAD.unpack_from(self._content, at)
        if page != number or flags != _META or magic != _MAGIC:
            raise self._wrong(number, "it is no meta page")
        if version != _DATA_VERSION:
            raise FormatVersionError(
                f"{self._path} has LMDB data format {version}, this quorate knows"
                f" {_DATA_VERSION}: open it with the py-lmdb and quorate that wrote it"
            )
        at += _META_HEAD.size
        free = _Database(*_DATABASE.unpack_from(self._content, at))
        names = _Database(*_DATABASE.unpack_from(self._content, at + _DATABASE.size))
        tail = _META_TAIL.unpack_from(self._content, at + 2 * _DATABASE.size)
        if free.pad not in (512 << shift for shift in range(8)):
            raise self._wrong(number, f"{free.pad} is no page size")
        if free.flags & ~_INTEGER_KEYS or names.flags:
            raise self._wrong(number, "a database of a kind that is not used")
        return _Meta(free.pad, free, names, *tail)

    # --- trees ------------------------------------------------------------------------------------

    def _database(self, database: _Database, what: str) -> Iterator[tuple[bytes, bytes]]:
        """Visit one tree. Gives out key and data of its records if it is one of LMDB's own."""
        if what == "table" and (database.flags or database.pad):
            raise self._wrong(database.root, "a table of a kind that is not used")
        counts = [0, 0, 0, 0]  # branch, leaf and overflow pages, records
        if database.root != _NO_PAGE:
            if not 0 < database.depth <= _DEPTH_MAX:
                raise self._wrong(database.root, f"the tree's depth is {database.depth}")
            steps = [_Step(database.root, 1, b"", None)]
            while steps:
                step = steps.pop()
                if step.level < database.depth:
                    steps.extend(self._branch(step, counts, what))
                else:
                    yield from self._leaf(step, counts, what)
        promised = [*database[3:7]]
        if counts != promised or (database.root == _NO_PAGE and database.depth):
            raise self._wrong(database.root, f"the tree ({what}) counts {promised}, has {counts}")

    def _open_page(self, step: _Step, kind: int) -> tuple[int, tuple[int, ...]]:
        """Where the page begins, and the offsets of its nodes, which all lie in its upper part."""
        page = step.page
        base = self._take(page)
        number, _, flags, lower, upper = _PAGE.unpack_from(self._content, base)
        count, odd = divmod(lower - _PAGE_HEADER_BYTES, 2)
        if number != page or flags != kind:
            raise self._wrong(page, f"it says it is page {number} with flags {flags:#x}")
        if odd or count < 1 or not lower <= upper <= self._page_bytes:
            raise self._wrong(page, f"its nodes range from {lower} to {upper}")
        offsets = struct.unpack_from(f"={count}H", self._content, base + _PAGE_HEADER_BYTES)
        if min(offsets) < upper or max(offsets) > self._page_bytes - _NODE_HEADER_BYTES:
            raise self._wrong(page, "a node lies outside of it")
        return base, offsets

    def _branch(self, step: _Step, counts: list[int], what: str) -> list[_Step]:
        base, offsets = self._open_page(step, _BRANCH)
        counts[0] += 1
        children, lows = [], []
        for offset in offsets:
            low, high, top, key_size = _NODE.unpack_from(self._content, base + offset)
            children.append(low | high << 16 | top << 32)
            lows.append(self._key(step.page, base + offset, key_size, base))
        lows[0] = step.low  # the leftmost separator of a branch is not used
        if what == "free list":
            return [_Step(child, step.level + 1, b"", None) for child in children]
        highs = [*lows[1:], step.high]
        for low_key, high_key in zip(lows, highs, strict=True):
            if high_key is not None and low_key >= high_key:
                raise self._wrong(step.page, "its separators are out of order")
        return [
            _Step(child, step.level + 1, low_key, high_key)
            for child, low_key, high_key in zip(children, lows, highs, strict=True)
        ]

    def _leaf(self, step: _Step, counts: list[int], what: str) -> list[tuple[bytes, bytes]]:
        """Checks every node of a leaf; the loop is kept bare, as it runs for every record."""
        base, offsets = self._open_page(step, _LEAF)
        content, node, end = self._content, _NODE.unpack_from, self._page_bytes
        counts[1] += 1
        counts[3] += len(offsets)
        special = []
        for offset in offsets:
            low, high, flags, key_size = node(content, base + offset)
            if not 0 < key_size <= _KEY_BYTES_MAX:
                raise self._wrong(step.page, f"a key has {key_size} bytes")
            if flags:
                special.append(offset)
            elif offset + 8 + key_size + (low | high << 16) > end:
                raise self._wrong(step.page, "a record reaches beyond it")
        if what == "free list":
            return [(b"", self._data(step.page, base, offset, counts)) for offset in offsets]
        self._check_range(step, base, offsets)
        if what == "names":
            return [(b"", self._sub_database(step.page, base, offset)) for offset in offsets]
        for offset in special:
            self._data(step.page, base, offset, counts)
        return []

    def _check_range(self, step: _Step, base: int, offsets: tuple[int, ...]) -> None:
        """The first and the last key: those between are covered by their records' checksums."""
        for offset in (offsets[0], offsets[-1]):
            key_size = _NODE.unpack_from(self._content, base + offset)[3]
            key = self._key(step.page, base + offset, key_size, base)
            if key < step.low or (step.high is not None and key >= step.high):
                raise self._wrong(step.page, "its keys do not belong where it stands")

    def _key(self, page: int, at: int, size: int, base: int) -> bytes:
        start = at + _NODE_HEADER_BYTES
        if start + size > base + self._page_bytes:
            raise self._wrong(page, "a key reaches beyond it")
        return self._content[start : start + size]

    def _sub_database(self, page: int, base: int, offset: int) -> bytes:
        low, high, flags, key_size = _NODE.unpack_from(self._content, base + offset)
        start = base + offset + _NODE_HEADER_BYTES + key_size
        if flags != _SUB_DATABASE or (low | high << 16) != _DATABASE.size:
            raise self._wrong(page, "a name does not lead to a database")
        if start + _DATABASE.size > base + self._page_bytes:
            raise self._wrong(page, "a database reaches beyond it")
        return self._content[start : start + _DATABASE.size]

    def _data(self, page: int, base: int, offset: int, counts: list[int]) -> bytes:
        """The data of a plain node, or b"" of one in overflow pages, which are checked here; the
        free list's are read whole."""
        low, high, flags, key_size = _NODE.unpack_from(self._content, base + offset)
        size = low | high << 16
        start = base + offset + _NODE_HEADER_BYTES + key_size
        if flags not in (0, _BIG_DATA):
            raise self._wrong(page, f"a record has flags {flags:#x}")
        inside = size if not flags else _NUMBER.size
        if start + inside > base + self._page_bytes:
            raise self._wrong(page, "a record reaches beyond it")
        if not flags:
            return self._content[start : start + size]
        first = _NUMBER.unpack_from(self._content, start)[0]
        start = self._overflow(first, size, counts) + _PAGE_HEADER_BYTES
        return self._content[start : start + size]

    def _overflow(self, first: int, size: int, counts: list[int]) -> int:
        base = self._take(first)
        number, _, flags, count = _OVERFLOW_PAGE.unpack_from(self._content, base)
        # More than needed: a value that is replaced by a shorter one in the same transaction keeps
        # its pages (mdb_cursor_put).
        needed = -(-(size + _PAGE_HEADER_BYTES) // self._page_bytes)
        if number != first or flags != _OVERFLOW or count < needed:
            raise self._wrong(first, f"it is not the first of {needed} overflow pages")
        for page in range(first + 1, first + count):
            self._take(page)
        counts[2] += count
        return base

    # --- pages ------------------------------------------------------------------------------------

    def _check_free(self, data: bytes) -> int:
        """One record of the free list: a count and so many page numbers. Returns how many of the
        pages lie behind the end of the file."""
        count, odd = divmod(len(data), _NUMBER.size)
        if odd or not count:
            raise self._wrong(0, "the list of free pages is cut short")
        numbers = struct.unpack(f"={count}Q", data)
        if numbers[0] >= count:
            raise self._wrong(0, "the list of free pages is longer than its record")
        absent = 0
        for page in numbers[1 : numbers[0] + 1]:
            if not 2 <= page <= self._meta.last_page:
                raise self._wrong(page, "it is on the list of free pages, but does not exist")
            if page < self._pages:
                self._take(page)
            else:
                absent += 1
        return absent

    def _take(self, page: int) -> int:
        """Mark *page* as used and return where it begins."""
        if not 2 <= page < self._pages:
            raise self._wrong(page, f"there are {self._pages} pages")
        if self._used[page]:
            raise self._wrong(page, "it is used twice")
        self._used[page] = 1
        return page * self._page_bytes

    def _wrong(self, page: int, what: str) -> StoreCorruptionError:
        return _damaged(self._path, f"page {page}: {what}")
