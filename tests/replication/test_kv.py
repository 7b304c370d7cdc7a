"""The key-value machine against a model of etcd's rules in a dict, and its limits one by one."""

# commands and results are of many types

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.kv_commands import (
    INTEGER_MAX,
    INTEGER_MIN,
    Compare,
    CompareAndSet,
    CompareAndSetResult,
    Delete,
    DeleteRange,
    DeleteResult,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyValue,
    Put,
    PutResult,
    Range,
    RangeResult,
    Status,
    StatusResult,
    Txn,
    TxnResult,
)
from quorate.base.limits import (
    KEY_BYTES_MAX,
    MIB,
    RANGE_BYTES_MAX,
    RANGE_LIMIT_MAX,
    TXN_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
)
from quorate.base.results import Failure
from quorate.errors import BadCommandError, InvalidArgumentError, LimitExceededError
from quorate.replication.kv import KvMachine
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.replication.support import Node, kv, restored, run_of, state_of, store_checkpoint, submit

# --- the model -----------------------------------------------------------------------------------


class Model:
    """etcd's data model, in as few words as it takes; nothing is shared with the machine."""

    def __init__(self) -> None:
        self.revision = 0
        self.keys: dict[bytes, KeyValue] = {}

    def inside(self, operation: Range | DeleteRange) -> list[bytes]:
        def holds(key: bytes) -> bool:
            if operation.prefix:
                return key.startswith(operation.start)
            return operation.start <= key and (operation.end is None or key < operation.end)

        return sorted(filter(holds, self.keys))

    def write(self, key: bytes, value: bytes, revision: int) -> None:
        old = self.keys.get(key)
        create, version = (revision, 0) if old is None else (old.create_revision, old.version)
        self.keys[key] = KeyValue(key, value, create, revision, version + 1)

    def operate(self, operation: Any, revision: int) -> tuple[Any, bool]:
        """Result, as if under *revision*, and whether anything was written."""
        match operation:
            case Get(key):
                return GetResult(revision, self.keys.get(key)), False
            case Range():
                found = self.inside(operation)
                shown = found[::-1] if operation.reverse else found
                shown = shown[: operation.limit] if operation.limit else shown
                items = [self.keys[key] for key in ([] if operation.count_only else shown)]
                if operation.keys_only:
                    items = [msgspec.structs.replace(each, value=b"") for each in items]
                more = len(items) < len(found)
                return RangeResult(revision, tuple(items), more, len(found)), False
            case Put(key, value, previous):
                old = self.keys.get(key) if previous else None
                self.write(key, value, revision)
                return PutResult(revision, old), True
            case Delete(key, previous):
                old = self.keys.pop(key, None)
                shown = (old,) if old and previous else ()
                return DeleteResult(revision, int(old is not None), shown), old is not None
            case DeleteRange():
                found = self.inside(operation)
                doomed = found[: operation.limit] if operation.limit else found
                gone = tuple(self.keys.pop(key) for key in doomed)
                shown = gone if operation.previous else ()
                more = len(doomed) < len(found)
                return DeleteResult(revision, len(doomed), shown, more), bool(doomed)
            case Increment(key, delta):
                value = self.keys[key].value if key in self.keys else b"0"
                if not value.removeprefix(b"-").isdigit():
                    raise ArithmeticError
                number = int(value) + delta
                if not -(2**63) <= number < 2**63:
                    raise ArithmeticError
                self.write(key, b"%d" % number, revision)
                return IncrementResult(revision, number), True
        raise AssertionError(operation)

    def holds(self, compare: Compare) -> bool:
        found = self.keys.get(compare.key)
        if compare.target == "value" and found is None:
            return False
        shown: Any = {
            "value": found and found.value,
            "version": found.version if found else 0,
            "create": found.create_revision if found else 0,
            "mod": found.mod_revision if found else 0,
        }[compare.target]
        return {
            "=": shown == compare.operand,
            "!=": shown != compare.operand,
            "<": shown < compare.operand,
            ">": shown > compare.operand,
        }[compare.operator]

    def apply(self, command: Any) -> Any:
        """The result, or None where ``Increment`` refuses; then all is as before."""
        before = (self.revision, dict(self.keys))
        try:
            return self._apply(command)
        except ArithmeticError:
            self.revision, self.keys = before
            return None

    def _apply(self, command: Any) -> Any:
        match command:
            case Txn(compare, success, failure):
                succeeded = all(map(self.holds, compare))
                branch = success if succeeded else failure
                done = [self.operate(each, self.revision + 1) for each in branch]
                self.revision += any(wrote for _, wrote in done)
                results = tuple(
                    msgspec.structs.replace(each, revision=self.revision) for each, _ in done
                )
                return TxnResult(self.revision, succeeded, results)
            case CompareAndSet(key, value, expected):
                old = self.keys.get(key)
                is_now: Any = old and old.value
                if isinstance(expected, int):
                    is_now = old.mod_revision if old else 0
                if is_now != expected:
                    return CompareAndSetResult(self.revision, succeeded=False, current=old)
                operation = Delete(key) if value is None else Put(key, value)
                self.revision += self.operate(operation, self.revision + 1)[1]
                return CompareAndSetResult(self.revision, True, self.keys.get(key))
        result, wrote = self.operate(command, self.revision + 1)
        self.revision += wrote
        return msgspec.structs.replace(result, revision=self.revision)


