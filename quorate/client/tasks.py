"""``db.tasks``: queues of tasks, for those who enqueue, wait, look on and tend.

    task = await db.tasks.enqueue("send-mail", args=("a@example.org",), queue="mail", retries=5)
    (ended,) = await db.tasks.wait([task], timeout=60)

Here a function is a name, and what it is called with are bytes, or values that msgpack has. Typed
functions, and awaiting what they return, are in ``task_app``; running them in ``task_worker``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, Unpack

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_commands import (
    Assign,
    Assignment,
    Cancel,
    Changed,
    Claimed,
    Configure,
    Enqueue,
    Enqueued,
    Pause,
    Purge,
    Purged,
    Requeue,
    Settle,
    Strategy,
)
from quorate.base.task_protocol import Answers, Results
from quorate.base.task_queries import (
    Holdings,
    ListQueues,
    ListTasks,
    ListWorkers,
    Peek,
    QueueInfo,
    System,
    SystemInfo,
    TaskEvent,
    TaskInfo,
    TaskQuery,
    WorkerHoldings,
    WorkerInfo,
)
from quorate.base.task_specs import (
    CANCELLED,
    DEAD,
    DONE,
    STATE_NAMES,
    TASK_MACHINE,
    Task,
)
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.leases import LeasePlans
from quorate.client.settings import check_timeout
from quorate.client.task_payloads import pack_arguments
from quorate.client.task_settings import KeyedSettings, check_name, make_task
from quorate.client.task_waiting import UNKNOWN, Endings
from quorate.client.task_watch import TaskWatch
from quorate.client.watching import Watches
from quorate.errors import (
    InvalidArgumentError,
    LimitExceededError,
    QuorateError,
    TaskNotFoundError,
    TaskPendingError,
)

_ENDS: Final = {DONE: "done", DEAD: "dead", CANCELLED: "cancelled"}
#: States by which tasks are listed.
State = Literal["scheduled", "blocked", "ready", "assigned", "running", "done", "dead", "cancelled"]


class TaskPlans(LeasePlans, Protocol):
    """What tasks and workers need of a ``Database``."""

    @property
    def seen(self) -> int: ...


class Tasks:
    """See the module. *plans*: the handle that it belongs to.

    All raise ``InvalidArgumentError`` for what cannot be, before anything is sent, and otherwise as
    any read or write does. *timeout*: seconds of the call; None: the handle's.
    """

    def __init__(self, plans: TaskPlans) -> None:
        self._plans = plans
        self._endings = Endings(self)
        self._command_codec: MachineCodec | None = None
        self._query_codec: MachineCodec | None = None

    # --- enqueueing -----------------------------------------------------------------------------

    async def enqueue(
        self,
        function: str,
        payload: bytes = b"",
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        call_timeout: float | None = None,
        **settings: Unpack[KeyedSettings],
    ) -> int:
        """Enqueue a task, and have its id. It is durable on a majority when this returns. *args*
        and *kwargs*: of the function, in place of a *payload* that is packed already.
        *call_timeout*: of this call.

        Raises:
            QueueFullError: the queue has as many tasks as it may.
            TaskPayloadError: *args* or *kwargs* cannot be packed.
        """
        if args or kwargs:
            if payload:
                raise InvalidArgumentError("a task has a payload, or args and kwargs")
            payload = pack_arguments(args, kwargs or {}, f"task {function!r}")
        return await self.enqueue_one(make_task(function, payload, settings), call_timeout)

    async def enqueue_one(self, task: Task, call_timeout: float | None = None) -> int:
        """Enqueue a task that is made already."""
        result: Enqueued = await self.run(Enqueue((task,)), call_timeout)
        return result.tasks[0]

    async def enqueue_many(
        self, tasks: Iterable[Task], *, call_timeout: float | None = None
    ) -> Enqueued:
        """Enqueue all of *tasks*, or none of them; ``task(...)`` makes one. Up to
        ``TASK_BATCH_MAX``. ``Enqueued.tasks`` are their ids; ``known``: the places of those that
        are not new, as their unique key was held.

        Raises:
            LimitExceededError: they are too many for one command.
            QueueFullError: one of the queues has not room for all; nothing was enqueued.
        """
        given = tuple(tasks)
        if len(given) > TASK_BATCH_MAX:
            raise LimitExceededError(f"{len(given)} tasks; up to {TASK_BATCH_MAX} go in at once")
        if not given:
            return Enqueued(())
        result: Enqueued = await self.run(Enqueue(given), call_timeout)
        return result

    @staticmethod
    def task(
        function: str,
        payload: bytes = b"",
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **settings: Unpack[KeyedSettings],
    ) -> Task:
        """A task for ``enqueue_many``; arguments as for ``enqueue``."""
        if args or kwargs:
            if payload:
                raise InvalidArgumentError("a task has a payload, or args and kwargs")
            payload = pack_arguments(args, kwargs or {}, f"task {function!r}")
        return make_task(function, payload, settings)

    # --- waiting --------------------------------------------------------------------------------

    async def wait(
        self, tasks: Iterable[int], *, timeout: float | None = None
    ) -> tuple[TaskEvent, ...]:
        """Wait until all of *tasks* have ended, and how, in their order: ``what`` is "done" (then
        ``result`` is there), "dead", "cancelled", or "unknown": it never was, or is forgotten.
        Nothing is polled; failovers are no matter. *timeout*: seconds in all; None: ever.

        Raises:
            TaskPendingError: not all had ended by then; they go on.
        """
        given = [_check_id(task) for task in tasks]
        pending = [(task, self._endings.expect(task)) for task in given]
        try:
            async with asyncio.timeout(None if timeout is None else check_timeout(timeout)):
                return tuple([await ending for _, ending in pending])
        except TimeoutError as error:
            if isinstance(error, QuorateError):
                raise
            left = [task for task, ending in pending if ending.cancelled() or not ending.done()]
            if not left:  # the last one ended in the very turn in which time was up
                return tuple(ending.result() for _, ending in pending)
            raise TaskPendingError(
                f"{len(left)} of {len(pending)} tasks, {left[0]} among them, had not ended within "
                f"{timeout:g} s"
            ) from None
        finally:
            for task, ending in pending:
                self._endings.forget(task, ending)

    async def wait_one(self, task: int) -> TaskEvent:
        """``wait`` for one, for ever: half the work."""
        ending = self._endings.expect(_check_id(task))
        try:
            return await ending
        finally:
            if ending.cancelled():
                self._endings.forget(task, ending)

    async def look(self, task: int) -> TaskEvent | None:
        """How *task* ended, as ``wait`` says it; None: it has not ended."""
        try:
            info = await self.info(task)
        except TaskNotFoundError:
            return TaskEvent(UNKNOWN, task, 0, "", "", 0, 0, 0)
        what = _ENDS.get(info.state)
        if what is None:
            return None
        return TaskEvent(
            what, task, info.state, info.function, info.queue, info.attempt, info.worker,
            info.since_ms, info.kind, info.error, info.result,
        )  # fmt: skip

    def watch(self, queue: str = "") -> TaskWatch:
        """``async for event in db.tasks.watch("mail")``: what happens to the tasks of a queue; of
        all queues and workers without one. See ``TaskWatch``."""
        return TaskWatch(self.watches, queue)

    # --- looking --------------------------------------------------------------------------------

    async def info(self, task: int, *, timeout: float | None = None) -> TaskInfo:
        """One task as it stands.

        Raises:
            TaskNotFoundError: there is no such task, or it is forgotten.
        """
        found: TaskInfo = await self.ask(TaskQuery(_check_id(task)), timeout)
        return found

    async def list(
        self,
        state: State | None = None,
        queue: str = "",
        *,
        after: int = 0,
        page: int = 100,
        timeout: float | None = None,
    ) -> AsyncIterator[TaskInfo]:
        """``async for info in db.tasks.list("dead", "mail")``: tasks by id, of one *state* (None:
        all that have not ended), of one *queue* ("": of all), with an id above *after*. Each *page*
        is as of one moment."""
        number = 0 if state is None else STATE_NAMES.index(check_state(state))
        while True:
            found = await self.ask(ListTasks(number, queue, after, page), timeout)
            for info in found.tasks:
                yield info
            after = found.next
            if not after:
                return

    async def peek(
        self, queue: str = "default", limit: int = 1, *, timeout: float | None = None
    ) -> tuple[TaskInfo, ...]:
        """The next ready tasks of a queue, which stay where they are."""
        found: tuple[TaskInfo, ...] = (await self.ask(Peek(queue, limit), timeout)).tasks
        return found

    async def queues(self, *, timeout: float | None = None) -> tuple[QueueInfo, ...]:
        """All queues, by name: what is in them, their rules, and what has happened in them."""
        found: tuple[QueueInfo, ...] = ()
        while True:
            page = await self.ask(ListQueues(found[-1].name if found else ""), timeout)
            found += page.queues
            if not page.more:
                return found

    async def queue(self, name: str, *, timeout: float | None = None) -> QueueInfo | None:
        """One queue; None: nothing was ever enqueued there, and it has no rules."""
        for info in await self.queues(timeout=timeout):
            if info.name == name:
                return info
        return None

    async def workers(
        self, *, gone: bool = False, timeout: float | None = None
    ) -> tuple[WorkerInfo, ...]:
        """All workers, by id. *gone*: also those that are there no more, as far as is known."""
        found: tuple[WorkerInfo, ...] = ()
        while True:
            after = found[-1].worker if found else 0
            page = await self.ask(ListWorkers(after=after, gone=gone), timeout)
            found += page.workers
            if not page.more:
                return found

    async def holdings(self, worker: int, *, timeout: float | None = None) -> WorkerHoldings:
        """What a worker has.

        Raises:
            WorkerNotFoundError: there is no such worker.
        """
        found: WorkerHoldings = await self.ask(Holdings(worker), timeout)
        return found

    async def system(self, *, timeout: float | None = None) -> SystemInfo:
        """Everything together: tasks by state, workers, load, rules."""
        found: SystemInfo = await self.ask(System(), timeout)
        return found

    # --- tending --------------------------------------------------------------------------------

    async def cancel(
        self,
        *tasks: int,
        grace: float = 30.0,
        waiting_only: bool = False,
        timeout: float | None = None,
    ) -> tuple[int, ...]:
        """Cancel tasks: what has not begun never will; what runs is told to stop, and has *grace*
        seconds to say how it ended; with *waiting_only* it is left alone. Returns those that this
        is true of: the others had ended."""
        given = tuple(_check_id(task) for task in tasks)
        command = Cancel(given, round(grace * 1000), waiting_only)
        changed: Changed = await self.run(command, timeout)
        return changed.tasks

    async def requeue(self, *tasks: int, timeout: float | None = None) -> tuple[int, ...]:
        """Take tasks out of the dead-letter queue: their errors count from 0, attempts go on.
        Returns those that were there."""
        changed: Changed = await self.run(Requeue(tuple(map(_check_id, tasks))), timeout)
        return changed.tasks

    async def assign(
        self, task: int, worker: int = 0, *, timeout: float | None = None
    ) -> Assignment:
        """Give a task to *worker*, or (0) to any but the one that has it: out of its turn, but
        within what it needs, what the worker takes and the limits of all and of its queue. Whoever
        had it has it no more, and nothing is held against it.

        Raises:
            NoAvailableWorkerError: the worker has not what the task needs, or no room; or a limit
                stands in the way. Nothing has changed.
            TaskStateError: it waits for something else, is to stop, has ended, or is that worker's.
            TaskNotFoundError, WorkerNotFoundError: there is no such one.
        """
        command = Assign(_check_id(task), _check_id(worker, "worker") if worker else 0)
        claimed: Claimed = await self.run(command, timeout)
        return claimed.tasks[0]

    async def purge(
        self,
        state: Literal["done", "cancelled", "dead", "ready", "scheduled"],
        queue: str = "",
        *,
        older: float = 0.0,
        timeout: float | None = None,
    ) -> int:
        """Forget tasks that have been in *state* for *older* seconds, of one *queue* ("": of all);
        returns how many. "ready" and "scheduled" are tasks that wait, and will never be run.

        It goes by pages of up to 1,000; if it fails midway, what was forgotten is.
        """
        check_state(state)
        count = after = 0
        while True:
            command = Purge(state, queue, round(older * 1000), TASK_BATCH_MAX, after)
            purged: Purged = await self.run(command, timeout)
            count, after = count + purged.count, purged.next
            if not after:
                return count

    async def pause(self, queue: str, *, timeout: float | None = None) -> None:
        """Hand out nothing of *queue* until ``resume``; its other rules stay."""
        await self.run(Pause(check_name("queue", queue)), timeout)

    async def resume(self, queue: str, *, timeout: float | None = None) -> None:
        """Hand out tasks of *queue* again."""
        await self.run(Pause(check_name("queue", queue), paused=False), timeout)

    async def configure(
        self,
        queue: str,
        *,
        paused: bool = False,
        running_max: int = 0,
        key_running_max: int = 0,
        rate: int = 0,
        key_rate: int = 0,
        rate_per: float = 1.0,
        ageing: float = 0.0,
        depth_max: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Rules of a queue from now on, all of them: what is not named is as by default. *paused*:
        nothing of it is handed out. *running_max*: as many at once; *key_running_max*: as many of
        one key; *rate*: so many begin in *rate_per* seconds; *key_rate*: of one key. *ageing*: who
        waits so many seconds is served as if one priority higher. *depth_max*: so many that have
        not ended, more are refused. 0: no limit."""
        command = Configure(
            queue, paused, running_max, key_running_max, rate, key_rate, round(rate_per * 1000),
            round(ageing * 1000), depth_max,
        )  # fmt: skip
        await self.run(command, timeout)

    async def settle(
        self,
        *,
        strategy: Strategy = "least-loaded",
        running_max: int = 0,
        load_max: float = 1.0,
        capabilities: bool = True,
        affinity: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Rules for all queues and workers from now on. *strategy*: how a worker is chosen.
        *running_max*: as many tasks at once in all, 0: no limit. *load_max*: nothing for a worker
        that has more than this part of what it takes. *capabilities*, *affinity*: whether what
        tasks need and prefer counts."""
        command = Settle(strategy, running_max, round(load_max * 1000), capabilities, affinity)
        await self.run(command, timeout)

    # --- for handles and workers ----------------------------------------------------------------

    @property
    def plans(self) -> TaskPlans:
        """The handle that it belongs to."""
        return self._plans

    @property
    def watches(self) -> Watches:
        """For what waits and watches here."""
        return self._plans.watches

    @property
    def endings(self) -> Endings:
        """What is waited for."""
        return self._endings

    def run(self, command: object, timeout: float | None = None) -> AnyFuture:
        """A command, planned at once: those of one turn of the loop leave in one frame."""
        codec = self._command_codec
        if codec is None:
            codec = self._command_codec = self._plans.codec(TASK_MACHINE, Results)
        wait_s = self._plans.timeout if timeout is None else check_timeout(timeout)
        return self._plans.submit(codec, command, wait_s)

    def ask(self, query: object, timeout: float | None = None) -> AnyFuture:
        """A query, likewise."""
        codec = self._query_codec
        if codec is None:
            codec = self._query_codec = self._plans.codec(TASK_MACHINE, Answers)
        wait_s = self._plans.timeout if timeout is None else check_timeout(timeout)
        return self._plans.ask(codec, query, wait_s)


def _check_id(task: int, what: str = "task") -> int:
    given: object = task
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given < 2**63:
        return task
    raise InvalidArgumentError(f"a {what}'s id is a number from 1, not {task!r}")


def check_state(state: str) -> str:
    """*state* if it is the name of one.

    Raises:
        InvalidArgumentError: it is not.
    """
    if state in STATE_NAMES[1:]:
        return state
    raise InvalidArgumentError(f"a state is one of {', '.join(STATE_NAMES[1:])}, not {state!r}")
