"""Several workloads against one system at once: "crdt-counter,crdt-set". In the history their
operations have their workload's name before their own; each is judged by what is its own."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from jepsen_like.history import NEMESIS, Event
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict, merge
from jepsen_like.workloads.base import Invocation, Workload

#: Between the name of a workload and that of an operation.
OF: Final = ":"


class MixedWorkload:
    """*workloads*, each as often as the others."""

    def __init__(self, workloads: Sequence[Workload]) -> None:
        self._workloads = {workload.name: workload for workload in workloads}
        self.name = ",".join(self._workloads)
        #: As many clients as the one needs that needs most; 10 are enough for most.
        self.workers = max(getattr(workload, "workers", 10) for workload in workloads)
        self.parts = list(workloads)

    async def setup(self, client: Client) -> None:
        for workload in self._workloads.values():
            await workload.setup(client)

    def next(self, random: Random, process: int) -> Invocation:
        name = random.choice(list(self._workloads))
        return _named(name, self._workloads[name].next(random, process))

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        name, _, f = invocation.f.partition(OF)
        return await self._workloads[name].do(client, replace(invocation, f=f))

    def last(self) -> Sequence[Invocation]:
        return [
            _named(name, asked)
            for name, workload in self._workloads.items()
            for asked in workload.last()
        ]

    def check(self, history: Sequence[Event]) -> Verdict:
        return merge(
            self.name,
            [workload.check(_part(name, history)) for name, workload in self._workloads.items()],
        )


def _named(name: str, invocation: Invocation) -> Invocation:
    return replace(invocation, f=f"{name}{OF}{invocation.f}")


def _part(name: str, history: Sequence[Event]) -> list[Event]:
    """What is of workload *name*, and what the nemesis did."""
    found = []
    for event in history:
        if event.process == NEMESIS:
            found.append(event)
        elif event.f.startswith(name + OF):
            found.append(replace(event, f=event.f.removeprefix(name + OF)))
    return found
