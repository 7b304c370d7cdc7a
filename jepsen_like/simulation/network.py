"""TCP between simulated hosts: streams in order, each with its own delays, that stall, break, are
cut off one way, and outlive the process that wrote to them.

A write leaves at once and arrives as a whole, unless the link splits it. A connection keeps its
order; two connections do not keep theirs. What was sent before a close still arrives, perhaps
after a newer connection stands.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple
from zlib import crc32

from jepsen_like.simulation.hosts import PROCESS, Host, HostClock, Process
from jepsen_like.simulation.links import FrameTap, Link, LinkSettings
from jepsen_like.simulation.loop import VirtualLoop

#: Bytes of one direction that kernels and wires hold; what is more waits in the transport.
WINDOW_BYTES: Final = 256 * 1024
#: asyncio's default: above it ``pause_writing`` is called.
WRITE_HIGH_BYTES: Final = 64 * 1024
#: When a connection request that got no answer is sent again, and for how often.
CONNECT_RETRIES_S: Final = (0.5, 1.0, 2.0, 4.0)
#: After an outage what was not acknowledged is sent again about so much later.
RETRANSMIT_S: Final = 0.2

_CLOSED: Final = b"\0closed"  # these two are told by identity, not by content
_RESET: Final = b"\0reset"


class NetworkStatistics(NamedTuple):
    """Counts since the run began."""

    bytes_delivered: int
    chunks_delivered: int
    connections: int
    resets: int
    frames_meddled: int


class Listening:
    """A bound port; stands in for ``asyncio.Server``."""

    def __init__(
        self, process: Process, port: int, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self.process = process
        self.port = port
        self.factory = factory
        self.serving = False
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        """As a socket's."""
        return self.process.host.address, self.port

    async def start_serving(self) -> None:
        """As asyncio's."""
        self.serving = True

    def is_serving(self) -> bool:
        """As asyncio's."""
        return self.serving

    def close(self) -> None:
        """As asyncio's: connections stay."""
        self.serving = False
        listeners = self.process.host.listeners
        if listeners.get(self.port) is self:
            del listeners[self.port]

    async def wait_closed(self) -> None:
        """As asyncio's."""


