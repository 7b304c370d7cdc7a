"""What came of one seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from jepsen_like.simulation.invariants import Violation


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """*digest*: of everything that happened; equal runs have equal ones. *faults*: how many of
    each kind took place; *skipped*: those that would have gone beyond what any system can bear, or
    that met nobody. *settled_s*: virtual time from the healing to convergence. *verdicts*: what
    each workload's checker said, *checked*: what it counted. *notes*: counts of what else happened
    (elections, snapshots)."""

    seed: int
    violations: tuple[Violation, ...] = ()
    digest: str = ""
    steps: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    ok: int = 0
    fail: int = 0
    info: int = 0
    faults: dict[str, int] = {}
    skipped: int = 0
    settled_s: float = 0.0
    verdicts: dict[str, str] = {}
    checked: dict[str, dict[str, int]] = {}
    notes: dict[str, int] = {}

    @classmethod
    def stuck(cls, seed: int, text: str, wall_s: float) -> Outcome:
        """Of a run that did not come to its end."""
        return cls(seed=seed, violations=(Violation(name="livelock", text=text),), wall_s=wall_s)

    @property
    def operations(self) -> int:
        """Of clients, whatever came of them."""
        return self.ok + self.fail + self.info

    @property
    def fault_count(self) -> int:
        """Of all kinds."""
        return sum(self.faults.values())

    def failed_by(self, name: str) -> bool:
        """Whether it has a violation of that name."""
        return any(violation.name == name for violation in self.violations)


def counts_in(facts: Mapping[str, Any]) -> dict[str, int]:
    """What a checker counted, those that it is made of included."""
    found: dict[str, int] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            add_up(found, counts_in(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            add_up(found, {name: value})
    return found


def add_up(totals: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add *counts* to *totals*; of what is called a maximum, keep the greater."""
    for name, count in counts.items():
        before = totals.get(name, 0)
        totals[name] = max(before, count) if name.endswith("_max") else before + count


def add_up_all(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """By workload: in how many seeds it was, and what was counted in them."""
    totals: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for name in outcome.verdicts:
            here = totals.setdefault(name, {"seeds": 0})
            add_up(here, {"seeds": 1, **outcome.checked.get(name, {})})
    return dict(sorted(totals.items()))
