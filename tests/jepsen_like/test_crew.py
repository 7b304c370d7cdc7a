"""Workers of tasks as processes: what they write down, and which workloads have some."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from jepsen_like.errors import UsageError
from jepsen_like.processes import sockets
from jepsen_like.processes.crew import Crew, staffed
from jepsen_like.processes.nemesis.schedule import packages
from jepsen_like.processes.nodes import all_ended
from jepsen_like.processes.runner import Runner, Settings
from jepsen_like.processes.worker import Diary, DiaryCounts, read_diary
from jepsen_like.systems.quorate import QuorateSystem
from jepsen_like.workloads.registry import make


def test_a_diary_holds_what_was_told_and_no_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "diary"
    assert read_diary(path) == []
    diary = Diary(str(path))
    diary.tell(["begin", 1, 1, 7, 5])
    counts = DiaryCounts(diary)
    counts.done += 2
    counts.stale += 1
    assert (counts.done, counts.stale, counts.failed) == (2, 1, 0)
    diary.close()
    with path.open("ab") as file:
        file.write(b'[12, "end", 1')  # killed in the middle of it
    told = [line[1:] for line in read_diary(path)]
    assert told == [["begin", 1, 1, 7, 5], ["taken", 2], ["stale", 1]]


def test_diaries_of_a_crew_are_one_story(tmp_path: Path) -> None:
    crew = Crew("queue", tmp_path, list, timeout_s=1.0)
    assert not crew.full
    assert not crew.dismiss()
    assert crew.diaries() == ([], 0, 0)
    first, second = (Diary(str(tmp_path / "workers-queue" / f"worker-{n}.diary")) for n in (1, 2))
    second.tell(["hired", 8])
    second.tell(["begin", 1, 1, 8, 5])
    first.tell(["begin", 2, 1, 7, 6])
    second.tell(["end", 1, 1, 8, "ok"])
    for each in (first, second):
        each.tell(["taken", 2])
        each.tell(["stale", 1])
        each.close()
    acts = [["begin", 1, 1, 8, 5], ["begin", 2, 1, 7, 6], ["end", 1, 1, 8, "ok"]]
    assert crew.diaries() == (acts, 4, 2)


def test_who_has_workers(tmp_path: Path) -> None:
    assert [each.name for each in staffed(make("queue"))] == ["queue"]
    assert [each.name for each in staffed(make("set,queue"))] == ["queue"]
    assert staffed(make("set")) == []
    system = QuorateSystem(tmp_path, count=1, timeout_s=1.0, random=Random(1))
    with pytest.raises(UsageError, match="workers of tasks"):
        packages("workers", system)
    system.crews.append(Crew("queue", tmp_path, list, timeout_s=1.0))
    assert [each.name for each in packages("workers", system)] == ["workers"]
    system.close()


@pytest.mark.deep
@pytest.mark.processes
@pytest.mark.skipif(bool(sockets.missing()), reason="needs /proc/net/tcp")
@pytest.mark.parametrize("hasty", [False, True])
async def test_real_workers_that_are_killed_and_stopped(tmp_path: Path, *, hasty: bool) -> None:
    """With a bug on purpose - tasks are said to be done before they have run - it is found."""
    workload, random = make("queue"), Random(5)
    settings = Settings(seconds=12.0, rate=20.0, interval_s=1.0, last_timeout_s=40.0)
    with all_ended():
        system = QuorateSystem(tmp_path, count=3, timeout_s=2.0, random=random)
        crew = Crew(
            "queue",
            tmp_path,
            lambda: [system.address(number) for number in system.nodes],
            timeout_s=2.0,
            hasty=hasty,
        )
        system.crews.append(crew)
        staffed(workload)[0].staff(crew)
        chosen = packages("kill,workers", system)
        outcome = await Runner(system, workload, chosen, random, settings).run()
    assert outcome.verdict.valid is not hasty, outcome.verdict.problems
    assert crew.killed + crew.stopped
    assert not crew.free()
