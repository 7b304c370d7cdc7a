"""The one port of a node: reads the hello of each connection and hands it to whom it is for."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

import msgspec

from quorate.base.frames import (
    ROLE_CLIENT,
    ROLE_PEER,
    ROLE_SNAPSHOT,
    UNDECODABLE,
    Hello,
    Refused,
    Welcome,
    encode_frame,
)
from quorate.base.types import NodeId
from quorate.errors import ConfigError, QuorateError, RefusedError, WireFormatError
from quorate.server.connection import Connection
from quorate.server.identity import Gate
from quorate.server.tls import check_member

_logger = logging.getLogger("quorate.listener")

#: Connections without an accepted hello, and how long they may stay so.
STRANGERS_MAX = 1000
HELLO_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 20_000
BACKLOG = 1024

_decode_hello = msgspec.msgpack.Decoder(Hello).decode


class Routes(msgspec.Struct, frozen=True):
    """Who takes a connection over, by the hello's role. *member_known*: raises RefusedError for a
    member that is to be turned away. *welcome*: the answer to a member's hello."""

    client: Callable[[Connection], None]
    relay: Callable[[Connection, Hello], None]
    snapshot: Callable[[Connection, NodeId], None]
    peer: Callable[[Connection, Hello], None]
    member_known: Callable[[NodeId, str], None]
    welcome: Callable[[], Welcome]


class Listener:
    """Accepts connections on one address."""

    def __init__(self, gate: Gate, routes: Routes, context: ssl.SSLContext | None) -> None:
        self._gate = gate
        self._routes = routes
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, None] = {}
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._stopped = False
        self.refused_count = 0

    async def bind(self, host: str, port: int) -> int:
        """Take the address without serving yet; returns the port, chosen by the system if *port*
        is 0.

        Raises:
            ConfigError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._on_made),
                host,
                port,
                ssl=self._context,
                backlog=BACKLOG,
                start_serving=False,
            )
        except OSError as error:
            raise ConfigError(
                f"listen: {host}:{port} cannot be bound: {error.strerror or error}; choose another "
                "address, or stop whoever uses it"
            ) from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def serve(self) -> None:
        """Accept connections on the address taken, if one was."""
        if self._server is not None:
            await self._server.start_serving()

    def __len__(self) -> int:
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Nobody new; who is there stays."""
        if self._server is not None:
            self._server.close()

    def stop(self) -> None:
        """Close the port and all connections."""
        self._stopped = True
        self.stop_accepting()
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()

    # --- a stranger ------------------------------------------------------------------------------

    def _on_made(self, connection: Connection) -> None:
        if self._stopped:  # accepted just before
            connection.abort("the node has stopped")
            return
        if len(self._connections) >= CONNECTIONS_MAX or len(self._strangers) >= STRANGERS_MAX:
            self._refuse(connection, RefusedError("this node has too many connections"))
            return
        self._connections[connection] = None
        connection.on_gone = self._on_gone
        self._strangers[connection] = asyncio.get_running_loop().call_later(
            HELLO_TIMEOUT_S, connection.abort, "it did not say hello in time"
        )
        connection.on_bodies = lambda bodies: self._greet(connection, bodies)

    def _on_gone(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._known(connection)

    def _known(self, connection: Connection) -> None:
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _greet(self, connection: Connection, bodies: list[bytes]) -> None:
        """The hello, and whatever came in the same read behind it."""
        self._known(connection)
        try:
            hello = _decode_hello(bodies[0])
        except UNDECODABLE as error:
            self._refuse(connection, WireFormatError(f"the first frame is not a hello: {error}"))
            return
        try:
            self._gate.check(hello)
            self._route(connection, hello)
        except QuorateError as error:
            self._refuse(connection, error)
            return
        if len(bodies) > 1:
            connection.on_bodies(bodies[1:])

    def _route(self, connection: Connection, hello: Hello) -> None:
        if hello.role == ROLE_CLIENT:
            if hello.relay:
                self._routes.relay(connection, hello)
            else:
                self._routes.client(connection)
            return
        if hello.role not in (ROLE_PEER, ROLE_SNAPSHOT):
            raise RefusedError(f"unknown role {hello.role[:32]!r} in a hello")
        node = NodeId(hello.node)
        if self._context is not None:
            check_member(connection.certificate(), node)
        self._routes.member_known(node, hello.incarnation)
        connection.accepted()
        connection.send(encode_frame(self._routes.welcome()))
        if hello.role == ROLE_SNAPSHOT:
            self._routes.snapshot(connection, node)
        else:
            self._routes.peer(connection, hello)

    def _refuse(self, connection: Connection, error: QuorateError) -> None:
        self.refused_count += 1
        _logger.info("refused %s: %s", connection.peer, error)
        connection.on_bodies = _ignore
        connection.send(encode_frame(Refused(error.code, str(error))))
        connection.close()


def _ignore(bodies: list[bytes]) -> None:
    """A refused connection has nothing more to say."""
