"""Disk work off the event loop: a thread that runs jobs in order, and the log's writer.

The writer is where group commit happens: while one write is being fsynced, everything the core
hands out piles up, and goes out as one write and one fsync.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from quorate.base.invariants import must
from quorate.base.limits import KIB, MIB
from quorate.consensus.messages import Entry, HardState, Message
from quorate.consensus.output import Persist
from quorate.errors import DiskFullError
from quorate.storage.interfaces import LogStore

T = TypeVar("T")

Job = Callable[[], None]
Done = Callable[[None, BaseException | None], None]
#: ``QuickDisk.quick``, or a stand-in.
Quick = Callable[[Job, Done], bool]

#: A full disk is tried again this often; the core resigns meanwhile if it takes long.
DISK_FULL_RETRY_S = 0.25
#: One write holds at most so much, so that a long queue does not become one long stall.
WRITE_BYTES_MAX = 16 * MIB
#: A write of at most so many payload bytes may run on the event loop, if the disk is fast.
QUICK_BYTES_MAX = 64 * KIB
#: What counts as fast: see ``QuickDisk``. The election timeout is 400 times as long.
QUICK_S = 0.001
SLOW_S = 0.02
PAUSE_S = 1.0
#: Over about so many jobs the duration is averaged.
AVERAGED_JOBS = 16
#: Messages that wait for a write: far more than a working disk ever lets pile up.
HELD_MAX = 10_000


class JobRunner(Protocol):
    """Runs blocking jobs one after another, and reports each on the event loop."""

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None: ...

    def stop(self) -> None: ...


class DiskThread:
    """A ``JobRunner`` on a thread of its own. A hand-over to it and back costs some 40 us, half of
    what ``loop.run_in_executor`` takes for its two futures."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=f"quorate-{name}", daemon=True)
        self._thread.start()

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Queue *job*; *done* is called on the event loop with its result or its exception."""

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as caught:  # noqa: BLE001 - handed to the loop, which decides
                error = caught
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell

        self._jobs.put(work)

    def stop(self) -> None:
        """Finish what is queued, then end the thread. Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()


class QuickDisk(DiskThread):
    """A disk thread that, while the disk is fast and nothing else is under way, lets small jobs
    run on the event loop itself.

    The hand-over to a thread and back costs more than the fsync of a small append on a good SSD
    (ten futex calls, two waits for the interpreter's lock), and a loop with one write to make has
    nothing better to do. *quick_s*: average duration up to which the disk counts as fast. Beyond
    it, or after one job longer than *slow_s*, all go to the thread for *pause_s*, before the disk
    is tried again: a stalling disk stalls the loop once.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        *,
        quick_s: float = QUICK_S,
        slow_s: float = SLOW_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        super().__init__(name, loop)
        self._quick_s = quick_s
        self._slow_s = slow_s
        self._pause_s = pause_s
        self._average_s = 0.0
        self._paused_until_s = 0.0
        self._under_way = 0  # on the thread, until the loop has heard of its end
        self._scheduled = False  # on the loop
        self._behind: list[Callable[[], None]] = []  # jobs for the thread, after the scheduled one
        self.quick_count = 0

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """As ``DiskThread.run``; never at the same time as a quick job."""
        if self._scheduled:
            self._behind.append(lambda: self.run(job, done))
            return
        self._under_way += 1

        def finished(result: T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            done(result, error)

        super().run(job, finished)

    def quick(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> bool:
        """Run *job*, and then *done*, on the loop in its next turn. False: not now, nothing will
        be done."""
        if self._under_way or self._scheduled or time.perf_counter() < self._paused_until_s:
            return False
        self._scheduled = True
        self._loop.call_soon(self._run_quick, job, done)
        return True

    def _run_quick(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        result: T | None = None
        error: BaseException | None = None
        began_s = time.perf_counter()
        try:
            result = job()
        except BaseException as caught:  # noqa: BLE001 - as on the thread
            error = caught
        self._note(time.perf_counter() - began_s)
        self.quick_count += 1
        self._scheduled = False
        behind, self._behind = self._behind, []
        for start in behind:
            start()
        done(result, error)

    def _note(self, duration_s: float) -> None:
        """One more quick job took so long. Only these are measured: on the thread, the wait for
        the interpreter's lock cannot be told from the disk."""
        self._average_s += (duration_s - self._average_s) / AVERAGED_JOBS
        if duration_s > self._slow_s or self._average_s > self._quick_s:
            self._paused_until_s = time.perf_counter() + self._pause_s
            self._average_s = 0.0


