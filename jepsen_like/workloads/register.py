"""Registers: each key holds one value, written and read; every written value is unique."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.linearizable import Linearizable
from jepsen_like.checkers.models import RegisterModel
from jepsen_like.history import Event
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.keys import RotatingKeys
from jepsen_like.workloads.values import number_of, text_of


class RegisterWorkload:
    """*keys* at a time, each for *operations_per_key* operations; *reads*: their share."""

    name = "register"

    def __init__(self, *, keys: int = 5, operations_per_key: int = 200, reads: float = 0.5) -> None:
        self._keys = RotatingKeys("register/", keys, operations_per_key)
        self._reads = reads
        self._written = 0

    async def setup(self, client: Client) -> None:
        """Nothing: a key that is not there reads as None."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        key = self._keys.draw(random)
        if random.random() < self._reads:
            return Invocation("read", key)
        self._written += 1
        return Invocation("write", key, self._written)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "read":
            return True, number_of(await client.get(invocation.key))
        await client.put(invocation.key, text_of(invocation.value))
        return True, invocation.value

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read", key) for key in self._keys.used()]

    def check(self, history: Sequence[Event]) -> Verdict:
        return Linearizable(RegisterModel()).check(history)
