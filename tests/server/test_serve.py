"""`quorate serve` as a process: its line, its signals, its refusals; local clusters clean up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quorate.client.endpoints import parse_endpoint
from quorate.errors import UnavailableError
from quorate.server.local_cluster import LocalCluster, LocalNode, free_ports
from quorate.server.one_node import OneNode

pytestmark = pytest.mark.processes


def serve(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quorate", "serve", "--data", str(tmp_path / "data")]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def test_one_line_when_it_serves_and_status_0_after_sigterm(tmp_path: Path) -> None:
    process = serve(
        tmp_path, "--id", "1", "--listen", "127.0.0.1:0", "--json", QUORATE_CLUSTER="named"
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["serving"] is True
        assert (said["node"], said["cluster"], said["pid"]) == (1, "named", process.pid)
        assert not said["listen"].endswith(":0")
        process.terminate()
    finally:
        status, out, err = finish(process)
    assert (status, out) == (0, "")
    assert "Traceback" not in err


def test_a_second_signal_kills(tmp_path: Path) -> None:
    # It looks for a cluster that is not there; stopping waits for nothing, so be quick.
    (port,) = free_ports(1)
    initial = f"1=127.0.0.1:{port},2=127.0.0.1:1"
    process = serve(tmp_path, "--id", "1", "--listen", f"127.0.0.1:{port}", "--initial", initial)
    try:
        assert process.stderr is not None
        while "listens on" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        while "once more kills" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
    finally:
        status, _, err = finish(process)
    assert status in (0, -signal.SIGINT)  # 0: it had stopped before the second signal came
    assert "Traceback" not in err


def test_a_signal_ends_the_wait_for_a_cluster_to_join(tmp_path: Path) -> None:
    own, nobody = free_ports(2)
    join = f"127.0.0.1:{nobody}"
    process = serve(tmp_path, "--id", "2", "--listen", f"127.0.0.1:{own}", "--join", join)
    try:
        assert process.stderr is not None
        while " starts, data in " not in process.stderr.readline():
            pass
        process.terminate()
    finally:
        status, out, err = finish(process)
    assert (status, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "said"),
    [
        (["--id", "1"], {"QUORATE_HEARTBEAT": "1"}, 2, "meant QUORATE_HEARTBEAT_MS?"),
        (["--id", "1", "--listen", "10.0.0.1:7400"], {}, 2, "tls_cert"),
        (["--id", "1", "--data", "/proc/1/x"], {}, 5, "/proc/1/x"),
        (["--id", "1", "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"], {}, 2, "ca: a"),
    ],
)
def test_a_node_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], status: int, said: str
) -> None:
    found, out, err = finish(serve(tmp_path, *arguments, **environment))
    lines = [line for line in err.splitlines() if line.startswith("quorate: ")]
    assert (found, out, len(lines)) == (status, "", 1), err
    assert said in lines[0]
    assert "Traceback" not in err


async def test_directory_port_and_number_belong_to_one_node(tmp_path: Path) -> None:
    async with LocalCluster(1, directory=tmp_path) as cluster:
        (node,) = cluster.nodes.values()
        data = str(node.data)
        taken = serve(tmp_path, "--id", "1", "--data", data, "--listen", "127.0.0.1:0")
        status, _, err = await asyncio.to_thread(finish, taken)
        assert (status, "is in use by process" in err) == (1, True)
        port = serve(tmp_path, "--id", "9", "--listen", node.endpoint)
        status, _, err = await asyncio.to_thread(finish, port)
        assert (status, "address already in use" in err) == (2, True)
        assert await node.serves()  # none of this has hurt it
        assert cluster.stop() == {1: 0}
        other = serve(tmp_path, "--id", "2", "--data", data, "--cluster", cluster.cluster)
        status, _, err = await asyncio.to_thread(finish, other)
        assert (status, "holds the data of node 1" in err) == (2, True)


async def test_three_nodes_survive_a_killed_leader_and_leave_nothing() -> None:
    cluster = LocalCluster(3)
    async with cluster:
        pids = [node.pid for node in cluster.nodes.values()]
        leader = await cluster.leader()
        leader.kill()
        assert not leader.running
        successor = await cluster.leader()
        assert successor is not leader
        leader.start()
        await leader.wait_serving()
        pids.append(leader.pid)
        endpoint = parse_endpoint(leader.endpoint)
        async with await OneNode.open(endpoint) as asked:
            assert (await asked.call("status"))["node"] == leader.number
        directory = cluster.directory
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not directory.exists()


async def test_a_node_that_dies_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    node = LocalNode(1, port, tmp_path, "c", ["--heartbeat-ms", "3"])
    node.start()
    with pytest.raises(UnavailableError, match="heartbeat_ms must be"):
        await node.wait_serving()
    node.kill()


async def test_a_block_that_raises_leaves_no_process() -> None:
    cluster = LocalCluster(1)
    with pytest.raises(RuntimeError, match="on purpose"):
        async with cluster:
            raise RuntimeError("on purpose")
    assert not any(node.running for node in cluster.nodes.values())
    assert not cluster.directory.exists()
