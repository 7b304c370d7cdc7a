"""Commands, queries, events and results of the barrier machine, shared by node and client.

Formats as in ``lock_commands``. Whoever arrives at a *barrier* waits until *parties* have arrived;
then all of them are let through at once, and the next round begins. At a *double* barrier those
let through are inside, and whoever leaves waits until all have left. A party is bound to a lease:
one that died does not count.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from quorate.base.lease_commands import LeaseId
from quorate.base.limits import BARRIER_PARTIES_MAX
from quorate.base.lock_commands import LockName, Owner
from quorate.base.results import Failure

BARRIER_MACHINE: Final = "barriers"  # the machine's name, for ``Run.machine``
PARTY_LIST_MAX: Final = 1000  # parties in one reply

#: Of a party: at the door, inside of a double barrier, or waiting for the others to leave it.
PartyState = Literal["waiting", "inside", "leaving"]

Parties = Annotated[int, msgspec.Meta(ge=1, le=BARRIER_PARTIES_MAX)]


class Arrive(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One more party. *owner*: one number for each attempt, within its lease. Result: ``Passed``
    or ``Expecting``."""

    name: LockName
    parties: Parties
    double: bool
    lease: LeaseId
    owner: Owner


class Leave(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Go away from the door, or leave the inside and wait for the others. *withdraw*: do not wait,
    and if it is not known whether the arrival was applied, then it never will be. Result:
    ``Passed``, or ``Expecting`` those who are still inside."""

    name: LockName
    lease: LeaseId
    owner: Owner
    withdraw: bool = False


class Passed(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """All have arrived, or all have left."""


class Expecting(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*missing*: how many more must arrive, or leave. A ``LetThrough`` will follow."""

    missing: int


class BarrierQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One barrier. Result: ``BarrierInfo``."""

    name: LockName


class PartiesOf(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """What is bound to a lease, in the order of name and owner, behind the one given. Result:
    ``PartyList``."""

    lease: LeaseId
    after_name: Annotated[bytes, msgspec.Meta(max_length=1024)] = b""
    after_owner: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class BarrierInfo(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*parties* 0: nobody is there. *inside*, *leaving*: of a double barrier."""

    name: bytes
    parties: int
    double: bool
    waiting: int
    inside: int
    leaving: int


class Party(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One that waits or is inside."""

    name: bytes
    owner: int
    state: PartyState


class PartyList(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """*more*: ask again behind the last."""

    parties: tuple[Party, ...]
    more: bool


class WatchParties(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Watch for what those of a lease wait for. Events: ``LetThrough``."""

    lease: LeaseId


class LetThrough(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """All have arrived; or, if *out*, all have left."""

    name: bytes
    owner: int
    out: bool


BarrierCommand = Arrive | Leave
BarrierQueries = BarrierQuery | PartiesOf
BarrierResult = Failure | Passed | Expecting | BarrierInfo | PartyList
BarrierEvent = LetThrough
