"""Typed tasks: what they are made of, how their arguments travel, what their results are."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

import quorate
from quorate import App, Database, TaskContext, Worker
from quorate.client.task_payloads import Shape, pack_arguments, unpack_arguments
from quorate.client.task_settings import with_payload
from quorate.errors import (
    InvalidArgumentError,
    TaskCancelledError,
    TaskFailedError,
    TaskGiveUpError,
    TaskNotFoundError,
    TaskPayloadError,
    TaskPendingError,
    TaskRetryError,
    TaskTimeoutError,
)


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass
class Order:
    id: uuid.UUID
    price: decimal.Decimal
    at: dt.datetime
    tags: set[str]
    colour: Colour
    points: list[Point]


class Model:
    """As pydantic's are: duck typing."""

    def __init__(self, number: int) -> None:
        self.number = number

    def model_dump(self) -> dict[str, Any]:
        return {"number": self.number}

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        if not isinstance(value["number"], int):
            raise ValueError("number must be an integer")  # noqa: TRY004  as pydantic's is one
        return cls(value["number"])


ORDER = Order(
    uuid.UUID(int=7),
    decimal.Decimal("1.25"),
    dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
    {"a"},
    Colour.RED,
    [Point(1, 2)],
)


def everything(
    order: Order, point: Point, /, *rest: int, model: Model, when: dt.date, **more: float
) -> None: ...


def test_arguments_come_out_as_the_annotations_say() -> None:
    shape = Shape(everything, "everything")
    args = (ORDER, Point(3), 4, 5)
    kwargs = {"model": Model(6), "when": dt.date(2024, 2, 3), "f": 1.5}
    shape.check(args, kwargs)
    found, named = shape.read(pack_arguments(args, kwargs))
    assert found == [ORDER, Point(3), 4, 5]
    assert isinstance(named["model"], Model)
    assert named["model"].number == 6
    assert (named["when"], named["f"]) == (dt.date(2024, 2, 3), 1.5)


def test_what_has_no_annotation_comes_as_it_is_packed() -> None:
    def plain(x, y=1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ...

    assert Shape(plain, "plain").read(pack_arguments([{"a": (1, b"2", None)}], {})) == (
        [{"a": [1, b"2", None]}],
        {},
    )
    assert unpack_arguments(b"") == ((), {})


BAD: list[tuple[bytes, str]] = [
    (b"\xc1", "not msgpack of"),
    (b"\x01", "not msgpack of"),
    (pack_arguments([], {}), "cannot be called so: missing a required argument: 'order'"),
    (pack_arguments([ORDER, {"x": "a"}], {"model": {"number": 1}, "when": "2024-01-01"}),
     r"argument 'point' of task 'everything' is no .*Point.*: Expected `int`"),
    (pack_arguments([ORDER, Point(1), "x"], {"model": {"number": 1}, "when": "2024-01-01"}),
     "argument 'rest'"),
    (pack_arguments([ORDER, Point(1)], {"model": {"number": "1"}, "when": "2024-01-01"}),
     "argument 'model' .* number must be an integer"),
    (pack_arguments([ORDER, Point(1)], {"model": {}, "when": "2024-01-01"}), "argument 'model'"),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "said"), BAD, ids=range(len(BAD)))
def test_a_payload_that_does_not_fit_says_which_argument(payload: bytes, said: str) -> None:
    with pytest.raises(TaskPayloadError, match=said):
        Shape(everything, "everything").read(payload)


def test_annotations_that_cannot_be_read_are_said_when_a_worker_begins() -> None:
    app = App("a")

    @app.task
    def odd(x: int | Model | Point | Order) -> None: ...

    with pytest.raises(InvalidArgumentError, match=r"parameter 'x' of task '.*odd' is annotated"):
        app.resolve()

    @app.task(name="lost")
    def lost(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidArgumentError, match=r"task 'lost' cannot be resolved.*Missing"):
        _ = lost.shape


def test_a_task_stays_the_function_that_it_was() -> None:
    app = App("a")

    @app.task
    async def double(x: int) -> int:
        """Twice."""
        return 2 * x

    @app.task(queue="q")
    def half(x: int) -> float:
        return x / 2

    assert asyncio.run(double(4)) == 8
    assert half(3) == 1.5
    assert double.__doc__ == "Twice."
    assert double.__name__ == "double"
    assert list(inspect.signature(half).parameters) == ["x"]
    assert double.name == f"{__name__}.{double.__qualname__}"
    assert app.functions[double.name] is double
    with pytest.raises(InvalidArgumentError, match="has a task"):
        app.task(double.function)
    with pytest.raises(InvalidArgumentError, match="has no name"):
        app.task(functools.partial(half.function, 1))
    assert app.task(name="one")(functools.partial(half.function, 1))() == 0.5
    with pytest.raises(InvalidArgumentError, match="has no 'color'"):
        app.task(color="red")(half.function)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="no database yet"):
        asyncio.run(half.submit(1))
    with pytest.raises(InvalidArgumentError, match="no task is running here"):
        app.context()


