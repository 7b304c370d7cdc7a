"""Unique keys: which task holds one, and until when."""

from __future__ import annotations

from itertools import islice

from quorate.base.task_specs import FOR_A_TIME, UNTIL_STARTED, Task
from quorate.replication.deadlines import Deadlines
from quorate.tasks.ledger import Ledger
from quorate.tasks.records import TaskTables, UniqueRecord, scoped


class UniqueKeys:
    """The keys of all queues. A key is let go of in the step that ends its task, or begins it, so
    none outlives a crash of anybody; one that is held for a time is over when its time is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tables: TaskTables
        self._fading = Deadlines(self._until_ms)  # keys held for a time

    def load(self) -> None:
        """The tables are new."""
        self._tables = self._ledger.tables
        rows = self._tables.unique.items()
        self._fading.load((record.until_ms, key) for key, record in rows if record.until_ms)

    def _until_ms(self, key: bytes) -> int | None:
        record = self._tables.unique.get(key)
        return (record.until_ms or None) if record is not None else None

    def holder(self, spec: Task, now_ms: int) -> int:
        """The task that holds the key of *spec*; 0: none, or it has none."""
        options = spec.options
        if options is None or options.unique is None:
            return 0
        record = self._tables.unique.get(scoped(spec.queue, options.unique.key))
        if record is None or (record.until_ms and record.until_ms <= now_ms):
            return 0
        return record.task

    def take(self, spec: Task, task: int, now_ms: int) -> None:
        """*task* holds the key of *spec*, if it has one."""
        unique = None if spec.options is None else spec.options.unique
        if unique is None:
            return
        until_ms = now_ms + unique.hold_ms if unique.hold == FOR_A_TIME else 0
        key = scoped(spec.queue, unique.key)
        self._tables.unique.put(key, UniqueRecord(task, until_ms))
        if until_ms:
            self._fading.add(until_ms, key)

    def free(self, spec: Task, task: int, *, started: bool) -> None:
        """*task* has begun (*started*), or ended."""
        unique = None if spec.options is None else spec.options.unique
        if unique is None or unique.hold == FOR_A_TIME:
            return
        if started and unique.hold != UNTIL_STARTED:
            return
        key = scoped(spec.queue, unique.key)
        record = self._tables.unique.get(key)
        if record is not None and record.task == task:
            self._tables.unique.delete(key)

    def fade(self, now_ms: int, work_max: int) -> None:
        """Forget keys whose time is over."""
        for key in islice(self._ledger.due(self._fading, now_ms), work_max):
            self._tables.unique.delete(key)
