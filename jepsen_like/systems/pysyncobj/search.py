"""Many seeds as one result: every kind of breach, how often, where first, and its evidence."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from jepsen_like.systems.pysyncobj.simulation import SeedReport, run_seed


def find_defects(seeds: Sequence[int]) -> dict[str, Any]:
    """Run them one after the other. What is returned is ready for JSON, and but for ``wall_s`` the
    same every time; violations are ordered by the number of seeds that have them."""
    began_s = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    operations: dict[str, int] = {}
    faults: dict[str, int] = {}
    virtual_s, steps, digests = 0.0, 0, []
    for seed in seeds:
        report = run_seed(seed)
        _collect(found, report)
        _add(operations, report.operations)
        _add(faults, report.faults)
        virtual_s += report.virtual_seconds
        steps += report.steps
        digests.append(report.digest)
    violations = sorted(found.values(), key=lambda each: (-each["seeds"], each["name"]))
    return {
        "system": "pysyncobj",
        "version": importlib.metadata.version("pysyncobj"),
        "valid": not violations,
        "violations": violations,
        "seeds": len(seeds),
        "virtual_seconds": round(virtual_s, 3),
        "steps": steps,
        "operations": dict(sorted(operations.items())),
        "faults": dict(sorted(faults.items())),
        "digests": digests,
        "wall_s": round(time.monotonic() - began_s, 1),
    }


def _collect(found: dict[str, dict[str, Any]], report: SeedReport) -> None:
    for violation in report.violations:
        known = found.get(violation.name)
        if known is not None:
            known["count"] += violation.count
            known["seeds"] += 1
            continue
        evidence = {"seed": report.seed, "time_s": violation.time_s, "text": violation.text}
        evidence |= violation.evidence
        evidence["plan"] = msgspec.to_builtins(report.plan)
        found[violation.name] = {
            "name": violation.name,
            "count": violation.count,
            "seeds": 1,
            "first_seed": report.seed,
            "evidence": evidence,
        }


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count
