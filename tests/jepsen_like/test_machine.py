"""A machine of one's own in the simulator: right ones pass, and each kind of wrong one is found."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

import quorate
from jepsen_like.errors import UsageError
from jepsen_like.machine import Call, MachineModel, Report, simulate_machine
from jepsen_like.simulation.plan import Fault, Plan, Settings
from quorate.replication.machine import Machine


class EmptyError(quorate.CommandError):
    code = "empty"


class Purse(quorate.Machine):
    errors = (EmptyError,)
    coins: quorate.Table[str, int]

    @quorate.command
    def put(self, who: str, count: int) -> int:
        self.coins.put(who, self.coins.get(who, 0) + count)
        return self.coins[who]

    @quorate.command
    def take(self, who: str, count: int) -> int:
        left = self.coins.get(who, 0) - count
        if left < 0:
            raise EmptyError(who)
        self.coins.put(who, left)
        return left

    @quorate.query
    def look(self, who: str) -> int:
        return self.coins.get(who, 0)


def calls(random: Random) -> Call:
    who = random.choice("ab")
    if random.random() < 0.4:
        return Call("look", who, key=who)
    return Call(random.choice(["put", "take"]), who, random.randint(1, 3), key=who)


LAST = [Call("look", who, key=who) for who in "ab"]
FAULTS = ((0.6, "crash-one"), (1.2, "checkpoint"), (1.3, "crash-leader"), (1.9, "isolate-leader"))


def rough(plan: Plan) -> Plan:
    """Short, and with what brings out a wrong machine: nodes that replay, elections."""
    settings = Settings(seconds=2.5, operations_max=150, think_ms=10.0, checkpoint_bytes=1500)
    faults = tuple(Fault(at_s=at_s, kind=kind, seconds=0.3) for at_s, kind in FAULTS)
    return Plan(seed=plan.seed, settings=settings, faults=faults)


def test_a_right_machine_passes() -> None:
    report = simulate_machine(Purse, calls, seeds=3, last=LAST, adjust=rough)
    assert report.ok, report
    assert report.operations > 300
    assert str(report).startswith("3 runs, ")


def test_a_right_machine_passes_whatever_a_seed_draws() -> None:
    report = simulate_machine(Purse, calls, seeds=[2], last=LAST)
    assert report.ok, report
    assert report.operations > 50


def violations(report: Report) -> set[str]:
    return {found.name for each in report.outcomes for found in each.violations}


class Forgetful(Purse):
    """Keeps something that matters outside of its tables."""

    name = "purse"

    def __init__(self) -> None:
        self._puts = 0

    @quorate.command
    def put(self, who: str, count: int) -> int:
        self._puts += 1
        self.coins.put(who, self.coins.get(who, 0) + count + self._puts % 2)
        return self.coins[who]


class Clumsy(Purse):
    name = "purse"

    @quorate.command
    def take(self, who: str, count: int) -> int:
        return self.coins[who] - count  # who may not be there


class Stale(Purse):
    """Answers from what it saw last, so reads can be older than writes."""

    name = "purse"

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    @quorate.query
    def look(self, who: str) -> int:
        seen = self._seen.get(who, 0)
        self._seen[who] = self.coins.get(who, 0)
        return seen


@pytest.mark.parametrize(
    ("machine", "found"),
    [(Forgetful, "state-differs"), (Clumsy, "history-machine"), (Stale, "history-machine")],
)
def test_a_wrong_machine_is_found(machine: type[Machine], found: str) -> None:
    for seed in range(1, 7):
        report = simulate_machine(machine, calls, seeds=[seed], last=LAST, adjust=rough)
        assert report.ok == (not violations(report))
        if found in violations(report):
            return
    pytest.fail(f"no run found {found}")


def test_a_check_of_the_users_own() -> None:
    seen: list[int] = []

    def check(history: Any) -> str:
        seen.append(len(history))
        return "I do not like it" if len(seen) > 1 else ""

    report = simulate_machine(Purse, calls, seeds=[3, 4], check=check, adjust=rough)
    assert [len(each.violations) for each in report.outcomes] == [0, 1]
    assert "I do not like it" in str(report)


def test_calls_that_cannot_be_made_are_the_users_mistakes() -> None:
    with pytest.raises(UsageError, match="has no command or query 'steal'"):
        simulate_machine(Purse, lambda _random: Call("steal"), seeds=1, adjust=rough)
    with pytest.raises(UsageError, match="Expected `int`"):
        simulate_machine(Purse, lambda _random: Call("put", "a", "b"), seeds=1, adjust=rough)


def test_the_model_is_the_machine_itself() -> None:
    model = MachineModel(Purse())
    assert model.initial() == ()
    assert model.name == "purse"
