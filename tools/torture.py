"""Breaks storage on purpose, in every way that fits the time: ``python -m tools.torture [--deep]``.

Each suite counts what it tried and what came of it, and records *violations*: acknowledged data
lost or changed, a crash without damage that was refused, or an error of the wrong type. The exit
status is 1 if there was any. Suites are entries of ``SUITES``; to add one, append a ``Suite``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools import (
    torture_elements,
    torture_kill,
    torture_node,
    torture_pages,
    torture_store,
    torture_wal,
)

VIOLATIONS_MAX = 20  # printed for each suite; the count goes on
#: The counts that say what was tried, for the last line; the others say what came of it.
TRIED = (
    "offsets",
    "bits",
    "damages",
    "files",
    "crash points",
    "reorderings",
    "failures",
    "tries",
    "commits",
    "kills",
)


class Effort(NamedTuple):
    """How much to try. *samples*: crash outcomes tried where there are more than can be tried
    all; *rounds*: random scripts run beside the fixed ones; *store_step*: damage every so many-th
    bit of a store, and cut it at every so many-th byte; *kills*: processes killed; *seed* makes the
    random choices repeatable."""

    samples: int
    rounds: int
    store_step: int
    kills: int
    seed: int = 1


#: For the tests that run all the time, for the command, and for the command with ``--deep``.
QUICK = Effort(samples=4, rounds=1, store_step=499, kills=2)
NORMAL = Effort(samples=20, rounds=3, store_step=101, kills=6)
DEEP = Effort(samples=160, rounds=20, store_step=1, kills=100)


class Tally:
    """What one suite tried and found."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.violation_count = 0

    def count(self, what: str, times: int = 1) -> None:
        """Count something tried, or an outcome."""
        self.counts[what] += times

    def violation(self, text: str) -> None:
        """Record that a promise was broken; *text* says how to do it again."""
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(text)


class Suite(NamedTuple):
    """A named way to break storage; *run* raises nothing, it tallies."""

    name: str
    run: Callable[[Effort, Tally], None]


SUITES: tuple[Suite, ...] = (
    Suite("wal: file cut off at every byte", torture_wal.cut_off),
    Suite("wal: unacknowledged tail lost from every byte on", torture_wal.lose_tail),
    Suite("wal: everything lost from every sector on", torture_wal.lose_rest),
    Suite("wal: every bit flipped", torture_wal.flip_bits),
    Suite("wal: a few bytes of a sector damaged", torture_wal.damage_bytes),
    Suite("wal: a segment deleted, swapped or duplicated", torture_wal.misplace_segments),
    Suite("wal: a record of an earlier life comes back", torture_wal.come_back),
    Suite("wal: crash before every operation", torture_wal.crash_everywhere),
    Suite("wal: crash in recovery after a crash", torture_wal.crash_twice),
    Suite("wal: process killed, then power lost", torture_wal.kill_then_crash),
    Suite("wal: every operation fails once", torture_wal.fail_everywhere),
    Suite("wal: every operation of recovery fails once", torture_wal.fail_recovery),
    Suite("store: crash before every operation", torture_store.crash_everywhere),
    Suite("store: crash in opening after a kill", torture_store.crash_twice),
    Suite("store: power lost inside of a commit", torture_store.crash_in_commit),
    Suite("store: every operation fails once", torture_store.fail_everywhere),
    Suite("store: no space at every size", torture_store.no_space),
    Suite("store: data file cut off", torture_pages.cut_off),
    Suite("store: bits flipped", torture_pages.flip_bits),
    Suite("store: sectors blanked, pages lost, bytes damaged", torture_pages.damage_sectors),
    Suite("store: sound files are never refused", torture_pages.accept_sound),
    Suite("elements: crash before every operation", torture_elements.crash_everywhere),
    Suite("elements: power lost inside of a commit", torture_elements.crash_in_commit),
    Suite("elements: every operation fails once", torture_elements.fail_everywhere),
    Suite("elements: no space at every size", torture_elements.no_space),
    Suite("elements: data file damaged", torture_elements.damage),
    Suite("node: crash between log and store", torture_node.crash_everywhere),
    Suite("node: process killed at any time", torture_kill.kill_processes),
)


def run(suites: Sequence[Suite], effort: Effort) -> list[dict[str, object]]:
    """Run *suites*, print a line for each, and return their reports."""
    reports: list[dict[str, object]] = []
    width = max((len(suite.name) for suite in suites), default=0)
    for suite in suites:
        tally = Tally()
        began = time.monotonic()
        suite.run(effort, tally)
        seconds = round(time.monotonic() - began, 2)
        shown = ", ".join(f"{what} {times:,}" for what, times in sorted(tally.counts.items()))
        verdict = "ok" if not tally.violation_count else f"{tally.violation_count} VIOLATIONS"
        print(f"{suite.name:{width}}  {verdict}  {seconds:7.2f} s  {shown}", flush=True)
        for text in tally.violations:
            print(f"    {text}", flush=True)
        reports.append(
            {
                "suite": suite.name,
                "seconds": seconds,
                "counts": dict(tally.counts),
                "violation_count": tally.violation_count,
                "violations": tally.violations,
            }
        )
    return reports


def _summary(reports: Sequence[dict[str, Any]], level: str, seed: int) -> int:
    """Print the totals, and how to run again what was violated; returns the violations."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report["counts"])
    tried = ", ".join(f"{total[what]:,} {what}" for what in TRIED if total[what])
    violations = sum(int(report["violation_count"]) for report in reports)
    print(f"{len(reports)} suites tried {tried}: {violations} violations")
    for report in reports:
        if report["violation_count"]:
            only = f'--seed {seed} --only "{report["suite"]}"'
            print(f"replay: python -m tools.torture {level}{only}")
    return violations


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what *arguments* ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--quick", action="store_true", help="only what the tests always run")
    parser.add_argument("--deep", action="store_true", help="every bit and many random scripts")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("--only", default="", metavar="TEXT", help="suites whose name holds TEXT")
    options = parser.parse_args(arguments)
    effort = DEEP if options.deep else QUICK if options.quick else NORMAL
    effort = effort._replace(seed=options.seed)
    suites = [suite for suite in SUITES if options.only in suite.name]
    reports = run(suites, effort)
    level = "--deep " if options.deep else "--quick " if options.quick else ""
    violations = _summary(reports, level, options.seed)
    if options.json is not None:
        result = {"effort": effort._asdict(), "violations": violations, "suites": reports}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if violations or not suites else 0


if __name__ == "__main__":
    sys.exit(main())
