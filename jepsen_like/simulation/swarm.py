"""One seed, one life: a cluster under faults (safety), then healed (liveness), then questioned.

After every step the cluster-wide invariants are held against what happened; at the end, within a
stated time, there must be one leader, a write must be served, all members must have applied the
same entries and hold the same state; and each workload's checker judges what clients saw.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Final, TextIO

from jepsen_like.simulation.atlas import Atlas
from jepsen_like.simulation.faults import Nemesis
from jepsen_like.simulation.fuse import blow
from jepsen_like.simulation.invariants import Invariants, Violation
from jepsen_like.simulation.load import Load
from jepsen_like.simulation.loop import StuckError
from jepsen_like.simulation.membership import Keeper
from jepsen_like.simulation.news import NodeNews
from jepsen_like.simulation.outcome import Outcome, counts_in
from jepsen_like.simulation.plan import Plan, draw, replace_settings, stream
from jepsen_like.simulation.stage import Stage
from jepsen_like.workloads import WORKLOADS
from jepsen_like.workloads.base import Workload
from quorate.client.database import Database
from quorate.errors import QuorateError
from quorate.replication.machine import Machine

#: Virtual time within which a healed cluster must lead, serve and agree: a client's handshakes and
#: a snapshot's retries may take some seconds each (TCP's own waits are 0.5 to 4 s).
LIVENESS_S: Final = 30.0
#: For what workloads ask at the end; leases that nobody holds any more end meanwhile.
FINAL_S: Final = 60.0
#: Callbacks in one run, some fifty times what the longest takes.
STEPS_MAX: Final = 5_000_000
POLL_S: Final = 0.02


class OverError(Exception):
    """The run ends: something is wrong, and the rest would only follow from it."""


def run_seed(seed: int, *, fsync: bool = True, workloads: Sequence[str] = ()) -> Outcome:
    """Draw the plan of *seed* and run it. *fsync* False: disks that lie. *workloads*: see
    ``plan.draw``."""
    plan = draw(seed, workloads)
    return run_plan(plan if fsync else replace_settings(plan, fsync=False))


def run_plan(plan: Plan, *, trace: TextIO | None = None) -> Outcome:
    """Run *plan*; the same plan comes to the same outcome. *trace*: what happened, as text."""
    began_s = time.perf_counter()
    run = Run(plan, trace)
    try:
        run.complete()
    finally:
        run.close()
    return run.outcome(time.perf_counter() - began_s)


class Run:
    """One plan on one cluster. *workloads*: in the place of those that the plan names; *machines*:
    makes further machines of each node."""

    def __init__(
        self,
        plan: Plan,
        trace: TextIO | None = None,
        *,
        workloads: Mapping[str, Workload] | None = None,
        machines: Callable[[], Sequence[Machine]] = tuple,
    ) -> None:
        self.plan = plan
        settings = plan.settings
        self.invariants = Invariants(lambda: self.stage.now_s)
        self.stage = Stage(plan, self.invariants, trace)
        self.stage.also_run(machines)
        self.atlas = Atlas(self.stage, self.invariants)
        self.keeper = Keeper(self.stage, self.atlas)
        self.load = Load(
            workloads or {name: WORKLOADS[name]() for name in settings.workloads},
            settings.workloads,
            self.stage,
            random=self._client_random,
            timeout_s=settings.timeout_s,
            think_s=settings.think_ms / 1000,
            operations_max=settings.operations_max,
        )
        self.nemesis = Nemesis(self.stage, self.atlas, self.keeper, self.load)
        self.news = NodeNews(self.stage, self.keeper, self.load)
        self.settled_s = 0.0
        self.verdicts: dict[str, str] = {}
        self.checked: dict[str, dict[str, int]] = {}
        self.stage.watch(self._look)

    def _client_random(self, number: int) -> Random:
        return stream(self.plan.seed, f"client-{number}")

    # --- the course of things ---------------------------------------------------------------------

    def complete(self) -> None:
        """From the founding to the verdicts, or to the first violation."""
        try:
            self.stage.run(self._live())
        except OverError:
            return
        except StuckError as error:
            self._violate("livelock", str(error))
            return
        if not self.invariants.found:
            self._judge()

    def _look(self) -> None:
        """Between two instants."""
        if self.invariants.found:
            raise OverError
        self.news.look()
        if self.stage.steps > STEPS_MAX:
            raise StuckError(f"{STEPS_MAX} steps, and no end")
        self._check_failures()

    def _check_failures(self) -> None:
        """Nodes that stopped by themselves, and exceptions that nobody caught."""
        for node, error in self.stage.take_failures():
            lost = node in self.atlas.lost_nodes
            if not lost and not self.stage.excuses(node, error):
                self._violate(
                    "node-failed", f"node {node} stopped: {type(error).__name__}: {error}"
                )
        for text in self.stage.take_problems():
            self._violate("uncaught", text)

    def _violate(self, name: str, text: str) -> None:
        self.invariants.claim(False, name, text)  # noqa: FBT003

    async def _live(self) -> None:
        stage, settings = self.stage, self.plan.settings
        await stage.found()
        await self._within("no leader in a new cluster", lambda: stage.leader() is not None)
        for _ in range(settings.learners):
            await self.keeper.add(promote=False)
        await self._set_up()
        await self._blow()
        begin_s = stage.now_s
        self.load.start(settings.clients)
        await self.nemesis.run(self.plan.faults, begin_s, settings.seconds)
        await self.load.stop()
        await self._recover()
        await self._final_reads()
        await self._agree("after the final reads")
        await self.keeper.close()

    async def _within(self, what: str, holds: Callable[[], bool]) -> None:
        end_s = self.stage.now_s + LIVENESS_S
        while not holds():
            if self.stage.now_s > end_s:
                self._violate("liveness", f"{what} in {LIVENESS_S:g} s\n{self.stage.describe()}")
                raise OverError
            await asyncio.sleep(POLL_S)

    async def _recover(self) -> None:
        """The liveness phase."""
        stage = self.stage
        healed_s = stage.now_s
        await self.nemesis.heal()
        await self._within("nobody leads", lambda: stage.leader() is not None)
        for node in self.atlas.lost_nodes:
            if not self.keeper.retired(node) and not await self._replaced(node):
                self._violate("liveness", f"node {node}, whose disk was lost, cannot be replaced")
                raise OverError
        await self._serve()
        await self._agree("after healing")
        self.settled_s = stage.now_s - healed_s

    async def _serve(self) -> None:
        """A write is served; nodes may need a moment to see that their disks have room again."""
        end_s = self.stage.now_s + LIVENESS_S
        database = self.stage.database("prober", LIVENESS_S)
        while True:
            try:
                await self.stage.call("prober", _probe(database))
                break
            except QuorateError as error:
                if self.stage.now_s > end_s:
                    self._violate("liveness", f"a healed cluster serves no write: {error!r}")
                    raise OverError from error
            await asyncio.sleep(POLL_S)
        await self.stage.call("prober", database.close())

    async def _set_up(self) -> None:
        try:
            await asyncio.wait_for(self.load.setup(), LIVENESS_S)
        except TimeoutError:
            self._violate("liveness", f"workloads cannot be set up in {LIVENESS_S:g} s")
            raise OverError from None

    async def _blow(self) -> None:
        """From here on, every log holds a command that raises."""
        database = self.stage.database("prober", LIVENESS_S)
        try:
            problem = await self.stage.call("prober", blow(database))
        except QuorateError as error:
            problem = f"a command that raises ended with {error!r}"
        self.invariants.claim(not problem, "raising-command", problem)
        await self.stage.call("prober", database.close())

    async def _replaced(self, node: int) -> bool:
        may_leave = partial(self.atlas.debts.may_leave, node)
        await self._within(f"others do not get what node {node} owes them", may_leave)
        for _ in range(3):
            if await self.keeper.replace(node):
                return True
        return self.keeper.retired(node)

    async def _final_reads(self) -> None:
        try:
            await asyncio.wait_for(self.load.final_reads(), FINAL_S)
        except TimeoutError:
            self._violate("liveness", f"final questions are not answered in {FINAL_S:g} s")
            raise OverError from None

    async def _agree(self, when: str) -> None:
        """All members at the same applied index, with the same state, record by record."""
        await self._within(f"members do not agree {when}", self.stage.settled)
        self.stage.compare_states()
        self.stage.recount_tasks()
        await self._within(f"converging data is not the same {when}", self.atlas.debts.converged)
        self.atlas.debts.compare()

    # --- the end ----------------------------------------------------------------------------------

    def _judge(self) -> None:
        for name, history in self.load.histories.items():
            verdict = self.load.workloads[name].check(history)
            self.verdicts[name] = str(verdict.valid)
            self.checked[name] = counts_in(verdict.facts)
            if verdict.valid is False:
                self._violate(f"history-{name}", "; ".join(verdict.problems[:3]))

    def close(self) -> None:
        """Let go of everything."""
        self.stage.close()

    def outcome(self, wall_s: float) -> Outcome:
        """What came of it."""
        tally = self.load.tally
        violations: tuple[Violation, ...] = tuple(self.invariants.found)
        return Outcome(
            seed=self.plan.seed,
            violations=violations,
            digest=self.stage.digest(),
            steps=self.stage.steps,
            virtual_s=round(self.stage.now_s, 6),
            wall_s=round(wall_s, 4),
            ok=tally.ok,
            fail=tally.fail,
            info=tally.info,
            faults=self.nemesis.done,
            skipped=self.nemesis.skipped,
            settled_s=round(self.settled_s, 6),
            verdicts=self.verdicts,
            checked=self.checked,
            notes=self.stage.notes(),
        )


async def _probe(database: Database) -> None:
    await database.kv.put("probe", b"served")
