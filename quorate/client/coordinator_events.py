"""What happens to tasks, workers and workflows, under the names of the coordination guide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Self

import msgspec

from quorate.base.task_queries import TaskEvent, WorkerEvent
from quorate.client.task_watch import Event, TaskWatch
from quorate.client.tasks import Tasks

#: By the cluster's words. What is in none of these is told by ``db.tasks.watch`` alone.
TASK_EVENTS: Final = {
    "enqueued": "task:enqueued",
    "scheduled": "task:enqueued",
    "blocked": "task:enqueued",
    "assigned": "task:assigned",
    "started": "task:started",
    "done": "task:completed",
    "failed": "task:failed",
    "crashed": "task:failed",
    "dead": "task:failed",
    "timeout": "task:timeout",
}
WORKER_EVENTS: Final = {"registered": "worker:registered", "gone": "worker:offline"}
WORKFLOW_EVENTS: Final = {
    "started": "workflow:started",
    "done": "workflow:completed",
    "failed": "workflow:failed",
    "compensated": "workflow:failed",
    "cancelled": "workflow:failed",
}


class CoordinatorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """*name*: such as "task:completed". *id*: of the task, worker or workflow. *final*: of a task
    that failed: there is no further attempt. *at_ms*: cluster time."""

    name: str
    id: int
    attempt: int = 0
    worker_id: int = 0
    error: str = ""
    final: bool = False
    at_ms: int = 0


class CoordinatorEvents:
    """Made by ``Coordinator.events``: ``async with`` begins it, ``async for`` gives events, each
    once, in the order of the log. *gaps*: how often a lost connection left some out."""

    def __init__(self, tasks: Tasks) -> None:
        self._watch: TaskWatch = tasks.watch()

    @property
    def gaps(self) -> int:
        """See the class."""
        return self._watch.gaps

    async def __aenter__(self) -> Self:
        await self._watch.begun()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._watch.close()

    async def __aiter__(self) -> AsyncIterator[CoordinatorEvent]:
        async for event in self._watch:
            shown = shown_as(event)
            if shown is not None:
                yield shown


def shown_as(event: Event) -> CoordinatorEvent | None:
    """An event under the guide's name; None: it has none there."""
    if isinstance(event, TaskEvent):
        name = TASK_EVENTS.get(event.what)
        if name is None:
            return None
        late = event.what == "dead" and event.kind == "timeout"
        return CoordinatorEvent(
            name="task:timeout" if late else name,
            id=event.task,
            attempt=event.attempt,
            worker_id=event.worker,
            error=event.error or event.kind,
            final=event.what == "dead",
            at_ms=event.at_ms,
        )
    if isinstance(event, WorkerEvent):
        name = WORKER_EVENTS.get(event.what)
        return (
            None
            if name is None
            else CoordinatorEvent(
                name=name, id=event.worker, worker_id=event.worker, at_ms=event.at_ms
            )
        )
    name = WORKFLOW_EVENTS.get(event.what)
    return (
        None if name is None else CoordinatorEvent(name=name, id=event.workflow, at_ms=event.at_ms)
    )
