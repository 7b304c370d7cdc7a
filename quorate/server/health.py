"""Whether a node is alive, and whether it serves: asked by the road that clients take.

A flag that some code sets would say what that code believes. These probes connect to the node as
an in-process client does and read: ``live`` what the node holds by itself, ``ready`` what a
majority confirms.
"""

from __future__ import annotations

import asyncio
from typing import Final

from quorate.base.kv_commands import Status
from quorate.client.endpoints import Endpoint, LocalServer
from quorate.errors import QuorateError
from quorate.server.one_node import OneNode

PROBE_TIMEOUT_S: Final = 1.0  # monitoring systems give up after one to five seconds
POLL_S: Final = 0.05


class Health:
    """Probes of the node *server*, which runs in this process and on this loop."""

    def __init__(self, server: LocalServer) -> None:
        self._endpoint = Endpoint("", 0, server)

    async def live(self) -> None:
        """The node answers from its own state.

        Raises:
            QuorateError: it does not; the text says why.
        """
        await self._read(linearizable=False)

    async def ready(self) -> None:
        """The node answers a linearizable read: it knows a leader, and that one has a majority.

        Raises:
            QuorateError: it does not; the text says why.
        """
        await self._read(linearizable=True)

    async def wait_ready(self) -> None:
        """Return once the node is ready, however long that takes."""
        while True:
            try:
                await self.ready()
                return
            except QuorateError:
                await asyncio.sleep(POLL_S)

    async def _read(self, *, linearizable: bool) -> None:
        opening = OneNode.open(self._endpoint, timeout_s=PROBE_TIMEOUT_S)
        async with await opening as node:
            await node.query(Status(), linearizable=linearizable, timeout_s=PROBE_TIMEOUT_S)
