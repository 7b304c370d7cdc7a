"""A cluster of real node processes on this machine: start, kill, restart, grow, clean up.

Each node is a ``python -m quorate serve`` on a free loopback port, with a directory and a log file
of its own. Used by ``quorate demo`` and by tests. Processes are ended by their own pid, also when
the block that uses them raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Self

from quorate.base.frames import Welcome
from quorate.client.endpoints import parse_endpoint
from quorate.errors import QuorateError, UnavailableError
from quorate.server.config import ENVIRONMENT_PREFIX
from quorate.server.one_node import OneNode

CLUSTER_DEFAULT: Final = "local"
START_TIMEOUT_S: Final = 30.0  # a slow machine, three interpreters at once
STOP_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 2000  # of a log, in an error's text


class LocalNode:
    """One node: its number, address and directory outlive the process."""

    def __init__(
        self, number: int, port: int, directory: Path, cluster: str, arguments: Sequence[str]
    ) -> None:
        self.number = number
        self.endpoint = f"127.0.0.1:{port}"
        self.data = directory / f"node-{number}"
        self.log = directory / f"node-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._cluster = cluster
        self._arguments = list(arguments)

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 before the first."""
        return self.process.pid if self.process is not None else 0

    @property
    def running(self) -> bool:
        """Whether the process exists and has not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process; does not wait until it serves.

        Settings in this process's environment are for other nodes, and are not passed on.
        """
        if self.running:
            return
        command = [sys.executable, "-P", "-m", "quorate", "serve", "--id", str(self.number)]
        command += ["--listen", self.endpoint, "--data", str(self.data)]
        command += ["--cluster", self._cluster, *self._arguments]
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENVIRONMENT_PREFIX)
        }
        # The package may run from a source tree that only this process's path knows.
        root = str(Path(__file__).resolve().parents[2])
        known = [root, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(known)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # an interrupt of the terminal is for us alone
            )

    def kill(self) -> None:
        """SIGKILL, and reap: on return the process is gone."""
        if self.process is not None:
            if self.running:
                self.process.send_signal(signal.SIGKILL)
            self.process.wait(STOP_TIMEOUT_S)

    def terminate(self) -> None:
        """SIGTERM; does not wait. A second one would kill a node that is stopping."""
        if self.process is not None and self.running:
            self.process.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """``terminate`` and ``wait_ended``; the exit status."""
        self.terminate()
        return self.wait_ended(timeout_s)

    def wait_ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the process, SIGKILL if it does not end in time; the exit status."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def log_tail(self) -> str:
        """The end of its log, for an error's text."""
        try:
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
        except OSError:
            return ""

    async def welcome(self, timeout_s: float = 1.0) -> Welcome:
        """What the node says of itself.

        Raises:
            QuorateError: it does not answer.
        """
        endpoint = parse_endpoint(self.endpoint)
        async with await OneNode.open(endpoint, timeout_s=timeout_s) as node:
            return node.welcome

    async def serves(self) -> bool:
        """Whether this node itself answers a linearizable read now."""
        try:
            endpoint = parse_endpoint(self.endpoint)
            async with await OneNode.open(endpoint, timeout_s=1.0) as node:
                await node.serves(timeout_s=1.0)
        except QuorateError:
            return False
        return True

    async def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait until it serves; the seconds that took.

        Raises:
            UnavailableError: it does not, with the end of its log.
        """
        return await self._wait(self.serves, timeout_s, "serve")

    async def _wait(
        self, condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str
    ) -> float:
        began = time.monotonic()
        while not await condition():
            state = "it runs" if self.running else "its process has ended"
            waited = time.monotonic() - began
            if waited > timeout_s or not self.running:
                raise UnavailableError(
                    f"node {self.number} did not {what} within {waited:.1f} s; {state}; "
                    f"its log ends: {self.log_tail()}"
                )
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began


class LocalCluster:
    """Nodes 1 to *count*, all voters. ``async with`` starts them, and leaves nothing behind.

    *directory*: where nodes keep data and logs; None: a temporary one, removed at the end.
    *arguments*: further flags of ``quorate serve``, for every node.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        directory: Path | None = None,
        cluster: str = CLUSTER_DEFAULT,
        arguments: Sequence[str] = (),
    ) -> None:
        self.cluster = cluster
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="quorate-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._arguments = list(arguments)
        ports = free_ports(count)
        members = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        flags = [*self._arguments, "--initial", members]
        self.nodes = {
            number: LocalNode(number, port, self.directory, cluster, flags)
            for number, port in enumerate(ports, 1)
        }

    @property
    def endpoints(self) -> str:
        """Addresses of all nodes, running or not, as ``connect`` takes them."""
        return ",".join(node.endpoint for node in self.nodes.values())

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    async def start(self) -> None:
        """Start every node that does not run, and wait until each serves.

        Raises:
            UnavailableError: one does not; see its log.
        """
        for node in self.nodes.values():
            node.start()
        await self.wait_serving()

    async def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every running node serves.

        Raises:
            UnavailableError: one does not; see its log.
        """
        for node in self.nodes.values():
            if node.running:
                await node.wait_serving(timeout_s)

    def add(self, number: int) -> LocalNode:
        """Start one more node, which joins; whether it is let in is the caller's to arrange."""
        (port,) = free_ports(1)
        known = ",".join(node.endpoint for node in self.nodes.values() if node.running)
        flags = [*self._arguments, "--join", known]
        node = LocalNode(number, port, self.directory, self.cluster, flags)
        self.nodes[number] = node
        node.start()
        return node

    async def leader(self, timeout_s: float = START_TIMEOUT_S) -> LocalNode:
        """The node that leads, once one does that runs.

        Raises:
            UnavailableError: there is none within *timeout_s*.
        """
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            best = (0, 0)
            for node in self.nodes.values():
                if node.running:
                    with contextlib.suppress(QuorateError):
                        welcome = await node.welcome()
                        best = max(best, (welcome.term, welcome.leader))
            leader = self.nodes.get(best[1])
            if leader is not None and leader.running:
                return leader
            await asyncio.sleep(POLL_S)
        raise UnavailableError(f"the nodes agreed on no leader within {timeout_s:g} s")

    def stop(self) -> dict[int, int]:
        """SIGTERM to all, and wait; the exit statuses by node."""
        for node in self.nodes.values():
            node.terminate()
        return {number: node.wait_ended() for number, node in self.nodes.items()}

    def keep(self) -> None:
        """Do not remove the directory at the end: somebody will want to look into it."""
        self._temporary = False

    def close(self) -> None:
        """SIGKILL what still runs, and remove the temporary directory."""
        for node in self.nodes.values():
            node.kill()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """*count* different loopback ports that nobody listens on now.

    Held together while they are chosen, so that they differ; another process may take one before
    it is used, which shows as a node that does not start.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(int(listener.getsockname()[1]))
        return ports
