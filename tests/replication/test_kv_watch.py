"""Watches of keys: what one node tells, against a model, over checkpoints, restarts and undo."""

# commands and results are of many types

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quorate.base.frames import Happened, Watch, WatchEnded, Watching
from quorate.base.kv_commands import (
    Compare,
    CompareAndSet,
    Delete,
    DeleteRange,
    Get,
    Increment,
    KeyValue,
    Put,
    Range,
    Status,
    Txn,
    TxnResult,
)
from quorate.base.kv_watch import KeyEvent, KeyEvents, KeysCompacted, KeyTold, WatchKeys
from quorate.base.lease_commands import GrantLease, RevokeLease
from quorate.base.limits import KEY_BYTES_MAX, MIB, VALUE_BYTES_MAX, WATCH_PROGRESS_INTERVAL_S
from quorate.base.results import Failure
from quorate.errors import InvalidArgumentError
from quorate.replication import kv_history
from quorate.replication.feeds import Feed, Feeds
from quorate.replication.kv import KvMachine
from quorate.replication.machines import Applied
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.replication.support import Node, kv, restored, run_of, state_of, store_checkpoint, submit

_told = msgspec.msgpack.Decoder(list[KeyTold]).decode


class Ear:
    """A watcher with a connection that takes all."""

    def __init__(self) -> None:
        self.told: list[KeyEvents | KeysCompacted] = []
        self.ended = ""
        self.begun = False
        self.frames = 0

    def __call__(self, frame: Watching | Happened | WatchEnded) -> bool:
        if isinstance(frame, Happened):
            self.told += _told(frame.events)
            self.frames += 1
        elif isinstance(frame, WatchEnded):
            self.ended = frame.code
        else:
            self.begun = True
        return True

    @property
    def batches(self) -> list[KeyEvents]:
        return [each for each in self.told if isinstance(each, KeyEvents) and each.events]

    @property
    def events(self) -> list[KeyEvent]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def revision(self) -> int:
        """Where it would begin anew, less one."""
        return max(each.revision for each in self.told if isinstance(each, KeyEvents))


class Store:
    """A node and its watches."""

    def __init__(self) -> None:
        self.node = Node([KvMachine()])
        self.feeds = Feeds(self.node.machines.machine)
        self.image = MemoryImage()

    def watch(self, request: WatchKeys) -> Ear:
        self.open(request, ear := Ear())
        return ear

    def open(self, request: WatchKeys, ear: Ear) -> Feed | None:
        raw = msgspec.Raw(msgspec.msgpack.encode(request))
        return self.feeds.open(Watch(1, "kv", raw), self.node.machines.index, ear)

    def tell(self, applied: Applied) -> Applied:
        self.feeds.happened(applied.effects)
        self.feeds.flush(applied.index)
        return applied

    def do(self, *commands: Any) -> list[Any]:
        applied = self.tell(self.node.entry(submit(run_of("kv", *commands))))
        return kv(applied.outcomes[0])

    def leases(self, *commands: Any, time_ms: int | None = None) -> Applied:
        return self.tell(self.node.entry(submit(run_of("leases", *commands)), time_ms=time_ms))

    def restart(self) -> None:
        """From a checkpoint that is taken now; watches are gone."""
        store_checkpoint(self.image, self.node.machines.take_checkpoint(b""))
        self.node.machines = restored(self.image, [KvMachine()])
        self.feeds = Feeds(self.node.machines.machine)

    @property
    def machine(self) -> KvMachine:
        found = self.node.machines.machine("kv")
        assert isinstance(found, KvMachine)
        return found


EVERYTHING = WatchKeys(b"", prefix=True)


