"""The replica: drives the core, the log, the machines and the network, and decides nothing.

One event goes into the core; its ``Output`` says what to do, in the order of its fields
(``_perform``). Everything here runs on one event loop; only the disk is elsewhere.

What this module must not do: interpret a term, count a vote, look into a command.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random

import msgspec

from quorate.base.frames import Query, QueryFailed, QueryReply, Submit
from quorate.base.invariants import must
from quorate.base.limits import MIB
from quorate.base.types import NO_NODE, LogIndex, NodeId
from quorate.consensus.core import Core
from quorate.consensus.events import (
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
    AppendRequest,
    Entry,
    EntryId,
    EntryKind,
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
)
from quorate.replication.batch import Batch, batch_time_ms, encode_batch
from quorate.replication.clock import Clock, ClusterClock
from quorate.replication.disk import JobRunner, LogWriter
from quorate.replication.divergence import DivergenceWatch
from quorate.replication.log_cache import LogCache
from quorate.replication.machines import Machines
from quorate.replication.proposals import Proposals, SubmitSink, answer
from quorate.replication.reading import QuerySink, Reads
from quorate.replication.recovery import Recovered
from quorate.replication.transport import PeerFrame, StateDigest, Transport
from quorate.storage.interfaces import LogStore

_logger = logging.getLogger("quorate.replica")

#: Entries on their way to a majority before the next one waits to fill up. Two keep both the disk
#: and the network busy; more make entries small when many clients have one command each.
PROPOSALS_IN_FLIGHT_MAX = 2
#: Longest uninterrupted stretch of applying; a heartbeat fits in between many times.
APPLY_SLICE_S = 0.005
#: A tick later than this many ticks counts as so many: what waits in the sockets goes first.
TICKS_AT_ONCE_MAX = 5
#: Payload bytes read back from the log at once, for applying after a restart.
READ_BACK_BYTES = 4 * MIB


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """*tick_ms*: length of a core's tick. *cache_bytes*: recent log kept in memory."""

    tick_ms: int = 10
    cache_bytes: int = 16 * MIB


class ReplicaStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Named counters since the start; ``server.metrics`` formats them."""

    proposals: int
    submissions: int
    commands_applied: int
    entries_applied: int
    queries: int
    log_writes: int
    elections_seen: int
    leader_changes: int
    digests_compared: int
    queued_submissions: int
    loop_lag_ms_max: float


class Replica:
    """One member's engine. ``start`` it, feed it, ``stop`` it.

    *on_role*: called after each change of role, term or leader. *on_membership*: after each change
    of the configuration in force. *on_snapshot_needed*: stream a snapshot to that node and report
    with ``snapshot_sent``. *on_applied*: after each applied slice (checkpoint policy).
    *on_failure*: the disk failed or an invariant broke; the node must stop.
    """

    def __init__(  # noqa: PLR0913 - everything a node is made of is handed in
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
        self.node_id = self.core.state.node_id
        self.read_only = ""  #: why growing writes are refused, or ""
        self._log = log
        self._transport = transport
        self._read_runner = read_runner
        self._clock = clock
        self._random = random
        self._on_role = on_role
        self._on_membership = on_membership
        self._on_snapshot_needed = on_snapshot_needed
        self._on_applied = on_applied
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._writer = LogWriter(
            log,
            log_runner,
            on_durable=self._on_durable,
            on_failure=self._fail,
            on_disk_full=self._on_disk_full,
        )
        self._held: deque[tuple[int, tuple[Message, ...]]] = deque()
        self._last_persist_id = 0
        self._cache = LogCache(config.cache_bytes)
        self._cache.reset(self.core.state.log.last_index)
        self._fetching: dict[NodeId, deque[SendAppend]] = {}
        self._applied = recovered.applied.index
        self._reading_back = False
        self._apply_scheduled = False
        self._machines_ready = True
        self._proposals = Proposals()
        self._flush_scheduled = False
        self._cluster_clock = ClusterClock(clock)
        self._last_time_ms = machines.time_ms
        self._reads = Reads(ask=self._ask_index, first_context=random.getrandbits(52))
        self._round_scheduled = False
        self._stopped = False
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_s = 0.0
        self._counts = dict.fromkeys(ReplicaStatistics.__struct_fields__, 0)
        self._lag_max_s = 0.0
        self.divergence.reset(self._applied, machines.state_hash)

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick; apply what the log says is committed."""
        self._transport.set_members(self.addresses())
        self._ticked_s = self._clock.monotonic_s()
        self._ticker = self._loop.call_later(self.config.tick_ms / 1000, self._tick)
        self._apply_soon()

    def stop(self, error: QuorateError | None = None) -> None:
        """Answer everybody who waits, and do nothing more. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._writer.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        reason = error or ClosedError("the node is stopping")
        self._proposals.fail_queued(reason.code, str(reason))
        self._proposals.fail_proposed(OutcomeUnknownError(f"the node stopped: {reason}"))
        self._reads.fail_all("unavailable", str(reason))

    def _fail(self, error: BaseException) -> None:
        if self._stopped:
            return
        _logger.critical("the node stops: %s", error, exc_info=error)
        self.stop(error if isinstance(error, QuorateError) else StorageError(str(error)))
        self._on_failure(error)

    # --- what the node asks -----------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return self.core.state.role is Role.LEADER

    @property
    def leader(self) -> NodeId:
        return self.core.state.leader

    @property
    def applied(self) -> LogIndex:
        return self._applied

    @property
    def ready(self) -> bool:
        """Whether the machines hold the state up to ``applied`` (not while loading a snapshot)."""
        return self._machines_ready and not self._stopped

    @property
    def writer(self) -> LogWriter:
        return self._writer

    def addresses(self) -> Mapping[NodeId, str]:
        """Of all other members, by id."""
        pairs = self.core.state.membership.addresses
        return {node: address for node, address in pairs if node != self.node_id}

    def statistics(self) -> ReplicaStatistics:
        counts = {**self._counts}
        counts["log_writes"] = self._writer.write_count
        counts["digests_compared"] = self.divergence.compared
        counts["queued_submissions"] = self._proposals.queued
        lag_ms, self._lag_max_s = self._lag_max_s * 1000, 0.0
        del counts["loop_lag_ms_max"]
        return ReplicaStatistics(**counts, loop_lag_ms_max=lag_ms)

    # --- writes -------------------------------------------------------------------------------------

    def submit(self, submit: Submit, sink: SubmitSink) -> None:
        """Queue a submission for the next entry; *sink* gets the answer, now or later.

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
        self._proposals.add(prepared, sink)
        self._counts["submissions"] += 1
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Turn what is queued into entries, as far as entries in flight allow."""
        self._flush_scheduled = False
        while (
            self._proposals.queued
            and self._proposals.in_flight < PROPOSALS_IN_FLIGHT_MAX
            and not self._stopped
        ):
            taken = self._proposals.take()
            payload = self._encode(tuple(waiting.prepared.submit for waiting in taken))
            output = self.core.step(Propose((payload,)))
            if output.refusal is not None:
                self._proposals.give_back(taken)
                self._refuse_queued(output.refusal)
                return
            self._proposals.proposed(output.proposed, self.core.state.term, taken)
            self._counts["proposals"] += 1
            self._perform(output)

    def _refuse_queued(self, refusal: Refusal) -> None:
        if refusal is Refusal.OVERLOADED:
            return  # a commit will flush again; the queue's own bound holds meanwhile
        self._proposals.fail_queued(NotLeaderError.code, refusal.value)

    def _encode(self, submissions: tuple[Submit, ...]) -> bytes:
        self._last_time_ms = max(self._last_time_ms, self._cluster_clock.now_ms())
        seed = self._random.getrandbits(64)
        return encode_batch(
            Batch(self._last_time_ms, self._clock.wall_ms(), seed, submissions)
        )

    def _propose_time(self) -> None:
        """Something is due in the machines: an entry with the time, and nothing else."""
        if self._proposals.in_flight or self._flush_scheduled:
            return  # the next entry carries the time anyway
        deadline_ms = self.machines.next_deadline_ms()
        if deadline_ms is None or self._cluster_clock.now_ms() < deadline_ms:
            return
        output = self.core.step(Propose((self._encode(()),)))
        if output.refusal is None:
            self._proposals.proposed(output.proposed, self.core.state.term, ())
        self._perform(output)

    # --- reads --------------------------------------------------------------------------------------

    def query(self, query: Query, sink: QuerySink) -> None:
        """Answer *query* from the local state: at once, or after a read-index round.

        Raises:
            ClosedError, UnavailableError, OverloadedError, UnknownMachineError, BadCommandError.
        """
        if self._stopped:
            raise ClosedError("the node is stopping")
        for run in query.runs:
            self.machines.machine(run.machine)
        self._counts["queries"] += 1
        if not query.linearizable:
            if not self._machines_ready:
                raise UnavailableError("this node is loading a snapshot; ask another")
            sink(self._answer(query))
            return
        self._reads.add(query, sink)
        if not self._round_scheduled:
            self._round_scheduled = True
            self._loop.call_soon(self._start_round)

    def _start_round(self) -> None:
        self._round_scheduled = False
        if not self._stopped:
            self._reads.start_round(self._clock.monotonic_s())

    def _ask_index(self, context: int) -> None:
        self.step(ReadIndex(context, int(self._clock.monotonic_s() * 1000)))

    def _answer(self, query: Query) -> QueryReply:
        results = self.machines.query_runs(query.runs)
        return QueryReply(query.id, self._applied, msgspec.Raw(results))

    def _serve_reads(self) -> None:
        if not self._reads.any_granted or not self._machines_ready:
            return
        for reading in self._reads.ready(self._applied):
            try:
                reply = self._answer(reading.query)
            except QuorateError as error:
                reading.sink(QueryFailed(reading.query.id, error.code, str(error)))
            else:
                reading.sink(reply)
        if not self._round_scheduled:
            self._start_round()

    # --- the network --------------------------------------------------------------------------------

    def receive(self, frame: PeerFrame) -> None:
        """A validated frame from another member."""
        if isinstance(frame, StateDigest):
            self.divergence.on_digest(frame, self._applied)
        else:
            self.step(frame)

    def peer_reached(self, node: NodeId) -> None:
        self.step(PeerReached(node))

    def peer_lost(self, node: NodeId) -> None:
        self.step(PeerLost(node))

    def snapshot_sent(self, node: NodeId, index: LogIndex, *, ok: bool) -> None:
        self.step(SnapshotSent(node, index, ok))

    def _send(self, message: Message | SendAppend) -> None:
        if isinstance(message, SendAppend):
            self._send_append(message)
            return
        self._transport.send(message.target, message)
        if isinstance(message, Heartbeat | HeartbeatReply) and self._machines_ready:
            digest = StateDigest(self.node_id, self._applied, self.machines.state_hash)
            self._transport.send(message.target, digest)

    def _send_append(self, order: SendAppend) -> None:
        """Fill in the entries: from memory, or, for a slow follower, from the file."""
        queue = self._fetching.get(order.target)
        if queue is not None:  # what comes later must not overtake
            queue.append(order)
            return
        if order.last_index == order.prev_index:
            self._send_filled(order, ())
            return
        entries = self._cache.slice(LogIndex(order.prev_index + 1), order.last_index)
        if entries is not None:
            self._send_filled(order, entries)
        else:
            self._fetching[order.target] = deque((order,))
            self._fetch_next(order.target)

    def _fetch_next(self, target: NodeId) -> None:
        queue = self._fetching[target]
        if not queue or self._stopped:
            del self._fetching[target]
            return
        order = queue[0]
        first = LogIndex(order.prev_index + 1)
        cached = (
            () if order.last_index < first else self._cache.slice(first, order.last_index)
        )
        if cached is not None:
            self._send_filled(queue.popleft(), cached)
            self._loop.call_soon(self._fetch_next, target)
            return

        def done(entries: list[Entry] | None, error: BaseException | None) -> None:
            if isinstance(error, KeyError):
                queue.clear()  # cut meanwhile: the follower will be offered a snapshot
            elif error is not None:
                self._fail(error)
                return
            elif entries is not None and queue:
                self._send_filled(queue.popleft(), tuple(entries))
            self._fetch_next(target)

        limit = READ_BACK_BYTES * 4
        self._read_runner.run(lambda: self._log.read(first, order.last_index, limit), done)

    def _send_filled(self, order: SendAppend, entries: tuple[Entry, ...]) -> None:
        if order.term != self.core.state.term or self._stopped:
            return
        if entries and entries[0].index != order.prev_index + 1:
            must(condition=False, claim="entries follow prev", order=order, got=entries[0].index)
        request = AppendRequest(
            term=order.term,
            sender=order.sender,
            target=order.target,
            prev_index=order.prev_index,
            prev_term=order.prev_term,
            entries=entries,
            commit=order.commit,
            round=order.round,
        )
        self._transport.send(order.target, request)

    # --- the core -----------------------------------------------------------------------------------

    def step(self, event: Event) -> Output:
        """One event in, its output performed. Also for membership changes and transfers, whose
        caller reads ``refusal`` and ``proposed`` from the output."""
        if self._stopped:
            return Output()
        try:
            output = self.core.step(event)
            self._perform(output)
        except Exception as error:  # noqa: BLE001 - a broken invariant stops the node, not the loop
            self._fail(error)
            return Output()
        return output

    def _perform(self, output: Output) -> None:
        """The duties of an output, in its order."""
        if output.persist is not None and output.install is None:
            self._persist(output.persist)
        for message in output.messages:
            self._send(message)
        if output.after_persist:
            self._hold(output.after_persist)
        if output.role_change is not None:
            self._change_role(output.role_change)
        if output.membership is not None:
            self._transport.set_members(self.addresses())
            self._on_membership(output.membership)
        if output.commit:
            self._apply_some()
        for read in output.read_states:
            self._reads.on_index(read.context, read.index)
        if output.read_states:
            self._serve_reads()
        for node in output.snapshots:
            self._on_snapshot_needed(node)

    def _persist(self, persist: Persist) -> None:
        self._last_persist_id = persist.id
        if persist.entries:
            self._cache.add(persist.entries)
            for entry in persist.entries:
                self._note_time(entry)
        self._writer.write(persist)

    def _note_time(self, entry: Entry) -> None:
        """Cluster time never goes back along the log, whoever leads next."""
        if entry.kind == EntryKind.BATCH and self.core.state.role is not Role.LEADER:
            try:
                self._last_time_ms = max(self._last_time_ms, batch_time_ms(entry.payload))
            except QuorateError:
                return  # apply ignores it too

    def _hold(self, messages: tuple[Message, ...]) -> None:
        """They promise what is not durable yet, or may not be: all that was handed to the disk."""
        if self._writer.durable_id >= self._last_persist_id:
            for message in messages:
                self._send(message)
        else:
            self._held.append((self._last_persist_id, messages))

    def _on_durable(self, persist_id: int) -> None:
        if self._stopped:
            return
        while self._held and self._held[0][0] <= persist_id:
            for message in self._held.popleft()[1]:
                self._send(message)
        self.step(Persisted(persist_id))

    def _on_disk_full(self) -> None:
        self.read_only = "the disk is full: free space on this node, or hand over leadership"

    def _change_role(self, change: RoleChange) -> None:
        self._counts["elections_seen"] += 1
        if change.leader != NO_NODE:
            self._counts["leader_changes"] += 1
        if change.role is Role.LEADER:
            self._cluster_clock.lead(max(self._last_time_ms, self.machines.time_ms))
        else:
            self._proposals.fail_queued(NotLeaderError.code, "this node stopped leading")
        self._on_role(change)

    def _tick(self) -> None:
        now_s = self._clock.monotonic_s()
        tick_s = self.config.tick_ms / 1000
        lag_s = now_s - self._ticked_s - tick_s
        self._lag_max_s = max(self._lag_max_s, lag_s)
        ticks = min(max(int((now_s - self._ticked_s) / tick_s + 0.5), 1), TICKS_AT_ONCE_MAX)
        self._ticked_s = now_s
        self._ticker = self._loop.call_later(tick_s, self._tick)
        self.step(Tick(ticks, int(now_s * 1000)))
        if self._stopped:
            return
        self._reads.on_tick(now_s)
        if self.core.state.role is Role.LEADER and self._machines_ready:
            self._propose_time()

    # --- applying -----------------------------------------------------------------------------------

    def _apply_soon(self) -> None:
        if not self._apply_scheduled:
            self._apply_scheduled = True
            self._loop.call_soon(self._apply_later)

    def _apply_later(self) -> None:
        self._apply_scheduled = False
        try:
            self._apply_some()
        except Exception as error:  # noqa: BLE001 - as in ``step``
            self._fail(error)

    def _apply_some(self) -> None:
        """Apply what is committed, for at most a slice of time."""
        if not self._machines_ready or self._reading_back or self._stopped:
            return
        state = self.core.state
        before = self._applied
        end_s = self._clock.monotonic_s() + APPLY_SLICE_S
        while self._applied < state.commit:
            entry = self._cache.get(LogIndex(self._applied + 1))
            if entry is None:
                self._read_back()
                break
            self._apply_entry(entry)
            if self._applied < state.commit and self._clock.monotonic_s() > end_s:
                self._apply_soon()
                break
        if self._applied == before:
            return
        self._cache.trim(LogIndex(min(self._applied, state.persisted)))
        self._serve_reads()
        if self._proposals.queued and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        self._on_applied()

    def _apply_entry(self, entry: Entry) -> None:
        proposed = self._proposals.at(entry.index, entry.term)
        payload = entry.payload if entry.kind == EntryKind.BATCH else None
        prepared = [w.prepared for w in proposed.waiting] if proposed is not None else None
        applied = self.machines.apply(
            entry.index, entry.term, payload, prepared if payload is not None else None
        )
        self._applied = entry.index
        self._counts["entries_applied"] += 1
        self._counts["commands_applied"] += applied.command_count
        self.divergence.applied(entry.index, self.machines.state_hash)
        if proposed is not None:
            for waiting, outcome in zip(proposed.waiting, applied.outcomes, strict=True):
                answer(waiting, outcome)

    def _read_back(self) -> None:
        """Entries that left memory (after a restart): read a stretch, apply it, come again."""
        self._reading_back = True
        first = LogIndex(self._applied + 1)
        last = self.core.state.commit

        def done(entries: Sequence[Entry] | None, error: BaseException | None) -> None:
            self._reading_back = False
            if self._stopped:
                return
            if error is not None or not entries:
                self._fail(error or StorageError(f"the log gave no entry {first}"))
                return
            self._apply_stretch(deque(entries))

        self._read_runner.run(lambda: self._log.read(first, last, READ_BACK_BYTES), done)

    def _apply_stretch(self, entries: deque[Entry]) -> None:
        self._reading_back = True
        end_s = self._clock.monotonic_s() + APPLY_SLICE_S
        try:
            while entries and entries[0].index == self._applied + 1:
                self._note_time(entries[0])
                self._apply_entry(entries.popleft())
                if self._clock.monotonic_s() > end_s and entries:
                    self._loop.call_soon(self._apply_stretch, entries)
                    return
        except Exception as error:  # noqa: BLE001 - as in ``step``
            self._fail(error)
            return
        self._reading_back = False
        self._serve_reads()
        self._on_applied()
        self._apply_soon()

    # --- checkpoints and snapshots -----------------------------------------------------------------

    def compacted(self, floor: EntryId) -> None:
        """The log was cut behind a durable checkpoint."""
        self.step(Compacted(floor))

    def offer_snapshot(self, offer: SnapshotOffered) -> Output:
        """A whole snapshot has arrived; ``install`` of the output says whether it is wanted. If
        so, the caller must run ``install_snapshot`` next, before anything else."""
        if self._stopped:
            return Output()
        output = self.core.step(offer)
        if output.install is not None:
            self._machines_ready = False
            must(output.persist is not None, "an install resets the log", output=output)
            if output.persist is not None:
                self._last_persist_id = output.persist.id
        self._perform(output)
        return output

    def write_install(self, persist: Persist, swap: Callable[[], None]) -> None:
        """Second half of ``offer_snapshot``: *swap* runs on the log's thread, then the log is
        reset, then the promise of it may leave."""
        must(persist.reset is not None, "an install resets the log", persist=persist.id)
        if persist.reset is not None:
            self._cache.reset(persist.reset.index)
        self._writer.write_reset(persist, swap)

    def snapshot_loaded(self) -> None:
        """The machines hold the installed snapshot; go on applying after it."""
        self._applied = LogIndex(self.machines.index)
        self._last_time_ms = max(self._last_time_ms, self.machines.time_ms)
        self.divergence.reset(self._applied, self.machines.state_hash)
        self._machines_ready = True
        self._apply_soon()
