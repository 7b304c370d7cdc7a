"""Whole nodes and their clients in one thread on virtual time: start them, hurt them, ask them.

    with SimulatedCluster(seed=7) as cluster:
        async def story() -> None:
            await cluster.start(3)
            db = cluster.connect("alice")
            await db.kv.put("k", "v")
            cluster.crash_all()
            await cluster.restart_all()
            ...
        cluster.run(story())

Nodes are named by their numbers, clients by their names. Faults act at once; what takes time is
``async``. Everything that happens follows from the seed: ``digest`` proves it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, Final, NamedTuple, Self, TextIO, TypeVar

from jepsen_like.errors import UsageError
from jepsen_like.simulation.disk import Backup, Kept, SimulatedDisk
from jepsen_like.simulation.hosts import Host, HostClock, Process
from jepsen_like.simulation.links import LinkSettings
from jepsen_like.simulation.loop import Problem, VirtualLoop
from jepsen_like.simulation.members import PORT, ClusterSettings, Member
from jepsen_like.simulation.network import Network
from jepsen_like.simulation.trace import Trace
from quorate.client.database import Database
from quorate.server.config import NodeConfig
from quorate.server.node import Node

T = TypeVar("T")
#: A node by its number, or a client by its name.
Name = int | str

#: The wall clocks of all hosts begin about here: some day in 2023.
WALL_MS: Final = 1_700_000_000_000
NODES_MAX: Final = 200
POLL_S: Final = 0.01


class ClusterStatistics(NamedTuple):
    """Counts since the run began. *steps*: callbacks run."""

    steps: int
    virtual_s: float
    bytes_delivered: int
    chunks_delivered: int
    connections: int
    resets: int
    frames_meddled: int
    disk_operations: int
    starts: int


class SimulatedCluster:
    """See the module. *text*: where to write the trace of events, for people.

    ``on_node`` is called with the number of a member and each new ``Node`` of it before it starts.
    ``loop.on_step`` and ``loop.on_instant`` are hooks for checkers.
    """

    def __init__(
        self,
        seed: int | str,
        settings: ClusterSettings | None = None,
        *,
        text: TextIO | None = None,
    ) -> None:
        self.seed = seed
        self.settings = settings or ClusterSettings()
        self.loop = VirtualLoop(Trace(text))
        self.random = Random(f"{seed}/cluster")
        self.network = Network(self.loop, Random(f"{seed}/network"), self.settings.network)
        self.members: dict[int, Member] = {}
        self.clients: dict[str, Host] = {}
        self.on_node: Callable[[int, Node], None] = _ignore
        self._hosts = 0
        self._processes: list[Process] = []
        self._handles: dict[str, int] = {}  # how many each process has

    # --- the run ---------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on behalf of the world until it ends.

        Raises:
            StuckError: it can never end. Also whatever it raises itself.
        """
        with _quiet():
            result: T = self.loop.run_until_complete(coroutine)
        return result

    def close(self) -> None:
        """End everything. Idempotent."""
        hosts = [member.host for member in self.members.values()] + list(self.clients.values())
        with _quiet():
            self.loop.finish(host.process for host in hosts if host.process is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def now_s(self) -> float:
        """True time since the run began."""
        return self.loop.now_s

    @property
    def problems(self) -> list[Problem]:
        """Exceptions that nobody caught, in nodes, clients and the world."""
        return self.loop.problems

    def digest(self) -> str:
        """Of everything that happened so far; equal for two runs of one seed."""
        return self.loop.trace.digest()

    def statistics(self) -> ClusterStatistics:
        """Counts."""
        members = self.members.values()
        return ClusterStatistics(
            self.loop.steps,
            self.loop.now_s,
            *self.network.statistics(),
            disk_operations=sum(member.disk.operations for member in members),
            starts=sum(member.starts for member in members),
        )

    def note(self, text: str) -> None:
        """A line in the trace, for people."""
        self.loop.trace.add(self.now_s, "fault", 0, 0, text)

    # --- nodes -----------------------------------------------------------------------------------

    async def start(self, count: int) -> None:
        """Found a cluster of nodes 1 to *count*; done when all of them serve."""
        numbers = range(1, count + 1)
        initial = {number: self.address(number) for number in numbers}
        for number in numbers:
            self._add_member(number, initial=initial)
        await asyncio.gather(*(self.members[number].begin() for number in numbers))

    async def add(self, number: int) -> None:
        """Start a new node that joins; done when it serves. A leader has to let it in:
        ``db.add_member(number, cluster.address(number))``, before or after."""
        join = tuple(self.address(each) for each in self.members)
        self._add_member(number, join=join)
        await self.members[number].begin()

    def address(self, number: int) -> str:
        """Where node *number* listens."""
        if not 1 <= number <= NODES_MAX:
            raise UsageError(f"a simulated node has a number from 1 to {NODES_MAX}, not {number}")
        return f"127.0.0.{number}:{PORT}"

    def restart(self, number: int) -> asyncio.Future[None]:
        """Start a node that does not run. The future ends when it serves, or with the reason why
        it never will (also in ``members[number].failure``); it may be ignored."""
        return self.members[number].begin()

    async def restart_all(self) -> None:
        """Start all that do not run; done when they serve."""
        down = [member for member in self.members.values() if not member.alive]
        await asyncio.gather(*(member.begin() for member in down))

    async def stop(self, number: int) -> None:
        """Stop a node properly, as SIGTERM does."""
        member = self.members[number]
        node, process = member.node, member.host.process
        if node is None or process is None:
            return
        self.loop.spawn(process, node.stop())
        while process.alive:  # noqa: ASYNC110  on virtual time a poll costs nothing
            await asyncio.sleep(POLL_S)

    def crash(self, number: int, *, power: bool = True, kept: Kept = "any") -> None:
        """Kill a node. *power* False: only its process; else its machine, whose peers get no word
        of it, and which loses unsynced bytes as *kept* says."""
        self.members[number].crash(power=power, kept=kept)

    def crash_all(self, *, power: bool = True, kept: Kept = "any") -> None:
        """At one instant."""
        for member in self.members.values():
            member.crash(power=power, kept=kept)

    def pause(self, name: Name) -> None:
        """Stop a process where it stands (SIGSTOP)."""
        process = self.host(name).process
        if process is not None:
            self._note("pause", name)
            self.loop.pause(process)

    def resume(self, name: Name) -> None:
        """Let it go on (SIGCONT)."""
        process = self.host(name).process
        if process is not None:
            self._note("resume", name)
            self.loop.resume(process)

    def wipe(self, number: int) -> None:
        """Empty the disk of a node that does not run; it keeps its number."""
        self._stopped(number).disk.wipe()

    def backup(self, number: int) -> Backup:
        """A copy of a node's disk, for ``rollback``."""
        return self.members[number].disk.backup()

    def rollback(self, number: int, backup: Backup) -> None:
        """Put an old copy in the place of the disk of a node that does not run."""
        self._stopped(number).disk.restore(backup)

    def disk(self, number: int) -> SimulatedDisk:
        """Of a node; its methods are the faults of disks."""
        return self.members[number].disk

    @property
    def nodes(self) -> dict[int, Node]:
        """Nodes that have started and not ended; paused ones, too."""
        return {
            number: member.node
            for number, member in self.members.items()
            if member.node is not None and _is_started(member)
        }

    def leader(self) -> int:
        """The running, unpaused node that leads in the highest term, 0 if none does."""
        best, best_term = 0, -1
        for number, node in self.nodes.items():
            state = node.replica.core.state
            leads = node.replica.is_leader and not node.replica.stopped
            if leads and not self.members[number].paused and state.term > best_term:
                best, best_term = number, int(state.term)
        return best

    async def wait_leader(self, timeout_s: float = 30.0) -> int:
        """The leader, once it has committed an entry of its own term.

        Raises:
            TimeoutError: there was none in that (virtual) time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                if number := self.leader():
                    state = self.nodes[number].replica.core.state
                    if state.log.term_at(state.commit) == state.term:
                        return number
                await asyncio.sleep(POLL_S)

    async def converged(self, timeout_s: float = 30.0) -> None:
        """Until all nodes that run have applied the same, and all that their leader's log holds.

        Raises:
            TimeoutError: they did not in that (virtual) time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                nodes = self.nodes
                applied = {node.replica.applied for node in nodes.values()}
                number = self.leader()
                if number and len(applied) == 1:
                    last = nodes[number].replica.core.state.log.last_index
                    if applied == {last}:
                        return
                await asyncio.sleep(POLL_S)

    # --- clients ---------------------------------------------------------------------------------

    def connect(self, name: str, *numbers: int, **options: Any) -> Database:  # noqa: ANN401
        """A handle for client *name*, on a host of its own, that is given the addresses of
        *numbers* (of all). *options*: as ``quorate.connect``'s. Await its calls in a coroutine
        that ``spawn`` or ``call`` runs on that host, if its clock, its pauses or its death are to
        matter; while its clock is right, they may be awaited anywhere."""
        host = self.clients.get(name)
        if host is None:
            host = self.clients[name] = self._new_host(
                name, f"127.1.0.{len(self.clients) + 1}", self.loop.now_s
            )
        process = host.process
        if process is None or not process.alive:
            process = host.begin()
            self._processes.append(process)
        addresses = ",".join(self.address(number) for number in numbers or self.members)
        # Two handles never draw the same numbers: some of these are who they are.
        place = f"{name}/{len(self._processes)}"
        number = self._handles[place] = self._handles.get(place, 0) + 1
        more = f"/{number}" if number > 1 else ""
        random = Random(f"{self.seed}/client/{place}{more}")
        # The client's tasks begin here, on behalf of its process, not with its first call.
        return process.context.run(_open_handle, addresses, {**options, "random": random})

    def spawn(self, name: Name, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *coroutine* on the host of *name*. The task never ends if that process dies."""
        process = self.host(name).process
        if process is None:
            raise UsageError(f"nothing runs on the host of {name!r}")
        return self.loop.spawn(process, coroutine)

    async def call(self, name: Name, coroutine: Coroutine[Any, Any, T]) -> T:
        """``spawn``, and wait for the result."""
        return await self.spawn(name, coroutine)

    def crash_client(self, name: str) -> None:
        """Kill a client's process; ``connect`` starts another one."""
        process = self.host(name).process
        if process is not None and process.alive:
            self._note("crash", name)
            self.loop.kill(process)
            self.network.process_died(process)

    # --- the network and the clocks --------------------------------------------------------------

    def cut(self, source: Name, target: Name) -> None:
        """What *source* sends no longer reaches *target*, until healed."""
        self.network.cut(_host_name(source), _host_name(target))

    def cut_both(self, a: Name, b: Name) -> None:
        """Neither way."""
        self.cut(a, b)
        self.cut(b, a)

    def partition(self, groups: Iterable[Sequence[Name]]) -> None:
        """Nothing passes between hosts of two different *groups*; others reach everybody."""
        sides = [list(group) for group in groups]
        for at, side in enumerate(sides):
            for other in sides[at + 1 :]:
                for a in side:
                    for b in other:
                        self.cut_both(a, b)

    def heal(self, source: Name | None = None, target: Name | None = None) -> None:
        """Undo the cut of one way, or without arguments all cuts."""
        if source is not None and target is not None:
            self.network.heal(_host_name(source), _host_name(target))
            return
        for a, b in list(self.network.links):
            self.network.heal(a, b)

    def set_link(self, source: Name, target: Name, settings: LinkSettings | None) -> None:
        """How one way behaves; None: as all others."""
        self.network.set_link(_host_name(source), _host_name(target), settings)

    def set_links(self, settings: LinkSettings | None) -> None:
        """How all ways behave; None: as the cluster's settings say."""
        self.network.settings = settings or self.settings.network
        for a, b in list(self.network.links):
            self.network.set_link(a, b, None)

    def reset(self, a: Name, b: Name) -> int:
        """Break all connections between two hosts; how many there were."""
        return self.network.reset(_host_name(a), _host_name(b))

    def set_clock_rate(self, name: Name, rate: float) -> None:
        """Let a host's clocks run faster or slower; 1.0 is right."""
        host = self.host(name)
        host.clock.set_rate(rate)
        if host.process is not None:
            self.loop.retime(host.process)

    def jump_wall_clock(self, name: Name, by_ms: int) -> None:
        """Set a host's wall clock; monotonic clocks never jump."""
        self.host(name).clock.jump_wall(by_ms)

    def host(self, name: Name) -> Host:
        """By its number or name."""
        if isinstance(name, int):
            return self.members[name].host
        return self.clients[name]

    # --- inside ----------------------------------------------------------------------------------

    def _new_host(self, name: str, address: str, start_s: float) -> Host:
        """*start_s*: its monotonic clock now."""
        random = self.random
        clock = HostClock(
            self.loop.true_time,
            start_s=start_s,
            wall_ms=WALL_MS + random.randrange(-5000, 5000),
        )
        self._hosts += 1
        host = Host(name, self._hosts, address, clock)
        self.network.add(host)
        return host

    def _add_member(
        self, number: int, *, initial: dict[int, str] | None = None, join: tuple[str, ...] = ()
    ) -> None:
        if number in self.members:
            raise UsageError(f"node {number} is there already: restart it")
        settings = self.settings
        address = self.address(number)
        uptime_s = self.random.uniform(0, 1000)
        host = self._new_host(_host_name(number), address.partition(":")[0], uptime_s)
        seed = f"{self.seed}/disk/{number}"
        disk = SimulatedDisk(self.loop, host, Random(seed), settings.disk)
        config = NodeConfig(
            node_id=number,
            data=f"/data/{number}",
            listen=address,
            initial=initial or {},
            join=join,
            election_timeout_ms=settings.election_timeout_ms,
            heartbeat_ms=settings.heartbeat_ms,
            **settings.node,
        )
        member = Member(self.loop, self.network, host, disk, config, settings, f"{self.seed}/node")
        member.on_node = lambda node: self.on_node(number, node)
        self.members[number] = member
        if not settings.disk.honest_fsync:
            self._write_back(disk)

    def _write_back(self, disk: SimulatedDisk) -> None:
        disk.write_back()
        self.loop.schedule(
            self.loop.now_s + disk.settings.writeback_s, None, self._write_back, disk
        )

    def _stopped(self, number: int) -> Member:
        member = self.members[number]
        if member.alive:
            raise UsageError(f"node {number} runs: crash or stop it first")
        return member

    def _note(self, kind: str, name: Name) -> None:
        self.loop.trace.add(self.now_s, kind, self.host(name).number, 0)


class _Handle(Database):
    """There is one thread, and no other loop than the simulated one."""

    def twin(self) -> Database | None:
        return None


def _open_handle(addresses: str, options: dict[str, Any]) -> Database:
    handle = _Handle(addresses, **options)
    handle._running()  # noqa: SLF001  as its first call does
    return handle


def _host_name(name: Name) -> str:
    return f"n{name}" if isinstance(name, int) else name


def _is_started(member: Member) -> bool:
    started = member.started
    return started.done() and not started.cancelled() and started.exception() is None


def _ignore(_number: int, _node: Node) -> None:
    """Nobody listens."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Nodes log what faults do to them, thousands of times; and when the garbage collector runs
    must not depend on what ran before."""
    logger = logging.getLogger("quorate")
    level, collects = logger.level, gc.isenabled()
    logger.setLevel(logging.CRITICAL + 1)
    gc.disable()
    try:
        yield
    finally:
        logger.setLevel(level)
        if collects:
            gc.enable()
