"""What a replica is driven by in tests: virtual time, disks that finish when told, a network that
only records, a machine that counts.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, TypeVar

import msgspec

from quorate.base.frames import (
    Query,
    QueryFailed,
    QueryReply,
    Run,
    Submit,
    SubmitReply,
)
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.config import CoreConfig
from quorate.consensus.events import Tick
from quorate.consensus.membership import Membership
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    Heartbeat,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Role, RoleChange
from quorate.replication.batch import Batch, encode_batch
from quorate.replication.clock import Clock
from quorate.replication.machine import Context, Machine
from quorate.replication.machines import Machines
from quorate.replication.proposals import SubmitAnswer
from quorate.replication.recovery import recover
from quorate.replication.replica import Replica, ReplicaConfig
from quorate.replication.tables import Table, Tables
from quorate.replication.transport import PeerFrame, StateDigest
from quorate.storage.interfaces import LogStore
from quorate.storage.memory_log import MemoryLogStore
from quorate.storage.memory_store import MemoryImage, MemoryStateStore

T = TypeVar("T")
ME, TWO, THREE = map(NodeId, (1, 2, 3))


# --- time ----------------------------------------------------------------------------------------


class _Selector(selectors.SelectSelector):
    """Instead of waiting, time moves on."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen"
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.broken: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.broken.append(context))

    def time(self) -> float:
        return self._virtual.now_s


def virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* on virtual time; nothing that a callback raises is overlooked."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        result = runner.run(main)
        assert not loop.broken, loop.broken
        return result


def loop_clock() -> Clock:
    loop = asyncio.get_running_loop()
    return Clock(loop.time, lambda: int(loop.time() * 1000) + 1_700_000_000_000)


async def turns(count: int = 5) -> None:
    """Let what was scheduled for now happen."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- the disk ------------------------------------------------------------------------------------


class ManualRunner:
    """Runs the oldest job when told."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]]
        self.jobs = deque()
        self.error: BaseException | None = None  #: of the next job, instead of running it

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        self.jobs.append((job, done))

    def work(self) -> Callable[[], None]:
        """Run the oldest job; returns what reports it."""
        job, done = self.jobs.popleft()
        error, self.error = self.error, None
        result = None
        if error is None:
            try:
                result = job()
            except BaseException as caught:  # noqa: BLE001  as a disk thread does
                error = caught
        return lambda: done(result, error)

    def step(self) -> None:
        self.work()()

    def drain(self) -> None:
        while self.jobs:
            self.step()

    def stop(self) -> None:
        self.jobs.clear()


class PromptRunner(ManualRunner):
    """Runs every job in the next turn of the loop."""

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        super().run(job, done)
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self.jobs:
            self.step()


# --- a machine that counts -----------------------------------------------------------------------


class Hit(msgspec.Struct, frozen=True, array_like=True, tag=1):
    tag: str


class Count(msgspec.Struct, frozen=True, array_like=True, tag=1):
    pass


class Seen(msgspec.Struct, frozen=True, array_like=True, tag=1):
    count: int


class Stamp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    times: int
    time_ms: int


class Tally(Machine):
    """Counts hits, and remembers when each tag was hit, and how often. *period_ms*: how often it
    wants to be told the time."""

    name: ClassVar[str] = "tally"
    command_type: ClassVar[Any] = Hit
    query_type: ClassVar[Any] = Count

    def __init__(self, period_ms: int = 0) -> None:
        self.period_ms = period_ms
        self.next_ms = period_ms
        self.times_ms: list[int] = []

    def attach(self, tables: Tables) -> None:
        self.tags: Table[Stamp] = tables.table("tally.tags", Stamp)

    def loaded(self) -> None:
        self.count = sum(stamp.times for _, stamp in self.tags.items())

    def apply(self, command: Hit, context: Context) -> Seen:
        key = command.tag.encode()
        known = self.tags.get(key)
        self.tags.put(key, Stamp(1 if known is None else known.times + 1, context.time_ms))
        self.count += 1
        self.times_ms.append(context.time_ms)
        return Seen(self.count)

    def rolled_back(self) -> None:
        self.loaded()

    def query(self, query: Count) -> Seen:
        return Seen(self.count)

    def expire(self, context: Context) -> None:
        if self.period_ms and context.time_ms >= self.next_ms:
            self.next_ms = context.time_ms + self.period_ms

    def next_deadline_ms(self) -> int | None:
        return self.next_ms if self.period_ms else None

    def frees_space(self, command: Hit) -> bool:
        return command.tag.startswith("-")


def hit(*tags: str, session: int = 0, sequence: int = 1, acknowledged: int = 0) -> Submit:
    items = msgspec.Raw(msgspec.msgpack.encode([Hit(tag) for tag in tags]))
    return Submit(session, sequence, acknowledged, (Run("tally", items),))


def how_many(number: int = 1, *, linearizable: bool = True) -> Query:
    items = msgspec.Raw(msgspec.msgpack.encode([Count()]))
    return Query(number, (Run("tally", items),), linearizable)


def counts(answer: SubmitAnswer | QueryReply | QueryFailed) -> list[int]:
    """What the commands, or queries, of one run came to."""
    assert isinstance(answer, SubmitReply | QueryReply), answer
    (results,) = msgspec.msgpack.decode(answer.results, type=list[list[Seen]])
    return [seen.count for seen in results]


# --- entries -------------------------------------------------------------------------------------


def entry(index: int, term: int, payload: bytes = b"", kind: EntryKind = EntryKind.NOOP) -> Entry:
    return Entry(LogIndex(index), Term(term), int(kind), payload)


