"""``QuorateExecutor`` over a real node: what futures of the cluster's tasks promise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import App, QuorateExecutor, sync
from quorate.base.task_commands import Enqueue
from quorate.base.task_specs import CANCELLED, READY
from quorate.errors import (
    ClosedError,
    ExecutorShutdownError,
    InvalidArgumentError,
    OutcomeUnknownError,
    OverloadedError,
    QueueFullError,
    TaskCancelledError,
    TaskFailedError,
    TaskPayloadError,
)

ROOT = Path(__file__).resolve().parents[2]

app = App("executor")
gates: dict[str, threading.Event] = {}
ran: list[str] = []


@app.task(name="double", queue="fast")
def double(value: int) -> int:
    return 2 * value


@app.task(name="later", queue="fast")
async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


@app.task(name="fail", queue="fast", retries=0)
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(name="hold", queue="fast", retries=0)
def hold(name: str) -> str:
    """Until the gate of that name is opened."""
    ran.append(name)
    gates[name].wait(10)
    return name


@app.task(name="nobody", queue="nobody's")
def nobody(value: int) -> int:
    return value


divide: Any = app.task(name="divide", queue="fast", retries=0)(divmod)


def plain(value: int) -> int:
    return value


app.task(name="plain", queue="fast")(plain)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync.Database]:
    with sync.open(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[Callable[[str], threading.Event]]:
    def make(name: str) -> threading.Event:
        return gates.setdefault(name, threading.Event())

    yield make
    for each in gates.values():
        each.set()
    gates.clear()
    ran.clear()


@pytest.fixture
def pool(db: sync.Database, gate: Any) -> Iterator[QuorateExecutor]:
    """With two workers, for the queue "fast"."""
    with QuorateExecutor(db, app, workers=2, queues=["fast"]) as made:
        yield made
        for each in gates.values():
            each.set()


@pytest.fixture
def alone(db: sync.Database) -> Iterator[QuorateExecutor]:
    """Without workers; what is submitted to "nobody's" waits."""
    made = QuorateExecutor(db, app, outstanding_max=20)
    yield made
    made.shutdown(cancel_futures=True)


def until(what: Callable[[], object]) -> None:
    end_s = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.002)


# --- submitting -----------------------------------------------------------------------------------


def test_a_call_is_a_task_and_comes_to_what_the_function_returns(
    db: sync.Database, pool: QuorateExecutor
) -> None:
    futures = [pool.submit(double, n) for n in range(50)]
    assert [each.result(10) for each in futures] == [2 * n for n in range(50)]
    assert pool.submit(later, value=1).result(10) == 2
    assert pool.submit(plain, 7).result(10) == 7  # the very function that is registered
    assert pool.submit(divide, 7, 2).result(10) == [3, 1]
    assert pool.submit(double.options(priority="high"), 3).result(10) == 6
    task = futures[0].enqueued()
    assert db.tasks.info(task).function == "double"


def test_once_it_is_enqueued_it_is_there_for_everybody(
    db: sync.Database, alone: QuorateExecutor
) -> None:
    future = alone.submit(nobody, 5)
    task = future.enqueued(10)
    assert future.task == task
    assert (db.tasks.info(task).state, db.tasks.info(task).queue) == (READY, "nobody's")
    assert not future.running()
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(0.01)


def test_what_is_no_task_is_refused_and_the_error_says_what_to_do(
    alone: QuorateExecutor, db: sync.Database
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no code travels: decorate it with @app\.task"):
        alone.submit(lambda: 1)
    with pytest.raises(InvalidArgumentError, match="is for tasks of app 'executor'"):
        alone.submit(App("other").task(name="x")(plain), 1)
    with pytest.raises(TaskPayloadError, match="argument 1 of task 'nobody', of type object"):
        alone.submit(nobody, object())  # type: ignore[call-overload]
    with pytest.raises(TaskPayloadError, match="cannot be called so"):
        alone.map(nobody, [1], [2])
    wrongs: list[dict[str, Any]] = [
        {"workers": -1},
        {"outstanding_max": 0},
        {"queues": ["a"]},
        {"workers": True},
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidArgumentError):
            QuorateExecutor(db, app, **wrong)
    with pytest.raises(InvalidArgumentError, match=r"a handle of quorate\.sync"):
        QuorateExecutor(quorate.connect("127.0.0.1:1"), app)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="tasks of an App"):
        QuorateExecutor(db, "app")  # type: ignore[arg-type]


def test_what_the_cluster_refuses_the_future_raises(
    db: sync.Database, alone: QuorateExecutor
) -> None:
    db.tasks.configure("small", depth_max=1)
    full = [alone.submit(nobody.options(queue="small"), n) for n in range(2)]
    full[0].enqueued(10)
    with pytest.raises(QueueFullError):
        full[1].enqueued(10)
    with pytest.raises(QueueFullError):
        full[1].result()


# --- failing --------------------------------------------------------------------------------------


def test_an_error_of_the_task_comes_with_its_text_and_where_it_was_raised(
    pool: QuorateExecutor,
) -> None:
    error = pool.submit(fail, "no luck").exception(10)
    assert isinstance(error, TaskFailedError)
    assert error.kind == "ValueError"
    assert "ValueError: no luck" in str(error)
    assert "raise ValueError(text)" in error.error
    assert "raise ValueError(text)" in "".join(error.__notes__)


def test_an_end_that_nobody_knows_is_reported_as_unknown(tmp_path: Path) -> None:
    with sync.open(tmp_path) as db:
        lost = QuorateExecutor(db, app)
        sent = lost.submit(nobody, 1)
        sent.enqueued(10)
    error = sent.exception(10)
    assert isinstance(error, OutcomeUnknownError)
    assert not error.definite
    assert f"task {sent.task} was enqueued" in str(error)
    with pytest.raises(ExecutorShutdownError, match="its handle was closed"):
        lost.submit(nobody, 2)
    lost.shutdown()


def test_what_was_forgotten_has_no_known_end(db: sync.Database, pool: QuorateExecutor) -> None:
    held = db.tasks.enqueue("nobody", args=(1,), queue="nobody's", unique="k")
    future = pool.submit(nobody.options(unique="k"), 1)  # another's task
    assert future.enqueued(10) == held
    db.tasks.purge("ready", "nobody's")
    assert isinstance(future.exception(10), OutcomeUnknownError | TaskCancelledError)


# --- cancelling -----------------------------------------------------------------------------------


def test_what_has_not_begun_is_cancelled_in_the_cluster(
    db: sync.Database, alone: QuorateExecutor
) -> None:
    future = alone.submit(nobody, 1)
    task = future.enqueued(10)
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert db.tasks.info(task).state == CANCELLED
    with pytest.raises(CancelledError):
        future.result()
    assert wait([future], 5).done == {future}
    at_once = alone.submit(nobody, 2)
    assert at_once.cancel()  # sent or not


def test_what_has_begun_cannot_be_cancelled(pool: QuorateExecutor, gate: Any) -> None:
    gate("a")
    future = pool.submit(hold, "a")
    until(future.running)
    assert not future.cancel()
    assert not future.cancelled()
    gate("a").set()
    assert future.result(10) == "a"
    assert not future.cancel()


def test_what_is_cancelled_between_two_looks_is_never_run(
    pool: QuorateExecutor, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool._line._endings, "on_started", None)  # so only the cluster knows
    for name in "abcdef":
        gate(name)
    futures = {name: pool.submit(hold, name) for name in "abcdef"}
    for future in futures.values():
        future.enqueued(10)
    outcome = {name: future.cancel() for name, future in futures.items()}
    assert [name for name, cancelled in outcome.items() if not cancelled] == ["a", "b"]
    for name in "abcdef":
        gate(name).set()
    for name, future in futures.items():
        assert future.cancelled() if outcome[name] else future.result(10) == name
    assert sorted(ran) == ["a", "b"]


def test_somebody_else_may_cancel_it(db: sync.Database, alone: QuorateExecutor) -> None:
    future = alone.submit(nobody, 1)
    db.tasks.cancel(future.enqueued(10))
    with pytest.raises(TaskCancelledError):
        future.result(10)
    assert not future.cancelled()


# --- the rest of concurrent.futures and asyncio ---------------------------------------------------


def test_as_completed_and_wait(pool: QuorateExecutor, gate: Any) -> None:
    gate("slow")
    slow, quick = pool.submit(hold, "slow"), pool.submit(double, 1)
    both: list[Future[Any]] = [slow, quick]
    assert wait(both, 10, FIRST_COMPLETED).done == {quick}
    ends = as_completed(both, 10)
    assert next(ends) is quick
    gate("slow").set()
    assert next(ends) is slow


async def test_with_asyncio(tmp_path: Path) -> None:
    with sync.open(tmp_path) as db, QuorateExecutor(db, app, workers=2, queues=["fast"]) as pool:
        futures = [asyncio.wrap_future(pool.submit(double, n)) for n in range(10)]
        assert await asyncio.wait_for(asyncio.gather(*futures), 10) == [2 * n for n in range(10)]
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, plain, 3) == 3
        waiting = asyncio.wrap_future(inner := pool.submit(double.options(queue="nobody's"), 1))
        waiting.cancel()
        await asyncio.sleep(0)
        assert inner.cancelled()


def test_map_keeps_order_and_enqueues_in_chunks(
    db: sync.Database, pool: QuorateExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    tasks = pool._line._tasks
    run = tasks.run

    def spy(command: Any, timeout: float | None = None) -> Any:
        if isinstance(command, Enqueue):
            sizes.append(len(command.tasks))
        return run(command, timeout)

    monkeypatch.setattr(tasks, "run", spy)
    assert list(pool.map(double, range(25), chunksize=10, timeout=10)) == [*range(0, 50, 2)]
    assert sizes == [10, 10, 5]
    seen: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(10):
            seen.append(n)
            yield n

    results = pool.map(double, numbers(), buffersize=3)
    assert seen == [0, 1, 2]
    assert next(results) == 0
    assert seen == [0, 1, 2, 3]
    assert list(results) == [*range(2, 20, 2)]
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(double, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(double, [1], buffersize=0)


def test_what_is_left_of_a_map_is_cancelled(db: sync.Database, alone: QuorateExecutor) -> None:
    results = alone.map(nobody, range(5), timeout=0.2)
    with pytest.raises(TimeoutError):
        next(results)
    assert not alone._live
    assert list(db.tasks.list(queue="nobody's")) == []


# --- bounds, and no polling -----------------------------------------------------------------------


def test_so_many_may_be_outstanding_and_who_wants_more_waits(alone: QuorateExecutor) -> None:
    futures = [alone.submit(nobody, n) for n in range(20)]
    blocked = threading.Thread(target=lambda: futures.append(alone.submit(nobody, 20)))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    told: list[object] = []

    def more(_future: object) -> None:
        for n in range(2):
            try:
                told.append(alone.submit(nobody, n))
            except OverloadedError as error:
                told.append(error)

    futures[0].enqueued(10)
    futures[1].add_done_callback(more)
    alone._db.tasks.cancel(futures[1].task or futures[1].enqueued(10))
    until(lambda: len(told) == 2)
    assert any(isinstance(each, OverloadedError) for each in told)
    assert futures[0].cancel()
    blocked.join(10)
    assert len(futures) == 21


def test_a_callback_may_submit_in_the_place_of_what_has_ended(db: sync.Database) -> None:
    pool = QuorateExecutor(db, app, outstanding_max=1)
    told: list[Any] = []
    first = pool.submit(nobody, 1)
    first.add_done_callback(lambda _future: told.append(pool.submit(nobody, 2)))
    db.tasks.cancel(first.enqueued(10))
    until(lambda: told)
    assert told[0].cancel()
    pool.shutdown()


def test_nothing_is_polled_and_what_is_submitted_together_is_watched_together(
    pool: QuorateExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pool._line._tasks
    opened: list[str] = []
    watches = tasks.watches
    begin = watches.open

    def spy(*args: Any) -> Any:
        opened.append(args[0])
        return begin(*args)

    monkeypatch.setattr(watches, "open", spy)
    monkeypatch.setattr(tasks, "ask", lambda *_args: pytest.fail("asked"))
    assert list(pool.map(double, range(100), chunksize=100)) == [*range(0, 200, 2)]
    assert len(opened) == 1


# --- losing workers -------------------------------------------------------------------------------


def test_a_worker_that_is_lost_under_way_costs_nothing_but_time(
    db: sync.Database, pool: QuorateExecutor, gate: Any
) -> None:
    gate("x")
    future = pool.submit(hold, "x")
    until(future.running)
    (info,) = db.tasks.workers()
    db.on_loop(lambda database: database.revoke_lease(info.lease))
    until(lambda: ran == ["x", "x"])
    gate("x").set()
    assert future.result(10) == "x"
    assert db.tasks.info(future.task).attempt == 2


# --- the end --------------------------------------------------------------------------------------


def test_after_shutdown_nothing_is_taken_and_all_has_ended(db: sync.Database) -> None:
    pool = QuorateExecutor(db, app, workers=2, queues=["fast"])
    futures = [pool.submit(double, n) for n in range(20)]
    pool.shutdown()
    assert all(each.done() for each in futures)
    assert not pool._thread.is_alive()
    for _ in range(2):
        with pytest.raises(ExecutorShutdownError, match="after shutdown"):
            pool.submit(double, 1)
        with pytest.raises(RuntimeError):  # as concurrent.futures has it
            pool.submit(double, 1)
        pool.shutdown()
    assert db.tasks.workers() == ()


def test_shutdown_without_waiting_goes_on_by_itself(db: sync.Database, gate: Any) -> None:
    gate("y")
    pool = QuorateExecutor(db, app, workers=1, queues=["fast"])
    told: list[object] = []

    def end(_future: object) -> None:
        try:
            pool.shutdown()
        except RuntimeError as error:
            told.append(error)

    running, waiting = pool.submit(hold, "y"), pool.submit(nobody, 1)
    running.add_done_callback(end)
    until(running.running)
    pool.shutdown(wait=False, cancel_futures=True)
    until(waiting.cancelled)
    assert not running.done()
    gate("y").set()
    assert running.result(10) == "y"
    pool._thread.join(10)
    assert not pool._thread.is_alive()
    assert len(told) == 1


def test_a_submit_that_waits_for_room_hears_of_the_shutdown(db: sync.Database) -> None:
    pool = QuorateExecutor(db, app, outstanding_max=1)
    pool.submit(nobody, 1)
    errors: list[Exception] = []

    def more() -> None:
        try:
            pool.submit(nobody, 2)
        except ExecutorShutdownError as error:
            errors.append(error)

    blocked = threading.Thread(target=more)
    blocked.start()
    time.sleep(0.02)
    pool.shutdown(wait=False, cancel_futures=True)
    blocked.join(10)
    assert len(errors) == 1
    pool.shutdown()


def test_on_the_loop_of_its_handle_it_does_not_wait_for_itself(
    db: sync.Database, alone: QuorateExecutor
) -> None:
    future = alone.submit(nobody, 1)
    future.enqueued(10)

    async def there(_database: object) -> None:
        with pytest.raises(RuntimeError):
            future.cancel()
        with pytest.raises(RuntimeError):
            alone.shutdown()

    db.on_loop(there)


def test_a_closed_handle_makes_no_executor(tmp_path: Path) -> None:
    with sync.open(tmp_path) as db:
        pass
    with pytest.raises(ClosedError):
        QuorateExecutor(db, app)


def test_the_end_of_the_interpreter_makes_durable_and_waits_for_nobody(tmp_path: Path) -> None:
    program = f"""
import atexit, logging, time
from quorate import App, QuorateExecutor, sync
logging.disable()  # a slow disk is no matter here
app = App("exit")
@app.task(name="slow", retries=0)
def slow():
    time.sleep(0.3)
    print("apple", flush=True)
@app.task(name="nobody", queue="nobody's")
def nobody(): ...
db = sync.open({str(tmp_path)!r})
pool = QuorateExecutor(db, app, workers=1, queues=["default"])
@atexit.register
def last():
    try:
        pool.submit(nobody)
    except RuntimeError as error:
        print(error, flush=True)
running = pool.submit(slow)
while not running.running():
    time.sleep(0.01)
for _ in range(3):
    pool.submit(nobody)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,  # whoever waits for the tasks of "nobody's" waits for ever
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    assert done.stdout.splitlines() == [
        "apple",  # what ran came to its end
        "cannot schedule new futures after interpreter shutdown",
    ]
    with sync.open(tmp_path) as db:
        assert [info.function for info in db.tasks.list()] == ["nobody"] * 3
        assert [info.function for info in db.tasks.list("done")] == ["slow"]
