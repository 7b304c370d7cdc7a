"""How a handle of a world reaches its node, and how it is kept from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quorate.base.frames import ClientFrame
from quorate.client.endpoints import LocalConnection, OnFrame, OnLost
from quorate.errors import QuorateError, UnavailableError
from quorate.server.node import Node


class Door:
    """A ``LocalServer``: the node that *serving* returns at the moment, unless it is shut."""

    def __init__(self, loop: asyncio.AbstractEventLoop, serving: Callable[[], Node | None]) -> None:
        self._loop = loop
        self._serving = serving
        self._shut = False
        self._passages: dict[_Passage, None] = {}

    def connect(self, on_frame: OnFrame, on_lost: OnLost) -> LocalConnection:
        """See ``LocalServer``."""
        node = self._serving()
        if self._shut or node is None:
            why = "cut off by the test" if self._shut else "restarting"
            raise UnavailableError(f"the node of this world cannot be reached: {why}")
        passage = _Passage(self._passages, on_lost)
        passage.connection = node.local_server.connect(on_frame, passage.lost)
        self._passages[passage] = None
        return passage

    def shut(self) -> None:
        """Nobody comes through any more, and who was there is lost."""
        self._shut = True
        for passage in list(self._passages):
            on_lost = passage.on_lost
            passage.close()
            self._loop.call_soon(on_lost, UnavailableError("cut off by the test"))

    def open(self) -> None:
        """As it was."""
        self._shut = False


class _Passage:
    """One connection."""

    def __init__(self, passages: dict[_Passage, None], on_lost: OnLost) -> None:
        self.on_lost = on_lost
        self.connection: LocalConnection | None = None
        self._passages = passages

    def receive(self, frame: ClientFrame) -> None:
        """See ``LocalConnection``."""
        if self.connection is not None:
            self.connection.receive(frame)

    def close(self) -> None:
        """See ``LocalConnection``."""
        connection, self.connection = self.connection, None
        self._passages.pop(self, None)
        if connection is not None:
            connection.close()

    def lost(self, error: QuorateError | None) -> None:
        """The node has closed it."""
        self.connection = None
        self._passages.pop(self, None)
        self.on_lost(error)
