"""Clients of a simulated cluster: they run the workloads' operations and write the histories.

Each client is one sequential process, or a few that share a handle. It takes the next operation
from one of the run's workloads, drawn by weight, and records what came of it in that workload's
history. After an unknown outcome it goes on under a new process number, as histories ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, Protocol, TypeVar

import msgspec

from jepsen_like.history import NEMESIS, Event, EventType
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.workloads.base import Invocation, Workload

T = TypeVar("T")

#: A final read or a setup is tried again after so long.
RETRY_S = 0.05
#: How many processes share a client's handle, and with it a session: one, mostly.
LANES = (1, 1, 3)


class Machines(Protocol):
    """Where clients run: each on a machine of its own, by name."""

    def client(self, name: str, timeout_s: float, *, wanders: bool) -> Client:
        """On machine *name*; its calls end after *timeout_s* seconds. *wanders*: it may read
        elsewhere than it writes."""
        ...

    async def call(self, name: str, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* there. Being cancelled never waits for it: the machine may be dead."""
        ...

    def crash_client(self, name: str) -> None:
        """That machine dies, with whatever runs there."""
        ...


class Tally(msgspec.Struct):
    """What came of the operations."""

    ok: int = 0
    fail: int = 0
    info: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ok + self.fail + self.info


class Load:
    """The clients of one run. *random*: of a client, by its number. *operations_max*: they stop
    by themselves after so many."""

    def __init__(
        self,
        workloads: Mapping[str, Workload],
        weights: Mapping[str, float],
        machines: Machines,
        *,
        random: Callable[[int], Random],
        timeout_s: float,
        think_s: float,
        operations_max: int,
    ) -> None:
        self.workloads = dict(workloads)
        self.histories: dict[str, list[Event]] = {name: [] for name in workloads}
        self.tally = Tally()
        self._names = list(workloads)
        self._weights = [weights[name] for name in workloads]
        self._machines = machines
        self._random = random
        self._timeout_s = timeout_s
        self._think_s = think_s
        self._left = operations_max
        self._next_process = 0
        self._clients: list[_Client] = []
        self._tasks: list[asyncio.Task[None]] = []

    # --- life -----------------------------------------------------------------------------------

    async def setup(self) -> None:
        """Let each workload prepare itself, again until it succeeds."""
        client = self.connect("setup")
        for workload in self.workloads.values():
            while True:
                try:
                    await self._machines.call("setup", workload.setup(client))
                    break
                except OutcomeError:
                    await asyncio.sleep(RETRY_S)
        await self.disconnect("setup", client)

    def start(self, count: int) -> None:
        """Begin with so many clients."""
        for number in range(count):
            client = _Client(self, number, self._random(number))
            self._clients.append(client)
            self._tasks.append(asyncio.get_running_loop().create_task(client.run()))

    @property
    def running(self) -> bool:
        """Whether any client has more to do."""
        return any(not task.done() for task in self._tasks)

    async def stop(self) -> None:
        """Let each client end what it is at, which takes no longer than a timeout."""
        self._left = 0
        for client in self._clients:
            client.paused_until_s = 0.0
        await asyncio.gather(*self._tasks, return_exceptions=False)
        await asyncio.gather(*(client.close() for client in self._clients))

    async def final_reads(self) -> None:
        """Ask what each workload wants to know at the end, until it is answered."""
        client = self.connect("final")
        for name, workload in self.workloads.items():
            for invocation in workload.last():
                await self._until_answered(name, client, invocation)
        await self.disconnect("final", client)

    async def _until_answered(self, name: str, client: Client, asked: Invocation) -> None:
        while True:
            outcome = await self.once(name, self.new_process(), "final", client, asked)
            if outcome == "ok":
                return
            await asyncio.sleep(RETRY_S)

    # --- what faults do to clients ----------------------------------------------------------------

    def crash(self, who: int) -> bool:
        """A client dies in the middle of what it does; another takes its place."""
        if not self._clients or self._tasks[who % len(self._tasks)].done():
            return False
        self._tasks[who % len(self._tasks)].cancel()
        return True

    def pause(self, who: int, until_s: float) -> bool:
        """A client does nothing between two operations for a while; its session may expire."""
        if self._clients:
            self._clients[who % len(self._clients)].paused_until_s = until_s
        return bool(self._clients)

    def twin(self, who: int) -> bool:
        """A client opens a second handle, and uses both in turn from then on."""
        if self._clients:
            self._clients[who % len(self._clients)].twins = True
        return bool(self._clients)

    def machine(self, who: int) -> str:
        """On which a client runs just now; "": none."""
        return self._clients[who % len(self._clients)].machine if self._clients else ""

    def machines(self) -> list[str]:
        """All on which clients run."""
        return [name for client in self._clients for name in client.machines]

    def tell(self, kind: str, number: int, do: str, what: str) -> None:
        """Write a fault into all histories: what a holder believes depends on it. *number*: the
        same when it begins and when it ends."""
        value = {"id": number, "do": do, "what": what}
        self._tell(kind, value, asyncio.get_running_loop().time(), list(self.histories))

    def tell_of_nodes(self, kind: str, value: dict[str, Any], now_s: float) -> None:
        """The same, into the histories of workloads that follow what becomes of nodes."""
        self._tell(
            kind, value, now_s, [name for name in self.histories if self.follows_nodes(name)]
        )

    def follows_nodes(self, name: str) -> bool:
        """Whether that workload is told what becomes of nodes."""
        return bool(getattr(self.workloads[name], "follows_nodes", False))

    def _tell(self, kind: str, value: dict[str, Any], now_s: float, names: list[str]) -> None:
        time_ns = round(now_s * 1e9)
        event = Event(process=NEMESIS, type="info", f=kind, value=value, time_ns=time_ns)
        for name in names:
            self.histories[name].append(event)

    # --- one operation --------------------------------------------------------------------------

    def new_process(self) -> int:
        """A number that no process had."""
        self._next_process += 1
        return self._next_process

    def take(self) -> bool:
        """Whether there is another operation to be done; counts it."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def draw(self, random: Random, process: int) -> tuple[str, Invocation]:
        """A workload's name, and its next operation."""
        name = random.choices(self._names, self._weights)[0]
        return name, self.workloads[name].next(random, process)

    async def once(
        self, name: str, process: int, machine: str, client: Client, asked: Invocation
    ) -> EventType:
        """Carry out and record one operation, by *client* on *machine*; how it ended."""
        self._record(name, process, "invoke", asked, asked.value)
        outcome: EventType = "info"
        value, error = asked.value, None
        try:
            done, value = await self._machines.call(machine, self.workloads[name].do(client, asked))
            outcome = "ok" if done else "fail"
        except OutcomeError as unknown:
            outcome, error = "fail" if unknown.definite else "info", str(unknown)
        except asyncio.CancelledError:
            self._record(name, process, "info", asked, value, "the client crashed")
            self.tally.info += 1
            raise
        self._record(name, process, outcome, asked, value, error)
        setattr(self.tally, outcome, getattr(self.tally, outcome) + 1)
        return outcome

    def _record(
        self,
        name: str,
        process: int,
        kind: EventType,
        asked: Invocation,
        value: Any,  # noqa: ANN401  whatever the workload says
        error: str | None = None,
    ) -> None:
        self.histories[name].append(
            Event(
                process=process,
                type=kind,
                f=asked.f,
                key=asked.key,
                value=value,
                time_ns=round(asyncio.get_running_loop().time() * 1e9),
                error=error,
            )
        )

    # --- for clients ----------------------------------------------------------------------------

    def connect(self, name: str, *, wanders: bool = False) -> Client:
        """A new handle."""
        return self._machines.client(name, self._timeout_s, wanders=wanders)

    def abandon(self, name: str) -> None:
        """The handle's machine dies: its connections break, its session ends by itself."""
        self._machines.crash_client(name)

    async def disconnect(self, name: str, client: Client) -> None:
        """Close the handle, politely."""
        await self._machines.call(name, client.close())

    def think_s(self, random: Random) -> float:
        """How long a client waits before its next operation: often not at all, seldom long."""
        return 0.0 if random.random() < 0.2 else random.expovariate(1 / self._think_s)


