"""Workers of tasks, of a workload: in its clients' processes, or processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jepsen_like.processes.crew import Crew
from jepsen_like.systems.base import OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of
from quorate.client.database import Database
from quorate.client.task_app import App
from quorate.client.task_worker import Worker
from quorate.errors import QuorateError

ERROR_PAUSE_S: Final = 0.2
#: All that is left at the end is done so soon.
DRAIN_S: Final = 25.0
POLL_S: Final = 0.1


class Staff:
    """*name*: of the workload. *app*: makes what a worker runs, and is given what takes lines of
    what its code does."""

    def __init__(self, name: str, app: Callable[[Callable[[list[Any]], None]], App]) -> None:
        self.crew: Crew | None = None
        self._name = name
        self._app = app
        self._acts: list[list[Any]] = []
        self._workers: list[Worker] = []
        self._drains = 0
        self._has_last = False

    async def hire(self, ours: QuorateClient, asked: dict[str, Any]) -> tuple[bool, Any]:
        """A worker with those options in this client's process, if it has none."""
        if self.crew is not None:
            if self.crew.full:
                return False, "all are there"
            return True, {"worker": await self.crew.hire(asked)}
        kept = self._kept(ours)
        if "worker" in kept or "hiring" in kept:
            return False, "has one"
        kept["hired"] = kept.get("hired", 0) + 1
        # Over a handle of its own: one that cannot be opened is closed for good.
        database = ours.another(f"{self._name}-{kept['hired']}")
        worker = Worker(database, self._app(self._acts.append), error_pause=ERROR_PAUSE_S, **asked)
        kept["hiring"] = True
        try:
            await outcome_of(worker.start())
        finally:
            del kept["hiring"]
        kept["worker"] = worker
        self._workers.append(worker)
        if "leave" not in kept:
            kept["leave"] = True
            ours.at_close.append(lambda: self._end(ours))
        return True, {"worker": worker.id}

    async def dismiss(self, ours: QuorateClient, grace_s: float) -> bool:
        """That worker, if there is one, drains, and goes."""
        if self.crew is not None:
            return self.crew.dismiss()
        worker: Worker | None = self._kept(ours).pop("worker", None)
        if worker is None:
            return False
        await outcome_of(worker.drain(grace_s))
        return True

    async def _end(self, ours: QuorateClient) -> None:
        with contextlib.suppress(OutcomeError):
            await self.dismiss(ours, 0.2)

    def _kept(self, ours: QuorateClient) -> dict[str, Any]:
        kept: dict[str, Any] = ours.kept.setdefault(self._name, {})
        return kept

    # --- the end ----------------------------------------------------------------------------------

    async def drain(
        self,
        ours: QuorateClient,
        prepare: Callable[[Database], Awaitable[None]],
        left: Callable[[Database], Awaitable[int]],
        **options: Any,  # noqa: ANN401  of a worker
    ) -> dict[str, Any]:
        """With a worker of *options* besides, until nothing is *left*, or the time is up; what is
        left then."""
        self._drains += 1
        database = ours.another(f"{self._name}-drain-{self._drains}")
        await outcome_of(prepare(database), reads=True)
        if self.crew is not None:
            if not self._has_last:
                await self.crew.hire(options)
                self._has_last = True
            return await outcome_of(_until_drained(database, left), reads=True)
        worker = Worker(
            database, self._app(self._acts.append), error_pause=ERROR_PAUSE_S, **options
        )
        try:
            await worker.start()
            drained = await _until_drained(database, left)
            await worker.drain()
        except QuorateError as error:
            with contextlib.suppress(QuorateError):
                await worker.drain(0.0)
            raise OutcomeError(f"{error.code}: {error}", definite=True) from error
        self._workers.append(worker)
        return drained

    def mark(self, line: str) -> None:
        """A line of ours among those of what code does: what comes after it comes later."""
        if self.crew is not None:
            self.crew.mark(line)
        else:
            self._acts.append([line])

    async def told(self) -> dict[str, Any]:
        """What all code did, and what workers were told of it. Processes are ended first."""
        counts = [worker.counts for worker in self._workers]
        done, stale = sum(each.done for each in counts), sum(each.stale for each in counts)
        if self.crew is None:
            return {"acts": self._acts, "done": done, "stale": stale}
        await self.crew.end()
        diaries = self.crew.diaries()
        return {"acts": diaries.acts, "done": diaries.taken, "stale": diaries.stale}


async def _until_drained(
    database: Database, left: Callable[[Database], Awaitable[int]]
) -> dict[str, Any]:
    now_s = asyncio.get_running_loop().time
    begun_s = now_s()
    while True:
        count = await left(database)
        if not count or now_s() > begun_s + DRAIN_S:
            return {"left": count, "seconds": round(now_s() - begun_s, 3)}
        await asyncio.sleep(POLL_S)
