"""``recover``: what many keys cost: memory, speed, restart, and a snapshot to a new member.

Two clusters stand at the same time, one with few keys and one with many, and are driven in turns,
so that their throughputs compare. Then the large one is killed and restarted, and a fourth member
joins it under a steady load of writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import access, report
from bench.cluster import NodeProcess, QuorateCluster
from bench.measure import MS, fsync_latencies_s, machine, median, percentile, versions
from bench.processes import ROOT, BenchError, scratch_directory, wait_until
from bench.report import Bar
from bench.workloads import VALUE_BYTES, drive, paced, values
from quorate.base.kv_commands import Status, StatusResult
from quorate.errors import QuorateError

FEW_KEYS = 1_000
LOAD_OUTSTANDING = 1_000
OUTSTANDING = 100  # of the throughput runs
ROUNDS = 3
ROUND_S = 4.0
IDLE_S = 3.0  # a new cluster is left alone so long before its memory is read
STEADY_PER_S = 500  # puts a second while the new member joins: real, and far from saturation
USUAL_S = 15.0
JOIN_TIMEOUT_S = 300.0
WATCH_INTERVAL_S = 0.1
MIB = 1024 * 1024

RESTART_S_MAX = 5.0
RESIDENT_MIB_MAX = 700.0
THROUGHPUT_RATIO_MIN = 0.8
IDLE_MIB_MAX = 64.0
SNAPSHOT_P99_RATIO_MAX = 3.0


def key_of(number: int) -> bytes:
    """Keys as in the other workloads."""
    return b"key-%012d" % number


def random_keys(count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """An endless supply of (one of *count* keys, value)."""
    rng, supply = random.Random(seed), itertools.cycle(values())
    while True:
        yield key_of(rng.randrange(count)), next(supply)


async def load(handle: Any, count: int) -> float:  # noqa: ANN401
    """Write *count* keys once each; seconds."""
    began, numbers, value = time.perf_counter(), iter(range(count)), values()[0]
    step = max(count // 10, 1)

    async def lane() -> None:
        for number in numbers:
            await handle.kv.put(key_of(number), value)
            if count > FEW_KEYS and (number + 1) % step == 0:
                print(f"loaded {number + 1:,} of {count:,}", flush=True)

    await asyncio.gather(*(lane() for _ in range(LOAD_OUTSTANDING)))
    return time.perf_counter() - began


async def throughput(handles: dict[int, Any]) -> dict[int, float]:
    """Puts a second by number of keys: the median of rounds in turns."""
    rounds: dict[int, list[float]] = {count: [] for count in handles}
    for number in range(ROUNDS):
        for count, handle in handles.items():
            supply = random_keys(count, seed=number)
            sample = await drive([handle.kv.put], OUTSTANDING, ROUND_S, supply)
            rounds[count].append(len(sample.latencies_s) / sample.window_s)
    return {count: median(found) for count, found in rounds.items()}


def memory_mib(cluster: QuorateCluster) -> float:
    """Resident memory of the largest node."""
    return max(node.resident_bytes for node in cluster.nodes.values()) / MIB


# --- restarts -------------------------------------------------------------------------------------


def restart_one(cluster: QuorateCluster, count: int) -> float:
    """SIGKILL a follower; seconds from its start until it answers a linearizable read by itself,
    everything that was written included."""
    leader = cluster.wait_leader()
    node = next(node for node in cluster.nodes.values() if node is not leader)
    node.kill()
    began = time.perf_counter()
    node.start()
    node.wait_serving()
    took = time.perf_counter() - began
    _must_hold(node, count)
    return took


def restart_all(cluster: QuorateCluster, count: int) -> float:
    """SIGKILL every node at once; seconds from the first start until every one serves."""
    cluster.stop()
    began = time.perf_counter()
    cluster.start()
    took = time.perf_counter() - began
    for node in cluster.nodes.values():
        _must_hold(node, count)
    return took


def key_count(node: NodeProcess) -> int:
    """Keys in the node's own state now; -1 if it does not say."""
    try:
        with access.link(node.endpoint) as opened:
            _index, status = access.ask(opened, Status(), linearizable=False)
    except (OSError, QuorateError):
        return -1  # it is starting, or loads a snapshot
    return status.key_count if isinstance(status, StatusResult) else -1


