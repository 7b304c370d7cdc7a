"""What may be lost without asking for the impossible.

Raft keeps what a quorum of disks holds. So a disk may be lost, or set back, only while a quorum
of the others holds the whole log of the leader, all others hold the same converging data (what
some of them have confirmed must outlive it), and nobody campaigns whom it may have voted for:
then what it forgot is known elsewhere. A second one may be lost only after the first was replaced,
and while one is lost no other voter is removed: a majority of what is left may include it.
"""

from __future__ import annotations

import asyncio

from jepsen_like.simulation.claims import majority, quorum
from jepsen_like.simulation.debts import Debts
from jepsen_like.simulation.invariants import Invariants
from jepsen_like.simulation.stage import Stage
from quorate.consensus.output import Role


class Atlas:
    """Looks at the live nodes of *stage* and at what *invariants* knows of all disks."""

    def __init__(self, stage: Stage, invariants: Invariants) -> None:
        self._stage = stage
        self._invariants = invariants
        self.debts = Debts(stage, invariants)
        self._lost: dict[int, None] = {}
        self._replaced: dict[int, None] = {}
        #: Held while voters are taken away: no disk is lost meanwhile.
        self.changing = asyncio.Lock()

    def lost(self, node: int, *, damaged: bool = False) -> None:
        """The disk of *node* is about to be tampered with; *damaged*: so that it must notice."""
        self._lost[node] = None
        self._stage.disks_lost.append(node)
        self._invariants.tampered(node, damaged=damaged)

    def replaced(self, node: int) -> None:
        """The operator was told that *node* is not a member any more."""
        self._invariants.removed(node)
        self._replaced[node] = None

    @property
    def whole(self) -> bool:
        """No member is lost: one that is not may be taken away."""
        return not any(map(self.missing, self._lost))

    def missing(self, node: int) -> bool:
        """Whether the disk of *node*, which was not replaced, was tampered with."""
        return node in self._lost and node not in self._replaced

    @property
    def lost_nodes(self) -> list[int]:
        """All whose disks were tampered with, ever."""
        return list(self._lost)

    def may_lose(self, node: int) -> bool:
        """Whether the disk of *node* may be damaged or set back at this moment."""
        leader = self._stage.leader()
        if leader is None or leader == node or self.changing.locked():
            return False
        state = self._stage.node(leader).replica.core.state
        membership = state.membership
        if membership.joint or any(each in self._lost for each in membership.members()):
            return False
        if not membership.is_voter(node):  # type: ignore[arg-type]
            return node in membership.learners and self.debts.can_spare(node)
        others = [each for each in membership.voters if each != node]
        for each in others:
            disk = self._invariants.disks.get(each)
            if disk is None or not self._stage.runs(each):
                return False
            other = disk.state
            follows = each == leader or (
                other.role is Role.FOLLOWER and other.leader == leader and other.term == state.term
            )
            if not follows:
                return False
        last, term = int(state.log.last_index), int(state.log.last_term)
        holders = [each for each in others if self._invariants.disks[each].holds(last, term)]
        if not self.debts.can_spare(node):
            return False
        return majority(membership.voters, others) and quorum(membership, holders)

    def may_wipe(self, node: int) -> bool:
        """Likewise for an empty disk under the same number: every other member must know by its
        own log, on its disk, which one stood there before."""
        if not self.may_lose(node):
            return False
        return all(
            self._knows(other, node)
            for other in self._stage.nodes()
            if other != node and self._stage.runs(other)
        )

    def _knows(self, other: int, node: int) -> bool:
        state = self._stage.node(other).replica.core.state
        named = dict(state.membership.incarnations)
        return bool(named.get(node)) and state.members.index <= max(  # type: ignore[call-overload]
            state.persisted, state.log.floor.index
        )
