"""Three replicas in one thread: memory disks that lag and crash, a network that loses, delays,
repeats and cuts off, snapshots over channels that break, virtual time, one seed.

Clients hit a counter, some within a session and with retries, some once. ``check`` holds the
answers to what the log made of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, TypeVar

import msgspec

from quorate.base.frames import (
    QueryFailed,
    QueryReply,
    Run,
    Submit,
    SubmitAccepted,
    SubmitFailed,
    SubmitReply,
)
from quorate.base.levels import ANSWER_APPLIED, ANSWER_DURABLE, ANSWER_EVERYWHERE
from quorate.base.session_commands import OpenSession
from quorate.base.types import LogIndex, NodeId
from quorate.consensus.config import CoreConfig
from quorate.consensus.membership import Membership
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import DiskFullError, QuorateError, UnavailableError, error_from_code
from quorate.replication.checkpoints import Checkpointer
from quorate.replication.clock import Clock
from quorate.replication.machines import Machines
from quorate.replication.recovery import recover
from quorate.replication.replica import Replica, ReplicaConfig
from quorate.replication.snapshots import SnapshotFrame, SnapshotReceiver, SnapshotSender
from quorate.replication.transport import PeerFrame
from quorate.storage.memory_log import MemoryLogStore
from quorate.storage.memory_store import MemoryImage, MemoryStateStore
from tests.replication.driving import Tally, counts, hit, how_many

T = TypeVar("T")
Answer = SubmitReply | SubmitAccepted | SubmitFailed | QueryReply | QueryFailed
NODES = tuple(map(NodeId, (1, 2, 3)))


class FullLog(MemoryLogStore):
    """A log whose disk is full now and then."""

    def __init__(self, full: Callable[[], bool]) -> None:
        super().__init__()
        self._full = full

    def append(self, entries: Sequence[Entry], hard_state: HardState | None) -> None:
        if entries and self._full():
            raise DiskFullError("full")
        super().append(entries, hard_state)

    def reset(self, floor: EntryId, hard_state: HardState) -> None:
        if self._full():
            raise DiskFullError("full")
        super().reset(floor, hard_state)


class LaggingRunner:
    """Runs jobs in order, each a random while later; ``kill`` loses those not yet run."""

    def __init__(self, random: Random, lag_s: float) -> None:
        self._random = random
        self._lag_s = lag_s
        self._free_s = 0.0
        self._dead = False

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._free_s = max(self._free_s, loop.time()) + self._random.random() * self._lag_s
        loop.call_at(self._free_s, self._work, job, done)

    def _work(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        if self._dead:
            return
        result: T | None = None
        error: BaseException | None = None
        try:
            result = job()
        except BaseException as caught:  # noqa: BLE001  as a disk thread does
            error = caught
        report = self._random.random() * self._lag_s / 4
        self._free_s = max(self._free_s, asyncio.get_running_loop().time() + report)
        asyncio.get_running_loop().call_later(report, self._tell, partial(done, result, error))

    def _tell(self, report: Callable[[], None]) -> None:
        if not self._dead:
            report()

    def kill(self) -> None:
        self._dead = True

    def stop(self) -> None:
        """Nothing runs on."""


class MemoryChannel:
    """One end of a snapshot's connection."""

    def __init__(self, random: Random, break_chance: float = 0.0) -> None:
        self.other = self
        self._frames: asyncio.Queue[SnapshotFrame | None] = asyncio.Queue()
        self._random = random
        self._break_chance = break_chance
        self.closed = False

    def pair(self) -> MemoryChannel:
        other = MemoryChannel(self._random, self._break_chance)
        other.other, self.other = self, other
        return other

    async def send(self, frame: SnapshotFrame) -> None:
        await asyncio.sleep(self._random.random() * 0.002)
        if self._random.random() < self._break_chance:
            self.close()
        if self.closed:
            raise UnavailableError("the channel was closed")
        self.other._frames.put_nowait(frame)

    async def receive(self) -> SnapshotFrame:
        if self.closed and self._frames.empty():
            raise UnavailableError("the channel was closed")
        frame = await self._frames.get()
        if frame is None:
            raise UnavailableError("the channel was closed")
        return frame

    def close(self) -> None:
        for end in (self, self.other):
            if not end.closed:
                end.closed = True
                end._frames.put_nowait(None)


