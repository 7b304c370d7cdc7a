"""What happens to a cluster during the rough phase: faults, drawn one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Protocol

from jepsen_like.systems.pysyncobj.member import Member
from jepsen_like.systems.pysyncobj.network import Network
from jepsen_like.systems.pysyncobj.plan import Plan
from jepsen_like.systems.pysyncobj.schedule import Schedule
from jepsen_like.systems.pysyncobj.watch import Watch

#: Members there ever may be.
MEMBERS_MAX: Final = 9
#: Seconds that a fault lasts: most are short, some outlast every timeout.
LASTS_S: Final = (0.3, 1.0, 3.0, 8.0)
#: Writes of the journal's file within which a process that is killed may still die.
DYING_WRITES_MAX: Final = 40


class Cluster(Protocol):
    """What faults are done to."""

    members: list[Member]
    network: Network
    schedule: Schedule
    watch: Watch

    def add_member(self, founders: tuple[str, ...]) -> Member: ...
    def restart(self, member: Member, cause: str) -> None: ...


class Faults:
    """*plan* says which kinds. All of them end with ``heal``."""

    def __init__(self, cluster: Cluster, plan: Plan, random: Random) -> None:
        self.counts: dict[str, int] = {}
        self._cluster, self._plan, self._random = cluster, plan, random
        self._over = False
        self._down: dict[str, str] = {}  # member: what ended it
        self._kinds: dict[str, Callable[[], str]] = {
            "isolate": self._isolate,
            "halve": self._halve,
            "one-way": self._one_way,
            "kill": self._kill,
            "power": self._power,
            "pause": self._pause,
            "compact": self._compact,
            "membership": self._membership,
            "transfer": self._transfer,
            "clock": self._clock,
        }

    async def run(self) -> None:
        """Draw and do faults until ``heal``."""
        schedule, plan = self._cluster.schedule, self._plan
        while plan.faults:
            await schedule.sleep(self._random.expovariate(1.0 / plan.fault_gap_s))
            if self._over:
                return
            kind = self._random.choice(plan.faults)
            done = self._kinds[kind]()
            if done:
                self.counts[kind] = self.counts.get(kind, 0) + 1
                self._cluster.watch.note(f"fault: {done}")

    def heal(self) -> None:
        """No more faults: ways are free, and every member runs."""
        self._over = True
        self._cluster.watch.note("all faults are healed")
        self._cluster.network.heal()
        for member in self._cluster.members:
            member.writes_left = None
            if member.paused:
                member.resume()
            if not member.running:
                self._cluster.restart(member, self._down.pop(member.name, "kill"))

    # --- choices --------------------------------------------------------------------------------

    def _running(self) -> list[Member]:
        return [each for each in self._cluster.members if each.running and not each.paused]

    def _victim(self) -> Member | None:
        """The leader half of the time."""
        running = self._running()
        leaders = [each for each in running if each.leads]
        if leaders and self._random.random() < 0.5:
            return self._random.choice(leaders)
        return self._random.choice(running) if running else None

    def _later(self, action: Callable[[], None]) -> None:
        """When the fault has lasted; not once all is healed."""
        lasts_s = self._random.choice(LASTS_S) * (0.5 + self._random.random())
        self._cluster.schedule.after(lasts_s, lambda: None if self._over else action())

    # --- kinds ----------------------------------------------------------------------------------

    def _cut(self, ways: Sequence[tuple[str, str]]) -> None:
        network = self._cluster.network
        for way in ways:
            network.cut(*way)

        def heal() -> None:
            for way in ways:
                network.heal(*way)

        self._later(heal)

    def _isolate(self) -> str:
        victim = self._victim()
        if victim is None:
            return ""
        others = [each.name for each in self._cluster.members if each is not victim]
        self._cut([way for other in others for way in ((victim.name, other), (other, victim.name))])
        return f"{victim.name} is cut off"

    def _halve(self) -> str:
        names = [each.name for each in self._cluster.members]
        self._random.shuffle(names)
        size = self._random.randrange(1, len(names))
        here, there = names[:size], names[size:]
        self._cut([way for one in here for two in there for way in ((one, two), (two, one))])
        return f"{', '.join(sorted(here))} and {', '.join(sorted(there))} are cut apart"

    def _one_way(self) -> str:
        one, two = self._random.sample([each.name for each in self._cluster.members], 2)
        self._cut([(one, two)])
        return f"nothing gets from {one} to {two}"

    def _kill(self) -> str:
        victim = self._victim()
        if victim is None:
            return ""
        member = victim

        def again() -> None:
            if not member.running:
                self._cluster.restart(member, self._down.pop(member.name, "kill"))

        self._later(again)
        self._down[member.name] = "kill"
        if self._random.random() < 0.5:
            member.writes_left = self._random.randrange(DYING_WRITES_MAX)
            return f"{member.name} will be killed within a write"
        member.kill()
        return f"{member.name} is killed"

    def _power(self) -> str:
        victim = self._victim()
        if victim is None:
            return ""
        member = victim
        member.kill()
        member.lose_cache()
        self._down[member.name] = "power-failure"
        self._later(lambda: self._cluster.restart(member, "power-failure"))
        return f"{member.name} loses power"

    def _pause(self) -> str:
        victim = self._victim()
        if victim is None:
            return ""
        member = victim
        member.paused = True

        def resume() -> None:
            if member.running and member.paused:
                member.resume()

        self._later(resume)
        return f"{member.name} is paused"

    def _compact(self) -> str:
        running = self._running()
        chosen = [each for each in running if self._random.random() < 0.7]
        for member in chosen:
            member.replica.forceLogCompaction()
        return f"{', '.join(each.name for each in chosen)} compact their logs" if chosen else ""

    def _membership(self) -> str:
        """One request, or several at once, as operators in a hurry make them."""
        at = self._victim()
        if at is None:
            return ""
        asked = []
        for _ in range(self._random.choice((1, 1, 2, 3))):
            others = [name for name in at.members if name != at.name]
            grow = len(others) < 2 or self._random.random() < 0.6
            if grow and len(self._cluster.members) < MEMBERS_MAX:
                name = self._cluster.add_member(at.members).name
                at.request_membership("addNodeToCluster", name)
                asked.append(f"to add {name}")
            elif len(others) > 2:
                name = self._random.choice(others)
                at.request_membership("removeNodeFromCluster", name)
                asked.append(f"to remove {name}")
        return f"{at.name} is asked {', '.join(asked)}" if asked else ""

    def _transfer(self) -> str:
        leaders = [each for each in self._running() if each.leads]
        if not leaders:
            return ""
        leaders[0].call("transfer of leadership", leaders[0].replica.transferLeadership)
        return f"{leaders[0].name} is asked to hand over leadership"

    def _clock(self) -> str:
        victim = self._victim()
        if victim is None:
            return ""
        jump_s = self._random.choice((-15.0, -5.0, 5.0, 15.0))
        victim.wall_offset_s += jump_s
        return f"the wall clock of {victim.name} jumps by {jump_s:+g} s"
