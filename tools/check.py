"""One command for all checks, the same on a desk and in CI: ``python -m tools.check``.

Order: cheap and certain first. Every step runs even if an earlier one failed, so that one run
shows everything; the exit status is 0 only if all passed, 1 otherwise, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: Everything that mypy checks strictly, as far as it exists.
TYPED = ("quorate", "tools", "bench", "jepsen_like")

#: How the quick tests run here and in CI: none of them fails on a time, so they may share cores.
ON_ALL_CORES = ("-n", "auto", "--dist", "worksteal")


class Step(NamedTuple):
    """One check: what it is called, and the arguments after ``python -m``."""

    name: str
    module_arguments: tuple[str, ...]


def steps(*, deep: bool, fix: bool) -> list[Step]:
    """The checks in the order in which they run.

    *fix* lets ruff rewrite files instead of only complaining; *deep* adds the slow searches.
    """
    typed = tuple(name for name in TYPED if (ROOT / name).is_dir())
    plan = [
        Step("format", ("ruff", "format", *(() if fix else ("--check",)), ".")),
        Step("lint", ("ruff", "check", *(("--fix",) if fix else ()), ".")),
        Step("types", ("mypy", "--strict", *typed)),
        Step("quick tests", ("pytest", "-q", *ON_ALL_CORES)),
    ]
    if deep:
        plan.append(Step("deep tests", ("pytest", "-q", "-m", "deep")))
        if (ROOT / "tools" / "torture.py").is_file():
            plan.append(Step("storage torture", ("tools.torture",)))
    return plan


def run(step: Step) -> bool:
    """Run one check in this interpreter's environment; its output goes straight through."""
    print(f"--- {step.name}: python -m {' '.join(step.module_arguments)}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *step.module_arguments], cwd=ROOT, check=False)
    verdict = "ok" if status.returncode == 0 else f"FAILED (exit status {status.returncode})"
    print(f"--- {step.name}: {verdict}, {time.monotonic() - began:.1f} s", flush=True)
    return status.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that *arguments* ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.check", description="all checks")
    parser.add_argument("--deep", action="store_true", help="add deep tests and storage torture")
    parser.add_argument("--fix", action="store_true", help="let ruff rewrite what it can")
    parser.add_argument("--no-tests", action="store_true", help="format, lint and types only")
    options = parser.parse_args(arguments)
    if options.deep:
        os.environ["QUORATE_PARTS"] = "1"  # the quick tests, whole: see tests/sharing.py
    plan = steps(deep=options.deep, fix=options.fix)
    if options.no_tests:
        plan = [step for step in plan if "test" not in step.name and "torture" not in step.name]
    failed = [step.name for step in plan if not run(step)]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
