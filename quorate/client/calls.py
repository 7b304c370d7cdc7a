"""Administrative calls: one frame each, never coalesced, seldom enough to be simple.

Decides only, like ``submitter``. Such a call is not protected by a session: when its connection
is lost it is repeated only if repeating it is harmless, and has an unknown outcome otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import msgspec

from quorate.base.frames import AdminFailed, AdminReply, AdminRequest
from quorate.base.limits import BATCH_BYTES_MAX
from quorate.client.codec import AnyFuture
from quorate.client.segments import clone_error
from quorate.client.settings import CALLS_MAX
from quorate.client.submitter import explain_refusal, retry_delay_s
from quorate.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    LimitExceededError,
    NotLeaderError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    UnavailableError,
    error_from_code,
)

#: Calls that only look, so that any node may be asked, and asked twice.
LOOKING_METHODS = frozenset(("status", "members.list", "crdt.lives"))
#: Changes that may be sent again when a connection ended without an answer (removing the leader,
#: or handing leadership over, ends the connection to it): with the argument ``again``, the node
#: takes what is already so for done.
REPEATABLE_METHODS = frozenset(
    f"members.{change}" for change in ("add", "promote", "demote", "remove", "address")
) | {"leader.transfer", "checkpoint", "crdt.rescue", "crdt.merge", "crdt.rescued"}
#: Refusals that say for certain that nothing was done, and that another try may succeed.
_RETRIED_CODES = frozenset((NotLeaderError.code, UnavailableError.code, OverloadedError.code))

NOT_LEADER_RETRY_MS = 20  # an election is under way, or news of it

_encode = msgspec.msgpack.Encoder().encode


class _Call:
    __slots__ = ("deadline", "doubtful", "frame", "future", "sent", "to_send")

    def __init__(self, frame: AdminRequest, future: AnyFuture, deadline: float) -> None:
        self.frame = frame
        self.future = future
        self.deadline = deadline
        self.sent = False  # it may have reached a node
        self.doubtful = False  # an earlier sending of it may have
        self.to_send = True


class Calls:
    """See the module. *wake*: called when there is something new to send. *follows_leader*: if
    not, a call that only the leader can do is refused for good by a node that does not lead."""

    def __init__(
        self,
        create_future: Callable[[], AnyFuture],
        now: Callable[[], float],
        wake: Callable[[], None],
        next_id: Callable[[], int],
        *,
        follows_leader: bool = True,
    ) -> None:
        self._create_future = create_future
        self._now = now
        self._wake = wake
        self._next_id = next_id
        self._retried = _RETRIED_CODES if follows_leader else _RETRIED_CODES - {NotLeaderError.code}
        self._calls: dict[int, _Call] = {}
        self._to_send = False
        self._paused_until = -inf
        self._deadline_min = inf
        self._last_refusal = ""

    @property
    def waiting(self) -> bool:
        return bool(self._calls)

    @property
    def in_flight(self) -> bool:
        """Whether the present connection owes an answer."""
        return any(not call.to_send for call in self._calls.values())

    @property
    def wake_at(self) -> float:
        """Loop time at which ``expire`` and ``pump`` have something to do at the latest."""
        if self._to_send and self._paused_until > -inf:
            return min(self._deadline_min, self._paused_until)
        return self._deadline_min

    def add(self, method: str, arguments: dict[str, Any], timeout: float) -> AnyFuture:
        """Queue one call; *timeout* in seconds was checked by the caller.

        Raises:
            InvalidArgumentError: the arguments cannot be encoded, or are too long.
            OverloadedError: ``CALLS_MAX`` calls wait already.
        """
        try:
            size_bytes = len(_encode(arguments))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgumentError(f"arguments of {method} cannot be sent: {error}") from error
        if size_bytes > BATCH_BYTES_MAX:
            raise LimitExceededError(
                f"arguments of {method} take {size_bytes} bytes, the limit is {BATCH_BYTES_MAX}"
            )
        if len(self._calls) >= CALLS_MAX:
            raise OverloadedError(f"{CALLS_MAX} administrative calls wait already")
        self._wake()  # raises when closed, and then nothing may stay behind
        call = _Call(
            AdminRequest(self._next_id(), method, arguments),
            self._create_future(),
            self._now() + timeout,
        )
        self._calls[call.frame.id] = call
        self._to_send = True
        self._deadline_min = min(self._deadline_min, call.deadline)
        return call.future

    def pump(self, *, to_leader: bool) -> list[AdminRequest]:
        """The frames to send now. Call only while connected; *to_leader*: to a node that may be
        asked for more than a look."""
        frames: list[AdminRequest] = []
        if not self._to_send or self._now() < self._paused_until:
            return frames
        self._paused_until = -inf
        self._to_send = False
        for call_id, call in list(self._calls.items()):
            if call.to_send and call.future.done():
                del self._calls[call_id]
            elif call.to_send and not (to_leader or call.frame.method in LOOKING_METHODS):
                self._to_send = True
            elif call.to_send:
                call.to_send, call.sent = False, True
                frames.append(call.frame)
        return frames

    def on_reply(self, reply: AdminReply) -> None:
        call = self._calls.pop(reply.id, None)
        if call is not None and not call.future.done():
            call.future.set_result(reply.result)

    def on_failed(self, failed: AdminFailed) -> bool:
        """Act on a refusal. True: the leader must be looked for."""
        call = self._calls.get(failed.id)
        if call is None:
            return False
        if failed.code in self._retried:
            call.sent, call.to_send = False, True
            self._to_send = True
            self._last_refusal = f"{failed.code}: {failed.message}"
            delay_ms = max(failed.retry_after_ms, NOT_LEADER_RETRY_MS)
            self._paused_until = self._now() + retry_delay_s(delay_ms)
            return failed.code == NotLeaderError.code
        del self._calls[failed.id]
        if not call.future.done():
            call.future.set_exception(error_from_code(failed.code, failed.message))
        return False

    def disconnected(self, why: str) -> None:
        """The connection is gone: repeat what is harmless, give up the rest."""
        for call_id, call in list(self._calls.items()):
            method = call.frame.method
            if not call.sent or method in LOOKING_METHODS or method in REPEATABLE_METHODS:
                if call.sent and method in REPEATABLE_METHODS:
                    call.doubtful = True
                    arguments = {**call.frame.arguments, "again": True}
                    call.frame = AdminRequest(call.frame.id, method, arguments)
                call.to_send = self._to_send = True
                continue
            del self._calls[call_id]
            if not call.future.done():
                call.future.set_exception(
                    OutcomeUnknownError(
                        f"the connection ended before {call.frame.method} was answered: {why}"
                    )
                )
        self._paused_until = -inf

    def expire(self, trouble: str) -> None:
        """End the calls whose deadline has come; *trouble* as in ``Submitter.expire``."""
        now = self._now()
        if self._deadline_min > now:
            return
        for call_id, call in list(self._calls.items()):
            if call.deadline <= now:
                del self._calls[call_id]
                if not call.future.done():
                    doubtful = call.sent or call.doubtful
                    late = DeadlineExceededError if doubtful else NotSentError
                    because = explain_refusal(self._last_refusal, trouble)
                    message = f"{call.frame.method} was not answered in time{because}"
                    call.future.set_exception(late(message))
        self._deadline_min = min((call.deadline for call in self._calls.values()), default=inf)

    def fail_all(self, error: QuorateError) -> None:
        """The handle closes; what was sent may have happened."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.future.done():
                continue
            if (call.sent or call.doubtful) and call.frame.method not in LOOKING_METHODS:
                call.future.set_exception(
                    OutcomeUnknownError(f"closed before {call.frame.method} was answered")
                )
            else:
                call.future.set_exception(clone_error(error))
