"""When a failed attempt is followed by another one, and how the number of one is said."""

from __future__ import annotations

from collections.abc import Callable

from quorate.base.chance import Chance
from quorate.base.task_specs import Retry


def may_retry(retry: Retry, errors: int, kind: str) -> bool:
    """Whether there is another attempt after *errors* failed ones, the last for reason *kind*."""
    wanted = kind in retry.only if retry.only else True
    return errors <= retry.retries and kind not in retry.fatal and wanted


def delay_ms(retry: Retry, errors: int, chance: Callable[[], Chance]) -> int:
    """How long the attempt after *errors* failed ones waits, at least. Multiplied step by step:
    the power function of one machine may differ from another's in the last digit."""
    delay = float(retry.base_ms)
    for _ in range(errors - 1):
        delay *= retry.factor
        if delay >= retry.max_ms:
            break
    delay = min(delay, float(retry.max_ms))
    if retry.jitter:
        delay += delay * retry.jitter * chance().random()
    return int(delay)


def nth(count: int) -> str:
    """As it is said."""
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(count, f"{count}th")
