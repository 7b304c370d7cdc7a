"""One group commit in the making: operations and records in, what the store is to write out.

Nothing that the node believes changes before the store has it: a commit works on copies, and is
thrown away if the store refuses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from quorate.base.crdt_frames import CrdtWrite, Refusal
from quorate.base.crdt_operations import Clear, Operation, Remove, Update
from quorate.base.invariants import must
from quorate.crdt.clock import Stamp, observe, tick
from quorate.crdt.codec import encode_context, encode_delta
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import Delta, merge_all, part_bytes, path_key
from quorate.crdt.dots import Leaf, Part, Path, dots_of, epoch_of, join_leaves, member_of
from quorate.crdt.folding import as_here, generation_of, join_behind, takes
from quorate.crdt.kind import Moment, operate, tidy
from quorate.crdt.kinds import ORMap
from quorate.crdt.registers import newest_stamp
from quorate.crdt.renaming import Short, fitted
from quorate.errors import (
    ClockDriftError,
    CrdtFormatError,
    InsufficientRightsError,
    LimitExceededError,
    MachineError,
    NotObservedError,
    QuorateError,
    StorageError,
)
from quorate.replication.converging.records import (
    FORMAT,
    JOURNAL,
    META,
    META_KEY,
    RECORD_BYTES_MAX,
    REQUESTS,
    Frontier,
    Own,
    Record,
    Requests,
    encode,
    journal_key,
    raise_to,
)
from quorate.replication.converging.view import ELEMENTS, OpenBatch
from quorate.storage.interfaces import Change

_logger = logging.getLogger("quorate.crdt")

#: Deltas of one record; the next operation begins another one.
RECORD_BYTES: Final = RECORD_BYTES_MAX // 4

Results = tuple[Refusal | None, ...]


class Arrived(msgspec.Struct, frozen=True):
    """A record of another life that came from *sender*, decoded and checked. *after*, *generation*:
    as in ``Record``."""

    sender: int
    actor: int
    sequence: int
    delta: Delta
    encoded: bytes
    after: tuple[tuple[int, int], ...] = ()
    generation: int = 0


class Made(NamedTuple):
    """A record of this node, about to be durable."""

    actor: int
    sequence: int
    delta: bytes
    after: tuple[tuple[int, int], ...]


class Commit:
    """One batch. *own*: what was true before; *declared*: what own records have said that they
    were made after; *wall_ms*: this node's wall clock, now."""

    def __init__(
        self,
        own: Own,
        frontier: Frontier,
        declared: Mapping[int, int],
        view: OpenBatch,
        wall_ms: int,
    ) -> None:
        self.view = view
        self.declared = declared
        self.frontier = dict(frontier)
        self.wall_ms = wall_ms
        self.drift_count = 0  #: stamps so far ahead that the clock was not moved
        self.records: list[Made] = []  #: own ones
        self.touched: dict[bytes, None] = {}  #: first segments of the names that changed
        self._own = own
        self._counter = own.counter
        self._stamp = Stamp(own.wall_ms, own.logical)
        self._deltas: list[Delta] = []
        self._delta_bytes = 0
        self._first = 0  # counter of the first dot of the record that is open
        self._before: dict[Path, tuple[int, ...]] = {}  # see ``Record``
        self._journal: list[Change] = []
        self._journal_bytes = own.journal_bytes
        self._requests: dict[bytes, Requests] = {}
        self._changed: list[Path] = []
        self._ahead = own.ahead
        self._floors = own.floors
        self.stands_still = True  #: no step of folding was taken
        #: Told that all of it is durable, or why nothing of it is.
        self.ended: Callable[[QuorateError | None], None] | None = None

    # --- what goes in -------------------------------------------------------------------------

    def join(self, arrived: Arrived) -> bool:
        """Take a record in, if it is the next of its life, and all that its author had seen when
        making it is here: so what a node shows is always what some author could have seen."""
        if arrived.sequence != self.frontier.get(arrived.actor, 0) + 1:
            return False
        stage = self._own.generation
        if not self.covers(arrived.after) or not takes(stage, arrived.generation):
            return False
        self._observe(newest_stamp(arrived.delta))
        self.view.allow()
        delta = as_here(arrived.delta, arrived.generation, self.view, stage, self._is_retired)
        changed = self.view.join(delta)
        self._changed += changed
        self._touch(changed)
        self.frontier[arrived.actor] = arrived.sequence
        row = Record(arrived.generation, arrived.encoded, arrived.after)
        self._write_journal(arrived.actor, arrived.sequence, row)
        return True

    def covers(self, marks: Iterable[tuple[int, int]]) -> bool:
        """Whether all these records are here, or of lives that were folded away."""
        return all(
            sequence <= self.frontier.get(actor, 0) or self._is_retired(actor)
            for actor, sequence in marks
        )

    def join_elements(
        self,
        elements: Iterable[tuple[Path, Leaf]],
        sees: Callable[[int, int], bool],
        retired: Callable[[int], bool] | None = None,
    ) -> int:
        """Take over what another replica holds in each of these elements, () where it holds
        nothing. *sees*: what it had accounted for, at that time or before. *retired*: which lives
        it has folded, if this one cannot fold them itself. Returns how many elements changed.

        What the other has accounted for is not accounted for here, before all of it can be: see
        ``complete``. An element may so hold dots that are not in the context. They count as
        accounted for all the same, being found there by whatever speaks of them.
        """
        view = self.view
        parts: dict[Path, Part] = {}
        for path, theirs in elements:
            mine = view.leaf(path)
            if mine == theirs:
                continue
            if retired is None:
                joined = join_leaves(mine, theirs, view.sees, sees)
            else:
                joined = join_behind(ORMap, path, mine, theirs, view.sees, sees, retired)
            if joined == mine:
                continue
            alive = dots_of(joined)
            view.account_for(dot for dot in dots_of(mine) if dot not in alive)
            view.put(path, joined)
            parts[path] = (joined, ())
        self._observe(newest_stamp(Delta(ORMap.tag, parts)))
        self._changed += parts
        self._touch(list(parts))
        return len(parts)

    def show(self, frontier: Mapping[int, int]) -> None:
        """The elements that were joined may show what all these records did."""
        self._ahead = dict(self._ahead)
        raise_to(self._ahead, frontier)

    def release(self) -> None:
        """Give up on records that elements here show something of and that do not come. What is
        here by now becomes one record of this life, which can only be had by ranges: whoever lacks
        it takes over all that is shown here, and nothing waits for the others any more."""
        must(not self.records and not self._deltas, "nothing but this", own=self._own.sequence)
        sequence = self._own.sequence + 1
        self._own = msgspec.structs.replace(self._own, sequence=sequence)
        self.frontier[self._own.actor] = sequence
        self._floors = {**self._floors, self._own.actor: sequence}
        self._ahead = {}

    def begin_at(self, stage: int, finishing: tuple[int, ...] = ()) -> None:
        """From here on the replica is at this *stage* of folding. *finishing*: the lives that the
        next fold takes, if it is prepared."""
        self._own = msgspec.structs.replace(self._own, generation=stage, finishing=finishing)
        self.view.finishing = finishing
        self.stands_still = False

    def put(self, path: Path, leaf: Leaf) -> None:
        """Put *leaf* in place of what was there, without a word of who did it: in folding, every
        replica does the same."""
        self.view.put(path, leaf)
        self.stands_still = False

    def mutate(self, change: Callable[[OpenBatch, Moment], Delta | None]) -> None:
        """Make a *change* of this life's own, if there is something to change."""
        moment = Moment(self._own.actor, self._counter + 1, self._stamp)
        delta = change(self.view, moment)
        if delta is not None:
            self._take_in(delta, _size_of(delta), moment)
            self.stands_still = False

    def take_over(self, delta: Delta, estate: int) -> list[Short]:
        """Take in what an operator has rescued, under the name *estate*, as if this life had done
        it; returns what of it cannot be had."""
        self._observe(newest_stamp(delta))
        moment = Moment(self._own.actor, self._counter + 1, self._stamp)
        news, short = fitted(ORMap, self.view, delta, estate, moment)
        if news is not None:
            self._take_in(news, _size_of(news), moment)
            self.stands_still = False
        return short

    def complete(
        self, context: CausalContext, frontier: Mapping[int, int], retired: Mapping[int, int]
    ) -> None:
        """Account for all that another replica once had, having since joined every element that
        it holds: its *context*, all records up to its *frontier*, and what it had *retired*."""
        retired = {**self._own.retired, **retired}
        for member, epoch in self._own.retired.items():
            retired[member] = max(retired[member], epoch)
        self._own = msgspec.structs.replace(self._own, retired=retired)
        self.view.account_for_all(context, retired)
        self._floors = dict(self._floors)
        for actor, sequence in frontier.items():
            if sequence > self.frontier.get(actor, 0) and actor != self._own.actor:
                self.frontier[actor] = self._floors[actor] = sequence
        for actor in [each for each in self.frontier if self._is_retired(each)]:
            self._floors[actor] = self.frontier.pop(actor)

    def _is_retired(self, actor: int) -> bool:
        return epoch_of(actor) <= self._own.retired.get(member_of(actor), 0)

    def carry_out(self, frame: CrdtWrite, known: Requests) -> tuple[int, Results]:
        """Every operation of *frame*, or why not; returns the sequence of the record that holds
        them all, and what to answer. *known*: the row of the frame's client."""
        results = tuple([self._operate(operation) for operation in frame.operations])
        sequence = self._own.sequence + len(self.records) + (1 if self._deltas else 0)
        held = self._requests.get(frame.client, known)
        floor = max(held.acknowledged, frame.acknowledged)
        done = {number: outcome for number, outcome in held.done.items() if number > floor}
        done[frame.sequence] = (self._own.actor, sequence, results)
        self._requests[frame.client] = Requests(self.wall_ms, floor, done)
        return sequence, results

    def _operate(self, operation: Operation) -> Refusal | None:
        self.view.allow()
        try:
            operation = at_generation(operation, generation_of(self._own.generation))
        except QuorateError as error:
            return refusal(error)
        stamp = tick(self._stamp, self.wall_ms)
        moment = Moment(self._own.actor, self._counter + 1, stamp)
        try:
            delta = operate(ORMap, self.view, operation, moment)
            size = _size_of(delta)
        except StorageError:
            raise
        except QuorateError as error:
            return refusal(error)
        except Exception as error:  # nothing has changed yet, and the node goes on
            _logger.exception("an operation on CRDT data failed: %.200r", operation)
            return refusal(MachineError(f"the operation failed in this node: {error!r:.200}"))
        self._take_in(delta, size, moment)
        return None

    def _take_in(self, delta: Delta, size: int, moment: Moment) -> None:
        if self._deltas and self._delta_bytes + size > RECORD_BYTES:
            self._close_record()
        if not self._deltas:
            self._first = moment.counter
        self._counter, self._stamp = moment.counter, moment.stamp
        self._note_before(delta, moment.actor)
        self._touch(self.view.join(delta))
        self._deltas.append(delta)
        self._delta_bytes += size

    def _note_before(self, delta: Delta, me: int) -> None:
        """Keep what own cells held before this record, if it raises them."""
        for path, (leaf, _gone) in delta.elements.items():
            for actor, counter, _payload in leaf:
                if actor == me and counter < self._first and path not in self._before:
                    for held, begun, numbers in self.view.leaf(path):
                        if (held, begun) == (me, counter) and not isinstance(numbers, bytes):
                            self._before[path] = numbers

    def tidy(self) -> None:
        """Drop own cells that the records have shown to be spent."""
        if self._changed and self._own.actor:
            moment = Moment(self._own.actor, self._counter + 1, self._stamp)
            delta = tidy(ORMap, self.view, self._changed, moment)
            if delta is not None:
                self._take_in(delta, _size_of(delta), moment)
        self._changed = []

    def _observe(self, stamp: Stamp) -> None:
        try:
            self._stamp = observe(self._stamp, stamp, self.wall_ms)
        except ClockDriftError:
            self.drift_count += 1

    def _touch(self, paths: list[Path]) -> None:
        for path in paths:
            self.touched[path[0]] = None

    # --- what comes out -----------------------------------------------------------------------

    def _close_record(self) -> None:
        delta = merge_all(self._deltas)
        self._deltas, self._delta_bytes = [], 0
        if delta is None:
            return
        actor, sequence = self._own.actor, self._own.sequence + len(self.records) + 1
        encoded, after = encode_delta(delta), self._declare(actor)
        self.records.append(Made(actor, sequence, encoded, after))
        self.frontier[actor] = sequence
        before = tuple((path_key(path), numbers) for path, numbers in self._before.items())
        self._before = {}
        row = Record(self._own.generation, encoded, after, self._first, before)
        self._write_journal(actor, sequence, row)

    def _declare(self, me: int) -> tuple[tuple[int, int], ...]:
        """What was joined of others since the record before, and what may show of it."""
        seen = dict(self.frontier)
        raise_to(seen, self._ahead)
        news = {
            actor: sequence
            for actor, sequence in seen.items()
            if sequence > self.declared.get(actor, 0) and actor != me
        }
        if news:
            self.declared = {**self.declared, **news}
        return tuple(sorted(news.items()))

    def _write_journal(self, actor: int, sequence: int, record: Record) -> None:
        row = encode(record)
        self._journal.append((journal_key(actor, sequence), row))
        self._journal_bytes += len(row)

    def drop_journal(self, rows: list[tuple[bytes, bytes]]) -> None:
        """These records are needed no more."""
        for key, row in rows:
            self._journal.append((key, None))
            self._journal_bytes -= len(row)

    def journal_begins(self, actor: int) -> None:
        """Nothing is left in the journal from before its floor."""
        self._floors = {each: floor for each, floor in self._floors.items() if each != actor}

    def drop_requests(self, clients: list[bytes]) -> None:
        """Nobody retries for these any more."""
        for client in clients:
            self._requests.setdefault(client, Requests(0, 0, {}))

    def finish(self) -> tuple[Own, Mapping[str, list[Change]]]:
        """What this node knows of itself once all of it is durable, and what makes it so."""
        self._close_record()
        if self._ahead:
            self._ahead = {
                actor: sequence
                for actor, sequence in self._ahead.items()
                if sequence > self.frontier.get(actor, 0) and not self._is_retired(actor)
            }
        own = msgspec.structs.replace(
            self._own,
            version=FORMAT,
            counter=self._counter,
            sequence=self._own.sequence + len(self.records),
            wall_ms=self._stamp.wall_ms,
            logical=self._stamp.logical,
            context=encode_context(self.view.context),
            frontier=self.frontier,
            journal_bytes=self._journal_bytes,
            ahead=self._ahead,
            floors=self._floors,
            lived=max(self._own.lived, epoch_of(self._own.actor)),
        )
        requests: list[Change] = [
            (client, encode(row) if row.wall_ms else None)
            for client, row in sorted(self._requests.items())
        ]
        return own, {
            ELEMENTS: self.view.changes(),
            JOURNAL: self._journal,
            REQUESTS: requests,
            META: [(META_KEY, encode(own))],
        }


