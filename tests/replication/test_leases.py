"""Leases: they end by cluster time, once, in order, and whatever is bound to them hears of it."""
# commands and results are of many types

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quorate.base.lease_commands import (
    GrantLease,
    LeaseEnded,
    LeaseGranted,
    LeaseInfo,
    LeaseList,
    LeaseQuery,
    LeaseResult,
    LeaseRevoked,
    LeasesRenewed,
    ListLeases,
    RenewLeases,
    RevokeLease,
)
from quorate.base.results import Failure
from quorate.base.session_commands import OpenSession
from quorate.replication import leases as leases_module
from quorate.replication.machine import Context, Machine
from quorate.replication.sessions import TERM_GRACE_MS
from quorate.replication.tables import Tables
from quorate.storage.memory_store import MemoryImage
from tests import sharing
from tests.replication.support import Node, Note, restored, run_of, store_checkpoint, submit

_results = msgspec.msgpack.Decoder(list[list[LeaseResult]])


class Heir(Machine):
    """Writes down which leases ended, in order, and when; says that each had *weight* things."""

    name = "heir"
    command_type: ClassVar[Any] = LeaseQuery

    def __init__(self, weight: int = 0) -> None:
        self.weight = weight

    def attach(self, tables: Tables) -> None:
        self.ended = tables.table("heir.ended", Note)

    def apply(self, command: LeaseQuery, context: Context) -> Any:
        return LeaseRevoked(command.lease, context.lease_alive(command.lease))

    def on_lease_end(self, lease: int, context: Context) -> int:
        self.ended.put(b"%06d" % len(self.ended), Note(f"{context.time_ms}", lease))
        return self.weight

    def all(self) -> list[tuple[int, int]]:
        return [(int(note.text), note.count) for _, note in self.ended.items()]


def _node(weight: int = 0) -> tuple[Node, Heir]:
    heir = Heir(weight)
    return Node([heir]), heir


def _do(node: Node, command: Any, time_ms: int | None = None) -> Any:
    (outcome,) = node.entry(submit(run_of("leases", command)), time_ms=time_ms).outcomes
    assert not outcome.code, outcome
    ((result,),) = _results.decode(outcome.results)
    return result


def _ask(node: Node, query: Any) -> Any:
    raw = node.machines.query("leases", msgspec.msgpack.encode([query]))
    return msgspec.msgpack.decode(raw, type=list[LeaseResult])[0]


def _alive(node: Node, lease: int, time_ms: int | None = None) -> bool:
    (outcome,) = node.entry(submit(run_of("heir", LeaseQuery(lease))), time_ms=time_ms).outcomes
    ((result,),) = _results.decode(outcome.results)
    return bool(result.existed)


def test_a_lease_stands_for_its_time_and_as_long_again_from_each_renewal() -> None:
    node, heir = _node()
    assert _do(node, GrantLease(1000, "a"), 100) == LeaseGranted(1, 1100)
    assert _ask(node, LeaseQuery(1)) == LeaseInfo(1, 1000, 1000, "a")
    assert _do(node, RenewLeases((1,)), 1099) == LeasesRenewed(())
    assert node.machines.next_deadline_ms() == 2099
    assert _alive(node, 1, 2098)
    assert not _alive(node, 1, 2099)
    assert heir.all() == [(2099, 1)]
    assert _do(node, RenewLeases((1,))) == LeasesRenewed((1,))
    gone = _ask(node, LeaseQuery(1))
    assert isinstance(gone, Failure)
    assert gone.code == "lease-expired"


def test_ten_thousand_leases_are_renewed_by_one_command() -> None:
    node, heir = _node()
    for _ in range(10):
        node.entry(submit(run_of("leases", *[GrantLease(1000)] * 1000)))
    ids = tuple(range(1, 10_001))
    assert _do(node, RenewLeases((*ids[:-1], 77_777)), 900) == LeasesRenewed((77_777,))
    node.entry(time_ms=1000)
    assert heir.all() == [(1000, 10_000)]


