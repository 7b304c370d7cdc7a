"""The side of an executor that lives on the loop of its handle: it enqueues, and hears of ends.

Everything here runs on that loop. What is learned goes to ``tell``, in order, and is acted on in a
thread of the executor's own: callbacks of futures may take their time, or call the handle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final, Protocol

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_commands import Enqueue, Enqueued
from quorate.base.task_queries import TaskEvent
from quorate.base.task_specs import Task
from quorate.client.codec import AnyFuture
from quorate.client.task_waiting import Ending, Endings
from quorate.client.tasks import Tasks
from quorate.errors import OutcomeUnknownError, QuorateError

#: Commands that enqueue, sent and not answered: a few windows of the client's. What is behind them
#: waits here, and can be cancelled without anybody being asked.
UNDER_WAY_MAX: Final = 1_000

#: Of a call: not sent; sent; durable, under an id; refused, or nobody knows; not to be sent.
UNSENT, SENT, ENQUEUED, REFUSED, DROPPED = range(5)

STARTED: Final = "started"
#: What is told of a call: that it has started, how it ended, or why nobody knows.
News = TaskEvent | QuorateError | str


class Call(Protocol):
    """What a future is here. *stage* may become ``DROPPED`` while it is ``UNSENT``."""

    stage: int
    task: int

    def take_spec(self) -> Task | None:
        """What is to be enqueued, once; None: nothing any more."""

    def now_enqueued(self, task: int) -> None:
        """It is durable."""


class Line:
    """See the module. *tell*: (call, news)."""

    def __init__(self, tasks: Tasks, tell: Callable[[Call, News], None]) -> None:
        self._tasks = tasks
        self._tell = tell
        self._endings = Endings(tasks, self._started)
        self._waiting: deque[Sequence[Call]] = deque()
        self._answers: dict[AnyFuture, None] = {}
        self._by_task: dict[int, list[Call]] = {}

    def send(self, batches: Iterable[Sequence[Call]]) -> None:
        """Enqueue these calls; those of one batch by one command."""
        self._waiting.extend(batches)
        while self._waiting and len(self._answers) < UNDER_WAY_MAX:
            self._send(self._waiting.popleft())

    def _send(self, batch: Sequence[Call]) -> None:
        calls: list[Call] = []
        specs: list[Task] = []
        for call in batch:
            spec = call.take_spec()
            if spec is not None:
                calls.append(call)
                specs.append(spec)
        if not calls:
            return
        try:
            answer = self._tasks.run(Enqueue(tuple(specs)))
        except QuorateError as error:
            self._refused(calls, error)
            return
        self._answers[answer] = None
        answer.add_done_callback(partial(self._answered, calls))

    def _answered(self, calls: Sequence[Call], answer: AnyFuture) -> None:
        self._answers.pop(answer, None)
        if answer.cancelled():
            self._refused(calls, OutcomeUnknownError("the handle was closed during the call"))
            return
        error = answer.exception()
        if isinstance(error, QuorateError):
            self._refused(calls, error)
        elif error is not None:
            self._refused(calls, OutcomeUnknownError(f"{type(error).__name__}: {error}"))
        else:
            result: Enqueued = answer.result()
            for call, task in zip(calls, result.tasks, strict=True):
                call.now_enqueued(task)
                self._by_task.setdefault(task, []).append(call)
                self._endings.expect(task).add_done_callback(partial(self._ended, call))
        self.send(())

    def _refused(self, calls: Sequence[Call], error: QuorateError) -> None:
        for call in calls:
            call.stage = REFUSED
            self._tell(call, error)

    def _started(self, event: TaskEvent) -> None:
        for call in self._by_task.get(event.task, ()):
            self._tell(call, STARTED)

    def _ended(self, call: Call, ending: Ending) -> None:
        calls = self._by_task.get(call.task, [])
        if call in calls:
            calls.remove(call)
            if not calls:
                del self._by_task[call.task]
        error = None if ending.cancelled() else ending.exception()
        if ending.cancelled() or error is not None:
            why = "nobody waits for it any more" if error is None else str(error)
            self._tell(call, unknown(call.task, why))
        else:
            self._tell(call, ending.result())

    async def cancel(self, calls: Iterable[Call]) -> frozenset[int]:
        """Cancel in the cluster what has not begun; the tasks that this is true of.

        Raises:
            QuorateError: as any write; some may be cancelled.
        """
        given = list(calls)
        while self._answers and any(each.stage == SENT for each in given):
            await asyncio.wait(list(self._answers), return_when=asyncio.FIRST_COMPLETED)
        ids = iter(dict.fromkeys(each.task for each in given if each.stage == ENQUEUED))
        found: set[int] = set()
        while part := tuple(islice(ids, TASK_BATCH_MAX)):
            found.update(await self._tasks.cancel(*part, waiting_only=True))
        return frozenset(found)

    async def settled(self) -> None:
        """Until all that there is to send is durable or was refused."""
        while self._answers or self._waiting:
            self.send(())
            if self._answers:
                await asyncio.wait(list(self._answers))


def unknown(task: int, why: str) -> OutcomeUnknownError:
    """How a task ends is not known here."""
    if not task:
        return OutcomeUnknownError(f"whether the task was enqueued is not known: {why}")
    return OutcomeUnknownError(
        f"task {task} was enqueued; how it ends is not known here: {why}. db.tasks.info({task}) "
        "says how it stands"
    )
