"""For clients that cannot reach the leader themselves: their connection is spliced through to it.

Bytes pass unread in both directions, so the leader serves the client as if it were directly
connected; when either side closes, both are closed, and the client looks for the leader anew.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

import msgspec

from quorate.base.frames import Hello, Refused, encode_frame
from quorate.errors import QuorateError, UnavailableError
from quorate.server.connection import Connection
from quorate.server.greeting import greet

_logger = logging.getLogger("quorate.relay")

DIAL_TIMEOUT_S = 2.0
RELAYS_MAX = 2000


class Relays:
    """*leader_address*: "" if no leader is known, or it is this node itself."""

    def __init__(self, leader_address: Callable[[], str], context: ssl.SSLContext | None) -> None:
        self._leader_address = leader_address
        self._context = context
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._pairs: dict[tuple[Connection, Connection], None] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Connect *connection*, which said *hello*, through to the leader.

        Raises:
            UnavailableError: no leader is known, or too many are relayed already.
        """
        address = self._leader_address()
        if not address:
            raise UnavailableError("this node knows no leader to relay to")
        if len(self._pairs) + len(self._tasks) >= RELAYS_MAX:
            raise UnavailableError(f"this node relays {RELAYS_MAX} connections already")
        connection.pause_reading()
        task = asyncio.get_running_loop().create_task(self._join(connection, address, hello))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def stop(self) -> None:
        """Close all."""
        for task in list(self._tasks):
            task.cancel()
        for pair in list(self._pairs):
            for connection in pair:
                connection.close()
        self._pairs.clear()

    async def _join(self, connection: Connection, address: str, hello: Hello) -> None:
        direct = msgspec.structs.replace(hello, relay=False)
        try:
            onward, welcome = await greet(
                address, direct, context=self._context, timeout_s=DIAL_TIMEOUT_S
            )
        except QuorateError as error:
            connection.send(encode_frame(Refused(error.code, f"relaying failed: {error}")))
            connection.close()
            return
        connection.accepted()
        connection.send(encode_frame(welcome))
        pair = (connection, onward)
        self._pairs[pair] = None
        for source, target in (pair, (onward, connection)):
            source.splice(_forward(source, target))
            source.on_writable = target.resume_reading
        connection.on_closed = self._closing(pair, onward)
        onward.on_closed = self._closing(pair, connection)
        connection.resume_reading()
        if not connection.open:
            onward.close()
            self._pairs.pop(pair, None)
        elif not onward.open:
            connection.close()
            self._pairs.pop(pair, None)

    def _closing(
        self, pair: tuple[Connection, Connection], other: Connection
    ) -> Callable[[str], None]:
        def on_closed(_reason: str) -> None:
            self._pairs.pop(pair, None)
            other.close()

        return on_closed


def _forward(source: Connection, target: Connection) -> Callable[[bytes], None]:
    def on_data(data: bytes) -> None:
        target.send(data)
        if not target.writable:
            source.pause_reading()

    return on_data