class Pipe:
    """One direction of a connection, from *sender* to *receiver*."""

    __slots__ = (
        "_due", "_last_s", "_loop", "_network", "_sent_s", "_waiting", "flight", "link",
        "receiver", "sender", "tap",
    )  # fmt: skip

    def __init__(
        self, network: Network, link: Link, sender: SimulatedTransport, tap: FrameTap | None
    ) -> None:
        self._network = network
        self._loop = network.loop
        self.link = link
        self.sender = sender
        self.receiver = sender  # until ``join``
        self.tap = tap
        self.flight = 0  # bytes sent and not yet read
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last_s = 0.0  # when the last one arrives
        self._sent_s = -1.0  # when it was sent
        self._due = False  # a timer is set for the first one
        link.pipes[self] = None

    def push(self, data: bytes) -> None:
        """Send *data*, or one of the two ends of a stream."""
        link, now_s = self.link, self._loop.now_s
        if self.tap is not None and data is not _CLOSED and data is not _RESET:
            data = self.tap.pass_on(data)
            if not data:
                return
        if now_s != self._sent_s:
            # What is sent at one instant travels together.
            self._sent_s = now_s
            self._last_s = max(self._last_s, now_s + link.stall_s() + link.delay_s())
        if data is not _CLOSED and data is not _RESET:
            chance = link.settings.reset_chance
            if chance and link.random.random() < chance:
                data = data[: link.random.randrange(len(data))]
                self._waiting.append((self._last_s, data))
                self.receiver.out.push(_RESET)
                self._waiting.append((self._last_s, _RESET))
            else:
                self._waiting.append((self._last_s, data))
            self.flight += len(data)
        else:
            self._waiting.append((self._last_s, data))
        if not self._due and not link.cut:
            self._due = True
            self._loop.schedule(self._waiting[0][0], self._reader(), self.deliver)

    def _reader(self) -> Process | None:
        """On whose behalf the bytes arrive: of a dead process, its kernel's."""
        process = self.receiver.process
        return process if process is not None and process.alive else None

    def deliver(self) -> None:
        """Hand over what has arrived. Runs on behalf of the receiver."""
        self._due = False
        waiting, receiver, link = self._waiting, self.receiver, self.link
        if link.cut or not waiting:
            return
        if receiver.deaf:
            self._bounce()
            return
        if not receiver.reading or not receiver.established:
            return
        now_s = self._loop.now_s
        parts: list[bytes] = []
        end: bytes | None = None
        while waiting and waiting[0][0] <= now_s:
            data = waiting.popleft()[1]
            if data is _CLOSED or data is _RESET:
                end = data
                break
            parts.append(data)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        chance = link.settings.chunk_chance
        if chance and len(data) > 1 and link.random.random() < chance:
            at = link.random.randrange(1, len(data))
            if end is not None:
                waiting.appendleft((now_s, end))
                end = None
            waiting.appendleft((now_s + link.delay_s(), data[at:]))
            data = data[:at]
        if data:
            self.flight -= len(data)
            self._network.delivered(receiver, data)
            receiver.take(data)
            if self.sender.backlog:
                self._loop.soon(self.sender.process, self.sender.drain)
        if end is not None:
            waiting.clear()
            receiver.ended(reset=end is _RESET)
        elif waiting and not self._due and not link.cut:
            self._due = True
            self._loop.schedule(waiting[0][0], self._reader(), self.deliver)

    def _bounce(self) -> None:
        """Nobody reads here any more: the sender is told, unless the machine is gone as well."""
        asks = any(data is not _CLOSED and data is not _RESET for _, data in self._waiting)
        self._waiting.clear()
        self.flight = 0
        if self.sender.deaf or not asks:
            return
        if self.receiver.host.up:
            self.receiver.out.push(_RESET)
        else:
            self._network.unanswered(self)

    def wake(self, delay_s: float = 0.0) -> None:
        """The receiver reads again, or the cut is healed."""
        if self._waiting and not self._due and not self.link.cut:
            self._due = True
            when_s = max(self._waiting[0][0], self._loop.now_s) + delay_s
            if delay_s:
                self._last_s = max(self._last_s, when_s)
                self._waiting[0] = (when_s, self._waiting[0][1])
                self._settle()
            self._loop.schedule(when_s, self._reader(), self.deliver)

    def _settle(self) -> None:
        """Nothing arrives before what was sent ahead of it."""
        first_s = self._waiting[0][0]
        self._waiting = deque((max(when_s, first_s), data) for when_s, data in self._waiting)

    def redirect(self) -> None:
        """The receiving process died: let the world look after what is under way."""
        self._due = False
        if self._waiting:
            self._due = True
            self._loop.schedule(self._waiting[0][0], None, self.deliver)

    def shut(self) -> None:
        """Both ends are gone."""
        self.link.pipes.pop(self, None)


