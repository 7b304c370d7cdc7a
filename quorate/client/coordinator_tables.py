"""The tables and views of the coordination guide, as typed rows over what the cluster answers.

A table is read in pages, each of which is linearizable; a table of several pages is not one
moment. No row is kept apart from the state that it shows, so there is none that nobody writes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from quorate.base.task_queries import ListWorkers, QueueInfo, SystemInfo, TaskInfo, WorkerInfo
from quorate.base.task_specs import (
    CANCELLED,
    DEAD,
    DONE,
    NO_NEEDS,
    STATE_NAMES,
    Task,
)
from quorate.base.workflow_commands import BLOCKING, OPTIONAL, WEAK
from quorate.client.coordinator_config import CoordinatorConfig
from quorate.client.coordinator_rows import (
    ActiveWorkerRow,
    AssignmentRow,
    DeadLetterRow,
    DependencyRow,
    ExecutionRow,
    HealthRow,
    MetricsRow,
    PendingTaskRow,
    PerformanceRow,
    QueueDepthRow,
    ResultRow,
    TaskRow,
    TimeoutRow,
    WorkerRow,
)
from quorate.client.coordinator_state import DistributedState, StateRow
from quorate.client.database import Database
from quorate.client.task_payloads import unpack_arguments
from quorate.client.tasks import State
from quorate.errors import InvalidArgumentError, TaskPayloadError, WorkflowNotFoundError

ROWS_DEFAULT: Final = 1_000

#: What the guide calls a task that is in this state.
STATUS: Final = {
    "scheduled": "pending",
    "blocked": "pending",
    "ready": "pending",
    "assigned": "assigned",
    "running": "running",
    "done": "completed",
    "dead": "dead",
    "cancelled": "cancelled",
}
DEPENDENCY_TYPES: Final = {BLOCKING: "blocking", OPTIONAL: "optional", WEAK: "weak"}


class Tables:
    """See the module. All take *limit*, the most rows to give."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._state = DistributedState(db.kv)

    async def workers(self, limit: int = ROWS_DEFAULT) -> list[WorkerRow]:
        """By id, and those that are gone, as long as they are known."""
        return [worker_row(info) for info in await self.worker_infos(limit)]

    async def worker_infos(self, limit: int = ROWS_DEFAULT) -> list[WorkerInfo]:
        """As the cluster has them."""
        found: list[WorkerInfo] = []
        more = True
        while more and len(found) < _checked(limit):
            after = found[-1].worker if found else 0
            some = min(ROWS_DEFAULT, limit - len(found))
            page = await self._db.tasks.ask(ListWorkers(after, some, gone=True))
            found += page.workers
            more = page.more
        return found

    async def task_queue(self, limit: int = ROWS_DEFAULT) -> list[TaskRow]:
        """Tasks that have not ended, by id."""
        return [task_row(info) for info in await self._tasks(None, limit)]

    async def task_results(self, limit: int = ROWS_DEFAULT) -> list[ResultRow]:
        """Tasks that are done or cancelled, by id, as long as they are known."""
        found = await self._tasks("done", limit) + await self._tasks("cancelled", limit)
        found.sort(key=lambda info: info.task)
        return [_result_row(info) for info in found[:limit]]

    async def worker_assignments(self, limit: int = ROWS_DEFAULT) -> list[AssignmentRow]:
        """What workers have, by task."""
        found = await self._tasks("assigned", limit) + await self._tasks("running", limit)
        found.sort(key=lambda info: info.task)
        return [
            AssignmentRow(
                task_id=info.task,
                worker_id=info.worker,
                attempt=info.attempt,
                status=STATE_NAMES[info.state],
                reason=info.reason,
                assigned_ms=info.since_ms,
            )
            for info in found[:limit]
        ]

    async def distributed_state(self, limit: int = ROWS_DEFAULT) -> list[StateRow]:
        """State that coordinators share, by key."""
        return (await self._state.list())[: _checked(limit)]

    async def dead_letter_queue(self, limit: int = ROWS_DEFAULT) -> list[DeadLetterRow]:
        """Tasks that gave up, by id."""
        return [
            DeadLetterRow(
                task_id=info.task,
                type=info.function,
                queue=info.queue,
                payload=_payload(info.spec),
                kind=info.kind,
                error=info.error,
                attempts=info.attempt,
                errors=info.errors,
                crashes=info.crashes,
                workers_tried=info.workers,
                died_ms=info.since_ms,
            )
            for info in await self._tasks("dead", limit)
        ]

    async def task_dependencies(self, limit: int = ROWS_DEFAULT) -> list[DependencyRow]:
        """What waits for what, by workflow."""
        found: list[DependencyRow] = []
        async for flow in self._db.workflows.list():
            if len(found) >= _checked(limit):
                break
            found += await self._dependencies(flow.workflow)
        return found[:limit]

    async def _dependencies(self, workflow: int) -> list[DependencyRow]:
        try:
            nodes = await self._db.workflows.run(workflow).nodes()
        except WorkflowNotFoundError:
            return []  # forgotten meanwhile
        by_task = {node.task: node for node in nodes.values()}
        found = []
        for node in nodes.values():
            for parent, kind in zip(node.after, node.after_kinds, strict=True):
                before = by_task.get(parent)
                state = 0 if before is None else before.state
                ended = state in (DONE, DEAD, CANCELLED)
                found.append(
                    DependencyRow(
                        workflow=workflow,
                        task_id=node.task,
                        task=node.name,
                        depends_on_id=parent,
                        depends_on="" if before is None else before.name,
                        type=DEPENDENCY_TYPES[kind],
                        satisfied=state == DONE or kind == WEAK or (kind == OPTIONAL and ended),
                    )
                )
        return found

    async def worker_metrics(self, limit: int = ROWS_DEFAULT) -> list[MetricsRow]:
        """What workers have done, by id; of those that are gone, as long as they are known."""
        return [
            MetricsRow(
                worker_id=info.worker,
                name=info.name,
                completed=info.done,
                failed=info.failed,
                crashed=info.crashed,
                total_run_ms=info.ran_ms,
                avg_duration_ms=_mean(info.ran_ms, info.done),
                success_rate=_success(info),
            )
            for info in await self.worker_infos(limit)
        ]

    async def _tasks(self, state: State | None, limit: int) -> list[TaskInfo]:
        found: list[TaskInfo] = []
        pages: AsyncIterator[TaskInfo] = self._db.tasks.list(state, page=min(1_000, limit))
        async for info in pages:
            found.append(info)
            if len(found) >= _checked(limit):
                break
        return found


