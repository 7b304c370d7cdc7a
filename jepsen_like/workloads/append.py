"""Transactions that append to lists and read them: what they observed of each other is a graph, and
a cycle in it shows which isolation was broken (see ``checkers.append``)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.append import AppendChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.keys import RotatingKeys
from jepsen_like.workloads.values import list_of, text_of_list, without_effect

#: What a transaction fails with that lost the race for its keys too often.
CONTENDED = "contended"


class AppendWorkload:
    """*keys* lists at a time, each replaced after *uses_per_key* uses; transactions of one to
    *length_max* steps. A transaction that loses the race for its keys *attempts* times fails."""

    name = "append"

    def __init__(
        self, *, keys: int = 5, uses_per_key: int = 64, length_max: int = 4, attempts: int = 3
    ) -> None:
        self._keys = RotatingKeys("append/", keys, uses_per_key)
        self._length_max = length_max
        self._attempts = attempts
        self._appended = 0

    async def setup(self, client: Client) -> None:
        """Nothing: a list that is not there is empty."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        steps: list[list[Any]] = []
        for _step in range(random.randint(1, self._length_max)):
            key = self._keys.draw(random)
            if random.random() < 0.5:
                steps.append(["r", key, None])
            else:
                self._appended += 1
                steps.append(["append", key, self._appended])
        return Invocation("txn", None, steps)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        keys = list(dict.fromkeys(key for _f, key, _value in invocation.value))
        for _attempt in range(self._attempts):
            try:
                _true, found = await client.transact({}, keys, {})
                lists = {key: list_of(found[key]) for key in keys}
            except OutcomeError as error:
                raise without_effect(error) from error
            steps, changed = _carry_out(invocation.value, lists)
            writes = {key: text_of_list(lists[key]) for key in changed}
            unchanged = {key: found[key].version for key in keys}
            if not writes or (await client.transact(unchanged, [], writes))[0]:
                return True, steps
        return False, CONTENDED

    def last(self) -> Sequence[Invocation]:
        return [Invocation("txn", None, [["r", key, None]]) for key in self._keys.used()]

    def check(self, history: Sequence[Event]) -> Verdict:
        return AppendChecker().check(history)


def _carry_out(asked: list[list[Any]], lists: dict[str, list[int]]) -> tuple[list[Any], list[str]]:
    """The steps with what they read, on *lists*, which change; and the keys that did."""
    steps: list[list[Any]] = []
    changed: dict[str, None] = {}
    for f, key, value in asked:
        if f == "append":
            lists[key].append(value)
            changed[key] = None
            steps.append([f, key, value])
        else:
            steps.append([f, key, list(lists[key])])
    return steps, list(changed)
