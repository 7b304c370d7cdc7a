"""Tables against a dict: changes, undo, dirty tracking, captures, ranges, loading."""

# ruff: noqa: ARG005  # commands and results are of many types

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import (
    ConfigError,
    InvariantViolationError,
    LimitExceededError,
    StoreCorruptionError,
)
from quorate.replication.tables import Dirty, Table, Tables, encode_dirty, prefix_end
from quorate.storage.store_format import STORED_KEY_BYTES_MAX, TABLES_MAX
from tests import sharing


class Thing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    number: int
    text: str = ""


class Holder(msgspec.Struct, frozen=True, array_like=True):
    numbers: list[int]
    names: frozenset[str] = frozenset()


def _tables(*, packed: bool = False) -> tuple[Tables, Table[Thing], Table[Thing]]:
    tables = Tables()
    ordered = tables.table("t.ordered", Thing, ordered=True, packed=packed)
    return tables, ordered, tables.table("t.hashed", Thing, trusted=True)


def _seal(tables: Tables) -> bytes:
    buffer = bytearray()
    tables.seal(buffer)
    return bytes(buffer)


# --- changes, undo, capture ----------------------------------------------------------------------

keys = st.sampled_from([b"", b"a", b"ab", b"b", b"\xff", b"\xff\xff", b"c"])
change = st.tuples(st.sampled_from(["put", "delete"]), st.booleans(), keys, st.integers(0, 3))
command = st.tuples(st.booleans(), st.lists(change, max_size=6))
entry = st.tuples(
    st.lists(command, max_size=4), st.sampled_from(["", "", "take", "fail", "finish"])
)


def _change(tables: tuple[Table[Thing], Table[Thing]], what: Any, models: Any) -> None:
    verb, hashed, key, number = what
    if verb == "put":
        tables[hashed].put(key, Thing(number))
        models[hashed][key] = Thing(number)
    else:
        assert tables[hashed].delete(key) == models[hashed].pop(key, None)


@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=sharing.examples(100), deadline=None)
@given(entries=st.lists(entry, max_size=8))
def test_state_and_captures_are_those_of_the_commands_that_stood(
    entries: Any, packed: bool
) -> None:
    """*stored* is what a store holds that was given every capture in order, some of them only at
    a later try; *clean* is the same life without the commands that failed."""
    tables, *both = _tables(packed=packed)
    clean, *clean_both = _tables(packed=packed)
    models: list[dict[bytes, Thing]] = [{}, {}]
    stored: dict[str, dict[bytes, Any]] = {"t.ordered": {}, "t.hashed": {}}
    pending: dict[str, Dirty] | None = None
    at_pending: list[dict[bytes, Thing]] = []
    for commands, after in entries:
        for stands, changes in commands:
            kept = [dict(each) for each in models]
            for what in changes:
                _change((both[0], both[1]), what, models)
            if not stands:
                tables.rollback()
                models = kept
            else:
                for what in changes:
                    _change((clean_both[0], clean_both[1]), what, kept)
            tables.journal.clear()
            clean.journal.clear()
            assert [dict(each.items()) for each in both] == models
            assert [{key: each.get(key) for key in models[at]} for at, each in enumerate(both)] == (
                models
            )
        assert _seal(tables) == _seal(clean)  # what failed left no trace, not even in the order
        if after == "take" and pending is None:
            pending, at_pending = tables.take_dirty(), [dict(each) for each in models]
        elif after == "fail" and pending is not None:
            tables.restore_dirty(pending)
            pending = None
        elif after == "finish" and pending is not None:
            _store(stored, pending)
            assert list(stored.values()) == at_pending  # though more was changed meanwhile
            pending = None
    if pending is not None:
        tables.restore_dirty(pending)
    _store(stored, tables.take_dirty())
    assert list(stored.values()) == models
    assert tables.dirty_count == 0


def _store(stored: dict[str, dict[bytes, Any]], dirty: dict[str, Dirty]) -> None:
    decode = msgspec.msgpack.Decoder(Thing).decode
    for name, changes in dirty.items():
        for key, encoded in encode_dirty(changes):
            if encoded is None:
                stored[name].pop(key, None)
            else:
                stored[name][key] = decode(encoded)


def test_rollback_to_a_mark_keeps_what_came_before() -> None:
    tables, ordered, hashed = _tables()
    ordered.put(b"a", Thing(1))
    mark = len(tables.journal)
    ordered.put(b"a", Thing(2))
    hashed.put(b"x", Thing(3))
    ordered.delete(b"a")
    assert tables.rollback(mark) == ["t.hashed", "t.ordered"]
    assert list(ordered.items()) == [(b"a", Thing(1))]
    assert not len(hashed)
    assert tables.rollback(mark) == []