def test_events_say_what_became_of_a_key() -> None:
    store = Store()
    ear = store.watch(WatchKeys(b"", prefix=True, previous=True))
    store.do(Put(b"k", b"1"), Put(b"k", b"2"), Increment(b"n", 5), Delete(b"k"))
    first = KeyValue(b"k", b"1", 1, 1, 1)
    second = KeyValue(b"k", b"2", 1, 2, 2)
    assert ear.events == [
        KeyEvent("put", b"k", b"1", 1, 1, 1),
        KeyEvent("put", b"k", b"2", 1, 2, 2, previous=first),
        KeyEvent("put", b"n", b"5", 3, 3, 1),
        KeyEvent("delete", b"k", b"", 0, 4, 0, previous=second),
    ]


def test_a_revision_comes_whole_and_in_the_order_of_its_operations() -> None:
    store = Store()
    store.do(Put(b"a/gone", b""))
    all_of_it, part, one = (
        store.watch(each)
        for each in (EVERYTHING, WatchKeys(b"a/", prefix=True), WatchKeys(b"b", b"b\0"))
    )
    branch = (Put(b"b", b"1"), Delete(b"a/gone"), Put(b"a/new", b"2"), Get(b"b"))
    store.do(Txn((), branch), Put(b"c", b""))
    assert [[each.key for each in batch.events] for batch in all_of_it.batches] == [
        [b"b", b"a/gone", b"a/new"],
        [b"c"],
    ]
    assert [[each.key for each in batch.events] for batch in part.batches] == [
        [b"a/gone", b"a/new"]
    ]
    assert [each.key for each in one.events] == [b"b"]
    again = store.watch(WatchKeys(b"", prefix=True, start_revision=2))
    assert again.batches == all_of_it.batches


def test_what_was_refused_leaves_no_event() -> None:
    store = Store()
    ear = store.watch(EVERYTHING)
    store.do(
        Put(b"text", b"x"),
        Txn((), (Put(b"a", b""), Put(b"b", b""), Increment(b"text"))),
        CompareAndSet(b"text", b"y", b"no"),
        Delete(b"none"),
        Put(b"z", b""),
        Txn((Compare(b"z", "version", ">", 7),), (Put(b"y", b""),)),
    )
    assert [(each.key, each.mod_revision) for each in ear.events] == [(b"text", 1), (b"z", 2)]
    assert store.watch(WatchKeys(b"", prefix=True, start_revision=1)).batches == ear.batches


def test_a_transaction_whose_answer_is_too_large_leaves_nothing_to_tell() -> None:
    store = Store()
    for at in range(3):
        store.do(Put(b"large/%d" % at, b"v" * (VALUE_BYTES_MAX - 1000)))
    gets = tuple(Get(b"large/%d" % at) for at in range(3))
    large = Txn((), (Put(b"a", b""), Put(b"b", b""), *gets))
    ear = store.watch(EVERYTHING)
    runs = run_of("kv", large, large, large), run_of("kv", Put(b"c", b""), Put(b"d", b""))
    applied = store.tell(store.node.entry(*map(submit, runs)))
    assert [type(each) for each in kv(applied.outcomes[0])] == [TxnResult, TxnResult, Failure]
    assert [[each.key for each in batch.events] for batch in ear.batches] == [
        [b"a", b"b"],
        [b"a", b"b"],
        [b"c"],
        [b"d"],
    ]
    assert ear.revision == 7


def test_a_watch_may_begin_in_the_middle_of_an_entry() -> None:
    store = Store()
    for _ in range(2):
        store.do(*(Put(b"k", b"") for _ in range(4)))
    for start in range(1, 10):
        ear = store.watch(WatchKeys(b"k", b"k\0", start_revision=start))
        assert [each.mod_revision for each in ear.events] == list(range(start, 9))


def test_filters() -> None:
    store = Store()
    puts = store.watch(WatchKeys(b"", prefix=True, deletes=False))
    deletes = store.watch(WatchKeys(b"", prefix=True, puts=False))
    store.do(Txn((), (Put(b"a", b""), Put(b"b", b""))), DeleteRange(b"a"), Put(b"a", b""))
    assert [(each.type, each.mod_revision) for each in puts.events] == [
        ("put", 1), ("put", 1), ("put", 3),
    ]  # fmt: skip
    assert [(each.type, each.key) for each in deletes.events] == [
        ("delete", b"a"),
        ("delete", b"b"),
    ]
    with pytest.raises(InvalidArgumentError):
        WatchKeys(b"", prefix=True, puts=False, deletes=False)
    with pytest.raises(InvalidArgumentError):
        WatchKeys(b"a", b"b", prefix=True)


