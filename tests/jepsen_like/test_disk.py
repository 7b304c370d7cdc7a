from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from jepsen_like.simulation.disk import DiskSettings, SimulatedDisk
from jepsen_like.simulation.hosts import Host, HostClock
from jepsen_like.simulation.loop import VirtualLoop
from jepsen_like.simulation.members import ClusterSettings
from quorate.errors import DiskFullError, LogCorruptionError, QuorateError, StorageError
from quorate.storage.elements import ElementStore


class Machine:
    """A disk, its host and a loop."""

    def __init__(self, **settings: Any) -> None:
        self.loop = VirtualLoop()
        self.host = Host("h", 1, "127.0.0.1", HostClock(self.loop.true_time))
        self.process = self.host.begin()
        self.disk = SimulatedDisk(self.loop, self.host, Random(1), DiskSettings(**settings))
        self.disk.files.makedirs("/d")

    def write(self, content: bytes, *, sync: bool = True) -> None:
        files = self.disk.files
        file = files.create("/d/f")
        file.pwrite(content, 0)
        if sync:
            file.fdatasync()
            files.fsync_dir("/d")
        file.close()

    def run(self, story: Any) -> None:
        self.loop.run_until_complete(story)
        assert self.loop.problems == []


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.loop.finish([made.process])


def test_jobs_run_in_order_and_take_time(machine: Machine) -> None:
    seen: list[tuple[str, float]] = []
    runner = machine.disk.runner(machine.process, "log")

    async def story() -> None:
        for name in "abc":
            runner.run(
                lambda name=name: name.upper(),  # type: ignore[misc]
                lambda result, _: seen.append((str(result), machine.loop.now_s)),
            )
        await asyncio.sleep(1)

    machine.run(story())
    assert [name for name, _ in seen] == ["A", "B", "C"]
    times = [at_s for _, at_s in seen]
    assert 0 < times[0] < times[1] < times[2] < 0.01


def test_a_stall_holds_everything_up(machine: Machine) -> None:
    seen: list[float] = []
    runner = machine.disk.runner(machine.process, "log")

    async def story() -> None:
        machine.disk.stall(3.0)
        runner.run(lambda: None, lambda *_: seen.append(machine.loop.now_s))
        await asyncio.sleep(5)

    machine.run(story())
    assert 3.0 < seen[0] < 3.1


