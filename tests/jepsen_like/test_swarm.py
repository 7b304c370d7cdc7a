"""Whole clusters from seeds: a fixed handful is green and repeats itself; lies are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jepsen_like.cli import main
from jepsen_like.errors import UsageError
from jepsen_like.simulation import plan as plans
from jepsen_like.simulation.command import summarize
from jepsen_like.simulation.outcome import Outcome, counts_in
from jepsen_like.simulation.plan import (
    CONVERGERS,
    CONVERGING,
    COORDINATION,
    GROUPS,
    HOLDERS,
    KINDS,
    Fault,
    Plan,
    Settings,
    draw,
    draw_fault,
    draw_plain,
)
from jepsen_like.simulation.pool import limited, results
from jepsen_like.simulation.shrink import shrink
from jepsen_like.simulation.swarm import run_plan, run_seed
from tests.sharing import turn

#: The first few, and those that once ended badly: 1025 (a removal whose answer was lost), 1075 (a
#: disk that had just been freed), 1093 (a vote that a crash undid).
SEEDS = (1, 2, 3, 4, 5, 50, 1025, 1075, 1093)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", turn(SEEDS))
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    outcome = run_seed(seed)
    assert outcome.violations == (), f"replay: python -m jepsen_like simulate --seed {seed}"
    assert outcome.ok > 0
    assert outcome.settled_s > 0


def test_one_seed_is_one_run_whatever_the_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jepsen_like", "simulate", "--seed", "3", "--json"],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        cwd=ROOT, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    found = [
        (outcome.digest, outcome.steps, outcome.ok, outcome.fail, outcome.info)
        for outcome in (msgspec.json.decode(done.stdout, type=Outcome), run_seed(3))
    ]
    assert found[0] == found[1]


def test_a_disk_that_lies_about_fsync_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    runs = (run_seed(seed, fsync=False) for seed in range(12, 42))
    found = next((outcome for outcome in runs if outcome.violations), None)
    assert found is not None
    assert {violation.name for violation in found.violations} & {
        "durable-lost", "refused-to-start", "node-failed", "checkpoint-went-back"
    }  # fmt: skip
    # The command finds it, too, and `run` hands over to it.
    words = f"run --system quorate --unsafe-no-fsync --seed {found.seed} --json"
    assert main(words.split()) == 1
    said = msgspec.json.decode(capsys.readouterr().out)
    assert [each["name"] for each in said["violations"]] == [each.name for each in found.violations]


# --- plans ----------------------------------------------------------------------------------------


def test_a_plan_is_the_same_each_time_and_survives_the_file(tmp_path: Path) -> None:
    for seed in range(20):
        plan = draw(seed)
        assert plan == draw(seed)
        plans.write(tmp_path / "plan.json", plan)
        assert plans.read(tmp_path / "plan.json") == plan


def test_every_kind_of_fault_comes_up() -> None:
    drawn = {fault.kind for seed in range(200) for fault in draw(seed).faults}
    converging = {fault.kind for seed in range(50) for fault in draw(seed, ("crdt",)).faults}
    grouped = {kind for group in GROUPS.values() for kind in group}
    assert grouped | set(HOLDERS) <= drawn
    assert drawn | converging == set(KINDS) == grouped | set(HOLDERS) | set(CONVERGERS)


def test_what_lasts_for_a_while_is_drawn_beside_the_rest() -> None:
    plans_drawn = [draw(seed) for seed in range(100)]
    more = {*COORDINATION, *CONVERGING}
    chosen = [set(plan.settings.workloads) & more for plan in plans_drawn]
    assert set().union(*chosen) == more
    assert 30 < sum(bool(each & set(COORDINATION)) for each in chosen) < 70
    assert 10 < sum(bool(each & set(CONVERGING)) for each in chosen) < 30
    for seed, (plan, names) in enumerate(zip(plans_drawn, chosen, strict=True)):
        plain = draw_plain(seed)
        assert set(plain.faults) <= set(plan.faults)
        assert set(plan.settings.workloads) - names == set(plain.settings.workloads)
        assert names or plan == plain


def test_workloads_may_be_named() -> None:
    for seed in range(20):
        plan = draw(seed, ("lock", "watch"))
        assert set(plan.settings.workloads) <= {"lock", "watch"}
        assert any(fault.kind in HOLDERS for fault in plan.faults)
        assert set(draw(seed, ("set",)).settings.workloads) == {"set"}


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(UsageError, match="No such file"):
        plans.read(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a schedule"):
        plans.read(path)
    odd = Plan(seed=1, settings=Settings(), faults=(Fault(at_s=1.0, kind="meteor"),))
    plans.write(path, odd)
    with pytest.raises(UsageError, match="meteor"):
        plans.read(path)


@pytest.mark.parametrize("kind", turn(KINDS))
def test_each_fault_alone_hurts_nobody(kind: str) -> None:
    """A short run in which one kind comes three times."""
    settings = Settings(
        voters=3, learners=0, workloads={"counter": 1.0}, clients=2, operations_max=20,
        seconds=1.5, checkpoint_bytes=1500,
    )  # fmt: skip
    random = plans.stream(1, kind)
    faults = tuple(draw_fault(random, 0.2 + 0.3 * at, kind, settings) for at in range(3))
    outcome = run_plan(Plan(seed=1, settings=settings, faults=faults))
    assert outcome.violations == ()
    assert outcome.fault_count + outcome.skipped <= 3


# --- shrinking ------------------------------------------------------------------------------------


def test_shrinking_finds_the_two_faults_that_matter() -> None:
    plan = draw(3)
    kinds = ("crash-all", "wall-jump", "add", "clog", "reset", "pause-one", "transfer")
    faults = tuple(Fault(at_s=float(at), kind=kind) for at, kind in enumerate(kinds))
    plan = msgspec.structs.replace(plan, faults=faults)

    def fails(candidate: Plan) -> bool:
        left = [fault.kind for fault in candidate.faults]
        return "wall-jump" in left and "pause-one" in left and candidate.settings.clients >= 2

    shrunk = shrink(plan, fails, tries_max=500)
    assert [fault.kind for fault in shrunk.plan.faults] == ["wall-jump", "pause-one"]
    assert shrunk.plan.settings.clients == 2
    assert shrunk.plan.settings.operations_max == 0
    assert shrunk.tries < 500


def test_shrinking_ends_when_its_tries_do() -> None:
    plan = draw(3)
    assert shrink(plan, lambda _: True, tries_max=2).tries == 2


# --- many seeds -----------------------------------------------------------------------------------


def _hang(seed: int) -> Outcome:
    while seed:
        pass
    raise AssertionError


def _quick(seed: int) -> Outcome:
    checked = {"set": counts_in({"lost": 1, "part": {"wait_max": seed, "lost": 1}, "fine": True})}
    return Outcome(
        seed=seed,
        ok=seed,
        faults={"reset": 1},
        virtual_s=2.0,
        verdicts={"set": "True"},
        checked=checked,
    )


def test_a_run_that_never_ends_is_a_violation() -> None:
    outcome = limited(_hang, 5, 0.2)
    assert outcome.failed_by("livelock")
    assert "test_swarm.py" in outcome.violations[0].text


def test_seeds_on_several_processes() -> None:
    outcomes = list(results(_quick, range(1, 8), jobs=2, wall_s=10.0, budget_s=0.0))
    summary = summarize(outcomes, 7.0)
    assert sorted(outcome.seed for outcome in outcomes) == list(range(1, 8))
    assert summary["operations_median"] == 4
    assert summary["faults"] == {"reset": 7}
    assert summary["virtual_seconds_per_wall_second"] == 2.0
    assert summary["violations"] == 0
    assert summary["checked"] == {"set": {"seeds": 7, "lost": 14, "wait_max": 7}}


def test_no_seed_begins_after_the_budget() -> None:
    assert list(results(_quick, range(5), jobs=1, wall_s=1.0, budget_s=-1.0)) == []
