"""Writes: queued calls become numbered batches, and batches become answers exactly once.

Decides only; no loop, no socket. The owner feeds it frames, connection news and the time, and
sends what ``pump`` returns. What this class owns:

* A batch gets its sequence when it is first handed out, and never changes again.
* A batch is kept until it is answered; after a reconnect all kept batches are handed out again,
  in sequence order, before any new one.
* ``acknowledged`` is the largest number up to which every sequence is answered.
* Sequences are never used again, not even by the next session: a late answer to an old session's
  batch cannot be taken for the answer to a new one.

A refusal by an overloaded node holds back everything, refused batches and new ones alike. Calls
that were made without awaiting one another may nonetheless take effect in another order then:
later batches, already on their way, may have been accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf

import msgspec

from quorate.base.frames import Run, Submit, SubmitAccepted, SubmitFailed, SubmitReply
from quorate.base.invariants import must
from quorate.base.levels import ANSWER_DURABLE, Accepted
from quorate.client.codec import decode_results
from quorate.client.segments import Bundle, SegmentQueue
from quorate.client.session import Session
from quorate.client.settings import WINDOW_BATCHES_MAX, WINDOW_BYTES_MAX
from quorate.errors import (
    DeadlineExceededError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    SessionExpiredError,
    error_from_code,
)

#: Refusals after which the same batch goes to the leader, wherever it is now. Some of them leave
#: the outcome open; the sequence makes the repetition safe.
REROUTED_CODES = frozenset(("not-leader", "unavailable", "outcome-unknown", "closed"))
#: Those of them after which the batch may have happened.
VAGUE_CODES = frozenset(("outcome-unknown", "closed"))
RETRY_AFTER_S_MIN = 0.001
PATIENCE_DOUBLINGS_MAX = 5
RETRY_AFTER_S_MAX = 5.0  # whatever a node asks for, its state is looked at again after this long


def retry_delay_s(retry_after_ms: int) -> float:
    """Seconds to wait after a refusal that asked for *retry_after_ms*, within reason."""
    return min(max(retry_after_ms / 1000, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)


def explain_refusal(last_refusal: str, trouble: str) -> str:
    """The end of a sentence that tells of a missed deadline."""
    reasons = [f"the last refusal was {last_refusal}"] if last_refusal else []
    return "".join(f"; {reason}" for reason in (*reasons, trouble) if reason)


class Kind(Enum):
    """What a batch is for."""

    COMMANDS = "commands"
    OPEN = "open"
    KEEP_ALIVE = "keep-alive"
    CLOSE = "close"


class Batch:
    """One submission. *to_send*: it is not on its way on the present connection. *doubtful*: an
    earlier sending of it got no answer that says for certain that it did not happen."""

    __slots__ = ("bundle", "doubtful", "frame", "kind", "sent_at", "sent_count", "to_send")

    def __init__(self, frame: Submit, kind: Kind, bundle: Bundle | None, now: float) -> None:
        self.frame = frame
        self.kind = kind
        self.bundle = bundle
        self.sent_at = now
        self.sent_count = 1
        self.to_send = False
        self.doubtful = False

    @property
    def undone(self) -> bool:
        """Every sending of it was refused for certain, and it is not on its way."""
        return self.to_send and not self.doubtful

    @property
    def size_bytes(self) -> int:
        return 0 if self.bundle is None else self.bundle.size_bytes


class Submitter:
    """See the module. *queue*: where calls wait; *now*: loop time in seconds."""

    def __init__(
        self,
        queue: SegmentQueue,
        session: Session,
        now: Callable[[], float],
        *,
        window_batches_max: int = WINDOW_BATCHES_MAX,
        window_bytes_max: int = WINDOW_BYTES_MAX,
    ) -> None:
        self.queue = queue
        self.session = session
        self._now = now
        self._window_batches_max = window_batches_max
        self._window_bytes_max = window_bytes_max
        self._sequence = 0
        self._unanswered: dict[int, Batch] = {}  # in sequence order
        self._unanswered_bytes = 0
        self._orphans: list[Bundle] = []  # refused, with their session; for the next session
        self._resend = False  # some batch is to_send
        self._paused_until = -inf
        self._deadline_min = inf  # no unanswered batch has a deadline before it
        self._last_refusal = ""
        self.resent_count = 0
        self.seen = 0  #: the highest log index that a reply has named

    @property
    def acknowledged(self) -> int:
        """Largest sequence up to which everything is answered."""
        return next(iter(self._unanswered), self._sequence + 1) - 1

    @property
    def unanswered_count(self) -> int:
        return len(self._unanswered)

    @property
    def unanswered_bytes(self) -> int:
        return self._unanswered_bytes

    @property
    def in_flight(self) -> bool:
        """Whether the present connection owes an answer."""
        return any(not batch.to_send for batch in self._unanswered.values())

    @property
    def clogged(self) -> bool:
        """The window is full of batches that nobody waits for any more, or these are all that a new
        session waits for: what the node owes, it does not answer, and nothing new can be sent."""
        batches = self._unanswered.values()
        if len(batches) >= self._window_batches_max:
            return all(batch.bundle is None or batch.bundle.over for batch in batches)
        return (
            self.session.id == 0
            and len(batches) > 0
            and all(batch.bundle is not None and batch.bundle.over for batch in batches)
        )

    def is_owed(self, patience_s: float) -> bool:
        """Whether the node has left unanswered what this client itself asked for, not a caller:
        the opening of a session, which everybody waits for, or its keeping. No deadline ends that.
        A cluster may be slow, so *patience_s* is doubled each time that it is asked again."""
        first = next(iter(self._unanswered.values()), None)
        if first is None or first.bundle is not None or first.to_send:
            return False
        doublings = min(first.sent_count - 1, PATIENCE_DOUBLINGS_MAX)
        return self._now() - first.sent_at > patience_s * (1 << doublings)

    @property
    def waiting(self) -> bool:
        """Whether anything is queued or unanswered."""
        return bool(self._unanswered) or bool(self._orphans) or bool(self.queue)

    @property
    def wake_at(self) -> float:
        """Loop time at which ``expire`` and ``pump`` have something to do at the latest."""
        wake = min(self.queue.deadline_min, self._deadline_min)
        if self._paused_until > -inf and (self._resend or self.queue):
            wake = min(wake, self._paused_until)
        if not self._unanswered:
            wake = min(wake, self.session.keep_alive_at)
        return wake

    # --- out ---------------------------------------------------------------------------------

    def pump(self) -> list[Submit]:
        """The frames to send now, in order. Call only while connected to the leader."""
        frames: list[Submit] = []
        if self._paused_until > -inf:
            if self._now() < self._paused_until:
                return frames
            self._paused_until = -inf
        if self._resend:
            self._send_again(frames)
        if self.session.id != 0:
            self._send_orphans(frames)
            while self._send_next(frames):
                pass
            if not self._unanswered and self._now() >= self.session.keep_alive_at:
                self._send_own(frames, Kind.KEEP_ALIVE, self.session.keep_alive_runs())
        elif (self.queue or self._orphans) and not self._unanswered:
            self._send_own(frames, Kind.OPEN, self.session.open_runs())
        return frames

    def close_session(self) -> list[Submit]:
        """Frames that end the session, if there is one and nothing is left to be answered."""
        frames: list[Submit] = []
        if self.session.id != 0 and not self._unanswered:
            self._send_own(frames, Kind.CLOSE, self.session.close_runs())
        return frames

    def _send_again(self, frames: list[Submit]) -> None:
        self._resend = False
        for sequence, batch in list(self._unanswered.items()):
            if batch.to_send and batch.bundle is not None and batch.bundle.over:
                self._forget(sequence)  # see ``disconnected``
            elif batch.to_send:
                batch.to_send = False
                batch.sent_at = self._now()
                batch.sent_count += 1
                # Only the watermark is renewed: a session whose kept replies fill the cluster's
                # room for them is refused until it says which of them have arrived.
                frame = batch.frame
                if frame.session != 0:
                    frame = msgspec.structs.replace(frame, acknowledged=self.acknowledged)
                frames.append(frame)
                self.resent_count += 1

    def _send_orphans(self, frames: list[Submit]) -> None:
        orphans, self._orphans = self._orphans, []
        for bundle in orphans:
            if not bundle.over:
                self._register(frames, self.session.id, bundle.wire_runs, Kind.COMMANDS, bundle)

    def _send_next(self, frames: list[Submit]) -> bool:
        if not self.queue or len(self._unanswered) >= self._window_batches_max:
            return False
        segments = self.queue.take(self._window_bytes_max - self._unanswered_bytes)
        if not segments:
            return False
        bundle = Bundle(segments)
        for segment in segments:
            segment.parts = []  # the bundle has its own copy; commands are held only once
        self._register(frames, self.session.id, bundle.wire_runs, Kind.COMMANDS, bundle)
        return True

    def _send_own(self, frames: list[Submit], kind: Kind, runs: tuple[Run, ...]) -> None:
        session = 0 if kind is Kind.OPEN else self.session.id
        self._register(frames, session, runs, kind, None)

    def _register(
        self,
        frames: list[Submit],
        session: int,
        runs: tuple[Run, ...],
        kind: Kind,
        bundle: Bundle | None,
    ) -> None:
        acknowledged = 0 if kind is Kind.OPEN else self.acknowledged
        self._sequence += 1
        level = 0 if bundle is None else bundle.option
        frame = Submit(session, self._sequence, acknowledged, runs, level)
        batch = Batch(frame, kind, bundle, self._now())
        self._unanswered[self._sequence] = batch
        self._unanswered_bytes += batch.size_bytes
        if bundle is not None:
            self._deadline_min = min(self._deadline_min, bundle.deadline_min)
        frames.append(frame)

    # --- in ----------------------------------------------------------------------------------

    def on_reply(self, reply: SubmitReply) -> None:
        """Complete the batch; a second reply to it is passed over."""
        batch = self._forget(reply.sequence)
        if batch is None:
            return
        self.seen = max(self.seen, reply.index)
        self._last_refusal = ""
        if batch.kind is Kind.OPEN:
            self._opened(batch, reply)
            return
        self.session.renewed(batch.sent_at)
        if batch.kind is Kind.CLOSE:
            self.session.ended()
        if batch.bundle is not None:
            self._complete(batch.bundle, reply)

    def _complete(self, bundle: Bundle, reply: SubmitReply) -> None:
        if bundle.option == ANSWER_DURABLE:  # more than was asked for
            _accept(bundle, Accepted(reply.index, 0))
            return
        try:
            decoded = decode_results(bundle.runs, reply.results)
        except QuorateError as error:
            bundle.fail(error)
            return
        bundle.note(reply.index)
        for (codec, futures), results in zip(bundle.runs, decoded, strict=True):
            if reply.unconfirmed:
                codec.finish_unconfirmed(futures, results, reply.index, reply.unconfirmed)
            else:
                codec.finish(futures, results)

    def on_accepted(self, accepted: SubmitAccepted) -> None:
        """A node has the batch on its disk. That is all that will be heard of it, so it is over;
        whether the session was renewed will show."""
        batch = self._unanswered.get(accepted.sequence)
        if batch is None or batch.bundle is None or batch.bundle.option != ANSWER_DURABLE:
            return  # not what was asked for: the answer to that is still to come
        self._forget(accepted.sequence)
        self._last_refusal = ""
        _accept(batch.bundle, Accepted(accepted.index, accepted.term))

    def _opened(self, batch: Batch, reply: SubmitReply) -> None:
        try:
            self.session.opened(reply.results, batch.sent_at)
        except OverloadedError as error:  # as many sessions as may be: one may expire soon
            self._pause(error.retry_after_ms)
            self._last_refusal = str(error)
        except QuorateError as error:
            self._fail_unsent(error)

    def on_failed(self, failed: SubmitFailed) -> bool:
        """Act on a refusal. True: the leader must be looked for."""
        batch = self._unanswered.get(failed.sequence)
        if batch is None:
            return False
        if failed.code == SessionExpiredError.code and batch.kind is not Kind.OPEN:
            self._expired(batch, failed.message)
            return False
        if failed.code in REROUTED_CODES or failed.code == OverloadedError.code:
            batch.to_send = self._resend = True
            self._last_refusal = f"{failed.code}: {failed.message}"
            if failed.code in VAGUE_CODES:
                batch.doubtful = True
            if failed.code in REROUTED_CODES:
                return True
            self._pause(failed.retry_after_ms)
            return False
        self._forget(failed.sequence)
        error = error_from_code(failed.code, failed.message)
        if batch.doubtful and error.definite:
            error = OutcomeUnknownError(
                f"sent once without an answer, and refused when sent again: {failed.code}: "
                f"{failed.message}"
            )
        if batch.kind is Kind.OPEN:
            self._fail_unsent(error)
        elif batch.bundle is not None:
            batch.bundle.fail(error)
        return False

    def _forget(self, sequence: int) -> Batch | None:
        batch = self._unanswered.pop(sequence, None)
        if batch is not None:
            self._unanswered_bytes -= batch.size_bytes
            must(self._unanswered_bytes >= 0, "bytes in flight add up", sequence=sequence)
        return batch

    def _pause(self, retry_after_ms: int) -> None:
        self._paused_until = max(self._paused_until, self._now() + retry_delay_s(retry_after_ms))

    def _expired(self, batch: Batch, message: str) -> None:
        """What was sent under the session before and never answered may have happened. What was
        refused at its first sending has not, and goes on under a fresh session. The other batches
        of the old one are answered for themselves."""
        if batch.frame.session == self.session.id:
            self.session.ended()
        self._forget(batch.frame.sequence)
        if batch.bundle is None:
            return
        if batch.doubtful:
            batch.bundle.fail(SessionExpiredError(message or "the session's lease ran out"))
        else:
            self._orphans.append(batch.bundle)

    def _fail_unsent(self, error: QuorateError) -> None:
        self.queue.fail_all(error)
        orphans, self._orphans = self._orphans, []
        for bundle in orphans:
            bundle.fail(error)

    def _fail_unanswered(self, unknown: QuorateError, undone: QuorateError) -> None:
        batches, self._unanswered = self._unanswered, {}
        self._unanswered_bytes = 0
        self._resend = False
        self._deadline_min = inf
        for batch in batches.values():
            if batch.bundle is not None:
                batch.bundle.fail(undone if batch.undone else unknown)

    # --- news ----------------------------------------------------------------------------------

    def disconnected(self) -> None:
        """The connection is gone: whatever is unanswered must go out again on the next one.

        Batches for which nobody waits any more are given up here, rather than take effect long
        after their deadline. That they count as acknowledged makes it final: should an old
        connection still carry one to the cluster, it is refused as out of sequence.
        """
        for sequence, batch in list(self._unanswered.items()):
            if batch.bundle is None or not batch.bundle.over:
                batch.doubtful = batch.doubtful or not batch.to_send
                batch.to_send = self._resend = True
            else:
                self._forget(sequence)
        self._paused_until = -inf

    def expire(self, trouble: str) -> None:
        """End the calls whose deadline has come. *trouble*: why there is no leader, "" if there
        is one."""
        now = self._now()
        because = explain_refusal(self._last_refusal, trouble)
        if self.queue.deadline_min <= now:
            self.queue.expire(
                now, NotSentError(f"the deadline passed before the command was sent{because}")
            )
        if self._deadline_min <= now:
            late = DeadlineExceededError(f"the deadline passed without an answer{because}")
            undone = NotSentError(f"the deadline passed before a node took the command{because}")
            self._deadline_min = inf
            for sequence, batch in list(self._unanswered.items()):
                if batch.bundle is not None and self._expire_bundle(
                    batch.bundle, now, late, undone if batch.undone else None
                ):
                    self._forget(sequence)
            for bundle in self._orphans:
                self._expire_bundle(bundle, now, late, undone)

    def _expire_bundle(
        self, bundle: Bundle, now: float, late: QuorateError, undone: QuorateError | None
    ) -> bool:
        """*undone*: it surely did not happen. True: it was given up, and must not be sent."""
        # Certain only of whole bundles: while somebody waits, it is sent again.
        if undone is not None and bundle.deadline_max <= now:
            bundle.expire(now, undone)
            return True
        bundle.expire(now, late)
        self._deadline_min = min(self._deadline_min, bundle.deadline_min)
        return False

    def fail_all(self, unsent: QuorateError) -> None:
        """The handle closes: *unsent* for what never left, ``OutcomeUnknownError`` for the rest."""
        self._fail_unsent(unsent)
        unknown = OutcomeUnknownError("the handle was closed while the command was under way")
        self._fail_unanswered(unknown, unsent)


def _accept(bundle: Bundle, accepted: Accepted) -> None:
    bundle.note(accepted.index, may_be_lost=True)
    for _, futures in bundle.runs:
        for future in futures:
            if not future.done():
                future.set_result(accepted)
