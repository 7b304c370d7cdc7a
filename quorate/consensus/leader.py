"""The leader's side of replication: Raft 5.3, 5.4.2, check-quorum, step-down on a stalled disk."""

from __future__ import annotations

from typing import Final

from quorate.base.invariants import must
from quorate.base.types import BEFORE_FIRST, NO_NODE, LogIndex, NodeId
from quorate.consensus import changes, reads, transfer
from quorate.consensus.membership import Membership, encode_membership
from quorate.consensus.messages import (
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
)
from quorate.consensus.output import Refusal, Role, SendAppend
from quorate.consensus.progress import Progress, ProgressState
from quorate.consensus.quorum import has_quorum, quorum_index
from quorate.consensus.roles import become_follower, follow_membership
from quorate.consensus.state import State

#: Heartbeat rounds whose time of sending is kept; when nobody answers, no lease is to be dated.
ROUNDS_DATED_MAX: Final = 1024


def begin_term(state: State) -> None:
    """An entry of the own term goes first: nothing older commits by counting (5.4.2, 8)."""
    append_entry(state, EntryKind.NOOP, b"")
    broadcast_heartbeat(state)
    broadcast_appends(state)


def on_tick(state: State, ticks: int) -> None:
    """Heartbeats, check-quorum, the transfer's deadline, the own disk."""
    state.heartbeat_elapsed += ticks
    if state.heartbeat_elapsed >= state.config.heartbeat_ticks:
        if not quorum_is_active(state, state.membership):  # thesis 6.2: a leader cut off resigns
            become_follower(state, state.term, NO_NODE)
            return
        state.heartbeat_elapsed = 0
        broadcast_heartbeat(state)
    if state.disk_stalled():
        resign_for_stalled_disk(state)
        return
    transfer.on_tick(state)


def quorum_is_active(state: State, membership: Membership) -> bool:
    """Whether a quorum of *membership* spoke within the longest election timeout."""
    oldest = state.tick - state.config.election_ticks_max
    present = {node: progress.heard_tick >= oldest for node, progress in state.progress.items()}
    present[state.node_id] = True
    return has_quorum(membership.voters, membership.voters_old, present)


def resign_for_stalled_disk(state: State) -> None:
    """A leader that cannot write must not keep others from leading; it hands over if it can."""
    best = transfer.best_target(state)
    if best != NO_NODE:
        transfer.send_timeout_now(state, best)
    become_follower(state, state.term, NO_NODE)


# --- the log ----------------------------------------------------------------------------------


def propose(state: State, payloads: tuple[bytes, ...]) -> None:
    """Append one entry per payload to the own log and start replicating them (Raft 5.3)."""
    if state.role is not Role.LEADER:
        state.refuse(Refusal.NOT_LEADER)
        return
    if state.transfer_target != NO_NODE:
        state.refuse(Refusal.TRANSFERRING)
        return
    must(bool(payloads), "a proposal proposes something")
    size = sum(map(len, payloads))
    # One proposal is always let in when nothing waits: a single large one must not starve.
    if state.uncommitted_bytes and (
        state.uncommitted_bytes + size > state.config.uncommitted_bytes_max
    ):
        state.refuse(Refusal.OVERLOADED)
        return
    state.out_proposed = LogIndex(state.log.last_index + 1)
    for payload in payloads:
        append_entry(state, EntryKind.BATCH, payload)
    broadcast_appends(state)


def append_entry(state: State, kind: EntryKind, payload: bytes) -> LogIndex:
    """A leader never overwrites or deletes entries in its log; it only appends (5.3)."""
    must(state.role is Role.LEADER, "only a leader makes entries", role=state.role)
    entry = Entry(LogIndex(state.log.last_index + 1), state.term, int(kind), payload)
    state.log.append(entry)
    state.out_entries.append(entry)
    state.uncommitted_bytes += len(payload)
    return entry.index


