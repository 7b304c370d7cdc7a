"""Locks, read-write locks, semaphores, elections: one holder too many is what may never be."""

from __future__ import annotations

import pytest

from quorate.base.fencing import Fence
from quorate.base.lock_commands import (
    Acquire,
    Acquired,
    Granted,
    Holding,
    HoldingList,
    Holdings,
    Leads,
    ListLocks,
    LockInfo,
    LockQuery,
    NotAcquired,
    Proclaim,
    Proclaimed,
    Release,
    Released,
    Waiting,
    WatchGrants,
    WatchLeader,
    name_text,
)
from quorate.base.results import Failure
from quorate.errors import InvalidArgumentError
from quorate.locks import machine as machine_module
from quorate.locks.machine import LockMachine
from tests.locks.support import LockNode
from tests.replication.support import run_of, submit

A, B = b"a", b"b"


def _code(result: object) -> str:
    assert isinstance(result, Failure), result
    return result.code


def _granted(node: LockNode) -> list[tuple[int, int]]:
    """Owner and token of what the latest entry granted to those in line."""
    return [(event.owner, event.token) for _, event in node.told if isinstance(event, Granted)]


def test_refusals_name_the_lock_as_people_write_it() -> None:
    """The same under every version of Python: these texts are results."""
    assert name_text(b"nightly") == "'nightly'"
    assert name_text("nächtlich/1".encode()) == "'nächtlich/1'"
    assert name_text(b"it's\\\n\x7f") == "'it\\'s\\\\\\x0a\\x7f'"
    assert name_text(b"\xff") == "b'\\xff'"
    node = LockNode()
    lease = node.lease()
    node.acquire(b"nightly", lease)
    refused = node.acquire(b"nightly", lease)
    assert isinstance(refused, Failure)
    assert refused.message == "'nightly' is held by this very owner, under token 1"


def test_a_free_lock_is_granted_and_a_taken_one_waited_for_in_line() -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()
    assert node.acquire(A, one) == Acquired(1)
    assert node.acquire(A, two, 1) == Waiting(2, 0)
    assert node.acquire(A, one, 2) == Waiting(3, 1)
    assert node.told == []
    assert node.release(A, one) == Released(1)
    assert node.told == [(b"l" + two.to_bytes(8, "big"), Granted(A, 1, 4))]
    assert node.release(A, two) == Released(4)
    assert _granted(node) == [(2, 5)]
    assert node.release(A, one, 2) == Released(5)
    assert node.left_over() == {}


def test_who_does_not_want_to_wait_hears_who_holds() -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()
    node.acquire(A, one)
    refused = node.acquire(A, two, wait=False)
    assert isinstance(refused, NotAcquired)
    assert [(each.token, each.lease, each.owner) for each in refused.holders] == [(1, one, 1)]
    node.acquire(A, two)
    node.release(A, one)
    assert _granted(node) == [(1, 3)]


def test_tokens_grow_over_restarts_names_and_a_name_used_again() -> None:
    node = LockNode()
    lease = node.lease()
    tokens = []
    for name in (A, B, A, B):
        tokens.append(node.acquire(name, lease).token)
        node.release(name, lease)
        node.restart()
    assert tokens == sorted(set(tokens))


def test_the_same_owner_is_refused_a_second_time() -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()
    node.acquire(A, one)
    node.acquire(A, two)
    for lease in (one, two):
        assert _code(node.acquire(A, lease)) == "already-held"
    assert "token 1" in node.acquire(A, one).message
    assert "in line" in node.acquire(A, two).message


def test_releasing_what_is_not_held_is_refused_and_leaving_the_line_is_a_release() -> None:
    node = LockNode()
    one, two, three = node.lease(), node.lease(), node.lease()
    assert _code(node.release(A, one)) == "not-held"
    node.acquire(A, one)
    node.acquire(A, two)
    node.acquire(A, three)
    assert _code(node.release(A, one, 2)) == "not-held"
    assert node.release(A, two) == Released(0)
    node.release(A, one)
    assert node.told[0][0] == b"l" + three.to_bytes(8, "big")


def test_an_acquiring_that_comes_after_its_withdrawal_is_refused() -> None:
    """A command may overtake another over two connections; else the late one holds for ever."""
    node = LockNode()
    one, two = node.lease(), node.lease()
    assert node.release(A, one, withdraw=True) == Released(0)
    assert node.release(A, one, withdraw=True) == Released(0)
    assert _code(node.acquire(A, one)) == "already-held"
    assert isinstance(node.acquire(A, two), Acquired)
    node.release(A, two)
    node.revoke(one)
    assert node.left_over() == {}
    assert node.release(A, one, withdraw=True) == Released(0)
    assert node.left_over() == {}


def test_what_a_lease_held_and_waited_for_goes_with_it() -> None:
    node = LockNode()
    one, two = node.lease(1000, 0), node.lease()
    node.acquire(A, one)
    node.acquire(B, two)
    node.acquire(B, one, 7)
    node.acquire(A, two, 2)
    node.acquire(A, one, 3)
    node.entry(time_ms=1000)
    info = node.ask_of("locks", LockQuery(A))
    assert [(each.lease, each.owner) for each in info.holders] == [(two, 2)]
    assert info.waiter_count == 0
    assert node.release(B, two) == Released(2)
    assert node.told == []
    node.revoke(two)
    assert node.left_over() == {}


