"""Sessions: what happens once though it comes often, and ends when cluster time says so."""
# commands and results are of many types

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import Submit
from quorate.base.kv_commands import Get, Increment, Put
from quorate.base.results import Failure
from quorate.base.session_commands import (
    CloseSession,
    KeepAlive,
    ListSessions,
    OpenSession,
    SessionAlive,
    SessionClosed,
    SessionList,
    SessionOpened,
)
from quorate.replication import deadlines as deadlines_module
from quorate.replication import machines as machines_module
from quorate.replication import sessions as sessions_module
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.machines import Machines
from quorate.replication.sessions import Outcome
from quorate.replication.tables import Tables
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.replication.support import (
    Node,
    Note,
    kv,
    plain,
    restored,
    run_of,
    state_of,
    store_checkpoint,
    submit,
)


class Mourner(Machine):
    """Writes down which sessions ended, in order, and when."""

    name = "mourner"
    command_type: ClassVar[Any] = CloseSession

    def attach(self, tables: Tables) -> None:
        self.ended = tables.table("mourner.ended", Note)

    def apply(self, command: CloseSession, context: Context) -> Any:
        raise NotImplementedError

    def on_session_end(self, session: int, context: Context) -> None:
        self.ended.put(b"%06d" % len(self.ended), Note(f"{context.time_ms}", session))

    def all(self) -> list[tuple[int, int]]:
        return [(int(note.text), note.count) for _, note in self.ended.items()]


def _node() -> tuple[Node, Mourner]:
    mourner = Mourner()
    return Node([KvMachine(), mourner]), mourner


def _results(outcome: Outcome, kind: Any) -> Any:
    assert not outcome.code, outcome
    ((result,),) = msgspec.msgpack.decode(outcome.results, type=list[list[kind | Failure]])
    return result


def _session_do(node: Node, command: Any, kind: Any, time_ms: int | None = None) -> Any:
    (outcome,) = node.entry(submit(run_of("sessions", command)), time_ms=time_ms).outcomes
    return _results(outcome, kind)


def _add(session: int, sequence: int, acknowledged: int = 0) -> Submit:
    run = run_of("kv", Increment(b"%d" % session))
    return submit(run, session=session, sequence=sequence, acknowledged=acknowledged)


def _counted(node: Node, session: int) -> int:
    item = node.ask(Get(b"%d" % session)).item
    return 0 if item is None else int(item.value)


# --- against a model -----------------------------------------------------------------------------


class Model:
    """What a client may rely on."""

    def __init__(self, session: int, ttl_ms: int, time_ms: int) -> None:
        self.session = session
        self.ttl_ms = ttl_ms
        self.expires_ms = time_ms + ttl_ms
        self.ended = False
        self.acknowledged = 0
        self.done: dict[int, Outcome] = {}
        self.executed = 0

    def check(self, sent: Submit, outcome: Outcome, time_ms: int) -> None:
        if self.ended:
            assert outcome.code == "session-expired"
            return
        self.expires_ms = time_ms + self.ttl_ms
        self.acknowledged = max(self.acknowledged, sent.acknowledged)
        for sequence in [each for each in self.done if each <= self.acknowledged]:
            del self.done[sequence]
        if sent.sequence <= self.acknowledged:
            assert outcome.code == "sequence"
        elif sent.sequence in self.done:
            assert outcome == self.done[sent.sequence]
        else:
            self.executed += 1
            self.done[sent.sequence] = outcome
            assert kv(outcome)[0].value == self.executed


