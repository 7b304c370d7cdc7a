"""Linearizable reads without a log entry: ReadIndex and leases of thesis 6.4."""

from __future__ import annotations

from typing import Final

from quorate.base.types import NO_NODE, LogIndex, NodeId
from quorate.consensus import leader
from quorate.consensus.events import ReadIndex
from quorate.consensus.messages import ReadIndexReply, ReadIndexRequest
from quorate.consensus.output import ReadState, Role
from quorate.consensus.quorum import quorum_value
from quorate.consensus.roles import refuse_read
from quorate.consensus.state import PendingRead, State

#: Reads that wait for a round. Members batch theirs, one round at a time, so that more are a flood.
READS_PENDING_MAX: Final = 4096


def on_read_index(state: State, event: ReadIndex) -> None:
    """A read at this member. A follower asks its leader; nobody guesses."""
    state.now_ms = max(state.now_ms, event.now_ms)
    if state.role is Role.LEADER:
        if _lease_holds(state):
            _grant(state, event.context, state.node_id, state.commit)
        else:
            _lead_read(state, event.context, state.node_id)
    elif state.leader != NO_NODE:
        state.send(ReadIndexRequest(state.term, state.node_id, state.leader, event.context))
    else:
        refuse_read(state, event.context, state.node_id)


def on_request(state: State, request: ReadIndexRequest) -> None:
    """A follower asks which index its read must wait for (thesis 6.4)."""
    if state.role is Role.LEADER:
        _lead_read(state, request.context, request.sender)
    else:
        refuse_read(state, request.context, request.sender)


def on_reply(state: State, reply: ReadIndexReply) -> None:
    """The leader's word. The index may be used only when it is applied here."""
    if reply.index:
        state.commit = LogIndex(max(state.commit, min(reply.index, state.verified)))
    state.out_reads.append(ReadState(reply.context, reply.index))


def _lead_read(state: State, context: int, requester: NodeId) -> None:
    """Thesis 6.4, steps 1 to 3: an own-term commit first, then the commit index is saved, then a
    round of heartbeats *started after that* must come back from a quorum."""
    if len(state.reads) + len(state.reads_early) >= READS_PENDING_MAX:
        refuse_read(state, context, requester)
        return
    if state.log.term_at(state.commit) != state.term:
        state.reads_early.append((context, requester))
        return
    if _alone(state):
        _grant(state, context, requester, state.commit)
        return
    leader.broadcast_heartbeat(state)
    state.reads.append(PendingRead(context, requester, state.commit, state.round))


def _alone(state: State) -> bool:
    membership = state.membership
    return membership.voters == (state.node_id,) and not membership.joint


def on_commit(state: State) -> None:
    """The first entry of the own term is committed: reads that waited for it may start."""
    if not state.reads_early or state.log.term_at(state.commit) != state.term:
        return
    early, state.reads_early = state.reads_early, []
    for context, requester in early:
        _lead_read(state, context, requester)


def on_round(state: State) -> None:
    """A member echoed a newer round: whatever waited for a quorum of echoes may go."""
    if not state.reads:
        return
    confirmed = _confirmed_round(state, state.acked_rounds)
    while state.reads and state.reads[0].round <= confirmed:
        read = state.reads.popleft()
        _grant(state, read.context, read.requester, read.index)


def _confirmed_round(state: State, rounds: dict[NodeId, int]) -> int:
    membership = state.membership
    values = {**rounds, state.node_id: state.round}
    return quorum_value(membership.voters, membership.voters_old, values)


def _grant(state: State, context: int, requester: NodeId, index: LogIndex) -> None:
    if requester == state.node_id:
        state.out_reads.append(ReadState(context, index))
    else:
        state.send(ReadIndexReply(state.term, state.node_id, requester, context, index))


def promised_enough(state: State, promise_ms: int) -> bool:
    """Whether a member keeps its promises for as long as the lease, and the margin for clocks,
    ask for: its election timeout may be another than the leader's, while settings change."""
    return state.config.lease_ms * 4 <= promise_ms * 3


def renew_lease(state: State) -> None:
    """The lease runs from when the confirmed round was *sent*: the voters' promise not to vote
    began no earlier than that (thesis 6.4.1)."""
    if not state.config.lease_reads:
        return
    confirmed = _confirmed_round(state, state.lease_rounds)
    while state.round_sent_ms and state.round_sent_ms[0][0] <= confirmed:
        sent_ms = state.round_sent_ms.popleft()[1]
        state.lease_until_ms = max(state.lease_until_ms, sent_ms + state.config.lease_ms)


def end_lease(state: State) -> None:
    """Other voters come in, who will elect by themselves, and have promised nothing yet: their
    leader may not even know whether they keep promises. A round that both sides answer begins
    the lease anew; nothing changes when the old side goes."""
    state.lease_until_ms = -1


def _lease_holds(state: State) -> bool:
    """Only for reads at the leader itself, whose event says what time it is: a message may have
    waited in a socket while the process was frozen. A transfer overrides the voters' promise, so
    it voids the lease for the rest of the term."""
    return (
        state.config.lease_reads
        and not state.transfer_sent
        and state.log.term_at(state.commit) == state.term
        and state.now_ms < state.lease_until_ms
    )