def test_a_watch_of_the_future_waits_and_tells_nothing_before_it() -> None:
    store = Store()
    ear = store.watch(WatchKeys(b"", prefix=True, start_revision=4))
    for at in range(6):
        store.do(Put(b"k", b"%d" % at))
    assert [each.mod_revision for each in ear.events] == [4, 5, 6]
    assert ear.told[0] == KeyEvents(0)


def test_a_watch_says_where_it_stands_when_it_begins_and_when_nothing_happens() -> None:
    store = Store()
    store.do(*(Put(b"%d" % at, b"") for at in range(7)))
    ear = store.watch(WatchKeys(b"none", b"none\0"))
    mute = store.watch(WatchKeys(b"none", b"none\0", progress=False))
    assert (ear.told, mute.told) == ([KeyEvents(7)], [KeyEvents(7)])
    store.do(Put(b"other", b""))
    assert ear.told == [KeyEvents(7)]
    store.feeds.on_tick(WATCH_PROGRESS_INTERVAL_S)
    store.feeds.on_tick(WATCH_PROGRESS_INTERVAL_S + 1)
    assert (ear.told, mute.told) == ([KeyEvents(7), KeyEvents(8)], [KeyEvents(7)])
    store.do(Put(b"none", b""))  # it heard of something, so it is not told so soon
    store.feeds.on_tick(2 * WATCH_PROGRESS_INTERVAL_S)
    assert ear.revision == 9
    assert len(ear.told) == 3
    store.feeds.on_tick(2 * WATCH_PROGRESS_INTERVAL_S + 1)
    assert ear.told[3:] == [KeyEvents(9)]


# --- the window ----------------------------------------------------------------------------------


def test_the_window_is_bounded_in_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_history, "HISTORY_REVISIONS_MAX", 10)
    store = Store()
    for _ in range(6):
        store.do(*(Put(b"k", b"") for _ in range(3)))
    history = store.machine.history
    assert (history.oldest, history.revision_count) == (10, 9)
    compacted = store.watch(WatchKeys(b"", prefix=True, start_revision=9))
    assert (compacted.told, compacted.ended) == ([KeysCompacted(10)], "compacted")
    assert len(store.feeds) == 0
    whole = store.watch(WatchKeys(b"", prefix=True, start_revision=10))
    assert [each.mod_revision for each in whole.events] == list(range(10, 19))
    store.restart()
    assert (store.machine.history.oldest, store.machine.history.revision_count) == (10, 9)
    assert store.watch(WatchKeys(b"", prefix=True, start_revision=10)).batches == whole.batches
    assert store.watch(WatchKeys(b"", prefix=True, start_revision=9)).ended == "compacted"
    store.do(*(Put(b"k", b"") for _ in range(3)))
    assert store.machine.history.oldest == 13


def test_the_window_is_bounded_in_bytes_however_large_one_entry_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_history, "HISTORY_BYTES_MAX", 10_000)
    store = Store()
    ear = store.watch(EVERYTHING)
    for at in range(20):
        store.do(Put(b"%d" % at, b"v" * 2000))
    history = store.machine.history
    assert history.size_bytes <= 10_000
    assert (history.revision_count, history.oldest) == (4, 17)
    store.do(Put(b"large", b"v" * 20_000))  # more than the window: it is empty now
    assert (history.size_bytes, history.revision_count, history.oldest) == (0, 0, 22)
    assert store.watch(WatchKeys(b"", prefix=True, start_revision=21)).ended == "compacted"
    assert store.watch(WatchKeys(b"", prefix=True, start_revision=22)).told == [KeyEvents(21)]
    assert [each.mod_revision for each in ear.events] == list(range(1, 22))  # who was there heard
    store.restart()
    assert store.machine.history.oldest == 22
    store.do(Put(b"k", b""))
    assert store.machine.history.oldest == 22


