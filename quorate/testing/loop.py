"""An asyncio event loop whose time passes only while nothing else is to be done.

Callbacks run as on any loop. When none is ready and no thread of the loop works, the clock jumps to
the next timer, so ``asyncio.sleep(86400)`` takes no time at all, and everything in between happens
in its order. While a thread works the clock stands still.

There is no network on this loop: time would pass before a packet could come.

Two sorts of timers are apart, and which they are is told by *sorts*: *chores* come again and again
and find nothing to do, so no time is spent on each of them: those that were passed over run once,
where the clock stops next. *Upkeep* stops the clock as other timers do, but who waits for nothing
else waits for ever, and is told so.
"""

from __future__ import annotations

import asyncio
import heapq
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context
from typing import Any, Final, Literal, NoReturn, TypeVar

from quorate.errors import StuckError, VirtualTimeError

T = TypeVar("T")
Sort = Literal["chore", "upkeep"]

#: Chores run at their own pace for so long after something happened: some of it may need them.
BRISK_S: Final = 0.25
#: What is overdue waits for chores; after so long it waits for something that never comes.
OVERDUE_S_MAX: Final = 60.0
#: Nothing but upkeep for so long: longer than any lease lives that is not renewed.
BARREN_S_MAX: Final = 25 * 3600.0
#: Nothing but chores for so long.
CHORES_S_MAX: Final = 10.0
#: For cleaning up after a run that was given up, in real seconds.
CLEAN_UP_S: Final = 5.0
THREADS_DEFAULT: Final = 32


class UpkeepHandle(asyncio.TimerHandle):
    """A timer that nobody waits for."""

    __slots__ = ()


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """See the module. *sorts*: by the code of a callback, or of the coroutine that sleeps.
    *patience*: real seconds after which a run is given up."""

    #: Of the base class.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _default_executor: Executor | None

    def __init__(self, sorts: Mapping[Any, Sort], patience: float) -> None:
        super().__init__()
        self.patience = patience
        #: Further times at which the clock has to stop: called when it is about to jump.
        self.dues: list[Callable[[], float | None]] = []
        #: Whether anything is to come that the timers of this loop do not tell of.
        self.prospects: list[Callable[[], bool]] = []
        self._sorts = sorts
        self._now_s = 0.0
        self._clock_resolution = 1e-9
        self._chores: list[asyncio.TimerHandle] = []
        self._idle: list[asyncio.Future[None]] = []
        self._passing: list[asyncio.Future[None]] = []
        self._stops = self._renewals = 0
        self._held = 0  # threads that work
        self._pokes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._selector = _Selector(self)
        self._brisk_until_s = 0.0
        self._overdue_since_s: float | None = None
        self._barren_since_s = 0.0
        self._give_up_at_s = time.monotonic() + patience
        self._owner = threading.get_ident()

    # --- time ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def call_at(  # type: ignore[override]  # TypeVarTuple
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401  as asyncio's
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        sort = self._sort_of(callback)
        if sort is None:
            return super().call_at(when, callback, *args, context=context)
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        handle: asyncio.TimerHandle
        if sort == "chore":
            handle = asyncio.TimerHandle(when, callback, args, self, context)
            self._chores = [each for each in self._chores if not each.cancelled()]
            self._chores.append(handle)
        else:
            handle = UpkeepHandle(when, callback, args, self, context)
            heapq.heappush(self._scheduled, handle)
            handle._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001  as asyncio's
        return handle

    def _sort_of(self, callback: Callable[..., object]) -> Sort | None:
        function = getattr(callback, "__func__", None)
        if function is not None:
            found = self._sorts.get(getattr(function, "__code__", None))
            if found is not None:
                return found
        task = asyncio.current_task(self)
        if task is None:
            return None
        return self._sorts.get(getattr(task.get_coro(), "cr_code", None))

    def idle(self) -> asyncio.Future[None]:
        """Done when there is nothing left to do before time passes."""
        future = self.create_future()
        self._idle.append(future)
        return future

    def passing(self) -> asyncio.Future[None]:
        """Done when time has passed up to the next thing that happens."""
        future = self.create_future()
        self._passing.append(future)
        return future

    def happened(self) -> None:
        """Something that matters: chores run at their own pace for a moment."""
        self._brisk_until_s = self._now_s + BRISK_S
        self._barren_since_s = self._now_s

    # --- waiting ---------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> None:
        """In place of waiting for the network: called once in each turn of the loop."""
        left_s = self._give_up_at_s - time.monotonic()
        if left_s <= 0:
            raise StuckError(
                f"the test was not over after {self.patience:g} s of real time, {self._now_s:g} s "
                f"of its own; the clock stopped {self._stops} times on its way, {self._renewals} "
                "of them to renew leases and the like: the longer these live, the fewer they are"
            )
        if timeout == 0:
            return
        if self._held:
            try:
                self._pokes.get(timeout=left_s)
            except queue.Empty:
                raise StuckError(
                    f"{self._held} threads still worked after {self.patience:g} s of real time: "
                    "the clock stands still for a thread, and what it waits for must not need time "
                    "to pass"
                ) from None
            return
        while not self._pokes.empty():
            self._pokes.get()
        if self._ready:  # another thread was here just now
            return
        waiting, self._idle = self._idle, []
        if not waiting:
            self._jump()
            waiting, self._passing = self._passing, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _jump(self) -> None:
        """Let time pass, up to the next thing that is to happen."""
        now_s = self._now_s
        handle: asyncio.TimerHandle | None = self._scheduled[0] if self._scheduled else None
        timer_s = None if handle is None else handle.when()
        due_s = min((due for each in self.dues if (due := each()) is not None), default=None)
        overdue = due_s is not None and due_s <= now_s
        if overdue:
            self._overdue_since_s = (
                now_s if self._overdue_since_s is None else self._overdue_since_s
            )
            overdue, due_s = now_s - self._overdue_since_s < OVERDUE_S_MAX, None
        else:
            self._overdue_since_s = None
        stops = [each for each in (timer_s, due_s) if each is not None]
        barren_s_max = BARREN_S_MAX if stops else CHORES_S_MAX
        if overdue or now_s < self._brisk_until_s or not stops:
            stops.extend(each.when() for each in self._chores if not each.cancelled())
        if not stops:
            raise StuckError("the test waits for ever: nothing is left that could happen")
        self._now_s = next_s = max(now_s, min(stops))
        upkeep = next_s == timer_s and isinstance(handle, UpkeepHandle) and next_s != due_s
        self._stops += 1
        self._renewals += upkeep
        if not upkeep:
            chores, self._chores = self._chores, []
            for each in chores:
                if each.when() > next_s:
                    self._chores.append(each)
                elif not each.cancelled():
                    self._ready.append(each)
        if next_s in (due_s, timer_s) and not upkeep:
            self.happened()
        elif next_s - self._barren_since_s > barren_s_max:
            self._barren_since_s = next_s
            if not self._has_prospects():
                raise StuckError("the test waits for ever: nothing that matters is left to happen")

    def _has_prospects(self) -> bool:
        return any(each() for each in self.prospects) or any(
            not isinstance(each, UpkeepHandle) and not each.cancelled() for each in self._scheduled
        )

    def forgive(self) -> None:
        """A run was given up: let what it leaves behind clean up."""
        self._give_up_at_s = time.monotonic() + CLEAN_UP_S
        self._barren_since_s = self._now_s

    # --- threads ---------------------------------------------------------------------------------

    def thread_pool(self, threads: int, name: str = "") -> HeldThreads:
        """Threads for which the clock stands still while they work."""
        return HeldThreads(self, threads, name)

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Executor | None,
        func: Callable[..., T],
        *args: Any,  # noqa: ANN401
    ) -> asyncio.Future[T]:
        """As asyncio's; the clock stands still until *func* is done."""
        if executor is None:
            if self._default_executor is None:
                self._default_executor = self.thread_pool(THREADS_DEFAULT, "virtual-time")
            return super().run_in_executor(self._default_executor, func, *args)
        if isinstance(executor, HeldThreads):
            return super().run_in_executor(executor, func, *args)
        self.hold()
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self.release())
        return future

    def hold(self) -> None:
        """The clock stands still until ``release``."""
        self._held += 1

    def release(self) -> None:
        """See ``hold``. On the loop."""
        self._held -= 1
        self.happened()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As asyncio's."""
        del timeout
        executor, self._default_executor = self._default_executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def _write_to_self(self) -> None:
        self._pokes.put(None)

    def _process_events(self, _events: object) -> None:
        """There are none."""


