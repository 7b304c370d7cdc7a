"""Barriers: nobody passes alone, and nobody waits for the dead."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.base.barrier_commands import (
    Arrive,
    BarrierInfo,
    BarrierQuery,
    Expecting,
    Leave,
    LetThrough,
    PartiesOf,
    Party,
    PartyList,
    Passed,
    WatchParties,
)
from quorate.base.results import Failure
from quorate.locks import barriers as barriers_module
from tests.locks.support import LockNode
from tests.replication.support import run_of, submit

A = b"a"


class Barrier:
    """Barrier "a" of a node, for *parties*."""

    def __init__(self, parties: int, *, double: bool = False) -> None:
        self.node = LockNode()
        self.parties = parties
        self.double = double

    def arrive(self, lease: int, owner: int = 1) -> Any:
        return self.node.one("barriers", Arrive(A, self.parties, self.double, lease, owner))

    def leave(self, lease: int, owner: int = 1, *, withdraw: bool = False) -> Any:
        return self.node.one("barriers", Leave(A, lease, owner, withdraw))

    def told(self) -> list[tuple[int, int, bool]]:
        """Lease, owner and whether it is out, of the latest entry's events."""
        return [
            (int.from_bytes((key or b"")[1:], "big"), event.owner, event.out)
            for key, event in self.node.told
            if isinstance(event, LetThrough)
        ]

    @property
    def info(self) -> BarrierInfo:
        found: BarrierInfo = self.node.ask_of("barriers", BarrierQuery(A))
        return found


def test_all_pass_together_and_the_next_round_begins() -> None:
    barrier = Barrier(3)
    lease, other = barrier.node.lease(), barrier.node.lease()
    for _ in range(2):
        assert barrier.arrive(lease, 1) == Expecting(2)
        assert barrier.arrive(other, 2) == Expecting(1)
        assert barrier.told() == []
        assert barrier.arrive(lease, 3) == Passed()
        assert barrier.told() == [(lease, 1, False), (other, 2, False)]
        assert barrier.node.left_over() == {}
        barrier.node.restart()


def test_the_dead_and_those_who_went_do_not_count() -> None:
    barrier = Barrier(3)
    stays, dies = barrier.node.lease(), barrier.node.lease()
    barrier.arrive(dies)
    barrier.arrive(stays, 1)
    assert barrier.leave(stays, 1) == Passed()
    barrier.node.revoke(dies)
    assert barrier.node.left_over() == {}
    assert barrier.arrive(stays, 2) == Expecting(2)


def test_a_party_whose_lease_is_due_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.replication.leases.EXPIRED_WORK_MAX", 1)
    barrier = Barrier(2)
    barrier.node.lease(1000, 0)
    dies, lives = barrier.node.lease(1000), barrier.node.lease()
    barrier.arrive(dies)
    barrier.node.time_ms = 1000
    assert barrier.arrive(lives) == Expecting(1)
    assert barrier.arrive(lives, 2) == Passed()
    barrier.node.entry()
    assert barrier.node.left_over() == {}


def test_those_inside_a_double_barrier_leave_together() -> None:
    barrier = Barrier(2, double=True)
    one, two = barrier.node.lease(), barrier.node.lease()
    barrier.arrive(one)
    assert barrier.arrive(two) == Passed()
    assert barrier.info == BarrierInfo(A, 2, True, 0, 2, 0)
    assert barrier.leave(one) == Expecting(1)
    assert barrier.told() == []
    barrier.node.restart()
    assert barrier.leave(two) == Passed()
    assert barrier.told() == [(one, 1, True)]
    assert barrier.node.left_over() == {}


def test_who_comes_early_waits_for_the_next_round() -> None:
    barrier = Barrier(2, double=True)
    lease = barrier.node.lease()
    for owner in (1, 2, 3, 4, 5):
        barrier.arrive(lease, owner)
    assert barrier.info == BarrierInfo(A, 2, True, 3, 2, 0)
    barrier.leave(lease, 1)
    barrier.leave(lease, 2)
    assert barrier.told() == [(lease, 1, True), (lease, 3, False), (lease, 4, False)]
    assert barrier.info == BarrierInfo(A, 2, True, 1, 2, 0)


def test_who_dies_inside_has_left() -> None:
    barrier = Barrier(2, double=True)
    one, two = barrier.node.lease(), barrier.node.lease()
    barrier.arrive(one)
    barrier.arrive(two)
    barrier.leave(one)
    barrier.node.revoke(two)
    assert barrier.told() == [(one, 1, True)]
    assert barrier.node.left_over() == {}


def test_who_withdraws_waits_for_nobody() -> None:
    barrier = Barrier(2, double=True)
    lease = barrier.node.lease()
    barrier.arrive(lease, 1)
    barrier.arrive(lease, 2)
    barrier.leave(lease, 1)
    assert barrier.leave(lease, 1, withdraw=True) == Passed()
    assert barrier.leave(lease, 2, withdraw=True) == Passed()
    assert barrier.node.left_over() == {}
    assert barrier.leave(lease, 3, withdraw=True) == Passed()
    late = barrier.arrive(lease, 3)
    assert isinstance(late, Failure)
    assert late.code == "already-held"


def test_what_does_not_fit_is_refused() -> None:
    barrier = Barrier(2)
    lease = barrier.node.lease()

    def code(result: Any) -> str:
        assert isinstance(result, Failure), result
        return result.code

    assert code(barrier.arrive(99)) == "lease-expired"
    assert code(barrier.leave(lease)) == "not-held"
    barrier.arrive(lease)
    assert code(barrier.arrive(lease)) == "already-held"
    barrier.parties = 3
    assert code(barrier.arrive(lease, 2)) == "lock-mismatch"


@pytest.mark.parametrize("limit", ["LEASE_LOCKS_MAX", "BARRIERS_MAX"])
def test_everything_has_a_most(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = Barrier(9)
    lease = barrier.node.lease()
    monkeypatch.setattr(barriers_module, limit, 2)
    barrier.arrive(lease, 1)
    barrier.arrive(lease, 2)
    assert barrier.arrive(lease, 3).code == "overloaded"
    monkeypatch.setattr(barriers_module, "LEASE_LOCKS_MAX", 2)
    assert barrier.leave(lease, 3, withdraw=True).code == "overloaded"


def test_a_client_that_was_away_asks_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = Barrier(2, double=True)
    lease = barrier.node.lease()
    for owner in (1, 2, 3):
        barrier.arrive(lease, owner)
    barrier.leave(lease, 1)
    places = (Party(A, 1, "leaving"), Party(A, 2, "inside"), Party(A, 3, "waiting"))
    assert barrier.node.ask_of("barriers", PartiesOf(lease)) == PartyList(places, more=False)
    monkeypatch.setattr(barriers_module, "PARTY_LIST_MAX", 2)
    assert barrier.node.ask_of("barriers", PartiesOf(lease)) == PartyList(places[:2], more=True)
    found = barrier.node.ask_of("barriers", PartiesOf(lease, A, 2))
    assert found == PartyList(places[2:], more=False)
    machine = barrier.node.machines.machine("barriers")
    assert machine.watch(WatchParties(7)).keys == (b"l" + (7).to_bytes(8, "big"),)
    assert barrier.node.machines.frees_space(
        barrier.node.machines.prepare(submit(run_of("barriers", Leave(A, lease, 1))))
    )
