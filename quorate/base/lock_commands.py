"""Commands, queries, events and results of the lock machine, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning. Commands and queries refuse fields that they
do not know. Results use tags from 1; ``Failure`` is 0.

Locks, read-write locks, semaphores and elections are one thing: a name has *total* permits, each
holder has some of them, and who comes too late waits in one line. A lock is of one permit. A writer
takes all, a reader one. A *grant* is bound to a lease, within which *owner* names the one that
holds it, and carries a token that is higher than that of every grant before it, of any name.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from quorate.base.lease_commands import LeaseId
from quorate.base.limits import (
    LOCK_NAME_BYTES_MAX,
    LOCK_PERMITS_MAX,
    LOCK_VALUE_BYTES_MAX,
)
from quorate.base.results import Failure
from quorate.errors import InvalidArgumentError

LOCK_MACHINE: Final = "locks"  # the machine's name, for ``Run.machine`` and ``Fence.machine``
LOCK_LIST_MAX: Final = 1000  # names, grants or waiters in one reply
SHOWN_MAX: Final = 10  # holders and waiters that ``LockInfo`` and ``NotAcquired`` name

Kind = Literal["lock", "rwlock", "semaphore", "election"]

LockName = Annotated[bytes, msgspec.Meta(min_length=1, max_length=LOCK_NAME_BYTES_MAX)]
LockValue = Annotated[bytes, msgspec.Meta(max_length=LOCK_VALUE_BYTES_MAX)]
Permits = Annotated[int, msgspec.Meta(ge=1, le=LOCK_PERMITS_MAX)]
Owner = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

#: Characters that do not stand as themselves in a name that people read. Not what ``repr`` escapes:
#: that depends on the version of Python, and refusals are results, the same on every node.
_ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))},
    ord("\\"): "\\\\",
    ord("'"): "\\'",
}


def name_text(name: bytes) -> str:
    """*name* in a sentence: quoted text if it is UTF-8, else as Python writes bytes."""
    try:
        return f"'{name.decode().translate(_ESCAPES)}'"
    except UnicodeDecodeError:
        return repr(name)


# --- commands ---------------------------------------------------------------------------------


class Acquire(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """Take *permits* of the *total* of *name*. *owner*: one number for each attempt, within its
    lease. *wait*: stand in line if they are not free, or if others stand there. *value*: what a
    leader proclaims. Result: ``Acquired``, ``Waiting`` or ``NotAcquired``."""

    name: LockName
    kind: Kind
    total: Permits
    permits: Permits
    lease: LeaseId
    owner: Owner
    wait: bool = True
    value: LockValue = b""

    def __post_init__(self) -> None:
        if self.permits > self.total:
            raise InvalidArgumentError(
                f"{self.permits} permits are more than the {self.total} that there are"
            )


class Release(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Give a grant back, or leave the line. *withdraw*: it is not known whether the acquiring was
    applied; if not, then from now on it never will be. Result: ``Released``."""

    name: LockName
    lease: LeaseId
    owner: Owner
    withdraw: bool = False


class Proclaim(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """Change the value that goes with a grant of an election. Result: ``Proclaimed``."""

    name: LockName
    lease: LeaseId
    owner: Owner
    value: LockValue


# --- results ----------------------------------------------------------------------------------


class Holder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One grant."""

    token: int
    lease: int
    owner: int
    permits: int
    value: bytes


class Waiter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One that stands in line. *ticket*: grows along the line."""

    ticket: int
    lease: int
    owner: int
    permits: int
    value: bytes


class Acquired(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """It is granted, under *token*."""

    token: int


class Waiting(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """It stands in line, behind *ahead* others. ``Granted`` will say when it is granted."""

    ticket: int
    ahead: int


class NotAcquired(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Not free, and it was not to wait. *holders*: the first of them. *waiting*: how many."""

    holders: tuple[Holder, ...]
    waiting: int


class Released(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """*token*: of the grant given back, 0 if there was none."""

    token: int


class Proclaimed(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """*token*: of the grant."""

    token: int


# --- queries ----------------------------------------------------------------------------------


class LockQuery(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One name. Result: ``LockInfo``; of a free name one without holders."""

    name: LockName


class ListLocks(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Names in use behind *after*, in order. Result: ``LockList``."""

    after: Annotated[bytes, msgspec.Meta(max_length=LOCK_NAME_BYTES_MAX)] = b""
    limit: Annotated[int, msgspec.Meta(ge=1, le=LOCK_LIST_MAX)] = 100


class Holdings(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """What is bound to a lease, in the order of name and owner, behind the one given. Result:
    ``HoldingList``."""

    lease: LeaseId
    after_name: Annotated[bytes, msgspec.Meta(max_length=LOCK_NAME_BYTES_MAX)] = b""
    after_owner: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class LockInfo(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*kind* "": the name is free. *free*: permits. *holders*, *waiters*: the first of them."""

    name: bytes
    kind: str
    total: int
    free: int
    holder_count: int
    waiter_count: int
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]


class LockList(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """*count*: of all names in use."""

    count: int
    locks: tuple[LockInfo, ...]


class Holding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*token*: of the grant, 0 if it stands in line."""

    name: bytes
    owner: int
    token: int


class HoldingList(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """*more*: ask again behind the last."""

    holdings: tuple[Holding, ...]
    more: bool


# --- watches and events -----------------------------------------------------------------------


class WatchGrants(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Watch for what is granted to those of a lease that stand in line. Events: ``Granted``."""

    lease: LeaseId


class WatchLeader(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Watch who leads an election: the present one at once, then each change. Events: ``Leads``."""

    name: LockName


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """*owner* has its grant of *name*."""

    name: bytes
    owner: int
    token: int


class Leads(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The leader under *token* proclaims *value*; token 0: nobody leads."""

    name: bytes
    token: int
    lease: int
    value: bytes


LockCommand = Acquire | Release | Proclaim
LockQueries = LockQuery | ListLocks | Holdings
LockWatch = WatchGrants | WatchLeader
LockEvent = Granted | Leads
LockResult = (
    Failure
    | Acquired
    | Waiting
    | NotAcquired
    | Released
    | Proclaimed
    | LockInfo
    | LockList
    | HoldingList
)
