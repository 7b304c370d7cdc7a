"""A node's data directory: who may use it, whose it is, and where its parts are.

``LOCK`` is held with an exclusive lock for as long as the node runs, so that two processes, or two
nodes of one process, never write the same log. ``identity`` says which node of which cluster the
data belongs to; a node that starts with other settings is refused instead of voting with the
memory of somebody else. This module must not know what the log or the state store put into theirs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, Self
from zlib import crc32

import msgspec

from quorate.base.invariants import must
from quorate.base.types import NodeId
from quorate.errors import (
    DirectoryInUseError,
    DiskFullError,
    FormatVersionError,
    StorageError,
)
from quorate.storage.durable import REJOIN, disk_errors, read_small_file, replace_file
from quorate.storage.files import File, FileSystem, OsFileSystem

IDENTITY_VERSION: Final = 1
IDENTITY_BYTES_MAX: Final = 64 * 1024  # an identity is some 200 bytes; more is not one


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose data this is; written when the directory is first used.

    *incarnation* is a UUID in hex, new whenever a node starts with an empty directory: its peers
    tell by it a wiped member from the one they knew. *created_ms* is wall time, for people.
    *log_begun*: there is a log, so that a directory without one lost it (``confirm_log``).
    """

    format_version: int = IDENTITY_VERSION
    cluster: str
    node: NodeId
    incarnation: str
    created_ms: int
    log_begun: bool = False


class _Version(msgspec.Struct, frozen=True):
    format_version: int


