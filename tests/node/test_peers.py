"""Links between members: whatever ends a connection, it is made again."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from quorate.base.frames import WIRE_VERSION, Welcome
from quorate.base.types import NodeId
from quorate.server import peers
from quorate.server.identity import Gate
from quorate.server.peers import PeerEvents, PeerTransport
from quorate.storage.directory import Identity


class Closed:
    """A connection that broke after the welcome came, and before anybody looked."""

    open = False
    queued_bytes = 0

    def close(self) -> None:
        """It is."""


async def test_a_connection_that_breaks_right_after_its_welcome_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled = 0
    again = asyncio.Event()

    async def greet(*_address: Any, **_options: Any) -> tuple[Closed, Welcome]:
        nonlocal dialled
        dialled += 1
        if dialled == 3:
            again.set()
        return Closed(), Welcome(WIRE_VERSION, "c", 2, "other", 0, 0, ())

    monkeypatch.setattr(peers, "greet", greet)
    identity = Identity(cluster="c", node=NodeId(1), incarnation="own", created_ms=0)
    told: list[NodeId] = []
    events = PeerEvents(
        frame=lambda frame: None,  # noqa: ARG005
        pinned=lambda node: "",  # noqa: ARG005
        reached=lambda node, incarnation: told.append(node),  # noqa: ARG005
        lost=told.append,
    )
    transport = PeerTransport(Gate(identity), events, Random(1), None)
    transport.set_members({NodeId(2): "127.0.0.1:1"})
    try:
        await asyncio.wait_for(again.wait(), 5)
        assert transport.connected() == []
        assert "welcome" in transport.problems()[NodeId(2)]
        assert told == []
    finally:
        await transport.stop()
