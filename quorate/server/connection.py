"""One TCP connection of a node: bytes in, frame bodies out; frames in, at once or gathered.

What frames mean is decided by whoever sets ``on_bodies``; a connection changes hands once, when
its hello says what it is for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from quorate.base.frames import FrameSplitter
from quorate.base.limits import FRAME_BYTES_MAX, KIB, MIB
from quorate.errors import UnavailableError, WireFormatError

#: What a stranger may send before its hello is accepted.
GREETING_BYTES_MAX = 16 * KIB
#: The socket's own buffer above which ``pause_writing`` is called.
WRITE_HIGH_BYTES = 4 * MIB

OnBodies = Callable[[list[bytes]], None]
OnClosed = Callable[[str], None]


class Connection(asyncio.Protocol):
    """*on_bodies*: called with the frame bodies that one read completed. It may raise
    ``WireFormatError``, which closes the connection. *on_closed*: called once, with the reason,
    never from within ``send`` or after ``close``. *on_gone*: called once in any case, for
    counting."""

    def __init__(self, on_made: Callable[[Connection], None]) -> None:
        self._on_made = on_made
        self.on_bodies: OnBodies = _ignore
        self.on_closed: OnClosed | None = None
        self.on_writable: Callable[[], None] | None = None
        self.on_gone: Callable[[Connection], None] | None = None
        self._splitter = FrameSplitter(GREETING_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._raw: Callable[[bytes], None] | None = None
        self._reason = ""
        self.writable = True
        self.peer = "?"

    # --- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        self._transport.set_write_buffer_limits(WRITE_HIGH_BYTES)  # type: ignore[union-attr]
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._raw is not None:
            self._raw(data)
            return
        try:
            bodies = self._splitter.feed(data)
            if bodies:
                self.on_bodies(bodies)
        except WireFormatError as error:
            self.abort(str(error))

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self.writable = False

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        self._out.clear()
        self._out_bytes = 0
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()
        if self.on_gone is not None:
            self.on_gone(self)
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self._reason or str(exc or "closed by the other side"))

    # --- for the owner ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether frames can still be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def queued_bytes(self) -> int:
        """Sent by the owner and not yet taken by the operating system."""
        if self._transport is None:
            return 0
        return self._out_bytes + self._transport.get_write_buffer_size()

    def accepted(self) -> None:
        """The hello was good: frames of full size may come."""
        self._splitter.size_bytes_max = FRAME_BYTES_MAX

    def certificate(self) -> dict[str, Any] | None:
        """The other side's, None without TLS."""
        if self._transport is None:
            return None
        session: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return None if session is None else session.getpeercert()

    def send(self, frame: bytes) -> None:
        """Write an encoded frame now: for what somebody waits for (a member's answer leaves before
        this node's next fsync or apply); dropped if closed."""
        if self._out:
            self._out.append(frame)
            self.flush()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def queue(self, frame: bytes) -> bool:
        """Keep an encoded frame for the next ``flush``: of answers there are many at once, and a
        write is a system call each. True: it is the first since the last one."""
        first = not self._out
        self._out.append(frame)
        self._out_bytes += len(frame)
        return first

    def flush(self) -> None:
        """Write what is queued; it is dropped if closed."""
        out = self._out
        if not out:
            return
        self._out = []
        self._out_bytes = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pause_reading(self) -> None:
        """Let the other side wait."""
        if self.open and self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take up reading again."""
        if self.open and self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def splice(self, on_data: Callable[[bytes], None]) -> None:
        """From now on hand over bytes as they come, unparsed."""
        self._raw = on_data

    def close(self) -> None:
        """Send what is queued, then close; ``on_closed`` is not called."""
        self.on_closed = None
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; ``on_closed`` gets *reason*."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()


def _ignore(bodies: list[bytes]) -> None:
    """Frames that come before anybody owns the connection."""


async def dial(
    host: str,
    port: int,
    *,
    context: ssl.SSLContext | None,
    timeout_s: float,
    on_made: Callable[[Connection], None] = lambda _: None,
) -> Connection:
    """Open a connection.

    Raises:
        UnavailableError: nobody answers there in time, or TLS failed.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                lambda: Connection(on_made), host, port, ssl=context
            )
    except TimeoutError as error:
        raise UnavailableError(f"{host}:{port} does not answer within {timeout_s} s") from error
    except OSError as error:  # ssl.SSLError is one
        raise UnavailableError(f"{host}:{port} cannot be reached: {error}") from error
    return connection