class Member:
    """What survives a crash, and what runs."""

    def __init__(self, cluster: FakeCluster, node: NodeId) -> None:
        self.cluster = cluster
        self.node = node
        self.log = FullLog(self._full)
        self.image = MemoryImage()
        self.replica: Replica | None = None
        self.failures: list[BaseException] = []
        self.alarms: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.installed = 0

    def _full(self) -> bool:
        running = self.replica is not None
        return running and self.cluster.random.random() < self.cluster.disk_full

    def start(self) -> None:
        cluster, node = self.cluster, self.node
        random = Random(cluster.random.getrandbits(64))
        self.runners = [LaggingRunner(random, cluster.disk_lag_s) for _ in range(3)]
        log_runner, self.store_runner, read_runner = self.runners
        self.store = MemoryStateStore(self.image)
        self.tally = Tally()
        self.machines = Machines((self.tally,))
        config = CoreConfig(
            node_id=node, election_ticks_min=15, election_ticks_max=30, heartbeat_ticks=3,
            inflight_messages_max=4, append_bytes_max=2000,
        )  # fmt: skip
        found = Membership(voters=NODES, addresses=tuple((n, f"n{n}:1") for n in NODES))
        recovered = recover(self.log, self.store, config, random, found)
        for _ in self.machines.restore(self.store):
            pass
        loop = asyncio.get_running_loop()
        rate = cluster.random.uniform(0.8, 1.2)
        base = cluster.random.uniform(0, 1000)
        clock = Clock(lambda: base + loop.time() * rate, lambda: random.randrange(2**40))
        self.replica = replica = Replica(
            ReplicaConfig(cache_bytes=cluster.cache_bytes),
            recovered,
            log=self.log,
            machines=self.machines,
            transport=self,
            log_runner=log_runner,
            read_runner=read_runner,
            clock=clock,
            random=random,
            on_role=lambda change: None,  # noqa: ARG005
            on_membership=lambda membership: None,  # noqa: ARG005
            on_snapshot_needed=lambda target: self.sender.request(target),  # noqa: PLW0108
            on_applied=lambda: self.checkpointer.on_applied(),  # noqa: PLW0108
            on_failure=self.failures.append,
        )
        self.checkpointer = Checkpointer(
            replica,
            log=self.log,
            store=self.store,
            meta=recovered.meta,
            store_runner=self.store_runner,
            log_runner=log_runner,
            interval_bytes=cluster.checkpoint_bytes,
            on_disk_full=lambda reason: None,  # noqa: ARG005
        )
        self.sender = SnapshotSender(
            replica, self.checkpointer, self.store, read_runner, self.dial, 1_000_000
        )
        self.receiver = SnapshotReceiver(
            replica, self.checkpointer, self.store, self.store_runner, self.failures.append
        )
        replica.start()
        for other in NODES:
            if other != node:
                loop.call_later(0.01, self._reached, replica, other)

    def _reached(self, replica: Replica, other: NodeId) -> None:
        if self.replica is replica:
            replica.peer_reached(other)
            peer = self.cluster.members[other].replica
            if peer is not None:
                peer.peer_reached(self.node)

    async def crash(self) -> None:
        replica, self.replica = self.replica, None
        assert replica is not None
        for runner in self.runners:
            runner.kill()
        self.alarms += replica.divergence.alarms
        self.installed += self.receiver.installed_count
        tasks = [*self.tasks, *self.sender._tasks.values(), *self.checkpointer._tasks]
        if self.checkpointer._due_task is not None:
            tasks.append(self.checkpointer._due_task)
        while left := [task for task in tasks if not task.done()]:
            for task in left:  # again and again: what one waits for to end well has died
                task.cancel()
            await asyncio.sleep(0)
        replica.stop()
        self.store.close()
        self.log.close()
        for other in NODES:
            peer = self.cluster.members[other].replica
            if peer is not None:
                peer.peer_lost(self.node)

    # --- the network of this member ---

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        self.cluster.carry(self.node, target, frame)

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        """They never change."""

    async def dial(self, node: NodeId) -> MemoryChannel:
        cluster = self.cluster
        peer = cluster.members[node]
        if peer.replica is None or cluster.cut(self.node, node):
            raise UnavailableError("cut off")
        here = MemoryChannel(cluster.random, cluster.channel_breaks)
        task = asyncio.get_running_loop().create_task(peer.receiver.serve(here.pair(), self.node))
        peer.tasks.add(task)
        task.add_done_callback(peer.tasks.discard)
        return here


