"""Faults that only converging data has to bear: nodes that are cut off for long and die there, data
that is lost or set back alone, wall clocks an hour off, and members that were removed and come back
with all that they had."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from jepsen_like.simulation.atlas import Atlas
from jepsen_like.simulation.membership import Keeper
from jepsen_like.simulation.plan import Fault
from jepsen_like.simulation.stage import Stage

HOUR_MS: Final = 3_600_000
#: A node is cut off for up to so long.
CUT_OFF_S: Final = 4.0
#: How often a node that is cut off dies there, and comes back before the links do.
DIES_CHANCE: Final = 0.4

Pairs = list[tuple[int, int]]


class ConvergingFaults:
    """*cut*, *heal*: links between nodes."""

    def __init__(
        self,
        stage: Stage,
        atlas: Atlas,
        keeper: Keeper,
        cut: Callable[[Pairs], None],
        heal: Callable[[Pairs], None],
    ) -> None:
        self._stage = stage
        self._atlas = atlas
        self._keeper = keeper
        self._cut = cut
        self._heal = heal
        #: By kind of fault.
        self.kinds: dict[str, Callable[[Fault], Awaitable[bool]]] = {
            "cut-off": self._cut_off,
            "wall-hour": self._wall_hour,
            "elements-lost": self._elements_lost,
            "elements-back": self._elements_back,
            "return": self._return,
        }

    def _one(self, fault: Fault) -> int | None:
        running = [node for node in self._stage.nodes() if self._stage.runs(node)]
        return running[fault.who % len(running)] if running else None

    async def _cut_off(self, fault: Fault) -> bool:
        """One node hears nobody and is heard by nobody; perhaps it dies and comes back there."""
        nodes, node = self._stage.nodes(), self._one(fault)
        if node is None or len(nodes) < 2:
            return False
        random = Random(fault.seed)
        links = [pair for each in nodes if each != node for pair in ((each, node), (node, each))]
        self._cut(links)
        try:
            seconds = 0.3 + CUT_OFF_S * fault.strength
            if random.random() < DIES_CHANCE:
                await asyncio.sleep(seconds * 0.3)
                if self._stage.runs(node):
                    self._stage.crash(node, power=random.random() < 0.5)
                    await asyncio.sleep(0.1)
                    await self._stage.start(node)
                seconds *= 0.7
            await asyncio.sleep(seconds)
        finally:
            self._heal(links)
        return True

    async def _wall_hour(self, fault: Fault) -> bool:
        """Its wall clock is an hour off, one way or the other, until another such fault."""
        node = self._one(fault)
        if node is None:
            return False
        self._stage.jump_wall(node, HOUR_MS if fault.seed % 2 else -HOUR_MS)
        return True

    async def _elements_lost(self, fault: Fault) -> bool:
        """All converging data of a node is gone, and its log is not."""
        node = self._one(fault)
        if node is None or not self._may_lose(node):
            return False
        self._atlas.debts.owe(node)
        self._stage.crash(node, power=True)
        self._stage.lose_elements(node, None)
        await asyncio.sleep(0.1)
        await self._stage.start(node)
        return True

    async def _elements_back(self, fault: Fault) -> bool:
        """Somebody restores an old copy of a node's converging data, and nothing else."""
        node = self._one(fault)
        if node is None:
            return False
        backup = self._stage.disk(node).backup().elements
        await asyncio.sleep(fault.seconds + 2 * fault.strength)
        if not self._stage.runs(node) or not self._may_lose(node):
            return False
        self._atlas.debts.owe(node)
        self._stage.crash(node, power=True)
        self._stage.lose_elements(node, backup)
        await asyncio.sleep(0.1)
        await self._stage.start(node)
        return True

    def _may_lose(self, node: int) -> bool:
        return not self._atlas.changing.locked() and self._atlas.debts.can_spare(node)

    async def _return(self, fault: Fault) -> bool:
        """A node that was removed starts again, with all that it had. Nobody is to take it in."""
        gone = [node for node in self._keeper.leaving if self._keeper.retired(node)]
        if not gone:
            return False
        node = gone[fault.who % len(gone)]
        self._stage.start_retired(node)
        await asyncio.sleep(fault.seconds + 2.0)
        self._stage.retire(node)
        return True