keys = st.sampled_from([b"a", b"a/", b"a/1", b"a/2", b"b", b"\xff"])
bounds = keys | st.just(b"")
values = st.sampled_from([b"", b"x", b"7", b"-3", b"08", b" 7", b"9" * 19])
numbers = st.integers(0, 6)
named = st.tuples(bounds, st.none() | bounds, st.just(value=False)) | st.tuples(
    bounds, st.none(), st.just(value=True)
)
ranges = st.builds(
    lambda name, *rest: Range(*name, *rest),
    named, st.integers(0, 3), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
delete_ranges = st.builds(
    lambda name, *rest: DeleteRange(*name, *rest), named, st.integers(0, 3), st.booleans()
)
puts = st.builds(Put, keys, values, st.booleans())
deletes = st.builds(Delete, keys, st.booleans())
increments = st.builds(Increment, keys, st.sampled_from([1, -5, INTEGER_MAX, INTEGER_MIN]))
compares = st.builds(
    Compare, keys, st.just("value"), st.sampled_from(["=", "!=", "<", ">"]), values
) | st.builds(
    Compare,
    keys,
    st.sampled_from(["version", "create", "mod"]),
    st.sampled_from(["=", "!=", "<", ">"]),
    numbers,
)
branches = st.lists(
    st.one_of(st.builds(Get, keys), ranges, puts, deletes, delete_ranges, increments), max_size=4
).map(tuple)


def _txn(*parts: Any) -> Txn | None:
    try:
        return Txn(*parts)
    except InvalidArgumentError:
        return None  # a key written twice: drawn again


txns = st.builds(_txn, st.lists(compares, max_size=2).map(tuple), branches, branches).filter(bool)
sets = st.builds(CompareAndSet, keys, st.none() | values, st.none() | values | numbers)
commands: Any = st.one_of(puts, deletes, delete_ranges, increments, sets, txns)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(
    st.lists(st.tuples(st.lists(commands, max_size=5), st.booleans()), max_size=10), st.booleans()
)
def test_the_machine_is_its_model(entries: Any, leader: bool) -> None:
    node, model = Node(), Model()
    image = MemoryImage()
    for batch, checkpoint in entries:
        (outcome,) = node.entry(submit(run_of("kv", *batch)), leader=leader).outcomes
        for command, result in zip(batch, kv(outcome), strict=True):
            expected = model.apply(command)
            if expected is None:
                assert isinstance(result, Failure), (command, result)
                assert result.code == "command-refused"
            else:
                assert result == expected, command
        assert node.ask(Status()) == StatusResult(model.revision, len(model.keys))
        if checkpoint:
            store_checkpoint(image, node.machines.take_checkpoint(b""))
            again = restored(image, [KvMachine()])
            assert state_of(again) == state_of(node.machines)
            assert again.query("kv", msgspec.msgpack.encode([Status()])) == node.machines.query(
                "kv", msgspec.msgpack.encode([Status()])
            )
            node.machines = again  # and go on from there
    whole = node.ask(Range(b"", prefix=True))
    assert list(whole.items) == [model.keys[key] for key in sorted(model.keys)]
    for key in (b"a", b"zz"):
        assert node.ask(Get(key)) == GetResult(model.revision, model.keys.get(key))


@settings(max_examples=sharing.examples(100), deadline=None)
@given(st.lists(puts, max_size=8), ranges)
def test_ranges_are_those_of_the_model(batch: list[Put], query: Range) -> None:
    node, model = Node(), Model()
    node.do(*batch)
    for command in batch:
        model.apply(command)
    expected = msgspec.structs.replace(model.operate(query, 0)[0], revision=model.revision)
    assert node.ask(query) == expected


# --- sentences of the documentation, one by one --------------------------------------------------


def test_one_revision_for_a_transaction_however_many_keys() -> None:
    node = Node()
    node.do(Put(b"old", b"1"))
    branch = (Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"old"), Get(b"a"))
    (result,) = node.do(Txn((), branch))
    assert (result.revision, {each.revision for each in result.results}) == (2, {2})
    assert result.results[3].item == KeyValue(b"a", b"1", 2, 2, 1)
    assert node.ask(Status()) == StatusResult(2, 2)