def test_what_is_sealed_cannot_be_undone() -> None:
    tables, ordered, _ = _tables()
    ordered.put(b"a", Thing(1))
    _seal(tables)
    assert tables.rollback() == []
    assert ordered.get(b"a") == Thing(1)
    assert (tables.record_count, tables.dirty_count) == (1, 1)


def test_hash_input_names_the_table_and_covers_deletes_and_sets() -> None:
    seen = set()
    doings: list[Callable[[Table[Thing], Table[Thing]], object]] = [
        lambda ordered, hashed: ordered.put(b"a", Thing(1)),
        lambda ordered, hashed: hashed.put(b"a", Thing(1)),
        lambda ordered, hashed: hashed.put(b"b", Thing(1)),
        lambda ordered, hashed: hashed.put(b"a", Thing(2)),
        lambda ordered, hashed: (ordered.put(b"a", Thing(1)), ordered.delete(b"a")),
        lambda ordered, hashed: None,
    ]
    for do in doings:
        tables, ordered, hashed = _tables()
        do(ordered, hashed)
        seen.add(_seal(tables))
    assert len(seen) == len(doings)
    tables = Tables()
    holders = tables.table("t.holders", Holder)
    holders.put(b"a", Holder([1], frozenset({"b", "a", "c"})))
    assert b"\x93\xa1a\xa1b\xa1c" in _seal(tables)


# --- what a table refuses ------------------------------------------------------------------------


def test_records_of_another_type_are_refused() -> None:
    tables, ordered, hashed = _tables()
    for table in (ordered, hashed):
        with pytest.raises(TypeError, match="holds Thing records"):
            table.put(b"a", Holder([]))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="keys of table"):
            table.put("a", Thing(1))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            table.put(bytearray(b"a"), Thing(1))  # type: ignore[arg-type]
        with pytest.raises(LimitExceededError, match="8193 bytes"):
            table.put(b"k" * (STORED_KEY_BYTES_MAX + 1), Thing(1))
        table.put(b"k" * STORED_KEY_BYTES_MAX, Thing(1))
    assert len(tables.journal) == 2


@pytest.mark.parametrize(
    "record",
    [
        Thing("one"),  # type: ignore[arg-type]
        Thing(2**70),
        Thing(1, object()),  # type: ignore[arg-type]
        Thing(1, "\ud800"),
        Thing(1, None),  # type: ignore[arg-type]
    ],
    ids=["other type", "too large", "unknown", "no utf-8", "not optional"],
)
def test_records_that_could_not_come_back_are_refused(record: Thing) -> None:
    tables, ordered, _ = _tables()
    ordered.put(b"a", Thing(1))
    with pytest.raises(TypeError, match=r"Thing for table t\.ordered could not be read back"):
        ordered.put(b"a", record)
    assert ordered.get(b"a") == Thing(1)
    assert len(tables.journal) == 1


def test_a_record_does_not_share_a_list_with_who_made_it() -> None:
    holders = Tables().table("t.holders", Holder)
    numbers = [1]
    holders.put(b"a", Holder(numbers))
    numbers.append(2)
    assert holders.get(b"a") == Holder([1])


@pytest.mark.parametrize("name", ["", "t" * 201])
def test_names_that_a_store_refuses_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Tables().table(name, Thing)


def test_bad_declarations_are_refused() -> None:
    tables = Tables()
    tables.table("t.a", Thing)
    with pytest.raises(ConfigError, match="two tables"):
        tables.table("t.a", Thing)

    class Loose(msgspec.Struct):
        number: int

    for record_type in (Loose, dict, int):
        with pytest.raises(ConfigError, match="frozen struct"):
            tables.table("t.b", record_type)  # type: ignore[type-var]
    for at in range(TABLES_MAX - 1):
        tables.table(f"t.{at}", Thing)
    with pytest.raises(ConfigError, match="no more than"):
        tables.table("t.last", Thing)
    assert [table.name for table in tables] == sorted(table.name for table in tables)
    assert "t.a" in tables
    assert "t.last" not in tables


# --- ranges --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.dictionaries(st.binary(max_size=3), st.integers(0, 9), max_size=12),
    st.binary(max_size=3),
    st.none() | st.binary(max_size=3),
    st.booleans(),
    st.none() | st.integers(0, 4),
)
def test_ranges_are_those_of_the_sorted_keys(
    content: dict[bytes, int], start: bytes, end: bytes | None, reverse: bool, limit: int | None
) -> None:
    _, ordered, _ = _tables()
    for key, number in content.items():
        ordered.put(key, Thing(number))
    whole = [(key, Thing(content[key])) for key in sorted(content)]
    found = [each for each in whole if start <= each[0] and (end is None or each[0] < end)]
    assert ordered.count(start, end) == len(found)
    if reverse:
        found.reverse()
    assert list(ordered.range(start, end, reverse=reverse, limit=limit)) == found[:limit]
    assert list(ordered.keys(start, end, reverse=reverse)) == [key for key, _ in found]
    prefixed = [each for each in whole if each[0].startswith(start)]
    assert list(ordered.range_prefix(start)) == prefixed
    assert list(ordered.items()) == whole
    assert b"none such" not in ordered


