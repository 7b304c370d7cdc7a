"""Nodes that speak the frames over real sockets, around one real state machine, and misbehave on
order. There is no log and no election: whoever the test says leads, leads.
"""

# scripts see frames of all kinds

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from quorate.base.crdt_frames import CRDT_WATCH, CrdtFailed, CrdtRead, CrdtWrite
from quorate.base.frames import (
    AdminFailed,
    AdminReply,
    AdminRequest,
    ClientFrame,
    FrameSplitter,
    Hello,
    LeaderInfo,
    MemberInfo,
    Query,
    QueryFailed,
    QueryReply,
    Refused,
    Submit,
    SubmitFailed,
    SubmitReply,
    Unwatch,
    Watch,
    Welcome,
    encode_frame,
)
from quorate.base.session_commands import SESSION_MACHINE
from quorate.errors import QuorateError
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Machine
from tests.client.fake_crdt import FakeData
from tests.replication.support import Node as Replica

_decode = msgspec.msgpack.Decoder(ClientFrame).decode


class Fault(NamedTuple):
    """What to do with one request. *apply*: it takes effect. *answer*: "once", "twice", "never",
    "garbage", or the code of a refusal. *hang_up*: the connection ends then. *delay_s*: first."""

    apply: bool = True
    answer: str = "once"
    hang_up: bool = False
    delay_s: float = 0.0


FINE = Fault()
LOST_REPLY = Fault(answer="never", hang_up=True)
LOST_REQUEST = Fault(apply=False, answer="never", hang_up=True)
SILENT = Fault(apply=False, answer="never")
GARBAGE = Fault(answer="garbage")

Script = Callable[["FakeNode", Any], Fault]


class FakeCluster:
    """*node_count* nodes; node 1 leads. *script* is asked about each request but the hello."""

    def __init__(self, node_count: int = 1, machines: Sequence[Machine] = ()) -> None:
        self.name = "fake"
        self.leader = 1
        self.term = 1
        self.nodes = {number: FakeNode(self, number) for number in range(1, node_count + 1)}
        self.replica = Replica(machines or (KvMachine(),))
        self.script: Script = lambda _node, _frame: FINE
        self.members: tuple[MemberInfo, ...] = ()
        self.requests: list[Any] = []  # as they arrived, hello included
        self.executed: Counter[tuple[int, int]] = (
            Counter()
        )  # (session, sequence) that changed state
        self.unconfirmed: tuple[int, ...] = ()  # in each reply
        self.retry_after_ms = 1  # of refusals
        self.relays = False  # nodes splice through to the leader when asked
        self.greeting: Callable[[FakeNode, Hello], Any] | None = None  # instead of the welcome

    @property
    def endpoints(self) -> str:
        return ",".join(node.endpoint for node in self.nodes.values())

    def submits(self) -> list[Submit]:
        """Those with users' commands in them."""
        return [
            frame
            for frame in self.requests
            if isinstance(frame, Submit) and frame.runs[0].machine != SESSION_MACHINE
        ]

    def lead(self, number: int) -> None:
        """*number* leads from now on, in a new term, 0: nobody; all nodes say so."""
        self.leader, self.term = number, self.term + (number != 0)
        for node in self.nodes.values():
            node.push_leader()

    def pass_time(self, milliseconds: int) -> None:
        """Cluster time goes on; sessions may expire."""
        self.replica.entry(time_ms=self.replica.time_ms + milliseconds)

    def apply(self, submit: Submit) -> Any:
        """Through the same gateway as in a real node's log."""
        (outcome,) = self.replica.entry(submit).outcomes
        return outcome