which = st.integers(0, 3)
sends = st.tuples(
    st.just("send"),
    st.lists(st.tuples(which, st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=3),
)
doings = st.one_of(
    sends,
    sends,
    st.tuples(st.just("open"), st.integers(1, 30)),
    st.tuples(st.just("alive"), which),
    st.tuples(st.just("close"), which),
    st.tuples(st.just("restart"), st.none()),
)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(st.lists(st.tuples(doings, st.sampled_from([0, 0, 1, 9, 15])), max_size=20))
def test_each_submission_takes_effect_once_and_every_retry_gets_the_same_bytes(life: Any) -> None:
    node, mourner = _node()
    image = MemoryImage()
    models: list[Model] = []
    ends: list[tuple[int, int]] = []
    now = 0
    for (what, argument), passed_ms in life:
        now += passed_ms
        for model in sorted(models, key=lambda each: (each.expires_ms, each.session)):
            if not model.ended and model.expires_ms <= now and what != "restart":
                model.ended = True
                ends.append((now, model.session))
        if what == "restart":
            store_checkpoint(image, node.machines.take_checkpoint(b""))
            mourner = Mourner()
            node.machines = restored(image, [KvMachine(), mourner])
        elif what == "open":
            opened = _session_do(node, OpenSession(argument, "me"), SessionOpened, now)
            assert opened == SessionOpened(len(models) + 1, now + argument)
            models.append(Model(opened.session, argument, now))
        elif not models:
            continue
        elif what == "send":
            sent = [(models[at % len(models)], *rest) for at, *rest in argument]
            submits = [_add(model.session, *rest) for model, *rest in sent]
            applied = node.entry(*submits, time_ms=now)
            for (model, *_), each, outcome in zip(sent, submits, applied.outcomes, strict=True):
                model.check(each, outcome, now)
        else:
            model = models[argument % len(models)]
            if what == "alive":
                result = _session_do(node, KeepAlive(model.session), SessionAlive, now)
                assert isinstance(result, Failure) is model.ended
                model.expires_ms = now + model.ttl_ms
            else:
                result = _session_do(node, CloseSession(model.session), SessionClosed, now)
                assert result == SessionClosed(model.session, not model.ended)
                if not model.ended:
                    ends.append((now, model.session))
                model.ended = True
    for model in models:
        assert _counted(node, model.session) == model.executed
    assert mourner.all() == ends
    _check_list(node, models)
    again, _ = _node()
    for payload in node.log:
        again.feed(payload)
    assert again.machines.state_hash == node.machines.state_hash
    assert state_of(again.machines) == state_of(node.machines)


def _check_list(node: Node, models: list[Model]) -> None:
    raw = node.machines.query("sessions", msgspec.msgpack.encode([ListSessions()]))
    (shown,) = msgspec.msgpack.decode(raw, type=list[SessionList])
    alive = [each for each in models if not each.ended]
    assert shown.count == len(alive)
    assert [
        (each.session, each.expires_ms, each.acknowledged, each.unacknowledged)
        for each in shown.sessions
    ] == [(each.session, each.expires_ms, each.acknowledged, len(each.done)) for each in alive]


# --- sentence by sentence ------------------------------------------------------------------------


def test_a_later_failure_does_not_take_an_earlier_reply_with_it() -> None:
    """Submissions of one entry: the second has no session and is undone; the first stands."""
    node, _ = _node()
    session = node.open_session()
    node.do(Put(b"text", b"x"))
    applied = node.entry(_add(session, 1), submit(run_of("kv", Increment(b"text"))))
    assert isinstance(kv(applied.outcomes[1])[0], Failure)
    (again,) = node.entry(_add(session, 1)).outcomes
    assert again == applied.outcomes[0]
    assert _counted(node, session) == 1


def test_a_failure_does_not_undo_what_expired_in_the_same_entry() -> None:
    node, mourner = _node()
    session = node.open_session(10)
    node.do(Put(b"text", b"x"))
    node.entry(submit(run_of("kv", Increment(b"text"))), time_ms=10)
    assert mourner.all() == [(10, session)]
    assert session not in node.machines.sessions
    assert node.entry(_add(session, 1)).outcomes[0].code == "session-expired"


def test_wall_time_ends_nothing_and_time_never_goes_back() -> None:
    node, mourner = _node()
    session = node.open_session(10)
    node.entry(time_ms=9)
    node.entry(time_ms=0)
    assert node.machines.time_ms == 9
    assert session in node.machines.sessions
    assert node.machines.next_deadline_ms() == 10
    node.entry(time_ms=10)
    assert mourner.all() == [(10, session)]
    assert node.machines.next_deadline_ms() is None


def test_every_submission_renews() -> None:
    node, _ = _node()
    session = node.open_session(10)
    for time_ms in (9, 18, 27):
        assert not node.entry(_add(session, time_ms), time_ms=time_ms).outcomes[0].code
    assert node.machines.next_deadline_ms() == 37


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "expired"])
def test_nothing_of_a_session_outlives_it(closes: bool) -> None:
    node, _ = _node()
    session = node.open_session(1000)
    for sequence in (1, 2):
        assert not node.entry(_add(session, sequence)).outcomes[0].code
    assert len(node.machines.tables["sessions.replies"]) == 2
    if closes:
        _session_do(node, CloseSession(session), SessionClosed)
    else:
        node.entry(time_ms=5000)
    assert not len(node.machines.tables["sessions.replies"])
    assert not len(node.machines.tables["sessions.live"])


def test_a_submission_may_end_its_own_session() -> None:
    node, mourner = _node()
    session = node.open_session()
    runs = (run_of("kv", Increment(b"n")), run_of("sessions", CloseSession(session)))
    sent = submit(*runs, session=session, sequence=1)
    (outcome,) = node.entry(sent).outcomes
    assert plain(outcome)[1] == [3, session, True]
    assert node.entry(sent).outcomes[0].code == "session-expired"
    assert node.ask(Get(b"n")).item.value == b"1"
    assert mourner.all() == [(0, session)]
    assert not len(node.machines.tables["sessions.replies"])


@pytest.mark.parametrize("session", [0, 7, 2**64 - 1])
def test_unknown_sessions(session: int) -> None:
    node, _ = _node()
    assert isinstance(_session_do(node, KeepAlive(session), SessionAlive), Failure)
    closed = _session_do(node, CloseSession(session), SessionClosed)
    assert closed == SessionClosed(session, existed=False)
    if session:
        (outcome,) = node.entry(_add(session, 1)).outcomes
        assert (outcome.code, outcome.results) == ("session-expired", b"")


