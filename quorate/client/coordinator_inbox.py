"""What workers of one coordinator have, as the cluster tells it: nothing is asked again and again.

Each attempt is told once to whoever asks for the next one, and stays known, with its number, until
it is said how it ended or the cluster has taken it back. The number is what keeps a late worker
from saying anything of a task that another one has by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from quorate.base.task_commands import Assignment
from quorate.base.task_queries import Assigned, Stop, WatchWorker
from quorate.base.task_specs import TASK_MACHINE
from quorate.client.task_payloads import unpack_arguments
from quorate.client.watching import Subscription, Watches
from quorate.errors import TaskPayloadError, TaskStateError

_decode_events: Final = msgspec.msgpack.Decoder(list[Assigned | Stop]).decode


class TaskAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a worker has. *attempt*: the fencing token. *payload*: what it was submitted
    with; None: nothing, or arguments of another form, which *raw* has. *reason*: why this worker.
    *running*: it has begun. *due_ms*: cluster time of its end at the latest, 0: any time."""

    task_id: int
    worker_id: int
    attempt: int
    type: str
    payload: Any
    reason: str
    running: bool
    due_ms: int
    raw: Assignment


#: Hears of an attempt that is to be stopped, and why: "cancelled", then say how it ended; or
#: "timeout", "stolen", "moved", then it is not the worker's any more.
OnStop = Callable[[TaskAssignment, str], None]


class Inbox:
    """See the module. Belongs to one loop."""

    def __init__(self, watches: Callable[[], Watches]) -> None:
        self._watches = watches
        self._followed: dict[int, Subscription] = {}
        self._known: dict[int, TaskAssignment] = {}  # by task: the latest attempt
        self._fresh: dict[int, int] = {}  # not told yet, the oldest first: attempt by task
        self._changed = asyncio.Event()
        self.on_stop: list[OnStop] = []
        self.on_gone: Callable[[int], object] = _ignore

    # --- workers --------------------------------------------------------------------------------

    def follow(self, worker: int) -> None:
        """Hear of what *worker* gets, from now on."""
        self._followed[worker] = self._watches().open(
            TASK_MACHINE,
            lambda: WatchWorker(worker),
            _ignore,
            lambda _index, events: self._on_events(worker, events),
            lambda _error: self._gone(worker),
        )

    def leave(self, worker: int) -> None:
        """*worker* is gone, with what it had."""
        subscription = self._followed.pop(worker, None)
        if subscription is not None:
            subscription.close()
        for given in [each for each in self._known.values() if each.worker_id == worker]:
            self._stop(given, "moved")

    def _gone(self, worker: int) -> None:
        self.leave(worker)
        self.on_gone(worker)

    def close(self) -> None:
        """No more news."""
        for subscription in self._followed.values():
            subscription.close()
        self._followed.clear()
        self._known.clear()
        self._fresh.clear()
        self._changed.set()

    # --- attempts -------------------------------------------------------------------------------

    async def next(self, timeout: float) -> TaskAssignment | None:
        """The oldest attempt that was not told before; None: none came within *timeout* s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    given = self.take()
                    if given is not None:
                        return given
                    self._changed.clear()
                    await self._changed.wait()
        return self.take()

    def take(self) -> TaskAssignment | None:
        """The same, if there is one now."""
        task = next(iter(self._fresh), None)
        return None if task is None else self.find(task, self._fresh.pop(task))

    def known(self, task: int) -> TaskAssignment:
        """The present attempt at *task*, as far as it was heard here.

        Raises:
            TaskStateError: no worker of this coordinator has it.
        """
        given = self._known.get(task)
        if given is None:
            raise TaskStateError(f"no worker of this coordinator has task {task} now")
        return given

    def find(self, task: int, attempt: int) -> TaskAssignment | None:
        """That attempt, if it is the one that is known."""
        given = self._known.get(task)
        return given if given is not None and given.attempt == attempt else None

    def note(self, worker: int, raw: Assignment, *, told: bool = True) -> TaskAssignment:
        """*worker* has this."""
        before = self._known.get(raw.task)
        if before is not None and before.attempt >= raw.attempt:
            return before
        given = made(worker, raw)
        self._known[raw.task] = given
        self._fresh.pop(raw.task, None)
        if not told:
            self._fresh[raw.task] = raw.attempt
            self._changed.set()
        return given

    def begun(self, given: TaskAssignment) -> TaskAssignment:
        """It runs."""
        running = msgspec.structs.replace(given, running=True)
        if self._known.get(given.task_id) is given:
            self._known[given.task_id] = running
        return running

    def over(self, given: TaskAssignment) -> None:
        """It is known how it ended, or it is somebody else's."""
        present = self._known.get(given.task_id)
        if present is not None and present.attempt == given.attempt:
            del self._known[given.task_id]
            self._fresh.pop(given.task_id, None)
            self._changed.set()

    @property
    def running(self) -> int:
        """Attempts that have begun."""
        return sum(each.running for each in self._known.values())

    async def quiet(self) -> None:
        """Until none runs."""
        while self.running:
            self._changed.clear()
            await self._changed.wait()

    # --- news -----------------------------------------------------------------------------------

    def _on_events(self, worker: int, events: msgspec.Raw) -> None:
        for event in _decode_events(events):
            if isinstance(event, Stop):
                given = self._known.get(event.task)
                if given is not None and given.attempt == event.attempt:
                    self._stop(given, event.why)
                continue
            if event.whole:
                self._only(worker, {each.task: each.attempt for each in event.tasks})
            for each in event.tasks:
                self.note(worker, each, told=False)

    def _only(self, worker: int, has: dict[int, int]) -> None:
        """That is all that *worker* has: what else was its own went while nobody heard."""
        mine = [each for each in self._known.values() if each.worker_id == worker]
        for given in mine:
            if has.get(given.task_id) != given.attempt:
                self._stop(given, "moved")

    def _stop(self, given: TaskAssignment, why: str) -> None:
        if why != "cancelled":
            self.over(given)
        for hook in list(self.on_stop):
            hook(given, why)


def made(worker: int, raw: Assignment) -> TaskAssignment:
    """As it is shown."""
    try:
        args, kwargs = unpack_arguments(raw.payload)
    except TaskPayloadError:
        args, kwargs = (), {}
    return TaskAssignment(
        task_id=raw.task,
        worker_id=worker,
        attempt=raw.attempt,
        type=raw.function,
        payload=args[0] if len(args) == 1 and not kwargs else None,
        reason=raw.reason,
        running=raw.running,
        due_ms=raw.due_ms,
        raw=raw,
    )


def _ignore(_number: int) -> None:
    """Nobody asks; and the first event of a watch is all that the worker has."""
