"""Each battery against the Python type that it stands for, over replays and checkpoints."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quorate
from quorate.base.results import Failure
from quorate.replication import batteries
from quorate.replication.batteries import (
    PAGE_MAX,
    SHIFT_MAX,
    SWEEP_MAX,
    ReplCounter,
    ReplDict,
    ReplList,
    ReplPriorityQueue,
    ReplQueue,
    ReplSet,
)
from quorate.replication.machines import Machines
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.machines.test_declaring import Bench
from tests.replication.support import restored, state_of, store_checkpoint

#: A step: the name of a command or query, with its arguments; or what happens to the node.
Step = tuple[Any, ...]
#: What the Python type does with a step; an exception is a refusal.
Model = Callable[..., Any]


class Pair:
    """A battery and its model, side by side."""

    def __init__(self, kind: Callable[[], quorate.Machine]) -> None:
        self._kind = kind
        self.bench = Bench(kind())

    def compare(self, steps: list[Step], model: Model) -> None:
        queries = {
            method.attribute
            for method in self.bench.declaration.methods
            if method.mark.kind == "query"
        }
        for name, *arguments in steps:
            if name == "restart":
                self.restart(*arguments)
                continue
            call = self.bench.ask if name in queries else self.bench.do
            found = call(name, *arguments)
            try:
                wanted = model(name, *arguments)
            except (LookupError, ValueError):
                assert isinstance(found, Failure), (name, arguments, found)
                assert found.code in ("missing", "refused-item"), found
            else:
                assert found == wanted, (name, arguments)
            if "items" in queries:
                assert self.bench.ask("items") == model("items"), (name, arguments)

    def restart(self, way: str) -> None:
        """The state comes back from a checkpoint, or from the log."""
        node = self.bench.node
        if way == "checkpoint":
            image = MemoryImage()
            store_checkpoint(image, Everything(node.machines).take())
            found = restored(image, [self._kind()])
        else:
            found = Machines([self._kind()])
            for payload in node.log:
                found.apply(found.index + 1, 1, payload)
        assert found.state_hash == node.machines.state_hash
        assert state_of(found) == state_of(node.machines)
        node.machines = found
        self.bench.machine = found.machine(self.bench.machine.name)


class Everything:
    """A checkpoint of all records, not only of what changed since the last one."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def take(self) -> Any:
        taken = self._machines.take_checkpoint(b"")
        dirty = {table.name: dict(table.items()) for table in self._machines.tables}
        return msgspec.structs.replace(taken, dirty=dirty)


values = st.none() | st.integers(-3, 3) | st.text("ab\0é", max_size=2) | st.lists(st.booleans())
keys = st.integers(-300, 300) | st.text("ab\0é", max_size=3) | st.binary(max_size=2)
positions = st.integers(-6, 6)
restarts = st.tuples(st.just("restart"), st.sampled_from(["checkpoint", "log"]))


def order(key: Any) -> tuple[int, Any]:
    return (0 if isinstance(key, int) else 1 if isinstance(key, str) else 2), key


def steps(*each: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    # Short lists of steps come first when a failure is made small; most should be long.
    one = st.one_of(*each, *each, restarts)
    return st.lists(one, max_size=3) | st.lists(one, min_size=12, max_size=30)


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), *arguments)


@settings(max_examples=sharing.examples(60), deadline=None)
@given(
    steps(
        *(step(name, st.integers(-(2**63), 2**63 - 1)) for name in ("set", "add", "sub")),
        *(step(name, st.integers(-9, 9)) for name in ("add", "sub")),
        step("inc"),
        step("get"),
    )
)
def test_counter(given_steps: list[Step]) -> None:
    number = 0

    def model(name: str, amount: int = 1) -> int:
        nonlocal number
        signs = {"add": 1, "inc": 1, "sub": -1, "get": 0}
        new = amount if name == "set" else number + signs[name] * amount
        if not -(2**63) <= new < 2**63:
            raise ValueError
        number = new
        return number

    Pair(ReplCounter).compare(given_steps, model)


@settings(max_examples=sharing.examples(60), deadline=None)
@given(
    steps(
        step("set", keys, values),
        step("setdefault", keys, values),
        step("update", st.dictionaries(keys, values, max_size=4)),
        step("pop", keys, values),
        step("delete", keys),
        step("clear"),
        step("reset", st.dictionaries(keys, values, max_size=4)),
        step("get", keys, values),
        step("contains", keys),
        step("size"),
        step("keys", st.none() | keys, st.integers(0, 5)),
        step("values"),
        step("items", st.none() | keys, st.integers(0, 5)),
    )
)
def test_dict(given_steps: list[Step]) -> None:
    data: dict[Any, Any] = {}

    def page(after: Any = None, limit: int = 1000) -> list[tuple[Any, Any]]:
        wanted = sorted(data.items(), key=lambda item: order(item[0]))
        return [item for item in wanted if after is None or order(item[0]) > order(after)][:limit]

    def model(name: str, *arguments: Any) -> Any:
        match name:
            case "set":
                data[arguments[0]] = arguments[1]
                return None
            case "reset":
                data.clear()
                return data.update(arguments[0])
            case "delete":
                return data.pop(*arguments, ...) is not ...
            case "contains":
                return arguments[0] in data
            case "size":
                return len(data)
            case "keys":
                return [key for key, _value in page(*arguments)]
            case "values":
                return [each for _key, each in page(*arguments)]
            case "items":
                return page(*arguments)
        return getattr(data, name)(*arguments)

    Pair(ReplDict).compare(given_steps, model)


