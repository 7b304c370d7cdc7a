"""The task machine: queues, workers, and who runs what.

What the machine owns:

* A task ends in exactly one state, once, and never leaves it but by ``Requeue``, out of the
  dead-letter queue.
* A worker has a task under an attempt number; each number is given once, and only the present one
  can begin, report, complete, fail or give back. What is late is told who has it now.
* What a worker has goes with its lease, within the entry that ends it. Nothing else holds a task:
  no reaper, and no clock of anybody's.
* Handing out is part of the entry: an enqueued task that a worker has room for is that worker's
  in the entry that enqueued it. Nobody polls.

The steps of a task are in ``life``, handing out in ``dispatching``, what is derived in ``ledger``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.fencing import Fence
from quorate.base.group_commands import GroupQuery, JoinGroup, LeaveGroup, WatchGroup
from quorate.base.limits import TASK_LINES_MAX, TASK_QUEUES_MAX, TASK_UNIQUE_MAX, TASKS_MAX
from quorate.base.results import Failure
from quorate.base.schedule_commands import (
    Fire,
    ListSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    TriggerSchedule,
)
from quorate.base.task_commands import (
    Assign,
    Attend,
    Begin,
    Cancel,
    Changed,
    Claim,
    Claimed,
    Complete,
    Configure,
    Configured,
    Enqueue,
    Enqueued,
    Fail,
    GiveBack,
    Pause,
    Purge,
    Purged,
    Register,
    Report,
    Requeue,
    Settle,
    Settled,
    Settlement,
    Stale,
    Unregister,
)
from quorate.base.task_protocol import Commands, Queries, Watches
from quorate.base.task_specs import (
    ASSIGNED,
    CANCELLED,
    DEAD,
    READY,
    RUNNING,
    SCHEDULED,
    STATE_NAMES,
    TASK_MACHINE,
    Task,
)
from quorate.base.workflow_commands import CancelWorkflow, Signal, Spawn, Submit, Submitted
from quorate.errors import (
    QueueFullError,
    TaskNotFoundError,
    TaskStateError,
    WorkerNotFoundError,
)
from quorate.replication.machine import Context, Interest, Machine
from quorate.replication.tables import Table, Tables
from quorate.tasks.arrivals import Arrivals
from quorate.tasks.attempts import Attempts
from quorate.tasks.dispatching import Dispatcher
from quorate.tasks.groups import Groups
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import CANCEL_GONE, TIMEOUT, Life
from quorate.tasks.records import (
    DeadRecord,
    EndedRecord,
    LiveRecord,
    QueueRecord,
    SettingsRecord,
    id_key,
    id_of,
)
from quorate.tasks.registry import WorkerRegistry
from quorate.tasks.schedules import Schedules
from quorate.tasks.telling import tell_stop
from quorate.tasks.views import Views
from quorate.tasks.workflows import Workflows

ID_MAX: Final = 2**63 - 1
#: Tasks that one ``Purge`` looks at: some 10 ms.
PURGE_LOOK_MAX: Final = 20_000
#: Tasks that one entry acts on as their time has come; the rest is for the next, which is due at
#: once. Some 20 ms.
DUE_WORK_MAX: Final = 2_000

#: Commands that make more of what there is.
_GROWING: Final = frozenset({Enqueue, Configure, Settle, Register, Requeue, TriggerSchedule})


class TaskMachine(Machine):
    """Machine "tasks", part of every node. Version history: 1, first release."""

    name = TASK_MACHINE
    version = 1
    command_type: ClassVar[Any] = Commands
    query_type: ClassVar[Any] = Queries
    watch_type: ClassVar[Any] = Watches

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._life = Life(self.ledger)
        self._workflows = Workflows(self.ledger, self._life)
        self._life.follow(self._workflows)
        self._groups = Groups(self.ledger)
        self.schedules = Schedules(self.ledger, self._life)
        self._arrivals = Arrivals(self.ledger, self._life)
        sweeper = self._workflows.sweeper
        self._dispatcher = Dispatcher(self.ledger, self._life, sweeper)
        self._registry = WorkerRegistry(self.ledger, self._life)
        self._attempts = Attempts(self.ledger, self._life, self._registry, sweeper)
        self._views = Views(self.ledger, self._life)
        self._commands: dict[type, Callable[[Any, Context], Any]] = {
            Enqueue: self._enqueue,
            Complete: self._complete,
            Claim: self._claim,
            Begin: self._attempts.begin,
            Report: self._attempts.report,
            Fail: self._attempts.fail,
            GiveBack: self._attempts.give_back,
            Cancel: self._cancel,
            Requeue: self._requeue,
            Purge: self._purge,
            Configure: self._configure,
            Settle: self._settle,
            Pause: self._pause,
            Assign: self._assign,
            Register: self._registry.register,
            Attend: self._registry.attend,
            Unregister: self._registry.unregister,
            Submit: self._submit,
            Spawn: self._spawn,
            Signal: self._workflows.signal,
            CancelWorkflow: self._workflows.cancel,
            PutSchedule: self.schedules.put,
            RemoveSchedule: self.schedules.remove,
            Fire: self.schedules.fire,
            PauseSchedule: self.schedules.pause,
            TriggerSchedule: self.schedules.trigger,
            JoinGroup: self._groups.join,
            LeaveGroup: self._groups.leave,
        }

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self.ledger.attach(tables)

    def loaded(self) -> None:
        self.ledger.load()
        self._life.load()
        self._workflows.load()
        self.schedules.load()
        self._dispatcher.load()

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        ledger = self.ledger
        self._begin_work()
        result = self._commands[command.__class__](command, context)
        ledger.close()
        return result

    def query(self, query: Any) -> Any:  # noqa: ANN401
        if query.__class__ is ListSchedules:
            return self.schedules.listed(query)
        if query.__class__ is GroupQuery:
            return self._groups.info(query.group)
        return self._views.answer(query)

    def watch(self, request: Any) -> Interest:  # noqa: ANN401
        if request.__class__ is WatchGroup:
            return self._groups.watch(request)
        return self._views.watch(request)

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        """All but new tasks, rules and workers: what there is must come to its end."""
        if isinstance(command, Complete):
            return not command.follow
        return command.__class__ not in _GROWING

    def next_deadline_ms(self) -> int | None:
        if len(self.ledger.tables.sweeps):
            return 0  # at once
        times = (
            self._workflows.sweeper.forgetting.first_ms(),
            self.schedules.ticking.first_ms(),
            self.ledger.deadlines.first_ms(),
            self.ledger.forgetting.first_ms(),
            self._dispatcher.wake_ms(),
        )
        return min((each for each in times if each is not None), default=None)

    def expire(self, context: Context) -> None:
        self._views.now_ms = context.time_ms
        self._begin_work()
        try:
            self._expire(context)
        except Exception:  # before it had changed anything, perhaps: then nobody calls ``undo``
            self.ledger.put_back()
            raise
        self.ledger.close()

    def _expire(self, context: Context) -> None:
        ledger, now_ms = self.ledger, context.due_ms
        work = 0
        for task in ledger.due(ledger.deadlines, now_ms):
            self._act(task, context)
            work += 1
            if work >= DUE_WORK_MAX:
                break
        for task in ledger.due(ledger.forgetting, now_ms):
            ledger.tables.ended.delete(id_key(task))
            work += 1
            if work >= DUE_WORK_MAX:
                break
        self._life.unique.fade(now_ms, DUE_WORK_MAX)
        ledger.fade_rates(now_ms, DUE_WORK_MAX)
        self._workflows.sweeper.expire(now_ms)
        self.schedules.expire(context, DUE_WORK_MAX)

    def finish(self, context: Context) -> None:
        ledger = self.ledger
        self._views.now_ms = context.time_ms
        self._begin_work()
        if len(ledger.tables.sweeps):
            self._workflows.sweeper.sweep(context)
        self._dispatcher.hand_out(context)
        ledger.close()
        ledger.deadlines.sweep(len(ledger.tables.live))
        ledger.forgetting.sweep(len(ledger.tables.ended))
        self.schedules.ticking.sweep(len(ledger.tables.schedules))
        self.schedules.cron.sweep(len(ledger.tables.schedules))

    def _begin_work(self) -> None:
        self.ledger.begin()
        self._life.begin_work()
        self._workflows.begin()

    def rolled_back(self) -> None:
        self.ledger.undo()

    def on_lease_end(self, lease: int, context: Context) -> int:
        workers = sorted(self.ledger.crew.by_lease.get(lease, ()))
        if not workers and not len(self.ledger.tables.bound):
            return 0
        self._begin_work()
        work = self._groups.on_lease_end(lease, context)
        for worker in workers:
            work += self._registry.lose(worker, context, crashed=True)
        self.ledger.close()
        return work

    def holds(self, fence: Fence) -> bool | None:
        """A fence of a task: its name is the id, 8 bytes, its token the attempt; or of a leader of
        a group (``group_fence_name``), its token the epoch."""
        if fence.machine != TASK_MACHINE:
            return None
        led = self._groups.holds(fence.name, fence.token)
        if led is not None:
            return led
        live = self.ledger.tables.live.get(fence.name)
        return live is not None and live.state == RUNNING and live.attempt == fence.token

    # --- time -----------------------------------------------------------------------------------

    def _act(self, task: int, context: Context) -> None:
        """The time of a task has come."""
        key = id_key(task)
        live, spec = self.ledger.tables.live.get(key), self.ledger.tables.specs.get(key)
        if live is None or spec is None:
            return
        life, now_ms = self._life, context.due_ms
        if live.stopping:
            tell_stop(context, live.worker, task, live.attempt, "moved")
            life.end(task, spec, live, CANCELLED, context, kind=CANCEL_GONE)
        elif live.state == RUNNING:
            tell_stop(context, live.worker, task, live.attempt, TIMEOUT)
            spent_ms = now_ms - live.since_ms
            error = f"attempt {live.attempt} did not end or report in time ({spent_ms} ms)"
            life.fail(task, spec, live, TIMEOUT, error, context)
        elif live.state == SCHEDULED and live.after_ms <= now_ms:
            if not self._workflows.wake(task, spec, live, context):
                life.wake(task, spec, live, context)
        else:
            if live.state == ASSIGNED:
                tell_stop(context, live.worker, task, live.attempt, "moved")
            life.expire(task, spec, live, context)

    # --- commands on tasks ----------------------------------------------------------------------

    def _enqueue(self, command: Enqueue, context: Context) -> Enqueued | Failure:
        life = self._life
        trouble = self._trouble(command.tasks, context.time_ms)
        if trouble is not None:
            return trouble
        tasks = self._arrivals.take(command.tasks, context)
        known: list[int] = []
        for at, spec in enumerate(command.tasks[len(tasks) :], len(tasks)):
            holder = 0 if spec.options is None else life.unique.holder(spec, context.time_ms)
            if holder:
                known.append(at)
                tasks.append(holder)
            else:
                tasks.append(life.enqueue(spec, context))
        return Enqueued(tuple(tasks), tuple(known))

    def _complete(self, command: Complete, context: Context) -> Settlement | Failure:
        settled = self._attempts.complete(command, context)
        if settled.stale or not command.follow:
            return settled
        made = self._enqueue(Enqueue(command.follow), context)
        return made if isinstance(made, Failure) else Settlement((), made.tasks)

    def _submit(self, command: Submit, context: Context) -> Submitted | Failure:
        trouble = self._trouble(tuple(node.task for node in command.nodes), context.time_ms)
        return self._workflows.submit(command, context) if trouble is None else trouble

    def _spawn(self, command: Spawn, context: Context) -> Submitted | Settlement | Failure:
        found = self._attempts.present(command.task, command.attempt, command.worker, (RUNNING,))
        if isinstance(found, Stale):
            return Settlement((found,))
        trouble = self._trouble(tuple(node.task for node in command.nodes), context.time_ms)
        return self._workflows.spawn(command, context) if trouble is None else trouble

    def _trouble(self, tasks: tuple[Task, ...], now_ms: int) -> Failure | None:
        """Why they cannot be taken, all of them."""
        ledger = self.ledger
        if len(ledger.tables.live) + len(tasks) > TASKS_MAX:
            return Failure(QueueFullError.code, f"there are {TASKS_MAX} tasks in all queues")
        added: dict[str, int] = {}
        uniques = len(ledger.tables.unique)
        for spec in tasks:
            options = spec.options
            known = options is not None and self._life.unique.holder(spec, now_ms)
            added[spec.queue] = added.get(spec.queue, 0) + (not known)
            if options is None:
                continue
            uniques += options.unique is not None and not known
            if uniques > TASK_UNIQUE_MAX:
                return Failure(QueueFullError.code, f"{TASK_UNIQUE_MAX} unique keys are held")
            if options.beside and self._life.name_beside(options.beside) == "":
                text = f"task {options.beside}, beside which it is to run, is not known"
                return Failure(TaskNotFoundError.code, text)
        for name, count in added.items():
            queue = ledger.queues.get(name)
            if not count:
                continue
            if queue is None:
                if len(ledger.queues) + len(added) > TASK_QUEUES_MAX:
                    return Failure(QueueFullError.code, f"there are {TASK_QUEUES_MAX} queues")
            elif queue.rules.depth_max and queue.live + count > queue.rules.depth_max:
                text = f"queue {name!a} holds {queue.live} of {queue.rules.depth_max} tasks"
                return Failure(QueueFullError.code, f"{text}, and {count} more are too many")
            elif len(queue.lines) >= TASK_LINES_MAX:
                text = f"in queue {name!a} stand tasks with {TASK_LINES_MAX} different needs"
                return Failure(QueueFullError.code, text)
        return None

    def _cancel(self, command: Cancel, context: Context) -> Changed:
        tables, life = self.ledger.tables, self._life
        changed = []
        for task in dict.fromkeys(command.tasks):
            key = id_key(task)
            live, spec = tables.live.get(key), tables.specs.get(key)
            if live is None or spec is None or (command.waiting_only and live.state == RUNNING):
                continue
            changed.append(task)
            if live.state == RUNNING:
                if not live.stopping:
                    life.stop(task, spec, live, command.grace_ms, context)
                continue
            tell_stop(context, live.worker, task, live.attempt, "moved")
            life.end(task, spec, live, CANCELLED, context)
        return Changed(tuple(changed))

    def _requeue(self, command: Requeue, context: Context) -> Changed:
        tables, life = self.ledger.tables, self._life
        changed = []
        for task in dict.fromkeys(command.tasks):
            key = id_key(task)
            dead, spec = tables.dead.get(key), tables.specs.get(key)
            if dead is None or spec is None or key in tables.kin:
                continue  # a node of a workflow has ended for good
            unique = None if spec.options is None else spec.options.unique
            if unique is not None and life.unique.holder(spec, context.time_ms) not in (0, task):
                continue
            if self.ledger.is_full(spec.queue):
                continue
            life.revive(task, spec, dead, context)
            changed.append(task)
        return Changed(tuple(changed))

    def _purge(self, command: Purge, context: Context) -> Purged:
        tables = self.ledger.tables
        until_ms = context.time_ms - command.older_ms
        rows: Iterator[tuple[bytes, Any]]
        start = id_key(command.after + 1) if command.after < ID_MAX else None
        table: Table[Any] = tables.live
        if command.state == "dead":
            table = tables.dead
        elif command.state in ("done", "cancelled"):
            table = tables.ended
        rows = iter(()) if start is None else table.range(start, limit=PURGE_LOOK_MAX)
        state = STATE_NAMES.index(command.state)
        found: list[tuple[bytes, Any]] = []
        seen, last = 0, 0
        for key, record in rows:
            seen, last = seen + 1, id_of(key)
            if self._is_to_go(key, record, state, until_ms, command.queue):
                found.append((key, record))
                if len(found) >= command.limit:
                    break
        for key, record in found:
            self._drop(key, record, context)
        whole = seen < PURGE_LOOK_MAX and len(found) < command.limit
        return Purged(len(found), 0 if whole else last)

    def _is_to_go(self, key: bytes, record: Any, state: int, until_ms: int, queue: str) -> bool:  # noqa: ANN401
        if record.__class__ is EndedRecord:
            since_ms, name = record.ended_ms, record.queue
            if record.state != state:
                return False
        else:
            spec = self.ledger.tables.specs.get(key)
            name = "" if spec is None else spec.queue
            if record.__class__ is DeadRecord:
                since_ms = record.died_ms
            else:
                since_ms = record.since_ms
                if record.state != state:
                    return False
        return since_ms <= until_ms and queue in ("", name)

    def _drop(self, key: bytes, record: Any, context: Context) -> None:  # noqa: ANN401
        tables = self.ledger.tables
        spec = tables.specs.get(key)
        name = (
            record.queue if record.__class__ is EndedRecord else "" if spec is None else spec.queue
        )
        if record.__class__ is LiveRecord and spec is not None:
            self._life.end(id_of(key), spec, record, CANCELLED, context)
        if record.__class__ is DeadRecord:
            tables.dead.delete(key)
            tables.specs.delete(key)
        else:
            tables.ended.delete(key)
        self.ledger.count(name, "purged")

    def _assign(self, command: Assign, context: Context) -> Claimed | Failure:
        tables, task = self.ledger.tables, command.task
        key = id_key(task)
        live, spec = tables.live.get(key), tables.specs.get(key)
        if live is None or spec is None:
            ended = tables.ended.get(key)
            if ended is None and key not in tables.dead:
                text = f"task {task} never was, or is forgotten"
                return Failure(TaskNotFoundError.code, text)
            state = DEAD if ended is None else ended.state
            text = f"task {task} is {STATE_NAMES[state]}, and has no more workers"
            return Failure(TaskStateError.code, text)
        if live.state not in (READY, ASSIGNED, RUNNING) or live.stopping:
            now = "told to stop" if live.stopping else STATE_NAMES[live.state]
            return Failure(TaskStateError.code, f"task {task} is {now}, and gets no worker now")
        if self._workflows.sweeper.is_stopped(task):
            text = f"the workflow of task {task} is stopped: it gets no worker now"
            return Failure(TaskStateError.code, text)
        if command.worker and command.worker not in self.ledger.crew.workers:
            text = f"there is no worker {command.worker}"
            return Failure(WorkerNotFoundError.code, text)
        if command.worker and command.worker == live.worker:
            text = f"worker {command.worker} has task {task} already"
            return Failure(TaskStateError.code, text)
        given = self._dispatcher.assign(task, spec, live, command.worker, context)
        return given if isinstance(given, Failure) else Claimed((given,))

    # --- rules ----------------------------------------------------------------------------------

    def _configure(self, command: Configure, context: Context) -> Configured | Failure:  # noqa: ARG002
        ledger = self.ledger
        fields = msgspec.structs.asdict(command)
        name = fields.pop("queue")
        if name not in ledger.queues and len(ledger.queues) >= TASK_QUEUES_MAX:
            return Failure(QueueFullError.code, f"there are {TASK_QUEUES_MAX} queues")
        ledger.set_rules(name, QueueRecord(**fields))
        return Configured()

    def _pause(self, command: Pause, context: Context) -> Configured | Failure:  # noqa: ARG002
        ledger, name = self.ledger, command.queue
        if name not in ledger.queues and len(ledger.queues) >= TASK_QUEUES_MAX:
            return Failure(QueueFullError.code, f"there are {TASK_QUEUES_MAX} queues")
        rules = ledger.tables.queues.get(name.encode()) or QueueRecord()
        ledger.set_rules(name, msgspec.structs.replace(rules, paused=command.paused))
        return Configured()

    def _settle(self, command: Settle, context: Context) -> Settled:  # noqa: ARG002
        self.ledger.set_settings(SettingsRecord(**msgspec.structs.asdict(command)))
        return Settled()

    # --- what workers do ------------------------------------------------------------------------

    def _claim(self, command: Claim, context: Context) -> Claimed | Failure:
        worker = self.ledger.crew.workers.get(command.worker)
        if worker is None or not context.lease_alive(worker.record.lease):
            return Failure(WorkerNotFoundError.code, f"there is no worker {command.worker}")
        if worker.record.state != "active":
            return Claimed(())
        return Claimed(tuple(self._dispatcher.claim(worker, command.count, context)))
