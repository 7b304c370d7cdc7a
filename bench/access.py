"""The client calls that the measurements make, in one place, and questions put to a single node.

The client library follows the leader and retries. To ask *one* node what *it* holds, ``ask`` speaks
the wire protocol itself: one connection, one hello, one query.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import socket
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from quorate.base.frames import (
    ROLE_CLIENT,
    WIRE_VERSION,
    AdminFailed,
    AdminReply,
    AdminRequest,
    ClientFrame,
    FrameSplitter,
    Hello,
    Query,
    QueryFailed,
    QueryReply,
    Refused,
    Run,
    ServerFrame,
    Welcome,
    encode_frame,
)
from quorate.base.kv_commands import KeyValue, KvQuery, KvResult, Range, RangeResult
from quorate.client import database
from quorate.client.database import Database
from quorate.errors import QuorateError, error_from_code

T = TypeVar("T")
KV_MACHINE = "kv"
_decode_frame = msgspec.msgpack.Decoder(ServerFrame).decode
_decode_results = msgspec.msgpack.Decoder(list[list[KvResult]]).decode
_encode = msgspec.msgpack.Encoder().encode


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, on uvloop if it is installed, as quorate's users are advised to."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=importlib.import_module("uvloop").new_event_loop) as runner:
        return runner.run(main)


async def connect(endpoints: Sequence[str]) -> Database:
    """An open handle of quorate's client on these endpoints."""
    return await database.connect(endpoints).open()


async def close(handle: Database) -> None:
    """Close a handle from ``connect``."""
    await handle.close()


class Link:
    """A blocking connection to one node."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        host, port = endpoint.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout_s)
        self._splitter = FrameSplitter()
        self._arrived: list[bytes] = []
        try:
            self.welcome = self._hello()
        except BaseException:
            self._socket.close()
            raise

    def send(self, frame: ClientFrame) -> None:
        """Send one frame."""
        self._socket.sendall(encode_frame(frame))

    def receive(self) -> ServerFrame:
        """The next frame; ``OSError`` if none comes in time."""
        while not self._arrived:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            self._arrived += self._splitter.feed(data)
        frame: ServerFrame = _decode_frame(self._arrived.pop(0))
        return frame

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _hello(self) -> Welcome:
        self.send(Hello(version=WIRE_VERSION, role=ROLE_CLIENT))
        while True:
            match self.receive():
                case Welcome() as welcome:
                    return welcome
                case Refused(code=code, message=message):
                    raise error_from_code(code, message)


@contextlib.contextmanager
def link(endpoint: str, timeout_s: float = 2.0) -> Iterator[Link]:
    """A connection to one node, closed at the end."""
    opened = Link(endpoint, timeout_s)
    try:
        yield opened
    finally:
        opened.close()


def welcome_of(endpoint: str, timeout_s: float = 1.0) -> Welcome | None:
    """What a node says on being greeted, or None if it does not."""
    try:
        with link(endpoint, timeout_s) as opened:
            return opened.welcome
    except (OSError, QuorateError):
        return None


def ask(opened: Link, query: KvQuery, *, linearizable: bool = True) -> tuple[int, KvResult]:
    """(applied log index, answer) of one node to one query.

    Raises:
        QuorateError: the node refused, for instance because it knows no leader.
        OSError: the connection broke, or no answer came in time.
    """
    run = Run(KV_MACHINE, msgspec.Raw(_encode([query])))
    opened.send(Query(id=1, runs=(run,), linearizable=linearizable))
    while True:
        match opened.receive():
            case QueryReply(id=1, index=index, results=results):
                return index, _decode_results(results)[0][0]
            case QueryFailed(id=1, code=code, message=message):
                raise error_from_code(code, message)


def status_of(endpoint: str, timeout_s: float = 2.0) -> dict[str, Any]:
    """What one node says of itself, as ``quorate status`` shows it.

    Raises:
        QuorateError, OSError: as ``ask``.
    """
    with link(endpoint, timeout_s) as opened:
        opened.send(AdminRequest(id=1, method="status"))
        while True:
            match opened.receive():
                case AdminReply(id=1, result=dict(result)):
                    return result
                case AdminFailed(id=1, code=code, message=message):
                    raise error_from_code(code, message)


def read_all(endpoint: str, prefix: bytes, *, linearizable: bool = True) -> Iterator[KeyValue]:
    """Every pair under *prefix*, as this one node holds it, page by page."""
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    start = prefix
    with link(endpoint, timeout_s=30.0) as opened:
        while True:
            _index, page = ask(opened, Range(start=start, end=end), linearizable=linearizable)
            if not isinstance(page, RangeResult):
                raise TypeError(f"the node answered a range with {page!r}")
            yield from page.items
            if not page.more:
                return
            start = page.items[-1].key + b"\0"