class Views:
    """See the module."""

    def __init__(self, db: Database, config: CoordinatorConfig | None = None) -> None:
        self._db = db
        self._config = config or CoordinatorConfig()
        self._tables = Tables(db)

    async def v_active_workers(self, limit: int = ROWS_DEFAULT) -> list[ActiveWorkerRow]:
        """Workers that are there, by id."""
        heard_ms = await self._heard_ms()
        system = await self._db.tasks.system()
        stale_ms = 2 * self._config.heartbeat_check_interval_ms
        found = []
        for info in (await self._db.tasks.workers())[: _checked(limit)]:
            last_ms = max(info.seen_ms, system.now_ms - heard_ms.get(info.lease, system.now_ms))
            silence_ms = max(system.now_ms - last_ms, 0)
            row = msgspec.structs.asdict(worker_row(info)) | {"last_seen_ms": last_ms}
            found.append(ActiveWorkerRow(**row, silence_ms=silence_ms, stale=silence_ms > stale_ms))
        return found

    async def _heard_ms(self) -> dict[int, int]:
        """By lease: for how long it has not been renewed."""
        found: dict[int, int] = {}
        after = 0
        while True:
            page = (await self._db.list_leases(after, 1_000)).leases
            found |= {each.lease: each.ttl_ms - each.remaining_ms for each in page}
            if len(page) < 1_000:
                return found
            after = page[-1].lease

    async def v_stale_workers(self, limit: int = ROWS_DEFAULT) -> list[ActiveWorkerRow]:
        """Those that were silent for too long, and are not dead yet."""
        return [each for each in await self.v_active_workers(limit) if each.stale]

    async def v_pending_tasks(self, limit: int = ROWS_DEFAULT) -> list[PendingTaskRow]:
        """Tasks that are ready, those of the highest priority first, then the oldest."""
        now_ms = (await self._db.tasks.system()).now_ms
        found: list[TaskInfo] = []
        for queue in await self._db.tasks.queues():
            if queue.ready:
                found += await self._db.tasks.peek(queue.name, min(_checked(limit), 1_000))
        found.sort(key=lambda info: (-_priority(info), info.task))
        return [
            PendingTaskRow(
                task_id=info.task,
                type=info.function,
                queue=info.queue,
                priority=_priority(info),
                waiting_ms=max(now_ms - info.since_ms, 0),
                capabilities=_capabilities(info.spec),
            )
            for info in found[:limit]
        ]

    async def v_system_health(self, limit: int = 1) -> list[HealthRow]:  # noqa: ARG002
        """One row: everything together."""
        return [health_of(*await self._look())]

    async def _look(self) -> tuple[SystemInfo, tuple[QueueInfo, ...], tuple[WorkerInfo, ...]]:
        tasks = self._db.tasks
        return await tasks.system(), await tasks.queues(), await tasks.workers()

    async def v_worker_performance(self, limit: int = ROWS_DEFAULT) -> list[PerformanceRow]:
        """How well workers do, by id."""
        return [
            PerformanceRow(
                worker_id=each.worker_id,
                name=each.name,
                success_rate=each.success_rate,
                avg_duration_ms=each.avg_duration_ms,
                completed=each.completed,
                failed=each.failed + each.crashed,
            )
            for each in await self._tables.worker_metrics(limit)
        ]

    async def v_task_execution_summary(self, limit: int = ROWS_DEFAULT) -> list[ExecutionRow]:
        """What has happened in each queue, by name."""
        return [
            ExecutionRow(
                queue=info.name,
                enqueued=info.enqueued,
                completed=info.done,
                dead=info.died,
                cancelled=info.cancelled,
                failures=info.failures,
                timeouts=info.timeouts,
                crashes=info.crashes,
                avg_duration_ms=_mean(info.ran_ms, info.done),
                avg_wait_ms=_mean(info.waited_ms, info.begun),
            )
            for info in (await self._db.tasks.queues())[: _checked(limit)]
        ]

    async def v_queue_depth(self, limit: int = ROWS_DEFAULT) -> list[QueueDepthRow]:
        """What is in each queue, by name."""
        now_ms = (await self._db.tasks.system()).now_ms
        return [
            QueueDepthRow(
                queue=info.name,
                scheduled=info.scheduled,
                blocked=info.blocked,
                ready=info.ready,
                assigned=info.assigned,
                running=info.running,
                oldest_ms=max(now_ms - info.oldest_ms, 0) if info.oldest_ms else 0,
                paused=info.paused,
            )
            for info in (await self._db.tasks.queues())[: _checked(limit)]
        ]

    async def v_timeout_candidates(self, limit: int = ROWS_DEFAULT) -> list[TimeoutRow]:
        """Running tasks whose time is up before the next look, those with the least of it first."""
        system = await self._db.tasks.system()
        now_ms, soon_ms = system.now_ms, self._config.timeout_check_interval_ms
        found = [
            TimeoutRow(
                task_id=info.task,
                type=info.function,
                worker_id=info.worker,
                attempt=info.attempt,
                running_ms=max(now_ms - info.since_ms, 0),
                left_ms=max(info.due_ms - now_ms, 0),
            )
            async for info in self._db.tasks.list("running", page=1_000)
            if info.due_ms and info.due_ms - now_ms <= soon_ms
        ]
        found.sort(key=lambda row: (row.left_ms, row.task_id))
        return found[: _checked(limit)]


