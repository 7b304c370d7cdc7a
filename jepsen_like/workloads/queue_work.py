"""What workers of the queue workload run, and what is written down of it: each beginning and end
of code that really ran, whoever the cluster believes has the task; and what watchers were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from quorate.base.task_queries import TaskEvent, WatchQueue, WorkerEvent
from quorate.base.task_specs import TASK_MACHINE
from quorate.base.workflow_commands import WorkflowEvent
from quorate.client.database import Database
from quorate.client.task_app import App
from quorate.errors import QuorateError, TaskGiveUpError

#: Name of the one function; what a task of it does is in its arguments.
FUNCTION: Final = "queue.work"
#: Longer than any attempt may take.
HANG_S: Final = 30.0
#: Code that does not listen goes on for so long after it was told to stop.
DEAF_S: Final = 0.4

#: What an attempt comes to. "hang": nothing, until it is stopped; "deaf": the same, but then it
#: goes on for a while, and returns; "spoil": an error after which there is no further attempt.
FATES: Final = ("ok", "fail", "hang", "deaf", "spoil")

#: Fate and seconds, of one attempt after another; of further ones the last.
Course = Sequence[Sequence[Any]]

_decode_events: Final = msgspec.msgpack.Decoder(
    list[TaskEvent | WorkerEvent | WorkflowEvent]
).decode


class FailedError(Exception):
    """What a task raises whose fate it is to fail."""


class Acts:
    """What code did, in the order in which it happened: ["begin", task, attempt, worker, value],
    or ["end", task, attempt, worker, how]."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    def app(self) -> App:
        """Of one worker."""
        app = App("queue")

        @app.task(name=FUNCTION)
        async def work(value: int, course: list[list[Any]]) -> list[int]:
            context = app.context()
            who = [context.id, context.attempt, context.worker_id]
            self.told.append(["begin", *who, value])
            how = "stopped"
            try:
                fate, seconds = course[min(context.attempt, len(course)) - 1]
                await _live(fate, seconds)
                how = "ok"
            except (FailedError, TaskGiveUpError):
                how = "failed"
                raise
            finally:
                self.told.append(["end", *who, how])
            return [value, context.attempt]

        return app


async def _live(fate: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    if fate == "fail":
        raise FailedError("as it was to be")
    if fate == "spoil":
        raise TaskGiveUpError("as it was to be")
    if fate == "hang":
        await asyncio.sleep(HANG_S)
    if fate == "deaf":
        try:
            await asyncio.sleep(HANG_S)
        except asyncio.CancelledError:
            await asyncio.sleep(DEAF_S)


class Looker:
    """Watches all queues on one handle. *parts*: what was told, each part without a gap: [what,
    task, attempt, worker, queue, time in ms, kind]."""

    def __init__(self, database: Database, new_part: Callable[[], list[list[Any]]]) -> None:
        self._new_part = new_part
        self._part: list[list[Any]] = new_part()
        watches = database.tasks.watches
        self._watch = watches.open(
            TASK_MACHINE, WatchQueue, self._on_open, self._on_events, self._on_failed
        )

    def close(self) -> None:
        """No more."""
        self._watch.close()

    def _on_open(self, _index: int) -> None:
        self._part = self._new_part()

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for each in _decode_events(events):
            if isinstance(each, TaskEvent):
                who = [each.what, each.task, each.attempt, each.worker]
                self._part.append([*who, each.queue, each.at_ms, each.kind])

    def _on_failed(self, _error: QuorateError) -> None:
        """Somebody else watches, too."""
