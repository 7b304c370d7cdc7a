"""The synchronous twin: threads, loops, forks, and the end of the process."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quorate.client import (
    database,
    kv,
    machines,
    operations,
    schedules,
    sync,
    sync_tasks,
    task_app,
    task_watch,
    tasks,
    views,
    workflows,
)
from quorate.errors import ClosedError, InvalidArgumentError, NotSentError, UnavailableError
from quorate.replication.kv import KvMachine
from tests.client.fake_cluster import SILENT, FakeCluster, fake_cluster
from tests.replication.support import Do, Done, Teller

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """A fake cluster on a loop of its own thread."""
    ready, end, found = threading.Event(), threading.Event(), []

    async def main() -> None:
        async with fake_cluster(machines=(KvMachine(), Teller())) as made:
            found.append(made)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait()
    yield found[0]
    end.set()
    thread.join()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sync.Kv, kv.Kv),
        (sync.Database, database.Database),
        (sync.Machine, machines.Machine),
        (sync.View, views.View),
        (sync_tasks.Tasks, tasks.Tasks),
        (sync_tasks.TaskWatch, task_watch.TaskWatch),
        (sync_tasks.Result, task_app.Result),
        (sync_tasks.Workflows, workflows.Workflows),
        (sync_tasks.Run, workflows.Run),
        (sync_tasks.Schedules, schedules.Schedules),
    ],
)
def test_the_twins_have_the_same_names_and_arguments(ours: type, theirs: type) -> None:
    inner = {"bind", "pages", "ask", "codec", "welcomed", "twin", "take"}
    inner |= {database.Database: {"submit"}, tasks.Tasks: {"run"}}.get(theirs, set())
    for name, member in vars(theirs).items():
        if name.startswith("_") or name in inner or not inspect.isfunction(member):
            continue
        twin = getattr(ours, name)
        assert [*inspect.signature(twin).parameters.values()] == [
            *inspect.signature(member).parameters.values()
        ], name


def test_every_call(cluster: FakeCluster) -> None:
    with sync.connect(cluster.endpoints, name="test") as db:
        db.kv.put("k", "1")
        item = db.kv.get("k")
        assert item is not None
        assert item.value == b"1"
        assert db.kv.compare_and_set("k", "1", "2").succeeded
        assert db.kv.increment("n").value == 1
        assert [found.key for found in db.kv.range().items] == [b"k", b"n"]
        assert [found.key for found in db.kv.scan(page=1)] == [b"k", b"n"]
        assert db.kv.count(prefix="k") == 1
        assert db.kv.statistics().key_count == 2
        assert db.kv.txn([operations.exists("k")], then=[operations.get("k")]).succeeded
        assert db.kv.delete("k").count == 1
        assert db.kv.delete_range(prefix="").count == 1
        teller = db.machine("teller", Done)
        assert teller.name == "teller"
        assert teller.execute(Do((("put", "a", "x"),))).notes == 1
        assert db.status()["node"] == 1
        assert db.members()["node"] == 1
        assert db.add_member(2, "h:1")["node"] == 2
        assert db.promote(2)["node"] == 2
        assert db.demote(2)["node"] == 2
        assert db.set_address(2, "h:2")["address"] == "h:2"
        assert db.transfer_leader()["target"] == 0
        assert db.checkpoint()["method"] == "checkpoint"
        with pytest.raises(Exception, match="not now"):
            db.remove_member(2)
        assert db.statistics().session == 1
    for _ in range(2):
        with pytest.raises(ClosedError):
            db.kv.get("k")
        db.close()


def test_threads_share_a_handle(cluster: FakeCluster) -> None:
    with sync.connect(cluster.endpoints) as db, ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: db.kv.increment("n").value, range(200)))
    assert sorted(values) == list(range(1, 201))


def test_within_a_running_loop_it_blocks_but_works(cluster: FakeCluster) -> None:
    async def main() -> None:
        with sync.connect(cluster.endpoints) as db:
            assert db.kv.increment("n").value == 1

    asyncio.run(main())


def test_on_its_own_loop_it_says_so(cluster: FakeCluster) -> None:
    with sync.connect(cluster.endpoints) as db:

        async def call(_database: Any) -> None:
            db.kv.get("k")

        with pytest.raises(RuntimeError, match="its own event loop"):
            db._run(call)


def test_nobody_there() -> None:
    with pytest.raises(NotSentError, match="cannot be reached"):
        sync.connect("127.0.0.1:1", timeout=0.1).kv.get("k")
    with pytest.raises(UnavailableError), sync.connect("127.0.0.1:1", timeout=0.1):
        pass


def test_arguments_are_checked_at_once() -> None:
    with pytest.raises(InvalidArgumentError):
        sync.connect("nowhere")
    with pytest.raises(InvalidArgumentError):
        sync.connect("h:1", timeout=0)
    with pytest.raises(TypeError):
        sync.connect("h:1", tiemout=1)  # type: ignore[call-arg]

    class Node:
        def connect(self) -> None: ...

    with pytest.raises(InvalidArgumentError, match="host:port"):
        sync.connect(Node())  # type: ignore[arg-type]


def test_closing_while_threads_wait(cluster: FakeCluster) -> None:
    with sync.connect(cluster.endpoints) as db:
        db.kv.put("k", "v")
        cluster.script = lambda _node, _frame: SILENT
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                db.kv.put("k", "v")
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        db.close()
        for thread in threads:
            thread.join(2)
            assert not thread.is_alive()
    assert len(errors) == 4


def test_a_forgotten_handle_ends_its_thread(cluster: FakeCluster) -> None:
    def use() -> threading.Thread:
        db = sync.connect(cluster.endpoints)
        db.kv.put("k", "v")
        thread = db._runs._thread
        assert thread is not None
        return thread

    thread = use()
    gc.collect()
    thread.join(2)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_the_child_is_told(cluster: FakeCluster) -> None:
    program = f"""
import os
from quorate.client import sync
from quorate.errors import ClosedError
db = sync.connect({cluster.endpoints!r})
db.kv.put("k", "v")
child = os.fork()
if child == 0:
    try:
        db.kv.get("k")
    except ClosedError as error:
        os._exit(7 if "forked" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert db.kv.get("k")
"""
    _run(program)


def test_left_open_it_is_closed_at_exit(cluster: FakeCluster) -> None:
    _run(f"""
from quorate.client import sync
db = sync.connect({cluster.endpoints!r})
db.kv.put("k", "v")
""")
    last = cluster.requests[-1]
    assert last.runs[0].machine == "sessions"  # the session was closed, not left to expire


def _run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
