"""From submissions to log entries and back to replies.

Everything that reaches the leader in one loop turn becomes one entry. While a few entries are on
their way to a majority the next one fills up, so that many clients with one command each share
writes as well as one client with many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from quorate.base.frames import SubmitAccepted, SubmitFailed, SubmitReply
from quorate.base.limits import ENTRY_BYTES_MAX, KIB, MIB
from quorate.base.types import LogIndex, Term
from quorate.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
)
from quorate.replication.gateway import Prepared
from quorate.replication.sessions import Outcome

SubmitAnswer = SubmitReply | SubmitAccepted | SubmitFailed
#: Receives the one answer to a submission.
SubmitSink = Callable[[SubmitAnswer], None]

#: Bytes of submissions waiting for an entry; some 0.1 s of work at full speed.
QUEUE_BYTES_MAX = 16 * MIB
QUEUE_SUBMISSIONS_MAX = 20_000
#: Room for the batch's own fields beside the submissions of an entry, for those of a submission,
#: and for those of each run in it: headers count, or tiny runs would outgrow an entry.
ENTRY_ROOM_BYTES = 64 * KIB
SUBMISSION_ROOM_BYTES = 256
RUN_ROOM_BYTES = 8
#: Entries whose outcome is waited for: the few in flight, and those of earlier leaderships that
#: nobody has overwritten or committed yet.
PROPOSED_MAX = 64
RETRY_AFTER_MS = 50


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """One submission between its arrival and its answer."""

    prepared: Prepared
    sink: SubmitSink
    size_bytes: int


class Proposed(msgspec.Struct, frozen=True):
    """An entry of this leader that is not applied yet."""

    index: LogIndex
    term: Term
    waiting: tuple[Waiting, ...]


class Proposals:
    """The leader's queue of submissions, and the entries whose outcome somebody waits for."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()
        self._queue_bytes = 0
        #: By index, oldest term first. Not in order of indexes: a later leadership of this node
        #: may begin below the entries of an earlier one.
        self._proposed: dict[LogIndex, list[Proposed]] = {}
        self._proposed_count = 0
        self._term = Term(0)
        self._in_flight = 0

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        return self._queue_bytes

    @property
    def waited_for(self) -> bool:
        """Whether the outcome of any entry is."""
        return self._proposed_count > 0

    def in_flight(self, term: Term) -> int:
        """Entries proposed here in *term* and not applied yet. Those of earlier terms do not count:
        this leader's own may be what decides them."""
        return self._in_flight if term == self._term else 0

    def add(self, prepared: Prepared, sink: SubmitSink) -> None:
        """Queue one submission.

        Raises:
            OverloadedError: the queue is full; nothing was queued.
        """
        room = SUBMISSION_ROOM_BYTES + RUN_ROOM_BYTES * len(prepared.submit.runs)
        size = prepared.size_bytes + room
        full = self._queue_bytes + size > QUEUE_BYTES_MAX and self._queue
        if full or len(self._queue) >= QUEUE_SUBMISSIONS_MAX:
            raise OverloadedError(
                f"{len(self._queue)} submissions of {self._queue_bytes} bytes wait for the log; "
                f"try again in {RETRY_AFTER_MS} ms",
                RETRY_AFTER_MS,
            )
        self._queue.append(Waiting(prepared, sink, size))
        self._queue_bytes += size

    def take(self) -> tuple[Waiting, ...]:
        """The submissions of the next entry: as many as fit, at least one if any wait."""
        taken: list[Waiting] = []
        size = ENTRY_ROOM_BYTES
        while self._queue:
            following = self._queue[0]
            if taken and size + following.size_bytes > ENTRY_BYTES_MAX:
                break
            size += following.size_bytes
            taken.append(self._queue.popleft())
            self._queue_bytes -= following.size_bytes
        return tuple(taken)

    def give_back(self, taken: tuple[Waiting, ...]) -> None:
        """Put what ``take`` returned at the head again: the core is full for now."""
        for waiting in reversed(taken):
            self._queue.appendleft(waiting)
            self._queue_bytes += waiting.size_bytes

    def proposed(self, index: LogIndex, term: Term, waiting: tuple[Waiting, ...]) -> None:
        """They are in the log at *index*; what becomes of them is not known yet."""
        if term != self._term:
            self._term, self._in_flight = term, 0
        self._in_flight += 1
        self._proposed_count += 1
        self._proposed.setdefault(index, []).append(Proposed(index, term, waiting))
        if self._proposed_count > PROPOSED_MAX:
            oldest = next(iter(self._proposed))
            entry = self._proposed[oldest].pop(0)
            if not self._proposed[oldest]:
                del self._proposed[oldest]
            self._forget(entry)
            _fail_unknown(entry, "leaders changed too often to learn what became of it")

    def _forget(self, entry: Proposed) -> None:
        self._proposed_count -= 1
        if entry.term == self._term:
            self._in_flight -= 1

    def at(self, index: LogIndex, term: Term) -> Proposed | None:
        """The proposal that became the entry at *index*, which is about to be applied.

        Proposals at that index from other terms were overwritten: they surely did not happen, and
        their clients are told so.
        """
        if index not in self._proposed:
            return None
        found: Proposed | None = None
        for entry in self._proposed.pop(index):
            self._forget(entry)
            if entry.term == term:
                found = entry
                continue
            for waiting in entry.waiting:
                _fail(waiting, NotLeaderError.code, "another leader's entry took its place")
        return found

    def passed_over(self, index: LogIndex) -> None:
        """A snapshot brought the state to *index*: what was proposed up to there either is in it
        or was overwritten, and nobody here can tell which."""
        for at in [at for at in self._proposed if at <= index]:
            for entry in self._proposed.pop(at):
                self._forget(entry)
                _fail_unknown(entry, "a snapshot from the leader took the place of the log")

    def fail_queued(self, code: str, message: str) -> None:
        """Refuse what has not reached the log."""
        queue, self._queue, self._queue_bytes = self._queue, deque(), 0
        for waiting in queue:
            _fail(waiting, code, message)

    def fail_proposed(self, error: QuorateError) -> None:
        """The node stops: nobody here will learn what becomes of these."""
        proposed, self._proposed = self._proposed, {}
        self._proposed_count = self._in_flight = 0
        for entries in proposed.values():
            for entry in entries:
                for waiting in entry.waiting:
                    _fail(waiting, error.code, str(error))


def _fail(waiting: Waiting, code: str, message: str) -> None:
    waiting.sink(SubmitFailed(waiting.prepared.submit.sequence, code, message))


def _fail_unknown(entry: Proposed, message: str) -> None:
    for waiting in entry.waiting:
        _fail(waiting, OutcomeUnknownError.code, message)


def answer(waiting: Waiting, outcome: Outcome) -> None:
    """Tell the client what apply made of its submission."""
    sequence = waiting.prepared.submit.sequence
    if outcome.code:
        failed = SubmitFailed(sequence, outcome.code, outcome.message, outcome.retry_after_ms)
        waiting.sink(failed)
    else:
        waiting.sink(SubmitReply(sequence, outcome.index, msgspec.Raw(outcome.results)))