def test_what_changes_nothing_takes_no_revision() -> None:
    node = Node()
    node.do(Put(b"a", b"1"))
    results = node.do(
        Delete(b"none"),
        DeleteRange(b"none", prefix=True),
        CompareAndSet(b"a", b"2", b"other"),
        CompareAndSet(b"none", None, None),
        Txn((), (Get(b"a"), Delete(b"none"))),
        Txn((Compare(b"a", "version", ">", 5),), (Put(b"a", b"2"),)),
    )
    assert [each.revision for each in results] == [1] * 6
    assert [each.revision for each in results[4].results] == [1, 1]


def test_delete_resets_version_and_create_revision() -> None:
    node = Node()
    node.do(Put(b"a", b"1"), Put(b"a", b"2"), Delete(b"a"), Put(b"a", b"3"))
    assert node.ask(Get(b"a")).item == KeyValue(b"a", b"3", 4, 4, 1)


def test_only_one_branch_runs() -> None:
    node = Node()
    node.do(Put(b"a", b"1"))
    is_one = (Compare(b"a", "value", "=", b"1"),)
    (result,) = node.do(Txn(is_one, (Put(b"then", b""),), (Put(b"else", b""),)))
    assert result.succeeded
    (result,) = node.do(
        Txn((Compare(b"a", "value", "!=", b"1"),), (Put(b"then2", b""),), (Put(b"else2", b""),))
    )
    assert not result.succeeded
    keys_now = [each.key for each in node.ask(Range(b"", keys_only=True)).items]
    assert keys_now == [b"a", b"else2", b"then"]


def test_all_conditions_must_hold() -> None:
    node = Node()
    node.do(Put(b"a", b"1"))
    conditions = (Compare(b"a", "version", "=", 1), Compare(b"a", "mod", ">", 1))
    (result,) = node.do(Txn(conditions, (Put(b"a", b"2"),)))
    assert not result.succeeded


def test_a_transaction_is_all_or_nothing() -> None:
    node = Node()
    node.do(Put(b"text", b"abc"), Put(b"a", b"1"))
    before = state_of(node.machines)
    (result, after) = node.do(
        Txn((), (Put(b"b", b"1"), Delete(b"a"), Increment(b"text"))), Put(b"c", b"")
    )
    assert isinstance(result, Failure)
    assert after.revision == 3
    node.do(Delete(b"c"))
    assert state_of(node.machines)["kv.records"] == before["kv.records"]