def test_a_long_past_comes_in_several_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_history, "BACKLOG_EVENTS_MAX", 10)
    store = Store()
    for at in range(7):
        store.do(*(Put(b"ab"[at % 2 : at % 2 + 1], b"%d" % at) for _ in range(5)))
    found: list[int] = []
    start, beginnings = 1, 0
    while True:
        ear = store.watch(WatchKeys(b"b", b"b\0", start_revision=start))
        found += [each.mod_revision for each in ear.events]
        start, beginnings = ear.revision + 1, beginnings + 1
        if not ear.ended:
            break
        assert ear.ended == "watch-lagging"
    assert found == [*range(6, 11), *range(16, 21), *range(26, 31)]
    assert beginnings == 4
    assert len(store.feeds) == 1


def test_a_past_of_many_bytes_comes_in_several_beginnings() -> None:
    store = Store()
    for at in range(12):
        store.do(Put(b"%d" % at, b"v" * MIB))
    ear = store.watch(WatchKeys(b"", prefix=True, start_revision=1))
    assert (len(ear.batches), ear.revision, ear.ended) == (4, 4, "watch-lagging")


def test_the_history_is_not_in_the_hash_and_yet_stored() -> None:
    left, right = Store(), Store()
    right.machine.history.loaded(0)
    for store in (left, right):
        store.do(Put(b"a", b"1"))
    table = right.node.machines.tables["kv.history"]
    assert table.derived
    assert len(table) == 1
    table.delete(next(iter(table.keys())))
    for store in (left, right):
        store.do(Put(b"a", b"2"))
    assert left.node.machines.state_hash == right.node.machines.state_hash
    assert "kv.history" in left.node.machines.take_checkpoint(b"").dirty


def test_what_one_revision_did_fits_into_one_frame() -> None:
    store = Store()
    value = b"v" * VALUE_BYTES_MAX
    for at in range(6):
        store.do(Put(b"%d" % at, value))
    ear = store.watch(WatchKeys(b"", prefix=True, previous=True))
    store.do(DeleteRange(b""))
    (batch,) = ear.batches
    assert [each.previous is None for each in batch.events] == [False] * 3 + [True] * 3
    assert [each.previous_omitted for each in batch.events] == [False] * 3 + [True] * 3
    assert ear.frames == 2
    store.do(*(Put(b"%04d" % at + b"k" * (KEY_BYTES_MAX - 4), b"") for at in range(1500)))
    (refused,) = store.do(DeleteRange(b""))
    assert (refused.code, "bytes at most" in refused.message) == ("limit-exceeded", True)
    (some,) = store.do(DeleteRange(b"", limit=10_000))
    assert (some.count, some.more) == (1024, True)
    (rest,) = store.do(DeleteRange(b"", limit=10_000))
    assert (rest.count, rest.more) == (476, False)


# --- many watchers -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.deep)])
def test_many_watchers_of_one_node_each_hear_their_own(count: int) -> None:
    store = Store()
    ears = [store.watch(WatchKeys(b"%d/" % at, prefix=True)) for at in range(count)]
    keys = [b"%d/x" % (at * 7 % count) for at in range(count)]
    for at in range(0, count, 100):
        store.do(*(Put(key, b"") for key in keys[at : at + 100]))
    for at, ear in enumerate(ears):
        (event,) = ear.events
        assert event.key == b"%d/x" % at
    assert sum(ear.frames for ear in ears) == 2 * count  # where it stands, and its own


def test_an_event_is_encoded_once_for_all_who_are_told_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store()
    ears = [store.watch(EVERYTHING) for _ in range(100)]
    made = 0
    plain = kv_history.Selector._event

    def counted(self: Any, *arguments: Any) -> KeyEvent:
        nonlocal made
        made += 1
        return plain(self, *arguments)

    monkeypatch.setattr(kv_history.Selector, "_event", counted)
    store.do(Put(b"k", b"v"))
    assert [len(ear.events) for ear in ears] == [1] * 100
    assert made == 1


