"""The file operations: the same on the real disk and in memory; and how the latter crashes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from quorate.errors import DirectoryInUseError
from quorate.storage.files import SECTOR_BYTES, FileSystem, OsFileSystem
from quorate.storage.memory_files import (
    MemoryFileSystem,
    SimulatedCrashError,
    crash_before,
    fail_once,
)

A, B, C = (bytes([letter]) * SECTOR_BYTES for letter in b"abc")


@pytest.fixture(params=["real", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "real":
        return OsFileSystem(), str(tmp_path)
    disk = MemoryFileSystem()
    disk.makedirs("/data")
    return disk, "/data"


def test_bytes_come_back(place: tuple[FileSystem, str]) -> None:
    files, base = place
    file = files.create(f"{base}/one")
    file.pwrite(b"hello", 3)
    file.pwrite(memoryview(bytearray(b"XY")), 4)
    file.fdatasync()
    file.fsync()
    assert file.size_bytes() == 8
    assert file.pread(100, 0) == b"\0\0\0hXYlo"
    assert file.pread(2, 3) == b"hX"
    assert file.pread(2, 50) == b""
    file.close()
    file.close()
    with pytest.raises(OSError, match=r"(?i)bad file descriptor|closed"):
        file.pread(1, 0)
    again = files.open(f"{base}/one")
    assert again.pread(3, 5) == b"Ylo"
    again.close()


def test_lengths_change_and_what_is_gained_is_zero(place: tuple[FileSystem, str]) -> None:
    files, base = place
    file = files.create(f"{base}/one")
    file.pwrite(b"abcdef", 0)
    file.truncate(2)
    file.truncate(4)
    assert file.pread(9, 0) == b"ab\0\0"
    file.allocate(8)
    file.allocate(3)
    assert file.pread(9, 0) == b"ab\0\0\0\0\0\0"
    file.close()
    files.create(f"{base}/one").close()
    reopened = files.open(f"{base}/one")
    assert reopened.size_bytes() == 0, "create empties"
    reopened.close()


def test_names(place: tuple[FileSystem, str]) -> None:
    files, base = place
    files.makedirs(f"{base}/x/y")
    files.makedirs(f"{base}/x/y")
    for name in ("b", "a"):
        file = files.create(f"{base}/x/{name}")
        file.pwrite(name.encode(), 0)
        file.close()
    assert files.listdir(f"{base}/x") == ["a", "b", "y"]
    assert files.exists(f"{base}/x/a")
    assert files.exists(f"{base}/x/y")
    files.rename(f"{base}/x/a", f"{base}/x/b")
    held = files.open(f"{base}/x/b")
    files.unlink(f"{base}/x/b")
    files.fsync_dir(f"{base}/x")
    assert held.pread(1, 0) == b"a", "an open file outlives its name"
    held.close()
    assert files.listdir(f"{base}/x") == ["y"]
    assert not files.exists(f"{base}/x/b")


def test_missing_names_are_errors(place: tuple[FileSystem, str]) -> None:
    files, base = place
    for call in (
        lambda: files.open(f"{base}/none"),
        lambda: files.unlink(f"{base}/none"),
        lambda: files.rename(f"{base}/none", f"{base}/other"),
        lambda: files.listdir(f"{base}/none"),
        lambda: files.create(f"{base}/none/file"),
    ):
        with pytest.raises(FileNotFoundError):
            call()


def test_a_lock_is_held_once(place: tuple[FileSystem, str]) -> None:
    files, base = place
    held = files.lock(f"{base}/lock")
    files.open(f"{base}/lock").close()
    with pytest.raises(DirectoryInUseError, match="lock is locked"):
        files.lock(f"{base}/lock")
    held.close()
    files.lock(f"{base}/lock").close()


# --- crashes ---


def survivors(disk: MemoryFileSystem, path: str) -> set[bytes | None]:
    found: set[bytes | None] = set()
    for picks in disk.crashes():
        after = disk.after_crash(picks)
        found.add(bytes(after.content(path)) if after.exists(path) else None)
    assert len(list(disk.crashes())) == disk.crash_count()
    return found


def test_unsynced_sectors_survive_in_any_subset_and_version() -> None:
    disk = MemoryFileSystem()
    file = disk.create("file")
    disk.fsync_dir(".")
    file.pwrite(A + A, 0)
    file.fdatasync()
    assert survivors(disk, "file") == {A + A}
    file.pwrite(B + B, 0)
    assert survivors(disk, "file") == {A + A, A + B, B + A, B + B}
    file.pwrite(C, 0)
    assert survivors(disk, "file") == {A + A, A + B, B + A, B + B, C + A, C + B}
    file.fdatasync()
    assert survivors(disk, "file") == {C + B}


def test_unsynced_lengths_are_kept_or_not() -> None:
    disk = MemoryFileSystem()
    file = disk.create("file")
    disk.fsync_dir(".")
    file.pwrite(A, 0)
    assert survivors(disk, "file") == {b"", A, bytes(SECTOR_BYTES)}
    file.fdatasync()
    file.truncate(0)
    file.truncate(SECTOR_BYTES)
    assert survivors(disk, "file") == {b"", A, bytes(SECTOR_BYTES)}
    file.fdatasync()
    assert survivors(disk, "file") == {bytes(SECTOR_BYTES)}


def test_unsynced_names_survive_in_any_subset() -> None:
    disk = MemoryFileSystem()
    disk.create("one").fsync()
    disk.rename("one", "two")
    assert survivors(disk, "one") == {None, b""}
    assert survivors(disk, "two") == {None, b""}
    disk.fsync_dir(".")
    assert survivors(disk, "one") == {None}
    assert survivors(disk, "two") == {b""}
    disk.unlink("two")
    assert survivors(disk, "two") == {None, b""}


def test_a_failed_sync_may_lose_what_a_later_one_reports_done() -> None:
    disk = MemoryFileSystem()
    file = disk.create("file")
    disk.fsync_dir(".")
    file.pwrite(A, 0)
    file.fdatasync()
    file.pwrite(B, 0)
    disk.hook = fail_once("fdatasync", 0, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        file.fdatasync()
    file.fdatasync()
    assert file.pread(SECTOR_BYTES, 0) == B
    assert survivors(disk, "file") == {A, B}


def test_a_failed_write_does_half() -> None:
    disk = MemoryFileSystem(fail_once("pwrite", 0, errno.ENOSPC))
    file = disk.create("file")
    with pytest.raises(OSError, match="No space left"):
        file.pwrite(A + B, 0)
    assert file.pread(9999, 0) == A


def test_a_kill_keeps_the_cache_but_makes_nothing_durable() -> None:
    disk = MemoryFileSystem()
    file = disk.create("file")
    file.pwrite(A, 0)
    disk.lock("lock")
    after = disk.after_kill()
    assert after.content("file") == A
    assert after.uncertain() == disk.uncertain()
    assert after.after_crash([0] * len(after.uncertain())).listdir(".") == []
    after.lock("lock").close()
    file.pwrite(B, 0)
    assert after.content("file") == A, "the disks are apart"


def test_crashes_stop_the_process_for_good() -> None:
    disk = MemoryFileSystem(crash_before(2), record=True)
    file = disk.create("file")
    file.pwrite(A, 0)
    file.pread(1, 0)
    with pytest.raises(SimulatedCrashError):
        file.fdatasync()
    with pytest.raises(SimulatedCrashError):
        file.pread(1, 0)
    assert disk.trace is not None
    assert [operation.kind for operation in disk.trace] == ["create", "pwrite", "fdatasync"]
