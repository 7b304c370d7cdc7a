"""The follower's side of replication: AppendEntries of Raft figure 2, heartbeats, snapshots."""

from __future__ import annotations

from quorate.base.invariants import must
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import SnapshotOffered
from quorate.consensus.membership import decode_membership
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
)
from quorate.consensus.output import Role
from quorate.consensus.roles import become_follower, restart_election_timer
from quorate.consensus.state import State


def _follow(state: State, leader: NodeId, term: Term) -> None:
    """A message from the one leader of this term."""
    must(state.role is not Role.LEADER, "one leader per term", term=term, other=leader)
    if state.role is not Role.FOLLOWER or state.leader != leader:
        become_follower(state, term, leader)
    else:
        restart_election_timer(state)
    state.sticky_until = state.tick + state.config.election_ticks_min
    state.heard_since_tick = True


def on_append_request(state: State, request: AppendRequest) -> None:
    """Raft figure 2, AppendEntries, rules 2 to 5 (rule 1 was decided before)."""
    _follow(state, request.sender, request.term)
    if request.prev_index < state.commit:
        # Everything up to the commit index matches any leader's log; the rest will come again.
        _accept(state, request, state.commit)
        return
    if state.log.term_at(request.prev_index) != request.prev_term:
        _reject(state, request)
        return
    last = LogIndex(request.prev_index + len(request.entries))
    _take_entries(state, request.entries)
    state.verified = LogIndex(max(state.verified, last))
    _commit_to(state, request.commit)
    _accept(state, request, last)


def _take_entries(state: State, entries: tuple[Entry, ...]) -> None:
    """Rules 3 and 4: truncate only on a real conflict, append what is new. A repeated or shorter
    request leaves the log alone."""
    for at, entry in enumerate(entries):
        if state.log.term_at(entry.index) == entry.term:
            continue
        if entry.index <= state.log.last_index:
            must(
                entry.index > state.commit,
                "a committed entry never conflicts",
                entry=(entry.index, entry.term),
                commit=state.commit,
            )
            state.truncate(LogIndex(entry.index - 1))
        for new in entries[at:]:
            state.log.append(new)
            state.out_entries.append(new)
            if new.kind == EntryKind.MEMBERSHIP:
                state.members.append(new.index, decode_membership(new.payload))
        return


def _commit_to(state: State, leader_commit: LogIndex) -> None:
    """Rule 5, but never past the last entry known to match this leader's log."""
    state.commit = LogIndex(max(state.commit, min(leader_commit, state.verified)))


def _accept(state: State, request: AppendRequest, index: LogIndex) -> None:
    reply = AppendReply(
        term=state.term,
        sender=state.node_id,
        target=request.sender,
        ok=True,
        index=index,
        hint_index=LogIndex(0),
        hint_term=Term(0),
        round=request.round,
    )
    if state.persisted >= index:
        state.send(reply)
    else:
        state.out_after.append(reply)


def _reject(state: State, request: AppendRequest) -> None:
    hint = state.log.last_with_term_at_most(request.prev_index, request.prev_term)
    state.send(
        AppendReply(
            term=state.term,
            sender=state.node_id,
            target=request.sender,
            ok=False,
            index=request.prev_index,
            hint_index=hint.index,
            hint_term=hint.term,
            round=request.round,
        )
    )


def on_heartbeat(state: State, heartbeat: Heartbeat) -> None:
    """Raft 5.2 and 5.3: who leads, and how far the log is committed."""
    _follow(state, heartbeat.sender, heartbeat.term)
    _commit_to(state, heartbeat.commit)
    config = state.config
    state.send(
        HeartbeatReply(
            term=state.term,
            sender=state.node_id,
            target=heartbeat.sender,
            round=heartbeat.round,
            verified=state.verified,
            sticky=config.lease_reads,  # without it, a restart forgets the promise
            promise_ms=config.election_ticks_min * config.tick_ms if config.lease_reads else 0,
            durable=LogIndex(min(state.verified, state.persisted)),
        )
    )


def on_snapshot_offered(state: State, offer: SnapshotOffered) -> None:
    """InstallSnapshot of Raft 7. Older than what is committed here, or already in the log: keep
    the log, and everything after it."""
    if offer.term < state.term:
        return
    if offer.term > state.term:
        become_follower(state, offer.term, offer.sender)
    _follow(state, offer.sender, offer.term)
    index = offer.id.index
    if index <= state.commit:
        _answer_offer(state, offer, state.commit)
        return
    if state.log.term_at(index) == offer.id.term:
        state.commit = index
        state.verified = LogIndex(max(state.verified, index))
        _answer_offer(state, offer, index)
        return
    state.log.reset(offer.id)
    state.members.reset(offer.membership, offer.membership_index)
    for pending in state.pending_persists:  # they wrote what is dropped
        pending.last_index = LogIndex(0)
    state.persisted = LogIndex(0)
    state.commit = index
    state.verified = index
    state.out_reset = offer.id
    _answer_offer(state, offer, index)


def _answer_offer(state: State, offer: SnapshotOffered, index: LogIndex) -> None:
    state.out_after.append(
        AppendReply(
            term=state.term,
            sender=state.node_id,
            target=offer.sender,
            ok=True,
            index=index,
            hint_index=LogIndex(0),
            hint_term=Term(0),
            round=0,
        )
    )
