"""``reads``: reads through three nodes beside reads through the leader alone, at each level.

Client processes, one per node, each with many reads outstanding. *leader*: all ask the leader, as
handles do by default. *three nodes*: each asks a node of its own, the leader among them. *any*:
handles opened with ``reads="any"``, which ask those that do not lead. In turns, round by round.

Where nodes and clients share few cores, three nodes cannot read faster than one: all of them wait
for the same processors. What still shows there is the work that the leader is spared, so its
processor time per read stands beside the reads per second.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench import access, report
from bench.cluster import QuorateCluster
from bench.measure import Figures, figures, machine, median, versions
from bench.processes import BenchError, scratch_directory, spawn, stop, tail
from bench.workloads import KEYS_COUNT, drive, keys, values
from quorate.base.levels import Level
from quorate.client.database import connect

LEVELS: tuple[Level, ...] = ("quorum", "causal", "eventual")
Way = Literal["leader", "three nodes", "any"]
WAYS: tuple[Way, ...] = ("leader", "three nodes", "any")
OUTSTANDING = 100


class ReadsRow(msgspec.Struct, frozen=True):
    """One level, one way; medians over the rounds. *cpu*: microseconds of processor time per read,
    of the leader and of all nodes together."""

    level: str
    through: str
    ops_per_s: float
    p50_ms: float
    p99_ms: float
    leader_cpu_us: float
    nodes_cpu_us: float


class Spec(msgspec.Struct, frozen=True):
    """What one client process does. *endpoint*: of its own node, for those that are pinned."""

    endpoints: list[str]
    endpoint: str
    level: Level
    way: Way
    seconds: float


# --- a client process ----------------------------------------------------------------------------


async def client(spec: Spec) -> Figures:
    """Read at the level, in the way, for the time; begins when told to on stdin."""
    pinned = spec.way == "three nodes"
    async with connect(
        spec.endpoint if pinned else ",".join(spec.endpoints),
        follow_leader=not pinned,
        reads="any" if spec.way == "any" else "leader",
    ) as db:
        view = db.at(spec.level)
        supply = keys()
        await view.kv.get(supply[0])
        await asyncio.sleep(0.2)  # a handle that prefers followers has found one by then
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        get = view.kv.get if spec.level != "quorum" else db.kv.get

        async def read(key: bytes, _value: bytes) -> object:
            return await get(key)

        return figures(await drive([read], OUTSTANDING, spec.seconds))


def _client_main(text: str) -> None:
    result = access.run(client(msgspec.json.decode(text, type=Spec)))
    print(msgspec.json.encode(result).decode(), flush=True)


class _Process:
    def __init__(self, spec: Spec, log: Path) -> None:
        self._log = log
        self._stderr = log.open("ab")
        command = [sys.executable, "-m", "bench.reads", msgspec.json.encode(spec).decode()]
        self._process = spawn(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )

    def line(self) -> str:
        """What it says next.

        Raises:
            BenchError: it has ended instead.
        """
        said: str = self._process.stdout.readline() if self._process.stdout else ""
        if not said:
            raise BenchError(f"a client process failed: {tail(self._log)}")
        return said

    def go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        stop(self._process)
        self._stderr.close()


# --- the measurement -----------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Processor time of a process so far; 0 where /proc is not there to tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _one_round(cluster: QuorateCluster, spec: Spec, directory: Path) -> ReadsRow:
    leader = cluster.wait_leader().number
    pids = {number: node.process.pid for number, node in cluster.nodes.items() if node.process}
    each = [msgspec.structs.replace(spec, endpoint=place) for place in spec.endpoints]
    running = [_Process(one, directory / f"client-{at}.log") for at, one in enumerate(each)]
    try:
        for process in running:
            process.line()
        before = {number: cpu_s(pid) for number, pid in pids.items()}
        for process in running:
            process.go()
        found = [msgspec.json.decode(process.line(), type=Figures) for process in running]
        used = {number: cpu_s(pid) - before[number] for number, pid in pids.items()}
    finally:
        for process in running:
            process.close()
    speed = sum(one.ops_per_s for one in found)
    done = speed * (spec.seconds + 0.5) / 1e6  # the warm-up is worked for as well
    return ReadsRow(
        level=spec.level,
        through=spec.way,
        ops_per_s=speed,
        p50_ms=median([one.p50_ms for one in found]),
        p99_ms=max(one.p99_ms for one in found),
        leader_cpu_us=used[leader] / done if done else 0.0,
        nodes_cpu_us=sum(used.values()) / done if done else 0.0,
    )


async def _load(endpoints: Sequence[str]) -> None:
    async with connect(",".join(endpoints)) as db:
        value, supply = values()[0], keys()
        for at in range(0, len(supply), 1000):
            await asyncio.gather(*(db.kv.put(key, value) for key in supply[at : at + 1000]))


def _median_row(rounds: Sequence[ReadsRow]) -> ReadsRow:
    fields = ("ops_per_s", "p50_ms", "p99_ms", "leader_cpu_us", "nodes_cpu_us")
    middle: dict[str, Any] = {
        name: median([getattr(row, name) for row in rounds]) for name in fields
    }
    return msgspec.structs.replace(rounds[0], **middle)


def reads(
    *, seconds: float = 3.0, rounds: int = 3, parent: Path | None = None
) -> dict[str, object]:
    """Measure and print; returns the report."""
    found: dict[tuple[str, str], list[ReadsRow]] = {}
    with scratch_directory(parent) as directory, QuorateCluster(directory) as cluster:
        facts: dict[str, object] = {
            "machine": machine(directory),
            "versions": versions("quorate", "msgspec", "uvloop"),
            "keys": KEYS_COUNT,
        }
        print(report.facts_text(facts), flush=True)
        access.run(_load(cluster.endpoints))
        for _ in range(rounds):
            for level in LEVELS:
                for way in WAYS:
                    spec = Spec(cluster.endpoints, "", level, way, seconds)
                    row = _one_round(cluster, spec, directory)
                    found.setdefault((level, way), []).append(row)
    rows = [_median_row(each) for each in found.values()]
    print("", _table(rows), sep="\n")
    return {**facts, "rounds": rounds, "rows": [json.loads(msgspec.json.encode(r)) for r in rows]}


def _table(rows: Sequence[ReadsRow]) -> str:
    alone = {row.level: row.ops_per_s for row in rows if row.through == "leader"}
    headings = (
        "level", "through", "reads/s", "x leader", "p50 ms", "p99 ms", "leader us/read",
        "nodes us/read",
    )  # fmt: skip
    return report.table(
        headings,
        [
            (
                row.level,
                row.through,
                row.ops_per_s,
                row.ops_per_s / alone[row.level] if alone.get(row.level) else None,
                row.p50_ms,
                row.p99_ms,
                row.leader_cpu_us,
                row.nodes_cpu_us,
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    _client_main(sys.argv[1])