def test_prefix_end() -> None:
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None
    assert prefix_end(b"") is None


def test_a_table_without_order_has_no_ranges_but_items_by_key() -> None:
    _, _, hashed = _tables()
    hashed.put(b"b", Thing(2))
    hashed.put(b"a", Thing(1))
    assert list(hashed.items()) == [(b"a", Thing(1)), (b"b", Thing(2))]
    assert not hashed.ordered
    for call in (hashed.keys, hashed.count, lambda: list(hashed.range())):
        with pytest.raises(TypeError, match="not ordered"):
            call()


# --- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_load_and_clear_in_slices(packed: bool) -> None:
    tables, ordered, _ = _tables(packed=packed)
    content = {b"%03d" % at: Thing(at) for at in range(25)}
    encoded = [(key, msgspec.msgpack.encode(each)) for key, each in content.items()]
    assert list(ordered.load(encoded, 10)) == [10, 10, 5]
    assert dict(ordered.items()) == content
    assert ordered.get(b"007") == Thing(7)
    assert list(ordered.range(b"010", b"020", limit=1)) == [(b"010", Thing(10))]
    assert ordered.count(b"010", b"020") == 10
    assert (ordered.dirty_count, len(tables.journal)) == (0, 0)
    with pytest.raises(InvariantViolationError, match="loaded once"):
        list(ordered.load(encoded))
    ordered.put(b"x", Thing(0))
    assert list(ordered.clear(10)) == [10, 10, 6]
    assert (len(ordered), ordered.count(), ordered.dirty_count) == (0, 0, 0)
    assert ordered.get(b"001") is None
    assert repr(ordered) == "<Table t.ordered: 0 Thing records>"


@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", b"\x91\xa1x", b"\x91" * 5000, b"\x92\x01\xa1\xff"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_record_that_does_not_decode_is_named(damage: bytes, packed: bool) -> None:
    _, ordered, _ = _tables(packed=packed)
    with pytest.raises(StoreCorruptionError, match=r"record b'k' of table t\.ordered"):
        list(ordered.load([(b"a", b"\x91\x01"), (b"k", damage)]))


def test_encode_insists_on_the_record_of_the_table() -> None:
    tables, _, _ = _tables()
    assert tables.encode("t.ordered", Thing(1, "x")) == b"\x92\x01\xa1x"
    with pytest.raises(InvariantViolationError, match="belongs to its table"):
        tables.encode("t.ordered", Holder([]))


# --- derived tables ------------------------------------------------------------------------------

_steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "undo", "seal", "take", "fail", "take twice"]),
        st.sampled_from([b"a", b"b"]),
    ),
    max_size=30,
)


@settings(max_examples=sharing.examples(300))
@given(_steps)
def test_captures_of_a_derived_table_add_up_to_what_it_holds(
    steps: list[tuple[str, bytes]],
) -> None:
    tables = Tables()
    table = tables.table("t.derived", Thing, derived=True, packed=True)
    stored: dict[bytes, Any] = {}

    def write(taken: Any) -> None:
        for key, record in taken.get("t.derived", {}).items():
            if record is None:
                stored.pop(key, None)
            else:
                stored[key] = record

    for count, (step, key) in enumerate(steps, 1):
        if step == "put":
            table.put(key, Thing(count))
        elif step == "delete":
            table.delete(key)
        elif step == "undo":
            tables.rollback()
        else:
            tables.seal(bytearray())
            if step != "seal":
                taken = tables.take_dirty()
                if step == "take":
                    write(taken)
                elif step == "fail":
                    tables.restore_dirty(taken)
                else:  # what changes while a capture is written is in the next one
                    table.put(key, Thing(-count))
                    tables.seal(bytearray())
                    table.delete(key)
                    tables.seal(bytearray())
                    write(taken)
    tables.seal(bytearray())
    write(tables.take_dirty())
    assert stored == {key: table.get_stored(key) for key, _ in table.items()}


def test_what_came_and_went_between_two_captures_of_a_derived_table_is_never_written() -> None:
    tables = Tables()
    table = tables.table("t.derived", Thing, derived=True)
    for at in range(100):
        table.put(b"%d" % at, Thing(at))
        tables.seal(bytearray())
        if at >= 3:
            table.delete(b"%d" % (at - 3))
            tables.seal(bytearray())
    assert tables.dirty_count == 3
    tables.take_dirty()
    table.delete(b"98")
    tables.seal(bytearray())
    assert tables.take_dirty() == {"t.derived": {b"98": None}}
