"""What a worker says of its tasks: gathered for one turn of the loop, and said until it is heard.

All attempts that ended in one turn go out in one command, before the answer to those of the turn
before has come. An answer is repeated, as long as the worker is the one that the cluster knows,
until some leader has taken it: the cluster takes it once, as it goes by task and attempt. What it
calls stale is logged, and dropped: somebody else has the task, or had it last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from quorate.base.limits import KIB, MIB, TASK_BATCH_MAX, TASK_ERROR_MAX
from quorate.base.task_commands import (
    Begin,
    Complete,
    Done,
    Fail,
    Failed,
    GiveBack,
    Held,
    Report,
    Settlement,
    Stale,
)
from quorate.base.task_specs import DONE, STATE_NAMES
from quorate.client.codec import AnyFuture
from quorate.client.leases import RETRY_S_MAX, RETRY_S_MIN
from quorate.client.task_context import Completion
from quorate.client.tasks import Tasks
from quorate.client.together import Attempt, commit
from quorate.errors import ClosedError, CommandError, InvalidArgumentError, QuorateError

#: Results and errors in one command; one result may be longer.
ANSWER_BYTES_MAX: Final = 1 * MIB
#: Of an answer beside its result or error.
_OVERHEAD_BYTES: Final = KIB // 16

#: (task, attempt)
Key = tuple[int, int]

_logger = logging.getLogger(__name__)


class Told(msgspec.Struct, gc=False):
    """What to call when the cluster has answered: of how many it took that they ended well or
    failed, and of what is not the worker's any more."""

    done: Callable[[int], None]
    failed: Callable[[int], None]
    stale: Callable[[Key], None]


