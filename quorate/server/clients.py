"""Clients of a node: over a socket, or in the same process. Frames in, frames out.

A connection's answers go out in whatever order they come to be; each names its request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from quorate.base.crdt_frames import CRDT_WATCH, CrdtRead, CrdtWrite
from quorate.base.frames import (
    ROLE_CLIENT,
    UNDECODABLE,
    WIRE_VERSION,
    AdminFailed,
    AdminReply,
    AdminRequest,
    ClientFrame,
    Happened,
    Hello,
    LeaderInfo,
    MemberInfo,
    Query,
    QueryFailed,
    Refused,
    ServerFrame,
    Submit,
    SubmitFailed,
    Unwatch,
    Watch,
    WatchEnded,
    Watching,
    Welcome,
    encode_frame,
)
from quorate.base.limits import FRAME_BYTES_MAX, MIB
from quorate.consensus.membership import Membership
from quorate.errors import (
    BadCommandError,
    ClosedError,
    LimitExceededError,
    OverloadedError,
    QuorateError,
    UnavailableError,
    WireFormatError,
)
from quorate.replication.converging.service import Converging, crdt_failed
from quorate.replication.converging.watching import CrdtFeed
from quorate.replication.feeds import Feed, FeedSink
from quorate.replication.replica import Replica
from quorate.server.connection import Connection
from quorate.server.identity import Gate

_logger = logging.getLogger("quorate.clients")

#: Requests of one connection without an answer; beyond it they are refused at once.
OUTSTANDING_MAX = 10_000
#: Watches of one connection.
WATCHES_MAX = 20_000
#: Events that a client does not read; beyond it its watches end, to be begun anew when it does.
UNREAD_EVENTS_BYTES_MAX = 4 * MIB
#: Answers that a client does not read; beyond it the connection is closed.
UNREAD_BYTES_MAX = 2 * FRAME_BYTES_MAX + 32 * MIB
RETRY_AFTER_MS = 100
#: Machines whose commands only leaders propose.
INTERNAL = frozenset({"cluster", "lives", "versions"})

_decode = msgspec.msgpack.Decoder(ClientFrame).decode


class Operations(Protocol):
    """What runs an operator's calls: ``server.admin``."""

    async def call(self, request: AdminRequest) -> object:
        """Returns plain msgpack values. Raises QuorateError."""
        ...


def describe_members(membership: Membership) -> tuple[MemberInfo, ...]:
    """Members with address and role, ascending."""
    addresses = dict(membership.addresses)
    found = []
    for node in membership.members():
        if node in membership.voters:
            role = "voter"
        elif node in membership.learners or node in membership.learners_next:
            role = "learner"
        else:
            role = "leaving"
        found.append(MemberInfo(node, addresses.get(node, ""), role))
    return tuple(found)


class ClientService:
    """All client connections of a node. *process*: a number that no other process of it has."""

    def __init__(
        self,
        gate: Gate,
        replica: Replica,
        converging: Converging,
        operations: Operations,
        process: int,
    ) -> None:
        self.gate = gate
        self.replica = replica
        self.converging = converging
        self.operations = operations
        self._process = process
        self._connections: dict[ClientConnection, None] = {}
        self._stopped = False
        self._told: LeaderInfo | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[Connection] = []  # with answers that wait for the flush
        replica.on_answered(self.flush)

    def __len__(self) -> int:
        return len(self._connections)

    def leader_info(self) -> LeaderInfo:
        """What this node believes of the cluster."""
        state = self.replica.core.state
        return LeaderInfo(state.leader, state.term, describe_members(state.membership))

    def welcome(self) -> Welcome:
        """The answer to a good hello."""
        identity, info = self.gate.identity, self.leader_info()
        return Welcome(
            WIRE_VERSION,
            identity.cluster,
            identity.node,
            identity.incarnation,
            info.leader,
            info.term,
            info.members,
            self.replica.machines.registry.code_versions(),
            self._process,
        )

    def tell_all(self) -> None:
        """Push news of leader, term or members to every client."""
        info = self.leader_info()
        if info == self._told:
            return
        self._told = info
        for connection in list(self._connections):
            connection.push(info)

    def flush_soon(self, connection: Connection) -> None:
        """*connection* has answers to send in this turn, or as soon as those of an entry are all
        there: one write for each connection, and one callback for all of them."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(connection)

    def flush(self) -> None:
        """Send all answers now."""
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()

    def accept(self, connection: Connection) -> None:
        """Serve a TCP connection whose hello was accepted and not yet answered."""
        _TcpClient(self, connection)

    def connect(
        self,
        on_frame: Callable[[ServerFrame], None],
        on_lost: Callable[[QuorateError | None], None],
    ) -> LocalClient:
        """An in-process connection (``client.endpoints.LocalServer``).

        Raises:
            ClosedError: the node is stopping.
        """
        if self._stopped:
            raise ClosedError("the node of this process has been stopped")
        return LocalClient(self, on_frame, on_lost)

    async def finish(self, timeout_s: float) -> None:
        """Wait until what is under way is answered, at most *timeout_s*."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while any(each.outstanding for each in self._connections):
            if loop.time() > end_s:
                return
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """Close all connections, once what was answered has left."""
        self._stopped = True
        for connection in list(self._connections):
            connection.shut()
        self._connections.clear()

    def add(self, connection: ClientConnection) -> None:
        """Called by a connection that begins."""
        self._connections[connection] = None

    def discard(self, connection: ClientConnection) -> None:
        """Called by a connection that ends."""
        self._connections.pop(connection, None)


