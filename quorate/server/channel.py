"""A snapshot's channel over a connection: whole frames, one after another, with back pressure."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from quorate.base.frames import UNDECODABLE, encode_frame
from quorate.errors import UnavailableError, WireFormatError
from quorate.replication.snapshots import SnapshotFrame
from quorate.server.connection import Connection

#: Frames that wait to be received before the other side is made to wait.
FRAMES_WAITING_MAX = 8

_decode = msgspec.msgpack.Decoder(SnapshotFrame).decode


class FrameChannel:
    """Implements ``replication.snapshots.SnapshotChannel``; takes the connection over."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bodies: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._reason = ""
        connection.on_bodies = self._on_bodies
        connection.on_closed = self._on_closed
        connection.on_writable = self._changed.set

    async def send(self, frame: SnapshotFrame) -> None:
        """See the protocol."""
        self._connection.send(encode_frame(frame))
        while not self._connection.writable:
            self._changed.clear()
            await self._changed.wait()
        if not self._connection.open:
            raise UnavailableError(self._reason or "the connection was closed")

    async def receive(self) -> SnapshotFrame:
        """See the protocol."""
        while not self._bodies:
            if not self._connection.open:
                raise UnavailableError(self._reason or "the connection was closed")
            self._changed.clear()
            await self._changed.wait()
        body = self._bodies.popleft()
        if len(self._bodies) < FRAMES_WAITING_MAX // 2:
            self._connection.resume_reading()
        try:
            frame: SnapshotFrame = _decode(body)
        except UNDECODABLE as error:
            raise WireFormatError(f"not a frame of a snapshot: {error}") from error
        return frame

    def close(self) -> None:
        """See the protocol."""
        self._connection.close()
        self._changed.set()

    def _on_bodies(self, bodies: list[bytes]) -> None:
        self._bodies.extend(bodies)
        if len(self._bodies) >= FRAMES_WAITING_MAX:
            self._connection.pause_reading()
        self._changed.set()

    def _on_closed(self, reason: str) -> None:
        self._reason = f"the connection was closed: {reason}"
        self._changed.set()
