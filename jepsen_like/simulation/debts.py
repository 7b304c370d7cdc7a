"""What members owe one another of their converging data, which Raft does not keep for them.

An element lives where it was written or brought to. One member after another may lose all that it
has of them, as long as each gets back what it lost before the next one loses its own, or leaves.
"""

from __future__ import annotations

from jepsen_like.simulation.invariants import Invariants
from jepsen_like.simulation.stage import Stage
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.crdt.codec import encode_context
from quorate.crdt.folding import is_whole
from quorate.replication.converging import engine
from quorate.replication.converging.view import ELEMENTS


class Debts:
    """Of the members of *stage*."""

    def __init__(self, stage: Stage, invariants: Invariants) -> None:
        self._stage = stage
        self._invariants = invariants
        self._owed: dict[int, dict[int, int]] = {}
        self._shared: dict[int, int] = {}
        self._voters: tuple[NodeId, ...] = ()

    # --- what may be lost -----------------------------------------------------------------------

    def can_spare(self, number: int) -> bool:
        """Whether the converging data of a member may be lost: the others are alike, and have what
        was acknowledged by a quorum with it, or by it alone."""
        membership = self._membership()
        if membership is None or not self._alike_without(number, membership):
            return False
        if not self._stage.runs(number):
            return False
        if membership.voters != self._voters:
            self._share(membership)
        owed = dict(self._shared)
        if list(map(int, membership.voters)) == [number]:
            owed |= self._engine(number).frontier
        return all(self._engine(each).covers(owed) for each in _others(membership, number))

    def _share(self, membership: Membership) -> None:
        """There are other voters than before: what a quorum of those acknowledged may be on one of
        these alone. What any has is to be on each before one of them may lose its own."""
        self._voters = membership.voters
        members = _others(membership, 0)
        self._shared = _most([self._engine(each).frontier for each in members])

    def may_leave(self, number: int) -> bool:
        """Whether all other members have, or can get from one another, what they once lost."""
        membership = self._membership()
        if membership is None:
            return False
        others = _others(membership, number)
        there = [self._engine(each) for each in others if self._stage.runs(each)]
        return all(
            any(tier.covers({actor: sequence}) for tier in there)
            for each in others
            for actor, sequence in self._owed.get(each, {}).items()
        )

    def owe(self, number: int) -> None:
        """The node, which runs, is about to lose its converging data: what others have of it is to
        be there again before another may lose its own."""
        lost = self._engine(number).frontier
        others = [each for each in self._stage.nodes() if each != number and self._stage.runs(each)]
        known = _most([self._engine(each).frontier for each in others])
        there = {actor: min(last, known.get(actor, 0)) for actor, last in lost.items()}
        self._owed[number] = _most([self._owed.get(number, {}), there])

    # --- in the end -----------------------------------------------------------------------------

    def converged(self) -> bool:
        """Every member holds the same converging data, and nothing of it is under way."""
        membership = self._membership()
        return membership is not None and self._alike_without(0, membership)

    def compare(self) -> None:
        """Every element is the same on all members, and so is what they account for."""
        membership, leader = self._membership(), self._stage.leader()
        if membership is None or leader is None:
            return
        first = self._records(leader)
        for node in _others(membership, leader):
            other = self._records(node)
            different = [key for key in {**first, **other} if first.get(key) != other.get(key)]
            self._invariants.claim(
                not different,
                "converging-differs",
                f"converging data of nodes {leader} and {node} differs at the same frontier",
                keys=different[:5],
            )

    # --- help -----------------------------------------------------------------------------------

    def _membership(self) -> Membership | None:
        leader = self._stage.leader()
        if leader is None:
            return None
        return self._stage.node(leader).replica.core.state.membership

    def _alike_without(self, number: int, membership: Membership) -> bool:
        """Whether all members but *number* run, have what they once lost, and hold the same
        converging data, folded as far: nobody is in the middle of gathering counters."""
        others = _others(membership, number)
        if not others or not all(map(self._stage.runs, others)):
            return False
        tiers = [self._engine(each) for each in others]
        first = tiers[0]
        return is_whole(first.stage) and all(
            tier.frontier == first.frontier
            and tier.stage == first.stage
            and tier.covers(self._owed.get(each, {}))
            for each, tier in zip(others, tiers, strict=True)
        )

    def _engine(self, number: int) -> engine.Engine:
        return self._stage.node(number).parts.converging.engine

    def _records(self, number: int) -> dict[tuple[str, bytes], bytes]:
        """What a node holds of converging data, by table and key."""
        tier = self._engine(number)
        elements = tier.store.page(ELEMENTS, b"", None, 2**31, 2**62)
        found = {("elements", key): value for key, value in elements}
        return {**found, ("context", b""): encode_context(tier.view.context)}


def _others(membership: Membership, number: int) -> list[int]:
    return [int(each) for each in membership.members() if each != number]


def _most(frontiers: list[dict[int, int]]) -> dict[int, int]:
    """The most that any of *frontiers* has of every actor."""
    most: dict[int, int] = {}
    for frontier in frontiers:
        for actor, sequence in frontier.items():
            most[actor] = max(most.get(actor, 0), sequence)
    return most