async def run_job(runner: JobRunner, job: Callable[[], T]) -> T:
    """Await *job* on *runner*."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    runner.run(job, done)
    return await future


class Held:
    """Messages that promise what is not durable yet, in order, by the write they wait for."""

    def __init__(self) -> None:
        self._messages: deque[tuple[int, Message]] = deque()
        self.dropped_count = 0

    def add(self, persist_id: int, messages: Iterable[Message]) -> None:
        """They may leave once *persist_id* is durable. While a disk stalls, the oldest are
        dropped beyond ``HELD_MAX``, as by a network: nobody waits for those any more."""
        self._messages.extend((persist_id, message) for message in messages)
        while len(self._messages) > HELD_MAX:
            self._messages.popleft()
            self.dropped_count += 1

    def release(self, durable_id: int) -> Iterator[Message]:
        """Those that may leave now."""
        while self._messages and self._messages[0][0] <= durable_id:
            yield self._messages.popleft()[1]


class LogWriter:
    """Feeds ``Persist`` orders to the log, in order, merging what waits into one durable write."""

    def __init__(
        self,
        log: LogStore,
        runner: JobRunner,
        *,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        on_disk_full: Callable[[], None],
        quick: Quick | None = None,
    ) -> None:
        self._log = log
        self._runner = runner
        self._quick = quick
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._on_disk_full = on_disk_full
        self._waiting: deque[tuple[Persist, Callable[[], None] | None]] = deque()
        self._busy = False
        self._stopped = False
        self.durable_id = 0
        self.write_count = 0

    @property
    def idle(self) -> bool:
        return not self._busy and not self._waiting

    def write(self, persist: Persist) -> None:
        """Make it durable after everything handed in before; ``on_durable`` tells when."""
        must(persist.reset is None, "a reset comes with a swap", persist=persist.id)
        self._waiting.append((persist, None))
        self._start()

    def write_reset(self, persist: Persist, swap: Callable[[], None]) -> None:
        """A write with ``reset``: *swap* installs the snapshot on the disk thread just before."""
        must(persist.reset is not None, "a swap comes with a reset", persist=persist.id)
        self._waiting.append((persist, swap))
        self._start()

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Another job on the log (cutting it), between two writes."""
        self._runner.run(job, done)

    def stop(self) -> None:
        """Start nothing more; what is under way is not reported."""
        self._stopped = True
        self._waiting.clear()

    def _start(self) -> None:
        if self._busy or self._stopped or not self._waiting:
            return
        first, swap = self._waiting.popleft()
        self._busy = True
        if swap is not None:
            self._submit(self._reset_job(first, swap), first.id)
            return
        entries, hard_state, last_id, size = self._merge(first)
        quick = size <= QUICK_BYTES_MAX
        self._submit(lambda: self._log.append(entries, hard_state), last_id, quick=quick)

    def _submit(self, job: Job, last_id: int, *, quick: bool = False) -> None:
        """Run *job*, which makes everything up to *last_id* durable or, on a full disk, changes
        nothing and is run again. *quick*: it is small enough for the event loop."""
        if self._stopped:
            return
        self.write_count += 1

        def done(_: None, error: BaseException | None) -> None:
            if isinstance(error, DiskFullError) and not self._stopped:
                self._on_disk_full()
                loop = asyncio.get_running_loop()
                loop.call_later(DISK_FULL_RETRY_S, self._submit, job, last_id)
                return
            self._finish(last_id, error)

        if not (quick and self._quick is not None and self._quick(job, done)):
            self._runner.run(job, done)

    def _merge(self, first: Persist) -> tuple[list[Entry], HardState, int, int]:
        """Join what waits as long as the entries continue each other; also the payload's size."""
        entries = list(first.entries)
        hard_state, last_id = first.hard_state, first.id
        size = sum(len(entry.payload) for entry in entries)
        while self._waiting and size < WRITE_BYTES_MAX:
            following, swap = self._waiting[0]
            if swap is not None:
                break
            if following.entries:
                if entries and following.entries[0].index != entries[-1].index + 1:
                    break
                entries.extend(following.entries)
                size += sum(len(entry.payload) for entry in following.entries)
            hard_state, last_id = following.hard_state, following.id
            self._waiting.popleft()
        return entries, hard_state, last_id, size

    def _reset_job(self, persist: Persist, swap: Callable[[], None]) -> Callable[[], None]:
        """First the snapshot, then the log: recovery mends a crash in between. A full disk may
        stop it between the two as well; then only the second half is tried again."""
        swapped = False

        def job() -> None:
            nonlocal swapped
            if not swapped:
                swap()
                swapped = True
            if persist.reset is not None:
                self._log.reset(persist.reset, persist.hard_state)

        return job

    def _finish(self, last_id: int, error: BaseException | None) -> None:
        self._busy = False
        if self._stopped:
            return
        if error is not None:
            self._stopped = True
            self._on_failure(error)
            return
        self.durable_id = last_id
        self._start()  # the next fsync runs while the loop deals with this one
        self._on_durable(last_id)
