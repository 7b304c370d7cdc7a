"""The engine below all handles: one loop turn, one flush; one timer; one connection.

A call queues itself and, if it is the turn's first, plans a flush with ``call_soon``; the flush
sends everything that gathered, in one write. A reply completes futures and plans a flush behind
them, so that what the woken tasks ask for next goes out in that same turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from math import inf
from random import Random
from typing import Any

import msgspec

from quorate.base.frames import (
    AdminFailed,
    AdminReply,
    ClientFrame,
    Happened,
    MemberInfo,
    QueryFailed,
    QueryReply,
    ServerFrame,
    SubmitAccepted,
    SubmitFailed,
    SubmitReply,
    WatchEnded,
    Watching,
)
from quorate.base.limits import SESSION_TTL_MS_DEFAULT
from quorate.client.calls import Calls
from quorate.client.channel import Dialer
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.connection import Connection, Dials
from quorate.client.endpoints import Endpoint
from quorate.client.levels import LINEARIZABLE, Receipt
from quorate.client.querier import Querier
from quorate.client.routing import Routing
from quorate.client.segments import SegmentQueue
from quorate.client.session import Session
from quorate.client.settings import (
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S_DEFAULT,
    DEADLINE_RESOLUTION_S,
    QUEUE_BYTES_MAX,
    QUEUE_COMMANDS_MAX,
    STALL_TIMEOUT_S_DEFAULT,
    check_timeout,
)
from quorate.client.submitter import REROUTED_CODES, Submitter
from quorate.client.watching import Watches
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    NotLeaderError,
    QuorateError,
    UnavailableError,
)

Submit = Callable[..., AnyFuture]  #: see ``SegmentQueue.add``

_logger = logging.getLogger(__name__)


class ClientStatistics(msgspec.Struct, frozen=True):
    """Counters of one client, since it was made."""

    session: int  #: id of the present session, 0 if none
    leader: int  #: node id of the leader as known, 0 if none
    term: int
    relayed: bool  #: the leader is reached through another node
    connects: int  #: links made, the first included
    batches_resent: int
    batches_unanswered: int
    queries_unanswered: int
    reads_from: int  #: the connected node, of a handle that reads from any; 0: none, or it does not
    frames_unexpected: int  #: of a kind that a node should not send then


class Client:
    """One client: one session, at most one link. Belongs to the running loop; not thread-safe.

    *connect_timeout*, *stall_timeout*: seconds. *session_ttl_ms*: see ``Session``.
    *follow_leader* False: stay with *endpoints*, for reads and administration only; with *aside*,
    move about the members, and prefer those that do not lead. *random*: for the backoff; a test
    hands in its own.

    Raises:
        InvalidArgumentError: a timeout or the ttl is out of range.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        dials: Dials | None = None,
        cluster: str = "",
        connect_timeout: float = CONNECT_TIMEOUT_S_DEFAULT,
        stall_timeout: float = STALL_TIMEOUT_S_DEFAULT,
        session_ttl_ms: int = SESSION_TTL_MS_DEFAULT,
        name: str = "",
        follow_leader: bool = True,
        aside: bool = False,
        random: Random | None = None,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._follow_leader = follow_leader
        self._flush_planned = self._frames_behind = False
        self._closed = self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._stall_look_at = inf
        self._frames_unexpected = 0
        next_id = itertools.count(1).__next__
        self._submitter = Submitter(self._queue(), Session(session_ttl_ms, name), loop.time)
        self._querier = Querier(
            self._queue(), loop.time, next_id, linearizable=True, moves_on=follow_leader or aside
        )
        self._local_querier = Querier(
            self._queue(), loop.time, next_id, linearizable=False, moves_on=aside
        )
        self._calls = Calls(
            loop.create_future, loop.time, self._wake, next_id, follows_leader=follow_leader
        )
        #: Plan one command; the future ends with its result. See ``SegmentQueue.add`` for the
        #: arguments and errors. Bound, not defined: each layer costs 0.1 us per command.
        self.submit: Submit = self._submitter.queue.add if follow_leader else _refuse_write
        #: Plan one linearizable query, likewise.
        self.ask: Submit = self._querier.queue.add
        #: What is watched.
        self.watches = Watches(loop.time, self._wake, next_id)
        asked = (self._submitter, self._querier, self._local_querier)
        self._queues = [part.queue for part in asked]
        self._parts = (*asked, self._calls, self.watches)
        self._connection = Connection(
            Routing(endpoints, random or Random(), cluster, learns=follow_leader or aside),  # noqa: S311
            dials or Dialer(),
            self,
            connect_timeout=check_timeout(connect_timeout),
            stall_timeout=check_timeout(stall_timeout),
            wanted=self._wanted,
            follow_leader=follow_leader,
            aside=aside,
        )
        self._runner = loop.create_task(self._connection.run(), name="quorate-client")
        self._runner.add_done_callback(self._runner_ended)
        self._handlers: dict[type, Callable[[Any], None]] = {
            SubmitReply: self._submitter.on_reply,
            SubmitAccepted: self._submitter.on_accepted,
            SubmitFailed: self._submit_failed,
            QueryReply: self._query_replied,
            QueryFailed: self._query_failed,
            AdminReply: self._calls.on_reply,
            Watching: self.watches.on_watching,
            Happened: self.watches.on_happened,
            WatchEnded: self.watches.on_ended,
            AdminFailed: self._call_failed,
        }

    def _queue(self) -> SegmentQueue:
        return SegmentQueue(
            self._loop.create_future,
            self._loop.time,
            self._wake,
            commands_max=QUEUE_COMMANDS_MAX,
            bytes_max=QUEUE_BYTES_MAX,
        )

    # --- calls ---------------------------------------------------------------------------------

    def query(
        self,
        codec: MachineCodec,
        query: object,
        timeout: float,
        after: int = LINEARIZABLE,
        receipt: Receipt | None = None,
    ) -> AnyFuture:
        """Plan one query; the future ends with its result. *timeout*: seconds, checked. *after*:
        the index that the state read must have come to.

        Raises:
            InvalidArgumentError, LimitExceededError: the query cannot be sent.
            OverloadedError: too many calls wait already.
            ClosedError: the handle was closed.
        """
        if after == LINEARIZABLE:
            return self._querier.queue.add(codec, query, timeout, 0, receipt)
        return self._local_querier.queue.add(codec, query, timeout, after, receipt)

    def call(self, method: str, arguments: dict[str, Any], timeout: float) -> AnyFuture:
        """Plan one administrative call; otherwise as ``query``."""
        return self._calls.add(method, arguments, timeout)

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
    def seen(self) -> int:
        """The highest log index that any answer has named."""
        return max(self._submitter.seen, self._querier.seen, self._local_querier.seen)

    @property
    def node(self) -> int:
        """The connected node, 0 if there is none."""
        return self._connection.node

    def statistics(self) -> ClientStatistics:
        routing, submitter = self._connection.routing, self._submitter
        return ClientStatistics(
            session=submitter.session.id,
            leader=routing.leader,
            term=routing.term,
            relayed=self._connection.relayed,
            connects=self._connection.reconnect_count,
            batches_resent=submitter.resent_count,
            batches_unanswered=submitter.unanswered_count,
            queries_unanswered=self._querier.unanswered_count
            + self._local_querier.unanswered_count,
            frames_unexpected=self._frames_unexpected,
            reads_from=0,
        )

    async def close(self) -> None:
        """End the session if that is quickly done, then the connection. Calls not yet sent end
        with ``ClosedError``, those without an answer with ``OutcomeUnknownError``."""
        if self._closing:
            await asyncio.wait([self._runner])
            return
        self._closing = True
        try:
            self._submitter.queue.fail_all(ClosedError("the handle was closed"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._end_session()
        finally:
            self._shut(ClosedError("the handle was closed"))
            await asyncio.wait([self._runner])

    def _shut(self, error: QuorateError) -> None:
        self._closing = self._closed = True
        for part in self._parts:
            part.fail_all(error)
        if self._timer is not None:
            self._timer.cancel()
        self._runner.cancel()
        self._connection.close()

    async def _end_session(self) -> None:
        session = self._submitter.session
        asked = False
        while session.id != 0 and self._connection.leads:
            if not asked and (frames := self._submitter.close_session()):
                self._connection.send(frames)
                asked = True
            await asyncio.sleep(DEADLINE_RESOLUTION_S)

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        if not runner.cancelled() and (error := runner.exception()) is not None:
            _logger.error("the client's connection task failed", exc_info=error)
            self._shut(ClosedError(f"the client failed: {error!r}"))

    # --- the turn ------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Something new is queued: flush at the end of this turn, once."""
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
        for queue in self._queues:  # also if nothing can be sent now: later calls end later
            queue.close_turn()
        connection = self._connection
        if connection.linked:
            if connection.writable:
                frames: list[ClientFrame] = []
                leads = connection.leads
                if leads:
                    frames += self._submitter.pump()
                if leads or not self._follow_leader:
                    frames += self._querier.pump()
                    frames += self.watches.pump()
                frames += self._local_querier.pump()
                frames += self._calls.pump(to_leader=leads or not self._follow_leader)
                if frames:
                    connection.send(frames)
        else:
            connection.want()
        self._set_timer()

    def _set_timer(self) -> None:
        """Have ``_on_timer`` called when the first deadline, retry or keep-alive is due."""
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
        self._timer, self._timer_at = None, inf
        if self._loop.time() >= self._stall_look_at:
            self._stall_look_at = inf
            if self._submitter.clogged:
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
        """Whether a connection is worth having: something waits, or a session is to be kept."""
        return self._submitter.session.id != 0 or any(part.waiting for part in self._parts)

    # --- from the connection -------------------------------------------------------------------

    def on_frame(self, frame: ServerFrame) -> None:
        """Hand a node's answer to whom it belongs."""
        handler = self._handlers.get(type(frame))
        if handler is None:
            self._frames_unexpected += 1
            return
        handler(frame)
        # Behind the tasks that were just woken, so in time for their next calls.
        if self._flush_planned:
            self._frames_behind = True
        else:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def on_routed(self) -> None:
        self._flush_now()

    def on_unlinked(self, error: QuorateError) -> None:
        self._submitter.disconnected()
        self._querier.disconnected()
        self._local_querier.disconnected()
        self._calls.disconnected(str(error))
        self.watches.disconnected()

    def _submit_failed(self, failed: SubmitFailed) -> None:
        if self._submitter.on_failed(failed):
            self._connection.denied()

    def _query_replied(self, reply: QueryReply) -> None:
        if not self._querier.on_reply(reply):
            self._local_querier.on_reply(reply)

    def _query_failed(self, failed: QueryFailed) -> None:
        # A refusal of what nobody waits for any more is one all the same: calls may be given up
        # sooner than a node gives up on finding the leader, time after time.
        nobodys = failed.id not in self._querier and failed.id not in self._local_querier
        denied = nobodys and failed.code in REROUTED_CODES
        if denied or self._querier.on_failed(failed) or self._local_querier.on_failed(failed):
            self._connection.denied()

    def _call_failed(self, failed: AdminFailed) -> None:
        if self._calls.on_failed(failed) and failed.code == NotLeaderError.code:
            self._connection.denied()


def _refuse_write(*_call: object) -> AnyFuture:
    raise InvalidArgumentError(
        "this handle stays with one node (follow_leader=False), so it only reads; write through a "
        "handle that follows the leader"
    )
