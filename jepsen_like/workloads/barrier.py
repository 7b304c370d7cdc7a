"""Barriers and a double barrier: parties wait for each other, some of them not long enough, and
some die at the door or inside."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.barriers import BarrierChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from quorate.base.limits import LEASE_TTL_MS_MIN
from quorate.client.barriers import DoubleBarrier
from quorate.errors import AlreadyHeldError, LockTimeoutError, QuorateError

#: Names, and how many parties each has. The last one is a double barrier.
PARTIES: Final = {"barrier/2": 2, "barrier/3": 3, "barrier/double": 2}
DOUBLE: Final = "barrier/double"
#: Seconds that a party waits at most.
WAITS_S: Final = (0.3, 1.0, 3.0)
TTL_S: Final = LEASE_TTL_MS_MIN / 1000
#: A party that is inside by another handle of its client's looks there so often.
LOOKS_MAX: Final = 5


class BarrierWorkload:
    """*counts*: the share of operations that only look."""

    name = "barrier"

    def __init__(self, *, counts: float = 0.1) -> None:
        self._counts = counts
        self._visits = 0
        #: The visit that each process is inside for, and how often it looked for its handle.
        self._inside: dict[int, tuple[int, int]] = {}

    async def setup(self, client: Client) -> None:
        """Nothing: a name comes to be by its first use."""
        quorate_client(client)

    def next(self, random: Random, process: int) -> Invocation:
        name = random.choice(tuple(PARTIES))
        if random.random() < self._counts:
            return Invocation("count", name)
        asked = {"wait": random.choice(WAITS_S), "parties": PARTIES[name]}
        visit, looks = self._inside.get(process, (0, 0))
        if visit:
            self._inside[process] = (visit, looks + 1)
            return Invocation("leave", DOUBLE, {**asked, "visit": visit, "process": process})
        if name == DOUBLE:
            self._visits += 1
            asked |= {"visit": self._visits, "process": process}
            return Invocation("enter", name, asked)
        return Invocation("wait", name, asked)

    def last(self) -> Sequence[Invocation]:
        """Whoever went away is gone, and whoever died."""
        return [Invocation("empty", name) for name in PARTIES]

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        f, name, asked = invocation.f, invocation.key, invocation.value
        if f in {"count", "empty"}:
            return await self._look(ours, f, name)
        try:
            if f == "wait":
                barrier = ours.database.barrier(name, asked["parties"], ttl=TTL_S)
                await barrier.wait(asked["wait"])
            elif f == "enter":
                await self._enter(ours, name, asked)
            else:
                return await self._leave(ours, asked)
        except (LockTimeoutError, AlreadyHeldError) as error:
            return False, error.code
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
        return True, None

    async def _look(self, ours: QuorateClient, f: str, name: str) -> tuple[bool, Any]:
        handle = ours.database.double_barrier(name, PARTIES[name], ttl=TTL_S)
        info = await outcome_of(handle.status(), reads=True)
        if f == "empty" and info.parties:
            raise OutcomeError(f"somebody is there still: {info}", definite=True)
        fields = ("parties", "waiting", "inside", "leaving")
        return True, {field: getattr(info, field) for field in fields}

    async def _enter(self, ours: QuorateClient, name: str, asked: dict[str, Any]) -> None:
        handle = ours.database.double_barrier(name, asked["parties"], ttl=TTL_S)
        await handle.enter(asked["wait"])
        handles: dict[int, DoubleBarrier] = ours.kept.setdefault(self.name, {})
        handles[asked["visit"]] = handle
        self._inside[asked["process"]] = (asked["visit"], 0)

    async def _leave(self, ours: QuorateClient, asked: dict[str, Any]) -> tuple[bool, Any]:
        handles: dict[int, DoubleBarrier] = ours.kept.setdefault(self.name, {})
        handle = handles.pop(asked["visit"], None)
        _visit, looks = self._inside.get(asked["process"], (0, LOOKS_MAX))
        if handle is None and looks < LOOKS_MAX:
            return False, "inside by another handle"
        self._inside.pop(asked["process"], None)
        if handle is None:
            return False, "the handle is gone"
        await handle.leave(asked["wait"])
        return True, None

    def check(self, history: Sequence[Event]) -> Verdict:
        return BarrierChecker().check(history)
