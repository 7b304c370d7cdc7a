"""Fenced writes: what a stale grant would change is refused, whole."""

# results are of many types

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest

from quorate.base.fencing import Fence
from quorate.base.kv_commands import (
    CompareAndSet,
    Delete,
    DeleteRange,
    Fenced,
    Get,
    Increment,
    Put,
    Status,
    Txn,
)
from quorate.base.lease_commands import GrantLease
from quorate.base.limits import FENCES_MAX
from quorate.base.results import Failure
from quorate.errors import BadCommandError, LimitExceededError
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Tables
from tests.replication.support import Node, Note, run_of, submit

GRANT = Fence("grants", b"door", 3)
STALE = Fence("grants", b"door", 2)


class Regrant(msgspec.Struct, frozen=True, array_like=True, tag=1):
    token: int


class Grants(Machine):
    """Whoever has the last token holds the door."""

    name = "grants"
    command_type: ClassVar[Any] = Regrant

    def attach(self, tables: Tables) -> None:
        self.table = tables.table("grants.last", Note)

    def apply(self, command: Regrant, context: Context) -> Any:
        self.table.put(b"door", Note("", command.token))
        return command

    def holds(self, fence: Fence) -> bool | None:
        if fence.machine != self.name:
            return None
        last = self.table.get(fence.name)
        return last is not None and last.count == fence.token


def _node() -> Node:
    node = Node([KvMachine(), Grants()])
    node.do(Regrant(3), machine="grants")
    return node


WRITES = (
    Put(b"a", b"2"),
    Put(b"a", b"2", previous=True),
    Delete(b"a"),
    DeleteRange(b"a"),
    CompareAndSet(b"a", b"2", b"1"),
    Increment(b"a"),
    Txn((), (Put(b"a", b"2"), Put(b"b", b""))),
)


@pytest.mark.parametrize("write", WRITES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("leader", [True, False])
def test_a_stale_grant_changes_nothing_and_the_present_one_does_as_without(
    write: Any, leader: bool
) -> None:
    fenced, plain = _node(), _node()
    for node in (fenced, plain):
        node.do(Put(b"a", b"1"))
    before = fenced.ask(Status()), fenced.ask(Get(b"a"))
    for fences in ((STALE,), (GRANT, STALE), (GRANT, Fence("grants", b"window", 3))):
        (refused,) = fenced.do(Fenced(fences, write))
        assert isinstance(refused, Failure)
        assert refused.code == "fenced"
        assert (fenced.ask(Status()), fenced.ask(Get(b"a"))) == before
    (applied,) = (
        fenced.entry(submit(run_of("kv", Fenced((GRANT,), write))), leader=leader).outcomes,
    )
    (expected,) = plain.entry(submit(run_of("kv", write)), leader=leader).outcomes
    assert applied[0].results == expected.results
    assert fenced.ask(Get(b"a")) == plain.ask(Get(b"a"))


def test_a_grant_ends_between_two_writes_of_one_entry() -> None:
    node = _node()
    put = Fenced((GRANT,), Put(b"a", b"1"))
    node.entry(
        submit(run_of("kv", put), run_of("grants", Regrant(4)), run_of("kv", put)),
    )
    assert node.ask(Status()).revision == 1


def test_a_machine_that_is_not_there_grants_nothing() -> None:
    node = _node()
    (refused,) = node.do(Fenced((Fence("nobody", b"door", 3),), Put(b"a", b"")))
    assert refused.code == "fenced"


def test_a_fenced_put_may_belong_to_a_lease() -> None:
    node = _node()
    node.entry(submit(run_of("leases", GrantLease(5_000))))
    (refused, _) = node.do(
        Fenced((GRANT,), Put(b"a", b"", lease=9)), Fenced((GRANT,), Put(b"b", b"", lease=1))
    )
    assert refused.code == "lease-expired"
    assert node.ask(Get(b"b")).item.lease == 1


def test_so_many_fences_and_no_more() -> None:
    node = _node()
    for fences in ((), (GRANT,) * (FENCES_MAX + 1)):
        with pytest.raises((BadCommandError, LimitExceededError)):
            node.machines.prepare(submit(run_of("kv", Fenced(fences, Put(b"a", b"")))))
    node.machines.prepare(submit(run_of("kv", Fenced((GRANT,) * FENCES_MAX, Put(b"a", b"")))))
    inner: Any = Fenced((GRANT,), Put(b"a", b""))
    nested = run_of("kv", Fenced((GRANT,), inner))
    with pytest.raises(BadCommandError):
        node.machines.prepare(submit(nested))


def test_a_fence_does_not_keep_deletes_from_a_full_disk() -> None:
    node = _node()
    for write, frees in ((Delete(b"a"), True), (Put(b"a", b""), False)):
        prepared = node.machines.prepare(submit(run_of("kv", Fenced((GRANT,), write))))
        assert node.machines.frees_space(prepared) is frees
