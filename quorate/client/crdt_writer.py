"""Writes of CRDT data: frames that one node took are that node's, until it answers.

Decides only, like ``submitter``. A node remembers by client and sequence what it has done, and no
other node does. So a frame that may have been taken is sent again to the same node only, however
long that is away, until its deadline; and what a node surely did not take goes back into the queue,
for whatever node is connected then. What these classes own:

* A frame gets its sequence when it is sent first, and never changes again but for the watermark,
  and for saying that an earlier process of the node may have taken it.
* Sequences come from one counter for all nodes, and are never used twice.
* ``acknowledged`` is the largest number up to which every frame for this node is answered, or was
  given up. That it counts as acknowledged makes giving up final: should an old connection still
  carry the frame, the node refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, NamedTuple

import msgspec

from quorate.base.crdt_frames import (
    NOWHERE,
    CrdtFailed,
    CrdtWrite,
    CrdtWritten,
    Position,
    Refusal,
)
from quorate.base.crdt_operations import Remove, Update
from quorate.base.levels import CAUSAL, EVENTUAL, LEVELS, Level
from quorate.client.levels import Seen
from quorate.client.segments import Bundle, Segment, SegmentQueue
from quorate.client.settings import WINDOW_BATCHES_MAX, WINDOW_BYTES_MAX
from quorate.client.submitter import explain_refusal, retry_delay_s
from quorate.errors import (
    ClosedError,
    DeadlineExceededError,
    InsufficientRightsError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    UnavailableError,
    UnconfirmedError,
    error_from_code,
)

#: Refusals of a frame that surely did nothing, and may do it at another node.
ELSEWHERE_CODES: Final = frozenset((UnavailableError.code, ClosedError.code))
#: After such a refusal the same node is not asked again sooner.
AGAIN_MS_MIN: Final = 20

_decode_operations = msgspec.msgpack.Decoder(tuple[Update | Remove, ...]).decode


class Terms:
    """The option of calls for CRDT data: at which level, and what they are to be on top of: all
    that *seen* has seen when they leave."""

    __slots__ = ("level", "number", "seen")

    def __init__(self, level: Level, seen: Seen) -> None:
        self.level = level
        self.number = LEVELS.index(level)
        self.seen = seen

    @property
    def after(self) -> Position:
        """What the node must have come to."""
        return NOWHERE if self.level == EVENTUAL else self.seen.position


def note(bundle: Bundle, cluster: str, position: Position, after: Position, level: Level) -> None:
    """Tell the session and the receipts where the answer was given, at *level*."""
    terms: Terms = bundle.option
    terms.seen.reach_position(cluster, position, after)
    for segment in bundle.segments:
        if segment.receipts is not None:
            for future in segment.futures:
                receipt = segment.receipts.get(future)
                if receipt is not None and not future.done():
                    receipt.fill_more(level, cluster, position)


def not_yet(bundle: Bundle, failed: CrdtFailed) -> None:
    """A node refused *bundle* for now: should that stay so, its calls end with that reason."""
    if failed.code == UnavailableError.code:
        for segment in bundle.segments:
            segment.late = UnavailableError(f"not before the deadline: {failed.message}")


def refusal_error(refusal: Refusal) -> QuorateError:
    """The error that a node refused one operation or question with."""
    error = error_from_code(refusal.code, refusal.message)
    if isinstance(error, InsufficientRightsError) and len(refusal.numbers) == 2:
        error.needed, error.available = refusal.numbers
    return error


class _Sent:
    """One frame. *process*: of the node, that it was sent to first. *to_send*: it is not on its
    way on the present link. *doubtful*: an earlier sending of it got no answer."""

    __slots__ = ("bundle", "doubtful", "frame", "process", "to_send")

    def __init__(self, frame: CrdtWrite, bundle: Bundle, process: int) -> None:
        self.frame = frame
        self.bundle = bundle
        self.process = process
        self.to_send = False
        self.doubtful = False


class Holder(NamedTuple):
    """What took a frame: a node with the disk that it had then. Wiped, it has forgotten."""

    node: int
    incarnation: str


NOBODY: Final = Holder(0, "")


class NodeWrites:
    """The frames of one *client* for one *holder*. *objects*: it is reached without a wire, so
    frames hold operations themselves and not their bytes."""

    def __init__(
        self,
        holder: Holder,
        client: bytes,
        next_sequence: Callable[[], int],
        now: Callable[[], float],
        *,
        objects: bool,
    ) -> None:
        self.holder = holder
        self.process = 0  #: of the holder, that is linked, or was last
        self._client = client
        self._next_sequence = next_sequence
        self._now = now
        self._objects = objects
        self._sent: dict[int, _Sent] = {}  # in the order of sequences
        self._sent_bytes = 0
        self._resend = False
        self._paused_until = -inf
        self._deadline_min = inf
        self._why_lost = ""
        self.resent_count = 0

    def __bool__(self) -> bool:
        """Whether anything is unanswered."""
        return bool(self._sent)

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def in_flight(self) -> bool:
        """Whether the present link owes an answer."""
        return any(not sent.to_send for sent in self._sent.values())

    @property
    def clogged(self) -> bool:
        """The window is full of frames that nobody waits for any more."""
        return len(self._sent) >= WINDOW_BATCHES_MAX and all(
            sent.bundle.over for sent in self._sent.values()
        )

    @property
    def wake_at(self) -> float:
        """Loop time at which ``expire`` or ``pump`` has something to do at the latest."""
        return min(self._deadline_min, self._paused_until if self._paused_until > -inf else inf)

    # --- out ---------------------------------------------------------------------------------

    def pump(self, queue: SegmentQueue | None) -> list[CrdtWrite]:
        """The frames to send now, while linked to this node. *queue*: what is new; None: nothing
        new is for this node."""
        frames: list[CrdtWrite] = []
        if self._paused_until > -inf:
            if self._now() < self._paused_until:
                return frames
            self._paused_until = -inf
        if self._resend:
            self._send_again(frames)
        if queue is None:
            return frames
        while queue and len(self._sent) < WINDOW_BATCHES_MAX:
            segments = queue.take(WINDOW_BYTES_MAX - self._sent_bytes)
            if not segments:
                break
            frames.append(self._send(Bundle(segments)))
        return frames

    def _send(self, bundle: Bundle) -> CrdtWrite:
        for segment in bundle.segments:
            segment.late = None  # from now on nobody knows that it did not happen
        sequence = self._next_sequence()
        acknowledged = next(iter(self._sent), sequence) - 1
        raw: Any = bundle.wire_runs[0].items  # stands for the tuple that it encodes
        operations = _decode_operations(raw) if self._objects else raw
        terms: Terms = bundle.option
        frame = CrdtWrite(
            self._client, sequence, acknowledged, terms.number, operations, terms.after
        )
        self._sent[sequence] = _Sent(frame, bundle, self.process)
        self._sent_bytes += bundle.size_bytes
        self._deadline_min = min(self._deadline_min, bundle.deadline_min)
        return frame

    def _send_again(self, frames: list[CrdtWrite]) -> None:
        self._resend = False
        acknowledged = next(iter(self._sent), 1) - 1
        for sent in self._sent.values():
            if sent.to_send:
                sent.to_send = False
                again = sent.process != self.process
                frames.append(
                    msgspec.structs.replace(sent.frame, acknowledged=acknowledged, again=again)
                )
                self.resent_count += 1

    # --- in ----------------------------------------------------------------------------------

    def on_written(self, written: CrdtWritten, cluster: str) -> None:
        """Complete the frame; a second answer to it is passed over."""
        sent = self._forget(written.sequence)
        if sent is None:
            return
        bundle = sent.bundle
        futures = bundle.runs[0][1]
        if len(written.results) != len(futures):
            bundle.fail(OutcomeUnknownError("the answer came, but does not fit what was sent"))
            return
        terms: Terms = bundle.option
        level = CAUSAL if written.unconfirmed else terms.level
        note(bundle, cluster, written.position, sent.frame.after, level)
        for future, result in zip(futures, written.results, strict=True):
            if future.done():
                continue
            if result is not None:
                future.set_exception(refusal_error(result))
            elif written.unconfirmed:
                future.set_exception(_unconfirmed(written, terms.level, self.holder.node))
            else:
                future.set_result(None)

    def on_failed(self, failed: CrdtFailed) -> list[Segment]:
        """Act on a refusal; returns what surely did not happen and is to be sent again."""
        sent = self._sent.get(failed.id)
        if sent is None:
            return []
        error = error_from_code(failed.code, failed.message)
        passing = failed.code in ELSEWHERE_CODES or failed.code == OverloadedError.code
        if passing or failed.code == OutcomeUnknownError.code:
            self._pause(max(failed.retry_after_ms, AGAIN_MS_MIN))
            if passing and not sent.doubtful:
                self._forget(failed.id)
                not_yet(sent.bundle, failed)
                return sent.bundle.segments
            sent.doubtful = sent.to_send = self._resend = True
            self._why_lost = f"{failed.code}: {failed.message}"
            return []
        self._forget(failed.id)
        if sent.doubtful and error.definite:
            error = OutcomeUnknownError(
                f"sent once without an answer, and refused when sent again: {failed.code}: "
                f"{failed.message}"
            )
        sent.bundle.fail(error)
        return []

    def _pause(self, retry_after_ms: int) -> None:
        self._paused_until = max(self._paused_until, self._now() + retry_delay_s(retry_after_ms))

    def _forget(self, sequence: int) -> _Sent | None:
        sent = self._sent.pop(sequence, None)
        if sent is not None:
            self._sent_bytes -= sent.bundle.size_bytes
        return sent

    # --- news ----------------------------------------------------------------------------------

    def disconnected(self, why: str) -> None:
        """The link is gone: whatever is unanswered may have happened, and goes out again."""
        for sequence, sent in list(self._sent.items()):
            if sent.bundle.over:
                self._forget(sequence)
            else:
                sent.doubtful = sent.doubtful or not sent.to_send
                sent.to_send = self._resend = True
        self._why_lost = why
        self._paused_until = -inf

    def expire(self, *, current: bool) -> None:
        """End the calls whose deadline has come. *current*: this is the node that what is new goes
        to, so that frames which nobody waits for any more must keep their place in the window."""
        now = self._now()
        if self._deadline_min > now:
            return
        self._deadline_min = inf
        for sequence, sent in list(self._sent.items()):
            sent.bundle.expire(now, self._late(sent))
            if sent.bundle.over and (sent.to_send or not current):
                self._forget(sequence)
            self._deadline_min = min(self._deadline_min, sent.bundle.deadline_min)

    def _late(self, sent: _Sent) -> QuorateError:
        if not sent.to_send:
            return DeadlineExceededError(
                f"the deadline passed without an answer of node {self.holder.node}; it may have "
                "happened"
            )
        return OutcomeUnknownError(
            f"node {self.holder.node} may have done it, and could not be asked again before the "
            f"deadline ({self._why_lost}); no other node knows"
        )

    def fail_all(self, error: QuorateError) -> None:
        """The handle closes."""
        sent, self._sent = self._sent, {}
        self._sent_bytes = 0
        self._deadline_min = inf
        for each in sent.values():
            each.bundle.fail(error)


def _unconfirmed(written: CrdtWritten, level: Level, node: int) -> UnconfirmedError:
    names = ", ".join(map(str, written.unconfirmed))
    return UnconfirmedError(
        f"it is done and on the disk of node {node}, but of the members that {level!r} asks for, "
        f"these have not confirmed in time that they have it: {names}; it reaches them when they "
        "can be reached, so do not repeat it",
        written.position.index,
        written.unconfirmed,
    )


class Writes:
    """Writes of a client: what waits, and for each node what it has to answer."""

    def __init__(
        self,
        queue: SegmentQueue,
        client: bytes,
        next_sequence: Callable[[], int],
        now: Callable[[], float],
        *,
        objects: bool,
    ) -> None:
        self.queue = queue
        self._client = client
        self._next_sequence = next_sequence
        self._now = now
        self._objects = objects
        self._holders: dict[Holder, NodeWrites] = {}
        self.current = NOBODY  #: the node that the client is linked to
        self._last_refusal = ""
        self._resent_before = 0  # to nodes that owe nothing any more

    def of(self, holder: Holder) -> NodeWrites:
        """Those of *holder*."""
        found = self._holders.get(holder)
        if found is None:
            found = self._holders[holder] = NodeWrites(
                holder, self._client, self._next_sequence, self._now, objects=self._objects
            )
        return found

    def linked(self, holder: Holder, process: int = 0) -> None:
        """What is new goes to *holder* from now on, of which this *process* answers."""
        self.current = holder
        self.of(holder).process = process
        for each, writes in list(self._holders.items()):
            if not writes and each != holder:
                self._resent_before += writes.resent_count
                del self._holders[each]

    @property
    def clogged(self) -> bool:
        """The linked node owes too much to be sent more."""
        return self.current in self._holders and self._holders[self.current].clogged

    @property
    def owing(self) -> list[Holder]:
        """Those with something unanswered, other than the linked one."""
        return [each for each, writes in self._holders.items() if writes and each != self.current]

    @property
    def unanswered_count(self) -> int:
        """Frames."""
        return sum(map(len, self._holders.values()))

    @property
    def resent_count(self) -> int:
        """Frames that were sent again."""
        return self._resent_before + sum(writes.resent_count for writes in self._holders.values())

    def pump(self) -> list[CrdtWrite]:
        """The frames for the linked node."""
        return self.of(self.current).pump(self.queue)

    def on_written(self, holder: Holder, written: CrdtWritten, cluster: str) -> None:
        """See ``NodeWrites.on_written``."""
        self._last_refusal = ""
        self.of(holder).on_written(written, cluster)

    def on_failed(self, holder: Holder, failed: CrdtFailed) -> bool:
        """Act on a refusal. True: another node may do better."""
        back = self.of(holder).on_failed(failed)
        if back:
            self._last_refusal = f"{failed.code}: {failed.message}"
            self.queue.put_back(back)
        return bool(back) and holder == self.current and failed.code in ELSEWHERE_CODES

    # --- as a part of a client (``turns.Part``) -------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether anything waits for the linked node, or for any."""
        return bool(self.queue) or any(self._holders.values())

    @property
    def in_flight(self) -> bool:
        """Whether the linked node owes an answer."""
        return self.current in self._holders and self._holders[self.current].in_flight

    @property
    def wake_at(self) -> float:
        """See ``turns.Part``."""
        return min(
            [self.queue.deadline_min, *[writes.wake_at for writes in self._holders.values()]]
        )

    def expire(self, trouble: str) -> None:
        """See ``turns.Part``."""
        now = self._now()
        if self.queue.deadline_min <= now:
            because = explain_refusal(self._last_refusal, trouble)
            self.queue.expire(
                now, NotSentError(f"the deadline passed before a node took the operation{because}")
            )
        for holder, writes in self._holders.items():
            writes.expire(current=holder == self.current)

    def fail_all(self, error: QuorateError) -> None:
        """See ``turns.Part``: *error* for what never left, ``OutcomeUnknownError`` for the rest."""
        self.queue.fail_all(error)
        unknown = OutcomeUnknownError("the handle was closed while the operation was under way")
        for writes in self._holders.values():
            writes.fail_all(unknown)
