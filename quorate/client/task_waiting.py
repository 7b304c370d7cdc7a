"""Waiting for tasks to end: those asked for in one turn of the loop share one watch.

A watch of tasks tells at its beginning which of them have ended, so a lost connection or a new
leader costs no ending: it is begun anew with those that are still waited for. A node that has just
begun to lead may not have come as far as the one before it; what it does not know is asked for by
a linearizable read before it is believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from quorate.base.limits import TASK_BATCH_MAX
from quorate.base.task_queries import TaskEvent, TaskWatch, WatchTasks
from quorate.base.task_specs import CANCELLED, DEAD, DONE, RUNNING, TASK_MACHINE
from quorate.client.watching import Subscription, Watches
from quorate.errors import QuorateError

UNKNOWN: Final = "unknown"
_ENDS: Final = frozenset((DONE, DEAD, CANCELLED))

Ending = asyncio.Future[TaskEvent]

_decode_events: Final = msgspec.msgpack.Decoder(list[TaskEvent]).decode


class Asks(Protocol):
    """What waiting needs of the handle of tasks."""

    @property
    def watches(self) -> Watches: ...
    def look(self, task: int) -> Coroutine[Any, Any, TaskEvent | None]:
        """How a task ended, by a linearizable read; None: it has not."""


class Endings:
    """All that is waited for on one handle. *started*: called for each task that runs, when it is
    known to; maybe more than once."""

    def __init__(self, asks: Asks, started: Callable[[TaskEvent], None] | None = None) -> None:
        self._asks = asks
        self.on_started = started
        self._waited: dict[int, list[Ending]] = {}  # by task
        self._new: dict[int, None] = {}
        self._planned = False
        self._looking: dict[int, asyncio.Task[None]] = {}
        self._watches: dict[_Watch, None] = {}
        self._sweep_planned = False

    def expect(self, task: int) -> Ending:
        """The future of the end of *task*; cancel it to wait no more."""
        loop = asyncio.get_running_loop()
        ending: Ending = loop.create_future()
        found = self._waited.get(task)
        if found is None:
            self._waited[task] = [ending]
            self._new[task] = None
            if not self._planned:
                self._planned = True
                loop.call_soon(self._begin)
        else:
            found.append(ending)
        return ending

    def forget(self, task: int, ending: Ending) -> None:
        """Nobody awaits *ending* any more; harmless if it has come."""
        found = self._waited.get(task)
        if found is not None and ending in found:
            found.remove(ending)
            if not found:
                del self._waited[task]
                self._new.pop(task, None)
                self.sweep_soon()
        ending.cancel()

    def _begin(self) -> None:
        self._planned = False
        rest = iter(list(self._new))
        self._new.clear()
        while part := tuple(islice(rest, TASK_BATCH_MAX)):
            try:
                self._watches[_Watch(self, self._asks.watches, part)] = None
            except QuorateError as error:
                for task in part:
                    self.fail(task, error)

    def sweep_soon(self) -> None:
        """Watches whose tasks nobody waits for are of no use any more."""
        if not self._sweep_planned:
            self._sweep_planned = True
            asyncio.get_running_loop().call_soon(self._sweep)

    def _sweep(self) -> None:
        self._sweep_planned = False
        for watch in [each for each in self._watches if not each.wanted()]:
            del self._watches[watch]
            watch.close()

    # --- from the watches -----------------------------------------------------------------------

    def waits_for(self, task: int) -> bool:
        """Whether anybody does."""
        return task in self._waited

    def ended(self, event: TaskEvent) -> None:
        """A task has ended, or is not known."""
        if event.what == UNKNOWN:
            if event.task in self._waited and event.task not in self._looking:
                looking = asyncio.get_running_loop().create_task(self._look(event))
                self._looking[event.task] = looking
                looking.add_done_callback(lambda _task: self._looking.pop(event.task, None))
            return
        for ending in self._waited.pop(event.task, ()):
            if not ending.done():
                ending.set_result(event)

    def fail(self, task: int, error: QuorateError) -> None:
        """Nothing will be heard of it."""
        for ending in self._waited.pop(task, ()):
            if not ending.done():
                ending.set_exception(error)
                ending.exception()  # whoever awaits it has it

    async def _look(self, event: TaskEvent) -> None:
        """The node does not know this task: nobody does, or it has not come so far. In the latter
        case it tells what becomes of it, once it has."""
        try:
            found = await self._asks.look(event.task)
        except QuorateError as error:
            self.fail(event.task, error)
            return
        if found is not None and found.what != UNKNOWN:
            self.ended(found)
        elif found is not None:
            for ending in self._waited.pop(event.task, ()):
                if not ending.done():
                    ending.set_result(event)
        self.sweep_soon()


class _Watch:
    """One watch, for as long as anybody waits for one of its tasks."""

    def __init__(self, owner: Endings, watches: Watches, tasks: tuple[int, ...]) -> None:
        self._owner = owner
        self._tasks = dict.fromkeys(tasks)
        self._subscription: Subscription = watches.open(
            TASK_MACHINE, self._request, _pass_over, self._on_events, self._on_failed
        )

    def _request(self) -> TaskWatch:
        left = [task for task in self._tasks if self._owner.waits_for(task)]
        # Nobody waits any more: it is about to be closed.
        some = tuple(left) or tuple(islice(self._tasks, 1))
        return WatchTasks(some, running=self._owner.on_started is not None)

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for event in _decode_events(events):
            if event.state in _ENDS or event.what == UNKNOWN:
                if event.what != UNKNOWN:
                    self._tasks.pop(event.task, None)
                self._owner.ended(event)
            elif event.state == RUNNING and self._owner.on_started is not None:
                self._owner.on_started(event)
        if not self.wanted():
            self._owner.sweep_soon()

    def _on_failed(self, error: QuorateError) -> None:
        for task in self._tasks:
            self._owner.fail(task, error)

    def wanted(self) -> bool:
        """Whether anybody waits for one of its tasks."""
        return any(map(self._owner.waits_for, self._tasks))

    def close(self) -> None:
        """It is of no use any more."""
        self._subscription.close()


def _pass_over(_index: int) -> None:
    return None
