"""The words of a directory of text, counted by several workers as one workflow.

    quorate worker word_count:app --connect a:7400,b:7400,c:7400     (one or more, in examples/)
    python examples/word_count.py DIRECTORY --endpoints a:7400,b:7400,c:7400

Without endpoints it plays all of it on this machine, with three node processes and three workers,
kills a worker and the leader in the middle, and compares what comes out with a plain loop over the
same files. The default is the source text of Python's own asyncio.

A *map* task counts one piece of a file, which every worker must be able to read. *reduce* tasks add
up what up to FAN_IN others came to, as a tree, for each PART of the words by itself: so no result
outgrows its bound. The last one tells how many there are in all. One ``submit`` takes 1,000 tasks,
which is some 15 MB of text.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import quorate
from quorate.server.local_cluster import LocalCluster

PIECE_BYTES = 64 * 1024  #: of text, for one map task, or one line if that is longer
PART_BYTES = 384 * 1024  #: of text, whose words surely fit into one result
FAN_IN = 16
WORD = re.compile(r"\w+")
SUFFIXES = (".md", ".py", ".rst", ".txt")
WORKERS = 3
FATE = "all who are to die are dead"  #: in the play, the workflow does not end before

app = quorate.App("word-count")


# --- the tasks ------------------------------------------------------------------------------------


@app.task(name="map", queue="words")
def count_piece(path: str, offset: int, size: int) -> dict[str, int]:
    """The words of one piece of a file."""
    with Path(path).open("rb") as file:
        file.seek(offset)
        return collections.Counter(words(file.read(size)))


@app.task(name="reduce", queue="words")
async def add_up(part: int, parts: int) -> dict[str, int]:
    """Those words of all inputs that belong to one part."""
    found: collections.Counter[str] = collections.Counter()
    async for counts in inputs():
        found.update({word: n for word, n in counts.items() if part_of(word, parts) == part})
    return found


@app.task(name="total", queue="words")
async def total() -> tuple[int, int]:
    """(words, different ones) of all parts."""
    every = different = 0
    async for counts in inputs():
        every += sum(counts.values())
        different += len(counts)
    return every, different


async def inputs() -> AsyncIterator[dict[str, int]]:
    """What the nodes before came to; what was too long to come along is asked for."""
    context = app.context()
    for each in context.assignment.inputs:
        if each.node != FATE:
            result = each.result
            if result is None:
                result = (await app.db.tasks.info(each.task)).result
            yield msgspec.msgpack.decode(result, type=dict[str, int])


def words(text: bytes) -> Iterator[str]:
    """Words as they are counted here."""
    return (found.group() for found in WORD.finditer(text.decode("utf-8", "replace").lower()))


def part_of(word: str, parts: int) -> int:
    """The same in every process, unlike ``hash``."""
    return zlib.crc32(word.encode()) % parts


# --- the workflow ---------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Whole lines of a file, in bytes."""

    path: str
    offset: int
    size: int


def pieces(path: Path) -> Iterator[Piece]:
    """A file, cut where lines end: no word is in two pieces."""
    offset = 0
    with path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            size = len(block) + len(file.readline())
            yield Piece(str(path.resolve()), offset, size)
            offset += size


def make_workflow(files: list[Path], *, fate: bool) -> tuple[quorate.Workflow, list[str]]:
    """The workflow, and the names of the nodes whose results are the parts of the count."""
    flow = quorate.Workflow("word count")
    given = [piece for path in files for piece in pieces(path)]
    mapped = [flow.add(f"map {n}", "map", args=each) for n, each in enumerate(given)]
    parts = 1 + sum(piece.size for piece in given) // PART_BYTES
    tops = []
    for part in range(parts):
        level, names = 0, mapped
        while level == 0 or len(names) > 1:
            level += 1
            groups = [names[at : at + FAN_IN] for at in range(0, len(names), FAN_IN)]
            names = [
                flow.add(f"reduce {part}.{level}.{n}", "reduce", args=(part, parts), after=group)
                for n, group in enumerate(groups)
            ]
        tops += names
    last = [flow.signal(FATE)] if fate else []
    flow.add("total", "total", after=[*tops, *last])
    return flow, tops


