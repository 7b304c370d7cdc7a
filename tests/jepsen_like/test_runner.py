from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jepsen_like.errors import UsageError
from jepsen_like.history import NEMESIS, operations
from jepsen_like.processes.nemesis.disk import flip_bit, truncate
from jepsen_like.processes.nemesis.schedule import PACKAGES, packages
from jepsen_like.processes.nemesis.stage import Stage
from jepsen_like.processes.nodes import NodeProcess, all_ended
from jepsen_like.processes.runner import Outcome, Runner, Settings
from jepsen_like.systems.base import OutcomeError, Versioned
from jepsen_like.systems.registry import system_class
from jepsen_like.systems.system import System

pytestmark = pytest.mark.shared

QUICK = Settings(seconds=0.6, workers=4, rate=400.0, interval_s=0.2, timeout_s=0.5)


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SmallWorkload = _load("small_workload").SmallWorkload


class StubClient:
    """Adds in memory; every seventh call ends unknown, half of those without effect."""

    def __init__(self, system: StubSystem) -> None:
        self.system = system

    async def get(self, key: str) -> Versioned:
        await asyncio.sleep(0.001)
        return Versioned(str(self.system.total).encode(), 1)

    async def put(self, key: str, value: bytes) -> None:
        self.system.total = int(value)

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        raise NotImplementedError

    async def add(self, key: str, number: int) -> int:
        system = self.system
        system.calls += 1
        await asyncio.sleep(0.001)
        if system.hangs and system.calls % 20 == 0:
            await asyncio.sleep(60)
        if system.calls % 7 == 0:
            system.total += number if system.calls % 14 == 0 else 0
            raise OutcomeError("nobody knows", definite=False)
        if system.calls % 5 == 0:
            raise OutcomeError("surely not", definite=True)
        if not (system.loses and system.calls % 2 == 0):
            system.total += number
        return system.total

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        raise NotImplementedError

    async def close(self) -> None:
        self.system.open -= 1


class StubSystem(System):
    """Processes that sleep, clients that add in memory."""

    name = "stub"
    loses = hangs = False
    broken: str = ""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.total = self.calls = self.open = 0

    def command(self, number: int) -> Sequence[str]:
        return [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

    async def serves(self, number: int) -> bool:
        return self.nodes[number].running

    async def leader(self) -> int:
        return 1

    def client(self, process: int) -> StubClient:
        self.open += 1
        return StubClient(self)

    async def audit(self) -> list[str]:
        return [self.broken] if self.broken else []


def stub(tmp_path: Path) -> StubSystem:
    return StubSystem(tmp_path, count=3, timeout_s=0.5, random=Random(1))


async def run(system: System, names: str = "none", settings: Settings = QUICK) -> Outcome:
    chosen = packages(names, system)
    with all_ended():
        return await Runner(system, SmallWorkload(), chosen, Random(1), settings).run()


async def test_a_sound_system_is_valid_and_its_history_is_well_formed(tmp_path: Path) -> None:
    system = stub(tmp_path)
    outcome = await run(system, "kill,pause,partition,slow,reset,clients")
    assert outcome.verdict.valid is True, outcome.verdict
    found = operations(outcome.history)  # raises if a process goes on after an unknown outcome
    assert len(found) == sum(outcome.counts.values())
    assert min(outcome.counts.values()) > 0
    times = [event.time_ns for event in outcome.history]
    assert times == sorted(times)
    assert system.open == 0
    assert not any(node.running for node in system.nodes.values())


async def test_every_fault_begins_and_ends_in_the_history(tmp_path: Path) -> None:
    outcome = await run(stub(tmp_path), "kill,partition")
    told = [event for event in outcome.history if event.process == NEMESIS]
    for do in ("begin", "end"):
        ids = [event.value["id"] for event in told if event.value["do"] == do]
        assert sorted(ids) == list(range(1, sum(outcome.faults.values()) + 1))


async def test_lost_adds_are_found(tmp_path: Path) -> None:
    system = stub(tmp_path)
    system.loses = True
    outcome = await run(system)
    assert outcome.verdict.valid is False
    assert "acknowledged" in outcome.verdict.problems[0]


async def test_what_the_audit_finds_makes_a_run_invalid(tmp_path: Path) -> None:
    system = stub(tmp_path)
    system.broken = "replicas differ"
    outcome = await run(system)
    assert outcome.verdict.valid is False
    assert any("replicas differ" in problem for problem in outcome.verdict.problems)


async def test_a_call_that_does_not_return_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepsen_like.processes.runner.GRACE_S", 0.1)
    system = stub(tmp_path)
    system.hangs = True
    outcome = await run(system, settings=QUICK)
    assert any("did not return" in (event.error or "") for event in outcome.history)


async def test_a_node_that_does_not_come_back_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepsen_like.processes.nemesis.schedule.RECOVERY_TIMEOUT_S", 0.2)
    system = stub(tmp_path)

    async def never_again(number: int) -> bool:
        return system.calls == 0

    monkeypatch.setattr(system, "serves", never_again)
    outcome = await run(system)
    assert any("did not serve again" in problem for problem in outcome.verdict.problems)


async def test_rolling_restarts_want_status_0(tmp_path: Path) -> None:
    system = stub(tmp_path)  # python -S dies of SIGTERM, with -15
    stage = Stage(system, Random(1), lambda _event: None, lambda: 0)
    await system.start()
    try:
        for node in system.nodes.values():
            node._started_s -= 100
        await PACKAGES["rolling"].strike(stage)
    finally:
        system.close()
    assert stage.problems_count == 3
    assert "status -15" in stage.problems[0]


def test_packages_are_refused_in_words(tmp_path: Path) -> None:
    system = stub(tmp_path)
    assert [package.name for package in packages("kill, pause", system)] == ["kill", "pause"]
    assert packages("none", system) == []
    assert "clock" not in [package.name for package in packages("all", system)]
    with pytest.raises(UsageError, match="there are kill"):
        packages("kil", system)
    with pytest.raises(UsageError, match="cannot change its members"):
        packages("membership", system)
    with pytest.raises(UsageError, match="there are quorate"):
        system_class("nothing")


def test_a_node_process_is_started_paused_and_killed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-S",
        "-c",
        "print('hello', flush=True); import time; time.sleep(99)",
    ]
    with all_ended():
        node = NodeProcess(1, tmp_path, lambda: command)
        node.start()
        assert node.running
        node.pause()
        assert node.paused
        node.kill()
        assert not node.running
        assert node.exit_status == -9
        node.start()
        assert node.started_count == 2
    assert not node.running


def test_damage_is_where_data_was_written(tmp_path: Path) -> None:
    file = tmp_path / "log"
    whole = b"\x55" * 5000 + bytes(3000)
    file.write_bytes(whole)
    assert "flipped" in flip_bit(file, Random(1))
    changed = [at for at, byte in enumerate(file.read_bytes()) if byte != whole[at]]
    assert len(changed) == 1
    assert changed[0] < 2500
    assert "cut to" in truncate(file, Random(1))
    assert file.stat().st_size < len(whole)
    file.write_bytes(bytes(3000))
    assert flip_bit(file, Random(1)) == ""
