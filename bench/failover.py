"""``failover``: SIGKILL of the leader to the next acknowledged write, default settings.

The systems take turns, kill by kill, on the same machine in the same run. quorate is asked the way
a user asks: one call after another of one client handle, which finds the new leader itself. etcd
is asked in the way that shows it at its best: a new put every few milliseconds on connections that
stand already to each member that lives, and the first acknowledgement counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bench import access, report
from bench.cluster import QuorateCluster
from bench.measure import MS, fsync_latencies_s, machine, median, versions
from bench.processes import BenchError, scratch_directory
from bench.report import Bar
from bench.systems.etcd import CHANNEL_OPTIONS, EtcdSystem
from bench.systems.quorate_system import QuorateSystem
from jepsen_like.systems import etcd_wire as wire

MEDIAN_S_MAX = 0.6
WORST_S_MAX = 1.5
GIVE_UP_S = 30.0
SETTLE_S = 1.0  # after everything runs again, before the next kill
PROBE_INTERVAL_S = 0.005  # between two attempts on etcd
KEY, VALUE = b"key-of-failover!", b"v" * 100


class Patient(Protocol):
    """A running system whose leader is killed over and over."""

    name: str

    def version(self) -> str:
        """Of the system."""
        ...

    async def open(self) -> None:
        """Connect a client, once."""
        ...

    async def fail_over(self) -> float:
        """Kill the leader; seconds until a write that began after it was acknowledged."""
        ...

    async def heal(self) -> None:
        """Restart what was killed and wait until every member serves."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class QuoratePatient:
    """Three quorate nodes and one handle."""

    name = "quorate"

    def __init__(self, cluster: QuorateCluster) -> None:
        self._cluster = cluster
        self._handle: Any = None

    def version(self) -> str:
        """Of the installed distribution."""
        return versions("quorate")["quorate"]

    async def open(self) -> None:
        """Connect."""
        self._handle = await access.connect(self._cluster.endpoints)

    async def fail_over(self) -> float:
        """One write, the kill, and writes until one is acknowledged."""
        from quorate.errors import QuorateError

        leader = await asyncio.to_thread(self._cluster.wait_leader)
        await self._handle.kv.put(KEY, VALUE)
        killed = time.perf_counter()
        leader.send_kill()
        while time.perf_counter() - killed < GIVE_UP_S:
            with contextlib.suppress(QuorateError):
                await self._handle.kv.put(KEY, VALUE)
                return time.perf_counter() - killed
            await asyncio.sleep(0.001)
        raise BenchError(f"quorate: no write was acknowledged in {GIVE_UP_S:g} s")

    async def heal(self) -> None:
        """Restart the dead node."""
        for node in self._cluster.nodes.values():
            if not node.running:
                node.kill()
                node.start()
        await asyncio.to_thread(self._cluster.wait_serving)

    async def close(self) -> None:
        """Close the handle."""
        await access.close(self._handle)


class EtcdPatient:
    """Three etcd members and a connection to each."""

    name = "etcd"

    def __init__(self, system: EtcdSystem) -> None:
        self._system = system
        self._channels: list[Any] = []

    def version(self) -> str:
        """Of the binary on PATH."""
        return self._system.version()

    async def open(self) -> None:
        """Connections to all members."""
        import grpc.aio

        self._channels = [
            grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            for endpoint in self._system.endpoints
        ]

    async def fail_over(self) -> float:
        """Probe both members that live until one acknowledges."""
        leader = await asyncio.to_thread(self._system.leader)
        if leader is None:
            raise BenchError("etcd has no leader")
        living = [channel for i, channel in enumerate(self._channels) if i != leader]
        for channel in living:  # so that no connection has to be made later
            await self._put(channel)
        killed = time.perf_counter()
        await asyncio.to_thread(self._system.kill, leader)
        return (
            await first_acknowledged([partial(self._put, channel) for channel in living]) - killed
        )

    async def _put(self, channel: Any) -> None:  # noqa: ANN401
        send = channel.unary_unary(wire.PUT)
        await send(wire.put_request(KEY, VALUE), timeout=GIVE_UP_S)

    async def heal(self) -> None:
        """Restart the dead member; wait until each acknowledges a put again."""
        for number, process in enumerate(self._system.nodes):
            if process.poll() is not None:
                self._system.restart(number)
        for channel in self._channels:
            await first_acknowledged([partial(self._put, channel)])

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()


