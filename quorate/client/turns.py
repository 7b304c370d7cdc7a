"""What drives a client: one loop turn, one flush; one timer; one connection.

A call queues itself and, if it is the turn's first, plans a flush with ``call_soon``; the flush
sends everything that gathered, in one write. A reply completes futures and plans a flush behind
them, so that what the woken tasks ask for next goes out in that same turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Protocol

from quorate.base.frames import ClientFrame, MemberInfo, QueryReply, ServerFrame, SubmitReply
from quorate.client.connection import Connection
from quorate.client.segments import SegmentQueue
from quorate.client.settings import DEADLINE_RESOLUTION_S, QUEUE_BYTES_MAX, QUEUE_COMMANDS_MAX
from quorate.errors import ClosedError, QuorateError, UnavailableError

_logger = logging.getLogger(__name__)


class Part(Protocol):
    """What a client consists of: each part decides about calls of one sort."""

    @property
    def wake_at(self) -> float:
        """Loop time at which it has something to do at the latest."""

    @property
    def waiting(self) -> bool:
        """Whether it needs a connection."""

    @property
    def in_flight(self) -> bool:
        """Whether the present connection owes it an answer."""

    def expire(self, trouble: str) -> None:
        """End the calls whose deadline has come; *trouble*: why nothing can be sent, or ""."""

    def fail_all(self, error: QuorateError) -> None:
        """The handle closes."""


class Turns:
    """Base of clients. A subclass sets the handlers, parts and queues, then calls ``_begin``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flush_planned = self._frames_behind = False
        self._closed = self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._timer_stale = True  # something may be due before it
        self._stall_look_at = inf
        self._frames_unexpected = 0
        self._queues: Sequence[SegmentQueue] = ()
        self._parts: Sequence[Part] = ()
        self._handlers: Mapping[type, Callable[[Any], None]] = {}

    def _begin(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._runner = self._loop.create_task(connection.run(), name=name)
        self._runner.add_done_callback(self._runner_ended)

    def _queue(self, **limits: int) -> SegmentQueue:
        return SegmentQueue(
            self._loop.create_future,
            self._loop.time,
            self._plan_flush,
            commands_max=QUEUE_COMMANDS_MAX,
            bytes_max=QUEUE_BYTES_MAX,
            **limits,
        )

    # --- for a subclass ------------------------------------------------------------------------

    def _pump(self) -> list[ClientFrame]:
        """The frames that go out now, over a link that takes them."""
        raise NotImplementedError

    def _clogged(self) -> bool:
        """Whether the link is of no use although something arrives on it."""
        return False

    def on_unlinked(self, error: QuorateError) -> None:
        """The link is gone, with everything unanswered on it."""
        raise NotImplementedError

    # --- what all clients tell -----------------------------------------------------------------

    async def first_welcome(self, timeout: float) -> None:  # its error says more
        """Wait until some node has welcomed this client.

        Raises:
            RefusedError: every endpoint refused it for good.
            UnavailableError: *timeout* seconds passed; the text says what each endpoint did.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connection.first_welcome()
        except TimeoutError:
            why = self._connection.why_not() or "no endpoint answered"
            raise UnavailableError(f"not connected within {timeout:g} s: {why}") from None

    @property
    def members(self) -> tuple[MemberInfo, ...]:
        return self._connection.routing.members

    @property
    def cluster(self) -> str:
        """Id of the cluster; "" before any node has answered, unless the user named it."""
        return self._connection.routing.cluster

    @property
    def node(self) -> int:
        """The connected node, 0 if there is none."""
        return self._connection.node

    # --- the turn ------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Something new waits: flush at the end of this turn, once, and look when it is due."""
        self._plan_flush()
        self._timer_stale = True

    def _plan_flush(self) -> None:
        """As ``_wake``, of a queue, whose deadlines a flush looks at anyway."""
        if self._closing:
            raise ClosedError("the handle was closed")
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._frames_behind:
            # Frames that came after this flush was planned have woken tasks behind it: once, let
            # these go first, so that what they ask for goes out in the same frame.
            self._frames_behind = False
            self._loop.call_soon(self._flush_now)
        else:
            self._flush_now()

    def _flush_now(self) -> None:
        self._flush_planned = self._frames_behind = False
        if self._closed:
            return
        stale = self._timer_stale or self._stall_look_at == inf
        for queue in self._queues:  # also if nothing can be sent now: later calls end later
            queue.close_turn()
            stale = stale or queue.deadline_min < self._timer_at
        connection = self._connection
        frames: Sequence[ClientFrame] = ()
        if not connection.linked:
            connection.want()
        elif connection.writable and (frames := self._pump()):
            connection.send(frames)
        # Not by a busy client, whose answers bring the next flush: asking every part when it wants
        # to be woken is a tenth of a turn's time.
        if stale or not frames:
            self._set_timer()

    def _set_timer(self) -> None:
        """Have ``_on_timer`` called when the first deadline, retry or keep-alive is due."""
        self._timer_stale = False
        wake_at = min([part.wake_at for part in self._parts])
        if self._stall_look_at == inf and self._waiting():
            self._stall_look_at = self._loop.time() + self._connection.stall_period
        wake_at = min(wake_at, self._stall_look_at)
        # A timer that is early does no harm: it is set anew when it fires. So the flushes of a
        # busy client seldom touch it.
        if wake_at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake_at
        earliest = self._loop.time() + DEADLINE_RESOLUTION_S
        self._timer = self._loop.call_at(max(wake_at, earliest), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at, self._timer_stale = None, inf, True
        if self._loop.time() >= self._stall_look_at:
            self._stall_look_at = inf
            if self._clogged():
                self._connection.give_up(UnavailableError("it answered nothing for too long"))
            self._connection.look_for_stall(waiting=self._waiting())
        trouble = self._connection.trouble()
        for part in self._parts:
            part.expire(trouble)
        self._flush_now()

    def _waiting(self) -> bool:
        """Whether an answer is owed to us on the present link."""
        return any(part.in_flight for part in self._parts)

    def _wanted(self) -> bool:
        """Whether a connection is worth having."""
        return any(part.waiting for part in self._parts)

    # --- from the connection -------------------------------------------------------------------

    def on_frame(self, frame: ServerFrame) -> None:
        """Hand a node's answer to whom it belongs."""
        handler = self._handlers.get(type(frame))
        if handler is None:
            self._frames_unexpected += 1
            return
        handler(frame)
        if frame.__class__ is not SubmitReply and frame.__class__ is not QueryReply:
            self._timer_stale = True
        # Behind the tasks that were just woken, so in time for their next calls.
        if self._flush_planned:
            self._frames_behind = True
        else:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def on_routed(self) -> None:
        """There is a link, or it may be written to again, or it now leads."""
        self._flush_now()

    # --- the end -------------------------------------------------------------------------------

    async def _closed_elsewhere(self) -> bool:
        """Whether somebody else closes it already; then wait until that is done."""
        if self._closing:
            await asyncio.wait([self._runner])
            return True
        self._closing = True
        return False

    def _shut(self, error: QuorateError) -> None:
        self._closing = self._closed = True
        for part in self._parts:
            part.fail_all(error)
        if self._timer is not None:
            self._timer.cancel()
        self._runner.cancel()
        self._connection.close()

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        if not runner.cancelled() and (error := runner.exception()) is not None:
            _logger.error("the client's connection task failed", exc_info=error)
            self._shut(ClosedError(f"the client failed: {error!r}"))
