"""Counters: numbers are added, as one command each, and the sums are read."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.counter import CounterChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.values import number_of


class CounterWorkload:
    """*counters* of them; *reads*: their share. *negative*: some numbers are below zero, which
    tells less: a lost one may hide behind another."""

    name = "counter"

    def __init__(self, *, counters: int = 3, reads: float = 0.3, negative: bool = False) -> None:
        self._counters = counters
        self._reads = reads
        self._negative = negative

    async def setup(self, client: Client) -> None:
        """Nothing: a counter that is not there is 0."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        key = f"counter/{random.randrange(self._counters)}"
        if random.random() < self._reads:
            return Invocation("read", key)
        number = random.randint(1, 5)
        if self._negative and random.random() < 0.5:
            number = -number
        return Invocation("add", key, number)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "read":
            return True, number_of(await client.get(invocation.key), 0)
        return True, await client.add(invocation.key, invocation.value)

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read", f"counter/{number}") for number in range(self._counters)]

    def check(self, history: Sequence[Event]) -> Verdict:
        return CounterChecker().check(history)