class FakeCluster:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk_lag_s = self.random.choice((0.001, 0.004, 0.02))
        self.cache_bytes = self.random.choice((0, 300, 100_000))
        self.checkpoint_bytes = self.random.choice((300, 2000, 20_000))
        self.loss = self.random.choice((0.0, 0.02, 0.1))
        self.repeat = self.random.choice((0.0, 0.05))
        self.delay_s = self.random.choice((0.001, 0.01, 0.05))
        self.channel_breaks = 0.05
        self.disk_full = self.random.choice((0.0, 0.02, 0.1))
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.hits = 0  # acknowledged, at the end
        self.members = {node: Member(self, node) for node in NODES}

    def cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self.cuts

    def carry(self, source: NodeId, target: NodeId, frame: PeerFrame) -> None:
        random = self.random
        if self.cut(source, target) or random.random() < self.loss:
            return
        copies = 2 if random.random() < self.repeat else 1
        for _ in range(copies):
            delay_s = random.random() ** 3 * self.delay_s
            asyncio.get_running_loop().call_later(delay_s, self._arrive, target, frame)

    def _arrive(self, target: NodeId, frame: PeerFrame) -> None:
        replica = self.members[target].replica
        if replica is not None:
            replica.receive(frame)

    def heal(self) -> None:
        self.cuts.clear()
        self.loss = self.repeat = self.channel_breaks = self.disk_full = 0.0

    async def torment(self) -> None:
        """One fault, for a while."""
        random = self.random
        node = random.choice(NODES)
        match random.randrange(5):
            case 0 | 1:
                if self.members[node].replica is not None:
                    await self.members[node].crash()
                    await asyncio.sleep(random.random() * 1.5)
                    self.members[node].start()
            case 2:
                others = [other for other in NODES if other != node]
                self.cuts |= {(node, other) for other in others}
                self.cuts |= {(other, node) for other in others}
            case 3:
                self.cuts.add((node, random.choice([other for other in NODES if other != node])))
            case _:
                leaders = [m for m in self.members.values() if m.replica and m.replica.is_leader]
                if leaders:
                    await leaders[0].crash()
                    await asyncio.sleep(random.random() * 0.3)
                    leaders[0].start()
        await asyncio.sleep(random.random() * 1.0)
        self.cuts.clear()


