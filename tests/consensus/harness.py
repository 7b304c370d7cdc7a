"""A cluster of cores in one thread: fake disks, a fake network, virtual time, one random seed.

Every member does what a replica does: performs the duties of an ``Output`` in their order, fills
in the entries of ``SendAppend`` from its log, applies up to the commit index, checkpoints, cuts,
and streams snapshots. A crash loses what was not durable, and what was promised on top of it.

The cluster holds every member to ``CoreChecker`` after each step, and all together to
``ClusterChecks``. Everything random comes from one ``Random``: a seed is a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from quorate.base.types import BEFORE_FIRST, NO_NODE, NO_TERM, LogIndex, NodeId, Term
from quorate.consensus.checker import CoreChecker
from quorate.consensus.config import CoreConfig
from quorate.consensus.core import Core
from quorate.consensus.events import (
    Compacted,
    Event,
    Persisted,
    Propose,
    SnapshotOffered,
    SnapshotSent,
    Tick,
)
from quorate.consensus.membership import (
    Membership,
    MembershipHistory,
    decode_membership,
    encode_membership,
)
from quorate.consensus.messages import (
    AppendRequest,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Message,
    validate,
)
from quorate.consensus.output import Output, Persist, Role, SendAppend
from tests.consensus.cluster_checks import ClusterChecks

TICK_MS = 10
NOBODY = Membership(voters=())


def quick_config(node: int, **changes: int) -> CoreConfig:
    """Short timeouts, small windows: many elections and full windows in few steps."""
    settings: dict[str, int] = {
        "election_ticks_min": 10,
        "election_ticks_max": 20,
        "heartbeat_ticks": 2,
        "append_bytes_max": 64,
        "inflight_messages_max": 4,
        "inflight_bytes_max": 256,
        "uncommitted_bytes_max": 1024,
        "disk_stall_ticks": 40,
        "lease_ms": 70,
        "tick_ms": TICK_MS,
        "promote_lag_entries_max": 5,
        **changes,
    }
    return CoreConfig(node_id=NodeId(node), **settings)


def plain(voters: Iterable[int], learners: Iterable[int] = ()) -> Membership:
    ids = sorted(map(NodeId, voters)), sorted(map(NodeId, learners))
    addresses = tuple((node, f"n{node}:1") for node in sorted(ids[0] + ids[1]))
    return Membership(voters=tuple(ids[0]), learners=tuple(ids[1]), addresses=addresses)


@dataclass
class Faults:
    """What the network and the disks may do. Probabilities per message; delays in ticks."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_max: int = 0
    disk_max: int = 0
    fetch: float = 0.0  #: an append's entries are read back slowly, and sent late


@dataclass(frozen=True)
class Checkpoint:
    """Machine state on disk: where it ends, and the configuration as of there."""

    id: EntryId
    membership: Membership
    membership_index: LogIndex


NO_HARD_STATE = HardState(NO_TERM, NO_NODE, BEFORE_FIRST)
BEFORE_ALL = EntryId(BEFORE_FIRST, NO_TERM)
NOTHING = Checkpoint(BEFORE_ALL, NOBODY, BEFORE_FIRST)


@dataclass
class Disk:
    """What survives a crash, and the writes that are on their way."""

    hard: HardState = NO_HARD_STATE
    floor: EntryId = BEFORE_ALL
    entries: list[Entry] = field(default_factory=list)
    checkpoint: Checkpoint = NOTHING
    writes: deque[tuple[int, Persist, Checkpoint | None]] = field(default_factory=deque)
    stalled_until: int = -1

    @property
    def last(self) -> int:
        return self.floor.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        at = index - self.floor.index - 1
        if at == -1:
            return self.floor.term
        return self.entries[at].term if 0 <= at < len(self.entries) else None

    def holds(self, index: int, term: int) -> bool:
        return index <= self.floor.index or self.term_at(index) == term

    def finish_one(self) -> int:
        """The oldest write becomes durable; returns its id."""
        _due, persist, installed = self.writes.popleft()
        if persist.reset is not None:
            assert installed is not None
            self.checkpoint, self.floor, self.entries = installed, persist.reset, []
        replace_tail(self.floor.index, self.entries, persist.entries)
        self.hard = persist.hard_state
        return persist.id

    def cut(self, floor: EntryId) -> None:
        del self.entries[: floor.index - self.floor.index]
        self.floor = floor


