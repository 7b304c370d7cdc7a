"""``tasks``: enqueueing, whole lives through one worker process, and how soon a task begins.

A *life* is a task enqueued, handed to a worker, run as a Python function that does nothing, and
completed. Submitter and worker are processes of their own, beside those of three nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import msgspec

from bench import access, processes, report
from bench.cluster import QuorateCluster
from bench.measure import MS, Sample, fsync_latencies_s, machine, median, versions
from bench.processes import BenchError, scratch_directory
from bench.report import Bar
from bench.systems.celery_system import CelerySystem
from bench.systems.dramatiq_system import DramatiqSystem
from bench.systems.quorate_system import QuorateSystem
from bench.systems.rabbitmq import RabbitmqSystem
from bench.systems.task_peer import PAYLOAD, TaskPeer, TaskRow, rate_row, row_of
from bench.task_app import app, nothing, since
from bench.task_deaths import WORKERS, Deaths, deaths
from bench.task_protocol import BATCH as PROTOCOL_BATCH
from bench.task_protocol import BATCHES, protocol_lives
from bench.task_waiting import FEW, MANY, claims
from bench.workloads import Window
from quorate.client.database import Database, connect

ENQUEUES_MIN: Final = 15_000.0
BATCHED_MIN: Final = 40_000.0
LIVES_MIN: Final = 8_000.0
PROTOCOL_LIVES_MIN: Final = 25_000.0
START_MS_MAX: Final = 5.0
ENQUEUE_PUTS_MAX: Final = 1.5
CLAIMS_FALL_MAX: Final = 1.25
DEATH_LATE_S_MAX: Final = 1.0
DEATH_LEAVES_MIN: Final = 0.95

OUTSTANDING: Final = 100
BATCH: Final = 100
#: Tasks that are not done yet, in a run of lives.
LIVES_OUTSTANDING: Final = (100, 500)
WAIT_S: Final = 60.0


PEERS: dict[str, Callable[[], TaskPeer]] = {
    "rabbitmq": RabbitmqSystem,
    "dramatiq": DramatiqSystem,
    "celery": CelerySystem,
}
#: Rows of a peer, and that of quorate which does the same or more.
AGAINST: Final = {
    "rabbitmq": {
        "enqueue": ("enqueue", OUTSTANDING),
        "life, not awaited": ("life, not awaited", OUTSTANDING),
    },
    "dramatiq": {
        "enqueue": ("enqueue", OUTSTANDING),
        "run by a worker": ("life, not awaited", OUTSTANDING),
    },
    "celery": {
        "enqueue": ("enqueue", OUTSTANDING),
        "run by a worker": ("life, not awaited", OUTSTANDING),
    },
}

#: (system, what, outstanding)
Key = tuple[str, str, int]


# --- what is measured -----------------------------------------------------------------------------


async def enqueues(db: Database, seconds: float, outstanding: int) -> Sample:
    """Single tasks, that nobody runs."""
    window = Window(seconds)

    async def lane() -> None:
        began = time.perf_counter()
        while began < window.ends:
            await db.tasks.enqueue("nobody", PAYLOAD, queue="waiting")
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done

    await asyncio.gather(*(lane() for _ in range(outstanding)))
    return window.sample()


async def batches(db: Database, seconds: float, outstanding: int) -> Sample:
    """Batches of them; a sample of tasks, each with the latency of its batch."""
    window = Window(seconds)
    batch = [db.tasks.task("nobody", PAYLOAD, queue="waiting")] * BATCH

    async def lane() -> None:
        began = time.perf_counter()
        while began < window.ends:
            await db.tasks.enqueue_many(batch)
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s += [done - began] * BATCH
            began = done

    await asyncio.gather(*(lane() for _ in range(outstanding)))
    return window.sample()


async def puts(db: Database, seconds: float) -> Sample:
    """One after another, to hold enqueueing against."""
    window = Window(seconds)
    began = time.perf_counter()
    while began < window.ends:
        await db.kv.put("bench/put", PAYLOAD)
        done = time.perf_counter()
        if window.begins <= done < window.ends:
            window.latencies_s.append(done - began)
        began = done
    return window.sample()


async def lives(_db: Database, seconds: float, outstanding: int) -> Sample:
    """Whole lives, with results awaited: as many tasks as said are not done at any time."""
    window = Window(seconds)

    async def lane() -> None:
        began = time.perf_counter()
        while began < window.ends:
            await (await nothing.submit(PAYLOAD))
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done

    await asyncio.gather(*(lane() for _ in range(outstanding)))
    return window.sample()


async def streamed_lives(db: Database, seconds: float, outstanding: int) -> Sample:
    """Whole lives of tasks whose results nobody awaits, from the first to the end of the last."""
    before = await _done(db)
    began = time.perf_counter()
    count = 0

    async def lane() -> None:
        nonlocal count
        while time.perf_counter() - began < seconds:
            await nothing.submit(PAYLOAD)
            count += 1

    await asyncio.gather(*(lane() for _ in range(outstanding)))
    async with asyncio.timeout(WAIT_S):
        while await _done(db) - before < count:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    took_s = time.perf_counter() - began
    return Sample([took_s / count] * count, took_s)


async def _done(db: Database) -> int:
    return sum(each.done for each in await db.tasks.workers())


async def starts(count: int = 200) -> Sample:
    """From the call that enqueues to the first line of the function, one by one, with a pause."""
    latencies = []
    for _ in range(count):
        result = await since.submit(time.monotonic())
        latencies.append(await result)
        await asyncio.sleep(0.01)
    return Sample(latencies, sum(latencies))


async def _clear(db: Database) -> None:
    await db.tasks.purge("ready", "waiting")
    await db.tasks.purge("cancelled")
    await db.tasks.purge("done")


# --- a round --------------------------------------------------------------------------------------


async def _round(endpoints: str, seconds: float) -> list[TaskRow]:
    async with connect(endpoints, timeout=30) as db:
        app.use(db)
        rows = [
            row_of("put", 1, await puts(db, seconds)),
            row_of("enqueue", 1, await enqueues(db, seconds, 1)),
            row_of("enqueue", OUTSTANDING, await enqueues(db, seconds, OUTSTANDING)),
            row_of(f"enqueue {BATCH} at once", 8, await batches(db, seconds, 8)),
        ]
        await _clear(db)
        rows.append(row_of("start", 1, await starts()))
        for many in LIVES_OUTSTANDING:
            sample = await lives(db, seconds, many)
            rows.append(row_of("life, awaited", many, sample))
        streamed = await streamed_lives(db, seconds, OUTSTANDING)
        rows.append(row_of("life, not awaited", OUTSTANDING, streamed))
        await _clear(db)
        per_s = await protocol_lives(db, seconds)
        rows.append(rate_row("protocol-lives", BATCHES * PROTOCOL_BATCH, per_s))
        await _clear(db)
    return rows


def _start_worker(directory: Path, endpoints: str) -> Popen[bytes]:
    command = [sys.executable, "-m", "quorate", "worker", "bench.task_app:app"]
    command += ["--connect", endpoints, "--concurrency", "1000", "--queues", "lives"]
    return processes.start(command, directory / "worker.log")


async def _wait_worker(endpoints: str) -> None:
    async with connect(endpoints) as db, asyncio.timeout(WAIT_S):
        while not await db.tasks.workers():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


def choose_peers(names: Sequence[str]) -> tuple[list[TaskPeer], dict[str, str]]:
    """(those that can run, why the others cannot).

    Raises:
        BenchError: a name is unknown.
    """
    able: list[TaskPeer] = []
    absent: dict[str, str] = {}
    for name in names:
        if name not in PEERS:
            raise BenchError(f"unknown peer {name!r}; there are {', '.join(PEERS)}")
        peer = PEERS[name]()
        reason = peer.missing()
        if reason is None:
            able.append(peer)
        else:
            absent[name] = reason
    return able, absent


def tasks(
    *,
    peers: Sequence[str] = (),
    rounds: int = 3,
    seconds: float = 3.0,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Measure and print; returns the report."""
    if reason := QuorateSystem().missing():
        raise BenchError(reason)
    able, absent = choose_peers(peers)
    for name, reason in absent.items():
        print(f"left out: {name}: {reason}")
    found: dict[Key, list[TaskRow]] = {}
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": {
                **versions("quorate", "msgspec", "lmdb", "uvloop"),
                **{peer.name: peer.version() for peer in able},
            },
            "fsync_4kib_ms": {"p50": median(fsync_latencies_s(directory)) * MS},
            "rounds": {"count": rounds, "seconds": seconds},
        }
        promises = {"quorate": "three nodes: durable and replicated"}
        promises |= {peer.name: peer.promises for peer in able}
        facts["promises"] = promises
        print(report.facts_text(facts), flush=True)
        cluster = stack.enter_context(QuorateCluster(directory))
        endpoints = ",".join(cluster.endpoints)
        worker = _start_worker(directory, endpoints)
        stack.callback(processes.kill, worker)
        access.run(_wait_worker(endpoints))
        for peer in able:
            stack.callback(peer.stop)
            peer.start(directory)
        for number in range(rounds):
            rows = access.run(_round(endpoints, seconds))
            for peer in able:
                rows += peer.round(seconds)
            for row in rows:
                found.setdefault((row.system, row.what, row.outstanding), []).append(row)
            print(f"round {number + 1} of {rounds} done, load {os.getloadavg()[0]:.1f}", flush=True)
        stack.close()
        aside = _aside(directory, rounds, seconds)
    return finish(facts, {key: _middle(each) for key, each in found.items()}, absent, aside)