def _size_of(delta: Delta) -> int:
    """About what *delta* takes in a record.

    Raises:
        LimitExceededError: more than one operation may.
    """
    size = 0
    for path, part in delta.elements.items():
        size += part_bytes(path, part)
    if size > RECORD_BYTES_MAX // 2:
        raise LimitExceededError(
            f"the operation changes {size} bytes at once, at most {RECORD_BYTES_MAX // 2}: change "
            f"some elements at a time"
        )
    return size


def refusal(error: QuorateError) -> Refusal:
    """What a client is told of *error*."""
    if isinstance(error, InsufficientRightsError):
        return Refusal(error.code, str(error), (error.needed, error.available))
    return Refusal(error.code, str(error))


_MAY_BE_OBSERVED: Final = (Remove, Clear, Update)


def at_generation(operation: Operation, generation: int) -> Operation:
    """*operation* with what its author observed, if it was after as many folds: *generation*.

    Raises:
        CrdtFormatError: it comes with something else.
        NotObservedError: it was observed in another.
    """
    if isinstance(operation, Update):
        if not isinstance(operation.operation, _MAY_BE_OBSERVED):
            return operation
        inner = at_generation(operation.operation, generation)
        return Update(operation.key, operation.kind, inner)
    if not isinstance(operation, Remove | Clear) or operation.observed is None:
        return operation
    then, observed = decode_token(operation.observed)
    if then != generation:
        raise NotObservedError(
            "since this was observed, lives of members were folded: observe it again"
        )
    return msgspec.structs.replace(operation, observed=observed)


def encode_token(generation: int, token: bytes) -> bytes:
    """What a reader gets of what it observed."""
    return generation.to_bytes(8, "big") + token


def decode_token(token: bytes) -> tuple[int, bytes]:
    """Generation and what was observed.

    Raises:
        CrdtFormatError: it is no token.
    """
    if len(token) <= 8:
        raise CrdtFormatError("this is no token of what was observed")
    return int.from_bytes(token[:8], "big"), token[8:]
