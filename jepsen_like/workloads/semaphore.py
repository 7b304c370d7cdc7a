"""Semaphores: never more permits in use than there are. Who has one writes a key of its own under
the token of its grant, which is refused once the grant is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jepsen_like.checkers.grants import GrantChecker
from jepsen_like.history import Event
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.holding import HoldingWorkload
from quorate.client.database import Database
from quorate.client.locks import Lock


class SemaphoreWorkload(HoldingWorkload):
    """*permits*: of each name; some want two of them at once. See ``HoldingWorkload`` for the
    rest."""

    name = "semaphore"

    def __init__(self, *, permits: int = 3, names: int = 1, looks: float = 0.15) -> None:
        super().__init__(names=names, looks=looks)
        self._permits = permits

    def looks(self) -> tuple[str, ...]:
        return ("inspect",)

    def sides(self, name: str) -> tuple[str, ...]:
        del name
        return ("1", "1", "2")

    def permits(self, side: str) -> int:
        return int(side)

    def handle(self, database: Database, name: str, ttl_s: float, side: str) -> Lock:
        return database.semaphore(name, self._permits, take=int(side), ttl=ttl_s)

    async def use(
        self, database: Database, name: str, handle: Lock, linger_s: float, side: str
    ) -> dict[str, Any]:
        del side
        await asyncio.sleep(linger_s)
        await database.kv.put(f"{name}/used", b"%d" % handle.token, fence=handle.fence)
        return {}

    def check(self, history: Sequence[Event]) -> Verdict:
        return GrantChecker(self.name, permits=self._permits).check(history)
