"""Segments and the bounded queue they wait in: calls made in one loop turn, before they are sent.

A *segment* is a row of calls of one loop turn for one machine under one timeout and one *option*:
the level of a write, the index that a read follows; for CRDT data an object that stands for both.
Sharing the deadline is what makes deadlines free: 1000 calls cost one clock reading and one
comparison, where ``loop.call_later`` for each costs about 1 us to set and cancel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from math import inf
from typing import Any

import msgspec

from quorate.base.frames import Run
from quorate.base.limits import BATCH_BYTES_MAX, BATCH_COMMANDS_MAX
from quorate.client.codec import AnyFuture, MachineCodec, pack_array
from quorate.client.levels import Receipt
from quorate.errors import OverloadedError, QuorateError


class Segment:
    """See the module. *deadline*: loop time, in seconds; ``inf`` once it is over."""

    __slots__ = (
        "codec", "deadline", "futures", "late", "option", "parts", "receipts", "size_bytes",
        "timeout",
    )  # fmt: skip

    def __init__(
        self,
        codec: MachineCodec,
        timeout: float,
        deadline: float,
        option: Any = 0,  # noqa: ANN401  compared, and handed on
    ) -> None:
        self.codec = codec
        self.timeout = timeout
        self.deadline = deadline
        self.option = option
        self.parts: list[bytes] = []
        self.futures: list[AnyFuture] = []
        self.size_bytes = 0
        #: Why it has no answer yet: what it ends with at its deadline, rather than a general error.
        self.late: QuorateError | None = None
        #: Of those calls that want one; also of some that are in another piece of the segment.
        self.receipts: dict[AnyFuture, Receipt] | None = None

    def fail(self, error: QuorateError) -> None:
        fail_futures(self.futures, error)

    def part(self, start: int, end: int) -> Segment:
        """A segment of the calls from *start* up to *end*."""
        return self._pick(range(len(self.parts))[start:end])

    def only(self, futures: Container[AnyFuture]) -> Segment:
        """A segment of the calls that *futures* wait for."""
        return self._pick([at for at, future in enumerate(self.futures) if future in futures])

    def _pick(self, places: Sequence[int]) -> Segment:
        piece = Segment(self.codec, self.timeout, self.deadline, self.option)
        piece.receipts, piece.late = self.receipts, self.late
        piece.parts = [self.parts[at] for at in places]
        piece.futures = [self.futures[at] for at in places]
        piece.size_bytes = sum(map(len, piece.parts))
        return piece

    def drop_cancelled(self) -> None:
        """Forget calls whose callers are gone: they were not sent and never will be."""
        kept = [index for index, future in enumerate(self.futures) if not future.cancelled()]
        if len(kept) < len(self.futures):
            self.parts = [self.parts[index] for index in kept]
            self.futures = [self.futures[index] for index in kept]
            self.size_bytes = sum(map(len, self.parts))


def fail_futures(futures: Iterable[AnyFuture], error: QuorateError) -> None:
    """Each gets an exception object of its own, because a raise writes a traceback into it."""
    for future in futures:
        if not future.done():
            future.set_exception(clone_error(error))


def clone_error(error: QuorateError) -> QuorateError:
    """An equal error, without the traceback."""
    clone = type(error)(*error.args)
    clone.__dict__.update(error.__dict__)
    return clone


class SegmentQueue:
    """Calls that have not left the process: bounded in count and bytes, in the order made.

    *create_future* and *now* belong to the loop; *wake* is called when a turn's first call was
    queued, so that the owner plans a flush, and looks at ``deadline_min``.
    """

    __slots__ = (
        "_batch_max", "_bytes_max", "_commands_max", "_create_future", "_now", "_open", "_segments",
        "_wake", "commands", "deadline_min", "size_bytes",
    )  # fmt: skip

    def __init__(
        self,
        create_future: Callable[[], AnyFuture],
        now: Callable[[], float],
        wake: Callable[[], None],
        *,
        commands_max: int,
        bytes_max: int,
        batch_commands_max: int = BATCH_COMMANDS_MAX,
    ) -> None:
        self._batch_max = batch_commands_max
        self._create_future = create_future
        self._now = now
        self._wake = wake
        self._commands_max = commands_max
        self._bytes_max = bytes_max
        self._open: Segment | None = None
        self._segments: deque[Segment] = deque()
        self.commands = 0  #: in closed segments
        self.size_bytes = 0  #: in closed segments
        self.deadline_min = inf  #: no segment ends before it

    def __bool__(self) -> bool:
        return bool(self._segments)

    def add(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        option: Any = 0,  # noqa: ANN401
        receipt: Receipt | None = None,
    ) -> AnyFuture:
        """Queue one call; *timeout* in seconds was checked by the caller. *receipt*: is told the
        index of the answer.

        Raises:
            InvalidArgumentError, LimitExceededError: see ``MachineCodec.encode_checked``.
            OverloadedError: the queue is full.
        """
        part = codec.encode_checked(item)
        segment = self._open
        if (
            segment is None
            or segment.codec is not codec
            or segment.timeout != timeout
            or segment.option != option
            or segment.size_bytes + len(part) > BATCH_BYTES_MAX
            or len(segment.parts) >= self._batch_max
        ):
            segment = self._begin(codec, timeout, option)
        future = self._create_future()
        if receipt is not None:
            if segment.receipts is None:
                segment.receipts = {}
            segment.receipts[future] = receipt
        segment.parts.append(part)
        segment.futures.append(future)
        segment.size_bytes += len(part)
        return future

    def _begin(self, codec: MachineCodec, timeout: float, option: Any) -> Segment:  # noqa: ANN401
        self.close_turn()
        if self.commands >= self._commands_max or self.size_bytes >= self._bytes_max:
            raise OverloadedError(
                f"{self.commands} calls of {self.size_bytes} bytes wait to be sent already "
                f"(limits {self._commands_max} and {self._bytes_max}); wait for some of them"
            )
        self._wake()  # raises when closed, and then nothing may stay behind
        segment = Segment(codec, timeout, self._now() + timeout, option)
        self._open = segment
        self._segments.append(segment)
        self.deadline_min = min(self.deadline_min, segment.deadline)
        return segment

    def close_turn(self) -> None:
        """Later calls begin a new segment, because their deadline is later."""
        segment, self._open = self._open, None
        if segment is not None:
            self.commands += len(segment.parts)
            self.size_bytes += segment.size_bytes

    def take(self, budget_bytes: int = BATCH_BYTES_MAX) -> list[Segment]:
        """Segments for one batch, all of one option, as many as its limits and *budget_bytes*
        allow. Empty: nothing fits, or all callers were cancelled."""
        self.close_turn()
        taken: list[Segment] = []
        count = size_bytes = 0
        bytes_max = min(BATCH_BYTES_MAX, budget_bytes)
        segments = self._segments
        while segments:
            segment = segments[0]
            length, length_bytes = len(segment.parts), segment.size_bytes
            if count + length > self._batch_max or size_bytes + length_bytes > bytes_max:
                break
            if taken and segment.option != taken[0].option:
                break
            segments.popleft()
            self.commands -= length
            self.size_bytes -= length_bytes
            segment.drop_cancelled()
            if segment.parts:
                count += len(segment.parts)
                size_bytes += segment.size_bytes
                taken.append(segment)
        return taken

    def put_back(self, segments: Sequence[Segment]) -> None:
        """What was taken surely did not happen, and waits again, before everything else."""
        self.close_turn()
        for segment in reversed(segments):
            if segment.deadline < inf:
                self._segments.appendleft(segment)
                self.commands += len(segment.parts)
                self.size_bytes += segment.size_bytes
                self.deadline_min = min(self.deadline_min, segment.deadline)

    def expire(self, now: float, error: QuorateError) -> None:
        """End the segments whose deadline has come, with *error* or what each says itself."""
        self.close_turn()
        kept: deque[Segment] = deque()
        for segment in self._segments:
            if segment.deadline <= now:
                segment.fail(segment.late or error)
                self.commands -= len(segment.parts)
                self.size_bytes -= segment.size_bytes
            else:
                kept.append(segment)
        self._segments = kept
        self.deadline_min = min((segment.deadline for segment in kept), default=inf)

    def fail_all(self, error: QuorateError) -> None:
        """Empty the queue; each call ends with *error*."""
        self.close_turn()
        segments, self._segments = self._segments, deque()
        self.commands = self.size_bytes = 0
        self.deadline_min = inf
        for segment in segments:
            segment.fail(error)


class Bundle:
    """Segments of one option as they go out: wire runs, and who waits for each. Consecutive ones of
    one machine share a run. Unchanged from here on, so that a resend is byte-equal."""

    __slots__ = ("count", "option", "runs", "segments", "size_bytes", "wire_runs")

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.option: Any = segments[0].option if segments else 0
        if len(segments) == 1:  # as a rule: no copies, 3 us less
            (segment,) = segments
            self.count = len(segment.parts)
            self.size_bytes = segment.size_bytes
            self.runs = [(segment.codec, segment.futures)]
            packed = msgspec.Raw(pack_array(segment.parts))
            self.wire_runs: tuple[Run, ...] = (Run(segment.codec.name, packed),)
            return
        self.count = sum(len(segment.parts) for segment in segments)
        self.size_bytes = sum(segment.size_bytes for segment in segments)
        joined: list[tuple[MachineCodec, list[bytes], list[AnyFuture]]] = []
        for segment in segments:
            if not joined or joined[-1][0] is not segment.codec:
                # Copies: those of the segment stay its own, for its deadline and for a split.
                joined.append((segment.codec, segment.parts[:], segment.futures[:]))
            else:
                joined[-1][1].extend(segment.parts)
                joined[-1][2].extend(segment.futures)
        self.runs = [(codec, futures) for codec, _, futures in joined]
        self.wire_runs = tuple(
            [Run(codec.name, msgspec.Raw(pack_array(parts))) for codec, parts, _ in joined]
        )

    @property
    def deadline_min(self) -> float:
        return min((segment.deadline for segment in self.segments), default=inf)

    @property
    def deadline_max(self) -> float:
        """The last deadline that is still to come, ``-inf`` if there is none."""
        pending = [segment.deadline for segment in self.segments if segment.deadline < inf]
        return max(pending, default=-inf)

    @property
    def over(self) -> bool:
        """Every call of it has had its deadline: nobody waits any more."""
        return all(segment.deadline == inf for segment in self.segments)

    def expire(self, now: float, error: QuorateError) -> None:
        for segment in self.segments:
            if segment.deadline <= now:
                segment.deadline = inf
                segment.fail(segment.late or error)

    def fail(self, error: QuorateError) -> None:
        for _, futures in self.runs:
            fail_futures(futures, error)

    def note(self, index: int, *, may_be_lost: bool = False) -> None:
        """The answer names *index*: tell the receipts, before the calls that wait are woken."""
        for segment in self.segments:
            if segment.receipts is not None:
                for future in segment.futures:
                    receipt = segment.receipts.get(future)
                    if receipt is not None and not future.done():
                        receipt.index, receipt.may_be_lost = index, may_be_lost
