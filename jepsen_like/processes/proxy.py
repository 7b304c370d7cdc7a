"""A network of links that can fail: every byte between nodes, and from clients, passes here.

Each port of a node has a proxy in front, whose address is the one that others are told. A
connection that comes in belongs to the link from its dialler to the node (``sockets`` tells who
dialled) and, for what flows back, to the reverse link. Faults are set per directed link:

* ``blocked``: nothing arrives, not even the end of a connection; what was sent arrives when the
  block is lifted, as a retransmission would. New connections hang.
* ``delay_s`` and ``jitter_s``: later, in order. ``loss``: a chunk waits for a retransmission with
  this probability, and all behind it with it. ``bytes_per_s``: a thin pipe.
* ``reset``: present connections break, in the middle of what flows next.

As in TCP, bytes are never lost or reordered within a connection; a link that loses is slow.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

import msgspec

#: The number of all clients together, as the source of a link.
CLIENTS: Final = 0
#: Of one direction of a connection, before its sender has to wait.
HELD_BYTES_MAX: Final = 1024 * 1024
#: A lost packet is sent again after so long (Linux: 200 ms at least).
RETRANSMIT_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 5.0
#: A connection that is to break, and on which nothing flows, breaks after so long.
RESET_IDLE_S: Final = 0.3


class Place(NamedTuple):
    """Where a node's port is: *listen* is for the node, *address* for all others ("host:port")."""

    listen: str
    address: str


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a directed link is; see the module. The default is a perfect one."""

    blocked: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = 0.0

    def shown(self) -> str:
        """For people."""
        if self.blocked:
            return "blocked"
        parts = []
        if self.delay_s or self.jitter_s:
            parts.append(f"{self.delay_s * 1000:.0f}±{self.jitter_s * 1000:.0f} ms")
        if self.loss:
            parts.append(f"loses {self.loss:.0%}")
        if self.bytes_per_s:
            parts.append(f"{self.bytes_per_s / 1000:.0f} kB/s")
        return ", ".join(parts) or "sound"


SOUND: Final = Condition()


class Network:
    """All proxies and links of one run. *owner*: given the ports of a connection's dialler and of
    the proxy, the number of the node that dialled, or ``CLIENTS``."""

    def __init__(self, owner: Callable[[int, int], int], random: Random) -> None:
        self._owner = owner
        self.random = random
        self._listeners: list[asyncio.Server] = []
        #: Faults by the name of who set them: several may hold at once on one link.
        self._faults: dict[str, dict[tuple[int, int], Condition]] = {}
        self._pairs: set[Pair] = set()
        self.connections_count = 0
        self.resets_count = 0

    async def add(self, number: int, listen: str) -> Place:
        """A proxy in front of the port at *listen* of node *number*."""
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        port = int(listener.getsockname()[1])
        server = await loop.create_server(
            lambda: _Side(self._accept(number, port, listen)), sock=listener
        )
        self._listeners.append(server)
        return Place(listen, f"127.0.0.1:{port}")

    def _accept(self, target: int, port: int, listen: str) -> Callable[[_Side], None]:
        def accept(side: _Side) -> None:
            self.connections_count += 1
            source = self._owner(side.peer_port, port)
            Pair(self, side, source, target, listen)

        return accept

    def close(self) -> None:
        """Break everything and listen no more."""
        for server in self._listeners:
            server.close()
        self._listeners.clear()
        for pair in list(self._pairs):
            pair.abort()

    # --- faults ----------------------------------------------------------------------------------

    def set(self, name: str, links: Iterable[tuple[int, int]], condition: Condition) -> None:
        """Fault *name* puts *links*, pairs of (source, target), into *condition*, and no others."""
        self._faults[name] = dict.fromkeys(links, condition)
        self._changed()

    def heal(self, name: str = "") -> None:
        """End fault *name*; "": all."""
        if name:
            self._faults.pop(name, None)
        else:
            self._faults.clear()
        self._changed()

    def condition(self, source: int, target: int) -> Condition:
        """What holds on a link now: the worst of each kind that any fault asks for."""
        found = [
            faults[source, target] for faults in self._faults.values() if (source, target) in faults
        ]
        if not found:
            return SOUND
        thin = [each.bytes_per_s for each in found if each.bytes_per_s]
        return Condition(
            blocked=any(each.blocked for each in found),
            delay_s=max(each.delay_s for each in found),
            jitter_s=max(each.jitter_s for each in found),
            loss=max(each.loss for each in found),
            bytes_per_s=min(thin, default=0.0),
        )

    def reset(self, links: Iterable[tuple[int, int]]) -> int:
        """Break the present connections on these links, each in the middle of what flows next in
        that direction; how many there are."""
        count = 0
        for source, target in links:
            for pair in list(self._pairs):
                if pair.break_soon(source, target):
                    count += 1
        self.resets_count += count
        return count

    def _changed(self) -> None:
        for pair in list(self._pairs):
            pair.refresh()

    def opened(self, pair: Pair) -> None:
        """For ``Pair``."""
        self._pairs.add(pair)

    def closed(self, pair: Pair) -> None:
        """For ``Pair``."""
        self._pairs.discard(pair)


class _Side(asyncio.Protocol):
    """One of the two sockets of a proxied connection."""

    def __init__(self, made: Callable[[_Side], None]) -> None:
        self._made = made
        self.transport: asyncio.Transport | None = None
        self.peer_port = 0
        self.data: Callable[[bytes], None] = _ignore
        self.ended: Callable[[], None] = _nothing
        self.writable = True
        self.on_writable: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's is a Transport
        peer = transport.get_extra_info("peername")
        self.peer_port = int(peer[1]) if peer else 0
        self._made(self)

    def data_received(self, data: bytes) -> None:
        self.data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None
        self.ended()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.on_writable()

    def read(self, *, wanted: bool) -> None:
        """Take bytes from the socket, or let its sender wait."""
        if self.transport is None or self.transport.is_closing():
            return
        if wanted and not self.transport.is_reading():
            self.transport.resume_reading()
        elif not wanted and self.transport.is_reading():
            self.transport.pause_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self, *, hard: bool) -> None:
        if self.transport is not None:
            if hard:
                self.transport.abort()
            else:
                self.transport.close()


class Pair:
    """A connection from *source* through the proxy to *target*: two sockets, two directions."""

    def __init__(
        self, network: Network, side: _Side, source: int, target: int, listen: str
    ) -> None:
        self.source, self.target = source, target
        self._network = network
        self._near = side
        self._far: _Side | None = None
        self._listen = listen
        self._there = _Direction(network, (source, target), side, self._end)
        self._back: _Direction | None = None
        self._breaking: asyncio.TimerHandle | None = None
        self._open = asyncio.Event()
        self._ended = False
        network.opened(self)
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        host, port = self._listen.rsplit(":", 1)
        await self._sound()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, far = await asyncio.get_running_loop().create_connection(
                    lambda: _Side(_nothing_made), host, int(port)
                )
        except OSError:  # a TimeoutError is one
            self.abort()
            return
        self._far = far
        if self._ended:
            far.close(hard=True)
            return
        self._back = _Direction(self._network, (self.target, self.source), far, self._end)
        self._there.goes_to(far)
        self._back.goes_to(self._near)

    async def _sound(self) -> None:
        """Until a handshake could be made: it needs both directions."""
        while self._blocked():
            self._open.clear()
            await self._open.wait()

    def _blocked(self) -> bool:
        ends = (self.source, self.target)
        network = self._network
        return network.condition(*ends).blocked or network.condition(*ends[::-1]).blocked

    def refresh(self) -> None:
        """Conditions have changed."""
        self._open.set()
        self._there.refresh()
        if self._back is not None:
            self._back.refresh()

    def break_soon(self, source: int, target: int) -> bool:
        """Break it in the middle of what flows next from *source* to *target*, if that is one of
        its directions."""
        if (source, target) == (self.source, self.target):
            direction: _Direction | None = self._there
        elif (source, target) == (self.target, self.source):
            direction = self._back
        else:
            return False
        if direction is None or self._ended:
            return False
        direction.break_next = True
        if self._breaking is None:
            loop = asyncio.get_running_loop()
            self._breaking = loop.call_later(RESET_IDLE_S, self.abort)
        return True

    def abort(self) -> None:
        """Reset both sockets now."""
        self._end(hard=True)

    def _end(self, *, hard: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._network.closed(self)
        self._task.cancel()
        if self._breaking is not None:
            self._breaking.cancel()
        for side in (self._near, self._far):
            if side is not None:
                side.ended = _nothing
                side.close(hard=hard)
        for direction in (self._there, self._back):
            if direction is not None:
                direction.stop()


class _Direction:
    """What flows one way: chunks in order, each with the time from which it may arrive."""

    def __init__(
        self,
        network: Network,
        link: tuple[int, int],
        origin: _Side,
        end: Callable[..., None],
    ) -> None:
        self._network = network
        self._link = link
        self._origin = origin
        self._end = end
        self._target: _Side | None = None
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._last_due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._finished = False
        self.break_next = False
        self._condition = network.condition(*link)
        origin.data = self._received
        origin.ended = self._origin_ended

    def goes_to(self, target: _Side) -> None:
        """There is somewhere to send it."""
        self._target = target
        target.on_writable = self._flow
        self._flow()

    def refresh(self) -> None:
        self._condition = self._network.condition(*self._link)
        self._flow()

    def stop(self) -> None:
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _received(self, data: bytes) -> None:
        if not self._held and self._condition is SOUND and not self.break_next:
            target = self._target
            if target is not None and target.writable:
                target.write(data)
                return
        self._held.append((self._due_s(len(data)), data))
        self._held_bytes += len(data)
        self._flow()

    def _due_s(self, size: int) -> float:
        """When a chunk of *size* bytes that is sent now arrives, blocks aside."""
        condition, random = self._condition, self._network.random
        due_s = self._loop.time() + condition.delay_s
        if condition.jitter_s:
            due_s += random.random() * condition.jitter_s
        if condition.loss and random.random() < condition.loss:
            due_s += RETRANSMIT_S
        due_s = max(due_s, self._last_due_s)
        if condition.bytes_per_s:
            due_s += size / condition.bytes_per_s
        self._last_due_s = due_s
        return due_s

    def _flow(self) -> None:
        """Pass on what may arrive by now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        target = self._target
        while self._held and target is not None and target.writable:
            if self._condition.blocked:
                break
            due_s, data = self._held[0]
            now_s = self._loop.time()
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self._flow)
                break
            self._held.popleft()
            self._held_bytes -= len(data)
            if self.break_next:
                target.write(data[: self._network.random.randrange(len(data))])
                self._loop.call_soon(lambda: self._end(hard=True))
                return
            target.write(data)
        self._origin.read(wanted=self._held_bytes < HELD_BYTES_MAX)
        self._pass_end()

    def _origin_ended(self) -> None:
        self._finished = True
        self._pass_end()

    def _pass_end(self) -> None:
        """The end of a connection travels like its bytes."""
        if self._finished and not self._held and not self._condition.blocked:
            self._end(hard=False)


def _ignore(_data: bytes) -> None:
    """Nobody wants it any more."""


def _nothing() -> None:
    """Nobody wants to know."""


def _nothing_made(_side: _Side) -> None:
    """The connecting task goes on by itself."""
