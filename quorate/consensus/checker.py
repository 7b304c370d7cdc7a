"""Invariants of one core: what must hold now, what since the step before, what of an output.

For simulations and tests, which call ``CoreChecker.after_step`` after every step; costs a few
microseconds, so a node may run it too. What only several members together can break (one leader
per term, log matching, leader completeness) is checked by the simulations, which see them all.
"""

from __future__ import annotations

from quorate.base.invariants import must
from quorate.base.types import NO_NODE
from quorate.consensus.core import Core
from quorate.consensus.messages import AppendReply, HeartbeatReply, Message, VoteReply, VoteRequest
from quorate.consensus.output import Output, Role, SendAppend
from quorate.consensus.state import State


class _Before:
    """What is remembered of the state after the previous step."""

    __slots__ = (
        "commit",
        "commit_term",
        "floor",
        "last_index",
        "last_term",
        "leader",
        "persist_id",
        "role",
        "term",
        "tick",
        "vote",
    )  # fmt: skip

    def __init__(self, state: State) -> None:
        self.term, self.vote, self.role, self.leader = (
            state.term,
            state.vote,
            state.role,
            state.leader,
        )
        self.commit = state.commit
        self.commit_term = state.log.term_at(state.commit)
        self.floor = state.log.floor
        self.last_index, self.last_term = state.log.last_index, state.log.last_term
        self.persist_id = state.last_persist_id
        self.tick = state.tick


