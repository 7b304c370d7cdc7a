"""PySyncObj as real processes: its node's protocol, and what is found of it; each command that asks
for it, and each that asks for what there is not."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jepsen_like.cli import main
from jepsen_like.errors import SetupError
from jepsen_like.processes import sockets
from jepsen_like.processes.nemesis.schedule import packages
from jepsen_like.processes.nodes import all_ended
from jepsen_like.processes.runner import Runner, Settings
from jepsen_like.systems.base import OutcomeError, Versioned
from jepsen_like.systems.pysyncobj import command, processes, wire
from jepsen_like.systems.pysyncobj.processes import (
    PySyncObjClient,
    PySyncObjSystem,
    PySyncObjWithReadsInTheLog,
)
from jepsen_like.workloads.registry import make

pytestmark = pytest.mark.shared

needs_pysyncobj = pytest.mark.skipif(
    importlib.util.find_spec("pysyncobj") is None,
    reason="PySyncObj is not installed: pip install 'quorate[bench]'",
)
real = [
    needs_pysyncobj,
    pytest.mark.processes,
    pytest.mark.skipif(bool(sockets.missing()), reason="needs /proc/net/tcp"),
]


def marked(*values: Any) -> Any:
    return pytest.param(*values, marks=real)


# --- the protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        wire.Get("k", local=True),
        wire.Put("k", b"\x00\xff\n"),
        wire.CompareAndSet("k", None, b""),
        wire.Add("k", -3),
        wire.Transact({"a": 1}, ["b"], {"c": b"\n"}),
        wire.Look(),
    ],
)
def test_every_request_is_one_line_and_comes_back_equal(request_: wire.Request) -> None:
    text = wire.line(request_)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert wire.read_request(text) == request_


class Stub:
    """A node that answers every request with *answers*, one each, then ends the connection.
    *hangs*: first it does nothing for a while."""

    def __init__(
        self, *answers: bytes, greeting: bytes = wire.GREETING, hangs: bool = False
    ) -> None:
        self._answers, self._greeting, self._hangs = answers, greeting, hangs

        self._conversations: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        await asyncio.gather(*self._conversations)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._conversations.add(asyncio.current_task())
        writer.write(self._greeting)
        for answer in self._answers if self._greeting else ():
            await reader.readline()
            await asyncio.sleep(0.4 if self._hangs else 0)
            writer.write(answer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def failing(address: str, *, read: bool = False) -> OutcomeError:
    client = PySyncObjClient(address, 0.3, local_reads=True)
    with pytest.raises(OutcomeError) as caught:
        await (client.get("k") if read else client.put("k", b"v"))
    await client.close()
    return caught.value


async def test_answers_are_typed() -> None:
    answer = wire.line(wire.success((b"v", 3)))
    async with Stub(answer) as address:
        client = PySyncObjClient(address, 1.0, local_reads=True)
        assert await client.get("k") == Versioned(b"v", 3)
        await client.close()


async def test_what_was_never_sent_surely_had_no_effect() -> None:
    async with Stub(greeting=b"") as address:
        assert (await failing(address)).definite
    assert (await failing(address)).definite  # nobody listens any more


async def test_what_was_sent_and_not_answered_is_unknown_unless_it_only_reads() -> None:
    async with Stub(b"") as address:
        assert not (await failing(address)).definite
        assert (await failing(address, read=True)).definite
    async with Stub(b'{"result":') as address:  # half an answer
        assert not (await failing(address)).definite
    async with Stub(b"", hangs=True) as address:
        assert not (await failing(address)).definite
        assert (await failing(address, read=True)).definite


async def test_the_reason_of_the_library_decides_whether_it_is_definite() -> None:
    for definite in (True, False):
        async with Stub(wire.line(wire.Answer(error="because", definite=definite))) as address:
            error = await failing(address)
            assert (str(error), error.definite) == ("because", definite)


# --- nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [marked(PySyncObjWithReadsInTheLog)])
async def test_every_operation_works_and_nothing_is_lost_to_a_kill(
    tmp_path: Path, chosen: type[PySyncObjSystem]
) -> None:
    with all_ended():
        system = chosen(tmp_path, count=3, timeout_s=5.0, random=Random(1))
        try:
            await system.start()
            client = system.client(0)
            assert await client.get("a") == Versioned(None, 0)
            await client.put("a", b"\x00\n")
            assert await client.get("a") == Versioned(b"\x00\n", 1)
            assert not await client.compare_and_set("a", b"other", b"1")
            assert await client.compare_and_set("a", b"\x00\n", b"1")
            assert await client.add("a", 4) == 5
            assert await client.transact({"a": 1}, [], {"b": b"x"}) == (False, {})
            done, found = await client.transact({"a": 3}, ["b", "c"], {"b": b"x"})
            assert done
            assert found == {"b": Versioned(b"x", 1), "c": Versioned(None, 0)}
            await client.close()
            leader = await system.leader()
            assert leader in system.nodes
            system.nodes[leader].kill()
            system.nodes[leader].start()
            await system.wait_serving(leader, 30.0)
            again = system.client(leader)
            assert await again.get("a") == Versioned(b"5", 3)
            await again.close()
            assert await system.audit() == []
        finally:
            system.close()
    assert not any(node.running for node in system.nodes.values())


@pytest.mark.parametrize("seconds", [marked(4.0)])
async def test_reads_of_a_nodes_own_copy_are_found_stale(tmp_path: Path, seconds: float) -> None:
    settings = Settings(seconds=seconds, workers=8, rate=150.0, interval_s=1.0)
    random = Random(5)
    with all_ended():
        system = PySyncObjSystem(tmp_path, count=3, timeout_s=2.0, random=random)
        chosen = packages("kill", system)
        outcome = await Runner(system, make("register"), chosen, random, settings).run()
    assert outcome.verdict.valid is False
    judged = outcome.parts[0]
    assert judged.checker == "linearizable register"
    assert judged.problems
    assert judged.picture
    assert outcome.faults["kill"]


async def test_replicas_that_differ_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "AGREE_TIMEOUT_S", 0.0)
    system = PySyncObjSystem(tmp_path, count=2, timeout_s=1.0, random=Random(1))
    found = {1: wire.Status(True, 2, 9, "aa", 1), 2: wire.Status(False, 2, 9, "bb", 1)}

    async def look() -> dict[int, wire.Status | str]:
        return found

    monkeypatch.setattr(system, "_look", look)
    (problem,) = await system.audit()
    assert "node 1: (9, 1, 'aa'); node 2: (9, 1, 'bb')" in problem
    found[2] = found[1]
    assert await system.audit() == []


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_without_the_library_no_node_is_started(without_the_library: Path) -> None:
    system = PySyncObjSystem(without_the_library, count=3, timeout_s=1.0, random=Random(1))
    with pytest.raises(SetupError, match=r"pip install 'quorate\[bench\]'"):
        await system.start()


@pytest.mark.parametrize("words", ["run --workload set", "run", "simulate"])
def test_without_the_library_the_refusal_says_what_to_install(
    words: str, without_the_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--system", "pysyncobj"]) == 2
    assert "pip install 'quorate[bench]'" in capsys.readouterr().err
    assert list(without_the_library.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("simulate --system pysyncobj --shrink --seed 1", "--shrink: only of --system quorate"),
        ("simulate --system etcd", "run --system etcd --workload NAME"),
        ("simulate --system zookeeper", "there are quorate, pysyncobj"),
        ("run --system etcd", "--workload is missing"),
        ("run --system zookeeper --workload set", "there are quorate, etcd, pysyncobj"),
        ("run --unsafe-no-fsync --workload set", "simulate --unsafe-no-fsync"),
        ("run --unsafe-no-fsync --system pysyncobj", "simulate --unsafe-no-fsync"),
        ("run --system pysyncobj --workload set --nemesis clock", "nemesis clock"),
    ],
)
def test_what_means_nothing_is_refused_with_what_would(
    words: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # a run that begins leaves its results in the present directory
    assert main(words.split()) == 2
    assert told in capsys.readouterr().err


@needs_pysyncobj
def test_simulate_runs_it_on_virtual_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--system", "pysyncobj", "--seed", "36", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert "applied-entries-truncated" in {each["name"] for each in result["violations"]}
