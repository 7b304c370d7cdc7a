"""A workload of the tests' own: a counter that only grows, one client's view at a time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.history import Event, operations
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation


class SmallWorkload:
    """Adds to one key and reads it; the last read lies between the sure and the possible adds."""

    name = "small"

    async def setup(self, client: Client) -> None:
        await client.put("n", b"0")

    def next(self, random: Random, process: int) -> Invocation:
        return Invocation("read", "n") if random.random() < 0.3 else Invocation("add", "n", 1)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "add":
            await client.add("n", invocation.value)
            return True, invocation.value
        return True, int((await client.get("n")).value or b"0")

    def last(self) -> Sequence[Invocation]:
        return (Invocation("read", "n"),)

    def check(self, history: Sequence[Event]) -> Verdict:
        found = operations(history)
        adds = [each for each in found if each.invoked.f == "add"]
        sure = sum(each.outcome == "ok" for each in adds)
        possible = sum(each.outcome != "fail" for each in adds)
        reads = [each.completed for each in found if each.invoked.f == "read"]
        last = reads[-1].value if reads and reads[-1] is not None else None
        if last is not None and sure <= last <= possible:
            return Verdict(checker="small", valid=True, facts={"sure": sure, "last": last})
        problem = f"{sure} adds were acknowledged, {possible} possible, and the last read is {last}"
        return Verdict(checker="small", valid=False, problems=(problem,))
