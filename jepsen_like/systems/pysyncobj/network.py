"""The library's transport as an object in memory: delay, loss, repetition, cuts, by one seed.

Two styles. ``stream``: as TCP, in order and once, what is under way waits while the way is cut, and
is lost when the connection is found dead. ``loose``: each message finds its own way; it may be
lost, come twice, come late or out of order. Connections are made, found dead and made again as the
library's own transport does.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol

import msgspec
from pysyncobj.node import Node
from pysyncobj.transport import Transport

#: A handshake, seconds.
CONNECT_S: Final = 0.001
#: Between messages of one stream, seconds, so that their order is that of sending.
GAP_S: Final = 1e-6


class SimNode(Node):  # type: ignore[misc]  # the package has no types
    """A member's name. Its hash is its number, so that sets of members have one order."""

    def __hash__(self) -> int:
        return number_of(self.id)

    @property
    def address(self) -> str:
        """The name under which the library's commands know it."""
        return str(self.id)


def number_of(name: str) -> int:
    """Of a member: n3 is 3."""
    return int(name[1:])


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Of the network. Probabilities are per message; *late*: it takes *late_s* more, at most."""

    style: str = "stream"
    delay_s: float = 0.002
    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    late_s: float = 0.0


class Owner(Protocol):
    """Who has a port: a member."""

    name: str
    running: bool

    def sent(self, peer: str, message: dict[str, Any]) -> None: ...
    def deliver(self, sender: SimNode, message: dict[str, Any]) -> None: ...
    def call(self, cause: str, action: Callable[[], None]) -> None: ...


class Scheduler(Protocol):
    """Virtual time."""

    now_s: float

    def after(self, seconds: float, action: Callable[[], None]) -> None: ...


class Port(Transport):  # type: ignore[misc]  # the package has no types
    """One member's end. Goes with the member's process; the next process has a new one."""

    def __init__(
        self,
        network: Network,
        owner: Owner,
        others: list[SimNode],
        retry_s: float,
        timeout_s: float,
    ) -> None:
        super().__init__(None, None, [])
        self.network, self.owner = network, owner
        self.known: dict[str, SimNode] = {node.id: node for node in others}
        self.open: dict[str, int] = {}  # peer: number of the connection
        self.heard_s: dict[str, float] = {}
        self._tried_s: dict[str, float] = {}
        self._retry_s, self._timeout_s = retry_s, timeout_s

    def addNode(self, node: SimNode) -> None:  # noqa: N802
        """Of the library."""
        self.known[node.id] = node

    def dropNode(self, node: SimNode) -> None:  # noqa: N802
        """Of the library. As there, the one who drops hears nothing of the disconnection."""
        self.known.pop(node.id, None)
        self._tried_s.pop(node.id, None)
        if (number := self.open.pop(node.id, None)) is not None:
            self.network.closed(self, node.id, number)

    def send(self, node: SimNode, message: dict[str, Any]) -> bool:
        """Of the library."""
        number = self.open.get(node.id)
        if number is None:
            return False
        if self.network.time.now_s - self.heard_s[node.id] > self._timeout_s:
            self.disconnect(node.id, number)
            self.network.closed(self, node.id, number)
            return False
        self.owner.sent(node.id, message)
        self.network.send(self, node.id, number, message)
        return True

    def destroy(self) -> None:
        """Of the library."""
        self.network.unplug(self)

    def connect_where_needed(self) -> None:
        """At each tick: of two members, the one with the larger name calls."""
        now = self.network.time.now_s
        for peer in list(self.known):
            due = now - self._tried_s.get(peer, -1e9) >= self._retry_s
            if peer not in self.open and number_of(self.owner.name) > number_of(peer) and due:
                self._tried_s[peer] = now
                self.network.connect(self, peer)

    def connected(self, peer: str, number: int) -> None:
        """The handshake is done."""
        self.open[peer] = number
        self.heard_s[peer] = self.network.time.now_s
        node = self.known[peer]
        self.owner.call(f"connection with {peer}", lambda: self._onNodeConnected(node))

    def disconnect(self, peer: str, number: int) -> None:
        """If that connection still stands at this end."""
        if self.open.get(peer) != number:
            return
        del self.open[peer]
        if (node := self.known.get(peer)) is not None:
            self.owner.call(f"disconnection of {peer}", lambda: self._onNodeDisconnected(node))


class Network:
    """All ports and what is under way between them."""

    def __init__(self, time: Scheduler, random: Random, quality: Quality) -> None:
        self.time = time
        self.quality = quality
        self.messages_count = 0
        self.note: Callable[[str], None] = lambda _line: None
        self._random = random
        self._ports: dict[str, Port] = {}
        self._cut: dict[tuple[str, str], bool] = {}
        self._waiting: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._free_at_s: dict[tuple[str, str], float] = {}
        self._connections = 0

    def plug(self, port: Port) -> None:
        """A process runs."""
        self._ports[port.owner.name] = port

    def unplug(self, port: Port) -> None:
        """It ended; the peers find out at once, if the way is free."""
        if self._ports.get(port.owner.name) is port:
            del self._ports[port.owner.name]
        for peer, number in list(port.open.items()):
            self.closed(port, peer, number)
        port.open.clear()

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from *source* to *target*."""
        self._cut[source, target] = True

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """That way is free again, or every way."""
        ways = list(self._cut) if source is None or target is None else [(source, target)]
        for way in ways:
            self._cut.pop(way, None)
            for arrive in self._waiting.pop(way, []):
                self._travel(way, arrive)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether the way is cut."""
        return (source, target) in self._cut

    def connect(self, port: Port, peer: str) -> None:
        """A handshake; fails without a word."""
        me = port.owner.name
        if self.is_cut(me, peer) or self.is_cut(peer, me):
            return
        self._connections += 1
        number = self._connections

        def shake() -> None:
            other = self._ports.get(peer)
            ready = self._ports.get(me) is port and other is not None and peer in port.known
            if ready and other is not None and me in other.known:
                other.connected(me, number)
                port.connected(peer, number)

        self.time.after(CONNECT_S, shake)

    def closed(self, port: Port, peer: str, number: int) -> None:
        """One end closed a connection; the other learns of it behind what is under way."""
        me = port.owner.name

        def arrive() -> None:
            other = self._ports.get(peer)
            if other is not None:
                other.disconnect(me, number)

        self._send((me, peer), arrive)

    def send(self, port: Port, peer: str, number: int, message: dict[str, Any]) -> None:
        """Put a message on its way."""
        quality, draw, way = self.quality, self._random.random, (port.owner.name, peer)
        self.messages_count += 1

        def arrive() -> None:
            other = self._ports.get(peer)
            if other is None or way[0] not in other.known:
                return
            if quality.style == "stream" and other.open.get(way[0]) != number:
                return
            other.heard_s[way[0]] = self.time.now_s
            other.owner.deliver(other.known[way[0]], message)

        if quality.style == "stream":
            self._send(way, arrive)
            return
        if self.is_cut(*way) or draw() < quality.lost:
            return
        self._travel(way, arrive)
        if draw() < quality.repeated:
            self.note(f"{way[0]} -> {peer}: {message['type']} will come twice")
            self._travel(way, arrive)

    def _send(self, way: tuple[str, str], arrive: Callable[[], None]) -> None:
        if way in self._cut:
            self._waiting.setdefault(way, []).append(arrive)
        else:
            self._travel(way, arrive)

    def _travel(self, way: tuple[str, str], arrive: Callable[[], None]) -> None:
        quality, random = self.quality, self._random
        delay = quality.delay_s * (0.5 + random.expovariate(1.0))
        if random.random() < quality.late:
            delay += quality.late_s * random.random()
        if quality.style == "stream":
            at = max(self.time.now_s + delay, self._free_at_s.get(way, 0.0) + GAP_S)
            self._free_at_s[way] = at
            delay = at - self.time.now_s
        self.time.after(delay, arrive)
