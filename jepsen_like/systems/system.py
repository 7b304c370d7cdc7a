"""A system under test as real processes: what every adapter for ``run`` has in common.

An adapter is a subclass that says how a node is started, whether it serves, who leads, and how a
client is made; the base class gives each node a directory, ports, a proxy in front of every port,
and ends its process. What only some systems can do (change members, hand over leadership, have
their clocks and disks bent) is a protocol of its own below: a fault that needs it asks for it.

To write one: set ``name`` and ``ports``, implement ``command``, ``serves``, ``leader`` and
``client``, and add a line to ``registry``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import ClassVar, Final, Protocol, runtime_checkable

from jepsen_like.errors import SetupError
from jepsen_like.processes import sockets
from jepsen_like.processes.crew import Crew
from jepsen_like.processes.fault_file import FaultFile
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.processes.proxy import CLIENTS, Network, Place
from jepsen_like.systems.base import Client
from quorate.server.local_cluster import free_ports

START_TIMEOUT_S: Final = 60.0  # several interpreters at once on a busy machine
POLL_S: Final = 0.05


class System(ABC):
    """*directory*: for data and logs of all nodes. *count*: how many nodes to begin with, numbered
    from 1. *timeout_s*: the deadline of each call of a client. *random*: for what is drawn."""

    #: As on the command line.
    name: ClassVar[str]
    #: Names of the TCP ports that each node listens on; each gets a proxy.
    ports: ClassVar[tuple[str, ...]] = ("main",)
    #: Variables of the harness's environment that begin so are not passed on to nodes.
    forget: ClassVar[tuple[str, ...]] = ()

    def __init__(self, directory: Path, *, count: int, timeout_s: float, random: Random) -> None:
        self.directory = directory
        self.count = count
        self.timeout_s = timeout_s
        self.random = random
        self.network = Network(self._owner, random)
        self.nodes: dict[int, NodeProcess] = {}
        #: By node, by name of the port.
        self.places: dict[int, dict[str, Place]] = {}
        #: Workers of tasks that are processes, of workloads that have some.
        self.crews: list[Crew] = []

    # --- what an adapter says --------------------------------------------------------------------

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here and how to mend that; "" if it can."""
        return ""

    @abstractmethod
    def command(self, number: int) -> Sequence[str]:
        """What to run for node *number*; asked for at every start."""

    def environment(self, number: int) -> Mapping[str, str]:
        """Variables for that process, beside the harness's own."""
        del number
        return {}

    @abstractmethod
    async def serves(self, number: int) -> bool:
        """Whether node *number* answers clients now, in agreement with a majority. Asked without
        the proxy, and answers within some seconds."""

    @abstractmethod
    async def leader(self) -> int:
        """The node that leads, as far as nodes that can be asked know; 0: none."""

    @abstractmethod
    def client(self, process: int) -> Client:
        """A new client for process *process* of the history. It talks to ``places``'s addresses,
        and its calls end after ``timeout_s``."""

    async def audit(self) -> list[str]:
        """Once all is healed and quiet: what is wrong inside, each a sentence (replicas that
        differ). Waits for what is only late."""
        return []

    # --- nodes -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all nodes and wait until each serves.

        Raises:
            SetupError: it cannot run here, or a node does not serve in time; with its log's end.
        """
        missing = type(self).missing() or sockets.missing()
        if missing:
            raise SetupError(missing)
        for number in range(1, self.count + 1):
            await self.create(number)
        for node in self.nodes.values():
            node.start()
        for number in self.nodes:
            await self.wait_serving(number, START_TIMEOUT_S)

    async def create(self, number: int) -> NodeProcess:
        """A further node, with its ports and proxies, not yet started."""
        listens = free_ports(len(self.ports))
        self.places[number] = {
            name: await self.network.add(number, f"127.0.0.1:{port}")
            for name, port in zip(self.ports, listens, strict=True)
        }
        node = NodeProcess(
            number,
            self.directory,
            lambda: self.command(number),
            environment=self.environment(number),
            forget=self.forget,
        )
        self.nodes[number] = node
        return node

    async def wait_serving(self, number: int, timeout_s: float) -> float:
        """Wait until node *number* serves; the seconds that took.

        Raises:
            SetupError: it does not, with the end of its log.
        """
        node, began_s = self.nodes[number], time.monotonic()
        while not await self.serves(number):
            waited_s = time.monotonic() - began_s
            if waited_s > timeout_s or not node.running:
                state = "it runs" if node.running else f"it ended with {node.exit_status}"
                raise SetupError(
                    f"node {number} of {self.name} did not serve within {waited_s:.1f} s; {state}; "
                    f"its log ends:\n{node.log_tail()}"
                )
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began_s

    def forget_node(self, number: int) -> None:
        """It left the system for good: end its process, and count it no more."""
        self.nodes.pop(number).kill()

    def address(self, number: int, port: str = "") -> str:
        """Where others reach a port of a node, through its proxy; "": the first port."""
        return self.places[number][port or self.ports[0]].address

    def listen(self, number: int, port: str = "") -> str:
        """Where the node itself listens."""
        return self.places[number][port or self.ports[0]].listen

    def close(self) -> None:
        """End all processes, and the network."""
        for crew in self.crews:
            crew.close()
        self.network.close()
        for node in self.nodes.values():
            with contextlib.suppress(SetupError):
                node.kill()

    def _owner(self, dialler_port: int, proxy_port: int) -> int:
        by_pid = {node.pid: number for number, node in self.nodes.items() if node.running}
        return by_pid.get(sockets.owner(dialler_port, proxy_port, by_pid), CLIENTS)


# --- what only some systems can do ----------------------------------------------------------------


@runtime_checkable
class Members(Protocol):
    """Changes of the membership. All raise ``OutcomeError``; a change that is so already is made.
    Numbers are never used twice."""

    async def voters(self) -> list[int]: ...
    async def members(self) -> dict[int, bool]:
        """All, by number: whether it has a vote."""
        ...

    async def add(self, number: int) -> None:
        """Let in a node that ``join`` has started, without a vote."""
        ...

    async def join(self, number: int) -> NodeProcess:
        """Create and start a node that looks for the running cluster."""
        ...

    async def promote(self, number: int) -> None: ...
    async def remove(self, number: int) -> None: ...


@runtime_checkable
class Transfers(Protocol):
    """Leadership can be handed over."""

    async def transfer(self, target: int) -> None:
        """To node *target*; raises ``OutcomeError``."""
        ...


@runtime_checkable
class Bendable(Protocol):
    """Nodes run under ``jepsen_like.processes.serve``, so their clocks and disks can be bent."""

    def bend(self, number: int) -> FaultFile:
        """What bends node *number*."""
        ...

    def log_files(self, number: int) -> list[Path]:
        """Files of a stopped node in which any damage must be found: of its log, newest last."""
        ...

    #: Exit status of a node whose disk failed or whose data is damaged.
    storage_exit_status: int
