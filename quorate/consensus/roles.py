"""Changes of role: the only place that assigns ``role``, ``term`` and ``vote`` (Raft figure 4)."""

from __future__ import annotations

from quorate.base.invariants import must
from quorate.base.types import NO_NODE, LogIndex, NodeId, Term
from quorate.consensus.messages import ReadIndexReply
from quorate.consensus.output import ReadState, Role
from quorate.consensus.progress import Progress
from quorate.consensus.state import State


def become_follower(state: State, term: Term, leader: NodeId) -> None:
    """Follow *leader* (0: not known yet) in *term*."""
    must(term >= state.term, "terms never go back", was=state.term, now=term)
    if state.role is Role.LEADER:
        _resign(state)
    if term > state.term:
        state.verified = state.commit  # what an earlier leader verified, a new one may overwrite
        state.term = term
        state.vote = NO_NODE
    state.role = Role.FOLLOWER
    state.leader = leader
    state.votes.clear()
    restart_election_timer(state)


def become_pre_candidate(state: State) -> None:
    """Ask whether an election could be won, without disturbing anybody's term (thesis 9.6)."""
    must(state.role is not Role.LEADER, "leaders do not campaign", role=state.role)
    state.role = Role.PRE_CANDIDATE
    state.leader = NO_NODE
    state.votes = {state.node_id: True}
    restart_election_timer(state)


def become_candidate(state: State) -> None:
    """Raft 5.2. The own vote counts when it is on disk, as any other's."""
    must(state.role is not Role.LEADER, "leaders do not campaign", role=state.role)
    state.role = Role.CANDIDATE
    state.leader = NO_NODE
    state.term = Term(state.term + 1)
    state.vote = state.node_id
    state.verified = state.commit
    state.votes = {}
    restart_election_timer(state)


def become_leader(state: State) -> None:
    """Raft 5.2; "reinitialised after election" of figure 2."""
    must(state.role is Role.CANDIDATE, "leaders come from candidates", role=state.role)
    must(state.vote == state.node_id, "a leader voted for itself", vote=state.vote)
    must(state.persisted_term == state.term, "and has that vote on disk", term=state.term)
    state.role = Role.LEADER
    state.leader = state.node_id
    state.votes.clear()
    state.progress = {}
    state.match = {state.node_id: state.persisted}
    state.round = 0
    state.acked_rounds = {}
    state.lease_rounds = {}
    state.round_sent_ms.clear()
    state.lease_until_ms = -1
    state.heartbeat_elapsed = 0
    state.uncommitted_bytes = state.log.size_between(state.commit, state.log.last_index)
    state.transfer_target = NO_NODE
    state.transfer_sent = False
    follow_membership(state)


def follow_membership(state: State) -> None:
    """Keep one ``Progress`` per other member of the configuration now in force."""
    members = state.membership.members()
    for node in members:
        if node != state.node_id and node not in state.progress:
            state.progress[node] = Progress(LogIndex(state.log.last_index + 1), state.tick)
    for node in [node for node in state.progress if node not in members]:
        del state.progress[node]
        state.match.pop(node, None)
        state.acked_rounds.pop(node, None)
        state.lease_rounds.pop(node, None)


def restart_election_timer(state: State) -> None:
    """Randomised anew each time, so that split votes do not repeat (Raft 5.2)."""
    least, most = state.config.election_ticks_min, state.config.election_ticks_max
    state.elapsed = 0
    # Not ``randrange``, which runs through a hundred lines of Python: this is done per append.
    state.election_timeout = least + int(state.random.random() * (most - least))


def _resign(state: State) -> None:
    """What a leader owes to those who wait on it: an answer."""
    for read in state.reads:
        refuse_read(state, read.context, read.requester)
    for context, requester in state.reads_early:
        refuse_read(state, context, requester)
    state.reads.clear()
    state.reads_early.clear()
    state.progress = {}
    state.match = {}
    state.uncommitted_bytes = 0
    state.transfer_target = NO_NODE


def refuse_read(state: State, context: int, requester: NodeId) -> None:
    """Tell whoever asked that this member cannot vouch for an index."""
    if requester == state.node_id:
        state.out_reads.append(ReadState(context, LogIndex(0)))
    else:
        state.send(ReadIndexReply(state.term, state.node_id, requester, context, LogIndex(0)))
