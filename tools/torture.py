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
from typing import NamedTuple

from tools import torture_wal

VIOLATIONS_MAX = 20  # printed for each suite; the count goes on


class Effort(NamedTuple):
    """How much to try. *samples*: crash outcomes tried where there are more than can be tried
    all; *bit_step*: flip every so many-th bit; *seed* makes the random choices repeatable."""

    samples: int
    bit_step: int
    rounds: int
    seed: int = 1


#: For the tests that run all the time, for the command, and for the command with ``--deep``.
QUICK = Effort(samples=4, bit_step=1, rounds=1)
NORMAL = Effort(samples=40, bit_step=1, rounds=4)
DEEP = Effort(samples=400, bit_step=1, rounds=40)


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
    Suite("wal: crash before every operation", torture_wal.crash_everywhere),
    Suite("wal: crash in recovery after a crash", torture_wal.crash_twice),
    Suite("wal: process killed, then power lost", torture_wal.kill_then_crash),
    Suite("wal: every operation fails once", torture_wal.fail_everywhere),
    Suite("wal: every operation of recovery fails once", torture_wal.fail_recovery),
)


def run(suites: Sequence[Suite], effort: Effort) -> tuple[list[dict[str, object]], int]:
    """Run *suites*, print a line for each; returns the reports and the number of violations."""
    reports: list[dict[str, object]] = []
    total = 0
    for suite in suites:
        tally = Tally()
        began = time.monotonic()
        suite.run(effort, tally)
        seconds = round(time.monotonic() - began, 2)
        shown = ", ".join(f"{what} {times}" for what, times in sorted(tally.counts.items()))
        verdict = "ok" if not tally.violation_count else f"{tally.violation_count} VIOLATIONS"
        print(f"{suite.name}: {verdict} ({seconds} s; {shown})", flush=True)
        for text in tally.violations:
            print(f"    {text}", flush=True)
        total += tally.violation_count
        reports.append(
            {
                "suite": suite.name,
                "seconds": seconds,
                "counts": dict(tally.counts),
                "violation_count": tally.violation_count,
                "violations": tally.violations,
            }
        )
    return reports, total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what *arguments* ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--deep", action="store_true", help="ten times the work")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("--only", default="", metavar="TEXT", help="suites whose name holds TEXT")
    options = parser.parse_args(arguments)
    effort = (DEEP if options.deep else NORMAL)._replace(seed=options.seed)
    suites = [suite for suite in SUITES if options.only in suite.name]
    reports, violations = run(suites, effort)
    if options.json is not None:
        result = {"effort": effort._asdict(), "violations": violations, "suites": reports}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{len(suites)} suites, {violations} violations")
    return 1 if violations or not suites else 0


if __name__ == "__main__":
    sys.exit(main())
