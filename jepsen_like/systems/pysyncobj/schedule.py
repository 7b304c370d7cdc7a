"""Virtual time: what happens, ordered by when and by who came first; and coroutines that wait."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from jepsen_like.systems.base import OutcomeError


class Schedule:
    """A queue of actions. One thread, no clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps_count = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it *seconds* from now; of two at the same time the first asked for goes first."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_s + max(seconds, 0.0), self._sequence, action))

    def run_until(self, end_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Do what is due until *end_s*, or until *stop* says so."""
        while self._queue and self._queue[0][0] <= end_s and not stop():
            self.now_s, _, action = heapq.heappop(self._queue)
            self.steps_count += 1
            action()
        if not stop():
            self.now_s = max(self.now_s, end_s)

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that waits for nothing but an ``Answer``."""
        self._resume(coroutine)

    def _resume(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            waited: Answer = coroutine.send(None)
        except StopIteration:
            return
        waited.then(lambda: self.after(0.0, lambda: self._resume(coroutine)))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        answer = Answer()
        self.after(seconds, lambda: answer.give(None))
        await answer


class Answer:
    """Something that comes once: a value, or an ``OutcomeError``. What comes later is dropped."""

    def __init__(self) -> None:
        self._done = False
        self._value: Any = None
        self._error: OutcomeError | None = None
        self._then: Callable[[], None] | None = None

    def give(self, value: object, error: OutcomeError | None = None) -> None:
        """It came."""
        if self._done:
            return
        self._done, self._value, self._error = True, value, error
        if self._then is not None:
            self._then()

    def then(self, action: Callable[[], None]) -> None:
        """Called once it came."""
        if self._done:
            action()
        else:
            self._then = action

    def __await__(self) -> Generator[Answer, None, Any]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value