class FakeNode:
    """One listener. *knows_leader*: it has heard of elections."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.port = 0
        self.data = FakeData(number)
        self.incarnation = "i"
        self.process = 0
        self.connections: set[_Served] = set()
        self.dials = 0
        self.told: tuple[int, int] | None = None  # (leader, term) if it differs from the truth
        self.restarting = asyncio.Lock()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Served(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As SIGKILL: no goodbye."""
        if self._server is not None:
            self._server.close()
            self.drop()
            await self._server.wait_closed()
            self._server = None

    def drop(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def info(self) -> LeaderInfo:
        leader, term = self.told or (self.cluster.leader, self.cluster.term)
        return LeaderInfo(leader, term, self.cluster.members)

    def push_leader(self) -> None:
        for connection in self.connections:
            connection.send(self.info())


class _Served(asyncio.Protocol):
    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.acting = node  # who answers: the leader, through a relay
        self.splitter = FrameSplitter()
        self.transport: asyncio.Transport | None = None
        self.greeted = False
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.node.connections.add(self)
        self.node.dials += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.node.connections.discard(self)
        self.transport = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def send(self, *frames: Any) -> None:
        if self.transport is not None:
            self.transport.write(b"".join(map(encode_frame, frames)))

    def data_received(self, data: bytes) -> None:
        for body in self.splitter.feed(data):
            frame = _decode(body)
            self.node.cluster.requests.append(frame)
            if isinstance(frame, Hello):
                self.greet(frame)
            else:
                self.serve(frame)

    def greet(self, hello: Hello) -> None:
        cluster = self.node.cluster
        if cluster.greeting is not None:
            answer = cluster.greeting(self.node, hello)
            if answer is not None:
                self.send(answer)
            return
        if hello.cluster not in {"", cluster.name}:
            self.send(Refused("refused", f"this is cluster {cluster.name}"))
            return
        if hello.relay:
            if not cluster.relays or cluster.leader == 0:
                self.send(Refused("unavailable", "no way to the leader"))
                return
            self.acting = cluster.nodes[cluster.leader]
        acting = self.acting
        fields = _fields(acting.info())
        who = (acting.number, acting.incarnation)
        self.send(Welcome(1, cluster.name, *who, *fields, process=acting.process))

    def serve(self, frame: Any) -> None:
        fault = self.node.cluster.script(self.acting, frame)
        if fault.delay_s:
            task = asyncio.get_running_loop().create_task(self.serve_later(frame, fault))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.serve_now(frame, fault)

    async def serve_later(self, frame: Any, fault: Fault) -> None:
        await asyncio.sleep(fault.delay_s)
        self.serve_now(frame, fault)

    def serve_now(self, frame: Any, fault: Fault) -> None:
        match fault.answer:
            case "once" | "twice" | "never":
                answer = self.answer(frame) if fault.apply else None
                if answer is not None and fault.answer != "never":
                    self.send(*[answer] * (2 if fault.answer == "twice" else 1))
            case "garbage":
                if fault.apply:
                    self.answer(frame)
                if self.transport is not None:
                    self.transport.write(b"\0\0\0\5hello")
            case code:
                if fault.apply:
                    self.answer(frame)
                self.send(_refusal(frame, code, "as ordered", self.node.cluster.retry_after_ms))
        if fault.hang_up:
            self.abort()

    def answer(self, frame: Any) -> Any:
        cluster = self.node.cluster
        leads = self.acting.number == cluster.leader
        data = self.acting.data
        match frame:
            case CrdtWrite(sequence=number, after=after) | CrdtRead(id=number, after=after):
                write = isinstance(frame, CrdtWrite)
                if lacking := data.lacks(after):
                    return CrdtFailed(number, write, "unavailable", lacking, cluster.retry_after_ms)
                return data.write(frame) if isinstance(frame, CrdtWrite) else data.read(frame)
            case Watch(machine=machine) if machine == CRDT_WATCH:
                data.watch(self, frame)
                return None
            case Unwatch():
                return None
            case Submit():
                if not leads:
                    return SubmitFailed(frame.sequence, "not-leader", "not me")
                return self.submit(frame)
            case Query(id=number, runs=runs, linearizable=linearizable):
                if linearizable and cluster.leader == 0:
                    return QueryFailed(number, "unavailable", "no leader")
                machines = cluster.replica.machines
                try:
                    results = msgspec.Raw(machines.query_runs(runs))
                except QuorateError as error:
                    return QueryFailed(number, error.code, str(error))
                return QueryReply(number, machines.index, results)
            case AdminRequest(id=number, method=method, arguments=arguments):
                if method in ("status", "members.list"):
                    return AdminReply(number, {"node": self.acting.number, **arguments})
                if not leads:
                    return AdminFailed(number, "not-leader", "not me")
                if method == "members.remove":
                    return AdminFailed(number, "membership", "not now")
                return AdminReply(number, {"method": method, **arguments})
        raise AssertionError(frame)

    def submit(self, frame: Submit) -> SubmitReply | SubmitFailed:
        cluster = self.node.cluster
        index = cluster.replica.machines.index
        outcome = cluster.apply(frame)
        if outcome.code:
            return SubmitFailed(
                frame.sequence, outcome.code, outcome.message, outcome.retry_after_ms
            )
        if outcome.index > index:
            cluster.executed[frame.session, frame.sequence] += 1
        results = msgspec.Raw(outcome.results)
        return SubmitReply(frame.sequence, outcome.index, results, cluster.unconfirmed)


def _fields(info: LeaderInfo) -> tuple[int, int, tuple[MemberInfo, ...]]:
    return info.leader, info.term, info.members


def _refusal(frame: Any, code: str, message: str, retry_after_ms: int) -> Any:
    match frame:
        case Submit(sequence=sequence):
            return SubmitFailed(sequence, code, message, retry_after_ms)
        case Query(id=number):
            return QueryFailed(number, code, message, retry_after_ms)
        case AdminRequest(id=number):
            return AdminFailed(number, code, message, retry_after_ms)
        case CrdtWrite(sequence=number):
            return CrdtFailed(number, True, code, message, retry_after_ms)
        case CrdtRead(id=number):
            return CrdtFailed(number, False, code, message, retry_after_ms)
    raise AssertionError(frame)


@contextlib.asynccontextmanager
async def fake_cluster(
    node_count: int = 1, machines: Sequence[Machine] = (), *, members_known: bool = True
) -> AsyncIterator[FakeCluster]:
    """*members_known*: nodes tell clients one another's addresses."""
    cluster = FakeCluster(node_count, machines)
    for node in cluster.nodes.values():
        await node.start()
    if members_known:
        cluster.members = tuple(
            MemberInfo(node.number, node.endpoint, "voter") for node in cluster.nodes.values()
        )
    try:
        yield cluster
    finally:
        for node in cluster.nodes.values():
            await node.stop()