class DirectoryLock:
    """The exclusive lock of the directory *path* (its file ``LOCK``), held until ``release``.

    A child made by a bare ``fork`` shares it, so the directory stays locked until the child ends
    too; children made by ``subprocess`` do not.

    Raises:
        DirectoryInUseError: somebody else holds it; the text names the process if it is known.
        StorageError: the file cannot be created or locked.
    """

    def __init__(self, path: str, files: FileSystem) -> None:
        name = os.path.join(path, "LOCK")
        self._file: File | None
        try:
            with disk_errors(f"locking {name}"):
                self._file = files.lock(name)
        except DirectoryInUseError as error:
            raise DirectoryInUseError(
                f"{path} is in use by {_holder(files, name)}; stop it, or give this node a"
                " directory of its own"
            ) from error
        # The number is only shown to people, so a failure to write it is no reason to stop.
        with suppress(OSError):
            self._file.truncate(0)
            self._file.pwrite(b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let go. Idempotent. The file stays: removing it would let two holders lock two files."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _holder(files: FileSystem, name: str) -> str:
    try:
        text = read_small_file(files, name, 32).strip()
    except OSError:
        text = b""
    if not text.isdigit():
        return "another process"
    return "this process" if int(text) == os.getpid() else f"process {int(text)}"


class DataDirectory:
    """Opens and locks *path*, creating it if need be; ``close`` gives it back.

    Raises:
        StorageError: it cannot be created or written; the text says why.
        DirectoryInUseError: another process or node holds it.
    """

    def __init__(self, path: str | os.PathLike[str], files: FileSystem | None = None) -> None:
        self.path = os.path.abspath(path)
        self._files = OsFileSystem() if files is None else files
        with disk_errors(f"creating the data directory {self.path}"):
            self._files.makedirs(self.path)
        self._lock = DirectoryLock(self.path, self._files)
        try:
            self._check_writable()
        except BaseException:
            self._lock.release()
            raise

    @property
    def log_path(self) -> str:
        """Where the write-ahead log lives."""
        return os.path.join(self.path, "log")

    @property
    def state_path(self) -> str:
        """Where the state store lives."""
        return os.path.join(self.path, "state")

    @property
    def elements_path(self) -> str:
        """Where the element store of the converging tier lives."""
        return os.path.join(self.path, "crdt")

    @property
    def identity_path(self) -> str:
        """The file that says whose data this is."""
        return os.path.join(self.path, "identity")

    def identity(self) -> Identity | None:
        """Whose data this is, or None for a directory that was never used.

        Raises:
            FormatVersionError: written by a newer quorate.
            StorageError: the file is damaged, or is missing although there is data; or the log is
                missing although there was one.
        """
        identity = self.owner()
        with disk_errors(f"reading {self.identity_path}"):
            if identity is None:
                self._refuse_orphans()
                return None
            if identity.log_begun and not self._holds_data(self.log_path):
                raise StorageError(
                    f"{self.log_path} is missing or empty, but this node kept its log there: a node"
                    f" that forgot its votes must not vote. Restore it whole, or: {REJOIN}"
                )
        return identity

    def owner(self) -> Identity | None:
        """Whose data this is, for whoever does not start a node on it; None: nobody says.

        Raises:
            FormatVersionError, StorageError: the file is of a newer version, or damaged.
        """
        with disk_errors(f"reading {self.identity_path}"):
            if not self._files.exists(self.identity_path):
                return None
            content = read_small_file(self._files, self.identity_path, IDENTITY_BYTES_MAX)
            return _decode_identity(content, self.identity_path)

    def confirm_log(self) -> None:
        """Record that the log exists; called once it was opened, before the node says a word to
        anyone. From then on a directory whose log is gone is refused instead of begun afresh.

        Raises:
            DiskFullError, StorageError: as ``write_identity``.
        """
        identity = self.identity()
        must(identity is not None, "a log is confirmed for somebody", path=self.path)
        if identity is not None and not identity.log_begun:
            self.write_identity(msgspec.structs.replace(identity, log_begun=True))

    def write_identity(self, identity: Identity) -> None:
        """Durably record whose data this is, replacing what was there in one atomic step.

        Raises:
            DiskFullError: the file is as it was.
            StorageError: the disk failed; the file is as it was, or holds *identity* whole.
        """
        with disk_errors(f"writing {self.identity_path}"):
            replace_file(self._files, self.identity_path, _encode_identity(identity))

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        """Fail at the start with a clear text, not at the first checkpoint. A full disk is no
        reason: the node can still serve reads, and vote in the segment it has."""
        probe = os.path.join(self.path, ".probe")
        with (
            suppress(DiskFullError),
            disk_errors(f"checking that the data directory {self.path} is writable"),
        ):
            replace_file(self._files, probe, b"quorate")
            self._files.unlink(probe)

    def _holds_data(self, part: str) -> bool:
        return self._files.exists(part) and bool(self._files.listdir(part))

    def _refuse_orphans(self) -> None:
        """Data without an identity is not a new directory: starting afresh would forget votes."""
        for part in (self.log_path, self.state_path, self.elements_path):
            if self._holds_data(part):
                raise StorageError(
                    f"{self.identity_path} is missing but {part} holds data: restore the file, or"
                    " move the whole directory away and let the node join again"
                )


def _encode_identity(identity: Identity) -> bytes:
    """One line of JSON, one line of checksum: people can read it, damage cannot hide in it."""
    text = msgspec.json.encode(identity)
    return b"%s\n%08x\n" % (text, crc32(text))


def _decode_identity(content: bytes, path: str) -> Identity:
    text, _, rest = content.partition(b"\n")
    if rest != b"%08x\n" % crc32(text):
        raise StorageError(
            f"{path} is damaged (checksum): restore it, or move the data directory away and let"
            " the node join again"
        )
    try:
        version = msgspec.json.decode(text, type=_Version).format_version
        if version > IDENTITY_VERSION:
            raise FormatVersionError(
                f"{path} has format {version}, this quorate knows up to {IDENTITY_VERSION}:"
                " start the newer quorate that wrote it"
            )
        return msgspec.json.decode(text, type=Identity)
    except msgspec.DecodeError as error:
        raise StorageError(f"{path} is not an identity: {error}") from error