def replace_tail(floor: int, log: list[Entry], entries: Sequence[Entry]) -> None:
    if entries:
        at = entries[0].index - floor - 1
        assert 0 <= at <= len(log), "the log has no gap and begins after its floor"
        log[at:] = entries


class Member:
    """One node: disk, core, and the little of a replica that the core depends on."""

    def __init__(self, cluster: Cluster, node: NodeId) -> None:
        self.cluster = cluster
        self.node = node
        self.disk = Disk()
        self.rate = 1.0  # speed of its clock
        self.clock = 0.0
        self.alive = False
        self.paused = False
        self.instant_disk = cluster.instant_disks
        self.config = cluster.config(node)

    # --- life -----------------------------------------------------------------------------------

    def found(self, membership: Membership) -> None:
        """The first configuration is entry 1 of term 1, on every founding member alike."""
        payload = encode_membership(membership)
        self.disk.entries = [Entry(LogIndex(1), Term(1), int(EntryKind.MEMBERSHIP), payload)]
        self.disk.hard = HardState(Term(1), NO_NODE, LogIndex(1))

    def start(self) -> None:
        disk = self.disk
        self.log = list(disk.entries)
        self.applied = disk.checkpoint.id.index
        self.held: deque[tuple[int, tuple[Message, ...]]] = deque()
        self.last_persist_id = 0
        self.durable_id = 0
        self.fetching: dict[NodeId, list[tuple[int, SendAppend]]] = {}
        history = MembershipHistory(disk.checkpoint.membership, disk.checkpoint.membership_index)
        for entry in disk.entries:
            if entry.kind == EntryKind.MEMBERSHIP and entry.index > max(
                self.applied, history.index
            ):
                history.append(entry.index, decode_membership(entry.payload))
        hard = disk.hard
        commit = LogIndex(max(hard.commit, self.applied))
        self.core = Core(
            self.config,
            Random(self.cluster.random.getrandbits(64)),
            hard_state=HardState(hard.term, hard.vote, commit),
            floor=disk.floor,
            terms=[entry.term for entry in disk.entries],
            sizes_bytes=[len(entry.payload) for entry in disk.entries],
            members=history,
        )
        self.checker = CoreChecker(self.core)
        self.alive, self.paused = True, False
        self.cluster.checks.started(self)
        self.apply()

    def crash(self, durable_writes: int) -> None:
        """Of the writes under way the first *durable_writes* had reached the disk, unreported."""
        for _ in range(min(durable_writes, len(self.disk.writes))):
            self.disk.finish_one()
        self.disk.writes.clear()
        self.alive = False

    @property
    def leads(self) -> bool:
        return self.alive and self.core.state.role is Role.LEADER

    @property
    def commit(self) -> int:
        return self.core.state.commit

    @property
    def now_ms(self) -> int:
        return int(self.clock * TICK_MS)

    # --- the duties -----------------------------------------------------------------------------

    def step(self, event: Event) -> Output:
        checks = self.cluster.checks
        checks.before_step(self)
        output = self.core.step(event)
        self.checker.after_step(output)
        self.cluster.trace(self, event, output)
        if output.persist is not None:
            installed = None
            if isinstance(event, SnapshotOffered) and output.install is not None:
                at = event.membership_index
                installed = Checkpoint(event.id, event.membership, at)
                self.applied = event.id.index
            self.persist(output.persist, installed)
        checks.after_step(self, event, output)
        for message in output.messages:
            self.send(message)
        if output.after_persist:
            self.hold(output.after_persist)
        self.apply()
        for read in output.read_states:
            self.cluster.on_read_state(self, read.context, read.index)
        for node in output.snapshots:
            self.cluster.start_snapshot(self, node)
        if self.instant_disk and self.disk.writes:
            self.finish_writes()
        return output

    def persist(self, persist: Persist, installed: Checkpoint | None) -> None:
        self.last_persist_id = persist.id
        if persist.reset is not None:
            self.log = []
        replace_tail(self.core.state.log.floor.index, self.log, persist.entries)
        self.cluster.checks.appended(self, persist)
        due = self.cluster.now + self.cluster.random.randint(0, self.cluster.faults.disk_max)
        self.disk.writes.append((due, persist, installed))

    def finish_writes(self, count: int = 1 << 30) -> None:
        """Writes complete in order; the core hears of them after the held messages left."""
        done = 0
        while self.disk.writes and count > 0:
            done = self.disk.finish_one()
            count -= 1
        if done:
            self.durable_id = done
            while self.held and self.held[0][0] <= done:
                for message in self.held.popleft()[1]:
                    self.send(message)
            self.step(Persisted(done))

    def hold(self, messages: tuple[Message, ...]) -> None:
        if self.durable_id >= self.last_persist_id:
            for message in messages:
                self.send(message)
        else:
            self.held.append((self.last_persist_id, messages))

    def entries(self, first: int, last: int) -> tuple[Entry, ...] | None:
        floor = self.core.state.log.floor.index
        return tuple(self.log[first - floor - 1 : last - floor]) if first > floor else None

    def send(self, message: Message | SendAppend) -> None:
        cluster = self.cluster
        if not isinstance(message, SendAppend):
            cluster.checks.sent(self, message)
            cluster.post(message)
            return
        waiting = self.fetching.get(message.target)
        if waiting is not None or cluster.random.random() < cluster.faults.fetch:
            due = cluster.now + cluster.random.randint(0, cluster.faults.delay_max)
            self.fetching.setdefault(message.target, []).append((due, message))
        else:
            self.fill(message)

    def fill(self, order: SendAppend) -> None:
        state = self.core.state
        if order.term != state.term or not self.alive:
            return
        entries = self.entries(order.prev_index + 1, order.last_index)
        if entries is None and order.last_index > order.prev_index:
            return  # cut meanwhile: the follower will be offered a snapshot
        request = AppendRequest(
            term=order.term,
            sender=order.sender,
            target=order.target,
            prev_index=order.prev_index,
            prev_term=order.prev_term,
            entries=entries or (),
            commit=order.commit,
            round=order.round,
        )
        self.cluster.checks.sent(self, request)
        self.cluster.post(request)

    def fetch_due(self) -> None:
        for target in sorted(self.fetching):
            waiting = self.fetching[target]
            while waiting and waiting[0][0] <= self.cluster.now:
                self.fill(waiting.pop(0)[1])
            if not waiting:
                del self.fetching[target]

    def apply(self) -> None:
        while self.applied < self.commit:
            index = self.applied + 1
            entry = self.log[index - self.core.state.log.floor.index - 1]
            self.cluster.checks.applied(self, entry)
            self.applied = LogIndex(index)
        self.cluster.serve_reads(self)

    # --- checkpoints ----------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Of what is applied and durable; a checkpoint ahead of the log could not be recovered."""
        state = self.core.state
        index = LogIndex(min(self.applied, state.persisted))
        if index <= self.disk.checkpoint.id.index or self.disk.writes:
            return
        at, membership = state.members.step_at(index)
        term = state.log.term_at(index)
        assert term is not None
        self.disk.checkpoint = Checkpoint(EntryId(index, term), membership, at)

    def compact(self, keep: int) -> None:
        """Cut the log behind the checkpoint, keeping *keep* entries for slow followers."""
        state = self.core.state
        index = LogIndex(self.disk.checkpoint.id.index - keep)
        term = state.log.term_at(index)
        if index <= self.disk.floor.index or term is None:
            return
        floor = EntryId(index, term)
        self.disk.cut(floor)
        del self.log[: index - state.log.floor.index]
        self.step(Compacted(floor))

    def offer(self, offer: SnapshotOffered) -> bool:
        """A snapshot has arrived whole; True if this member says that it holds its state now."""
        output = self.step(offer)
        if output.install is None:
            return offer.term == self.core.state.term and self.commit >= offer.id.index
        self.cluster.checks.installed(self, offer)
        return True


