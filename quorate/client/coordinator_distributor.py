"""Who runs what, and how it ended: ``TaskDistributor``.

Handing out is the cluster's: a task that a worker has room for is that worker's in the log entry
that enqueues it. So ``assign_next`` makes no assignment; it tells of the next one that was made.
"""

from __future__ import annotations

from typing import Any

from quorate.base.limits import TASK_ERROR_MAX, TASK_NAME_MAX
from quorate.base.task_commands import (
    Begin,
    Complete,
    Done,
    Fail,
    Failed,
    GiveBack,
    Held,
    Settlement,
)
from quorate.base.task_specs import CANCELLED, DONE, STATE_NAMES
from quorate.client.coordinator_config import CoordinatorConfig
from quorate.client.coordinator_inbox import Inbox, TaskAssignment, made
from quorate.client.coordinator_rows import TimeoutRow
from quorate.client.coordinator_tables import Views, read_result
from quorate.client.database import Database
from quorate.client.task_app import failure_of
from quorate.client.task_payloads import pack_result
from quorate.errors import TaskPendingError, TaskStateError

#: (worker, task, attempt)
_Held = tuple[int, int, int]


class TaskDistributor:
    """See the module. Made by ``Coordinator``.

    What takes a task takes its ``TaskAssignment``, or its id: then the attempt is meant that this
    coordinator heard of last. What is said of an attempt counts only while it is the present one.
    """

    def __init__(self, db: Database, config: CoordinatorConfig, inbox: Inbox) -> None:
        self._db = db
        self._config = config
        self._inbox = inbox

    # --- assignments ----------------------------------------------------------------------------

    async def assign_next(self, timeout: float = 0.0) -> TaskAssignment | None:
        """The next task that a worker of this coordinator has got, each attempt once. None: there
        is none, or none came within *timeout* seconds."""
        return await self._inbox.next(timeout) if timeout else self._inbox.take()

    async def assign(self, task_id: int, worker_id: int) -> TaskAssignment:
        """Give a task to a worker, out of its turn; if another one has it, that one has it no more.

        Raises:
            NoAvailableWorkerError: the worker has not what the task needs, or no room for it.
            TaskStateError: the task waits for something else, or has ended.
            TaskNotFoundError, WorkerNotFoundError: there is no such one.
        """
        raw = await self._db.tasks.assign(task_id, worker_id)
        if not worker_id:
            worker_id = (await self._db.tasks.info(task_id)).worker
        return made(worker_id, raw)

    async def reassign_task(self, task: TaskAssignment | int, worker_id: int = 0) -> TaskAssignment:
        """Take a task from the worker that has it, and give it to *worker_id*, or (0) to any other
        one that may. Nothing is held against it, and what the old worker says of it counts no more.
        If there is no other one, nothing changes.

        Raises:
            NoAvailableWorkerError: there is none. The rest: as ``assign``.
        """
        return await self.assign(task if isinstance(task, int) else task.task_id, worker_id)

    # --- attempts -------------------------------------------------------------------------------

    async def start_task(self, task: TaskAssignment | int) -> TaskAssignment:
        """Its worker begins; its time runs from now on. Harmless if it has begun.

        Raises:
            TaskStateError: the attempt is not the present one any more: do not run it.
        """
        given = self._given(task)
        if not given.running:
            await self.begin((given.worker_id, given.task_id, given.attempt))
            given = self._inbox.begun(given)
        return given

    async def complete_task(
        self,
        task: TaskAssignment | int,
        ok: bool = True,  # noqa: FBT001, FBT002  as the guide has it
        result: Any = None,  # noqa: ANN401
        error: str | BaseException = "",
    ) -> None:
        """How the attempt ended: *ok*, with *result*; or not, with *error*, and it is tried again,
        or dead, as its retry policy says. The kind of an error is the name of its class; of a
        text, what stands before the first colon.

        Raises:
            TaskStateError: it was not started, or is not the present attempt any more; nothing was
                done.
        """
        given = self._given(task)
        await self.end(
            (given.worker_id, given.task_id, given.attempt), ok=ok, result=result, error=error
        )

    async def cancel_task(self, task_id: int, *, grace_ms: int = 30_000) -> bool:
        """Cancel a task: what has not begun never will; the worker of what runs is told to stop
        (``Coordinator.on_stop``), and has *grace_ms* to say how it ended. False: it had ended."""
        return bool(await self._db.tasks.cancel(task_id, grace=grace_ms / 1000))

    async def get_result(self, task_id: int, timeout: float | None = 0.0) -> Any:  # noqa: ANN401
        """What a task came to. *timeout*: seconds to wait for its end; None: any time.

        Raises:
            TaskPendingError: it has not ended by then.
            TaskFailedError: it is dead; TaskTimeoutError: as it was not in time.
            TaskCancelledError: it was cancelled. TaskNotFoundError: it is not known.
        """
        event = await self._db.tasks.look(task_id)
        if event is None and timeout == 0:
            raise TaskPendingError(f"task {task_id} has not ended yet")
        if event is None:
            (event,) = await self._db.tasks.wait([task_id], timeout=timeout)
        if event.state == DONE:
            return read_result(event.result)
        raise failure_of(event)

    async def check_timeouts(self) -> list[TimeoutRow]:
        """Running tasks whose time is up before the next look. The log ends them at that moment
        by itself, whoever looks: see ``v_timeout_candidates``."""
        return await Views(self._db, self._config).v_timeout_candidates()

    # --- for attempts by their numbers ----------------------------------------------------------

    async def begin(self, held: _Held) -> None:
        """As ``start_task``."""
        worker, task, attempt = held
        await self._settle(held, Begin(worker, (Held(task, attempt),)))

    async def end(
        self,
        held: _Held,
        *,
        ok: bool,
        result: Any = None,  # noqa: ANN401
        error: str | BaseException = "",
    ) -> None:
        """As ``complete_task``."""
        worker, task, attempt = held
        command: Complete | Fail
        if ok:
            packed = pack_result(result, f"task {task}")
            command = Complete(worker, (Done(task, attempt, packed),))
        else:
            kind, text = _told(error)
            # If it was told to stop, that is what it did.
            command = Fail(worker, (Failed(task, attempt, kind, text, cancelled=True),))
        await self._settle(held, command)

    async def give_back(self, held: _Held) -> None:
        """The worker will not run it after all: it is ready again, in its old place."""
        worker, task, attempt = held
        await self._settle(held, GiveBack(worker, (Held(task, attempt),)))

    async def _settle(self, held: _Held, command: Begin | Complete | Fail | GiveBack) -> None:
        worker, task, attempt = held
        if not worker:
            raise TaskStateError(f"no worker has task {task}")
        settled: Settlement = await self._db.tasks.run(command)
        known = self._inbox.find(task, attempt)
        for stale in settled.stale:
            mine = (stale.attempt, stale.worker) == (attempt, worker)
            if known is not None and (not mine or stale.state in (DONE, CANCELLED)):
                self._inbox.over(known)
            who = f", at attempt {stale.attempt} by worker {stale.worker}" if stale.attempt else ""
            raise TaskStateError(
                f"attempt {attempt} by worker {worker} cannot take that step with task {task}: it "
                f"is {STATE_NAMES[stale.state]}{who}"
            )
        if known is not None and not isinstance(command, Begin):
            self._inbox.over(known)

    def _given(self, task: TaskAssignment | int) -> TaskAssignment:
        return self._inbox.known(task) if isinstance(task, int) else task


def _told(error: str | BaseException) -> tuple[str, str]:
    """Kind and text of an error."""
    if isinstance(error, BaseException):
        kind = type(error).__name__
        return kind[:TASK_NAME_MAX], f"{kind}: {error}"[:TASK_ERROR_MAX]
    kind, colon, _ = error.partition(":")
    return (kind if colon else "")[:TASK_NAME_MAX], error[:TASK_ERROR_MAX]