# --- leases --------------------------------------------------------------------------------------


def _granted(store: Store, ttl_ms: int = 10_000) -> int:
    (outcome,) = store.leases(GrantLease(ttl_ms)).outcomes
    lease: int = msgspec.msgpack.decode(outcome.results)[0][0][1]
    return lease


def test_keys_go_with_their_lease_as_one_revision() -> None:
    store = Store()
    lease, other = _granted(store), _granted(store)
    store.do(
        Put(b"b", b"", lease=lease),
        Put(b"a", b"1", lease=lease),
        Put(b"stays", b"", lease=other),
        Put(b"free", b""),
    )
    assert store.node.ask(Get(b"a")).item == KeyValue(b"a", b"1", 2, 2, 1, lease)
    ear = store.watch(WatchKeys(b"", prefix=True, previous=True))
    store.leases(RevokeLease(lease))
    (batch,) = ear.batches
    assert batch.revision == 5
    assert [(each.type, each.key) for each in batch.events] == [("delete", b"a"), ("delete", b"b")]
    assert batch.events[0].previous == KeyValue(b"a", b"1", 2, 2, 1, lease)
    assert [each.key for each in store.node.ask(Range(b"")).items] == [b"free", b"stays"]
    assert store.node.ask(Status()).revision == 5
    store.leases(RevokeLease(lease))  # again: nothing
    assert store.node.ask(Status()).revision == 5
    tables = state_of(store.node.machines)
    assert (len(tables["kv.bound"]), len(tables["kv.leases"])) == (1, 1)


def test_a_lease_that_runs_out_takes_its_keys() -> None:
    store = Store()
    lease = _granted(store, 5_000)
    store.do(Put(b"k", b"", lease=lease))
    ear = store.watch(EVERYTHING)
    store.leases(GrantLease(60_000), time_ms=4_999)
    assert not ear.events
    store.leases(GrantLease(60_000), time_ms=5_000)
    assert [each.type for each in ear.events] == ["delete"]
    (refused,) = store.do(Put(b"k", b"", lease=lease))
    assert refused.code == "lease-expired"


def test_a_lease_that_does_not_stand_binds_nothing() -> None:
    store = Store()
    store.do(Put(b"a", b"1"))
    refused = store.do(
        Put(b"k", b"", lease=7),
        Txn((), (Put(b"x", b""), Put(b"y", b"", lease=7))),
        CompareAndSet(b"a", b"2", b"1", lease=7),
        Put(b"a", b"2", lease=2**63 - 1),
    )
    assert [each.code for each in refused] == ["lease-expired"] * 4
    assert [each.key for each in store.node.ask(Range(b"")).items] == [b"a"]
    assert store.machine.history.revision_count == 1


def test_a_key_belongs_to_the_lease_of_its_last_put() -> None:
    store = Store()
    first, second = _granted(store), _granted(store)
    store.do(
        Put(b"freed", b"", lease=first),
        Put(b"freed", b""),
        Put(b"moved", b"", lease=first),
        Txn((), (Put(b"moved", b"", lease=second),)),
        Put(b"taken", b"1"),
        CompareAndSet(b"taken", b"2", b"1", lease=first),
        Put(b"number", b"1", lease=first),
        Increment(b"number"),
        Put(b"again", b"", lease=first),
        Put(b"again", b"", lease=first),
        Put(b"gone", b"", lease=first),
        Delete(b"gone"),
        Put(b"gone", b""),
    )
    store.leases(RevokeLease(first))
    left = store.node.ask(Range(b"")).items
    assert [(each.key, each.lease) for each in left] == [
        (b"freed", 0), (b"gone", 0), (b"moved", second),
    ]  # fmt: skip
    store.leases(RevokeLease(second))
    assert [each.key for each in store.node.ask(Range(b"")).items] == [b"freed", b"gone"]
    assert not state_of(store.node.machines)["kv.bound"]