def _must_hold(node: NodeProcess, count: int) -> None:
    if (found := key_count(node)) != count:
        raise BenchError(f"node {node.number} came back with {found:,} of {count:,} keys")


# --- a snapshot under load ------------------------------------------------------------------------


@dataclass
class Watch:
    """Who led under which term while a block ran, asked every ``WATCH_INTERVAL_S``."""

    seen: set[tuple[int, int]] = field(default_factory=set)

    @property
    def elections(self) -> int:
        """Terms after the first; a leader whose heartbeats arrive has no successor."""
        return max(len({term for term, _leader in self.seen}) - 1, 0)

    @contextlib.contextmanager
    def over(self, cluster: QuorateCluster) -> Iterator[None]:
        """Watch while the block runs."""
        ended, numbers = threading.Event(), tuple(cluster.nodes)

        def watch() -> None:
            while not ended.wait(WATCH_INTERVAL_S):
                if (found := cluster.leadership(numbers)) != (0, 0):
                    self.seen.add(found)

        thread = threading.Thread(target=watch, name="watch")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def add_member(cluster: QuorateCluster, node: NodeProcess) -> None:
    """``quorate members add``, as an operator does it."""
    endpoints = ",".join(n.endpoint for n in cluster.nodes.values() if n is not node)
    command = [sys.executable, "-m", "quorate", "members", "add", f"{node.number}={node.endpoint}"]
    command += ["--endpoints", endpoints]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command[2:])}: {done.stderr.strip() or done.stdout.strip()}")


async def snapshot(cluster: QuorateCluster, handle: Any, count: int) -> dict[str, float]:  # noqa: ANN401
    """A fourth member joins while clients write; latencies before and meanwhile."""
    supply = random_keys(count, seed=99)

    async def put() -> None:
        await handle.kv.put(*next(supply))

    usual = await _steady(put, lambda: asyncio.sleep(USUAL_S))
    watch = Watch()
    with watch.over(cluster):
        took = 0.0

        async def join() -> None:
            nonlocal took
            began = time.perf_counter()
            node = cluster.add_process(4)
            await asyncio.to_thread(add_member, cluster, node)
            await asyncio.to_thread(
                wait_until, lambda: key_count(node) >= count, JOIN_TIMEOUT_S, "the new member", 0.1
            )
            took = time.perf_counter() - began

        meanwhile = await _steady(put, join)
    # A log that begins behind entry 0 began with a snapshot; nothing else gets a node there.
    joined = access.status_of(cluster.nodes[4].endpoint)
    return {
        "join_s": took,
        "join_by_snapshot": int(joined["floor"] > 0),
        "elections": watch.elections,
        "usual_p50_ms": percentile(usual, 50) * MS,
        "usual_p99_ms": percentile(usual, 99) * MS,
        "meanwhile_p50_ms": percentile(meanwhile, 50) * MS,
        "meanwhile_p99_ms": percentile(meanwhile, 99) * MS,
        "meanwhile_max_ms": percentile(meanwhile, 100) * MS,
        "meanwhile_puts": len(meanwhile),
    }


async def _steady(
    put: Callable[[], Awaitable[None]], body: Callable[[], Awaitable[object]]
) -> list[float]:
    """Ascending latencies of ``STEADY_PER_S`` puts while *body* runs."""
    ended = asyncio.Event()
    writing = asyncio.create_task(paced(put, STEADY_PER_S, ended))
    try:
        await body()
    finally:
        ended.set()
        latencies = await writing
    return sorted(latencies)


# --- the run --------------------------------------------------------------------------------------