def append_membership(state: State, membership: Membership) -> LogIndex:
    """A configuration holds from the moment it is in the log (thesis 4.1)."""
    index = append_entry(state, EntryKind.MEMBERSHIP, encode_membership(membership))
    state.members.append(index, membership)
    follow_membership(state)
    if membership.joint:
        reads.end_lease(state)
    broadcast_appends(state)
    return index


def broadcast_appends(state: State) -> None:
    """Send every follower what it may get now."""
    for node, progress in state.progress.items():  # insertion order: ascending ids, then joiners
        send_appends(state, node, progress)


def send_appends(state: State, node: NodeId, progress: Progress) -> None:
    """As much as the follower may get now: one probe, or a stream up to the inflight bounds."""
    config = state.config
    log = state.log
    while not progress.paused(config.inflight_messages_max, config.inflight_bytes_max):
        first = progress.next
        if first <= log.floor.index:
            _need_snapshot(state, node, progress)
            return
        probing = progress.state is ProgressState.PROBE
        if first > log.last_index and not probing:
            return
        last, size = log.end_of_run(first, config.append_bytes_max)
        prev_term = log.term_at(LogIndex(first - 1))
        if prev_term is None:
            must(
                condition=False, claim="a follower's next entry follows one in the log", next=first
            )
            return
        state.out_messages.append(
            SendAppend(
                term=state.term,
                sender=state.node_id,
                target=node,
                prev_index=LogIndex(first - 1),
                prev_term=prev_term,
                last_index=last,
                commit=state.commit,
                round=state.round,
            )
        )
        progress.sent(last, size, state.round)


def _need_snapshot(state: State, node: NodeId, progress: Progress) -> None:
    if progress.heard_tick + state.config.election_ticks_max < state.tick:
        progress.become_probe(progress.next)
        progress.hold()  # silent: it may not even be there; wait until it speaks
        return
    progress.become_snapshot(state.log.floor.index)
    state.out_snapshots.append(node)


def on_append_reply(state: State, reply: AppendReply) -> None:
    """Raft 5.3: advance on success, go back on refusal; answers of other terms were filtered."""
    progress = _heard(state, reply.sender, reply.round)
    if progress is None:
        return
    if reply.ok:
        _on_accepted(state, reply.sender, reply.index, progress)
    else:
        _on_rejected(state, reply, progress)


def _on_accepted(state: State, node: NodeId, index: LogIndex, progress: Progress) -> None:
    """*node* has everything up to *index* on disk, and it matches this leader's log."""
    if index > state.log.last_index:
        must(
            condition=False,
            claim="nobody holds more of this term than its leader",
            node=node,
            index=index,
            last=state.log.last_index,
        )
    advanced = progress.acked(index)
    # Less than the entry before the probe tells nothing of the probe, which is still out.
    matched = progress.state is ProgressState.PROBE and index >= progress.next - 1
    if matched or (progress.state is ProgressState.SNAPSHOT and index >= progress.snapshot_index):
        progress.become_replicate()
    if advanced:
        state.match[node] = progress.match
        if progress.match > state.commit:
            advance_commit(state)
            if state.progress.get(node) is not progress:
                return  # that commit made this leader resign, or the node no member
        transfer.on_progress(state, node, progress)
    if progress.next <= state.log.last_index or progress.state is not ProgressState.REPLICATE:
        send_appends(state, node, progress)


def _on_rejected(state: State, reply: AppendReply, progress: Progress) -> None:
    if progress.state is ProgressState.SNAPSHOT or reply.index <= progress.match:
        return  # an answer to something older
    if progress.state is ProgressState.PROBE and reply.index != progress.next - 1:
        return  # an answer to an earlier probe
    hint = state.log.last_with_term_at_most(reply.hint_index, reply.hint_term)
    progress.become_probe(LogIndex(min(reply.index, hint.index + 1)))
    send_appends(state, reply.sender, progress)


def advance_commit(state: State) -> None:
    """Raft 5.3 and 5.4.2: a majority holds it *and* it is of the own term."""
    membership = state.membership
    index = quorum_index(membership.voters, membership.voters_old, state.match)
    if index <= state.commit or state.log.term_at(index) != state.term:
        return
    state.uncommitted_bytes -= state.log.size_between(state.commit, index)
    state.commit = index
    reads.on_commit(state)
    changes.on_commit(state)