def test_a_lease_that_is_due_gets_nothing_though_it_has_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trap 13: a lock is handed to one whose session died in line."""
    monkeypatch.setattr("quorate.replication.leases.EXPIRED_WORK_MAX", 1)
    node = LockNode()
    node.lease(1000, 0)  # ends first, and is all that one entry has time for
    dead, alive, holder = node.lease(1000), node.lease(), node.lease()
    node.acquire(A, holder)
    node.acquire(A, dead)
    node.acquire(A, alive, 5)
    node.time_ms = 1000
    node.release(A, holder)
    assert _granted(node) == [(5, 4)]
    assert _code(node.acquire(B, dead)) == "lease-expired"
    node.entry()
    node.revoke(alive)
    node.revoke(holder)
    assert node.left_over() == {}


def test_a_lease_that_never_was_gets_nothing() -> None:
    assert _code(LockNode().acquire(A, 99)) == "lease-expired"


def test_readers_share_and_a_writer_that_waits_is_not_overtaken() -> None:
    node = LockNode()
    lease = node.lease()

    def take(owner: int, permits: int) -> object:
        return node.acquire(A, lease, owner, kind="rwlock", total=100, permits=permits)

    assert isinstance(take(1, 1), Acquired)
    assert isinstance(take(2, 1), Acquired)
    assert isinstance(take(3, 100), Waiting)
    assert isinstance(take(4, 1), Waiting)
    assert isinstance(take(5, 1), Waiting)
    tried = node.acquire(A, lease, 6, kind="rwlock", total=100, permits=1, wait=False)
    assert isinstance(tried, NotAcquired)
    node.release(A, lease, 1)
    assert _granted(node) == []
    node.release(A, lease, 2)
    assert [owner for owner, _ in _granted(node)] == [3]
    node.release(A, lease, 3)
    assert [owner for owner, _ in _granted(node)] == [4, 5]


def test_when_the_head_of_the_line_leaves_those_behind_it_are_served() -> None:
    node = LockNode()
    lease, writer = node.lease(), node.lease()
    node.acquire(A, lease, 1, kind="rwlock", total=100)
    node.acquire(A, writer, 1, kind="rwlock", total=100, permits=100)
    node.acquire(A, lease, 2, kind="rwlock", total=100)
    node.release(A, writer)
    assert [owner for owner, _ in _granted(node)] == [2]
    node.acquire(A, writer, 2, kind="rwlock", total=100, permits=100)
    node.acquire(A, lease, 3, kind="rwlock", total=100)
    node.revoke(writer)
    assert [owner for owner, _ in _granted(node)] == [3]


def test_a_semaphore_gives_out_its_permits_and_no_more() -> None:
    node = LockNode()
    lease = node.lease()
    answers = [
        node.acquire(A, lease, owner, kind="semaphore", total=3, permits=permits)
        for owner, permits in ((1, 2), (2, 1), (3, 2), (4, 1))
    ]
    assert [type(each) for each in answers] == [Acquired, Acquired, Waiting, Waiting]
    node.release(A, lease, 2)
    assert _granted(node) == []  # the head wants two
    node.release(A, lease, 1)
    assert [owner for owner, _ in _granted(node)] == [3, 4]


def test_a_name_is_one_thing_of_one_size_while_it_is_in_use() -> None:
    node = LockNode()
    lease = node.lease()
    node.acquire(A, lease, kind="semaphore", total=3)
    refused = node.acquire(A, lease, 2, kind="semaphore", total=4)
    assert _code(refused) == "lock-mismatch"
    assert "semaphore of 3" in refused.message
    assert _code(node.acquire(A, lease, 2)) == "lock-mismatch"
    node.release(A, lease)
    assert isinstance(node.acquire(A, lease, 2), Acquired)
    with pytest.raises(InvalidArgumentError):
        Acquire(A, "semaphore", 3, 4, lease, 1)


def test_fences_hold_as_long_as_the_grant() -> None:
    node = LockNode()
    machine = node.machines.machine("locks")
    assert isinstance(machine, LockMachine)
    one, two = node.lease(), node.lease()
    first = node.acquire(A, one).token
    node.acquire(A, two)
    assert machine.holds(Fence("locks", A, first)) is True
    assert machine.holds(Fence("locks", B, first)) is False
    assert machine.holds(Fence("locks", A, 2)) is False  # its place in line
    assert machine.holds(Fence("others", A, first)) is None
    assert machine.holds(Fence("locks", A, 2**70)) is False
    node.revoke(one)
    assert machine.holds(Fence("locks", A, first)) is False
    assert machine.holds(Fence("locks", A, _granted(node)[0][1])) is True


def test_those_who_watch_an_election_hear_of_each_leader() -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()

    def told() -> list[object]:
        return [event for key, event in node.told if key == b"n" + A]

    def campaign(lease: int, value: bytes) -> object:
        return node.acquire(A, lease, kind="election", value=value)

    campaign(one, b"one")
    assert told() == [Leads(A, 1, one, b"one")]
    campaign(two, b"two")
    assert told() == []
    assert node.one("locks", Proclaim(A, one, 1, b"uno")) == Proclaimed(1)
    assert told() == [Leads(A, 1, one, b"uno")]
    assert _code(node.one("locks", Proclaim(A, two, 1, b"no"))) == "not-held"
    node.revoke(one)
    assert told() == [Leads(A, 3, two, b"two")]
    node.release(A, two)
    assert told() == [Leads(A, 0, 0, b"")]
    machine = node.machines.machine("locks")
    assert machine.watch(WatchLeader(A)).backlog == (Leads(A, 0, 0, b""),)
    assert machine.watch(WatchGrants(7)).keys == (b"l" + (7).to_bytes(8, "big"),)
    node.acquire(B, two)
    assert _code(node.one("locks", Proclaim(B, two, 1, b"no"))) == "lock-mismatch"


def test_operators_see_who_holds_and_who_waits() -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()
    node.acquire(B, one)
    node.acquire(A, one)
    node.acquire(A, two, 3)
    info = node.ask_of("locks", LockQuery(A))
    assert (info.kind, info.total, info.free) == ("lock", 1, 0)
    assert (info.holders[0].token, info.waiters[0].owner) == (2, 3)
    assert node.ask_of("locks", LockQuery(b"c")) == LockInfo(b"c", "", 0, 0, 0, 0, (), ())
    listed = node.ask_of("locks", ListLocks())
    assert (listed.count, [each.name for each in listed.locks]) == (2, [A, B])
    assert [each.name for each in node.ask_of("locks", ListLocks(A, 1)).locks] == [B]


def test_a_client_that_was_away_asks_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    node = LockNode()
    one, two = node.lease(), node.lease()
    node.acquire(A, one, 1)
    node.acquire(A, two, 2)
    node.acquire(A, one, 3)
    node.acquire(B, one, 4)
    wanted = (Holding(A, 1, 1), Holding(A, 3, 0), Holding(B, 4, 4))
    assert node.ask_of("locks", Holdings(one)) == HoldingList(wanted, more=False)
    monkeypatch.setattr(machine_module, "LOCK_LIST_MAX", 2)
    assert node.ask_of("locks", Holdings(one)) == HoldingList(wanted[:2], more=True)
    assert node.ask_of("locks", Holdings(one, A, 3)) == HoldingList(wanted[2:], more=False)


@pytest.mark.parametrize("limit", ["LOCK_WAITERS_MAX", "LEASE_LOCKS_MAX", "LOCKS_MAX"])
def test_everything_has_a_most(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = LockNode()
    lease = node.lease()
    monkeypatch.setattr(machine_module, limit, 2)
    answers = [node.acquire(A, lease, owner) for owner in (1, 2, 3, 4)]
    assert _code(answers[-1]) == "overloaded"
    node.release(A, lease, 1)
    assert isinstance(node.acquire(A, lease, 5), Waiting)


def test_a_refused_withdrawal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    node = LockNode()
    lease = node.lease()
    monkeypatch.setattr(machine_module, "LEASE_LOCKS_MAX", 1)
    node.acquire(A, lease)
    assert _code(node.release(B, lease, 2, withdraw=True)) == "overloaded"


def test_a_thousand_waiters_cost_one_event_for_each_release() -> None:
    node = LockNode()
    lease = node.lease()
    node.run("locks", *[Acquire(A, "lock", 1, 1, lease, owner) for owner in range(1, 1002)])
    for owner in range(1, 1001):
        node.release(A, lease, owner)
        assert _granted(node) == [(owner + 1, 1001 + owner)]
    assert node.told[0][0] == b"l" + lease.to_bytes(8, "big")


def test_a_refusal_leaves_nothing_behind() -> None:
    node = LockNode()
    lease = node.lease()
    node.acquire(A, lease)
    before = node.left_over()
    node.acquire(A, lease)
    node.acquire(A, lease, 2, kind="election")
    node.acquire(A, 99)
    node.release(B, lease)
    assert node.left_over() == before


def test_while_the_disk_is_full_grants_can_be_given_back() -> None:
    node = LockNode()
    lease = node.lease()

    def frees(command: object) -> bool:
        return node.machines.frees_space(node.machines.prepare(submit(run_of("locks", command))))

    assert frees(Release(A, lease, 1))
    assert not frees(Acquire(A, "lock", 1, 1, lease, 1))


def test_a_release_that_broke_half_way_is_as_if_it_never_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in what is derived: the lease still knows what it has to let go of."""
    node = LockNode()
    lease = node.lease()
    machine = node.machines.machine("locks")
    node.acquire(A, lease)

    def broken(*_arguments: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(machine, "_pass_on", broken)
    assert _code(node.release(A, lease)) == "machine-error"
    monkeypatch.undo()
    node.revoke(lease)
    assert node.left_over() == {}