async def _load_and_drive(
    few: QuorateCluster, many: QuorateCluster, keys: int
) -> tuple[float, dict[int, float]]:
    async with contextlib.AsyncExitStack() as stack:
        handles = {}
        for count, cluster in ((FEW_KEYS, few), (keys, many)):
            handles[count] = await access.connect(cluster.endpoints)
            stack.push_async_callback(access.close, handles[count])
        await load(handles[FEW_KEYS], FEW_KEYS)
        return await load(handles[keys], keys), await throughput(handles)


async def _snapshot(cluster: QuorateCluster, keys: int) -> dict[str, float]:
    handle = await access.connect(cluster.endpoints)
    try:
        return await snapshot(cluster, handle, keys)
    finally:
        await access.close(handle)


def recover(*, keys: int = 1_000_000, parent: Path | None = None) -> dict[str, object]:
    """Measure and print; returns the report."""
    if keys <= FEW_KEYS:
        raise BenchError(f"--keys must be more than {FEW_KEYS:,}, the number it is compared with")
    figures: dict[str, float] = {}
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": versions("quorate", "msgspec", "lmdb", "uvloop"),
            "payload": {"key_bytes": len(key_of(0)), "value_bytes": VALUE_BYTES, "keys": keys},
        }
        facts["fsync_4kib_ms"] = {"p50": median(fsync_latencies_s(directory)) * MS}
        print(report.facts_text(facts), flush=True)
        places = {name: directory / name for name in ("few", "many")}
        for place in places.values():
            place.mkdir()
        with contextlib.ExitStack() as both:
            few = both.enter_context(QuorateCluster(places["few"]))
            many = stack.enter_context(QuorateCluster(places["many"]))
            time.sleep(IDLE_S)
            figures["idle_mib"] = memory_mib(many)
            load_s, speeds = access.run(_load_and_drive(few, many, keys))
        figures["load_puts_per_s"] = keys / load_s
        figures["puts_per_s_few"], figures["puts_per_s_many"] = speeds[FEW_KEYS], speeds[keys]
        figures["resident_mib"] = memory_mib(many)
        figures["restart_one_s"] = restart_one(many, keys)
        figures["restart_all_s"] = restart_all(many, keys)
        figures["resident_after_restart_mib"] = memory_mib(many)
        figures |= access.run(_snapshot(many, keys))
        figures["resident_after_snapshot_mib"] = memory_mib(many)
    return {**facts, **finish(keys, figures)}


def bars_of(figures: dict[str, float]) -> list[Bar]:
    """Figures beside what they must be."""
    speed = figures["puts_per_s_many"] / figures["puts_per_s_few"]
    resident = max(value for name, value in figures.items() if name.startswith("resident"))
    p99 = figures["meanwhile_p99_ms"] / figures["usual_p99_ms"]
    return [
        Bar("restart of one node, s", figures["restart_one_s"], RESTART_S_MAX, most=True),
        Bar("restart of all nodes, s", figures["restart_all_s"], RESTART_S_MAX, most=True),
        Bar("resident memory, MiB", resident, RESIDENT_MIB_MAX, most=True),
        Bar(f"puts at all keys / at {FEW_KEYS:,}", speed, THROUGHPUT_RATIO_MIN),
        Bar("idle node, MiB", figures["idle_mib"], IDLE_MIB_MAX, most=True),
        Bar("joined by snapshot, not by log", figures["join_by_snapshot"], 1),
        Bar("elections during the snapshot", figures["elections"], 0, most=True),
        Bar("p99 during the snapshot / usual", p99, SNAPSHOT_P99_RATIO_MAX, most=True),
    ]


def finish(keys: int, figures: dict[str, float]) -> dict[str, object]:
    """Print the tables and make the report."""
    bars = bars_of(figures)
    print("", report.table(("figure", "value"), list(figures.items())), sep="\n")
    print("", report.bars_table(bars), sep="\n")
    rounded = {name: round(value, 3) for name, value in figures.items()}
    return {"keys": keys, "figures": rounded, "bars": [bar.to_json() for bar in bars]}
