"""The key-value machine: etcd's data model on one table.

The revision of the store lives in an attribute while an entry is applied and goes to its table in
``finish``, so that a put changes one table and not two. It is the one piece of state outside the
tables, hence ``rolled_back``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.kv_commands import (
    INTEGER_MAX,
    INTEGER_MIN,
    Compare,
    CompareAndSet,
    CompareAndSetResult,
    Delete,
    DeleteRange,
    DeleteResult,
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
from quorate.base.limits import RANGE_BYTES_MAX, RANGE_LIMIT_MAX
from quorate.errors import CommandError, LimitExceededError
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Table, Tables, prefix_end

_REVISION_KEY: Final = b"revision"

#: ``int()`` also takes spaces, underscores and other scripts' digits; a stored number is only this.
_DECIMAL: Final = re.compile(rb"-?[0-9]{1,19}")


#: Commands and operations of a transaction that cannot make the store larger.
_FREEING: Final = (Delete, DeleteRange, Get, Range)


class KvRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stored value. *mod*: the revision that last modified it. *age*: revisions between its
    creation and that; as a small number it is shared, where a second revision would cost every
    record 32 bytes more."""

    value: bytes
    mod: int
    version: int
    age: int


class KvCounter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The store's revision."""

    revision: int


class _TooMuchError(CommandError):
    """One command would read or delete more than it may."""

    code = LimitExceededError.code


class KvMachine(Machine):
    """Machine "kv". Version history: 1, first release."""

    name = "kv"
    version = 1
    command_type: ClassVar[Any] = KvCommand
    query_type: ClassVar[Any] = KvQuery

    _records: Table[KvRecord]
    _counters: Table[KvCounter]

    def __init__(self) -> None:
        self._revision = 0
        self._revision_before = 0
        self._keys_left = 0  # what the command at hand may still read or delete
        self._bytes_left = 0
        self._commands: dict[type, Callable[[Any], Any]] = {
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

    def loaded(self) -> None:
        counter = self._counters.get(_REVISION_KEY)
        self._revision = self._revision_before = 0 if counter is None else counter.revision

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401, ARG002
        revision = self._revision_before = self._revision
        if command.__class__ is not Put:
            return self._commands[command.__class__](command)
        # _put again, without two calls: a third less for the most frequent command (0.45 us).
        revision += 1
        key = command.key
        records = self._records
        old = records.get(key)
        previous = None
        if old is None:
            records.put(key, KvRecord(command.value, revision, 1, 0))
        else:
            age = old.age + revision - old.mod
            records.put(key, KvRecord(command.value, revision, old.version + 1, age))
            if command.previous:
                previous = _shown(key, old)
        self._revision = revision
        return PutResult(revision, previous)

    def rolled_back(self) -> None:
        self._revision = self._revision_before

    def finish(self, context: Context) -> None:  # noqa: ARG002
        counter = self._counters.get(_REVISION_KEY)
        if self._revision != (0 if counter is None else counter.revision):
            self._revision_before = self._revision
            self._counters.put(_REVISION_KEY, KvCounter(self._revision))

    def query(self, query: Any) -> Any:  # noqa: ANN401
        self._open_budget()
        if query.__class__ is Get:
            return self._get(query, self._revision)
        if query.__class__ is Range:
            return self._range(query, self._revision)
        return StatusResult(self._revision, len(self._records))

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
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

    # --- commands -----------------------------------------------------------------------------

    def _apply_delete(self, command: Delete) -> DeleteResult:
        self._open_budget()
        result = self._delete(command, self._revision + 1)
        return self._settle_delete(result)

    def _apply_delete_range(self, command: DeleteRange) -> DeleteResult:
        self._open_budget()
        result = self._delete_range(command, self._revision + 1)
        return self._settle_delete(result)

    def _settle_delete(self, result: DeleteResult) -> DeleteResult:
        if result.count:
            self._revision = result.revision
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
            current = None if old is None else _shown(key, old)
            return CompareAndSetResult(self._revision, succeeded=False, current=current)
        if command.value is None:
            if self._records.delete(key) is not None:
                self._revision += 1
            return CompareAndSetResult(self._revision, succeeded=True, current=None)
        record = self._write(key, command.value, self._revision + 1)
        self._revision += 1
        current = _shown(key, record)
        return CompareAndSetResult(self._revision, succeeded=True, current=current)

    def _apply_increment(self, command: Increment) -> IncrementResult:
        result = self._increment(command, self._revision + 1)
        self._revision += 1
        return result

    def _apply_txn(self, command: Txn) -> TxnResult:
        self._open_budget()
        succeeded = all(self._holds(each) for each in command.compare)
        branch = command.success if succeeded else command.failure
        revision = self._revision + 1
        operations = self._operations
        results = tuple(operations[each.__class__](each, revision) for each in branch)
        if any(_has_written(each) for each in results):
            self._revision = revision
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
        self._write(operation.key, operation.value, revision)
        if old is None or not operation.previous:
            return PutResult(revision)
        return PutResult(revision, self._charged(operation.key, old))

    def _delete(self, operation: Delete, revision: int) -> DeleteResult:
        old = self._records.delete(operation.key)
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
        doomed = list(self._records.range(start, end, limit=wanted))
        for key, _ in doomed:
            self._records.delete(key)
        previous = tuple(self._charged(*each) for each in doomed) if operation.previous else ()
        return DeleteResult(revision, wanted, previous, wanted < found)

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
        self._write(key, b"%d" % number, revision)
        return IncrementResult(revision, number)

    def _write(self, key: bytes, value: bytes, revision: int) -> KvRecord:
        old = self._records.get(key)
        if old is None:
            record = KvRecord(value, revision, 1, 0)
        else:
            record = KvRecord(value, revision, old.version + 1, old.age + revision - old.mod)
        self._records.put(key, record)
        return record

    # --- reads --------------------------------------------------------------------------------

    def _open_budget(self) -> None:
        """One command, however many operations it has, reads and deletes no more than one range."""
        self._keys_left = RANGE_LIMIT_MAX
        self._bytes_left = RANGE_BYTES_MAX

    def _charged(self, key: bytes, record: KvRecord) -> KeyValue:
        """A record as it is shown, where it cannot be left out as from a range."""
        self._bytes_left -= len(key) + len(record.value)
        if self._bytes_left < 0:
            raise _TooMuchError(
                f"one command may answer with {RANGE_BYTES_MAX} bytes of keys and values at most; "
                "ask for fewer at once, or not for what was there before"
            )
        return _shown(key, record)

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
            yield _shown(key, record, keys_only=keys_only)


def _end_of(operation: Range | DeleteRange) -> bytes | None:
    return prefix_end(operation.start) if operation.prefix else operation.end


def _shown(key: bytes, record: KvRecord, *, keys_only: bool = False) -> KeyValue:
    value = b"" if keys_only else record.value
    return KeyValue(key, value, record.mod - record.age, record.mod, record.version)


def _has_written(result: Any) -> bool:  # noqa: ANN401
    if result.__class__ is DeleteResult:
        return bool(result.count)
    return result.__class__ is PutResult or result.__class__ is IncrementResult
