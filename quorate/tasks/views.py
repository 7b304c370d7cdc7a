"""What the task machine answers: tasks, queues and workers as they stand, and what may be watched.

Each answer looks at no more rows than it is asked for, or at a stated multiple of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from quorate.base.chance import Chance
from quorate.base.results import Failure
from quorate.base.task_queries import (
    Assigned,
    ChooseWorker,
    Holdings,
    ListQueues,
    ListTasks,
    ListWorkers,
    Peek,
    QueueInfo,
    QueueList,
    Stop,
    System,
    SystemInfo,
    TaskEvent,
    TaskInfo,
    TaskList,
    TaskQuery,
    WatchQueue,
    WatchTasks,
    WatchWorker,
    WorkerHoldings,
    WorkerInfo,
    WorkerList,
)
from quorate.base.task_specs import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    NO_NEEDS,
    READY,
    RUNNING,
    SCHEDULED,
    Needs,
)
from quorate.base.workflow_commands import ListNodes, ListWorkflows, WatchWorkflow, WorkflowQuery
from quorate.errors import NoAvailableWorkerError, TaskNotFoundError, WorkerNotFoundError
from quorate.replication.machine import Interest
from quorate.tasks import workflow_views
from quorate.tasks.crew import Pool
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.queues import Queue
from quorate.tasks.records import (
    DeadRecord,
    EndedRecord,
    LiveRecord,
    TotalsRecord,
    WorkerRecord,
    id_key,
    id_of,
)
from quorate.tasks.telling import (
    ALL_QUEUES,
    queue_topic,
    task_topic,
    whole,
    worker_topic,
)

#: Rows that one ``ListTasks`` looks at, as a multiple of what it may answer.
LOOK_FACTOR: Final = 10

_NO_TOTALS: Final = TotalsRecord()
_ID_MAX: Final = 2**63 - 1


class Views:
    """See the module. *now_ms*: cluster time of the last entry."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life
        self.now_ms = 0
        self._answers: dict[type, Callable[[Any], Any]] = {
            TaskQuery: self._task,
            ListTasks: self._tasks,
            ListQueues: self._queues,
            ListWorkers: self._workers,
            Holdings: self._holdings,
            System: self._system,
            Peek: self._peek,
            ChooseWorker: self._choose,
            WorkflowQuery: lambda query: workflow_views.workflow(ledger.tables, query),
            ListWorkflows: lambda query: workflow_views.workflows(ledger.tables, query),
            ListNodes: lambda query: workflow_views.nodes(ledger.tables, query),
        }

    def answer(self, query: Any) -> Any:  # noqa: ANN401
        """One query."""
        return self._answers[query.__class__](query)

    # --- tasks ----------------------------------------------------------------------------------

    def _task(self, query: TaskQuery) -> TaskInfo | Failure:
        found = self._info(query.task)
        if found is None:
            text = f"task {query.task} never was, or is forgotten"
            return Failure(TaskNotFoundError.code, text)
        return found

    def _info(self, task: int) -> TaskInfo | None:
        tables, key = self._ledger.tables, id_key(task)
        live = tables.live.get(key)
        if live is not None:
            return self._live_info(task, live)
        ended = tables.ended.get(key)
        if ended is not None:
            return _ended_info(task, ended)
        dead = tables.dead.get(key)
        return None if dead is None else self._dead_info(task, dead)

    def _live_info(self, task: int, live: LiveRecord) -> TaskInfo:
        tables, key = self._ledger.tables, id_key(task)
        spec = tables.specs.get(key)
        trial, progress = tables.trials.get(key), tables.progress.get(key)
        return TaskInfo(
            task,
            live.state,
            "" if spec is None else spec.function,
            "" if spec is None else spec.queue,
            live.enqueued_ms,
            live.since_ms,
            live.due_ms,
            live.attempt,
            live.worker,
            live.errors,
            live.crashes,
            waits=live.waits,
            permille=None if progress is None else progress.permille,
            note="" if progress is None else progress.note,
            kind="" if trial is None else trial.kind,
            error="" if trial is None else trial.error,
            workers=() if trial is None else trial.workers,
            stopping=live.stopping,
            spec=spec,
            reason=live.reason,
        )

    def _dead_info(self, task: int, dead: DeadRecord) -> TaskInfo:
        spec = self._ledger.tables.specs.get(id_key(task))
        return TaskInfo(
            task,
            DEAD,
            "" if spec is None else spec.function,
            "" if spec is None else spec.queue,
            dead.enqueued_ms,
            dead.died_ms,
            0,
            dead.attempt,
            dead.worker,
            dead.errors,
            dead.crashes,
            kind=dead.kind,
            error=dead.error,
            workers=dead.workers,
            spec=spec,
        )

    def _tasks(self, query: ListTasks) -> TaskList:
        if query.after >= _ID_MAX:
            return TaskList((), 0)
        tables, state = self._ledger.tables, query.state
        table: Any = tables.live
        if state == DEAD:
            table = tables.dead
        elif state in (DONE, CANCELLED):
            table = tables.ended
        look_max = query.limit * LOOK_FACTOR
        rows: Iterator[tuple[bytes, Any]] = table.range(id_key(query.after + 1), limit=look_max)
        found: list[TaskInfo] = []
        seen = last = 0
        for key, record in rows:
            seen, last = seen + 1, id_of(key)
            if state not in (0, DEAD, *_states(record)):
                continue
            if query.queue and query.queue != self._queue_of(key, record):
                continue
            info = self._info(last)
            if info is not None:
                found.append(info)
            if len(found) >= query.limit:
                break
        whole = seen < look_max and len(found) < query.limit
        return TaskList(tuple(found), 0 if whole else last)

    def _queue_of(self, key: bytes, record: Any) -> str:  # noqa: ANN401
        if record.__class__ is EndedRecord:
            name: str = record.queue
            return name
        spec = self._ledger.tables.specs.get(key)
        return "" if spec is None else spec.queue

    def _peek(self, query: Peek) -> TaskList:
        queue = self._ledger.queues.get(query.queue)
        if queue is None:
            return TaskList((), 0)
        ready: list[tuple[int, int]] = []
        for line in queue.all_lines():
            ready.extend((-line.priority, task) for task in line.first(query.limit))
        infos = (self._info(task) for _, task in sorted(ready)[: query.limit])
        return TaskList(tuple(each for each in infos if each is not None), 0)

    # --- queues ---------------------------------------------------------------------------------

    def _queues(self, query: ListQueues) -> QueueList:
        ledger = self._ledger
        there = dict.fromkeys(key.decode() for key, _ in ledger.tables.totals.range())
        there |= dict.fromkeys(ledger.queues)
        names = sorted(name for name in there if name > query.after)
        shown = names[: query.limit]
        infos = tuple(self._queue_info(ledger.look_at(name)) for name in shown)
        return QueueList(infos, len(names) > len(shown))

    def _queue_info(self, queue: Queue) -> QueueInfo:
        totals = self._ledger.tables.totals.get(queue.name.encode()) or _NO_TOTALS
        oldest = min((line.first(1) for line in queue.all_lines() if line.count), default=[])
        live = self._ledger.tables.live.get(id_key(oldest[0])) if oldest else None
        counts = queue.counts
        return QueueInfo(
            queue.name,
            counts[SCHEDULED],
            counts[BLOCKED],
            counts[READY],
            counts[ASSIGNED],
            counts[RUNNING],
            0 if live is None else live.since_ms,
            *msgspec.structs.astuple(queue.rules),
            *msgspec.structs.astuple(totals),
        )

    # --- workers --------------------------------------------------------------------------------

    def _workers(self, query: ListWorkers) -> WorkerList:
        if query.after >= _ID_MAX:
            return WorkerList((), more=False)
        found: list[WorkerInfo] = []
        for key, record in self._ledger.tables.workers.range(id_key(query.after + 1)):
            if record.gone_ms and not query.gone:
                continue
            if len(found) >= query.limit:
                return WorkerList(tuple(found), more=True)
            found.append(self._worker_info(id_of(key), record))
        return WorkerList(tuple(found), more=False)

    def _worker_info(self, id_: int, record: WorkerRecord) -> WorkerInfo:
        worker = self._ledger.crew.workers.get(id_)
        held = 0 if worker is None else len(worker.held)
        stored = 0 if worker is None else len(worker.stored)
        state = record.state
        if state == "active":
            state = "busy" if held else "idle"
        return WorkerInfo(
            id_,
            record.name,
            state,
            record.lease,
            record.load,
            record.prefetch,
            held,
            stored,
            record.capabilities,
            record.queues,
            record.weight,
            record.model,
            record.registered_ms,
            record.seen_ms,
            record.gone_ms,
            record.done,
            record.failed,
            record.crashed,
            record.ran_ms,
            record.failures_in_row,
        )

    def _choose(self, query: ChooseWorker) -> WorkerList | Failure:
        crew = self._ledger.crew
        settings = msgspec.structs.replace(self._ledger.settings, strategy=query.strategy)
        needs = Needs(query.capabilities) if query.capabilities else NO_NEEDS
        able = [
            each
            for each in crew.free.values()
            if not settings.capabilities or each.capabilities.issuperset(needs.capabilities)
        ]
        worker = Pool(able, settings, needs).choose("", query.last, lambda: Chance(query.seed))
        if worker is None:
            wanted = f"{', '.join(query.capabilities)}, and " if query.capabilities else ""
            text = f"none of {len(crew.workers)} workers has {wanted}room for one more task"
            return Failure(NoAvailableWorkerError.code, text)
        return WorkerList((self._worker_info(worker.id, worker.record),), more=False)

    def _holdings(self, query: Holdings) -> WorkerHoldings | Failure:
        worker = self._ledger.crew.workers.get(query.worker)
        if worker is None:
            return Failure(WorkerNotFoundError.code, f"there is no worker {query.worker}")
        tables = self._ledger.tables
        tasks = []
        stopping = []
        for task in sorted(worker.held):
            spec, live = tables.specs.get(id_key(task)), tables.live.get(id_key(task))
            if spec is None or live is None:
                continue
            if live.stopping:
                stopping.append(task)
            tasks.append(self._life.shown((task, spec, live)))
        return WorkerHoldings(tuple(tasks), tuple(stopping))

    # --- everything -----------------------------------------------------------------------------

    def _system(self, query: System) -> SystemInfo:  # noqa: ARG002
        ledger, tables = self._ledger, self._ledger.tables
        counts = [0] * (RUNNING + 1)
        for queue in ledger.queues.values():
            for state in range(SCHEDULED, RUNNING + 1):
                counts[state] += queue.counts[state]
        states = {"idle": 0, "busy": 0, "draining": 0, "error": 0}
        load = capacity = 0
        for worker in ledger.crew.workers.values():
            load += len(worker.held)
            capacity += worker.record.load + worker.record.prefetch
            name = worker.record.state
            states[("busy" if worker.held else "idle") if name == "active" else name] += 1
        settings = ledger.settings
        return SystemInfo(
            self.now_ms,
            counts[SCHEDULED],
            counts[BLOCKED],
            counts[READY],
            counts[ASSIGNED],
            counts[RUNNING],
            len(tables.ended),
            len(tables.dead),
            len(ledger.queues),
            states["idle"],
            states["busy"],
            states["draining"],
            states["error"],
            len(tables.workers) - len(ledger.crew.workers),
            load,
            capacity,
            settings.strategy,
            settings.running_max,
            settings.load_max,
            settings.capabilities,
            settings.affinity,
        )

    # --- watches --------------------------------------------------------------------------------

    def watch(self, request: Any) -> Interest:  # noqa: ANN401
        """What a watch is for."""
        if request.__class__ is WatchWorker:
            return self._watch_worker(request)
        if request.__class__ is WatchTasks:
            return self._watch_tasks(request)
        if request.__class__ is WatchWorkflow:
            return workflow_views.watch(self._ledger.tables, request, self.now_ms)
        return _watch_queue(request)

    def _watch_worker(self, request: WatchWorker) -> Interest:
        held = self._holdings(Holdings(request.worker))
        if held.__class__ is Failure:
            ends = WorkerNotFoundError(f"there is no worker {request.worker}")
            return Interest(whole, keys=(worker_topic(request.worker),), ends=ends)
        tasks = held.tasks  # type: ignore[union-attr]
        attempts = {each.task: each.attempt for each in tasks}
        stops = [
            Stop(task, attempts[task], "cancelled")
            for task in held.stopping  # type: ignore[union-attr]
        ]
        backlog = [Assigned(tasks, whole=True), *stops]
        return Interest(whole, keys=(worker_topic(request.worker),), backlog=backlog)

    def _watch_tasks(self, request: WatchTasks) -> Interest:
        tables = self._ledger.tables
        backlog = []
        for task in request.tasks:
            live = tables.live.get(id_key(task))
            if live is None:
                backlog.append(_ended_event(task, self._info(task)))
            elif request.running and live.state == RUNNING:
                backlog.append(_started_event(self._live_info(task, live)))
        return Interest(whole, keys=tuple(map(task_topic, request.tasks)), backlog=backlog)