def test_from_the_log_any_number_is_answered() -> None:
    node, _ = _node()
    session = node.open_session()
    for at, sequence, acknowledged, code in (
        (-5, 1, 0, "session-expired"),
        (session, 0, 0, "sequence"),
        (session, -1, -9, "sequence"),
        (session, 2**64 - 1, 0, ""),
        (session, 2**64 - 1, 2**64 - 1, "sequence"),
    ):
        sent = submit(session=at, sequence=sequence, acknowledged=acknowledged)
        assert node.entry(sent).outcomes[0].code == code
    assert restored_equals(node)


def restored_equals(node: Node) -> bool:
    image = MemoryImage()
    store_checkpoint(image, node.machines.take_checkpoint(b""))
    return state_of(restored(image, [KvMachine(), Mourner()])) == state_of(node.machines)


def test_ids_are_never_given_out_again() -> None:
    node, _ = _node()
    first = node.open_session()
    _session_do(node, CloseSession(first), SessionClosed)
    image = MemoryImage()
    store_checkpoint(image, node.machines.take_checkpoint(b""))
    node.machines = restored(image, [KvMachine(), Mourner()])
    assert node.open_session() == first + 1


# --- bounds --------------------------------------------------------------------------------------


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "SESSIONS_MAX", 2)
    node, _ = _node()
    first = node.open_session()
    node.open_session()
    refused = _session_do(node, OpenSession(), SessionOpened)
    assert (refused.code, refused.message[:22]) == ("overloaded", "there are 2 sessions a")
    _session_do(node, CloseSession(first), SessionClosed)
    assert node.open_session() == 3


@pytest.mark.parametrize(
    ("name", "bound"), [("SESSION_UNACKNOWLEDGED_MAX", 2), ("SESSION_UNACKNOWLEDGED_BYTES_MAX", 9)]
)
def test_kept_replies_are_bounded(monkeypatch: pytest.MonkeyPatch, name: str, bound: int) -> None:
    monkeypatch.setattr(sessions_module, name, bound)
    node, _ = _node()
    session = node.open_session()
    first = [node.entry(_add(session, sequence)).outcomes[0] for sequence in (1, 2)]
    (refused,) = node.entry(_add(session, 3)).outcomes
    assert (refused.code, refused.retry_after_ms) == ("overloaded", 100)
    assert "acknowledge some" in refused.message
    assert node.entry(_add(session, 2)).outcomes[0] == first[1]  # a retry needs no room
    (done,) = node.entry(_add(session, 3, acknowledged=1)).outcomes
    assert kv(done)[0].value == 3
    assert len(node.machines.tables["sessions.replies"]) == 2


def test_a_storm_of_expiries_is_cut_but_no_due_session_acts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_module, "SESSIONS_EXPIRED_MAX", 2)
    node, mourner = _node()
    sessions = [node.open_session(10) for _ in range(5)]
    applied = node.entry(_add(sessions[4], 1), time_ms=10)
    assert applied.outcomes[0].code == "session-expired"
    assert isinstance(_session_do(node, KeepAlive(5), SessionAlive), Failure)
    assert mourner.all() == [(10, each) for each in (1, 2, 3, 4)]
    assert node.machines.next_deadline_ms() == 10
    node.entry()
    assert mourner.all()[4:] == [(10, 5)]


def test_deadlines_of_closed_sessions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines_module, "STALE_MAX", 4)
    node, mourner = _node()
    kept = node.open_session(50)
    for _ in range(50):
        _session_do(node, CloseSession(node.open_session(1000)), SessionClosed)
        assert len(node.machines.sessions._deadlines._heap) <= 2 + 4 + 1
    node.entry(time_ms=50)
    assert mourner.all()[-1] == (50, kept)


def test_an_opening_whose_reply_has_no_room_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    node, mourner = _node()
    openings = submit(run_of("sessions", OpenSession(5), OpenSession(7)))
    with monkeypatch.context() as narrow:
        narrow.setattr(machines_module, "RESULTS_BYTES_MAX", 8)
        (outcome,) = node.entry(openings).outcomes
    results = plain(outcome)
    assert [each[0] for each in results] == [1, 0]
    assert 2 not in node.machines.sessions
    assert node.open_session(20) == 2
    node.entry(time_ms=7)
    assert mourner.all() == [(7, 1)]
    node.entry(time_ms=20)
    assert mourner.all() == [(7, 1), (20, 2)]


def test_listing_goes_on_behind_the_last() -> None:
    node, _ = _node()
    for _ in range(5):
        node.open_session()

    def ask(after: int, limit: int) -> list[int]:
        raw = node.machines.query("sessions", msgspec.msgpack.encode([ListSessions(after, limit)]))
        (shown,) = msgspec.msgpack.decode(raw, type=list[SessionList])
        assert shown.count == 5
        return [each.session for each in shown.sessions]

    assert ask(0, 3) == [1, 2, 3]
    assert ask(3, 3) == [4, 5]
    assert ask(2**64 - 1, 3) == []


def test_sessions_may_be_used_on_a_full_disk() -> None:
    machines = Machines([KvMachine()])
    runs = run_of("sessions", OpenSession(), KeepAlive(1), CloseSession(1))
    assert machines.frees_space(machines.prepare(submit(runs)))
