"""The key-value machine: etcd's data model, leases on keys, and a history for watchers.

The revision of the store, and what the entry at hand has done so far, live in attributes while it
is applied and go to their tables in ``finish``, so that a put changes one table and not three. They
are the state outside the tables, hence ``rolled_back``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.fencing import Fence
from quorate.base.kv_commands import (
    INTEGER_MAX,
    INTEGER_MIN,
    Compare,
    CompareAndSet,
    CompareAndSetResult,
    Delete,
    DeleteRange,
    DeleteResult,
    Fenced,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyValue,
    KvCommand,
    KvQuery,
    Put,
    PutResult,
    Range,
    RangeResult,
    StatusResult,
    Txn,
    TxnResult,
)
from quorate.base.kv_watch import KeyEvents, KeysCompacted, WatchKeys
from quorate.base.limits import (
    LEASE_KEYS_MAX,
    RANGE_BYTES_MAX,
    RANGE_LIMIT_MAX,
    REVISION_KEY_BYTES_MAX,
    REVISION_PREVIOUS_BYTES_MAX,
)
from quorate.base.lock_commands import name_text
from quorate.errors import (
    CommandError,
    CompactedError,
    FencedError,
    LeaseExpiredError,
    LimitExceededError,
    WatchLaggingError,
)
from quorate.replication.kv_history import (
    NOTHING,
    OMITTED,
    History,
    HistoryRecord,
    KvRecord,
    Selector,
    shown,
    unfolded,
)
from quorate.replication.machine import Context, Interest, Machine
from quorate.replication.tables import Table, Tables, prefix_end

_REVISION_KEY: Final = b"revision"

#: ``int()`` also takes spaces, underscores and other scripts' digits; a stored number is only this.
_DECIMAL: Final = re.compile(rb"-?[0-9]{1,19}")


#: Commands and operations of a transaction that cannot make the store larger.
_FREEING: Final = (Delete, DeleteRange, Get, Range)


class KvCounter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The store's revision."""

    revision: int


