"""Schedules: what is enqueued again and again, each tick once.

A tick of a schedule by cron is proposed by whoever leads (``Fire``), as only a wall clock and the
rules of time zones tell when it is, and those are not the same everywhere. Here it is compared with
the tick that the log expects: a leader and the one before it may both propose it, and one of them
is too late. A schedule by every_ms is fired by cluster time, within the entry that reaches it.
"""

from __future__ import annotations

import msgspec

from quorate.base.results import Failure
from quorate.base.schedule_commands import (
    CATCH_UP_MAX,
    SCHEDULES_MAX,
    Fire,
    Fired,
    ListSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ScheduleInfo,
    ScheduleList,
    ScheduleRemoved,
    ScheduleSet,
    TriggerSchedule,
)
from quorate.errors import OverloadedError, ScheduleNotFoundError
from quorate.replication.deadlines import Deadlines
from quorate.replication.machine import Context
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.records import LAST_SCHEDULE, NumberRecord, ScheduleRecord, id_key


class Schedules:
    """See the module. *refuses*: whether there is no room for a task of a queue."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life
        self._names: dict[int, bytes] = {}  # by revision, which is unique over all schedules
        self.ticking = Deadlines(self._tick_at)
        #: Of those by cron, for whoever leads: it takes out what it proposes.
        self.cron = Deadlines(self._cron_at)

    def load(self) -> None:
        """The tables are new."""
        rows = list(self._ledger.tables.schedules.items())
        self._names = {record.revision: key for key, record in rows}
        self.ticking.load(
            (record.next_ms, record.revision)
            for _, record in rows
            if record.every_ms and not record.paused
        )
        self.cron.load((record.next_ms, record.revision) for _, record in rows if record.cron)

    def _tick_at(self, revision: int) -> int | None:
        key = self._names.get(revision)
        record = None if key is None else self._ledger.tables.schedules.get(key)
        if record is None or record.revision != revision:
            self._names.pop(revision, None)
            return None
        return record.next_ms if record.every_ms and not record.paused else None

    def _cron_at(self, revision: int) -> int | None:
        found = self.by_revision(revision)
        return None if found is None or found[1].paused else found[1].next_ms

    def by_revision(self, revision: int) -> tuple[str, ScheduleRecord] | None:
        """Name and record of the schedule by cron with that revision, if it stands."""
        key = self._names.get(revision)
        record = None if key is None else self._ledger.tables.schedules.get(key)
        if key is None or record is None or record.revision != revision or not record.cron:
            return None
        return key.decode(), record

    # --- commands -------------------------------------------------------------------------------

    def put(self, command: PutSchedule, context: Context) -> ScheduleSet | Failure:
        """New rules. The ticks of before count no more; how often it has fired stays."""
        ledger, tables = self._ledger, self._ledger.tables
        key = command.name.encode()
        before = tables.schedules.get(key)
        if before is None and len(tables.schedules) >= SCHEDULES_MAX:
            return Failure(OverloadedError.code, f"there are {SCHEDULES_MAX} schedules")
        revision = ledger.number(LAST_SCHEDULE) + 1
        tables.numbers.put(LAST_SCHEDULE, NumberRecord(revision))
        record = ScheduleRecord(
            command.task,
            command.cron,
            command.zone,
            command.every_ms,
            command.misfire,
            command.overlap,
            command.paused,
            revision,
            context.time_ms + command.every_ms if command.every_ms else 0,
        )
        if before is not None:
            record = msgspec.structs.replace(
                record,
                last_ms=before.last_ms,
                last_task=before.last_task,
                fired=before.fired,
                skipped=before.skipped,
            )
        tables.schedules.put(key, record)
        self._names[revision] = key
        if record.cron:
            self.cron.add(0, revision)
        elif not record.paused:
            self.ticking.add(record.next_ms, revision)
        return ScheduleSet(revision)

    def remove(self, command: RemoveSchedule, context: Context) -> ScheduleRemoved:  # noqa: ARG002
        """No more ticks."""
        gone = self._ledger.tables.schedules.delete(command.name.encode())
        return ScheduleRemoved(gone is not None)

    def fire(self, command: Fire, context: Context) -> Fired:
        """A tick by cron, if it is the next one."""
        key = command.name.encode()
        record = self._ledger.tables.schedules.get(key)
        if (
            record is None
            or not record.cron
            or record.paused
            or (record.revision, record.next_ms) != (command.revision, command.at_ms)
            or command.next_ms <= command.at_ms
        ):
            return Fired(0)
        if not command.at_ms:
            after = msgspec.structs.replace(record, next_ms=command.next_ms)
            self._ledger.tables.schedules.put(key, after)
            self.cron.add(command.next_ms, record.revision)
            return Fired(0)
        self.cron.add(command.next_ms, record.revision)
        return Fired(
            self._tick(key, record, command.at_ms, command.next_ms, context, run=command.run)
        )

    def pause(self, command: PauseSchedule, context: Context) -> ScheduleSet | Failure:
        """The same rules under another revision, so that no tick of before counts."""
        record = self._ledger.tables.schedules.get(command.name.encode())
        if record is None:
            return _none(command.name)
        if record.paused == command.paused:
            return ScheduleSet(record.revision)
        rules = PutSchedule(
            command.name,
            record.task,
            record.cron,
            record.zone,
            record.every_ms,
            record.misfire,  # type: ignore[arg-type]  # as it was put
            record.overlap,
            command.paused,
        )
        return self.put(rules, context)

    def trigger(self, command: TriggerSchedule, context: Context) -> Fired | Failure:
        """A task out of turn."""
        key = command.name.encode()
        record = self._ledger.tables.schedules.get(key)
        if record is None:
            return _none(command.name)
        task = self._run(record, context)
        if task:
            after = msgspec.structs.replace(record, last_task=task)
            self._ledger.tables.schedules.put(key, after)
        return Fired(task)

    def expire(self, context: Context, work_max: int) -> None:
        """Ticks by cluster time. Those that were missed while nobody led are made up for, or not,
        as the schedule says. At most about *work_max* tasks: the rest is due at once."""
        now_ms = context.due_ms
        work = 0
        for revision in self._ledger.due(self.ticking, now_ms):
            key = self._names[revision]
            record = self._ledger.tables.schedules.get(key)
            if record is None:
                continue
            missed = (now_ms - record.next_ms) // record.every_ms
            last_ms = record.next_ms + missed * record.every_ms
            next_ms = last_ms + record.every_ms
            count = min(missed + 1, CATCH_UP_MAX) if record.misfire == "all" else 1
            run = record.misfire != "skip" or not missed
            for _ in range(count):
                present = self._ledger.tables.schedules.get(key) or record
                self._tick(key, present, last_ms, next_ms, context, run=run)
            self.ticking.add(next_ms, revision)
            work += count
            if work >= work_max:
                return

    def _tick(
        self,
        key: bytes,
        record: ScheduleRecord,
        at_ms: int,
        next_ms: int,
        context: Context,
        *,
        run: bool,
    ) -> int:
        task = self._run(record, context) if run else 0
        self._ledger.tables.schedules.put(
            key,
            msgspec.structs.replace(
                record,
                next_ms=next_ms,
                last_ms=at_ms,
                last_task=task or record.last_task,
                fired=record.fired + bool(task),
                skipped=record.skipped + (not task),
            ),
        )
        return task

    def _run(self, record: ScheduleRecord, context: Context) -> int:
        """Enqueue its task, if that may be; else 0."""
        busy = not record.overlap and id_key(record.last_task) in self._ledger.tables.live
        holder = self._life.unique.holder(record.task, context.time_ms)
        if busy or holder or self._ledger.is_full(record.task.queue):
            return 0
        return self._life.enqueue(record.task, context)

    # --- queries --------------------------------------------------------------------------------

    def listed(self, query: ListSchedules) -> ScheduleList:
        """A page of schedules."""
        start = query.after.encode() + b"\0" if query.after else b""
        rows = list(self._ledger.tables.schedules.range(start, limit=query.limit + 1))
        infos = (
            ScheduleInfo(
                key.decode(),
                record.cron,
                record.zone,
                record.every_ms,
                record.misfire,
                record.overlap,
                record.paused,
                record.revision,
                record.next_ms,
                record.last_ms,
                record.last_task,
                record.fired,
                record.skipped,
                record.task,
            )
            for key, record in rows[: query.limit]
        )
        return ScheduleList(tuple(infos), len(rows) > query.limit)


def _none(name: str) -> Failure:
    return Failure(ScheduleNotFoundError.code, f"there is no schedule {name!a}")
