"""Elections: who leads writes under its epoch, as the holder of a lock does, and others look who
leads, or watch it change. Epochs never overlap in effect, and nobody sees them go back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from jepsen_like.checkers.grants import GrantChecker
from jepsen_like.history import Event
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.holding import HoldingWorkload
from quorate.client.database import Database
from quorate.client.elections import Leader
from quorate.client.locks import Lock

#: How long somebody watches who leads.
OBSERVE_S: Final = 0.3


class ElectionWorkload(HoldingWorkload):
    """See the module, and ``HoldingWorkload`` for the parameters."""

    name = "election"

    def __init__(self, *, names: int = 2, looks: float = 0.25) -> None:
        super().__init__(names=names, looks=looks)

    def looks(self) -> tuple[str, ...]:
        return ("inspect", "read", "leader", "observe")

    def handle(self, database: Database, name: str, ttl_s: float, side: str) -> Lock:
        del side
        return database.election(name, b"proclaimed", ttl=ttl_s)

    async def look(self, database: Database, f: str, name: str) -> Any:  # noqa: ANN401  by kind
        if f == "leader":
            leader = await database.election(name).leader()
            return 0 if leader is None else leader.epoch
        if f == "observe":
            return await _observe(database, name)
        return await super().look(database, f, name)

    def check(self, history: Sequence[Event]) -> Verdict:
        return GrantChecker(self.name, register=True).check(history)


async def _observe(database: Database, name: str) -> list[int]:
    """Epochs in the order in which they were told; 0: nobody led."""
    told: list[Leader | None] = []
    async with database.election(name).observe() as leaders:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OBSERVE_S):
                async for leader in leaders:
                    told.append(leader)  # noqa: PERF401  what was told is kept when time is up
    return [0 if leader is None else leader.epoch for leader in told]
