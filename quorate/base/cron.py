"""Cron expressions: when the next tick is, in a time zone.

Expressions are those of Debian's cron, with an optional first field of seconds; where clocks are
put forward or back, ticks are as there: none is lost in the hour that is left out, and none comes
twice in the hour that is repeated, but for those of every hour or minute. The rules of the zones
are the system's, or else those of the package ``tzdata``; they differ between systems and years, so
no state machine may ask.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from quorate.errors import InvalidArgumentError


def check_cron(cron: str, zone: str) -> None:
    """
    Raises:
        InvalidArgumentError: *cron* is no cron expression, or one that never comes, or there is no
            time zone *zone*.
    """
    next_tick_ms(cron, zone, 0)


def next_tick_ms(cron: str, zone: str, after_ms: int) -> int:
    """The first tick after *after_ms*; Unix milliseconds.

    Raises:
        InvalidArgumentError: as ``check_cron``; or there is none for fifty years.
    """
    try:
        known = ZoneInfo(zone)
    except (KeyError, OSError, ValueError) as error:
        raise InvalidArgumentError(f"there is no time zone {zone!r}: {error}") from error
    after = datetime.fromtimestamp(after_ms // 1000, UTC).astimezone(known)
    try:
        tick = next(CronSim(cron, after))
    except CronSimError as error:
        raise InvalidArgumentError(
            f"{cron!r} is no cron expression: {error} (minute, hour, day of month, month, day of "
            "week; six fields begin with a second)"
        ) from error
    except StopIteration:
        raise InvalidArgumentError(f"{cron!r} never comes") from None
    return int(tick.timestamp()) * 1000
