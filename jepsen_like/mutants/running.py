"""Looks for the first seed that catches each mutant, on several processes, and runs the product as
it is on the very same seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from jepsen_like.mutants.mutant import Mutant
from jepsen_like.mutants.profiles import Profile
from jepsen_like.mutants.registry import MUTANTS
from jepsen_like.simulation.invariants import Violation
from jepsen_like.simulation.outcome import Outcome
from jepsen_like.simulation.pool import results
from jepsen_like.simulation.swarm import run_plan

#: Real seconds for one seed: a bug that loops for ever is caught too, some thirty times later than
#: a run takes.
WALL_S: Final = 40.0
#: Seeds that a mutant may have; cases are numbered by it.
SEEDS_MAX: Final = 1000


def run_mutated(mutant: Mutant, seed: int) -> Outcome:
    """One seed with the bug, which may bring down the simulator itself."""
    with mutant.applied():
        try:
            return run_plan(mutant.profile.plan(seed))
        except Exception as error:  # noqa: BLE001  whatever the bug leads to
            text = f"{type(error).__name__}: {error}"
            return Outcome(seed=seed, violations=(Violation(name="crashed", text=text),))


def case_of(mutant: int, seed: int) -> int:
    """A number for the pool: seed *seed* of the *mutant*-th bug; negative: without the bug."""
    return mutant * SEEDS_MAX + seed


def run_case(case: int) -> Outcome:
    """For the pool; the outcome's ``seed`` is *case*."""
    at, seed = divmod(abs(case), SEEDS_MAX)
    mutant = MUTANTS[at]
    outcome = run_plan(mutant.profile.plan(seed)) if case < 0 else run_mutated(mutant, seed)
    return msgspec.structs.replace(outcome, seed=case)


class Catch(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a mutant. *caught_by*: name of the violation, "" if there was none. *seed*:
    the one that caught it, 0 if none did."""

    name: str
    bug: str
    source: str
    profile: str
    caught_by: str
    text: str
    seeds_needed: int
    budget: int
    seed: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """*unmutated*: outcomes of the product as it is, that should have no violation."""

    catches: tuple[Catch, ...]
    unmutated: tuple[Outcome, ...]
    seeds_total: int
    wall_s: float

    @property
    def caught(self) -> int:
        """How many were."""
        return sum(1 for catch in self.catches if catch.seed)

    @property
    def unmutated_violations(self) -> int:
        """In all runs without a bug; there should be none."""
        return sum(len(outcome.violations) for outcome in self.unmutated)

    @property
    def good(self) -> bool:
        """All were caught, and the product as it is breaks nothing."""
        return self.caught == len(self.catches) and not self.unmutated_violations

    def failures(self) -> list[str]:
        """What went wrong without a bug: profile, seed, violation."""
        found = []
        for outcome in self.unmutated:
            at, seed = divmod(abs(outcome.seed), SEEDS_MAX)
            name = MUTANTS[at].profile.name
            found += [f"{name}, seed {seed}: {v.name}: {v.text}" for v in outcome.violations[:1]]
        return found

    def summary(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "mutants": len(self.catches),
            "caught": self.caught,
            "unmutated_violations": self.unmutated_violations,
            "unmutated_seeds": len(self.unmutated),
            "unmutated_failures": self.failures(),
            "seeds_total": self.seeds_total,
            "wall_s": round(self.wall_s, 1),
            "each": [msgspec.to_builtins(catch) for catch in self.catches],
        }


class _Search:
    """One mutant's seeds, tried in order, though they may end in another."""

    def __init__(self, at: int, mutant: Mutant) -> None:
        self.at = at
        self.mutant = mutant
        self.under_way = 0
        self._next = 1
        self._outcomes: dict[int, Outcome] = {}

    @property
    def open(self) -> bool:
        """Whether there is another seed to try."""
        return self._next <= self.mutant.budget and not self.caught_at

    @property
    def caught_at(self) -> int:
        """The lowest seed that ended in a violation, so far; 0: none."""
        return min((seed for seed, each in self._outcomes.items() if each.violations), default=0)

    def take(self) -> int:
        seed, self._next = self._next, self._next + 1
        self.under_way += 1
        return case_of(self.at, seed)

    def put(self, seed: int, outcome: Outcome) -> None:
        self.under_way -= 1
        self._outcomes[seed] = outcome

    @property
    def seeds_run(self) -> int:
        return len(self._outcomes)

    def catch(self) -> Catch:
        seed = self.caught_at
        first = self._outcomes[seed].violations[0] if seed else None
        mutant = self.mutant
        return Catch(
            name=mutant.name,
            bug=mutant.bug,
            source=mutant.source,
            profile=mutant.profile.name,
            caught_by=first.name if first else "",
            text=first.text if first else "",
            seeds_needed=seed or self.seeds_run,
            budget=mutant.budget,
            seed=seed,
        )


def hunt(chosen: Sequence[int], *, jobs: int) -> Report:
    """Run the mutants at these places of ``MUTANTS``, each until it is caught or its budget is
    spent, and then the product as it is on all those seeds.

    Raises:
        PatchError: one of them does not fit the product any more; nothing was run.
    """
    began_s = time.monotonic()
    for at in chosen:
        with MUTANTS[at].applied():
            pass
    searches = {at: _Search(at, MUTANTS[at]) for at in chosen}
    for outcome in results(run_case, _cases(searches), jobs=jobs, wall_s=WALL_S, budget_s=0.0):
        at, seed = divmod(outcome.seed, SEEDS_MAX)
        searches[at].put(seed, outcome)
    catches = tuple(search.catch() for search in searches.values())
    plain = _plain_cases(searches, catches)
    unmutated = tuple(results(run_case, plain, jobs=jobs, wall_s=WALL_S, budget_s=0.0))
    return Report(
        catches=catches,
        unmutated=unmutated,
        seeds_total=sum(search.seeds_run for search in searches.values()),
        wall_s=time.monotonic() - began_s,
    )


def _cases(searches: dict[int, _Search]) -> Iterator[int]:
    """The next case, whenever a process is free: of the mutant with the fewest under way."""
    while True:
        left = [search for search in searches.values() if search.open]
        if not left:
            return
        yield min(left, key=lambda search: search.under_way).take()


def _plain_cases(searches: dict[int, _Search], catches: Sequence[Catch]) -> list[int]:
    """Each seed of each profile once."""
    found: dict[tuple[str, int], int] = {}
    for search, catch in zip(searches.values(), catches, strict=True):
        profile: Profile = search.mutant.profile
        for seed in range(1, catch.seeds_needed + 1):
            found.setdefault((profile.name, seed), -case_of(search.at, seed))
    return list(found.values())
