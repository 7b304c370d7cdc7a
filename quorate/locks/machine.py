"""Locks, read-write locks, semaphores and elections: permits of a name, holders, and one line.

What the machine owns:

* A name never has more than its total of permits given out.
* The line is served in order, and only from its head: a writer is not overtaken by readers, and
  nobody who asks later gets what the head waits for.
* Tokens only grow, over all names, restarts and snapshots; a name that is used again, too.
* What is bound to a lease goes with it, within the entry that ends it; who stands in line under a
  lease that is due is passed over.

Each operation costs a few lookups, however long the line; a release tells those whom it grants
something, and nobody else. A client hears of all its grants by one watch, of its lease.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from quorate.base.fencing import Fence
from quorate.base.invariants import must
from quorate.base.limits import LEASE_LOCKS_MAX, LOCK_WAITERS_MAX, LOCKS_MAX
from quorate.base.lock_commands import (
    LOCK_LIST_MAX,
    LOCK_MACHINE,
    SHOWN_MAX,
    Acquire,
    Acquired,
    Granted,
    Holder,
    Holding,
    HoldingList,
    Holdings,
    Leads,
    ListLocks,
    LockCommand,
    LockInfo,
    LockList,
    LockQueries,
    LockQuery,
    LockWatch,
    NotAcquired,
    Proclaim,
    Proclaimed,
    Release,
    Released,
    Waiter,
    Waiting,
    WatchGrants,
    name_text,
)
from quorate.base.results import Failure
from quorate.errors import (
    AlreadyHeldError,
    LeaseExpiredError,
    LockMismatchError,
    NotHeldError,
    OverloadedError,
)
from quorate.locks.keys import (
    LAST_KEY,
    CountRecord,
    bound_key,
    lease_key,
    lease_topic,
    name_of,
    number_of,
    numbered,
    refused,
    scope,
    whole,
)
from quorate.replication.machine import Context, Interest, Machine
from quorate.replication.tables import Table, Tables, prefix_end

# --- state --------------------------------------------------------------------------------------


class NameRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A name in use. *free*: permits that nobody holds. *waiters*: how many stand in line."""

    kind: str
    total: int
    free: int
    holders: int
    waiters: int


class ClaimRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A grant, or one that stands in line."""

    lease: int
    owner: int
    permits: int
    value: bytes


class BoundRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a lease's owner has of a name: a grant (*token*), or a place in line (*ticket*); or
    neither: it was withdrawn before it came, and is refused if it comes."""

    token: int
    ticket: int


