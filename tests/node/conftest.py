"""Nodes in this process, on loopback ports, under ``tmp_path``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from quorate import Database, Machine, Node, NodeConfig, connect
from quorate.errors import QuorateError

WAIT_S = 15.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


async def until(what: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Poll until *what* is true."""
    end_s = asyncio.get_running_loop().time() + timeout_s
    while not what():
        assert asyncio.get_running_loop().time() < end_s, "it did not come true in time"
        await asyncio.sleep(0.01)


class Cluster:
    """Members by number. ``nodes`` holds those that run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes: dict[int, Node] = {}
        self.addresses: dict[int, str] = {}
        self.configs: dict[int, NodeConfig] = {}
        self.machines: Callable[[], Sequence[Machine]] = tuple
        self._handles: list[Database] = []

    async def found(self, count: int, **settings: Any) -> None:
        ports = free_ports(count)
        self.addresses = {i: f"127.0.0.1:{ports[i - 1]}" for i in range(1, count + 1)}
        for number, address in self.addresses.items():
            self.configs[number] = NodeConfig(
                node_id=number,
                data=str(self.path / str(number)),
                listen=address,
                initial=self.addresses,
                **settings,
            )
        await asyncio.gather(*(self.start(number) for number in self.addresses))
        await self.leader()

    def joiner(self, number: int, **settings: Any) -> None:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        self.configs[number] = NodeConfig(
            node_id=number,
            data=str(self.path / str(number)),
            listen=address,
            join=tuple(self.addresses.values()),
            **settings,
        )
        self.addresses[number] = address

    async def start(self, number: int) -> Node:
        node = Node(self.configs[number], self.machines())
        await node.start()
        self.nodes[number] = node
        return node

    async def stop(self, number: int) -> None:
        await self.nodes.pop(number).stop()

    async def crash(self, number: int) -> None:
        """Stop without handing over, finishing or a checkpoint."""
        node = self.nodes.pop(number)
        node._stopping = True
        await node._shut(node.parts)
        await node._close_files()
        node._ended.set()

    async def leader(self) -> Node:
        """The one leader that all running members agree on, once it has applied its own term."""

        def agreed() -> bool:
            leaders = {node.replica.leader for node in self.nodes.values()}
            if len(leaders) != 1 or 0 in leaders:
                return False
            leader = self.nodes.get(leaders.pop())
            if leader is None or not leader.replica.is_leader:
                return False
            return leader.replica.core.state.log.term_at(leader.replica.applied) == (
                leader.replica.core.state.term
            )

        await until(agreed)
        return next(node for node in self.nodes.values() if node.replica.is_leader)

    async def followers(self) -> list[Node]:
        leader = await self.leader()
        return [node for node in self.nodes.values() if node is not leader]

    async def converged(self) -> None:
        """All running members have applied the same, and came to the same state."""

        def same() -> bool:
            return len({node.replica.applied for node in self.nodes.values()}) == 1

        await until(same)
        assert len({node.machines.state_hash for node in self.nodes.values()}) == 1
        assert not any(node.replica.divergence.alarms for node in self.nodes.values())

    def connect(self, *numbers: int, **options: Any) -> Database:
        chosen = numbers or tuple(self.addresses)
        db = connect(",".join(self.addresses[number] for number in chosen), **options)
        self._handles.append(db)
        return db

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()
        for node in list(self.nodes.values()):
            with contextlib.suppress(QuorateError):
                await node.stop()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    return until
