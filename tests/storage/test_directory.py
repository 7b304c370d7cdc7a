"""The data directory: who may use it, whose it is, and what is refused in plain words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry
from quorate.errors import (
    DirectoryInUseError,
    DiskFullError,
    FormatVersionError,
    InvariantViolationError,
    StorageError,
)
from quorate.storage import directory as directory_module
from quorate.storage.directory import DataDirectory, Identity
from quorate.storage.durable import REJOIN
from quorate.storage.files import FileSystem, OsFileSystem
from quorate.storage.memory_files import (
    MemoryFileSystem,
    SimulatedCrashError,
    crash_before,
    fail_once,
)
from quorate.storage.wal import WriteAheadLog

ALICE = Identity(cluster="c", node=NodeId(1), incarnation="a1" * 16, created_ms=7)
BOB = msgspec.structs.replace(ALICE, node=NodeId(2), incarnation="b2" * 16)


@pytest.fixture(params=["os", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FileSystem, str]]:
    if request.param == "os":
        yield OsFileSystem(), str(tmp_path / "node" / "data")
    else:
        yield MemoryFileSystem(), "/node/data"


# --- identity ---


def test_a_new_directory_has_no_identity_and_keeps_the_one_it_gets(
    place: tuple[FileSystem, str],
) -> None:
    files, path = place
    with DataDirectory(path, files) as directory:
        assert directory.identity() is None
        directory.write_identity(ALICE)
        assert directory.identity() == ALICE
    with DataDirectory(path, files) as directory:
        assert directory.identity() == ALICE
        directory.write_identity(BOB)
        assert directory.identity() == BOB


def test_every_bit_of_an_identity_matters() -> None:
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        directory.write_identity(ALICE)
        content = files.content(directory.identity_path)
        for bit in range(8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            files.damage(directory.identity_path, damaged)
            with pytest.raises(StorageError, match=r"restore it|is not an identity"):
                directory.identity()
        for length in range(len(content)):
            files.damage(directory.identity_path, content[:length])
            with pytest.raises(StorageError, match="checksum"):
                directory.identity()


def test_an_identity_of_a_newer_format_is_refused() -> None:
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        directory.write_identity(msgspec.structs.replace(ALICE, format_version=2))
        with pytest.raises(FormatVersionError, match=r"has format 2, .* start the newer quorate"):
            directory.identity()


def test_what_is_no_identity_is_refused_in_our_own_words() -> None:
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        for text in (b'{"format_version":1}', b"[]", b"{", b'{"format_version":"x"}'):
            line = b"%s\n%08x\n" % (text, directory_module.crc32(text))
            files.create(directory.identity_path).pwrite(line, 0)
            with pytest.raises(StorageError, match="is not an identity"):
                directory.identity()


@pytest.mark.parametrize("part", ["log", "state"])
def test_data_without_an_identity_is_not_a_new_directory(part: str) -> None:
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        files.makedirs(f"/d/{part}")
        assert directory.identity() is None
        files.create(f"/d/{part}/something").close()
        with pytest.raises(StorageError, match=f"identity is missing but /d/{part} holds data"):
            directory.identity()


def test_an_identity_whose_log_is_gone_is_refused() -> None:
    """A node that forgot its votes could vote twice in a term."""
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        with pytest.raises(InvariantViolationError):
            directory.confirm_log()
        directory.write_identity(ALICE)
        assert directory.identity() == ALICE, "a crash before the log was begun harms nothing"
        log = WriteAheadLog(directory.log_path, files=files)
        log.recover()
        log.append([Entry(LogIndex(1), Term(1), 0, b"x")], None)
        log.close()
        directory.confirm_log()
        directory.confirm_log()
        assert directory.identity() == msgspec.structs.replace(ALICE, log_begun=True)
        for name in files.listdir(directory.log_path):
            files.unlink(f"{directory.log_path}/{name}")
        with pytest.raises(StorageError, match="log is missing or empty") as caught:
            directory.identity()
        assert REJOIN in str(caught.value)


def test_a_crash_while_an_identity_is_replaced_leaves_one_of_the_two() -> None:
    seen = set()
    for number in range(20):
        files = MemoryFileSystem()
        with DataDirectory("/d", files) as directory:
            directory.write_identity(ALICE)
            files.hook = crash_before(number)
            try:
                directory.write_identity(BOB)
            except SimulatedCrashError:
                files.hook = None
            for picks in files.crashes():
                after = files.after_crash(picks)
                with DataDirectory("/d", after) as again:
                    found = again.identity()
                assert found in (ALICE, BOB)
                seen.add((number, found))
    assert {found for _, found in seen} == {ALICE, BOB}
    assert (19, BOB) in seen
    assert (19, ALICE) not in seen


# --- the lock ---


def test_a_directory_is_used_by_one_at_a_time(place: tuple[FileSystem, str]) -> None:
    files, path = place
    in_use = pytest.raises(DirectoryInUseError, match=f"{path} is in use by this process; stop it")
    with DataDirectory(path, files), in_use:
        DataDirectory(path, files)
    DataDirectory(path, files).close()


def test_another_process_is_named_and_its_end_frees_the_directory(tmp_path: Path) -> None:
    code = (
        "import sys; from quorate.storage.directory import DataDirectory\n"
        f"held = DataDirectory({str(tmp_path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUseError, match=f"is in use by process {other.pid};"):
            DataDirectory(tmp_path)
        other.kill()
    DataDirectory(tmp_path).close()


# --- directories that cannot be used ---


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
@pytest.mark.parametrize("kind", ["makedirs", "lock", "create", "rename"])
def test_a_directory_that_may_not_be_written_is_refused_at_once(kind: str, code: int) -> None:
    files = MemoryFileSystem()
    files.hook = fail_once(kind, 0, code)
    with pytest.raises(StorageError, match=r"/d.*let the user that runs the node write") as caught:
        DataDirectory("/d", files)
    assert not isinstance(caught.value, DiskFullError)
    assert files.opened == 0


def test_a_failing_disk_is_refused_at_once_and_nothing_stays_open() -> None:
    for kind in ("makedirs", "lock", "create", "pwrite", "fsync", "rename", "fsync_dir"):
        files = MemoryFileSystem()
        files.hook = fail_once(kind, 0 if kind != "pwrite" else 1, errno.EIO)
        with pytest.raises(StorageError, match="the disk failed while"):
            DataDirectory("/d", files)
        assert files.opened == 0


def test_a_full_disk_does_not_keep_a_node_from_starting() -> None:
    files = MemoryFileSystem()
    with DataDirectory("/d", files) as directory:
        directory.write_identity(ALICE)
    files.hook = fail_once("create", 0, errno.ENOSPC)
    with DataDirectory("/d", files) as directory:
        assert directory.identity() == ALICE
        files.hook = fail_once("create", 0, errno.ENOSPC)
        with pytest.raises(DiskFullError, match="free space or raise the quota"):
            directory.write_identity(BOB)
        assert directory.identity() == ALICE


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a file")
    with pytest.raises(StorageError, match=r"creating the data directory .*data"):
        DataDirectory(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="let the user that runs the node write there"):
        DataDirectory(tmp_path)
    tmp_path.chmod(0o700)
