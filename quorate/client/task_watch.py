"""Looking on: what happens to the tasks of a queue, and to workers, as it happens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Self

import msgspec

from quorate.base.task_queries import TaskEvent, WatchQueue, WorkerEvent
from quorate.base.task_specs import TASK_MACHINE
from quorate.base.workflow_commands import WorkflowEvent
from quorate.client.watching import Watches
from quorate.errors import QuorateError, WatchLaggingError

#: Events that were not taken: whoever leaves more of them is too slow to look on.
BUFFER_EVENTS_MAX: Final = 50_000

Event = TaskEvent | WorkerEvent | WorkflowEvent

_decode_events: Final = msgspec.msgpack.Decoder(list[Event]).decode


class TaskWatch:
    """Made by ``Tasks.watch``. ``async for`` gives events in the order of the log, each once, from
    the moment on at which ``begun`` has passed; ``async with`` ends it at once, otherwise it ends
    with the loop over it. Results of tasks are not in it.

    The cluster keeps nothing for a watcher that is away. When the connection was lost and found
    again, what happened in between is not told, and ``gaps`` is one higher: look at the state
    then, if it matters.
    """

    def __init__(self, watches: Watches, queue: str) -> None:
        self.gaps = 0  #: how often it was begun anew
        self._begun = asyncio.Event()
        self._news = asyncio.Event()
        self._events: deque[Event] = deque()
        self._error: QuorateError | None = None
        self._closed = False
        self._watch = watches.open(
            TASK_MACHINE, lambda: WatchQueue(queue), self._on_open, self._on_events, self._on_failed
        )

    async def begun(self) -> Self:
        """Wait until it has begun: everything that happens from then on will be told."""
        await self._begun.wait()
        if self._error is not None:
            raise self._error
        return self

    def close(self) -> None:
        """No more news; whoever waits for some waits no longer."""
        self._watch.close()
        self._closed = True
        self._begun.set()
        self._news.set()

    async def take(self) -> list[Event]:
        """What has happened and was not taken yet: waits for the first. Empty once it is closed."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._closed:
                return []
            self._news.clear()
            await self._news.wait()
        found = list(self._events)
        self._events.clear()
        return found

    async def __aenter__(self) -> Self:
        return await self.begun()

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        try:
            while True:
                while self._events:
                    yield self._events.popleft()
                if self._error is not None:
                    raise self._error
                if self._closed:
                    return
                self._news.clear()
                await self._news.wait()
        finally:
            self.close()

    def _on_open(self, _index: int) -> None:
        if self._begun.is_set():
            self.gaps += 1
        self._begun.set()

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        found = _decode_events(events)
        if len(self._events) + len(found) > BUFFER_EVENTS_MAX:
            self.close()
            self._on_failed(
                WatchLaggingError(f"{BUFFER_EVENTS_MAX} events wait to be taken; begin again")
            )
            return
        self._events.extend(found)
        self._news.set()

    def _on_failed(self, error: QuorateError) -> None:
        self._error = error
        self._begun.set()
        self._news.set()
