"""Watches: how long an event takes to a watcher on another node, beside the put that made it, and
how long one event takes to a thousand watchers.

Writer and watchers share this process and its clock, so that the times can be compared; the nodes
are processes of their own. ``python -m bench.watching`` prints both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from bench import access
from bench.cluster import QuorateCluster
from bench.measure import MS, median, percentile
from bench.processes import scratch_directory
from quorate.client.database import Database, connect
from quorate.client.kv_watch import Watch

PUTS = 1000
WATCHERS = 1000
HANDLES = 10  # that the watchers share; each has a connection
FAN_OUT_ROUNDS = 20
VALUE = b"v" * 100


class WatchFigures(msgspec.Struct, frozen=True):
    """*put*: until it is acknowledged, one at a time. *event*: from the beginning of the same put
    until the event has reached a watcher on a node that does not lead. *fan_out*: until it has
    reached the last of *watchers*."""

    put_p50_ms: float
    put_p99_ms: float
    event_p50_ms: float
    event_p99_ms: float
    watchers: int
    fan_out_p50_ms: float
    fan_out_max_ms: float


async def event_latency(
    writer: Database, follower: Database, count: int = PUTS
) -> tuple[list[float], list[float]]:
    """Latencies of puts and of their events, in seconds, ascending."""
    puts: list[float] = []
    events: list[float] = []
    async with follower.kv.watch("bench/watched") as watch:
        for at in range(count + count // 10):
            began = time.perf_counter()
            coming = asyncio.ensure_future(anext(watch))
            await writer.kv.put("bench/watched", VALUE)
            acknowledged = time.perf_counter()
            arrived = acknowledged if coming.done() else 0.0
            await coming
            arrived = arrived or time.perf_counter()
            if at >= count // 10:  # the first are to warm up
                puts.append(acknowledged - began)
                events.append(arrived - began)
    return sorted(puts), sorted(events)


async def fan_out(
    writer: Database, followers: list[Database], watchers: int = WATCHERS
) -> list[float]:
    """Seconds from the beginning of a put until the last of *watchers* has its event, ascending."""
    found = []
    async with contextlib.AsyncExitStack() as stack:
        watches: list[Watch] = [
            await stack.enter_async_context(
                followers[at % len(followers)].kv.watch(prefix="bench/fan", start_revision=None)
            )
            for at in range(watchers)
        ]
        for _ in range(FAN_OUT_ROUNDS):
            began = time.perf_counter()
            await asyncio.gather(
                writer.kv.put("bench/fan", VALUE), *(anext(watch) for watch in watches)
            )
            found.append(time.perf_counter() - began)
    return sorted(found)


@contextlib.asynccontextmanager
async def _handles(endpoint: str, count: int) -> AsyncIterator[list[Database]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(endpoint, follow_leader=False))
            for _ in range(count)
        ]


async def measure(endpoints: list[str], follower: str, watchers: int = WATCHERS) -> WatchFigures:
    """All of it. *follower*: the endpoint of a node that does not lead."""
    async with connect(",".join(endpoints)) as writer, _handles(follower, HANDLES) as handles:
        puts, events = await event_latency(writer, handles[0])
        fans = await fan_out(writer, handles, watchers)
    return WatchFigures(
        put_p50_ms=percentile(puts, 50) * MS,
        put_p99_ms=percentile(puts, 99) * MS,
        event_p50_ms=percentile(events, 50) * MS,
        event_p99_ms=percentile(events, 99) * MS,
        watchers=watchers,
        fan_out_p50_ms=median(fans) * MS,
        fan_out_max_ms=fans[-1] * MS,
    )


def watching(watchers: int = WATCHERS, parent: Path | None = None) -> WatchFigures:
    """On a cluster of three that is started for it."""
    with scratch_directory(parent) as directory, QuorateCluster(directory) as cluster:
        leader = cluster.wait_leader().number
        aside = next(node for number, node in cluster.nodes.items() if number != leader)
        return access.run(measure(cluster.endpoints, aside.endpoint, watchers))


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(watching())).decode())
