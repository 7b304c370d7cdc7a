"""Hybrid logical clocks: stamps near wall time that never go back, as a pure function of it.

After Kulkarni et al., "Logical physical clocks" (2014). A stamp is the greatest wall time that the
clock has heard of, its own or another's, and a count within that millisecond. The caller hands the
wall time in; a wall clock that jumps back, stands still, or counts from the machine's boot does
not harm the order of what one replica has seen, only how near stamps are to wall time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from quorate.errors import ClockDriftError, InvalidArgumentError

LOGICAL_MAX: Final = 2**32 - 1  # stamps within one millisecond; the next takes a millisecond more
WALL_MS_MAX: Final = 2**63 - 1
DRIFT_MS_MAX: Final = 1_000  # how far ahead of the own clock another's stamp may be


class Stamp(NamedTuple):
    """*wall_ms* since 1970, and *logical*, which orders stamps of the same millisecond."""

    wall_ms: int
    logical: int


NEVER: Final = Stamp(0, 0)


def successor(stamp: Stamp) -> Stamp:
    """The next stamp after *stamp*, no time having passed."""
    if stamp.logical < LOGICAL_MAX:
        return Stamp(stamp.wall_ms, stamp.logical + 1)
    return Stamp(stamp.wall_ms + 1, 0)


def tick(last: Stamp, wall_ms: int) -> Stamp:
    """The stamp of something that happens now, always greater than *last*.

    Raises:
        InvalidArgumentError: *wall_ms* is negative, or beyond 63 bits.
    """
    if not 0 <= wall_ms < WALL_MS_MAX:
        raise InvalidArgumentError(f"wall time {wall_ms} ms is no count of milliseconds since 1970")
    return Stamp(wall_ms, 0) if wall_ms > last.wall_ms else successor(last)


def observe(last: Stamp, heard: Stamp, wall_ms: int, *, drift_ms_max: int = DRIFT_MS_MAX) -> Stamp:
    """The stamp after hearing of *heard*, greater than both.

    Raises:
        ClockDriftError: *heard* is more than *drift_ms_max* ahead of *wall_ms*: taking it over
            would drag every clock of the cluster along. The clock is as it was.
    """
    ahead_ms = heard.wall_ms - wall_ms
    if ahead_ms > drift_ms_max:
        raise ClockDriftError(
            f"a stamp is {ahead_ms} ms ahead of this node's clock, at most {drift_ms_max} ms are "
            f"taken over: set the clock of the node it came from, or of this one",
        )
    return tick(max(last, heard), wall_ms)
