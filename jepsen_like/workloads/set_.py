"""Sets: unique elements are added, each to one of a few sets; nothing that was added may be missing
later. A set is one value in the store, changed by compare-and-set."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.set_ import SetChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.values import list_of, text_of_list, without_effect


class SetWorkload:
    """*sets* of them; *reads*: their share of the operations. *attempts*: an add that loses the
    race for the value so often fails."""

    name = "set"

    def __init__(self, *, sets: int = 8, reads: float = 0.1, attempts: int = 5) -> None:
        self._sets = sets
        self._reads = reads
        self._attempts = attempts
        self._added = 0

    async def setup(self, client: Client) -> None:
        """Nothing: a set that is not there is empty."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        key = f"set/{random.randrange(self._sets)}"
        if random.random() < self._reads:
            return Invocation("read", key)
        self._added += 1
        return Invocation("add", key, self._added)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "read":
            return True, list_of(await client.get(invocation.key))
        for _attempt in range(self._attempts):
            try:
                found = await client.get(invocation.key)
                elements = list_of(found)
            except OutcomeError as error:
                raise without_effect(error) from error
            new = text_of_list([*elements, invocation.value])
            if await client.compare_and_set(invocation.key, found.value, new):
                return True, invocation.value
        return False, invocation.value

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read", f"set/{number}") for number in range(self._sets)]

    def check(self, history: Sequence[Event]) -> Verdict:
        return SetChecker().check(history)
