"""The pace of ticks, and of cluster time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.replication.clock import (
    TICKS_AT_ONCE_MAX,
    WAIT_S_MIN,
    Clock,
    ClusterClock,
    TickPace,
    system_clock,
)


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s, lambda: 0)


@given(steps=st.lists(st.floats(0, 0.2), max_size=60))
def test_ticks_are_never_faster_than_the_clock_and_seldom_slower(steps: list[float]) -> None:
    hand = Hand()
    pace = TickPace(hand.clock, 0.01)
    ticks, began_s, lost_s = 0, hand.now_s, 0.0
    for step in steps:
        hand.now_s += step
        now_s, passed = pace.passed()
        assert now_s == hand.now_s
        assert 0 <= passed <= TICKS_AT_ONCE_MAX
        ticks += passed
        if passed == TICKS_AT_ONCE_MAX:
            lost_s += step
        assert ticks * 0.01 <= hand.now_s - began_s + 1e-4
        assert WAIT_S_MIN <= pace.wait_s() <= 0.01
    assert ticks * 0.01 >= hand.now_s - began_s - lost_s - 0.011


def test_fifteen_milliseconds_are_a_tick_and_a_half() -> None:
    hand = Hand()
    pace = TickPace(hand.clock, 0.01)
    passed = []
    for _ in range(8):
        hand.now_s += 0.015
        passed.append(pace.passed()[1])
    assert sum(passed) == 12


def test_cluster_time_goes_on_from_what_the_log_says_and_never_back() -> None:
    hand = Hand()
    cluster = ClusterClock(hand.clock)
    cluster.lead(5000)
    hand.now_s += 1.5
    assert cluster.now_ms(5000) == 6500
    assert cluster.now_ms(9000) == 9000  # learnt late, after a restart
    hand.now_s += 0.25
    assert cluster.now_ms(9000) == 9250
    hand.now_s -= 100  # no clock should; this one does not follow
    assert cluster.now_ms(9250) == 9250
    hand.now_s += 1
    assert cluster.now_ms(9250) == 10250


def test_the_clock_of_leases_counts_on_through_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has one clock for that, macOS another; a system with neither has its monotonic one."""
    monkeypatch.setattr(time, "clock_gettime", lambda clock_id: (clock_id,))
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "CLOCK_MONOTONIC_RAW", 4, raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: "monotonic")
    read: list[object] = [system_clock().monotonic_s()]
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    read.append(system_clock().monotonic_s())
    monkeypatch.delattr(time, "CLOCK_MONOTONIC_RAW")
    read.append(system_clock().monotonic_s())
    assert read == [(7,), (4,), "monotonic"]


def test_the_system_has_clocks() -> None:
    clock = system_clock()
    assert clock.monotonic_s() <= clock.monotonic_s()
    assert clock.wall_ms() > 1_600_000_000_000
