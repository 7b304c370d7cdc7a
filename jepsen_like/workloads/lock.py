"""Locks, and a read-write lock: who holds one adds to a register that it protects, by reading and
then writing under the token of its grant. Two holders at once would lose what one of them added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jepsen_like.checkers.grants import GrantChecker
from jepsen_like.history import Event
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.holding import HoldingWorkload
from quorate.client.database import Database
from quorate.client.locks import READERS_MAX, Lock

#: The name of the read-write lock; the others are plain ones.
SHARED: Final = "lock/shared"
READER: Final = "reader"
WRITER: Final = "writer"


class LockWorkload(HoldingWorkload):
    """See the module, and ``HoldingWorkload`` for the parameters. One read-write lock besides."""

    name = "lock"

    def __init__(self, *, names: int = 2, looks: float = 0.15) -> None:
        super().__init__(names=names, looks=looks)
        self._names.append(SHARED)

    def sides(self, name: str) -> tuple[str, ...]:
        return (READER, READER, WRITER) if name == SHARED else ("",)

    def permits(self, side: str) -> int:
        return READERS_MAX if side == WRITER else 1

    def handle(self, database: Database, name: str, ttl_s: float, side: str) -> Lock:
        if not side:
            return database.lock(name, ttl=ttl_s)
        lock = database.rwlock(name, ttl=ttl_s)
        return lock.writer() if side == WRITER else lock.reader()

    async def use(
        self, database: Database, name: str, handle: Lock, linger_s: float, side: str
    ) -> dict[str, Any]:
        if side == READER:
            await database.kv.put(f"{name}/seen", b"%d" % handle.token, fence=handle.fence)
            return {}
        return await super().use(database, name, handle, linger_s, side)

    def check(self, history: Sequence[Event]) -> Verdict:
        return GrantChecker(self.name, register=True, totals={SHARED: READERS_MAX}).check(history)
