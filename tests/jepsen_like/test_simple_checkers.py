"""Sets, counters and banks: every kind of damage is found, and nothing else is."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.checkers.bank import BankChecker
from jepsen_like.checkers.base import Checker, Together
from jepsen_like.checkers.bounds import Addition, Bounds
from jepsen_like.checkers.counter import CounterChecker
from jepsen_like.checkers.models import NEVER
from jepsen_like.checkers.set_ import SetChecker
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event
from tests.jepsen_like.histories import history, sequential

# --- sets -----------------------------------------------------------------------------------------

SETS: dict[str, tuple[list[Event], object, dict[str, int]]] = {
    "all there": (
        sequential((0, "add", 1, "ok", 1), (1, "add", 2, "ok", 2), (0, "read", None, "ok", [2, 1])),
        True,
        {"acknowledged": 2, "lost": 0},
    ),
    "lost": (
        sequential((0, "add", 1, "ok", 1), (0, "add", 2, "ok", 2), (0, "read", None, "ok", [2])),
        False,
        {"lost": 1, "stale": 0},
    ),
    "stale: missing first, there later": (
        sequential(
            (0, "add", 1, "ok", 1), (1, "read", None, "ok", []), (1, "read", None, "ok", [1])
        ),
        False,
        {"lost": 0, "stale": 1},
    ),
    "shown by one read, then gone": (
        sequential(
            (0, "add", 1, "info", 1), (1, "read", None, "ok", [1]), (1, "read", None, "ok", [])
        ),
        False,
        {"lost": 1, "recovered": 1},
    ),
    "unknown, and found": (
        sequential((0, "add", 1, "info", 1), (1, "read", None, "ok", [1])),
        True,
        {"recovered": 1},
    ),
    "unknown, and not found": (
        sequential((0, "add", 1, "info", 1), (1, "read", None, "ok", [])),
        True,
        {"recovered": 0},
    ),
    "concurrent with the read": (
        history(
            (0, "invoke", "add", 1),
            (1, "invoke", "read", None),
            (0, "ok", "add", 1),
            (1, "ok", "read", []),
            (1, "invoke", "read", None),
            (1, "ok", "read", [1]),
        ),
        True,
        {"lost": 0},
    ),
    "twice": (
        sequential((0, "add", 1, "ok", 1), (1, "read", None, "ok", [1, 1])),
        False,
        {"duplicated": 1},
    ),
    "nobody added it": (sequential((1, "read", None, "ok", [9])), False, {"unexpected": 1}),
    "its add surely failed": (
        sequential((0, "add", 1, "fail", 1), (1, "read", None, "ok", [1])),
        False,
        {"unexpected": 1},
    ),
    "shown before it was added": (
        sequential(
            (1, "read", None, "ok", [1]), (0, "add", 1, "ok", 1), (1, "read", None, "ok", [1])
        ),
        False,
        {"unexpected": 1},
    ),
    "never read": (sequential((0, "add", 1, "ok", 1)), "unknown", {"never_read": 1}),
    "added after the last read": (
        sequential((0, "read", None, "ok", []), (0, "add", 1, "ok", 1)),
        "unknown",
        {"never_read": 1},
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_sets(name: str) -> None:
    events, valid, facts = SETS[name]
    verdict = SetChecker().check(events)
    assert verdict.valid == valid
    assert {fact: verdict.facts[fact] for fact in facts} == facts
    assert bool(verdict.problems) == (valid is False)


def test_sets_are_judged_by_key() -> None:
    events = history(
        (0, "invoke", "add", 1, "a"),
        (0, "ok", "add", 1, "a"),
        (0, "invoke", "read", None, "b"),
        (0, "ok", "read", [1], "b"),
        (0, "invoke", "read", None, "a"),
        (0, "ok", "read", [1], "a"),
    )
    verdict = SetChecker().check(events)
    assert verdict.valid is False
    assert "set 'b'" in verdict.problems[0]
    assert "nobody added" in verdict.problems[0]


# --- counters -------------------------------------------------------------------------------------

COUNTERS: dict[str, tuple[list[Event], object]] = {
    "exact": (sequential((0, "add", 2, "ok", 2), (0, "read", None, "ok", 2)), True),
    "down and up": (
        sequential((0, "add", 2, "ok", 2), (0, "add", -3, "ok", -1), (0, "read", None, "ok", -1)),
        True,
    ),
    "lost": (sequential((0, "add", 2, "ok", None), (0, "read", None, "ok", 0)), False),
    "applied twice": (sequential((0, "add", 2, "ok", None), (0, "read", None, "ok", 4)), False),
    "an unknown one happened": (
        sequential((0, "add", 2, "info", 2), (1, "read", None, "ok", 2)),
        True,
    ),
    "an unknown one did not": (
        sequential((0, "add", 2, "info", 2), (1, "read", None, "ok", 0)),
        True,
    ),
    "an unknown one happened twice": (
        sequential((0, "add", 2, "info", 2), (1, "read", None, "ok", 4)),
        False,
    ),
    "an unknown negative one": (
        sequential((0, "add", -2, "info", -2), (1, "read", None, "ok", -2)),
        True,
    ),
    "too low even with the unknown negative one": (
        sequential((0, "add", -2, "info", -2), (1, "read", None, "ok", -3)),
        False,
    ),
    "failed and counted": (
        sequential((0, "add", 2, "fail", 2), (1, "read", None, "ok", 2)),
        False,
    ),
    "concurrent": (
        history(
            (0, "invoke", "add", 2),
            (1, "invoke", "read", None),
            (0, "ok", "add", 2),
            (1, "ok", "read", 0),
            (1, "invoke", "read", None),
            (1, "ok", "read", 2),
        ),
        True,
    ),
    "stale": (
        sequential(
            (0, "add", 2, "ok", 2),
            (0, "add", 2, "ok", 4),
            (1, "read", None, "ok", 2),
            (1, "read", None, "ok", 4),
        ),
        False,
    ),
    "counted before it was asked for": (
        sequential((1, "read", None, "ok", 2), (0, "add", 2, "ok", 2), (1, "read", None, "ok", 2)),
        False,
    ),
    "two adds are told the same": (
        history(
            (0, "invoke", "add", 1),
            (1, "invoke", "add", 1),
            (0, "ok", "add", 1),
            (1, "ok", "add", 1),
            (0, "invoke", "read", None),
            (0, "ok", "read", 2),
        ),
        False,
    ),
    "an add is told less than itself": (
        sequential((0, "add", 3, "ok", 2), (0, "read", None, "ok", 3)),
        False,
    ),
    "never read": (sequential((0, "add", 1, "ok", 1)), "unknown"),
    "a counter that is not there is 0": (sequential((0, "read", None, "ok", None)), True),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_counters(name: str) -> None:
    events, valid = COUNTERS[name]
    verdict = CounterChecker().check(events)
    assert verdict.valid == valid
    assert bool(verdict.problems) == (valid is False)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_bounds_are_those_of_every_choice(seed: int) -> None:
    """Against the definition: each addition that is not sure may count or not."""
    random = Random(seed)
    additions = []
    for _number in range(random.randint(0, 6)):
        begin = random.randrange(20)
        end = NEVER if random.random() < 0.3 else begin + random.randint(1, 10)
        additions.append(Addition(random.randint(-3, 3), begin, end))
    start = random.randrange(20)
    end = start + random.randint(1, 10)
    sums = {10}
    for each in additions:
        if each.end < start:
            sums = {value + each.number for value in sums}
        elif each.start < end:
            sums |= {value + each.number for value in sums}
    assert Bounds(10, additions).between(start, end) == (min(sums), max(sums))


# --- banks ----------------------------------------------------------------------------------------

BANK = BankChecker({"0": 10, "1": 10})


def move(amount: int, outcome: str = "ok", process: int = 0) -> tuple[Any, ...]:
    value = {"from": 0, "to": 1, "amount": amount}
    return (process, "transfer", value, outcome, value)


def balances(left: int, right: int, process: int = 1) -> tuple[Any, ...]:
    return (process, "read", None, "ok", {"0": left, "1": right})


BANKS: dict[str, tuple[list[Event], object, str]] = {
    "moved": (sequential(move(3), balances(7, 13)), True, ""),
    "nothing happened": (sequential(balances(10, 10)), True, ""),
    "unknown, either way": (
        sequential(move(3, "info"), balances(7, 13), balances(7, 13)),
        True,
        "",
    ),
    "half a transfer": (sequential(move(3), balances(7, 10)), False, "a total of 17, not 20"),
    "half an unknown transfer": (
        sequential(move(3, "info"), balances(7, 10)),
        False,
        "a total of 17, not 20",
    ),
    "below zero": (sequential(move(12), balances(-2, 22)), False, "below zero"),
    "lost, with the total right": (
        sequential(move(3), balances(10, 10)),
        False,
        "shows account 0 at 10",
    ),
    "failed, and done": (
        sequential(move(3, "fail"), balances(7, 13)),
        False,
        "shows account 0 at 7",
    ),
    "an account is missing": (
        sequential((1, "read", None, "ok", {"0": 20})),
        False,
        "shows the accounts ['0'], not ['0', '1']",
    ),
    "never read": (sequential(move(3)), "unknown", ""),
}


@pytest.mark.parametrize("name", BANKS)
def test_banks(name: str) -> None:
    events, valid, said = BANKS[name]
    verdict = BANK.check(events)
    assert verdict.valid == valid
    assert said in " ".join(verdict.problems)
    assert bool(verdict.problems) == (valid is False)


def test_banks_that_may_overdraw() -> None:
    events = sequential(move(12), balances(-2, 22))
    assert BankChecker({"0": 10, "1": 10}, negative=True).check(events).valid is True


# --- all ------------------------------------------------------------------------------------------


GARBAGE = [
    *[("push", 1, 1), ("read", None, "x"), ("add", [1], {"a": []}), ("add", None, None)],
    *[("transfer", {"from": 0}, None), ("transfer", {"from": 0, "to": 7, "amount": 1}, None)],
    *[("transfer", 5, None), ("read", None, {"0": "x", "1": 1})],
]


@pytest.mark.parametrize("checker", [SetChecker(), CounterChecker(), BANK])
@pytest.mark.parametrize("event", GARBAGE)
def test_garbage_is_refused_or_judged(checker: Checker, event: tuple[Any, ...]) -> None:
    f, asked, answer = event
    with contextlib.suppress(HistoryError):
        checker.check(sequential((0, f, asked, "ok", answer)))


def test_elements_must_be_unique() -> None:
    events = sequential((0, "add", 1, "info", 1), (1, "add", 1, "ok", 1))
    with pytest.raises(HistoryError, match="added twice"):
        SetChecker().check(events)


def test_checkers_together() -> None:
    events = sequential((0, "add", 1, "ok", 1), (0, "read", None, "ok", [2]))
    both = Together("both", [SetChecker(), SetChecker()])
    verdict = both.check(events)
    assert verdict.valid is False
    assert verdict.problems[0].startswith("set: ")
    assert Together("both", []).check(events).valid is True