def batch_entry(index: int, term: int, *submits: Submit, time_ms: int = 0) -> Entry:
    payload = encode_batch(Batch(time_ms, 0, 0, tuple(submits)))
    return entry(index, term, payload, EntryKind.BATCH)


def three() -> Membership:
    return Membership(
        voters=(ME, TWO, THREE), addresses=tuple((n, f"n{n}:1") for n in (ME, TWO, THREE))
    )


# --- a replica -----------------------------------------------------------------------------------


class RecordingTransport:
    def __init__(self) -> None:
        self.sent: list[PeerFrame] = []
        self.members: list[Mapping[NodeId, str]] = []
        self.on_members: Callable[[], None] = lambda: None

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        self.sent.append(frame)

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        self.members.append(addresses)
        self.on_members()

    def take(self, *kinds: type[Any]) -> list[Any]:
        """What was sent since, of *kinds*; the rest is forgotten."""
        found = [each for each in self.sent if isinstance(each, kinds)]
        self.sent.clear()
        return found

    def digests(self) -> list[StateDigest]:
        return self.take(StateDigest)


class Rig:
    """One replica, member *me* of 1, 2 and 3, whose peers are played by the test."""

    def __init__(
        self,
        log: LogStore | None = None,
        *,
        image: MemoryImage | None = None,
        cache_bytes: int = 2**20,
        machines: Sequence[Machine] | None = None,
        prompt: bool = False,
        me: NodeId = ME,
        clock: Clock | None = None,
        **settings: int,
    ) -> None:
        self.me = me
        self.log = log or MemoryLogStore()
        self.image = image or MemoryImage()
        self.store = MemoryStateStore(self.image)
        self.disk = PromptRunner() if prompt else ManualRunner()
        self.reader = PromptRunner() if prompt else ManualRunner()
        self.net = RecordingTransport()
        self.tally = Tally()
        self.machines = Machines((self.tally,) if machines is None else machines)
        self.failures: list[BaseException] = []
        self.snapshots: list[NodeId] = []
        self.roles: list[RoleChange] = []
        self.memberships: list[Membership] = []
        self.applied_calls = 0
        self.answers: list[SubmitAnswer] = []
        self.reads: list[QueryReply | QueryFailed] = []
        config = CoreConfig(node_id=me, **settings)
        self.recovered = recover(self.log, self.store, config, Random(1), three())
        for _ in self.machines.restore(self.store):
            pass
        self.replica = Replica(
            ReplicaConfig(cache_bytes=cache_bytes),
            self.recovered,
            log=self.log,
            machines=self.machines,
            transport=self.net,
            log_runner=self.disk,
            read_runner=self.reader,
            clock=clock or loop_clock(),
            random=Random(2),
            on_role=self.roles.append,
            on_membership=self.memberships.append,
            on_snapshot_needed=self.snapshots.append,
            on_applied=self._on_applied,
            on_failure=self.failures.append,
        )

    def _on_applied(self) -> None:
        self.applied_calls += 1

    @property
    def state(self) -> Any:
        return self.replica.core.state

    def submit(self, *tags: str, sequence: int = 1) -> None:
        self.replica.submit(hit(*tags, sequence=sequence), self.answers.append)

    def query(self, number: int = 1, *, linearizable: bool = True) -> None:
        self.replica.query(how_many(number, linearizable=linearizable), self.reads.append)

    # --- peers ---

    def append(
        self, *entries: Entry, prev: tuple[int, int], term: int, commit: int = 0, sender: int = 2
    ) -> None:
        """An AppendRequest of leader *sender*."""
        self.replica.receive(
            AppendRequest(
                term=Term(term),
                sender=NodeId(sender),
                target=self.me,
                prev_index=LogIndex(prev[0]),
                prev_term=Term(prev[1]),
                entries=entries,
                commit=LogIndex(commit),
                round=0,
            )
        )

    def heartbeat(self, term: int, commit: int = 0, sender: int = 2) -> None:
        self.replica.receive(Heartbeat(Term(term), NodeId(sender), self.me, LogIndex(commit), 0))

    def ack(self, index: int, sender: int = 2) -> None:
        """A follower has everything up to *index*."""
        self.replica.receive(
            AppendReply(
                term=self.state.term,
                sender=NodeId(sender),
                target=self.me,
                ok=True,
                index=LogIndex(index),
                hint_index=LogIndex(0),
                hint_term=Term(0),
                round=self.state.round,
            )
        )

    async def lead(self, *, commit: bool = True) -> None:
        """Win an election, and commit the first entry of the term. Time stands still but for the
        ticks handed in here, unless the replica was started."""
        for _ in range(200):
            if self.replica.is_leader:
                break
            self.replica.step(Tick(5, int(asyncio.get_running_loop().time() * 1000)))
            self.disk.drain()
            for asked in self.net.take(VoteRequest):
                term = Term(asked.term)
                reply = VoteReply(term, asked.target, self.me, granted=True, pre=asked.pre)
                self.replica.receive(reply)
                self.disk.drain()
        assert self.state.role is Role.LEADER
        self.disk.drain()
        if commit:
            self.ack(self.state.log.last_index)
            await self.settle()
        self.net.sent.clear()

    async def settle(self) -> None:
        """Apply what is committed, also what is left for the next tick, or has to be read back."""
        await turns()
        self.replica._applier.catch_up()
        await turns()
        while self.reader.jobs:
            self.reader.step()
            await turns()

    def depose(self, term: int | None = None, sender: int = 2) -> None:
        self.heartbeat(term or self.state.term + 1, sender=sender)
