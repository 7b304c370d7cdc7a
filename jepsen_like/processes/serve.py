"""``python -m jepsen_like.processes.serve FAULT_FILE serve ...``: quorate's own command line, on a
``Platform`` whose clock and disk are bent by a ``FaultFile``.

The product has no switch for this: a node takes clocks and files from its platform anyway. The log
is cut into small segments and checkpoints are frequent, so that a run of a minute sees what else
takes days. The process dies with the harness that started it.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jepsen_like.processes.fault_file import FSYNC_ERROR, FULL, STALL, WRITE_ERROR, FaultFile
from jepsen_like.processes.parent import die_with_parent
from quorate.base.limits import KIB, MIB
from quorate.replication.clock import Clock, system_clock
from quorate.server import cli
from quorate.server import node as node_module
from quorate.server.config import NodeConfig
from quorate.server.platform import Platform
from quorate.storage.files import File, FileSystem, OsFileSystem

STALL_POLL_S: Final = 0.005
SEGMENT_BYTES: Final = MIB
CHECKPOINT_BYTES: Final = 256 * KIB


def main(arguments: Sequence[str]) -> int:
    """Bend, then run the command line; returns its exit status."""
    die_with_parent()
    faults = FaultFile(Path(arguments[0]))
    vars(node_module)["Platform"] = lambda: BentPlatform(faults)
    return cli.main(list(arguments[1:]))


class BentPlatform(Platform):
    """The real system, seen through *faults*."""

    def __init__(self, faults: FaultFile) -> None:
        super().__init__(clock=bent_clock(faults))
        self._faults = faults
        self.files: FileSystem = BentFileSystem(faults)
        self.segment_bytes = SEGMENT_BYTES

    def free_bytes(self, path: str) -> int:
        return 0 if self._faults.disk() & FULL else super().free_bytes(path)

    def checkpoint_bytes(self, config: NodeConfig) -> int:
        del config
        return CHECKPOINT_BYTES


def bent_clock(faults: FaultFile) -> Clock:
    """The system's clock as *faults* bends it."""
    real = system_clock()
    last_s = real.monotonic_s()

    def monotonic_s() -> float:
        nonlocal last_s
        last_s = max(last_s, faults.clock().monotonic_s(real.monotonic_s()))
        return last_s

    def wall_ms() -> int:
        return real.wall_ms() + int(faults.clock().wall_offset_s * 1000)

    return Clock(monotonic_s, wall_ms)


class BentFile:
    """A ``File`` that fails as *faults* says."""

    def __init__(self, file: File, faults: FaultFile) -> None:
        self._file = file
        self._faults = faults
        self.pread = file.pread
        self.size_bytes = file.size_bytes
        self.drop_cache = file.drop_cache
        self.close = file.close

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        bits = self._faults.disk()
        if bits & WRITE_ERROR:
            self._faults.hit("write_error")
            raise _error(errno.EIO)
        if bits & FULL:
            self._need(offset + len(data))
        self._file.pwrite(data, offset)

    def truncate(self, size_bytes: int) -> None:
        self._file.truncate(size_bytes)

    def allocate(self, size_bytes: int) -> None:
        if self._faults.disk() & FULL:
            self._need(size_bytes)
        self._file.allocate(size_bytes)

    def fdatasync(self) -> None:
        self._before_sync()
        self._file.fdatasync()

    def fsync(self) -> None:
        self._before_sync()
        self._file.fsync()

    def _need(self, size_bytes: int) -> None:
        """There is no room beyond what a file has."""
        if size_bytes > self._file.size_bytes():
            self._faults.hit("full")
            raise _error(errno.ENOSPC)

    def _before_sync(self) -> None:
        faults = self._faults
        if faults.disk() & STALL:
            faults.hit("stall")
            while faults.disk() & STALL:
                time.sleep(STALL_POLL_S)
        if faults.disk() & FSYNC_ERROR:
            faults.hit("fsync_error")
            raise _error(errno.EIO)


class BentFileSystem(OsFileSystem):
    """The real disk, its files bent."""

    def __init__(self, faults: FaultFile) -> None:
        self._faults = faults

    def create(self, path: str) -> File:
        return BentFile(super().create(path), self._faults)

    def open(self, path: str) -> File:
        return BentFile(super().open(path), self._faults)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
