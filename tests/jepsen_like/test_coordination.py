"""Locks, semaphores, elections, leases, watches and levels on simulated clusters under faults; and
bugs of theirs that must be found."""

from __future__ import annotations

import asyncio
import json
from random import Random

import pytest

from jepsen_like import cli
from jepsen_like.mutants.coordination import MUTANTS
from jepsen_like.mutants.patching import rewritten
from jepsen_like.mutants.running import run_mutated
from jepsen_like.simulation.plan import COORDINATION, Fault, Plan, Settings
from jepsen_like.simulation.swarm import Run, run_seed
from jepsen_like.systems.base import UnsupportedError
from jepsen_like.workloads.registry import make
from tests.jepsen_like.test_workloads import Store, StoreClient
from tests.sharing import turn


@pytest.mark.parametrize("workload", turn(COORDINATION))
def test_coordination_keeps_its_promises(workload: str) -> None:
    outcome = run_seed(2, workloads=(workload,))
    replay = f"replay: python -m jepsen_like simulate --workload {workload} --seed 2"
    assert outcome.violations == (), replay
    assert outcome.verdicts == {workload: "True"}
    assert outcome.ok > 50


def test_the_command_takes_workloads_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--workload", "watch,lease", "--seed", "3", "--json"]
    assert cli.main(asked) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert set(outcome["verdicts"]) <= {"watch", "lease"}
    assert cli.main(["simulate", "--workload", "watch,locks", "--seed", "4"]) != 0
    assert "no workload 'locks'" in capsys.readouterr().err


# --- holders whose clocks and machines are not as they should be ----------------------------------


def held(*faults: Fault, seed: int = 1) -> Run:
    """Holders of locks under these faults."""
    settings = Settings(
        voters=1, workloads={"lock": 1.0}, clients=4, think_ms=20.0, seconds=6.0,
        operations_max=250,
    )  # fmt: skip
    run = Run(Plan(seed=seed, settings=settings, faults=faults))
    try:
        run.complete()
    finally:
        run.close()
    return run


def test_a_holder_that_was_frozen_finds_its_lock_lost() -> None:
    faults = [Fault(at_s=1.0, kind="client-freeze", seconds=1.0, strength=1.0, who=who)
              for who in range(3)]  # fmt: skip
    run = held(*faults)
    assert not run.invariants.found
    assert run.nemesis.done == {"client-freeze": 3}
    history = run.load.histories["lock"]
    lost = [each for each in history if each.type == "fail" and "lost" in str(each.value)]
    refused = [each for each in history if "fenced" in str(each.value)]
    assert lost or refused
    assert all(not each.value["after"] for each in refused)


def test_a_clock_that_is_far_wrong_is_written_into_the_history() -> None:
    run = held(Fault(at_s=0.5, kind="client-clock", seconds=1.0, strength=0.5, who=0))
    assert not run.invariants.found
    history = run.load.histories["lock"]
    told = [each.value["do"] for each in history if each.f == "clock-rate"]
    assert told == ["begin", "end"]
    drifting = held(Fault(at_s=0.5, kind="client-drift", seconds=1.0, strength=0.9, who=0))
    assert drifting.nemesis.done == {"client-drift": 1}
    assert not [each for each in drifting.load.histories["lock"] if each.f == "clock-rate"]


# --- bugs -----------------------------------------------------------------------------------------

QUICK = ("two-waiters-granted", "watch-gap", "causal-too-early")


@pytest.mark.parametrize("name", turn(QUICK))
def test_a_bug_is_found_by_its_workload(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    names = {each.name for each in run_mutated(mutant, 1).violations}
    workload = next(iter(mutant.profile.settings["workloads"]))
    assert names
    assert names <= {f"history-{workload}", "lease-early"}


def test_every_bug_fits_the_product() -> None:
    for mutant in MUTANTS:
        with rewritten(mutant.rewrites):
            pass
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


# --- other systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", COORDINATION)
def test_systems_without_such_operations_are_refused(workload: str) -> None:
    with pytest.raises(UnsupportedError, match="only quorate"):
        asyncio.run(make(workload).setup(StoreClient(Store(Random(1)), 0.0)))
