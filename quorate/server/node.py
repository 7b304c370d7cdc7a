"""One member of a cluster, whole: disk, core, machines, network, clients.

``start`` opens the data directory, recovers, and serves; ``stop`` hands leadership over, finishes
what is under way, writes a checkpoint and closes. This module only puts the parts together: each
decision is made in one of them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Self

import msgspec

from quorate.base.frames import (
    ROLE_SNAPSHOT,
    WIRE_VERSION,
    Hello,
    Welcome,
)
from quorate.base.limits import MIB
from quorate.base.types import LogIndex, NodeId
from quorate.client.database import Database
from quorate.consensus.events import Tick
from quorate.consensus.membership import Membership
from quorate.consensus.output import Role, RoleChange
from quorate.errors import (
    ClosedError,
    QuorateError,
    RefusedError,
    UnavailableError,
)
from quorate.locks.barriers import BarrierMachine
from quorate.locks.machine import LockMachine
from quorate.replication.checkpoints import Checkpointer
from quorate.replication.cluster import ClusterMachine
from quorate.replication.converging.lives import LivesMachine
from quorate.replication.converging.service import Converging, Surroundings
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Machine
from quorate.replication.machines import Machines
from quorate.replication.replica import Replica, ReplicaConfig
from quorate.replication.snapshots import SnapshotChannel, SnapshotReceiver, SnapshotSender
from quorate.replication.statistics import ReplicaStatistics
from quorate.replication.transport import CrdtFrame, LifeRequest, PeerFrame
from quorate.server.admin import Admin
from quorate.server.channel import FrameChannel
from quorate.server.clients import ClientService
from quorate.server.config import TICK_MS, NodeConfig, parse_listen
from quorate.server.connection import Connection
from quorate.server.disk_guard import DiskGuard
from quorate.server.greeting import greet
from quorate.server.identity import Gate, open_identity
from quorate.server.joining import find_cluster
from quorate.server.lifeline import Lifeline
from quorate.server.listener import Listener, Routes
from quorate.server.loading import load_machines
from quorate.server.opening import Disk, open_disk
from quorate.server.peers import PeerEvents, PeerTransport
from quorate.server.platform import Platform
from quorate.server.registrar import Registrar
from quorate.server.relay import Relays
from quorate.server.status import node_status
from quorate.server.ticking import Ticker
from quorate.server.tls import peer_context, server_context
from quorate.server.upgrading import Upgrades
from quorate.storage.directory import DataDirectory, Identity
from quorate.storage.interfaces import StateStore
from quorate.storage.wal import WriteAheadLog
from quorate.tasks.machine import TaskMachine

_logger = logging.getLogger("quorate.node")

GUARD_PERIOD_S: Final = 0.5
DIAL_TIMEOUT_S: Final = 2.0
FINISH_TIMEOUT_S: Final = 2.0


class Node:
    """A member that runs in this process and on this event loop.

    *config*: see ``NodeConfig``. *machines*: machines of the user's own, beside the built-in ones
    and those that *config* names; the same on every member. *platform*: other surroundings than the
    real system, for tests. Use ``async with``, or ``start`` and ``stop``.
    """

    def __init__(
        self,
        config: NodeConfig,
        machines: Sequence[Machine] = (),
        *,
        platform: Platform | None = None,
    ) -> None:
        self.config = config
        self.platform = platform or Platform()
        self._clock, self._random = self.platform.clock, self.platform.random
        self._cluster_machine = ClusterMachine()
        self.kv_machine = KvMachine()
        self.lives_machine = LivesMachine()
        self._task_machine = TaskMachine()
        self.machines = Machines(
            (
                self.kv_machine,
                self._cluster_machine,
                LockMachine(),
                BarrierMachine(),
                self.lives_machine,
                self._task_machine,
            ),
            (*load_machines(config.machines), *machines),
        )
        self.address = config.advertised  #: how others reach this node, once started
        self.port = 0  #: of the listener, once started; 0: none
        self._started_s = 0.0
        self._failure: BaseException | None = None
        self._ended = asyncio.Event()
        self._stopping = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closers: list[Callable[[], object]] = []
        self._parts: _Parts | None = None
        self._listener: Listener | None = None
        self._db: Database | None = None

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Recover from disk and serve.

        Raises:
            ConfigError: settings that cannot work here (address in use, data of another node).
            StorageError: the data directory is in use, damaged, of a newer format, not writable.
            UnavailableError: no node of ``join`` answered.
        """
        if self._parts is not None or self._ended.is_set():
            raise ClosedError("a node is started once; make a new one")
        try:
            self._parts = await self._build()
        except BaseException:
            if self._listener is not None:
                self._listener.stop()
            await self._close_files()
            raise
        parts = self._parts
        self._started_s = self._clock.monotonic_s()
        parts.replica.start()
        parts.converging.start()
        if parts.replica.core.state.sole_voter():
            # Alone, there is nobody to wait for: campaign at once.
            parts.replica.step(Tick(parts.replica.core.state.config.election_ticks_max, 0))
        await parts.listener.serve()
        self._spawn(self._guard(parts))
        self._spawn(Ticker(parts.replica, self._task_machine.schedules, self._clock).run())

    async def stop(self) -> None:
        """Hand leadership over, finish what is under way, write a checkpoint, close. Idempotent."""
        if self._stopping:
            await self._ended.wait()
            return
        self._stopping = True
        parts = self._parts
        if parts is not None:
            parts.listener.stop_accepting()
            if self._db is not None:
                await self._db.close()
            if self._failure is None:
                await self._leave(parts)
            await self._shut(parts)
        await self._close_files()
        self._ended.set()

    async def wait_stopped(self) -> None:
        """Until the node has stopped.

        Raises:
            QuorateError, InvariantViolationError: why it stopped by itself.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def _on_failure(self, error: BaseException) -> None:
        """The disk failed or a claim was wrong: nothing this node says can be trusted any more."""
        if self._failure is None:
            self._failure = error
            self._spawn(self.stop())

    async def _leave(self, parts: _Parts) -> None:
        try:
            await parts.admin.hand_over()
        except QuorateError as error:
            _logger.info("stopping without handing over: %s", error)
        await parts.clients.finish(FINISH_TIMEOUT_S)
        try:
            await parts.checkpointer.checkpoint()
        except QuorateError as error:
            _logger.warning("stopping without a checkpoint: %s", error)

    async def _shut(self, parts: _Parts) -> None:
        await parts.sender.stop()
        parts.replica.stop()  # first: a checkpoint may wait for what a stalled disk never writes
        parts.converging.stop()
        await parts.checkpointer.stop()
        parts.clients.stop()
        parts.relays.stop()
        await parts.peers.stop()
        parts.listener.stop()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close_files(self) -> None:
        """In the reverse order of opening."""
        loop = asyncio.get_running_loop()
        while self._closers:
            await loop.run_in_executor(None, self._closers.pop())

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    # --- putting it together ---------------------------------------------------------------------

    async def _build(self) -> _Parts:
        config = self.config
        loop = asyncio.get_running_loop()
        inside, outside = server_context(config), peer_context(config)
        files = self.platform.files
        directory = await loop.run_in_executor(None, DataDirectory, config.data, files)
        self._closers.append(directory.close)
        joined = ""
        if config.join and directory.identity() is None:
            joined = await find_cluster(config.join, config.cluster, outside)
        gate = Gate(open_identity(directory, config, joined, self.platform))
        self._listener = listener = Listener(gate, self._routes(), inside)
        await self._bind(listener)
        disk = await open_disk(
            directory,
            gate.identity,
            config,
            self.platform,
            self.machines,
            self._founders(gate.identity),
            self._closers,
        )
        peers = PeerTransport(
            gate,
            PeerEvents(
                self._receive,
                self.pinned,
                self._on_peer_reached,
                self._on_peer_lost,
            ),
            self._random,
            outside,
        )
        replica = Replica(
            ReplicaConfig(tick_ms=TICK_MS),
            disk.recovered,
            log=disk.log,
            machines=self.machines,
            transport=peers,
            log_runner=disk.log_runner,
            read_runner=disk.read_runner,
            clock=self._clock,
            random=self._random,
            on_role=self._on_role,
            on_membership=self._on_membership,
            on_snapshot_needed=lambda node: parts.sender.request(node),  # noqa: PLW0108  below
            on_applied=self._on_applied,
            on_failure=self._on_failure,
        )
        parts = self._attach(disk, gate, peers, replica, listener, outside)
        return parts

    def _attach(
        self,
        disk: Disk,
        gate: Gate,
        peers: PeerTransport,
        replica: Replica,
        listener: Listener,
        context: ssl.SSLContext | None,
    ) -> _Parts:
        """Everything that stands around the replica."""
        config = self.config
        platform = self.platform
        disk_guard = DiskGuard(
            lambda: platform.free_bytes(config.data),
            config.disk_reserve_mib,
            replica,
            self._on_failure,
        )
        checkpointer = Checkpointer(
            replica,
            log=disk.log,
            store=disk.store,
            meta=disk.recovered.meta,
            store_runner=disk.store_runner,
            log_runner=disk.log_runner,
            interval_bytes=platform.checkpoint_bytes(config),
            on_disk_full=disk_guard.full,
        )
        admin = Admin(self)
        upgrades = Upgrades(replica, peers.connected)
        lifeline = Lifeline(self)
        converging = self._second_tier(disk, peers, replica, lifeline)
        return _Parts(
            gate=gate,
            log=disk.log,
            store=disk.store,
            replica=replica,
            checkpointer=checkpointer,
            peers=peers,
            listener=listener,
            admin=admin,
            converging=converging,
            lifeline=lifeline,
            clients=ClientService(gate, replica, converging, admin, lifeline.process),
            relays=Relays(self._leader_address, context),
            sender=SnapshotSender(
                replica,
                checkpointer,
                disk.store,
                disk.read_runner,
                self._dial_snapshot,
                config.snapshot_mib_per_s * MIB,
            ),
            receiver=SnapshotReceiver(
                replica, checkpointer, disk.store, disk.store_runner, self._on_failure
            ),
            disk_guard=disk_guard,
            registrar=Registrar(
                gate.identity, self.address, self._cluster_machine, replica, upgrades
            ),
            upgrades=upgrades,
            tls=context,
        )

    def _second_tier(
        self, disk: Disk, peers: PeerTransport, replica: Replica, lifeline: Lifeline
    ) -> Converging:
        return Converging(
            self.config.node_id,
            disk.elements,
            disk.element_runner,
            self._clock,
            self._random,
            self.lives_machine,
            Surroundings(
                send=peers.send,
                membership=lambda: replica.core.state.membership,
                index=lambda: replica.applied,
                begin=lifeline.begin,
                adopt=lifeline.adopt,
                failed=self._on_failure,
                leads=lambda: replica.is_leader,
                propose=lifeline.propose,
            ),
        )

    def _founders(self, own: Identity) -> Membership | None:
        """The first configuration, the same on each founder, or None for a node that joins."""
        if self.config.join:
            return None
        founders = {**self.config.founders}
        if not self.config.initial:
            founders[self.config.node_id] = self.address
        pairs = tuple((NodeId(node), founders[node]) for node in sorted(founders))
        voters = tuple(node for node, _ in pairs)
        known = own.incarnation if len(voters) == 1 else ""  # nobody else is to agree
        incarnations = tuple((node, known) for node in voters)
        return Membership(voters=voters, addresses=pairs, incarnations=incarnations)

    async def _bind(self, listener: Listener) -> None:
        """Take the port before the log is read: its number may be part of the membership."""
        if not self.config.listen:
            return
        place = parse_listen("listen", self.config.listen)
        self.port = await listener.bind(place.host, place.port)
        if self.address.endswith(":0"):
            self.address = f"{self.address[:-1]}{self.port}"

    def _routes(self) -> Routes:
        return Routes(
            client=lambda connection: self.parts.clients.accept(connection),  # noqa: PLW0108  no parts yet
            relay=self._accept_relay,
            snapshot=self._accept_snapshot,
            peer=self._accept_peer,
            member_known=self._check_member,
            welcome=lambda: self.parts.clients.welcome(),  # noqa: PLW0108
        )

    # --- what others ask of it -------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        """The number of this member."""
        return NodeId(self.config.node_id)

    @property
    def parts(self) -> _Parts:
        """The parts of a started node.

        Raises:
            ClosedError: it has not been started.
        """
        if self._parts is None:
            raise ClosedError("the node has not been started")
        return self._parts

    @property
    def replica(self) -> Replica:
        """The engine of a started node."""
        return self.parts.replica

    @property
    def local_server(self) -> ClientService:
        """For clients in this process (``client.endpoints.LocalServer``)."""
        return self.parts.clients

    @property
    def db(self) -> Database:
        """A handle on the cluster through this node; it lives as long as the node."""
        if self._db is None:
            self._db = Database(self.local_server, tls=self.parts.tls, random=self._random)
        return self._db

    def pinned(self, node: NodeId) -> str:
        """The incarnation known for member *node*, present or past, "" if none is."""
        membership = self.replica.core.state.membership
        return membership.incarnation(node) or self._cluster_machine.incarnation(node)

    async def checkpoint(self) -> LogIndex:
        """Write the state to the store now; returns the log index it covers.

        Raises:
            ClosedError, DiskFullError, StorageError: nothing was written.
        """
        return await self.parts.checkpointer.checkpoint()

    @property
    def uptime_s(self) -> float:
        """Seconds since the node started."""
        return self._clock.monotonic_s() - self._started_s

    def statistics(self) -> ReplicaStatistics:
        """Counters of the replica; ``loop_lag_ms_max`` is since the last call."""
        return self.replica.statistics()

    def status(self) -> dict[str, Any]:
        """Everything an operator may want to see, as plain values."""
        return node_status(self)

    # --- events ----------------------------------------------------------------------------------

    def _receive(self, frame: PeerFrame) -> None:
        if isinstance(frame, CrdtFrame):
            self.parts.converging.receive(frame)
        elif isinstance(frame, LifeRequest):
            self.parts.lifeline.receive(frame)
        else:
            self.parts.replica.receive(frame)

    def _on_role(self, change: RoleChange) -> None:
        _logger.info(
            "node %d: %s in term %d, leader %d",
            self.node_id,
            change.role.value,
            change.term,
            change.leader,
        )
        self._news()

    def _on_membership(self, membership: Membership) -> None:
        _logger.info("members: %s", membership)
        self._news()

    def _news(self) -> None:
        """Tell the clients, in a later turn: the core is in the middle of a step."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self.parts.clients.tell_all)
        loop.call_soon(self.parts.registrar.tend)

    def _on_applied(self) -> None:
        parts = self._parts
        if parts is not None:
            parts.checkpointer.on_applied()
            parts.registrar.on_applied()
            parts.lifeline.applied()
            parts.converging.applied()

    def _on_peer_reached(self, node: NodeId, welcome: Welcome) -> None:
        parts = self.parts
        parts.registrar.shown(node, welcome.incarnation)
        parts.upgrades.told(node, welcome.machines)
        parts.replica.peer_reached(node)
        parts.converging.peer_reached(node)
        parts.registrar.tend()

    def _on_peer_lost(self, node: NodeId) -> None:
        parts = self._parts
        if parts is not None:
            parts.replica.peer_lost(node)
            parts.converging.peer_lost(node, connected=node in parts.peers.connected())

    def _check_member(self, node: NodeId, incarnation: str) -> None:
        """The hello of a member: may it come in?"""
        parts = self.parts
        parts.gate.check_member(node, incarnation, self.pinned(node))
        state = parts.replica.core.state
        if state.role is Role.LEADER and node not in state.membership.members():
            raise RefusedError(
                f"node {node} is not a member of this cluster (any more): add it with "
                f"`quorate members add {node}=HOST:PORT`"
            )

    def _accept_peer(self, connection: Connection, hello: Hello) -> None:
        self.parts.registrar.shown(NodeId(hello.node), hello.incarnation)
        self.parts.peers.accept(connection, NodeId(hello.node), hello.incarnation)

    def _accept_relay(self, connection: Connection, hello: Hello) -> None:
        if self.replica.is_leader:
            self.parts.clients.accept(connection)
        else:
            self.parts.relays.accept(connection, hello)

    def _accept_snapshot(self, connection: Connection, node: NodeId) -> None:
        self._spawn(self.parts.receiver.serve(FrameChannel(connection), node))

    async def _dial_snapshot(self, node: NodeId) -> SnapshotChannel:
        parts = self.parts
        address = parts.replica.addresses().get(node)
        if address is None:
            raise UnavailableError(f"node {node} is not a member any more")
        identity = parts.gate.identity
        hello = Hello(
            WIRE_VERSION, ROLE_SNAPSHOT, identity.cluster, identity.node, identity.incarnation
        )
        connection, welcome = await greet(
            address, hello, context=parts.tls, timeout_s=DIAL_TIMEOUT_S
        )
        try:
            parts.gate.check_member(node, welcome.incarnation, self.pinned(node))
        except QuorateError:
            connection.close()
            raise
        return FrameChannel(connection)

    def _leader_address(self) -> str:
        replica = self.replica
        return "" if replica.is_leader else replica.addresses().get(replica.leader, "")

    async def _guard(self, parts: _Parts) -> None:
        """Look after what nobody else is told of."""
        while True:
            parts.disk_guard.look()
            parts.registrar.tend()
            await asyncio.sleep(GUARD_PERIOD_S)


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a started node is made of."""

    gate: Gate
    log: WriteAheadLog
    store: StateStore
    replica: Replica
    converging: Converging
    lifeline: Lifeline
    checkpointer: Checkpointer
    peers: PeerTransport
    listener: Listener
    admin: Admin
    clients: ClientService
    relays: Relays
    sender: SnapshotSender
    receiver: SnapshotReceiver
    disk_guard: DiskGuard
    registrar: Registrar
    upgrades: Upgrades
    tls: ssl.SSLContext | None
