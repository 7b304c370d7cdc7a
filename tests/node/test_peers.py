"""Links between members: whatever ends a connection, it is made again."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, cast

import pytest

from quorate.base.frames import WIRE_VERSION, Welcome
from quorate.base.types import NodeId
from quorate.server import peers
from quorate.server.connection import Connection
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


class Open(Closed):
    """One that stays until somebody closes it."""

    open = True
    on_bodies: Any = None
    on_closed: Any = None

    def close(self) -> None:
        self.open = False


async def test_whoever_turns_out_to_be_another_is_parted_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was let in while this node knew of none; then the log names another directory."""
    dialled: list[Open] = []

    async def greet(*_address: Any, **_options: Any) -> tuple[Open, Welcome]:
        dialled.append(Open())
        return dialled[-1], Welcome(WIRE_VERSION, "c", 2, "second", 0, 0, ())

    monkeypatch.setattr(peers, "greet", greet)
    identity = Identity(cluster="c", node=NodeId(1), incarnation="own", created_ms=0)
    log: dict[NodeId, str] = {}
    lost: list[NodeId] = []
    reached = asyncio.Event()
    events = PeerEvents(
        frame=lambda frame: None,  # noqa: ARG005
        pinned=lambda node: log.get(node, ""),
        reached=lambda node, welcome: reached.set(),  # noqa: ARG005
        lost=lost.append,
    )
    transport = PeerTransport(Gate(identity), events, Random(1), None)
    two = NodeId(2)
    try:
        first, second = Open(), Open()
        transport.accept(cast("Connection", first), two, "first")
        transport.accept(cast("Connection", second), two, "second")
        assert not first.open, "a number stands for one directory at a time"
        assert second.open
        transport.set_members({two: "127.0.0.1:1"})
        await asyncio.wait_for(reached.wait(), 5)
        assert second.open
        del lost[:]
        log[two] = "first"
        transport.set_members({two: "127.0.0.1:1"})
        assert (second.open, dialled[0].open, transport.connected()) == (False, False, [])
        assert lost == [two, two]
        await asyncio.sleep(0.1)  # it is dialled again, and refused
        assert "wiped" in transport.problems()[two]
    finally:
        await transport.stop()
