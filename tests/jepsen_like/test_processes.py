"""One short run against real nodes: kills and partitions, and everything is gone afterwards."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jepsen_like.processes import sockets
from jepsen_like.processes.nemesis.schedule import packages
from jepsen_like.processes.nodes import all_ended
from jepsen_like.processes.runner import Runner, Settings
from jepsen_like.systems.quorate import QuorateSystem
from jepsen_like.workloads.registry import make

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(sockets.missing()), reason="needs /proc/net/tcp"),
]


def _workload() -> Any:
    path = Path(__file__).parent / "small_workload.py"
    spec = importlib.util.spec_from_file_location("small_workload", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SmallWorkload()


async def test_quorate_holds_under_kills_and_partitions(tmp_path: Path) -> None:
    settings = Settings(seconds=5.0, workers=6, rate=120.0, interval_s=1.0)
    random = Random(3)
    with all_ended():
        system = QuorateSystem(tmp_path, count=3, timeout_s=2.0, random=random)
        chosen = packages("kill,partition", system)
        outcome = await Runner(system, _workload(), chosen, random, settings).run()
    assert outcome.verdict.valid is True, outcome.verdict.problems
    assert outcome.counts["ok"] > 0  # how many, is the machine's
    assert outcome.faults
    assert not any(node.running for node in system.nodes.values())


@pytest.mark.deep
@pytest.mark.parametrize("names", ["disk", "membership", "clock,rolling,transfer", "all"])
async def test_quorate_holds_under_everything_else(tmp_path: Path, names: str) -> None:
    settings = Settings(seconds=30.0, workers=6, rate=120.0, interval_s=1.0)
    random = Random(4)
    with all_ended():
        system = QuorateSystem(tmp_path, count=3, timeout_s=2.0, random=random)
        chosen = packages(names, system)
        outcome = await Runner(system, _workload(), chosen, random, settings).run()
    assert outcome.verdict.valid is True, outcome.verdict.problems
    assert outcome.faults


@pytest.mark.deep
async def test_converging_data_is_kept_and_taken_on_nodes_that_are_cut_off(tmp_path: Path) -> None:
    settings = Settings(seconds=30.0, workers=30, rate=200.0)
    random = Random(5)
    with all_ended():
        system = QuorateSystem(tmp_path, count=3, timeout_s=2.0, random=random)
        chosen = packages("partition,kill,clock", system)
        workload = make("crdt-counter,crdt-set,crdt-map")
        outcome = await Runner(system, workload, chosen, random, settings).run()
    assert outcome.verdict.valid is True, outcome.verdict.problems
    facts = outcome.parts[0].facts
    for name in ("crdt-counter", "crdt-set", "crdt-map"):
        assert facts[name][name]["digest_equal"], facts
        assert facts[name][name]["decided"], facts
