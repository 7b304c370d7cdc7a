"""The replica: drives the core, the log, the machines and the network, and decides nothing.

One event goes into the core; its ``Output`` says what to do, in the order of its fields
(``_perform``). Everything here runs on one event loop; only the disk is elsewhere.

What this module must not do: interpret a term, count a vote, look into a command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random

import msgspec

from quorate.base.frames import Query, Submit
from quorate.base.invariants import must
from quorate.base.limits import ENTRY_BYTES_MAX, MIB
from quorate.base.types import NO_NODE, LogIndex, NodeId
from quorate.consensus.core import Core
from quorate.consensus.events import (
    Announce,
    Compacted,
    Event,
    PeerLost,
    PeerReached,
    Persisted,
    Propose,
    ReadIndex,
    SnapshotOffered,
    SnapshotSent,
    Tick,
)
from quorate.consensus.membership import Membership
from quorate.consensus.messages import (
    EntryId,
    Heartbeat,
    HeartbeatReply,
    Message,
)
from quorate.consensus.output import Output, Persist, Refusal, Role, RoleChange, SendAppend
from quorate.errors import (
    ClosedError,
    NotLeaderError,
    OutcomeUnknownError,
    QuorateError,
    ReadOnlyError,
    StorageError,
    UnavailableError,
    WatchLaggingError,
)
from quorate.replication.acknowledging import Acknowledging
from quorate.replication.applying import Applier
from quorate.replication.batch import Batch, encode_batch, last_time_ms
from quorate.replication.clock import Clock, ClusterClock, TickPace
from quorate.replication.disk import Held, JobRunner, LogWriter
from quorate.replication.divergence import DivergenceWatch
from quorate.replication.feeds import Feeds
from quorate.replication.log_cache import LogCache
from quorate.replication.machines import Machines
from quorate.replication.pipeline import Pipeline
from quorate.replication.proposals import Proposals, SubmitSink, Waiting
from quorate.replication.reading import QuerySink, Serving
from quorate.replication.recovery import Recovered
from quorate.replication.sending import AppendSender
from quorate.replication.statistics import Counts, ReplicaStatistics
from quorate.replication.transport import (
    AppliedRequest,
    ReplicaFrame,
    StateDigest,
    Transport,
)
from quorate.storage.interfaces import LogStore

_logger = logging.getLogger("quorate.replica")

#: A wall clock outside 1970 to some 280,000 years later is wrong; an entry must stand all the same.
WALL_MS_MAX = 2**53 - 1


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """*tick_ms*: length of a core's tick. *cache_bytes*: recent log kept in memory."""

    tick_ms: int = 10
    cache_bytes: int = 16 * MIB