def test_settings_keys_and_unique_keys_are_made_of_the_call() -> None:
    app = App("a")

    @app.task(name="n", queue="q", priority=7, key=lambda user, _n: user, unique=True, retries=1)
    def work(user: str, n: int) -> None: ...

    task = work.make("u", 1)
    assert (task.function, task.queue, task.priority, task.key) == ("n", "q", 7, b"u")
    same, other = work.make("u", 1), work.make("u", 2)
    assert same == task
    assert same.options is not None
    assert other.options is not None
    assert same.options.unique != other.options.unique
    changed = work.options(priority="low", delay=2, unique=lambda user, _n: f"{user}-")
    new_year = dt.datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    at = changed.options(at=new_year).make("u", 3)
    assert (at.delay_ms, at.at_ms) == (0, 1_893_452_400_001)  # up, never too soon
    assert with_payload(at, b"").at_ms == at.at_ms
    back = changed.options(at=new_year).options(delay=3).make("u", 3)
    assert (back.delay_ms, back.at_ms) == (3000, 0)
    task = changed.make("u", 3)
    assert (task.queue, task.priority, task.delay_ms) == ("q", 1, 2000)
    assert task.options is not None
    assert task.options.unique is not None
    assert task.options.unique.key == b"u-"
    assert task.options.retry is not None
    assert task.options.retry.retries == 1
    plain = work.options(unique=False).make("u", 1)
    assert plain.options is not None
    assert plain.options.unique is None
    with pytest.raises(TaskPayloadError, match="missing a required argument: 'n'"):
        work.make("u")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgumentError, match="unique key"):
        work.options(unique=lambda _user, _n: b"x" * 300).make("u", 1)


# --- run ------------------------------------------------------------------------------------------

app = App("tested")


@app.task
async def add(x: int, y: int = 1) -> int:
    return x + y


@app.task
def describe(order: Order) -> Order:
    order.tags.add("seen")
    return order


@app.task(retries=0)
async def fail(kind: str) -> None:
    if kind == "slow":
        await asyncio.sleep(60)
    raise ValueError(kind)


@app.task(retries=2, backoff=0.01)
async def try_again(how: str) -> int:
    context = app.context()
    if context.attempt == 1 and how == "later":
        raise TaskRetryError("not yet", after=0.01)
    if how == "never":
        raise TaskGiveUpError("useless")
    if how == "unpackable":
        return object()  # type: ignore[return-value]
    return context.attempt


@app.task(retries=5, fatal=[LookupError])
async def look(name: str) -> None:
    raise KeyError(name)


seen: list[str] = []


@app.middleware
async def outer(context: TaskContext, run: Callable[[], Awaitable[Any]]) -> Any:
    seen.append(f"+{context.function.rpartition('.')[2]}")
    try:
        return await run()
    finally:
        seen.append(f"-{context.attempt}")


@app.middleware
async def inner(context: TaskContext, run: Callable[[], Awaitable[Any]]) -> Any:
    value = await run()
    if isinstance(value, int):
        seen.append(f"={value}")
    return value


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with quorate.open(tmp_path) as made, Worker(made, app, name="w", error_pause=0.01):
        app.use(made)
        yield made


async def test_results_are_awaited_as_what_the_function_returns(db: Database) -> None:
    seen.clear()
    result = await add.submit(3, y=4)
    assert await result == 7
    assert await result == 7
    assert seen == ["+add", "=7", "-1"]
    assert await add.result_of(result.id).get(5) == 7
    found = await (await describe.delay(ORDER))
    assert found == dataclasses.replace(ORDER, tags={"a", "seen"})
    by_name = await db.tasks.enqueue(add.name, args=(1,))
    assert await quorate.Result(db.tasks, by_name) == 2
    assert (await result.info()).function == add.name


async def test_why_a_task_has_no_result_is_raised(db: Database) -> None:
    with pytest.raises(
        TaskFailedError, match=r"dead after attempt 1: ValueError: broken"
    ) as raised:
        await (await fail.submit("broken"))
    error = raised.value
    assert (error.kind, error.task > 0) == ("ValueError", True)
    assert "raise ValueError(kind)" in error.error
    assert "task_jobs" not in error.error
    with pytest.raises(TaskTimeoutError, match="did not end or report in time"):
        await (await fail.options(timeout=0.05).submit("slow"))
    slow = await fail.submit("slow")
    with pytest.raises(TaskPendingError):
        await slow.get(0.01)
    assert await slow.cancel()
    with pytest.raises(TaskCancelledError, match="was cancelled"):
        await slow
    assert not await slow.cancel()
    with pytest.raises(TaskNotFoundError):
        await fail.result_of(12345)


async def test_a_task_may_say_how_it_is_to_go_on(db: Database) -> None:
    assert await (await try_again.submit("later")) == 2
    with pytest.raises(TaskFailedError, match=r"attempt 1: .*TaskGiveUpError: useless"):
        await (await try_again.submit("never"))
    with pytest.raises(TaskFailedError, match=r"attempt 1: the result of task .* cannot be packed"):
        await (await try_again.submit("unpackable"))
    with pytest.raises(TaskFailedError, match="attempt 1: KeyError: 'x'"):
        await (await look.submit("x"))


async def test_what_does_not_fit_fails_for_good_and_says_why(db: Database) -> None:
    bad = await db.tasks.enqueue(add.name, args=("three",))
    none = await db.tasks.enqueue("nothing", retries=0)
    found = await db.tasks.wait([bad, none], timeout=5)
    assert [each.what for each in found] == ["dead", "dead"]
    assert found[0].kind == "bad-payload"
    assert found[0].error.startswith(f"argument 'x' of task {add.name!r} is no <class 'int'>")
    assert found[1].error == "app 'tested' of this worker has no task 'nothing'"
