"""One seed: a cluster in rough weather, then healed; everything that was broken on the way."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from jepsen_like.history import Event
from jepsen_like.systems.pysyncobj.clients import MemberClient, Recorder, Registers
from jepsen_like.systems.pysyncobj.faults import Faults
from jepsen_like.systems.pysyncobj.lineage import Lineages
from jepsen_like.systems.pysyncobj.locks import LockUsers
from jepsen_like.systems.pysyncobj.member import Member
from jepsen_like.systems.pysyncobj.network import Network
from jepsen_like.systems.pysyncobj.patches import VirtualClock, patched
from jepsen_like.systems.pysyncobj.plan import Plan, draw_plan
from jepsen_like.systems.pysyncobj.schedule import Schedule
from jepsen_like.systems.pysyncobj.watch import Violation, Watch
from jepsen_like.workloads.base import Workload

#: The cluster forms before the first fault.
FORMING_S: Final = 6.0
#: Within so long a healed cluster must have served a write. It is longer than every timeout and
#: reconnection that a plan may draw.
RECOVERY_S: Final = 45.0
#: Then so long for the last followers to learn of everything.
SETTLING_S: Final = 5.0
#: A probe of the healed cluster; the next one asks another member.
PROBE_TIMEOUT_S: Final = 2.0
#: The system writes files back to the disk this often.
WRITE_BACK_S: Final = (5.0, 15.0, 30.0)
#: Files of members are kept in memory if the machine lets them: nothing here needs a disk.
MEMORY: Final = Path("/dev/shm")  # noqa: S108
#: Elements that members' sets and lists are asked for.
ELEMENTS: Final = 6


class SeedReport(msgspec.Struct, kw_only=True):
    """What became of one seed. *digest*: of the whole run; the same seed has the same."""

    seed: int
    valid: bool
    violations: list[Violation]
    plan: Plan
    faults: dict[str, int]
    operations: dict[str, int]
    virtual_seconds: float
    steps: int
    messages: int
    digest: str


class Simulation:
    """The members of one seed and all that surrounds them. Use ``run_seed``."""

    def __init__(self, seed: int, plan: Plan, directory: Path) -> None:
        self.seed, self.plan = seed, plan
        self.schedule = Schedule()
        self.watch = Watch([])
        self.network = Network(self.schedule, Random(f"network {seed}"), plan.quality)
        self.watch.words[b"\x01"] = "no-op"
        self.network.note = self.watch.note
        self.clock = VirtualClock()
        self.random = Random(f"load {seed}")
        self.members: list[Member] = []
        self._directory = directory
        self._lineages = Lineages()
        self._tag = 0
        self._served = False
        founders = tuple(f"n{number}" for number in range(1, plan.members + 1))
        for _name in founders:
            self._make(founders)

    # --- members --------------------------------------------------------------------------------

    def _make(self, founders: tuple[str, ...]) -> Member:
        name = f"n{len(self.members) + 1}"
        directory = self._directory / name
        directory.mkdir()
        member = Member(
            name,
            founders,
            self.plan.settings,
            directory,
            self.clock,
            self.network,
            self.watch,
            self._lineages,
        )
        self.members.append(member)
        self.watch.add(member)
        member.on_message = lambda: self._tick_soon(member)
        return member

    def add_member(self, founders: tuple[str, ...]) -> Member:
        """A new one, which begins to look for the cluster that it was told of."""
        member = self._make((*founders, f"n{len(self.members) + 1}"))
        self._begin(member)
        return member

    def restart(self, member: Member, cause: str) -> None:
        """Begin a process where one ended."""
        if not member.running:
            self.watch.note(f"{member.name} starts again after {cause}")
            self._begin(member, cause)

    def _begin(self, member: Member, cause: str = "") -> None:
        member.start(cause)
        self._tick_each_period(member, member.replica)
        if self.plan.settings.journal:
            self._write_back(member, member.replica)

    def _tick_each_period(self, member: Member, process: object) -> None:
        if member.replica is not process or not member.running:
            return
        member.tick()
        self.schedule.after(
            self.plan.settings.tick_s, lambda: self._tick_each_period(member, process)
        )

    def _tick_soon(self, member: Member) -> None:
        """The library's loop wakes for a message, and then takes its turn."""
        if member.running and not member.paused and not member.tick_due:
            member.tick_due = True

            def tick() -> None:
                member.tick_due = False
                if member.running:
                    member.tick()

            self.schedule.after(0.0, tick)

    def _write_back(self, member: Member, process: object) -> None:
        if member.replica is process and member.running:
            member.synced()
            period_s = self.random.choice(WRITE_BACK_S)
            self.schedule.after(period_s, lambda: self._write_back(member, process))

    # --- load -----------------------------------------------------------------------------------

    def tag(self) -> int:
        """A number for a command."""
        self._tag += 1
        return self._tag

    def pick(self) -> MemberClient:
        """A client of some member that runs, or of a dead one if all are."""
        running = [member for member in self.members if member.running]
        return self.client(self.random.choice(running or self.members))

    def client(self, member: Member) -> MemberClient:
        """A client of that member."""
        local = self.plan.local_reads
        return MemberClient(self.schedule, member, self.tag, local_reads=local)

    async def _use_batteries(self, recorder: Recorder) -> None:
        """The library's own set and list, by all their methods, some of which raise."""
        draw = self.random
        while True:
            await self.schedule.sleep(draw.expovariate(1.0))
            element = draw.randrange(ELEMENTS)
            running = [each for each in self.members if each.running and not each.paused]
            if not running or recorder.over:
                continue
            member = draw.choice(running)
            store = member.replica
            kind, method, arguments = draw.choice(
                (
                    (store.set, "add", (element,)),
                    (store.set, "add", (element,)),
                    (store.set, "discard", (element,)),
                    (store.set, "remove", (element,)),
                    (store.list, "append", (element,)),
                    (store.list, "set", (element, 0)),
                )
            )
            call: Callable[[], Any] = lambda: getattr(kind, method)(*arguments)  # noqa: B023, E731
            member.call(f"{type(kind).__name__}.{method}{arguments}", call)

    async def _probe(self) -> None:
        """Write through one member after the other until one write is acknowledged."""
        number = 0
        while not self._served:
            member = self.members[number % len(self.members)]
            number += 1
            client = MemberClient(
                self.schedule, member, self.tag, local_reads=True, timeout_s=PROBE_TIMEOUT_S
            )
            value, outcome = b"%d" % number, "ok"
            try:
                await client.put("probe", value)
            except Exception:  # noqa: BLE001
                outcome = "error"
            self._served = outcome == "ok"
            if not self._served:
                await self.schedule.sleep(0.5)

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> SeedReport:
        """All of it."""
        plan, schedule = self.plan, self.schedule
        workload = Registers()
        recorder = Recorder(schedule, workload, Random(f"processes {self.seed}"))
        faults = Faults(self, plan, Random(f"faults {self.seed}"))
        locks = LockUsers(self, self.watch, Random(f"locks {self.seed}"))
        for member in list(self.members):
            self._begin(member)
        schedule.run_until(FORMING_S)
        for _ in range(plan.clients):
            schedule.spawn(recorder.run(self.pick, plan.think_s))
        if plan.batteries:
            schedule.spawn(self._use_batteries(recorder))
        if plan.locks:
            locks.begin()
        schedule.spawn(faults.run())
        schedule.run_until(FORMING_S + plan.rough_s)
        recorder.over = True
        faults.heal()
        self._recover()
        if self._served:
            self._read_all(workload, recorder)
        self._judge(workload, recorder.history)
        report = self._report(recorder, faults)
        for member in self.members:
            member.kill()
        return report

    def _recover(self) -> None:
        began_s = self.schedule.now_s
        self.schedule.spawn(self._probe())
        self.schedule.run_until(began_s + RECOVERY_S, lambda: self._served)
        if not self._served:
            self.watch.now_s = self.schedule.now_s
            raised = {each.name: each.errors for each in self.members if each.errors}
            told = "; ".join(
                f"{name}: {', '.join(f'{text} ({count} times)' for text, count in errors.items())}"
                for name, errors in raised.items()
            )
            at = max(self.members, key=lambda each: each.commit - each.applied)
            self.watch.report(
                "cluster-wedged",
                at,
                f"{RECOVERY_S:g} s after all faults were healed, with all members running, no "
                f"write is acknowledged; {at.name} stands before entry "
                f"{self.watch.at(at, at.applied + 1)}; raised so far: {told or 'nothing'}",
                at.applied + 1,
                {"raised": raised},
            )
            return
        self.schedule.run_until(self.schedule.now_s + SETTLING_S)

    def _read_all(self, workload: Workload, recorder: Recorder) -> None:
        """What is left, through the log, by the member that leads."""
        leaders = [each for each in self.members if each.leads] or self.members
        client = MemberClient(self.schedule, leaders[-1], self.tag, local_reads=False)

        async def read() -> None:
            for invocation in workload.last():
                await recorder.do(client, invocation, recorder.process())

        self.schedule.spawn(read())
        self.schedule.run_until(self.schedule.now_s + SETTLING_S)

    def _judge(self, workload: Workload, history: list[Event]) -> None:
        self.watch.now_s = self.schedule.now_s
        self.watch.finished()
        if self._served:
            self.watch.settled()
        verdict = workload.check(history)
        if verdict.valid is False:
            how = "a member's own copy" if self.plan.local_reads else "the log"
            self.watch.report(
                "history-not-linearizable",
                self.members[0],
                f"with reads of {how}, what clients saw has no order: {verdict.problems[0]}",
                0,
                {"problems": list(verdict.problems)},
            )

    def _report(self, recorder: Recorder, faults: Faults) -> SeedReport:
        found = sorted(self.watch.violations.values(), key=lambda each: (each.time_s, each.name))
        digest = hashlib.sha256()
        for event in recorder.history:
            digest.update(msgspec.json.encode(event))
        digest.update(msgspec.json.encode([found, self.schedule.steps_count, self.watch.trace]))
        return SeedReport(
            seed=self.seed,
            valid=not found,
            violations=found,
            plan=self.plan,
            faults=faults.counts,
            operations=recorder.counts,
            virtual_seconds=round(self.schedule.now_s, 3),
            steps=self.schedule.steps_count,
            messages=self.network.messages_count,
            digest=digest.hexdigest()[:16],
        )


def run_seed(seed: int, plan: Plan | None = None) -> SeedReport:
    """Run one seed, by its own plan or by *plan*. The same twice, and on every machine."""
    where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="jepsen-like-pysyncobj-", dir=where) as directory:
        simulation = Simulation(seed, plan or draw_plan(seed), Path(directory))
        with patched(simulation.clock, Random(f"elections {seed}"), simulation.watch.note):
            return simulation.run()
