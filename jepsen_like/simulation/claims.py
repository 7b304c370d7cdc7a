"""What a node says of itself: what its disk holds, and where it stood before a step."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from quorate.base.types import LogIndex
from quorate.consensus.membership import Membership
from quorate.consensus.state import State

#: How much of its election timeout a member must have waited, however its clock runs: by those of
#: nodes with leases a twentieth may be missing, and a lease is three quarters as long.
PROMISE_SHARE_MIN: Final = 0.9


def majority(voters: Iterable[int], holders: Iterable[int]) -> bool:
    """More than half of *voters* are among *holders*. On purpose not ``quorate``'s own function:
    a second opinion."""
    known, all_of_them = list(holders), list(voters)
    return 2 * sum(1 for voter in all_of_them if voter in known) > len(all_of_them)


def quorum(membership: Membership, holders: Iterable[int]) -> bool:
    """A majority, and in a joint configuration one of the old voters too (thesis 4.3)."""
    known = list(holders)
    old = membership.voters_old
    return majority(membership.voters, known) and (not old or majority(old, known))


def elected(membership: Membership, votes: Iterable[int]) -> bool:
    """Whether *votes* elect: a quorum; all voters, while the configuration does not name the data
    directories behind them, since one of them may have been wiped and nobody would know."""
    known = list(votes)
    voters = [*membership.voters, *membership.voters_old]
    if all(incarnation or node not in voters for node, incarnation in membership.incarnations):
        return quorum(membership, known)
    return all(node in known for node in voters)


class Disk:
    """What one data directory claims to hold: its last running core says so.

    *state*: of that core, which a crash leaves as it was. *void*: somebody tampered with the disk,
    so it claims nothing; *damaged*: in a way that must not go unnoticed. *checkpoint*: the newest
    that was reported as durable. *heard*: of a leader, when each member last answered it, in ticks;
    *echoes*: the latest round of heartbeats that each answered. *promised_until*: a tick before
    which it must not vote: a leader's lease may count on it. *promised_lately*: since its clock
    ticked, maybe long ago, so that the promise counts from the next tick. *promised_s*: when that
    was, by nobody's clock. *handed_over_term*: in which it told another to campaign at once.
    """

    def __init__(self, node: int, incarnation: str, state: State, now_s: float = 0.0) -> None:
        self.node = node
        self.incarnation = incarnation
        self.state = state
        self.void = False
        self.damaged = False
        self.checkpoint = 0
        self.wiped = False  # another directory stood behind this number before
        self.heard: dict[int, int] = {}
        self.echoes: dict[int, int] = {}
        config = state.config
        self.promised_until = config.election_ticks_min if config.lease_reads else 0
        self.promised_lately = False
        self.promised_s = now_s if config.lease_reads else -inf
        self.handed_over_term = 0
        self.leads_term = 0
        self.leads_since = 0
        #: What the log's own calls made durable: term, vote, last index. Ahead of *state*, which
        #: learns of it later.
        self.written = (int(state.persisted_term), int(state.persisted_vote), int(state.persisted))

    def promises(self) -> bool:
        """Gives no vote now by its own clock, because a leader may count on it."""
        return self.promised_lately or self.state.tick < self.promised_until

    def may_vote(self, now_s: float) -> bool:
        """It promises nothing, and has counted its ticks about right meanwhile. One that starts as
        the only voter of a committed configuration need not wait for them: whoever made it that
        stopped leading when it committed so."""
        config, membership = self.state.config, self.state.membership
        alone = (membership.voters, membership.voters_old) == ((self.node,), ())
        if alone and self.state.members.index <= self.state.commit:
            return not self.promises()
        least_s = config.election_ticks_min * config.tick_ms / 1000 * PROMISE_SHARE_MIN
        return not self.promises() and now_s >= self.promised_s + least_s

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry is durable here, or covered by a checkpoint."""
        if self.void:
            return False
        state = self.state
        if index <= state.log.floor.index:
            return True
        found = state.log.term_at(LogIndex(index))
        return index <= state.persisted and found == term


class Before:
    """A member just before a step. *endangered*: terms of entries that it may drop, by index."""

    __slots__ = ("commit", "endangered", "members_index", "membership", "persisted", "role")

    def __init__(self, state: State) -> None:
        self.commit = state.commit
        self.persisted = int(state.persisted)
        self.endangered: dict[int, int | None] = {}
        self.role = state.role
        self.membership = state.membership
        self.members_index = state.members.index