@settings(max_examples=sharing.examples(60), deadline=None)
@given(
    steps(
        *(step(name, keys) for name in ("add", "remove", "discard", "contains")),
        step("pop"),
        step("update", st.lists(keys, max_size=4)),
        step("clear"),
        step("reset", st.lists(keys, max_size=4)),
        step("size"),
        step("items", st.none() | keys, st.integers(0, 5)),
    )
)
def test_set(given_steps: list[Step]) -> None:
    data: set[Any] = set()

    def model(name: str, *arguments: Any) -> Any:
        before = len(data)
        match name:
            case "add":
                data.add(*arguments)
                return len(data) > before
            case "discard":
                data.discard(*arguments)
                return len(data) < before
            case "pop":
                least = min(data, key=order)
                data.remove(least)
                return least
            case "update":
                data.update(*arguments)
                return len(data) - before
            case "reset":
                data.clear()
                return data.update(*arguments)
            case "contains":
                return arguments[0] in data
            case "size":
                return len(data)
            case "items":
                after, limit = arguments or (None, 1000)
                return [
                    each
                    for each in sorted(data, key=order)
                    if after is None or order(each) > order(after)
                ][:limit]
        return getattr(data, name)(*arguments)

    Pair(ReplSet).compare(given_steps, model)


@settings(max_examples=sharing.examples(80), deadline=None)
@given(
    steps(
        step("append", values),
        *(step("extend", st.lists(values, min_size=2, max_size=5)) for _ in range(3)),
        *(step("insert", positions, values) for _ in range(3)),
        *(step("pop", positions) for _ in range(2)),
        step("set", positions, values),
        step("insert", positions, values),
        step("pop"),
        step("pop", positions),
        step("remove", values),
        step("sort", st.booleans()),
        step("clear"),
        step("reset", st.lists(st.integers(0, 9), max_size=9)),
        step("get", positions),
        step("index", values),
        step("count", values),
        step("size"),
        step("items", st.integers(0, 4), st.integers(0, 5)),
    )
)
def test_list(given_steps: list[Step]) -> None:
    data: list[Any] = []

    def model(name: str, *arguments: Any) -> Any:
        match name:
            case "set":
                data[arguments[0]] = arguments[1]
                return None
            case "reset":
                data[:] = arguments[0]
                return None
            case "sort":
                try:
                    data[:] = sorted(data, reverse=arguments[0])  # all or nothing
                except TypeError as error:
                    raise ValueError from error
                return None
            case "get":
                return data[arguments[0]]
            case "size":
                return len(data)
            case "items":
                start, limit = arguments or (0, 1000)
                return data[start : start + limit]
        return getattr(data, name)(*arguments)

    Pair(ReplList).compare(given_steps, model)


@settings(max_examples=sharing.examples(60), deadline=None)
@given(
    steps(
        *(step("put", values) for _ in range(3)),
        *(step("get", values) for _ in range(2)),
        step("clear"),
        step("set_maxsize", st.integers(-1, 4)),
        step("peek", values),
        *(step(name) for name in ("size", "empty", "full", "maxsize")),
    )
)
def test_queue(given_steps: list[Step]) -> None:
    data: deque[Any] = deque()
    maxsize = 0

    def model(name: str, *arguments: Any) -> Any:
        nonlocal maxsize
        full = 0 < maxsize <= len(data)
        match name:
            case "put":
                return not full and (data.append(*arguments) or True)
            case "get":
                return data.popleft() if data else arguments[0]
            case "peek":
                return data[0] if data else arguments[0]
            case "clear":
                return data.clear()
            case "set_maxsize":
                maxsize = max(0, arguments[0])
                return None
        return {"size": len(data), "empty": not data, "full": full, "maxsize": maxsize}[name]

    Pair(ReplQueue).compare(given_steps, model)


numbers = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.integers(2**53 - 3, 2**53 + 3)
    | st.sampled_from([2.0**53, 2.0**62, 2**62 + 1, 2**62 - 1, 2**64 - 1, 2**64 - 2, 0.0, -0.0])
)
texts = st.text("ab\0\x01é", max_size=3)
tuples = st.tuples(numbers, texts).map(list) | st.tuples(numbers).map(list)