class LockMachine(Machine):
    """Machine "locks", part of every node. Version history: 1, first release."""

    name = LOCK_MACHINE
    version = 1
    command_type: ClassVar[Any] = LockCommand
    query_type: ClassVar[Any] = LockQueries
    watch_type: ClassVar[Any] = LockWatch

    _names: Table[NameRecord]  # by name
    _holders: Table[ClaimRecord]  # by name and token
    _waiters: Table[ClaimRecord]  # by name and ticket
    _bound: Table[BoundRecord]  # by lease, name and owner
    _last: Table[CountRecord]  # the highest token or ticket given out, as of the end of an entry

    def __init__(self) -> None:
        self._number = self._number_before = 0  # the highest given out; before the command at hand
        self._counts: dict[int, int] = {}  # derived: how many are bound to each lease

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._names = tables.table("locks.names", NameRecord, ordered=True, trusted=True)
        self._holders = tables.table("locks.holders", ClaimRecord, ordered=True, trusted=True)
        self._waiters = tables.table("locks.waiters", ClaimRecord, ordered=True, trusted=True)
        self._bound = tables.table("locks.bound", BoundRecord, ordered=True, trusted=True)
        self._last = tables.table("locks.last", CountRecord, trusted=True)

    def loaded(self) -> None:
        last = self._last.get(LAST_KEY)
        self._number = self._number_before = 0 if last is None else last.count
        self._count_all()

    def _count_all(self) -> None:
        counts: dict[int, int] = {}
        for key in self._bound.keys():  # noqa: SIM118  a table is no dict
            lease = int.from_bytes(key[:8], "big")
            counts[lease] = counts.get(lease, 0) + 1
        self._counts = counts

    def finish(self, context: Context) -> None:  # noqa: ARG002
        last = self._last.get(LAST_KEY)
        if self._number != (0 if last is None else last.count):
            self._last.put(LAST_KEY, CountRecord(self._number))

    def rolled_back(self) -> None:
        # Rare: what is refused, is refused before anything changes.
        self._number = self._number_before
        self._count_all()

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        self._number_before = self._number
        if command.__class__ is Acquire:
            return self._acquire(command, context)
        if command.__class__ is Release:
            return self._release(command, context)
        return self._proclaim(command, context)

    def query(self, query: Any) -> Any:  # noqa: ANN401
        if query.__class__ is LockQuery:
            return self._info(query.name, SHOWN_MAX)
        if query.__class__ is ListLocks:
            rows = self._names.range(query.after + b"\0" if query.after else b"", limit=query.limit)
            return LockList(len(self._names), tuple(self._info(name, 1) for name, _ in rows))
        return self._holdings(query)

    def watch(self, request: Any) -> Interest:  # noqa: ANN401
        if request.__class__ is WatchGrants:
            return Interest(whole, keys=(lease_topic(request.lease),))
        leader = self._leader(request.name)
        return Interest(whole, keys=(_leader_topic(request.name),), backlog=(leader,))

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        """What is held can be let go of."""
        return command.__class__ is Release and not command.withdraw

    def holds(self, fence: Fence) -> bool | None:
        if fence.machine != LOCK_MACHINE:
            return None
        return fence.token < 2**63 and numbered(fence.name, fence.token) in self._holders

    def on_lease_end(self, lease: int, context: Context) -> int:
        if lease not in self._counts:
            return 0
        self._number_before = self._number
        rows = list(self._bound.range_prefix(lease_key(lease)))
        names: dict[bytes, NameRecord] = {}
        for key, bound in rows:
            name = name_of(key)
            self._bound.delete(key)
            record = names.get(name) or self._names.get(name)
            if record is not None and (bound.token or bound.ticket):
                names[name] = self._without(name, record, bound)
        del self._counts[lease]
        for name, record in names.items():
            self._pass_on(name, record, context)
        return len(rows)

    # --- commands -------------------------------------------------------------------------------

    def _acquire(self, command: Acquire, context: Context) -> Any:  # noqa: ANN401
        name, lease, owner = command.name, command.lease, command.owner
        if not context.lease_alive(lease):
            return refused(LeaseExpiredError, f"lease {lease} was revoked or has run out")
        key = bound_key(lease, name, owner)
        bound = self._bound.get(key)
        if bound is not None:
            return refused(AlreadyHeldError, _twice(command, bound))
        record = self._names.get(name)
        if record is not None and (record.kind, record.total) != (command.kind, command.total):
            return refused(LockMismatchError, _mismatch(command, record))
        free = record is None or (not record.waiters and record.free >= command.permits)
        if not free and not command.wait:
            return self._not_acquired(name)
        trouble = self._full(command, record, free=free)
        if trouble:
            return refused(OverloadedError, trouble)
        if record is None:
            record = NameRecord(command.kind, command.total, command.total, 0, 0)
        number = self._number + 1
        claim = ClaimRecord(lease, owner, command.permits, command.value)
        if free:
            self._names.put(name, self._grant(name, record, claim, number))
        else:
            self._waiters.put(numbered(name, number), claim)
            self._bound.put(key, BoundRecord(0, number))
            self._names.put(name, msgspec.structs.replace(record, waiters=record.waiters + 1))
        # Last: ``rolled_back`` is called only if a table has changed.
        self._draw()
        self._count(lease, 1)
        if not free:
            return Waiting(number, record.waiters)
        if record.kind == "election":
            self._tell_leader(name, context)
        return Acquired(number)

    def _release(self, command: Release, context: Context) -> Any:  # noqa: ANN401
        name, lease = command.name, command.lease
        key = bound_key(lease, name, command.owner)
        bound = self._bound.get(key)
        if bound is None:
            if not command.withdraw:
                return refused(
                    NotHeldError, f"lease {lease} has no such grant of {name_text(name)}"
                )
            return self._forestall(lease, key, context)
        if not bound.token and not bound.ticket:
            return Released(0)
        self._bound.delete(key)
        self._count(lease, -1)
        record = self._names.get(name)
        must(record is not None, "what is bound to a lease has a name", name=name)
        if record is not None:
            self._pass_on(name, self._without(name, record, bound), context)
        return Released(bound.token)

    def _forestall(self, lease: int, key: bytes, context: Context) -> Released | Failure:
        """The acquiring that this withdraws may still be under way: have it refused."""
        if context.lease_alive(lease):
            if self._bound_count(lease) >= LEASE_LOCKS_MAX:
                return refused(OverloadedError, _too_many_of_lease(lease))
            self._bound.put(key, BoundRecord(0, 0))
            self._count(lease, 1)
        return Released(0)

    def _proclaim(self, command: Proclaim, context: Context) -> Proclaimed | Failure:
        name, lease = command.name, command.lease
        bound = self._bound.get(bound_key(lease, name, command.owner))
        record = self._names.get(name)
        if bound is None or not bound.token or record is None or not context.lease_alive(lease):
            return refused(
                NotHeldError, f"lease {lease} does not lead {name_text(name)}, or not any more"
            )
        if record.kind != "election":
            return refused(
                LockMismatchError, f"{name_text(name)} is a {record.kind}, not an election"
            )
        key = numbered(name, bound.token)
        claim = self._holders.get(key)
        if claim is None or claim.value == command.value:
            return Proclaimed(bound.token)
        self._holders.put(key, msgspec.structs.replace(claim, value=command.value))
        self._tell_leader(name, context)
        return Proclaimed(bound.token)

    # --- granting -------------------------------------------------------------------------------

    def _grant(self, name: bytes, record: NameRecord, claim: ClaimRecord, token: int) -> NameRecord:
        """Give *claim* its permits, which are free; returns the name as it is to be stored."""
        self._holders.put(numbered(name, token), claim)
        self._bound.put(bound_key(claim.lease, name, claim.owner), BoundRecord(token, 0))
        return NameRecord(
            record.kind,
            record.total,
            record.free - claim.permits,
            record.holders + 1,
            record.waiters,
        )

    def _pass_on(self, name: bytes, record: NameRecord, context: Context) -> None:
        """Something of *name* was given back, which now is as in *record*: serve the line from its
        head, as far as it goes, and store the name."""
        granted = False
        while record.waiters:
            key, claim = next(self._waiters.range_prefix(scope(name), limit=1))
            alive = context.lease_alive(claim.lease)
            if alive and claim.permits > record.free:
                break
            self._waiters.delete(key)
            record = msgspec.structs.replace(record, waiters=record.waiters - 1)
            if not alive:
                self._bound.delete(bound_key(claim.lease, name, claim.owner))
                self._count(claim.lease, -1)
                continue
            token = self._draw()
            record = self._grant(name, record, claim, token)
            granted = True
            event = Granted(name, claim.owner, token)
            context.effects.append((LOCK_MACHINE, lease_topic(claim.lease), event))
        if record.holders or record.waiters:
            self._names.put(name, record)
        else:
            self._names.delete(name)
        if record.kind == "election" and (granted or not record.holders):
            self._tell_leader(name, context)

    def _without(self, name: bytes, record: NameRecord, bound: BoundRecord) -> NameRecord:
        """*record* without a grant, or a place in line. ``_pass_on`` is to follow."""
        kind, total, free = record.kind, record.total, record.free
        if bound.token:
            claim = self._holders.delete(numbered(name, bound.token))
            permits = 0 if claim is None else claim.permits
            return NameRecord(kind, total, free + permits, record.holders - 1, record.waiters)
        self._waiters.delete(numbered(name, bound.ticket))
        return NameRecord(kind, total, free, record.holders, record.waiters - 1)

    def _draw(self) -> int:
        """A number above all before it."""
        self._number += 1
        return self._number

    # --- limits ---------------------------------------------------------------------------------

    def _full(self, command: Acquire, record: NameRecord | None, *, free: bool) -> str:
        if not free and record is not None and record.waiters >= LOCK_WAITERS_MAX:
            return f"{LOCK_WAITERS_MAX} wait for {name_text(command.name)} already"
        if self._bound_count(command.lease) >= LEASE_LOCKS_MAX:
            return _too_many_of_lease(command.lease)
        if len(self._bound) >= LOCKS_MAX:
            return f"there are {LOCKS_MAX} grants and waiters already; release some"
        return ""

    def _bound_count(self, lease: int) -> int:
        return self._counts.get(lease, 0)

    def _count(self, lease: int, change: int) -> None:
        count = self._counts.get(lease, 0) + change
        if count > 0:
            self._counts[lease] = count
        else:
            self._counts.pop(lease, None)

    # --- what is shown --------------------------------------------------------------------------

    def _not_acquired(self, name: bytes) -> NotAcquired:
        record = self._names.get(name)
        return NotAcquired(
            self._shown_holders(name, SHOWN_MAX), 0 if record is None else record.waiters
        )

    def _shown_holders(self, name: bytes, limit: int) -> tuple[Holder, ...]:
        rows = self._holders.range_prefix(scope(name), limit=limit)
        return tuple(
            Holder(number_of(key), claim.lease, claim.owner, claim.permits, claim.value)
            for key, claim in rows
        )

    def _info(self, name: bytes, limit: int) -> LockInfo:
        record = self._names.get(name)
        if record is None:
            return LockInfo(name, "", 0, 0, 0, 0, (), ())
        rows = self._waiters.range_prefix(scope(name), limit=limit)
        waiters = tuple(
            Waiter(number_of(key), claim.lease, claim.owner, claim.permits, claim.value)
            for key, claim in rows
        )
        holders = self._shown_holders(name, limit)
        kind, total, free, holder_count, waiter_count = msgspec.structs.astuple(record)
        return LockInfo(name, kind, total, free, holder_count, waiter_count, holders, waiters)

    def _holdings(self, query: Holdings) -> HoldingList:
        lease = lease_key(query.lease)
        start = lease
        if query.after_name:
            start = bound_key(query.lease, query.after_name, query.after_owner) + b"\0"
        rows = self._bound.range(start, prefix_end(lease), limit=LOCK_LIST_MAX)
        found = tuple(
            Holding(name_of(key), int.from_bytes(key[-8:], "big"), bound.token)
            for key, bound in rows
        )
        return HoldingList(found, len(found) == LOCK_LIST_MAX)

    def _leader(self, name: bytes) -> Leads:
        for key, claim in self._holders.range_prefix(scope(name), limit=1):
            return Leads(name, number_of(key), claim.lease, claim.value)
        return Leads(name, 0, 0, b"")

    def _tell_leader(self, name: bytes, context: Context) -> None:
        context.effects.append((LOCK_MACHINE, _leader_topic(name), self._leader(name)))


# --- small things ---------------------------------------------------------------------------------


def _leader_topic(name: bytes) -> bytes:
    return b"n" + name


def _twice(command: Acquire, bound: BoundRecord) -> str:
    if bound.token:
        return f"{name_text(command.name)} is held by this very owner, under token {bound.token}"
    if bound.ticket:
        return f"this very owner stands in line for {name_text(command.name)} already"
    return f"this acquiring of {name_text(command.name)} was withdrawn before it came"


def _mismatch(command: Acquire, record: NameRecord) -> str:
    return (
        f"{name_text(command.name)} is in use as a {record.kind} of {record.total}, and was "
        f"asked for as a {command.kind} of {command.total}; use another name, or "
        "wait until nobody uses it"
    )


def _too_many_of_lease(lease: int) -> str:
    return (
        f"lease {lease} has {LEASE_LOCKS_MAX} grants and waiters already; release some, or use "
        "another lease"
    )
