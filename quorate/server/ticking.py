"""Proposes the ticks of schedules by cron, on the node that leads.

A tick is worked out from the tick before it, not from when somebody looks, and the log takes each
tick once (``tasks.schedules``); so however many nodes believe to lead, and however often one
proposes it, its task is enqueued once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from quorate.base.cron import next_tick_ms
from quorate.base.frames import Run, Submit
from quorate.base.schedule_commands import CATCH_UP_MAX, Fire
from quorate.base.task_specs import TASK_MACHINE
from quorate.errors import InvalidArgumentError, QuorateError
from quorate.replication.clock import Clock
from quorate.replication.proposals import SubmitAnswer
from quorate.replication.replica import Replica
from quorate.tasks.records import ScheduleRecord
from quorate.tasks.schedules import Schedules

_logger = logging.getLogger("quorate.schedules")

#: So late a tick may be, by a change of the leader, and still counts as in time.
GRACE_MS: Final = 30_000
#: The longest sleep: so soon a schedule that is new is looked at.
SLEEP_S_MAX: Final = 1.0
SLEEP_S_MIN: Final = 0.01
#: By then what was proposed is mostly applied, and the ticks after it are known.
PROPOSED_S: Final = 0.05
#: A tick that was proposed is looked at again after so long; what has become of it, the log tells.
AGAIN_S: Final = 2.0
#: Ticks that are proposed at once.
ROUND_MAX: Final = 200


class Ticker:
    """See the module. ``run`` ends with the node."""

    def __init__(self, replica: Replica, schedules: Schedules, clock: Clock) -> None:
        self._replica = replica
        self._schedules = schedules
        self._clock = clock
        self._broken: dict[int, None] = {}  # schedules that never tick, and were told of

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:  # noqa: ASYNC110  it goes by the clock
            await asyncio.sleep(self._round())

    def _round(self) -> float:
        """Propose what is due; how long to sleep then, in seconds."""
        replica = self._replica
        if not replica.is_leader or replica.stopped:
            return SLEEP_S_MAX
        now_ms = self._clock.wall_ms()
        due = []
        for revision in self._schedules.cron.due(now_ms):
            due.append(revision)
            if len(due) >= ROUND_MAX:
                break
        loop = asyncio.get_running_loop()
        for revision in due:
            fire = self._fire(revision, now_ms)
            if fire is not None:
                self._propose(fire)
            # It has left the heap. Should the proposal come to nothing, it must be seen again.
            loop.call_later(AGAIN_S, self._schedules.cron.add, 0, revision)
        if due:
            return PROPOSED_S
        first_ms = self._schedules.cron.first_ms()
        if first_ms is None:
            return SLEEP_S_MAX
        return min(max((first_ms - now_ms) / 1000, SLEEP_S_MIN), SLEEP_S_MAX)

    def _fire(self, revision: int, now_ms: int) -> Fire | None:
        found = self._schedules.by_revision(revision)
        if found is None or found[1].paused:
            return None
        name, record = found
        try:
            return fire_of(name, record, now_ms)
        except InvalidArgumentError as error:
            if revision not in self._broken:
                self._broken[revision] = None
                _logger.error("schedule %r never ticks: %s", name, error)  # noqa: TRY400
            return None

    def _propose(self, fire: Fire) -> None:
        run = Run(TASK_MACHINE, msgspec.Raw(msgspec.msgpack.encode([fire])))
        try:
            self._replica.submit(Submit(0, 0, 0, (run,)), _ignore)
        except QuorateError as error:
            _logger.info("schedule %r is not fired yet: %s", fire.name, error)


def _ignore(answer: SubmitAnswer) -> None:
    """The log tells what has become of it."""


def fire_of(name: str, record: ScheduleRecord, now_ms: int) -> Fire:
    """What to propose for the tick of a schedule that has come: with the tick after it, and whether
    it is to run, as its ``misfire`` says if it comes too late.

    Raises:
        InvalidArgumentError: the expression or the zone is none that this system knows.
    """
    following = _following(record.cron, record.zone)
    at_ms = record.next_ms
    if not at_ms:
        return Fire(name, record.revision, 0, following(now_ms))
    next_ms = following(at_ms)
    late = now_ms - at_ms > GRACE_MS
    if record.misfire == "all":
        return Fire(name, record.revision, at_ms, _skip_far(following, at_ms, next_ms, now_ms))
    if next_ms <= now_ms:
        # Others were missed behind it: go on with the first that is not over.
        next_ms = following(now_ms)
        late = True
    return Fire(name, record.revision, at_ms, next_ms, run=not late or record.misfire == "once")


def _skip_far(following: Callable[[int], int], at_ms: int, next_ms: int, now_ms: int) -> int:
    """The tick after *at_ms*, or, if far too many were missed, one that leaves no more than
    ``CATCH_UP_MAX`` of them."""
    step_ms = next_ms - at_ms
    if (now_ms - at_ms) // step_ms <= CATCH_UP_MAX:
        return next_ms
    return following(max(at_ms, now_ms - CATCH_UP_MAX * step_ms))


def _following(cron: str, zone: str) -> Callable[[int], int]:
    def after(time_ms: int) -> int:
        return next_tick_ms(cron, zone, time_ms)

    return after
