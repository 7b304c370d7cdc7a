"""The typed handle against the real machine: arguments, results, transactions, other machines."""

# arguments of all kinds, also wrong ones

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from quorate.base.kv_commands import DeleteResult, GetResult, KeyValue, PutResult
from quorate.base.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX
from quorate.client import operations as ops
from quorate.client.database import Database, connect
from quorate.client.kv import after_prefix
from quorate.errors import (
    BadCommandError,
    CommandError,
    InvalidArgumentError,
    LimitExceededError,
    MachineError,
    OutcomeUnknownError,
    UnknownMachineError,
)
from quorate.replication.kv import KvMachine
from tests.client.fake_cluster import fake_cluster
from tests.replication.support import Do, Done, Teller


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    async with (
        fake_cluster(machines=(KvMachine(), Teller())) as cluster,
        connect(cluster.endpoints) as handle,
    ):
        yield handle


async def test_one_key(db: Database) -> None:
    assert await db.kv.get("k") is None
    assert await db.kv.put("k", "1") == PutResult(1)
    first = KeyValue(b"k", b"1", 1, 1, 1)
    assert await db.kv.put(b"k", bytearray(b"2"), previous=True) == PutResult(2, first)
    assert await db.kv.get("k") == KeyValue(b"k", b"2", 1, 2, 2)
    assert await db.kv.get("k", level="eventual") == KeyValue(b"k", b"2", 1, 2, 2)
    assert await db.kv.delete("k") == DeleteResult(3, 1)
    assert await db.kv.delete("k") == DeleteResult(3, 0)
    assert (await db.kv.statistics()).revision == 3


async def test_text_is_utf8(db: Database) -> None:
    await db.kv.put("käse", "grün")
    item = await db.kv.get("käse".encode())
    assert item is not None
    assert item.value.decode() == "grün"
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        await db.kv.put("\ud800", "v")


async def test_compare_and_set(db: Database) -> None:
    made = await db.kv.compare_and_set("k", None, "1")
    assert made.succeeded
    assert not (await db.kv.compare_and_set("k", None, "2")).succeeded
    assert (await db.kv.compare_and_set("k", "1", "2")).succeeded
    lost = await db.kv.compare_and_set("k", made.revision, "3")
    assert not lost.succeeded
    assert lost.current is not None
    assert (await db.kv.compare_and_set("k", lost.current.mod_revision, None)).succeeded
    assert await db.kv.get("k") is None


async def test_increment(db: Database) -> None:
    assert (await db.kv.increment("n")).value == 1
    assert (await db.kv.increment("n", -5)).value == -4
    await db.kv.put("n", "many")
    with pytest.raises(CommandError) as caught:
        await db.kv.increment("n")
    assert caught.value.definite


async def test_ranges(db: Database) -> None:
    for name in ("a", "b/1", "b/2", "b/3", "c"):
        await db.kv.put(name, name)

    async def keys(*args: Any, **options: Any) -> list[str]:
        return [item.key.decode() for item in (await db.kv.range(*args, **options)).items]

    assert await keys() == ["a", "b/1", "b/2", "b/3", "c"]
    assert await keys("b/2") == ["b/2", "b/3", "c"]
    assert await keys("b/2", "c") == ["b/2", "b/3"]
    assert await keys(None, "b/2") == ["a", "b/1"]
    assert await keys(prefix="b/", reverse=True) == ["b/3", "b/2", "b/1"]
    found = await db.kv.range(prefix="b/", limit=2, keys_only=True)
    assert (found.more, found.count, found.items[0].value) == (True, 3, b"")
    assert await db.kv.count() == 5
    assert await db.kv.count(prefix="b/") == 3
    assert [item.key async for item in db.kv.scan(prefix="b/", page=1)] == [b"b/1", b"b/2", b"b/3"]
    assert len([item async for item in db.kv.scan(page=2)]) == 5
    assert [page async for page in db.kv.pages(prefix="none")] == []
    assert (await db.kv.delete_range(prefix="b/", limit=2, previous=True)).more
    assert (await db.kv.delete_range("b/")).count == 2
    assert (await db.kv.delete_range(prefix="")).count == 1


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"", None), (b"a\x00", b"a\x01")],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert after_prefix(prefix) == end