class _Selector:
    """What ``BaseEventLoop`` asks for events."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> tuple[()]:
        """Never finds any."""
        self._loop.wait(timeout)
        return ()


class HeldThreads(Executor):
    """A pool of threads for which the clock of *loop* stands still while they work."""

    def __init__(self, loop: VirtualTimeLoop, threads: int, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(threads, name)
        self._waiting: dict[Future[Any], None] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401
        """As ``ThreadPoolExecutor.submit``; on the loop."""
        future: Future[T] = Future()
        self._pool.submit(self._work, future, fn, args, kwargs)
        self._waiting[future] = None
        self._loop.hold()
        return future

    def _work(
        self,
        future: Future[Any],
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if future.set_running_or_notify_cancel():
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  as ThreadPoolExecutor
                future.set_exception(error)
            else:
                future.set_result(result)
        # After the above, which has told the loop what came of it: the clock must not go on before.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._over, future)

    def _over(self, future: Future[Any]) -> None:
        if self._waiting.pop(future, 0) is None:
            self._loop.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """As ``ThreadPoolExecutor.shutdown``."""
        if cancel_futures:
            for future in list(self._waiting):
                future.cancel()
        self._pool.shutdown(wait=wait)


# --- what there is not ----------------------------------------------------------------------------

_REFUSED: Final = {
    "connection": ("create_connection", "create_unix_connection", "connect_accepted_socket"),
    "server": ("create_server", "create_unix_server"),
    "datagram endpoint": ("create_datagram_endpoint",),
    "subprocess": ("subprocess_exec", "subprocess_shell"),
    "pipe": ("connect_read_pipe", "connect_write_pipe"),
    "socket": (
        "sock_accept",
        "sock_connect",
        "sock_recv",
        "sock_recv_into",
        "sock_recvfrom",
        "sock_recvfrom_into",
        "sock_sendall",
        "sock_sendfile",
        "sock_sendto",
        "add_reader",
        "add_writer",
    ),
}


def _refusal(what: str) -> Callable[..., NoReturn]:
    def refuse(_loop: VirtualTimeLoop, *_args: object, **_options: object) -> NoReturn:
        raise VirtualTimeError(
            f"no {what} on virtual time: hours would pass before an answer could come. Put a "
            "stand-in in its place, or do it in a thread, for which the clock stands still "
            "(asyncio.to_thread, or a task that is a plain function)"
        )

    return refuse


for _what, _names in _REFUSED.items():
    for _name in _names:
        setattr(VirtualTimeLoop, _name, _refusal(_what))