class ClientConnection:
    """What both kinds of connection share: requests in, answers through ``push``."""

    def __init__(self, service: ClientService) -> None:
        self._service = service
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._feeds: dict[int, Feed | CrdtFeed | None] = {}
        self.outstanding = 0
        service.add(self)

    def push(self, frame: ServerFrame) -> None:
        """Send a frame; dropped if the client is gone."""
        raise NotImplementedError

    def takes_events(self) -> bool:
        """Whether there is room for more events."""
        raise NotImplementedError

    def shut(self) -> None:
        """The node stops: close from this side."""
        raise NotImplementedError

    def handle(self, frame: ClientFrame) -> None:
        """One request.

        Raises:
            WireFormatError: a second hello.
        """
        kind = frame.__class__
        if kind is Submit:
            self._submit(frame)  # type: ignore[arg-type]  # the class was just compared
        elif kind is Query:
            self._query(frame)  # type: ignore[arg-type]
        elif kind is AdminRequest:
            self._start(frame)  # type: ignore[arg-type]
        elif kind is Watch:
            self._watch(frame)  # type: ignore[arg-type]
        elif kind is Unwatch:
            self._unwatch(frame.id)  # type: ignore[union-attr]
        elif kind is CrdtWrite:
            self._write_crdt(frame)  # type: ignore[arg-type]
        elif kind is CrdtRead:
            self._read_crdt(frame)  # type: ignore[arg-type]
        else:
            raise WireFormatError("a connection says hello once")

    def _answer(self, frame: ServerFrame) -> None:
        self.outstanding -= 1
        self.push(frame)

    def _submit(self, submit: Submit) -> None:
        try:
            self._check_outstanding()
            for run in submit.runs:
                if run.machine in INTERNAL:
                    raise BadCommandError(f"machine {run.machine} takes commands of nodes only")
            self._service.replica.submit(submit, self._answer)
            self.outstanding += 1
        except QuorateError as error:
            retry_ms = getattr(error, "retry_after_ms", 0)
            self.push(SubmitFailed(submit.sequence, error.code, str(error), retry_ms))

    def _query(self, query: Query) -> None:
        self.outstanding += 1  # before: a local read is answered at once
        try:
            self._check_outstanding()
            self._service.replica.query(query, self._answer)
        except QuorateError as error:
            retry_ms = getattr(error, "retry_after_ms", 0)
            self._answer(QueryFailed(query.id, error.code, str(error), retry_ms))

    def _write_crdt(self, frame: CrdtWrite) -> None:
        self.outstanding += 1
        try:
            self._check_outstanding()
            self._service.converging.write(frame, self._answer)
        except QuorateError as error:
            self._answer(crdt_failed(frame.sequence, error, write=True))

    def _read_crdt(self, frame: CrdtRead) -> None:
        self.outstanding += 1  # before: it may be answered at once
        try:
            self._check_outstanding()
            self._service.converging.read(frame, self._answer)
        except QuorateError as error:
            self._answer(crdt_failed(frame.id, error, write=False))

    def _watch(self, watch: Watch) -> None:
        replica = self._service.replica
        try:
            if watch.id in self._feeds:
                raise WireFormatError(f"there is a watch {watch.id} on this connection already")
            if len(self._feeds) >= WATCHES_MAX:
                raise OverloadedError(f"this connection has {WATCHES_MAX} watches already")
            self._feeds[watch.id] = None
            feed: Feed | CrdtFeed | None
            if watch.machine == CRDT_WATCH:
                feed = self._service.converging.watchers.open(watch, self._sink_of(watch.id))
            elif not replica.ready:
                raise UnavailableError("this node is stopping, or loads a snapshot; ask another")
            else:
                feed = replica.feeds.open(watch, replica.applied, self._sink_of(watch.id))
            if watch.id in self._feeds:
                self._feeds[watch.id] = feed
        except QuorateError as error:
            self._feeds.pop(watch.id, None)
            retry_ms = getattr(error, "retry_after_ms", 0)
            self.push(WatchEnded(watch.id, error.code, str(error), retry_ms))

    def _sink_of(self, watch: int) -> FeedSink:
        def sink(frame: Watching | Happened | WatchEnded) -> bool:
            if frame.__class__ is WatchEnded:
                self._feeds.pop(watch, None)
            elif not self.takes_events():
                return False
            self.push(frame)
            return True

        return sink

    def _unwatch(self, watch: int) -> None:
        feed = self._feeds.pop(watch, None)
        if isinstance(feed, CrdtFeed):
            self._service.converging.watchers.close(feed)
        elif feed is not None:
            self._service.replica.feeds.close(feed)

    def _check_outstanding(self) -> None:
        if self.outstanding >= OUTSTANDING_MAX:
            raise OverloadedError(
                f"{self.outstanding} requests of this connection wait for an answer; send less at "
                "once",
                RETRY_AFTER_MS,
            )

    def _start(self, request: AdminRequest) -> None:
        self.outstanding += 1
        task = asyncio.get_running_loop().create_task(self._operate(request))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _operate(self, request: AdminRequest) -> None:
        try:
            self._check_outstanding()
            result = await self._service.operations.call(request)
        except QuorateError as error:
            retry_ms = getattr(error, "retry_after_ms", 0)
            self._answer(AdminFailed(request.id, error.code, str(error), retry_ms))
        else:
            self._answer(AdminReply(request.id, result))

    def _ended(self) -> None:
        self._service.discard(self)
        for watch in list(self._feeds):
            self._unwatch(watch)
        for task in list(self._tasks):
            task.cancel()


