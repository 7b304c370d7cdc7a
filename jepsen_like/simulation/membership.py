"""Changes of a simulated cluster's members, as an operator makes them: through a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jepsen_like.simulation.atlas import Atlas
from jepsen_like.simulation.stage import Stage
from quorate.client.database import Database
from quorate.errors import QuorateError

#: Most members at any time, so that a run stays small.
MEMBERS_MAX: Final = 7
CALL_TIMEOUT_S: Final = 3.0
#: The host that the operator works at.
OPERATOR: Final = "operator"
TRIES: Final = 4
RETRY_S: Final = 0.2


class Keeper:
    """The operator of *stage*."""

    def __init__(self, stage: Stage, atlas: Atlas) -> None:
        self._stage = stage
        self._atlas = atlas
        self._database: Database | None = None
        self._retired: dict[int, None] = {}
        #: All that were ever to be removed: perhaps they are, though nobody heard of it.
        self.leaving: dict[int, None] = {}
        #: How many changes were asked for; whether one of them may still come about.
        self.asked = 0
        self.in_doubt = False
        self._asking = 0
        self._busy = asyncio.Lock()

    def retired(self, node: int) -> bool:
        """Whether *node* was removed for good: it does not come back."""
        return node in self._retired

    async def close(self) -> None:
        """The operator goes home."""
        if self._database is not None:
            await self._stage.call(OPERATOR, self._database.close())

    # --- changes --------------------------------------------------------------------------------

    async def add(self, *, promote: bool) -> bool:
        """A new node joins as a learner, and may become a voter."""
        async with self._busy:
            node = await self._add()
            if node is not None and promote:
                async with self._atlas.changing:
                    await self._promote(node)
            return node is not None

    async def _add(self) -> int | None:
        if len(self._stage.nodes()) >= MEMBERS_MAX:
            return None
        node = await self._stage.add()
        address = self._stage.address(node)
        # If nobody answers, it may have become a member; or it waits at the door, harmless.
        await self._call(lambda each: each.add_member(node, address))
        return node

    async def _promote(self, node: int) -> bool:
        """One whose disk was tampered with would not come back, and be missed at once."""
        if self._atlas.missing(node):
            return False
        return await self._call(lambda each: each.promote(node))

    async def promote(self, who: int) -> bool:
        """A learner becomes a voter."""
        learners = self._members("learners")
        if not learners:
            return False
        node = learners[who % len(learners)]
        async with self._busy, self._atlas.changing:
            return await self._promote(node)

    async def demote(self, who: int) -> bool:
        """A voter becomes a learner."""
        voters = self._members("voters")
        if len(voters) < 3:
            return False
        node = voters[who % len(voters)]
        async with self._busy, self._atlas.changing:
            return self._atlas.whole and await self._call(lambda each: each.demote(node))

    async def remove(self, who: int) -> bool:
        """A member is removed; its process ends a while later. Two voters stay."""
        members = self._everybody()
        if len(self._members("voters")) < 3:
            return False
        node = members[who % len(members)]
        async with self._busy, self._atlas.changing:
            return self._atlas.whole and await self._remove(node)

    async def _remove(self, node: int) -> bool:
        if not self._atlas.debts.may_leave(node):
            return False
        self.leaving[node] = None
        done = await self._call(lambda each: each.remove_member(node))
        if not done and not self._gone(node):
            return False
        self._retired[node] = None
        self._atlas.replaced(node)
        await asyncio.sleep(RETRY_S)
        self._stage.retire(node)
        return True

    async def replace(self, node: int) -> bool:
        """Another node, under a new number, takes the place of *node*."""
        async with self._busy, self._atlas.changing:
            if self.retired(node) or not (self._atlas.whole or node in self._atlas.lost_nodes):
                return False
            for _ in range(TRIES):
                if await self._remove(node):
                    break
                await asyncio.sleep(RETRY_S)
            else:
                return False
            other = await self._add()
            if other is not None:
                await self._promote(other)
            return other is not None

    async def transfer(self, who: int) -> bool:
        """Another node leads: a certain one, or the best."""
        voters = self._members("voters")
        if len(voters) < 2:
            return False
        target = voters[who % len(voters)] if who % 3 else 0
        return await self._call(lambda each: each.transfer_leader(target), votes=False)

    @property
    def idle(self) -> bool:
        """Whether no change is under way, or can be."""
        return not self._asking and not self.in_doubt

    # --- help -----------------------------------------------------------------------------------

    def _members(self, what: str) -> list[int]:
        leader = self._stage.leader()
        if leader is None:
            return []
        membership = self._stage.node(leader).replica.core.state.membership
        return [int(node) for node in getattr(membership, what)]

    def _gone(self, node: int) -> bool:
        """It was removed all the same: the answer to an earlier call may have been lost. What is
        not committed says nothing: until it is, the others may need the node."""
        leader = self._stage.leader()
        if leader is None:
            return False
        state = self._stage.node(leader).replica.core.state
        in_force = state.members.at(state.commit)
        return not in_force.joint and node not in in_force.members()

    def _everybody(self) -> list[int]:
        return [*self._members("voters"), *self._members("voters_old"), *self._members("learners")]

    async def _call(
        self, change: Callable[[Database], Awaitable[Any]], *, votes: bool = True
    ) -> bool:
        """*votes*: it may change who has one."""
        if self._database is None:
            self._database = self._stage.database(OPERATOR, CALL_TIMEOUT_S)
        self.asked += votes
        self._asking += 1
        try:
            call = self._stage.call(OPERATOR, _awaited(change(self._database)))
            await asyncio.wait_for(call, CALL_TIMEOUT_S)
        except QuorateError as error:
            self.in_doubt = self.in_doubt or (votes and not error.definite)
            return False
        except (TimeoutError, asyncio.CancelledError) as error:
            # The node would go on trying for a minute: what nobody waits for any more must not
            # happen when the members have changed. The operator's machine is switched off.
            self._stage.crash_client(OPERATOR)
            self._database = None
            self.in_doubt = self.in_doubt or votes
            if isinstance(error, TimeoutError):
                return False
            raise
        finally:
            self._asking -= 1
        return True


async def _awaited(call: Awaitable[Any]) -> Any:  # noqa: ANN401  whatever it returns
    return await call
