"""Handing out: ready tasks come to workers that have room.

At the end of every entry nothing is left to hand out: no ready task that a worker with room could
take. That is a property of the state, so a node that was restarted, and hands out anew, finds
nothing to do, like all the others.

Who goes first: the highest priority, over all queues; then the key whose turn it is, within its
line; then the lowest id. Who gets it: see ``crew.Pool``. Where nothing is ready, a worker without
work takes over what another one has in store and has not begun ("stealing").
"""

from __future__ import annotations

import heapq
from typing import Final

from quorate.base.limits import TASK_ASSIGNED_BYTES_MAX, WORKER_HELD_BYTES_MAX
from quorate.base.results import Failure
from quorate.base.task_commands import (
    REASON_ASSIGNED,
    REASON_BESIDE,
    REASON_CLAIMED,
    REASON_MOVED,
    REASON_PREFERRED,
    REASON_REQUIRED,
    REASON_STOLEN,
    Assignment,
)
from quorate.base.task_specs import Task
from quorate.errors import NoAvailableWorkerError
from quorate.replication.machine import Context
from quorate.tasks.crew import Pool, Worker
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.lines import Line
from quorate.tasks.queues import NEVER_MS, NO_RULES, Queue
from quorate.tasks.records import LAST_CHOSEN, LiveRecord, id_key, needs_of
from quorate.tasks.telling import Given, tell_handed, tell_stop
from quorate.tasks.workflow_sweeps import Sweeper

#: A line's next task: (priority from the top, id, a number of its own, queue, line, key).
_Head = tuple[int, int, int, Queue, Line, bytes]

#: A worker has it because somebody said so: no other one takes it over.
_FIRM: Final = (REASON_ASSIGNED, REASON_MOVED)


#: One entry stops no more ready tasks of stopped workflows in the place of handing them out.
STOPS_MAX: Final = 500