@dataclass
class Read:
    """A read under way. *floor*: what was committed anywhere when it was asked."""

    node: NodeId
    floor: int
    index: int = 0
    served: bool = False


class Cluster:
    """Members, network and clock. Nothing happens but through ``run`` or an explicit call."""

    def __init__(
        self,
        voters: Iterable[int] = (),
        learners: Iterable[int] = (),
        *,
        seed: int = 0,
        faults: Faults | None = None,
        config: Callable[[NodeId], CoreConfig] = quick_config,
    ) -> None:
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.config = config
        self.now = 0
        self.instant_disks = False
        self.checks = ClusterChecks(self)
        self.members: dict[NodeId, Member] = {}
        self.blocked: dict[tuple[NodeId, NodeId], bool] = {}
        self.wire: list[tuple[int, int, Message]] = []
        self.jobs: list[tuple[int, int, Callable[[], None]]] = []
        self.sequence = 0
        self.reads: dict[int, Read] = {}
        self.reads_refused = 0
        self.on_trace: Callable[[Member, Event, Output], None] | None = None
        self.found(plain(voters, learners))

    def found(self, founders: Membership) -> None:
        """Start a cluster of these, each with the first configuration in its log."""
        for node in founders.members():
            self.add(node)
            self.members[node].found(founders)
        for member in self.members.values():
            member.start()

    def add(self, node: NodeId) -> Member:
        """A node with an empty disk, which waits until a leader sends it the log."""
        member = self.members[node] = Member(self, node)
        return member

    def trace(self, member: Member, event: Event, output: Output) -> None:
        if self.on_trace is not None:
            self.on_trace(member, event, output)

    # --- the network ----------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        random, faults = self.random, self.faults
        if random.random() < faults.loss or self.blocked.get((message.sender, message.target)):
            return
        for _ in range(2 if random.random() < faults.repeat else 1):
            self.sequence += 1
            due = self.now + 1 + random.randint(0, faults.delay_max)
            heappush(self.wire, (due, self.sequence, message))

    def deliver(self, message: Message) -> None:
        member = self.members.get(message.target)
        if member is None or not member.alive:
            return
        complaint = validate(message, sender=message.sender, target=message.target)
        assert complaint is None, f"a member sent a message that the gateway refuses: {complaint}"
        member.step(message)

    def later(self, ticks: int, job: Callable[[], None]) -> None:
        self.sequence += 1
        heappush(self.jobs, (self.now + ticks, self.sequence, job))

    def connected(self, one: NodeId, other: NodeId) -> bool:
        return not self.blocked.get((one, other)) and not self.blocked.get((other, one))

    # --- snapshots ------------------------------------------------------------------------------

    def start_snapshot(self, sender: Member, target: NodeId) -> None:
        """Stream the checkpoint; the connection breaks where the network or a node does."""
        life, checkpoint = sender.core, sender.disk.checkpoint
        term = life.state.term
        offer = SnapshotOffered(
            term=term,
            sender=sender.node,
            id=checkpoint.id,
            membership=checkpoint.membership,
            membership_index=checkpoint.membership_index,
        )

        def report(*, ok: bool) -> None:
            if sender.alive and sender.core is life and life.state.term == term:
                sender.step(SnapshotSent(target, checkpoint.id.index, ok))

        def arrive() -> None:
            receiver = self.members.get(target)
            ok = (
                receiver is not None
                and receiver.alive
                and not receiver.paused
                and self.connected(sender.node, target)
                and receiver.offer(offer)
            )
            self.later(1 + self.random.randint(0, self.faults.delay_max), lambda: report(ok=ok))

        self.later(1 + self.random.randint(0, 3 * self.faults.delay_max), arrive)

    # --- reads ----------------------------------------------------------------------------------

    def on_read_state(self, member: Member, context: int, index: int) -> None:
        read = self.reads.get(context)
        if read is None or read.served or read.node != member.node:
            return
        if index == 0:
            self.reads_refused += 1
            del self.reads[context]
            return
        self.checks.read_granted(member, read, index)
        read.index = index

    def serve_reads(self, member: Member) -> None:
        for context in [
            context
            for context, read in self.reads.items()
            if read.node == member.node and 0 < read.index <= member.applied
        ]:
            del self.reads[context]

    # --- time -----------------------------------------------------------------------------------

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.run_one()

    def run_one(self) -> None:
        """One tick of real time: clocks, disks, network, in an order drawn anew."""
        self.now += 1
        order = list(self.members.values())
        self.random.shuffle(order)
        for member in order:
            before = int(member.clock)
            member.clock += member.rate
            if member.alive and not member.paused:
                self._run_member(member, int(member.clock) - before)
        self._run_wire()
        while self.jobs and self.jobs[0][0] <= self.now:
            heappop(self.jobs)[2]()

    def _run_member(self, member: Member, ticks: int) -> None:
        if ticks:
            member.step(Tick(ticks, member.now_ms))
        if self.now >= member.disk.stalled_until:
            done = 0
            while done < len(member.disk.writes) and member.disk.writes[done][0] <= self.now:
                done += 1
            if done:
                member.finish_writes(done)
        member.fetch_due()

    def _run_wire(self) -> None:
        waiting: list[tuple[int, int, Message]] = []
        while self.wire and self.wire[0][0] <= self.now:
            item = heappop(self.wire)
            target = self.members.get(item[2].target)
            if target is not None and target.alive and target.paused:
                waiting.append((self.now + 1, item[1], item[2]))  # in its socket
            else:
                self.deliver(item[2])
        for item in waiting:
            heappush(self.wire, item)

    # --- what tests ask -------------------------------------------------------------------------

    def leader(self) -> Member | None:
        """The leader of the highest term, if any."""
        leaders = [member for member in self.members.values() if member.leads]
        return max(leaders, key=lambda member: member.core.state.term, default=None)

    def propose(self, member: Member, payload: bytes) -> Output:
        return member.step(Propose((payload,)))

    def run_until(self, condition: Callable[[], bool], ticks_max: int, what: str) -> int:
        """Run until *condition* holds; returns how many ticks it took."""
        for used in range(ticks_max):
            if condition():
                return used
            self.run_one()
        raise AssertionError(f"not within {ticks_max} ticks: {what}\n{self.describe()}")

    def describe(self) -> str:
        lines = []
        for member in self.members.values():
            state = member.core.state if hasattr(member, "core") else None
            if state is None:
                lines.append(f"  {member.node}: never started")
                continue
            lines.append(
                f"  {member.node}: {'' if member.alive else 'down '}"
                f"{'paused ' if member.paused else ''}{state.role.value} term {state.term} "
                f"vote {state.vote} leader {state.leader} commit {state.commit} "
                f"last {state.log.last_index}/{state.log.last_term} persisted {state.persisted} "
                f"floor {state.log.floor.index} writes {len(member.disk.writes)} "
                f"config {state.members.index} {state.membership.voters}"
                f"<-{state.membership.voters_old} learners {state.membership.learners}"
            )
        return "\n".join(lines)
