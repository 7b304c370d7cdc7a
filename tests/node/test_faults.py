"""What must not stop a node, what must, and what either says."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Self

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quorate
from quorate import Context, Machine, Node, NodeConfig
from quorate.base.frames import (
    WIRE_VERSION,
    AdminRequest,
    FrameSplitter,
    Hello,
    Query,
    Refused,
    Run,
    Submit,
    Welcome,
    encode_frame,
)
from quorate.base.limits import FRAME_BYTES_MAX
from quorate.consensus.messages import AppendRequest, Entry, VoteRequest
from quorate.errors import (
    CommandError,
    ConfigError,
    DirectoryInUseError,
    InvalidArgumentError,
    LogCorruptionError,
    MachineError,
    QuorateError,
    ReadOnlyError,
    StorageError,
    UnknownMachineError,
)
from quorate.replication.clock import Clock, system_clock
from quorate.replication.tables import Tables
from quorate.server.connection import GREETING_BYTES_MAX
from quorate.server.peers import decode_peer_frame
from quorate.server.platform import Platform


class Wire:
    """A raw connection to a node."""

    def __init__(self, address: str) -> None:
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.splitter = FrameSplitter()
        self.frames: list[bytes] = []

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.writer.close()

    def send(self, *frames: msgspec.Struct) -> None:
        for frame in frames:
            self.writer.write(encode_frame(frame))

    async def receive(self, kind: Any) -> Any:
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(65536), 5)
            if not data:
                raise EOFError
            self.frames += self.splitter.feed(data)
        return msgspec.msgpack.decode(self.frames.pop(0), type=kind)

    async def closed(self) -> bool:
        try:
            while await asyncio.wait_for(self.reader.read(65536), 5):
                pass
        except ConnectionError:
            pass
        return True


async def works(cluster: Any) -> None:
    db = cluster.connect()
    await db.kv.put("alive", "yes")
    assert (await db.kv.get("alive")).value == b"yes"


# --- on the port ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="another protocol"),
        pytest.param(b"\x00\x00\x00\x00", id="length zero"),
        pytest.param(b"\xff" * 64, id="length beyond any"),
        pytest.param((GREETING_BYTES_MAX + 1).to_bytes(4, "big"), id="longer than a hello"),
        pytest.param(b"\x00\x00\x00\x05\xc1\xc1\xc1\xc1\xc1", id="a frame that is no msgpack"),
        pytest.param(encode_frame(Query(1, ())), id="no hello first"),
        pytest.param(b"\x00\x00\x00\x03\x93\x63\x01", id="an unknown tag"),
    ],
)
async def test_garbage_closes_its_connection_and_nothing_else(cluster: Any, garbage: bytes) -> None:
    await cluster.found(1)
    async with Wire(cluster.addresses[1]) as wire:
        wire.writer.write(garbage)
        assert await wire.closed()
    await works(cluster)


async def test_half_a_frame_and_a_reset_leave_no_trace(cluster: Any, wait_until: Any) -> None:
    await cluster.found(1)
    hello = encode_frame(Hello(WIRE_VERSION, "client"))
    for cut in (1, 4, len(hello) - 1):
        async with Wire(cluster.addresses[1]) as wire:
            wire.writer.write(hello[:cut])
            await asyncio.sleep(0.01)
            wire.writer.transport.abort()
    await works(cluster)
    await wait_until(lambda: len(cluster.nodes[1].parts.listener) <= 1)


async def test_a_silent_stranger_is_sent_away(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.server.listener.HELLO_TIMEOUT_S", 0.05)
    await cluster.found(1)
    async with Wire(cluster.addresses[1]) as wire:
        assert await wire.closed()


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        pytest.param(Hello(WIRE_VERSION + 1, "client"), "newer", id="newer wire version"),
        pytest.param(Hello(WIRE_VERSION, "client", "other-1"), "check the address", id="cluster"),
        pytest.param(Hello(WIRE_VERSION, "peer", ""), "check the address", id="peer, no cluster"),
        pytest.param(Hello(WIRE_VERSION, "spy"), "check the address", id="unknown role"),
        pytest.param(Hello(0, "client"), "does not exist", id="version zero"),
    ],
)
async def test_who_does_not_belong_is_refused_with_a_sentence(
    cluster: Any, hello: Hello, words: str
) -> None:
    await cluster.found(1)
    async with Wire(cluster.addresses[1]) as wire:
        wire.send(hello)
        refused = await wire.receive(Welcome | Refused)
        assert isinstance(refused, Refused)
        assert words in refused.message
        assert await wire.closed()


async def test_two_nodes_of_one_number_are_told_apart(cluster: Any) -> None:
    await cluster.found(1)
    identity = cluster.nodes[1].parts.gate.identity
    async with Wire(cluster.addresses[1]) as wire:
        wire.send(Hello(WIRE_VERSION, "peer", identity.cluster, 1, "somebody-else"))
        assert "the same number" in (await wire.receive(Refused)).message
    async with Wire(cluster.addresses[1]) as wire:
        wire.send(Hello(WIRE_VERSION, "peer", identity.cluster, 7, "x"))
        assert "not a member" in (await wire.receive(Refused)).message


async def test_wrong_requests_get_typed_answers(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    await db.kv.put("k", "v")

    def run(machine: str, item: object) -> tuple[Run, ...]:
        return (Run(machine, msgspec.Raw(msgspec.msgpack.encode(item))),)

    async with Wire(cluster.addresses[1]) as wire:
        wire.send(Hello(WIRE_VERSION, "client"))
        await wire.receive(Welcome)
        wire.send(
            Submit(0, 1, 0, run("nobody", [1])),
            Submit(0, 2, 0, run("kv", 17)),
            Query(3, run("nobody", [1])),
            AdminRequest(4, "no.such"),
            AdminRequest(5, "members.promote", {"node": "x"}),
        )
        answers = {}
        for _ in range(5):
            frame = await wire.receive(list)
            answers[frame[1]] = frame[2]
        assert answers == {
            1: "unknown-machine",
            2: "bad-command",
            3: "unknown-machine",
            4: "invalid-argument",
            5: "invalid-argument",
        }
        wire.send(Hello(WIRE_VERSION, "client"))
        assert await wire.closed()
    await works(cluster)


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=200))
def test_no_bytes_get_past_the_gateway_of_members(body: bytes) -> None:
    with pytest.raises(QuorateError):
        decode_peer_frame(body, sender=2, target=1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_message_is_refused_or_whole(seed: int) -> None:
    random = Random(seed)
    message = AppendRequest(3, 2, 1, 5, 2, (Entry(6, 3, 1, b"payload"),), 5, 9)
    body = bytearray(msgspec.msgpack.encode(message))
    body[random.randrange(len(body))] ^= 1 << random.randrange(8)
    with contextlib.suppress(QuorateError):
        decode_peer_frame(bytes(body), sender=2, target=1)


def test_a_message_in_another_name_is_refused() -> None:
    body = msgspec.msgpack.encode(VoteRequest(3, 2, 1, 5, 2))
    with pytest.raises(QuorateError, match="in the name of node 2"):
        decode_peer_frame(body, sender=3, target=1)


async def test_an_oversized_frame_is_refused_before_it_is_read(cluster: Any) -> None:
    await cluster.found(1)
    async with Wire(cluster.addresses[1]) as wire:
        wire.send(Hello(WIRE_VERSION, "client"))
        await wire.receive(Welcome)
        wire.writer.write((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        assert await wire.closed()


# --- arguments and machines -----------------------------------------------------------------------


class Raise(msgspec.Struct, frozen=True, array_like=True, tag=1):
    text: str


class Fragile(Machine):
    name: ClassVar[str] = "fragile"
    command_type = Raise

    def attach(self, tables: Tables) -> None:
        self._table = tables.table("fragile.rows", Raise)

    def apply(self, command: Any, context: Context) -> Any:
        self._table.put(b"k", command)
        if command.text == "refuse":
            raise CommandError("no")
        if command.text == "die":
            raise ZeroDivisionError(id(command))
        return command


async def test_a_machine_that_raises_is_a_result_on_every_replica(cluster: Any) -> None:
    cluster.machines = lambda: (Fragile(),)
    await cluster.found(3)
    fragile = cluster.connect().machine("fragile", Raise)
    with pytest.raises(CommandError, match="no"):
        await fragile.execute(Raise("refuse"))
    with pytest.raises(MachineError, match="ZeroDivisionError"):
        await fragile.execute(Raise("die"))
    assert await fragile.execute(Raise("fine")) == Raise("fine")
    await cluster.converged()


async def test_an_unknown_machine_is_an_error_at_once(cluster: Any) -> None:
    await cluster.found(1)
    with pytest.raises(UnknownMachineError):
        await cluster.connect().machine("nobody").execute(Raise("x"))


# --- starting -------------------------------------------------------------------------------------


async def test_a_directory_in_use_is_refused(cluster: Any) -> None:
    await cluster.found(1)
    with pytest.raises(DirectoryInUseError, match="this process"):
        await Node(cluster.configs[1]).start()
    await works(cluster)


async def test_an_address_in_use_is_refused(cluster: Any, tmp_path: Path) -> None:
    await cluster.found(1)
    config = NodeConfig(node_id=2, data=str(tmp_path / "2"), listen=cluster.addresses[1])
    with pytest.raises(ConfigError, match="cannot be bound"):
        await Node(config).start()


async def test_data_of_another_number_or_cluster_is_refused(tmp_path: Path) -> None:
    async with Node(NodeConfig(node_id=1, data=str(tmp_path), listen="")):
        pass
    with pytest.raises(ConfigError, match="data of node 1, not of node 2"):
        await Node(NodeConfig(node_id=2, data=str(tmp_path), listen="")).start()
    with pytest.raises(ConfigError, match="but the configuration says 'b'"):
        await Node(NodeConfig(node_id=1, data=str(tmp_path), cluster="b", listen="")).start()


async def test_a_part_of_a_cluster_is_not_opened_as_a_whole(cluster: Any, tmp_path: Path) -> None:
    await cluster.found(3)
    await cluster.stop(3)
    with pytest.raises(ConfigError, match="in a cluster with voters"):
        async with quorate.open(tmp_path / "3"):
            pass


async def test_a_damaged_log_is_refused_and_named(cluster: Any, tmp_path: Path) -> None:
    await cluster.found(1)
    db = cluster.connect()
    for number in range(20):
        await db.kv.put(f"k{number}", "v" * 600)
    await cluster.crash(1)
    (segment,) = [each for each in (tmp_path / "1" / "log").iterdir() if "spare" not in each.name][
        :1
    ]
    with segment.open("r+b") as file:
        file.seek(4096 + 700)
        byte = file.read(1)
        file.seek(4096 + 700)
        file.write(bytes((byte[0] ^ 1,)))
    with pytest.raises(LogCorruptionError, match=segment.name):
        await cluster.start(1)


# --- the disk -------------------------------------------------------------------------------------


async def test_a_failed_fsync_stops_the_node_and_nothing_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(NodeConfig(node_id=1, data=str(tmp_path), listen=""))
    await node.start()
    await node.db.kv.put("k", "v")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "it broke")

    monkeypatch.setattr("quorate.storage.files._fdatasync", fail)
    with pytest.raises(QuorateError) as caught:
        await node.db.kv.put("k", "w", timeout=3)
    assert not caught.value.definite
    monkeypatch.undo()
    with pytest.raises(StorageError):
        await asyncio.wait_for(node.wait_stopped(), 5)
    async with quorate.open(tmp_path) as db:
        assert (await db.kv.get("k")).value in (b"v", b"w")


async def test_little_space_makes_a_node_read_only_and_deletes_still_work(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.found(1)
    db = cluster.connect()
    await db.kv.put("k", "v")
    node = cluster.nodes[1]
    node.parts.disk_guard.reserve_mib = 2**30
    node.parts.disk_guard.look()
    assert "reserve" in node.status()["read_only"]
    with pytest.raises(ReadOnlyError, match="deletes still work"):
        await db.kv.put("k", "w", timeout=2)
    await db.kv.delete("k")
    assert await db.kv.get("k") is None
    node.parts.disk_guard.reserve_mib = 1
    node.parts.disk_guard.look()
    await db.kv.put("k", "w")


async def test_a_full_disk_is_waited_out_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(NodeConfig(node_id=1, data=str(tmp_path), listen=""))
    await node.start()
    await node.db.kv.put("k", "v")
    real = os.pwrite
    full = True

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    waiting = asyncio.ensure_future(node.db.kv.put("k", "w", timeout=10))
    await asyncio.sleep(0.4)
    assert not waiting.done()
    assert "full" in node.status()["read_only"]
    full = False
    await waiting
    assert (await node.db.kv.get("k")).value == b"w"
    await node.stop()


# --- clocks ---------------------------------------------------------------------------------------


async def test_a_wall_clock_that_jumps_moves_no_cluster_time(tmp_path: Path) -> None:
    jumps = iter([10**15, 5, -(10**12), 77, 10**9] * 10_000)
    clock = Clock(system_clock().monotonic_s, lambda: next(jumps))
    config = NodeConfig(node_id=1, data=str(tmp_path), listen="")
    node = Node(config, platform=Platform(clock=clock))
    async with node:
        times = []
        for number in range(20):
            await node.db.kv.put(f"k{number}", "v")
            times.append(node.machines.time_ms)
    assert times == sorted(times)
    assert times[-1] < 60_000


async def test_bad_arguments_are_refused_before_anything_is_sent(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    with pytest.raises(InvalidArgumentError):
        await db.kv.put("", "v")
    with pytest.raises(InvalidArgumentError):
        await db.kv.put("k" * 5000, "v")
    with pytest.raises(InvalidArgumentError):
        await db.kv.put("k", b"v" * (2**20 + 1))
