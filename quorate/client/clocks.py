"""The clock by which a holder judges whether its lease may still stand.

Not the loop's own where there is a better one: the clock behind Python's ``time.monotonic`` stands
still on Linux and macOS while a machine sleeps, or a virtual one is suspended, as the cluster's
does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: Counts on through sleep: the first on Linux, the second on macOS (cpython 86273). Elsewhere the
#: monotonic clock does (Windows), or there is nothing better.
_CLOCK_ID: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC_RAW", None))


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Seconds since whenever, for use on *loop* and, if its time is the system's, on any thread.
    A loop that brings a time of its own, as simulations do, is believed."""
    kind = type(loop)
    system = kind.__module__.partition(".")[0] == "uvloop" or (
        getattr(kind, "time", None) is asyncio.BaseEventLoop.time
    )
    if not system:
        return loop.time
    if _CLOCK_ID is None:
        return time.monotonic
    clock_id: int = _CLOCK_ID
    return lambda: time.clock_gettime(clock_id)
