"""``coordination``: locks, leases, watches and reads, beside etcd's locks on the same machine.

What is contended for is time, so every figure is the median of rounds in which the systems take
turns. etcd is driven through its own lock service, by the faster of two ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import access, locking, reads, report, watching
from bench.cluster import QuorateCluster
from bench.locking import HandOver, LeaseCost
from bench.measure import MS, Sample, figures, fsync_latencies_s, machine, median, versions
from bench.processes import BenchError, scratch_directory
from bench.report import Bar
from bench.systems.etcd import EtcdSystem
from bench.systems.quorate_system import QuorateSystem
from quorate.client.database import connect

PAIRS_TO_ETCD_MIN = 2.0
PAIRS_ALONE_MIN = 400.0
PAIRS_100_MIN = 8_000.0
HAND_OVER_PUTS_MAX = 2.0
LEASES_CPU_MAX = 0.05
EVENT_PUTS_MAX = 2.0
FAN_OUT_MS_MAX = 50.0
CLIENTS = 100


class LockRow(msgspec.Struct, frozen=True):
    """Pairs of acquire and release. *clients*: handles, each with a connection; *names*: as many
    pairs are under way at once."""

    system: str
    clients: int
    names: int
    pairs_per_s: float
    p50_ms: float
    p99_ms: float


class _Sides(NamedTuple):
    cluster: QuorateCluster
    etcd: EtcdSystem | None


async def _pairs_of_many(endpoints: str, seconds: float) -> Sample:
    """As many handles as names."""
    async with contextlib.AsyncExitStack() as stack:
        handles = [await stack.enter_async_context(connect(endpoints)) for _ in range(CLIENTS)]
        samples = await asyncio.gather(
            *(locking.pairs(db, seconds, first=at) for at, db in enumerate(handles))
        )
    latencies = [each for sample in samples for each in sample.latencies_s]
    return Sample(latencies, samples[0].window_s)


async def _quorate_locks(endpoints: str, seconds: float) -> tuple[list[LockRow], HandOver]:
    async with connect(endpoints) as db:
        alone = await locking.pairs(db, seconds)
        tasks = await locking.pairs(db, seconds, CLIENTS)
        line = await locking.hand_over(db, seconds)
    many = await _pairs_of_many(endpoints, seconds)
    rows = [
        _row("quorate", 1, 1, alone),
        _row("quorate", 1, CLIENTS, tasks),
        _row("quorate", CLIENTS, CLIENTS, many),
    ]
    return rows, line


async def _etcd_locks(endpoint: str, seconds: float) -> tuple[list[LockRow], HandOver]:
    ways = [
        await locking.etcd_pairs(endpoint, seconds),
        await asyncio.to_thread(locking.etcd_pairs_blocking, endpoint, seconds),
    ]
    alone = max(ways, key=lambda sample: len(sample.latencies_s) / sample.window_s)
    tasks = await locking.etcd_pairs(endpoint, seconds, CLIENTS)
    line = await locking.etcd_hand_over(endpoint, seconds)
    return [_row("etcd", 1, 1, alone), _row("etcd", 1, CLIENTS, tasks)], line


def _row(system: str, clients: int, names: int, sample: Sample) -> LockRow:
    found = figures(sample)
    return LockRow(system, clients, names, found.ops_per_s, found.p50_ms, found.p99_ms)


def _middle(rounds: Sequence[Any]) -> Any:  # noqa: ANN401
    """The medians of all figures of the same struct."""
    numbers = {
        name: median([getattr(each, name) for each in rounds])
        for name in rounds[0].__struct_fields__
        if isinstance(getattr(rounds[0], name), float)
    }
    return msgspec.structs.replace(rounds[0], **numbers)


async def _lease_cost(sides: _Sides, seconds: float) -> LeaseCost:
    leader = await asyncio.to_thread(sides.cluster.wait_leader)
    if leader.process is None:
        raise BenchError("the leader is not running")
    async with connect(",".join(sides.cluster.endpoints)) as db:
        return await locking.lease_cost(db, leader.process.pid, seconds)


def coordination(
    *,
    peers: Sequence[str] = ("etcd",),
    rounds: int = 3,
    seconds: float = 3.0,
    parent: Path | None = None,
) -> dict[str, object]:
    """Measure and print; returns the report."""
    if unknown := [name for name in peers if name != "etcd"]:
        raise BenchError(f"coordination compares with etcd only, not {unknown[0]!r}")
    if reason := QuorateSystem().missing():
        raise BenchError(reason)
    absent = {"etcd": reason} if peers and (reason := EtcdSystem().missing()) else {}
    for name, why in absent.items():
        print(f"left out: {name}: {why}")
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": versions("quorate", "msgspec", "lmdb", "uvloop", "grpcio"),
            "fsync_4kib_ms": {"p50": median(fsync_latencies_s(directory)) * MS},
            "rounds": {"count": rounds, "seconds": seconds},
        }
        print(report.facts_text(facts), flush=True)
        cluster = stack.enter_context(QuorateCluster(directory))
        etcd = None
        if peers and not absent:
            etcd = EtcdSystem()
            stack.callback(etcd.stop)
            etcd.start(directory)
        found = _measure(_Sides(cluster, etcd), rounds, seconds)
    through = reads.reads(seconds=seconds, rounds=rounds, parent=parent)
    return {**facts, **found, "reads": through["rows"], "left_out": absent}


def _measure(sides: _Sides, rounds: int, seconds: float) -> dict[str, object]:
    endpoints = ",".join(sides.cluster.endpoints)
    leader = sides.cluster.wait_leader().number
    aside = next(node for number, node in sides.cluster.nodes.items() if number != leader)
    locks: dict[tuple[str, int, int], list[LockRow]] = {}
    lines: dict[str, list[HandOver]] = {}
    watched = []
    for number in range(rounds):
        turns = [("quorate", _quorate_locks(endpoints, seconds))]
        if sides.etcd is not None:
            at = sides.etcd.endpoints[sides.etcd.leader() or 0]
            turns.append(("etcd", _etcd_locks(at, seconds)))
        for system, turn in turns:
            rows, line = access.run(turn)
            lines.setdefault(system, []).append(line)
            for row in rows:
                locks.setdefault((row.system, row.clients, row.names), []).append(row)
        watched.append(access.run(watching.measure(sides.cluster.endpoints, aside.endpoint)))
        print(f"round {number + 1} of {rounds} done", flush=True)
    leases = access.run(_lease_cost(sides, 2 * seconds))
    rows = [_middle(each) for each in locks.values()]
    hand_overs = {system: _middle(each) for system, each in lines.items()}
    events = _middle(watched)
    bars = _bars({(row.system, row.clients, row.names): row for row in rows}, hand_overs, leases)
    bars += _watch_bars(events)
    _print(rows, hand_overs, leases, events, bars)
    return {
        "locks": _plain(rows),
        "hand_over": _plain(hand_overs),
        "leases": _plain(leases),
        "watch": _plain(events),
        "bars": [bar.to_json() for bar in bars],
    }


def _bars(
    rows: dict[tuple[str, int, int], LockRow], lines: dict[str, HandOver], leases: LeaseCost
) -> list[Bar]:
    alone, many = rows["quorate", 1, 1], rows["quorate", CLIENTS, CLIENTS]
    bars = [
        Bar("pairs/s, one client", alone.pairs_per_s, PAIRS_ALONE_MIN),
        Bar("pairs/s, 100 clients on 100 names", many.pairs_per_s, PAIRS_100_MIN),
    ]
    if ("etcd", 1, 1) in rows:
        ratio = alone.pairs_per_s / rows["etcd", 1, 1].pairs_per_s
        bars.insert(0, Bar("pairs, one client: quorate / etcd", ratio, PAIRS_TO_ETCD_MIN))
    line = lines["quorate"]
    added = leases.leader_cpu - leases.idle_cpu
    return [
        *bars,
        Bar(
            "hand-over p50 / put p50", line.p50_ms / line.put_p50_ms, HAND_OVER_PUTS_MAX, most=True
        ),
        Bar("leader's core for 10,000 leases", added, LEASES_CPU_MAX, most=True),
    ]


def _watch_bars(events: watching.WatchFigures) -> list[Bar]:
    ratio = events.event_p50_ms / events.put_p50_ms
    return [
        Bar("event p50 / put p50, other node", ratio, EVENT_PUTS_MAX, most=True),
        Bar("event to 1,000 watchers, ms", events.fan_out_p50_ms, FAN_OUT_MS_MAX, most=True),
    ]


def _plain(found: object) -> Any:  # noqa: ANN401
    return json.loads(msgspec.json.encode(found))


def _print(
    rows: Sequence[LockRow],
    lines: dict[str, HandOver],
    leases: LeaseCost,
    events: watching.WatchFigures,
    bars: Sequence[Bar],
) -> None:
    headings = ("system", "clients", "names", "pairs/s", "p50 ms", "p99 ms")
    print("", report.table(headings, [msgspec.structs.astuple(row) for row in rows]), sep="\n")
    table = [(system, *msgspec.structs.astuple(line)) for system, line in lines.items()]
    over = ("hand-over", "count", "p50 ms", "p99 ms", "put p50 ms")
    print("", report.table(over, table), sep="\n")
    for found in (leases, events):
        print("", report.table(found.__struct_fields__, [msgspec.structs.astuple(found)]), sep="\n")
    print("", report.bars_table(bars), sep="\n", flush=True)
