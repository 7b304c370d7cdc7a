"""An asyncio event loop on virtual time: nothing waits, nothing comes from outside.

What is ready runs in order; when nothing is, time jumps to the next timer. Executor jobs run
inline, a simulated while later. Each callback runs on behalf of a simulated process (``hosts``):
``time`` is then that host's clock, a dead process's callbacks are dropped, a paused one's wait.

Asyncio's ``Task`` and ``Future`` are used as they are. The network is ``network.Network``, which
puts itself into ``network``.
"""

from __future__ import annotations

import asyncio
import heapq
import traceback
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from typing import Any, Final, Protocol, TypeVar

import msgspec

from jepsen_like.errors import JepsenLikeError
from jepsen_like.simulation.hosts import PROCESS, Process
from jepsen_like.simulation.trace import Trace

T = TypeVar("T")

#: More steps than this without time passing is a loop that will never end.
STEPS_AT_ONCE_MAX: Final = 200_000
#: Cancelled timers are swept when they are this many, and more than half.
CANCELLED_KEPT: Final = 1000
#: How long an executor job takes: too short to matter, too long to be free.
EXECUTOR_S: Final = 0.000_2
PROBLEMS_MAX: Final = 100
#: A timer that is set for later comes at least so much later: what rounding leaves between two
#: clocks is too little to add to the time, and whoever waits for it would wait for ever.
RESOLUTION_S: Final = 1e-9


class StuckError(JepsenLikeError):
    """The run can never end: nothing is left to happen, or one instant never ends."""


class Problem(msgspec.Struct, frozen=True):
    """Something that no callback may do: an exception that nobody caught. *process*: "" for the
    world. *text*: the message and the traceback."""

    time_s: float
    process: str
    text: str


class Endpoints(Protocol):
    """What the loop asks of a network."""

    async def create_server(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, serving: bool
    ) -> Any: ...  # noqa: ANN401  stands in for asyncio.Server
    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[Any, Any]: ...


class VirtualHandle(asyncio.TimerHandle):
    """A callback that will run; what ``call_soon`` and ``call_at`` return."""

    __slots__ = ("arguments", "callback", "context", "own_s", "process")

    def __init__(
        self,
        callback: Callable[..., object] | None,
        arguments: tuple[Any, ...],
        context: Context,
        process: Process | None,
        own_s: float = 0.0,
    ) -> None:
        # Without the base class's: it would look up debug flags for each of a million handles.
        self.callback = callback
        self.arguments = arguments
        self.context = context
        self.process = process
        self.own_s = own_s

    def cancel(self) -> None:
        """As asyncio's."""
        self.callback = None
        self.arguments = ()

    def cancelled(self) -> bool:
        """As asyncio's."""
        return self.callback is None

    def when(self) -> float:
        """As asyncio's: on the clock of the host that it runs on."""
        return self.own_s

    def __repr__(self) -> str:
        return f"VirtualHandle({self.callback!r}, {self.process!r})"


