"""Connections to the other members. Each node dials every other; what it says to one goes out on
the connection it dialled itself, so there is one queue per direction and member.

Messages are fire and forget: without a connection, or with a full queue, they are dropped, and the
core makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from random import Random

import msgspec

from quorate.base.frames import ROLE_PEER, WIRE_VERSION, Hello, encode_frame
from quorate.base.limits import FRAME_BYTES_MAX, MIB
from quorate.base.types import NodeId
from quorate.errors import QuorateError, RefusedError, WireFormatError
from quorate.replication.transport import PeerFrame
from quorate.server.connection import Connection
from quorate.server.greeting import greet
from quorate.server.identity import Gate

_logger = logging.getLogger("quorate.peers")

#: Unsent bytes towards one member before messages are dropped: the core's own inflight bound,
#: two largest frames and some.
QUEUE_BYTES_MAX = 2 * FRAME_BYTES_MAX + 16 * MIB
CONNECT_TIMEOUT_S = 2.0
BACKOFF_S_MIN = 0.02
BACKOFF_S_MAX = 0.5
#: A refusal passes only when an operator does something.
BACKOFF_REFUSED_S = 3.0


class PeerEvents(msgspec.Struct, frozen=True):
    """What the owner wants to hear. *pinned*: asked for the incarnation known for a member.
    *reached* gets the one that the member has shown; *lost* comes once after each *reached*."""

    pinned: Callable[[NodeId], str]
    reached: Callable[[NodeId, str], None]
    lost: Callable[[NodeId], None]


class PeerTransport:
    """Implements ``replication.transport.Transport`` over TCP, or TLS with *context*."""

    def __init__(
        self,
        gate: Gate,
        events: PeerEvents,
        random: Random,
        context: ssl.SSLContext | None,
    ) -> None:
        self.gate = gate
        self.events = events
        self.random = random
        self.context = context
        self.dropped_count = 0
        self._links: dict[NodeId, _Link] = {}
        self._stopped = False

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        """Queue *frame*, or drop it."""
        link = self._links.get(target)
        if link is None or not link.send(frame):
            self.dropped_count += 1

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        """Keep a connection to each of these, and to nobody else."""
        for node in [node for node in self._links if node not in addresses]:
            self._links.pop(node).stop()
        if self._stopped:
            return
        for node, address in addresses.items():
            link = self._links.get(node)
            if link is None or link.address != address:
                if link is not None:
                    link.stop()
                self._links[node] = _Link(self, node, address)

    def connected(self) -> list[NodeId]:
        """Members that can be sent to now, ascending."""
        return sorted(node for node, link in self._links.items() if link.up)

    def problems(self) -> dict[NodeId, str]:
        """Why members cannot be reached, for ``status``."""
        return {node: link.problem for node, link in self._links.items() if link.problem}

    async def stop(self) -> None:
        """Close everything, and connect to nobody any more."""
        self._stopped = True
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            link.stop()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)


class _Link:
    """The connection to one member, made again and again."""

    def __init__(self, owner: PeerTransport, node: NodeId, address: str) -> None:
        self.node = node
        self.address = address
        self.problem = ""
        self._owner = owner
        self._connection: Connection | None = None
        self._closed = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def up(self) -> bool:
        return self._connection is not None

    def send(self, frame: PeerFrame) -> bool:
        """Whether it was queued."""
        connection = self._connection
        if connection is None or connection.queued_bytes > QUEUE_BYTES_MAX:
            return False
        connection.send(encode_frame(frame))
        return True

    def stop(self) -> None:
        """Close; the member is reported lost, if it was reached. What was sent still leaves."""
        self.task.cancel()
        connection = self._connection
        if connection is not None:
            connection.close()
            self._down("")

    async def _run(self) -> None:
        backoff_s = BACKOFF_S_MIN
        while True:
            try:
                await self._connect()
                backoff_s = BACKOFF_S_MIN
                await self._closed.wait()
            except RefusedError as error:
                self._note(error)
                backoff_s = BACKOFF_REFUSED_S
            except QuorateError as error:
                self._note(error)
            # Jitter of one half: members that lost each other must not dial in step for ever.
            await asyncio.sleep(backoff_s * (0.5 + self._owner.random.random() / 2))
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def _connect(self) -> None:
        owner, identity = self._owner, self._owner.gate.identity
        hello = Hello(
            WIRE_VERSION, ROLE_PEER, identity.cluster, identity.node, identity.incarnation
        )
        connection, welcome = await greet(
            self.address, hello, context=owner.context, timeout_s=CONNECT_TIMEOUT_S
        )
        try:
            if welcome.node != self.node or welcome.cluster != identity.cluster:
                raise RefusedError(
                    f"{self.address} is node {welcome.node} of cluster {welcome.cluster!r}, not "
                    f"node {self.node} of {identity.cluster!r}: correct the member's address"
                )
            owner.gate.check_member(self.node, welcome.incarnation, owner.events.pinned(self.node))
        except QuorateError:
            connection.close()
            raise
        self._closed.clear()
        if not connection.open:
            return
        connection.on_bodies = _refuse_bodies
        connection.on_closed = self._down
        self._connection = connection
        self.problem = ""
        owner.events.reached(self.node, welcome.incarnation)

    def _down(self, reason: str) -> None:
        self._connection = None
        self.problem = reason
        self._closed.set()
        self._owner.events.lost(self.node)

    def _note(self, error: QuorateError) -> None:
        text = str(error)
        if text != self.problem:
            level = logging.WARNING if isinstance(error, RefusedError) else logging.INFO
            _logger.log(level, "node %d cannot be reached: %s", self.node, text)
        self.problem = text


def _refuse_bodies(bodies: list[bytes]) -> None:
    raise WireFormatError(f"a member sent {len(bodies)} frames on a connection meant for ours")
