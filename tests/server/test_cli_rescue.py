"""`quorate crdt rescue`: what it prints, what it refuses, and what it leaves as it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from quorate import Node, NodeConfig
from quorate.base.crdt_frames import CrdtWrite
from quorate.base.crdt_operations import Add, Increment, KindTag, Operation, Update
from quorate.base.types import NodeId
from quorate.crdt.context import CausalContext
from quorate.crdt.dots import make_actor
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.records import NEW, Requests
from quorate.replication.converging.view import OpenBatch
from quorate.server.cli import main
from quorate.storage.directory import DataDirectory, Identity
from quorate.storage.lmdb_elements import LmdbElementStore


class Said(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one node, on a loop of its own thread."""
    ready, end = threading.Event(), threading.Event()
    config = NodeConfig(
        node_id=1, data=str(tmp_path_factory.mktemp("node")), listen="127.0.0.1:0", cluster="shop"
    )
    found: list[Node] = []

    async def serve() -> None:
        async with Node(config) as made:
            found.append(made)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    end.set()
    thread.join()


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str, *arguments: str) -> Said:
        words = ["crdt", *line.split(), *arguments, "--endpoints", f"127.0.0.1:{node.port}"]
        status = main(words)
        return Said(status, *capsys.readouterr())

    return call


def write(store: LmdbElementStore, epoch: int, *operations: tuple[str, KindTag, Operation]) -> None:
    """What node 9 did in one life."""
    own = msgspec.structs.replace(NEW, actor=make_actor(9, epoch))
    commit = Commit(own, {}, {}, OpenBatch(store, CausalContext(), {}), 10**12)
    frame = CrdtWrite(b"c" * 16, 1, 0, 3, tuple(Update(*each) for each in operations))
    commit.carry_out(frame, Requests(0, 0, {}))
    store.write(commit.finish()[1])


@pytest.fixture
def stopped(node: Node, tmp_path: Path) -> Path:
    """The data of node 9, which was a member once."""
    path = tmp_path / "nine"
    cluster = node.parts.gate.identity.cluster
    with DataDirectory(path) as directory:
        directory.write_identity(
            Identity(cluster=cluster, node=NodeId(9), incarnation="ab" * 16, created_ms=1)
        )
        store = LmdbElementStore(directory.elements_path)
        added = [("tags", KindTag.OR_SET, Add(word)) for word in ("a", "b")]
        write(store, 7, ("sold", KindTag.PN_COUNTER, Increment(3)), *added)
        store.close()
    return path


def contents(path: Path) -> dict[str, str]:
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*"))
        if each.is_file() and each.name not in {"LOCK", "lock.mdb"}
    }


def test_once_however_often(run: Run, stopped: Path) -> None:
    before = contents(stopped)
    planned = run("rescue", str(stopped), "--dry-run")
    assert planned == Said(
        0,
        "life 7 of node 9: records 1 to 1 would be rescued\n"
        "sold\tPNCounter\t3 up\n"
        "tags\tORSet\t2 put in\n",
        "",
    )
    assert run("counter get sold").out == "0\n"
    told: dict[str, Any] = json.loads(run("rescue", str(stopped), "--json").out)
    assert told["lives"] == [{"member": 9, "epoch": 7, "since": 0, "upto": 1}]
    assert told["changes"][0] == {
        "name": "sold", "kind": "PNCounter", "added": 0, "removed": 0, "raised": 3, "lowered": 0,
    }  # fmt: skip
    assert run("counter get sold").out == "3\n"
    assert run("set count tags").out == "2\n"
    again = run("rescue", str(stopped))
    assert again == Said(0, "nothing is here that the members do not have\n", "")
    assert run("counter get sold").out == "3\n"
    assert contents(stopped) == before
    aside = run("rescue", str(stopped), "--discard")
    assert aside.status == 0
    assert str(stopped / "aside-1") in aside.out
    assert not (stopped / "crdt").exists()
    assert run("rescue", str(stopped / "aside-1")) == again


def test_what_is_refused(run: Run, stopped: Path, tmp_path: Path, node: Node) -> None:
    before = contents(stopped)
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(status: int, why: str, *arguments: str) -> None:
        said = run("rescue", *arguments)
        assert (said.status, said.out) == (status, "")
        assert why in said.err
        assert said.err.count("\n") == 1

    refused(2, "is no directory", str(tmp_path / "nowhere"))
    refused(2, "holds no CRDT data", str(empty))
    refused(2, "exclude each other", str(stopped), "--dry-run", "--discard")
    refused(1, "is in use", node.config.data)
    refused(1, "is in use", node.config.data, "--discard")
    with DataDirectory(stopped) as directory:
        identity = directory.owner()
        assert identity is not None
        refused(1, "is in use by this process", str(stopped))
        directory.write_identity(msgspec.structs.replace(identity, cluster="other-1"))
    refused(2, "is of cluster 'other-1'", str(stopped))
    with DataDirectory(stopped) as directory:
        directory.write_identity(identity)
    assert contents(stopped) == before
    data = stopped / "crdt" / "elements" / "data.mdb"
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 3 :: 997] = bytes(len(damaged[len(damaged) // 3 :: 997]))
    data.write_bytes(damaged)
    said = run("rescue", str(stopped))
    assert said.status == 5
    (stopped / "identity").unlink()
    refused(2, "nobody knows whose data it is", str(stopped))