def on_own_persisted(state: State) -> None:
    """The leader counts itself only after its own fsync."""
    state.match[state.node_id] = state.persisted
    advance_commit(state)


# --- heartbeats -------------------------------------------------------------------------------


def broadcast_heartbeat(state: State) -> None:
    """Start a round. The commit index goes along; a follower takes of it only what it verified."""
    state.round += 1
    if state.config.lease_reads:
        state.round_sent_ms.append((state.round, state.now_ms))
        if len(state.round_sent_ms) > ROUNDS_DATED_MAX:
            state.round_sent_ms.popleft()
    for node, progress in state.progress.items():
        progress.mark_round(state.round)
        state.send(Heartbeat(state.term, state.node_id, node, state.commit, state.round))


def on_announce(state: State) -> None:
    """The commit index travels with a heartbeat, sent out of turn."""
    if state.role is Role.LEADER:
        broadcast_heartbeat(state)


def on_heartbeat_reply(state: State, reply: HeartbeatReply) -> None:
    """A follower lives: it counts for reads and the quorum check, and may get more."""
    progress = _heard(state, reply.sender, reply.round)
    if progress is None:
        return
    if reply.sticky and reads.promised_enough(state, reply.promise_ms):
        state.lease_rounds[reply.sender] = max(state.lease_rounds.get(reply.sender, 0), reply.round)
        reads.renew_lease(state)
    probing = progress.state is ProgressState.PROBE
    if probing and progress.probe_overdue(reply.round, reply.verified):
        progress.probe_sent = False
    if reply.durable > progress.match or (probing and reply.durable >= progress.next - 1):
        # The append's own answer was lost, or comes after this one.
        _on_accepted(state, reply.sender, reply.durable, progress)
        if state.progress.get(reply.sender) is not progress:
            return
    if progress.state is ProgressState.REPLICATE and progress.lost_before(
        reply.round, reply.verified
    ):
        progress.become_probe(LogIndex(reply.verified + 1))
    if progress.state is ProgressState.PROBE:
        send_appends(state, reply.sender, progress)


def _heard(state: State, node: NodeId, round_number: int) -> Progress | None:
    """A member answered in this term: it is alive, and followed this leader in that round."""
    progress = state.progress.get(node)
    if progress is None:
        return None  # removed meanwhile
    progress.heard_tick = state.tick
    if round_number > state.acked_rounds.get(node, 0):
        state.acked_rounds[node] = round_number
        reads.on_round(state)
    return progress


# --- connections and snapshots ------------------------------------------------------------------


def on_peer_lost(state: State, node: NodeId) -> None:
    """What was streamed may be lost: find out where the follower stands."""
    progress = state.progress.get(node)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe(LogIndex(progress.match + 1))
        progress.hold()  # nothing can be sent now; ``PeerReached`` or an answer frees it


def on_peer_reached(state: State, node: NodeId) -> None:
    """Its connection is new: what was sent before is lost, so a paused probe may go on."""
    progress = state.progress.get(node)
    if progress is not None and progress.state is ProgressState.PROBE:
        progress.probe_sent = False
        send_appends(state, node, progress)


def on_snapshot_sent(state: State, node: NodeId, index: LogIndex, *, ok: bool) -> None:
    """The stream of a snapshot up to *index* ended: go on with the log behind it, or retry."""
    progress = state.progress.get(node)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    progress.become_probe(LogIndex(index + 1) if ok else LogIndex(progress.match + 1))
    if ok:
        send_appends(state, node, progress)
    else:
        progress.hold()  # the next heartbeat's answer tries again


def first_index_needed(state: State) -> LogIndex:
    """Lowest entry that a live follower still has to get from the log; for deciding what to cut."""
    needed = [
        progress.next
        for progress in state.progress.values()
        if progress.state is not ProgressState.SNAPSHOT
        and progress.heard_tick + state.config.election_ticks_max >= state.tick
    ]
    return min(needed, default=BEFORE_FIRST)
