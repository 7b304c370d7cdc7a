"""Bytes from clients and from the log: whatever they are, the answer is typed and the same."""
# commands and results are of many types

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base import kv_commands, session_commands
from quorate.base.kv_commands import Delete, Get, KvCommand, KvQuery, Put, Txn
from quorate.base.limits import COMMAND_DEPTH_MAX, COMMAND_PARTS_MAX
from quorate.base.session_commands import SessionCommand
from quorate.errors import (
    BadCommandError,
    LimitExceededError,
    QuorateError,
    UnknownMachineError,
)
from quorate.replication import nesting
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.nesting import check_nesting, is_bounded
from quorate.replication.tables import Tables
from tests import sharing
from tests.replication.support import (
    Do,
    Node,
    Teller,
    encode,
    kv,
    plain,
    raw_run,
    run_of,
    state_of,
    submit,
)


class Tree(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Anything, as deep as one likes; and it may raise while it is decoded."""

    what: Any
    inner: tuple[Tree, ...] = ()

    def __post_init__(self) -> None:
        if self.what == "raise":
            raise KeyError("from a command")


class Gardener(Machine):
    """Accepts trees and does nothing with them."""

    name = "gardener"
    command_type: ClassVar[Any] = Tree
    query_type: ClassVar[Any] = Tree

    def attach(self, tables: Tables) -> None:
        pass

    def apply(self, command: Tree, context: Context) -> Any:
        return None

    def query(self, query: Tree) -> Any:
        return None


def _node() -> Node:
    return Node([KvMachine(), Teller(), Gardener()])


# --- fuzz ----------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(["put", "raise", "value", "="]),
    st.integers(0, 20),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)
tagged = st.tuples(st.integers(0, 20), values, values).map(list) | st.lists(values, max_size=6)
flipped = st.tuples(
    st.sampled_from(
        [
            encode([Put(b"k", b"v"), Delete(b"k")]),
            encode([Txn((), (Put(b"k", b"v"),), (Get(b"k"),))]),
            encode([Do((("put", "a", "b"), ("delete", "a")))]),
            encode([session_commands.OpenSession(5, "me")]),
        ]
    ),
    st.integers(0, 60),
    st.integers(0, 255),
).map(lambda each: bytes(each[0][: each[1]] + bytes([each[2]]) + each[0][each[1] + 1 :]))
anything = st.one_of(
    st.binary(max_size=30),
    st.lists(tagged, max_size=3).map(encode),
    st.lists(values, max_size=3).map(encode),
    flipped,
)
machine_names = st.sampled_from(["kv", "sessions", "teller", "gardener", "none", "", "\U0001f600"])


@settings(max_examples=sharing.examples(200), deadline=None)
@given(st.lists(st.tuples(machine_names, anything), min_size=1, max_size=3))
def test_any_bytes_get_a_typed_answer_at_the_gateway_and_change_nothing(runs: Any) -> None:
    node = _node()
    sent = submit(*(raw_run(*each) for each in runs))
    with contextlib.suppress(UnknownMachineError, BadCommandError, LimitExceededError):
        node.machines.frees_space(node.machines.prepare(sent))
    with contextlib.suppress(QuorateError):
        node.machines.query_runs(sent.runs)
    assert node.machines.index == 0
    assert not node.machines.tables.record_count


def _is_whole(items: bytes) -> bool:
    """One value and nothing behind it, which frames make sure of."""
    try:
        msgspec.msgpack.decode(b"\x91" + items, type=tuple[msgspec.Raw])
    except msgspec.DecodeError:
        return False
    return True


@settings(max_examples=sharing.examples(200), deadline=None)
@given(st.lists(st.tuples(machine_names, anything.filter(_is_whole)), min_size=1, max_size=3))
def test_any_bytes_in_the_log_come_to_the_same_on_every_node(runs: Any) -> None:
    """On the leader too, if its gateway let them through: there they are decoded only once."""
    nodes = [_node(), _node(), _node()]
    sent = submit(*(raw_run(*each) for each in runs))
    payload = nodes[0].payload([sent, submit(run_of("kv", Put(b"after", b"")))])
    prepared = None
    with contextlib.suppress(QuorateError):
        prepared = [
            nodes[0].machines.prepare(each)
            for each in (sent, submit(run_of("kv", Put(b"after", b""))))
        ]
    applied = [nodes[0].feed(payload, prepared), nodes[1].feed(payload)]
    applied.append(_deeper(60, lambda: nodes[2].feed(payload)))
    results = [(each.index, each.outcomes, each.command_count) for each in applied]
    assert results[0] == results[1] == results[2]
    assert len({each.machines.state_hash for each in nodes}) == 1
    assert nodes[0].ask(Get(b"after")).item is not None


def _deeper(frames: int, call: Callable[[], Any]) -> Any:
    return call() if frames == 0 else _deeper(frames - 1, call)


# --- what each answer says -----------------------------------------------------------------------


def test_a_bad_command_in_the_log_spoils_only_itself() -> None:
    node = _node()
    good, bad = msgspec.Raw(encode(Put(b"a", b""))), msgspec.Raw(encode([11, 5, 5]))
    items = encode([good, bad, msgspec.Raw(encode(Put(b"b", b"")))])
    (outcome,) = node.entry(submit(raw_run("kv", items))).outcomes
    first, second, third = kv(outcome)
    assert (first.revision, third.revision) == (1, 2)
    assert (second.code, second.message) == (
        "bad-command",
        "not a command or query of machine 'kv'",
    )


def test_a_run_for_an_unknown_machine_fails_command_by_command() -> None:
    node = _node()
    lost_and_found = (run_of("nobody" * 50, 1, 2), run_of("kv", Put(b"a", b"")))
    (outcome,) = node.entry(submit(*lost_and_found)).outcomes
    lost, done = msgspec.msgpack.decode(outcome.results)
    assert [each[:2] for each in lost] == [[0, "unknown-machine"]] * 2
    assert len(lost[0][2]) < 120
    assert done == [[11, 1, None]]


@pytest.mark.parametrize("items", [b"\xc0", b"\x81\x01\x02", b"\x05", b"\xa1x"])
@pytest.mark.parametrize("machine", ["kv", "nobody"])
def test_a_run_that_is_no_array_fails_its_submission(machine: str, items: bytes) -> None:
    node = _node()
    raw = raw_run(machine, items)
    bad, good = node.machines.apply(
        1, 1, node.payload([submit(run_of("kv", Put(b"x", b"")), raw), submit(run_of("kv"))])
    ).outcomes
    assert (bad.code, bad.results) == ("bad-command", b"")
    assert "is not an array" in bad.message
    assert not good.code
    assert not len(node.machines.tables["kv.records"])


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (encode([Put(b"a", b""), [11, b"k", "text"]]), r"command 1: .*`bytes`.*\(Put\.value\)"),
        (encode([[11, b"k"]]), "command 0: Expected `array` of at least length 3"),
        (encode([[11, b"k", b"v", False, 1, 1]]), "at most length 4"),
        (encode([[99]]), "command 0: Invalid value 99"),
        (encode([[16, [[b"k", "value", "=", 5]], []]]), r"operand .* \(Txn\.compare\)"),
        (b"\xc1", "not valid"),
        (b"\x91\x92\x10\xa1\xff", "not valid"),
    ],
)
def test_the_gateway_says_which_command_and_which_field(items: bytes, says: str) -> None:
    with pytest.raises(BadCommandError, match=says):
        _node().machines.prepare(submit(raw_run("kv", items)))


def test_a_command_that_raises_while_it_is_decoded() -> None:
    node = _node()
    run = run_of("gardener", [1, "fine"], [1, "raise"])
    with pytest.raises(BadCommandError, match="it raised KeyError"):
        node.machines.prepare(submit(run))
    (outcome,) = node.entry(submit(run)).outcomes
    assert [each and each[1] for each in plain(outcome)] == [None, "bad-command"]
    answers = msgspec.msgpack.decode(node.machines.query("gardener", run.items))
    assert [each and each[1] for each in answers] == [None, "bad-command"]


def test_a_machine_without_queries_says_so() -> None:
    class Silent(Gardener):
        name = "silent"
        query_type = None

    node = Node([Silent()])
    (answer,) = msgspec.msgpack.decode(node.machines.query("silent", encode([1])))
    assert answer == [0, "bad-command", "machine 'silent' answers no queries"]


# --- nesting -------------------------------------------------------------------------------------


def _nested(depth: int) -> bytes:
    return b"\x91" * (depth - 1) + b"\x90"


def test_depth_is_refused_long_before_a_decoder_gives_up() -> None:
    node = _node()
    fits = encode([[1, msgspec.Raw(_nested(COMMAND_DEPTH_MAX - 1))]])
    node.machines.prepare(submit(raw_run("gardener", fits)))
    outcome = node.machines.apply(1, 1, node.payload([submit(raw_run("gardener", fits))]))
    assert plain(outcome.outcomes[0]) == [None]
    for depth in (COMMAND_DEPTH_MAX, 500, 950, 100_000):
        items = encode([[1, 0], [1, msgspec.Raw(_nested(depth))]])
        with pytest.raises((LimitExceededError, BadCommandError)) as caught:
            node.machines.prepare(submit(raw_run("gardener", items)))
        if depth < 900:
            assert "command 1 is nested more than 128 levels" in str(caught.value)
    # Wherever on the stack the gateway stands, and however little of it is left to the decoders.
    items = encode([[1, msgspec.Raw(_nested(700))]])
    for frames in range(320):
        with pytest.raises((LimitExceededError, BadCommandError)):
            _deeper(frames, lambda: node.machines.prepare(submit(raw_run("gardener", items))))
    spread = encode([[1, [0] * (COMMAND_PARTS_MAX + 1)]])
    with pytest.raises(LimitExceededError, match="values inside them"):
        node.machines.prepare(submit(raw_run("gardener", spread)))


def test_fields_that_a_command_does_not_know_are_refused_not_skipped() -> None:
    """Skipping them would recurse as deep as they are, which nodes may differ in."""
    for extra in (_nested(2), _nested(900)):
        items = encode([[11, b"k", b"v", False, 0, msgspec.Raw(extra)]])
        with pytest.raises(BadCommandError, match="at most length 4"):
            _node().machines.prepare(submit(raw_run("kv", items)))


def test_which_types_bound_their_own_nesting() -> None:
    assert is_bounded(KvCommand)
    assert is_bounded(KvQuery)
    assert is_bounded(SessionCommand)
    assert not is_bounded(Tree)
    assert not is_bounded(Do)  # skips fields that it does not know
    assert not is_bounded(dict[str, int])
    assert not is_bounded(list[msgspec.Raw])
    for module in (kv_commands, session_commands):
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, msgspec.Struct):
                assert each.__struct_config__.frozen
                assert each.__struct_config__.array_like


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        parts = list(itertools.chain.from_iterable(value.items()))
    elif isinstance(value, list):
        parts = value
    else:
        return 0
    return 1 + max(map(_depth, parts), default=0)


long_scalars = (
    st.binary(min_size=30, max_size=300)
    | st.text(min_size=30, max_size=300)
    | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=300))
)
long_values = st.recursive(
    scalars | long_scalars,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.integers(0, 20), inner, max_size=20)
    ),
    max_leaves=20,
)


@settings(max_examples=sharing.examples(60), deadline=None)
@given(st.lists(long_values, max_size=4), st.integers(0, 4))
def test_depth_is_counted_right(items: list[Any], depth_max: int) -> None:
    encoded = msgspec.Raw(encode(items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "COMMAND_DEPTH_MAX", depth_max)
        if max(map(_depth, items), default=0) > depth_max:
            with pytest.raises(LimitExceededError, match="nested more than"):
                check_nesting(encoded)
        else:
            check_nesting(encoded)


def test_state_of_two_nodes_is_compared_by_what_they_would_store() -> None:
    one, two = _node(), _node()
    for node, keys in ((one, b"ab"), (two, b"ba")):
        node.do(*(Put(bytes([key]), b"") for key in keys))
    assert state_of(one.machines) != state_of(two.machines)  # revisions differ
    assert one.machines.state_hash != two.machines.state_hash