class _Client:
    """One process at a time, until the load ends; or several that share its handles."""

    def __init__(self, load: Load, number: int, random: Random) -> None:
        self.paused_until_s = 0.0
        self.twins = False
        self._load = load
        self._number = number
        self._random = random
        self._lives = 0
        self._lanes = random.choice(LANES)
        self._handles: dict[str, Client] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lanes = [loop.create_task(self._lane()) for _ in range(self._lanes)]
            try:
                await asyncio.gather(*lanes)
            except asyncio.CancelledError:
                for lane in lanes:
                    lane.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)
                self._die()
            else:
                return

    async def _lane(self) -> None:
        process = self._load.new_process()
        while True:
            outcome = await self._turn(process)
            if outcome is None:
                return
            if outcome == "info":
                process = self._load.new_process()

    async def _turn(self, process: int) -> EventType | None:
        """One operation; None: there is no more to do."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._load.think_s(self._random))
        while loop.time() < self.paused_until_s:  # noqa: ASYNC110  it may be set back
            await asyncio.sleep(RETRY_S)
        if not self._load.take():
            return None
        name, asked = self._load.draw(self._random, process)
        return await self._load.once(name, process, *self._handle(), asked)

    def _handle(self) -> tuple[str, Client]:
        wanted = 2 if self.twins else 1
        while len(self._handles) < wanted:
            self._lives += 1
            name = f"client-{self._number}.{self._lives}"
            self._handles[name] = self._load.connect(name, wanders=True)
        return self._random.choice(list(self._handles.items()))

    @property
    def machines(self) -> list[str]:
        """Where its handles are."""
        return list(self._handles)

    @property
    def machine(self) -> str:
        """The first of these; "": there is none."""
        return next(iter(self._handles), "")

    def _die(self) -> None:
        for name in self._handles:
            self._load.abandon(name)
        self._handles.clear()

    async def close(self) -> None:
        for name, handle in self._handles.items():
            await self._load.disconnect(name, handle)
