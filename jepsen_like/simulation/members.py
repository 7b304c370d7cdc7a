"""One node of a simulated cluster: what survives a crash of it, and the process that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import msgspec

from jepsen_like.errors import JepsenLikeError
from jepsen_like.simulation.disk import DiskSettings, Kept, SimulatedDisk
from jepsen_like.simulation.hosts import Host, Process
from jepsen_like.simulation.links import LinkSettings
from jepsen_like.simulation.loop import VirtualLoop
from jepsen_like.simulation.network import Network
from quorate.consensus.config import CoreConfig
from quorate.consensus.output import RoleChange
from quorate.errors import QuorateError
from quorate.replication.clock import Clock
from quorate.replication.disk import JobRunner
from quorate.replication.machine import Machine
from quorate.server.config import NodeConfig
from quorate.server.node import Node
from quorate.server.platform import Platform
from quorate.storage.elements import ElementStore
from quorate.storage.interfaces import StateStore

PORT: Final = 7400


class CrashedError(JepsenLikeError):
    """The node crashed while somebody waited for it to start."""


class ClusterSettings(msgspec.Struct, kw_only=True):
    """Of every node. *core*: fields of ``CoreConfig`` to replace. *node*: more fields of
    ``NodeConfig``. *machines*: makes the user's machines of one node. *network*, *disk*: as they
    are while nobody injects a fault."""

    election_timeout_ms: int = 200
    heartbeat_ms: int = 30
    checkpoint_bytes: int = 16 * 1024
    segment_bytes: int = 32 * 1024
    core: dict[str, Any] = {}
    node: dict[str, Any] = {}
    machines: Callable[[], Sequence[Machine]] = tuple
    network: LinkSettings = msgspec.field(default_factory=LinkSettings)
    disk: DiskSettings = msgspec.field(default_factory=DiskSettings)


class SimulatedPlatform(Platform):
    """The surroundings of one process of a node."""

    def __init__(
        self,
        process: Process,
        disk: SimulatedDisk,
        settings: ClusterSettings,
        random: Random,
    ) -> None:
        clock = process.host.clock
        super().__init__(clock=Clock(clock.monotonic_s, clock.wall_ms), random=random)
        self.files = disk.files
        self.segment_bytes = settings.segment_bytes
        self._process = process
        self._disk = disk
        self._settings = settings

    def open_store(self, path: str) -> StateStore:
        """See ``Platform``."""
        return self._disk.open_store(path)

    def open_elements(self, path: str) -> ElementStore:
        """See ``Platform``."""
        return self._disk.open_elements(path)

    def log_runner(self, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """See ``Platform``."""
        return self.thread("log", loop)

    def thread(self, name: str, loop: asyncio.AbstractEventLoop) -> JobRunner:
        """See ``Platform``."""
        del loop
        return self._disk.runner(self._process, name)

    def free_bytes(self, path: str) -> int:
        """See ``Platform``."""
        del path
        return self._disk.free_bytes()

    def resident_bytes(self) -> int:
        """See ``Platform``: of the machine that this runs on, nothing may show."""
        return 0

    def new_incarnation(self) -> str:
        """See ``Platform``."""
        return f"{self.random.getrandbits(128):032x}"

    def checkpoint_bytes(self, config: NodeConfig) -> int:
        """See ``Platform``."""
        del config
        return self._settings.checkpoint_bytes

    def core_config(self, config: CoreConfig) -> CoreConfig:
        """See ``Platform``."""
        return msgspec.structs.replace(config, **self._settings.core)


class Member:
    """A host that runs a node, or did. *node*: the one that runs, None while none does.

    *failure*: why the last one stopped by itself or did not start; None if it was crashed.
    *starts*: how many processes there were. ``started`` ends when the present one serves.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        host: Host,
        disk: SimulatedDisk,
        config: NodeConfig,
        settings: ClusterSettings,
        seed: str,
    ) -> None:
        self.number = config.node_id
        self.host = host
        self.disk = disk
        self.config = config
        self.node: Node | None = None
        self.failure: BaseException | None = None
        self.starts = 0
        self.started: asyncio.Future[None] = loop.create_future()
        #: Called with each new node before it starts.
        self.on_node: Callable[[Node], None] = _ignore
        self._loop = loop
        self._network = network
        self._settings = settings
        self._seed = seed

    @property
    def alive(self) -> bool:
        """A process is there, paused or not."""
        return self.host.process is not None and self.host.process.alive

    @property
    def paused(self) -> bool:
        """A process is there and stands still."""
        process = self.host.process
        return process is not None and process.alive and not process.running

    def begin(self) -> asyncio.Future[None]:
        """Switch the machine on if need be, and start a process with a node. The future ends when
        it serves, or with why it does not."""
        if not self.host.up:
            self._network.power_back(self.host)
        process = self.host.begin()
        self.starts += 1
        self.failure = None
        self.started = self._loop.create_future()
        random = Random(f"{self._seed}/{self.number}/{self.starts}")
        platform = SimulatedPlatform(process, self.disk, self._settings, random)
        self._note("start", self.starts)
        self._loop.soon(process, self._main, process, platform)
        return self.started

    def _main(self, process: Process, platform: SimulatedPlatform) -> None:
        """The program: on behalf of the new process."""
        node = self.node = Node(self.config, self._settings.machines(), platform=platform)
        told: Callable[[RoleChange], None] = node._on_role  # noqa: SLF001  to trace it

        def on_role(change: RoleChange) -> None:
            self._note("role", (int(change.term) << 8) + len(change.role.value), str(change))
            told(change)

        node._on_role = on_role  # type: ignore[method-assign]  # noqa: SLF001
        self.on_node(node)
        self._loop.spawn(process, self._serve(node, process, self.started))

    async def _serve(self, node: Node, process: Process, started: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            await node.start()
            if not started.done():
                started.set_result(None)
            await node.wait_stopped()
        except (QuorateError, AssertionError) as caught:
            error = caught
        finally:
            self._loop.soon(None, self._exited, process, error)

    def _exited(self, process: Process, error: BaseException | None) -> None:
        """The program ended by itself."""
        if not process.alive:
            return
        self.failure = error
        self._note("note", 0, f"the process ended: {error!r}")
        self._end(process, error or CrashedError(f"node {self.number} was stopped"))
        self.disk.kill()

    def crash(self, *, power: bool = True, kept: Kept = "any") -> None:
        """*power* True: the machine loses power, and what *kept* says of unsynced bytes. False:
        only the process is killed."""
        process = self.host.process
        if process is None or not process.alive:
            return
        self._note("crash", int(power))
        if power:
            self._network.power_lost(self.host)
        self._end(process, CrashedError(f"node {self.number} crashed"))
        if power:
            self.disk.crash(kept=kept)
        else:
            self.disk.kill()

    def _end(self, process: Process, reason: BaseException) -> None:
        self._loop.kill(process)
        self._network.process_died(process)
        self.node = None
        if not self.started.done():
            self.started.set_exception(reason)
            self.started.exception()  # perhaps nobody waits for it

    def _note(self, kind: str, detail: int, text: str = "") -> None:
        trace = self._loop.trace
        trace.add(self._loop.now_s, kind, self.host.number, detail & 0xFFFFFFFF, text)


def _ignore(_node: Node) -> None:
    """Nobody listens."""
