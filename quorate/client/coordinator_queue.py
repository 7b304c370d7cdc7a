"""The queue of a coordinator: ``TaskQueue``. It is one of the queues of the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_commands import Claim, Claimed, Register, Registered
from quorate.base.task_queries import TaskInfo
from quorate.base.task_specs import STATE_NAMES, Task
from quorate.client.coordinator_config import CoordinatorConfig, TaskRequest, as_given
from quorate.client.coordinator_distributor import TaskDistributor
from quorate.client.coordinator_inbox import Inbox, TaskAssignment
from quorate.client.coordinator_rows import TaskRow
from quorate.client.coordinator_tables import ROWS_DEFAULT, STATUS, task_row
from quorate.client.coordinator_workers import WorkerManager
from quorate.client.database import Database
from quorate.client.leases import Lease
from quorate.client.tasks import State
from quorate.client.workflows import checked
from quorate.errors import (
    InvalidArgumentError,
    LimitExceededError,
    TaskStateError,
    WorkerNotFoundError,
)

Status = Literal["pending", "assigned", "running", "completed", "failed", "cancelled"]

#: What may become of a task by ``update_status``. What has ended stays so, but for a dead task,
#: which may be put into the queue again.
LEGAL: Final[Mapping[str, frozenset[str]]] = {
    "pending": frozenset({"assigned", "cancelled"}),
    "assigned": frozenset({"running", "pending", "cancelled"}),
    "running": frozenset({"completed", "failed", "pending", "cancelled"}),
    "dead": frozenset({"pending"}),
    "completed": frozenset(),
    "cancelled": frozenset(),
}


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """*pending*: ready, or waiting for a time or for others. *completed*, *dead*, *cancelled*:
    so far. *avg_wait_ms*: from being ready to the first begin."""

    pending: int
    assigned: int
    running: int
    completed: int
    dead: int
    cancelled: int
    avg_wait_ms: float


class TaskQueue:
    """See the module. Made by ``Coordinator``. *check_open*: raises if it takes no more tasks."""

    def __init__(
        self,
        db: Database,
        config: CoordinatorConfig,
        inbox: Inbox,
        workers: WorkerManager,
        distributor: TaskDistributor,
        check_open: Callable[[], None],
    ) -> None:
        self._db = db
        self._config = config
        self._inbox = inbox
        self._workers = workers
        self._distributor = distributor
        self._check_open = check_open
        self._registering = asyncio.Lock()
        self._lease: Lease | None = None
        self._claimer = 0  # a worker of our own, for those who dequeue without one

    # --- in -------------------------------------------------------------------------------------

    async def enqueue(self, task: TaskRequest | Mapping[str, Any]) -> int:
        """A task; its id. It is durable on a majority when this returns.

        Raises:
            InvalidArgumentError: it cannot be so.
            TaskNotFoundError: the task beside which it is to run is not known.
            QueueFullError: the queue has as many tasks as it may.
        """
        return (await self.enqueue_batch([task]))[0]

    async def enqueue_batch(self, tasks: Iterable[TaskRequest | Mapping[str, Any]]) -> list[int]:
        """All of *tasks*, up to 1,000, or none of them; their ids in order."""
        self._check_open()
        given = [as_given(TaskRequest, each) for each in tasks]
        if len(given) > TASK_BATCH_MAX:
            raise LimitExceededError(f"{len(given)} tasks; up to {TASK_BATCH_MAX} go in at once")
        names = await self._workers.names(
            worker for each in given for worker in each.affinity.workers()
        )
        made: list[Task] = [each.task(self._config, names) for each in given]
        return list((await self._db.tasks.enqueue_many(made)).tasks)

    # --- out ------------------------------------------------------------------------------------

    async def dequeue(self, worker_id: int = 0) -> TaskAssignment | None:
        """The next task that *worker_id* may run (0: a worker of the coordinator's own, without
        capabilities), which has begun and is nobody else's: no two callers get the same. None:
        there is none. Say how it ended with ``complete_task``.

        Raises:
            WorkerNotFoundError: there is no such worker.
        """
        worker = worker_id or await self._own_worker()
        claimed: Claimed = await self._db.tasks.run(checked(lambda: Claim(worker, 1)))
        for raw in claimed.tasks:
            return self._inbox.note(worker, raw)
        return None

    async def _own_worker(self) -> int:
        async with self._registering:  # one for all who dequeue
            lease = self._lease
            if lease is None or not lease.alive:
                ttl = self._config.dead_worker_threshold_ms / 1000
                lease = await self._db.lease(ttl=ttl, name="coordinator").grant()
                registered: Registered = await self._db.tasks.run(
                    Register("coordinator", lease.id, 0, queues=(self._config.queue,))
                )
                self._lease, self._claimer = lease, registered.worker
                self._inbox.follow(self._claimer)
            return self._claimer

    async def close(self) -> None:
        """The worker of our own goes."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._inbox.leave(self._claimer)
            await lease.revoke()

    # --- looking --------------------------------------------------------------------------------

    async def peek(self, count: int = 1) -> list[TaskRow]:
        """The next tasks, which stay where they are: the highest priority first, then the
        oldest."""
        return [task_row(info) for info in await self._db.tasks.peek(self._config.queue, count)]

    async def get(self, task_id: int) -> TaskRow:
        """A task as it stands, also when it has ended.

        Raises:
            TaskNotFoundError: it never was, or is forgotten.
        """
        return task_row(await self._db.tasks.info(task_id))

    async def get_pending(self, limit: int = ROWS_DEFAULT) -> list[TaskRow]:
        """Tasks that no worker has yet, by id."""
        found: list[TaskRow] = []
        states: tuple[State, ...] = ("ready", "scheduled", "blocked")
        for state in states:
            found += await self._listed(state, limit)
        return sorted(found, key=lambda row: row.id)[:limit]

    async def get_running(self, limit: int = ROWS_DEFAULT) -> list[TaskRow]:
        """Tasks that run, by id."""
        return await self._listed("running", limit)

    async def _listed(self, state: State, limit: int) -> list[TaskRow]:
        found: list[TaskRow] = []
        async for info in self._db.tasks.list(state, self._config.queue):
            found.append(task_row(info))
            if len(found) >= limit:
                break
        return found

    async def get_stats(self) -> QueueStats:
        """Counts of this queue."""
        info = await self._db.tasks.queue(self._config.queue)
        if info is None:
            return QueueStats(
                pending=0, assigned=0, running=0, completed=0, dead=0, cancelled=0, avg_wait_ms=0.0
            )
        return QueueStats(
            pending=info.scheduled + info.blocked + info.ready,
            assigned=info.assigned,
            running=info.running,
            completed=info.done,
            dead=info.died,
            cancelled=info.cancelled,
            avg_wait_ms=info.waited_ms / info.begun if info.begun else 0.0,
        )

    # --- by hand --------------------------------------------------------------------------------

    async def update_status(
        self,
        task_id: int,
        status: Status,
        *,
        worker_id: int = 0,
        result: Any = None,  # noqa: ANN401
        error: str | BaseException = "",
    ) -> TaskRow:
        """Take a task to another status, if ``LEGAL`` has that step. *worker_id*: of "assigned".
        *result*: of "completed". *error*: of "failed", after which it is tried again, or dead, as
        its retry policy says. Nothing is done if somebody else takes a step in between.

        Raises:
            TaskStateError: that is no step from where it stands.
            TaskNotFoundError, WorkerNotFoundError, NoAvailableWorkerError: as they say.
        """
        info = await self._db.tasks.info(task_id)
        now = STATUS[STATE_NAMES[info.state]]
        if not any(status in to for to in LEGAL.values()):
            raise InvalidArgumentError(f"{status!r} is no status that a task can be taken to")
        if status not in LEGAL[now]:
            steps = ", ".join(sorted(LEGAL[now])) or "nothing else"
            raise TaskStateError(f"task {task_id} is {now}, and may become {steps}; not {status}")
        if status == "assigned" and not worker_id:
            raise WorkerNotFoundError("who is to have it? say worker_id")
        given = _seen(info)
        distributor = self._distributor
        steps_: dict[str, Callable[[], Awaitable[object]]] = {
            "assigned": lambda: distributor.assign(task_id, worker_id),
            "running": lambda: distributor.begin(given),
            "completed": lambda: distributor.end(given, ok=True, result=result),
            "failed": lambda: distributor.end(given, ok=False, error=error),
            "cancelled": lambda: distributor.cancel_task(task_id),
            "pending": lambda: (
                self._requeue(task_id) if now == "dead" else distributor.give_back(given)
            ),
        }
        await steps_[status]()
        return await self.get(task_id)

    async def _requeue(self, task_id: int) -> None:
        if not await self._db.tasks.requeue(task_id):
            raise TaskStateError(f"task {task_id} is not to be had from the dead letters any more")


def _seen(info: TaskInfo) -> tuple[int, int, int]:
    return info.worker, info.task, info.attempt
