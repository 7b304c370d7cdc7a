"""Commands, queries and results of the key-value machine, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning. Commands and queries refuse fields that they
do not know: a node must not act on half of what it was told. Results use tags from 1;
``Failure`` is 0.

The rules of revisions are etcd's. The *revision* of the store grows by one with each command that
changes something, however many keys it changes; a key remembers the revision that created it, the
revision that last modified it, and its *version*, the number of writes since it was created.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Final, Literal

import msgspec

from quorate.base.fencing import Fence
from quorate.base.limits import (
    FENCES_MAX,
    KEY_BYTES_MAX,
    RANGE_LIMIT_MAX,
    TXN_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
)
from quorate.base.results import Failure
from quorate.errors import InvalidArgumentError

INTEGER_MAX: Final = 2**63 - 1  # what ``Increment`` can hold: a signed 64-bit integer
INTEGER_MIN: Final = -(2**63)

Key = Annotated[bytes, msgspec.Meta(min_length=1, max_length=KEY_BYTES_MAX)]
Value = Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)]
#: Start or end of a range; one byte longer than a key, so that ``key + b"\0"`` is one.
Bound = Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES_MAX + 1)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=RANGE_LIMIT_MAX)]
Integer = Annotated[int, msgspec.Meta(ge=INTEGER_MIN, le=INTEGER_MAX)]
#: A lease's id; 0: none.
LeaseOrNone = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]

Target = Literal["value", "version", "create", "mod"]
Operator = Literal["=", "!=", "<", ">"]


# --- reads: queries, and operations of a transaction -----------------------------------------


class Get(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """One key. Result: ``GetResult``."""

    key: Key


class Range(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Keys from *start* up to but not including *end* (None: to the last), or, with *prefix*, all
    keys that begin with *start*. *limit* 0: as many as a reply may hold. *keys_only*: values come
    empty. *count_only*: no keys at all. Result: ``RangeResult``."""

    start: Bound
    end: Bound | None = None
    prefix: bool = False
    limit: Limit = 0
    reverse: bool = False
    keys_only: bool = False
    count_only: bool = False

    def __post_init__(self) -> None:
        check_range(self.end, prefix=self.prefix)