class Answers:
    """The answers of one worker, under the id that it has from one registration."""

    def __init__(self, tasks: Tasks, worker: int, told: Told) -> None:
        self._tasks = tasks
        self._worker = worker
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._done: list[Done] = []
        self._failed: list[Failed] = []
        self._back: list[Held] = []
        self._begin: list[Held] = []
        self._begun: dict[Key, Callable[[], None]] = {}
        self._reports: dict[Key, tuple[int | None, str]] = {}
        self._reporting: dict[Key, None] = {}
        self._commits: set[asyncio.Task[None]] = set()
        self._planned = False
        self._over = False
        self._settled = asyncio.Event()
        self._settled.set()
        #: Said, and not heard yet; also what is still to be said.
        self.unsettled: dict[Key, None] = {}

    # --- what there is to say -------------------------------------------------------------------

    def done(self, key: Key, result: bytes) -> None:
        """The attempt came to *result*."""
        self._done.append(Done(*key, result))
        self._note(key)

    def done_with(self, key: Key, result: bytes, completion: Completion[Any]) -> None:
        """The attempt came to *result*, and to writes that go with it."""
        if not self._over:
            self.unsettled[key] = None
            self._settled.clear()
            self._reports.pop(key, None)
            made = self._loop.create_task(self._commit(key, result, completion))
            self._commits.add(made)
            made.add_done_callback(self._commits.discard)

    async def _commit(self, key: Key, result: bytes, completion: Completion[Any]) -> None:
        attempt = Attempt(self._worker, *key, result)
        retry_s = RETRY_S_MIN
        while not self._over:
            try:
                await commit(
                    self._tasks.plans,
                    completion.compare,
                    then=completion.then,
                    tasks=completion.tasks,
                    completes=attempt,
                )
            except (CommandError, InvalidArgumentError) as error:
                # Also if an earlier try of this has worked: then this failure comes too late.
                final = isinstance(error, InvalidArgumentError)
                text = str(error)[:TASK_ERROR_MAX]
                self.failed(Failed(*key, type(error).__name__, text, final=final))
                return
            except ClosedError:
                return
            except QuorateError as error:
                _logger.info("a completion is said again: %s", error)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
            else:
                self._told.done(1)
                self.unsettled.pop(key, None)
                if not self.unsettled:
                    self._settled.set()
                return

    def failed(self, failed: Failed) -> None:
        """The attempt failed."""
        self._failed.append(failed)
        self._note((failed.task, failed.attempt))

    def give_back(self, key: Key) -> None:
        """The worker will not run it after all."""
        self._back.append(Held(*key))
        self._note(key)

    def begin(self, key: Key, begun: Callable[[], None]) -> None:
        """The worker wants to begin what it has in store; *begun*: it may."""
        self._begin.append(Held(*key))
        self._begun[key] = begun
        self._plan()

    def report(self, key: Key, permille: int | None, note: str) -> None:
        """It is alive, and so far. Of one attempt one report is under way at a time."""
        if permille is None and key in self._reports:
            permille = self._reports[key][0]
        self._reports[key] = (permille, note)
        if key not in self._reporting:
            self._plan()

    def forget(self, key: Key) -> None:
        """It is not the worker's any more: nothing is to be said of it."""
        self._reports.pop(key, None)
        self._begun.pop(key, None)

    async def settled(self) -> None:
        """Until everything that was to be said of ends has been heard."""
        await self._settled.wait()

    def end(self) -> None:
        """The cluster does not know this worker any more: whatever is to be said, is too late."""
        self._over = True
        self.unsettled.clear()
        self._settled.set()
        self._begun.clear()

    # --- saying it ------------------------------------------------------------------------------

    def _note(self, key: Key) -> None:
        if self._over:
            return
        self.unsettled[key] = None
        self._settled.clear()
        self._reports.pop(key, None)
        self._plan()

    def _plan(self) -> None:
        if not self._planned and not self._over:
            self._planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._planned = False
        if self._over:
            return
        done, self._done = self._done, []
        for some in _portions(done, _size_of_done):
            self._say(Complete(self._worker, tuple(some)), some)
        failed, self._failed = self._failed, []
        for each in _portions(failed, _size_of_failed):
            self._say(Fail(self._worker, tuple(each)), each)
        back, self._back = self._back, []
        for held in _portions(back, _size_of_held):
            self._say(GiveBack(self._worker, tuple(held)), held)
        begin, self._begin = self._begin, []
        for held in _portions([each for each in begin if _key(each) in self._begun], _size_of_held):
            self._say(Begin(self._worker, tuple(held)), held)
        for key in [each for each in self._reports if each not in self._reporting]:
            permille, note = self._reports.pop(key)
            self._reporting[key] = None
            self._say(Report(self._worker, (Held(*key),), permille, note), (Held(*key),))

    def _say(self, command: Any, items: Sequence[Any], retry_s: float = RETRY_S_MIN) -> None:  # noqa: ANN401
        if self._over:
            return
        try:
            future = self._tasks.run(command)
        except QuorateError as error:
            self._again(command, items, retry_s, error)
            return
        future.add_done_callback(partial(self._heard, command, items, retry_s))

    def _heard(self, command: Any, items: Sequence[Any], retry_s: float, future: AnyFuture) -> None:  # noqa: ANN401
        if self._over or future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._take(command, items, future.result())
        elif isinstance(error, CommandError | ClosedError) or not isinstance(error, QuorateError):
            _logger.error("%s was refused: %s", type(command).__name__, error)
            self._close(command, items)
        else:
            self._again(command, items, retry_s, error)

    def _again(
        self,
        command: Any,  # noqa: ANN401
        items: Sequence[Any],
        retry_s: float,
        error: QuorateError,
    ) -> None:
        _logger.info("%s is said again: %s", type(command).__name__, error)
        self._loop.call_later(retry_s, self._say, command, items, min(2 * retry_s, RETRY_S_MAX))

    def _take(self, command: Any, items: Sequence[Any], settlement: Settlement) -> None:  # noqa: ANN401
        stale = {each.task: each for each in settlement.stale}
        kind = command.__class__
        lost = 0
        for each in stale.values():
            lost += self._drop(kind, each, items)
        if kind is Begin:
            for held in items:
                begun = self._begun.pop(_key(held), None)
                if begun is not None and held.task not in stale:
                    begun()
        elif kind is Complete:
            self._told.done(len(items) - lost)
        elif kind is Fail:
            self._told.failed(len(items) - lost)
        self._close(command, items)

    def _drop(self, kind: type, stale: Stale, items: Sequence[Any]) -> bool:
        """Something is not the worker's any more; whether that is so."""
        attempt = next(each.attempt for each in items if each.task == stale.task)
        again = stale.state == DONE and stale.worker == self._worker and stale.attempt == attempt
        if (kind is Complete and again) or stale.stop:
            return False  # it was taken when it was said before; or the watch tells
        level = logging.DEBUG if kind is Report else logging.WARNING
        _logger.log(
            level,
            "%s of task %d, attempt %d, came too late: it is %s, attempt %d, of worker %d",
            kind.__name__,
            stale.task,
            attempt,
            STATE_NAMES[stale.state],
            stale.attempt,
            stale.worker,
        )
        self._told.stale((stale.task, attempt))
        return True

    def _close(self, command: Any, items: Sequence[Any]) -> None:  # noqa: ANN401
        if command.__class__ is Report:
            for held in items:
                self._reporting.pop(_key(held), None)
            if self._reports:
                self._plan()
            return
        for each in items:
            self.unsettled.pop(_key(each), None)
        if not self.unsettled:
            self._settled.set()


def _key(item: Any) -> Key:  # noqa: ANN401
    return item.task, item.attempt


def _size_of_done(item: Done) -> int:
    return len(item.result) + _OVERHEAD_BYTES


def _size_of_failed(item: Failed) -> int:
    return 4 * len(item.error) + _OVERHEAD_BYTES


def _size_of_held(_item: Held) -> int:
    return _OVERHEAD_BYTES


def _portions(items: list[Any], size_of: Callable[[Any], int]) -> list[list[Any]]:
    """As many as go into one command, and no more bytes than are good for it."""
    if not items:
        return []
    found: list[list[Any]] = [[]]
    size = 0
    for item in items:
        size += size_of(item)
        if found[-1] and (len(found[-1]) >= TASK_BATCH_MAX or size > ANSWER_BYTES_MAX):
            found.append([])
            size = size_of(item)
        found[-1].append(item)
    return found
