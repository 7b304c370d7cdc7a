"""Reads of CRDT data: as ``querier``, in other frames; each answer names the position it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from quorate.base.crdt_frames import (
    NOWHERE,
    CrdtAnswer,
    CrdtFailed,
    CrdtRead,
    Question,
    Refusal,
)
from quorate.base.frames import UNDECODABLE
from quorate.client.crdt_writer import AGAIN_MS_MIN, Terms, not_yet, note, refusal_error
from quorate.client.querier import Querier
from quorate.client.segments import Bundle, SegmentQueue
from quorate.errors import LimitExceededError, QuorateError, UnavailableError, WireFormatError

_decode_questions = msgspec.msgpack.Decoder(tuple[Question, ...]).decode
_decode_answers = msgspec.msgpack.Decoder(list[list[Any]]).decode


class CrdtReader(Querier):
    """*objects*: as for ``NodeWrites``."""

    def __init__(
        self,
        queue: SegmentQueue,
        now: Callable[[], float],
        next_id: Callable[[], int],
        *,
        objects: bool,
    ) -> None:
        super().__init__(queue, now, next_id, linearizable=False, moves_on=False)
        self._objects = objects

    def _frame(self, query_id: int, bundle: Bundle) -> CrdtRead:
        raw: Any = bundle.wire_runs[0].items  # stands for the tuple that it encodes
        terms: Terms = bundle.option
        questions = _decode_questions(raw) if self._objects else raw
        return CrdtRead(query_id, terms.number, questions, terms.after)

    def on_answer(self, answer: CrdtAnswer, cluster: str) -> None:
        """Complete the read; a second answer to it is passed over."""
        asked = self._forget(answer.id)
        if asked is None:
            return
        bundle = asked.bundle
        try:
            answers = _decode_answers(answer.results)
        except UNDECODABLE as error:
            bundle.fail(WireFormatError(f"the answer came, but cannot be read: {error}"))
            return
        futures = bundle.runs[0][1]
        if len(answers) != len(futures):
            bundle.fail(WireFormatError("the answer came, but does not fit what was asked"))
            return
        terms: Terms = bundle.option
        frame = asked.frame
        after = frame.after if isinstance(frame, CrdtRead) else NOWHERE
        note(bundle, cluster, answer.position, after, terms.level)
        again = set()
        for future, result in zip(futures, answers, strict=True):
            if future.done():
                continue
            if len(result) == 1:
                future.set_result(result[0])
            elif bundle.count > 1 and result[0] == LimitExceededError.code:
                again.add(future)  # there was no room left beside the others
            else:
                future.set_exception(_error_of(result))
        if again:
            pieces = [segment.only(again) for segment in bundle.segments]
            self._ask_in_halves([piece for piece in pieces if piece.parts])

    def on_refused(self, failed: CrdtFailed) -> bool:
        """Act on a refusal. True: another node may do better."""
        asked = self._asked.get(failed.id)
        if asked is None:
            return False
        not_yet(asked.bundle, failed)
        patience_ms = max(failed.retry_after_ms, AGAIN_MS_MIN)
        self.on_failed(msgspec.structs.replace(failed, retry_after_ms=patience_ms))
        return failed.code == UnavailableError.code


def _error_of(result: list[Any]) -> QuorateError:
    try:
        return refusal_error(msgspec.convert(result, Refusal))
    except msgspec.ValidationError as error:
        return WireFormatError(f"the answer came, but cannot be read: {error}")
