"""Where a client may connect: "host:port" strings, or the node inside this very process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from quorate.base.frames import ClientFrame, ServerFrame
from quorate.client.settings import ENDPOINTS_MAX
from quorate.errors import InvalidArgumentError, QuorateError

OnFrame = Callable[[ServerFrame], None]
OnLost = Callable[[QuorateError | None], None]
OnWritable = Callable[[], None]


class LocalConnection(Protocol):
    """The node's side of one in-process connection. Neither method calls back at once into the
    client, and neither raises."""

    def receive(self, frame: ClientFrame) -> None: ...
    def close(self) -> None: ...


class LocalServer(Protocol):
    """What an embedded node offers its own process instead of a socket.

    *on_frame* and *on_lost* must be called on the client's loop; *on_lost* at most once, and not
    after ``close``. Raises QuorateError if the node is not running.
    """

    def connect(self, on_frame: OnFrame, on_lost: OnLost) -> LocalConnection: ...


class Endpoint(NamedTuple):
    """One place to connect to; *local* is None for a network address."""

    host: str
    port: int
    local: LocalServer | None = None

    def __str__(self) -> str:
        if self.local is not None:
            return "this process"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Endpoints = str | LocalServer | Sequence[str | LocalServer]


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint from "host:port", or "[address]:port" for IPv6.

    Raises:
        InvalidArgumentError: it is neither; the text says how one looks.
    """
    stripped = text.strip()
    host, colon, port = stripped.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host, plain = host[1:-1], ":" in host
    else:
        plain = ":" not in host and "[" not in host and "]" not in host
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not (colon and host and plain and digits and 0 < int(port) < 65_536) or " " in host:
        raise InvalidArgumentError(
            f"{text!r} is not an endpoint: write host:port, such as 'db1.example:7400' or "
            "'[2001:db8::1]:7400'"
        )
    return Endpoint(host, int(port))


def parse_endpoints(endpoints: Endpoints) -> tuple[Endpoint, ...]:
    """Endpoints in the given order, each once; a string may hold several, parted by commas.

    Raises:
        InvalidArgumentError: none, more than ``ENDPOINTS_MAX``, or one that is not an endpoint.
    """
    found: dict[Endpoint, None] = {}
    for item in _listed(endpoints):
        if isinstance(item, str):
            found.update((parse_endpoint(text), None) for text in item.split(","))
        elif callable(getattr(item, "connect", None)):
            found[Endpoint("", 0, item)] = None
        else:
            raise InvalidArgumentError(f"{item!r} is neither a host:port string nor a node")
    if not 0 < len(found) <= ENDPOINTS_MAX:
        raise InvalidArgumentError(f"{len(found)} endpoints given; 1 to {ENDPOINTS_MAX} make sense")
    return tuple(found)


def _listed(endpoints: Endpoints) -> list[str | LocalServer]:
    if isinstance(endpoints, str):
        return [endpoints]
    if isinstance(endpoints, Sequence):
        return list(endpoints)
    return [endpoints]
