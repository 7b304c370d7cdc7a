"""Bugs of elections: who may vote, for whom, how often, and what must be on disk before."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_ELECTION = "quorate.consensus.election"

MUTANTS = (
    Mutant(
        name="vote-before-disk",
        bug="votes and terms leave before they are on the disk",
        source="Raft figure 2 (trap 1); PySyncObj 84",
        rewrites=one(
            "quorate.consensus.state:State.send",
            "if self.persisted_term == self.term and self.persisted_vote == self.vote:",
            "if True:",
        ),
    ),
    Mutant(
        name="vote-forgotten",
        bug="a restart forgets whom the node voted for in its term",
        source="Raft figure 2 (trap 1); PySyncObj: default journal in memory",
        rewrites=one(
            "quorate.consensus.state:State.__init__",
            "self.vote = hard.vote",
            "self.vote = NO_NODE",
        ),
    ),
    Mutant(
        name="vote-counted-twice",
        bug="a vote that arrives twice counts as two",
        source="PySyncObj defect D (trap 5)",
        rewrites=one(
            f"{_ELECTION}:on_vote_reply",
            "    state.votes.setdefault(reply.sender, reply.granted)",
            "    silent = [n for n in state.membership.members() if n not in state.votes]\n"
            "    repeated = reply.sender in state.votes and bool(silent)\n"
            "    state.votes[silent[0] if repeated else reply.sender] = reply.granted",
        ),
        profile=profiles.REPLAYED_VOTES,
    ),
    Mutant(
        name="votes-for-all",
        bug="a node votes for everybody who asks, in one term",
        source="Raft 5.2: one vote per term",
        rewrites=one(
            f"{_ELECTION}:on_vote_request",
            "granted = request.term >= state.term and free and current",
            "granted = request.term >= state.term and current",
        ),
        profile=profiles.ELECTIONS,
    ),
    Mutant(
        name="vote-for-shorter-log",
        bug="a candidate whose log lacks committed entries gets votes",
        source="Raft 5.4.1, election restriction",
        rewrites=one(
            f"{_ELECTION}:on_vote_request",
            "granted = request.term >= state.term and free and current",
            "granted = request.term >= state.term and free",
        ),
        profile=profiles.ELECTIONS,
        budget=40,
    ),
    Mutant(
        name="longer-log-wins",
        bug="logs are compared by their length, whatever the term of their last entry",
        source="Raft 5.4.1, figure 8",
        rewrites=one(
            f"{_ELECTION}:on_vote_request",
            "current = (request.last_term, request.last_index) >= (\n"
            "        state.log.last_term,\n        state.log.last_index,\n    )",
            "current = request.last_index >= state.log.last_index",
        ),
        profile=profiles.POWER_CUTS,
        budget=40,
    ),
    Mutant(
        name="pre-votes-elect",
        bug="answers to the pre-vote still count in the election that follows",
        source="thesis 9.6",
        rewrites=one("quorate.consensus.roles:become_candidate", "    state.votes = {}\n", ""),
        profile=profiles.ELECTIONS,
    ),
    Mutant(
        name="joint-election-by-new-voters",
        bug="in a joint configuration the new voters alone elect a leader",
        source="thesis 4.3 (trap 27)",
        rewrites=one(
            "quorate.consensus.quorum:tally",
            "    if not voters_old:\n        return result\n",
            "    return result\n",
        ),
        profile=profiles.SHRINKING,
        budget=40,
    ),
    Mutant(
        name="no-stickiness",
        bug="members vote although they hear a leader, whose lease counts on it",
        source="thesis 4.2.3 and 6.4.1 (traps 11, 21)",
        rewrites=one(
            f"{_ELECTION}:sticky",
            "return state.role is Role.LEADER or state.tick < state.sticky_until",
            "return False",
        ),
        profile=profiles.LEASES,
        budget=40,
    ),
)