class _TcpClient(ClientConnection):
    def __init__(self, service: ClientService, connection: Connection) -> None:
        super().__init__(service)
        self._connection = connection
        connection.accepted()
        connection.on_bodies = self._on_bodies
        connection.on_closed = self._on_closed
        connection.on_writable = connection.resume_reading
        self.push(service.welcome())

    def push(self, frame: ServerFrame) -> None:
        connection = self._connection
        if not connection.open:
            return
        try:
            encoded = encode_frame(frame)
        except LimitExceededError as error:
            connection.abort(f"an answer is too large: {error}")
            return
        if connection.queue(encoded):
            self._service.flush_soon(connection)
        if not connection.writable:
            connection.pause_reading()  # no new requests before the answers to the old are read
            if connection.queued_bytes > UNREAD_BYTES_MAX:
                connection.abort("the client does not read its answers")

    def takes_events(self) -> bool:
        return self._connection.queued_bytes <= UNREAD_EVENTS_BYTES_MAX

    def shut(self) -> None:
        self._connection.close()
        self._ended()

    def _on_bodies(self, bodies: list[bytes]) -> None:
        for body in bodies:
            try:
                frame = _decode(body)
            except UNDECODABLE as error:
                raise WireFormatError(f"what came is not a client's frame: {error}") from error
            self.handle(frame)

    def _on_closed(self, reason: str) -> None:
        _logger.debug("client %s left: %s", self._connection.peer, reason)
        self._ended()


class LocalClient(ClientConnection):
    """An in-process connection; frames are handed over as they are, in a later loop turn."""

    def __init__(
        self,
        service: ClientService,
        on_frame: Callable[[ServerFrame], None],
        on_lost: Callable[[QuorateError | None], None],
    ) -> None:
        super().__init__(service)
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._out: list[ServerFrame] = []
        self._closed = False
        self._greeted = False

    def push(self, frame: ServerFrame) -> None:
        """See ``ClientConnection``."""
        if self._closed or not self._greeted:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)

    def takes_events(self) -> bool:
        """See ``ClientConnection``: what is pushed is taken in the next turn."""
        return True

    def _flush(self) -> None:
        out, self._out = self._out, []
        for frame in out:
            if not self._closed:
                self._on_frame(frame)

    def receive(self, frame: ClientFrame) -> None:
        """A frame of the client; never raises."""
        if self._closed:
            return
        try:
            if not self._greeted:
                self._greet(frame)
            else:
                self.handle(frame)
        except QuorateError as error:
            self._greeted = True
            self.push(Refused(error.code, str(error)))

    def _greet(self, frame: ClientFrame) -> None:
        if not isinstance(frame, Hello) or frame.role != ROLE_CLIENT:
            raise WireFormatError("a connection begins with a client's hello")
        self._service.gate.check(frame)
        self._greeted = True
        self.push(self._service.welcome())

    def close(self) -> None:
        """The client leaves; nothing is called back any more."""
        self._closed = True
        self._ended()

    def shut(self) -> None:
        """See ``ClientConnection``: what was answered is delivered first."""
        if not self._closed:
            self._flush()
            self._closed = True
            self._ended()
            self._loop.call_soon(self._on_lost, ClosedError("the node of this process stopped"))