async def count(db: quorate.Database, files: list[Path], fates: Fates | None) -> tuple[int, int]:
    """Submit, watch, and kill whoever is to be killed; (words, different ones)."""
    flow, tops = make_workflow(files, fate=fates is not None)
    run = await db.workflows.submit(flow)
    with progress_bar(len(flow.nodes)) as show:
        async for event in run.progress():
            show(event.done)
            if fates is not None and await fates.strike(db, event.done / event.total):
                await run.signal(FATE)
    nodes = await run.nodes()
    if event.what != "done":
        raise SystemExit(f"the workflow is {event.what}: {(await run.info()).cause}")
    found = msgspec.msgpack.decode(nodes["total"].result, type=tuple[int, int])
    if fates is not None:
        fates.again = sum(each.attempt > 1 for each in nodes.values())
        results = [msgspec.msgpack.decode(nodes[name].result) for name in tops]
        await asyncio.to_thread(compare, files, results)
    return found


def compare(files: list[Path], parts: list[dict[str, int]]) -> None:
    """All parts together are what a plain loop over the files counts."""
    plain = collections.Counter(word for path in files for word in words(path.read_bytes()))
    found: collections.Counter[str] = collections.Counter()
    for part in parts:
        found.update(part)
    if found != plain:
        raise SystemExit(
            f"words that were not counted right: {dict((found - plain) | (plain - found))}"
        )


@contextlib.contextmanager
def progress_bar(every: int) -> Iterator[Any]:
    """A function to call with how many are done: a bar at a terminal with rich, otherwise lines."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.progress import Progress  # noqa: PLC0415  it need not be there

        with Progress() as bar:
            line = bar.add_task("counting", total=every)
            yield lambda done: bar.update(line, completed=done)
        return
    tenths = -1

    def show(done: int) -> None:
        nonlocal tenths
        if 10 * done // every > tenths:
            tenths = 10 * done // every
            print(f"{done} of {every} tasks done", flush=True)

    yield show


# --- the play -------------------------------------------------------------------------------------


class Fates:
    """Who is killed, and when."""

    def __init__(self, cluster: LocalCluster, workers: dict[str, subprocess.Popen[bytes]]) -> None:
        self._cluster = cluster
        self._workers = workers
        self.worker = 0  #: process id
        self.leader = 0  #: number of the node
        self.again = 0  #: tasks that had to be run again

    async def strike(self, db: quorate.Database, part: float) -> bool:
        """Kill a worker at a fifth of the work and the leader at two fifths; whether both are."""
        if not self.worker and part >= 1 / 5:
            busiest = max(await db.tasks.workers(), key=lambda each: each.tasks)
            process = self._workers[busiest.name]
            process.kill()
            process.wait()
            self.worker = process.pid
        if not self.leader and part >= 2 / 5:
            leader = await self._cluster.leader()
            leader.kill()
            self.leader = leader.number
        return bool(self.worker and self.leader)


@contextlib.contextmanager
def worker_processes(endpoints: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """By name; they are gone at the end."""
    here = Path(__file__).resolve().parent
    root = Path(quorate.__file__).resolve().parents[1]
    known = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(known)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # they leave nothing behind, not even caches
    command = [sys.executable, "-P", "-m", "quorate", "worker", f"{Path(__file__).stem}:app"]
    command += ["--connect", endpoints, "--ttl", "1", "--log-level", "error"]
    begun = {}
    try:
        for number in range(1, WORKERS + 1):
            name = f"worker {number}"
            begun[name] = subprocess.Popen(  # noqa: S603  our own interpreter
                [*command, "--name", name],
                cwd=here,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        yield begun
    finally:
        for process in begun.values():
            process.kill()
            process.wait()


async def play(files: list[Path]) -> None:
    """A cluster and workers of its own, two of which do not live to see the end."""
    async with LocalCluster(3) as cluster, quorate.connect(cluster.endpoints, timeout=30) as db:
        with worker_processes(cluster.endpoints) as workers:
            while len(await db.tasks.workers()) < WORKERS:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.02)
            fates = Fates(cluster, workers)
            every, _different = await count(db, files, fates)
    print(
        f"{len(files)} files, {every} words, equal to collections.Counter; killed: worker "
        f"{fates.worker}, leader node {fates.leader}; tasks that were run again: {fates.again}"
    )


async def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(asyncio.__file__).parent)
    parser.add_argument("--endpoints", default="")
    options = parser.parse_args()
    files = sorted(path for path in options.directory.iterdir() if path.suffix in SUFFIXES)
    if not files:
        parser.error(f"there is no text in {options.directory}")
    if not options.endpoints:
        await play(files)
        return
    async with quorate.connect(options.endpoints) as db:
        every, different = await count(db, files, None)
    print(f"{len(files)} files, {every} words, {different} different ones")


if __name__ == "__main__":
    asyncio.run(main())
