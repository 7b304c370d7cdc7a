"""Barriers: those who arrive wait for one another, and pass together, round after round.

What the machine owns:

* A round lets through exactly as many as there are parties, in the order of their arrival; who
  comes while a double barrier's round is still inside waits for the next one.
* A party whose lease has ended counts neither at the door nor inside.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from quorate.base.barrier_commands import (
    BARRIER_MACHINE,
    PARTY_LIST_MAX,
    Arrive,
    BarrierCommand,
    BarrierInfo,
    BarrierQueries,
    BarrierQuery,
    Expecting,
    Leave,
    LetThrough,
    PartiesOf,
    Party,
    PartyList,
    PartyState,
    Passed,
    WatchParties,
)
from quorate.base.limits import BARRIERS_MAX, LEASE_LOCKS_MAX
from quorate.base.lock_commands import name_text
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


class BarrierRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A barrier where somebody is. *waiting*: at the door; *inside*, *leaving*: of the round."""

    parties: int
    double: bool
    waiting: int
    inside: int
    leaving: int


class PartyRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Whose it is."""

    lease: int
    owner: int


class PlaceRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*number* 0: it was withdrawn before it came, and is refused if it comes."""

    number: int
    state: PartyState


class BarrierMachine(Machine):
    """Machine "barriers", part of every node. Version history: 1, first release."""

    name = BARRIER_MACHINE
    version = 1
    command_type: ClassVar[Any] = BarrierCommand
    query_type: ClassVar[Any] = BarrierQueries
    watch_type: ClassVar[Any] = WatchParties

    _names: Table[BarrierRecord]  # by name
    _waiting: Table[PartyRecord]  # by name and number: in the order of arrival
    _leaving: Table[PartyRecord]  # by name and number
    _bound: Table[PlaceRecord]  # by lease, name and owner
    _leases: Table[CountRecord]  # by lease: how many are bound to it
    _last: Table[CountRecord]  # the highest number given out

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._names = tables.table("barriers.names", BarrierRecord, trusted=True)
        self._waiting = tables.table("barriers.waiting", PartyRecord, ordered=True, trusted=True)
        self._leaving = tables.table("barriers.leaving", PartyRecord, ordered=True, trusted=True)
        self._bound = tables.table("barriers.bound", PlaceRecord, ordered=True, trusted=True)
        self._leases = tables.table("barriers.leases", CountRecord, trusted=True)
        self._last = tables.table("barriers.last", CountRecord, trusted=True)

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        if command.__class__ is Arrive:
            return self._arrive(command, context)
        return self._leave(command, context)

    def query(self, query: Any) -> Any:  # noqa: ANN401
        if query.__class__ is BarrierQuery:
            record = self._names.get(query.name) or BarrierRecord(
                0, double=False, waiting=0, inside=0, leaving=0
            )
            return BarrierInfo(query.name, *msgspec.structs.astuple(record))
        return self._parties(query)

    def watch(self, request: WatchParties) -> Interest:
        return Interest(whole, keys=(lease_topic(request.lease),))

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        """Who is there can go."""
        return command.__class__ is Leave and not command.withdraw

    def on_lease_end(self, lease: int, context: Context) -> int:
        start = lease_key(lease)
        if start not in self._leases:
            return 0
        rows = list(self._bound.range_prefix(start))
        names: dict[bytes, None] = {}
        for key, place in rows:
            self._bound.delete(key)
            if place.number:
                self._remove(name_of(key), place)
                names[name_of(key)] = None
        self._leases.delete(start)
        for name in names:
            self._settle(name, context)
        return len(rows)

    # --- commands -------------------------------------------------------------------------------

    def _arrive(self, command: Arrive, context: Context) -> Any:  # noqa: ANN401
        name, lease, owner = command.name, command.lease, command.owner
        if not context.lease_alive(lease):
            return refused(LeaseExpiredError, f"lease {lease} was revoked or has run out")
        key = bound_key(lease, name, owner)
        if key in self._bound:
            return refused(
                AlreadyHeldError, f"this very party is at barrier {name_text(name)} already"
            )
        record = self._names.get(name)
        if record is None:
            record = BarrierRecord(command.parties, command.double, 0, 0, 0)
        if (record.parties, record.double) != (command.parties, command.double):
            kind = "double barrier" if record.double else "barrier"
            return refused(
                LockMismatchError,
                f"{name_text(name)} is in use as a {kind} of {record.parties}; all "
                "parties name the same",
            )
        if self._count_of(lease) >= LEASE_LOCKS_MAX or len(self._bound) >= BARRIERS_MAX:
            return refused(
                OverloadedError,
                f"a lease has up to {LEASE_LOCKS_MAX} parties, and all barriers {BARRIERS_MAX}",
            )
        number = self._draw()
        self._waiting.put(numbered(name, number), PartyRecord(lease, owner))
        self._bound.put(key, PlaceRecord(number, "waiting"))
        self._count(lease, 1)
        self._names.put(name, msgspec.structs.replace(record, waiting=record.waiting + 1))
        told = len(context.effects)
        self._settle(name, context)
        place = self._bound.get(key)
        if place is None or place.state != "waiting":
            _untell(context, told, lease, LetThrough(name, owner, out=False))
            return Passed()
        record = self._names.get(name) or record
        return Expecting(max(record.parties - record.waiting, 0))

    def _leave(self, command: Leave, context: Context) -> Any:  # noqa: ANN401
        name, lease = command.name, command.lease
        key = bound_key(lease, name, command.owner)
        place = self._bound.get(key)
        if place is None:
            return self._absent(command, key, context)
        if not place.number:
            return Passed()
        record = self._names.get(name)
        if place.state == "inside" and record is not None and not command.withdraw:
            self._bound.put(key, PlaceRecord(place.number, "leaving"))
            self._leaving.put(numbered(name, place.number), PartyRecord(lease, command.owner))
            self._names.put(
                name,
                msgspec.structs.replace(
                    record, inside=record.inside - 1, leaving=record.leaving + 1
                ),
            )
        elif place.state != "leaving" or command.withdraw:
            self._bound.delete(key)
            self._count(lease, -1)
            self._remove(name, place)
        told = len(context.effects)
        self._settle(name, context)
        if key not in self._bound:
            _untell(context, told, lease, LetThrough(name, command.owner, out=True))
            return Passed()
        record = self._names.get(name)
        return Expecting(0 if record is None else record.inside)

    def _absent(self, command: Leave, key: bytes, context: Context) -> Any:  # noqa: ANN401
        if not command.withdraw:
            return refused(NotHeldError, f"no such party is at barrier {name_text(command.name)}")
        if context.lease_alive(command.lease):
            if self._count_of(command.lease) >= LEASE_LOCKS_MAX:
                return refused(OverloadedError, f"a lease has up to {LEASE_LOCKS_MAX} parties")
            self._bound.put(key, PlaceRecord(0, "waiting"))
            self._count(command.lease, 1)
        return Passed()

    # --- rounds ---------------------------------------------------------------------------------

    def _settle(self, name: bytes, context: Context) -> None:
        """End the round that nobody is inside of any more, and begin the next if enough wait."""
        record = self._names.get(name)
        if record is None:
            return
        if not record.inside and record.leaving:
            for key, party in list(self._leaving.range_prefix(scope(name))):
                self._leaving.delete(key)
                self._let_go(name, party)
                self._tell(name, party, context, out=True)
            record = msgspec.structs.replace(record, leaving=0)
        if not record.inside and record.waiting >= record.parties:
            record = self._drop_dead(name, record, context)
            if record.waiting >= record.parties:
                record = self._let_in(name, record, context)
        if record.waiting or record.inside or record.leaving:
            self._names.put(name, record)
        else:
            self._names.delete(name)

    def _drop_dead(self, name: bytes, record: BarrierRecord, context: Context) -> BarrierRecord:
        """Those in front whose lease is due do not count."""
        dead = []
        alive = 0
        for key, party in self._waiting.range_prefix(scope(name)):
            if context.lease_alive(party.lease):
                alive += 1
            else:
                dead.append((key, party))
            if alive == record.parties:
                break
        for key, party in dead:
            self._waiting.delete(key)
            self._let_go(name, party)
        return msgspec.structs.replace(record, waiting=record.waiting - len(dead))

    def _let_in(self, name: bytes, record: BarrierRecord, context: Context) -> BarrierRecord:
        for key, party in list(self._waiting.range_prefix(scope(name), limit=record.parties)):
            self._waiting.delete(key)
            if record.double:
                place = PlaceRecord(number_of(key), "inside")
                self._bound.put(bound_key(party.lease, name, party.owner), place)
            else:
                self._let_go(name, party)
            self._tell(name, party, context, out=False)
        return msgspec.structs.replace(
            record,
            waiting=record.waiting - record.parties,
            inside=record.parties if record.double else 0,
        )

    def _let_go(self, name: bytes, party: PartyRecord) -> None:
        self._bound.delete(bound_key(party.lease, name, party.owner))
        self._count(party.lease, -1)

    def _remove(self, name: bytes, place: PlaceRecord) -> None:
        """Take a party out of its barrier. ``_settle`` is to follow."""
        record = self._names.get(name)
        if record is None:
            return
        state = place.state
        if state != "inside":
            table = self._waiting if state == "waiting" else self._leaving
            table.delete(numbered(name, place.number))
        self._names.put(
            name,
            BarrierRecord(
                record.parties,
                record.double,
                record.waiting - (state == "waiting"),
                record.inside - (state == "inside"),
                record.leaving - (state == "leaving"),
            ),
        )

    def _tell(self, name: bytes, party: PartyRecord, context: Context, *, out: bool) -> None:
        event = LetThrough(name, party.owner, out)
        context.effects.append((BARRIER_MACHINE, lease_topic(party.lease), event))

    # --- small things ---------------------------------------------------------------------------

    def _draw(self) -> int:
        last = self._last.get(LAST_KEY)
        number = 1 if last is None else last.count + 1
        self._last.put(LAST_KEY, CountRecord(number))
        return number

    def _count_of(self, lease: int) -> int:
        record = self._leases.get(lease_key(lease))
        return 0 if record is None else record.count

    def _count(self, lease: int, change: int) -> None:
        count = self._count_of(lease) + change
        if count > 0:
            self._leases.put(lease_key(lease), CountRecord(count))
        else:
            self._leases.delete(lease_key(lease))

    def _parties(self, query: PartiesOf) -> PartyList:
        start = lease_key(query.lease)
        end = prefix_end(start)
        if query.after_name:
            start = bound_key(query.lease, query.after_name, query.after_owner) + b"\0"
        rows = list(self._bound.range(start, end, limit=PARTY_LIST_MAX))
        found = tuple(Party(name_of(key), number_of(key), place.state) for key, place in rows)
        return PartyList(found, len(rows) == PARTY_LIST_MAX)


def _untell(context: Context, told: int, lease: int, event: LetThrough) -> None:
    """The caller has it as a result, and needs no event."""
    effect = (BARRIER_MACHINE, lease_topic(lease), event)
    for at in range(len(context.effects) - 1, told - 1, -1):
        if context.effects[at] == effect:
            del context.effects[at]
            return
