"""Applies what is committed, in slices short enough for a heartbeat to fit in between.

Entries come from memory, nearly always; after a restart, or on a node that fell behind its own
log, they are read back from the file in stretches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from quorate.base.invariants import must
from quorate.base.limits import KIB, MIB
from quorate.base.types import LogIndex
from quorate.consensus.messages import Entry, EntryKind
from quorate.consensus.state import State
from quorate.errors import StorageError
from quorate.replication.clock import Clock
from quorate.replication.disk import JobRunner
from quorate.replication.divergence import DivergenceWatch
from quorate.replication.feeds import Feeds
from quorate.replication.log_cache import LogCache
from quorate.replication.machines import Machines
from quorate.replication.proposals import Proposals, Proposed, answer
from quorate.replication.sessions import Outcome
from quorate.storage.interfaces import LogStore

#: Longest uninterrupted stretch of applying.
APPLY_SLICE_S = 0.005
#: What a follower leaves for later, at most: some 0.3 ms of work.
GATHERED_ENTRIES = 8
GATHERED_BYTES = 4 * KIB
#: Payload bytes read back from the log at once.
READ_BACK_BYTES = 4 * MIB


class Applier:
    """Moves ``applied`` up to the core's commit index.

    *on_answered*: after the answers to an entry's submissions. *on_progress*: after each slice that
    applied something. *ready* is False while the machines are being replaced by a snapshot; nothing
    is applied then.
    """

    def __init__(
        self,
        state: State,
        machines: Machines,
        log: LogStore,
        cache: LogCache,
        proposals: Proposals,
        divergence: DivergenceWatch,
        feeds: Feeds,
        read_runner: JobRunner,
        clock: Clock,
        *,
        applied: LogIndex,
        on_progress: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._machines = machines
        self._log = log
        self._cache = cache
        self._proposals = proposals
        self._divergence = divergence
        self._feeds = feeds
        machines.heard = feeds.heard
        self._read_runner = read_runner
        self._clock = clock
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._stopped = False
        #: Counts the replacements of the state: what was read back before one is dropped.
        self._era = 0
        self._reading_back = False
        self.on_answered: Callable[[], None] = _nothing
        self.ready = True
        self.applied = applied
        self.entry_count = 0
        self.command_count = 0
        self.payload_bytes = 0  #: of all entries applied: says when the next checkpoint is due

    def stop(self) -> None:
        self._stopped = True

    def suspend(self) -> None:
        """The machines' state is about to be replaced."""
        self.ready = False
        self._era += 1
        self._reading_back = False

    def resume(self, applied: LogIndex) -> None:
        """The machines hold the state after *applied*; go on from there."""
        self.applied = applied
        self._proposals.passed_over(applied)
        self._divergence.reset(applied, self._machines.state_hash)
        self.ready = True
        self.soon()

    def soon(self) -> None:
        """Run in the next turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._later)

    def heard(self, *, waited_for: bool, behind_disk: bool) -> None:
        """More is committed. *waited_for*: by somebody whom this object does not know of.
        *behind_disk*: an answer to a member waits for this one's disk, and goes first.

        A little that nobody waits for is left for the next tick, or for when it has become more:
        applied together, all entries but the first find their code and data in the caches (a put
        costs a follower 9 % less time).
        """
        if not (waited_for or self._proposals.waited_for or self._feeds):
            applied, last = self.applied, self._state.commit
            few = last - applied < GATHERED_ENTRIES
            if few and self._state.log.size_between(applied, last) <= GATHERED_BYTES:
                return
        if behind_disk:
            self.later()
        else:
            self.run()

    def catch_up(self) -> None:
        """Somebody is about to look: apply what was left."""
        if self.applied < self._state.commit:
            self._later()

    def later(self) -> None:
        """Run in the turn after the next: what was handed to the disk in this one, and the answer
        that waits for it, go first (60 us earlier, on a follower)."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._loop.call_soon, self._later)

    def _later(self) -> None:
        self._scheduled = False
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - a broken invariant stops the node, not the loop
            self._on_failure(error)

    def run(self) -> None:
        """Apply what is committed, for at most a slice of time."""
        if not self.ready or self._reading_back or self._stopped:
            return
        before = self.applied
        end_s = self._clock.monotonic_s() + APPLY_SLICE_S
        while self.applied < self._state.commit:
            entry = self._cache.get(LogIndex(self.applied + 1))
            if entry is None:
                self._read_back()
                break
            self._apply(entry)
            if self.applied < self._state.commit and self._clock.monotonic_s() > end_s:
                self.soon()
                break
        if self.applied != before:
            self._cache.trim(self.applied, self._state.persisted)
            self._on_progress()

    def _apply(self, entry: Entry) -> None:
        proposed = self._proposals.at(entry.index, entry.term)
        payload = entry.payload if entry.kind == EntryKind.BATCH else None
        prepared = None
        if proposed is not None and payload is not None:
            prepared = [waiting.prepared for waiting in proposed.waiting]
        answers = None if proposed is None else partial(self._answer, proposed)
        outcome = self._machines.apply(entry.index, entry.term, payload, prepared, answers)
        self.applied = entry.index
        self.entry_count += 1
        self.command_count += outcome.command_count
        self.payload_bytes += len(entry.payload)
        self._divergence.applied(entry.index, self._machines.state_hash)
        if outcome.effects:
            self._feeds.happened(outcome.effects)

    def _answer(self, proposed: Proposed, outcomes: Sequence[Outcome]) -> None:
        for waiting, outcome in zip(proposed.waiting, outcomes, strict=True):
            answer(waiting, outcome)
        self.on_answered()

    def _read_back(self) -> None:
        """Entries that left memory: read a stretch, apply it, come again. Never one that is still
        in memory: the file may hold what stood there before."""
        self._reading_back = True
        era = self._era
        first = LogIndex(self.applied + 1)
        last = LogIndex(min(self._state.commit, self._cache.first_index - 1))
        must(first <= last, "what is committed is in memory or on disk", first=first, last=last)

        def done(entries: Sequence[Entry] | None, error: BaseException | None) -> None:
            if self._stopped or era != self._era:
                return
            self._reading_back = False
            if error is not None or not entries:
                self._on_failure(error or StorageError(f"the log gave no entry {first}"))
                return
            self._apply_stretch(deque(entries), era)

        self._read_runner.run(lambda: self._log.read(first, last, READ_BACK_BYTES), done)

    def _apply_stretch(self, entries: deque[Entry], era: int) -> None:
        if self._stopped or era != self._era:
            return
        self._reading_back = True
        end_s = self._clock.monotonic_s() + APPLY_SLICE_S
        try:
            while entries:
                entry = entries.popleft()
                known = self._state.log.term_at(entry.index)
                must(
                    entry.index == self.applied + 1 and entry.term == known,
                    "the file holds the log that the core knows",
                    entry=(entry.index, entry.term),
                    known=(self.applied + 1, known),
                )
                self._apply(entry)
                if entries and self._clock.monotonic_s() > end_s:
                    self._loop.call_soon(self._apply_stretch, entries, era)
                    return
            self._reading_back = False
            self._on_progress()
            self.soon()
        except Exception as error:  # noqa: BLE001 - as in ``_later``
            self._on_failure(error)


def _nothing() -> None:
    """Until somebody wants to hear."""