class Clients:
    """What they asked, and what they were told."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.random = Random(cluster.random.getrandbits(64))
        self.stopping = False
        self.hits: list[tuple[float, float, int]] = []  # began, ended, count
        self.reads: list[tuple[float, float, int]] = []
        self.sure: list[str] = []  # acknowledged
        self.surely_not: list[str] = []  # refused with a definite error
        self.started = 0

    async def ask(self, call: Callable[[Replica, Callable[[Any], None]], None]) -> Answer | None:
        """At some member, the leader if it is known; None: it did not answer."""
        running = [m.replica for m in self.cluster.members.values() if m.replica is not None]
        leaders = [replica for replica in running if replica.is_leader]
        chosen = self.random.choice(leaders or running or [None])
        if chosen is None:
            await asyncio.sleep(0.1)
            return SubmitFailed(0, "unavailable", "")
        if self.random.random() < 0.1:
            chosen.read_only = ""  # the node has looked, and found space
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def sink(answer: Answer) -> None:
            assert not future.done() or future.cancelled(), "answered twice"
            if not future.done():
                future.set_result(answer)

        try:
            call(chosen, sink)
            return await asyncio.wait_for(future, 1.0)
        except TimeoutError:
            return None
        except QuorateError as error:
            return SubmitFailed(0, error.code, str(error))

    async def _submit(self, submit: Submit) -> Answer | None:
        return await self.ask(lambda replica, sink: replica.submit(submit, sink))

    async def once(self, name: str) -> None:
        """Hits with a tag each, never tried again."""
        loop = asyncio.get_running_loop()
        at = 0
        while not self.stopping:
            at += 1
            tag = f"{name}.{at}.{'x' * self.random.randrange(60)}"
            began_s, self.started = loop.time(), self.started + 1
            level = self.random.choice((ANSWER_APPLIED, ANSWER_EVERYWHERE, ANSWER_DURABLE))
            answer = await self._submit(msgspec.structs.replace(hit(tag), level=level))
            # What was only accepted may be lost, or done, but not twice: ``check`` sees that.
            if isinstance(answer, SubmitReply):
                self.sure.append(tag)
                self.hits.append((began_s, loop.time(), counts(answer)[0]))
            elif isinstance(answer, SubmitFailed) and error_from_code(answer.code, "").definite:
                self.surely_not.append(tag)
            await asyncio.sleep(self.random.random() * 0.05)

    async def again(self, name: str) -> None:
        """Hits in a session, tried until they are answered; also after the faults are over."""
        loop = asyncio.get_running_loop()
        session = await self._open()
        at = 0
        while not self.stopping:
            at += 1
            tag = f"{name}.{at}"
            began_s, self.started = loop.time(), self.started + 1
            while True:
                answer = await self._submit(
                    hit(tag, session=session, sequence=at, acknowledged=at - 1)
                )
                if isinstance(answer, SubmitReply):
                    break
                if answer is not None:
                    assert answer.code not in {"session-expired", "sequence"}, answer
                await asyncio.sleep(0.02)
            self.sure.append(tag)
            self.hits.append((began_s, loop.time(), counts(answer)[0]))
            await asyncio.sleep(self.random.random() * 0.05)

    async def _open(self) -> int:
        command = msgspec.msgpack.encode([OpenSession(3_600_000)])
        submit = Submit(0, 1, 0, (Run("sessions", msgspec.Raw(command)),))
        while True:
            answer = await self._submit(submit)
            if isinstance(answer, SubmitReply):
                session: int = msgspec.msgpack.decode(answer.results)[0][0][1]
                return session
            await asyncio.sleep(0.05)

    async def read(self) -> None:
        """Linearizable reads, at any member."""
        loop = asyncio.get_running_loop()
        number = 0
        while not self.stopping:
            number += 1
            began_s = loop.time()
            node = self.random.choice(NODES)
            replica = self.cluster.members[node].replica
            if replica is not None:
                query = how_many(number)
                answer = await self.ask(lambda _, sink: replica.query(query, sink))  # noqa: B023
                if isinstance(answer, QueryReply):
                    self.reads.append((began_s, loop.time(), counts(answer)[0]))
            await asyncio.sleep(self.random.random() * 0.05)

    def check(self) -> None:
        tallies = [member.tally for member in self.cluster.members.values()]
        tags = {key.decode(): stamp.times for key, stamp in tallies[0].tags.items()}
        assert [tag for tag in self.sure if tags.get(tag) != 1] == [], "acknowledged, and lost"
        assert [tag for tag in self.surely_not if tag in tags] == [], "refused, and done"
        assert [tag for tag, times in tags.items() if times != 1] == [], "done twice"
        told = [count for _, _, count in self.hits]
        assert len(set(told)) == len(told), "two hits were told the same count"
        self._check_order()

    def _check_order(self) -> None:
        """A counter is linearizable if nothing that began after another's end saw less."""
        seen = [(began, ended, count, 1) for began, ended, count in self.hits]
        seen += [(began, ended, count, 0) for began, ended, count in self.reads]
        by_end = sorted(seen, key=lambda each: each[1])
        most, at = 0, 0
        for began, _, count, own in sorted(seen):
            while at < len(by_end) and by_end[at][1] < began:
                most = max(most, by_end[at][2])
                at += 1
            assert count >= most + own, f"{count} after {most} was seen, at {began}"
        assert max((each[2] for each in seen), default=0) <= self.started


async def run_cluster(seed: int, faults: int) -> FakeCluster:
    """The safety phase, then healing and the checks."""
    cluster = FakeCluster(seed)
    for member in cluster.members.values():
        member.start()
    clients = Clients(cluster)
    loop = asyncio.get_running_loop()
    tasks = [
        *(loop.create_task(clients.once(f"o{at}")) for at in range(3)),
        *(loop.create_task(clients.again(f"a{at}")) for at in range(2)),
        *(loop.create_task(clients.read()) for _ in range(2)),
    ]
    for _ in range(faults):
        await cluster.torment()
    cluster.heal()
    clients.stopping = True
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    await _converge(cluster)
    clients.check()
    for member in cluster.members.values():
        assert not member.failures, member.failures
        replica = member.replica
        assert replica is not None
        assert not [*member.alarms, *replica.divergence.alarms]
        times = member.tally.times_ms
        assert times == sorted(times), "cluster time went back"
    assert len({member.machines.state_hash for member in cluster.members.values()}) == 1
    cluster.hits = len(clients.sure)
    assert cluster.hits > 10, "hardly anything was done"
    for member in cluster.members.values():
        await member.crash()
    return cluster


async def _converge(cluster: FakeCluster) -> None:
    for _ in range(3000):
        replicas = [member.replica for member in cluster.members.values()]
        applied = {replica.applied for replica in replicas if replica is not None}
        leaders = [replica for replica in replicas if replica is not None and replica.is_leader]
        if len(applied) == 1 and len(leaders) == 1:
            leader = leaders[0]
            if LogIndex(leader.applied) == leader.core.state.log.last_index:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("they did not come to agree within 30 s without faults")
