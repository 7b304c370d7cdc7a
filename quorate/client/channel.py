"""Channels move frames between a client and one node; they know nothing of what frames mean.

``TcpChannel`` speaks length-prefixed msgpack over a stream, ``LocalChannel`` hands frame objects
to a node in the same process. Both promise: frames arrive in the order sent or the channel is
lost; ``on_lost`` is called exactly once, and never from within ``send`` or after ``close``.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import Sequence
from typing import Protocol

import msgspec

from quorate.base.frames import UNDECODABLE, ClientFrame, FrameSplitter, ServerFrame, encode_frame
from quorate.client.endpoints import (
    Endpoint,
    LocalConnection,
    LocalServer,
    OnFrame,
    OnLost,
    OnWritable,
)
from quorate.errors import ClosedError, QuorateError, UnavailableError, WireFormatError

_decode = msgspec.msgpack.Decoder(ServerFrame).decode


class Channel(Protocol):
    """One connection to one node."""

    @property
    def writable(self) -> bool:
        """False while the other side does not drain what was sent: form no new batches. When
        that ends, the channel calls *on_writable*."""

    @property
    def received_count(self) -> int:
        """Frames and reads seen so far: it stands still when the other side is silent."""

    def send(self, frames: Sequence[ClientFrame]) -> None:
        """Send *frames* in one write; ignored once the channel is lost or closed. Callers gather
        the frames of a loop turn, because each write is a system call."""

    def close(self) -> None:
        """Drop the connection; no callback follows."""


class TcpChannel(asyncio.Protocol):
    """A ``Channel`` over a stream transport, TLS or not."""

    def __init__(self, on_frame: OnFrame, on_lost: OnLost, on_writable: OnWritable) -> None:
        self._on_frame = on_frame
        self._on_lost: OnLost | None = on_lost
        self._on_writable = on_writable
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._error: QuorateError | None = None
        self.writable = True
        self.received_count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def send(self, frames: Sequence[ClientFrame]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(frames) == 1:
            transport.write(encode_frame(frames[0]))
        else:
            transport.write(b"".join([encode_frame(frame) for frame in frames]))

    def data_received(self, data: bytes) -> None:
        self.received_count += 1
        try:
            # Decoded one by one: frames before the garbage still count.
            for body in self._splitter.feed(data):
                frame: ServerFrame = _decode(body)
                if self._on_lost is None:
                    return
                self._on_frame(frame)
        except (WireFormatError, *UNDECODABLE) as error:
            self._error = WireFormatError(f"the node sent what is not a frame: {error}")
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        on_lost, self._on_lost, self._transport = self._on_lost, None, None
        if on_lost is None:
            return
        if self._error is None:
            why = exc or "closed by the node"
            self._error = UnavailableError(f"the connection was lost: {why}")
        on_lost(self._error)

    def close(self) -> None:
        self._on_lost = None
        if self._transport is not None:
            self._transport.close()


class LocalChannel:
    """A ``Channel`` to a node in this process and on this loop: no bytes, no copies."""

    writable = True  # the window bounds what is under way

    def __init__(self, server: LocalServer, on_frame: OnFrame, on_lost: OnLost) -> None:
        self._on_frame = on_frame
        self._on_lost: OnLost | None = on_lost
        self.received_count = 0
        self._connection: LocalConnection | None = server.connect(self._received, self._lost)

    def send(self, frames: Sequence[ClientFrame]) -> None:
        # At once, which saves a loop turn: ``LocalConnection`` promises to take the frame and to
        # act on it later.
        for frame in frames:
            if self._connection is not None:
                self._connection.receive(frame)

    def _received(self, frame: ServerFrame) -> None:
        self.received_count += 1
        if self._on_lost is not None:
            self._on_frame(frame)

    def _lost(self, error: QuorateError | None) -> None:
        on_lost, self._on_lost, self._connection = self._on_lost, None, None
        if on_lost is not None:
            on_lost(error or ClosedError("the node in this process was closed"))

    def close(self) -> None:
        self._on_lost = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Dialer:
    """Opens channels; the one place that knows sockets and TLS.

    *ssl*: None for plain TCP. *server_hostname*: the name in the nodes' certificates, if it is
    not the host that was dialled; ignored without *ssl*.
    """

    def __init__(
        self, ssl: ssl_module.SSLContext | None = None, server_hostname: str | None = None
    ) -> None:
        self._ssl = ssl
        self._server_hostname = server_hostname

    async def dial(
        self, endpoint: Endpoint, on_frame: OnFrame, on_lost: OnLost, on_writable: OnWritable
    ) -> Channel:
        """An open channel, without the hello.

        Raises:
            UnavailableError: nobody answers there, or the TLS handshake failed.
            QuorateError: the local node is not running.
        """
        if endpoint.local is not None:
            return LocalChannel(endpoint.local, on_frame, on_lost)
        hostname = (self._server_hostname or endpoint.host) if self._ssl is not None else None
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: TcpChannel(on_frame, on_lost, on_writable),
                endpoint.host,
                endpoint.port,
                ssl=self._ssl,
                server_hostname=hostname,
            )
        except (OSError, UnicodeError) as error:  # ssl.SSLError is one; a host name may not encode
            raise UnavailableError(f"{endpoint} cannot be reached: {error}") from error
        return protocol