def test_one_lease_takes_so_many_keys_and_bytes_and_no_more() -> None:
    store = Store()
    lease, wide = _granted(store), _granted(store)
    store.do(*(Put(b"%05d" % at, b"", lease=lease) for at in range(10_000)))
    (refused,) = store.do(Put(b"more", b"", lease=lease))
    assert refused.code == "limit-exceeded"
    assert not isinstance(store.do(Put(b"00000", b"2", lease=lease))[0], Failure)
    (_, taken) = store.do(Delete(b"00001"), Put(b"more", b"", lease=lease))
    assert not isinstance(taken, Failure)
    key = b"k" * (KEY_BYTES_MAX - 4)
    results = store.do(*(Put(b"%04d" % at + key, b"", lease=wide) for at in range(1025)))
    assert [getattr(each, "code", "") for each in results] == [""] * 1024 + ["limit-exceeded"]
    ear = store.watch(WatchKeys(b"", prefix=True, start_revision=store.machine.revision + 1))
    store.leases(RevokeLease(lease))
    store.leases(RevokeLease(wide))
    assert [len(batch.events) for batch in ear.batches] == [10_000, 1024]


def test_a_storm_of_leases_ends_over_several_entries_each_with_its_revision() -> None:
    store = Store()
    leases = [_granted(store, 5_000) for _ in range(30)]
    for lease in leases:
        store.do(*(Put(b"%d/%d" % (lease, at), b"", lease=lease) for at in range(1000)))
    ear = store.watch(EVERYTHING)
    entries = 0
    while store.node.machines.next_deadline_ms() is not None:
        store.leases(time_ms=5_000)
        entries += 1
    assert entries == 3
    assert [len(batch.events) for batch in ear.batches] == [1000] * 30
    assert store.node.ask(Status()).key_count == 0


# --- against a model -----------------------------------------------------------------------------

_keys = st.sampled_from([b"a", b"a/1", b"a/2", b"b", b"c"])
_values = st.sampled_from([b"", b"1", b"x"])
_leases = st.sampled_from([0, 0, 0, 1, 2, 3])
_writes = st.one_of(
    st.builds(Put, _keys, _values, lease=_leases),
    st.builds(Delete, _keys),
    st.builds(DeleteRange, _keys, prefix=st.just(value=True)),
    st.builds(Increment, _keys),
    st.builds(CompareAndSet, _keys, st.none() | _values, st.none() | _values, _leases),
    st.lists(
        st.builds(Put, _keys, _values, lease=_leases) | st.builds(Increment, _keys),
        max_size=3,
        unique_by=lambda each: each.key,
    ).map(lambda branch: Txn((), tuple(branch))),
)
_requests = st.builds(
    lambda named, **rest: WatchKeys(*named, **rest),
    st.sampled_from(
        [(b"", None, True), (b"a", None, True), (b"a", b"a\0"), (b"a/", b"b"), (b"b",), (b"",)]
    ),
    previous=st.booleans(),
    puts=st.booleans(),
    deletes=st.just(value=True),
)


