"""Bugs put in on purpose: each still fits the code, leaves it as it was, and some are caught."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from jepsen_like.cli import main
from jepsen_like.mutants import running
from jepsen_like.mutants.patching import PatchError, Rewrite, find, rewritten
from jepsen_like.mutants.profiles import SWARM
from jepsen_like.mutants.registry import MUTANTS, ROOMS
from jepsen_like.mutants.running import SEEDS_MAX, case_of, hunt, run_mutated
from jepsen_like.simulation.invariants import Violation
from jepsen_like.simulation.outcome import Outcome
from jepsen_like.simulation.plan import draw_plain
from jepsen_like.simulation.swarm import run_plan
from tests.sharing import turn

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
#: One each of replication, elections, the log and sessions, that any run nearly is enough for.
QUICK = ("ack-before-disk", "commit-past-match", "vote-not-written", "checkpoint-without-sessions")
TRIES = 3


def codes() -> dict[str, object]:
    return {each.target: find(each.target).__code__ for one in MUTANTS for each in one.rewrites}


def test_each_mutant_fits_and_leaves_the_code_as_it_was() -> None:
    before = codes()
    for mutant in MUTANTS:
        with mutant.applied():
            for each in mutant.rewrites:
                assert find(each.target).__code__ is not before[each.target], mutant.name
        assert codes() == before, mutant.name


def test_names_and_bugs_are_unique_and_all_is_said() -> None:
    assert len(MUTANTS) >= 28
    assert len(BY_NAME) == len({mutant.bug for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.rewrites, mutant.profile.name) for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.source
        assert 1 <= mutant.budget < SEEDS_MAX


def test_a_profile_has_one_meaning() -> None:
    profiles = {mutant.profile.name: mutant.profile for mutant in MUTANTS}
    for mutant in MUTANTS:
        assert profiles[mutant.profile.name] == mutant.profile
        plan = mutant.profile.plan(3)
        assert plan == mutant.profile.plan(3)
        for name, value in mutant.profile.settings.items():
            assert getattr(plan.settings, name) == value
        if mutant.profile.mix:
            assert {fault.kind for fault in plan.faults} <= set(mutant.profile.kinds)
    assert SWARM.plan(5) == draw_plain(5)


@pytest.mark.parametrize("name", turn(QUICK))
def test_a_known_bug_is_caught_and_its_seed_is_green_without_it(name: str) -> None:
    mutant = BY_NAME[name]
    seeds = (seed for seed in range(1, TRIES + 1) if run_mutated(mutant, seed).violations)
    caught = next(seeds, 0)
    assert caught, f"look closer: python -m jepsen_like mutants --only {name}"
    assert not run_plan(mutant.profile.plan(caught)).violations


# --- patching -------------------------------------------------------------------------------------


class Base:
    def __init__(self) -> None:
        self.made = ["base"]


class Sample(Base):
    def __init__(self) -> None:
        super().__init__()
        self.made.append("sample")

    @property
    def count(self) -> int:
        return len(self.made)

    def counter(self) -> Callable[[], int]:
        def count() -> int:
            return len(self.made) + 1

        return count


HERE = f"{__name__}:Sample"


def test_methods_properties_and_inner_functions_are_changed_and_put_back() -> None:
    changes = (
        Rewrite(f"{HERE}.__init__", '"sample"', '"mutant"'),
        Rewrite(f"{HERE}.count", "return len(self.made)", "return -1"),
        Rewrite(f"{HERE}.counter", "+ 1", "+ 10"),
    )
    with pytest.raises(ZeroDivisionError), rewritten(changes):
        sample = Sample()
        assert sample.made == ["base", "mutant"]
        assert sample.count == -1
        assert sample.counter()() == 12
        raise ZeroDivisionError
    assert (Sample().made, Sample().count) == (["base", "sample"], 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Rewrite(f"{HERE}.count", "no such text", ""), "stands there 0 times"),
        (Rewrite(f"{HERE}.count", "e", "f"), "times"),
        (Rewrite(f"{HERE}.count", "return", "retrun"), "does not compile"),
        (Rewrite(f"{HERE}.count", "len", "lenght"), r"\['lenght'\] are not known"),
        (Rewrite(f"{HERE}.nothing", "a", "b"), "nothing"),
        (Rewrite("no.such.module:f", "a", "b"), "No module"),
        (Rewrite(f"{__name__}:HERE", "a", "b"), "is a str, not a function"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_rewrite_that_does_not_fit_is_an_error(change: Rewrite, said: str) -> None:
    with pytest.raises(PatchError, match=said), rewritten([change]):
        pass


# --- the search -----------------------------------------------------------------------------------

WRONG = Violation(name="wrong", text="as it was to be")


def fake_runs(monkeypatch: pytest.MonkeyPatch, catching: dict[int, int]) -> list[int]:
    """*catching*: the first seed that catches each mutant."""
    ran: list[int] = []

    def run(case: int) -> Outcome:
        ran.append(case)
        at, seed = divmod(abs(case), SEEDS_MAX)
        caught = case >= 0 and seed >= catching.get(at, SEEDS_MAX)
        return Outcome(seed=case, violations=(WRONG,) if caught else ())

    monkeypatch.setattr(running, "run_case", run)
    return ran


def test_each_mutant_is_tried_until_it_is_caught_and_its_seeds_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = fake_runs(monkeypatch, {0: 2, 1: 1})
    report = hunt([0, 1], jobs=1)
    assert [(each.seed, each.seeds_needed, each.caught_by) for each in report.catches] == [
        (2, 2, "wrong"),
        (1, 1, "wrong"),
    ]
    assert sorted(case for case in ran if case > 0) == [case_of(0, 1), case_of(0, 2), case_of(1, 1)]
    assert MUTANTS[0].profile == MUTANTS[1].profile == SWARM  # so no seed is run twice
    assert len([case for case in ran if case < 0]) == len(report.unmutated) == 2
    assert report.good
    assert report.summary()["caught"] == report.summary()["mutants"] == 2


def test_a_mutant_that_is_not_caught_in_its_budget_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = fake_runs(monkeypatch, {})
    name = MUTANTS[0].name
    assert main(["mutants", "--only", name, "--jobs", "1", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["mutants"], said["caught"], said["seeds_total"]) == (1, 0, MUTANTS[0].budget)
    assert len(ran) == 2 * MUTANTS[0].budget
    assert main(["mutants", "--only", name, "--jobs", "1"]) == 1
    assert "NOT CAUGHT" in capsys.readouterr().out


def test_a_violation_without_a_bug_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(case: int) -> Outcome:
        return Outcome(seed=case, violations=(WRONG,))

    monkeypatch.setattr(running, "run_case", run)
    assert main(["mutants", "--only", MUTANTS[0].name, "--jobs", "1"]) == 1
    assert "without any bug: swarm, seed 1: wrong" in capsys.readouterr().err


def test_the_list_names_all_and_unknown_names_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["mutants", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(mutant.name in listed for mutant in MUTANTS)
    assert main(["mutants", "--list", "--only", "storage", "no-fsync", "vote-forgotten"]) == 0
    listed = capsys.readouterr().out
    chosen = [*ROOMS["storage"], *ROOMS["elections"][1:2]]
    assert [mutant.name in listed for mutant in MUTANTS] == [each in chosen for each in MUTANTS]
    assert listed.count("no-fsync") == 1
    assert main(["mutants", "--only", "no-such-bug"]) == 2
    assert "no-such-bug" in capsys.readouterr().err
