"""Which store in the state directory is the present one, and how another takes its place.

    state/CURRENT                 one line: the name of the present store, checksummed
    state/store-00000007/         the present store
    state/store-00000008.partial/ one that is being built

A store is built under its partial name, made durable, renamed, and becomes the present one when
``CURRENT`` is replaced: that rename is the one atomic step. Whatever else is found when the
directory is opened is left over from a crash and removed. This module must not know what is in a
store.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Final
from zlib import crc32

from quorate.errors import FormatVersionError, StoreCorruptionError
from quorate.storage.durable import REJOIN, read_small_file, write_aside
from quorate.storage.files import FileSystem

CURRENT_VERSION: Final = 1
_CURRENT_BYTES_MAX: Final = 200
_STORE: Final = re.compile(r"store-(\d{8,})(\.partial)?")


class GenerationDirectory:
    """The names in one state directory. Every method raises ``OSError`` when the disk fails."""

    def __init__(self, path: str, files: FileSystem) -> None:
        self.path = path
        self._files = files
        files.makedirs(path)

    def store_path(self, generation: int) -> str:
        """Where the whole store of that number lives."""
        return os.path.join(self.path, f"store-{generation:08d}")

    def partial_path(self, generation: int) -> str:
        """Where the store of that number is built."""
        return self.store_path(generation) + ".partial"

    def find(self) -> int | None:
        """The present generation, or None in a new directory.

        Raises:
            StoreCorruptionError: ``CURRENT`` is damaged, or what it names is not there.
            FormatVersionError: ``CURRENT`` was written by a newer quorate.
        """
        # A process that died after the switch may have left it undone on disk: before the store
        # that it replaced is removed, the name that is read here must stay.
        self._files.fsync_dir(self.path)
        if self.has_current():
            generation = self._read_current()
            if not self._files.exists(self.store_path(generation)):
                raise self._damaged(f"names {self.store_path(generation)}, which is not there")
            return generation
        whole = [number for number, partial in self._stores() if not partial]
        if len(whole) > 1:
            raise self._damaged(f"is missing and there are {len(whole)} stores")
        # One whole store without CURRENT: a crash in the very first creation. As the only one
        # there is, it is the present one whatever the reason.
        return whole[0] if whole else None

    def has_current(self) -> bool:
        """Whether ``CURRENT`` is there; only a crash in the first creation leaves it missing."""
        return self._files.exists(self._current_path)

    def remove_all_but(self, generation: int | None) -> None:
        """Remove what a crash left over."""
        for number, partial in self._stores():
            if partial:
                self.remove(self.partial_path(number))
            elif number != generation:
                self.remove(self.store_path(number))
        if self._files.exists(self._current_path + ".tmp"):
            self._files.unlink(self._current_path + ".tmp")

    def make_partial(self, generation: int) -> str:
        """An empty directory to build the store of that number in."""
        path = self.partial_path(generation)
        self.remove(path)
        self._files.makedirs(path)
        return path

    def promote(self, generation: int) -> None:
        """Give a partial store, whose files are durable, its own name; it is not yet present."""
        self.remove(self.store_path(generation))  # left over if this failed once
        self._files.fsync_dir(self.partial_path(generation))
        self._files.rename(self.partial_path(generation), self.store_path(generation))
        self._files.fsync_dir(self.path)

    def prepare_switch(self, generation: int) -> str:
        """Write the new ``CURRENT`` aside; all that can fail for want of space happens here."""
        line = f"quorate-state {CURRENT_VERSION} {generation}".encode()
        return write_aside(self._files, self._current_path, b"%s %08x\n" % (line, crc32(line)))

    def switch(self, prepared: str) -> None:
        """Make the prepared generation the present one: the atomic step. If this raises, which one
        is present is unknown until the directory is opened again."""
        self._files.rename(prepared, self._current_path)
        self._files.fsync_dir(self.path)

    def remove(self, path: str) -> None:
        """Remove a store, if it is there. Not durable: what comes back is removed at opening."""
        if self._files.exists(path):
            shutil.rmtree(path)

    @property
    def _current_path(self) -> str:
        return os.path.join(self.path, "CURRENT")

    def _stores(self) -> list[tuple[int, bool]]:
        found = (_STORE.fullmatch(name) for name in self._files.listdir(self.path))
        return [(int(match[1]), match[2] is not None) for match in found if match]

    def _read_current(self) -> int:
        content = read_small_file(self._files, self._current_path, _CURRENT_BYTES_MAX)
        line, _, check = content.rpartition(b" ")
        if check != b"%08x\n" % crc32(line):
            raise self._damaged("is damaged (checksum)")
        words = line.split()
        if len(words) < 3 or words[0] != b"quorate-state" or not words[1].isdigit():
            raise self._damaged("is not a pointer to a store")
        if int(words[1]) > CURRENT_VERSION:
            raise FormatVersionError(
                f"{self._current_path} has format {int(words[1])}, this quorate knows up to"
                f" {CURRENT_VERSION}: start the newer quorate that wrote it"
            )
        if not words[2].isdigit():
            raise self._damaged("is not a pointer to a store")
        return int(words[2])

    def _damaged(self, what: str) -> StoreCorruptionError:
        return StoreCorruptionError(f"{self._current_path} {what}. {REJOIN}")
