"""From a failing plan to a small one that still fails in the same way.

First faults are left out, in ever smaller groups (delta debugging); then the run is cut short, and
operations, clients, workloads and nodes are taken away, as long as a violation of the same name
remains. What is left usually tells the story: two faults, in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from jepsen_like.simulation.plan import Plan, Settings, without

#: Whether a plan still fails in the way that is being chased.
Fails = Callable[[Plan], bool]


class Shrunk(msgspec.Struct, frozen=True):
    """*tries*: how many plans were run for it."""

    plan: Plan
    tries: int


def shrink(plan: Plan, fails: Fails, *, tries_max: int) -> Shrunk:
    """A smaller plan for which *fails* holds as it does for *plan*; at most *tries_max* runs."""
    left = [tries_max]

    def holds(candidate: Plan) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        return fails(candidate)

    while left[0] > 0:
        smaller = _fewer_settings(_fewer_faults(plan, holds), holds)
        if smaller == plan:
            break
        plan = smaller
    return Shrunk(plan, tries_max - left[0])


def _fewer_faults(plan: Plan, holds: Fails) -> Plan:
    size = max(len(plan.faults) // 2, 1)
    while plan.faults:
        at, shrunk = 0, False
        while at < len(plan.faults):
            candidate = without(plan, range(at, at + size))
            if holds(candidate):
                plan, shrunk = candidate, True
            else:
                at += size
        if size == 1 and not shrunk:
            break
        if not shrunk:
            size //= 2
    return plan


def _fewer_settings(plan: Plan, holds: Fails) -> Plan:
    shrunk = True
    while shrunk:
        shrunk = False
        for settings in _smaller(plan):
            candidate = msgspec.structs.replace(plan, settings=settings)
            if holds(candidate):
                plan, shrunk = candidate, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Settings]:
    """Settings with one thing less, the greatest simplifications first."""
    settings = plan.settings
    replace = msgspec.structs.replace
    last_s = max((fault.at_s for fault in plan.faults), default=0.0)
    for seconds in (round(last_s + 0.5, 1), round(settings.seconds / 2, 1)):
        if last_s < seconds < settings.seconds:
            yield replace(settings, seconds=seconds)
    for count in (0, settings.operations_max // 2, settings.operations_max - 1):
        if 0 <= count < settings.operations_max:
            yield replace(settings, operations_max=count)
    for count in (1, settings.clients // 2, settings.clients - 1):
        if 1 <= count < settings.clients:
            yield replace(settings, clients=count)
    if len(settings.workloads) > 1:
        for name in settings.workloads:
            yield replace(settings, workloads={name: 1.0})
    if settings.learners:
        yield replace(settings, learners=settings.learners - 1)
    for count in (1, 3):
        if count < settings.voters:
            yield replace(settings, voters=count)
    if settings.clock_rates:
        yield replace(settings, clock_rates=())
