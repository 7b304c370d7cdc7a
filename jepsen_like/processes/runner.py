"""One run: a system, a workload, faults; then healing, final reads, and the verdict.

Workers are coroutines, each with a client of its own; an operation whose outcome is unknown ends
the *process* that the history knows the worker by, and the worker goes on under a new number. All
events get their time and place in the history on one loop, so their order is the true one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

import msgspec

from jepsen_like.errors import SetupError
from jepsen_like.history import Event, EventType
from jepsen_like.processes.nemesis.schedule import heal, strike_until_stopped
from jepsen_like.processes.nemesis.stage import Package, Stage
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.system import System
from jepsen_like.verdict import PROBLEMS_MAX, Verdict, merge
from jepsen_like.workloads.base import Invocation, Workload

SETUP_TIMEOUT_S: Final = 30.0
LAST_TIMEOUT_S: Final = 60.0  # for all final reads together
RETRY_S: Final = 0.2
#: A call may be so much later than its own deadline before the worker gives up on it.
GRACE_S: Final = 3.0
#: After so many operations in a row that did not succeed, a worker connects anew.
FAILURES_MAX: Final = 5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """*rate*: operations begun per second, by all workers together. *interval_s*: between two
    strikes of a package, on average. *last_timeout_s*: of each of the final operations."""

    seconds: float = 60.0
    workers: int = 10
    rate: float = 200.0
    interval_s: float = 3.0
    timeout_s: float = 2.0
    last_timeout_s: float = 5.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was. *verdict*: of all *parts*, which are of the workload's checker and of what
    was seen of the nodes. *recovery_s*: from the last healing until every node served."""

    history: Sequence[Event]
    verdict: Verdict
    parts: Sequence[Verdict]
    counts: Mapping[str, int]
    faults: Mapping[str, int]
    recovery_s: float


class Runner:
    """See the module; ``run`` is called once, on a system that was not started yet."""

    def __init__(
        self,
        system: System,
        workload: Workload,
        packages: Sequence[Package],
        random: Random,
        settings: Settings,
    ) -> None:
        self._system = system
        self._workload = workload
        self._packages = packages
        self._random = random
        self._settings = settings
        self._began_ns = time.monotonic_ns()
        self.history: list[Event] = []
        self._next_process = settings.workers
        self._closing: set[asyncio.Task[None]] = set()
        self._counts = {"ok": 0, "fail": 0, "info": 0}

    async def run(self) -> Outcome:
        """Everything, from starting the nodes to the verdict; the system is closed at the end.

        Raises:
            SetupError: the system did not start, or did not take the workload's first writes.
        """
        stage = Stage(self._system, self._random, self.history.append, self._time_ns)
        try:
            await self._system.start()
            await self._set_up()
            self._began_ns = time.monotonic_ns()
            await self._under_faults(stage)
            recovery_s = await heal(stage)
            await self._last(stage)
            for text in await self._system.audit():
                stage.problem(text)
            await asyncio.gather(*self._closing, return_exceptions=True)
        finally:
            self._system.close()
        told = Verdict(
            checker="nodes",
            valid=not stage.problems_count,
            problems=tuple(stage.problems[:PROBLEMS_MAX]),
            facts={"problems": stage.problems_count, "recovery_s": round(recovery_s, 1)},
        )
        checked = await asyncio.get_running_loop().run_in_executor(
            None, self._workload.check, self.history
        )
        return Outcome(
            history=self.history,
            verdict=merge("run", [checked, told]),
            parts=(checked, told),
            counts=self._counts,
            faults=stage.counts,
            recovery_s=recovery_s,
        )

    def _time_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    async def _set_up(self) -> None:
        """Until it succeeds once."""
        client, end_s = self._system.client(0), time.monotonic() + SETUP_TIMEOUT_S
        try:
            while True:
                try:
                    await self._workload.setup(client)
                    return
                except OutcomeError as error:
                    if time.monotonic() > end_s:
                        raise SetupError(
                            f"{self._system.name} does not take the first writes of workload "
                            f"{self._workload.name}: {error}"
                        ) from error
                await asyncio.sleep(RETRY_S)
        finally:
            await client.close()

    async def _under_faults(self, stage: Stage) -> None:
        settings = self._settings
        ends_s = time.monotonic() + settings.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(settings.workers):
                group.create_task(self._work(number, stage))
            group.create_task(strike_until_stopped(stage, self._packages, settings.interval_s))
            await asyncio.sleep(max(ends_s - time.monotonic(), 0.0))
            stage.stop()

    # --- workers ---------------------------------------------------------------------------------

    async def _work(self, process: int, stage: Stage) -> None:
        pause_s = self._settings.workers / self._settings.rate
        client = self._system.client(process)
        failures = 0
        while True:
            await stage.hold(0.5 * pause_s, 1.5 * pause_s)
            if stage.stopping:
                break
            invocation = self._workload.next(self._random, process)
            event = await self._one(process, client, invocation)
            failures = 0 if event.type == "ok" else failures + 1
            if event.type == "info":
                process = self._new_process()
            if failures >= FAILURES_MAX:
                failures = 0
                self._close_soon(client)
                client = self._system.client(process)
        # Not when the run is broken off: nobody would wait for the farewell.
        self._close_soon(client)

    async def _one(
        self, process: int, client: Client, invocation: Invocation, timeout_s: float = 0.0
    ) -> Event:
        """One operation, with its two events; returns the second."""
        began_s = time.monotonic()
        self._record(process, "invoke", invocation)
        try:
            async with asyncio.timeout(max(self._settings.timeout_s + GRACE_S, timeout_s)):
                happened, value = await self._workload.do(client, invocation)
        except TimeoutError:
            waited_s = time.monotonic() - began_s
            text = f"the client did not return within {waited_s:.1f} s"
            return self._record(process, "info", invocation, text)
        except OutcomeError as error:
            kind: EventType = "fail" if error.definite else "info"
            return self._record(process, kind, invocation, str(error))
        answered = msgspec.structs.replace(invocation, value=value)
        return self._record(process, "ok" if happened else "fail", answered)

    def _record(
        self, process: int, kind: EventType, said: Invocation, error: str | None = None
    ) -> Event:
        event = Event(
            process=process,
            type=kind,
            f=said.f,
            key=said.key,
            value=said.value,
            time_ns=self._time_ns(),
            error=error,
        )
        self.history.append(event)
        if kind != "invoke":
            self._counts[kind] += 1
        return event

    def _new_process(self) -> int:
        self._next_process += 1
        return self._next_process - 1

    def _close_soon(self, client: Client) -> None:
        """A client takes leave of its system, which may take a moment."""

        async def close() -> None:
            with contextlib.suppress(OutcomeError):
                await client.close()

        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- the end ---------------------------------------------------------------------------------

    async def _last(self, stage: Stage) -> None:
        """The workload's final reads, each until it is answered."""
        end_s = time.monotonic() + LAST_TIMEOUT_S
        process = self._new_process()
        client = self._system.client(process)
        limit_s = self._settings.last_timeout_s
        try:
            for invocation in self._workload.last():
                while (event := await self._one(process, client, invocation, limit_s)).type != "ok":
                    if time.monotonic() > end_s:
                        stage.problem(
                            f"the final {invocation.f} of {invocation.key!r} was not answered "
                            f"within {LAST_TIMEOUT_S:g} s after healing: {event.error}"
                        )
                        return
                    if event.type == "info":
                        process = self._new_process()
                    await asyncio.sleep(RETRY_S)
        finally:
            self._close_soon(client)
