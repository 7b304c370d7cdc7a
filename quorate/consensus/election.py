"""Elections: Raft 5.2 and 5.4.1, pre-vote and stickiness of thesis 4.2.3 and 9.6."""

from __future__ import annotations

from quorate.base.types import NO_NODE, NodeId, Term
from quorate.consensus import leader
from quorate.consensus.messages import TimeoutNow, VoteReply, VoteRequest
from quorate.consensus.output import Role
from quorate.consensus.quorum import VoteResult, tally, unanimous
from quorate.consensus.roles import (
    become_candidate,
    become_follower,
    become_leader,
    become_pre_candidate,
    restart_election_timer,
)
from quorate.consensus.state import State


def on_tick(state: State, ticks: int) -> None:
    """Followers and candidates: start an election when the timeout has passed (Raft 5.2)."""
    state.elapsed += ticks
    if state.elapsed < state.election_timeout or state.tick < state.sticky_until:
        return  # a candidate votes, too: for itself
    if state.promotable():
        pre_campaign(state)
    else:
        restart_election_timer(state)
        state.leader = NO_NODE


def pre_campaign(state: State) -> None:
    """Ask every voter whether it would vote for this member in the next term (thesis 9.6)."""
    become_pre_candidate(state)
    if _result(state) is VoteResult.WON:  # the only voter
        campaign(state, transfer=False)
        return
    _ask_for_votes(state, Term(state.term + 1), pre=True, transfer=False)


def campaign(state: State, *, transfer: bool) -> None:
    """Raft 5.2: increment the term, vote for self, ask all others. The requests leave after the
    vote for self is on disk, because they carry the new term."""
    become_candidate(state)
    _ask_for_votes(state, state.term, pre=False, transfer=transfer)


def _ask_for_votes(state: State, term: Term, *, pre: bool, transfer: bool) -> None:
    for voter in _voters(state):
        if voter != state.node_id:
            state.send(
                VoteRequest(
                    term=term,
                    sender=state.node_id,
                    target=voter,
                    last_index=state.log.last_index,
                    last_term=state.log.last_term,
                    pre=pre,
                    transfer=transfer,
                )
            )


def _voters(state: State) -> list[NodeId]:
    """Of both sets, ascending."""
    return sorted({*state.membership.voters, *state.membership.voters_old})


def _result(state: State) -> VoteResult:
    """A quorum decides; all voters, while this member does not know whose votes it counts: see
    ``membership``."""
    membership = state.membership
    if membership.unmet():
        return unanimous(_voters(state), state.votes)
    return tally(membership.voters, membership.voters_old, state.votes)


def sticky(state: State) -> bool:
    """Heard from a live leader lately: nobody needs an election (thesis 4.2.3). A leader is sure
    of itself until check-quorum says otherwise. A newer term that some message brings does not end
    the promise: a lease counts on it (thesis 6.4.1)."""
    return state.role is Role.LEADER or state.tick < state.sticky_until


def date_promise(state: State) -> None:
    """A leader was heard before this tick, which may be late, and so count time from before that:
    what waits in the sockets of a process that stood still comes first. Its lease runs from when
    it spoke, so the promise must not end sooner than an election timeout after this tick."""
    state.heard_since_tick = False
    if state.config.lease_reads:
        state.sticky_until = state.tick + state.config.election_ticks_min


def on_vote_request(state: State, request: VoteRequest) -> None:
    """Raft figure 2, RequestVote. The caller has adopted a newer term, but not a pre-vote's."""
    free = (
        state.vote == request.sender
        or (state.vote == NO_NODE and state.leader == NO_NODE)
        or (request.pre and request.term > state.term)
    )
    current = (request.last_term, request.last_index) >= (
        state.log.last_term,
        state.log.last_index,
    )
    granted = request.term >= state.term and free and current
    if granted and not request.pre:
        state.vote = request.sender
        restart_election_timer(state)
    # A granted pre-vote answers for the term asked about; a refusal tells the own term.
    term = request.term if granted else state.term
    state.send(VoteReply(term, state.node_id, request.sender, granted, request.pre))


def on_vote_reply(state: State, reply: VoteReply) -> None:
    """One answer per voter, whatever is repeated; a reply of another term was filtered before."""
    wanted = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
    if state.role is not wanted:
        return
    if reply.granted and reply.term != (state.term + 1 if reply.pre else state.term):
        return
    state.votes.setdefault(reply.sender, reply.granted)
    count_votes(state)


def count_votes(state: State) -> None:
    """Act on the votes as they stand: campaign in earnest, lead, give up, or wait for more."""
    if state.role is Role.CANDIDATE and state.node_id not in state.votes:
        return  # the vote for itself is not on disk yet
    match _result(state):
        case VoteResult.WON if state.role is Role.PRE_CANDIDATE:
            campaign(state, transfer=False)
        case VoteResult.WON:
            become_leader(state)
            leader.begin_term(state)
        case VoteResult.LOST:
            become_follower(state, state.term, NO_NODE)
        case VoteResult.PENDING:
            pass


def on_timeout_now(state: State, message: TimeoutNow) -> None:
    """The leader hands over (thesis 3.10): no pre-vote, no wait, stickiness overridden."""
    if state.role is Role.FOLLOWER and message.sender == state.leader and state.promotable():
        campaign(state, transfer=True)


def on_leader_lost(state: State, node: NodeId) -> None:
    """The leader's connection broke: campaign within a heartbeat or so, not a whole timeout.

    Safe, since it only moves a timer that is random anyway; but a lease relies on the wait.
    """
    config = state.config
    if (
        state.role is Role.FOLLOWER
        and node == state.leader
        and config.fast_failover
        and not config.lease_reads
    ):
        state.sticky_until = state.tick
        soon = state.random.randrange(1, config.heartbeat_ticks + 1)
        state.elapsed = max(state.elapsed, state.election_timeout - soon)