class SimulatedTransport(asyncio.Transport):
    """One end of a connection. *deaf*: closed, or its process died."""

    def __init__(self, network: Network, process: Process | None, peer: Host) -> None:
        super().__init__()
        self._network = network
        self._loop = network.loop
        self.process = process
        self.host = network.world if process is None else process.host
        self.peer = peer
        self.reading = True
        self.established = False
        self.deaf = False
        self.backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._high = WRITE_HIGH_BYTES
        self._low = WRITE_HIGH_BYTES // 4
        self._paused = False
        self._closing = False
        self._protocol: Any = None
        self.names: dict[str, Any] = {}
        self.out: Pipe
        self.into: Pipe
        if process is not None:
            process.sockets[self] = None

    # --- for the protocol ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  asyncio's
        """As asyncio's: "peername" and "sockname"."""
        return self.names.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio's."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio's."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self._closing

    def is_reading(self) -> bool:
        """As asyncio's."""
        return self.reading and not self._closing

    def pause_reading(self) -> None:
        """As asyncio's."""
        self.reading = False

    def resume_reading(self) -> None:
        """As asyncio's."""
        if not self.reading and not self._closing:
            self.reading = True
            self.into.wake()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncio's."""
        if self._closing or not data:
            return
        if self.backlog or self.out.flight + len(data) > WINDOW_BYTES:
            self.backlog.append(bytes(data))
            self._backlog_bytes += len(data)
            if self._backlog_bytes > self._high and not self._paused:
                self._paused = True
                self._protocol.pause_writing()
            if not self.out.flight:
                self.drain()
        else:
            self.out.push(bytes(data))

    def writelines(self, list_of_data: Sequence[Any]) -> None:  # type: ignore[override]
        """As asyncio's."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """As asyncio's."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""
        if high is None:
            high = WRITE_HIGH_BYTES if low is None else 4 * low
        self._high = high
        self._low = high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """As asyncio's."""
        return self._backlog_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As asyncio's."""
        return self._low, self._high

    def close(self) -> None:
        """As asyncio's."""
        if self._closing:
            return
        self._closing = True
        self.reading = False
        if not self.backlog:
            self._end(None)

    def abort(self) -> None:
        """As asyncio's."""
        if not self.deaf:
            self._closing = True
            self._end(None)

    # --- for the network -------------------------------------------------------------------------

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """The connection stands."""
        self._protocol = protocol
        self.established = True
        protocol.connection_made(self)
        self.into.wake()

    def take(self, data: bytes) -> None:
        """Bytes arrived."""
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001  as asyncio's transports do
            self._loop.call_exception_handler(
                {"message": f"data_received of {self._protocol!r} failed", "exception": error}
            )
            self.abort()

    def drain(self) -> None:
        """The other side has read: send more."""
        while self.backlog and self.out.flight < WINDOW_BYTES:
            data = self.backlog.popleft()
            self._backlog_bytes -= len(data)
            self.out.push(data)
        if self._paused and self._backlog_bytes <= self._low:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing and not self.backlog and not self.deaf:
            self._end(None)

    def ended(self, *, reset: bool) -> None:
        """The other side closed, or broke off."""
        if self.deaf:
            return
        self._network.ended(self, reset=reset)
        if reset:
            self._closing = True
            code = errno.ECONNRESET
            self._end(ConnectionResetError(code, os.strerror(code)), tell=False)
        else:
            self.close()  # no protocol here wants to go on writing after the end of its input

    def _end(self, error: Exception | None, *, tell: bool = True) -> None:
        self.deaf = True
        self.backlog.clear()
        self._backlog_bytes = 0
        if tell and not self.into.sender.deaf:
            self.out.push(_CLOSED)
        self._forget()
        if self._protocol is not None:
            self._loop.soon(self.process, self._protocol.connection_lost, error)

    def _forget(self) -> None:
        if self.process is not None:
            self.process.sockets.pop(self, None)
        if self.into.sender.deaf:
            self.out.shut()
            self.into.shut()

    def cut_off(self) -> None:
        """The process died: its kernel closes the connection, if the machine lives on."""
        self.deaf = self._closing = True
        self.backlog.clear()
        self._backlog_bytes = 0
        if self.host.up and not self.into.sender.deaf:
            self.out.push(_RESET if self.into.flight else _CLOSED)
        self.into.redirect()
        if self.into.sender.deaf:
            self.out.shut()
            self.into.shut()


