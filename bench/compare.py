"""``compare``: the same workloads against every system, in turns.

The systems run at the same time but are driven one after another, in short rounds whose order
rotates, so that noise of the machine hits all of them; a row is the median of its rounds. Where a
system can be driven in more than one way, each is tried briefly first and the fastest counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import report
from bench.measure import (
    MS,
    Figures,
    fsync_latencies_s,
    machine,
    median_figures,
    percentile,
    versions,
)
from bench.processes import BenchError, scratch_directory
from bench.report import Row
from bench.systems.base import System
from bench.systems.etcd import EtcdSystem
from bench.systems.pysyncobj_system import PySyncObjSystem
from bench.systems.quorate_system import QuorateSystem
from bench.worker import Worker
from bench.workloads import KEY_BYTES, KEYS_COUNT, VALUE_BYTES, WORKLOADS, Workload

PEERS = ("etcd", "pysyncobj")
TRIAL_S = 1.5  # long enough to tell two client libraries apart
SYSTEMS: dict[str, type[QuorateSystem | EtcdSystem | PySyncObjSystem]] = {
    "quorate": QuorateSystem,
    "etcd": EtcdSystem,
    "pysyncobj": PySyncObjSystem,
}


class Contestant:
    """A running system, its client process, and what was measured so far."""

    def __init__(self, system: System, worker: Worker) -> None:
        self.system = system
        self.worker = worker
        self.variants: dict[str, str] = {}
        self.trials: dict[str, dict[str, float]] = {}
        self.rounds: dict[str, list[Figures]] = {}

    def choose(self, workload: Workload) -> None:
        """Find the fastest way to drive *workload*; none if it makes no sense here."""
        ways = self.worker.ask(do="variants", workload=workload.name)
        if len(ways) > 1:
            tried = {way: self.worker.run(workload.name, way, TRIAL_S).ops_per_s for way in ways}
            self.trials[workload.name] = tried
            ways = sorted(tried, key=tried.__getitem__, reverse=True)
        if ways:
            self.variants[workload.name] = ways[0]

    def measure(self, workload: Workload, seconds: float) -> None:
        """One round."""
        if workload.name in self.variants:
            figures = self.worker.run(workload.name, self.variants[workload.name], seconds)
            self.rounds.setdefault(workload.name, []).append(figures)

    def row(self, workload: Workload) -> Row | None:
        """The median of the rounds."""
        if workload.name not in self.rounds:
            return None
        figures = median_figures(self.rounds[workload.name])
        return Row(
            system=self.system.name,
            workload=workload.name,
            connections=workload.connections,
            outstanding=workload.outstanding,
            client=self.variants[workload.name],
            **msgspec.structs.asdict(figures),
        )


def choose_systems(names: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """(those that can run, why the others cannot).

    Raises:
        BenchError: a name is unknown, or nothing is left to measure.
    """
    able: list[System] = []
    absent: dict[str, str] = {}
    for name in names:
        if name not in SYSTEMS:
            raise BenchError(f"unknown system {name!r}; there are {', '.join(SYSTEMS)}")
        system: System = SYSTEMS[name]()
        reason = system.missing()
        if reason is None:
            able.append(system)
        else:
            absent[name] = reason
    if not able:
        raise BenchError("; ".join(absent.values()))
    return able, absent


def enter(stack: contextlib.ExitStack, system: System, directory: Path) -> Contestant:
    """Start a system and its client; *stack* ends both."""
    stack.callback(system.stop)
    system.start(directory)
    worker = Worker(system.name, directory / f"client-{system.name}.log")
    stack.callback(worker.close)
    worker.ask(do="open", spec=system.client_spec())
    worker.ask(do="load")
    return Contestant(system, worker)


def compare(
    names: Sequence[str],
    *,
    workloads: Sequence[Workload] = WORKLOADS,
    rounds: int = 3,
    seconds: float = 4.0,
    parent: Path | None = None,
) -> dict[str, object]:
    """Measure and print; returns the report."""
    systems, absent = choose_systems(names)
    for name, reason in absent.items():
        print(f"left out: {name}: {reason}")
    fsyncs: list[float] = []
    with scratch_directory(parent) as directory, contextlib.ExitStack() as stack:
        facts: dict[str, object] = {"machine": machine(directory)}
        fsyncs += fsync_latencies_s(directory)  # once in peace; again between the rounds
        contestants = [enter(stack, system, directory) for system in systems]
        for workload in workloads:
            for contestant in contestants:
                contestant.choose(workload)
        for number in range(rounds):
            turn = contestants[number % len(contestants) :]
            turn += contestants[: number % len(contestants)]
            for workload in workloads:
                fsyncs += fsync_latencies_s(directory, 100)
                for contestant in turn:
                    contestant.measure(workload, seconds)
            print(f"round {number + 1} of {rounds} done", flush=True)
        facts["versions"] = {
            **versions("msgspec", "lmdb", "uvloop", "grpcio"),
            **{contestant.system.name: contestant.system.version() for contestant in contestants},
        }
        rows = [c.row(workload) for workload in workloads for c in contestants]
        trials = {c.system.name: c.trials for c in contestants if c.trials}
    fsyncs.sort()
    facts["fsync_4kib_ms"] = {
        "p50": percentile(fsyncs, 50) * MS,
        "p99": percentile(fsyncs, 99) * MS,
        "count": len(fsyncs),
    }
    facts["payload"] = {"key_bytes": KEY_BYTES, "value_bytes": VALUE_BYTES, "keys": KEYS_COUNT}
    facts["rounds"] = {"count": rounds, "seconds": seconds}
    return finish(facts, [row for row in rows if row is not None], trials, absent, fsyncs)


def finish(
    facts: dict[str, object],
    rows: list[Row],
    trials: dict[str, dict[str, dict[str, float]]],
    absent: dict[str, str],
    fsyncs: list[float],
) -> dict[str, object]:
    """Print the tables and make the report."""
    bars = report.ratio_bars(rows, percentile(fsyncs, 50) * MS)
    print(report.facts_text(facts), report.rows_table(rows), sep="\n\n")
    if bars:
        print("", report.bars_table(bars), sep="\n")
    return {
        **facts,
        "rows": rows,
        "ratios": [bar.to_json() for bar in bars],
        "client_trials_ops_per_s": trials,
        "left_out": absent,
    }
