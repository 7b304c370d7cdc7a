"""Loops that drive, figures beside their bars, the client process, and bytes for etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report, workloads
from bench.compare import Contestant, choose_systems
from bench.failover import finish as finish_failover
from bench.failover import first_acknowledged
from bench.measure import Figures, Sample
from bench.processes import BenchError
from bench.recover import Watch, bars_of
from bench.report import Bar, Row, ratio_bars
from bench.worker import obey
from bench.workloads import BY_NAME, KEY_BYTES, VALUE_BYTES, Workload, drive, paced, payloads
from jepsen_like.systems import etcd_wire

# --- driving --------------------------------------------------------------------------------------


def test_payloads_are_as_stated_and_the_same_for_everyone() -> None:
    mine, yours = payloads(), payloads()
    for _ in range(1000):
        key, value = next(mine)
        assert (key, value) == next(yours)
        assert (len(key), len(value)) == (KEY_BYTES, VALUE_BYTES)


async def test_drive_keeps_so_many_in_flight_and_counts_after_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workloads, "WARM_UP_S", 0.1)
    in_flight = most = calls = 0

    async def call(_key: bytes, _value: bytes) -> None:
        nonlocal in_flight, most, calls
        in_flight, calls = in_flight + 1, calls + 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1

    sample = await drive([call, call], 3, seconds=0.2)
    assert most == 6
    assert in_flight == 0
    assert 0 < len(sample.latencies_s) < calls  # what completed in the warm-up is not counted
    assert min(sample.latencies_s) >= 0.009


async def test_a_failed_call_fails_the_run() -> None:
    async def call(_key: bytes, _value: bytes) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await drive([call], 2, seconds=1)


async def test_a_stall_is_charged_to_every_call_that_it_delayed() -> None:
    ended, calls = asyncio.Event(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            time.sleep(0.2)  # noqa: ASYNC251 - the stall
        if calls == 160:
            ended.set()

    latencies = await paced(call, 500, ended)
    assert 60 <= sum(latency > 0.02 for latency in latencies) <= 160
    assert max(latencies) >= 0.2


# --- figures beside their bars --------------------------------------------------------------------


def row(system: str, workload: str, ops_per_s: float, p50_ms: float = 1.0) -> Row:
    w = BY_NAME[workload]
    return Row(
        system=system,
        workload=workload,
        connections=w.connections,
        outstanding=w.outstanding,
        ops_per_s=ops_per_s,
        p50_ms=p50_ms,
        p99_ms=2.0,
        client="asyncio",
    )


def test_ratios_are_held_against_the_table() -> None:
    rows = [row("quorate", "put@100", 50_000), row("etcd", "put@100", 10_000)]
    rows += [row("pysyncobj", "put@100", 10_000), row("quorate", "put@1", 1000, p50_ms=0.9)]
    bars = {bar.name: (bar.value, bar.required, bar.met) for bar in ratio_bars(rows, 0.1)}
    assert bars == {
        "put@100: quorate / etcd": (5.0, 6.0, False),
        "put@100: quorate / pysyncobj": (5.0, 3.0, True),
        "put@1 p50 / fsync p50": (9.0, 8.0, False),
    }


def test_every_bar_names_a_workload() -> None:
    assert set(report.RATIO_BARS) == set(BY_NAME)


@pytest.mark.parametrize(
    ("value", "most", "met"),
    [
        (2.0, False, True),
        (1.9, False, False),
        (2.0, True, True),
        (2.1, True, False),
        (math.nan, False, False),
        (math.nan, True, False),
    ],
)
def test_a_bar(value: float, met: bool, most: bool) -> None:
    assert Bar("x", value, 2.0, most=most).met == met


def test_bars_say_their_bound_in_json() -> None:
    upper = Bar("x", 1.23456, 2.0, most=True).to_json()
    assert upper == {"name": "x", "value": 1.235, "at_most": 2.0, "met": True}
    lower = Bar("x", math.nan, 2.0).to_json()
    assert lower == {"name": "x", "value": None, "at_least": 2.0, "met": False}


def test_reports_are_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write_json(path, {"rows": [row("etcd", "put@1", 5.0)], "nothing": math.nan})
    found = json.loads(path.read_text())
    assert found["nothing"] is None
    assert found["rows"][0]["outstanding"] == 1


@pytest.mark.parametrize(("load", "warned"), [(0.2, False), (0.99, False), (1.0, True)])
def test_a_busy_machine_is_told(load: float, warned: bool) -> None:
    text = report.facts_text({"machine": {"cores": 2, "load_average_1min": load}})
    assert ("WARNING: load average 1.0" in text) == warned


def test_table_lines_up() -> None:
    text = report.table(("name", "value"), [("a", 1234.5), ("long name", None), ("b", True)])
    assert text.splitlines() == [
        "name       value",
        "---------  -----",
        "a          1,234",
        "long name      -",
        "b            yes",
    ]


def test_failover_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = finish_failover(3, {"quorate": [0.5, 0.4, 1.6], "etcd": [1.2, 1.1, 1.3]})
    assert found["rows"] == [
        {"system": "quorate", "kills": 3, "median_s": 0.5, "worst_s": 1.6},
        {"system": "etcd", "kills": 3, "median_s": 1.2, "worst_s": 1.3},
    ]
    assert "NOT MET" in capsys.readouterr().out


async def test_first_acknowledged_does_not_wait_for_the_stuck() -> None:
    began, calls = time.perf_counter(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(60)
        if calls < 4:
            raise ConnectionError

    assert (await first_acknowledged([call])) - began < 5
    assert calls >= 4


RECOVERED = {
    "puts_per_s_many": 90.0,
    "puts_per_s_few": 100.0,
    "resident_mib": 600.0,
    "resident_after_restart_mib": 701.0,
    "restart_one_s": 4.0,
    "restart_all_s": 6.0,
    "idle_mib": 60.0,
    "join_by_snapshot": 1,
    "elections": 0,
    "usual_p99_ms": 2.0,
    "meanwhile_p99_ms": 5.0,
}


def test_the_worst_memory_counts() -> None:
    verdicts = [bar.met for bar in bars_of(RECOVERED)]
    assert verdicts == [True, False, False, True, True, True, True, True]


def test_elections_are_counted_by_term() -> None:
    assert Watch({(3, 1), (3, 0)}).elections == 0
    assert Watch({(3, 1), (4, 2), (6, 1)}).elections == 2
    assert Watch().elections == 0


# --- the client process, and the choice among its ways --------------------------------------------


class FakeClient:
    def __init__(self) -> None:
        self.spec: dict[str, Any] = {}

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return ("slow", "fast") if workload.operation == "put" else ()

    async def open(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    async def load(self) -> None: ...

    async def run(self, workload: Workload, variant: str, seconds: float) -> Sample:
        return Sample([0.001] * (workload.outstanding * (1 + (variant == "fast"))), seconds)

    async def close(self) -> None: ...


class FakeWorker:
    """Answers as the process would, through JSON."""

    def __init__(self) -> None:
        self.client = FakeClient()

    def ask(self, **order: object) -> Any:
        return json.loads(json.dumps(asyncio.run(obey(self.client, order))))

    def run(self, workload: str, variant: str, seconds: float) -> Figures:
        answer = self.ask(do="run", workload=workload, variant=variant, seconds=seconds)
        return Figures(**answer)

    def close(self) -> None: ...


class FakeSystem:
    name = "fake"


def test_the_fastest_way_counts_and_the_median_round() -> None:
    contestant = Contestant(FakeSystem(), FakeWorker())  # type: ignore[arg-type]
    for workload in (BY_NAME["put@100"], BY_NAME["get@100"]):
        contestant.choose(workload)
        contestant.measure(workload, seconds=2)
        contestant.measure(workload, seconds=1)
        contestant.measure(workload, seconds=4)
    found = contestant.row(BY_NAME["put@100"])
    assert found is not None
    assert (found.client, found.ops_per_s, found.p50_ms) == ("fast", 100.0, 1.0)
    assert contestant.row(BY_NAME["get@100"]) is None


def test_unknown_order_is_refused() -> None:
    with pytest.raises(BenchError, match="unknown order"):
        FakeWorker().ask(do="dance")


def test_absent_systems_are_left_out_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BenchError, match="apt-get install etcd-server"):
        choose_systems(["etcd"])


# --- etcd's bytes ---------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_put_request_is_two_fields(key: bytes, value: bytes) -> None:
    assert list(etcd_wire.fields(etcd_wire.put_request(key, value))) == [(1, key), (2, value)]


@given(st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_fields_come_back(number: int, content: bytes) -> None:
    message = etcd_wire.varint(3 << 3) + etcd_wire.varint(number)
    message += etcd_wire.bytes_field(200, content)
    assert list(etcd_wire.fields(message)) == [(3, number), (200, content)]


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_read(message: bytes) -> None:
    with contextlib.suppress(ValueError):
        for number, _content in etcd_wire.fields(message):
            assert number >= 0


def test_leader_of_a_status() -> None:
    def status(member: int, leader: int) -> bytes:
        header = etcd_wire.varint(2 << 3) + etcd_wire.varint(member)
        return (
            etcd_wire.bytes_field(1, header) + etcd_wire.varint(4 << 3) + etcd_wire.varint(leader)
        )

    assert etcd_wire.is_leader(status(7, 7))
    assert not etcd_wire.is_leader(status(7, 8))
    assert not etcd_wire.is_leader(status(0, 0))


def test_value_of_a_range() -> None:
    pair = etcd_wire.bytes_field(1, b"k") + etcd_wire.bytes_field(5, b"v")
    assert etcd_wire.range_value(etcd_wire.bytes_field(2, pair)) == b"v"
    assert etcd_wire.range_value(b"") is None
