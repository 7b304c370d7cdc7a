"""Small files that survive a power cut: write aside, fsync, rename, fsync the directory.

A rename orders nothing by itself: without the first fsync the new name may hold an empty file after
a power cut, without the second the old name may come back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from quorate.errors import DiskFullError, StorageError
from quorate.storage.files import FileSystem

#: What the system says when there is no room: the disk, a quota, or a file size limit.
NO_SPACE_CODES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: The way back from damage, for the end of an error's text.
REJOIN: Final = (
    "To get this node back, stop it, move its data directory away and let it rejoin the cluster as"
    " a new member (remove its id, add another): its peers have the data. If no peer has it, keep"
    " that directory."
)
#: What it says when this user may not write there.
_NOT_ALLOWED_CODES: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into ``DiskFullError`` or ``StorageError``; *doing* says what failed."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE_CODES:
            raise DiskFullError(
                f"no space while {doing}: {error}; free space or raise the quota"
            ) from error
        if error.errno in _NOT_ALLOWED_CODES:
            raise StorageError(
                f"not allowed while {doing}: {error}; let the user that runs the node write there,"
                " or give it another directory"
            ) from error
        raise StorageError(f"the disk failed while {doing}: {error}") from error


def write_aside(files: FileSystem, path: str, content: bytes) -> str:
    """Write and fsync *content* under the temporary name of *path*, and return that name."""
    temporary = path + ".tmp"
    file = files.create(temporary)
    try:
        file.pwrite(content, 0)
        file.fsync()
    finally:
        file.close()
    return temporary


def replace_file(files: FileSystem, path: str, content: bytes) -> None:
    """Replace *path* durably and atomically: it holds the old bytes whole or the new ones whole.

    Raises:
        OSError: which of the two it holds is then unknown.
    """
    files.rename(write_aside(files, path, content), path)
    files.fsync_dir(os.path.dirname(path))


def read_small_file(files: FileSystem, path: str, size_bytes_max: int) -> bytes:
    """The content of *path*, cut after *size_bytes_max* + 1 bytes so that the excess shows."""
    file = files.open(path)
    try:
        return file.pread(size_bytes_max + 1, 0)
    finally:
        file.close()
