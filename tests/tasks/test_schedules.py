"""Each rule of schedules, by itself."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.base.results import Failure
from quorate.base.schedule_commands import (
    CATCH_UP_MAX,
    Fire,
    Fired,
    ListSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ScheduleInfo,
    ScheduleSet,
    TriggerSchedule,
)
from quorate.base.task_commands import Cancel, Configure
from quorate.base.task_specs import Task
from tests.tasks.support import TaskNode


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


def put(node: TaskNode, **more: Any) -> int:
    result = node.one(PutSchedule("s", Task("f"), **more))
    assert isinstance(result, ScheduleSet), result
    return result.revision


def shown(node: TaskNode) -> ScheduleInfo:
    (found,) = node.ask(ListSchedules()).schedules
    assert isinstance(found, ScheduleInfo)
    return found


def ready(node: TaskNode) -> int:
    count: int = node.system().ready
    return count


def test_every_so_often_by_cluster_time(node: TaskNode) -> None:
    put(node, every_ms=1_000)
    node.wait(999)
    assert ready(node) == 0
    node.wait(1)
    assert ready(node) == 1
    node.restart()
    node.wait(1_000)
    assert (ready(node), shown(node).fired) == (2, 2)


@pytest.mark.parametrize(("misfire", "tasks"), [("skip", 0), ("once", 1), ("all", 5)])
def test_ticks_that_nobody_could_fire(node: TaskNode, misfire: str, tasks: int) -> None:
    put(node, every_ms=1_000, misfire=misfire)
    node.wait(5_400)
    assert ready(node) == tasks
    node.wait(599)
    assert ready(node) == tasks
    node.wait(1)
    assert ready(node) == tasks + 1


def test_what_is_made_up_for_has_a_bound(node: TaskNode) -> None:
    put(node, every_ms=1, misfire="all")
    node.wait(10 * CATCH_UP_MAX)
    assert ready(node) == CATCH_UP_MAX


def test_a_tick_by_cron_counts_once_whoever_proposes_it(node: TaskNode) -> None:
    revision = put(node, cron="* * * * *")
    assert node.one(Fire("s", revision, 0, 60_000)) == Fired(0)
    assert node.one(Fire("s", revision, 0, 120_000)) == Fired(0)
    first = node.one(Fire("s", revision, 60_000, 120_000))
    assert first.task
    assert node.one(Fire("s", revision, 60_000, 120_000)) == Fired(0)
    assert node.one(Fire("s", revision, 120_000, 120_000)) == Fired(0)
    assert node.one(Fire("s", revision, 120_000, 180_000, run=False)) == Fired(0)
    assert (shown(node).fired, shown(node).skipped, shown(node).next_ms) == (1, 1, 180_000)
    assert ready(node) == 1


def test_other_rules_are_not_fired_by_what_was_worked_out_before(node: TaskNode) -> None:
    old = put(node, cron="* * * * *")
    node.one(Fire("s", old, 0, 60_000))
    new = put(node, cron="0 * * * *")
    assert node.one(Fire("s", old, 60_000, 120_000)) == Fired(0)
    assert new > old
    assert shown(node).next_ms == 0
    assert node.one(RemoveSchedule("s")).existed
    assert not node.one(RemoveSchedule("s")).existed
    assert put(node, cron="* * * * *") > new


def test_a_paused_schedule_does_not_tick(node: TaskNode) -> None:
    put(node, every_ms=1_000, paused=True)
    node.wait(5_000)
    assert ready(node) == 0
    put(node, every_ms=1_000)
    node.wait(1_000)
    assert ready(node) == 1


def test_without_overlap_a_tick_waits_for_the_end_of_the_task_before(node: TaskNode) -> None:
    put(node, every_ms=1_000, overlap=False)
    node.wait(1_000)
    node.wait(1_000)
    assert (ready(node), shown(node).skipped) == (1, 1)
    node.one(Cancel((shown(node).last_task,)))
    node.wait(1_000)
    assert (ready(node), shown(node).fired) == (1, 2)


def test_a_full_queue_skips_ticks(node: TaskNode) -> None:
    node.one(Configure("default", depth_max=1))
    put(node, every_ms=1_000)
    node.wait(1_000)
    node.wait(1_000)
    assert (ready(node), shown(node).skipped) == (1, 1)


def test_a_schedule_goes_by_one_of_the_two(node: TaskNode) -> None:
    for more in ({}, {"cron": "* * * * *", "every_ms": 5}):
        with pytest.raises(ValueError, match="one of the two"):
            PutSchedule("s", Task("f"), **more)  # type: ignore[arg-type]
    assert not isinstance(node.one(PutSchedule("s", Task("f"), every_ms=5)), Failure)


def test_a_schedule_that_is_paused_has_no_ticks_to_make_up_for(node: TaskNode) -> None:
    revision = put(node, every_ms=1_000, misfire="all")
    assert node.one(PauseSchedule("s")).revision > revision
    paused = shown(node)
    assert node.one(PauseSchedule("s")).revision == paused.revision  # it is
    node.wait(5_500)
    assert ready(node) == 0
    node.one(PauseSchedule("s", paused=False))
    node.wait(999)
    assert (ready(node), shown(node).paused) == (0, False)
    node.wait(1)
    assert ready(node) == 1
    assert isinstance(node.one(PauseSchedule("t")), Failure)


def test_a_task_out_of_turn_is_no_tick(node: TaskNode) -> None:
    put(node, every_ms=1_000, overlap=False, paused=True)
    first = node.one(TriggerSchedule("s"))
    assert first.task
    assert (shown(node).last_task, shown(node).fired) == (first.task, 0)
    assert node.one(TriggerSchedule("s")) == Fired(0)  # the one before has not ended
    node.one(Cancel((first.task,)))
    node.one(Configure("default", depth_max=1))
    second = node.one(TriggerSchedule("s"))
    node.one(PutSchedule("s", Task("f"), every_ms=1_000))
    assert node.one(TriggerSchedule("s")) == Fired(0)  # the queue is full
    assert shown(node).last_task == second.task
    assert isinstance(node.one(TriggerSchedule("t")), Failure)
