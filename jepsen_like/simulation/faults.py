"""The nemesis of simulated clusters: carries out the faults of a plan, each at its time.

Each fault undoes itself after its time, so any of them can be left out. What no replicated system
can bear is not done (``Atlas``): at all times a quorum of disks that nobody tampered with holds
the whole log of the leader. A fault that finds nothing to act on, or may not be, is skipped.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Final

from jepsen_like.processes.shapes import SHAPES, Links
from jepsen_like.simulation.atlas import Atlas
from jepsen_like.simulation.converging_faults import ConvergingFaults
from jepsen_like.simulation.links import LinkSettings
from jepsen_like.simulation.load import Load
from jepsen_like.simulation.membership import Keeper
from jepsen_like.simulation.plan import Fault
from jepsen_like.simulation.stage import Stage

#: Partitions by kind of fault; the leader is put first where the kind says so.
_SHAPES: Final[Mapping[str, tuple[str, ...]]] = {
    "isolate-leader": ("isolated",),
    "isolate-one": ("isolated",),
    "halves": ("halves",),
    "bridge": ("bridge",),
    "majorities-ring": ("ring",),
    "one-way": ("mute", "deaf"),
}
#: Wall clocks jump by up to a day; they are for display only, and must hurt nobody.
WALL_JUMP_MS_MAX: Final = 86_400_000
#: Jobs of a disk that were under way when it was mended have ended by then.
UNDER_WAY_S: Final = 0.5


class Nemesis:
    """*faults* are done on *stage*; *keeper* changes its membership, *load* has the clients."""

    def __init__(self, stage: Stage, atlas: Atlas, keeper: Keeper, load: Load) -> None:
        self.done: dict[str, int] = {}
        self.skipped = 0
        self._stage = stage
        self._atlas = atlas
        self._keeper = keeper
        self._load = load
        self._cuts: dict[tuple[int, int], int] = {}  # how many faults cut a link
        self._links: dict[tuple[int, int], LinkSettings] = {}
        self._faults_told = 0  # in histories
        self._tasks: list[asyncio.Task[None]] = []
        kinds: dict[str, Callable[[Fault], Awaitable[bool]]] = dict.fromkeys(
            _SHAPES, self._partition
        )
        kinds |= {
            "clog": self._clog,
            "delay": self._slow_links,
            "reset": self._reset,
            "replay": self._replay,
            "crash-one": self._crash_one,
            "crash-leader": self._crash_one,
            "crash-all": self._crash_all,
            "pause-one": self._pause,
            "pause-leader": self._pause,
            "restart-storm": self._restart_storm,
            "clock-drift": self._clock_drift,
            "clock-jump": self._clock_jump,
            "wall-jump": self._wall_jump,
            "disk-slow": self._disk_slow,
            "disk-stall": self._disk_stall,
            "disk-full": self._disk_full,
            "eio-read": self._disk_error,
            "eio-write": self._disk_error,
            "eio-fsync": self._disk_error,
            "bit-flip": self._damage,
            "truncate": self._damage,
            "wipe": self._wipe,
            "rollback": self._rollback,
            "add": self._add,
            "promote": self._promote,
            "remove": self._remove,
            "demote": self._demote,
            "replace": self._replace,
            "transfer": self._transfer,
            "checkpoint": self._checkpoint,
            "lag": self._lag,
            "client-crash": self._client_crash,
            "client-pause": self._client_pause,
            "client-twin": self._client_twin,
            "client-freeze": self._client_freeze,
            "client-cut": self._client_cut,
            "client-drift": self._client_drift,
            "client-clock": self._client_clock,
        }
        more = ConvergingFaults(stage, atlas, keeper, self._cut, self._heal)
        self._kinds = kinds | more.kinds

    async def run(self, faults: tuple[Fault, ...], begin_s: float, seconds: float) -> None:
        """Do those that come within *seconds* after *begin_s*, each at its time after that."""
        loop = asyncio.get_running_loop()
        for fault in faults:
            if fault.at_s >= seconds:
                break
            await asyncio.sleep(max(begin_s + fault.at_s - loop.time(), 0))
            self._tasks.append(loop.create_task(self._do(fault)))
        await asyncio.sleep(max(begin_s + seconds - loop.time(), 0))

    async def _do(self, fault: Fault) -> None:
        self._stage.note(fault.kind, fault.who)
        if await self._kinds[fault.kind](fault):
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        else:
            self.skipped += 1

    async def heal(self) -> None:
        """Undo everything, now: links, clocks, disks, pauses; start what is down."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stage = self._stage
        self._cuts.clear()
        stage.heal_network()
        for node in stage.nodes():
            stage.mend(node)
            stage.resume(node)
            stage.set_rate(node, 1.0)
        for machine in self._load.machines():
            stage.resume(machine)
            stage.set_rate(machine, 1.0)
        for node in stage.nodes():
            if not stage.runs(node) and not self._keeper.retired(node):
                await stage.start(node)
        # What was under way on a sick disk fails even now, and stops its node.
        await asyncio.sleep(UNDER_WAY_S)
        for node in stage.nodes():
            if not self._keeper.retired(node):
                await self._revive(node)

    # --- who ------------------------------------------------------------------------------------

    def _one(self, fault: Fault) -> int | None:
        """A node that runs: the leader if the kind asks for it."""
        running = [node for node in self._stage.nodes() if self._stage.runs(node)]
        if fault.kind.endswith("leader"):
            return self._stage.leader()
        return running[fault.who % len(running)] if running else None

    # --- the network ----------------------------------------------------------------------------

    async def _partition(self, fault: Fault) -> bool:
        nodes = self._stage.nodes()
        random = Random(fault.seed)
        random.shuffle(nodes)
        leader = self._stage.leader()
        if leader is not None and (fault.kind == "isolate-leader" or random.random() < 0.5):
            nodes = [leader, *(node for node in nodes if node != leader)]
        if len(nodes) < 2:
            return False
        names = _SHAPES[fault.kind]
        links = SHAPES[names[random.randrange(len(names))]](nodes)
        if not links:
            return False
        self._cut(links)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self._heal(links)
        return True

    def _cut(self, links: Links) -> None:
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1
            self._stage.cut(*link)

    def _heal(self, links: Links) -> None:
        for link in links:
            left = self._cuts.get(link, 1) - 1
            self._cuts[link] = left
            if left <= 0:
                self._stage.heal(*link)

    async def _clog(self, fault: Fault) -> bool:
        """A few links stand still, one after the other, and go on in another order."""
        nodes = self._stage.nodes()
        random = Random(fault.seed)
        pairs = [(a, b) for a in nodes for b in nodes if a != b]
        chosen = random.sample(pairs, min(len(pairs), 1 + int(fault.strength * 4)))
        if not chosen:
            return False
        for link in chosen:
            self._cut([link])
            await asyncio.sleep(fault.seconds / 8)
        await asyncio.sleep(fault.seconds / 2)
        random.shuffle(chosen)
        for link in chosen:
            self._heal([link])
            await asyncio.sleep(fault.seconds / 8)
        return True

    async def _sick_links(
        self, fault: Fault, settings: LinkSettings, *, anew: bool = False
    ) -> bool:
        """*settings* on all links of a node, or of all. *anew*: their connections break first, for
        only of new ones the single frames are looked at."""
        nodes = self._stage.nodes()
        if len(nodes) < 2:
            return False
        center = nodes[fault.who % len(nodes)]
        everywhere = fault.strength < 0.4
        links = [
            (a, b) for a in nodes for b in nodes if a != b and (everywhere or center in {a, b})
        ]
        for link in links:
            self._stage.set_link(*link, settings)
            if anew:
                self._stage.reset(*link)
        await asyncio.sleep(fault.seconds)
        for link in links:
            self._stage.set_link(*link, None)
        return True

    async def _slow_links(self, fault: Fault) -> bool:
        delay_s = 0.002 + fault.strength * 0.15
        return await self._sick_links(
            fault, LinkSettings(delay_s_max=delay_s, stall_chance=0.02, stall_s_max=delay_s * 5)
        )

    async def _replay(self, fault: Fault) -> bool:
        """Old frames come again, frames overtake each other, and some are lost; bytes come in
        pieces, and connections break in the middle of a frame."""
        chance = 0.02 + fault.strength * 0.2
        return await self._sick_links(
            fault,
            LinkSettings(
                repeat_chance=chance,
                swap_chance=chance / 2,
                lose_chance=chance / 4,
                chunk_chance=chance,
                reset_chance=0.005,
            ),
            anew=True,
        )

    async def _reset(self, fault: Fault) -> bool:
        """Connections break, some in the middle of a frame."""
        nodes = self._stage.nodes()
        one = nodes[fault.who % len(nodes)]
        for other in nodes:
            if other != one and (fault.strength < 0.5 or (other + fault.seed) % 2):
                self._stage.reset(one, other)
        settings = LinkSettings(reset_chance=0.02 + 0.1 * fault.strength, chunk_chance=0.2)
        return await self._sick_links(fault, settings)

    # --- processes ------------------------------------------------------------------------------

    async def _crash_one(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.crash(node, power=fault.strength < 0.7)
        await asyncio.sleep(fault.seconds)
        await self._stage.start(node)
        return True

    async def _crash_all(self, fault: Fault) -> bool:
        """The power of the whole room; it comes back one by one."""
        running = [node for node in self._stage.nodes() if self._stage.runs(node)]
        for node in running:
            self._stage.crash(node, power=True)
        random = Random(fault.seed)
        random.shuffle(running)
        for node in running:
            await asyncio.sleep(random.random() * fault.seconds / 4)
            await self._stage.start(node)
        return bool(running)

    async def _restart_storm(self, fault: Fault) -> bool:
        """One node dies again and again, soon after each start."""
        node = self._one(fault)
        if node is None:
            return False
        random = Random(fault.seed)
        for _ in range(3):
            if not self._stage.runs(node):
                break
            self._stage.crash(node, power=random.random() < 0.7)
            await asyncio.sleep(random.random() * 0.1)
            await self._stage.start(node)
            await asyncio.sleep(random.random() * fault.seconds / 3)
        return True

    async def _pause(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.pause(node)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self._stage.resume(node)
        return True

    # --- clocks ---------------------------------------------------------------------------------

    async def _clock_drift(self, fault: Fault) -> bool:
        """Half to twice the pace; leases rely on less, and their nodes get a tenth."""
        node = self._one(fault)
        if node is None:
            return False
        if self._stage.lease_reads:
            await self._at_pace(node, 1 + (fault.strength - 0.5) * 0.1, fault.seconds)
        else:
            await self._bent(node, 0.5 + fault.strength, fault.seconds)
        return True

    async def _at_pace(self, name: int | str, rate: float, seconds: float) -> None:
        self._stage.set_rate(name, rate)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stage.set_rate(name, 1.0)

    async def _bent(self, name: int | str, rate: float, seconds: float) -> None:
        """Beyond any margin: what leases mean meanwhile is nobody's promise."""
        self._faults_told += 1
        number, what = self._faults_told, f"{name} runs at {rate:g}"
        self._load.tell("clock-rate", number, "begin", what)
        try:
            await self._at_pace(name, rate, seconds)
        finally:
            self._load.tell("clock-rate", number, "end", what)

    async def _clock_jump(self, fault: Fault) -> bool:
        """The monotonic clock leaps ahead, as after a machine was suspended: a pause that its
        clocks count, or do not."""
        node = self._one(fault)
        if node is None:
            return False
        self._stage.pause(node)
        await asyncio.sleep(min(fault.seconds, 0.5))
        self._stage.jump_wall(node, int(fault.seconds * 1000))
        self._stage.resume(node)
        return True

    async def _wall_jump(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.jump_wall(node, int((fault.strength - 0.5) * 2 * WALL_JUMP_MS_MAX))
        return True

    # --- disks ----------------------------------------------------------------------------------

    async def _disk_slow(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.slow_disk(node, 0.005 + 0.1 * fault.strength)
        await asyncio.sleep(fault.seconds)
        self._stage.slow_disk(node, 0.0)
        return True

    async def _disk_stall(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.stall_disk(node, fault.seconds * (1 + 3 * fault.strength))
        await asyncio.sleep(fault.seconds)
        return True

    async def _disk_full(self, fault: Fault) -> bool:
        node = self._one(fault)
        if node is None:
            return False
        self._stage.fill_disk(node, fault.seconds)
        await asyncio.sleep(fault.seconds)
        await self._revive(node)
        return True

    async def _disk_error(self, fault: Fault) -> bool:
        """The next few operations fail; a node that stops for it comes back on a good disk."""
        node = self._one(fault)
        if node is None:
            return False
        kind = fault.kind.removeprefix("eio-")
        code = errno.EIO
        self._stage.fail_disk(node, kind, code=code, count=1 + int(fault.strength * 3))
        await asyncio.sleep(fault.seconds)
        self._stage.mend(node)
        await self._revive(node)
        return True

    async def _revive(self, node: int) -> None:
        """Restart it if it stopped by itself: as a supervisor would."""
        if self._stage.stopped_itself(node):
            await self._stage.start(node)

    # --- damage ---------------------------------------------------------------------------------

    async def _damage(self, fault: Fault) -> bool:
        """A bit flips, or a file is cut short, while the node is down. It notices and refuses to
        start, or it was nothing that mattered; if it refuses, it is replaced."""
        node = self._one(fault)
        if node is None or not self._atlas.may_lose(node):
            return False
        self._stage.crash(node, power=True)
        self._atlas.lost(node, damaged=True)
        random = Random(fault.seed)
        disk = self._stage.disk(node)
        where = disk.flip_bit(random) if fault.kind == "bit-flip" else disk.truncate(random)
        self._stage.note(where, node)
        await asyncio.sleep(fault.seconds / 2)
        if not await self._stage.start(node):
            await self._keeper.replace(node)
        return bool(where)

    async def _wipe(self, fault: Fault) -> bool:
        """The disk is new and empty, and the node comes back under its old number: everybody must
        refuse it, until it is removed and another takes its place."""
        node = self._one(fault)
        if node is None or not self._atlas.may_wipe(node):
            return False
        self._stage.crash(node, power=True)
        self._atlas.lost(node)
        self._stage.disk(node).wipe()
        await self._stage.start(node)
        await asyncio.sleep(fault.seconds)
        await self._keeper.replace(node)
        return True

    async def _rollback(self, fault: Fault) -> bool:
        """Somebody restores an old copy of the disk. Nobody can tell it from an honest one, so it
        is done only while all others hold everything, and the node is replaced afterwards."""
        node = self._one(fault)
        if node is None:
            return False
        backup = self._stage.disk(node).backup()
        await asyncio.sleep(fault.seconds)
        if not self._stage.runs(node) or not self._atlas.may_lose(node):
            return False
        self._stage.crash(node, power=True)
        self._atlas.lost(node)
        self._stage.disk(node).restore(backup)
        await self._stage.start(node)
        await asyncio.sleep(fault.seconds)
        await self._keeper.replace(node)
        return True

    # --- members and leadership -----------------------------------------------------------------

    async def _add(self, fault: Fault) -> bool:
        return await self._keeper.add(promote=fault.strength < 0.5)

    async def _promote(self, fault: Fault) -> bool:
        return await self._keeper.promote(fault.who)

    async def _demote(self, fault: Fault) -> bool:
        return await self._keeper.demote(fault.who)

    async def _remove(self, fault: Fault) -> bool:
        return await self._keeper.remove(fault.who)

    async def _replace(self, fault: Fault) -> bool:
        node = self._one(fault)
        return node is not None and await self._keeper.replace(node)

    async def _transfer(self, fault: Fault) -> bool:
        return await self._keeper.transfer(fault.who)

    # --- snapshots ------------------------------------------------------------------------------

    async def _checkpoint(self, fault: Fault) -> bool:
        node = self._one(fault)
        return node is not None and await self._stage.checkpoint(node)

    async def _lag(self, fault: Fault) -> bool:
        """A node is away until the others have cut their logs: it needs a snapshot."""
        node = self._one(fault)
        if node is None or len(self._stage.nodes()) < 2:
            return False
        self._stage.crash(node, power=False)
        for _ in range(2):
            await asyncio.sleep(fault.seconds / 2 + 0.2)
            for other in self._stage.nodes():
                if self._stage.runs(other):
                    await self._stage.checkpoint(other)
        await self._stage.start(node)
        return True

    # --- clients --------------------------------------------------------------------------------

    async def _client_crash(self, fault: Fault) -> bool:
        return self._load.crash(fault.who)

    async def _client_pause(self, fault: Fault) -> bool:
        until_s = asyncio.get_running_loop().time() + fault.seconds * 2
        return self._load.pause(fault.who, until_s)

    async def _client_twin(self, fault: Fault) -> bool:
        return self._load.twin(fault.who)

    async def _client_freeze(self, fault: Fault) -> bool:
        """Its process stands still where it is (SIGSTOP), longer than some leases live."""
        machine = self._load.machine(fault.who)
        if not machine:
            return False
        self._stage.pause(machine)
        try:
            await asyncio.sleep(fault.seconds + 3 * fault.strength)
        finally:
            self._stage.resume(machine)
        return True

    async def _client_cut(self, fault: Fault) -> bool:
        """It reaches no node, or is not reached by any, or neither."""
        machine = self._load.machine(fault.who)
        nodes = self._stage.nodes()
        if not machine or not nodes:
            return False
        deaf, mute = ((True, True), (True, False), (False, True))[fault.seed % 3]
        links: list[tuple[int | str, int | str]] = [(machine, node) for node in nodes if mute]
        links += [(node, machine) for node in nodes if deaf]
        self._faults_told += 1
        told = {"id": self._faults_told, "what": f"{machine} is cut off", "nodes": nodes}
        self._load.tell_of_nodes("clients", {**told, "do": "begin"}, self._stage.now_s)
        for link in links:
            self._stage.cut(*link)
        try:
            await asyncio.sleep(fault.seconds + 3 * fault.strength)
        finally:
            for link in links:
                self._stage.heal(*link)
            self._load.tell_of_nodes("clients", {**told, "do": "end"}, self._stage.now_s)
        return True

    async def _client_drift(self, fault: Fault) -> bool:
        """Its clock runs a little wrong: as far as leases allow for, if nodes' clocks are right."""
        machine = self._load.machine(fault.who)
        if not machine:
            return False
        rate, seconds = 1 + (fault.strength - 0.5) * 0.16, fault.seconds * 4
        if self._stage.settings.clock_rates:
            await self._bent(machine, rate, seconds)
        else:
            await self._at_pace(machine, rate, seconds)
        return True

    async def _client_clock(self, fault: Fault) -> bool:
        """Its clock runs at a fifth to twice its pace; only fencing tokens help."""
        machine = self._load.machine(fault.who)
        if not machine:
            return False
        rate = 0.2 + 0.3 * fault.strength if fault.seed % 2 else 1 + fault.strength
        await self._bent(machine, rate, fault.seconds + 2.0)
        return True
