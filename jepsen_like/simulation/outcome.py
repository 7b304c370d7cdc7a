"""What came of one seed."""

from __future__ import annotations

import msgspec

from jepsen_like.simulation.invariants import Violation


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """*digest*: of everything that happened; equal runs have equal ones. *faults*: how many of
    each kind took place; *skipped*: those that would have gone beyond what any system can bear, or
    that met nobody. *settled_s*: virtual time from the healing to convergence. *verdicts*: what
    each workload's checker said. *notes*: counts of what else happened (elections, snapshots)."""

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
