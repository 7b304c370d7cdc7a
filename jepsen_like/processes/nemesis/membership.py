"""Faults that are an operator's work: nodes join, get a vote, are replaced, leave.

Each step is tried until it is done or its time is over: other faults may be under way. What is
left unfinished is put right by ``tidy`` when the run ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from jepsen_like.processes.nemesis.stage import RETRY_S, Stage, wait_until
from jepsen_like.systems.base import OutcomeError
from jepsen_like.systems.system import Members, System

STEP_TIMEOUT_S: Final = 45.0
TIDY_TIMEOUT_S: Final = 90.0


class Membership:
    """A fourth node joins and is promoted, then one of the four is removed, perhaps the leader."""

    name = "membership"

    def missing(self, system: System) -> str:
        return "" if isinstance(system, Members) else f"{system.name} cannot change its members"

    async def strike(self, stage: Stage) -> None:
        if not isinstance(stage.system, Members):
            return
        async with stage.surgery:
            added = await grow(stage)
            if added == 0:
                return
            await stage.hold(0.2, 3.0)
            with contextlib.suppress(OutcomeError):
                voters = await stage.system.voters()
                leader = await stage.system.leader()
                leaving = stage.random.choice([*voters, leader or voters[0]])
                if len(voters) > stage.system.count:
                    await shrink(stage, leaving)


async def grow(stage: Stage) -> int:
    """A new node joins and gets its vote; its number, 0 if that was not done in time."""
    system, number = stage.system, stage.new_number()
    if not isinstance(system, Members):
        return 0

    async def known() -> bool:
        return number in await system.members()

    async def votes() -> bool:
        return number in await system.voters()

    async with stage.fault("join", f"node {number} joins", [number]):
        await system.join(number)
        if not await stage.persist(lambda: system.add(number), known, STEP_TIMEOUT_S):
            stage.note("join", f"node {number} was not let in within {STEP_TIMEOUT_S:g} s")
            return 0
    async with stage.fault("promote", f"node {number} gets a vote", [number]):
        if not await stage.persist(lambda: system.promote(number), votes, STEP_TIMEOUT_S):
            stage.note("promote", f"node {number} got no vote within {STEP_TIMEOUT_S:g} s")
            return 0
    return number


async def shrink(stage: Stage, number: int) -> bool:
    """Node *number* leaves for good; whether that was done in time."""
    system = stage.system
    if not isinstance(system, Members):
        return False

    async def gone() -> bool:
        return number not in await system.members()

    async with stage.fault("remove", f"node {number} leaves", [number]):
        if not await stage.persist(lambda: system.remove(number), gone, STEP_TIMEOUT_S):
            stage.note("remove", f"node {number} was not removed within {STEP_TIMEOUT_S:g} s")
            return False
    await dismiss(stage, number)
    return True


async def dismiss(stage: Stage, number: int) -> None:
    """End the process of a node that is a member no more; waits while a fault has hold of it."""
    node = stage.system.nodes.get(number)
    if node is not None:
        await wait_until(lambda: not node.claimed, STEP_TIMEOUT_S)
    if number in stage.system.nodes:
        stage.system.forget_node(number)


async def tidy(stage: Stage) -> None:
    """Once all faults are healed: every node is a voter, and every voter has its node."""
    system = stage.system
    if not isinstance(system, Members):
        return
    end_s = time.monotonic() + TIDY_TIMEOUT_S
    while True:
        try:
            members = await system.members()
            wrong = _untidy(system, members)
            if not wrong:
                return
            for number in wrong:
                if number not in members:
                    await dismiss(stage, number)
                elif number not in system.nodes:
                    await system.remove(number)
                else:
                    await system.promote(number)
        except OutcomeError as error:
            if time.monotonic() > end_s:
                stage.problem(
                    f"the membership could not be put right {TIDY_TIMEOUT_S:g} s after all faults "
                    f"were healed: {error}"
                )
                return
        await asyncio.sleep(RETRY_S)


def _untidy(system: System, members: dict[int, bool]) -> list[int]:
    """Nodes that are no members, members that are no nodes, and members without a vote."""
    strangers = [number for number in system.nodes if number not in members]
    lost = [number for number in members if number not in system.nodes]
    voteless = [number for number, votes in members.items() if not votes and number not in lost]
    return [*strangers, *lost, *voteless]
