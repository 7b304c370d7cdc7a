"""Stamps only grow, whatever the wall clocks do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.crdt.clock import DRIFT_MS_MAX, LOGICAL_MAX, NEVER, Stamp, observe, successor, tick
from quorate.errors import ClockDriftError, InvalidArgumentError

STAMPS = st.builds(Stamp, st.integers(0, 50), st.integers(0, 3) | st.just(LOGICAL_MAX))


@given(STAMPS, st.integers(0, 60))
def test_a_tick_is_later_and_near_the_clock(last: Stamp, wall_ms: int) -> None:
    now = tick(last, wall_ms)
    assert now > last
    assert now.wall_ms >= wall_ms
    assert now.wall_ms <= max(wall_ms, last.wall_ms + 1)
    assert now.logical <= LOGICAL_MAX


@given(STAMPS, STAMPS, st.integers(0, 60))
def test_what_was_heard_of_is_earlier(last: Stamp, heard: Stamp, wall_ms: int) -> None:
    assert observe(last, heard, wall_ms) > max(last, heard)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_a_clock_that_jumps_about_gives_growing_stamps(walls: list[int]) -> None:
    stamps = [NEVER]
    for wall_ms in walls:
        stamps.append(tick(stamps[-1], wall_ms))
    assert stamps == sorted(set(stamps))


def test_a_stamp_far_ahead_is_refused_and_one_at_the_edge_is_not() -> None:
    assert observe(NEVER, Stamp(5000 + DRIFT_MS_MAX, 0), 5000).wall_ms == 5000 + DRIFT_MS_MAX
    with pytest.raises(ClockDriftError, match="1001 ms ahead"):
        observe(NEVER, Stamp(5001 + DRIFT_MS_MAX, 0), 5000)
    assert observe(NEVER, Stamp(9000, 0), 5000, drift_ms_max=4000) == Stamp(9000, 1)


def test_a_full_millisecond_runs_over_into_the_next() -> None:
    assert successor(Stamp(7, LOGICAL_MAX)) == Stamp(8, 0)
    assert tick(Stamp(7, LOGICAL_MAX), 3) == Stamp(8, 0)


@pytest.mark.parametrize("wall_ms", [-1, 2**63 - 1, 2**70])
def test_what_is_no_wall_time_is_refused(wall_ms: int) -> None:
    with pytest.raises(InvalidArgumentError):
        tick(NEVER, wall_ms)