class WatchedStore(RuleBasedStateMachine):
    """Commands, leases, refusals, checkpoints, restarts, and watches begun at any revision."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.states: list[dict[bytes, KeyValue]] = [{}]  # by revision
        self.watches: list[tuple[WatchKeys, int, Ear, Feed | None]] = []

    @initialize()
    def leases(self) -> None:
        for _ in range(3):
            _granted(self.store)

    def _look(self) -> dict[bytes, KeyValue]:
        return {each.key: each for each in self.store.node.ask(Range(b"")).items}

    @rule(command=_writes)
    def write(self, command: Any) -> None:
        self.store.do(command)
        self._remember()

    @rule(first=_writes, second=_writes)
    def write_two_in_one_entry(self, first: Any, second: Any) -> None:
        before = len(self.states)
        self.store.do(first, second)
        after = self.store.machine.revision
        if after == before + 1:  # two revisions: the state between them is not to be seen
            self.states.append(_NOT_SEEN)
        self._remember()

    @rule(lease=st.integers(1, 3))
    def revoke(self, lease: int) -> None:
        self.store.leases(RevokeLease(lease))
        self._remember()

    @rule()
    def restart(self) -> None:
        self.store.restart()
        for at, (request, start, ear, _) in enumerate(self.watches):
            # Every watch goes on from where it was, as a client's does.
            again = msgspec.structs.replace(request, start_revision=ear.revision + 1)
            self.watches[at] = (request, start, ear, self.store.open(again, ear))

    @rule(request=_requests, data=st.data())
    def watch(self, request: WatchKeys, data: Any) -> None:
        history = self.store.machine.history
        start = data.draw(st.integers(history.oldest, self.store.machine.revision + 3))
        ear = Ear()
        feed = self.store.open(msgspec.structs.replace(request, start_revision=start), ear)
        ear.told.insert(0, KeyEvents(start - 1))
        self.watches.append((request, start, ear, feed))

    def _remember(self) -> None:
        revision = self.store.machine.revision
        assert revision + 1 - len(self.states) in (0, 1)
        if revision == len(self.states):
            self.states.append(self._look())

    def _expected(self, request: WatchKeys, start: int) -> list[KeyEvents]:
        found = []
        for revision in range(start, len(self.states)):
            before, now = self.states[revision - 1], self.states[revision]
            if before is _NOT_SEEN or now is _NOT_SEEN:
                continue
            events = []
            for key in sorted({*before, *now}):
                if before.get(key) == now.get(key) or not _names(request, key):
                    continue
                previous = before.get(key) if request.previous else None
                item = now.get(key)
                if item is None and request.deletes:
                    events.append(KeyEvent("delete", key, b"", 0, revision, 0, previous=previous))
                elif item is not None and request.puts:
                    events.append(
                        KeyEvent(
                            "put",
                            key,
                            item.value,
                            item.create_revision,
                            revision,
                            item.version,
                            item.lease,
                            previous,
                        )
                    )
            if events:
                found.append(KeyEvents(revision, tuple(events)))
        return found

    @invariant()
    def every_watch_was_told_exactly_what_happened(self) -> None:
        hidden = {
            at
            for at, state in enumerate(self.states)
            if state is _NOT_SEEN or self.states[at - 1] is _NOT_SEEN
        }
        for request, start, ear, _ in self.watches:
            numbers = [each.revision for each in ear.batches]
            assert numbers == sorted(set(numbers))
            told = [
                KeyEvents(each.revision, tuple(sorted(each.events, key=lambda event: event.key)))
                for each in ear.batches
                if each.revision not in hidden
            ]
            assert told == self._expected(request, start)
            assert not ear.ended


#: In place of a state that no query can see: between two commands of one entry.
_NOT_SEEN: dict[bytes, KeyValue] = {b"": KeyValue(b"", b"not seen", 0, 0, 0)}


def _names(request: WatchKeys, key: bytes) -> bool:
    if request.prefix:
        return key.startswith(request.start)
    return request.start <= key and (request.end is None or key < request.end)


TestWatchedStore = WatchedStore.TestCase
TestWatchedStore.settings = settings(
    max_examples=sharing.examples(60), stateful_step_count=25, deadline=None
)


@given(st.lists(st.lists(_writes, max_size=4), max_size=8))
@settings(max_examples=sharing.examples(80), deadline=None)
def test_followers_and_leaders_come_to_the_same_history(entries: list[list[Any]]) -> None:
    nodes = [Node([KvMachine()]), Node([KvMachine()])]
    for node, leader in zip(nodes, (True, False), strict=True):
        node.entry(submit(run_of("leases", GrantLease(10_000), GrantLease(10_000))))
        for batch in entries:
            node.entry(submit(run_of("kv", *batch)), leader=leader)
    assert state_of(nodes[0].machines) == state_of(nodes[1].machines)
    assert nodes[0].machines.state_hash == nodes[1].machines.state_hash
