"""A verdict of "nothing lost" is only worth something if it can be red."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest

from bench.durability import CAS_COUNTERS, PLAIN_COUNTERS, Clients, plan
from bench.history import CounterHistory, History, Verdict, judge, merge, value_of
from quorate.errors import DeadlineExceededError, UnavailableError

A, B, C, N = b"put/a", b"put/b", b"put/c", b"count/n"


def history(**counters: CounterHistory) -> History:
    return History({A}, {B}, {C}, {name.encode(): found for name, found in counters.items()})


def stored(*keys: bytes) -> dict[bytes, bytes]:
    return {key: value_of(key) for key in keys}


@pytest.mark.parametrize(
    ("keys", "lost", "invented"),
    [
        pytest.param(stored(A), 0, 0, id="an unknown put may be absent"),
        pytest.param(stored(A, B), 0, 0, id="an unknown put may be there"),
        pytest.param(stored(B), 1, 0, id="an acknowledged put must be there"),
        pytest.param({}, 1, 0, id="everything is gone"),
        pytest.param({A: value_of(B)}, 1, 0, id="an acknowledged put has its own value"),
        pytest.param(
            {A: value_of(A), B: b"?"}, 0, 1, id="an unknown put has its own value or none"
        ),
        pytest.param(stored(A, C), 0, 1, id="what surely did not happen is not there"),
        pytest.param(stored(A, b"put/x"), 0, 1, id="nobody put this"),
    ],
)
def test_puts(keys: dict[bytes, bytes], lost: int, invented: int) -> None:
    verdict = judge(history(), keys, {})
    assert (verdict.lost, verdict.duplicated, verdict.invented) == (lost, 0, invented)
    assert verdict.passed == (lost == invented == 0)
    assert bool(verdict.problems) != verdict.passed


@pytest.mark.parametrize(
    ("results", "unknown", "value", "lost", "duplicated"),
    [
        pytest.param([1, 2, 3], 0, 3, 0, 0, id="exactly the acknowledged ones"),
        pytest.param([1, 2, 3], 2, 5, 0, 0, id="every unknown one happened"),
        pytest.param([1, 2, 3], 2, 4, 0, 0, id="some unknown ones happened"),
        pytest.param([1, 2, 3], 2, 2, 1, 0, id="an acknowledged one is lost"),
        pytest.param([1, 2, 3], 0, 4, 0, 1, id="one was applied twice"),
        pytest.param([1, 2, 3], 2, 7, 0, 2, id="two more than even the unknown ones explain"),
        pytest.param([1, 2, 2], 1, 3, 1, 0, id="two gave the same result: one overwrote the other"),
        pytest.param([1, 5], 4, 4, 1, 0, id="a result was given that is above the last value"),
        pytest.param([], 0, 0, 0, 0, id="nothing was asked"),
        pytest.param([], 0, 1, 0, 1, id="nothing was asked and something happened"),
    ],
)
def test_counters(results: list[int], unknown: int, value: int, lost: int, duplicated: int) -> None:
    told = CounterHistory(unknown=unknown, results=results)
    verdict = judge(History(counters={N: told}), {}, {N: value})
    assert (verdict.lost, verdict.duplicated) == (lost, duplicated)
    assert verdict.passed == (lost == duplicated == 0)


def test_a_counter_that_is_not_there_is_zero() -> None:
    told = CounterHistory(results=[1])
    assert judge(History(counters={N: told}), {}, {}).lost == 1


def test_counts_are_whole_even_when_few_problems_are_shown() -> None:
    many = {b"put/%d" % number for number in range(1000)}
    verdict = judge(History(acknowledged=many), {}, {})
    assert verdict.lost == 1000
    assert len(verdict.problems) < 100


def test_one_bad_node_is_enough() -> None:
    good, bad = Verdict(0, 0, 0, ()), Verdict(2, 1, 0, ("gone",))
    merged = merge({1: good, 2: bad, 3: good})
    assert not merged.passed
    assert merged == Verdict(2, 1, 0, ("node 2: gone",))


def test_totals() -> None:
    told = history(n=CounterHistory(unknown=2, denied=4, results=[1, 2, 3]))
    assert (told.acknowledged_count, told.unknown_count, told.denied_count) == (4, 3, 5)


# --- the clients against stores that keep their promises, and against those that do not -----------


class Item(NamedTuple):
    value: bytes


class Answer(NamedTuple):
    value: int = 0
    succeeded: bool = False


class FakeKv:
    """A store in memory; every tenth write goes wrong in the way of *fault*."""

    def __init__(self, fault: str = "") -> None:
        self.data: dict[bytes, bytes] = {}
        self._fault = fault
        self._writes = 0

    def _write(self, key: bytes, value: bytes, again: bytes | None = None) -> None:
        self._writes += 1
        fault = self._fault if self._writes % 10 == 0 else ""
        if fault == "denies":
            raise UnavailableError("no leader")
        if fault != "loses":
            self.data[key] = value
        if fault == "doubles" and again is not None:
            self.data[key] = again
        if fault == "denies falsely":
            raise UnavailableError("no leader")
        if fault == "times out":
            raise DeadlineExceededError("no answer")

    async def put(self, key: bytes, value: bytes, timeout: float = 5) -> None:
        await asyncio.sleep(0)
        self._write(key, value)

    async def get(self, key: bytes, timeout: float = 5) -> Item | None:
        await asyncio.sleep(0)
        return Item(self.data[key]) if key in self.data else None

    async def increment(self, key: bytes, timeout: float = 5) -> Answer:
        await asyncio.sleep(0)
        value = int(self.data.get(key, b"0")) + 1
        self._write(key, b"%d" % value, b"%d" % (value + 1))
        return Answer(value=value)

    async def compare_and_set(
        self, key: bytes, expected: bytes | None, value: bytes, timeout: float = 5
    ) -> Answer:
        await asyncio.sleep(0)
        if self.data.get(key) != expected:
            return Answer(succeeded=False)
        self._write(key, value, b"%d" % (int(value) + 1))
        return Answer(succeeded=True)


class Handle(NamedTuple):
    kv: FakeKv


async def verdict_on(fault: str) -> tuple[Verdict, History]:
    kv, told = FakeKv(fault), History()
    handles: list[Any] = [Handle(kv), Handle(kv)]
    clients = Clients(handles, told)
    lanes = asyncio.gather(*clients.lanes())
    await asyncio.sleep(0.15)
    clients.stopped = True
    await lanes
    keys = {key: value for key, value in kv.data.items() if key.startswith(b"put/")}
    names = PLAIN_COUNTERS + CAS_COUNTERS
    return judge(told, keys, {name: int(kv.data.get(name, b"0")) for name in names}), told


@pytest.mark.parametrize("fault", ["", "denies", "times out"])
async def test_a_store_that_keeps_its_promises_passes(fault: str) -> None:
    verdict, told = await verdict_on(fault)
    assert verdict.passed, verdict.problems
    assert told.acknowledged_count > 50
    assert all(counter.acknowledged for counter in told.counters.values())
    assert bool(told.unknown_count) == (fault == "times out")
    assert bool(told.denied_count) == (fault == "denies")


@pytest.mark.parametrize(
    ("fault", "figure"),
    [("loses", "lost"), ("doubles", "duplicated"), ("denies falsely", "invented")],
)
async def test_a_store_that_breaks_a_promise_is_found(fault: str, figure: str) -> None:
    verdict, _told = await verdict_on(fault)
    assert getattr(verdict, figure) > 0
    assert not verdict.passed


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_is_the_seed() -> None:
    assert plan(30, 7) == plan(30, 7)
    assert plan(30, 7) != plan(30, 8)
    assert plan(40, 7)[:30] == plan(30, 7)


def test_the_plan_of_thirty_kills_has_every_kind() -> None:
    strikes = plan(30, 1)
    kinds = [strike.whom for strike in strikes]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"leader": 12, "one": 12, "all": 6}
    assert {strike.wait for strike in strikes} == {True, False}
