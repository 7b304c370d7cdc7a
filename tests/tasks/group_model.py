"""Groups as anybody would write them down: who is in each, and how often its leader has changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from quorate.base.group_commands import GroupInfo, JoinGroup, LeaveGroup

Member = int | str


@dataclass
class Group:
    """*members*: the lease of each."""

    members: dict[Member, int] = field(default_factory=dict)
    leader: Member | None = None
    epoch: int = 0


class Model:
    """What a command is refused for, or that the group is as ``info`` says."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.leases: dict[int, int] = {}  # until when
        self.told: list[GroupInfo] = []

    def info(self, name: str) -> GroupInfo:
        group = self.groups.get(name, Group())
        return GroupInfo(name, group.leader, group.epoch, tuple(_in_order(group.members)))

    def pass_to(self, now: int) -> None:
        """An entry begins."""
        self.told = []
        for until, lease in sorted((until, lease) for lease, until in self.leases.items()):
            if until <= now:
                self.end_lease(lease)

    def end_lease(self, lease: int) -> None:
        """All of its members leave, one after the other."""
        self.leases.pop(lease, None)
        for name in sorted(self.groups, key=lambda name: (len(name), name)):
            members = self.groups[name].members
            for member in [each for each in _in_order(members) if members[each] == lease]:
                del members[member]
                self._elect(name)

    def join(self, command: JoinGroup) -> str:
        """Why not; "": it is in."""
        if command.lease not in self.leases:
            return "lease-expired"
        members = self.groups.get(command.group, Group()).members
        if any(type(each) is not type(command.member) for each in members):
            return "lock-mismatch"
        if members.get(command.member, command.lease) != command.lease:
            return "already-held"
        self.groups.setdefault(command.group, Group()).members[command.member] = command.lease
        self._elect(command.group)
        return ""

    def leave(self, command: LeaveGroup) -> str:
        """Why not; "": it is out."""
        members = self.groups.get(command.group, Group()).members
        if members.get(command.member) != command.lease:
            return "not-held"
        del members[command.member]
        self._elect(command.group)
        return ""

    def _elect(self, name: str) -> None:
        group = self.groups[name]
        leader = next(iter(_in_order(group.members)), None)
        if leader != group.leader:
            group.leader, group.epoch = leader, group.epoch + 1
            self.told.append(GroupInfo(name, leader, group.epoch))


def _in_order(members: dict[Member, int]) -> list[Member]:
    """Numbers by their value, texts as their characters are numbered; a group has one of both."""
    return sorted(members, key=lambda each: (each, "") if isinstance(each, int) else (0, each))
