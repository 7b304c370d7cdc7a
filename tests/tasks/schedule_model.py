"""The rules of schedules as anybody would write them down: which ticks there are, and what of each.

Nobody works here, so a task that a schedule enqueues is there until it is cancelled or expires.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quorate.base.schedule_commands import (
    Fire,
    PauseSchedule,
    PutSchedule,
    ScheduleInfo,
    TriggerSchedule,
)
from quorate.base.task_specs import FOR_A_TIME, NO_OPTIONS, Task

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
#: How often each of the expressions by cron ticks, and how far behind UTC.
CRONS = {
    ("*/10 * * * * *", "UTC"): (10 * SECOND, 0),
    ("* * * * *", "Europe/Berlin"): (MINUTE, 0),
    ("0 * * * *", "Asia/Kolkata"): (HOUR, 30 * MINUTE),
}
#: So late a tick may be, and still is in time.
GRACE = 30 * SECOND


def tick_after(spec: PutSchedule, time: int) -> int:
    """The first one of a schedule by cron."""
    period, behind = CRONS[spec.cron, spec.zone]
    return ((time - behind) // period + 1) * period + behind


@dataclass
class Schedule:
    spec: PutSchedule
    revision: int
    next: int
    last: int = 0
    last_task: int = 0
    fired: int = 0
    skipped: int = 0

    def info(self) -> ScheduleInfo:
        spec = self.spec
        return ScheduleInfo(
            spec.name, spec.cron, spec.zone, spec.every_ms, spec.misfire, spec.overlap, spec.paused,
            self.revision, self.next, self.last, self.last_task, self.fired, self.skipped,
            spec.task,
        )  # fmt: skip


class Model:
    """*depth*: of the queue "short"; *catch_up*: as many missed ticks are made up for."""

    def __init__(self, depth: int, catch_up: int) -> None:
        self.depth, self.catch_up = depth, catch_up
        self.now = 0
        self.schedules: dict[str, Schedule] = {}
        self.tasks: dict[int, tuple[Task, int]] = {}  # that are there, and since when
        self.held: dict[tuple[str, bytes], tuple[int, int]] = {}  # until when, and by whom
        self.last_task = self.last_revision = 0

    def pass_to(self, now: int) -> None:
        """An entry begins."""
        self.now = now
        for task, (spec, since) in list(self.tasks.items()):
            late = (spec.options or NO_OPTIONS).expires_ms
            if late and since + late <= now:
                self.end(task)
        self.held = {key: each for key, each in self.held.items() if not 0 < each[0] <= now}
        due = [each for each in self.schedules.values()
               if each.spec.every_ms and not each.spec.paused and each.next <= now]  # fmt: skip
        for each in sorted(due, key=lambda each: (each.next, each.revision)):
            self._tick_every(each)

    def _tick_every(self, schedule: Schedule) -> None:
        """All that are over by now."""
        spec = schedule.spec
        ticks = range(schedule.next, self.now + 1, spec.every_ms)
        if spec.misfire == "all":
            runs = [True] * min(len(ticks), self.catch_up)
        else:
            runs = [spec.misfire == "once" or len(ticks) == 1]
        for run in runs:
            self._tick(schedule, ticks[-1], ticks[-1] + spec.every_ms, run=run)

    def _tick(self, schedule: Schedule, at: int, following: int, *, run: bool) -> int:
        task = self._enqueue(schedule) if run else 0
        schedule.fired += task > 0
        schedule.skipped += task == 0
        schedule.last, schedule.next = at, following
        return task

    def _enqueue(self, schedule: Schedule) -> int:
        """The task, unless that of before is there, or its key is held, or its queue is full."""
        spec = schedule.spec.task
        unique = (spec.options or NO_OPTIONS).unique
        key = (spec.queue, unique.key if unique else b"")
        there = sum(each.queue == spec.queue for each, _ in self.tasks.values())
        if (
            (not schedule.spec.overlap and schedule.last_task in self.tasks)
            or (unique and key in self.held)
            or (spec.queue == "short" and there >= self.depth)
        ):
            return 0
        self.last_task += 1
        self.tasks[self.last_task] = spec, self.now
        if unique:
            until = self.now + unique.hold_ms if unique.hold == FOR_A_TIME else 0
            self.held[key] = until, self.last_task
        schedule.last_task = self.last_task
        return self.last_task

    def end(self, task: int) -> None:
        """It is there no more; a key that it has for a time stays."""
        del self.tasks[task]
        self.held = {key: each for key, each in self.held.items() if each[0] or each[1] != task}

    # --- commands -------------------------------------------------------------------------------

    def put(self, command: PutSchedule) -> int:
        """The revision."""
        self.last_revision += 1
        following = self.now + command.every_ms if command.every_ms else 0
        new = Schedule(command, self.last_revision, following)
        old = self.schedules.get(command.name)
        if old is not None:
            new.last, new.last_task = old.last, old.last_task
            new.fired, new.skipped = old.fired, old.skipped
        self.schedules[command.name] = new
        return new.revision

    def pause(self, command: PauseSchedule) -> int | None:
        """The revision; None: there is none."""
        found = self.schedules.get(command.name)
        if found is None or found.spec.paused == command.paused:
            return None if found is None else found.revision
        return self.put(msgspec.structs.replace(found.spec, paused=command.paused))

    def trigger(self, command: TriggerSchedule) -> int | None:
        """The task, 0: none may be now; None: there is no such schedule."""
        found = self.schedules.get(command.name)
        return None if found is None else self._enqueue(found)

    def fire(self, command: Fire) -> int:
        """The task, if this is the tick that is next."""
        found = self.schedules.get(command.name)
        if found is None or found.spec.paused or not found.spec.cron:
            return 0
        if (found.revision, found.next) != (command.revision, command.at_ms):
            return 0
        if command.next_ms <= command.at_ms:
            return 0
        if not command.at_ms:  # now one knows when the first will be
            found.next = command.next_ms
            return 0
        return self._tick(found, command.at_ms, command.next_ms, run=command.run)

    # --- who leads ------------------------------------------------------------------------------

    def to_propose(self, wall: int) -> dict[int, Fire]:
        """What whoever leads is to propose at that time of its clock, by revision."""
        return {
            each.revision: self._proposal(each, wall) for each in self.schedules.values()
            if each.spec.cron and not each.spec.paused and each.next <= wall
        }  # fmt: skip

    def _proposal(self, schedule: Schedule, wall: int) -> Fire:
        spec, at = schedule.spec, schedule.next
        if not at:
            return Fire(spec.name, schedule.revision, 0, tick_after(spec, wall))
        ticks = [at]
        while (following := tick_after(spec, ticks[-1])) <= wall:
            ticks.append(following)
        run = True
        if spec.misfire == "all":
            behind = [*ticks[1:], following][-self.catch_up - 1 :]
            # That one and those behind it, of which the last ``catch_up`` are due.
            following = behind[0]
        elif spec.misfire == "skip":
            run = len(ticks) == 1 and wall - at <= GRACE
        return Fire(spec.name, schedule.revision, at, following, run=run)
