"""Schedules: tasks that are enqueued again and again. Commands, results and queries.

Wire and disk formats, as in ``task_commands``; they belong to the same machine.

A schedule by *cron* goes by a wall clock in a time zone. What its next tick is, the node that leads
works out, and proposes as ``Fire``; that counts once, whoever proposes it and however often, since
it names the tick that it is for. A schedule by *every_ms* goes by cluster time, and needs nobody.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from quorate.base.limits import TASK_NAME_MAX
from quorate.base.task_specs import Duration, Name, NameOrNone, Task
from quorate.errors import InvalidArgumentError

SCHEDULES_MAX: Final = 10_000
SCHEDULE_LIST_MAX: Final = 1_000
CRON_MAX: Final = 200  # characters of an expression
#: Wall times are Unix milliseconds.
WallTime = Annotated[int, msgspec.Meta(ge=0, le=2**62)]

#: What becomes of ticks that nobody could fire in time (there was no leader): none of them is made
#: up for; one task for all of them; each of them, up to ``CATCH_UP_MAX``.
Misfire = Literal["skip", "once", "all"]
CATCH_UP_MAX: Final = 1_000


class PutSchedule(
    msgspec.Struct, frozen=True, array_like=True, tag=41, forbid_unknown_fields=True, gc=False
):
    """A new schedule, or other rules for one. *cron* in *zone*, or *every_ms*. *misfire*: see
    above. *overlap* False: a tick is passed over while the task of the one before has not ended.
    Result: ``ScheduleSet``."""

    name: Name
    task: Task
    cron: Annotated[str, msgspec.Meta(max_length=CRON_MAX)] = ""
    zone: Annotated[str, msgspec.Meta(max_length=TASK_NAME_MAX)] = "UTC"
    every_ms: Duration = 0
    misfire: Misfire = "once"
    overlap: bool = True
    paused: bool = False

    def __post_init__(self) -> None:
        if bool(self.cron) == bool(self.every_ms):
            raise InvalidArgumentError("a schedule goes by cron or by every_ms, one of the two")
        options = self.task.options
        if options is not None and options.beside:
            raise InvalidArgumentError("tasks of a schedule run beside no other task")


class RemoveSchedule(
    msgspec.Struct, frozen=True, array_like=True, tag=42, forbid_unknown_fields=True, gc=False
):
    """No more ticks; tasks that were enqueued stay. Result: ``ScheduleRemoved``."""

    name: Name


class Fire(
    msgspec.Struct, frozen=True, array_like=True, tag=43, forbid_unknown_fields=True, gc=False
):
    """The tick *at_ms* (wall time) of a schedule by cron has come, and the next one is *next_ms*.
    *revision*: of the schedule that this was worked out for. *at_ms* 0: there was none before, and
    only the next one is to be known. *run* False: the tick is passed over. Result: ``Fired``."""

    name: Name
    revision: Annotated[int, msgspec.Meta(ge=1)]
    at_ms: WallTime
    next_ms: WallTime
    run: bool = True


class PauseSchedule(
    msgspec.Struct, frozen=True, array_like=True, tag=44, forbid_unknown_fields=True, gc=False
):
    """No ticks of a schedule until it is resumed (*paused* False), and none to make up for; all
    else stays as it is. Result: ``ScheduleSet``, or a failure "schedule-not-found"."""

    name: Name
    paused: bool = True


class TriggerSchedule(
    msgspec.Struct, frozen=True, array_like=True, tag=45, forbid_unknown_fields=True, gc=False
):
    """Enqueue the task of a schedule now, though it is no tick of it, and paused or not. Result:
    ``Fired``, of task 0 if its unique key is held, the queue is full, or *overlap* is False and the
    task of before has not ended; or a failure "schedule-not-found"."""

    name: Name


ScheduleCommand = PutSchedule | RemoveSchedule | Fire | PauseSchedule | TriggerSchedule


class ScheduleSet(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """The rules stand."""

    revision: int


class ScheduleRemoved(msgspec.Struct, frozen=True, array_like=True, tag=42, gc=False):
    """*existed*: there was one."""

    existed: bool


class Fired(msgspec.Struct, frozen=True, array_like=True, tag=43, gc=False):
    """*task*: enqueued by this; 0: none, as the tick was not the next one any more, or is passed
    over."""

    task: int


class ListSchedules(
    msgspec.Struct, frozen=True, array_like=True, tag=41, forbid_unknown_fields=True, gc=False
):
    """Schedules with a name above *after*, by name. Result: ``ScheduleList``."""

    after: NameOrNone = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=SCHEDULE_LIST_MAX)] = SCHEDULE_LIST_MAX


class ScheduleInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A schedule. *next_ms*, *last_ms*: the next tick and the last one that came; wall time for
    cron, cluster time for every_ms; 0: not known yet, or none. *last_task*: of it. *fired*,
    *skipped*: ticks so far."""

    name: str
    cron: str
    zone: str
    every_ms: int
    misfire: str
    overlap: bool
    paused: bool
    revision: int
    next_ms: int
    last_ms: int
    last_task: int
    fired: int
    skipped: int
    task: Task


class ScheduleList(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """*more*: there are others behind them."""

    schedules: tuple[ScheduleInfo, ...]
    more: bool