class KvBound(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Under lease (8 bytes) and key: the key goes with the lease."""


class KvLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What goes with a lease: how many keys, and their bytes."""

    count: int
    size_bytes: int


class _TooMuchError(CommandError):
    """One command would read or delete more than it may."""

    code = LimitExceededError.code


class KvMachine(Machine):
    """Machine "kv". Version history: 1, first release."""

    name = "kv"
    version = 1
    command_type: ClassVar[Any] = KvCommand
    query_type: ClassVar[Any] = KvQuery
    watch_type: ClassVar[Any] = WatchKeys

    _records: Table[KvRecord]
    _counters: Table[KvCounter]
    _bound: Table[KvBound]
    _leases: Table[KvLease]

    def __init__(self) -> None:
        self._revision = 0
        self._revision_before = 0
        #: As in ``HistoryRecord``, of the entry at hand.
        self._changes: list[bytes] = []
        self._many: list[tuple[int, int]] = []
        self._changes_before = 0  # of the command at hand, unless it is a plain put
        self._history = History()
        self._lease_alive: Callable[[int], bool] = _nothing_alive
        self._keys_left = 0  # what the command at hand may still read or delete
        self._bytes_left = 0
        self._key_bytes_left = 0  # of keys that it deletes
        self._previous_left = 0  # bytes of values replaced that are kept for watchers
        self._commands: dict[type, Callable[[Any], Any]] = {
            Put: self._apply_put,
            Delete: self._apply_delete,
            DeleteRange: self._apply_delete_range,
            CompareAndSet: self._apply_compare_and_set,
            Increment: self._apply_increment,
            Txn: self._apply_txn,
        }
        self._operations: dict[type, Callable[[Any, int], Any]] = {
            Get: self._get,
            Range: self._range,
            Put: self._put,
            Delete: self._delete,
            DeleteRange: self._delete_range,
            Increment: self._increment,
        }

    # --- the contract -------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._records = tables.table(
            "kv.records", KvRecord, ordered=True, trusted=True, packed=True
        )
        self._counters = tables.table("kv.counters", KvCounter, trusted=True)
        self._bound = tables.table("kv.bound", KvBound, ordered=True, trusted=True)
        self._leases = tables.table("kv.leases", KvLease, trusted=True)
        self._history.attach(tables)

    def loaded(self) -> None:
        counter = self._counters.get(_REVISION_KEY)
        self._revision = self._revision_before = 0 if counter is None else counter.revision
        self._changes, self._many = [], []
        self._history.loaded(self._revision)

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        revision = self._revision_before = self._revision
        if command.__class__ is not Put or command.lease:
            return self._apply_other(command, context)
        # _put again, without three calls: half the time of the most frequent command (0.45 us).
        revision += 1
        key = command.key
        records = self._records
        stored = records.get_stored(key)
        previous = None
        if stored is None:
            stored = NOTHING
            record = KvRecord(command.value, revision, 1, 0)
        else:
            old = records.decode(stored)
            if old.lease:
                return self._apply_other(command, context)
            age = old.age + revision - old.mod
            record = KvRecord(command.value, revision, old.version + 1, age)
            if command.previous:
                previous = shown(key, old)
        changes = self._changes
        changes += (key, records.put(key, record), stored)
        self._revision = revision
        return PutResult(revision, previous)

    def _apply_other(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        if command.__class__ is Fenced:
            self._check_fences(command.fences, context)
            command = command.command
        self._lease_alive = context.lease_alive
        self._begin()
        return self._commands[command.__class__](command)

    def rolled_back(self) -> None:
        self._revision = self._revision_before
        while self._many and self._many[-1][0] > self._revision:
            self._many.pop()
        count = self._revision - self._history.last + sum(more - 1 for _, more in self._many)
        del self._changes[3 * count :]

    def finish(self, context: Context) -> None:
        if self._changes:
            record = HistoryRecord(self._changes, self._many)
            self._changes, self._many = [], []
            self._revision_before = self._revision
            self._counters.put(_REVISION_KEY, KvCounter(self._revision))
            first = self._history.add(record, self._revision)
            context.effects.append((self.name, None, unfolded(first, record)))

    def on_lease_end(self, lease: int, context: Context) -> int:  # noqa: ARG002
        """All its keys go, as one revision."""
        held = self._leases.get(_lease_key(lease))
        if held is None:
            return 0
        self._revision_before = self._revision
        self._begin()
        for bound in list(self._bound.keys(_lease_key(lease), _lease_key(lease + 1))):
            self._remove(bound[8:])
        self._advance()
        return held.count

    def watch(self, request: WatchKeys) -> Interest:
        history, revision = self._history, self._revision
        start = request.start_revision or revision + 1
        oldest = history.oldest
        if start < oldest:
            return Interest(
                _nothing_selected,
                backlog=(KeysCompacted(oldest),),
                ends=CompactedError(
                    f"revision {start} is no longer kept for watchers, the oldest is {oldest}: "
                    "read the keys, and watch from the revision after that read"
                ),
            )
        select = Selector(request, start, self._records.decode)
        backlog, upto = history.read(select, start)
        more = "there is more to tell than one beginning may; begin again from there"
        return Interest(
            select,
            **_interest(request),
            backlog=(*backlog, KeyEvents(upto)),
            ends=None if upto == revision else WatchLaggingError(more),
            progress=(lambda: KeyEvents(self._revision)) if request.progress else None,
        )

    def query(self, query: Any) -> Any:  # noqa: ANN401
        self._open_budget()
        if query.__class__ is Get:
            return self._get(query, self._revision)
        if query.__class__ is Range:
            return self._range(query, self._revision)
        return StatusResult(self._revision, len(self._records))

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        if command.__class__ is Fenced:
            command = command.command
        if command.__class__ is CompareAndSet:
            return command.value is None
        if command.__class__ is Txn:
            return all(isinstance(each, _FREEING) for each in command.success + command.failure)
        return isinstance(command, _FREEING)

    @property
    def revision(self) -> int:
        """Of the store, after the last command."""
        return self._revision

    @property
    def key_count(self) -> int:
        """Keys in the store."""
        return len(self._records)

    @property
    def history(self) -> History:
        """What watchers may still be told."""
        return self._history

    # --- commands -----------------------------------------------------------------------------

    def _check_fences(self, fences: tuple[Fence, ...], context: Context) -> None:
        for fence in fences:
            if not context.fence_holds(fence):
                raise FencedError(
                    f"token {fence.token} of {name_text(fence.name[:100])} ({fence.machine}) is "
                    "not the present grant: it has ended, and another may hold it now"
                )

    def _begin(self) -> None:
        self._changes_before = len(self._changes)
        self._open_budget()

    def _advance(self) -> None:
        """The command at hand has changed something: the store has another revision."""
        self._revision += 1
        count = (len(self._changes) - self._changes_before) // 3
        if count > 1:
            self._many.append((self._revision, count))

    def _apply_put(self, command: Put) -> PutResult:
        result = self._put(command, self._revision + 1)
        self._advance()
        return result

    def _apply_delete(self, command: Delete) -> DeleteResult:
        return self._settle_delete(self._delete(command, self._revision + 1))

    def _apply_delete_range(self, command: DeleteRange) -> DeleteResult:
        return self._settle_delete(self._delete_range(command, self._revision + 1))

    def _settle_delete(self, result: DeleteResult) -> DeleteResult:
        if result.count:
            self._advance()
            return result
        return DeleteResult(self._revision, 0, (), result.more)

    def _apply_compare_and_set(self, command: CompareAndSet) -> CompareAndSetResult:
        key, expected = command.key, command.expected
        old = self._records.get(key)
        if expected is None:
            holds = old is None
        elif isinstance(expected, bytes):
            holds = old is not None and old.value == expected
        else:
            holds = expected == (0 if old is None else old.mod)
        if not holds:
            current = None if old is None else shown(key, old)
            return CompareAndSetResult(self._revision, succeeded=False, current=current)
        if command.value is None:
            if self._remove(key) is not None:
                self._advance()
            return CompareAndSetResult(self._revision, succeeded=True, current=None)
        record = self._write(key, command.value, self._revision + 1, command.lease)
        self._advance()
        return CompareAndSetResult(self._revision, succeeded=True, current=shown(key, record))

    def _apply_increment(self, command: Increment) -> IncrementResult:
        result = self._increment(command, self._revision + 1)
        self._advance()
        return result

    def _apply_txn(self, command: Txn) -> TxnResult:
        succeeded = all(self._holds(each) for each in command.compare)
        branch = command.success if succeeded else command.failure
        revision = self._revision + 1
        operations = self._operations
        results = tuple(operations[each.__class__](each, revision) for each in branch)
        if any(_has_written(each) for each in results):
            self._advance()
        elif results:
            # Nothing was written, so the store is still at the revision before.
            results = tuple(
                msgspec.structs.replace(each, revision=self._revision) for each in results
            )
        return TxnResult(self._revision, succeeded, results)

    def _holds(self, compare: Compare) -> bool:
        record = self._records.get(compare.key)
        found: Any
        if compare.target == "value":
            if record is None:
                return False
            found = record.value
        elif record is None:
            found = 0
        elif compare.target == "version":
            found = record.version
        elif compare.target == "mod":
            found = record.mod
        else:
            found = record.mod - record.age
        operand: Any = compare.operand
        match compare.operator:
            case "=":
                return bool(found == operand)
            case "!=":
                return bool(found != operand)
            case "<":
                return bool(found < operand)
            case _:
                return bool(found > operand)

    # --- operations: commands of their own and parts of a transaction --------------------------

    def _put(self, operation: Put, revision: int) -> PutResult:
        old = self._records.get(operation.key)
        self._write(operation.key, operation.value, revision, operation.lease)
        if old is None or not operation.previous:
            return PutResult(revision)
        return PutResult(revision, self._charged(operation.key, old))

    def _delete(self, operation: Delete, revision: int) -> DeleteResult:
        old = self._remove(operation.key)
        if old is None:
            return DeleteResult(revision, 0)
        previous = (self._charged(operation.key, old),) if operation.previous else ()
        return DeleteResult(revision, 1, previous)

    def _delete_range(self, operation: DeleteRange, revision: int) -> DeleteResult:
        start, end = operation.start, _end_of(operation)
        found = self._records.count(start, end)
        wanted = min(operation.limit, found) if operation.limit else found
        if wanted > self._keys_left:
            raise _TooMuchError(
                f"one command may delete {RANGE_LIMIT_MAX} keys at most, and the range has "
                f"{found}: delete it piece by piece, with a limit"
            )
        self._keys_left -= wanted
        doomed = []
        for key, record in self._records.range(start, end, limit=wanted):
            self._key_bytes_left -= len(key)
            if self._key_bytes_left < 0:
                if not operation.limit:
                    raise _TooMuchError(
                        f"the keys of what one command deletes may have {REVISION_KEY_BYTES_MAX} "
                        "bytes at most: delete it piece by piece, with a limit"
                    )
                break
            doomed.append((key, record))
        for key, _ in doomed:
            self._remove(key)
        previous = tuple(self._charged(*each) for each in doomed) if operation.previous else ()
        return DeleteResult(revision, len(doomed), previous, len(doomed) < found)

    def _increment(self, operation: Increment, revision: int) -> IncrementResult:
        key = operation.key
        old = self._records.get(key)
        number = 0
        if old is not None:
            if not _DECIMAL.fullmatch(old.value):
                raise CommandError(
                    f"the value of {key[:100]!r} is not a decimal number, so nothing can be added"
                )
            number = int(old.value)
        number += operation.delta
        if not INTEGER_MIN <= number <= INTEGER_MAX:
            raise CommandError(f"{number} does not fit into 64 bits")
        self._write(key, b"%d" % number, revision, 0 if old is None else old.lease, keep=True)
        return IncrementResult(revision, number)

    # --- what all writing comes down to --------------------------------------------------------

    def _write(
        self, key: bytes, value: bytes, revision: int, lease: int, *, keep: bool = False
    ) -> KvRecord:
        """*keep*: *lease* is that of the key already."""
        stored = self._records.get_stored(key)
        old = None if stored is None else self._records.decode(stored)
        if old is None:
            record = KvRecord(value, revision, 1, 0, lease)
        else:
            age = old.age + revision - old.mod
            record = KvRecord(value, revision, old.version + 1, age, lease)
        if not keep:
            self._bind(key, 0 if old is None else old.lease, lease)
        self._note(key, self._records.put(key, record), stored)
        return record

    def _remove(self, key: bytes) -> KvRecord | None:
        stored = self._records.get_stored(key)
        old = self._records.delete(key)
        if old is not None:
            self._bind(key, old.lease, 0)
            self._note(key, NOTHING, stored)
        return old

    def _note(self, key: bytes, now: bytes, before: bytes | None) -> None:
        """An event for the history."""
        if before is None:
            before = NOTHING
        else:
            self._previous_left -= len(key) + len(before)
            if self._previous_left < 0:
                before = OMITTED
        self._changes += (key, now, before)

    def _bind(self, key: bytes, old: int, new: int) -> None:
        """The key goes with lease *new* now, and no longer with *old*."""
        if new and not self._lease_alive(new):
            raise LeaseExpiredError(
                f"lease {new} does not stand: it was revoked, has run out, or never was"
            )
        if old == new:
            return
        if old:
            self._bound.delete(_lease_key(old) + key)
            self._count_bound(old, -1, -len(key))
        if new:
            self._bound.put(_lease_key(new) + key, KvBound())
            self._count_bound(new, 1, len(key))

    def _count_bound(self, lease: int, count: int, size_bytes: int) -> None:
        held = self._leases.get(_lease_key(lease))
        if held is not None:
            count, size_bytes = count + held.count, size_bytes + held.size_bytes
        if count > LEASE_KEYS_MAX or size_bytes > REVISION_KEY_BYTES_MAX:
            raise _TooMuchError(
                f"{LEASE_KEYS_MAX} keys with {REVISION_KEY_BYTES_MAX} bytes are the most that may "
                f"go with one lease; {lease} has them already"
            )
        if count:
            self._leases.put(_lease_key(lease), KvLease(count, size_bytes))
        else:
            self._leases.delete(_lease_key(lease))

    # --- reads --------------------------------------------------------------------------------

    def _open_budget(self) -> None:
        """One command, however many operations it has, reads and deletes no more than one range."""
        self._keys_left = RANGE_LIMIT_MAX
        self._bytes_left = RANGE_BYTES_MAX
        self._key_bytes_left = REVISION_KEY_BYTES_MAX
        self._previous_left = REVISION_PREVIOUS_BYTES_MAX

    def _charged(self, key: bytes, record: KvRecord) -> KeyValue:
        """A record as it is shown, where it cannot be left out as from a range."""
        self._bytes_left -= len(key) + len(record.value)
        if self._bytes_left < 0:
            raise _TooMuchError(
                f"one command may answer with {RANGE_BYTES_MAX} bytes of keys and values at most; "
                "ask for fewer at once, or not for what was there before"
            )
        return shown(key, record)

    def _get(self, operation: Get, revision: int) -> GetResult:
        record = self._records.get(operation.key)
        return GetResult(revision, None if record is None else self._charged(operation.key, record))

    def _range(self, operation: Range, revision: int) -> RangeResult:
        start, end = operation.start, _end_of(operation)
        found = self._records.count(start, end)
        if operation.count_only:
            return RangeResult(revision, (), found > 0, found)
        wanted = min(operation.limit or RANGE_LIMIT_MAX, self._keys_left)
        records = self._records.range(start, end, reverse=operation.reverse, limit=wanted)
        items = tuple(self._within_budget(records, keys_only=operation.keys_only))
        return RangeResult(revision, items, len(items) < found, found)

    def _within_budget(
        self, records: Iterator[tuple[bytes, KvRecord]], *, keys_only: bool
    ) -> Iterator[KeyValue]:
        """Records as they are shown, until the bytes of the command run out; but always one."""
        whole = self._bytes_left == RANGE_BYTES_MAX
        for key, record in records:
            self._bytes_left -= len(key) + (0 if keys_only else len(record.value))
            if self._bytes_left < 0 and not whole:
                return
            whole = False
            self._keys_left -= 1
            yield shown(key, record, keys_only=keys_only)


def _end_of(operation: Range | DeleteRange) -> bytes | None:
    return prefix_end(operation.start) if operation.prefix else operation.end


def _lease_key(lease: int) -> bytes:
    return lease.to_bytes(8, "big")


def _interest(request: WatchKeys) -> dict[str, Any]:
    """The keys asked for, in the cheapest way to look for them."""
    if request.prefix or (not request.start and request.end is None):
        return {"prefix": request.start}
    if request.end == request.start + b"\0":
        return {"keys": (request.start,)}
    return {"start": request.start, "end": request.end}


def _nothing_selected(_key: bytes, _event: object) -> None:
    """Of a watch that ends before it has begun."""


def _nothing_alive(lease: int) -> bool:  # noqa: ARG001
    return False


def _has_written(result: Any) -> bool:  # noqa: ANN401
    if result.__class__ is DeleteResult:
        return bool(result.count)
    return result.__class__ is PutResult or result.__class__ is IncrementResult
