"""All machines behind one door: what a log does to them, the same way on every node."""
# commands and results are of many types

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import Run, Submit
from quorate.base.kv_commands import Delete, Get, Increment, Put, Status
from quorate.base.limits import BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, MIB
from quorate.base.session_commands import CloseSession, OpenSession
from quorate.errors import (
    BadCommandError,
    InvariantViolationError,
    LimitExceededError,
    UnknownMachineError,
)
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.machines import Machines
from quorate.replication.tables import Tables
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.replication.support import (
    HOOKS,
    Do,
    Look,
    Node,
    Teller,
    plain,
    raw_run,
    restored,
    run_of,
    state_of,
    store_checkpoint,
    submit,
)

ROOT = Path(__file__).resolve().parents[2]


def _fresh() -> list[Machine]:
    return [KvMachine(), Teller()]


def _told(node: Node, *steps: tuple[str, ...]) -> Any:
    (result,) = node.do(Do(steps), machine="teller")
    return result


# --- a machine that raises -----------------------------------------------------------------------

RAISES = {
    "refused": ("refused-here", "no xxx"),
    "unreadable": ("command-refused", "UnreadableError, whose text cannot be read"),
    "odd-code": ("\\ud800\\ud800", "odd"),
    "deep": ("machine-error", "machine teller: Do raised RecursionError"),
    "group": ("machine-error", "machine teller: Do raised ExceptionGroup"),
    "stop": ("machine-error", "machine teller: Do raised StopIteration"),
    "named": ("machine-error", "machine teller: Do raised NNNN"),
    "other": ("machine-error", "machine teller: Do raised RuntimeError"),
}
RETURNS = {
    "object": ("machine-error", "machine teller: Do raised TypeError"),
    "integer": ("machine-error", "machine teller: Do raised OverflowError"),
    "huge": ("limit-exceeded", "the reply is full"),
    "failure": ("mine", "said politely"),
}
CASES = [(("raise", what), *answer) for what, answer in RAISES.items()]
CASES += [(("return", what), *answer) for what, answer in RETURNS.items()]
CASES += [(("badly",), "machine-error", "machine teller: Do raised TypeError")]


@pytest.mark.parametrize(("step", "code", "message"), CASES, ids=lambda each: str(each)[:30])
@pytest.mark.parametrize(
    "before",
    [(), (("put", "a", "2"),), (("put", "new", ""), ("delete", "a"), ("put", "a", "3"))],
    ids=["at once", "after a change", "after several"],
)
def test_a_command_that_fails_leaves_nothing_behind(
    step: tuple[str, ...], code: str, message: str, before: Any
) -> None:
    """Neither in the tables, nor in what the machine keeps outside, nor in the hash to come."""
    node, calm = Node(_fresh()), Node(_fresh())
    for each in (node, calm):
        _told(each, ("put", "a", "1"), ("put", "b", "1"))
    stored = state_of(node.machines)
    result = _told(node, *before, step, ("put", "after", ""))
    assert result[0] == 0
    assert result[1].startswith(code)
    assert len(result[1]) <= 500
    assert result[2].startswith(message)
    assert len(result[2]) <= 3000
    assert state_of(node.machines) == stored
    assert node.machines.tables.dirty_count == calm.machines.tables.dirty_count
    teller = node.machines.machine("teller")
    assert isinstance(teller, Teller)
    assert teller.counted == 2
    assert teller.rollbacks == bool(before or (step == ("badly",) and before))
    for each in (node, calm):
        assert _told(each, ("put", "a", "9"))[:3] == [1, 2, 2]
    assert state_of(node.machines) == state_of(calm.machines)


def test_the_others_of_its_batch_stand() -> None:
    node = Node(_fresh())
    commands = (("put", "a", "1"), ("raise", "other"), ("put", "b", "1"))
    results = node.do(*(Do((each,)) for each in commands), machine="teller")
    assert [each[0] for each in results] == [1, 0, 1]
    runs = (run_of("kv", Put(b"k", b"")), run_of("teller", Do((("put", "c", ""), ("raise", "x")))))
    (outcome,) = node.entry(submit(*runs)).outcomes
    assert [each[0] for each in plain(outcome)] == [11, 0]
    assert node.ask(Get(b"k")).item is not None
    assert set(state_of(node.machines)["teller.notes"]) == {b"a", b"b"}


