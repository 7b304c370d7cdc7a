"""Coordinators: the lowest id that is there leads, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.fencing import Fence
from quorate.base.group_commands import (
    GroupInfo,
    GroupQuery,
    JoinGroup,
    LeaveGroup,
    group_fence_name,
)
from quorate.base.results import Failure
from tests import sharing
from tests.tasks.support import TaskNode


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


def join(node: TaskNode, member: Any, lease: int) -> Any:
    return node.one(JoinGroup("g", member, lease))


def holds(node: TaskNode, epoch: int) -> bool | None:
    return node.tasks.holds(Fence("tasks", group_fence_name("g"), epoch))


def test_the_lowest_leads_and_its_epoch_ends_with_it(node: TaskNode) -> None:
    assert node.ask(GroupQuery("g")) == GroupInfo("g", None, 0)
    leases = {member: node.lease() for member in (5, 3, 9)}
    assert join(node, 5, leases[5]) == GroupInfo("g", 5, 1, (5,))
    assert join(node, 9, leases[9]).epoch == 1
    assert holds(node, 1)
    assert join(node, 3, leases[3]) == GroupInfo("g", 3, 2, (3, 5, 9))
    assert (holds(node, 1), holds(node, 2)) == (False, True)
    assert [event for _, event in node.told] == [GroupInfo("g", 3, 2)]
    node.revoke(leases[3])
    assert node.ask(GroupQuery("g")) == GroupInfo("g", 5, 3, (5, 9))
    assert node.one(LeaveGroup("g", 5, leases[5])).leader == 9
    node.restart()
    assert node.one(LeaveGroup("g", 9, leases[9])) == GroupInfo("g", None, 5)
    assert not holds(node, 5)
    assert join(node, "text", leases[9]).epoch == 6


def test_ids_are_of_one_kind_and_of_one_lease(node: TaskNode) -> None:
    lease, other = node.lease(), node.lease()
    join(node, "b", lease)
    assert join(node, "a", other).leader == "a"
    assert join(node, "b", lease).members == ("a", "b")
    for member, under, code in (("b", other, "already-held"), (1, lease, "lock-mismatch")):
        result = join(node, member, under)
        assert isinstance(result, Failure)
        assert result.code == code
    assert node.one(LeaveGroup("g", "b", other)).code == "not-held"
    assert join(node, "c", 99).code == "lease-expired"


@settings(max_examples=sharing.examples(20), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=25))
def test_whoever_comes_and_goes_the_least_leads_and_epochs_only_grow(
    steps: list[tuple[int, bool]],
) -> None:
    node = TaskNode()
    lease = node.lease()
    there: set[int] = set()
    leader, epoch = None, 0
    for member, comes in steps:
        if comes:
            there.add(member)
            info = join(node, member, lease)
        elif member in there:
            there.remove(member)
            info = node.one(LeaveGroup("g", member, lease))
        else:
            continue
        expected = min(there, default=None)
        epoch += expected != leader
        leader = expected
        assert info == GroupInfo("g", leader, epoch, tuple(sorted(there)))