class VirtualTask(asyncio.Task):  # type: ignore[type-arg]  # of anything
    """A task that knows whose it is."""

    __slots__ = ("process",)

    process: Process | None


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. *trace*: told of what the network and the disks do; they add to it.

    ``problems``: what went wrong in callbacks. ``on_step`` is called after each callback with its
    process, ``on_instant`` whenever time is about to pass; what they raise ends the run.
    """

    _running = False

    def __init__(self, trace: Trace | None = None) -> None:
        super().__init__()
        self.set_debug(False)
        self.trace = Trace() if trace is None else trace
        self.now_s = 0.0  #: true time
        self.steps = 0
        self.problems: list[Problem] = []
        self.on_step: Callable[[Process | None], None] | None = None
        self.on_instant: Callable[[], None] | None = None
        self.network: Endpoints | None = None
        self._world_context = Context()
        self._coming: deque[VirtualHandle] = deque()
        self._timers: list[tuple[float, int, VirtualHandle]] = []
        self._sequence = 0
        self._sweep_at = 2 * CANCELLED_KEPT
        self._world_tasks: dict[asyncio.Task[Any], None] = {}
        self._graveyard: list[asyncio.Task[Any]] = []
        self._running = False
        self._finished = False

    # --- time ------------------------------------------------------------------------------------

    def time(self) -> float:
        """The monotonic clock of whoever asks; true time for the world. Seconds."""
        process = PROCESS.get()
        return self.now_s if process is None else process.host.clock.monotonic_s()

    def true_time(self) -> float:
        """Seconds since the run began, whoever asks."""
        return self.now_s

    def retime(self, process: Process) -> None:
        """The clock of *process*'s host changed its rate: its timers follow."""
        clock = process.host.clock
        self._timers = [
            (max(clock.true_s(handle.own_s), self.now_s), sequence, handle)
            if handle.process is process
            else (when_s, sequence, handle)
            for when_s, sequence, handle in self._timers
        ]
        heapq.heapify(self._timers)

    # --- callbacks -------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> VirtualHandle:
        """As asyncio's."""
        if context is None:
            handle = VirtualHandle(callback, args, copy_context(), PROCESS.get())
        else:
            handle = VirtualHandle(callback, args, context, context.get(PROCESS))
        self._coming.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> VirtualHandle:
        """As asyncio's; *delay* in seconds of the host's clock."""
        if context is None:
            context, process = copy_context(), PROCESS.get()
        else:
            process = context.get(PROCESS)
        if process is None:
            return self._add_timer(
                self.now_s + delay,
                VirtualHandle(callback, args, context, None, self.now_s + delay),
            )
        clock = process.host.clock
        own_s = clock.monotonic_s() + delay
        handle = VirtualHandle(callback, args, context, process, own_s)
        true_s = self.now_s + delay / clock.rate
        if true_s <= self.now_s and delay > 0:
            true_s = self.now_s + RESOLUTION_S
        return self._add_timer(true_s, handle)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> VirtualHandle:
        """As asyncio's; *when* on the host's clock."""
        if context is None:
            context, process = copy_context(), PROCESS.get()
        else:
            process = context.get(PROCESS)
        handle = VirtualHandle(callback, args, context, process, when)
        if process is None:
            return self._add_timer(when, handle)
        clock = process.host.clock
        true_s = clock.true_s(when)
        if true_s <= self.now_s and when > clock.monotonic_s():
            true_s = self.now_s + RESOLUTION_S
        return self._add_timer(true_s, handle)

    def schedule(
        self, when_s: float, process: Process | None, callback: Callable[..., object], *args: object
    ) -> VirtualHandle:
        """For the network and the disks: run *callback* at true time *when_s* on behalf of
        *process*, whoever asks."""
        context = self._world_context if process is None else process.context
        return self._add_timer(when_s, VirtualHandle(callback, args, context, process, when_s))

    def soon(
        self, process: Process | None, callback: Callable[..., object], *args: object
    ) -> VirtualHandle:
        """As ``schedule``, now."""
        context = self._world_context if process is None else process.context
        handle = VirtualHandle(callback, args, context, process)
        self._coming.append(handle)
        return handle

    def _add_timer(self, when_s: float, handle: VirtualHandle) -> VirtualHandle:
        self._sequence += 1
        heapq.heappush(self._timers, (max(when_s, self.now_s), self._sequence, handle))
        if len(self._timers) > self._sweep_at:
            self._timers = [each for each in self._timers if each[2].callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(2 * len(self._timers), 2 * CANCELLED_KEPT)
        return handle

    # --- tasks and jobs --------------------------------------------------------------------------

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **_options: object,
    ) -> asyncio.Task[T]:
        """As asyncio's; the task belongs to the process on whose behalf it is made."""
        if self._finished:
            coro.close()
            raise RuntimeError("the simulation is over")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        task: VirtualTask = VirtualTask(
            coro, loop=self, name=None if name is None else str(name), context=context
        )
        task.process = process
        if process is None:
            self._world_tasks[task] = None
            task.add_done_callback(self._forget)
        else:
            process.adopt(task)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._world_tasks.pop(task, None)

    def spawn(
        self, process: Process, coroutine: Coroutine[Any, Any, T], name: str = ""
    ) -> asyncio.Task[T]:
        """A task on behalf of *process*."""
        return self.create_task(coroutine, name=name or None, context=process.context.copy())

    def run_in_executor(
        self, executor: object, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        """Run the job inline, a moment later; *executor* is ignored."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        process = PROCESS.get()
        self.schedule(self.now_s + EXECUTOR_S, process, _run_into, future, func, args)
        return future

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        *,
        ssl: object = None,
        start_serving: bool = True,
        **_options: object,
    ) -> Any:  # noqa: ANN401  stands in for asyncio.Server
        """As asyncio's, in the simulated network and in the clear."""
        self._check_clear(ssl)
        return await self._endpoints().create_server(
            protocol_factory, host, port, serving=start_serving
        )

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        *,
        ssl: object = None,
        **_options: object,
    ) -> tuple[Any, Any]:
        """As asyncio's, in the simulated network and in the clear."""
        self._check_clear(ssl)
        return await self._endpoints().create_connection(protocol_factory, host, port)

    def _endpoints(self) -> Endpoints:
        if self.network is None:
            raise RuntimeError("this loop has no network")
        return self.network

    @staticmethod
    def _check_clear(ssl: object) -> None:
        if ssl is not None:
            raise NotImplementedError("the simulated network carries no TLS")

    # --- processes -------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """Nothing of *process* runs any more. Its sockets and its disk are others' business."""
        process.alive = process.running = False
        process.pending.clear()
        self._graveyard.extend(process.tasks)
        process.tasks.clear()

    def pause(self, process: Process) -> None:
        """Stop *process* where it stands: SIGSTOP."""
        if process.alive:
            process.running = False

    def resume(self, process: Process) -> None:
        """Let it go on: SIGCONT."""
        if process.alive and not process.running:
            process.running = True
            self._coming.extend(process.pending)
            process.pending.clear()

    # --- running ---------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:  # noqa: ANN401  as asyncio's
        """Run *future*, or a coroutine on behalf of the world, and return its result.

        Raises:
            StuckError: it can never be done.
        """
        task: asyncio.Future[Any] = asyncio.ensure_future(future, loop=self)
        done: list[object] = []
        task.add_done_callback(done.append)
        before = events._get_running_loop()  # noqa: SLF001  what asyncio's own runners do
        events._set_running_loop(self)  # noqa: SLF001
        self._running = True
        try:
            self._run(done)
        finally:
            self._running = False
            events._set_running_loop(before)  # noqa: SLF001
        return task.result()

    def is_running(self) -> bool:
        """As asyncio's."""
        return self._running

    def _run(self, done: list[object]) -> None:
        coming = self._coming
        while not done:
            at_once = self.steps + STEPS_AT_ONCE_MAX
            while coming:
                handle = coming.popleft()
                callback, process = handle.callback, handle.process
                if callback is None:
                    continue
                if process is not None and not process.running:
                    if process.alive:
                        process.pending.append(handle)
                    continue
                self.steps += 1
                try:
                    handle.context.run(callback, *handle.arguments)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  as asyncio's
                    self._note_failure(process, f"in {callback!r}", error)
                if self.on_step is not None:
                    self.on_step(process)
                if done:
                    return
                if self.steps > at_once:
                    raise StuckError(
                        f"{STEPS_AT_ONCE_MAX} steps at {self.now_s:.6f} s without time passing; "
                        f"the last one: {handle}"
                    )
            if self.on_instant is not None:
                self.on_instant()
                if coming:
                    continue
            self._jump()

    def _jump(self) -> None:
        """To the next timer; all that is due then becomes ready."""
        timers, coming = self._timers, self._coming
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            raise StuckError("nothing is left to happen, and what was waited for has not come")
        self.now_s = now_s = timers[0][0]
        while timers and timers[0][0] <= now_s:
            coming.append(heapq.heappop(timers)[2])

    # --- failures --------------------------------------------------------------------------------

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody caught: a problem, unless whoever raised it is dead."""
        if self._finished:
            return
        task = context.get("task") or context.get("future")
        process = PROCESS.get()
        if isinstance(task, VirtualTask):
            process = task.process
        elif task is not None:
            return  # a future's owner is unknown, and may be dead; tasks and callbacks are known
        self._note_failure(process, str(context.get("message")), context.get("exception"))

    def _note_failure(
        self, process: Process | None, what: str, error: BaseException | None
    ) -> None:
        if (process is not None and not process.alive) or len(self.problems) >= PROBLEMS_MAX:
            return
        lines = [] if error is None else traceback.format_exception(error)
        name = "" if process is None else process.name
        self.problems.append(Problem(self.now_s, name, what + "\n" + "".join(lines)))

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything that still waits, without a word. Idempotent."""
        if self._finished:
            return
        self._finished = True
        self._coming.clear()
        self._timers.clear()
        left: Iterable[asyncio.Task[Any]] = [*self._graveyard, *self._world_tasks]
        before = events._get_running_loop()  # noqa: SLF001
        events._set_running_loop(self)  # noqa: SLF001  what is closed may still want another task
        try:
            for task in left:
                _bury(task)
        finally:
            events._set_running_loop(before)  # noqa: SLF001
        self._graveyard.clear()
        self._world_tasks.clear()
        super().close()

    def finish(self, processes: Iterable[Process]) -> None:
        """Kill *processes*, then ``close``."""
        for process in processes:
            if process.alive:
                self.kill(process)
        self.close()


def _run_into(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except BaseException as error:  # noqa: BLE001  as an executor does
        future.set_exception(error)
    else:
        future.set_result(result)


def _bury(task: asyncio.Task[Any]) -> None:
    """Let go of a task that will never run: no warning, and its ``finally`` clauses run now, not
    whenever its memory is collected."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  as gather does
    coroutine = task.get_coro()
    for _ in range(100):  # one that awaits in a finally clause has to be told again
        try:
            if coroutine is not None:
                coroutine.close()
        except BaseException:  # noqa: BLE001, S112  nobody is left to be told
            continue
        break
