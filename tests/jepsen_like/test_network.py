from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from jepsen_like.simulation.hosts import Host, HostClock
from jepsen_like.simulation.links import LinkSettings
from jepsen_like.simulation.loop import VirtualLoop
from jepsen_like.simulation.network import WINDOW_BYTES, Network
from quorate.base.frames import FrameSplitter, Hello, encode_frame


class Ear(asyncio.Protocol):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, bytes]] = []
        self.lost: list[Exception | None] = []
        self.transport: Any = None
        self.paused = 0
        self.resumed = 0

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.heard)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard.append((asyncio.get_running_loop().time(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1


class Wire:
    """Hosts a and b; b listens."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.settings = LinkSettings(heal_reset_chance=0.0)
        self.network = Network(self.loop, Random(1), self.settings)
        self.a, self.b = (
            Host(name, number, f"127.0.0.{number}", HostClock(self.loop.true_time))
            for number, name in enumerate("ab", 1)
        )
        self.ears: list[Ear] = []
        for host in (self.a, self.b):
            self.network.add(host)
            host.begin()

    def ear(self) -> Ear:
        self.ears.append(Ear())
        return self.ears[-1]

    async def listen(self) -> None:
        assert self.b.process is not None
        opening = self.loop.create_server(self.ear, "127.0.0.2", 7)
        await self.loop.spawn(self.b.process, opening)

    async def dial(self) -> tuple[Ear, Ear]:
        """A connection from a to b: both ends."""
        assert self.a.process is not None
        opening = self.loop.create_connection(Ear, "127.0.0.2", 7)
        _, near = await self.loop.spawn(self.a.process, opening)
        await asyncio.sleep(0.01)
        return near, self.ears[-1]

    def run(self, story: Callable[[], Any]) -> None:
        self.loop.run_until_complete(story())
        assert self.loop.problems == []


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.loop.finish(host.process for host in (made.a, made.b) if host.process)


def test_bytes_arrive_in_order_and_later(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        near, far = await wire.dial()
        assert near.transport.get_extra_info("peername") == ("127.0.0.2", 7)
        for number in range(100):
            near.transport.write(b"%02d" % number)
            await asyncio.sleep(0.000_1)
        far.transport.write(b"back")
        await asyncio.sleep(1)
        assert far.data == b"".join(b"%02d" % number for number in range(100))
        assert near.data == b"back"
        near.transport.close()
        await asyncio.sleep(1)
        assert (near.lost, far.lost) == ([None], [None])
        assert not any(link.pipes for link in wire.network.links.values()), "leaked"

    wire.run(story)


def test_chunks_are_split_anywhere_and_stay_whole_together(wire: Wire) -> None:
    async def story() -> None:
        wire.settings.chunk_chance = 0.8
        await wire.listen()
        near, far = await wire.dial()
        near.transport.write(bytes(range(256)))
        near.transport.close()
        await asyncio.sleep(1)
        assert far.data == bytes(range(256))
        assert len(far.heard) > 1
        assert far.lost == [None]

    wire.run(story)


def test_nobody_listens_or_the_link_refuses(wire: Wire) -> None:
    async def story() -> None:
        with pytest.raises(ConnectionRefusedError):
            await wire.dial()
        await wire.listen()
        wire.settings.refuse = True
        with pytest.raises(ConnectionRefusedError):
            await wire.dial()

    wire.run(story)


def test_a_connection_over_a_cut_stands_once_healed_or_times_out(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        wire.network.cut("b", "a")
        assert wire.a.process is not None
        waiting = wire.loop.spawn(wire.a.process, wire.dial())
        await asyncio.sleep(0.6)
        assert not waiting.done()
        wire.network.heal("b", "a")
        near, far = await waiting
        near.transport.write(b"x")
        await asyncio.sleep(0.1)
        assert far.data == b"x"
        wire.network.cut("a", "b")
        with pytest.raises(TimeoutError):
            await wire.dial()

    wire.run(story)


def test_one_way_only(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        near, far = await wire.dial()
        wire.network.cut("a", "b")
        near.transport.write(b"there")
        far.transport.write(b"back")
        await asyncio.sleep(5)
        assert (near.data, far.data) == (b"back", b"")
        wire.network.heal("a", "b")
        await asyncio.sleep(1)
        assert far.data == b"there"

    wire.run(story)


def test_an_old_connection_speaks_after_a_new_one_stands(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        old, old_far = await wire.dial()
        wire.network.cut("a", "b")
        old.transport.write(b"old")
        old.transport.close()
        await asyncio.sleep(1)
        assert old.lost == [None]
        wire.network.link("a", "b").cut = False  # a route that only new packets take
        new, new_far = await wire.dial()
        new.transport.write(b"new")
        await asyncio.sleep(1)
        assert (new_far.data, old_far.data) == (b"new", b"")
        for pipe in list(wire.network.link("a", "b").pipes):
            pipe.wake()
        await asyncio.sleep(1)
        assert old_far.data == b"old"
        assert old_far.lost == [None]

    wire.run(story)


def test_a_reset_in_the_middle_of_a_frame_reaches_both_ends(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        near, far = await wire.dial()
        wire.settings.reset_chance = 1.0
        near.transport.write(bytes(1000))
        await asyncio.sleep(1)
        assert len(far.data) < 1000
        assert [type(error) for error in near.lost + far.lost] == [ConnectionResetError] * 2

    wire.run(story)


def test_resetting_a_link_breaks_all_its_connections(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        first, second = await wire.dial(), await wire.dial()
        assert wire.network.reset("a", "b") == 2
        await asyncio.sleep(1)
        assert all(end.lost for pair in (first, second) for end in pair)

    wire.run(story)


def test_who_does_not_read_makes_the_writer_wait(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        near, far = await wire.dial()
        far.transport.pause_reading()
        for _ in range(6):
            near.transport.write(bytes(WINDOW_BYTES // 2))
        assert near.paused == 1
        assert near.transport.get_write_buffer_size() > 0
        await asyncio.sleep(1)
        assert far.data == b""
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert near.resumed == 1
        assert len(far.data) == 3 * WINDOW_BYTES

    wire.run(story)


def test_a_killed_process_closes_its_connections_a_dead_machine_does_not(wire: Wire) -> None:
    async def story() -> None:
        await wire.listen()
        near, _ = await wire.dial()
        process = wire.b.process
        assert process is not None
        wire.network.power_lost(wire.b)
        wire.loop.kill(process)
        wire.network.process_died(process)
        near.transport.write(b"hello?")
        await asyncio.sleep(10)
        assert near.lost == []
        wire.network.power_back(wire.b)  # its kernel knows nothing of the connection
        await asyncio.sleep(1)
        assert [type(error) for error in near.lost] == [ConnectionResetError]
        wire.b.begin()
        await wire.listen()
        near, _ = await wire.dial()
        process = wire.b.process
        assert process is not None
        wire.loop.kill(process)
        wire.network.process_died(process)
        await asyncio.sleep(1)
        assert len(near.lost) == 1

    wire.run(story)


def test_frames_of_members_come_again_swap_and_vanish(wire: Wire) -> None:
    hello = Hello(1, "peer", "c", 1, "i")

    async def story() -> None:
        wire.settings.repeat_chance = wire.settings.swap_chance = 0.2
        wire.settings.lose_chance = 0.2
        await wire.listen()
        for connection in range(2):
            near, far = await wire.dial()
            near.transport.write(encode_frame(hello))
            for number in range(100):
                body = b"%d.%03d" % (connection, number)
                near.transport.write(len(body).to_bytes(4, "big") + body)
                await asyncio.sleep(0.001)
            await asyncio.sleep(1)
            bodies = [bytes(body) for body in FrameSplitter().feed(far.data)][1:]
            own = [body for body in bodies if body.startswith(b"%d." % connection)]
            assert 60 < len(set(own)) < 100, "some vanished"
            assert len(own) > len(set(own)), "some came twice"
            assert own != sorted(own), "some out of order"
            old = len(bodies) - len(own)
            assert (old > 0) == (connection > 0), "some from the connection before"

    wire.run(story)


def test_frames_of_clients_are_left_alone(wire: Wire) -> None:
    async def story() -> None:
        wire.settings.lose_chance = 1.0
        await wire.listen()
        near, far = await wire.dial()
        near.transport.write(encode_frame(Hello(1, "client")))
        near.transport.write(b"\0\0\0\1x" * 50)
        await asyncio.sleep(1)
        assert far.data.endswith(b"\0\0\0\1x" * 50)

    wire.run(story)
