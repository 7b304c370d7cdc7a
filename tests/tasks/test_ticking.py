"""Who proposes ticks by cron, and what of those that come too late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jepsen_like.simulation.cluster import SimulatedCluster
from quorate.base.cron import check_cron, next_tick_ms
from quorate.base.schedule_commands import ListSchedules, PutSchedule
from quorate.base.task_specs import Task
from quorate.errors import InvalidArgumentError
from quorate.server.ticking import GRACE_MS, fire_of
from quorate.tasks.records import ScheduleRecord

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
BERLIN = "Europe/Berlin"


def record(misfire: str, next_ms: int, cron: str = "* * * * *") -> ScheduleRecord:
    return ScheduleRecord(Task("f"), cron, "UTC", 0, misfire, True, False, 7, next_ms)


# 2026-03-29, clocks go from 2:00 to 3:00 at 1:00 UTC; 2026-10-25, from 3:00 to 2:00 at 1:00 UTC.
SPRING_MS = 1_774_746_000_000
AUTUMN_MS = 1_792_890_000_000


@pytest.mark.parametrize(
    ("cron", "after_ms", "tick_ms"),
    [
        ("* * * * *", 0, MINUTE_MS),
        ("* * * * *", MINUTE_MS - 1, MINUTE_MS),
        ("*/5 * * * * *", 1_000, 5_000),
        ("30 2 * * *", SPRING_MS - HOUR_MS, SPRING_MS),  # in the hour that is left out: at its end
        ("30 2 * * *", AUTUMN_MS - 2 * HOUR_MS, AUTUMN_MS - HOUR_MS // 2),
        ("30 2 * * *", AUTUMN_MS - HOUR_MS // 2, AUTUMN_MS + 24 * HOUR_MS + HOUR_MS // 2),
    ],
)
def test_ticks_where_clocks_are_put_forward_and_back(
    cron: str, after_ms: int, tick_ms: int
) -> None:
    assert next_tick_ms(cron, BERLIN, after_ms) == tick_ms


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("x", "UTC", "no cron expression"),
        ("0 0 30 2 *", "UTC", "no cron expression"),
        ("* * * * *", "Mars/Base", "no time zone 'Mars/Base'"),
        ("* * * * *", "../etc/passwd", "no time zone"),
    ],
)
def test_what_is_no_schedule_is_refused(cron: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        check_cron(cron, zone)


@pytest.mark.parametrize(
    ("misfire", "late_ms", "run", "next_min"),
    [
        ("skip", 1_000, True, 11),
        ("skip", GRACE_MS + 1, False, 11),
        ("skip", 5 * MINUTE_MS, False, 16),
        ("once", 1_000, True, 11),
        ("once", 5 * MINUTE_MS, True, 16),
        ("all", 5 * MINUTE_MS, True, 11),
    ],
)
def test_ticks_that_come_too_late(misfire: str, late_ms: int, run: bool, next_min: int) -> None:
    at_ms = 10 * MINUTE_MS
    fire = fire_of("s", record(misfire, at_ms), at_ms + late_ms)
    assert (fire.at_ms, fire.run, fire.next_ms) == (at_ms, run, next_min * MINUTE_MS)


def test_not_more_than_so_many_are_made_up_for() -> None:
    fire = fire_of("s", record("all", MINUTE_MS), 5_000 * MINUTE_MS)
    assert fire.next_ms == 4_001 * MINUTE_MS


def test_each_second_once_while_leaders_die() -> None:
    with SimulatedCluster(seed=3) as cluster:

        async def story() -> tuple[int, int]:
            await cluster.start(3)
            db = cluster.connect("client")
            put = PutSchedule("s", Task("f"), cron="* * * * * *", misfire="all")
            await cluster.call("client", _once(db.tasks.run(put)))
            await asyncio.sleep(3)
            for _ in range(3):
                leader = await cluster.wait_leader()
                cluster.crash(leader)
                await asyncio.sleep(4)
                await cluster.restart(leader)
            await cluster.wait_leader()
            await asyncio.sleep(2)
            (info,) = (await cluster.call("client", _once(db.tasks.ask(ListSchedules())))).schedules
            system = await cluster.call("client", db.tasks.system())
            first_ms = info.last_ms - (info.fired - 1) * 1_000
            assert first_ms % 1_000 == 0
            return info.fired, system.ready

        fired, ready = cluster.run(story())
        assert cluster.problems == []
    assert fired == ready
    assert 15 <= fired <= 19


async def _once(future: asyncio.Future[Any]) -> Any:
    return await future