class Network:
    """All links and connections. *settings*: of every link that has none of its own."""

    def __init__(
        self, loop: VirtualLoop, random: Random, settings: LinkSettings | None = None
    ) -> None:
        self.loop = loop
        self.random = random
        self.settings = settings or LinkSettings()
        self.hosts: dict[str, Host] = {}  #: by address
        self.world = Host("world", 0, "0.0.0.0", HostClock(loop.true_time))  # noqa: S104
        self.links: dict[tuple[str, str], Link] = {}
        self._unanswered: dict[str, list[Pipe]] = {}
        self._bytes = self._chunks = self._connections = self._resets = 0
        loop.network = self

    def add(self, host: Host) -> None:
        """A machine joins the network."""
        self.hosts[host.address] = host

    def link(self, source: str, target: str) -> Link:
        """The way from host *source* to host *target*, by name."""
        found = self.links.get((source, target))
        if found is None:
            found = self.links[source, target] = Link(source, target, self.settings, self.random)
        return found

    def statistics(self) -> NetworkStatistics:
        """Counts."""
        return NetworkStatistics(
            self._bytes,
            self._chunks,
            self._connections,
            self._resets,
            sum(link.meddled_count for link in self.links.values()),
        )

    # --- faults ----------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Bytes from *source* no longer reach *target*, until healed."""
        self.link(source, target).cut = True

    def heal(self, source: str, target: str) -> None:
        """They do again: what was held up arrives late, or its connection breaks."""
        link = self.link(source, target)
        if not link.cut:
            return
        link.cut = False
        for pipe in list(link.pipes):
            if self.random.random() < link.settings.heal_reset_chance:
                self._break(pipe)
            else:
                pipe.wake(self.random.random() * RETRANSMIT_S)

    def set_link(self, source: str, target: str, settings: LinkSettings | None) -> None:
        """*settings* for one way; None: those of all."""
        self.link(source, target).settings = settings or self.settings

    def reset(self, a: str, b: str) -> int:
        """Break every connection between two hosts; how many there were."""
        pipes = [*self.link(a, b).pipes, *self.link(b, a).pipes]
        for pipe in pipes:
            self._break(pipe)
        return len(pipes) // 2

    def _break(self, pipe: Pipe) -> None:
        """Both ends hear of it at once."""
        for end in (pipe.sender, pipe.receiver):
            if not end.deaf and end.established:
                self.loop.soon(end.process, _lose, end)

    def power_lost(self, host: Host) -> None:
        """Its machine is off: no packet comes from there."""
        host.up = False

    def power_back(self, host: Host) -> None:
        """It is on again, and knows nothing of old connections: who still sends is told."""
        host.up = True
        for pipe in self._unanswered.pop(host.name, []):
            if not pipe.sender.deaf:
                when_s = self.loop.now_s + self.random.random() * RETRANSMIT_S
                self.loop.schedule(when_s, None, pipe.receiver.out.push, _RESET)

    def process_died(self, process: Process) -> None:
        """Its kernel closes what it had open, if the machine is up."""
        for listening in list(process.host.listeners.values()):
            listening.close()
        sockets = list(process.sockets)
        process.sockets.clear()
        for socket in sockets:
            socket.cut_off()

    # --- what happens on connections -------------------------------------------------------------

    def unanswered(self, pipe: Pipe) -> None:
        """Something was sent to a machine that is off."""
        self._unanswered.setdefault(pipe.receiver.host.name, []).append(pipe)

    def delivered(self, receiver: SimulatedTransport, data: bytes) -> None:
        """Count and trace."""
        self._bytes += len(data)
        self._chunks += 1
        trace = self.loop.trace
        text = "" if trace.text is None else f"{len(data)} bytes from {receiver.peer.name}"
        trace.add(self.loop.now_s, "data", receiver.host.number, crc32(data), text)

    def ended(self, end: SimulatedTransport, *, reset: bool) -> None:
        """Count and trace."""
        self._resets += reset
        self.loop.trace.add(self.loop.now_s, "lost", end.host.number, int(reset), end.peer.name)

    # --- connecting ------------------------------------------------------------------------------

    async def create_server(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, serving: bool
    ) -> Listening:
        """Bind *port* of the calling process's host.

        Raises:
            OSError: it is taken.
        """
        process = PROCESS.get()
        if process is None or process.host.address != host:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL), host)
        if port in process.host.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), f"{host}:{port}")
        listening = Listening(process, port, factory)
        listening.serving = serving
        process.host.listeners[port] = listening
        return listening

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[SimulatedTransport, asyncio.BaseProtocol]:
        """Connect the calling process to *host* (an address) and *port*.

        Raises:
            OSError: refused, or no answer.
        """
        target = self.hosts.get(host)
        if target is None:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH), host)
        attempt = _Attempt(self, factory, target, port)
        attempt.ask()
        try:
            return await attempt.answer
        except asyncio.CancelledError:
            attempt.give_up()
            raise