def test_a_revoked_lease_ends_at_once_and_its_id_is_not_given_out_again() -> None:
    node, heir = _node()
    _do(node, GrantLease(1000))
    assert _do(node, RevokeLease(1), 7) == LeaseRevoked(1, existed=True)
    assert _do(node, RevokeLease(1)) == LeaseRevoked(1, existed=False)
    assert heir.all() == [(7, 1)]
    assert _do(node, GrantLease(1000)).lease == 2


def test_those_who_watch_hear_of_the_end() -> None:
    node, _ = _node()
    _do(node, GrantLease(1000))
    _do(node, GrantLease(1000))
    applied = node.entry(submit(run_of("leases", RevokeLease(2))), time_ms=1000)
    events = [event for _, _, event in applied.effects]
    assert events == [LeaseEnded(1, revoked=False), LeaseEnded(2, revoked=False)]


def test_a_storm_of_expiries_is_cut_but_no_due_lease_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases_module, "EXPIRED_WORK_MAX", 6)
    node, heir = _node(weight=2)
    for _ in range(5):
        _do(node, GrantLease(1000))
    assert not _alive(node, 5, 1000)
    assert [lease for _, lease in heir.all()] == [1, 2]
    assert node.machines.next_deadline_ms() == 1000
    assert _do(node, RenewLeases((3, 5))) == LeasesRenewed((3, 5))
    node.entry()
    assert [lease for _, lease in heir.all()] == [1, 2, 3, 4, 5]


def test_there_is_a_most_of_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASES_MAX", 2)
    node, _ = _node()
    _do(node, GrantLease(1000))
    _do(node, GrantLease(1000))
    assert _do(node, GrantLease(1000)).code == "overloaded"
    _do(node, RevokeLease(1))
    assert _do(node, GrantLease(1000)).lease == 3


def test_listing_goes_on_behind_the_last() -> None:
    node, _ = _node()
    for _ in range(5):
        _do(node, GrantLease(1000))
    found = _ask(node, ListLeases(2, 2))
    assert isinstance(found, LeaseList)
    assert (found.count, [each.lease for each in found.leases]) == (5, [3, 4])
    assert _ask(node, ListLeases(2**63, 2)).leases == ()


@pytest.mark.grace
def test_in_the_first_second_of_a_term_nothing_expires() -> None:
    node, heir = _node()
    _do(node, GrantLease(1500), 0)
    session_end_ms = 1600
    node.entry(submit(run_of("sessions", OpenSession(session_end_ms))))

    def entry(term: int, time_ms: int, *commands: Any) -> Any:
        payload = node.payload([submit(run_of("leases", *commands))], time_ms)
        return node.machines.apply(node.machines.index + 1, term, payload)

    entry(2, 1400)  # a new leader, just in time
    assert node.machines.next_deadline_ms() == 1400 + TERM_GRACE_MS
    entry(2, 2399)
    assert heir.all() == []
    assert node.machines.sessions.live_count == 1
    renewed = entry(2, 2399, RenewLeases((1,)))  # late, and yet in time
    assert _results.decode(renewed.outcomes[0].results) == [[LeasesRenewed(())]]
    entry(2, 2400)
    assert node.machines.sessions.live_count == 0
    assert heir.all() == []
    entry(2, 2399 + 1500)
    assert heir.all() == [(3899, 1)]