def test_later_operations_see_earlier_ones() -> None:
    node = Node()
    (result,) = node.do(Txn((), (Put(b"a", b"5"), Range(b"a"), Increment(b"n"), Get(b"n"))))
    assert result.results[1].count == 1
    assert result.results[3].item.value == b"1"


@pytest.mark.parametrize(
    ("target", "operator", "operand", "holds"),
    [
        ("value", "=", b"", False),
        ("value", "!=", b"x", False),
        ("version", "=", 0, True),
        ("create", "<", 1, True),
        ("mod", ">", 0, False),
    ],
)
def test_a_missing_key_compares_as_zero_but_its_value_never_holds(
    target: Any, operator: Any, operand: Any, holds: bool
) -> None:
    (result,) = Node().do(Txn((Compare(b"none", target, operator, operand),), ()))
    assert result.succeeded is holds


@pytest.mark.parametrize(
    ("value", "delta", "sum_"),
    [
        (None, 5, 5),
        (b"7", -10, -3),
        (b"-0", 1, 1),
        (b"%d" % INTEGER_MAX, 0, INTEGER_MAX),
        (b"%d" % INTEGER_MAX, 1, None),
        (b"%d" % INTEGER_MIN, -1, None),
        (b"9" * 20, -1, None),
        (b" 7", 1, None),
        (b"7\n", 1, None),
        (b"1_0", 1, None),
        ("٣".encode(), 1, None),
        (b"", 1, None),
    ],
)
def test_increment(value: bytes | None, delta: int, sum_: int | None) -> None:
    node = Node()
    if value is not None:
        node.do(Put(b"n", value))
    (result,) = node.do(Increment(b"n", delta))
    if sum_ is None:
        assert isinstance(result, Failure)
        assert node.ask(Get(b"n")).item.version == 1
    else:
        assert result.value == sum_
        assert node.ask(Get(b"n")).item.value == b"%d" % sum_


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (Put(b"k" * (KEY_BYTES_MAX + 1), b""), r"length <= 4096 .*\(Put\.key\)"),
        (Put(b"k", b"v" * (VALUE_BYTES_MAX + 1)), r"length <= 1048576 .*\(Put\.value\)"),
        (Txn((), (Delete(b"k"),) * (TXN_OPERATIONS_MAX + 1)), r"length <= 1024 .*\(Txn\.success\)"),
        (Range(b"k" * (KEY_BYTES_MAX + 2)), "invalid|not valid"),
    ],
    ids=["key", "value", "operations", "a query is no command"],
)
def test_too_large_a_command_is_refused_with_its_limit(command: Any, says: str) -> None:
    node = Node()
    with pytest.raises((LimitExceededError, BadCommandError), match=says) as caught:
        node.machines.prepare(submit(run_of("kv", Put(b"a", b""), command)))
    assert "command 1" in str(caught.value)
    if not isinstance(command, Range):
        assert isinstance(caught.value, LimitExceededError)


