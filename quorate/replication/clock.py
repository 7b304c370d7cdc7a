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
    """CLOCK_BOOTTIME (Linux), CLOCK_MONOTONIC_RAW (macOS, where the clock behind
    ``time.monotonic`` stops in sleep: cpython 86273), else the monotonic clock."""
    clock_id = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC_RAW", None))
    if clock_id is None:
        return Clock(time.monotonic, lambda: time.time_ns() // 1_000_000)
    return Clock(lambda: time.clock_gettime(clock_id), lambda: time.time_ns() // 1_000_000)


#: Lateness counts as so many ticks at most: what waits in the sockets goes first.
TICKS_AT_ONCE_MAX = 5
#: A timer is never set shorter, whatever the clock says.
WAIT_S_MIN = 0.001


class TickPace:
    """How many ticks have passed. Never more than the clock says: a member that ticks too fast
    forgets its leader before the leader's lease ends (thesis 6.4.1)."""

    def __init__(self, clock: Clock, tick_s: float) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._counted_s = clock.monotonic_s()
        self.lag_s = 0.0  #: how late the last call was, beyond a tick

    def passed(self) -> tuple[float, int]:
        """The time now, and whole ticks since the last call; what is left counts next time."""
        now_s = self._clock.monotonic_s()
        passed_s = now_s - self._counted_s
        self.lag_s = max(passed_s - self._tick_s, 0.0)
        ticks = int(passed_s / self._tick_s + 1e-6)  # a sum of floats is a little less
        if ticks > TICKS_AT_ONCE_MAX:
            ticks, self._counted_s = TICKS_AT_ONCE_MAX, now_s
        else:
            self._counted_s += ticks * self._tick_s
        return now_s, ticks

    def wait_s(self) -> float:
        """Until the next tick is due."""
        left_s = self._counted_s + self._tick_s - self._clock.monotonic_s()
        return min(max(left_s, WAIT_S_MIN), self._tick_s)


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