class Aside(msgspec.Struct, frozen=True):
    """What is measured on clusters of its own. *claims*: tasks per second, by how many wait."""

    deaths: Deaths
    claims: dict[int, float]

    def bars(self) -> list[Bar]:
        """Against what is required."""
        fall = self.claims[FEW] / self.claims[MANY]
        left = self.deaths.after / self.deaths.before
        return [
            Bar(f"claims/s, {FEW:,} waiting / {MANY:,}", fall, CLAIMS_FALL_MAX, most=True),
            Bar(
                "a killed worker's tasks begin after its lease, s",
                self.deaths.late_s,
                DEATH_LATE_S_MAX,
                most=True,
            ),
            Bar(f"tasks/s, one of {WORKERS} workers killed / before", left, DEATH_LEAVES_MIN),
        ]


def _aside(directory: Path, rounds: int, seconds: float) -> Aside:
    apart = directory / "deaths"
    apart.mkdir()
    with QuorateCluster(apart) as cluster:
        endpoints = ",".join(cluster.endpoints)
        died = access.run(_deaths(apart, endpoints))
    print(f"{died.moved} tasks of a killed worker moved", flush=True)
    return Aside(died, access.run(claims(directory, rounds, seconds)))


async def _deaths(directory: Path, endpoints: str) -> Deaths:
    async with connect(endpoints, timeout=30) as db:
        app.use(db)
        return await deaths(db, directory, endpoints)