class _Attempt:
    """A connection that is being made."""

    def __init__(
        self,
        network: Network,
        factory: Callable[[], asyncio.BaseProtocol],
        target: Host,
        port: int,
    ) -> None:
        self._network = network
        self._loop = loop = network.loop
        self._factory = factory
        self._target = target
        self._port = port
        self._process = PROCESS.get()
        self._source = network.world if self._process is None else self._process.host
        self._there = network.link(self._source.name, target.name)
        self._back = network.link(target.name, self._source.name)
        self._tries = 0
        self._given_up = False
        self._near: SimulatedTransport | None = None
        self.answer: asyncio.Future[tuple[SimulatedTransport, asyncio.BaseProtocol]]
        self.answer = loop.create_future()

    def ask(self) -> None:
        """Send the request, and again while nothing comes back."""
        if self._given_up or (self._process is not None and not self._process.alive):
            self.give_up()
            return
        if self._tries >= len(CONNECT_RETRIES_S):
            self._fail(errno.ETIMEDOUT)
            return
        now_s = self._loop.now_s
        self._loop.schedule(now_s + self._there.delay_s(), None, self._arrive)
        self._loop.schedule(now_s + CONNECT_RETRIES_S[self._tries], None, self._ask_again)
        self._tries += 1

    def _ask_again(self) -> None:
        if not self.answer.done():
            self.ask()

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._given_up = True
        near, self._near = self._near, None
        if near is not None and not near.established:
            near.cut_off()
            if near.process is not None:
                near.process.sockets.pop(near, None)

    def _arrive(self) -> None:
        """At the target's kernel."""
        target = self._target
        if self._given_up or self.answer.done() or self._there.cut or not target.up:
            return
        listening = target.listeners.get(self._port)
        if self._near is None:
            if listening is None or not listening.serving or self._there.settings.refuse:
                if not self._back.cut:
                    when_s = self._loop.now_s + self._back.delay_s()
                    self._loop.schedule(when_s, self._process, self._fail, errno.ECONNREFUSED)
                return
            self._near = self._accept(listening)
        if not self._back.cut:
            when_s = self._loop.now_s + self._back.delay_s()
            self._loop.schedule(when_s, self._process, self._stand, self._near)

    def _accept(self, listening: Listening) -> SimulatedTransport:
        """Both ends, joined; the far one belongs to the process that listens."""
        network, source, target = self._network, self._source, self._target
        near = SimulatedTransport(network, self._process, target)
        far = SimulatedTransport(network, listening.process, source)
        tap = FrameTap(self._there, hello=True) if self._there.settings.meddles else None
        near.out = far.into = Pipe(network, self._there, near, tap)
        near.into = far.out = Pipe(network, self._back, far, None)
        near.out.receiver, near.into.receiver = far, near
        source.next_port += 1
        here, there = (source.address, source.next_port), (target.address, self._port)
        near.names = {"sockname": here, "peername": there}
        far.names = {"sockname": there, "peername": here}
        network._connections += 1  # noqa: SLF001  its own counter
        trace, now_s = self._loop.trace, self._loop.now_s
        trace.add(now_s, "accept", target.number, source.number, source.name)
        self._loop.soon(listening.process, _begin, far, listening.factory)
        return near

    def _stand(self, near: SimulatedTransport) -> None:
        if self._given_up or self.answer.done() or near.deaf:
            return
        number = self._target.number
        self._loop.trace.add(self._loop.now_s, "connect", self._source.number, number)
        protocol = self._factory()
        near.begin(protocol)
        self.answer.set_result((near, protocol))

    def _fail(self, code: int) -> None:
        if not self.answer.done():
            address = f"{self._target.address}:{self._port}"
            self.answer.set_exception(OSError(code, os.strerror(code), address))


def _begin(end: SimulatedTransport, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    if not end.deaf:
        end.begin(factory())


def _lose(end: SimulatedTransport) -> None:
    end.ended(reset=True)
