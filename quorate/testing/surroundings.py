"""What a node on virtual time runs in: a clock, a disk in memory, no threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final, TypeVar

from quorate.base.limits import KIB, MIB
from quorate.replication.clock import Clock
from quorate.replication.disk import JobRunner
from quorate.server.config import NodeConfig
from quorate.server.platform import Platform
from quorate.storage.elements import ElementStore
from quorate.storage.interfaces import StateStore
from quorate.storage.memory_elements import ElementImage, MemoryElementStore
from quorate.storage.memory_files import MemoryFileSystem
from quorate.storage.memory_store import MemoryImage, MemoryStateStore

T = TypeVar("T")

SEGMENT_BYTES: Final = 256 * KIB
CHECKPOINT_BYTES: Final = 4 * MIB
FREE_BYTES: Final = 1 << 40


class Memory:
    """What a node has on its disk: it outlives the node."""

    def __init__(self) -> None:
        self.files = MemoryFileSystem()
        self.state = MemoryImage()
        self.elements = ElementImage()


class MemoryPlatform(Platform):
    """The surroundings of one node. *memory*: its disk. *wall_ms*: the time of day."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory: Memory,
        wall_ms: Callable[[], int],
        random: Random,
    ) -> None:
        super().__init__(clock=Clock(loop.time, wall_ms), random=random)
        self.files = memory.files
        self.segment_bytes = SEGMENT_BYTES
        self._memory = memory

    def open_store(self, path: str) -> StateStore:
        """See ``Platform``."""
        del path
        return MemoryStateStore(self._memory.state)

    def open_elements(self, path: str) -> ElementStore:
        """See ``Platform``."""
        del path
        return MemoryElementStore(self._memory.elements)

    def log_runner(self, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """See ``Platform``."""
        return InlineRunner(loop)

    def thread(self, name: str, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """See ``Platform``."""
        del name
        return InlineRunner(loop)

    def free_bytes(self, path: str) -> int:
        """See ``Platform``."""
        del path
        return FREE_BYTES

    def resident_bytes(self) -> int:
        """See ``Platform``: of the machine that this runs on, nothing may show."""
        return 0

    def new_incarnation(self) -> str:
        """See ``Platform``."""
        return f"{self.random.getrandbits(128):032x}"

    def checkpoint_bytes(self, config: NodeConfig) -> int:
        """See ``Platform``."""
        del config
        return CHECKPOINT_BYTES


class InlineRunner:
    """Runs jobs on the loop, in turns to come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """See ``JobRunner``."""
        self._loop.call_soon(_run, job, done)

    def stop(self) -> None:
        """See ``JobRunner``: nothing is left to wait for."""


def _run(job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = job()
    except Exception as caught:  # noqa: BLE001  handed to whoever asked for it
        error = caught
    done(result, error)
