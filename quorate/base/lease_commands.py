"""Commands, queries and results of the lease machine, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning. Commands and queries refuse fields that they
do not know. Results use tags from 1; ``Failure`` is 0.

A *lease* is a promise with an end: it stands for *ttl_ms* of cluster time, and as long again from
each renewal. Keys, locks and whatever else is bound to it go with it.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.limits import LEASE_BATCH_MAX, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN
from quorate.base.results import Failure

LEASE_MACHINE: Final = "leases"  # the machine's name, for ``Run.machine``
LEASE_NAME_MAX: Final = 256  # characters; shown to operators only
LEASE_LIST_MAX: Final = 1000  # leases in one ``LeaseList``

LeaseId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
LeaseTtl = Annotated[int, msgspec.Meta(ge=LEASE_TTL_MS_MIN, le=LEASE_TTL_MS_MAX)]


class GrantLease(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """A new lease. *name*: to show. Result: ``LeaseGranted``."""

    ttl_ms: LeaseTtl
    name: Annotated[str, msgspec.Meta(max_length=LEASE_NAME_MAX)] = ""


class RenewLeases(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Renew many, each for its whole ttl. Result: ``LeasesRenewed``."""

    leases: Annotated[tuple[LeaseId, ...], msgspec.Meta(min_length=1, max_length=LEASE_BATCH_MAX)]


class RevokeLease(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """End a lease now, with all that is bound to it. Result: ``LeaseRevoked``."""

    lease: LeaseId


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """*lease*: its id, from 1; never given out again. *expires_ms*: cluster time."""

    lease: int
    expires_ms: int


class LeasesRenewed(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*gone*: those that no longer stood."""

    gone: tuple[int, ...]


class LeaseRevoked(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """*existed*: it was this command that ended it."""

    lease: int
    existed: bool


class LeaseQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One lease. Result: ``LeaseInfo``, or a failure "lease-expired"."""

    lease: LeaseId


class ListLeases(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Leases with an id above *after*, by id. Result: ``LeaseList``."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=LEASE_LIST_MAX)] = 100


class LeaseInfo(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*remaining_ms*: until it ends if nobody renews it, as of the last entry of the log."""

    lease: int
    ttl_ms: int
    remaining_ms: int
    name: str


class LeaseList(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """*count*: of all leases."""

    count: int
    leases: tuple[LeaseInfo, ...]


class WatchLeases(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Watch for the end of these leases. Events: ``LeaseEnded``."""

    leases: Annotated[tuple[LeaseId, ...], msgspec.Meta(min_length=1, max_length=LEASE_BATCH_MAX)]


class LeaseEnded(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """*revoked*: by a command; otherwise it ran out."""

    lease: int
    revoked: bool


LeaseCommand = GrantLease | RenewLeases | RevokeLease
LeaseQueries = LeaseQuery | ListLeases
LeaseResult = Failure | LeaseGranted | LeasesRenewed | LeaseRevoked | LeaseInfo | LeaseList
