"""``bench tasks``: the choice of peers, what is counted of them, and their processes."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import quorate
from bench import processes, tasks
from bench.__main__ import make_parser
from bench.measure import Sample
from bench.processes import BenchError
from bench.systems import rabbitmq, task_peer
from bench.systems.task_peer import Redis, TaskRow, rate_row
from bench.task_deaths import Deaths
from bench.task_protocol import BATCH, BATCHES, protocol_lives


def test_a_peer_that_is_not_there_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(rabbitmq, "SCRIPTS", tmp_path)
    able, absent = tasks.choose_peers(make_parser().parse_args(["tasks"]).peers)
    assert able == []
    assert list(absent) == list(tasks.PEERS)
    assert all("install" in reason for reason in absent.values())
    with pytest.raises(BenchError, match="unknown peer 'kafka'; there are rabbitmq, dramatiq"):
        tasks.choose_peers(["kafka"])


def rows(*peers: TaskRow) -> dict[tasks.Key, TaskRow]:
    ours = {("put", 1): 1000, ("enqueue", 1): 800, ("enqueue", tasks.OUTSTANDING): 20_000}
    ours |= {(f"enqueue {tasks.BATCH} at once", 8): 50_000, ("start", 1): 500}
    ours |= {("life, not awaited", 100): 9_000, ("protocol-lives", BATCHES * BATCH): 30_000}
    made = [TaskRow(what, many, float(speed), 1.0, 1.0) for (what, many), speed in ours.items()]
    return {(row.system, row.what, row.outstanding): row for row in (*made, *peers)}


def test_ratios_are_of_rows_that_do_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    peers = [
        rate_row("enqueue", 100, 4_000.0, "rabbitmq"),
        rate_row("run by a worker", 8, 3e3, "x"),
    ]
    peers += [rate_row("run by a worker", 8, 3_000.0, "dramatiq")]
    aside = tasks.Aside(Deaths(0.5, 10, 8_000.0, 7_900.0), {1_000: 10_000.0, 1_000_000: 9_000.0})
    found = tasks.finish({}, rows(*peers), {"celery": "it is not there"}, aside)
    assert found["ratios"] == [
        {"name": "enqueue, 100 outstanding / rabbitmq: enqueue", "ratio": 5.0},
        {
            "name": "life, not awaited, 100 outstanding / dramatiq: run by a worker",
            "ratio": 3.0,
        },
    ]
    assert found["left_out"] == {"celery": "it is not there"}
    assert all(bar["met"] for bar in found["bars"])
    assert "rabbitmq" in capsys.readouterr().out


def test_every_ratio_is_of_rows_that_there_are() -> None:
    assert set(tasks.AGAINST) == set(tasks.PEERS)
    ours = {(row.what, row.outstanding) for row in rows().values()}
    assert all(row in ours for peer in tasks.AGAINST.values() for row in peer.values())


def test_what_a_worker_gets_done_is_counted_by_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_peer, "SAMPLE_S", 0.01)
    began = time.perf_counter()

    def left() -> int:
        return max(0, 1000 - int(1000 * (time.perf_counter() - began)))

    assert task_peer.drained_per_s(left, 0.1) == pytest.approx(1000, rel=0.3)
    began = time.perf_counter() - 0.7  # it ends before the time is over
    assert task_peer.drained_per_s(left, 0.5) == pytest.approx(1000, rel=0.3)
    began = time.perf_counter() - 0.9
    with pytest.raises(BenchError, match="done before they could be counted"):
        task_peer.drained_per_s(left, 0.4)


def test_enqueueing_is_timed_call_by_call() -> None:
    sample = task_peer.enqueue_for(lambda: time.sleep(0.001), 0.02)
    assert isinstance(sample, Sample)
    assert 1 <= len(sample.latencies_s) <= 20
    assert sum(sample.latencies_s) == pytest.approx(sample.window_s, rel=0.01)


async def test_lives_by_bare_commands(tmp_path: Path) -> None:
    async with quorate.open(tmp_path) as db:
        assert await protocol_lives(db, 0.1) > 0
        info = await db.tasks.system()
        assert info.done_kept >= BATCH
        assert (info.running, info.ready, info.idle + info.busy) == (0, 0, 0)


def test_a_group_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; mv {pid} {pid}s; wait"
    process = processes.start(["sh", "-c", script], tmp_path / "log")
    processes.wait_until((tmp_path / "pids").exists, 10, "the shell")
    child = Path(f"/proc/{(tmp_path / 'pids').read_text().strip()}/status")
    processes.kill_group(process)
    processes.kill_group(process)

    def gone() -> bool:
        return not child.exists() or "State:\tZ" in child.read_text()

    if sys.platform == "linux":
        processes.wait_until(gone, 10, "the end of its child")


@pytest.mark.skipif(task_peer.missing_redis() is not None, reason="there is no redis-server")
def test_redis_runs_and_is_gone(tmp_path: Path) -> None:
    redis: Any = Redis(tmp_path)
    assert redis._listens()
    redis.stop()
    assert not redis._listens()
    assert task_peer.redis_version()[0].isdigit()