class Status(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """The store as a whole. Result: ``StatusResult``."""


# --- commands ---------------------------------------------------------------------------------


class Put(
    msgspec.Struct, frozen=True, array_like=True, tag=11, forbid_unknown_fields=True, gc=False
):
    """Set *key* to *value*. *previous*: the result says what was there. *lease*: the key goes when
    that lease ends; 0: it belongs to none from now on, whatever it did before (as in etcd). Refused
    if the lease does not stand. Result: ``PutResult``."""

    key: Key
    value: Value
    previous: bool = False
    lease: LeaseOrNone = 0


class Delete(
    msgspec.Struct, frozen=True, array_like=True, tag=12, forbid_unknown_fields=True, gc=False
):
    """Remove one key, if it is there. Result: ``DeleteResult``."""

    key: Key
    previous: bool = False


class DeleteRange(
    msgspec.Struct, frozen=True, array_like=True, tag=13, forbid_unknown_fields=True, gc=False
):
    """Remove a range, named as in ``Range``, in key order. *limit* 0: all of it, and the command
    is refused if that is more than ``RANGE_LIMIT_MAX`` keys; otherwise at most so many, and
    ``DeleteResult.more`` says whether some are left."""

    start: Bound
    end: Bound | None = None
    prefix: bool = False
    limit: Limit = 0
    previous: bool = False

    def __post_init__(self) -> None:
        check_range(self.end, prefix=self.prefix)


class CompareAndSet(
    msgspec.Struct, frozen=True, array_like=True, tag=14, forbid_unknown_fields=True, gc=False
):
    """Set *key* to *value* (None: remove it) if it is as *expected*: a value, or the revision that
    last modified it, or None for "there is no such key". *lease*: as for ``Put``. Result:
    ``CompareAndSetResult``."""

    key: Key
    value: Value | None
    expected: Value | Integer | None
    lease: LeaseOrNone = 0


class Increment(
    msgspec.Struct, frozen=True, array_like=True, tag=15, forbid_unknown_fields=True, gc=False
):
    """Add *delta* to the decimal number stored as text under *key*; a missing key counts as 0. A
    lease that the key is bound to stays. Refused if the value is no such number, or the sum leaves
    64 bits. Result: ``IncrementResult``."""

    key: Key
    delta: Integer = 1


class Compare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A condition on one key. *operand*: bytes for the target "value", else a number. A missing
    key has version, create and mod 0; its value compares as false with any operator (as in etcd).
    """

    key: Key
    target: Target
    operator: Operator
    operand: bytes | Integer

    def __post_init__(self) -> None:
        if isinstance(self.operand, bytes) != (self.target == "value"):
            raise InvalidArgumentError(
                f"the operand of a comparison of {self.target!r} must be "
                f"{'bytes' if self.target == 'value' else 'an integer'}"
            )


Operation = Get | Range | Put | Delete | DeleteRange | Increment


class Txn(
    msgspec.Struct, frozen=True, array_like=True, tag=16, forbid_unknown_fields=True, gc=False
):
    """If all of *compare* hold, do *success*, else *failure*: in order, all or nothing, under one
    revision; later operations see what earlier ones did. A key may be written once in a branch,
    and not be deleted in it as well (etcd's rule). Result: ``TxnResult``."""

    compare: Annotated[tuple[Compare, ...], msgspec.Meta(max_length=TXN_OPERATIONS_MAX)]
    success: Annotated[tuple[Operation, ...], msgspec.Meta(max_length=TXN_OPERATIONS_MAX)]
    failure: Annotated[tuple[Operation, ...], msgspec.Meta(max_length=TXN_OPERATIONS_MAX)] = ()

    def __post_init__(self) -> None:
        _check_branch(self.success)
        _check_branch(self.failure)


KvWrite = Put | Delete | DeleteRange | CompareAndSet | Increment | Txn


class Fenced(
    msgspec.Struct, frozen=True, array_like=True, tag=17, forbid_unknown_fields=True, gc=False
):
    """*command*, unless one of *fences* is not the present grant: then it is refused with code
    "fenced". Result: that of *command*."""

    fences: Annotated[tuple[Fence, ...], msgspec.Meta(min_length=1, max_length=FENCES_MAX)]
    command: KvWrite


# --- results ----------------------------------------------------------------------------------


class KeyValue(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key as it stands, or stood. *lease*: that it goes with; 0: none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class GetResult(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """*revision* here and below: of the store, after the command."""

    revision: int
    item: KeyValue | None


class RangeResult(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*count*: keys in the whole range. *more*: *items* ends before the range does, because of the
    limit or of ``RANGE_BYTES_MAX``; go on behind the last key."""

    revision: int
    items: tuple[KeyValue, ...]
    more: bool
    count: int


class StatusResult(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """*key_count*: of the whole store."""

    revision: int
    key_count: int


class PutResult(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*previous*: what the put replaced, if it was asked for."""

    revision: int
    previous: KeyValue | None = None


class DeleteResult(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Of ``Delete`` and ``DeleteRange``. *count*: keys removed."""

    revision: int
    count: int
    previous: tuple[KeyValue, ...] = ()
    more: bool = False


class CompareAndSetResult(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """*current*: the key as it stands after the command, changed or not."""

    revision: int
    succeeded: bool
    current: KeyValue | None


class IncrementResult(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """*value*: the sum."""

    revision: int
    value: int


class TxnResult(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """*results*: one per operation of the branch that ran."""

    revision: int
    succeeded: bool
    results: tuple[GetResult | RangeResult | PutResult | DeleteResult | IncrementResult, ...]


KvCommand = KvWrite | Fenced
KvQuery = Get | Range | Status
KvResult = (
    Failure
    | GetResult
    | RangeResult
    | StatusResult
    | PutResult
    | DeleteResult
    | CompareAndSetResult
    | IncrementResult
    | TxnResult
)


# --- checks that types cannot say; they run in the client's constructor and in the decoder ------


def check_range(end: bytes | None, *, prefix: bool) -> None:
    """A range has one name. Raises InvalidArgumentError."""
    if prefix and end is not None:
        raise InvalidArgumentError("a range is named by its end or by a prefix, not by both")


def _check_branch(operations: tuple[Operation, ...]) -> None:
    """No key is written twice, or written and deleted: ``checkIntervals`` of etcd."""
    written: set[bytes] = set()
    for operation in operations:
        if isinstance(operation, Put | Increment):
            if operation.key in written:
                raise InvalidArgumentError("a transaction writes one key twice")
            written.add(operation.key)
    if not written:
        return
    ordered = sorted(written)
    for operation in operations:
        if isinstance(operation, Delete) and operation.key in written:
            raise InvalidArgumentError("a transaction writes and deletes one key")
        if isinstance(operation, DeleteRange) and _reaches(operation, ordered):
            raise InvalidArgumentError("a transaction writes and deletes one key")


def _reaches(wide: DeleteRange, keys: list[bytes]) -> bool:
    """Whether the range holds one of *keys*: if any, then the least one at or above its start.
    (Trying each key with each range would cost 0.1 s on the largest branch.)"""
    at = bisect_left(keys, wide.start)
    if at == len(keys):
        return False
    if wide.prefix:
        return keys[at].startswith(wide.start)
    return wide.end is None or keys[at] < wide.end
