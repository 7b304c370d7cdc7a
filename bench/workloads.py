"""The workloads of ``compare``, and the loops that drive them on an event loop."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from bench.measure import Sample

KEY_BYTES = 16
VALUE_BYTES = 100
KEYS_COUNT = 10_000  # written over and over, so that no system pays for growth that others avoid
WARM_UP_S = 0.5  # of each run, not counted: fills the pipeline and the caches
PACED_LANES = 256  # calls that a stall may hold up before the next ones are begun late


class Workload(NamedTuple):
    """*outstanding*: calls in flight on each connection."""

    name: str
    operation: Literal["put", "get"]
    connections: int
    outstanding: int


WORKLOADS = (
    Workload("put@1", "put", 1, 1),
    Workload("put@100", "put", 1, 100),
    Workload("put@1000", "put", 1, 1000),
    Workload("put 100x1", "put", 100, 1),
    Workload("get@100", "get", 1, 100),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def keys() -> list[bytes]:
    """The keys of all workloads, each ``KEY_BYTES`` long."""
    return [b"key-%012d" % number for number in range(KEYS_COUNT)]


def values() -> list[bytes]:
    """Some values of ``VALUE_BYTES`` that do not compress."""
    return [random.Random(seed).randbytes(VALUE_BYTES) for seed in range(64)]


def payloads(seed: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """An endless supply of (key, value), the same for every system."""
    shuffled = keys()
    random.Random(seed).shuffle(shuffled)
    return zip(itertools.cycle(shuffled), itertools.cycle(values()), strict=False)


class Window:
    """The counted part of a run: completions in it make the sample, whenever they began."""

    __slots__ = ("begins", "ends", "latencies_s", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begins = time.perf_counter() + WARM_UP_S
        self.ends = self.begins + seconds
        self.latencies_s: list[float] = []

    def sample(self) -> Sample:
        """What was counted."""
        return Sample(latencies_s=self.latencies_s, window_s=self.seconds)


async def drive(
    calls: Sequence[Callable[[bytes, bytes], Awaitable[object]]],
    outstanding: int,
    seconds: float,
    supply: Iterator[tuple[bytes, bytes]] | None = None,
) -> Sample:
    """Keep *outstanding* calls in flight on each of *calls* (one per connection)."""
    window = Window(seconds)
    supply = payloads() if supply is None else supply
    clock = time.perf_counter

    async def lane(call: Callable[[bytes, bytes], Awaitable[object]]) -> None:
        begins, ends, record = window.begins, window.ends, window.latencies_s.append
        began = clock()
        while began < ends:
            key, value = next(supply)
            await call(key, value)
            done = clock()
            if begins <= done < ends:
                record(done - began)
            began = done

    await asyncio.gather(*(lane(call) for call in calls for _ in range(outstanding)))
    return window.sample()


async def paced(
    call: Callable[[], Awaitable[object]], per_second: float, ended: asyncio.Event
) -> list[float]:
    """Begin *per_second* calls a second until *ended*; their latencies in seconds.

    A latency counts from the moment at which the call was due, so that a stall is charged to every
    call that it delays, not only to those that happened to be under way.
    """
    clock = time.perf_counter
    latencies: list[float] = []
    places = itertools.count()
    started = clock()

    async def lane() -> None:
        while not ended.is_set():
            due = started + next(places) / per_second
            if (early := due - clock()) > 0:
                await asyncio.sleep(early)
                if ended.is_set():
                    return
            await call()
            latencies.append(clock() - due)

    await asyncio.gather(*(lane() for _ in range(PACED_LANES)))
    return latencies
