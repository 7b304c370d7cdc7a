"""Registers with compare-and-set: reads, writes, and exchanges of the value last seen for a new
one. Every new value is unique, so a value tells which operation wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.linearizable import Linearizable
from jepsen_like.checkers.models import DIFFERS, CasRegisterModel
from jepsen_like.history import Event
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.keys import RotatingKeys
from jepsen_like.workloads.values import number_of, text_of


class CasRegisterWorkload:
    """*keys* at a time, each for *operations_per_key* operations; *reads* and *writes*: their
    shares, the rest are exchanges."""

    name = "cas-register"

    def __init__(
        self,
        *,
        keys: int = 5,
        operations_per_key: int = 200,
        reads: float = 0.4,
        writes: float = 0.2,
    ) -> None:
        self._keys = RotatingKeys("cas-register/", keys, operations_per_key)
        self._reads = reads
        self._writes = writes
        self._written = 0
        self._seen: dict[str, int | None] = {}  # what any client last saw or wrote: a fair guess

    async def setup(self, client: Client) -> None:
        """Nothing: a key that is not there reads as None."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        key = self._keys.draw(random)
        kind = random.random()
        if kind < self._reads:
            return Invocation("read", key)
        self._written += 1
        if kind < self._reads + self._writes:
            return Invocation("write", key, self._written)
        return Invocation("cas", key, [self._seen.get(key), self._written])

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        key, value = invocation.key, invocation.value
        if invocation.f == "read":
            found = number_of(await client.get(key))
            self._seen[key] = found
            return True, found
        if invocation.f == "write":
            await client.put(key, text_of(value))
            self._seen[key] = value
            return True, value
        expected, new = value
        old = None if expected is None else text_of(expected)
        if await client.compare_and_set(key, old, text_of(new)):
            self._seen[key] = new
            return True, value
        return False, DIFFERS

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read", key) for key in self._keys.used()]

    def check(self, history: Sequence[Event]) -> Verdict:
        return Linearizable(CasRegisterModel()).check(history)
