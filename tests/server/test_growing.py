"""What an operator does to a cluster in use, by the command line alone: grow, shrink, encrypt."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from quorate.client.database import Database, connect
from quorate.server import certificates
from quorate.server.local_cluster import LocalCluster, LocalNode, free_ports

pytestmark = [pytest.mark.processes, pytest.mark.shared]


async def quorate(*arguments: str) -> tuple[int, Any]:
    """Exit status and JSON answer of one command line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "quorate", *arguments, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    status = process.returncode
    assert status is not None
    return status, json.loads(err if status else out)


class Writer:
    """Writes numbered keys one by one until told to stop; remembers what was acknowledged."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stop = False
        self.acknowledged: list[bytes] = []

    async def run(self) -> None:
        number = 0
        while not self._stop:
            number += 1
            key = b"%08d" % number
            await self._db.kv.put(key, key, timeout=20.0)
            self.acknowledged.append(key)
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._stop = True


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(1, directory=tmp_path) as found:
        yield found


async def test_from_one_node_to_three_and_back_under_writes(cluster: LocalCluster) -> None:
    async with connect(cluster.endpoints) as db:
        writer = Writer(db)
        writing = asyncio.ensure_future(writer.run())
        where = ("--endpoints", cluster.endpoints)
        for number in (2, 3):
            node = cluster.add(number)
            status, found = await quorate("members", "add", f"{number}={node.endpoint}", *where)
            assert (status, len(found["members"])) == (0, number)
            status, found = await quorate("members", "promote", str(number), *where)
            assert (status, found["members"][-1]["role"]) == (0, "voter")
        status, found = await quorate("transfer-leader", "2", *where)
        assert (status, found) == (0, {"leader": 2})
        where = ("--endpoints", cluster.endpoints)
        grown = len(writer.acknowledged)
        for number in (2, 3):  # the leader first
            status, found = await quorate("members", "remove", str(number), *where)
            assert status == 0, found
            assert await asyncio.to_thread(cluster.nodes[number].stop) == 0
        assert [member["node"] for member in found["members"]] == [1]
        await until(lambda: len(writer.acknowledged) > grown + 10)
        writer.stop()
        await writing
        keys = {item.key async for item in db.kv.scan()}
        assert keys == set(writer.acknowledged)
        refused, error = await quorate("members", "add", f"2={cluster.nodes[2].endpoint}", *where)
        assert (refused, error["error"]["code"]) == (1, "membership")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what it looks at raises no event
            await asyncio.sleep(0.02)


async def test_a_cluster_with_certificates_lets_in_only_their_holders(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    certificates.create_authority(certs, "secret")
    certificates.issue_client(certs, "alice")
    ports = free_ports(2)
    members = ",".join(f"{number}=127.0.0.1:{port}" for number, port in enumerate(ports, 1))
    nodes = []
    for number, port in enumerate(ports, 1):
        certificates.issue_node(certs, number, ["127.0.0.1"])
        flags = ["--initial", members, *tls_flags(certs, f"node-{number}")]
        nodes.append(LocalNode(number, port, tmp_path, "secret", flags))
    endpoints = ("--endpoints", ",".join(node.endpoint for node in nodes))
    try:
        for node in nodes:
            node.start()
        alice = (*endpoints, *tls_flags(certs, "alice"), "--timeout", "20")
        assert await quorate("kv", "put", "k", "v", *alice) == (0, {"revision": 1})
        status, report = await quorate("status", *alice)
        assert (status, [node["keys"] for node in report["nodes"]]) == (0, [1, 1])
        # In the clear, or with the certificate of another authority, nobody gets in.
        refused = await quorate("kv", "get", "k", *endpoints, "--timeout", "1")
        assert (refused[0], refused[1]["error"]["code"]) == (1, "unavailable")
        certificates.create_authority(tmp_path / "other", "secret")
        certificates.issue_client(tmp_path / "other", "mallory")
        (tmp_path / "other" / "ca.crt").write_bytes((certs / "ca.crt").read_bytes())
        stranger = tls_flags(tmp_path / "other", "mallory")
        refused = await quorate("kv", "get", "k", *endpoints, *stranger, "--timeout", "1")
        assert (refused[0], refused[1]["error"]["code"]) == (1, "unavailable")
    finally:
        for node in nodes:
            node.kill()


def tls_flags(directory: Path, name: str) -> list[str]:
    found = []
    for flag, file in (("cert", f"{name}.crt"), ("key", f"{name}.key"), ("ca", "ca.crt")):
        found += [f"--tls-{flag}", str(directory / file)]
    return found
