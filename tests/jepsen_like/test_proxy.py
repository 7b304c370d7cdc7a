from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from jepsen_like.processes import sockets
from jepsen_like.processes.fault_file import FaultFile
from jepsen_like.processes.proxy import CLIENTS, RESET_IDLE_S, Condition, Network
from jepsen_like.processes.shapes import SHAPES, bridge, halves, isolated, ring

NODE = 7


class Echo:
    """A server behind a proxy; *network* believes that node 3 dials."""

    def __init__(self) -> None:
        self.network = Network(lambda _port, _proxy: 3, Random(1))
        self.address = ""
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.address = (await self.network.add(NODE, f"127.0.0.1:{port}")).address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.address.split(":")
        return await asyncio.open_connection(host, int(port))


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    made = Echo()
    await made.start()
    yield made
    made.network.close()
    if made.server is not None:
        made.server.close()
    await asyncio.sleep(0.01)


async def silent(reader: asyncio.StreamReader, seconds: float = 0.1) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_bytes_pass_in_both_directions(echo: Echo) -> None:
    reader, writer = await echo.dial()
    sent = bytes(range(256)) * 4000
    writer.write(sent)
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 20) == sent
    writer.close()


async def test_the_end_of_a_connection_passes(echo: Echo) -> None:
    reader, writer = await echo.dial()
    writer.write(b"x")
    await reader.readexactly(1)
    writer.close()
    await asyncio.wait_for(reader.read(), 20)


@pytest.mark.parametrize("link", [(3, NODE), (NODE, 3)])
async def test_what_was_sent_into_a_block_arrives_when_it_is_lifted(
    echo: Echo, link: tuple[int, int]
) -> None:
    reader, writer = await echo.dial()
    writer.write(b"a")
    assert await asyncio.wait_for(reader.readexactly(1), 20) == b"a"
    echo.network.set("cut", [link], Condition(blocked=True))
    writer.write(b"b")
    assert await silent(reader)
    echo.network.heal("cut")
    assert await asyncio.wait_for(reader.readexactly(1), 20) == b"b"
    writer.close()


async def test_a_new_connection_hangs_while_blocked(echo: Echo) -> None:
    echo.network.set("cut", [(NODE, 3)], Condition(blocked=True))
    reader, writer = await echo.dial()
    writer.write(b"a")
    assert await silent(reader)
    echo.network.heal()
    assert await asyncio.wait_for(reader.readexactly(1), 20) == b"a"
    writer.close()


async def test_other_links_are_not_touched(echo: Echo) -> None:
    echo.network.set("cut", [(1, NODE), (NODE, CLIENTS)], Condition(blocked=True))
    reader, writer = await echo.dial()
    writer.write(b"a")
    assert await asyncio.wait_for(reader.readexactly(1), 20) == b"a"
    writer.close()


async def test_delayed_bytes_come_late_and_in_order(echo: Echo) -> None:
    echo.network.set("slow", [(3, NODE)], Condition(delay_s=0.05, jitter_s=0.05, loss=0.2))
    reader, writer = await echo.dial()
    began = asyncio.get_running_loop().time()
    for number in range(20):
        writer.write(bytes((number,)))
        await asyncio.sleep(0.002)
    assert await asyncio.wait_for(reader.readexactly(20), 20) == bytes(range(20))
    assert asyncio.get_running_loop().time() - began >= 0.05
    writer.close()


async def test_a_thin_link_takes_its_time(echo: Echo) -> None:
    echo.network.set("thin", [(3, NODE)], Condition(bytes_per_s=100_000.0))
    reader, writer = await echo.dial()
    began = asyncio.get_running_loop().time()
    writer.write(bytes(20_000))
    await asyncio.wait_for(reader.readexactly(20_000), 20)
    assert asyncio.get_running_loop().time() - began >= 0.15
    writer.close()


async def test_a_reset_cuts_in_the_middle_of_what_flows_next(echo: Echo) -> None:
    reader, writer = await echo.dial()
    writer.write(b"a")
    await asyncio.wait_for(reader.readexactly(1), 20)
    assert echo.network.reset([(NODE, 3)]) == 1
    writer.write(bytes(1000))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1000), 20)
    writer.close()


