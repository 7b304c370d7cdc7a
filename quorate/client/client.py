"""The client below handles of the log: one session, and a connection that follows the leader."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from quorate.base.frames import (
    AdminFailed,
    AdminReply,
    ClientFrame,
    Happened,
    QueryFailed,
    QueryReply,
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
from quorate.client.connection import STALL_STRIKES, Connection, Dials
from quorate.client.endpoints import Endpoint
from quorate.client.levels import LINEARIZABLE, Receipt
from quorate.client.querier import Querier
from quorate.client.routing import Routing
from quorate.client.session import Session
from quorate.client.settings import (
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S_DEFAULT,
    DEADLINE_RESOLUTION_S,
    STALL_TIMEOUT_S_DEFAULT,
    check_timeout,
)
from quorate.client.submitter import REROUTED_CODES, Submitter
from quorate.client.turns import Turns
from quorate.client.watching import Watches
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    NotLeaderError,
    QuorateError,
)

Submit = Callable[..., AnyFuture]  #: see ``SegmentQueue.add``


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
    crdts_at: int = 0  #: the node that calls for CRDT data go to; 0: none, or there were none
    crdt_frames_unanswered: int = 0
    crdt_frames_resent: int = 0


class Client(Turns):
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
        super().__init__()
        loop = self._loop
        self._follow_leader = follow_leader
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
        self._handlers = {
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
        connection = Connection(
            Routing(endpoints, random or Random(), cluster, learns=follow_leader or aside),  # noqa: S311
            dials or Dialer(),
            self,
            connect_timeout=check_timeout(connect_timeout),
            stall_timeout=check_timeout(stall_timeout),
            wanted=self._wanted,
            follow_leader=follow_leader,
            aside=aside,
        )
        self._begin(connection, "quorate-client")

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

    @property
    def seen(self) -> int:
        """The highest log index that any answer has named."""
        return max(self._submitter.seen, self._querier.seen, self._local_querier.seen)

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
        if await self._closed_elsewhere():
            return
        try:
            self._submitter.queue.fail_all(ClosedError("the handle was closed"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._end_session()
        finally:
            self._shut(ClosedError("the handle was closed"))
            await asyncio.wait([self._runner])

    async def _end_session(self) -> None:
        session = self._submitter.session
        asked = False
        while session.id != 0 and self._connection.leads:
            if not asked and (frames := self._submitter.close_session()):
                self._connection.send(frames)
                asked = True
            await asyncio.sleep(DEADLINE_RESOLUTION_S)

    # --- the turn ------------------------------------------------------------------------------

    def _pump(self) -> list[ClientFrame]:
        frames: list[ClientFrame] = []
        leads = self._connection.leads
        if leads:
            frames += self._submitter.pump()
        if leads or not self._follow_leader:
            frames += self._querier.pump()
            frames += self.watches.pump()
        frames += self._local_querier.pump()
        frames += self._calls.pump(to_leader=leads or not self._follow_leader)
        return frames

    def _clogged(self) -> bool:
        stall_s = STALL_STRIKES * self._connection.stall_period
        return self._submitter.clogged or self._submitter.is_owed(stall_s)

    def _wanted(self) -> bool:
        """A connection is worth having also if only a session is to be kept."""
        return self._submitter.session.id != 0 or super()._wanted()

    # --- from the connection -------------------------------------------------------------------

    def on_unlinked(self, error: QuorateError) -> None:
        """See ``Turns``."""
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
