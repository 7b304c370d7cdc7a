"""What a node takes from its surroundings, in one object: clocks, chance, disk, threads.

A node reads none of these elsewhere, and reaches the network only through the event loop it runs
on. So a simulator that hands in another platform, and brings a loop of its own, runs whole nodes
unmodified.
"""

from __future__ import annotations

import asyncio
import os
import resource
import uuid
from random import Random

from quorate.base.limits import MIB
from quorate.consensus.config import CoreConfig
from quorate.replication.clock import Clock, system_clock
from quorate.replication.disk import DiskThread, JobRunner, QuickDisk
from quorate.server.config import NodeConfig
from quorate.storage.elements import ElementStore
from quorate.storage.files import FileSystem, OsFileSystem
from quorate.storage.interfaces import StateStore
from quorate.storage.lmdb_elements import LmdbElementStore
from quorate.storage.store import LmdbStateStore
from quorate.storage.wal import SEGMENT_BYTES_DEFAULT


class Platform:
    """The real system. *clock*, *random*: others than the system's, for tests."""

    def __init__(self, *, clock: Clock | None = None, random: Random | None = None) -> None:
        self.clock = clock or system_clock()
        #: Spreads timeouts and numbers reads: nothing secret.
        self.random = random or Random(os.urandom(16))  # noqa: S311  see above
        self.files: FileSystem = OsFileSystem()
        self.segment_bytes = SEGMENT_BYTES_DEFAULT  #: of the write-ahead log

    def open_store(self, path: str) -> StateStore:
        """The state store in the directory *path*. Blocks."""
        return LmdbStateStore(path)

    def open_elements(self, path: str) -> ElementStore:
        """The element store in the directory *path*. Blocks."""
        return LmdbElementStore(path)

    def log_runner(self, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """Where the log is written."""
        return QuickDisk("log", loop)

    def thread(self, name: str, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """A place for other blocking jobs; *name* is shown by debuggers."""
        return DiskThread(name, loop)

    def free_bytes(self, path: str) -> int:
        """What this process may still write to the disk of *path*.

        Raises:
            OSError: the disk cannot even be asked.
        """
        room = os.statvfs(path)
        return room.f_bavail * room.f_frsize

    def resident_bytes(self) -> int:
        """Memory of this process that is in RAM now (Linux), or at most was (elsewhere)."""
        try:
            with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  half the time of a Path
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def new_incarnation(self) -> str:
        """An id, 32 hex digits, that no data directory ever had."""
        return uuid.uuid4().hex

    def checkpoint_bytes(self, config: NodeConfig) -> int:
        """Growth of the log after which a checkpoint is written."""
        return config.checkpoint_mib * MIB

    def core_config(self, config: CoreConfig) -> CoreConfig:
        """*config* with other limits than a node's, for tests that want to meet them."""
        return config
