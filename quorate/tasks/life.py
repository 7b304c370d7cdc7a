"""The life of a task, step by step: what each step writes, and what it sets free.

Every step is one function, and each ends in ``Ledger.move``. A task ends once (``end``): with it
go its key, its place among the running ones, and what was noted of its attempts; whoever still
believes to run it holds an attempt number that is no longer the present one.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from quorate.base.limits import TASK_DEAD_MAX, TASK_ERROR_MAX, TASK_RESULTS_KEPT_MAX
from quorate.base.task_commands import Assignment, Input
from quorate.base.task_queries import WorkerEvent
from quorate.base.task_specs import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    NO_RETRY,
    READY,
    RUNNING,
    SCHEDULED,
    TASK_MACHINE,
    Task,
)
from quorate.replication.machine import Context
from quorate.tasks.crew import FAILURES_IN_ROW_MAX, Worker
from quorate.tasks.ledger import Ledger
from quorate.tasks.queues import NEVER_MS
from quorate.tasks.records import (
    DeadRecord,
    EndedRecord,
    LiveRecord,
    NumberRecord,
    ProgressRecord,
    TrialRecord,
    id_key,
    id_of,
    options_of,
    pair_key,
)
from quorate.tasks.retrying import delay_ms, may_retry, nth
from quorate.tasks.steps import UNCOUNTED, beat_ms, held, limit_ms, not_before_ms, waiting
from quorate.tasks.telling import (
    Given,
    TaskEvents,
    shown_assignment,
    size_of,
    tell_stop,
    tell_worker,
)
from quorate.tasks.unique import UniqueKeys

_STATE_EVENTS: Final = {SCHEDULED: "scheduled", BLOCKED: "blocked", READY: "enqueued"}
#: Workers that a task failed on, of which it is remembered.
TRIED_MAX: Final = 16

TIMEOUT: Final = "timeout"
CRASHED: Final = "crashed"
EXPIRED: Final = "expired"
CANCEL_GONE: Final = "no-answer"  # cancelled, and its worker did not say how it ended


class Kinship(Protocol):
    """What a life must know of workflows."""

    def ended(self, task: int, state: int, context: Context, *, blocked: bool) -> None:
        """A task of a workflow has ended. *blocked*: before it could begin."""

    def inputs(self, task: int) -> tuple[int, str, tuple[Input, ...]]:
        """Its workflow, its node, and what came before it."""


class NoKinship:
    """There are no workflows."""

    def ended(self, task: int, state: int, context: Context, *, blocked: bool) -> None:
        """Nobody waits for it."""

    def inputs(self, task: int) -> tuple[int, str, tuple[Input, ...]]:  # noqa: ARG002
        """It belongs to none."""
        return 0, "", ()


class Life:
    """The steps. All take the description and the record as they are now."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.unique = UniqueKeys(ledger)
        self._kinship: Kinship = NoKinship()
        self._events: TaskEvents | None = None
        self._unheard = 0  # the entry whose events nobody here watches

    def follow(self, kinship: Kinship) -> None:
        """*kinship* hears of all tasks of workflows."""
        self._kinship = kinship

    def load(self) -> None:
        """The tables are new."""
        self.unique.load()

    def begin_work(self) -> None:
        """A command or hook begins: what it tells can be taken back with it."""
        self._events = None

    # --- coming ---------------------------------------------------------------------------------

    def enqueue(self, spec: Task, context: Context) -> int:
        """A new task; its id."""
        ledger = self._ledger
        task = ledger.draw()
        now_ms = context.time_ms
        after_ms, waits, pin = not_before_ms(spec, context), 0, ""
        options = spec.options
        if options is not None:
            if options.unique is not None:
                self.unique.take(spec, task, now_ms)
            if options.beside:
                pin = self.name_beside(options.beside) or ""
                if not pin and id_key(options.beside) in ledger.tables.live:
                    waits = 1
                    row = pair_key(options.beside, task)
                    ledger.tables.beside.put(row, NumberRecord(task))
        if options is None and not after_ms:
            live = LiveRecord(READY, now_ms, now_ms)  # what ``waiting`` comes to: 0.8 us less
        else:
            live = waiting(
                options_of(spec), now_ms, now_ms, after_ms=after_ms, waits=waits, pin=pin
            )
        ledger.enter(task, spec, live)
        self.came(task, spec, live, context)
        return task

    def came(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """What every new task brings with it."""
        ledger = self._ledger
        queue = ledger.queue(spec.queue)
        if spec.key and queue.keys[spec.key].live == 1:
            ledger.give_turn(queue, spec.key, context)
        ledger.count(spec.queue, "enqueued")
        self.tell(_STATE_EVENTS[live.state], task, spec, live.state, 0, 0, context)

    def name_beside(self, task: int) -> str | None:
        """The name of the worker that a task ran on, or runs on; None: none yet, "": nobody
        knows."""
        tables, key = self._ledger.tables, id_key(task)
        live = tables.live.get(key)
        found = live or tables.ended.get(key) or tables.dead.get(key)
        if found is None:
            return ""
        if not found.worker:
            return None if live is not None else ""
        worker = tables.workers.get(id_key(found.worker))
        return "" if worker is None else worker.name

    # --- waiting --------------------------------------------------------------------------------

    def wake(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """A task that was not to begin before now."""
        after = waiting(options_of(spec), context.time_ms, live.enqueued_ms, like=live, after_ms=0)
        self._ledger.move(task, spec, live, after)
        self.tell("ready", task, spec, READY, live.attempt, 0, context)

    def unblock_beside(self, task: int, name: str, context: Context) -> None:
        """*task* has a worker, of that name ("": and never will have): those that wait to run
        beside it wait no more."""
        tables = self._ledger.tables
        prefix = id_key(task)
        for row, _ in list(tables.beside.range_prefix(prefix)):
            tables.beside.delete(row)
            other = id_of(row)
            live, spec = tables.live.get(id_key(other)), tables.specs.get(id_key(other))
            if live is None or spec is None or live.state != BLOCKED:
                continue
            now_ms = context.time_ms
            after = waiting(
                options_of(spec),
                now_ms,
                live.enqueued_ms,
                like=live,
                after_ms=live.after_ms,
                waits=live.waits - 1,
                pin=name,
            )
            self._ledger.move(other, spec, live, after)
            if after.state == READY:
                self.tell("ready", other, spec, READY, live.attempt, 0, context)

    # --- with a worker --------------------------------------------------------------------------

    def assign(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        worker: Worker,
        reason: str,
        context: Context,
        *,
        running: bool,
    ) -> Given:
        """*worker* gets a ready task. *running*: and begins it."""
        ledger = self._ledger
        queue = ledger.queue(spec.queue)
        queue.now_ms = context.time_ms
        options = options_of(spec)
        attempt = live.attempt + 1
        now_ms = context.time_ms
        state = RUNNING if running else ASSIGNED
        due_ms = limit_ms(options, now_ms) if running else live.due_ms
        kindred = ledger.tables.kin.size()
        after = LiveRecord(
            state,
            live.enqueued_ms,
            now_ms,
            due_ms,
            attempt,
            worker.id,
            live.errors,
            live.crashes,
            0,
            0,
            live.begun or running,
            False,  # noqa: FBT003  positional: 0.4 us less
            live.pin,
            reason,
            size_of(spec, self._kinship.inputs(task)[-1]) if kindred else size_of(spec),
        )
        ledger.move(task, spec, live, after)
        ledger.give_turn(queue, spec.key, context)
        if reason not in UNCOUNTED:  # it was counted when it was handed out first
            ledger.use_rate(queue, spec.key)
        if ledger.tables.beside.size():
            self.unblock_beside(task, worker.record.name, context)
        self._count_waited(spec, live, context)
        if running:
            self._count_begun(task, spec)
        what = "started" if running else "assigned"
        self.tell(what, task, spec, state, attempt, worker.id, context)
        return task, spec, after

    def shown(self, given: Given) -> Assignment:
        """What the worker of a task is told, with its place in a workflow, if it has one, and what
        came before it."""
        return shown_assignment(given, *self._kinship.inputs(given[0]))

    def take_back(self, worker: int, task: int, attempt: int, context: Context) -> None:
        """Tell a worker that what it had in store is not its own any more."""
        tell_stop(context, worker, task, attempt, "moved")

    def _count_waited(self, spec: Task, live: LiveRecord, context: Context) -> None:
        """It was ready, or in store, since ``live.since_ms``."""
        if not live.begun and live.since_ms < context.time_ms:
            self._ledger.count(spec.queue, "waited_ms", context.time_ms - live.since_ms)

    def _count_begun(self, task: int, spec: Task) -> None:
        self._ledger.count(spec.queue, "begun")
        if spec.options is not None:
            self.unique.free(spec, task, started=True)

    def begin(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """The worker begins with a task that it had in store."""
        now_ms = context.time_ms
        after = held(live, RUNNING, now_ms, limit_ms(options_of(spec), now_ms))
        self._ledger.move(task, spec, live, after)
        self._count_waited(spec, live, context)
        self._count_begun(task, spec)
        self.tell("started", task, spec, RUNNING, live.attempt, live.worker, context)

    def report(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        permille: int | None,
        note: str,
        context: Context,
    ) -> None:
        """The attempt is alive."""
        tables, key = self._ledger.tables, id_key(task)
        options = options_of(spec)
        if options.heartbeat_ms and live.state == RUNNING and not live.stopping:
            due_ms = beat_ms(options, live.since_ms, context.time_ms)
            if due_ms != live.due_ms:
                after = held(live, RUNNING, live.since_ms, due_ms)
                self._ledger.move(task, spec, live, after)
        if permille is not None or note:
            before = tables.progress.get(key)
            if permille is None:
                permille = 0 if before is None else before.permille
            tables.progress.put(key, ProgressRecord(permille, note))

    def give_back(
        self, task: int, spec: Task, live: LiveRecord, what: str, context: Context
    ) -> None:
        """Ready again, in the old place; nothing is held against it."""
        after = waiting(options_of(spec), context.time_ms, live.enqueued_ms, like=live, after_ms=0)
        self._drop_progress(task)
        self._ledger.move(task, spec, live, after)
        self._count_waited(spec, live, context)
        self.tell(what, task, spec, READY, live.attempt, live.worker, context)

    def stop(
        self, task: int, spec: Task, live: LiveRecord, grace_ms: int, context: Context
    ) -> None:
        """Tell the worker to stop; after *grace_ms* the task is cancelled whatever it says."""
        after = msgspec.structs.replace(
            live, stopping=True, due_ms=max(context.time_ms + grace_ms, 1)
        )
        self._ledger.move(task, spec, live, after)
        tell_stop(context, live.worker, task, live.attempt, "cancelled")
        self.tell("stopping", task, spec, live.state, live.attempt, live.worker, context)

    # --- failing --------------------------------------------------------------------------------

    def fail(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        kind: str,
        error: str,
        context: Context,
        *,
        final: bool = False,
        after_ms: int | None = None,
    ) -> None:
        """The attempt failed: another one, or the end."""
        options = options_of(spec)
        retry = options.retry or NO_RETRY
        errors = live.errors + 1
        self._ledger.count(spec.queue, "timeouts" if kind == TIMEOUT else "failures")
        self._count_failed(live.worker, context)
        trial = self._try(task, live.worker, kind, error)
        if live.stopping:
            self.end(task, spec, live, CANCELLED, context, kind=kind, error=error)
        elif final or not may_retry(retry, errors, kind):
            self.bury(task, spec, live, trial, context, errors=errors)
        else:
            wait_ms = delay_ms(retry, errors, context.random) if after_ms is None else after_ms
            self._again(task, spec, live, wait_ms, context, errors=errors)
            what = TIMEOUT if kind == TIMEOUT else "failed"
            self.tell(
                what, task, spec, self._state(task), live.attempt, live.worker, context, kind, error
            )

    def expire(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """It was to begin by now, and has not."""
        waited_ms = context.time_ms - live.enqueued_ms
        error = f"it did not begin within {waited_ms} ms of being enqueued"
        self.bury(task, spec, live, self._try(task, 0, EXPIRED, error), context)

    def crash(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """The worker died. What it had in store has not suffered."""
        if live.stopping:
            self.end(task, spec, live, CANCELLED, context, kind=CRASHED, error="its worker died")
            return
        if live.state == ASSIGNED:
            self.give_back(task, spec, live, "given-back", context)
            return
        crashes = live.crashes + 1
        self._ledger.count(spec.queue, "crashes")
        error = f"its worker died, for the {nth(crashes)} time"
        trial = self._try(task, live.worker, CRASHED, error)
        if crashes > options_of(spec).crashes:
            self.bury(task, spec, live, trial, context, crashes=crashes)
            return
        self._again(task, spec, live, 0, context, crashes=crashes)
        self.tell(CRASHED, task, spec, READY, live.attempt, live.worker, context, CRASHED, error)

    def _again(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        wait_ms: int,
        context: Context,
        *,
        errors: int | None = None,
        crashes: int | None = None,
    ) -> None:
        after_ms = context.time_ms + wait_ms if wait_ms else 0
        after = waiting(
            options_of(spec), context.time_ms, live.enqueued_ms, like=live, after_ms=after_ms
        )
        after = msgspec.structs.replace(
            after,
            errors=live.errors if errors is None else errors,
            crashes=live.crashes if crashes is None else crashes,
        )
        self._drop_progress(task)
        self._ledger.move(task, spec, live, after)

    def _try(self, task: int, worker: int, kind: str, error: str) -> TrialRecord:
        tables, key = self._ledger.tables, id_key(task)
        before = tables.trials.get(key)
        workers = () if before is None else before.workers
        if worker:
            workers = (*workers, worker)[-TRIED_MAX:]
        trial = TrialRecord(workers, kind, error[:TASK_ERROR_MAX])
        tables.trials.put(key, trial)
        return trial

    # --- ending ---------------------------------------------------------------------------------

    def end(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        state: int,
        context: Context,
        result: bytes = b"",
        kind: str = "",
        error: str = "",
    ) -> None:
        """Done or cancelled."""
        ledger, now_ms, key = self._ledger, context.time_ms, id_key(task)
        begun_ms = live.since_ms if live.state == RUNNING else 0
        self._leave(task, spec, live, context)
        ledger.tables.specs.delete(key)
        of_workflow = bool(ledger.tables.kin.size()) and key in ledger.tables.kin
        # What nodes came to is kept as long as their workflow is.
        keep_ms = NEVER_MS if of_workflow else now_ms + options_of(spec).keep_ms
        ended = EndedRecord(
            state,
            spec.function,
            spec.queue,
            live.attempt,
            live.worker,
            live.enqueued_ms,
            begun_ms,
            now_ms,
            keep_ms,
            result,
            kind,
            error,
        )
        ledger.tables.ended.put(key, ended)
        if not of_workflow:
            ledger.forgetting.add(keep_ms, task)
            if ledger.tables.ended.size() > TASK_RESULTS_KEPT_MAX + ledger.tables.kin.size():
                self.forget_first()
        if state == DONE:
            ledger.count(spec.queue, "done")
            ledger.count(spec.queue, "ran_ms", now_ms - (begun_ms or now_ms))
            what = "done"
        else:
            ledger.count(spec.queue, "cancelled")
            what = "cancelled"
        self.tell(what, task, spec, state, live.attempt, live.worker, context, kind, error, result)
        if of_workflow:
            self._kinship.ended(task, state, context, blocked=live.state == BLOCKED)

    def bury(
        self,
        task: int,
        spec: Task,
        live: LiveRecord,
        trial: TrialRecord,
        context: Context,
        *,
        errors: int | None = None,
        crashes: int | None = None,
    ) -> None:
        """Into the dead-letter queue."""
        ledger, key = self._ledger, id_key(task)
        self._leave(task, spec, live, context)
        record = DeadRecord(
            live.attempt,
            live.worker,
            live.enqueued_ms,
            context.time_ms,
            live.errors if errors is None else errors,
            live.crashes if crashes is None else crashes,
            trial.workers,
            trial.kind,
            trial.error,
        )
        ledger.tables.dead.put(key, record)
        if ledger.tables.dead.size() > TASK_DEAD_MAX:
            oldest, _ = next(ledger.tables.dead.range(limit=1))
            ledger.tables.dead.delete(oldest)
            ledger.tables.specs.delete(oldest)
        ledger.count(spec.queue, "died")
        self.tell(
            "dead",
            task,
            spec,
            DEAD,
            live.attempt,
            live.worker,
            context,
            trial.kind,
            trial.error,
        )
        if ledger.tables.kin.size() and key in ledger.tables.kin:
            self._kinship.ended(task, DEAD, context, blocked=live.state == BLOCKED)

    def _leave(self, task: int, spec: Task, live: LiveRecord, context: Context) -> None:
        """What every end sets free."""
        ledger = self._ledger
        ledger.move(task, spec, live, None)
        self._drop_progress(task)
        if ledger.tables.trials.size():
            ledger.tables.trials.delete(id_key(task))
        if spec.options is not None:
            self.unique.free(spec, task, started=False)
            if spec.options.beside and live.state == BLOCKED:
                ledger.tables.beside.delete(pair_key(spec.options.beside, task))
        if ledger.tables.beside.size():
            self.unblock_beside(task, "", context)
        queue = ledger.queue(spec.queue)
        if spec.key not in queue.keys:
            ledger.drop_turn(queue, spec.key)
            ledger.drop_if_empty(queue)

    def revive(self, task: int, spec: Task, dead: DeadRecord, context: Context) -> None:
        """Out of the dead-letter queue, with a clean record; attempts go on."""
        ledger, now_ms = self._ledger, context.time_ms
        ledger.tables.dead.delete(id_key(task))
        self.unique.take(spec, task, now_ms)
        beside = 0 if spec.options is None else spec.options.beside
        pin = (self.name_beside(beside) or "") if beside else ""
        live = LiveRecord(READY, now_ms, now_ms, 0, dead.attempt, begun=True, pin=pin)
        ledger.move(task, spec, None, live)
        queue = ledger.queue(spec.queue)
        if spec.key and queue.keys[spec.key].live == 1:
            ledger.give_turn(queue, spec.key, context)
        ledger.count(spec.queue, "requeued")
        self.tell("requeued", task, spec, READY, dead.attempt, 0, context)

    def forget_first(self) -> None:
        """The task that ended, and would be forgotten first."""
        task = self._ledger.take(self._ledger.forgetting, NEVER_MS)
        if task is not None:
            self._ledger.tables.ended.delete(id_key(task))

    # --- small things ---------------------------------------------------------------------------

    def _drop_progress(self, task: int) -> None:
        if self._ledger.tables.progress.size():
            self._ledger.tables.progress.delete(id_key(task))

    def _state(self, task: int) -> int:
        live = self._ledger.tables.live.get(id_key(task))
        return 0 if live is None else live.state

    def _count_failed(self, worker: int, context: Context) -> None:
        record = self._ledger.tables.workers.get(id_key(worker))
        if record is None or record.gone_ms:
            return
        in_row = record.failures_in_row + 1
        state = record.state
        if in_row >= FAILURES_IN_ROW_MAX and state == "active":
            state = "error"
            tell_worker(context, WorkerEvent(state, worker, record.name, context.time_ms))
        self._ledger.set_worker(
            worker,
            msgspec.structs.replace(
                record,
                failed=record.failed + 1,
                failures_in_row=in_row,
                state=state,
                seen_ms=context.time_ms,
            ),
        )

    def tell(
        self,
        what: str,
        task: int,
        spec: Task,
        state: int,
        attempt: int,
        worker: int,
        context: Context,
        kind: str = "",
        error: str = "",
        result: bytes = b"",
    ) -> None:
        """Whoever watches."""
        if context.index == self._unheard:
            return
        events, effects = self._events, context.effects
        if events is None and not context.heard(TASK_MACHINE, TaskEvents.topics):
            self._unheard = context.index
            return
        if events is None or effects[-1][2] is not events:  # something else was told in between
            events = self._events = TaskEvents(context.time_ms)
            effects.append((TASK_MACHINE, None, events))
        events.steps.append((what, task, spec, state, attempt, worker, kind, error, result))
