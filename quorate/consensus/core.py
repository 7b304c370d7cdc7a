"""One entrance: ``Core.step(event) -> Output``. Decides; does nothing.

Deterministic: equal state, event and ``Random`` give an equal output. Where to find a rule:

===================  ==========================================================================
``election``         Raft 5.2, 5.4.1; pre-vote and stickiness (thesis 4.2.3, 9.6)
``leader``           Raft 5.3, 5.4.2; check-quorum (thesis 6.2); stalled disk
``follower``         Raft 5.3, figure 2 AppendEntries; 7 InstallSnapshot
``reads``            ReadIndex, leases (thesis 6.4)
``changes``          joint consensus and its guards (thesis 4)
``transfer``         leadership transfer (thesis 3.10)
``quorum``           majorities; ``progress``: what a leader knows of a follower
===================  ==========================================================================

The driver holds payloads, the disk and the network; this package sees terms, sizes and messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import assert_never

import msgspec

from quorate.base.invariants import must
from quorate.base.types import NO_NODE, LogIndex, NodeId, Term
from quorate.consensus import changes, election, follower, leader, reads, transfer
from quorate.consensus.config import CoreConfig
from quorate.consensus.events import (
    Announce,
    ChangeMembership,
    Compacted,
    Demand,
    Event,
    PeerLost,
    PeerReached,
    Persisted,
    Propose,
    ReadIndex,
    SnapshotOffered,
    SnapshotSent,
    Tick,
    TransferLeadership,
)
from quorate.consensus.log_view import LogView
from quorate.consensus.membership import Membership, MembershipHistory
from quorate.consensus.messages import (
    MESSAGES,
    AppendReply,
    AppendRequest,
    EntryId,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Output, Role
from quorate.consensus.roles import become_follower, restart_election_timer
from quorate.consensus.state import Photo, State


class FollowerStatus(msgspec.Struct, frozen=True):
    """What the leader knows of one other member."""

    node: NodeId
    state: str
    match: LogIndex
    next: LogIndex
    inflight_bytes: int
    heard_ticks_ago: int


class CoreStatus(msgspec.Struct, frozen=True):
    """A frozen view for metrics and ``quorate status``."""

    node: NodeId
    role: Role
    term: Term
    vote: NodeId
    leader: NodeId
    commit: LogIndex
    last_index: LogIndex
    persisted: LogIndex
    floor: LogIndex
    uncommitted_bytes: int
    membership: Membership
    membership_index: LogIndex
    transfer_target: NodeId
    followers: tuple[FollowerStatus, ...]


class Core:
    """One member of one Raft group.

    *terms* and *sizes_bytes* describe the entries after *floor*; *members* is the configuration
    history as of the log's end (``MembershipHistory`` with the entries of the log appended).
    """

    def __init__(
        self,
        config: CoreConfig,
        random: Random,
        *,
        hard_state: HardState,
        floor: EntryId,
        terms: Sequence[Term],
        sizes_bytes: Sequence[int],
        members: MembershipHistory,
    ) -> None:
        log = LogView(floor, terms, sizes_bytes)
        must(
            hard_state.commit <= log.last_index,
            "the log holds all that was committed",
            commit=hard_state.commit,
            last=log.last_index,
        )
        must(log.last_term <= hard_state.term, "no entry is from the future", term=hard_state.term)
        self.state = State(config, random, hard_state, log, members)
        restart_election_timer(self.state)

    def step(self, event: Event) -> Output:
        """Consume one event and say what the driver must now do."""
        state = self.state
        before = Photo(state)
        if event.__class__ in MESSAGES:  # not in the ``match``: a class that does not fit, 0.1 us
            self._on_message(event)  # type: ignore[arg-type]
        else:
            self._on_event(event)  # type: ignore[arg-type]
        must(state.term >= before.role[1], "terms never go back", was=before.role, now=state.term)
        must(state.commit >= before.commit, "commit never goes back", was=before.commit)
        must(
            state.commit <= state.log.last_index,
            "what is committed is in the log",
            commit=state.commit,
            last=state.log.last_index,
        )
        return state.take_output(before)

    def _on_event(self, event: Demand) -> None:
        state = self.state
        match event:
            case Persisted():
                self._on_persisted(event)
            case Propose():
                leader.propose(state, event.payloads)
            case Tick():
                self._on_tick(event)
            case ReadIndex():
                reads.on_read_index(state, event)
            case Announce():
                leader.on_announce(state)
            case ChangeMembership():
                changes.on_change(state, event)
            case TransferLeadership():
                transfer.on_transfer(state, event.target)
            case Compacted():
                self._on_compacted(event.floor)
            case SnapshotSent():
                leader.on_snapshot_sent(state, event.node, event.index, ok=event.ok)
            case SnapshotOffered():
                follower.on_snapshot_offered(state, event)
            case PeerLost():
                leader.on_peer_lost(state, event.node)
                election.on_leader_lost(state, event.node)
            case PeerReached():
                leader.on_peer_reached(state, event.node)
            case _:
                assert_never(event)

    def _on_tick(self, event: Tick) -> None:
        state = self.state
        state.tick += event.ticks
        state.now_ms = max(state.now_ms, event.now_ms)
        if state.heard_since_tick:
            election.date_promise(state)
        if state.role is Role.LEADER:
            leader.on_tick(state, event.ticks)
        else:
            election.on_tick(state, event.ticks)

    def _on_persisted(self, event: Persisted) -> None:
        state = self.state
        while state.pending_persists and state.pending_persists[0].id <= event.id:
            done = state.pending_persists.popleft()
            state.persisted = max(state.persisted, done.last_index)
            state.persisted_term, state.persisted_vote = done.term, done.vote
        must(
            state.persisted <= state.log.last_index,
            "nothing is durable that is not in the log",
            persisted=state.persisted,
            last=state.log.last_index,
        )
        if state.role is Role.LEADER:
            leader.on_own_persisted(state)
        elif (
            state.role is Role.CANDIDATE
            and (state.persisted_term, state.persisted_vote) == (state.term, state.node_id)
            and state.node_id not in state.votes
        ):
            state.votes[state.node_id] = True
            election.count_votes(state)

    def _on_compacted(self, floor: EntryId) -> None:
        state = self.state
        if floor.index <= state.log.floor.index:
            return  # a snapshot that was installed meanwhile left nothing to cut
        must(
            floor.index <= min(state.commit, state.persisted),
            "only what is committed and durable is cut",
            floor=floor,
            commit=state.commit,
            persisted=state.persisted,
        )
        state.log.compact(floor)
        state.members.compact(floor.index)

    def _on_message(self, message: Message) -> None:
        """Raft 5.1: a newer term makes a follower of anybody; an older one is answered so that
        its sender learns, or dropped."""
        state = self.state
        if message.term > state.term:
            if not self._adopt_term(message):
                return
        elif message.term < state.term:
            self._answer_stale(message)
            return
        self._dispatch(message)

    def _adopt_term(self, message: Message) -> bool:
        """Take on a newer term; False if the message is to be ignored."""
        state = self.state
        match message:
            case VoteRequest() if not message.transfer and election.sticky(state):
                return False  # thesis 4.2.3: a member with a live leader takes no part
            case VoteRequest() if message.pre:
                return True  # asks about a term nobody is in yet
            case VoteReply() if message.pre and message.granted:
                return True  # answers for the term asked about
            case AppendRequest() | Heartbeat():
                become_follower(state, message.term, message.sender)
            case _:
                become_follower(state, message.term, NO_NODE)
        return True

    def _answer_stale(self, message: Message) -> None:
        """An older leader or candidate must learn that its term has passed, or it would wait for
        ever on a member that ignores it."""
        state = self.state
        match message:
            case VoteRequest():
                state.send(
                    VoteReply(
                        state.term, state.node_id, message.sender, granted=False, pre=message.pre
                    )
                )
            case AppendRequest() | Heartbeat():
                state.send(
                    HeartbeatReply(
                        term=state.term,
                        sender=state.node_id,
                        target=message.sender,
                        round=message.round,
                        verified=LogIndex(0),
                        sticky=False,
                    )
                )
            case _:
                pass

    def _dispatch(self, message: Message) -> None:
        state = self.state
        match message:
            case AppendRequest():
                follower.on_append_request(state, message)
            case AppendReply():
                if state.role is Role.LEADER:
                    leader.on_append_reply(state, message)
            case Heartbeat():
                follower.on_heartbeat(state, message)
            case HeartbeatReply():
                if state.role is Role.LEADER:
                    leader.on_heartbeat_reply(state, message)
            case VoteRequest():
                if message.transfer or not election.sticky(state):
                    election.on_vote_request(state, message)
            case VoteReply():
                election.on_vote_reply(state, message)
            case ReadIndexRequest():
                reads.on_request(state, message)
            case ReadIndexReply():
                reads.on_reply(state, message)
            case TimeoutNow():
                election.on_timeout_now(state, message)
            case _:
                assert_never(message)

    def first_index_needed(self) -> LogIndex:
        """Lowest entry a live follower still needs from the log, 0 if none or not leading."""
        return leader.first_index_needed(self.state)

    def status(self) -> CoreStatus:
        """What an operator wants to see."""
        state = self.state
        return CoreStatus(
            node=state.node_id,
            role=state.role,
            term=state.term,
            vote=state.vote,
            leader=state.leader,
            commit=state.commit,
            last_index=state.log.last_index,
            persisted=state.persisted,
            floor=state.log.floor.index,
            uncommitted_bytes=state.uncommitted_bytes,
            membership=state.membership,
            membership_index=state.members.index,
            transfer_target=state.transfer_target,
            followers=tuple(
                FollowerStatus(
                    node,
                    progress.state.value,
                    progress.match,
                    progress.next,
                    progress.inflight_bytes,
                    state.tick - progress.heard_tick,
                )
                for node, progress in state.progress.items()
            ),
        )
