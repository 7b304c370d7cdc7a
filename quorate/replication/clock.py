"""The two clocks a replica has: its own, and the cluster's.

*Cluster time* is a count of milliseconds that advances only while there is a leader, at the pace
of that leader's monotonic clock, and continues from the last value in the log. Every expiry is
decided from it inside apply, so wall clocks can jump as they like.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """Where a replica reads time. The simulator hands in its own.

    *monotonic_s*: seconds, never back, running while the machine sleeps if the system allows it:
    a leader lease must not survive a suspended laptop. *wall_ms*: Unix milliseconds.
    """

    monotonic_s: Callable[[], float]
    wall_ms: Callable[[], int]


def system_clock() -> Clock:
    """CLOCK_BOOTTIME where there is one (Linux), else the monotonic clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return Clock(time.monotonic, lambda: time.time_ns() // 1_000_000)
    return Clock(lambda: time.clock_gettime(boottime), lambda: time.time_ns() // 1_000_000)


class ClusterClock:
    """Cluster time as the leader stamps it: the own clock's pace on top of what the log says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._base_ms = 0
        self._since_s = clock.monotonic_s()

    def lead(self, last_ms: int) -> None:
        """A term begins: continue from *last_ms*, the time of the last known entry."""
        self._base_ms = last_ms
        self._since_s = self._clock.monotonic_s()

    def now_ms(self, last_ms: int) -> int:
        """For the leader only. *last_ms*: the latest time seen in the log; a leader that is still
        reading back its log after a restart learns it late, and goes on from there."""
        now_ms = self._base_ms + int((self._clock.monotonic_s() - self._since_s) * 1000)
        if now_ms < last_ms:
            self.lead(last_ms)
            return last_ms
        return now_ms