async def test_transactions(db: Database) -> None:
    done = await db.kv.txn(
        [ops.missing("k")], then=[ops.put("k", "1"), ops.increment("n")], otherwise=[ops.get("k")]
    )
    assert done.succeeded
    again = await db.kv.txn(
        [ops.missing("k")], then=[ops.put("k", "2")], otherwise=[ops.get("k"), ops.span(prefix="n")]
    )
    assert not again.succeeded
    assert again.results[0] == GetResult(1, KeyValue(b"k", b"1", 1, 1, 1))
    for condition, holds in [
        (ops.exists("k"), True),
        (ops.exists("none"), False),
        (ops.value("k") == "1", True),
        (ops.value("k") != b"1", False),
        (ops.value("none") != b"1", False),
        (ops.version("k") > 0, True),
        (ops.version("k") < 1, False),
        (ops.create_revision("k") == 1, True),
        (ops.mod_revision("k") == 2, False),
    ]:
        assert (await db.kv.txn([condition])).succeeded is holds, condition
    gone = await db.kv.txn(then=[ops.delete("k"), ops.delete_span("n", previous=True)])
    assert gone.succeeded
    assert await db.kv.count() == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda kv: kv.put("", "v"), InvalidArgumentError),
        (lambda kv: kv.put(b"", b"v"), InvalidArgumentError),
        (lambda kv: kv.put(1, "v"), InvalidArgumentError),
        (lambda kv: kv.put("k", None), InvalidArgumentError),
        (lambda kv: kv.put(bytes(KEY_BYTES_MAX + 1), b""), LimitExceededError),
        (lambda kv: kv.put(b"k", bytes(VALUE_BYTES_MAX + 1)), LimitExceededError),
        (lambda kv: kv.put("k", "v", timeout=0), InvalidArgumentError),
        (lambda kv: kv.put("k", "v", timeout="1"), InvalidArgumentError),
        (lambda kv: kv.get(None), InvalidArgumentError),
        (lambda kv: kv.get("k", timeout=float("inf")), InvalidArgumentError),
        (lambda kv: kv.increment("n", 2**63), InvalidArgumentError),
        (lambda kv: kv.increment("n", True), InvalidArgumentError),
        (lambda kv: kv.compare_and_set("k", 1.5, "v"), InvalidArgumentError),
        (lambda kv: kv.range("a", prefix="b"), InvalidArgumentError),
        (lambda kv: kv.range(limit=-1), InvalidArgumentError),
        (lambda kv: kv.range(limit=10_001), InvalidArgumentError),
        (lambda kv: kv.range(bytes(KEY_BYTES_MAX + 2)), LimitExceededError),
        (lambda kv: kv.delete_range(), InvalidArgumentError),
        (lambda kv: anext(kv.scan(page=0)), InvalidArgumentError),
        (lambda kv: kv.txn(then=[ops.put("k", "1"), ops.put("k", "2")]), InvalidArgumentError),
        (lambda kv: kv.txn(then=[ops.put("k", "1"), ops.delete("k")]), InvalidArgumentError),
        (lambda kv: kv.txn(then=["put"]), InvalidArgumentError),
        (lambda kv: kv.txn([True]), InvalidArgumentError),
        (lambda kv: kv.txn(then=[ops.get("k")] * 1025), LimitExceededError),
    ],
)
async def test_arguments_are_checked_before_anything_is_sent(call: Any, error: type) -> None:
    handle = connect("127.0.0.1:1")  # nobody there: a call that were sent would wait
    with pytest.raises(error):
        await call(handle.kv)
    await handle.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ops.value("k") == 1,
        lambda: ops.version("k") == "1",
        lambda: ops.version("k") > 1.0,
        lambda: ops.mod_revision("") == 1,
        lambda: ops.missing(b""),
        lambda: ops.put("k", 5),  # type: ignore[arg-type]
    ],
)
def test_operations_are_checked_where_they_are_made(make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make()


async def test_the_largest_put_fits(db: Database) -> None:
    await db.kv.put(bytes(KEY_BYTES_MAX), bytes(VALUE_BYTES_MAX))
    item = await db.kv.get(bytes(KEY_BYTES_MAX))
    assert item is not None
    assert len(item.value) == VALUE_BYTES_MAX


async def test_reads_that_outgrow_a_reply_are_asked_again_in_parts(db: Database) -> None:
    """Twelve values of a megabyte: each fits into a reply, all together do not."""
    await asyncio.gather(*(db.kv.put(f"k{at}", bytes(1_000_000)) for at in range(12)))
    items = await asyncio.gather(*(db.kv.get(f"k{at}") for at in range(12)))
    assert all(item is not None and len(item.value) == 1_000_000 for item in items)


# --- other machines ------------------------------------------------------------------------------


async def test_a_machine_of_the_users_own(db: Database) -> None:
    teller = db.machine("teller", Done)
    assert teller.name == "teller"
    done = await teller.execute(Do((("put", "a", "x"),)))
    assert isinstance(done, Done)
    assert done.notes == 1
    untyped = db.machine("teller")
    assert (await untyped.execute([1, [["put", "b", "x"]]]))[:2] == [1, 2]
    with pytest.raises(CommandError, match="no x") as caught:
        await teller.execute(Do((("raise", "refused"),)))
    assert caught.value.code == "refused-here"
    with pytest.raises(CommandError, match="no x"):
        await untyped.execute([1, [["raise", "refused"]]])
    with pytest.raises(MachineError):
        await teller.execute(Do((("raise", "anything"),)))
    with pytest.raises(BadCommandError):
        await teller.execute({"no": "command"})


async def test_machines_share_a_frame(db: Database) -> None:
    teller = db.machine("teller", Done)
    results = await asyncio.gather(
        db.kv.put("k", "v"), teller.execute(Do(())), db.kv.increment("n"), teller.execute(Do(()))
    )
    assert [type(result).__name__ for result in results] == [
        "PutResult",
        "Done",
        "IncrementResult",
        "Done",
    ]


async def test_a_query_that_cannot_be_answered_harms_no_other(db: Database) -> None:
    await db.kv.put("k", "v")
    results = await asyncio.gather(
        db.kv.get("k"),
        db.machine("nobody").query([1]),
        db.kv.get("k"),
        db.machine("teller").query([99]),
        return_exceptions=True,
    )
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["KeyValue", "UnknownMachineError", "KeyValue", "BadCommandError"]


async def test_wrong_machines(db: Database) -> None:
    with pytest.raises(UnknownMachineError, match="nobody"):
        await db.machine("nobody").execute([1])
    with pytest.raises(UnknownMachineError):
        await db.machine("nobody").query([1])
    for name in ("", "x" * 65, 5):
        with pytest.raises(InvalidArgumentError):
            db.machine(name)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError):
        db.machine("teller", object())
    with pytest.raises(InvalidArgumentError, match="encoded"):
        await db.machine("teller").execute(object())
    with pytest.raises(LimitExceededError):
        await db.machine("teller").execute(bytes(5_000_000))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidArgumentError):
        await db.machine("teller").execute(deep)


async def test_results_of_another_type_than_promised(db: Database) -> None:
    """The command was done; that is not to be taken for a refusal."""

    class Other(msgspec.Struct, array_like=True, tag=77):
        name: str

    with pytest.raises(OutcomeUnknownError):
        await db.machine("teller", Other).execute(Do((("put", "z", "x"),)))
