"""quorate inside a process of its own: ``open`` makes a database of one node, without a port."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quorate.client.database import Database
from quorate.client.endpoints import LocalServer
from quorate.client.settings import TIMEOUT_S_DEFAULT
from quorate.errors import ConfigError, InvalidArgumentError
from quorate.replication.machine import Machine
from quorate.server.config import NodeConfig
from quorate.server.node import Node
from quorate.storage.directory import DataDirectory


class EmbeddedHost:
    """Starts and stops the node behind ``open`` (``client.database.Host``)."""

    def __init__(self, path: str, machines: Sequence[Machine]) -> None:
        self._path = path
        self._machines = machines
        self._node: Node | None = None

    async def start(self) -> LocalServer:
        """Start the node, under the number that the directory remembers."""
        with DataDirectory(self._path) as directory:
            identity = directory.identity()
        if identity is None:
            config = NodeConfig(node_id=1, data=self._path, listen="")
        else:
            config = NodeConfig(
                node_id=identity.node,
                data=self._path,
                cluster=identity.cluster.rpartition("-")[0],
                listen="",
            )
        node = Node(config, self._machines)
        await node.start()
        voters = node.replica.core.state.membership.voters
        if voters != (node.node_id,):
            await node.stop()
            raise ConfigError(
                f"{self._path} is the data of node {config.node_id} in a cluster with voters "
                f"{list(voters)}: start it as a Node, or with `quorate serve`, where the others "
                "reach it"
            )
        self._node = node
        return node.local_server

    async def stop(self) -> None:
        """Write a checkpoint and close."""
        if self._node is not None:
            await self._node.stop()


def open(  # noqa: A001  quorate.open(path) reads as what it does
    path: str | os.PathLike[str],
    *,
    machines: Sequence[Machine] = (),
    timeout: float = TIMEOUT_S_DEFAULT,
) -> Database:
    """A database of one node in this process, in the directory *path*, without a port.

    Use it as ``async with quorate.open("data") as db``. *machines*: machines of your own, beside
    the built-in ones. *timeout*: default of every call, seconds. The same directory can later be
    served by a ``Node`` with an address, and grow into a cluster.

    Raises:
        InvalidArgumentError: *path* is empty, or *timeout* out of range. When it is opened:
        ConfigError, StorageError, DirectoryInUseError: the directory cannot be used.
    """
    text = os.fspath(path)
    if not text:
        raise InvalidArgumentError("path must name the directory that keeps the data")
    return Database(None, host=EmbeddedHost(text, machines), timeout=timeout)