class Dispatcher:
    """See the module."""

    def __init__(self, ledger: Ledger, life: Life, sweeper: Sweeper) -> None:
        self._ledger = ledger
        self._life = life
        self._sweeper = sweeper
        self._stops = 0  # in the entry at hand
        self._stops_index = 0
        self._withheld = False  # something, as no more may be stopped
        self._wake_ms = 0  # nothing to do before, unless something changes
        self._looked = False  # since the state was loaded

    def load(self) -> None:
        """The tables are new."""
        self._wake_ms = 0
        self._looked = False

    # --- the end of an entry --------------------------------------------------------------------

    def hand_out(self, context: Context) -> None:
        """Until nothing is left to hand out."""
        ledger = self._ledger
        self._looked = True
        self._withheld = False
        if not ledger.changed and context.time_ms < self._wake_ms:
            return
        handed: dict[int, list[Given]] = {}
        self._wake_ms = 0  # should this break off
        wake_ms = NEVER_MS
        while True:
            ledger.changed = False
            if ledger.crew.free and ledger.ready:
                wake_ms = self._round(handed, context)
            if ledger.crew.free and ledger.crew.stored:
                self._steal(handed, context)
            if not ledger.changed:
                break
        self._wake_ms = wake_ms
        ledger.changed = self._withheld
        if handed:
            tell_handed(context, handed, self._life.shown)

    def wake_ms(self) -> int | None:
        """When time alone makes something eligible."""
        if not self._looked:
            return 0 if self._ledger.ready else None  # at once: then it is known
        return None if self._wake_ms in (0, NEVER_MS) else self._wake_ms

    def _round(self, handed: dict[int, list[Given]], context: Context) -> int:
        """Once through all lines; the time at which more may become eligible by itself."""
        heads = self._heads(context.time_ms)
        pools: dict[int, Pool] = {}
        ledger = self._ledger
        affinity = ledger.settings.affinity
        in_turn = ledger.settings.strategy == "round-robin"
        while heads and ledger.crew.free and not self._at_cap():
            _, task, number, queue, line, key = heapq.heappop(heads)
            if queue.rules is not NO_RULES and not queue.open_at(context.time_ms):
                continue
            if queue.keyed and line.head(queue.allowed) != (task, key):
                self._push_head(heads, number, queue, line)  # another line had its key's turn
                continue
            spec, live = self._records(task)
            pool = pools.get(number)
            if pool is None:
                pool = pools[number] = self._pool(queue, line)
            prefers = spec.options.prefers if affinity and spec.options is not None else ""
            last = ledger.number(LAST_CHOSEN) if in_turn else 0
            worker = pool.choose(prefers, last, context.random)
            if worker is None:
                continue  # nobody for this line, so for none of its tasks
            # Not before a worker would get it: who has found nothing to do does not look again, but
            # a node that was restarted does, and has to come to the same.
            if self._sweeper.is_stopped(task):
                if self._stop(task, context):
                    self._push_head(heads, number, queue, line)
                continue
            self._give(task, spec, live, worker, self._reason(spec, live, worker), handed, context)
            if in_turn:
                ledger.chose(worker.id)
            self._push_head(heads, number, queue, line)
        return min((queue.opens_ms() for queue in self._waiting_queues()), default=NEVER_MS)

    def _stop(self, task: int, context: Context) -> bool:
        """Stop a ready task instead of handing it out; False: enough for this entry, and what
        stands behind it has to wait for the next, which is due at once."""
        if self._stops_index != context.index:
            self._stops_index, self._stops = context.index, 0
        if self._stops >= STOPS_MAX:
            self._withheld = True
            return False
        self._stops += 1
        self._sweeper.stop(task, context)
        return True

    def _heads(self, now_ms: int) -> list[_Head]:
        heads: list[_Head] = []
        number = 0
        for queue in self._waiting_queues():
            if queue.open_at(now_ms):
                for line in queue.all_lines():
                    if line.count:
                        number += 1
                        self._push_head(heads, number, queue, line)
        return heads

    def _push_head(self, heads: list[_Head], number: int, queue: Queue, line: Line) -> None:
        if not line.count:
            return
        found = line.head(queue.allowed) if queue.keyed else line.only_head()
        if found is not None:
            task, key = found
            priority = line.priority
            if queue.rules.ageing_ms:
                live = self._ledger.tables.live.get(id_key(task))
                priority = queue.priority_at(line, 0 if live is None else live.since_ms)
            heapq.heappush(heads, (-priority, task, number, queue, line, key))

    def _waiting_queues(self) -> list[Queue]:
        return [queue for queue in self._ledger.queues.values() if queue.ready]

    def _pool(self, queue: Queue, line: Line) -> Pool:
        ledger = self._ledger
        crew, settings = ledger.crew, ledger.settings
        workers = list(crew.free.values())
        if settings.affinity and line.needs.worker:
            workers = list(crew.by_name.get(line.needs.worker, {}).values())
        found = [
            each for each in workers if each.free and each.serves(queue.name, line.needs, settings)
        ]
        return Pool(found, settings, line.needs)

    def _at_cap(self) -> bool:
        cap = self._ledger.settings.running_max
        return bool(cap) and self._ledger.held >= cap

    def _reason(self, spec: Task, live: LiveRecord, worker: Worker) -> str:
        options, name = spec.options, worker.record.name
        if options is not None and self._ledger.settings.affinity:
            if live.pin == name:
                return REASON_BESIDE
            if options.needs is not None and options.needs.worker == name:
                return REASON_REQUIRED
            if options.prefers == name:
                return REASON_PREFERRED
        return self._ledger.settings.strategy

    def _give(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        worker: Worker,
        reason: str,
        handed: dict[int, list[Given]],
        context: Context,
    ) -> None:
        # Not past what it has in store: it is about to begin that, or would run more than it takes.
        running = not worker.stored and worker.running < worker.record.load
        given = self._life.assign(task, spec, live, worker, reason, context, running=running)
        handed.setdefault(worker.id, []).append(given)

    # --- claiming -------------------------------------------------------------------------------

    def claim(self, worker: Worker, count: int, context: Context) -> list[Assignment]:
        """At most *count* ready tasks for *worker*, whatever its load is."""
        ledger = self._ledger
        heads = [
            head
            for head in self._heads(context.time_ms)
            if worker.serves(head[3].name, head[4].needs, ledger.settings)
        ]
        heapq.heapify(heads)
        found: list[Assignment] = []
        size = 0
        while heads and len(found) < count and size < TASK_ASSIGNED_BYTES_MAX:
            if self._at_cap() or worker.held_bytes >= WORKER_HELD_BYTES_MAX:
                break
            _, task, number, queue, line, key = heapq.heappop(heads)
            if queue.rules is not NO_RULES and not queue.open_at(context.time_ms):
                continue
            if queue.keyed and line.head(queue.allowed) != (task, key):
                self._push_head(heads, number, queue, line)
                continue
            if self._sweeper.is_stopped(task):
                if self._stop(task, context):
                    self._push_head(heads, number, queue, line)
                continue
            spec, live = self._records(task)
            given = self._life.assign(
                task, spec, live, worker, REASON_CLAIMED, context, running=True
            )
            size += given[-1].size
            found.append(self._life.shown(given))
            self._push_head(heads, number, queue, line)
        return found

    # --- assigning ------------------------------------------------------------------------------

    def assign(
        self, task: int, spec: Task, live: LiveRecord, wanted: int, context: Context
    ) -> Assignment | Failure:
        """*task*, which is ready or a worker's, is for *wanted*, or (0) for any other worker."""
        trouble = "" if live.worker else self._barred(spec, context.time_ms)
        if trouble:
            return Failure(NoAvailableWorkerError.code, f"task {task} cannot begin now: {trouble}")
        worker = self._taker(spec, live, wanted, context)
        if worker is None:
            text = f"no other worker has what task {task} needs, and room for it"
            if wanted:
                text = f"worker {wanted} has not what task {task} needs, or no room for it"
            return Failure(NoAvailableWorkerError.code, text)
        reason = REASON_ASSIGNED
        if live.worker:
            reason = REASON_MOVED
            tell_stop(context, live.worker, task, live.attempt, "moved")
            self._life.give_back(task, spec, live, "given-back", context)
            spec, live = self._records(task)
        running = not worker.stored and worker.running < worker.record.load
        given = self._life.assign(task, spec, live, worker, reason, context, running=running)
        tell_handed(context, {worker.id: (given,)}, self._life.shown)
        return self._life.shown(given)

    def _barred(self, spec: Task, now_ms: int) -> str:
        """Which limit keeps a ready task from being handed out, whoever asks; "": none."""
        queue = self._ledger.queue(spec.queue)
        if self._at_cap():
            return f"{self._ledger.held} tasks are with workers, which is as many as may be"
        if not queue.open_at(now_ms) or not queue.allowed(spec.key):
            return f"queue {spec.queue!a} is paused, or at one of its limits"
        return ""

    def _taker(self, spec: Task, live: LiveRecord, wanted: int, context: Context) -> Worker | None:
        ledger = self._ledger
        settings, needs = ledger.settings, needs_of(spec, live)
        crew = [ledger.crew.workers[wanted]] if wanted else list(ledger.crew.free.values())
        able = [
            each
            for each in crew
            if each.id != live.worker
            and each.serves(spec.queue, needs, settings)
            and context.lease_alive(each.record.lease)
        ]
        in_turn = settings.strategy == "round-robin"
        last = ledger.number(LAST_CHOSEN) if in_turn else 0
        worker = Pool(able, settings, needs).choose("", last, context.random)
        if worker is not None and in_turn and not wanted:
            ledger.chose(worker.id)
        return worker

    def _records(self, task: int) -> tuple[Task, LiveRecord]:
        tables, key = self._ledger.tables, id_key(task)
        spec, live = tables.specs.get(key), tables.live.get(key)
        if spec is None or live is None:
            raise LookupError(f"task {task} stands in a line and is not there")
        return spec, live

    # --- stealing -------------------------------------------------------------------------------

    def _steal(self, handed: dict[int, list[Given]], context: Context) -> None:
        """Workers that have room to begin something take what others have in store, one by one
        from whoever has most, until stores and loads differ by no more than one."""
        crew = self._ledger.crew
        load_max = self._ledger.settings.load_max * 1000
        thieves = sorted(crew.free.values(), key=lambda each: (each.fullness, each.id))
        for thief in thieves:
            while thief.running < thief.record.load and not thief.stored:
                if thief.fullness > load_max or not thief.has_room:
                    break
                if not self._steal_one(thief, handed, context):
                    break

    def _steal_one(self, thief: Worker, handed: dict[int, list[Given]], context: Context) -> bool:
        crew, ledger = self._ledger.crew, self._ledger
        victims = sorted(
            (each for each in crew.workers.values() if each.stored and each is not thief),
            key=lambda each: (-len(each.stored), each.id),
        )
        for victim in victims:
            for task in sorted(victim.stored, reverse=True):
                spec, live = self._records(task)
                needs = needs_of(spec, live)
                if self._sweeper.is_stopped(task):
                    continue
                if live.reason in _FIRM or not thief.serves(spec.queue, needs, ledger.settings):
                    continue
                if ledger.queue(spec.queue).rules.paused:
                    continue
                if not _take_out(handed.get(victim.id, []), task):
                    tell_stop(context, victim.id, task, live.attempt, "stolen")
                self._life.give_back(task, spec, live, "stolen", context)
                spec, live = self._records(task)
                self._give(task, spec, live, thief, REASON_STOLEN, handed, context)
                return True
        return False


def _take_out(handed: list[Given], task: int) -> bool:
    """Whether a worker was given *task* in this very entry, and so has not heard of it."""
    for at, (each, _, _) in enumerate(handed):
        if each == task:
            del handed[at]
            return True
    return False
