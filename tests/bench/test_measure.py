"""The arithmetic under every figure."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import measure
from bench.measure import Figures, Sample, figures, median, median_figures, percentile


@pytest.mark.parametrize(
    ("ordered", "percent", "expected"),
    [
        pytest.param([7.0], 50, 7.0, id="one value is every percentile"),
        pytest.param([7.0], 99, 7.0, id="one value is every percentile, the high ones too"),
        pytest.param([1.0, 2.0], 50, 1.0, id="the median of two is the lower one"),
        pytest.param([1.0, 2.0, 3.0], 50, 2.0, id="the median of three is the middle one"),
        pytest.param([float(i) for i in range(1, 101)], 99, 99.0, id="p99 of 1..100 is 99"),
        pytest.param([float(i) for i in range(1, 102)], 99, 100.0, id="p99 of 1..101 is 100"),
        pytest.param([1.0, 2.0], 0, 1.0, id="p0 is the least"),
        pytest.param([1.0, 2.0], 100, 2.0, id="p100 is the greatest"),
    ],
)
def test_percentile(ordered: list[float], percent: float, expected: float) -> None:
    assert percentile(ordered, percent) == expected


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(median([]))


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.floats(0, 100))
def test_percentile_is_a_measured_value_with_enough_at_or_below_it(
    values: list[float], percent: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    at_or_below = sum(value <= found for value in ordered)
    assert at_or_below / len(ordered) >= percent / 100 - 1e-9


def test_figures_count_completions_in_the_window() -> None:
    found = figures(Sample(latencies_s=[0.003, 0.001, 0.002, 0.1], window_s=2.0))
    assert found == Figures(ops_per_s=2.0, p50_ms=2.0, p99_ms=100.0)


def test_one_disturbed_round_does_not_count() -> None:
    good = Figures(ops_per_s=100.0, p50_ms=1.0, p99_ms=2.0)
    disturbed = Figures(ops_per_s=1.0, p50_ms=50.0, p99_ms=900.0)
    assert median_figures([good, disturbed, good]) == good


def test_fsync_probe_leaves_nothing(tmp_path: Path) -> None:
    latencies = measure.fsync_latencies_s(tmp_path, 5)
    assert len(latencies) == 5
    assert min(latencies) > 0
    assert list(tmp_path.iterdir()) == []


def test_machine_and_versions_are_told(tmp_path: Path) -> None:
    assert measure.machine(tmp_path)["cores"]
    found = measure.versions("msgspec", "no-such-package")
    assert found["msgspec"] != "absent"
    assert found["no-such-package"] == "absent"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_of_a_process() -> None:
    assert measure.resident_bytes(os.getpid()) > 1 << 20
    assert measure.resident_bytes(2**22 + 1) == 0  # above the greatest pid
