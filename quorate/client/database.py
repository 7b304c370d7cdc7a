"""``Database``: the one handle, whether the node is in this process or across the network.

``connect`` makes one without touching the network, so it needs neither ``await`` nor a running
loop. ``async with`` opens it and waits until some node has answered; without, the first call opens
it. ``Host`` is how an embedded node hands itself in.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from random import Random
from typing import Any, Final, Literal, Protocol, Self, TypedDict, TypeVar, overload

import msgspec

from quorate.base.declaring import Declaration, Declared
from quorate.base.kv_commands import Compare, Operation
from quorate.base.levels import Level
from quorate.base.limits import SESSION_TTL_MS_DEFAULT
from quorate.base.task_specs import Task
from quorate.client.channel import Dialer
from quorate.client.client import Client, ClientStatistics
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.coordination import Coordination
from quorate.client.crdt_calls import CrdtScope
from quorate.client.crdt_client import CrdtClient
from quorate.client.crdt_maps import Converging
from quorate.client.endpoints import Endpoints, parse_endpoints
from quorate.client.handles import Handle, declared_codec
from quorate.client.kv import Fences, Kv
from quorate.client.levels import LINEARIZABLE, Receipt, Scope, Seen
from quorate.client.machines import Machine, machine_codec
from quorate.client.schedules import Schedules
from quorate.client.session import Session
from quorate.client.settings import (
    CHANGE_TIMEOUT_S_DEFAULT,
    CONNECT_TIMEOUT_S_DEFAULT,
    MACHINES_MAX,
    STALL_TIMEOUT_S_DEFAULT,
    TIMEOUT_S_DEFAULT,
    check_timeout,
)
from quorate.client.tasks import Tasks
from quorate.client.together import Attempt, Committed, commit
from quorate.client.views import View, machine_handle
from quorate.client.watching import Watches
from quorate.client.workflows import Workflows
from quorate.errors import ClosedError, InvalidArgumentError, LimitExceededError

R = TypeVar("R")

Reads = Literal["leader", "any"]

SESSION_TTL_S_DEFAULT: Final = SESSION_TTL_MS_DEFAULT / 1000


class Host(Protocol):
    """A node in this process that the handle starts when it is opened and stops when closed."""

    async def start(self) -> Endpoints: ...
    async def stop(self) -> None: ...


class Database(Coordination, Converging):
    """A handle on a cluster. Belongs to the loop that it is first used on; not thread-safe.

    *endpoints*: None if *host* says them when it has started. *random*: for the backoff; a test
    hands in its own. The rest is explained at ``connect``.

    Raises:
        InvalidArgumentError: an argument has the wrong type or range; nothing was done.
    """

    def __init__(
        self,
        endpoints: Endpoints | None,
        *,
        host: Host | None = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        connect_timeout: float = CONNECT_TIMEOUT_S_DEFAULT,
        stall_timeout: float = STALL_TIMEOUT_S_DEFAULT,
        session_ttl: float = SESSION_TTL_S_DEFAULT,
        cluster: str = "",
        name: str = "",
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        follow_leader: bool = True,
        reads: Reads = "leader",
        random: Random | None = None,
    ) -> None:
        if (endpoints is None) is (host is None):
            raise InvalidArgumentError("a handle needs endpoints or a host, not both")
        self._host = host
        self._endpoints = () if endpoints is None else parse_endpoints(endpoints)
        if not follow_leader and endpoints is not None and len(self._endpoints) != 1:
            raise InvalidArgumentError(
                f"follow_leader=False stays with one node; {len(self._endpoints)} endpoints given"
            )
        if reads not in ("leader", "any") or (reads == "any" and not follow_leader):
            raise InvalidArgumentError(
                f"reads={reads!r}: it is 'leader', or 'any' on a handle that follows the leader"
            )
        self._reads_aside = reads == "any" and host is None
        self._timeout = check_timeout(timeout)
        self._connect_timeout = check_timeout(connect_timeout)
        self._stall_timeout = check_timeout(stall_timeout)
        self._session_ttl_ms = round(check_timeout(session_ttl) * 1000)
        Session(self._session_ttl_ms, name)  # checks both
        self._cluster = cluster
        self._name = name
        self._dialer = Dialer(_as_tls(tls), server_hostname)
        self._follow_leader = follow_leader
        self._random = random
        self._client: Client | None = None
        self._reader: Client | None = None  # with a connection of its own, if reads go to any node
        self._crdts: CrdtClient | None = None  # with a connection of its own, once it is needed
        self._scope = Scope(self)
        self._crdt_scope = CrdtScope(self)
        self._opening = asyncio.Lock()
        self._closed = False
        self._codecs: dict[tuple[str, Any], MachineCodec] = {}
        #: The key-value store.
        self.kv = Kv(self.submit, self.ask, self._scope, self._timeout)
        #: Queues of tasks.
        self.tasks = Tasks(self)
        #: Tasks that wait for others.
        self.workflows = Workflows(self.tasks)
        #: Tasks that are enqueued again and again.
        self.schedules = Schedules(self.tasks)

    # --- life ----------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Start the embedded node if there is one, connect, and wait until a node has answered.
        Harmless when open already: if it fails then, the handle goes on as it was; otherwise it is
        closed. ``async with`` does this and ``close``.

        Raises:
            UnavailableError: no node answered within the handle's timeout, and why.
            RefusedError: every node refused this caller.
            ClosedError: the handle was closed.
        """
        async with self._opening:
            if self._closed:
                raise ClosedError("the handle was closed; make another one")
            in_use = self._client is not None
            try:
                if self._client is None and self._host is not None:
                    self._endpoints = parse_endpoints(await self._host.start())
                    self._begin()
                await self._running().first_welcome(self._timeout)
            except BaseException:
                if not in_use:
                    await self.close()
                raise
        return self

    async def close(self) -> None:
        """Give back what is held (locks, leases), end the session and the connection, and stop the
        embedded node if there is one. Calls not yet sent end with ``ClosedError``, those under way
        with ``OutcomeUnknownError``."""
        self._closed = True
        try:
            await self._end_coordination()
            for client in (self._crdts, self._reader, self._client):
                if client is not None:
                    await client.close()
        finally:
            host, self._host = self._host, None
            if host is not None:
                await host.stop()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def _begin(self) -> None:
        self._client = client = self._make_client(self._follow_leader)
        if self._reads_aside:
            self._reader = self._make_client(follow_leader=False, aside=True)
        self.kv.bind(client.submit, (self._reader or client).ask)

    def _make_client(self, follow_leader: bool, *, aside: bool = False) -> Client:  # noqa: FBT001
        return Client(
            self._endpoints,
            dials=self._dialer,
            cluster=self._cluster,
            connect_timeout=self._connect_timeout,
            stall_timeout=self._stall_timeout,
            session_ttl_ms=self._session_ttl_ms,
            name=self._name,
            follow_leader=follow_leader,
            aside=aside,
            random=self._random,
        )

    def _running(self) -> Client:
        if self._client is None:
            if self._closed:
                raise ClosedError("the handle was closed; make another one")
            if self._host is not None:
                raise ClosedError("the node is not started: use `async with`, or await open()")
            self._begin()
        client = self._client
        if client is None:
            raise ClosedError("the handle was closed; make another one")
        return client

    def twin(self) -> Database | None:
        """Another handle on the same cluster, with the same settings and a connection of its own:
        for another thread, whose loop it then belongs to. Not open yet. None if the cluster is
        reached within this process, through a node that belongs to this loop."""
        if self._host is not None or any(each.local is not None for each in self._endpoints):
            return None
        made = Database(
            tuple(map(str, self._endpoints)),
            timeout=self._timeout,
            connect_timeout=self._connect_timeout,
            stall_timeout=self._stall_timeout,
            session_ttl=self._session_ttl_ms / 1000,
            cluster=self._cluster,
            name=self._name,
            follow_leader=self._follow_leader,
        )
        made._dialer = self._dialer
        return made

    # --- machines ------------------------------------------------------------------------------

    @overload
    def machine(
        self, name: Declared | type[Declared], *, timeout: float | None = None
    ) -> Handle: ...
    @overload
    def machine(self, name: str) -> Machine[Any]: ...
    @overload
    def machine(self, name: str, result_type: type[R]) -> Machine[R]: ...
    @overload
    def machine(self, name: str, result_type: Any) -> Machine[Any]: ...  # noqa: ANN401
    def machine(
        self, name: Any, result_type: Any = None, *, timeout: float | None = None
    ) -> Machine[Any] | Handle:
        """A handle of the machine registered as *name* on the nodes.

        *name* may be the machine's class, or an object of it, if its methods are marked as commands
        and queries: then the handle has these as methods of its own. *timeout*: of its calls,
        unless they say otherwise; None: the handle's.

        *result_type*: a tagged, array-like struct, or a union of such, that its commands and
        queries return. Without, results come as plain msgpack values, ``[tag, field, ...]``.

        Raises:
            InvalidArgumentError: that cannot be a name, or msgspec cannot decode the type, or the
                class declares no commands.
            LimitExceededError: more than ``MACHINES_MAX`` different ones were asked for.
        """
        return machine_handle(self, self._scope, name, result_type, timeout)

    def at(self, level: Level, token: str = "") -> View:
        """A view of this handle whose calls are at *level*, and which is a session of its own: its
        ``causal`` reads see what its calls have seen, and what the bearer of *token* had.

        Raises:
            InvalidArgumentError: there is no such level.
            TokenError: *token* is malformed, or of another cluster. If no node has answered yet,
                the latter is found by the first call.
        """
        view = View(self, level, Seen())
        view.merge(token)
        return view

    # --- for typed handles and views -------------------------------------------------------------

    @property
    def timeout(self) -> float:
        """Of calls that do not name one, in seconds."""
        return self._timeout

    @property
    def cluster(self) -> str:
        """Id of the cluster; "" before any node has answered."""
        told = [client.cluster for client in (self._client, self._crdts) if client is not None]
        return next(filter(None, told), self._cluster)

    @property
    def seen(self) -> int:
        """The highest log index that any answer on this handle has named."""
        clients = (self._client, self._reader)
        return max((client.seen for client in clients if client is not None), default=0)

    async def welcomed(self, timeout: float) -> None:
        """As ``Client.first_welcome``."""
        await self._running().first_welcome(timeout)

    def codec(self, name: str, result_type: Any) -> MachineCodec:  # noqa: ANN401
        """What speaks to machine *name*. *result_type*: as for ``machine``, or a declaration."""
        codec = self._codecs.get((name, result_type))
        if codec is None:
            declared = isinstance(result_type, Declaration)
            codec = (declared_codec if declared else machine_codec)(name, result_type)
            if len(self._codecs) >= MACHINES_MAX:
                raise LimitExceededError(f"one handle speaks to up to {MACHINES_MAX} machines")
            self._codecs[name, result_type] = codec
        return codec

    def submit(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        level: int = 0,
        receipt: Receipt | None = None,
        /,
    ) -> AnyFuture:
        """Plan one command. See ``Client.submit``."""
        return self._running().submit(codec, item, timeout, level, receipt)

    def ask(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        after: int = LINEARIZABLE,
        receipt: Receipt | None = None,
        /,
    ) -> AnyFuture:
        """Plan one query. See ``Client.query``."""
        client = self._running()
        return (self._reader or client).query(codec, item, timeout, after, receipt)

    @property
    def converging(self) -> CrdtClient:
        """What calls for CRDT data go through; for their handles."""
        crdts = self._crdts
        if crdts is None:
            self._running()  # raises when there is no node to talk to
            crdts = self._crdts = CrdtClient(
                self._endpoints,
                dials=self._dialer,
                cluster=self._cluster,
                connect_timeout=self._connect_timeout,
                stall_timeout=self._stall_timeout,
                learns=self._follow_leader,
                random=self._random,
            )
        return crdts

    @property
    def watches(self) -> Watches:
        """What this handle watches; for typed handles. See ``Watches.open``."""
        return self._running().watches

    # --- administration ------------------------------------------------------------------------

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """How the connected node stands: role, term, indexes, members, sizes."""
        return await self._call("status", {}, timeout, self._timeout)

    async def members(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The members as the connected node knows them: ``{"members": [...], "joint": bool}``."""
        return await self._call("members.list", {}, timeout, self._timeout)

    async def add_member(
        self, node: int, address: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Let node *node* in as a learner; it is found at *address*, "host:port". Returns, as the
        other changes do, the members after the change.

        Raises:
            MembershipError: the change was refused, and by which guard.
        """
        return await self._change("members.add", {"node": node, "address": address}, timeout)

    async def promote(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """Make a learner a voter, once it has caught up."""
        return await self._change("members.promote", {"node": node}, timeout)

    async def demote(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """Make a voter a learner."""
        return await self._change("members.demote", {"node": node}, timeout)

    async def remove_member(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """Remove a member; its number is never used again."""
        return await self._change("members.remove", {"node": node}, timeout)

    async def set_address(
        self, node: int, address: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Tell the cluster that a member is now found at *address*."""
        return await self._change("members.address", {"node": node, "address": address}, timeout)

    async def transfer_leader(
        self, target: int = 0, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Hand leadership to node *target*, or with 0 to the best one: ``{"leader": node}``.

        Raises:
            TransferError: it could not be handed over in time.
        """
        source = 0 if target else (await self.status(timeout=timeout)).get("leader", 0)
        return await self._change("leader.transfer", {"target": target, "source": source}, timeout)

    async def checkpoint(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Have the leader (or the one node that this handle stays with) write its state to disk
        now: ``{"index": log index}``."""
        return await self._change("checkpoint", {}, timeout)

    async def together(
        self,
        compare: Iterable[Compare] = (),
        *,
        then: Iterable[Operation] = (),
        tasks: Iterable[Task] = (),
        completes: Attempt | None = None,
        fence: Fences = None,
        timeout: float | None = None,
    ) -> Committed:
        """If all of *compare* hold, do *then* and enqueue *tasks*: all of it in one transaction, or
        none. Conditions and operations come from ``quorate.ops``, tasks from ``db.tasks.task``.
        *completes*: an attempt at a task, which ends well with it.

        Raises:
            NotTogetherError: a condition does not hold, or the attempt is not the present one;
                nothing was done.
            QueueFullError: a queue has no room for its tasks; nothing was done.
            FencedError: one of *fence* is not the present grant; nothing was done.
        """
        return await commit(
            self,
            compare,
            then=then,
            tasks=tasks,
            completes=completes,
            fence=fence,
            timeout=timeout,
        )

    async def upgrade(self, machine: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Have *machine* act as the highest version that the code of all members has:
        ``{"machine", "version", "before", "behind"}``, the last by member with older code.

        Raises:
            UpgradeError: a member's code, or its silence, stands in the way; nothing happened.
        """
        return await self._change("machines.upgrade", {"name": machine}, timeout)

    async def crdt_digest(self, *, timeout: float | None = None) -> dict[str, Any]:
        """A digest of all CRDT data of the connected node, made by reading it: ``{"digest",
        "generation", "folds", "retired", "frontier"}``. Nodes that hold the same have the same.

        Raises:
            UnavailableError: the data changes faster than it can be read.
        """
        return await self._call("crdt.digest", {}, timeout, self._timeout)

    def statistics(self) -> ClientStatistics:
        """Counters of this handle."""
        told = self._running().statistics()
        if self._crdts is not None:
            told = self._crdts.add_statistics(told)
        if self._reader is None:
            return told
        waiting = told.queries_unanswered + self._reader.statistics().queries_unanswered
        return msgspec.structs.replace(
            told, queries_unanswered=waiting, reads_from=self._reader.node
        )

    async def _change(
        self, method: str, arguments: dict[str, Any], timeout: float | None
    ) -> dict[str, Any]:
        return await self._call(method, arguments, timeout, CHANGE_TIMEOUT_S_DEFAULT)

    async def _call(
        self, method: str, arguments: dict[str, Any], timeout: float | None, default: float
    ) -> dict[str, Any]:
        wait_s = default if timeout is None else check_timeout(timeout)
        result: dict[str, Any] = await self._running().call(method, arguments, wait_s)
        return result


class Options(TypedDict, total=False):
    """Keyword arguments of ``connect``, for whoever passes them on."""

    timeout: float
    connect_timeout: float
    stall_timeout: float
    session_ttl: float
    cluster: str
    name: str
    tls: ssl.SSLContext | None
    server_hostname: str | None
    follow_leader: bool
    reads: Reads


def connect(
    endpoints: Endpoints,
    *,
    timeout: float = TIMEOUT_S_DEFAULT,
    connect_timeout: float = CONNECT_TIMEOUT_S_DEFAULT,
    stall_timeout: float = STALL_TIMEOUT_S_DEFAULT,
    session_ttl: float = SESSION_TTL_S_DEFAULT,
    cluster: str = "",
    name: str = "",
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    follow_leader: bool = True,
    reads: Reads = "leader",
) -> Database:
    """A handle on the cluster at *endpoints*: "host:port,host:port", a list of such, or a node of
    this process. Touches no network yet: ``async with``, or the first call, does.

    Args:
        endpoints: any members; the others are learned from them.
        timeout: seconds each call may take, unless it says otherwise.
        connect_timeout: seconds one endpoint has to answer a greeting.
        stall_timeout: seconds a node may be wholly silent while it owes an answer.
        session_ttl: seconds after which the cluster forgets a silent client, and with it what
            would make its retries safe; 1 to 86,400.
        cluster: the cluster's name; nodes of another are refused. "": any.
        name: shown to operators.
        tls: from ``tls_context``; None for plain TCP.
        server_hostname: the name in the nodes' certificates, if it is not the host dialled.
        follow_leader: False stays with the one endpoint given, whoever leads: reads are served by
            that node, linearizable all the same, and writes are refused.
        reads: "leader": reads go where writes go. "any": over a second connection, to some other
            node, which relieves the leader; to the leader while there is no other.

    Raises:
        InvalidArgumentError: an argument has the wrong type or range.
    """
    return Database(
        endpoints,
        timeout=timeout,
        connect_timeout=connect_timeout,
        stall_timeout=stall_timeout,
        session_ttl=session_ttl,
        cluster=cluster,
        name=name,
        tls=tls,
        server_hostname=server_hostname,
        follow_leader=follow_leader,
        reads=reads,
    )


def _as_tls(tls: object) -> ssl.SSLContext | None:
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    raise InvalidArgumentError(f"tls is an ssl.SSLContext (see tls_context), not {tls!r}")
