"""Whoever comes, goes and dies: groups of the machine against those of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from quorate.base.fencing import Fence
from quorate.base.group_commands import (
    GroupInfo,
    GroupQuery,
    JoinGroup,
    LeaveGroup,
    WatchGroup,
    group_fence_name,
)
from quorate.base.lease_commands import GrantLease, RenewLeases, RevokeLease
from quorate.base.results import Failure
from quorate.base.task_specs import TASK_MACHINE
from tests import sharing
from tests.tasks.group_model import Model
from tests.tasks.support import TaskNode

#: One begins as another does.
GROUPS = ("g", "gg", "h")
NUMBERS = (0, 1, 2, 255, 256, 2**62)
#: In the order of their characters, which that of UTF-16 is not.
TEXTS = ("a", "aa", "b", "z\u00e9", "\uff5e", "\U0001f600")
TTL_MS = 5_000

some = st.integers(0, 99)
times = st.sampled_from((*[0] * 9, 1, 1_000, 2_500, 5_000))
groups = st.sampled_from((*GROUPS, *GROUPS[:1] * 4))
#: Numbers for the most part: a group has either.
members = st.sampled_from((*NUMBERS * 4, *TEXTS))
broken_or_not = st.integers(0, 9).map(lambda at: at == 0)


class GroupsAgainstAModel(RuleBasedStateMachine):
    """*node* restarts, *twin* never does; *model* is what both should be."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.twin, self.model = TaskNode(), TaskNode(), Model()
        self.node.time_ms = 1_000
        self.leases = [99]  # there never was one
        for _ in range(3):
            self.lease(0)

    def entry(self, machine: str, commands: list[Any], judge: Callable[[list[Any]], None]) -> None:
        """One entry on both nodes; *judge* does the same to the model."""
        results = self.node.run(machine, *commands)
        self.twin.time_ms = self.node.time_ms
        self.twin.feed(self.node.log[-1])
        assert self.twin.machines.state_hash == self.node.machines.state_hash
        self.model.pass_to(self.node.time_ms)
        judge(results)
        assert [event for _, event in self.node.told] == self.model.told
        self.check()

    def do(self, command: Any, ms: int, foretell: Callable[[], str], *, broken: bool) -> None:
        """*foretell*: the same to the model; why it is refused, or "". *broken*: it breaks off."""
        self.node.time_ms += ms
        for node in (self.node, self.twin):
            node.tasks.breaks = {0: 0} if broken else {}

        def judge(results: list[Any]) -> None:
            (result,) = results
            trouble = "command-failed" if broken else foretell()
            if trouble:
                assert isinstance(result, Failure)
                assert broken or result.code == trouble
            else:
                assert result == self.model.info(command.group)

        self.entry(TASK_MACHINE, [command], judge)
        for node in (self.node, self.twin):
            node.tasks.breaks = {}

    def chosen(self, at: int) -> int:
        """A lease that stands, or one of those that there are."""
        stand = list(self.model.leases) if at % 8 else self.leases
        return (stand or self.leases)[at // 8 % len(stand or self.leases)]

    # --- what may happen ------------------------------------------------------------------------

    @rule(group=groups, member=members, at=some, ms=times, broken=broken_or_not)
    def join(self, group: str, member: Any, at: int, ms: int, *, broken: bool) -> None:
        command = JoinGroup(group, member, self.chosen(at))
        self.do(command, ms, lambda: self.model.join(command), broken=broken)

    @rule(group=groups, at=some, ms=times, broken=broken_or_not)
    def leave(self, group: str, at: int, ms: int, *, broken: bool) -> None:
        there = list(self.model.info(group).members) or [*NUMBERS[:1], *TEXTS[:1]]
        member = there[at % len(there)]
        lease = self.model.groups[group].members.get(member) if group in self.model.groups else None
        command = LeaveGroup(group, member, self.chosen(at) if at % 7 == 0 else lease or 1)
        self.do(command, ms, lambda: self.model.leave(command), broken=broken)

    @rule(ms=times)
    def lease(self, ms: int) -> None:
        def judge(results: list[Any]) -> None:
            self.leases.append(results[0].lease)
            self.model.leases[results[0].lease] = self.node.time_ms + TTL_MS

        self.node.time_ms += ms
        self.entry("leases", [GrantLease(TTL_MS)], judge)

    @rule(at=some, ms=times)
    def renew(self, at: int, ms: int) -> None:
        chosen = tuple(dict.fromkeys(self.chosen(at + more) for more in range(1 + at % 4)))

        def judge(_: list[Any]) -> None:
            for lease in chosen:
                if lease in self.model.leases:
                    self.model.leases[lease] = self.node.time_ms + TTL_MS

        self.node.time_ms += ms
        self.entry("leases", [RenewLeases(chosen)], judge)

    @rule(at=some, ms=times)
    def revoke(self, at: int, ms: int) -> None:
        lease = self.chosen(at)
        self.node.time_ms += ms
        self.entry("leases", [RevokeLease(lease)], lambda _: self.model.end_lease(lease))

    @rule(ms=times)
    def pass_by(self, ms: int) -> None:
        self.node.time_ms += ms
        self.entry(TASK_MACHINE, [], lambda _: None)

    @rule()
    def restart(self) -> None:
        self.node.restart()
        self.check()

    # --- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        machine = self.node.tasks
        for name in GROUPS:
            info = self.model.info(name)
            assert self.node.ask(GroupQuery(name)) == info
            (shown,) = machine.watch(WatchGroup(name)).backlog
            assert shown == GroupInfo(name, info.leader, info.epoch)
            for epoch in range(info.epoch + 2):
                fence = Fence(TASK_MACHINE, group_fence_name(name), epoch)
                assert machine.holds(fence) == (info.leader is not None and epoch == info.epoch)
        tables = machine.ledger.tables
        count = sum(len(each.members) for each in self.model.groups.values())
        assert len(tables.members) == len(tables.bound) == count
        assert {key.decode() for key, _ in tables.groups.items()} == set(self.model.groups)


TestGroupsAgainstAModel = GroupsAgainstAModel.TestCase
TestGroupsAgainstAModel.settings = settings(
    max_examples=sharing.examples(60), stateful_step_count=30, deadline=None
)


@pytest.mark.deep
def test_for_long() -> None:
    search = settings(max_examples=1_000, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(GroupsAgainstAModel, settings=search)
