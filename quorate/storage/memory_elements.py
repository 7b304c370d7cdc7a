"""The twin of the element store in memory: the same contract, for the simulator and for tests.

What would survive a crash is an ``ElementImage``; a second ``MemoryElementStore`` over the same
image sees what a restarted node would see.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from threading import Lock

from quorate.errors import ClosedError, DirectoryInUseError, DiskFullError, StorageError
from quorate.storage import store_format as form
from quorate.storage.elements import (
    PAGE_BYTES_DEFAULT,
    check_change,
    check_page,
    check_table_count,
)
from quorate.storage.interfaces import Change


class _Table:
    """Records, and their keys in order."""

    __slots__ = ("keys", "records")

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records
        self.keys = sorted(records)

    def change(self, key: bytes, value: bytes | None) -> int:
        """Make one change; returns by how many bytes the table grew."""
        old = self.records.pop(key, None)
        if value is not None:
            self.records[key] = value
            if old is None:
                insort(self.keys, key)
        elif old is not None:
            del self.keys[bisect_left(self.keys, key)]
        return _size_bytes(key, value) - _size_bytes(key, old)


def _size_bytes(key: bytes, value: bytes | None) -> int:
    return 0 if value is None else len(key) + len(value)


class ElementImage:
    """What the disk would hold."""

    def __init__(self) -> None:
        self.tables: dict[str, _Table] = {}
        self.used_bytes = 0  #: of keys and values
        self.opened = False
        #: More than this does not fit: ``DiskFullError``.
        self.size_bytes_max: int | None = None

    def copy(self) -> ElementImage:
        """Another image with the same records, open nowhere."""
        made = ElementImage()
        made.tables = {name: _Table(dict(table.records)) for name, table in self.tables.items()}
        made.used_bytes = self.used_bytes
        made.size_bytes_max = self.size_bytes_max
        return made

    def write(self, changes: Mapping[str, list[Change]]) -> None:
        """Make all changes, or raise DiskFullError and make none."""
        undo: list[tuple[_Table, bytes, bytes | None]] = []
        before_bytes = self.used_bytes
        for name, of_table in changes.items():
            table = self.tables.setdefault(name, _Table({}))
            for key, value in of_table:
                undo.append((table, key, table.records.get(key)))
                self.used_bytes += table.change(key, value)
        if self.size_bytes_max is not None and self.used_bytes > self.size_bytes_max:
            wanted_bytes, self.used_bytes = self.used_bytes, before_bytes
            for table, key, old in reversed(undo):
                table.change(key, old)
            raise DiskFullError(
                f"no space for {wanted_bytes} bytes, {self.size_bytes_max} are allowed; nothing was"
                " changed; delete records or allow more"
            )


class MemoryElementStore:
    """``ElementStore`` over an image; see there. One at a time, as with a directory.

    Raises:
        DirectoryInUseError: the image is open.
    """

    def __init__(self, image: ElementImage | None = None) -> None:
        self.image = ElementImage() if image is None else image
        if self.image.opened:
            raise DirectoryInUseError("the image is in use by another store; close that one")
        self.image.opened = True
        self._lock = Lock()  # who writes and who reads may be different threads
        self._failed: StorageError | None = None
        self._closed = False

    def get(self, table: str, key: bytes) -> bytes | None:
        """As the protocol says."""
        with self._lock:
            found = self.check_usable().tables.get(table)
            return None if found is None else found.records.get(key)

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
        page: list[tuple[bytes, bytes]] = []
        with self._lock:
            found = self.check_usable().tables.get(table)
            if found is None:
                return page
            first = bisect_left(found.keys, start)
            for key in found.keys[first : first + limit]:
                if end is not None and key >= end:
                    break
                value = found.records[key]
                bytes_max -= len(key) + len(value)
                if page and bytes_max < 0:
                    break
                page.append((key, value))
        return page

    def last(self, table: str, end: bytes | None = None) -> tuple[bytes, bytes] | None:
        """As the protocol says."""
        with self._lock:
            found = self.check_usable().tables.get(table)
            if found is None:
                return None
            behind = len(found.keys) if end is None else bisect_left(found.keys, end)
            if not behind:
                return None
            key = found.keys[behind - 1]
            return key, found.records[key]

    def write(self, changes: Mapping[str, Iterable[Change]]) -> None:
        """As the protocol says."""
        checked: dict[str, list[Change]] = {}
        for name, of_table in changes.items():
            form.check_table_name(name)
            checked[name] = list(of_table)
            for key, value in checked[name]:
                check_change(name, key, value)
        self.commit(checked)

    def commit(self, changes: Mapping[str, list[Change]]) -> None:
        """Make changes that were checked, or raise DiskFullError and make none."""
        with self._lock:
            image = self.check_usable()
            check_table_count(len(image.tables.keys() | changes.keys()))
            image.write(changes)

    def size_bytes(self) -> int:
        """Of keys and values."""
        with self._lock:
            return self.check_usable().used_bytes

    def close(self) -> None:
        """As the protocol says."""
        if not self._closed:
            self._closed = True
            self.image.opened = False

    def fail(self, error: StorageError) -> None:
        """Be unusable from now on, as after a failed write."""
        self._failed = error

    def check_usable(self) -> ElementImage:
        """The image. Raises ClosedError or StorageError unless the store may be used."""
        if self._closed:
            raise ClosedError("the element store in memory was closed")
        if self._failed is not None:
            raise StorageError(
                "the element store failed before and is not used again until the node restarts:"
                f" {self._failed}"
            ) from self._failed
        return self.image
