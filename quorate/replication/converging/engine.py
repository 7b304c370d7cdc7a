"""The engine of the second tier: takes operations and records, makes them durable, tells of it.

All that came while one commit was on its way to the disk goes into the next: what is read, passed
on or answered is durable. Who is to hear of it is for ``disseminating`` and ``levels``.

A node writes as one *actor*, one life of it: see ``living``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Final, NamedTuple, Protocol

import msgspec

from quorate.base.crdt_frames import CLIENT_BYTES, CrdtWrite, Position
from quorate.base.limits import CRDT_OPERATIONS_MAX, MIB
from quorate.crdt.dots import epoch_of, make_actor, member_of
from quorate.crdt.folding import PREPARED, generation_of
from quorate.errors import (
    BadCommandError,
    ClosedError,
    DiskFullError,
    LimitExceededError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    ReadOnlyError,
    SequenceError,
    StorageError,
    UnavailableError,
)
from quorate.replication.clock import Clock
from quorate.replication.converging.committing import Arrived, Commit, Made, Results
from quorate.replication.converging.living import Lives, Living
from quorate.replication.converging.records import (
    FOLDS,
    JOURNAL,
    META,
    META_KEY,
    REQUESTS,
    Frontier,
    Own,
    decode_own,
    decode_requests,
    journal_key,
    position_of,
    raise_to,
)
from quorate.replication.converging.view import Elements, OpenBatch
from quorate.replication.disk import JobRunner
from quorate.storage.elements import ElementStore

_logger = logging.getLogger("quorate.crdt")

#: Operations after which a batch is closed: some 10 ms of work.
BATCH_OPERATIONS: Final = 400
BATCH_RECORDS: Final = 64
#: Elements of records in one batch.
BATCH_ELEMENTS: Final = 2_000
#: Operations that wait; beyond it, clients are refused.
WAITING_MAX: Final = 50_000
#: Bytes of records that wait; beyond it they are dropped, and sent again.
ARRIVED_BYTES_MAX: Final = 32 * MIB
#: Records for those who fell behind; beyond it, the oldest go, and others are repaired by ranges.
JOURNAL_BYTES_MAX: Final = 256 * MIB
DROPPED_ROWS: Final = 128  # of the journal, in one commit
#: After so long nobody retries: rows of clients go.
REQUESTS_MS_MAX: Final = 48 * 3600 * 1000
SWEEP_S: Final = 600.0
RETRY_AFTER_MS: Final = 100


class Done(NamedTuple):
    """A frame is durable here, in records of *actor* up to *sequence*."""

    actor: int
    sequence: int
    results: Results


Sink = Callable[["Done | QuorateError"], None]


class Events(msgspec.Struct, frozen=True):
    """What the engine tells. *committed*: own records are durable.
    *joined*: others' are, by (sender, actor). *progress*: the frontier moved. *changed*: names, by
    their first segment. *failed*: the disk did; the node must stop."""

    committed: Callable[[list[Made]], None]
    joined: Callable[[dict[tuple[int, int], int]], None]
    progress: Callable[[], None]
    changed: Callable[[Mapping[bytes, None]], None]
    dropped: Callable[[], None]
    failed: Callable[[BaseException], None]


class Alone(Protocol):
    """Something that wants the store for itself, between two commits: a fold, a range. Returns what
    the store is to write and what is true afterwards, or None if nothing is."""

    def __call__(self, engine: Engine, /) -> Commit | None: ...


class _Waiting(msgspec.Struct):
    frame: CrdtWrite
    sinks: list[Sink]


class Engine:
    """One node's CRDT data. *begin*: has the log begin a life of this node, returns its epoch.
    *adopt*: has it admit the one begun here, False: it refuses. *index*: of the last applied entry.
    """

    def __init__(
        self,
        member: int,
        store: ElementStore,
        runner: JobRunner,
        clock: Clock,
        random: Random,
        lives: Lives,
        events: Events,
        *,
        begin: Callable[[], Awaitable[int]],
        adopt: Callable[[int], Awaitable[bool]],
        index: Callable[[], int],
    ) -> None:
        self.member = member
        self.lives = lives
        self.store = store
        self.clock = clock
        self.own, context = decode_own(store.get(META, META_KEY))
        self.own = msgspec.structs.replace(self.own, actor=0)  # of another life
        self.frontier: Frontier = dict(self.own.frontier)
        self.view = Elements(store, context, self.own.retired, self.own.finishing)
        self.change_count = 0
        self.drift_count = 0
        self._runner = runner
        self._events = events
        self._index = index
        self._loop = asyncio.get_running_loop()
        self._frames: deque[_Waiting] = deque()
        self._by_name: dict[tuple[bytes, int], _Waiting] = {}  # queued, or in the commit under way
        self._operation_count = 0
        self._arrived: dict[int, deque[Arrived]] = {}  # by actor, in order, without gaps
        self._left_out: dict[int, int] = {}  # by actor, the last record that could not be joined
        self._declared: Mapping[int, int] = {}
        self._arrived_bytes = 0
        self._alone: deque[Alone] = deque()
        self._when_idle: list[Callable[[], None]] = []
        self._busy = self._planned = self._stopped = self._was_alone = False
        self._sweep_at_s = clock.monotonic_s() + SWEEP_S
        self._floors: dict[int, int] = {}
        self.living = Living(self, lives, random, begin=begin, adopt=adopt)
        #: Raises of a frame that an earlier process may have carried out, if the store may have
        #: forgotten it.
        self.check_memory: Callable[[], None] = _nothing
        self.on_life: Callable[[int], None] = _ignore  #: told of each that begins

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life at once if this node ever had one; else with the first write."""
        if self.frontier:
            self.living.begin()

    def stop(self, error: QuorateError | None = None) -> None:
        """Answer everybody who waits, and do nothing more. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.living.stop()
        reason = error or ClosedError("the node is stopping")
        frames, self._frames = self._frames, deque()
        for waiting in frames:
            self._answer(waiting, reason)
        self._when_idle.clear()
        self._arrived.clear()
        self._alone.clear()

    @property
    def stopped(self) -> bool:
        """Whether it does nothing more."""
        return self._stopped

    @property
    def context_width(self) -> int:
        """Numbers that the causal context takes."""
        return self.view.context.width()

    @property
    def position(self) -> Position:
        """What a reader has seen who reads now."""
        return position_of(self.shown(), self._index(), self.folds)

    def shown(self) -> Mapping[int, int]:
        """By life, the last record that elements here may show something of."""
        if not self.own.ahead:
            return self.frontier
        seen = dict(self.frontier)
        raise_to(seen, self.own.ahead)
        return seen

    @property
    def stage(self) -> int:
        """How far this node has come in folding (``crdt.folding``); 0 while it may lack what lives
        did that were folded before it was there."""
        own = self.own
        return own.generation if own.retired or own.generation <= PREPARED else 0

    @property
    def folds(self) -> int:
        """How many folds this node has behind it, with all that went in them."""
        return generation_of(self.stage)

    def covers(self, marks: Mapping[int, int]) -> bool:
        """Whether all these records are here. Those of lives that were folded away are."""
        frontier = self.frontier
        return all(
            sequence <= frontier.get(actor, 0)
            or (sequence <= self.folds if actor == FOLDS else self.is_retired(actor))
            for actor, sequence in marks.items()
        )

    def may_take(self, actor: int) -> bool:
        """Whether what that life did may be joined: the log has admitted it. It may have folded it
        since, and this node have to take over what that came to."""
        return (
            self.lives.is_admitted(actor) or self.lives.is_retired(actor) or self.is_retired(actor)
        )

    def is_retired(self, actor: int) -> bool:
        """Whether that life was folded away here: everybody has all its records."""
        return epoch_of(actor) <= self.own.retired.get(member_of(actor), 0)

    def become(self, epoch: int) -> None:
        """Write as life *epoch* from the next commit on; 0: as nobody."""
        actor = make_actor(self.member, epoch) if epoch else 0
        self.own = msgspec.structs.replace(self.own, actor=actor, counter=0, sequence=0)
        self._declared = {}
        if epoch:
            self.on_life(epoch)
            self.alone(Engine.open)  # the store is to know of it
        self._plan()

    # --- what comes in ------------------------------------------------------------------------

    def write(self, frame: CrdtWrite, sink: Sink) -> None:
        """Carry *frame* out with the next commit; *sink* hears of it in a later turn.

        Raises:
            ClosedError, OverloadedError, BadCommandError, LimitExceededError, SequenceError:
                nothing was queued, and nothing has happened.
        """
        if self._stopped:
            raise ClosedError("the node is stopping")
        if self.lives.is_expelled(self.member):
            raise UnavailableError(f"node {self.member} was removed from the cluster: ask another")
        self._check(frame)
        name = (frame.client, frame.sequence)
        waiting = self._by_name.get(name)
        if waiting is not None:
            waiting.sinks.append(sink)
            return
        row = decode_requests(self.store.get(REQUESTS, frame.client))
        known = row.done.get(frame.sequence)
        if known is not None:
            self._loop.call_soon(sink, Done(*known))
            return
        if frame.sequence <= row.acknowledged:
            raise SequenceError(f"the answer to {frame.sequence} was acknowledged already")
        if frame.again:
            self.check_memory()
        if self._operation_count + len(frame.operations) > WAITING_MAX:
            raise OverloadedError(
                f"{self._operation_count} operations wait for this node's disk; try again in "
                f"{RETRY_AFTER_MS} ms",
                RETRY_AFTER_MS,
            )
        waiting = _Waiting(frame, [sink])
        self._by_name[name] = waiting
        self._frames.append(waiting)
        self._operation_count += len(frame.operations)
        if self.own.actor == 0:
            self.living.needed()
        self._plan()

    def _check(self, frame: CrdtWrite) -> None:
        if len(frame.client) != CLIENT_BYTES:
            raise BadCommandError(f"a client's id has {CLIENT_BYTES} bytes")
        if not 0 < len(frame.operations) <= CRDT_OPERATIONS_MAX:
            raise LimitExceededError(
                f"{len(frame.operations)} operations in one frame, 1 to {CRDT_OPERATIONS_MAX}"
            )
        if frame.sequence <= frame.acknowledged:
            raise SequenceError(f"the answer to {frame.sequence} was acknowledged already")

    def arrived(self, record: Arrived) -> bool:
        """Join a record with the next commit. False: it was dropped, and is to come again."""
        if self._stopped or self._arrived_bytes > ARRIVED_BYTES_MAX:
            return False
        self._arrived.setdefault(record.actor, deque()).append(record)
        self._arrived_bytes += len(record.encoded)
        self._plan()
        return True

    def forget_arrived(self) -> None:
        """Drop all records that wait: they are to come again."""
        self._arrived.clear()
        self._arrived_bytes = 0
        self._events.dropped()

    def alone(self, work: Alone) -> None:
        """Run *work* between two commits; if more than one waits, clients have turns as well."""
        self._alone.append(work)
        self._plan()

    def when_idle(self, work: Callable[[], None]) -> None:
        """Run *work* while no commit is under way: it sees elements and frontier of one state."""
        if self._busy:
            self._when_idle.append(work)
        else:
            work()

    # --- commits ------------------------------------------------------------------------------

    def _plan(self) -> None:
        if not self._planned and not self._busy and not self._stopped:
            self._planned = True
            self._loop.call_soon(self._take)

    def _take(self) -> None:
        """Make the next commit of what waits."""
        self._planned = False
        if self._busy or self._stopped:
            return
        try:
            self._take_next()
        except QuorateError as error:
            self._fail(error)
        except Exception as error:
            _logger.exception("CRDT data could not be changed")
            self._fail(error)

    def _take_next(self) -> None:
        waiting = bool(self._arrived or (self._frames and self.own.actor))
        while self._alone and not (self._was_alone and waiting):
            commit = self._alone.popleft()(self)
            if commit is not None:
                self._was_alone = True
                self._write(commit, [], {})
                return
        self._was_alone = False
        if not waiting:
            return
        commit, joined = self._join_arrived()
        commit.tidy()
        done = self._carry_out_frames(commit) if self.own.actor else []
        if not joined and not done:  # what waits, waits for other records
            if self._alone:
                self._plan()
            return
        self._clean(commit)
        self._write(commit, done, joined)

    def open(self) -> Commit:
        """An empty commit on top of what is durable."""
        view = OpenBatch(self.store, self.view.context, self.own.retired, self.own.finishing)
        wall_ms = max(self.clock.wall_ms(), 0)
        return Commit(self.own, self.frontier, self._declared, view, wall_ms)

    def _join_arrived(self) -> tuple[Commit, dict[tuple[int, int], int]]:
        """A commit with the records that wait. One that cannot be joined, although it was checked,
        is left out: it must not stop the node, nor those that it is passed on to. A disk that
        cannot be read is no fault of a record."""
        commit = self.open()
        joined: dict[tuple[int, int], int] = {}
        good: list[Arrived] = []
        elements = 0
        while len(good) < BATCH_RECORDS and elements < BATCH_ELEMENTS:
            record = self._next_arrived(commit)
            if record is None:
                break
            try:
                commit.join(record)
            except StorageError:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is
                self._leave_out(record, error)
                commit = self.open()
                for each in good:
                    commit.join(each)
                continue
            good.append(record)
            joined[record.sender, record.actor] = commit.frontier.get(record.actor, 0)
            elements += len(record.delta.elements)
        return commit, joined

    def _leave_out(self, record: Arrived, error: Exception) -> None:
        """What waits behind *record* would wait for ever: it comes again, and the record too."""
        if self._left_out.get(record.actor) != record.sequence:
            self._left_out[record.actor] = record.sequence
            _logger.error(
                "record %d of %d is left out", record.sequence, record.actor, exc_info=error
            )
        for each in self._arrived.pop(record.actor, ()):
            self._arrived_bytes -= len(each.encoded)
        self._events.dropped()

    def _next_arrived(self, commit: Commit) -> Arrived | None:
        """Some record that may be joined now, taken from those that wait."""
        for actor, records in list(self._arrived.items()):
            while records and records[0].sequence <= commit.frontier.get(actor, 0):
                self._arrived_bytes -= len(records.popleft().encoded)
            if not records:
                del self._arrived[actor]
            elif commit.covers(records[0].after):
                self._arrived_bytes -= len(records[0].encoded)
                return records.popleft()
        return None

    def blocked(self) -> list[int]:
        """Who sent records that wait for others."""
        return sorted({records[0].sender for records in self._arrived.values() if records})

    def _carry_out_frames(self, commit: Commit) -> list[tuple[_Waiting, Done]]:
        done = []
        count = 0
        while self._frames and count < BATCH_OPERATIONS:
            waiting = self._frames.popleft()
            frame = waiting.frame
            count += len(frame.operations)
            self._operation_count -= len(frame.operations)
            known = decode_requests(self.store.get(REQUESTS, frame.client))
            sequence, results = commit.carry_out(frame, known)
            done.append((waiting, Done(self.own.actor, sequence, results)))
        return done

    def _clean(self, commit: Commit) -> None:
        """Let go of a few records that everybody has, or that there is no room for."""
        for actor, floor in self.own.floors.items():
            first, end = journal_key(actor, 0), journal_key(actor, floor + 1)
            rows = self.store.page(JOURNAL, first, end, DROPPED_ROWS, MIB)
            commit.drop_journal(rows)
            if not rows:
                commit.journal_begins(actor)
            return
        stable = self.lives.stable()
        for actor, sequence in sorted(self.frontier.items()):
            floor = self.floor(actor)
            target = min(stable.get(actor, 0), sequence)
            if self.own.journal_bytes > JOURNAL_BYTES_MAX:
                target = max(target, sequence - (sequence - floor) // 2)
            if target > floor:
                first, end = journal_key(actor, floor + 1), journal_key(actor, target + 1)
                rows = self.store.page(JOURNAL, first, end, DROPPED_ROWS, MIB)
                commit.drop_journal(rows)
                self._floors[actor] = min(target, floor + len(rows)) if rows else target
                return
        now_s = self.clock.monotonic_s()
        if now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + SWEEP_S
            self._sweep(commit)

    def _sweep(self, commit: Commit) -> None:
        rows = self.store.page(REQUESTS, b"", None, 10_000, 4 * MIB)
        old = commit.wall_ms - REQUESTS_MS_MAX
        commit.drop_requests([key for key, row in rows if decode_requests(row).wall_ms < old])

    def floor(self, actor: int) -> int:
        """The record of *actor* behind which the journal begins."""
        known = self._floors.get(actor)
        if known is None:
            first = journal_key(actor, self.own.floors.get(actor, -1) + 1)
            end = journal_key(actor + 1, 0)
            page = self.store.page(JOURNAL, first, end, 1, MIB)
            at = self.frontier.get(actor, 0)
            known = int.from_bytes(page[0][0][8:], "big") - 1 if page else at
            self._floors[actor] = known
        return known

    def _write(
        self,
        commit: Commit,
        done: list[tuple[_Waiting, Done]],
        joined: dict[tuple[int, int], int],
    ) -> None:
        own, changes = commit.finish()
        self._busy = True

        def written(_result: None, error: BaseException | None) -> None:
            self._busy = False
            if self._stopped:
                late = OutcomeUnknownError("the node stopped while this was on its way to the disk")
                for waiting, outcome in done:
                    self._answer(waiting, outcome if error is None else late)
                return
            if isinstance(error, DiskFullError):
                refusal = ReadOnlyError(f"the disk of this node is full: {error}")
                self._floors.clear()
                self.forget_arrived()
                for waiting, _done in done:
                    self._answer(waiting, refusal)
                if commit.ended is not None:
                    commit.ended(refusal)
            elif error is not None:
                self._fail(error)
                return
            else:
                self._committed(commit, own, done, joined)
            self._idle()
            if self._frames or self._arrived or self._alone:
                self._plan()

        self._runner.run(lambda: self.store.write(changes), written)

    def _committed(
        self,
        commit: Commit,
        own: Own,
        done: list[tuple[_Waiting, Done]],
        joined: dict[tuple[int, int], int],
    ) -> None:
        if self.own.actor != own.actor:  # a life begun meanwhile
            own = msgspec.structs.replace(own, actor=self.own.actor, counter=0, sequence=0)
        if own.floors is not self.own.floors:
            self._floors.clear()
        self.own = own
        self.frontier = commit.frontier
        self.view.context = commit.view.context
        self.view.retired = own.retired
        self.view.finishing = own.finishing
        self.drift_count += commit.drift_count
        if commit.records:
            self._declared = commit.declared
            self._events.committed(commit.records)
        for waiting, outcome in done:
            self._answer(waiting, outcome)
        if joined:
            self._events.joined(joined)
        if commit.touched:
            self.change_count += 1
            self._events.changed(commit.touched)
        if commit.ended is not None:
            commit.ended(None)
        self._events.progress()

    def _answer(self, waiting: _Waiting, outcome: Done | QuorateError) -> None:
        self._by_name.pop((waiting.frame.client, waiting.frame.sequence), None)
        for sink in waiting.sinks:
            sink(outcome)

    def _idle(self) -> None:
        works, self._when_idle = self._when_idle, []
        for work in works:
            work()

    def _fail(self, error: BaseException) -> None:
        if self._stopped:
            return
        self.stop(UnavailableError(f"the node's disk failed: {error}"))
        late = OutcomeUnknownError(f"the node's disk failed while this was carried out: {error}")
        for waiting in list(self._by_name.values()):
            self._answer(waiting, late)
        self._events.failed(error)


def _nothing() -> None:
    pass


def _ignore(_epoch: int) -> None:
    pass
