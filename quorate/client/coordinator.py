"""A coordinator: workers, a queue, who runs what, workflows and shared state, under one handle.

    coordinator = Coordinator(db)
    await coordinator.start()
    worker = await coordinator.get_worker_manager().register({"name": "w1", "max_load": 2})
    task = await coordinator.submit_task({"type": "square", "payload": 7, "priority": "high"})
    given = await coordinator.get_distributor().assign_next(timeout=5)

All of it is a layer over ``db.tasks``, ``db.workflows`` and ``db.kv``: state is the cluster's, and
several coordinators may be at work on it. ``docs/coordinator.md`` maps the names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Self

import msgspec

from quorate.base.limits import LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN
from quorate.base.task_specs import CANCELLED, DEAD, DONE, NO_OPTIONS
from quorate.base.workflow_commands import WORKFLOW_STATE_NAMES
from quorate.client.coordinator_config import (
    CoordinatorConfig,
    TaskRequest,
    WorkflowDefinition,
    as_given,
    pack_payload,
)
from quorate.client.coordinator_distributor import TaskDistributor
from quorate.client.coordinator_events import CoordinatorEvents
from quorate.client.coordinator_inbox import Inbox, OnStop
from quorate.client.coordinator_queue import TaskQueue
from quorate.client.coordinator_rows import DeadLetterRow, HealthRow, PerformanceRow
from quorate.client.coordinator_state import DistributedState
from quorate.client.coordinator_tables import Tables, Views, health_of, read_result
from quorate.client.coordinator_workers import WorkerManager
from quorate.client.database import Database
from quorate.client.workflows import Run, Workflow
from quorate.errors import ClosedError, QuorateError

SHUTDOWN_TIMEOUT_S_DEFAULT: Final = 60.0  # for running tasks

_logger = logging.getLogger(__name__)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what was submitted has ended. *percent_complete*: 0.0 if there is nothing.
    *eta_ms*: until the rest has, as long as tasks take what they took so far; None: nothing can be
    said yet."""

    total: int
    pending: int
    assigned: int
    running: int
    completed: int
    dead: int
    cancelled: int
    percent_complete: float
    eta_ms: int | None


class WorkflowOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow that has ended. *id*: as it was given; *workflow*: the cluster's number of it.
    *status*: "done", "failed", "compensated" or "cancelled". *results*, *errors*: of its tasks, by
    their ids; a task that never began is in neither. *cause*: the task that failed first."""

    id: str
    workflow: int
    status: str
    results: dict[str, Any]
    errors: dict[str, str]
    cause: str


class Coordinator:
    """See the module. *db*: open as long as the coordinator is at work. *owns_db*: and closed by
    ``shutdown``. ``async with`` starts it, and shuts it down."""

    def __init__(
        self, db: Database, config: CoordinatorConfig | None = None, *, owns_db: bool = False
    ) -> None:
        self.config = config or CoordinatorConfig()
        self.db = db
        self._owns_db = owns_db
        self._inbox = Inbox(lambda: db.watches)
        self._workers = WorkerManager(db, self.config, self._inbox)
        self._distributor = TaskDistributor(db, self.config, self._inbox)
        self._queue = TaskQueue(
            db, self.config, self._inbox, self._workers, self._distributor, self._check_open
        )
        #: Values with versions that all coordinators share.
        self.state = DistributedState(db.kv)
        #: The tables and views of the guide.
        self.tables = Tables(db)
        self.views = Views(db, self.config)
        self._looks: list[asyncio.Task[None]] = []
        self._stale: set[int] = set()
        self._lease = 0
        self._closed = False

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Put the configuration in force, and begin to look. Harmless when started.

        Raises:
            ClosedError: it was shut down.
        """
        self._check_open()
        if self._looks:
            return self
        balancer = self.config.load_balancer
        looks = (
            (self.config.heartbeat_check_interval_ms, self._look_at_workers),
            (self.config.timeout_check_interval_ms, self._look_at_times),
        )
        loop = asyncio.get_running_loop()
        self._looks = [loop.create_task(_every(ms / 1000, look)) for ms, look in looks]
        try:
            await self.db.open()
            await self.db.tasks.settle(
                strategy=balancer.strategy,
                running_max=self.config.max_concurrent_tasks,
                load_max=balancer.max_load_threshold,
                capabilities=balancer.consider_capabilities,
                affinity=balancer.respect_affinity,
            )
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """Look no more. Tasks and workers go on; harmless when stopped."""
        looks, self._looks = self._looks, []
        for each in looks:
            each.cancel()
        for each in looks:
            with contextlib.suppress(asyncio.CancelledError):
                await each

    async def shutdown(self, timeout: float = SHUTDOWN_TIMEOUT_S_DEFAULT) -> bool:
        """Take no more tasks, wait up to *timeout* seconds for those that this coordinator's
        workers run, and go: what they have then is ready for others, and nothing is lost. False:
        not all had ended.

        Raises:
            QuorateError: the cluster could not be told; what it does not hear, it notices.
        """
        if self._closed:
            return True
        self._closed = True
        await self.stop()
        try:
            await self._workers.drain_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._inbox.quiet()
            ended = not self._inbox.running
            await self._workers.release_all()
            await self._queue.close()
            if self._lease:
                await self.db.revoke_lease(self._lease)
        finally:  # if nobody answers, leases end by themselves
            self._inbox.close()
            if self._owns_db:
                await self.db.close()
        return ended

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exception: object) -> None:
        await self.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the coordinator was shut down; make another one")

    def on_stop(self, hook: OnStop) -> None:
        """Have *hook* called when an attempt is to be stopped: with the assignment, and why. Not
        before it was heard of here. "cancelled": say how it ended; otherwise it is not the worker's
        any more."""
        self._inbox.on_stop.append(hook)

    # --- parts ----------------------------------------------------------------------------------

    def get_worker_manager(self) -> WorkerManager:
        """Its workers."""
        return self._workers

    def get_queue(self) -> TaskQueue:
        """Its queue."""
        return self._queue

    def get_distributor(self) -> TaskDistributor:
        """Who runs what."""
        return self._distributor

    # --- tasks ----------------------------------------------------------------------------------

    async def submit_task(self, task: TaskRequest | Mapping[str, Any]) -> int:
        """As ``TaskQueue.enqueue``."""
        return await self._queue.enqueue(task)

    async def submit_tasks(self, tasks: Iterable[TaskRequest | Mapping[str, Any]]) -> list[int]:
        """As ``TaskQueue.enqueue_batch``: all, or none."""
        return await self._queue.enqueue_batch(tasks)

    async def get_dead_letters(self, limit: int = 1_000) -> list[DeadLetterRow]:
        """Tasks that gave up, by id."""
        return await self.tables.dead_letter_queue(limit)

    async def retry_dead_letter(self, task_id: int) -> bool:
        """Put a dead task into the queue again, under its id: errors count from 0, attempts go on.
        False: it is not among the dead letters."""
        return bool(await self.db.tasks.requeue(task_id))

    async def purge_completed(self, older_than_ms: int = 0) -> int:
        """Forget the results of tasks that were done so long ago; returns how many."""
        return await self.db.tasks.purge("done", older=older_than_ms / 1000)

    # --- workflows ------------------------------------------------------------------------------

    async def submit_workflow(self, workflow: WorkflowDefinition | Mapping[str, Any]) -> Run:
        """Begin a workflow, whole or not at all.

        Raises:
            WorkflowError: it has a cycle, an id twice, or depends on one that is not there.
        """
        self._check_open()
        given = as_given(WorkflowDefinition, workflow)
        config = self.config
        flow = Workflow(
            given.name or given.id, fail_fast=given.fail_fast, at_once=given.max_concurrency
        )
        for task in given.tasks:
            retry = (task.retry_policy or config.default_retry_policy).retry()
            limit_ms = task.timeout_ms
            if limit_ms is None:
                limit_ms = config.default_task_timeout_ms
            flow.add(
                task.id,
                task.type,
                pack_payload(task.type, task.payload),
                after=task.depends_on,
                queue=config.queue,
                priority=task.priority,
                capabilities=task.capabilities,
                timeout=limit_ms / 1000 or None,
            )
            node = flow.nodes[-1]
            options = msgspec.structs.replace(node.task.options or NO_OPTIONS, retry=retry)
            spec = msgspec.structs.replace(node.task, options=options)
            flow.nodes[-1] = msgspec.structs.replace(node, task=spec)
        return await self.db.workflows.submit(flow)

    async def execute_workflow(
        self, workflow: WorkflowDefinition | Mapping[str, Any], *, timeout: float | None = None
    ) -> WorkflowOutcome:
        """Begin a workflow and wait for its end, whoever leads meanwhile; nothing is polled. If
        the wait breaks off, the workflow goes on.

        Raises:
            TaskPendingError: it had not ended within *timeout* seconds. The rest: as
                ``submit_workflow``.
        """
        given = as_given(WorkflowDefinition, workflow)
        run = await self.submit_workflow(given)
        info = await run.wait(timeout=timeout)
        nodes = await run.nodes()
        return WorkflowOutcome(
            id=given.id,
            workflow=run.id,
            status=WORKFLOW_STATE_NAMES[info.state],
            results={
                name: read_result(node.result) for name, node in nodes.items() if node.state == DONE
            },
            errors={
                name: node.error or node.error_kind
                for name, node in nodes.items()
                if node.state in (DEAD, CANCELLED) and (node.error or node.error_kind)
            },
            cause=info.cause,
        )

    # --- how it stands --------------------------------------------------------------------------

    async def get_health(self) -> HealthRow:
        """Workers and tasks by what they are, and the mean load."""
        (row,) = await self.views.v_system_health()
        return row

    async def get_performance_summary(self) -> list[PerformanceRow]:
        """How well workers do, by id."""
        return await self.views.v_worker_performance()

    async def get_progress(self) -> Progress:
        """How far all that was submitted is."""
        tasks = self.db.tasks
        system, queues, workers = await tasks.system(), await tasks.queues(), await tasks.workers()
        health = health_of(system, queues, workers)
        left = health.pending_tasks + health.assigned_tasks + health.running_tasks
        ended = health.completed_tasks + health.dead_tasks + health.cancelled_tasks
        total = left + ended
        ran_ms = sum(each.ran_ms for each in queues)
        at_once = min(system.capacity, system.running_max or system.capacity)
        return Progress(
            total=total,
            pending=health.pending_tasks,
            assigned=health.assigned_tasks,
            running=health.running_tasks,
            completed=health.completed_tasks,
            dead=health.dead_tasks,
            cancelled=health.cancelled_tasks,
            percent_complete=100 * ended / total if total else 0.0,
            eta_ms=eta_ms(left, at_once, ran_ms, health.completed_tasks),
        )

    def events(self) -> CoordinatorEvents:
        """``async with coordinator.events() as events: async for event in events``: what happens,
        as it happens."""
        return CoordinatorEvents(self.db.tasks)

    # --- looking --------------------------------------------------------------------------------

    async def _note_time(self) -> None:
        """Time stands still in a log to which nobody writes: the coordinator's own lease, renewed
        at each look, is an entry, and has a look show what time it is."""
        if not self._lease or not await self.db.renew_lease(self._lease):
            interval_s = self.config.heartbeat_check_interval_ms / 1000
            ttl = min(max(3 * interval_s, LEASE_TTL_MS_MIN / 1000), LEASE_TTL_MS_MAX / 1000)
            self._lease = await self.db.grant_lease(ttl, "coordinator")

    async def _look_at_workers(self) -> None:
        await self._note_time()
        stale = {row.id: row for row in await self.views.v_stale_workers(10_000)}
        for id_ in sorted(stale.keys() - self._stale):
            row = stale[id_]
            _logger.warning(
                "worker %d (%s) was silent for %d ms; it is dead after %d",
                id_, row.name, row.silence_ms, self.config.dead_worker_threshold_ms,
            )  # fmt: skip
        self._stale = set(stale)

    async def _look_at_times(self) -> None:
        for row in await self._distributor.check_timeouts():
            _logger.info(
                "task %d, attempt %d by worker %d: its time is up in %d ms",
                row.task_id, row.attempt, row.worker_id, row.left_ms,
            )  # fmt: skip


def eta_ms(left: int, at_once: int, ran_ms: int, completed: int) -> int | None:
    """How long *left* tasks take, *at_once* at a time, if each takes what *completed* ones took,
    *ran_ms* together; None: nothing can be said."""
    if not left:
        return 0
    if not at_once or not completed:
        return None
    return round(-(-left // at_once) * ran_ms / completed)


async def _every(seconds: float, look: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        with contextlib.suppress(QuorateError):  # the next look comes soon
            await look()
