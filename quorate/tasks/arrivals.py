"""Tasks that find room as they come: enqueued and begun in one step.

A task comes and stands ready, and at the end of the entry it is handed out. Where nothing stands
before it and a worker has room for it, that is a detour: a record that nobody sees, its hash, and a
place in a line, on every node (5 us of 20). Here it takes the short way, to the same records,
worker and totals as the long one. What the short way does not know - rules of a queue, keys,
needs, turns - goes the long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from quorate.base.task_specs import NO_NEEDS, NO_OPTIONS, READY, RUNNING, Task
from quorate.replication.machine import Context
from quorate.tasks.crew import Pool
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.queues import NO_RULES
from quorate.tasks.records import LiveRecord
from quorate.tasks.steps import limit_ms
from quorate.tasks.telling import Given, size_of, tell_handed

#: Those that choose by how full workers are, and by nothing else.
_STRATEGIES: Final = ("least-loaded", "capability-match")


class Arrivals:
    """See the module."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life

    def take(self, tasks: Sequence[Task], context: Context) -> list[int]:
        """Ids of those of *tasks*, from the first on, that a worker has begun now."""
        pool = self._pool(tasks)
        if pool is None:
            return []
        handed: dict[int, list[Given]] = {}
        found = list(self._take(tasks, pool, handed, context))
        if found:
            queue = tasks[0].queue
            self._ledger.count(queue, "enqueued", len(found))
            self._ledger.count(queue, "begun", len(found))
            tell_handed(context, handed, self._life.shown)
        return found

    def _pool(self, tasks: Sequence[Task]) -> Pool | None:
        """Whoever may take them, one as well as another; None: they are to stand in line."""
        ledger = self._ledger
        crew, settings = ledger.crew, ledger.settings
        if ledger.ready or not crew.free or len(tasks) < len(crew.free):
            return None  # looking at all workers for less than a task of each saves nothing
        if settings.running_max or settings.strategy not in _STRATEGIES:
            return None
        first = tasks[0]
        name, priority = first.queue, first.priority
        queue = ledger.look_at(name)
        if queue.rules is not NO_RULES or queue.named:
            return None
        for task in tasks:
            if task.queue != name or task.priority != priority or task.key:
                return None
            if task.options is not None or task.delay_ms or task.at_ms:
                return None
        able = [each for each in crew.free.values() if each.serves(name, NO_NEEDS, settings)]
        return Pool(able, settings, NO_NEEDS) if able else None

    def _take(
        self,
        tasks: Sequence[Task],
        pool: Pool,
        handed: dict[int, list[Given]],
        context: Context,
    ) -> Iterator[int]:
        ledger, life = self._ledger, self._life
        now_ms, reason = context.time_ms, ledger.settings.strategy
        due_ms = limit_ms(NO_OPTIONS, now_ms)
        for spec in tasks:
            worker = pool.choose("", 0, context.random)
            if worker is None or worker.stored or worker.running >= worker.record.load:
                return  # what is only stored, another worker may take over before it is told of it
            task = ledger.draw()
            live = LiveRecord(
                RUNNING, now_ms, now_ms, due_ms, 1, worker.id, 0, 0, 0, 0, True, False, "", reason,  # noqa: FBT003
                size_of(spec),
            )  # fmt: skip
            ledger.enter(task, spec, live)
            handed.setdefault(worker.id, []).append((task, spec, live))
            life.tell("enqueued", task, spec, READY, 0, 0, context)
            life.tell("started", task, spec, RUNNING, 1, worker.id, context)
            yield task
