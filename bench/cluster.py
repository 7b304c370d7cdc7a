"""A cluster of real quorate node processes on loopback: start, kill, restart, grow, look inside.

Nodes are started with ``python -m quorate serve`` and ended by pid. Nothing here imports a node's
code: a node is a process, an address and a directory.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench import access, processes
from bench.measure import resident_bytes
from bench.processes import BenchError
from quorate.base.kv_commands import Get
from quorate.errors import QuorateError

CLUSTER = "bench"
START_TIMEOUT_S = 30.0


class NodeProcess:
    """One node: its number, address and directory outlive the process."""

    def __init__(self, number: int, port: int, directory: Path, arguments: list[str]) -> None:
        self.number = number
        self.endpoint = f"127.0.0.1:{port}"
        self.data = directory / f"node-{number}"
        self.log = directory / f"node-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments

    @property
    def running(self) -> bool:
        """Whether the process exists and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Memory of the process now; 0 if it does not run."""
        return resident_bytes(self.process.pid) if self.process and self.running else 0

    def start(self) -> None:
        """Start the process; does not wait until it serves."""
        if self.running:
            raise BenchError(f"node {self.number} runs already")
        command = [sys.executable, "-m", "quorate", "serve", "--id", str(self.number)]
        command += ["--listen", self.endpoint, "--data", str(self.data), "--cluster", CLUSTER]
        self.process = processes.start([*command, *self._arguments], self.log)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self.process is not None:
            processes.kill(self.process)

    def send_kill(self) -> None:
        """SIGKILL without waiting for the end; ``kill`` reaps it later."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        return processes.stop(self.process) if self.process is not None else 0

    def serves(self) -> bool:
        """Whether this node itself answers a linearizable read now."""
        try:
            with access.link(self.endpoint, timeout_s=1.0) as opened:
                access.ask(opened, Get(key=b"?"))
        except (OSError, QuorateError):
            return False
        return True

    def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait until it serves; the seconds that took.

        Raises:
            BenchError: it does not, with the end of its log.
        """
        try:
            return processes.wait_until(self.serves, timeout_s, f"node {self.number} to serve")
        except BenchError as error:
            state = "it runs" if self.running else "it has ended"
            text = f"{error}; {state}; its log ends: {processes.tail(self.log)}"
            raise BenchError(text) from error


class QuorateCluster:
    """Nodes 1 to *count*, all voters. A context manager: every process is gone afterwards."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self._directory = directory
        ports = processes.free_ports(count)
        members = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        self.nodes = {
            number: NodeProcess(number, port, directory, ["--initial", members])
            for number, port in enumerate(ports, 1)
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def endpoints(self) -> list[str]:
        """Addresses of all nodes, running or not."""
        return [node.endpoint for node in self.nodes.values()]

    def start(self) -> None:
        """Start every node and wait until each serves; on failure none is left running."""
        try:
            for node in self.nodes.values():
                node.start()
            self.wait_serving()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGKILL what still runs; data directories are the caller's."""
        for node in self.nodes.values():
            node.send_kill()
        for node in self.nodes.values():
            node.kill()

    def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every running node serves."""
        for node in self.nodes.values():
            if node.running:
                node.wait_serving(timeout_s)

    def add_process(self, number: int) -> NodeProcess:
        """Start a node that joins; it serves once it has been added as a member."""
        (port,) = processes.free_ports(1)
        join = ",".join(node.endpoint for node in self.nodes.values() if node.running)
        node = NodeProcess(number, port, self._directory, ["--join", join])
        self.nodes[number] = node
        node.start()
        return node

    def leadership(self, numbers: Sequence[int] | None = None) -> tuple[int, int]:
        """(term, leader) as the node with the highest term tells; leader 0 if it knows none.
        *numbers*: the nodes that are asked, all that run if not given."""
        best = (0, 0)
        for number in self.nodes if numbers is None else numbers:
            node = self.nodes[number]
            if node.running:
                welcome = access.welcome_of(node.endpoint)
                if welcome is not None:
                    best = max(best, (welcome.term, welcome.leader))
        return best

    def wait_leader(self, timeout_s: float = START_TIMEOUT_S) -> NodeProcess:
        """The node that leads, once there is one that runs."""

        def stands() -> bool:
            leader = self.nodes.get(self.leadership()[1])
            return leader is not None and leader.running

        processes.wait_until(stands, timeout_s, "a leader")
        return self.nodes[self.leadership()[1]]
