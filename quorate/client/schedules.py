"""``db.schedules``: tasks that are enqueued again and again, whoever leads.

await db.schedules.put("report", "send-report", cron="0 7 * * mon-fri", zone="Europe/Berlin")
await db.schedules.put("sweep", "sweep-carts", every=60)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from quorate.base.cron import check_cron
from quorate.base.schedule_commands import (
    ListSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ScheduleInfo,
    TriggerSchedule,
)
from quorate.client.task_settings import KeyedSettings, duration_ms
from quorate.client.tasks import Tasks
from quorate.client.workflows import checked
from quorate.errors import ScheduleNotFoundError


class Schedules:
    """See the module."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def put(
        self,
        name: str,
        function: str,
        payload: bytes = b"",
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        cron: str = "",
        zone: str = "UTC",
        every: float = 0.0,
        misfire: Literal["skip", "once", "all"] = "once",
        overlap: bool = True,
        paused: bool = False,
        call_timeout: float | None = None,
        **settings: Unpack[KeyedSettings],
    ) -> None:
        """A schedule, in the place of the one of that name if there is one. *cron*: minute, hour,
        day of month, month, day of week (six fields: a second first), by the wall clocks of *zone*;
        or *every* so many seconds of cluster time. Each tick enqueues its task once, whoever leads.
        *misfire*: what of ticks that come more than half a minute too late, as nobody led: "skip"
        them, "once" for all of them, or "all" (no more than a thousand). *overlap* False: a tick is
        passed over while the task of the one before has not ended. The rest: as for
        ``db.tasks.enqueue``.

        Raises:
            InvalidArgumentError: there is no such expression or zone, or neither or both of *cron*
                and *every*.
        """
        if cron:
            check_cron(cron, zone)
        task = self._tasks.task(function, payload, args=args, kwargs=kwargs, **settings)
        every_ms = duration_ms("every", every)
        command = checked(
            lambda: PutSchedule(name, task, cron, zone, every_ms, misfire, overlap, paused)
        )
        await self._tasks.run(command, call_timeout)

    async def get(self, name: str, *, timeout: float | None = None) -> ScheduleInfo:
        """A schedule as it stands.

        Raises:
            ScheduleNotFoundError: there is none of that name.
        """
        async for info in self.list(timeout=timeout):
            if info.name == name:
                return info
        raise ScheduleNotFoundError(f"there is no schedule {name!a}")

    async def pause(self, name: str, *, timeout: float | None = None) -> None:
        """No ticks until ``resume``; those that pass meanwhile are not made up for.

        Raises:
            ScheduleNotFoundError: there is none of that name.
        """
        await self._tasks.run(checked(lambda: PauseSchedule(name)), timeout)

    async def resume(self, name: str, *, timeout: float | None = None) -> None:
        """Ticks again, from the next one on. Raises as ``pause``."""
        await self._tasks.run(checked(lambda: PauseSchedule(name, paused=False)), timeout)

    async def trigger(self, name: str, *, timeout: float | None = None) -> int:
        """Enqueue its task now, which is no tick; its id. 0: its unique key is held, its queue is
        full, or the task of before has not ended and *overlap* is False. Raises as ``pause``."""
        command = checked(lambda: TriggerSchedule(name))
        task: int = (await self._tasks.run(command, timeout)).task
        return task

    async def remove(self, name: str, *, timeout: float | None = None) -> bool:
        """No more ticks; tasks that were enqueued stay. False: there was none."""
        command = checked(lambda: RemoveSchedule(name))
        return bool((await self._tasks.run(command, timeout)).existed)

    async def list(self, *, timeout: float | None = None) -> AsyncIterator[ScheduleInfo]:
        """``async for info in db.schedules.list()``: by name."""
        after = ""
        while True:
            page = await self._tasks.ask(ListSchedules(after), timeout)
            for info in page.schedules:
                yield info
            if not page.more:
                return
            after = page.schedules[-1].name
