"""The few disk operations that durable storage needs, behind a protocol.

The write-ahead log and the installation of stores touch the disk only through a ``FileSystem``,
so that the simulator can put a disk under the very same code that loses what was not fsynced,
tears, and fails (``memory_files.MemoryFileSystem``).

What each operation promises, and what it does not:

* ``File.pwrite`` changes the page cache; ``File.fdatasync`` makes the bytes and the size durable.
* ``create``, ``rename`` and ``unlink`` are durable only after ``fsync_dir`` of the directory that
  holds the name (two for a rename across directories); before it a crash may undo any of them.
* ``makedirs`` is durable on return.
* What is read comes from the page cache. After a failed sync, in this process or in an earlier
  one, that may be more than the disk holds; ``File.drop_cache`` after a sync shows the truth.
* Every failure is an ``OSError`` with its ``errno``; the caller decides what it means.
"""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

from quorate.errors import DirectoryInUseError

#: The smallest unit that a disk writes as a whole; see ``wal_format`` for what relies on it.
SECTOR_BYTES = 512


class File(Protocol):
    """One open file. Positions and sizes are bytes."""

    def pread(self, size_bytes: int, offset: int) -> bytes:
        """Up to *size_bytes* from *offset*; fewer only at the end of the file."""
        ...

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data* at *offset*; after an ``OSError`` any part of it may be there."""
        ...

    def fdatasync(self) -> None:
        """Make all bytes written through any handle, and the size, durable."""
        ...

    def fsync(self) -> None:
        """As ``fdatasync``, and the rest of the metadata."""
        ...

    def size_bytes(self) -> int:
        """Present length."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Set the length; what is gained reads as zeros."""
        ...

    def allocate(self, size_bytes: int) -> None:
        """Reserve space up to *size_bytes*, growing the length to it; ``ENOSPC`` if it lacks."""
        ...

    def drop_cache(self, size_bytes: int = 0) -> None:
        """Forget what is cached of the first *size_bytes* (0: of all), as far as it is synced, so
        that the next read shows what the disk holds. A no-op where the system cannot."""
        ...

    def close(self) -> None:
        """Release the handle. Idempotent."""
        ...


class FileSystem(Protocol):
    """Names, and files to open. Paths are plain strings; directories are never closed."""

    def create(self, path: str) -> File:
        """A new empty file, open for reading and writing; replaces one of the same name."""
        ...

    def open(self, path: str) -> File:
        """An existing file, open for reading and writing."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the name is taken, by a file or a directory."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Atomically give *old* the name *new*, replacing a file of that name."""
        ...

    def unlink(self, path: str) -> None:
        """Remove the name of a file; open handles of it stay usable."""
        ...

    def fsync_dir(self, path: str) -> None:
        """Make every earlier create, rename and unlink in *path* durable."""
        ...

    def makedirs(self, path: str) -> None:
        """Create a directory and its missing parents, durably; nothing if it exists."""
        ...

    def lock(self, path: str) -> File:
        """Take the exclusive lock of the file *path* (created if missing) until it is closed.

        Raises:
            DirectoryInUseError: somebody else holds it.
        """
        ...


class OsFile:
    """A file descriptor of the operating system."""

    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def pread(self, size_bytes: int, offset: int) -> bytes:
        data = os.pread(self._fd, size_bytes, offset)
        if len(data) == size_bytes or not data:
            return data
        parts = [data]  # one call returns at most 2 GiB, and less when a signal came between
        while data:
            size_bytes -= len(data)
            offset += len(data)
            data = os.pread(self._fd, size_bytes, offset)
            parts.append(data)
        return b"".join(parts)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        written = os.pwrite(self._fd, data, offset)
        if written == len(data):
            return
        with memoryview(data) as view:
            while written < len(view):
                written += os.pwrite(self._fd, view[written:], offset + written)

    def fdatasync(self) -> None:
        _fdatasync(self._fd)

    def fsync(self) -> None:
        os.fsync(self._fd)

    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def allocate(self, size_bytes: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, size_bytes)
        elif self.size_bytes() < size_bytes:
            os.ftruncate(self._fd, size_bytes)

    def drop_cache(self, size_bytes: int = 0) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, size_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # -1: a late use fails, rather than hit a reused number
            os.close(fd)

    def __repr__(self) -> str:
        return f"OsFile({self._path!r})"


class OsFileSystem:
    """The real disk."""

    def create(self, path: str) -> File:
        return OsFile(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), path
        )

    def open(self, path: str) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def makedirs(self, path: str) -> None:
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            self.makedirs(parent)
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        # Also when it exists: an earlier process may have died between mkdir and fsync.
        self.fsync_dir(parent)

    def lock(self, path: str) -> File:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            message = f"{path} is locked: another process, or another node of this one, uses it"
            raise DirectoryInUseError(message) from error
        except OSError:
            os.close(fd)
            raise
        return OsFile(fd, path)


#: macOS has no fdatasync; its fsync is the nearest there is.
_fdatasync = getattr(os, "fdatasync", os.fsync)
