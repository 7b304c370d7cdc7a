"""Machines declared by their methods: what is derived, what is refused, and what callers get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest

import quorate
from quorate import OrderedTable, Table, command, query, since, table, value
from quorate.base.class_reader import snake_case
from quorate.base.declaring import Caller, derived_tag
from quorate.base.results import Failure
from quorate.errors import (
    BadCommandError,
    CommandError,
    ConfigError,
    FormatVersionError,
    InvalidArgumentError,
    InvariantViolationError,
    OverloadedError,
    UnknownMachineError,
)
from quorate.replication.machines import Machines
from quorate.replication.registry import SetVersion
from quorate.server.loading import load_machines
from tests.replication.support import Node, encode, raw_run, run_of, submit


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    left: int
    name: str = ""


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int


class OutOfStockError(CommandError):
    code = "out-of-stock"


class Inventory(quorate.Machine):
    """Version history: 1, first release."""

    errors = (OutOfStockError,)

    items: Table[str, Item]
    log: OrderedTable[tuple[int, str], str] = table(packed=True)
    total: int = value(0)

    @command
    def stock(self, sku: str, count: int = 1) -> int:
        known = self.items.get(sku)
        self.items.put(sku, Item(count + (0 if known is None else known.left)))
        self.log.put((self.context.index, sku), f"+{count}")
        self.total += count
        return self.items[sku].left

    @command(tag=7, frees_space=True)
    def reserve(self, sku: str, count: int) -> Item:
        item = self.items.get(sku, Item(0))
        if item.left < count:
            self.items.put(sku, Item(-1))  # to be undone
            raise OutOfStockError(f"{sku}: {item.left} left")
        self.items.put(sku, Item(item.left - count))
        self.total -= count
        return self.items[sku]

    @command
    def lucky(self) -> tuple[int, int]:
        chance = self.context.random()
        return chance.below(1000), self.context.random().below(1000)

    @command
    def wrong(self, what: str) -> dict[str, int]:
        return {"a": 1} if what == "right" else {"a": what}  # type: ignore[dict-item]

    @command
    def nothing(self, shape: Point | None = None) -> None:
        if shape is not None and shape.x < 0:
            return shape.x  # type: ignore[return-value]
        return None

    @query
    def left(self, sku: str) -> int | None:
        item = self.items.get(sku)
        return None if item is None else item.left

    @query
    def history(self, limit: int) -> list[tuple[int, str, str]]:
        return [(at, sku, text) for (at, sku), text in self.log.items(limit=limit)]


def make(machine: Any, name: str, *arguments: Any, **keywords: Any) -> msgspec.Struct:
    method = machine.declaration.by_attribute[name]
    return Caller(method, name).make(arguments, keywords)


class Bench:
    """A declared machine on a node, called by name; results as a client would see them."""

    def __init__(self, machine: quorate.Machine) -> None:
        self.node = Node([machine])
        self.machine: Any = machine
        self.declaration: Any = machine.declaration
        self._decode = msgspec.msgpack.Decoder(list[list[self.declaration.results | Failure]])

    def do(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        item = make(self.machine, name, *arguments, **keywords)
        (outcome,) = self.node.entry(submit(run_of(self.machine.name, item)), leader=True).outcomes
        return self._value(outcome.results)

    def ask(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        item = make(self.machine, name, *arguments, **keywords)
        return self._value(b"\x91" + self.node.machines.query(self.machine.name, encode([item])))

    def _value(self, results: bytes) -> Any:
        ((result,),) = self._decode.decode(results)
        return result if isinstance(result, Failure) else result.value


def test_commands_and_queries() -> None:
    bench = Bench(Inventory())
    assert bench.machine.name == "inventory"
    assert bench.do("stock", "a", 5) == 5
    assert bench.do("stock", sku="a") == 6
    assert bench.do("reserve", "a", 2) == Item(4)
    assert bench.ask("left", "a") == 4
    assert bench.ask("left", "b") is None
    assert bench.ask("history", 9) == [(1, "a", "+5"), (2, "a", "+1")]
    assert bench.machine.total == 4
    assert bench.do("nothing") is None
    assert bench.do("nothing", Point(1, 2)) is None


def test_a_refusal_changes_nothing_and_carries_its_code() -> None:
    bench = Bench(Inventory())
    bench.do("stock", "a", 5)
    assert bench.do("reserve", "a", 9) == Failure("out-of-stock", "a: 5 left")
    assert bench.ask("left", "a") == 5


def test_a_result_of_the_wrong_type_is_the_machines_fault() -> None:
    bench = Bench(Inventory())
    assert bench.do("wrong", "right") == {"a": 1}
    assert bench.do("wrong", "x") == Failure(
        "machine-error", "machine inventory: wrong raised ValidationError"
    )
    assert bench.do("nothing", Point(-1, 0)).code == "machine-error"


def test_chance_is_one_stream_for_each_command() -> None:
    bench, other = Bench(Inventory()), Bench(Inventory())
    first, second = bench.do("lucky"), bench.do("lucky")
    assert first != second
    assert first[0] != first[1]
    assert (other.do("lucky"), other.do("lucky")) == (first, second)


def test_a_query_cannot_change_anything() -> None:
    class Sly(quorate.Machine):
        total: int = value(0)

        @command
        def add(self) -> int:
            self.total += 1
            return self.total

        @query
        def take(self) -> int:
            self.total += 1
            return self.total

    bench = Bench(Sly())
    bench.do("add")
    assert bench.ask("take").code == "machine-error"
    assert bench.do("add") == 2


def test_the_disk_may_be_full_for_what_frees_space() -> None:
    bench = Bench(Inventory())
    machines = bench.node.machines
    freeing = submit(run_of("inventory", make(Inventory, "reserve", "a", 1)))
    filling = submit(run_of("inventory", make(Inventory, "stock", "a", 1)))
    assert machines.frees_space(machines.prepare(freeing))
    assert not machines.frees_space(machines.prepare(filling))


def test_tags_are_those_of_names_or_given() -> None:
    methods = Inventory.declaration.by_attribute  # type: ignore[union-attr]
    assert methods["reserve"].tag == 7
    # These are in logs: they may never change.
    assert methods["stock"].tag == derived_tag("stock") == 5556819552
    assert encode(make(Inventory, "reserve", "a", 2)) == b"\x93\x07\xa1a\x02"


def test_state_comes_back_from_bytes_as_it_was() -> None:
    bench = Bench(Inventory())
    bench.do("stock", "a", 5)
    again = Machines([Inventory()])
    for payload in bench.node.log:
        again.apply(again.index + 1, 1, payload)
    assert again.state_hash == bench.node.machines.state_hash


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("reserve", ("a",), "Missing required argument 'count'"),
        ("reserve", ("a", "b"), "Expected `int`, got `str`"),
        ("reserve", ("a", True), "Expected `int`, got `bool`"),
        ("reserve", ("a", 1, 2), "Extra positional arguments"),
        ("reserve", ("a", object()), "Encoding objects of type object"),
        ("reserve", ("a", 2**70), "serialize ints"),
        ("reserve", ("\ud800", 1), "surrogates not allowed"),
        ("nothing", ({"x": 1},), "missing required field `y`"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    name: str, arguments: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        make(Inventory, name, *arguments)


# --- what cannot be declared ----------------------------------------------------------------------


def _bad(make_class: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        make_class()
    return str(caught.value)


def test_mistakes_show_when_the_class_is_defined() -> None:
    def unannotated() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
                pass

        return Bad

    assert "Bad.add: parameter x has no annotation" in _bad(unannotated)

    def no_result() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
                pass

        return Bad

    assert "Bad.add: say what it returns" in _bad(no_result)

    def custom() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x: Bench) -> None:
                pass

        return Bad

    assert "is no type that msgspec encodes" in _bad(custom)

    def a_set() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x: list[set[str]]) -> None:
                pass

        return Bad

    assert "parameter x: a set has no order" in _bad(a_set)

    def unknown() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
                pass

        return Bad

    assert "annotations cannot be read: name 'Nowhere'" in _bad(unknown)

    def starred() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, *x: int) -> None:
                pass

        return Bad

    assert "parameter x is not a plain one" in _bad(starred)

    def reserved() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, timeout: int) -> None:
                pass

        return Bad

    assert "callers say timeout= to the call itself" in _bad(reserved)

    def default() -> object:
        class Bad(quorate.Machine):
            @command
            def add(self, x: int = "1") -> None:  # type: ignore[assignment]
                pass

        return Bad

    assert "its default '1' is not of its type" in _bad(default)

    def only_queries() -> object:
        class Bad(quorate.Machine):
            @query
            def get(self) -> int:
                return 1

        return Bad

    assert "no command that could ever change" in _bad(only_queries)


def test_mistakes_about_names_and_versions() -> None:
    def same_name() -> object:
        class Bad(quorate.Machine):
            @command(name="add")
            def one(self) -> None:
                pass

            @command
            def add(self) -> None:
                pass

        return Bad

    assert "one has the name 'add' too" in _bad(same_name)

    def same_tag() -> object:
        class Bad(quorate.Machine):
            @command(tag=1)
            def one(self) -> None:
                pass

            @query(tag=1)
            def other(self) -> None:
                pass

        return Bad

    assert "one has the tag 1 too" in _bad(same_tag)

    def other_result() -> object:
        class Bad(quorate.Machine):
            version = 2

            @command(until=2, name="one")
            def old_one(self) -> None:
                pass

            @command(since=2)
            def one(self) -> int:
                return 1

        return Bad

    assert "could not read what this one returns" in _bad(other_result)

    def too_new() -> object:
        class Bad(quorate.Machine):
            @command(since=2)
            def one(self) -> None:
                pass

        return Bad

    assert "write version = 2" in _bad(too_new)

    def in_the_middle() -> object:
        class Bad(quorate.Machine):
            version = 2

            @command
            def one(self, a: Annotated[int, since(2)] = 0, b: int = 1) -> None:
                pass

        return Bad

    assert "a later version adds goes last" in _bad(in_the_middle)

    def own_apply() -> object:
        class Bad(quorate.Machine):
            @command
            def one(self) -> None:
                pass

            def apply(self, command: Any, context: quorate.Context) -> Any:
                pass

        return Bad

    assert "it is one or the other" in _bad(own_apply)

    def unmarked() -> object:
        class Bad(Inventory):
            def stock(self, sku: str, count: int = 1) -> int:
                return count

        return Bad

    assert "mark it too" in _bad(unmarked)
    assert "for plain methods" in _bad(lambda: command(3))  # type: ignore[type-var]
    assert "are no versions" in _bad(lambda: command(since=3, until=2))
    assert "a tag is from 1" in _bad(lambda: command(tag=1 << 20))


def test_mistakes_about_tables_and_errors() -> None:
    def loose() -> object:
        class Loose(msgspec.Struct):
            x: int

        class Bad(quorate.Machine):
            items: Table[str, Loose]

            @command
            def one(self) -> None:
                pass

        return Bad

    assert "declare Loose as a frozen struct" in _bad(loose)

    def keys() -> object:
        class Bad(quorate.Machine):
            items: Table[float, int]

            @command
            def one(self) -> None:
                pass

        return Bad

    assert "keys are str, bytes, int, or a tuple" in _bad(keys)

    def bare() -> object:
        class Bad(quorate.Machine):
            total = value(0)

            @command
            def one(self) -> None:
                pass

        return Bad

    assert "it needs an annotation" in _bad(bare)

    def not_errors() -> object:
        class Bad(quorate.Machine):
            errors = (ValueError,)  # type: ignore[assignment]

            @command
            def one(self) -> None:
                pass

        return Bad

    assert "is no class below CommandError" in _bad(not_errors)

    def same_code() -> object:
        class Bad(quorate.Machine):
            errors = (type("MineError", (CommandError,), {"code": "overloaded"}),)

            @command
            def one(self) -> None:
                pass

        return Bad

    assert "has the code 'overloaded' of another" in _bad(same_code)


def test_values_are_not_for_constructors() -> None:
    with pytest.raises(ConfigError, match="not in __init__"):
        assert Inventory().total


def test_tables_without_order_are_not_walked_through() -> None:
    bench = Bench(Inventory())
    with pytest.raises(TypeError, match="declare it as an OrderedTable"):
        list(bench.machine.items)


def test_names() -> None:
    assert snake_case("JobQueue") == "job_queue"
    assert snake_case("HTTPLog2") == "http_log2"
    with pytest.raises(ConfigError, match=r"write package\.module:Name"):
        load_machines(["nothing"])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_machines(["tests.machines.nowhere:Machine"])
    with pytest.raises(ConfigError, match=r"is no quorate\.Machine"):
        load_machines(["json:JSONDecoder"])
    (machine,) = load_machines(["tests.machines.test_declaring:Inventory"])
    assert machine.name == "inventory"


# --- versions -----------------------------------------------------------------------------------


class Old(quorate.Machine):
    """Version history: 1, first release."""

    name = "shop"
    total: int = value(0)

    @command
    def add(self, count: int) -> int:
        self.total += count
        return self.total

    @command
    def halve(self) -> int:
        self.total //= 2
        return self.total

    @query
    def sum(self) -> int:
        return self.total


class New(quorate.Machine):
    """Version history: 2, counts double; ``add`` has a note, ``clear`` is new, no ``halve``."""

    name = "shop"
    version = 2
    total: int = value(0)
    notes: OrderedTable[int, str]
    steps: int = value(0)

    def upgraded(self, before: int, context: quorate.Context) -> None:
        self.steps = before * 10 + context.version

    @command
    def add(self, count: int, note: Annotated[str, since(2)] = "") -> int:
        self.total += count * self.context.version
        if note:
            self.notes.put(self.context.index, note)
        return self.total

    @command(since=2)
    def clear(self) -> int:
        self.total = 0
        return 0

    @command(until=2)
    def halve(self) -> int:
        self.total //= 2
        return self.total

    @query(until=2)
    def sum(self) -> int:
        return self.total

    @query(since=2)
    def sum_and_notes(self) -> tuple[int, list[str]]:
        return self.total, [note for _at, note in self.notes.items()]


def test_newer_code_accepts_what_older_code_accepted_and_no_more() -> None:
    old, new = Bench(Old()), Bench(New())
    assert [old.do("add", 3), new.do("add", 3)] == [3, 3]
    for payload in (
        [derived_tag("add"), 3, "note"],
        [derived_tag("clear")],
        [derived_tag("add")],
        [derived_tag("add"), 4],
    ):
        sent = submit(raw_run("shop", encode([payload])))
        results = [each.node.entry(sent).outcomes[0].results for each in (old, new)]
        assert results[0] == results[1]
    assert old.node.machines.state_hash == new.node.machines.state_hash
    assert new.ask("sum") == 7


def test_an_entry_of_the_log_puts_a_version_in_force() -> None:
    bench = Bench(New())
    bench.do("add", 3)
    assert bench.node.do(SetVersion("shop", 2), machine="versions") == [[1, 2, 1]]
    assert bench.machine.steps == 12
    assert bench.do("add", 3) == 9
    assert bench.do("add", 3, "hello") == 15
    assert bench.ask("sum_and_notes") == (15, ["hello"])
    assert bench.node.do(SetVersion("shop", 1), machine="versions") == [[1, 2, 2]]
    assert bench.do("clear") == 0
    again = Machines([New()])
    for payload in bench.node.log:
        again.apply(again.index + 1, 1, payload)
    assert again.state_hash == bench.node.machines.state_hash
    assert again.machine_versions()["shop"] == 2


def test_what_was_checked_under_another_version_is_read_again() -> None:
    """The leader may have checked a command before the version rose in front of it."""
    leader, follower = Bench(New()), Bench(New())
    rise = submit(run_of("versions", SetVersion("shop", 2)))
    sent = submit(run_of("shop", make(New, "add", 3)), raw_run("shop", encode([[1, 2]])))
    plain = submit(run_of("shop", make(New, "add", 3), make(New, "halve"), make(New, "add", 1)))
    with pytest.raises(BadCommandError):
        leader.node.entry(sent, leader=True)
    leader.node.entry(rise, plain, leader=True)
    follower.node.entry(rise, plain)
    assert leader.node.machines.state_hash == follower.node.machines.state_hash
    assert leader.machine.total == follower.machine.total == 8


def test_an_upgrade_that_cannot_convert_is_refused() -> None:
    class Broken(New):
        def upgraded(self, before: int, context: quorate.Context) -> None:
            self.steps = 99
            raise RuntimeError("cannot")

    bench = Bench(Broken())
    bench.do("add", 3)
    ((code, *_),) = [bench.node.do(SetVersion("shop", 2), machine="versions")[0]]
    assert code == 0
    assert bench.machine.steps == 0
    assert bench.node.machines.machine_versions()["shop"] == 1
    assert bench.do("add", 3) == 6


def test_the_log_may_ask_for_more_than_the_code_has() -> None:
    bench = Bench(Old())
    with pytest.raises(FormatVersionError, match=r"version 2 of machine 'shop'.*has version 1"):
        bench.node.do(SetVersion("shop", 2), machine="versions")
    with pytest.raises(InvariantViolationError):
        bench.do("add", 1)
    other = Bench(Old())
    with pytest.raises(FormatVersionError, match="has no such machine"):
        other.node.do(SetVersion("cafe", 1), machine="versions")


def test_a_machine_that_is_not_in_force_is_as_good_as_missing() -> None:
    with_it, without = Machines([], [New()]), Machines([])
    sent = submit(run_of("shop", make(New, "add", 3)))
    with pytest.raises(OverloadedError, match="not in force yet"):
        with_it.prepare(sent)
    with pytest.raises(UnknownMachineError):
        without.prepare(sent)
    payload = Node().payload([sent])
    results = [each.apply(1, 1, payload).outcomes for each in (with_it, without)]
    assert results[0] == results[1]
    assert with_it.state_hash == without.state_hash
    with pytest.raises(OverloadedError):
        with_it.query("shop", encode([make(New, "sum")]))


def test_clients_send_the_oldest_shape_that_will_do() -> None:
    assert encode(make(New, "add", 3)) == encode(make(Old, "add", 3))
    assert len(msgspec.msgpack.decode(encode(make(New, "add", 3, "x")))) == 3
