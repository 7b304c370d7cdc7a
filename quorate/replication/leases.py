"""Leases: promises with an end, which keys, locks and claims are bound to.

When a lease ends is decided by the log alone: at a cluster time, in ``expire``, on every replica in
the same entry. Other machines hear of it within that entry (``on_lease_end``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.lease_commands import (
    LEASE_MACHINE,
    GrantLease,
    LeaseCommand,
    LeaseEnded,
    LeaseGranted,
    LeaseInfo,
    LeaseList,
    LeaseQueries,
    LeaseQuery,
    LeaseRevoked,
    LeasesRenewed,
    RenewLeases,
    RevokeLease,
    WatchLeases,
)
from quorate.base.limits import LEASES_MAX
from quorate.base.results import Failure
from quorate.errors import LeaseExpiredError, OverloadedError
from quorate.replication.deadlines import Deadlines
from quorate.replication.machine import Context, Interest, Machine
from quorate.replication.tables import Table, Tables

#: Leases, and things bound to them, that one entry ends; the rest waits for the next, which is due
#: at once. Some 20 ms.
EXPIRED_WORK_MAX: Final = 10_000

_LAST_KEY: Final = b"last"
_ID_MAX: Final = 2**63 - 1


class LeaseRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*expires_ms*: cluster time."""

    ttl_ms: int
    expires_ms: int
    name: str


class LastLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The highest id given out."""

    lease: int


class LeaseMachine(Machine):
    """Machine "leases", part of every node. Version history: 1, first release."""

    name = LEASE_MACHINE
    version = 1
    command_type: ClassVar[Any] = LeaseCommand
    query_type: ClassVar[Any] = LeaseQueries
    watch_type: ClassVar[Any] = WatchLeases

    _live: Table[LeaseRecord]
    _last: Table[LastLease]

    def __init__(self) -> None:
        self._deadlines = Deadlines(self._deadline_of)
        self._time_ms = 0
        self._tell: Callable[[int, Context], int] = _tell_nobody

    def on_end(self, tell: Callable[[int, Context], int]) -> None:
        """*tell* is called with each lease that ends, inside the apply that ends it, and says how
        much was bound to it."""
        self._tell = tell

    @property
    def live_count(self) -> int:
        """Leases that have not ended."""
        return len(self._live)

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._live = tables.table("leases.live", LeaseRecord, ordered=True, trusted=True)
        self._last = tables.table("leases.last", LastLease, trusted=True)

    def loaded(self) -> None:
        self._time_ms = 0
        self._deadlines.load(
            (record.expires_ms, int.from_bytes(key, "big")) for key, record in self._live.items()
        )

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        self._time_ms = context.time_ms
        if command.__class__ is RenewLeases:
            return self._renew(command, context)
        if command.__class__ is GrantLease:
            return self._grant(command, context)
        return self._revoke(command, context)

    def query(self, query: Any) -> Any:  # noqa: ANN401
        if query.__class__ is LeaseQuery:
            record = self._live.get(_key(query.lease))
            return _gone(query.lease) if record is None else self._shown(query.lease, record)
        rows = self._live.range(_key(min(query.after + 1, _ID_MAX)), limit=query.limit)
        if query.after >= _ID_MAX:
            rows = iter(())
        shown = tuple(self._shown(int.from_bytes(key, "big"), record) for key, record in rows)
        return LeaseList(len(self._live), shown)

    def watch(self, request: WatchLeases) -> Interest:
        gone = [each for each in request.leases if _key(each) not in self._live]
        return Interest(
            _whole,
            keys=tuple(map(_key, request.leases)),
            backlog=[LeaseEnded(each, revoked=False) for each in gone],
        )

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        """All but granting: what is held must be kept, or let go of."""
        return command.__class__ is not GrantLease

    def next_deadline_ms(self) -> int | None:
        return self._deadlines.first_ms()

    def expire(self, context: Context) -> None:
        self._time_ms = context.time_ms
        work = 0
        for lease in self._deadlines.due(context.due_ms):
            work += 1 + self._end(lease, context, revoked=False)
            if work >= EXPIRED_WORK_MAX:
                return

    def finish(self, context: Context) -> None:  # noqa: ARG002
        self._deadlines.sweep(len(self._live))

    # --- for other machines, through their context ----------------------------------------------

    def alive(self, lease: int, due_ms: int) -> bool:
        """Whether *lease* has neither ended nor is due to (an entry ends only so many)."""
        return self._standing(lease, due_ms) is not None

    def _standing(self, lease: int, due_ms: int) -> LeaseRecord | None:
        if not 0 < lease <= _ID_MAX:
            return None
        record = self._live.get(_key(lease))
        return None if record is None or record.expires_ms <= due_ms else record

    # --- commands -------------------------------------------------------------------------------

    def _grant(self, command: GrantLease, context: Context) -> LeaseGranted | Failure:
        if len(self._live) >= LEASES_MAX:
            return Failure(
                OverloadedError.code,
                f"there are {LEASES_MAX} leases already; revoke or let expire some",
            )
        last = self._last.get(_LAST_KEY)
        lease = 1 if last is None else last.lease + 1
        expires_ms = context.time_ms + command.ttl_ms
        self._last.put(_LAST_KEY, LastLease(lease))
        self._live.put(_key(lease), LeaseRecord(command.ttl_ms, expires_ms, command.name))
        self._deadlines.add(expires_ms, lease)
        return LeaseGranted(lease, expires_ms)

    def _renew(self, command: RenewLeases, context: Context) -> LeasesRenewed:
        gone = []
        for lease in command.leases:
            record = self._standing(lease, context.due_ms)
            if record is None:
                gone.append(lease)
                continue
            expires_ms = context.time_ms + record.ttl_ms
            if expires_ms != record.expires_ms:
                self._live.put(_key(lease), LeaseRecord(record.ttl_ms, expires_ms, record.name))
        return LeasesRenewed(tuple(gone))

    def _revoke(self, command: RevokeLease, context: Context) -> LeaseRevoked:
        existed = _key(command.lease) in self._live
        if existed:
            self._end(command.lease, context, revoked=True)
        return LeaseRevoked(command.lease, existed)

    def _end(self, lease: int, context: Context, *, revoked: bool) -> int:
        key = _key(lease)
        self._live.delete(key)
        context.effects.append((LEASE_MACHINE, key, LeaseEnded(lease, revoked)))
        return self._tell(lease, context)

    # --- small things ---------------------------------------------------------------------------

    def _deadline_of(self, lease: int) -> int | None:
        record = self._live.get(_key(lease))
        return None if record is None else record.expires_ms

    def _shown(self, lease: int, record: LeaseRecord) -> LeaseInfo:
        remaining_ms = max(record.expires_ms - self._time_ms, 0)
        return LeaseInfo(lease, record.ttl_ms, remaining_ms, record.name)


def _key(lease: int) -> bytes:
    return lease.to_bytes(8, "big")


def _gone(lease: int) -> Failure:
    return Failure(LeaseExpiredError.code, f"lease {lease} was revoked or has run out")


def _whole(key: bytes, event: Any) -> Any:  # noqa: ANN401, ARG001
    return event


def _tell_nobody(lease: int, context: Context) -> int:  # noqa: ARG001
    return 0
