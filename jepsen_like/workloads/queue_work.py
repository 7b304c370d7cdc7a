"""What workers of the queue workload run, and what is written down of it: each beginning and end
of code that really ran, whoever the cluster believes has the task; and what watchers were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from typing import Any, Final

import msgspec

from quorate.base.task_queries import TaskEvent, WatchQueue, WorkerEvent
from quorate.base.task_specs import TASK_MACHINE
from quorate.base.workflow_commands import WorkflowEvent
from quorate.client import operations as ops
from quorate.client.database import Database
from quorate.client.task_app import App
from quorate.client.task_context import Completion
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


#: Takes a line of what code did.
Tell = Callable[[list[Any]], None]


def app(tell: Tell, *, hasty: bool = False) -> App:
    """Of one worker. *tell*: takes what code does, as it happens: ["begin", task, attempt, worker,
    value], or ["end", task, attempt, worker, how]. *hasty*: a bug on purpose, for runs that must be
    found invalid: a task is said to be done at once, and runs afterwards."""
    made = App("queue")
    later: set[asyncio.Task[None]] = set()

    async def run(who: list[Any], value: int, course: Course) -> None:
        tell(["begin", *who, value])
        how = "stopped"
        try:
            fate, seconds = course[min(who[1], len(course)) - 1]
            await live(fate, seconds)
            how = "ok"
        except (FailedError, TaskGiveUpError):
            how = "failed"
            if not hasty:
                raise
        finally:
            tell(["end", *who, how])

    @made.task(name=FUNCTION)
    async def work(value: int, course: list[list[Any]], writes: str = "") -> Any:  # noqa: ANN401
        context = made.context()
        running = run([context.id, context.attempt, context.worker_id], value, course)
        if hasty:
            task = asyncio.get_running_loop().create_task(running)
            later.add(task)
            task.add_done_callback(later.discard)
        else:
            await running
        result = [value, context.attempt]
        if writes:  # a key, in the transaction of the completion
            return Completion(result, [ops.put(writes, str(context.attempt))])
        return result

    return made


async def live(fate: str, seconds: float) -> None:
    """What an attempt comes to, after so many seconds."""
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
    """Watches all queues on one handle, and writes down what is told of some, *queues*. Parts have
    no gap: [what, task, attempt, worker, queue, time in ms, kind]."""

    def __init__(
        self,
        database: Database,
        new_part: Callable[[], list[list[Any]]],
        queues: Container[str],
    ) -> None:
        self._queues = queues
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
            if isinstance(each, TaskEvent) and each.queue in self._queues:
                who = [each.what, each.task, each.attempt, each.worker]
                self._part.append([*who, each.queue, each.at_ms, each.kind])

    def _on_failed(self, _error: QuorateError) -> None:
        """Somebody else watches, too."""
