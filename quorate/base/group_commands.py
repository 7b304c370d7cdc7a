"""Groups of coordinators, of which the one with the lowest id leads. Commands, results, queries.

Wire and disk formats, as in ``task_commands``; they belong to the same machine.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.lease_commands import LeaseId
from quorate.base.task_specs import Name

GROUP_MEMBERS_MAX: Final = 1_000  # of one group
GROUPS_MAX: Final = 10_000
LEASE_MEMBERS_MAX: Final = 1_000  # under one lease: its end is one command's work
#: An id within a group. All of one group are numbers, or all are texts.
MemberId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | Name


class JoinGroup(
    msgspec.Struct, frozen=True, array_like=True, tag=51, forbid_unknown_fields=True, gc=False
):
    """*member* belongs to *group* as long as *lease* stands. Result: ``GroupInfo``, or a failure
    "already-held": another lease has joined under this id."""

    group: Name
    member: MemberId
    lease: LeaseId


class LeaveGroup(
    msgspec.Struct, frozen=True, array_like=True, tag=52, forbid_unknown_fields=True, gc=False
):
    """*member* belongs to it no more. Result: ``GroupInfo``, or a failure "not-held"."""

    group: Name
    member: MemberId
    lease: LeaseId


GroupCommand = JoinGroup | LeaveGroup


class GroupQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=51, forbid_unknown_fields=True, gc=False
):
    """One group. Result: ``GroupInfo``."""

    group: Name


class WatchGroup(
    msgspec.Struct, frozen=True, array_like=True, tag=51, forbid_unknown_fields=True, gc=False
):
    """Who leads, at once and whenever that has changed: ``GroupInfo``, without members."""

    group: Name


class GroupInfo(msgspec.Struct, frozen=True, array_like=True, tag=51, gc=False):
    """*leader*: the lowest id of *members*; None: there are none. *epoch*: one higher with each
    change of the leader; the fencing token of the present one. *members*: the lowest
    ``GROUP_MEMBERS_MAX``."""

    group: str
    leader: int | str | None
    epoch: int
    members: tuple[int | str, ...] = ()


def group_fence_name(group: str) -> bytes:
    """``Fence.name`` of the leader of a group; its machine is "tasks", its token the epoch."""
    return b"group/" + group.encode()
