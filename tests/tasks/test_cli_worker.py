"""`quorate worker`: a worker process beside a node process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate import connect
from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster
from quorate.server.running import send_signal
from quorate.server.worker_crew import Crew

APP = """
import asyncio, time
import quorate

app = quorate.App("shop")

@app.task(name="hog")
async def hog() -> int:
    time.sleep(1.7)  # blocks the loop of the worker for longer than its lease lives
    return app.context().attempt

@app.task(name="wait")
async def wait() -> None:
    await asyncio.sleep(60)

@app.task(name="deaf")
def deaf() -> None:
    time.sleep(60)

@app.task(name="quick")
async def quick() -> None: ...

other = 1
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    cluster = LocalCluster(1)
    try:
        asyncio.run(cluster.start())
        yield cluster.endpoints
    finally:
        cluster.close()


@pytest.fixture
def begin(endpoint: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    (tmp_path / "shop.py").write_text(APP)
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "quorate", "worker", "shop:app", "--json", *arguments],
            env={**os.environ, "QUORATE_ENDPOINTS": endpoint, "PYTHONPATH": str(Path.cwd())},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.processes
async def test_a_worker_process_works_drains_and_can_be_killed(
    endpoint: str, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    async with connect(endpoint) as db, asyncio.timeout(60):
        process = begin("--ttl", "1", "--name", "w1", "--shutdown-timeout", "0.1", "-c", "4")
        said = await line(process)
        assert (said["working"], said["name"], said["app"]) == (True, "w1", "shop")
        assert said["pid"] == process.pid
        hog = await db.tasks.enqueue("hog")
        (ended,) = await db.tasks.wait([hog])
        assert (ended.result, ended.attempt) == (b"\x01", 1)

        waiting = [await db.tasks.enqueue(name) for name in ("wait", "deaf")]
        await running(db, 2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        last = await line(process)
        assert await asyncio.to_thread(process.wait) == 0
        assert time.monotonic() - began < 10  # it does not wait for the thread
        assert (last["done"], last["given_back"]) == (1, 2)
        infos = [await db.tasks.info(each) for each in waiting]
        assert [(each.attempt, each.errors, each.crashes) for each in infos] == [(1, 0, 0)] * 2

        process = begin("--ttl", "1")
        await running(db, 2)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == -signal.SIGTERM
        assert "draining; once more kills" in process.communicate()[1]


@pytest.mark.processes
async def test_several_processes_under_one(
    endpoint: str, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    async with connect(endpoint) as db, asyncio.timeout(60):
        process = begin("--processes", "2", "--tasks-max", "1", "--queues", "few")
        first, second = await line(process), await line(process)
        assert len({process.pid, first["pid"], second["pid"]}) == 3
        assert first["queues"] == ["few"]

        os.kill(first["pid"], signal.SIGKILL)
        third = await line(process)
        assert (third["working"], third["pid"] not in (first["pid"], second["pid"])) == (True, True)

        (ended,) = await db.tasks.wait([await db.tasks.enqueue("quick", queue="few")])
        assert ended.what == "done"
        said = [await line(process), await line(process)]  # --tasks-max: one ends, another begins
        assert sorted(each["working"] for each in said) == [False, True]

        pids = {second["pid"], third["pid"], *(each["pid"] for each in said if each["working"])}
        process.kill()  # its workers see that it has gone, and drain: no lease has to end
        while await serving(db, pids):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.02)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "again", "status", "times"),
    [
        ("exit 0", False, 0, 2),  # both have no more to do
        ("exit 2", False, 2, 1),  # it will never do: the other one is told to end
        ("kill -9 $$", False, 137, 5),
        ("kill -TERM $PPID; read line", True, 0, 1),
        ("trap 'exit 3' TERM; kill -TERM $PPID; read line", True, 3, 1),
    ],
)
async def test_processes_that_end(
    script: str, again: bool, status: int, times: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("quorate.server.worker_crew.PAUSE_S", 0.001)
    begun = tmp_path / "begun"
    crew = Crew(["sh", "-c", f"echo >> {begun}; {script}"], 2, again=again)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, crew.stop)
    try:
        async with asyncio.timeout(30):
            assert await crew.run() == status
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert len(begun.read_text()) >= times


@pytest.mark.processes
async def test_a_signal_takes_no_status_away() -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    time.sleep(0.2)  # noqa: ASYNC251  it has ended, and the loop has not heard of it
    send_signal(process, signal.SIGTERM)
    assert await process.wait() == 3


async def serving(db: Any, pids: set[int]) -> int:
    names = [each.name for each in await db.tasks.workers()]
    return sum(name.endswith(f":{pid}") for name in names for pid in pids)


async def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    text = await asyncio.to_thread(process.stdout.readline)
    assert text, process.communicate()[1]
    found: dict[str, Any] = json.loads(text)
    return found


async def running(db: Any, count: int) -> None:
    while (await db.tasks.system()).running < count:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop"], "'shop' is no app: write MODULE:NAME"),
        (["no_such_module_here:app"], "no_such_module_here cannot be imported: ModuleNotFound"),
        (["json:app"], "module json has no app"),
        (["json:dumps"], "json:dumps is no quorate.App, but of type function"),
    ],
)
def test_what_is_no_app_is_said_in_one_line(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", *arguments]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_cluster_that_cannot_be_reached_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop_here.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["worker", "shop_here:app", "--connect", "127.0.0.1:1", "--timeout", "0.1"]
    assert main([*arguments, "--log-level", "critical"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("quorate: ")
    assert error.count("\n") == 1
