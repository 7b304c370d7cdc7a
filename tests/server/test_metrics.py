"""What monitoring gets of a node: figures, liveness, readiness, and nothing that could hurt it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quorate.errors import ConfigError
from quorate.server import metrics
from quorate.server.config import NodeConfig
from quorate.server.health import Health
from quorate.server.local_cluster import free_ports
from quorate.server.metrics import MetricsServer
from quorate.server.node import Node


def config_of(path: Path, **settings: object) -> NodeConfig:
    given = {"node_id": 1, "data": str(path), "listen": "", "metrics_listen": "127.0.0.1:0"}
    return NodeConfig(**{**given, **settings})  # type: ignore[arg-type]


@asynccontextmanager
async def serving(config: NodeConfig) -> AsyncIterator[tuple[Node, MetricsServer]]:
    async with Node(config) as node:
        server = MetricsServer(node, config, Health(node.local_server))
        await server.start()
        try:
            yield node, server
        finally:
            await server.stop()


async def ask(server: MetricsServer, request: bytes) -> tuple[int, str]:
    host, port = server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def get(server: MetricsServer, path: str) -> tuple[int, str]:
    return await ask(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def test_figures_of_a_living_node(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path)) as (node, server):
        await Health(node.local_server).wait_ready()
        status, page = await get(server, "/metrics")
        assert status == 200
        found = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
        assert float(found["quorate_leader"]) == 1
        assert float(found['quorate_role{role="leader"}']) == 1
        assert float(found['quorate_role{role="follower"}']) == 0
        assert float(found["quorate_alarms"]) == 0
        assert float(found["quorate_queries_total"]) >= 1
        for name in metrics.GAUGES:
            assert f"quorate_{name}" in found
        for name in metrics.COUNTERS:
            assert f"quorate_{name}_total" in found
        assert await get(server, "/live") == (200, "alive\n")
        assert await get(server, "/ready?verbose") == (200, "ready\n")
        status, body = await ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (status, body) == (200, "")


async def test_a_node_without_a_majority_lives_and_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.server.health.PROBE_TIMEOUT_S", 0.3)
    own, other = free_ports(2)
    initial = {1: f"127.0.0.1:{own}", 2: f"127.0.0.1:{other}"}
    config = config_of(tmp_path, listen=initial[1], initial=initial)
    async with serving(config) as (_node, server):
        assert await get(server, "/live") == (200, "alive\n")
        status, why = await get(server, "/ready")
        assert status == 503
        assert why.count("\n") == 1
        assert why.strip()


async def test_strange_requests_are_answered_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(config_of(tmp_path)) as (_node, server):
        assert (await get(server, "/nothing"))[0] == 404
        assert (await ask(server, b"POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await ask(server, b"\r\n\r\n"))[0] == 405
        assert (await ask(server, b"GET " + b"x" * 10_000 + b"\r\n\r\n"))[0] == 400
        monkeypatch.setattr(metrics, "CONNECTIONS_MAX", 0)
        with pytest.raises((ConnectionError, IndexError)):  # closed without an answer
            await get(server, "/metrics")


async def test_a_silent_caller_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REQUEST_TIMEOUT_S", 0.1)
    async with serving(config_of(tmp_path)) as (_node, server):
        host, port = server.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_an_address_in_use_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path)) as (node, server):
        taken = config_of(tmp_path, metrics_listen=server.address)
        with pytest.raises(ConfigError, match="metrics_listen"):
            await MetricsServer(node, taken, Health(node.local_server)).start()
