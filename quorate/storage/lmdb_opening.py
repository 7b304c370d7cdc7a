"""Opens LMDB environments and turns LMDB's errors into ours: the only module that imports lmdb.

Whoever opens one keeps two rules: a write transaction belongs to the thread that began it, and an
environment is never used across ``fork``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import lmdb

from quorate.base.limits import MIB
from quorate.errors import (
    DirectoryInUseError,
    DiskFullError,
    StorageError,
    StoreCorruptionError,
)
from quorate.storage.durable import NO_SPACE_CODES, REJOIN
from quorate.storage.environment import MapFullError
from quorate.storage.files import FileSystem

GIB: Final = 1024 * MIB

#: Address space reserved for the map. Costs neither memory nor disk, and is far beyond what most
#: stores come to, so that growing it, which needs a moment without readers, is rare.
MAP_BYTES_DEFAULT: Final = 256 * GIB
#: Simultaneous readers: loads and snapshot transfers, a few at most; this is LMDB's default.
READERS_MAX: Final = 126
#: Where the address space is limited, the map is halved down to this before opening gives up.
MAP_BYTES_MIN: Final = 256 * MIB
#: The two meta pages, at the largest page size that LMDB uses.
META_BYTES_MAX: Final = 2 * 64 * 1024
#: Finished read transactions that are kept, to begin the next one in a third of the time.
SPARE_TRANSACTIONS: Final = 2

LmdbError: TypeAlias = lmdb.Error
#: ``lmdb.Environment``: its stubs promise more than all supported versions keep.
LmdbEnvironment: TypeAlias = Any

_CORRUPTION: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.InvalidError,
    lmdb.IncompatibleError,
)


def translated(error: LmdbError, doing: str) -> Exception:
    """Our error for one of LMDB's; a full map keeps a type of its own."""
    if isinstance(error, lmdb.MapFullError):
        return MapFullError(doing)
    if isinstance(error, _CORRUPTION):
        return StoreCorruptionError(f"LMDB found damage while {doing}: {error}. {REJOIN}")
    if isinstance(error, lmdb.DiskError) or error.code in NO_SPACE_CODES:
        return DiskFullError(
            f"no space while {doing}: {error}; nothing was changed; free space or raise the quota"
        )
    return StorageError(f"LMDB failed while {doing}: {error}")


@contextmanager
def lmdb_errors(doing: str) -> Iterator[None]:
    """Turn LMDB's errors inside a block into ours."""
    try:
        yield
    except LmdbError as error:
        raise translated(error, doing) from error


def open_lmdb(
    path: str, map_bytes: int, *, databases_max: int, durable: bool = True
) -> LmdbEnvironment:
    """Open the data file in *path*, making an empty one if there is none. Unless *durable*,
    commits are not synced.

    Raises:
        DirectoryInUseError: this process has the same files open already. LMDB's locks belong to
            the process, so a second opening would silently undo the first one's.
        StorageError: as ``translated``.
    """
    with lmdb_errors(f"opening {path}"):
        while True:
            try:
                return lmdb.open(
                    path,
                    map_size=map_bytes,
                    max_dbs=databases_max,
                    max_readers=READERS_MAX,
                    max_spare_txns=SPARE_TRANSACTIONS,
                    mode=0o700,
                    sync=durable,
                    metasync=durable,
                )
            except lmdb.MemoryError:  # the address space is limited: reserve less
                if map_bytes <= MAP_BYTES_MIN:
                    raise
                map_bytes //= 2
            except lmdb.Error as error:
                if "already open" in str(error):
                    raise DirectoryInUseError(f"{path} is open in this process already") from error
                raise


def trust_only_the_disk(files: FileSystem, data_path: str) -> None:
    """If an earlier process died of a failed sync, the cache may show a meta page that is not
    on disk. A page of records is synced before a meta page that leads to it is written.

    Raises:
        OSError: the disk failed.
    """
    file = files.open(data_path)
    try:
        file.fdatasync()
        file.drop_cache(META_BYTES_MAX)
    finally:
        file.close()