Read = Callable[[int], Awaitable[list[Any]]]


def readers(db: Database, config: CoordinatorConfig | None = None) -> Mapping[str, Read]:
    """All tables and views, by name."""
    tables, views = Tables(db), Views(db, config)
    names = (*TABLES, *VIEWS)
    return {name: getattr(tables if name in TABLES else views, name) for name in names}


TABLES: Final = (
    "workers",
    "task_queue",
    "task_results",
    "worker_assignments",
    "distributed_state",
    "dead_letter_queue",
    "task_dependencies",
    "worker_metrics",
)
VIEWS: Final = (
    "v_active_workers",
    "v_pending_tasks",
    "v_system_health",
    "v_worker_performance",
    "v_task_execution_summary",
    "v_queue_depth",
    "v_stale_workers",
    "v_timeout_candidates",
)


def health_of(
    system: SystemInfo, queues: tuple[QueueInfo, ...], workers: tuple[WorkerInfo, ...]
) -> HealthRow:
    """Everything together, of what was asked."""
    factors = [_load_factor(info) for info in workers]
    return HealthRow(
        idle_workers=system.idle,
        busy_workers=system.busy,
        draining_workers=system.draining,
        error_workers=system.failing,
        offline_workers=system.gone,
        pending_tasks=system.scheduled + system.blocked + system.ready,
        assigned_tasks=system.assigned,
        running_tasks=system.running,
        completed_tasks=sum(each.done for each in queues),
        failed_attempts=sum(each.failures + each.timeouts + each.crashes for each in queues),
        cancelled_tasks=sum(each.cancelled for each in queues),
        dead_tasks=system.dead,
        avg_load_factor=sum(factors) / len(factors) if factors else 0.0,
        now_ms=system.now_ms,
    )


