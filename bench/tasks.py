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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import access, processes, report
from bench.cluster import QuorateCluster
from bench.measure import MS, Sample, figures, fsync_latencies_s, machine, median, versions
from bench.processes import BenchError, scratch_directory
from bench.report import Bar
from bench.systems.quorate_system import QuorateSystem
from bench.task_app import app, nothing, since
from bench.workloads import Window
from quorate.client.database import Database, connect

ENQUEUES_MIN: Final = 15_000.0
BATCHED_MIN: Final = 40_000.0
LIVES_MIN: Final = 8_000.0
START_MS_MAX: Final = 5.0
ENQUEUE_PUTS_MAX: Final = 1.5

OUTSTANDING: Final = 100
BATCH: Final = 100
#: Tasks that are not done yet, in a run of lives.
LIVES_OUTSTANDING: Final = (100, 500)
PAYLOAD: Final = b"x" * 100
WAIT_S: Final = 60.0


class TaskRow(msgspec.Struct, frozen=True):
    """One way of using tasks. *outstanding*: calls under way, or tasks that are not done."""

    what: str
    outstanding: int
    tasks_per_s: float
    p50_ms: float
    p99_ms: float


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
            _row("put", 1, await puts(db, seconds)),
            _row("enqueue", 1, await enqueues(db, seconds, 1)),
            _row("enqueue", OUTSTANDING, await enqueues(db, seconds, OUTSTANDING)),
            _row(f"enqueue {BATCH} at once", 8, await batches(db, seconds, 8)),
        ]
        await _clear(db)
        rows.append(_row("start", 1, await starts()))
        for many in LIVES_OUTSTANDING:
            sample = await lives(db, seconds, many)
            rows.append(_row("life, awaited", many, sample))
        streamed = await streamed_lives(db, seconds, OUTSTANDING)
        rows.append(_row("life, not awaited", OUTSTANDING, streamed))
        await _clear(db)
    return rows


def _row(what: str, outstanding: int, sample: Sample) -> TaskRow:
    found = figures(sample)
    return TaskRow(what, outstanding, found.ops_per_s, found.p50_ms, found.p99_ms)


def _start_worker(directory: Path, endpoints: str) -> None:
    command = [sys.executable, "-m", "quorate", "worker", "bench.task_app:app"]
    command += ["--connect", endpoints, "--concurrency", "1000", "--queues", "lives"]
    processes.start(command, directory / "worker.log")


async def _wait_worker(endpoints: str) -> None:
    async with connect(endpoints) as db, asyncio.timeout(WAIT_S):
        while not await db.tasks.workers():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


def tasks(*, rounds: int = 3, seconds: float = 3.0, parent: Path | None = None) -> dict[str, Any]:
    """Measure and print; returns the report."""
    if reason := QuorateSystem().missing():
        raise BenchError(reason)
    found: dict[tuple[str, int], list[TaskRow]] = {}
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": versions("quorate", "msgspec", "lmdb", "uvloop"),
            "fsync_4kib_ms": {"p50": median(fsync_latencies_s(directory)) * MS},
            "rounds": {"count": rounds, "seconds": seconds},
        }
        print(report.facts_text(facts), flush=True)
        cluster = stack.enter_context(QuorateCluster(directory))
        endpoints = ",".join(cluster.endpoints)
        _start_worker(directory, endpoints)
        access.run(_wait_worker(endpoints))
        for number in range(rounds):
            for row in access.run(_round(endpoints, seconds)):
                found.setdefault((row.what, row.outstanding), []).append(row)
            print(f"round {number + 1} of {rounds} done, load {os.getloadavg()[0]:.1f}", flush=True)
    rows = {key: _middle(each) for key, each in found.items()}
    bars = _bars(rows)
    headings = ("what", "outstanding", "tasks/s", "p50 ms", "p99 ms")
    lines = [msgspec.structs.astuple(row) for row in rows.values()]
    print("", report.table(headings, lines), "", report.bars_table(bars), sep="\n")
    plain = json.loads(msgspec.json.encode(list(rows.values())))
    return {**facts, "rows": plain, "bars": [bar.to_json() for bar in bars]}


def _middle(rounds: Sequence[TaskRow]) -> TaskRow:
    return TaskRow(
        rounds[0].what,
        rounds[0].outstanding,
        median([row.tasks_per_s for row in rounds]),
        median([row.p50_ms for row in rounds]),
        median([row.p99_ms for row in rounds]),
    )


def _bars(rows: dict[tuple[str, int], TaskRow]) -> list[Bar]:
    alone = rows["enqueue", 1].p50_ms / rows["put", 1].p50_ms
    most = max(row.tasks_per_s for row in rows.values() if row.what.startswith("life"))
    batched = rows[f"enqueue {BATCH} at once", 8].tasks_per_s
    singles = rows["enqueue", OUTSTANDING].tasks_per_s
    return [
        Bar("enqueue p50 / put p50, one client", alone, ENQUEUE_PUTS_MAX, most=True),
        Bar(f"enqueues/s, {OUTSTANDING} outstanding", singles, ENQUEUES_MIN),
        Bar(f"tasks/s in batches of {BATCH}", batched, BATCHED_MIN),
        Bar("lives/s through one worker", most, LIVES_MIN),
        Bar("enqueue to start p50, ms", rows["start", 1].p50_ms, START_MS_MAX, most=True),
    ]
