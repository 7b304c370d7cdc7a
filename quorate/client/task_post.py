"""A worker's post: its life under one lease and one number, until it leaves or loses it.

What it has, it knows from its watch: the first event of each watch is all that it has, then come
new tasks and those that it is to stop. So nothing is polled, nothing is claimed, and after any
outage both sides agree again. What the watch says is believed only from a node that has come at
least as far as whatever this client has heard of: a node that has just begun to lead may not know
yet what was completed, and would hand it out again.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol

import msgspec

from quorate.base.task_commands import Assignment, Attend, Failed, Settlement, Unregister
from quorate.base.task_queries import Assigned, Stop, WatchWorker
from quorate.base.task_specs import TASK_MACHINE
from quorate.base.workflow_commands import Node, Spawn, Submitted
from quorate.client.leases import RETRY_S_MAX, RETRY_S_MIN
from quorate.client.task_answers import Answers, Key, Told
from quorate.client.task_app import App
from quorate.client.task_context import TaskContext
from quorate.client.task_jobs import CANCELLED, DRAINED, LOST, Job
from quorate.client.task_pulse import Pulse
from quorate.client.tasks import Tasks
from quorate.client.watching import Subscription
from quorate.client.workflows import checked
from quorate.errors import CommandError, FencedError, QuorateError, WorkerNotFoundError

#: A node that has not come so far is asked again so soon.
BEHIND_S: Final = 0.02
#: As many failures in a row have the cluster put a worker aside (``WorkerInfo.state`` "error").
FAILURES_IN_ROW_MAX: Final = 3
#: Code that was told to stop, and goes on for so long, takes a place from then on.
LINGER_S: Final = 1.0
TIMEOUT: Final = "timeout"

_decode_events: Final = msgspec.msgpack.Decoder(list[Assigned | Stop]).decode
_logger = logging.getLogger(__name__)


class Counts:
    """What a worker has done since it was made."""

    __slots__ = ("begun", "done", "dropped", "failed", "given_back", "stale")

    def __init__(self) -> None:
        self.begun = self.done = self.failed = self.given_back = self.dropped = self.stale = 0


class Staff(Protocol):
    """What a post needs of its worker."""

    @property
    def app(self) -> App: ...
    @property
    def name(self) -> str: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def error_pause(self) -> float: ...
    @property
    def counts(self) -> Counts: ...
    @property
    def lingering(self) -> set[Job]: ...
    def pool(self) -> Executor: ...
    def changed(self) -> None: ...
    def left(self, job: Job) -> None: ...


class Post:
    """See the module. *worker*: its number; *over*: why the post is lost, once it is."""

    def __init__(self, staff: Staff, tasks: Tasks, pulse: Pulse, worker: int) -> None:
        self._staff = staff
        self._tasks = tasks
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()
        self._heard = 0  # the log index up to which the watch has told all
        self._told = False  # what the worker has
        self._jobs: dict[Key, Job] = {}
        self._stored: dict[Key, Assignment] = {}
        self._beginning: dict[Key, Assignment] = {}
        self._stopped_early: dict[Key, None] = {}  # before they had begun
        self._failures_in_row = 0
        self._clearing: asyncio.TimerHandle | None = None
        self._attending = False
        self._attend_again = False
        self._saying: asyncio.Task[None] | None = None  # that it drains
        self._said_load = staff.concurrency
        self.worker = worker
        self.draining = False
        self.lost = False
        self.over: asyncio.Future[QuorateError | None] = self._loop.create_future()
        told = Told(self._on_done, self._on_failed, self._on_stale)
        self.answers = Answers(tasks, worker, told)
        self._watch: Subscription = tasks.watches.open(
            TASK_MACHINE, lambda: WatchWorker(worker), self._on_open, self._on_events, self._refused
        )

    # --- what the watch tells -------------------------------------------------------------------

    def _on_open(self, index: int) -> None:
        if index < max(self._tasks.plans.seen, self._heard):
            self._watch.pause()
            self._loop.call_later(BEHIND_S, self._watch.resume)

    def _on_events(self, index: int, events: msgspec.Raw) -> None:
        self._heard = max(self._heard, index)
        for event in _decode_events(events):
            if isinstance(event, Stop):
                self._stop(event)
            elif event.whole:
                self._compare(event.tasks)
            else:
                for assignment in event.tasks:
                    self._take(assignment)
        self._fill()

    def _refused(self, error: QuorateError) -> None:
        if isinstance(error, WorkerNotFoundError):
            self.lose()
        else:
            self.lose(error)

    def _compare(self, tasks: tuple[Assignment, ...]) -> None:
        """*tasks* is all that the worker has."""
        self._told = True
        present = {(each.task, each.attempt): each for each in tasks}
        for key in [each for each in self._jobs if each not in present]:
            self._let_go(key, "moved")
        for key in [each for each in (*self._stored, *self._beginning) if each not in present]:
            self._let_go(key, "moved")
        for assignment in present.values():
            self._take(assignment)
        self._staff.changed()

    def _take(self, assignment: Assignment) -> None:
        key = (assignment.task, assignment.attempt)
        if key in self._jobs or key in self._stored or key in self._beginning:
            return
        if key in self.answers.unsettled:
            return  # it has ended, and the cluster is about to hear so
        if self.draining:
            self._give_back(key)
        elif assignment.running:
            self._start(assignment)
        else:
            self._stored[key] = assignment

    def _stop(self, event: Stop) -> None:
        key = (event.task, event.attempt)
        if event.why != CANCELLED:
            if event.why == TIMEOUT:
                self._clear_later()  # whether it was one in a row, the cluster knows
            self._let_go(key, event.why)
        elif key in self._jobs:
            self._jobs[key].stop(CANCELLED)
        elif key in self._beginning:
            self._stopped_early[key] = None

    def _let_go(self, key: Key, why: str) -> None:
        """It is not the worker's any more."""
        self._stored.pop(key, None)
        self._beginning.pop(key, None)
        self._stopped_early.pop(key, None)
        self.answers.forget(key)
        job = self._jobs.pop(key, None)
        if job is not None:
            self._staff.counts.dropped += 1
            _logger.info("%r is stopped: %s", job, why)
            self._leave(job)
            job.drop(why)

    def _leave(self, job: Job) -> None:
        """Its code may go on for a while, as nobody's."""
        self._pulse.forget(job.key)
        self._staff.lingering.add(job)
        self._loop.call_later(LINGER_S, self.attend)
        self._staff.changed()

    # --- running --------------------------------------------------------------------------------

    def _start(self, assignment: Assignment) -> None:
        staff = self._staff
        context = TaskContext(assignment, staff.name, self.worker, self)
        job = Job(staff.app, staff.pool, context, self._ended, self._left)
        self._jobs[job.key] = job
        staff.counts.begun += 1
        if assignment.heartbeat_ms:
            self._pulse.beat(job.key, assignment.heartbeat_ms / 1000)
        job.start()

    def _fill(self) -> None:
        """Begin what is in store, as far as there is room."""
        while self._stored:
            if len(self._jobs) + len(self._beginning) >= self._staff.concurrency:
                return
            key = next(iter(self._stored))
            self._beginning[key] = self._stored.pop(key)
            self.answers.begin(key, partial(self._may_begin, key))

    def _may_begin(self, key: Key) -> None:
        assignment = self._beginning.pop(key, None)
        if assignment is None:
            return
        if key in self._stopped_early:
            del self._stopped_early[key]
            self.answers.failed(Failed(*key, CANCELLED, "stopped: cancelled", cancelled=True))
        else:
            self._start(assignment)

    def _ended(self, job: Job) -> None:
        """The code of *job* is over."""
        if job.lingers:
            self._staff.lingering.add(job)
        if job.dropped:
            if not job.lingers:
                self._left(job)
            return
        key = job.key
        del self._jobs[key]
        self._pulse.forget(key)
        if job.result is not None and job.completion is not None:
            self.answers.done_with(key, job.result, job.completion)
        elif job.result is not None:
            self.answers.done(key, job.result)
        elif job.context.reason == DRAINED or job.failure is None:
            self._give_back(key)
        else:
            if not job.failure.cancelled:
                first = job.failure.error.partition("\n")[0]
                _logger.warning("%r failed: %s", job.context, first)
            self.answers.failed(job.failure)
        if self._stored:
            self._fill()
        self._staff.changed()

    def _left(self, job: Job) -> None:
        """Code that was left to itself is over."""
        self._staff.left(job)

    def _give_back(self, key: Key) -> None:
        self._staff.counts.given_back += 1
        self.answers.give_back(key)

    async def spawn(
        self, context: TaskContext, nodes: tuple[Node, ...], before: tuple[str, ...]
    ) -> Submitted:
        """See ``Hands``."""
        make = partial(Spawn, self.worker, context.id, context.attempt, nodes, before)
        found: Submitted | Settlement = await self._tasks.run(checked(make))
        if isinstance(found, Settlement):
            raise FencedError(f"{context!r} is not the present one any more")
        return found

    def report(self, context: TaskContext, permille: int | None, note: str) -> None:
        """See ``Hands``."""
        if not self._loop.is_closed():
            key = (context.id, context.attempt)
            self._loop.call_soon_threadsafe(self._report, key, permille, note)

    def _report(self, key: Key, permille: int | None, note: str) -> None:
        if key in self._jobs:
            self.answers.report(key, permille, note)

    # --- what the cluster answers ---------------------------------------------------------------

    def _on_done(self, count: int) -> None:
        self._staff.counts.done += count
        if count:
            self._failures_in_row = 0

    def _on_failed(self, count: int) -> None:
        self._staff.counts.failed += count
        self._failures_in_row += count
        if self._failures_in_row >= FAILURES_IN_ROW_MAX:
            self._clear_later()

    def _on_stale(self, key: Key) -> None:
        self._staff.counts.stale += 1
        self._let_go(key, "moved")

    # --- how the worker is ----------------------------------------------------------------------

    def _clear_later(self) -> None:
        """After failures in a row the cluster hands this worker nothing, until it says that it is
        well: which it does after a pause."""
        if self._clearing is None and not self.lost:
            self._clearing = self._loop.call_later(self._staff.error_pause, self._clear)

    def _clear(self) -> None:
        self._clearing = None
        self._failures_in_row = 0
        self.attend(always=True)

    def attend(self, *, always: bool = False) -> None:
        """Say how many tasks this worker is good for, if that has changed."""
        load = max(self._staff.concurrency - len(self._staff.lingering), 0)
        if self.lost or self.draining or (load == self._said_load and not always):
            return
        if self._attending:
            self._attend_again = True
            return
        self._attending = True
        if load < self._staff.concurrency:
            _logger.warning(
                "code of %d attempts that were to stop goes on: worker %s takes %d tasks",
                len(self._staff.lingering), self._staff.name, load,
            )  # fmt: skip
        self._said_load = load
        task = self._loop.create_task(self._attend(Attend(self.worker, "active", load)))
        task.add_done_callback(self._attended)

    async def _attend(self, command: Attend) -> None:
        """Until it is heard, or of no use."""
        retry_s = RETRY_S_MIN
        while not self.lost and not (self.draining and command.state == "active"):
            try:
                await self._tasks.run(command)
            except CommandError:
                return  # no such worker any more; the watch says so
            except QuorateError as error:
                _logger.info("worker %s says again how it is: %s", self._staff.name, error)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
            else:
                return

    def _attended(self, _task: asyncio.Task[None]) -> None:
        self._attending = False
        if self._attend_again:
            self._attend_again = False
            self.attend(always=True)

    # --- the end --------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether it has any task, or does not know yet."""
        return bool(self._jobs or self._stored or self._beginning) or not self._told

    @property
    def running(self) -> int:
        """Tasks whose code runs."""
        return len(self._jobs)

    def lose(self, error: QuorateError | None = None) -> None:
        """It is not this worker any more: whatever runs is stopped, and nothing is to be said.
        *error*: there is no use in another one."""
        if self.lost:
            return
        self._close()
        for key in list(self._jobs):
            self._let_go(key, LOST)
        self._stored.clear()
        self._beginning.clear()
        self.over.set_result(error)
        self._staff.changed()

    def _close(self) -> None:
        self.lost = True
        self._watch.close()
        self.answers.end()
        if self._clearing is not None:
            self._clearing.cancel()
        self._pulse.quiet()

    async def take_no_more(self) -> None:
        """Drain: what it has in store goes back, and nothing comes any more."""
        self.draining = True
        # Said first, and however short the drain is: or what goes back comes again, and again.
        self._saying = self._loop.create_task(self._attend(Attend(self.worker, "draining")))
        for key in (*self._stored, *self._beginning):
            self.answers.forget(key)
            self._give_back(key)
        self._stored.clear()
        self._beginning.clear()
        await asyncio.shield(self._saying)

    def stop_all(self) -> None:
        """Have the code of everything that still runs stop, to be given back."""
        for job in list(self._jobs.values()):
            job.stop(DRAINED)

    async def leave(self, timeout: float) -> None:
        """Give back what still runs, say what is to be said, and go. What is not heard in
        *timeout* seconds the end of the lease says."""
        for key in list(self._jobs):
            job = self._jobs.pop(key)
            self._leave(job)
            job.drop(DRAINED)
            self._give_back(key)
        try:
            async with asyncio.timeout(timeout):
                await self.answers.settled()
                await self._tasks.run(Unregister(self.worker), timeout)
        except (TimeoutError, QuorateError) as error:
            _logger.info("worker %s left without being heard: %s", self._staff.name, error)
        self._close()
        if not self.over.done():
            self.over.set_result(None)
