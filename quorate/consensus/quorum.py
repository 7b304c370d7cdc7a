"""Majorities, and nothing else. Pure functions; property-tested against brute force.

A joint configuration has two voter sets and needs a majority of each (thesis 4.3); a plain one
passes an empty second set.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from quorate.base.types import BEFORE_FIRST, LogIndex, NodeId


class VoteResult(enum.Enum):
    """Pending: the votes that are still out decide."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def quorum_size(voter_count: int) -> int:
    """Smallest number of voters of which any two groups overlap."""
    return voter_count // 2 + 1


def _majority_value(voters: Sequence[NodeId], values: Mapping[NodeId, int]) -> int:
    if len(voters) == 3:  # the common cluster: the median, without building a list
        a, b, c = (values.get(voters[0], 0), values.get(voters[1], 0), values.get(voters[2], 0))
        return max(min(a, b), min(max(a, b), c))
    ranked = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ranked[quorum_size(len(voters)) - 1]


def quorum_value(
    voters: Sequence[NodeId], voters_old: Sequence[NodeId], values: Mapping[NodeId, int]
) -> int:
    """Largest value that a majority (of both sets, if joint) has reached; absent counts as 0."""
    if not voters:
        return 0
    reached = _majority_value(voters, values)
    return min(reached, _majority_value(voters_old, values)) if voters_old else reached


def quorum_index(
    voters: Sequence[NodeId], voters_old: Sequence[NodeId], match: Mapping[NodeId, int]
) -> LogIndex:
    """Largest index that a majority holds (Raft figure 2, rules for leaders, 4)."""
    return LogIndex(quorum_value(voters, voters_old, match)) if voters else BEFORE_FIRST


def _tally_one(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    needed = quorum_size(len(voters))
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.LOST if len(voters) - refused < needed else VoteResult.PENDING


def tally(
    voters: Sequence[NodeId], voters_old: Sequence[NodeId], votes: Mapping[NodeId, bool]
) -> VoteResult:
    """Outcome of an election. *votes*: one answer per voter, so that repeats change nothing."""
    if not voters:
        return VoteResult.LOST
    result = _tally_one(voters, votes)
    if not voters_old:
        return result
    both = {result, _tally_one(voters_old, votes)}
    if VoteResult.LOST in both:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in both else VoteResult.WON


def unanimous(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """Outcome of an election that every one of *voters* has to agree with."""
    if any(votes.get(voter) is False for voter in voters):
        return VoteResult.LOST
    granted = all(votes.get(voter) is True for voter in voters)
    return VoteResult.WON if granted and voters else VoteResult.PENDING


def has_quorum(
    voters: Sequence[NodeId], voters_old: Sequence[NodeId], present: Mapping[NodeId, bool]
) -> bool:
    """Whether those marked True in *present* form a quorum."""
    return tally(voters, voters_old, present) is VoteResult.WON