def _states(record: Any) -> tuple[int, ...]:  # noqa: ANN401
    return () if record.__class__ is DeadRecord else (record.state,)


def _watch_queue(request: WatchQueue) -> Interest:
    if request.queue:
        return Interest(_without_result, keys=(queue_topic(request.queue),))
    return Interest(_without_result, prefix=ALL_QUEUES)


def _ended_info(task: int, ended: EndedRecord) -> TaskInfo:
    return TaskInfo(
        task,
        ended.state,
        ended.function,
        ended.queue,
        ended.enqueued_ms,
        ended.ended_ms,
        0,
        ended.attempt,
        ended.worker,
        0,
        0,
        kind=ended.kind,
        error=ended.error,
        result=ended.result,
    )


_ENDS: Final = {DONE: "done", DEAD: "dead", CANCELLED: "cancelled"}


def _ended_event(task: int, info: TaskInfo | None) -> TaskEvent:
    if info is None:
        return TaskEvent("unknown", task, 0, "", "", 0, 0, 0)
    return TaskEvent(
        _ENDS[info.state],
        task,
        info.state,
        info.function,
        info.queue,
        info.attempt,
        info.worker,
        info.since_ms,
        info.kind,
        info.error,
        info.result,
    )


def _started_event(info: TaskInfo) -> TaskEvent:
    return TaskEvent(
        "started",
        info.task,
        info.state,
        info.function,
        info.queue,
        info.attempt,
        info.worker,
        info.since_ms,
    )


def _without_result(key: bytes, event: Any) -> Any:  # noqa: ANN401, ARG001
    if event.__class__ is TaskEvent and event.result:
        return msgspec.structs.replace(event, result=b"")
    return event