@pytest.mark.grace
def test_what_was_due_before_a_new_leader_was_heard_of_has_the_grace_too() -> None:
    """Its first entry may come late: whoever waited for it had no leader to reach."""
    node, heir = _node()
    _do(node, GrantLease(1500), 0)
    _do(node, GrantLease(1000), 0)

    def entry(term: int, time_ms: int, *commands: Any) -> Any:
        payload = node.payload([submit(run_of("leases", *commands))], time_ms)
        return node.machines.apply(node.machines.index + 1, term, payload)

    entry(1, 1200)
    assert heir.all() == [(1200, 2)]
    entry(2, 1800)
    entry(3, 2100)
    assert heir.all() == [(1200, 2)]
    renewed = entry(3, 3099, RenewLeases((1,)))
    assert _results.decode(renewed.outcomes[0].results) == [[LeasesRenewed(())]]
    entry(3, 3099 + 1500)
    assert heir.all() == [(1200, 2), (4599, 1)]


@pytest.mark.grace
def test_a_restart_knows_when_the_term_began() -> None:
    node, _ = _node()
    _do(node, GrantLease(1000), 5000)
    image = MemoryImage()
    store_checkpoint(image, node.machines.take_checkpoint(b""))
    again = restored(image, [Heir()])
    assert again.next_deadline_ms() == node.machines.next_deadline_ms() == 6000
    payload = node.payload([], 5900)
    for machines in (node.machines, again):
        machines.apply(2, 1, payload)
    assert again.state_hash == node.machines.state_hash


class LeasesAgainstAModel(RuleBasedStateMachine):
    """Grants, renewals, revocations, time, and restarts; against a dict of deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.heir = _node()
        self.live: dict[int, tuple[int, int]] = {}
        self.ended: list[int] = []
        self.time_ms = 0
        self.given = 0
        self.image = MemoryImage()

    def _pass(self, time_ms: int) -> None:
        self.time_ms += time_ms
        due = sorted((end, each) for each, (_, end) in self.live.items() if end <= self.time_ms)
        for _, lease in due:
            del self.live[lease]
            self.ended.append(lease)

    @rule(ttl_ms=st.integers(1000, 3000), wait_ms=st.integers(0, 900))
    def grant(self, ttl_ms: int, wait_ms: int) -> None:
        self._pass(wait_ms)
        self.given += 1
        end = self.time_ms + ttl_ms
        assert _do(self.node, GrantLease(ttl_ms), self.time_ms) == LeaseGranted(self.given, end)
        self.live[self.given] = (ttl_ms, end)

    @rule(leases=st.lists(st.integers(1, 6), min_size=1), wait_ms=st.integers(0, 900))
    def renew(self, leases: list[int], wait_ms: int) -> None:
        self._pass(wait_ms)
        gone = tuple(each for each in leases if each not in self.live)
        assert _do(self.node, RenewLeases(tuple(leases)), self.time_ms) == LeasesRenewed(gone)
        for lease in leases:
            if lease in self.live:
                ttl_ms, _ = self.live[lease]
                self.live[lease] = (ttl_ms, self.time_ms + ttl_ms)

    @rule(lease=st.integers(1, 6), wait_ms=st.integers(0, 900))
    def revoke(self, lease: int, wait_ms: int) -> None:
        self._pass(wait_ms)
        existed = lease in self.live
        assert _do(self.node, RevokeLease(lease), self.time_ms) == LeaseRevoked(lease, existed)
        if existed:
            del self.live[lease]
            self.ended.append(lease)

    @rule()
    def restart(self) -> None:
        store_checkpoint(self.image, self.node.machines.take_checkpoint(b""))
        self.heir = Heir()
        self.node.machines = restored(self.image, [self.heir])

    @invariant()
    def the_same_live(self) -> None:
        found = _ask(self.node, ListLeases(0, 100))
        assert [each.lease for each in found.leases] == sorted(self.live)
        assert [lease for _, lease in self.heir.all()] == self.ended
        first = min((end for _, end in self.live.values()), default=None)
        assert self.node.machines.next_deadline_ms() == first


TestLeasesAgainstAModel = LeasesAgainstAModel.TestCase
TestLeasesAgainstAModel.settings = settings(
    max_examples=sharing.examples(30), stateful_step_count=20, deadline=None
)