@pytest.mark.parametrize("kind", [numbers, texts, st.binary(max_size=3), tuples])
def test_priority_queue(kind: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=sharing.examples(40), deadline=None)
    @given(
        steps(
            *(step("put", st.integers(0, 9), kind) for _ in range(4)),
            step("put", kind),
            *(step("get", st.none()) for _ in range(3)),
            step("clear"),
            step("set_maxsize", st.integers(-1, 6)),
            step("peek", st.none()),
            *(step(name) for name in ("size", "empty", "full", "maxsize")),
        )
    )
    def holds(given_steps: list[Step]) -> None:
        data: list[tuple[Any, int, Any]] = []
        count = maxsize = 0

        def model(name: str, *arguments: Any) -> Any:
            nonlocal count, maxsize
            full = 0 < maxsize <= len(data)
            match name:
                case "put":
                    if full:
                        return False
                    count += 1
                    bisect.insort(data, (arguments[-1], count, arguments[0]))
                    return True
                case "get":
                    return data.pop(0)[2] if data else None
                case "peek":
                    return data[0][2] if data else None
                case "clear":
                    return data.clear()
                case "set_maxsize":
                    maxsize = max(0, arguments[0])
                    return None
            return {"size": len(data), "empty": not data, "full": full, "maxsize": maxsize}[name]

        Pair(ReplPriorityQueue).compare(given_steps, model)

    holds()


@settings(max_examples=sharing.examples(300), deadline=None)
@given(numbers, numbers)
def test_numbers_are_put_in_order_exactly(one: Any, other: Any) -> None:
    first, second = (b"".join(batteries._order_of(each)) for each in (one, other))
    assert (first < second, first == second) == (one < other, one == other)


# --- bounds and refusals --------------------------------------------------------------------------


def test_what_was_cleared_is_swept_bit_by_bit() -> None:
    bench = Bench(ReplDict())
    machines = bench.node.machines
    bench.do("update", dict.fromkeys(range(2 * SWEEP_MAX)))
    assert machines.next_deadline_ms() is None
    bench.do("clear")
    assert bench.ask("size") == 0
    assert machines.next_deadline_ms() is not None
    bench.do("set", "new", 1)
    assert len(machines.tables["repl_dict.entries"]) == SWEEP_MAX + 1
    bench.node.entry()
    assert len(machines.tables["repl_dict.entries"]) == 1
    assert machines.next_deadline_ms() is None
    assert bench.ask("items") == [("new", 1)]


def test_a_list_moves_no_more_than_it_may() -> None:
    bench = Bench(ReplList())
    middle = SHIFT_MAX + 1
    for _ in range(3):
        bench.do("extend", list(range(SHIFT_MAX)))
    assert bench.do("insert", middle, "x").code == "refused-item"
    assert bench.do("pop", middle).code == "refused-item"
    assert bench.do("sort").code == "refused-item"
    assert bench.do("insert", 5, "x") is None
    assert bench.do("pop", -5) == SHIFT_MAX - 5
    assert bench.ask("size") == 3 * SHIFT_MAX
    assert bench.ask("index", "x") == 5


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        (ReplDict, "set", (None, 1)),
        (ReplDict, "set", (True, 1)),
        (ReplDict, "set", (1.5, 1)),
        (ReplDict, "set", ("x" * 4000, 1)),
        (ReplDict, "set", (2**64 - 1, 1)),
        (ReplSet, "add", ([1],)),
        (ReplPriorityQueue, "put", (1, {"a": 1})),
        (ReplPriorityQueue, "put", (1, float("nan"))),
        (ReplPriorityQueue, "put", (None,)),
        (ReplPriorityQueue, "put", (1, "x" * 5000)),
        (ReplList, "items", (0, PAGE_MAX + 1)),
    ],
)
def test_what_is_refused(
    kind: type[quorate.Machine], name: str, arguments: tuple[Any, ...]
) -> None:
    bench = Bench(kind())
    call = bench.ask if name == "items" else bench.do
    assert call(name, *arguments).code == "refused-item"


def test_keys_of_all_zero_bytes_fit() -> None:
    bench = Bench(ReplDict())
    longest = bytes(batteries.KEY_BYTES_MAX - 1)
    assert bench.do("set", longest, 1) is None
    assert bench.ask("keys") == [longest]


def test_one_class_serves_for_several_machines() -> None:
    machines = Machines([ReplCounter("a"), ReplCounter("b"), ReplCounter()])
    assert {"a", "b", "repl_counter"} <= machines.machine_versions().keys()


class Jobs(quorate.Replicated):
    """As in PySyncObj: no annotations on methods."""

    waiting: quorate.OrderedTable[int, Any]

    @quorate.replicated
    def add(self, job, urgent=False):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        self.waiting.put(-self.context.index if urgent else self.context.index, job)
        return len(self.waiting)

    @quorate.query
    def first(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        return self.waiting.first()


def test_methods_without_annotations_take_any_values() -> None:
    bench = Bench(Jobs("night"))
    assert bench.do("add", {"run": ["a", 1]}) == 1
    assert bench.do("add", None, urgent=True) == 2
    assert bench.ask("first") == [-2, None]
    assert bench.machine.name == "night"