class CoreChecker:
    """Watches one core from its construction on."""

    def __init__(self, core: Core) -> None:
        self._state = core.state
        self._before = _Before(core.state)
        self._check_now()

    def after_step(self, output: Output) -> None:
        """To be called once after every step, with what the step returned.

        Raises:
            InvariantViolationError: a bug in the core.
        """
        self._check_now()
        self._check_since()
        self._check_output(output)
        self._before = _Before(self._state)

    # --- now -------------------------------------------------------------------------------------

    def _check_now(self) -> None:
        state = self._state
        log = state.log
        must(
            log.floor.index <= state.commit <= log.last_index,
            "floor, commit and end of the log are in order",
            floor=log.floor,
            commit=state.commit,
            last=log.last_index,
        )
        must(
            state.persisted <= log.last_index,
            "nothing is durable that is not in the log",
            persisted=state.persisted,
            last=log.last_index,
        )
        must(
            log.last_term <= state.term,
            "no entry is from the future",
            last=log.last_term,
            term=state.term,
        )
        must(
            state.verified <= log.last_index,
            "what matches the leader's log is in the log",
            verified=state.verified,
            last=log.last_index,
        )
        must(
            (state.persisted_term, state.persisted_vote) == (state.term, state.vote)
            or bool(state.pending_persists),
            "a new term or vote is on its way to the disk",
            durable=(state.persisted_term, state.persisted_vote),
            now=(state.term, state.vote),
        )
        self._check_pending()
        if state.role is Role.LEADER:
            self._check_leader()
        else:
            self._check_not_leader()

    def _check_pending(self) -> None:
        previous = 0
        for pending in self._state.pending_persists:
            must(pending.id > previous, "writes are confirmed in order", id=pending.id)
            must(
                pending.last_index <= self._state.log.last_index,
                "no write vouches for a truncated entry",
                write=pending.last_index,
                last=self._state.log.last_index,
            )
            previous = pending.id

    def _check_leader(self) -> None:
        state = self._state
        must(state.leader == state.node_id, "a leader follows itself", leader=state.leader)
        must(state.vote == state.node_id, "a leader voted for itself", vote=state.vote)
        must(
            (state.persisted_term, state.persisted_vote) == (state.term, state.vote),
            "a leader's vote for itself is durable",
            durable=(state.persisted_term, state.persisted_vote),
        )
        others = [node for node in state.membership.members() if node != state.node_id]
        must(
            sorted(state.progress) == others,
            "a leader keeps a progress per other member",
            progress=list(state.progress),
            members=others,
        )
        must(
            state.match[state.node_id] <= state.persisted,
            "a leader counts of itself what is durable",
            counted=state.match[state.node_id],
            durable=state.persisted,
        )
        must(
            state.uncommitted_bytes == state.log.size_between(state.commit, state.log.last_index),
            "uncommitted bytes are those after the commit index",
            counted=state.uncommitted_bytes,
        )
        config = state.config
        for node, progress in state.progress.items():
            must(
                progress.match < progress.next <= state.log.last_index + 1,
                "match, next and the log are in order",
                node=node,
                match=progress.match,
                next=progress.next,
            )
            must(
                state.match.get(node, 0) == progress.match,
                "what is counted of a follower is what it confirmed",
                node=node,
                counted=state.match.get(node, 0),
                match=progress.match,
            )
            must(
                progress.inflight_count <= config.inflight_messages_max
                and progress.inflight_bytes >= 0,
                "appends in flight are bounded",
                node=node,
                count=progress.inflight_count,
                size_bytes=progress.inflight_bytes,
            )

    def _check_not_leader(self) -> None:
        state = self._state
        must(
            not (state.reads or state.reads_early or state.progress),
            "only a leader keeps reads and progress",
            role=state.role,
        )
        must(state.transfer_target == NO_NODE, "only a leader hands over", to=state.transfer_target)
        must(state.leader != state.node_id, "only a leader follows itself", role=state.role)
        if state.role is Role.CANDIDATE:
            must(state.vote == state.node_id, "a candidate votes for itself", vote=state.vote)

    # --- since the previous step -----------------------------------------------------------------

    def _check_since(self) -> None:
        state, before = self._state, self._before
        must(state.term >= before.term, "terms never go back", was=before.term, now=state.term)
        must(state.tick >= before.tick, "time never goes back", was=before.tick, now=state.tick)
        must(
            state.commit >= before.commit,
            "commit never goes back",
            was=before.commit,
            now=state.commit,
        )
        must(
            state.log.floor.index >= before.floor.index,
            "the floor never sinks",
            was=before.floor,
            now=state.log.floor,
        )
        if before.commit >= state.log.floor.index:
            must(
                state.log.term_at(before.commit) == before.commit_term,
                "a committed entry never changes",
                index=before.commit,
                was=before.commit_term,
                now=state.log.term_at(before.commit),
            )
        if state.term == before.term:
            self._check_within_term()

    def _check_within_term(self) -> None:
        state, before = self._state, self._before
        if before.vote != NO_NODE:
            must(state.vote == before.vote, "one vote per term", was=before.vote, now=state.vote)
        if NO_NODE not in {before.leader, state.leader}:
            must(
                state.leader == before.leader,
                "one leader per term",
                was=before.leader,
                now=state.leader,
            )
        if before.role is Role.LEADER:
            must(
                state.role in {Role.LEADER, Role.FOLLOWER},
                "a leader resigns to follower",
                now=state.role,
            )
            must(
                state.log.last_index >= before.last_index
                and (
                    state.log.term_at(before.last_index) == before.last_term
                    or before.last_index < state.log.floor.index
                ),
                "a leader never overwrites or deletes entries of its log",
                was=(before.last_index, before.last_term),
                now=(state.log.last_index, state.log.last_term),
            )

    # --- the output ------------------------------------------------------------------------------

    def _check_output(self, output: Output) -> None:
        """Nothing leaves at once that promises what is not yet durable."""
        state = self._state
        if (
            state.term > self._before.term
            or state.vote != self._before.vote
            or state.log.last_index > self._before.last_index
        ):
            must(output.persist is not None, "what is new goes to the disk", output=output)
        if output.persist is not None:
            must(
                output.persist.id == self._before.persist_id + 1,
                "writes are numbered in order",
                id=output.persist.id,
            )
        for message in output.messages:
            if not isinstance(message, SendAppend):
                self._check_message(message)

    def _check_message(self, message: Message) -> None:
        state = self._state
        durable = (state.persisted_term, state.persisted_vote)
        match message:
            case VoteRequest() if not message.pre:
                must(durable == (message.term, state.node_id), "own vote first", message=message)
            case VoteReply() if message.granted and not message.pre:
                must(durable == (message.term, message.target), "vote first", message=message)
            case AppendReply() if message.ok:
                must(state.persisted >= message.index, "entries first", message=message)
            case HeartbeatReply():
                must(state.persisted >= message.durable, "entries first", message=message)
            case _:
                pass
        pre = isinstance(message, VoteRequest | VoteReply) and message.pre
        must(pre or durable[0] >= message.term, "its term first", message=message, durable=durable)