def test_what_it_raised_is_logged_seldom_and_in_full(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(_fresh())
    for _ in range(9):
        _told(node, ("raise", "other"))
    logged = [each for each in caplog.records if each.name == "quorate.replication.refusals"]
    assert [each.args[2] for each in logged if isinstance(each.args, tuple)] == [1, 2, 4, 8]
    assert "Traceback" in caplog.text
    assert "in raise_it" in caplog.text


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_is_undone_and_the_entry_goes_on(hook: str) -> None:
    nodes = [Node(_fresh()), Node(_fresh())]
    for node in nodes:
        session = node.open_session(100)
        _told(node, ("put", hook, "count"))
        node.do(Put(b"a", b""))
        if hook == "on_session_end":
            node.entry(submit(run_of("sessions", CloseSession(session))))
        marks = state_of(node.machines)["teller.marks"]
        assert set(marks) == {hook.encode()}
        session = node.open_session(100)
        _told(node, ("put", hook, "raise other"))
        marks = state_of(node.machines)["teller.marks"]
        (outcome,) = node.entry(
            submit(run_of("kv", Put(b"b", b"")), run_of("sessions", CloseSession(session)))
        ).outcomes
        assert plain(outcome)[0][0] == 11
        assert plain(outcome)[1] == [3, session, True]
        assert state_of(node.machines)["teller.marks"] == marks
    assert nodes[0].machines.state_hash == nodes[1].machines.state_hash


def test_expiry_that_raises_is_tried_again_a_second_later() -> None:
    node = Node(_fresh())
    _told(node, ("put", "deadline", "50"), ("put", "expire", "raise other"))
    assert node.machines.next_deadline_ms() == 50
    node.entry(time_ms=50)
    assert node.machines.next_deadline_ms() == 1050


@pytest.mark.parametrize("name", ["next_deadline_ms", "deadline"])
def test_a_deadline_that_cannot_be_told_is_none(name: str) -> None:
    node = Node(_fresh())
    node.open_session(70)
    _told(node, ("put", name, "raise no number"))
    assert node.machines.next_deadline_ms() == 70


def test_a_rollback_that_raises_is_survived() -> None:
    node = Node(_fresh())
    _told(node, ("put", "rolled_back", ""))
    assert _told(node, ("put", "x", ""), ("raise", "other"))[0] == 0
    assert set(state_of(node.machines)["teller.notes"]) == {b"rolled_back"}


@pytest.mark.parametrize("error", [MemoryError, InvariantViolationError, KeyboardInterrupt])
def test_what_is_no_function_of_the_log_stops_the_node(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(_fresh())

    def fail(what: str) -> None:
        raise error

    monkeypatch.setattr("tests.replication.support.raise_it", fail)
    with pytest.raises(error):
        _told(node, ("put", "a", ""), ("raise", "x"))
    monkeypatch.undo()
    with pytest.raises(InvariantViolationError, match="applied in part"):
        node.entry()
    with pytest.raises(InvariantViolationError, match="whole entries"):
        node.machines.take_checkpoint(b"")
    with pytest.raises(InvariantViolationError, match="between entries"):
        node.ask(Status())


# --- determinism: one log, many nodes ------------------------------------------------------------

keys = st.sampled_from(["a", "b", "c"])
steps = st.one_of(
    st.tuples(st.just("put"), keys, st.sampled_from(["", "x"])),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("raise"), st.sampled_from(list(RAISES))),
    st.tuples(st.just("return"), st.sampled_from(["object", "failure", "set"])),
    st.tuples(st.just("badly")),
    st.tuples(st.just("put"), st.sampled_from(HOOKS), st.sampled_from(["count", "raise other"])),
)
told = st.lists(steps, min_size=1, max_size=4).map(lambda each: Do(tuple(each)))
byte_keys = keys.map(str.encode)
kv_commands = st.one_of(
    st.builds(Put, byte_keys, st.sampled_from([b"", b"5"])),
    st.builds(Delete, byte_keys),
    st.builds(Increment, byte_keys),
)
session_commands = st.one_of(
    st.builds(OpenSession, st.integers(1, 20)), st.builds(CloseSession, st.integers(1, 3))
)
runs = st.one_of(
    st.lists(told, max_size=3).map(lambda each: run_of("teller", *each)),
    st.lists(kv_commands, max_size=3).map(lambda each: run_of("kv", *each)),
    st.lists(session_commands, min_size=1, max_size=2).map(lambda each: run_of("sessions", *each)),
)
submits = st.builds(
    Submit,
    st.sampled_from([0, 0, 1, 2]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.lists(runs, max_size=3).map(tuple),
)
entries = st.tuples(st.lists(submits, max_size=3), st.integers(0, 9))
logs = st.lists(entries, min_size=1, max_size=8)


def _life(log: Any, *, leader: bool = False, restart_before: int = -1, write_after: int = 0) -> Any:
    """Everything a client or a peer could see of a node that applied *log*. The node is restarted
    before entry *restart_before* from a checkpoint that was captured there, and written only after
    *write_after* entries more; a first try to write it fails."""
    node = Node(_fresh())
    node.open_session(15)
    image = MemoryImage()
    captured = None
    outcomes: list[Any] = []
    while len(outcomes) < len(log):
        if len(outcomes) == restart_before:
            restart_before = -1
            lost = node.machines.take_checkpoint(b"")
            node.machines.checkpoint_failed(lost)
            captured = node.machines.take_checkpoint(b"")
        if (
            captured is not None
            and node.machines.index >= captured.meta.applied.index + write_after
        ):
            store_checkpoint(image, captured)
            captured = None
            node.machines = restored(image, _fresh())
            del outcomes[node.machines.index - 1 :]  # entry 1 opened the session
        at = len(outcomes)
        node.time_ms = sum(passed_ms for _, passed_ms in log[: at + 1])
        outcomes.append(node.entry(*log[at][0], leader=leader).outcomes)
    machines = node.machines
    return outcomes, machines.state_hash, state_of(machines), machines.next_deadline_ms()


@settings(max_examples=sharing.examples(80), deadline=None)
@given(logs, st.integers(0, 7), st.integers(0, 3))
def test_one_log_makes_one_state(log: Any, restart_before: int, write_after: int) -> None:
    """On a leader that decoded the commands at its gateway, on a follower that reads them from the
    log, and on a node that was restarted anywhere from a checkpoint captured some time before."""
    expected = _life(log)
    assert _life(log, leader=True) == expected
    at = restart_before % len(log)
    write_after = min(write_after, len(log) - at - 1)
    assert _life(log, restart_before=at, write_after=write_after) == expected


SCRIPT = """
import sys
from quorate.base.kv_commands import Put, Increment
from quorate.base.session_commands import OpenSession, CloseSession
from tests.replication.support import Do, Node, Teller, run_of, submit
from quorate.replication.kv import KvMachine
node = Node([KvMachine(), Teller()])
sessions = [node.open_session(10 + at % 3) for at in range(30)]
for at in range(60):
    sent = submit(
        run_of("kv", Put(b"%d" % (at * 7 % 11), b"v"), Increment(b"n%d" % (at % 5))),
        run_of("teller", Do((("put", str(at % 9), "x"), ("raise", "other")))),
        run_of("teller", Do((("put", str(at % 9), "y"), ("return", "set" + str(at))))),
        session=sessions[at % 30], sequence=at + 1, acknowledged=at // 2,
    )
    node.entry(sent, time_ms=at)
print(node.machines.state_hash.hex())
"""


def test_no_hash_seed_shows_in_the_state() -> None:
    def hash_under(seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    found = {hash_under(seed) for seed in ("0", "1")}
    assert len(found) == 1
    assert len(found.pop()) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.do(Put(b"k", b"other")),
        lambda node: node.do(Put(b"other", b"v")),
        lambda node: node.do(Put(b"k", b"v"), Put(b"k", b"v")),
        lambda node: _told(node, ("put", "k", "v")),
        lambda node: node.entry(submit(run_of("kv", Put(b"k", b"v"))), time_ms=1),
        lambda node: node.entry(),
    ],
)
def test_the_hash_tells_lives_apart(change: Any) -> None:
    node, other = Node(_fresh()), Node(_fresh())
    node.do(Put(b"k", b"v"))
    change(other)
    assert node.machines.state_hash != other.machines.state_hash
    node.do(Put(b"k", b"v"))
    other.do(Put(b"k", b"v"))
    assert node.machines.state_hash != other.machines.state_hash  # it does not forget


def test_the_hash_covers_results_even_if_no_record_differs() -> None:
    node, other = Node(_fresh()), Node(_fresh())
    node.do(Delete(b"none"))
    other.do(Delete(b"none"), Delete(b"none"))
    assert state_of(node.machines) == state_of(other.machines)
    assert node.machines.state_hash != other.machines.state_hash


def test_an_entry_that_is_no_batch_changes_nothing_but_the_index() -> None:
    node = Node(_fresh())
    node.do(Put(b"k", b"v"))
    before = state_of(node.machines)
    for payload in (b"", b"\xc1", b"\x90", b"\x91" * 3000, None):
        applied = node.machines.apply(node.machines.index + 1, 3, payload)
        assert (applied.outcomes, applied.command_count) == ((), 0)
    assert state_of(node.machines) == before
    assert (node.machines.index, node.machines.term) == (6, 3)


def test_entries_come_in_order_and_with_their_own_commands() -> None:
    node = Node(_fresh())
    for index in (0, 2):
        with pytest.raises(InvariantViolationError, match="in order"):
            node.machines.apply(index, 1, None)
    prepared = [node.machines.prepare(submit(run_of("kv", Put(b"a", b""))))]
    with pytest.raises(InvariantViolationError, match="what was prepared"):
        node.machines.apply(1, 1, node.payload([]), prepared)


def test_the_context_is_that_of_the_entry() -> None:
    seen: list[tuple[int, ...]] = []

    class Witness(Teller):
        name = "witness"

        def attach(self, tables: Tables) -> None:
            pass

        def loaded(self) -> None:
            pass

        def expire(self, context: Context) -> None:
            pass

        finish = expire

        def apply(self, command: Do, context: Context) -> Any:
            fields = (context.index, context.term, context.time_ms, context.wall_ms)
            seen.append((*fields, context.seed, context.position, context.session))

    node = Node([Witness()])
    session = node.open_session()
    one = run_of("witness", Do(()), Do(()))
    two = submit(one, session=session, sequence=1)
    applied = node.entry(submit(one), two, time_ms=5)
    assert seen == [(2, 1, 5, 7, 11, at, session * (at > 1)) for at in range(4)]
    assert applied.command_count == 4


# --- the gateway and its bounds ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "error", "says"),
    [
        (submit(raw_run("kv", b"\x90" + b"x" * BATCH_BYTES_MAX)), LimitExceededError, "bytes of c"),
        (submit(Run("k" * BATCH_BYTES_MAX, msgspec.Raw(b"\x90"))), LimitExceededError, "bytes of"),
        (submit(*[run_of("kv")] * (BATCH_COMMANDS_MAX + 1)), LimitExceededError, "runs"),
        (submit(run_of("nobody", 1)), UnknownMachineError, "no machine.*nobody"),
        (submit(session=-1), BadCommandError, "positive"),
        (submit(session=1, sequence=0), BadCommandError, "positive"),
    ],
    ids=["bytes", "names", "runs", "machine", "session", "sequence"],
)
def test_the_gateway_refuses(sent: Submit, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Machines(_fresh()).prepare(sent)


def test_commands_of_a_batch_are_bounded() -> None:
    machines = Machines(_fresh())
    fits = run_of("kv", *[Delete(b"k")] * BATCH_COMMANDS_MAX)
    assert machines.prepare(submit(fits)).command_count == BATCH_COMMANDS_MAX
    with pytest.raises(LimitExceededError, match="10001 commands"):
        machines.prepare(submit(fits, run_of("kv", Delete(b"k"))))


def test_a_full_reply_refuses_the_rest_without_running_it() -> None:
    node = Node(_fresh())
    value = b"v" * (MIB - 100)
    node.do(*(Put(b"%d" % at, value) for at in range(9)))
    (outcome,) = node.entry(
        submit(run_of("kv", *(Put(b"%d" % at, b"", previous=True) for at in range(9))))
    ).outcomes
    codes = [each[0] for each in plain(outcome)]
    assert codes == [11] * 7 + [0] * 2
    assert len(outcome.results) <= 8 * MIB
    items = node.ask(Get(b"7")).item
    assert items.version == 1
    assert node.ask(Status()).revision == 9 + 7


def test_what_frees_space() -> None:
    machines = Machines(_fresh())

    def frees(*runs: Run) -> bool:
        return machines.frees_space(machines.prepare(submit(*runs)))

    deleting = run_of("teller", Do((("delete", "a"),)))
    assert frees(deleting, run_of("kv", Delete(b"k")), run_of("sessions", OpenSession()))
    assert not frees(deleting, run_of("teller", Do((("put", "a", ""),))))
    assert not frees(run_of("teller", Do((("raise", "x"),))))
    assert not Machine().frees_space(None)


# --- queries -------------------------------------------------------------------------------------


def test_queries_are_answered_one_by_one_and_change_nothing() -> None:
    node = Node(_fresh())
    _told(node, ("put", "a", ""))
    before = state_of(node.machines)
    looks = [Look("count"), Look("refused"), Look("other"), Look("change"), Look("huge")]
    runs = (run_of("teller", *looks), run_of("kv", Get(b"k"), [99]))
    answers = msgspec.msgpack.decode(node.machines.query_runs(runs))
    assert answers[0][0][:3] == [1, 1, 1]
    assert [each[1] for each in answers[0][1:]] == [
        "refused-here",
        "machine-error",
        "machine-error",
        "limit-exceeded",
    ]
    assert [each[0] for each in answers[1]] == [1, 0]
    assert state_of(node.machines) == before
    node.do(Put(b"k", b"v"))  # and the next entry stands on its own
    assert set(state_of(node.machines)["teller.notes"]) == {b"a"}


def test_queries_are_bounded() -> None:
    machines = Machines(_fresh())
    many = run_of("kv", *[Get(b"k")] * BATCH_COMMANDS_MAX)
    assert machines.query_runs((many,))
    for runs in ((many, run_of("kv", Get(b"k"))), [run_of("kv")] * (BATCH_COMMANDS_MAX + 1)):
        with pytest.raises(LimitExceededError, match="over the limit"):
            machines.query_runs(runs)
    with pytest.raises(UnknownMachineError):
        machines.query("nobody", b"\x90")
    with pytest.raises(BadCommandError, match="not an array"):
        machines.query("kv", b"\xc0")