def finish(
    facts: dict[str, object], rows: dict[Key, TaskRow], absent: dict[str, str], aside: Aside
) -> dict[str, Any]:
    """Print the tables and make the report."""
    bars = _bars(rows) + aside.bars()
    headings = ("system", "what", "outstanding", "tasks/s", "p50 ms", "p99 ms")
    lines = [(row.system, *msgspec.structs.astuple(row)[:-1]) for row in rows.values()]
    print("", report.table(headings, lines), "", report.bars_table(bars), sep="\n")
    ratios = _ratios(rows)
    if ratios:
        shown = [(each["name"], each["ratio"]) for each in ratios]
        print("", report.table(("quorate by", "ratio"), shown), sep="\n")
    plain = json.loads(msgspec.json.encode(list(rows.values())))
    told = [bar.to_json() for bar in bars]
    apart = msgspec.to_builtins(aside, str_keys=True)
    return {**facts, "rows": plain, **apart, "bars": told, "ratios": ratios, "left_out": absent}


def _ratios(rows: dict[Key, TaskRow]) -> list[dict[str, Any]]:
    """Quorate's row by the peer's, wherever both were measured."""
    found = []
    for (system, what, _), row in rows.items():
        ours = rows.get(("quorate", *AGAINST.get(system, {}).get(what, ("", 0))))
        if ours is not None:
            name = f"{ours.what}, {ours.outstanding} outstanding / {system}: {what}"
            found.append({"name": name, "ratio": ours.tasks_per_s / row.tasks_per_s})
    return found


def _middle(rounds: Sequence[TaskRow]) -> TaskRow:
    return msgspec.structs.replace(
        rounds[0],
        tasks_per_s=median([row.tasks_per_s for row in rounds]),
        p50_ms=median([row.p50_ms for row in rounds]),
        p99_ms=median([row.p99_ms for row in rounds]),
    )


def _bars(rows: dict[Key, TaskRow]) -> list[Bar]:
    ours = {(what, many): row for (system, what, many), row in rows.items() if system == "quorate"}
    alone = ours["enqueue", 1].p50_ms / ours["put", 1].p50_ms
    most = max(row.tasks_per_s for row in ours.values() if row.what.startswith("life"))
    batched = ours[f"enqueue {BATCH} at once", 8].tasks_per_s
    singles = ours["enqueue", OUTSTANDING].tasks_per_s
    bare = ours["protocol-lives", BATCHES * PROTOCOL_BATCH].tasks_per_s
    return [
        Bar("enqueue p50 / put p50, one client", alone, ENQUEUE_PUTS_MAX, most=True),
        Bar(f"enqueues/s, {OUTSTANDING} outstanding", singles, ENQUEUES_MIN),
        Bar(f"tasks/s in batches of {BATCH}", batched, BATCHED_MIN),
        Bar("lives/s through one worker", most, LIVES_MIN),
        Bar(f"lives/s by commands of {PROTOCOL_BATCH}", bare, PROTOCOL_LIVES_MIN),
        Bar("enqueue to start p50, ms", ours["start", 1].p50_ms, START_MS_MAX, most=True),
    ]
