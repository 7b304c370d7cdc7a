"""Whatever is put, paused and missed: schedules of the machine against those of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from quorate.base.results import Failure
from quorate.base.schedule_commands import (
    Fire,
    Fired,
    ListSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ScheduleRemoved,
    ScheduleSet,
    TriggerSchedule,
)
from quorate.base.task_commands import Cancel, Changed, Configure
from quorate.base.task_specs import FOR_A_TIME, TASK_MACHINE, Options, Task, Unique
from quorate.server import ticking
from quorate.tasks import schedules
from quorate.tasks.records import id_of
from tests import sharing
from tests.tasks.schedule_model import CRONS, HOUR, MINUTE, SECOND, Model
from tests.tasks.support import TaskNode

#: Few, so that more are missed.
CATCH_UP = 4
DEPTH = 3
NAMES = ("s", "ss", "t")
TASKS = (
    Task("f"),
    Task("f"),
    Task("f", queue="short"),
    Task("f", options=Options(expires_ms=1_500)),
    Task("f", options=Options(unique=Unique(b"k"), expires_ms=25 * SECOND)),
    Task("f", options=Options(unique=Unique(b"t", FOR_A_TIME, 2_500))),
)
WHEN = [*[{"every_ms": ms} for ms in (1, 1_000, 1_000, 1_500, 2_000, 61_000)],
        *[{"cron": cron, "zone": zone} for cron, zone in (*CRONS, *CRONS)]]  # fmt: skip

some = st.integers(0, 99)
names = st.sampled_from(NAMES)
times = st.sampled_from(
    (0, 0, 0, 1, 500, 1_000, 1_000, 2_000, 4_500, 10 * SECOND, 31 * SECOND, MINUTE, 2 * HOUR)
)
#: What the clock of whoever leads is ahead of the cluster's.
skews = st.sampled_from((0, 0, -5 * SECOND, 5 * SECOND))
gaps = st.sampled_from((0, 1_000, 10 * SECOND, 31 * SECOND, 2 * MINUTE, 2 * HOUR))
broken_or_not = st.integers(0, 9).map(lambda at: at == 0)
PAUSED = (False, False, False, True)


class SchedulesAgainstAModel(RuleBasedStateMachine):
    """*node* leads and restarts, *twin* does neither; *model* is what both should be."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module in (schedules, ticking):
            self.patch.setattr(module, "CATCH_UP_MAX", CATCH_UP)
        self.node, self.twin = TaskNode(), TaskNode()
        self.model = Model(DEPTH, CATCH_UP)
        self.node.time_ms = 1_000
        self.said: list[Fire] = [Fire("s", 1, 0, MINUTE)]
        self.entry([Configure("short", depth_max=DEPTH)], lambda _: None)

    def teardown(self) -> None:
        self.patch.undo()

    def entry(self, commands: list[Any], judge: Callable[[list[Any]], None]) -> None:
        """One entry on both nodes; *judge* does the same to the model."""
        results = self.node.run(TASK_MACHINE, *commands)
        self.twin.time_ms = self.node.time_ms
        self.twin.feed(self.node.log[-1])
        assert self.twin.machines.state_hash == self.node.machines.state_hash
        self.model.pass_to(self.node.time_ms)
        judge(results)
        self.check()

    def do(
        self, commands: Any, ms: int, foretell: Callable[[Any], Any], *, broken: bool = False
    ) -> None:
        """*foretell*: the same to the model, and the result; None: it is refused. *broken*: they
        break off."""
        self.node.time_ms += ms
        for node in (self.node, self.twin):
            node.tasks.breaks = {at: 0 for at, _ in enumerate(commands) if broken}

        def judge(results: list[Any]) -> None:
            for command, result in zip(commands, results, strict=True):
                expected = None if broken else foretell(command)
                if expected is None:
                    assert isinstance(result, Failure)
                else:
                    assert result == expected

        self.entry(list(commands), judge)
        for node in (self.node, self.twin):
            node.tasks.breaks = {}

    # --- what may happen ------------------------------------------------------------------------

    @rule(
        name=names, task=st.sampled_from(TASKS), when=st.sampled_from(WHEN),
        misfire=st.sampled_from(("skip", "once", "all")), overlap=st.booleans(),
        paused=st.sampled_from(PAUSED), ms=times, broken=broken_or_not,
    )  # fmt: skip
    def put(
        self, name: str, task: Task, when: Any, misfire: Any, ms: int,
        *, overlap: bool, paused: bool, broken: bool,
    ) -> None:  # fmt: skip
        command = PutSchedule(name, task, **when, misfire=misfire, overlap=overlap, paused=paused)
        before = list(self.model.to_propose(self.node.wall_ms).values())
        self.do([command], ms, lambda _: ScheduleSet(self.model.put(command)), broken=broken)
        self.propose(*before)  # worked out before, and too late

    @rule(name=names, ms=times, broken=broken_or_not)
    def remove(self, name: str, ms: int, *, broken: bool) -> None:
        def foretell(_: Any) -> Any:
            return ScheduleRemoved(self.model.schedules.pop(name, None) is not None)

        self.do([RemoveSchedule(name)], ms, foretell, broken=broken)

    @rule(name=names, paused=st.booleans(), ms=times, broken=broken_or_not)
    def pause(self, name: str, ms: int, *, paused: bool, broken: bool) -> None:
        command = PauseSchedule(name, paused)

        def foretell(_: Any) -> Any:
            revision = self.model.pause(command)
            return revision and ScheduleSet(revision)

        self.do([command], ms, foretell, broken=broken)

    @rule(name=names, ms=times, broken=broken_or_not)
    def trigger(self, name: str, ms: int, *, broken: bool) -> None:
        command = TriggerSchedule(name)

        def foretell(_: Any) -> Any:
            task = self.model.trigger(command)
            return None if task is None else Fired(task)

        self.do([command], ms, foretell, broken=broken)

    @rule(ms=times)
    def pass_by(self, ms: int) -> None:
        self.node.time_ms += ms
        self.entry([], lambda _: None)

    @rule(at=some, ms=times)
    def cancel(self, at: int, ms: int) -> None:
        task = 1 + at % (self.model.last_task + 1)

        def foretell(_: Any) -> Any:
            if task not in self.model.tasks:
                return Changed(())
            self.model.end(task)
            return Changed((task,))

        self.do([Cancel((task,))], ms, foretell)

    # --- whoever leads, or believes to ----------------------------------------------------------

    @rule(ms=gaps, skew=skews, twice=st.booleans(), broken=broken_or_not)
    def lead(self, ms: int, skew: int, *, twice: bool, broken: bool) -> None:
        """Somebody leads for a moment, and then nobody for *ms*."""
        self.fire_due(skew, twice=twice, broken=broken)
        self.node.time_ms += ms
        self.entry([], lambda _: None)
        self.fire_due(skew, twice=twice, broken=broken)

    def fire_due(self, skew: int, *, twice: bool, broken: bool) -> None:
        """Until nothing is due, as ``Ticker`` does."""
        for _ in range(CATCH_UP + 3):
            wall = self.node.wall_ms + skew
            machine = self.node.tasks.schedules
            due = dict.fromkeys(machine.cron.due(wall))
            expected = self.model.to_propose(wall)
            assert set(due) == set(expected)
            if not due:
                return
            fires = [self.proposed(revision, wall) for revision in due]
            assert fires == [expected[revision] for revision in due]
            self.said.extend(fires)
            for revision in due if broken else ():  # it comes to nothing, and is looked at again
                machine.cron.add(0, revision)
            self.propose(*fires, *fires[: twice * len(fires)], broken=broken)
            broken = False
        raise AssertionError("there is no end of ticks")

    def proposed(self, revision: int, wall: int) -> Fire:
        found = self.node.tasks.schedules.by_revision(revision)
        assert found is not None
        return ticking.fire_of(*found, wall)

    def propose(self, *fires: Fire, broken: bool = False) -> None:
        """All in one entry."""
        self.do(fires, 0, lambda fire: Fired(self.model.fire(fire)), broken=broken)

    @rule(at=some, broken=broken_or_not)
    def say_again(self, at: int, *, broken: bool) -> None:
        self.propose(self.said[-1 - at % len(self.said)], broken=broken)

    @rule(name=names, at=some, run=st.booleans())
    def say_anything(self, name: str, at: int, *, run: bool) -> None:
        found = self.model.schedules.get(name)
        if found is not None:
            revision = found.revision + (0, 0, 0, 1)[at % 4]
            at_ms = found.next + (0, 0, 0, SECOND)[at // 4 % 4]
            next_ms = at_ms + (MINUTE, MINUTE, 0)[at // 16 % 3]
            self.propose(Fire(name, revision, at_ms, next_ms, run))

    @rule()
    def restart(self) -> None:
        self.node.restart()
        self.check()

    # --- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        model, found = self.model, sorted(self.model.schedules.items())
        for node in (self.node, self.twin):
            machine = node.tasks.schedules
            every = [each.next for _, each in found
                     if each.spec.every_ms and not each.spec.paused]  # fmt: skip
            assert machine.ticking.first_ms() == min(every, default=None)
            cron = [each.next for _, each in found if each.spec.cron and not each.spec.paused]
            assert machine.cron.first_ms() == min(cron, default=None)
        assert list(self.node.ask(ListSchedules()).schedules) == [
            each.info() for _, each in found]  # fmt: skip
        tables = self.node.tasks.ledger.tables
        assert [id_of(key) for key, _ in tables.live.items()] == sorted(model.tasks)
        for key, spec in tables.specs.items():
            if id_of(key) in model.tasks:
                assert spec == model.tasks[id_of(key)][0]


TestSchedulesAgainstAModel = SchedulesAgainstAModel.TestCase
TestSchedulesAgainstAModel.settings = settings(
    max_examples=sharing.examples(60), stateful_step_count=30, deadline=None
)


@pytest.mark.deep
def test_for_long() -> None:
    search = settings(max_examples=1_000, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(SchedulesAgainstAModel, settings=search)
