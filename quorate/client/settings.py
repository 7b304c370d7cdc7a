"""A named number for everything in the client that waits or can grow, with what sets it."""

from __future__ import annotations

import math
from typing import Final

from quorate.base.invariants import must
from quorate.base.limits import BATCH_BYTES_MAX, MIB, SESSION_UNACKNOWLEDGED_MAX
from quorate.errors import InvalidArgumentError

TIMEOUT_S_DEFAULT: Final = 5.0  # several elections; users of a service seldom wait longer
TIMEOUT_S_MAX: Final = 86_400.0  # a day: a call without any bound would be a leak
CHANGE_TIMEOUT_S_DEFAULT: Final = 65.0  # operators' calls: a little over what a node allows itself
DEADLINE_RESOLUTION_S: Final = 0.005  # a call ends at most this long after its deadline

CONNECT_TIMEOUT_S_DEFAULT: Final = 1.0  # connecting and being welcomed, one endpoint
STALL_TIMEOUT_S_DEFAULT: Final = 1.0  # an answer is owed, and not even a probe is answered
BACKOFF_S_MIN: Final = 0.005  # between rounds over the endpoints; grows by doubling
BACKOFF_S_MAX: Final = 0.25  # a fraction of an election, so that a new leader is found soon
ENDPOINTS_MAX: Final = 64  # given endpoints; members learned later come on top (MEMBERS_MAX)
CLOSE_TIMEOUT_S: Final = 0.5  # close() waits so long for the session's end to be confirmed

WINDOW_BATCHES_MAX: Final = 64  # unanswered batches: 64 in one 100 ms round trip is 1.5 ms apart
WINDOW_BYTES_MAX: Final = 8 * MIB  # unanswered command bytes: two largest batches
QUEUE_COMMANDS_MAX: Final = 100_000  # calls that wait for the window, the session or a leader
QUEUE_BYTES_MAX: Final = 64 * MIB  # bytes of those calls
MACHINES_MAX: Final = 1024  # different machines one handle speaks to
CALLS_MAX: Final = 1024  # administrative calls in flight or waiting

must(WINDOW_BATCHES_MAX < SESSION_UNACKNOWLEDGED_MAX, "the cluster keeps every reply of a window")
must(WINDOW_BYTES_MAX >= BATCH_BYTES_MAX, "the largest batch fits into the window")
must(QUEUE_BYTES_MAX >= WINDOW_BYTES_MAX, "the next window can form while one is in flight")


def check_timeout(timeout: float) -> float:
    """*timeout* in seconds if it can be one.

    Raises:
        InvalidArgumentError: not a number, not above 0, or above ``TIMEOUT_S_MAX``.
    """
    given: object = timeout  # callers without a type checker hand in anything
    if isinstance(given, int | float) and 0 < given <= TIMEOUT_S_MAX:
        return float(given)
    shown = "NaN" if isinstance(given, float) and math.isnan(given) else repr(given)
    raise InvalidArgumentError(
        f"a timeout is a number of seconds above 0 and up to {TIMEOUT_S_MAX:g}, not {shown}"
    )
