"""A simulated cluster as nemesis, operator and swarm see it: nodes by number, alive or not.

Stands on ``SimulatedCluster``; adds what a supervisor does (start again what stopped, with the
reason on record), who was hurt by what, and the comparison of whole states.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import ModuleType
from typing import Any, Final, TextIO, TypeVar

import msgspec

from jepsen_like.simulation.cluster import SimulatedCluster
from jepsen_like.simulation.disk import DiskSettings, SimulatedDisk
from jepsen_like.simulation.fuse import Fuse
from jepsen_like.simulation.invariants import Invariants
from jepsen_like.simulation.links import LinkSettings
from jepsen_like.simulation.members import ClusterSettings, CrashedError
from jepsen_like.simulation.observing import observe
from jepsen_like.simulation.plan import Plan, Settings, stream
from jepsen_like.systems.quorate_client import QuorateClient
from quorate.base.task_specs import TASK_MACHINE
from quorate.client.database import Database
from quorate.errors import (
    FormatVersionError,
    LogCorruptionError,
    QuorateError,
    StorageError,
    StoreCorruptionError,
    UnavailableError,
)
from quorate.replication import kv_history
from quorate.replication.converging import engine, folding, pulling, serving, stability
from quorate.replication.machine import Machine
from quorate.server.node import Node
from quorate.storage.memory_elements import ElementImage
from quorate.tasks.machine import TaskMachine

T = TypeVar("T")

#: How long somebody waits for a node to start before going on with other things.
START_S: Final = 3.0
#: How many of the clients read at their leader only.
LEADER_ONLY_CHANCE: Final = 0.6
#: Errors that a disk which only fails, fills or stalls never excuses.
_DAMAGE: Final = (LogCorruptionError, StoreCorruptionError, FormatVersionError)


class Stage:
    """The cluster of *plan*, watched by *invariants*."""

    def __init__(self, plan: Plan, invariants: Invariants, trace: TextIO | None = None) -> None:
        self.settings = plan.settings
        self._seed = plan.seed
        self.cluster = SimulatedCluster(plan.seed, _cluster_settings(plan.settings), text=trace)
        self._invariants = invariants
        self._failures: list[tuple[int, BaseException]] = []
        self._problems_seen = 0
        self._sick: dict[int, None] = {}  # nodes whose disks were ever made to fail
        self._retired: dict[int, None] = {}
        self.disks_lost: list[int] = []  #: nodes whose disk, or part of it, was lost or set back
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._usual_disk = _disk_settings(plan.settings)
        self.cluster.on_node = self._observe
        #: Limits of the product that the plan lowers, as they were.
        self._limits = [
            _set(kv_history, "HISTORY_REVISIONS_MAX", plan.settings.history_revisions),
            _set(engine, "JOURNAL_BYTES_MAX", plan.settings.journal_bytes),
            _set(serving, "RANGE_ELEMENTS", plan.settings.range_elements),
            _set(pulling, "FEW", min(pulling.FEW, plan.settings.range_elements // 4)),
            *_sooner(plan.settings.fold_quiet_s),
        ]

    def _observe(self, _number: int, node: Node) -> None:
        observe(node, self._invariants, self._failed)

    def _failed(self, node: int, error: BaseException) -> None:
        self._failures.append((node, error))

    # --- the run --------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """True virtual time."""
        return self.cluster.now_s

    @property
    def steps(self) -> int:
        """Callbacks run."""
        return self.cluster.loop.steps

    @property
    def lease_reads(self) -> bool:
        """Whether reads rely on clocks."""
        return self.settings.lease_reads

    def also_run(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """Further machines of each node, made anew for each of its processes."""
        settings = self.cluster.settings
        before = settings.machines
        settings.machines = lambda: [*before(), *machines()]

    def watch(self, look: Callable[[], None]) -> None:
        """*look* is called whenever time is about to pass; what it raises ends the run."""
        self.cluster.loop.on_instant = look

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """To its end, or to a violation."""
        self.cluster.run(coroutine)

    def close(self) -> None:
        """Let go of everything."""
        for module, name, value in self._limits:
            _set(module, name, value)
        self.cluster.close()

    def digest(self) -> str:
        """Of everything that happened."""
        return self.cluster.digest()

    def note(self, text: str, who: int) -> None:
        """In the trace."""
        self.cluster.note(f"{text} {who}")

    def take_failures(self) -> list[tuple[int, BaseException]]:
        """Nodes that stopped by themselves since the last call, and why."""
        failures, self._failures = self._failures, []
        return failures

    def take_problems(self) -> list[str]:
        """Exceptions that nobody caught, since the last call."""
        problems = self.cluster.problems[self._problems_seen :]
        self._problems_seen += len(problems)
        return [f"{each.process or 'world'} at {each.time_s:.6f}: {each.text}" for each in problems]

    def excuses(self, node: int, error: BaseException) -> bool:
        """Whether what was done to *node*'s disk is reason enough to stop with *error*."""
        if isinstance(error, _DAMAGE):
            return False
        return node in self._sick and isinstance(error, StorageError)

    def notes(self) -> dict[str, int]:
        """Counts for the record."""
        counted = self.cluster.statistics()
        return {
            "leaders": len(self._invariants.leaders),
            "commits": self._invariants.commit_max,
            "snapshots": self._invariants.install_count,
            "starts": counted.starts,
            "frames_meddled": counted.frames_meddled,
            "configurations": len(self._invariants.configs),
        }

    # --- nodes ----------------------------------------------------------------------------------

    async def found(self) -> None:
        """Start the founders."""
        await self.cluster.start(self.settings.voters)
        for number, rate in zip(self.nodes(), self.settings.clock_rates, strict=False):
            self.set_rate(number, rate)

    def nodes(self) -> list[int]:
        """All that were not removed, running or not."""
        return [number for number in self.cluster.members if number not in self._retired]

    def node(self, number: int) -> Node:
        """A node that runs."""
        return self.cluster.nodes[number]

    def runs(self, number: int) -> bool:
        """Whether it has started and not ended; it may be paused."""
        return number in self.cluster.nodes

    def leader(self) -> int | None:
        """Who leads, if anybody does."""
        return self.cluster.leader() or None

    def address(self, number: int) -> str:
        """Where it listens."""
        return self.cluster.address(number)

    def stopped_itself(self, number: int) -> bool:
        """Whether its process ended without being killed."""
        member = self.cluster.members[number]
        return not member.alive and member.failure is not None

    async def start(self, number: int) -> bool:
        """Start it if it does not run; whether it serves, within a few seconds."""
        member = self.cluster.members[number]
        if number in self._retired:
            return False
        if not member.alive:
            self._keep(self._started(number, self.cluster.restart(number)))
        return await self._serves(number)

    async def add(self) -> int:
        """A new node, under a number never used before, knocks at the cluster's door."""
        number = max(self.cluster.members) + 1
        self._keep(self._started(number, self.cluster.add(number)))
        await self._serves(number)
        return number

    async def _serves(self, number: int) -> bool:
        end_s = self.now_s + START_S
        while not self.runs(number) and self.now_s < end_s:
            await asyncio.sleep(0.01)
            member = self.cluster.members.get(number)
            if member is not None and not member.alive:
                break
        return self.runs(number)

    async def _started(self, number: int, start: Any) -> None:  # noqa: ANN401  any awaitable
        try:
            await start
        except CrashedError:
            return
        except UnavailableError:
            return  # it found nobody to join; the door was closed
        except (QuorateError, AssertionError) as error:
            self._failures.append((number, error))

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def retire(self, number: int) -> None:
        """Switch it off for good."""
        self._retired[number] = None
        self.cluster.crash(number)

    def start_retired(self, number: int) -> None:
        """Switch one on again that was removed; what becomes of it is for the cluster to say."""
        if not self.cluster.members[number].alive:
            self._keep(_ended(self.cluster.restart(number)))

    def lose_elements(self, number: int, backup: ElementImage | None) -> None:
        """The converging data of a node that does not run is gone, or set back to *backup*."""
        self.disks_lost.append(number)
        self.disk(number).elements = ElementImage() if backup is None else backup.copy()

    def crash(self, number: int, *, power: bool) -> None:
        """See ``SimulatedCluster.crash``."""
        self.cluster.crash(number, power=power)

    def pause(self, name: int | str) -> None:
        """SIGSTOP, of a node or a client."""
        self.cluster.pause(name)

    def resume(self, name: int | str) -> None:
        """SIGCONT."""
        self.cluster.resume(name)

    async def checkpoint(self, number: int) -> bool:
        """Have it write one now; it need not succeed. Soon, or not at all for this caller."""
        if not self.runs(number):
            return False
        task = self.cluster.spawn(number, _checkpoint(self.node(number)))
        await asyncio.wait((task,), timeout=0.5)
        return True

    # --- clients --------------------------------------------------------------------------------

    def client(self, name: str, timeout_s: float, *, wanders: bool = False) -> QuorateClient:
        """What workloads use. *wanders*: it may read at some member of its own, leading or not."""
        database = self.database(name, timeout_s)
        random = stream(self._seed, f"reader-{name}")

        def another(*numbers: int, **options: Any) -> Database:  # noqa: ANN401
            options = {"timeout": timeout_s, **options}
            return self.cluster.connect(name, *(numbers or self.nodes()), **options)

        if not wanders or random.random() < LEADER_ONLY_CHANCE:
            return QuorateClient(database, connect=another)
        reader = another(random.choice(self.nodes()), follow_leader=False)
        return QuorateClient(database, reader, another)

    def database(self, name: str, timeout_s: float) -> Database:
        """A handle on a host of that name."""
        ttl_s = self.settings.session_ttl_s
        return self.cluster.connect(name, *self.nodes(), timeout=timeout_s, session_ttl=ttl_s)

    async def call(self, name: str, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on that host. Cancelled, it does not wait for a dead one."""
        task = self.cluster.spawn(name, coroutine)
        await asyncio.wait((task,))
        return task.result()

    def crash_client(self, name: str) -> None:
        """Its process dies."""
        self.cluster.crash_client(name)

    # --- networks and clocks --------------------------------------------------------------------

    def cut(self, source: int | str, target: int | str) -> None:
        """One way, until healed."""
        self.cluster.cut(source, target)

    def heal(self, source: int | str, target: int | str) -> None:
        """The cut is over."""
        self.cluster.heal(source, target)

    def set_link(self, source: int, target: int, settings: LinkSettings | None) -> None:
        """None: as all others."""
        self.cluster.set_link(source, target, settings)

    def reset(self, one: int, other: int) -> None:
        """All connections between the two break."""
        self.cluster.reset(one, other)

    def heal_network(self) -> None:
        """No cut, no sick link."""
        self.cluster.heal()
        self.cluster.set_links(None)

    def set_rate(self, name: int | str, rate: float) -> None:
        """Of the clocks of a node or a client; 1.0 is right."""
        self.cluster.set_clock_rate(name, rate)

    def jump_wall(self, number: int, by_ms: int) -> None:
        """Its wall clock."""
        self.cluster.jump_wall_clock(number, by_ms)

    # --- disks ----------------------------------------------------------------------------------

    def disk(self, number: int) -> SimulatedDisk:
        """For what is done while the node is down."""
        return self.cluster.disk(number)

    def slow_disk(self, number: int, job_s_max: float) -> None:
        """Jobs take up to so long; 0: as usual."""
        usual = self._usual_disk
        if job_s_max:
            usual = msgspec.structs.replace(usual, job_s_max=job_s_max)
        self.disk(number).settings = usual

    def stall_disk(self, number: int, for_s: float) -> None:
        """Nothing ends for so long."""
        self.disk(number).stall(for_s)

    def fill_disk(self, number: int, for_s: float) -> None:
        """No space for so long."""
        self._sick[number] = None
        self.disk(number).fill(for_s)

    def fail_disk(self, number: int, kind: str, *, code: int, count: int) -> None:
        """The next *count* operations of *kind* ("read", "write", "fsync") fail."""
        self._sick[number] = None
        operations: Any = "sync" if kind == "fsync" else kind
        self.disk(number).fail(operations, code=code, count=count)

    def mend(self, number: int) -> None:
        """Its disk is well again."""
        self.disk(number).mend()
        self.slow_disk(number, 0.0)

    # --- the whole ------------------------------------------------------------------------------

    def running(self) -> dict[int, Node]:
        """Nodes that have started and not ended; paused ones, too."""
        return self.cluster.nodes

    def is_well(self, number: int) -> bool:
        """Whether a node that runs moves on, and has a disk that works."""
        member = self.cluster.members[number]
        return not member.paused and not member.disk.is_sick

    def agreed_on_members(self) -> bool:
        """Whether every member runs and knows the leader's configuration, which is no joint one."""
        leader = self.leader()
        if leader is None:
            return False
        membership = self.node(leader).replica.core.state.membership
        members = list(map(int, membership.members()))
        return not membership.joint and all(
            self.runs(each) and self.node(each).replica.core.state.membership == membership
            for each in members
        )

    def settled(self) -> bool:
        """One leader, its whole log committed, and every member has applied it."""
        leader = self.leader()
        if leader is None:
            return False
        state = self.node(leader).replica.core.state
        if state.membership.joint or state.commit < state.log.last_index:
            return False
        return all(
            self.runs(node) and self.node(node).replica.applied == state.commit
            for node in map(int, state.membership.members())
        )

    def compare_states(self) -> None:
        """Every record of every table is the same on all members."""
        leader = self.leader()
        if leader is None:
            return
        members = self.node(leader).replica.core.state.membership.members()
        first = _records(self.node(leader))
        for node in map(int, members):
            other = _records(self.node(node))
            different = [key for key in {**first, **other} if first.get(key) != other.get(key)]
            self._invariants.claim(
                not different,
                "state-differs",
                f"records of nodes {leader} and {node} differ at the same applied entry",
                keys=different[:5],
            )

    def recount_tasks(self) -> None:
        """What nodes count of tasks, queues and workers is what their tables say."""
        for number, node in self.running().items():
            machine = node.machines.machine(TASK_MACHINE)
            if not isinstance(machine, TaskMachine):
                continue
            counted, right = machine.ledger.derived(), machine.ledger.recount()
            different = [name for name in counted if counted[name] != right[name]]
            self._invariants.claim(
                not different,
                "tasks-miscounted",
                f"node {number} counts what its tables do not say",
                **{name: (counted[name], right[name]) for name in different},
            )

    def describe(self) -> str:
        """How every node stands, for people."""
        return "\n".join(self._describe(self.nodes()))

    def _describe(self, nodes: Iterable[int]) -> Iterable[str]:
        for number in nodes:
            member = self.cluster.members[number]
            if not self.runs(number):
                yield f"  node {number}: alive {member.alive}, failure {member.failure!r}"
                continue
            replica = self.node(number).replica
            state = replica.core.state
            yield (
                f"  node {number}: {state.role.value} of term {state.term}, leader {state.leader}, "
                f"log ({state.log.floor.index}, {state.log.last_index}], persisted "
                f"{state.persisted}, commit {state.commit}, applied {replica.applied}, ready "
                f"{replica.ready}, {replica.read_only or 'writable'}, {state.membership}"
            )


async def _ended(start: asyncio.Future[None]) -> None:
    """Its node may start, or refuse to: both are right."""
    await asyncio.wait((start,))


async def _checkpoint(node: Node) -> None:
    try:
        await node.checkpoint()
    except QuorateError:
        return


def _records(node: Node) -> dict[tuple[str, bytes], bytes]:
    tables = node.machines.tables
    return {
        (table.name, bytes(key)): tables.encode(table.name, record)
        for table in tables
        for key, record in table.items()
    }


def _sooner(quiet_s: float) -> list[tuple[ModuleType, str, float]]:
    """Let lives be folded *quiet_s* after the last began or ended, and all that belongs to it come
    as much sooner."""
    usual_s = stability.QUIET_S
    return [
        _set(module, name, vars(module)[name] * quiet_s / usual_s)
        for module, name in (
            (stability, "QUIET_S"),
            (stability, "STABLE_S"),
            (stability, "PROPOSE_S"),
            (folding, "BEHIND_S"),
        )
    ]


def _set(module: ModuleType, name: str, value: float) -> tuple[ModuleType, str, float]:
    """Give a constant of the product another value; returns how it was."""
    before = vars(module)[name]
    vars(module)[name] = value
    return module, name, before


def _disk_settings(settings: Settings) -> DiskSettings:
    least_s = settings.disk_delay_ms / 5000
    return DiskSettings(
        job_s_min=least_s, job_s_max=settings.disk_delay_ms / 1000, honest_fsync=settings.fsync
    )


def _cluster_settings(settings: Settings) -> ClusterSettings:
    delay_s = settings.network_delay_ms / 1000
    return ClusterSettings(
        election_timeout_ms=settings.election_timeout_ms,
        heartbeat_ms=settings.heartbeat_ms,
        machines=lambda: [Fuse()],
        checkpoint_bytes=settings.checkpoint_bytes,
        segment_bytes=settings.segment_bytes,
        core={
            "append_bytes_max": settings.append_bytes_max,
            "inflight_messages_max": settings.inflight_messages_max,
            "uncommitted_bytes_max": settings.uncommitted_bytes_max,
        },
        node={"lease_reads": settings.lease_reads, "fast_failover": settings.fast_failover},
        network=LinkSettings(
            delay_s_min=delay_s / 5, delay_s_max=delay_s, repeat_chance=settings.repeat_chance
        ),
        disk=_disk_settings(settings),
    )
