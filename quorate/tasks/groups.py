"""Coordinators: of a group's members that are there, the one with the lowest id leads.

Who is there, leases say, and who leads follows from that in the entry that changes it: all nodes
agree on it, and two can never lead in one epoch. Whoever led before may not have heard of it; its
epoch is refused as a fence from that entry on.
"""

from __future__ import annotations

from quorate.base.group_commands import (
    GROUP_MEMBERS_MAX,
    GROUPS_MAX,
    LEASE_MEMBERS_MAX,
    GroupInfo,
    JoinGroup,
    LeaveGroup,
    WatchGroup,
    group_fence_name,
)
from quorate.base.results import Failure
from quorate.base.task_specs import TASK_MACHINE
from quorate.errors import (
    AlreadyHeldError,
    LeaseExpiredError,
    LockMismatchError,
    NotHeldError,
    OverloadedError,
)
from quorate.replication.machine import Context, Interest
from quorate.replication.tables import prefix_end
from quorate.tasks.ledger import Ledger
from quorate.tasks.records import GroupRecord, MemberRecord, scoped
from quorate.tasks.telling import group_topic, whole

_FENCE_PREFIX = group_fence_name("")


class Groups:
    """See the module."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def join(self, command: JoinGroup, context: Context) -> GroupInfo | Failure:
        """One more member, under a lease."""
        tables, group = self._ledger.tables, command.group
        if not context.lease_alive(command.lease):
            text = f"lease {command.lease} was revoked or has run out"
            return Failure(LeaseExpiredError.code, text)
        record = tables.groups.get(group.encode())
        numbers = isinstance(command.member, int)
        if record is None and len(tables.groups) >= GROUPS_MAX:
            return Failure(OverloadedError.code, f"there are {GROUPS_MAX} groups")
        if record is not None and record.count:
            if record.numbers != numbers:
                kind = "numbers" if record.numbers else "texts"
                text = f"ids of group {group!a} are {kind}, which {command.member!a} is not"
                return Failure(LockMismatchError.code, text)
            if record.count >= GROUP_MEMBERS_MAX:
                text = f"group {group!a} has {GROUP_MEMBERS_MAX} members"
                return Failure(OverloadedError.code, text)
        key = scoped(group, _member_key(command.member))
        before = tables.members.get(key)
        if before is not None:
            if before.lease != command.lease:
                text = f"{command.member!a} of group {group!a} has joined under another lease"
                return Failure(AlreadyHeldError.code, text)
            return self.info(group)
        start = command.lease.to_bytes(8, "big")
        if tables.bound.count(start, prefix_end(start)) >= LEASE_MEMBERS_MAX:
            text = f"lease {command.lease} is of {LEASE_MEMBERS_MAX} members already"
            return Failure(OverloadedError.code, text)
        tables.members.put(key, MemberRecord(command.member, command.lease))
        bound = _bound_key(command.lease, key)
        tables.bound.put(bound, MemberRecord(command.member, command.lease))
        epoch = 0 if record is None else record.epoch
        leader = None if record is None else record.leader
        count = (0 if record is None else record.count) + 1
        self._put(group, GroupRecord(epoch, leader, count, numbers), context)
        return self.info(group)

    def leave(self, command: LeaveGroup, context: Context) -> GroupInfo | Failure:
        """One member less."""
        tables, group = self._ledger.tables, command.group
        key = scoped(group, _member_key(command.member))
        member = tables.members.get(key)
        if member is None or member.lease != command.lease:
            text = f"{command.member!a} is not in group {group!a} under lease {command.lease}"
            return Failure(NotHeldError.code, text)
        self._remove(group, key, member, context)
        return self.info(group)

    def on_lease_end(self, lease: int, context: Context) -> int:
        """Its members leave."""
        tables = self._ledger.tables
        if not len(tables.bound):
            return 0
        rows = list(tables.bound.range_prefix(lease.to_bytes(8, "big")))
        for bound, member in rows:
            key = bound[8:]
            group = key[2 : 2 + int.from_bytes(key[:2], "big")].decode()
            self._remove(group, key, member, context)
        return len(rows)

    def _remove(self, group: str, key: bytes, member: MemberRecord, context: Context) -> None:
        tables = self._ledger.tables
        tables.members.delete(key)
        tables.bound.delete(_bound_key(member.lease, key))
        record = tables.groups.get(group.encode())
        if record is not None:
            count = record.count - 1
            self._put(
                group, GroupRecord(record.epoch, record.leader, count, record.numbers), context
            )

    def _put(self, group: str, record: GroupRecord, context: Context) -> None:
        """With its leader, as the members are now."""
        tables = self._ledger.tables
        row = next(tables.members.range_prefix(scoped(group, b""), limit=1), None)
        leader = None if row is None else row[1].member
        if leader != record.leader:
            record = GroupRecord(record.epoch + 1, leader, record.count, record.numbers)
            event = GroupInfo(group, leader, record.epoch)
            context.effects.append((TASK_MACHINE, group_topic(group), event))
        tables.groups.put(group.encode(), record)

    # --- asking ---------------------------------------------------------------------------------

    def info(self, group: str) -> GroupInfo:
        """Who leads, and who is there."""
        tables = self._ledger.tables
        record = tables.groups.get(group.encode())
        if record is None:
            return GroupInfo(group, None, 0)
        rows = tables.members.range_prefix(scoped(group, b""), limit=GROUP_MEMBERS_MAX)
        members = tuple(member.member for _, member in rows)
        return GroupInfo(group, record.leader, record.epoch, members)

    def watch(self, request: WatchGroup) -> Interest:
        """Changes of the leader."""
        info = self.info(request.group)
        shown = GroupInfo(info.group, info.leader, info.epoch)
        return Interest(whole, keys=(group_topic(request.group),), backlog=(shown,))

    def holds(self, name: bytes, token: int) -> bool | None:
        """Whether *token* is the present epoch; None: *name* is not of a group."""
        if not name.startswith(_FENCE_PREFIX):
            return None
        record = self._ledger.tables.groups.get(name[len(_FENCE_PREFIX) :])
        return record is not None and record.leader is not None and record.epoch == token


def _member_key(member: int | str) -> bytes:
    """In the order of the ids."""
    return member.to_bytes(8, "big") if isinstance(member, int) else member.encode()


def _bound_key(lease: int, key: bytes) -> bytes:
    return lease.to_bytes(8, "big") + key
