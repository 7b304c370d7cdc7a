"""Connections to the other members. Each node dials every other; what it says to one goes out on
the connection it dialled itself, so there is one queue per direction and member. Only while it has
none (a joining node does not know the members yet), it answers on the one that the other dialled.

Messages are fire and forget: without a connection, or with a full queue, they are dropped, and the
core makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

import msgspec

from quorate.base.frames import ROLE_PEER, UNDECODABLE, WIRE_VERSION, Hello, Welcome, encode_frame
from quorate.base.limits import FRAME_BYTES_MAX, MIB
from quorate.base.types import NodeId
from quorate.consensus.messages import validate
from quorate.errors import QuorateError, RefusedError, UnavailableError, WireFormatError
from quorate.replication.transport import Aside, PeerFrame
from quorate.server.connection import Connection
from quorate.server.greeting import greet
from quorate.server.identity import Gate

_logger = logging.getLogger("quorate.peers")

_decode_peer = msgspec.msgpack.Decoder(PeerFrame).decode

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
    *reached* gets the welcome in which the member has shown its own; *lost* comes once after each
    *reached*. *frame*: a message from a member."""

    frame: Callable[[PeerFrame], None]
    pinned: Callable[[NodeId], str]
    reached: Callable[[NodeId, Welcome], None]
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
        self._incoming: dict[NodeId, Connection] = {}
        self._callers: dict[Connection, _Caller] = {}
        self._stopped = False

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        """Queue *frame*, or drop it."""
        link = self._links.get(target)
        connection = link.connection if link is not None else None
        if connection is None:
            connection = self._incoming.get(target)
        if connection is None or connection.queued_bytes > QUEUE_BYTES_MAX:
            self.dropped_count += 1
        else:
            connection.send(encode_frame(frame))

    def accept(self, connection: Connection, node: NodeId, incarnation: str) -> None:
        """Take over a connection that member *node* dialled, its hello accepted and answered."""
        self.showed(node, incarnation)
        self._incoming[node] = connection
        self._callers[connection] = _Caller(node, incarnation)
        connection.on_bodies = self.deliver_from(node)

        def on_closed(reason: str) -> None:
            _logger.info("node %d closed its connection: %s", node, reason)
            self._forget(connection)
            self.events.lost(node)

        connection.on_closed = on_closed

    def deliver_from(self, node: NodeId) -> Callable[[list[bytes]], None]:
        """A handler of frames that member *node* sends."""
        own, deliver = self.gate.identity.node, self.events.frame

        def on_bodies(bodies: list[bytes]) -> None:
            for body in bodies:
                deliver(decode_peer_frame(body, sender=node, target=own))

        return on_bodies

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        """Keep a connection to each of these, and to nobody else. Called with each change of the
        members: a connection with one whose number turns out to be another's ends."""
        for node in [node for node in self._links if node not in addresses]:
            self._links.pop(node).stop()
        self._part(lambda node, shown: self.events.pinned(node) not in ("", shown))
        if self._stopped:
            return
        for node, address in addresses.items():
            link = self._links.get(node)
            if link is None or link.address != address:
                if link is not None:
                    link.stop()
                self._links[node] = _Link(self, node, address)

    def showed(self, node: NodeId, incarnation: str) -> None:
        """Member *node* was let in. A connection on which its number stood for another data
        directory is of the past; what is still on its way there must not come in later."""
        self._part(lambda other, shown: other == node and shown != incarnation)

    def _part(self, is_another: Callable[[NodeId, str], bool]) -> None:
        """From those that are not, or no more, who they said they are."""
        for node, link in self._links.items():
            if is_another(node, link.incarnation):
                link.part()
        for connection, caller in list(self._callers.items()):
            if is_another(caller.node, caller.incarnation):
                self._forget(connection)
                connection.close()
                self.events.lost(caller.node)

    def _forget(self, connection: Connection) -> None:
        """One that a member dialled."""
        caller = self._callers.pop(connection, None)
        if caller is not None and self._incoming.get(caller.node) is connection:
            del self._incoming[caller.node]

    def connected(self) -> list[NodeId]:
        """Members that can be sent to now, ascending."""
        return sorted(node for node, link in self._links.items() if link.connection is not None)

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


class _Caller(NamedTuple):
    """Who dialled a connection, and the incarnation it has shown."""

    node: NodeId
    incarnation: str


class _Link:
    """The connection to one member, made again and again. *incarnation*: what it showed last."""

    def __init__(self, owner: PeerTransport, node: NodeId, address: str) -> None:
        self.node = node
        self.address = address
        self.problem = ""
        self.incarnation = ""
        self._owner = owner
        self.connection: Connection | None = None
        self._closed = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Close; the member is reported lost, if it was reached. What was sent still leaves."""
        self.task.cancel()
        connection = self.connection
        if connection is not None:
            connection.close()
            self._down("")

    def part(self) -> None:
        """Close the present connection; the next welcome decides whether there is another."""
        connection = self.connection
        if connection is not None:
            connection.close()
            self._down("its data directory is another than the one on record")

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
        if not connection.open:
            # Nobody would be told any more, and this link would wait for ever to hear of it.
            raise UnavailableError(f"{self.address} closed the connection after its welcome")
        owner.showed(self.node, welcome.incarnation)
        self._closed.clear()
        connection.on_bodies = owner.deliver_from(self.node)
        connection.on_closed = self._down
        self.connection = connection
        self.incarnation = welcome.incarnation
        self.problem = ""
        owner.events.reached(self.node, welcome)

    def _down(self, reason: str) -> None:
        self.connection = None
        self.problem = reason
        self._closed.set()
        self._owner.events.lost(self.node)

    def _note(self, error: QuorateError) -> None:
        text = str(error)
        if text != self.problem:
            level = logging.WARNING if isinstance(error, RefusedError) else logging.INFO
            _logger.log(level, "node %d cannot be reached: %s", self.node, text)
        self.problem = text


def decode_peer_frame(body: bytes, *, sender: NodeId, target: NodeId) -> PeerFrame:
    """A frame from member *sender* to *target*: decoded and checked as far as it can be without
    knowing the state.

    Raises:
        WireFormatError: it is not one, or not from or for whom it should be.
    """
    try:
        frame: PeerFrame = _decode_peer(body)
    except UNDECODABLE as error:
        raise WireFormatError(f"what came is not a member's frame: {error}") from error
    if frame.sender != sender:
        raise WireFormatError(f"node {sender} sent a message in the name of node {frame.sender}")
    if not isinstance(frame, Aside):
        problem = validate(frame, sender=sender, target=target)
        if problem is not None:
            raise WireFormatError(f"a {type(frame).__name__} of node {sender} is wrong: {problem}")
    return frame
