"""Listens to a running node without changing what it does, and tells ``Invariants``.

The few methods that everything passes through are replaced on the *instance* by ones that call
the original and look at what came of it: the core's step, the machines' apply, the log's writes,
the transport's send, and the entrances for submissions and queries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from jepsen_like.simulation.claims import Before, Disk
from jepsen_like.simulation.invariants import Invariants
from quorate.base.frames import Query, QueryFailed, QueryReply, Submit, SubmitFailed, SubmitReply
from quorate.base.lease_commands import LeaseEnded
from quorate.base.types import LogIndex
from quorate.consensus.checker import CoreChecker
from quorate.consensus.events import (
    Compacted,
    Event,
    Persisted,
    ReadIndex,
    SnapshotOffered,
    Tick,
)
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryId,
    HardState,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Output, Role
from quorate.consensus.state import State
from quorate.errors import InvariantViolationError
from quorate.replication.machine import Context
from quorate.replication.machines import Applied
from quorate.replication.reading import QuerySink
from quorate.replication.replica import Replica
from quorate.replication.transport import Aside, PeerFrame
from quorate.server.node import Node

#: Called with a node's number and why it stopped by itself.
OnFailure = Callable[[int, BaseException], None]


def observe(node: Node, invariants: Invariants, on_failure: OnFailure) -> None:
    """To be called with a node that has not been started."""
    build: Callable[[], Awaitable[Any]] = node._build  # noqa: SLF001  there is no other door
    failed: Callable[[BaseException], None] = node._on_failure  # noqa: SLF001

    async def built() -> Any:  # noqa: ANN401  the node's own record
        parts = await build()
        _Listener(node, parts, invariants)
        return parts

    def stopped(error: BaseException) -> None:
        on_failure(int(node.node_id), error)
        failed(error)

    _replace(node, "_build", built)
    _replace(node, "_on_failure", stopped)


def _replace(owner: object, name: str, method: Callable[..., Any]) -> None:
    setattr(owner, name, method)


def _endangered(event: Any, state: State) -> dict[int, int | None]:  # noqa: ANN401
    """Entries that an append or a snapshot begins before, with their terms: it may drop them."""
    log = state.log
    if event.__class__ is SnapshotOffered:
        first = int(event.id.index) + 1
    elif event.entries and event.entries[0].index <= log.last_index:
        first = int(event.entries[0].index)
    else:
        return {}
    first = max(first, int(log.floor.index) + 1)
    return {at: log.term_at(LogIndex(at)) for at in range(first, int(log.last_index) + 1)}


def _hands_over(event: Heartbeat | VoteRequest) -> bool:
    return isinstance(event, VoteRequest) and event.transfer


class _Listener:
    """On one run of one node, from its recovery to its end."""

    def __init__(self, node: Node, parts: Any, invariants: Invariants) -> None:  # noqa: ANN401
        self._invariants = invariants
        self._replica: Replica = parts.replica
        self._checkpointer = parts.checkpointer
        self._core = self._replica.core
        self._machines = node.machines
        self._alarm_count = 0
        self._checker = CoreChecker(self._core)
        self._disk: Disk = invariants.started(
            int(node.node_id),
            parts.gate.identity.incarnation,
            self._core.state,
            int(self._machines.index),
        )
        if self._machines.index:
            self._state_now()
        self._listen_to_core()
        self._listen_to_log(parts.log)
        self._listen_to_machines()
        self._listen_to_clients()
        self._listen_to_network(parts.peers)

    def _state_now(self) -> None:
        machines = self._machines
        self._invariants.state_at(self._disk, int(machines.index), machines.state_hash)

    # --- the core -------------------------------------------------------------------------------

    def _listen_to_core(self) -> None:
        core, invariants, disk = self._core, self._invariants, self._disk
        original: Callable[[Event], Output] = core.step
        state = core.state

        def step(event: Event) -> Output:
            before = Before(state)
            kind = event.__class__
            if kind is AppendRequest or kind is SnapshotOffered:
                before.endangered = _endangered(event, state)
            answer = event if isinstance(event, HeartbeatReply | AppendReply) else None
            matched = None if answer is None else state.match.get(answer.sender)
            output = original(event)
            if kind is Tick:
                invariants.time_passed(disk)
            campaigns = state.role is Role.CANDIDATE and before.role is not Role.CANDIDATE
            if campaigns and kind is not TimeoutNow:
                invariants.granted(disk, disk.node)
            if before.role is Role.LEADER and state.role is Role.LEADER:
                if kind is Tick:
                    invariants.ticked(disk)
                elif kind is ReadIndex:
                    self._check_lease(output)
                elif answer is not None:
                    invariants.answered_by(disk, answer, matched)
            elif isinstance(event, Heartbeat | VoteRequest):
                self._check_promises(event, output)
            if kind is Tick and not (output.persist or output.messages or output.role_change):
                return output  # nothing happened: a third of the time of a run saved
            try:
                self._checker.after_step(output)
            except InvariantViolationError as error:
                text = f"node {disk.node}, {type(event).__name__}: {error}"
                invariants.claim(False, "core", text)  # noqa: FBT003
            persist = output.persist
            if output.install is not None:
                invariants.installed(disk)
                before.commit = state.commit
            invariants.stepped(disk, before, () if persist is None else persist.entries)
            if isinstance(event, Persisted | Compacted):
                self._check_order()
            return output

        _replace(core, "step", step)
        loaded: Callable[[], None] = self._replica.snapshot_loaded

        def snapshot_loaded() -> None:
            self._state_now()
            loaded()

        _replace(self._replica, "snapshot_loaded", snapshot_loaded)

    def _check_promises(self, event: Heartbeat | VoteRequest, output: Output) -> None:
        """What a member says about votes, to a leader and to a candidate."""
        for message in (*output.messages, *output.after_persist):
            if isinstance(message, HeartbeatReply) and message.sticky:
                if self._core.state.config.lease_reads:
                    self._invariants.promised(self._disk)
            elif isinstance(message, VoteReply) and message.granted and not _hands_over(event):
                self._invariants.granted(self._disk, int(message.target))

    def _check_lease(self, output: Output) -> None:
        """A leader that answers a read at once has a lease, or is alone."""
        membership = self._core.state.membership
        if output.read_states and len(membership.voters) + len(membership.voters_old) > 1:
            self._invariants.leased(self._disk)

    def _check_order(self) -> None:
        replica = self._replica
        if replica.ready:
            checkpoint = int(self._checkpointer.statistics().last_index)
            self._invariants.ordered(self._disk, checkpoint, int(replica.applied))
        alarms = replica.divergence.alarms
        if len(alarms) > self._alarm_count:
            self._alarm_count = len(alarms)
            self._invariants.claim(False, "state-differs", alarms[-1])  # noqa: FBT003

    # --- the disk -------------------------------------------------------------------------------

    def _listen_to_log(self, log: Any) -> None:  # noqa: ANN401  any LogStore
        disk = self._disk
        append: Callable[[Sequence[Entry], HardState | None], None] = log.append
        reset: Callable[[EntryId, HardState], None] = log.reset

        def appended(entries: Sequence[Entry], hard_state: HardState | None) -> None:
            append(entries, hard_state)
            term, vote, last = disk.written
            if hard_state is not None:
                term, vote = int(hard_state.term), int(hard_state.vote)
            disk.written = (term, vote, int(entries[-1].index) if entries else last)

        def was_reset(floor: EntryId, hard_state: HardState) -> None:
            reset(floor, hard_state)
            disk.written = (int(hard_state.term), int(hard_state.vote), int(floor.index))

        _replace(log, "append", appended)
        _replace(log, "reset", was_reset)

    # --- the machines ---------------------------------------------------------------------------

    def _listen_to_machines(self) -> None:
        machines, invariants, disk = self._machines, self._invariants, self._disk
        apply: Callable[..., Applied] = machines.apply

        def applied(index: int, term: int, payload: bytes | None, *more: object) -> Applied:
            invariants.applied(disk, int(index), int(term), payload)
            outcome = apply(index, term, payload, *more)
            ended = [
                event.lease
                for _machine, _key, event in outcome.effects
                if isinstance(event, LeaseEnded) and not event.revoked
            ]
            invariants.ran_out(disk, int(term), int(machines.time_ms), ended)
            self._state_now()
            return outcome

        _replace(machines, "apply", applied)
        sessions = machines.sessions
        admit: Callable[[Submit, Context], Any] = sessions.admit

        def admitted(submit: Submit, context: Context) -> Any:  # noqa: ANN401
            settled = admit(submit, context)
            if settled is None:
                invariants.execute(disk, submit.session, submit.sequence, int(context.index))
            return settled

        _replace(sessions, "admit", admitted)

    # --- clients and peers ----------------------------------------------------------------------

    def _listen_to_clients(self) -> None:
        replica, invariants, disk = self._replica, self._invariants, self._disk
        submit_original: Callable[[Submit, Any], None] = replica.submit
        query_original: Callable[[Query, QuerySink], None] = replica.query

        def submit(asked: Submit, sink: Callable[[SubmitReply | SubmitFailed], None]) -> None:
            def answered(answer: SubmitReply | SubmitFailed) -> None:
                if isinstance(answer, SubmitReply):
                    invariants.answered(disk, asked.session, asked.sequence, int(answer.index))
                sink(answer)

            submit_original(asked, answered)

        def query(asked: Query, sink: QuerySink) -> None:
            floor = invariants.commit_max

            def answered(answer: QueryReply | QueryFailed) -> None:
                if isinstance(answer, QueryReply) and asked.linearizable:
                    invariants.read(disk, floor, int(answer.index))
                sink(answer)

            query_original(asked, answered)

        _replace(replica, "submit", submit)
        _replace(replica, "query", query)

    def _listen_to_network(self, transport: Any) -> None:  # noqa: ANN401  any Transport
        invariants, disk = self._invariants, self._disk
        send: Callable[[int, PeerFrame], None] = transport.send

        def sent(target: int, frame: PeerFrame) -> None:
            if not isinstance(frame, Aside):
                invariants.sent(disk, frame)
            send(target, frame)

        _replace(transport, "send", sent)