class Replica:
    """One member's engine. ``start`` it, feed it, ``stop`` it.

    *on_role*: called after each change of role, term or leader. *on_membership*: after each change
    of the configuration in force. *on_snapshot_needed*: stream a snapshot to that node and report
    with ``snapshot_sent``. *on_applied*: after each applied slice (checkpoint policy).
    *on_failure*: the disk failed or an invariant broke; the node must stop.
    """

    _stopped = _performing = False
    _flush_scheduled = False
    _ticker: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: ReplicaConfig,
        recovered: Recovered,
        *,
        log: LogStore,
        machines: Machines,
        transport: Transport,
        log_runner: JobRunner,
        read_runner: JobRunner,
        clock: Clock,
        random: Random,
        on_role: Callable[[RoleChange], None],
        on_membership: Callable[[Membership], None],
        on_snapshot_needed: Callable[[NodeId], None],
        on_applied: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.config = config
        self.core: Core = recovered.core
        self.machines = machines
        self.divergence = DivergenceWatch()
        self.feeds = Feeds(machines.machine)
        self.node_id = self.core.state.node_id
        self.read_only = ""  #: why growing writes are refused, or ""
        self._transport = transport
        self._clock = clock
        self._random = random
        self._on_role = on_role
        self._on_membership = on_membership
        self._on_snapshot_needed = on_snapshot_needed
        self._on_applied = on_applied
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self.writer = self._new_writer(log, log_runner)
        self._held = Held()
        self._last_persist_id = 0
        self._installed: dict[int, asyncio.Future[None]] = {}
        self._cache = LogCache(config.cache_bytes)
        self._cache.reset(self.core.state.log.last_index)
        self._sender = AppendSender(
            self.core.state, log, self._cache, read_runner, transport, self.fail
        )
        self._proposals = Proposals()
        self._pipeline = Pipeline(self._flush_soon)
        self._applier = Applier(
            self.core.state,
            machines,
            log,
            self._cache,
            self._proposals,
            self.divergence,
            self.feeds,
            read_runner,
            clock,
            applied=recovered.applied.index,
            on_progress=self._on_progress,
            on_failure=self.fail,
        )
        self._cluster_clock = ClusterClock(clock)
        self._last_time_ms = machines.time_ms
        self._serving = Serving(
            machines, self._applier, clock, ask=self._ask_index, contexts=random.getrandbits(52)
        )
        self._acknowledging = Acknowledging(
            self.core.state, clock, machines.sessions, self._ask_applied, self._tell_applied
        )
        self._pace = TickPace(clock, config.tick_ms / 1000)
        self._counts = Counts()
        self.divergence.reset(recovered.applied.index, machines.state_hash)

    def _new_writer(self, log: LogStore, runner: JobRunner) -> LogWriter:
        return LogWriter(
            log,
            runner,
            on_durable=self._on_durable,
            on_failure=self.fail,
            on_disk_full=self._on_disk_full,
            quick=getattr(runner, "quick", None),
        )

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick; apply what the log says is committed."""
        self._transport.set_members(self.addresses())
        self._pace.passed()
        self._ticker = self._loop.call_later(self._pace.wait_s(), self._tick)
        self._applier.soon()

    def stop(self, error: QuorateError | None = None) -> None:
        """Answer everybody who waits, and do nothing more. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.writer.stop()
        self._sender.stop()
        self._pipeline.stop()
        self._applier.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        reason = error or ClosedError("the node is stopping")
        self._proposals.fail_queued(reason.code, str(reason))
        self._proposals.fail_proposed(OutcomeUnknownError(f"the node stopped: {reason}"))
        self._acknowledging.give_up_all()
        self._serving.stop(UnavailableError.code, str(reason))
        self.feeds.end_all(UnavailableError(str(reason)))
        for future in self._installed.values():
            if not future.done():
                future.set_exception(reason)
                future.exception()  # whoever waited may be gone; it is told all the same
        self._installed.clear()

    def fail(self, error: BaseException) -> None:
        """The disk failed, or a claim turned out false: stop, and tell the node."""
        if self._stopped:
            return
        _logger.critical("the node stops: %s", error, exc_info=error)
        self.stop(error if isinstance(error, QuorateError) else StorageError(str(error)))
        self._on_failure(error)

    # --- what the node asks ----------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self.core.state.role is Role.LEADER

    @property
    def leader(self) -> NodeId:
        """Who leads, as far as this node knows; 0: nobody."""
        return self.core.state.leader

    @property
    def applied(self) -> LogIndex:
        """Index of the last applied entry."""
        return self._applier.applied

    @property
    def applied_bytes(self) -> int:
        """Payload bytes applied since the start."""
        return self._applier.payload_bytes

    @property
    def ready(self) -> bool:
        """Whether the machines hold the state up to ``applied`` (not while loading a snapshot)."""
        return self._applier.ready and not self._stopped

    @property
    def stopped(self) -> bool:
        """Whether it has stopped, by request or by failure."""
        return self._stopped

    def addresses(self) -> Mapping[NodeId, str]:
        """Of all other members, by id."""
        pairs = self.core.state.membership.addresses
        return {node: address for node, address in pairs if node != self.node_id}

    def statistics(self) -> ReplicaStatistics:
        """Counters for metrics."""
        counts = self._counts
        return ReplicaStatistics(
            proposals=counts.proposals,
            submissions=counts.submissions,
            commands_applied=self._applier.command_count,
            entries_applied=self._applier.entry_count,
            queries=counts.queries,
            log_writes=self.writer.write_count,
            elections_seen=counts.elections_seen,
            leader_changes=counts.leader_changes,
            digests_compared=self.divergence.compared,
            queued_submissions=self._proposals.queued,
            loop_lag_ms_max=counts.take_lag_ms(),
        )

    # --- writes ----------------------------------------------------------------------------------

    def submit(self, submit: Submit, sink: SubmitSink) -> None:
        """Queue a submission for the next entry; *sink* gets the answer, in a later turn.

        Raises:
            NotLeaderError, OverloadedError, ReadOnlyError, ClosedError: nothing was queued.
            UnknownMachineError, BadCommandError, LimitExceededError: it can never work.
        """
        if self._stopped:
            raise ClosedError("the node is stopping")
        if self.core.state.role is not Role.LEADER:
            raise NotLeaderError(f"node {self.node_id} does not lead; node {self.leader} may")
        prepared = self.machines.prepare(submit)
        if self.read_only and not self.machines.frees_space(prepared):
            raise ReadOnlyError(self.read_only)
        if submit.level:
            sink = self._acknowledging.sink(submit, sink)
        self._proposals.add(prepared, sink)
        self._counts.submissions += 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Turn what is queued into entries, as far as entries in flight allow."""
        self._flush_scheduled = False
        while (
            self._proposals.queued
            and not self._stopped
            and self._pipeline.may_propose(self._proposals.in_flight(self.core.state.term))
        ):
            refusal = self._propose(self._proposals.take())
            if refusal is Refusal.OVERLOADED:
                return  # a commit will flush again; the queue's own bound holds meanwhile
            if refusal is not None:
                self._proposals.fail_queued(NotLeaderError.code, refusal.value)

    def _propose(self, taken: tuple[Waiting, ...]) -> Refusal | None:
        """One entry with *taken*; they are queued again if the core refuses."""
        submissions = tuple([waiting.prepared.submit for waiting in taken])
        self._last_time_ms = self._now_ms()
        wall_ms = min(max(self._clock.wall_ms(), 0), WALL_MS_MAX)
        batch = Batch(self._last_time_ms, wall_ms, self._random.getrandbits(64), submissions)
        payload = encode_batch(batch)
        try:
            must(len(payload) <= ENTRY_BYTES_MAX, "an entry fits", size_bytes=len(payload))
            output = self.core.step(Propose((payload,)))
        except Exception as error:  # noqa: BLE001 - a broken invariant stops the node, not the loop
            self._proposals.give_back(taken)
            self.fail(error)
            return None
        if output.refusal is not None:
            self._proposals.give_back(taken)
        else:
            term = self.core.state.term
            self._proposals.proposed(output.proposed, term, taken)
            if self._acknowledging.expecting:
                more = self._proposals.queued > 0
                self._acknowledging.proposed(output.proposed, term, taken, more=more)
            self._counts.proposals += 1
            self._pipeline.proposed()
        self._perform(output)
        return output.refusal

    def _propose_time(self) -> None:
        """Something is due in the machines: an entry with the time, and nothing else."""
        if self._proposals.in_flight(self.core.state.term) or self._flush_scheduled:
            return  # the next entry carries the time anyway
        deadline_ms = self.machines.next_deadline_ms()
        if deadline_ms is not None and self._now_ms() >= deadline_ms:
            self._propose(())

    def _now_ms(self) -> int:
        """Cluster time, for the leader: never before that of any entry seen."""
        return self._cluster_clock.now_ms(max(self._last_time_ms, self.machines.time_ms))

    def on_answered(self, flush: Callable[[], None]) -> None:
        """*flush* is called when the submissions of an entry have been answered and more is to be
        done in the same turn of the loop."""
        self._applier.on_answered = flush

    # --- reads -----------------------------------------------------------------------------------

    def query(self, query: Query, sink: QuerySink) -> None:
        """Answer *query* from the local state: after a read-index round, or as soon as that has
        come to ``query.after``.

        Raises:
            ClosedError, UnavailableError, OverloadedError, UnknownMachineError, BadCommandError.
        """
        self._serving.query(query, sink)
        self._counts.queries += 1

    def _ask_index(self, context: int) -> None:
        self.step(ReadIndex(context, int(self._clock.monotonic_s() * 1000)))

    # --- the network -----------------------------------------------------------------------------

    def receive(self, frame: ReplicaFrame) -> None:
        """A validated frame from another member."""
        if isinstance(frame, StateDigest):
            self.divergence.on_digest(frame, self._applier.applied)
            self._acknowledging.heard(frame)
        elif isinstance(frame, AppliedRequest):
            self._applier.catch_up()
            self._acknowledging.asked(frame.sender, frame.index, self._applier.applied)
        else:
            self.step(frame)

    def peer_reached(self, node: NodeId) -> None:
        """Messages to *node* can be sent now."""
        self.step(PeerReached(node))

    def peer_lost(self, node: NodeId) -> None:
        """A connection to or from *node* broke. The transport says so, too, from within
        ``set_members``, in the middle of a step."""
        if self._performing:
            self._loop.call_soon(self.peer_lost, node)
        else:
            self._acknowledging.lost(node)
            self.step(PeerLost(node))

    def snapshot_sent(self, node: NodeId, index: LogIndex, *, ok: bool) -> None:
        """The stream asked for by ``on_snapshot_needed`` ended."""
        self.step(SnapshotSent(node, index, ok))

    def _send(self, message: Message | SendAppend) -> None:
        if isinstance(message, SendAppend):
            self._sender.send(message)
            return
        self._transport.send(message.target, message)
        if isinstance(message, Heartbeat | HeartbeatReply):
            self._tell_applied(message.target)

    def _tell_applied(self, node: NodeId) -> None:
        if self._applier.ready:
            applied, state_hash = self._applier.applied, self.machines.state_hash
            watched = len(self.feeds) > 0
            self._transport.send(node, StateDigest(self.node_id, applied, state_hash, watched))

    def _ask_applied(self, nodes: tuple[NodeId, ...], index: LogIndex) -> None:
        self.step(Announce())
        for node in nodes:
            self._transport.send(node, AppliedRequest(self.node_id, index))

    # --- the core --------------------------------------------------------------------------------

    def step(self, event: Event) -> Output:
        """One event in, its output performed. Also for membership changes and transfers, whose
        caller reads ``refusal`` and ``proposed`` from the output. Not to be called from within a
        callback of this object."""
        if self._stopped:
            return Output()
        try:
            output = self.core.step(event)
        except Exception as error:  # noqa: BLE001 - as in ``_propose``
            self.fail(error)
            return Output()
        self._perform(output)
        return output

    def _perform(self, output: Output) -> None:
        """The duties of an output, in its order."""
        self._performing = True
        try:
            persist = output.persist if output.install is None else None
            if persist is not None:
                self._remember(persist)
            for message in output.messages:
                self._send(message)
            if persist is not None:  # others' disks are asked first: this one is nearer
                self.writer.write(persist)
            if output.after_persist:
                self._hold(output.after_persist)
            if output.role_change is not None:
                self._change_role(output.role_change)
            if output.membership is not None:
                self._transport.set_members(self.addresses())
                self._acknowledging.forget(output.membership.members())
                self._on_membership(output.membership)
            if output.commit:
                waited_for = self._serving.waited_for or self._acknowledging.waited_for
                behind = output.persist is not None and not self.is_leader
                self._applier.heard(waited_for=waited_for or self.is_leader, behind_disk=behind)
            if output.read_states:
                self._applier.catch_up()
                for read in output.read_states:
                    self._serving.on_index(read.context, read.index)
                self._serving.serve()
            for node in output.snapshots:
                self._on_snapshot_needed(node)
        except Exception as error:  # noqa: BLE001 - as in ``_propose``
            self.fail(error)
        finally:
            self._performing = False

    def _remember(self, persist: Persist) -> None:
        self._last_persist_id = persist.id
        if persist.entries:
            self._cache.add(persist.entries)
            if self.core.state.role is not Role.LEADER:  # time never goes back along the log
                self._last_time_ms = max(self._last_time_ms, last_time_ms(persist.entries))

    def _hold(self, messages: tuple[Message, ...]) -> None:
        """They promise what is not durable yet, or may not be: all that was handed to the disk."""
        if self.writer.durable_id >= self._last_persist_id:
            for message in messages:
                self._send(message)
        else:
            self._held.add(self._last_persist_id, messages)

    def _on_durable(self, persist_id: int) -> None:
        if self._stopped:
            return
        try:
            for message in self._held.release(persist_id):
                self._send(message)
        except Exception as error:  # noqa: BLE001 - as in ``_propose``
            self.fail(error)
            return
        self.step(Persisted(persist_id))
        self._acknowledging.persisted()
        self._cache.trim(self._applier.applied, self.core.state.persisted)
        for done in [each for each in self._installed if each <= persist_id]:
            future = self._installed.pop(done)
            if not future.done():
                future.set_result(None)

    def _on_disk_full(self) -> None:
        self.read_only = "the disk of this node is full: free space on it, or hand over leadership"

    def _change_role(self, change: RoleChange) -> None:
        self._counts.elections_seen += 1
        if change.leader != NO_NODE:
            self._counts.leader_changes += 1
        if change.role is Role.LEADER:
            self._cluster_clock.lead(max(self._last_time_ms, self.machines.time_ms))
            self._acknowledging.lead()
        else:
            self._proposals.fail_queued(NotLeaderError.code, "this node stopped leading")
            self._acknowledging.give_up_all()
        self._on_role(change)

    def _tick(self) -> None:
        now_s, ticks = self._pace.passed()
        self._counts.lag_max_s = max(self._counts.lag_max_s, self._pace.lag_s)
        self._ticker = self._loop.call_later(self._pace.wait_s(), self._tick)
        if not ticks:
            return
        self.step(Tick(ticks, int(now_s * 1000)))
        if self._stopped:
            return
        try:
            self._applier.catch_up()
            self._serving.on_tick(now_s)
            self._acknowledging.on_tick(now_s)
            self.feeds.on_tick(now_s)
            if self.core.state.role is Role.LEADER and self._applier.ready:
                self._propose_time()
        except Exception as error:  # noqa: BLE001 - as in ``_propose``
            self.fail(error)

    def _on_progress(self) -> None:
        self.feeds.flush(self._applier.applied)
        self._serving.serve()
        if self._proposals.queued:
            self._flush_soon()
        self._acknowledging.progressed(self._applier.applied)
        self._on_applied()

    # --- checkpoints and snapshots ---------------------------------------------------------------

    def compacted(self, floor: EntryId) -> None:
        """The log was cut behind a durable checkpoint."""
        self.step(Compacted(floor))

    def offer_snapshot(
        self, offer: SnapshotOffered, swap: Callable[[], None]
    ) -> asyncio.Future[None] | None:
        """A whole snapshot has arrived. None if it is not needed here; else *swap* runs on the
        log's thread, the log is reset to the snapshot, and the future is done when both are
        durable. Then load the machines, and call ``snapshot_loaded``; nothing is applied until.

        Raises:
            ClosedError: the node is stopping (the future may say so, too).
        """
        if self._stopped:
            raise ClosedError("the node is stopping")
        try:
            output = self.core.step(offer)
            persist = output.persist
            resets = persist is not None and persist.reset is not None
            must(resets == (output.install is not None), "an install resets the log", out=output)
        except Exception as error:  # as in ``_propose``
            self.fail(error)
            raise ClosedError("the node is stopping") from error
        if persist is None or persist.reset is None:
            self._perform(output)
            return None
        self._applier.suspend()
        self.feeds.end_all(WatchLaggingError("this node's state was replaced by a snapshot"))
        self._last_persist_id = persist.id
        self._cache.reset(persist.reset.index)
        future = self._loop.create_future()
        self._installed[persist.id] = future
        self.writer.write_reset(persist, swap)
        self._perform(output)
        return future

    def snapshot_loaded(self) -> None:
        """The machines hold the installed snapshot; go on applying after it."""
        self._last_time_ms = max(self._last_time_ms, self.machines.time_ms)
        self._applier.resume(LogIndex(self.machines.index))
        self._serving.serve()  # those that waited for no more than that
