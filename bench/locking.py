"""Locks and leases: pairs of acquire and release, hand-over, and what keeping leases alive costs.

Functions for ``python -m bench coordination``: each drives an open handle, or an etcd leader, for
some seconds, and returns what it measured. A *pair* is one acquire and one release.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bench.measure import MS, Sample, percentile
from bench.reads import cpu_s
from bench.workloads import Window
from jepsen_like.systems import etcd_wire as wire
from quorate.client.database import Database

ETCD_LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
ETCD_LOCK: Final = "/v3lockpb.Lock/Lock"
ETCD_UNLOCK: Final = "/v3lockpb.Lock/Unlock"
ETCD_TTL_S: Final = 60
CALL_TIMEOUT_S: Final = 10.0


class HandOver(msgspec.Struct, frozen=True):
    """From the call that releases to the return of the call that acquires, between waiters on one
    name; and a put on the same handle in the same seconds. *count*: hand-overs measured."""

    count: int
    p50_ms: float
    p99_ms: float
    put_p50_ms: float


class LeaseCost(msgspec.Struct, frozen=True):
    """*leader_cpu*: part of one core that the leader was busy for, with *count* leases kept alive;
    *idle_cpu*: with none."""

    count: int
    ttl_s: float
    leader_cpu: float
    idle_cpu: float


# --- quorate --------------------------------------------------------------------------------------


async def pairs(db: Database, seconds: float, names: int = 1, first: int = 0) -> Sample:
    """Uncontended pairs: one task for each name, one after the other in each. *first*: number of
    the first name."""
    window = Window(seconds)

    async def work(number: int) -> None:
        lock = db.lock(f"bench/{number}")
        began = time.perf_counter()
        while began < window.ends:
            await lock.acquire()
            await lock.release()
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done

    await asyncio.gather(*(work(first + number) for number in range(names)))
    return window.sample()


async def hand_over(db: Database, seconds: float, waiters: int = 20) -> HandOver:
    """*waiters* tasks in line for one name, while one puts."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    released_at = 0.0
    took: list[float] = []
    puts: list[float] = []

    async def wait_in_line() -> None:
        nonlocal released_at
        lock = db.lock("bench/line")
        while loop.time() < ends:
            await lock.acquire()
            if released_at:
                took.append(time.perf_counter() - released_at)
            await asyncio.sleep(0)
            released_at = time.perf_counter()
            await lock.release()

    async def put() -> None:
        while loop.time() < ends:
            began = time.perf_counter()
            await db.kv.put("bench/put", b"x" * 100)
            puts.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)

    await asyncio.gather(put(), *(wait_in_line() for _ in range(waiters)))
    took.sort()
    return HandOver(
        len(took),
        percentile(took, 50) * MS,
        percentile(took, 99) * MS,
        percentile(sorted(puts), 50) * MS,
    )


async def lease_cost(
    db: Database, leader_pid: int, seconds: float, count: int = 10_000, ttl_s: float = 10.0
) -> LeaseCost:
    """Keep *count* leases alive by one handle, and look how busy the leader is."""

    async def busy() -> float:
        before, began = cpu_s(leader_pid), time.perf_counter()
        await asyncio.sleep(seconds)
        return (cpu_s(leader_pid) - before) / (time.perf_counter() - began)

    idle = await busy()
    leases = [db.lease(ttl=ttl_s) for _ in range(count)]
    for at in range(0, count, 500):
        await asyncio.gather(*(lease.grant() for lease in leases[at : at + 500]))
    await asyncio.sleep(1)
    found = await busy()
    for at in range(0, count, 500):
        await asyncio.gather(*(lease.revoke() for lease in leases[at : at + 500]))
    return LeaseCost(count, ttl_s, found, idle)


# --- etcd -----------------------------------------------------------------------------------------


