"""``python -m jepsen_like.processes.serve FAULT_FILE serve ...``: quorate's own command line, its
clock and disk read through a ``FaultFile``.

The product has no switch for this: what is bent here are the two seams that it has anyway, the
``Clock`` that a node is given and the ``FileSystem`` that its log writes through, and the question
for free space. The process dies with the harness that started it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from jepsen_like.processes.fault_file import FSYNC_ERROR, FULL, STALL, WRITE_ERROR, FaultFile
from quorate.replication import clock as clock_module
from quorate.server import cli, disk_guard
from quorate.server import node as node_module
from quorate.storage import files

STALL_POLL_S: Final = 0.005
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Sequence[str]) -> int:
    """Bend, then run the command line; returns its exit status."""
    _die_with_parent()
    faults = FaultFile(Path(arguments[0]))
    bend_clock(faults)
    bend_disk(faults)
    return cli.main(list(arguments[1:]))


def bend_clock(faults: FaultFile) -> None:
    """Nodes of this process get a clock that *faults* bends."""
    real = clock_module.system_clock()
    last_s = real.monotonic_s()

    def monotonic_s() -> float:
        nonlocal last_s
        last_s = max(last_s, faults.clock().monotonic_s(real.monotonic_s()))
        return last_s

    def wall_ms() -> int:
        return real.wall_ms() + int(faults.clock().wall_offset_s * 1000)

    bent = clock_module.Clock(monotonic_s, wall_ms)
    node_module.system_clock = lambda: bent  # type: ignore[attr-defined]


def bend_disk(faults: FaultFile) -> None:
    """The log's files of this process fail as *faults* says."""
    file_class: Any = files.OsFile

    def pwrite(self: files.OsFile, data: bytes, offset: int) -> None:
        bits = faults.disk()
        if bits & WRITE_ERROR:
            faults.hit("write_error")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if bits & FULL and offset + len(data) > self.size_bytes():
            faults.hit("full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain_pwrite(self, data, offset)

    def allocate(self: files.OsFile, size_bytes: int) -> None:
        if faults.disk() & FULL and size_bytes > self.size_bytes():
            faults.hit("full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain_allocate(self, size_bytes)

    def syncing(plain: Callable[[files.OsFile], None]) -> Callable[[files.OsFile], None]:
        def sync(self: files.OsFile) -> None:
            if faults.disk() & STALL:
                faults.hit("stall")
                while faults.disk() & STALL:
                    time.sleep(STALL_POLL_S)
            if faults.disk() & FSYNC_ERROR:
                faults.hit("fsync_error")
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            plain(self)

        return sync

    plain_pwrite, plain_allocate = file_class.pwrite, file_class.allocate
    file_class.pwrite, file_class.allocate = pwrite, allocate
    file_class.fdatasync = syncing(file_class.fdatasync)
    file_class.fsync = syncing(file_class.fsync)
    disk_guard.os = SimpleNamespace(statvfs=_statvfs(faults))  # type: ignore[attr-defined]


def _statvfs(faults: FaultFile) -> Callable[[str], Any]:
    def statvfs(path: str) -> Any:  # noqa: ANN401  an os.statvfs_result, or what looks like one
        found = os.statvfs(path)
        if faults.disk() & FULL:
            return SimpleNamespace(f_bavail=0, f_frsize=found.f_frsize)
        return found

    return statvfs


def _die_with_parent() -> None:
    """A harness that is killed hard cannot clean up."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
