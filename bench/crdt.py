"""``crdt``: what data that converges costs: adds, spreading, healing, syncing, and what is left.

Every figure is one of quorate alone: no peer keeps such data durably on several nodes. Nodes are
processes; what passes between them in the second part goes through a relay, which counts it and
can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec

from bench import report
from bench.cluster import NodeProcess, QuorateCluster
from bench.measure import MS, fsync_latencies_s, machine, median, versions
from bench.processes import BenchError, free_ports, scratch_directory
from bench.reads import cpu_s
from bench.recover import add_member
from bench.report import Bar
from quorate.base.crdt_operations import KindTag
from quorate.client.database import Database, connect
from quorate.crdt.codec import encode_leaf
from quorate.crdt.delta import path_key
from quorate.crdt.dots import make_actor
from quorate.crdt.kinds import ORSet
from quorate.crdt.maps import place
from quorate.crdt.values import encode_key

OUTSTANDING = 100
LOAD_OUTSTANDING = 1_000
FEW = 1_000
ROUNDS = 5  # of 20 times as many adds
DIFFERENCE = 10_000
CUT_S = 10.0
IDLE_S = 10.0
STRONG_WRITES = 200
LIVE = 1_000
MIB = 1024 * 1024

ADDS_PER_S_MIN = 20_000.0
FLAT_MAX = 1.3
EQUAL_S_MAX = 2.0
WIRE_RATIO_MAX = 3.0
IDLE_CPU_MAX = 0.01
SYNC_GROWTH_MIB_MAX = 64.0
CHURN_RATIO_MAX = 4.0
REACH_MS_MAX = 5.0


class Figures(msgspec.Struct):
    """*adds_per_s*: to a set of few elements, and of many. *equal_s*: from the moment the network
    is whole again; *wire_ratio*: bytes between nodes until then, by those of the elements that each
    node lacked. *idle_cpu*: part of a core that a node takes with converged data more than without.
    *sync_growth_mib*: of the node that grew most while a new member took over all elements.
    *churn_ratio*: store after all pairs, by a fresh one with the same elements. *reach_ms*: until
    an add is durable on all three nodes."""

    adds_per_s: float = 0.0
    adds_per_s_many: float = 0.0
    elements_many: int = 0
    equal_s: float = 0.0
    wire_ratio: float = 0.0
    idle_cpu: float = 0.0
    reach_ms: float = 0.0
    sync_s: float = 0.0
    sync_growth_mib: float = 0.0
    churn_pairs: int = 0
    churn_ratio: float = 0.0


# --- one node -------------------------------------------------------------------------------------


async def _each(work: Any, items: Iterable[Any], outstanding: int) -> float:  # noqa: ANN401
    """Call *work* with every item, so many at once; seconds."""
    supply = iter(items)

    async def lane() -> None:
        for item in supply:
            await work(item)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(outstanding)))
    return time.perf_counter() - began


async def _adds(db: Database, name: str, numbers: range, outstanding: int = OUTSTANDING) -> float:
    """Adds a second."""
    elements = db.set(name)

    async def add(number: int) -> None:
        await elements.add(f"element-{number:09d}", level="eventual")

    return len(numbers) / await _each(add, numbers, outstanding)


async def _one_node(node: NodeProcess, fresh: NodeProcess, found: Figures, many: int) -> None:
    """*node* gets *many* elements; then it and a *fresh* one take adds in turns, as the machine may
    be another one a minute later."""
    async with connect(node.endpoint) as large, connect(fresh.endpoint) as small:
        await _adds(small, "warm", range(2_000))
        await _adds(large, "many", range(many), LOAD_OUTSTANDING)
        few_rounds, many_rounds = [], []
        for at in range(ROUNDS):
            few_rounds.append(await _adds(small, f"few-{at}", range(20 * FEW)))
            start = many + 20 * FEW * at
            many_rounds.append(await _adds(large, "many", range(start, start + 20 * FEW)))
        found.adds_per_s, found.adds_per_s_many = median(few_rounds), median(many_rounds)
        found.elements_many = many
        print(
            f"{found.adds_per_s:,.0f} adds/s, {found.adds_per_s_many:,.0f} with {many:,} elements",
            flush=True,
        )


async def _store_bytes(db: Database) -> int:
    return int((await db.status())["crdt"]["store_bytes"])


async def _churn(directory: Path, found: Figures, pairs: int) -> None:
    """Add and remove over and over; beside it a store that only ever had what is left."""
    sizes = []
    for name, rounds in (("fresh", 0), ("churned", pairs // LIVE)):
        (directory / name).mkdir()
        with QuorateCluster(directory / name, 1) as cluster:
            async with connect(cluster.endpoints) as db:
                elements = db.set("live")
                for _ in range(rounds):
                    await _each(elements.add, map(str, range(LIVE)), LOAD_OUTSTANDING)
                    await _each(elements.remove, map(str, range(LIVE)), LOAD_OUTSTANDING)
                await _each(elements.add, map(str, range(LIVE)), LOAD_OUTSTANDING)
                await asyncio.sleep(10.0)  # records that everybody has go
                for _ in range(300):
                    await elements.add("0")
                sizes.append(await _store_bytes(db))
    found.churn_pairs, found.churn_ratio = pairs, sizes[1] / sizes[0]
    print(f"after {pairs:,} pairs: {sizes[1]:,} bytes, fresh {sizes[0]:,}", flush=True)


# --- nodes that lose each other -------------------------------------------------------------------


class Relay:
    """What others send to one node, counted; nothing passes while it is cut."""

    def __init__(self, port: int, target: str) -> None:
        self.port = port
        self.bytes = 0
        self._host, _, at = target.partition(":")
        self._at = int(at)
        self._cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    def cut(self) -> None:
        """End what there is, refuse what comes."""
        self._cut = True
        for task in self._tasks:
            task.cancel()

    def heal(self) -> None:
        """Let connections in again."""
        self._cut = False

    async def stop(self) -> None:
        """End everything."""
        self.cut()
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._cut or task is None:
            writer.transport.abort()
            return
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(self._host, self._at)
            await asyncio.gather(self._pass(reader, there), self._pass(back, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            if there is not None:
                there.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            self.bytes += len(data)
            target.write(data)
            await target.drain()
        raise ConnectionResetError


@contextlib.asynccontextmanager
async def _relayed(directory: Path) -> AsyncIterator[tuple[list[NodeProcess], list[Relay]]]:
    """Three nodes that reach each other through relays, and clients that reach them directly."""
    ports = free_ports(6)
    members = ",".join(f"{number}=127.0.0.1:{ports[number + 2]}" for number in (1, 2, 3))
    nodes = [
        NodeProcess(number, ports[number - 1], directory, ["--initial", members])
        for number in (1, 2, 3)
    ]
    relays = [Relay(ports[node.number + 2], node.endpoint) for node in nodes]
    try:
        for relay in relays:
            await relay.start()
        for node in nodes:
            node.start()
        for node in nodes:
            await asyncio.to_thread(node.wait_serving)
        yield nodes, relays
    finally:
        for node in nodes:
            node.kill()
        for relay in relays:
            await relay.stop()


async def _three_nodes(directory: Path, found: Figures) -> None:
    async with _relayed(directory) as (nodes, relays), contextlib.AsyncExitStack() as stack:
        handles = [
            await stack.enter_async_context(connect(node.endpoint, follow_leader=False))
            for node in nodes
        ]
        before = await _cpu_of(nodes)
        for db in handles:
            await db.set("s").add("begin", level="strong")
        found.reach_ms = await _reach_ms(handles[0])
        print(f"an add is durable on all three after {found.reach_ms:.2f} ms", flush=True)
        for relay in relays:
            relay.cut()
        began = time.perf_counter()
        share = DIFFERENCE // 3
        for at, db in enumerate(handles):
            await _adds(db, "s", range(at * share, (at + 1) * share))
        await asyncio.sleep(max(0.0, CUT_S - (time.perf_counter() - began)))
        carried = sum(relay.bytes for relay in relays)
        for relay in relays:
            relay.heal()
        found.equal_s = await _until_equal(handles, 1 + 3 * share)
        carried = sum(relay.bytes for relay in relays) - carried
        found.wire_ratio = carried / (2 * 3 * share * _element_bytes())
        print(f"equal after {found.equal_s:.2f} s, {found.wire_ratio:.2f} x the bytes", flush=True)
        await asyncio.sleep(2.0)
        found.idle_cpu = max(0.0, max(await _cpu_of(nodes)) - max(before))


def _element_bytes() -> int:
    """What one of the elements takes, key and all."""
    path = (*place("s", ORSet), encode_key("element-000000000"))
    return len(path_key(path)) + len(encode_leaf(((make_actor(1, 1), 1000, b""),)))


async def _cpu_of(nodes: list[NodeProcess]) -> list[float]:
    """Parts of a core that each took over ``IDLE_S``."""
    pids = [node.process.pid for node in nodes if node.process is not None]
    before = [cpu_s(pid) for pid in pids]
    await asyncio.sleep(IDLE_S)
    return [(cpu_s(pid) - then) / IDLE_S for pid, then in zip(pids, before, strict=True)]


async def _reach_ms(db: Database) -> float:
    taken = []
    for number in range(STRONG_WRITES):
        began = time.perf_counter()
        await db.set("s").add(f"reach-{number % 10}", level="strong")
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(0.005)
    return median(taken) * MS


async def _until_equal(handles: list[Database], at_least: int) -> float:
    """Seconds until every node has every record of every other."""
    began = time.perf_counter()
    while True:
        told = [(await db.status())["crdt"] for db in handles]
        behind = [each["peers_behind"].values() for each in told]
        if all(len(each) == len(handles) - 1 and not any(each) for each in behind):
            took = time.perf_counter() - began
            for db in handles:
                if await db.set("s").count() < at_least:
                    raise BenchError("nodes that are equal lack elements")
            return took
        if time.perf_counter() - began > 60.0:
            raise BenchError(f"not equal after a minute: {told}")
        await asyncio.sleep(0.02)


# --- a new member ---------------------------------------------------------------------------------


async def _sync(cluster: QuorateCluster, found: Figures, count: int) -> None:
    """Let an empty member take all elements over; watch what memory that takes."""
    node = cluster.nodes[1]
    new = await asyncio.to_thread(cluster.add_process, 2)
    await asyncio.to_thread(_wait_process, new)
    base = {each.number: each.resident_bytes for each in (node, new)}
    most = dict(base)
    began = time.perf_counter()
    await asyncio.to_thread(add_member, cluster, new)
    async with connect(new.endpoint, follow_leader=False) as db, connect(node.endpoint) as there:
        wanted = (await there.status())["crdt"]["records"]
        while (await db.status())["crdt"]["records"] < wanted:
            for each in (node, new):
                most[each.number] = max(most[each.number], each.resident_bytes)
            if time.perf_counter() - began > 300.0:
                raise BenchError("the new member did not catch up within 300 s")
            await asyncio.sleep(0.05)
        found.sync_s = time.perf_counter() - began
        if not await db.set("many").contains(f"element-{count - 1:09d}"):
            raise BenchError("the new member lacks elements")
    found.sync_growth_mib = max(most[number] - base[number] for number in base) / MIB
    print(f"synced in {found.sync_s:.1f} s, {found.sync_growth_mib:.0f} MiB more", flush=True)


def _wait_process(node: NodeProcess) -> None:
    time.sleep(2.0)
    if not node.running:
        raise BenchError(f"node {node.number} has ended")


def crdt(
    *, elements: int = 1_000_000, pairs: int = 1_000_000, parent: Path | None = None
) -> dict[str, object]:
    """Measure and print; returns the report."""
    found = Figures()
    with scratch_directory(parent) as directory:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": versions("quorate", "msgspec", "lmdb", "uvloop"),
            "fsync_4kib_ms": {"p50": median(fsync_latencies_s(directory)) * MS},
            "kind": KindTag.OR_SET.name,
        }
        print(report.facts_text(facts), flush=True)
        (directory / "three").mkdir()
        asyncio.run(_three_nodes(directory / "three", found))
        for name in ("one", "small"):
            (directory / name).mkdir()
        with QuorateCluster(directory / "one", 1) as cluster:
            with QuorateCluster(directory / "small", 1) as fresh:
                asyncio.run(_one_node(cluster.nodes[1], fresh.nodes[1], found, elements))
            asyncio.run(_sync(cluster, found, elements))
        asyncio.run(_churn(directory, found, pairs))
    bars = _bars(found)
    print("", report.bars_table(bars), sep="\n", flush=True)
    plain = json.loads(msgspec.json.encode(found))
    return {**facts, "figures": plain, "bars": [bar.to_json() for bar in bars]}


def _bars(found: Figures) -> list[Bar]:
    return [
        Bar("adds/s, one handle, 100 outstanding", found.adds_per_s, ADDS_PER_S_MIN),
        Bar(
            f"cost of an add at {found.elements_many:,} / at {FEW:,}",
            found.adds_per_s / max(found.adds_per_s_many, 1e-9),
            FLAT_MAX,
            most=True,
        ),
        Bar("seconds to equal after 10 s apart", found.equal_s, EQUAL_S_MAX, most=True),
        Bar("bytes on the wire / difference", found.wire_ratio, WIRE_RATIO_MAX, most=True),
        Bar("idle core", found.idle_cpu, IDLE_CPU_MAX, most=True),
        Bar("growth during a sync, MiB", found.sync_growth_mib, SYNC_GROWTH_MIB_MAX, most=True),
        Bar("store after churn / fresh", found.churn_ratio, CHURN_RATIO_MAX, most=True),
        Bar("add durable on three nodes, ms", found.reach_ms, REACH_MS_MAX, most=True),
    ]
