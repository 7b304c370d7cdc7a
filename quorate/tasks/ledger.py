"""The books of the task machine: its tables, and everything that is derived from them.

One rule keeps them right: a live task changes by ``move`` and by nothing else, and what is derived
follows from the record before and the record after. So what is derived is a function of the
tables - the same after a restart, and when a command is taken back (``undo``), and it can be
counted anew at any time and compared (``recount``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from operator import add
from typing import Any

import msgspec

from quorate.base.limits import TASK_QUEUES_MAX, TASKS_MAX
from quorate.base.task_specs import (
    ASSIGNED,
    LIVE_STATES,
    READY,
    RUNNING,
    Task,
)
from quorate.replication.deadlines import Deadlines, Item
from quorate.replication.machine import Context
from quorate.replication.tables import Tables
from quorate.tasks.crew import Crew
from quorate.tasks.lines import Key, Line
from quorate.tasks.queues import NEVER_MS, NO_RULES, Queue
from quorate.tasks.records import (
    LAST_CHOSEN,
    LAST_TASK,
    LAST_WORKER,
    ONLY,
    LiveRecord,
    NumberRecord,
    QueueRecord,
    RateRecord,
    SettingsRecord,
    TaskTables,
    TotalsRecord,
    TurnRecord,
    WorkerRecord,
    id_key,
    id_of,
    needs_of,
    scoped,
)

#: A move: id, description, record before, record after.
_Move = tuple[int, Task, LiveRecord | None, LiveRecord | None]

_NO_TOTALS = TotalsRecord()
#: Places of the totals in their record.
_TOTALS = {name: at for at, name in enumerate(TotalsRecord.__struct_fields__)}
_NO_SETTINGS = SettingsRecord()
_HELD = (ASSIGNED, RUNNING)


class Ledger:
    """See the module. ``begin`` comes before each command or hook, ``close`` after it."""

    def __init__(self) -> None:
        self.tables: TaskTables
        self._forget_derived()

    def attach(self, tables: Tables) -> None:
        """Declare the tables."""
        self.tables = TaskTables(tables)

    def _forget_derived(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.crew = Crew()
        self.deadlines = Deadlines(self._deadline_of)
        self.forgetting = Deadlines(self._forget_at)
        self.ready = 0  # in all queues
        self.held = 0  # tasks that workers have
        self.settings = _NO_SETTINGS
        self.last_task = self._last_task_before = 0
        self.changed = True  # since a round of handing out found nothing to do
        self._moves: list[_Move] = []
        self._workers_set: list[tuple[int, WorkerRecord | None]] = []
        self._ruled: list[str] = []
        self._taken: list[tuple[Deadlines[Any], Any]] = []  # what was due, and its id
        self._overdue: set[int | bytes] = (
            set()
        )  # tasks of these: they stand in ``deadlines`` no more
        self._totals: dict[str, list[int]] = {}
        self.fading = Deadlines(self._fades_at)  # rates: when nothing of them is used up
        self._turns = 0  # given in the entry at hand
        self._turns_index = 0

    # --- from the tables ------------------------------------------------------------------------

    def load(self) -> None:
        """Derive everything anew."""
        self._forget_derived()
        tables = self.tables
        self.settings = tables.settings.get(ONLY) or _NO_SETTINGS
        self.last_task = self._last_task_before = self.number(LAST_TASK)
        for key, rules in tables.queues.items():
            self.queue(key.decode()).rules = rules
        for key, record in tables.workers.items():
            self.crew.set(id_of(key), record)
        for key, live in tables.live.items():
            spec = tables.specs.get(key)
            if spec is not None:
                self._derive(id_of(key), spec, None, live)
        self.fading.load((_ms(rate.full_at_us), key) for key, rate in tables.rates.items())
        self.forgetting.load(
            (ended.keep_ms, id_of(key))
            for key, ended in tables.ended.items()
            if ended.keep_ms != NEVER_MS
        )

    def queue(self, name: str) -> Queue:
        """The books of one queue; made if there is none."""
        found = self.queues.get(name)
        if found is None:
            rules = self.tables.queues.get(name.encode()) or NO_RULES
            found = self.queues[name] = Queue(name, rules, self._stands, self._full_at_us)
        return found

    def look_at(self, name: str) -> Queue:
        """As ``queue``, for who only looks: one that is not there stays so, and looks empty."""
        found = self.queues.get(name)
        return found or Queue(name, NO_RULES, self._stands, self._full_at_us)

    def drop_if_empty(self, queue: Queue) -> None:
        """Forget the books of a queue that has neither tasks nor rules."""
        if not queue.live and queue.name.encode() not in self.tables.queues:
            self.queues.pop(queue.name, None)

    def is_full(self, name: str) -> bool:
        """Whether a queue takes no more."""
        if len(self.tables.live) >= TASKS_MAX:
            return True
        queue = self.queues.get(name)
        depth_max = 0 if queue is None else queue.rules.depth_max
        return bool(depth_max) and queue is not None and queue.live >= depth_max

    def _stands(self, task: int, line: Line, key: bytes) -> bool:
        row = id_key(task)
        live, spec = self.tables.live.get(row), self.tables.specs.get(row)
        if live is None or live.state != READY or spec is None:
            return False
        if spec.key != key or spec.priority != line.priority or spec.queue != line.queue:
            return False
        return needs_of(spec, live) == line.needs

    def _deadline_of(self, task: int) -> int | None:
        live = self.tables.live.get(id_key(task))
        return (live.due_ms or None) if live is not None else None

    def _forget_at(self, task: int) -> int | None:
        ended = self.tables.ended.get(id_key(task))
        return None if ended is None or ended.keep_ms == NEVER_MS else ended.keep_ms

    def _fades_at(self, key: bytes) -> int | None:
        rate = self.tables.rates.get(key)
        return None if rate is None else _ms(rate.full_at_us)

    def _full_at_us(self, queue: str, key: bytes | None) -> int:
        found = self.tables.rates.get(_rate_key(queue, key))
        return 0 if found is None else found.full_at_us

    # --- a command ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A command or hook begins: from here on it can be taken back."""
        self._moves.clear()
        self._workers_set.clear()
        self._ruled.clear()
        self._overdue.clear()
        self._taken.clear()
        self._totals.clear()
        self._last_task_before = self.last_task

    def close(self) -> None:
        """It ends well: write what was only counted."""
        for name, changes in self._totals.items():
            key = name.encode()
            before = self.tables.totals.get(key)
            if before is None:
                self._forget_totals()
            counts = map(add, msgspec.structs.astuple(before or _NO_TOTALS), changes)
            self.tables.totals.put(key, TotalsRecord(*counts))
        if self.last_task != self._last_task_before:
            self.tables.numbers.put(LAST_TASK, NumberRecord(self.last_task))

    def _forget_totals(self) -> None:
        """Of queues that have neither tasks nor rules, if there are too many."""
        totals, queues = self.tables.totals, self.tables.queues
        if len(totals) < TASK_QUEUES_MAX:
            return
        for key in list(totals.keys()):
            found = self.queues.get(key.decode())
            if key not in queues and (found is None or not found.live):
                totals.delete(key)

    def undo(self) -> None:
        """The tables stand as before the command: so shall the rest."""
        self.last_task = self._last_task_before
        self.settings = self.tables.settings.get(ONLY) or _NO_SETTINGS
        for id_, before in reversed(self._workers_set):
            self.crew.set(id_, before)
        for task, spec, old, new in reversed(self._moves):
            self._derive(task, spec, new, old)
        for name in self._ruled:
            queue = self.queue(name)
            queue.rules = self.tables.queues.get(name.encode()) or NO_RULES
            queue.admit_all()
            self.drop_if_empty(queue)
        for _, spec, _, _ in self._moves:
            queue = self.queue(spec.queue)
            key = queue.keys.get(spec.key)
            if key is not None:
                key.turn = self._turn_of(spec.queue, spec.key)
            queue.admit(spec.key)
            self.drop_if_empty(queue)
        self.put_back()
        self.changed = True
        self.begin()

    def put_back(self) -> None:
        """What was due is due still."""
        for deadlines, item in self._taken:
            deadlines.put_back(item)

    def due(self, deadlines: Deadlines[Item], now_ms: int) -> Iterator[Item]:
        """As ``deadlines.due``, of any of the machine's; what is taken back is due again."""
        while (item := self.take(deadlines, now_ms)) is not None:
            yield item

    def take(self, deadlines: Deadlines[Item], now_ms: int) -> Item | None:
        """As ``deadlines.take``, likewise."""
        item = deadlines.take(now_ms)
        if item is not None:
            self._taken.append((deadlines, item))
            if deadlines is self.deadlines:
                self._overdue.add(item)
        return item

    # --- tasks ----------------------------------------------------------------------------------

    def draw(self) -> int:
        """The id of a new task: above all before it."""
        self.last_task += 1
        return self.last_task

    def enter(self, task: int, spec: Task, live: LiveRecord) -> None:
        """A new task."""
        self.tables.specs.put(id_key(task), spec)
        self.move(task, spec, None, live)

    def move(
        self, task: int, spec: Task, before: LiveRecord | None, after: LiveRecord | None
    ) -> None:
        """The one way in which a live task changes. *after* None: it has ended; its description
        is the caller's to delete."""
        key = id_key(task)
        if after is None:
            self.tables.live.delete(key)
        else:
            self.tables.live.put(key, after)
        self._derive(task, spec, before, after)
        self._moves.append((task, spec, before, after))

    def _derive(
        self, task: int, spec: Task, before: LiveRecord | None, after: LiveRecord | None
    ) -> None:
        queue = self.queues.get(spec.queue) or self.queue(spec.queue)
        self.changed = True
        if before is None:
            key = self._came(queue, spec.key)
        else:
            key = queue.keys[spec.key]
            state = before.state
            queue.counts[state] -= 1
            if state == READY:
                self.ready -= 1
                queue.ready -= 1
                queue.leave(queue.line(spec, before), task, spec.key)
            elif state in _HELD:
                self.held -= 1
                queue.running -= 1
                key.running -= 1
                self.crew.let_go(before.worker, task)
                if queue.rules.key_running_max:
                    queue.admit(spec.key)
        if after is None:
            self._went(queue, spec.key, key)
            return
        state = after.state
        queue.counts[state] += 1
        if state == READY:
            self.ready += 1
            queue.ready += 1
            queue.line(spec, after).add(task, spec.key)
        elif state in _HELD:
            self.held += 1
            queue.running += 1
            key.running += 1
            self.crew.hold(after.worker, task, after.size, stored=state == ASSIGNED)
        # One that is put off stands there already, as ``Deadlines`` would have it: with a heartbeat
        # every second, each of them would leave a place of its own otherwise.
        stands = before is not None and 0 < before.due_ms <= after.due_ms
        if after.due_ms and not (stands and task not in self._overdue):
            self.deadlines.add(after.due_ms, task)
            self._overdue.discard(task)

    def _came(self, queue: Queue, name: bytes) -> Key:
        key = queue.keys.get(name)
        if key is None:
            key = queue.keys[name] = Key()
            key.turn = self._turn_of(queue.name, name)
            queue.named += bool(name)
        key.live += 1
        return key

    def _went(self, queue: Queue, name: bytes, key: Key) -> None:
        key.live -= 1
        if not key.live:
            del queue.keys[name]
            queue.named -= bool(name)

    def _turn_of(self, queue: str, name: bytes) -> int:
        if not self.tables.turns.size():
            return 0
        turn = self.tables.turns.get(scoped(queue, name))
        return 0 if turn is None else turn.turn

    # --- turns and rates ------------------------------------------------------------------------

    def new_turn(self, context: Context) -> int:
        """A turn after all that were given before."""
        if self._turns_index != context.index:
            self._turns_index, self._turns = context.index, 0
        self._turns += 1
        return (context.index << 24) + self._turns

    def give_turn(self, queue: Queue, name: bytes, context: Context) -> None:
        """*name* goes to the end of the keys of *queue*, if there are others."""
        if name or queue.named:
            turn = self.new_turn(context)
            self.tables.turns.put(scoped(queue.name, name), TurnRecord(turn))
            queue.keys[name].turn = turn

    def drop_turn(self, queue: Queue, name: bytes) -> None:
        """Nothing of *name* is left."""
        if self.tables.turns.size():
            self.tables.turns.delete(scoped(queue.name, name))

    def use_rate(self, queue: Queue, name: bytes) -> None:
        """One task of *name* is begun, at ``queue.now_ms``."""
        rules = queue.rules
        if not (rules.rate or rules.key_rate):
            return
        for key, rate in ((None, rules.rate), (name, rules.key_rate)):
            if rate:
                full_at_us = queue.used_at_us(key, rate)
                row = _rate_key(queue.name, key)
                if row not in self.tables.rates:
                    self.fading.add(_ms(full_at_us), row)
                self.tables.rates.put(row, RateRecord(full_at_us))

    def fade_rates(self, now_ms: int, work_max: int) -> None:
        """Forget rates of which nothing is used up any more."""
        for key in islice(self.due(self.fading, now_ms), work_max):
            self.tables.rates.delete(key)

    # --- rules ----------------------------------------------------------------------------------

    def set_rules(self, name: str, rules: QueueRecord) -> None:
        """The rules of a queue."""
        self.tables.queues.put(name.encode(), rules)
        queue = self.queue(name)
        queue.rules = rules
        queue.admit_all()
        self._ruled.append(name)
        self.changed = True

    def set_settings(self, settings: SettingsRecord) -> None:
        """The rules for all queues."""
        self.tables.settings.put(ONLY, settings)
        self.settings = settings
        self.changed = True

    # --- workers, numbers, totals ---------------------------------------------------------------

    def set_worker(self, id_: int, record: WorkerRecord | None) -> None:
        """Write the record of a worker, or forget it."""
        key = id_key(id_)
        before = self.tables.workers.get(key)
        if record is None:
            self.tables.workers.delete(key)
        else:
            self.tables.workers.put(key, record)
        self.crew.set(id_, record)
        self._workers_set.append((id_, before))
        self.changed = True

    def number(self, name: bytes) -> int:
        """One of the numbers that are kept."""
        found = self.tables.numbers.get(name)
        return 0 if found is None else found.number

    def draw_worker(self) -> int:
        """The id of a new worker."""
        id_ = self.number(LAST_WORKER) + 1
        self.tables.numbers.put(LAST_WORKER, NumberRecord(id_))
        return id_

    def chose(self, worker: int) -> None:
        """Round-robin goes on behind *worker*."""
        self.tables.numbers.put(LAST_CHOSEN, NumberRecord(worker))

    def count(self, queue: str, field: str, by: int = 1) -> None:
        """Add to a total of *queue*; written by ``close``."""
        changes = self._totals.get(queue)
        if changes is None:
            changes = self._totals[queue] = [0] * len(_TOTALS)
        changes[_TOTALS[field]] += by

    # --- the audit ------------------------------------------------------------------------------

    def recount(self) -> dict[str, Any]:
        """What is derived, as plain values, from the tables alone. For tests: equal to ``derived``
        at every index."""
        fresh = Ledger()
        fresh.tables = self.tables
        fresh.load()
        return fresh.derived()

    def derived(self) -> dict[str, Any]:
        """What is derived, as plain values."""
        return {
            "ready": self.ready,
            "held": self.held,
            "last_task": self.last_task,
            "settings": self.settings,
            "queues": {
                name: _queue_values(queue)
                for name, queue in sorted(self.queues.items())
                if queue.live or queue.rules != NO_RULES
            },
            "workers": {
                id_: (worker.record, sorted(worker.held.items()), sorted(worker.stored))
                for id_, worker in sorted(self.crew.workers.items())
            },
            "free": sorted(self.crew.free),
            "stored": self.crew.stored,
            "deadline": self.deadlines.first_ms(),
            "forgetting": self.forgetting.first_ms(),
        }

    def live_tasks(self, queue: Queue) -> Iterator[tuple[int, LiveRecord]]:
        """By id. For tests."""
        for key, live in self.tables.live.items():
            spec = self.tables.specs.get(key)
            if spec is not None and spec.queue == queue.name:
                yield id_of(key), live


def _queue_values(queue: Queue) -> tuple[Any, ...]:
    lines = [
        (line.needs, line.priority, sorted(line.counts.items()))
        for line in queue.all_lines()
        if line.count
    ]
    keys = sorted((name, key.live, key.running, key.turn) for name, key in queue.keys.items())
    counts = [queue.counts[state] for state in LIVE_STATES]
    return queue.rules, counts, queue.running, queue.ready, keys, sorted(lines, key=repr)


def _ms(time_us: int) -> int:
    """The first millisecond that is not before."""
    return -(-time_us // 1000)


def _rate_key(queue: str, key: bytes | None) -> bytes:
    """Of the whole queue, or of one of its keys."""
    return b"q" + scoped(queue, b"") if key is None else b"k" + scoped(queue, key)
