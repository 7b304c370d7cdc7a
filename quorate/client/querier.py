"""Reads: queued calls become queries, asked again freely until an answer or the deadline.

Decides only, like ``submitter``. A query has no effect, so nothing here needs a session: a frame
that failed or got lost is asked again, of whatever node is connected then. A query whose answers
together outgrow a reply is asked again in halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from quorate.base.crdt_frames import CrdtFailed, CrdtRead
from quorate.base.frames import Query, QueryFailed, QueryReply
from quorate.base.results import Failure
from quorate.client.codec import AnyFuture, MachineCodec, decode_results
from quorate.client.segments import Bundle, Segment, SegmentQueue
from quorate.client.settings import WINDOW_BATCHES_MAX, WINDOW_BYTES_MAX
from quorate.client.submitter import REROUTED_CODES, explain_refusal, retry_delay_s
from quorate.errors import (
    CommandError,
    DeadlineExceededError,
    LimitExceededError,
    NotSentError,
    OverloadedError,
    QuorateError,
    error_from_code,
)


class _Asked:
    """One query frame. *to_send*: it is not on its way on the present connection."""

    __slots__ = ("bundle", "frame", "to_send")

    def __init__(self, frame: Query | CrdtRead, bundle: Bundle) -> None:
        self.frame = frame
        self.bundle = bundle
        self.to_send = False


class Querier:
    """*linearizable*: of all its queries; there is one querier for each kind, and for the other the
    option of a call is the index that it follows. *moves_on*: whether a refusal sends the owner to
    another node; if not, the same one is asked again."""

    def __init__(
        self,
        queue: SegmentQueue,
        now: Callable[[], float],
        next_id: Callable[[], int],
        *,
        linearizable: bool,
        moves_on: bool,
    ) -> None:
        self.queue = queue
        self._now = now
        self._next_id = next_id
        self._linearizable = linearizable
        self._moves_on = moves_on
        self._asked: dict[int, _Asked] = {}
        self._asked_bytes = 0
        self._resend = False
        self._paused_until = -inf
        self._deadline_min = inf
        self._last_refusal = ""
        self.seen = 0  #: the highest log index that a reply has named

    def __contains__(self, query_id: int) -> bool:
        """Whether that query is unanswered, and somebody waits for it."""
        return query_id in self._asked

    @property
    def waiting(self) -> bool:
        return bool(self._asked) or bool(self.queue)

    @property
    def in_flight(self) -> bool:
        """Whether the present connection owes an answer."""
        return any(not asked.to_send for asked in self._asked.values())

    @property
    def unanswered_count(self) -> int:
        return len(self._asked)

    @property
    def wake_at(self) -> float:
        """Loop time at which ``expire`` and ``pump`` have something to do at the latest."""
        wake = min(self.queue.deadline_min, self._deadline_min)
        if self._paused_until > -inf and (self._resend or self.queue):
            wake = min(wake, self._paused_until)
        return wake

    def pump(self) -> list[Query | CrdtRead]:
        """The frames to send now. Call only while connected to a node that can answer them."""
        frames: list[Query | CrdtRead] = []
        if self._paused_until > -inf:
            if self._now() < self._paused_until:
                return frames
            self._paused_until = -inf
        if self._resend:
            self._resend = False
            for asked in self._asked.values():
                if asked.to_send:
                    asked.to_send = False
                    frames.append(asked.frame)
        while self.queue and len(self._asked) < WINDOW_BATCHES_MAX:
            segments = self.queue.take(WINDOW_BYTES_MAX - self._asked_bytes)
            if not segments:
                break
            frames.append(self._ask(segments))
        return frames

    def _ask(self, segments: list[Segment]) -> Query | CrdtRead:
        bundle = Bundle(segments)
        frame = self._frame(self._next_id(), bundle)
        self._asked[frame.id] = _Asked(frame, bundle)
        self._asked_bytes += bundle.size_bytes
        self._deadline_min = min(self._deadline_min, bundle.deadline_min)
        return frame

    def _frame(self, query_id: int, bundle: Bundle) -> Query | CrdtRead:
        """What asks for *bundle*; other readers ask in other words."""
        return Query(query_id, bundle.wire_runs, self._linearizable, bundle.option)

    def on_reply(self, reply: QueryReply) -> bool:
        """Complete the query. False: it is not one of this querier's."""
        asked = self._forget(reply.id)
        if asked is None:
            return False
        self._last_refusal = ""
        try:
            decoded = decode_results(asked.bundle.runs, reply.results)
        except QuorateError as error:
            asked.bundle.fail(error)
            return True
        self.seen = max(self.seen, reply.index)
        asked.bundle.note(reply.index)
        for (codec, futures), results in zip(asked.bundle.runs, decoded, strict=True):
            if asked.bundle.count > 1 and Failure in set(map(type, results)):
                codec.finish(*self._ask_refused_again(asked.bundle, codec, futures, results))
            else:
                codec.finish(futures, results)
        return True

    def _ask_refused_again(
        self,
        bundle: Bundle,
        codec: MachineCodec,
        futures: Sequence[AnyFuture],
        results: Sequence[Any],
    ) -> tuple[Sequence[AnyFuture], Sequence[Any]]:
        """Ask for what the reply had no room for, in halves; give back the rest."""
        refused = {
            future
            for future, result in zip(futures, results, strict=True)
            if type(result) is Failure and result.code == LimitExceededError.code
        }
        again = [
            piece
            for segment in bundle.segments
            if segment.codec is codec
            for piece in [segment.only(refused)]
            if piece.parts
        ]
        if again:
            self._ask_in_halves(again)
        pairs = zip(futures, results, strict=True)
        rest = [(future, result) for future, result in pairs if future not in refused]
        return [future for future, _ in rest], [result for _, result in rest]

    def _ask_in_halves(self, segments: list[Segment]) -> None:
        # Not back into the queue, where they would be put together again.
        for half in _halves(segments):
            if half:
                self._asked[self._ask(half).id].to_send = self._resend = True

    def on_failed(self, failed: QueryFailed | CrdtFailed) -> bool:
        """Act on a refusal. True: another node must be looked for."""
        asked = self._asked.get(failed.id)
        if asked is None:
            return False
        rerouted = failed.code in REROUTED_CODES
        if rerouted or failed.code == OverloadedError.code:
            asked.to_send = self._resend = True
            self._last_refusal = f"{failed.code}: {failed.message}"
            if not rerouted or not self._moves_on:
                # What does not look for another node must not spin either.
                delay_s = retry_delay_s(failed.retry_after_ms)
                self._paused_until = max(self._paused_until, self._now() + delay_s)
            return rerouted and self._moves_on
        self._forget(failed.id)
        error = error_from_code(failed.code, failed.message)
        # Too much for one reply, or a query that one machine of several cannot have: those which
        # only shared its frame get their answers.
        bundle = asked.bundle
        if (isinstance(error, LimitExceededError) and bundle.count > 1) or (
            isinstance(error, CommandError) and len(bundle.runs) > 1
        ):
            self._ask_in_halves(bundle.segments)
        else:
            bundle.fail(error)
        return False

    def _forget(self, query_id: int) -> _Asked | None:
        asked = self._asked.pop(query_id, None)
        if asked is not None:
            self._asked_bytes -= asked.bundle.size_bytes
        return asked

    def disconnected(self) -> None:
        """The connection is gone: whatever is unanswered is asked again on the next one."""
        for asked in self._asked.values():
            asked.to_send = self._resend = True
        self._paused_until = -inf

    def expire(self, trouble: str) -> None:
        """End the calls whose deadline has come; *trouble* as in ``Submitter.expire``."""
        now = self._now()
        because = explain_refusal(self._last_refusal, trouble)
        if self.queue.deadline_min <= now:
            self.queue.expire(
                now, NotSentError(f"the deadline passed before the query was sent{because}")
            )
        if self._deadline_min <= now:
            error = DeadlineExceededError(f"the deadline passed without an answer{because}")
            self._deadline_min = inf
            for query_id, asked in list(self._asked.items()):
                asked.bundle.expire(now, error)
                if asked.bundle.over:
                    self._forget(query_id)
                self._deadline_min = min(self._deadline_min, asked.bundle.deadline_min)

    def fail_all(self, error: QuorateError) -> None:
        """The handle closes: every call ends with *error*."""
        self.queue.fail_all(error)
        asked, self._asked = self._asked, {}
        self._asked_bytes = 0
        for one in asked.values():
            one.bundle.fail(error)


def _halves(segments: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    """The same calls in two portions; a lone segment is cut itself, a lone call stays whole."""
    if len(segments) > 1 or len(segments[0].parts) == 1:
        middle = len(segments) // 2
        return segments[:middle], segments[middle:]
    (whole,) = segments
    middle = len(whole.parts) // 2
    return [whole.part(0, middle)], [whole.part(middle, len(whole.parts))]
