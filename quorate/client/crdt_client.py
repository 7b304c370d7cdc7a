"""The client below handles of CRDT data: a connection to any node, kept for as long as it lives.

Which node it is matters: what was written there is seen there, and a node that is cut off from all
others goes on taking writes from those who stay with it. So a link is left only when it is lost, or
when the node refuses something that another one does better. What the lost node may have done is
asked of it alone, over a second connection (*debt*), while calls that are new go on elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from random import Random

import msgspec

from quorate.base.crdt_frames import CLIENT_BYTES, CrdtAnswer, CrdtFailed, CrdtWritten, Question
from quorate.base.crdt_operations import Remove, Update
from quorate.base.frames import ClientFrame, Happened, ServerFrame, WatchEnded, Watching
from quorate.base.limits import CRDT_OPERATIONS_MAX, CRDT_QUESTIONS_MAX
from quorate.client.channel import Dialer
from quorate.client.client import ClientStatistics
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.connection import Connection, Dials
from quorate.client.crdt_reader import CrdtReader
from quorate.client.crdt_writer import NOBODY, Holder, NodeWrites, Terms, Writes
from quorate.client.endpoints import Endpoint
from quorate.client.levels import Receipt, Seen
from quorate.client.routing import Routing
from quorate.client.settings import (
    CONNECT_TIMEOUT_S_DEFAULT,
    STALL_TIMEOUT_S_DEFAULT,
    check_timeout,
)
from quorate.client.turns import Turns
from quorate.client.watching import Watches
from quorate.errors import ClosedError, QuorateError, UnavailableError

#: Only for encoding: one for all calls of a kind, so that they share frames.
_OPERATIONS = MachineCodec("crdt operations")
_QUESTIONS = MachineCodec("crdt questions")


def holder_of(connection: Connection) -> Holder:
    """What the link ends at."""
    return Holder(connection.node, connection.incarnation)


class CrdtClient(Turns):
    """One client of the second tier, with at most one link beside debts. Belongs to the running
    loop; not thread-safe. The arguments are those of ``Client``; *learns*: whether members that
    were not named may be tried, too.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        dials: Dials | None = None,
        cluster: str = "",
        connect_timeout: float = CONNECT_TIMEOUT_S_DEFAULT,
        stall_timeout: float = STALL_TIMEOUT_S_DEFAULT,
        learns: bool = True,
        random: Random | None = None,
    ) -> None:
        super().__init__()
        # A node in this process is the one to talk to: it is as near as its own disk.
        local = tuple(place for place in endpoints if place.local is not None)
        self._dials = dials or Dialer()
        self._random = random or Random()  # noqa: S311  spreads the backoff
        self._connect_timeout = check_timeout(connect_timeout)
        self._stall_timeout = check_timeout(stall_timeout)
        client = secrets.token_bytes(CLIENT_BYTES) if random is None else random.randbytes(16)
        objects, now = bool(local), self._loop.time
        next_id = itertools.count(1).__next__
        self._writes = Writes(
            self._queue(batch_commands_max=CRDT_OPERATIONS_MAX),
            client,
            itertools.count(1).__next__,
            now,
            objects=objects,
        )
        self._reader = CrdtReader(
            self._queue(batch_commands_max=CRDT_QUESTIONS_MAX), now, next_id, objects=objects
        )
        #: What is watched; always at the node that reads are answered by.
        self.watches = Watches(now, self._wake, next_id)
        #: The session of handles that belong to no view: what its calls have seen of CRDT data.
        self.seen = Seen(follows_log=False)
        self._queues = (self._writes.queue, self._reader.queue)
        self._parts = (self._writes, self._reader, self.watches)
        self._debts: dict[Holder, _Debt] = {}
        self._ending: dict[asyncio.Task[None], None] = {}  # connections of debts that were paid
        self._handlers = {
            CrdtWritten: self._written,
            CrdtAnswer: self._answered,
            CrdtFailed: self._failed,
            Watching: self.watches.on_watching,
            Happened: self.watches.on_happened,
            WatchEnded: self.watches.on_ended,
        }
        connection = self._connect(local or endpoints, cluster, learns=learns and not local)
        self._begin(connection, "quorate-crdt-client")

    def _connect(
        self,
        endpoints: Sequence[Endpoint],
        cluster: str,
        *,
        learns: bool,
        debt: _Debt | None = None,
    ) -> Connection:
        return Connection(
            Routing(endpoints, self._random, cluster, learns=learns),
            self._dials,
            debt or self,
            connect_timeout=self._connect_timeout,
            stall_timeout=self._stall_timeout,
            wanted=self._wanted if debt is None else debt.wanted,
            follow_leader=False,
        )

    # --- calls ---------------------------------------------------------------------------------

    def write(
        self, operation: Update | Remove, timeout: float, terms: Terms, receipt: Receipt | None
    ) -> AnyFuture:
        """Plan one operation; the future ends with None. *timeout*: seconds, checked.

        Raises:
            InvalidArgumentError, LimitExceededError: the operation cannot be sent.
            OverloadedError: too many calls wait already.
            ClosedError: the handle was closed.
        """
        return self._writes.queue.add(_OPERATIONS, operation, timeout, terms, receipt)

    def read(
        self, question: Question, timeout: float, terms: Terms, receipt: Receipt | None
    ) -> AnyFuture:
        """Plan one question; the future ends with the answer. Otherwise as ``write``."""
        return self._reader.queue.add(_QUESTIONS, question, timeout, terms, receipt)

    def add_statistics(self, told: ClientStatistics) -> ClientStatistics:
        """*told*, with what this client has to say."""
        return msgspec.structs.replace(
            told,
            crdts_at=self.node,
            crdt_frames_unanswered=self._writes.unanswered_count + self._reader.unanswered_count,
            crdt_frames_resent=self._writes.resent_count,
        )

    async def close(self) -> None:
        """End the connections. Calls not yet sent end with ``ClosedError``, writes without an
        answer with ``OutcomeUnknownError``."""
        if await self._closed_elsewhere():
            return
        self._shut(ClosedError("the handle was closed"))
        await asyncio.wait([self._runner, *self._ending])

    def _shut(self, error: QuorateError) -> None:
        super()._shut(error)
        for holder in list(self._debts):
            self._settle(holder)

    # --- the turn ------------------------------------------------------------------------------

    def _pump(self) -> list[ClientFrame]:
        frames: list[ClientFrame] = [*self._writes.pump(), *self._reader.pump()]
        frames += self.watches.pump()
        return frames

    def _clogged(self) -> bool:
        return self._writes.clogged

    def _on_timer(self) -> None:
        super()._on_timer()
        for holder, debt in list(self._debts.items()):
            if self._writes.of(holder):
                debt.pump()
            else:
                self._settle(holder)

    def on_routed(self) -> None:
        """See ``Turns``; what other nodes owe is asked of them."""
        holder = holder_of(self._connection)
        self._writes.linked(holder, self._connection.process)
        if holder in self._debts:
            self._settle(holder)
        for other in self._writes.owing:
            places = self._connection.routing.towards(other.node)
            if other not in self._debts and places and not self._closing:
                self._debts[other] = _Debt(self, self._writes.of(other), places)
        super().on_routed()

    def on_unlinked(self, error: QuorateError) -> None:
        """See ``Turns``."""
        self._writes.of(self._writes.current).disconnected(str(error))
        self._writes.linked(NOBODY)
        self._reader.disconnected()
        self.watches.disconnected()

    # --- debts ---------------------------------------------------------------------------------

    def debt_connection(self, debt: _Debt, places: Sequence[Endpoint]) -> Connection:
        """For ``_Debt``."""
        return self._connect(places, self.cluster, learns=False, debt=debt)

    def debt_paid(self, holder: Holder, frame: ServerFrame) -> None:
        """For ``_Debt``: an answer came over its connection."""
        if isinstance(frame, CrdtWritten):
            self._writes.on_written(holder, frame, self.cluster)
        elif isinstance(frame, CrdtFailed) and frame.write:
            self._writes.on_failed(holder, frame)
            self._wake_quietly()
        if holder in self._debts and not self._writes.of(holder):
            self._settle(holder)

    def _wake_quietly(self) -> None:
        if not self._closing:
            self._wake()

    def _settle(self, holder: Holder) -> None:
        debt = self._debts.pop(holder)
        debt.connection.close()
        debt.runner.cancel()
        self._ending[debt.runner] = None
        debt.runner.add_done_callback(lambda done: self._ending.pop(done, None))

    # --- answers -------------------------------------------------------------------------------

    def _written(self, written: CrdtWritten) -> None:
        self._writes.on_written(self._writes.current, written, self.cluster)

    def _answered(self, answer: CrdtAnswer) -> None:
        self._reader.on_answer(answer, self.cluster)

    def _failed(self, failed: CrdtFailed) -> None:
        if failed.write:
            elsewhere = self._writes.on_failed(self._writes.current, failed)
        else:
            elsewhere = self._reader.on_refused(failed)
        if elsewhere:
            self._connection.another()


class _Debt:
    """A connection of its own to a node that has not answered everything."""

    def __init__(self, client: CrdtClient, writes: NodeWrites, places: Sequence[Endpoint]) -> None:
        self._client = client
        self._writes = writes
        self.connection = client.debt_connection(self, places)
        self.runner = asyncio.get_running_loop().create_task(
            self.connection.run(), name="quorate-crdt-debt"
        )

    def wanted(self) -> bool:
        """Whether the node owes anything."""
        return bool(self._writes)

    def pump(self) -> None:
        """Send what is to be sent again."""
        connection = self.connection
        if connection.linked and connection.writable:
            frames = self._writes.pump(None)
            if frames:
                connection.send(frames)

    def on_frame(self, frame: ServerFrame) -> None:
        self._client.debt_paid(self._writes.holder, frame)

    def on_routed(self) -> None:
        if holder_of(self.connection) != self._writes.holder:
            self.connection.give_up(
                UnavailableError(f"node {self.connection.node} answers there, or it was wiped")
            )
        else:
            self._writes.process = self.connection.process
            self.pump()

    def on_unlinked(self, error: QuorateError) -> None:
        self._writes.disconnected(str(error))