async def first_acknowledged(calls: Sequence[Callable[[], Any]]) -> float:
    """Begin each of *calls* anew every few milliseconds, whatever became of earlier ones; the time
    at which the first one succeeded.

    Raises:
        BenchError: none did.
    """
    loop = asyncio.get_running_loop()
    succeeded: asyncio.Future[float] = loop.create_future()

    def done(task: asyncio.Task[None]) -> None:
        # Failures are what is waited out here; looking at them keeps asyncio from logging them.
        if not task.cancelled() and task.exception() is None and not succeeded.done():
            succeeded.set_result(time.perf_counter())

    tasks: set[asyncio.Task[None]] = set()
    deadline = time.perf_counter() + GIVE_UP_S
    try:
        while not succeeded.done() and time.perf_counter() < deadline:
            for call in calls:
                task = loop.create_task(call())
                tasks.add(task)
                task.add_done_callback(done)
                task.add_done_callback(tasks.discard)
            await asyncio.wait((succeeded,), timeout=PROBE_INTERVAL_S)
    finally:
        for task in tasks.copy():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not succeeded.done():
        raise BenchError(f"etcd: no write was acknowledged in {GIVE_UP_S:g} s")
    return succeeded.result()


async def _measure(patients: Sequence[Patient], kills: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {patient.name: [] for patient in patients}
    async with contextlib.AsyncExitStack() as stack:
        for patient in patients:
            await patient.open()
            stack.push_async_callback(patient.close)
        for kill in range(kills):
            for patient in patients:
                times[patient.name].append(await patient.fail_over())
                await patient.heal()
                await asyncio.sleep(SETTLE_S)
            shown = ", ".join(f"{name} {took[-1] * MS:.0f} ms" for name, took in times.items())
            print(f"kill {kill + 1} of {kills}: {shown}", flush=True)
    return times


def failover(
    *, kills: int = 20, peers: Sequence[str] = ("etcd",), parent: Path | None = None
) -> dict[str, object]:
    """Measure and print; returns the report."""
    if unknown := [name for name in peers if name != "etcd"]:
        raise BenchError(f"failover compares with etcd only, not {unknown[0]!r}")
    quorate, etcd = QuorateSystem(), EtcdSystem()
    if reason := quorate.missing():
        raise BenchError(reason)
    absent = {"etcd": reason} if peers and (reason := etcd.missing()) else {}
    for name, why in absent.items():
        print(f"left out: {name}: {why}")
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {"machine": machine(directory)}
        fsync = median(fsync_latencies_s(directory))
        cluster = stack.enter_context(QuorateCluster(directory))
        patients: list[Patient] = [QuoratePatient(cluster)]
        if peers and not absent:
            stack.callback(etcd.stop)
            etcd.start(directory)
            patients.append(EtcdPatient(etcd))
        found = {patient.name: patient.version() for patient in patients}
        facts["versions"] = {**versions("msgspec", "lmdb", "uvloop", "grpcio"), **found}
        facts["fsync_4kib_ms"] = {"p50": fsync * MS}
        print(report.facts_text(facts), flush=True)
        times = access.run(_measure(patients, kills))
    return {**facts, **finish(kills, times), "left_out": absent}


def finish(kills: int, times: dict[str, list[float]]) -> dict[str, object]:
    """Print the tables and make the report; *times*: seconds, by system."""
    rows = [
        {
            "system": name,
            "kills": len(took),
            "median_s": round(median(took), 4),
            "worst_s": round(max(took), 4),
        }
        for name, took in times.items()
    ]
    ours = times["quorate"]
    bars = [
        Bar("median of failover, s", median(ours), MEDIAN_S_MAX, most=True),
        Bar("worst failover, s", max(ours), WORST_S_MAX, most=True),
    ]
    print("", report.table(tuple(rows[0]), [tuple(row.values()) for row in rows]), sep="\n")
    print("", report.bars_table(bars), sep="\n")
    each = {name: [round(item * MS, 1) for item in took] for name, took in times.items()}
    return {"kills": kills, "rows": rows, "bars": [b.to_json() for b in bars], "each_ms": each}