def test_a_job_that_raises_is_reported(machine: Machine) -> None:
    seen: list[BaseException | None] = []
    runner = machine.disk.runner(machine.process, "log")

    async def story() -> None:
        runner.run(lambda: 1 // 0, lambda _, error: seen.append(error))
        await asyncio.sleep(1)

    machine.run(story())
    assert isinstance(seen[0], ZeroDivisionError)


def test_quick_jobs_run_on_the_loop_and_not_beside_others() -> None:
    machine = Machine(quick=True)
    seen: list[str] = []

    def noting(name: str) -> tuple[Callable[[], None], Callable[..., None]]:
        return lambda: seen.append(name), lambda *_: seen.append(f"{name} done")

    async def story() -> None:
        runner = machine.disk.runner(machine.process, "log")
        assert runner.quick(*noting("a"))
        assert not runner.quick(*noting("x"))
        runner.run(*noting("b"))
        await asyncio.sleep(1)
        machine.disk.stall(1)
        assert not runner.quick(*noting("x"))

    machine.run(story())
    assert seen == ["a", "a done", "b", "b done"]
    machine.loop.finish([machine.process])


def test_a_crash_loses_what_was_not_synced(machine: Machine) -> None:
    machine.write(b"kept")
    machine.write(b"lost", sync=False)
    machine.disk.crash(kept="nothing")
    assert machine.disk.files.content("/d/f") == b"kept"
    machine.write(b"more", sync=False)
    machine.disk.kill()
    assert machine.disk.files.content("/d/f") == b"more", "the page cache lives on"


def test_faults_come_and_go(machine: Machine) -> None:
    disk = machine.disk
    disk.fail("write", count=1)
    with pytest.raises(OSError, match=r"Input/output") as failed:
        machine.write(b"x")
    assert failed.value.errno == errno.EIO
    machine.write(b"x")
    disk.fail("sync")
    with pytest.raises(OSError, match=r"Input/output"):
        machine.write(b"x")
    disk.mend()
    disk.fill(5)
    assert disk.free_bytes() == 0
    with pytest.raises(OSError, match=r"No space"):
        machine.write(b"x")
    machine.run(asyncio.sleep(6))
    machine.write(b"x")


def test_a_lying_disk_keeps_what_was_written_back() -> None:
    machine = Machine(honest_fsync=False)
    machine.write(b"kept")
    machine.disk.write_back()
    machine.write(b"lost")
    machine.disk.crash(kept="nothing")
    assert machine.disk.files.content("/d/f") == b"kept"
    machine.loop.finish([machine.process])


def test_a_crash_keeps_whole_writes_of_elements_and_a_lying_disk_older_ones(
    machine: Machine,
) -> None:
    disk = machine.disk
    store = disk.open_elements("/d/crdt")
    store.write({"t": [(b"k", b"1")]})
    backup = disk.backup()
    store.write({"t": [(b"k", b"2")]})
    disk.crash(kept="nothing")
    store.write({"t": [(b"k", b"of a dead process")]})
    assert disk.open_elements("/d/crdt").get("t", b"k") == b"2"
    disk.restore(backup)
    assert disk.open_elements("/d/crdt").get("t", b"k") == b"1"
    disk.wipe()
    assert disk.open_elements("/d/crdt").get("t", b"k") is None

    lying = Machine(honest_fsync=False)
    store = lying.disk.open_elements("/d/crdt")
    store.write({"t": [(b"k", b"1")]})
    lying.disk.write_back()
    store.write({"t": [(b"k", b"2")]})
    lying.disk.crash()
    assert lying.disk.open_elements("/d/crdt").get("t", b"k") == b"1"
    lying.loop.finish([lying.process])


def test_a_failing_disk_fails_elements(machine: Machine) -> None:
    disk = machine.disk
    store = disk.open_elements("/d/crdt")
    disk.fill()
    with pytest.raises(DiskFullError):
        store.write({"t": [(b"k", b"v")]})
    disk.mend()
    store.write({"t": [(b"k", b"v")]})
    disk.fail("read", count=1)
    with pytest.raises(StorageError, match="reading elements"):
        store.get("t", b"k")
    seen = set()
    for number in range(20):
        disk.fail("sync", count=1)
        with pytest.raises(StorageError, match="syncing elements"):
            store.write({"t": [(b"k", b"%d" % number)]})
        with pytest.raises(StorageError, match="not used again until"):
            store.get("t", b"k")
        disk.crash()
        store = disk.open_elements("/d/crdt")
        seen.add(store.get("t", b"k") == b"%d" % number)
    assert seen == {True, False}, "what a failed sync leaves is not known"
    disk.fail("write", count=1)
    with pytest.raises(StorageError, match="writing elements"):
        store.write({"t": [(b"k", b"x")]})


def test_a_crash_meets_a_write_of_elements_before_or_after(machine: Machine) -> None:
    seen = set()
    for number in range(30):
        store = machine.disk.open_elements("/d/crdt")
        runner = machine.disk.runner(machine.process, "crdt")

        def write(store: ElementStore = store, number: int = number) -> None:
            store.write({"t": [(b"a", b"%d" % number), (b"b", b"%d" % number)]})

        runner.run(write, lambda *_: None)
        machine.disk.crash()
        after = machine.disk.open_elements("/d/crdt")
        values = after.page("t", b"", None, 9)
        assert len({value for _, value in values}) <= 1, "whole, or not at all"
        seen.add(after.get("t", b"a") == b"%d" % number)
        after.close()
    assert seen == {True, False}


# --- under a node ---------------------------------------------------------------------------------


def run(story: Callable[[SimulatedCluster], Any], *, seed: int = 1) -> None:
    with SimulatedCluster(seed, ClusterSettings(segment_bytes=8192)) as cluster:
        cluster.run(story(cluster))
        assert cluster.problems == []


async def founded(cluster: SimulatedCluster, count: int) -> Any:
    await cluster.start(count)
    db = cluster.connect("c", stall_timeout=0.5)
    for number in range(20):
        await db.kv.put(f"k{number}", "v")
    return db


def test_a_node_whose_fsync_fails_stops_and_the_others_go_on() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        db = await founded(cluster, 3)
        victim = await cluster.wait_leader()
        cluster.disk(victim).fail("sync", count=1)
        await db.kv.put("k", "v")
        await asyncio.sleep(1)
        assert not cluster.members[victim].alive
        assert isinstance(cluster.members[victim].failure, StorageError)
        await cluster.restart(victim)
        await cluster.converged()

    run(story)


def test_a_full_disk_turns_a_node_read_only_for_a_while() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        db = await founded(cluster, 1)
        cluster.disk(1).fill(3.0)
        await asyncio.sleep(1)
        with pytest.raises(QuorateError, match="free"):
            await db.kv.put("k", "v", timeout=1.0)
        await asyncio.sleep(5)
        await db.kv.put("k", "v")

    run(story)


def test_a_flipped_bit_is_refused_or_was_never_part_of_the_log() -> None:
    refused = 0

    async def story(cluster: SimulatedCluster) -> None:
        nonlocal refused
        db = await founded(cluster, 3)
        victim = next(number for number in cluster.members if number != cluster.leader())
        cluster.crash(victim)
        assert cluster.disk(victim).flip_bit(cluster.random)
        try:
            await cluster.restart(victim)
        except LogCorruptionError:
            refused += 1
        await db.kv.put("k", "v")

    for seed in range(10):
        run(story, seed=seed)
    assert refused > 5


def test_a_log_cut_short_is_refused() -> None:
    async def story(cluster: SimulatedCluster) -> None:
        await founded(cluster, 3)
        cluster.crash(1, kept="all")
        assert "cut" in cluster.disk(1).truncate(cluster.random)
        with pytest.raises(QuorateError):
            await cluster.restart(1)

    run(story)
