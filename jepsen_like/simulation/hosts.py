"""Simulated machines and the processes on them: on whose behalf does code run just now?

The context variable ``PROCESS`` says it; tasks, callbacks and timers inherit it. None means the
world: the test itself, and whatever injects faults. A process dies in a crash and is never revived;
a restart makes a new one on the same host.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Final

#: Finished tasks are forgotten when a process has made this many more.
TASKS_KEPT: Final = 256


class HostClock:
    """What a host takes for the time. *now_s*: true time. The monotonic clock runs at *rate*
    and never goes back; the wall clock follows it, from *wall_ms* on, and jumps when told to."""

    def __init__(
        self,
        now_s: Callable[[], float],
        *,
        start_s: float = 0.0,
        rate: float = 1.0,
        wall_ms: int = 0,
    ) -> None:
        self._now_s = now_s
        self._since_s = now_s()  # true time of the last change of rate
        self._base_s = start_s  # own time then
        self.rate = rate
        self._wall_ms = wall_ms
        self._start_s = start_s

    def monotonic_s(self) -> float:
        """Own time."""
        return self._base_s + (self._now_s() - self._since_s) * self.rate

    def wall_ms(self) -> int:
        """Unix milliseconds, as this host believes."""
        return self._wall_ms + int((self.monotonic_s() - self._start_s) * 1000)

    def jump_wall(self, by_ms: int) -> None:
        """Set the wall clock forward, or back."""
        self._wall_ms += by_ms

    def true_s(self, own_s: float) -> float:
        """When this clock shows *own_s*, at the present rate."""
        return self._since_s + (own_s - self._base_s) / self.rate

    def set_rate(self, rate: float) -> None:
        """Run faster or slower from now on. Timers must be set anew: see ``VirtualLoop.retime``."""
        self._base_s, self._since_s = self.monotonic_s(), self._now_s()
        self.rate = rate


class Host:
    """One machine. *address*: its IP; *number*: names it in the trace. *up*: has power."""

    def __init__(self, name: str, number: int, address: str, clock: HostClock) -> None:
        self.name = name
        self.number = number
        self.address = address
        self.clock = clock
        self.up = True
        self.process: Process | None = None
        self.listeners: dict[int, Any] = {}  #: of ``network.Listening``, by port
        self.next_port = 40_000

    def begin(self) -> Process:
        """A new process, in the place of the one before, which must be dead."""
        if self.process is not None and self.process.alive:
            raise RuntimeError(f"a process runs on host {self.name} already")
        self.process = Process(self)
        return self.process

    def __repr__(self) -> str:
        return f"Host({self.name})"


class Process:
    """One process. *running*: neither dead nor paused; what is due meanwhile is in *pending*."""

    __slots__ = (
        "_tasks_seen",
        "alive",
        "context",
        "host",
        "name",
        "pending",
        "running",
        "sockets",
        "tasks",
    )  # fmt: skip

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = host.name
        self.alive = True
        self.running = True
        self.pending: list[Any] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._tasks_seen = 0
        self.sockets: dict[Any, None] = {}  #: of ``network.SimulatedTransport``
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Keep *task*, so that it lives as long as its process, and no longer."""
        self.tasks[task] = None
        self._tasks_seen += 1
        if self._tasks_seen > TASKS_KEPT:
            self._tasks_seen = 0
            self.tasks = {each: None for each in self.tasks if not each.done()}

    def __repr__(self) -> str:
        return f"Process({self.name}{'' if self.alive else ', dead'})"


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar(
    "simulated_process", default=None
)