async def test_a_reset_of_an_idle_connection_breaks_it_too(echo: Echo) -> None:
    reader, writer = await echo.dial()
    writer.write(b"a")
    await asyncio.wait_for(reader.readexactly(1), 20)
    assert echo.network.reset([(3, NODE)]) == 1
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), RESET_IDLE_S + 20)
    writer.close()


async def test_the_worst_of_several_faults_holds(echo: Echo) -> None:
    network = echo.network
    network.set("a", [(1, 2)], Condition(delay_s=0.1, bytes_per_s=10.0))
    network.set("b", [(1, 2), (2, 1)], Condition(delay_s=0.2, bytes_per_s=5.0))
    assert network.condition(1, 2) == Condition(delay_s=0.2, bytes_per_s=5.0)
    network.heal("b")
    assert network.condition(1, 2).delay_s == 0.1
    assert network.condition(2, 1) == Condition()


@pytest.mark.skipif(bool(sockets.missing()), reason="needs /proc/net/tcp")
async def test_the_kernel_tells_who_dialled(echo: Echo) -> None:
    _reader, writer = await echo.dial()
    local = writer.get_extra_info("sockname")[1]
    remote = writer.get_extra_info("peername")[1]
    assert sockets.owner(local, remote, [1, os.getpid()]) == os.getpid()
    assert sockets.owner(local, remote, []) == 0
    writer.close()


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "count"), [*itertools.product(SHAPES, (2, 3, 4, 5, 7))])
def test_shapes_name_links_between_different_nodes_once(shape: str, count: int) -> None:
    links = SHAPES[shape](list(range(1, count + 1)))
    assert links == sorted(set(links))
    assert all(a != b and 1 <= a <= count and 1 <= b <= count for a, b in links)


def hears(node: int, count: int, links: list[tuple[int, int]]) -> frozenset[int]:
    return frozenset(n for n in range(1, count + 1) if n == node or (n, node) not in links)


@pytest.mark.parametrize("count", [3, 5, 7])
def test_in_a_ring_each_hears_another_majority(count: int) -> None:
    links = ring(list(range(1, count + 1)))
    heard = [hears(node, count, links) for node in range(1, count + 1)]
    assert all(len(each) == count // 2 + 1 for each in heard)
    assert len(set(heard)) == count


def test_shapes_cut_what_they_say() -> None:
    assert isolated([2, 1, 3]) == [(1, 2), (2, 1), (2, 3), (3, 2)]
    assert bridge([2, 1, 3]) == [(1, 3), (3, 1)]
    assert halves([1, 2, 3, 4, 5])[0] == (1, 3)
    assert (1, 2) not in halves([1, 2, 3, 4, 5])


# --- clocks and disks -----------------------------------------------------------------------------


def test_a_bent_clock_never_goes_back(tmp_path: Path) -> None:
    now = 1000.0
    written = FaultFile(tmp_path / "faults", lambda: now)
    read = FaultFile(tmp_path / "faults", lambda: now)
    seen = [read.clock().monotonic_s(now)]
    for rate, jump in ((5.0, 0.0), (0.1, 30.0), (1.0, -5.0), (0.5, 0.0)):
        written.set_rate(rate)
        written.jump(jump)
        seen.append(read.clock().monotonic_s(now))
        now += 1.0
        seen.append(read.clock().monotonic_s(now))
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] == pytest.approx(5.0 + 30.0 + 0.1 + 1.0 + 0.5)
    written.set_wall_offset(-60.0)
    assert read.clock().wall_offset_s == -60.0
    written.straighten()
    assert read.clock().rate == 1.0
    assert read.clock().wall_offset_s == 0.0
    written.close()
    read.close()


def test_disk_faults_and_what_they_hit_are_shared(tmp_path: Path) -> None:
    written, read = FaultFile(tmp_path / "faults"), FaultFile(tmp_path / "faults")
    written.set_disk(5)
    assert read.disk() == 5
    read.hit("stall")
    read.hit("stall")
    assert written.hits("stall") == 2
    assert written.hits("full") == 0
    written.close()
    read.close()