@pytest.mark.parametrize("command", [Put(b"", b""), Get(b"k"), Increment(b"k", 2**63)])
def test_other_bad_commands_are_refused(command: Any) -> None:
    with pytest.raises(BadCommandError, match="machine 'kv' is not valid"):
        Node().machines.prepare(submit(run_of("kv", command)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Range(b"a", b"b", prefix=True),
        lambda: DeleteRange(b"a", b"b", prefix=True),
        lambda: Txn((), (Put(b"a", b""), Put(b"a", b""))),
        lambda: Txn((), (Put(b"a", b""), Increment(b"a"))),
        lambda: Txn((), (), (Put(b"a", b""), Delete(b"a"))),
        lambda: Txn((), (DeleteRange(b"a", b"c"), Put(b"b", b""))),
        lambda: Txn((), (DeleteRange(b"a", prefix=True), Increment(b"ab"))),
        lambda: Txn((), (DeleteRange(b""), Put(b"b", b""))),
        lambda: Compare(b"a", "value", "=", 1),
        lambda: Compare(b"a", "mod", "=", b"1"),
    ],
)
def test_contradictions_are_refused_where_they_are_written(build: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        build()


def test_largest_key_and_value_work() -> None:
    node = Node()
    key, value = b"k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX
    node.entry(submit(run_of("kv", Put(key, value))), leader=True)
    assert node.ask(Get(key)).item.value == value
    assert node.ask(Range(key, key + b"\0")).items[0].key == key


def test_ranges_end_early_rather_than_outgrow_a_reply() -> None:
    node = Node()
    value = b"v" * MIB
    for at in range(6):
        node.do(Put(b"%d" % at, value))
    first = node.ask(Range(b""))
    assert (len(first.items), first.more, first.count) == (3, True, 6)
    rest = node.ask(Range(first.items[-1].key + b"\0"))
    assert (len(rest.items), rest.more) == (3, False)
    assert len(node.ask(Range(b"", keys_only=True)).items) == 6


def test_one_command_answers_with_no_more_than_one_range() -> None:
    """However many operations it has, and whatever they show: what was there, or what is."""
    node = Node()
    value = b"v" * MIB
    for at in range(6):
        node.do(Put(b"%d" % at, value))
    assert RANGE_BYTES_MAX == 4 * MIB
    wanted = [b"%d" % at for at in range(6)]
    before = state_of(node.machines)
    for command in (
        Txn((), tuple(Get(key) for key in wanted)),
        Txn((), tuple(Put(key, b"", previous=True) for key in wanted)),
        Txn((), tuple(Delete(key, previous=True) for key in wanted)),
        Txn((), (Range(b""), Get(b"0"), Get(b"1"))),
        DeleteRange(b"", previous=True),
    ):
        (result,) = node.do(command)
        assert (result.code, "at most" in result.message) == ("limit-exceeded", True)
    (result,) = node.do(Txn((), (Range(b""), Range(b""))))
    assert [len(each.items) for each in result.results] == [3, 0]
    assert state_of(node.machines) == before
    for key in wanted:  # each alone is no trouble
        node.do(Delete(key, previous=True))


def test_keys_of_one_command_are_bounded() -> None:
    node = Node()
    count = RANGE_LIMIT_MAX + 1
    node.do(*(Put(b"%05d" % at, b"") for at in range(count)))
    everything = node.ask(Range(b""))
    assert (len(everything.items), everything.more, everything.count) == (count - 1, True, count)
    assert node.ask(Range(b"", count_only=True)) == RangeResult(count, (), True, count)
    (refused,) = node.do(DeleteRange(b""))
    assert (refused.code, "with a limit" in refused.message) == ("limit-exceeded", True)
    (half,) = node.do(DeleteRange(b"", limit=5000))
    assert (half.count, half.more, half.revision) == (5000, True, count + 1)
    (refused,) = node.do(Txn((), (DeleteRange(b"0"), Range(b""), DeleteRange(b""))))
    assert isinstance(refused, TxnResult)
    assert node.ask(Status()).key_count == 0


def test_what_frees_space_may_run_on_a_full_disk() -> None:
    node = Node()
    get = Get(b"k")
    table = [
        (Delete(b"k"), True),
        (DeleteRange(b"k"), True),
        (CompareAndSet(b"k", None, 1), True),
        (Txn((), (Delete(b"k"), get), (DeleteRange(b"k"), Range(b""))), True),
        (Put(b"k", b""), False),
        (Increment(b"k"), False),
        (CompareAndSet(b"k", b"", 1), False),
        (Txn((), (Delete(b"k"),), (Put(b"k", b""),)), False),
    ]
    for command, frees in table:
        prepared = node.machines.prepare(submit(run_of("kv", Delete(b"x"), command)))
        assert node.machines.frees_space(prepared) is frees, command