def task_row(info: TaskInfo) -> TaskRow:
    """A task as a row of ``task_queue``."""
    state = STATE_NAMES[info.state]
    return TaskRow(
        id=info.task,
        type=info.function,
        queue=info.queue,
        status=STATUS[state],
        state=state,
        priority=_priority(info),
        payload=_payload(info.spec),
        attempt=info.attempt,
        errors=info.errors,
        crashes=info.crashes,
        worker_id=info.worker,
        enqueued_ms=info.enqueued_ms,
        since_ms=info.since_ms,
        due_ms=info.due_ms,
        capabilities=_capabilities(info.spec),
    )


def worker_row(info: WorkerInfo) -> WorkerRow:
    """A worker as a row of ``workers``."""
    return WorkerRow(
        id=info.worker,
        name=info.name,
        status="offline" if info.gone_ms else info.state,
        capabilities=info.capabilities,
        current_load=info.tasks,
        max_load=info.load + info.prefetch,
        load_factor=_load_factor(info),
        model_name=info.model,
        queues=info.queues,
        registered_ms=info.registered_ms,
        last_seen_ms=info.seen_ms,
        failures_in_row=info.failures_in_row,
    )


def _result_row(info: TaskInfo) -> ResultRow:
    return ResultRow(
        task_id=info.task,
        type=info.function,
        queue=info.queue,
        status=STATUS[STATE_NAMES[info.state]],
        attempt=info.attempt,
        worker_id=info.worker,
        result=read_result(info.result),
        error=info.error or info.kind,
        enqueued_ms=info.enqueued_ms,
        ended_ms=info.since_ms,
    )


def read_result(result: bytes) -> Any:  # noqa: ANN401
    """What a task came to; bytes that are no msgpack stay bytes."""
    try:
        return msgspec.msgpack.decode(result) if result else None
    except msgspec.DecodeError:
        return result


def _payload(spec: Task | None) -> Any:  # noqa: ANN401
    try:
        args, kwargs = unpack_arguments(b"" if spec is None else spec.payload)
    except TaskPayloadError:
        return None
    return args[0] if len(args) == 1 and not kwargs else None


def _capabilities(spec: Task | None) -> tuple[str, ...]:
    options = None if spec is None else spec.options
    return () if options is None else (options.needs or NO_NEEDS).capabilities


def _priority(info: TaskInfo) -> int:
    return 0 if info.spec is None else info.spec.priority


def _load_factor(info: WorkerInfo) -> float:
    return info.tasks / max(info.load + info.prefetch, 1)


def _mean(total: int, count: int) -> float:
    return total / count if count else 0.0


def _success(info: WorkerInfo) -> float:
    ended = info.done + info.failed + info.crashed
    return info.done / ended if ended else 1.0


def _checked(limit: int) -> int:
    given: object = limit
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InvalidArgumentError(f"limit is a number of rows from 1, not {limit!r}")
    return limit