async def etcd_pairs(endpoint: str, seconds: float, names: int = 1) -> Sample:
    """The same through etcd's own lock service, with ``grpc.aio``: one lease for all, as a session
    of its clients has it."""
    import grpc.aio

    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = _caller(channel)
        lease = await _etcd_lease(call)
        window = Window(seconds)

        async def work(number: int) -> None:
            request = wire.bytes_field(1, b"bench/%d" % number)
            request += wire.varint(2 << 3) + wire.varint(lease)
            began = time.perf_counter()
            while began < window.ends:
                key = _bytes_of(await call(ETCD_LOCK, request), 2)
                await call(ETCD_UNLOCK, wire.bytes_field(1, key))
                done = time.perf_counter()
                if window.begins <= done < window.ends:
                    window.latencies_s.append(done - began)
                began = done

        await asyncio.gather(*(work(number) for number in range(names)))
        return window.sample()


def etcd_pairs_blocking(endpoint: str, seconds: float) -> Sample:
    """As ``etcd_pairs`` with one name, with plain ``grpc``, which is faster for one at a time."""
    import grpc

    with grpc.insecure_channel(endpoint) as channel:
        send = {name: channel.unary_unary(name) for name in (ETCD_LOCK, ETCD_UNLOCK)}
        granted = channel.unary_unary(ETCD_LEASE_GRANT)(
            wire.varint(1 << 3) + wire.varint(ETCD_TTL_S)
        )
        request = wire.bytes_field(1, b"bench/0")
        request += wire.varint(2 << 3) + wire.varint(_integer_of(granted, 2))
        window = Window(seconds)
        began = time.perf_counter()
        while began < window.ends:
            key = _bytes_of(send[ETCD_LOCK](request, timeout=CALL_TIMEOUT_S), 2)
            send[ETCD_UNLOCK](wire.bytes_field(1, key), timeout=CALL_TIMEOUT_S)
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done
        return window.sample()


async def etcd_hand_over(endpoint: str, seconds: float, waiters: int = 20) -> HandOver:
    """As ``hand_over``; each waiter has a lease of its own, which etcd's lock needs."""
    import grpc.aio

    loop = asyncio.get_running_loop()
    released_at = 0.0
    took: list[float] = []
    puts: list[float] = []
    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = _caller(channel)
        leases = [await _etcd_lease(call) for _ in range(waiters)]
        ends = loop.time() + seconds

        async def wait_in_line(lease: int) -> None:
            nonlocal released_at
            request = wire.bytes_field(1, b"bench/line")
            request += wire.varint(2 << 3) + wire.varint(lease)
            while loop.time() < ends:
                key = _bytes_of(await call(ETCD_LOCK, request), 2)
                if released_at:
                    took.append(time.perf_counter() - released_at)
                await asyncio.sleep(0)
                released_at = time.perf_counter()
                await call(ETCD_UNLOCK, wire.bytes_field(1, key))

        async def put() -> None:
            request = wire.put_request(b"bench/put", b"x" * 100)
            while loop.time() < ends:
                began = time.perf_counter()
                await call(wire.PUT, request)
                puts.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)

        await asyncio.gather(put(), *(wait_in_line(lease) for lease in leases))
    took.sort()
    return HandOver(
        len(took),
        percentile(took, 50) * MS,
        percentile(took, 99) * MS,
        percentile(sorted(puts), 50) * MS,
    )


Call = Callable[[str, bytes], Awaitable[bytes]]


def _caller(channel: Any) -> Call:  # noqa: ANN401  grpc has no types
    methods: dict[str, Any] = {}

    async def call(method: str, request: bytes) -> bytes:
        send = methods.get(method)
        if send is None:
            send = methods[method] = channel.unary_unary(method)
        response: bytes = await send(request, timeout=CALL_TIMEOUT_S)
        return response

    return call


async def _etcd_lease(call: Call) -> int:
    """``LeaseGrantRequest {TTL = 1}``, ``LeaseGrantResponse {ID = 2}``."""
    granted = await call(ETCD_LEASE_GRANT, wire.varint(1 << 3) + wire.varint(ETCD_TTL_S))
    return _integer_of(granted, 2)


def _integer_of(message: bytes, wanted: int) -> int:
    for number, content in wire.fields(message):
        if number == wanted and isinstance(content, int):
            return content
    raise ValueError(f"etcd's answer has no field {wanted}")


def _bytes_of(message: bytes, wanted: int) -> bytes:
    for number, content in wire.fields(message):
        if number == wanted and isinstance(content, bytes):
            return content
    raise ValueError(f"etcd's answer has no field {wanted}")
