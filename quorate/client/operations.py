"""Conditions and operations of key-value transactions, checked where they are made.

::

    from quorate import ops

    await db.kv.txn(
        [ops.missing("config/1"), ops.version("config/0") > 2],
        then=[ops.put("config/1", "x"), ops.delete("config/0")],
        otherwise=[ops.get("config/1")],
    )

Keys and values are bytes; a ``str`` is taken as its UTF-8 encoding. What comes back is bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from quorate.base.fencing import Fence
from quorate.base.kv_commands import (
    INTEGER_MAX,
    INTEGER_MIN,
    Compare,
    Delete,
    DeleteRange,
    Fenced,
    Get,
    Increment,
    KvWrite,
    Operator,
    Put,
    Range,
    Target,
)
from quorate.base.kv_watch import WatchKeys
from quorate.base.limits import FENCES_MAX, KEY_BYTES_MAX, RANGE_LIMIT_MAX, VALUE_BYTES_MAX
from quorate.errors import InvalidArgumentError, LimitExceededError

Bytes = bytes | bytearray | memoryview | str


def as_bytes(value: Bytes, what: str) -> bytes:
    """*value* as bytes, a str encoded as UTF-8.

    Raises:
        InvalidArgumentError: it is neither, or a str that has no such encoding.
    """
    given: object = value  # callers without a type checker hand in anything
    if isinstance(given, bytes):
        return given
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"the {what} cannot be encoded as UTF-8: {error}") from error
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    raise InvalidArgumentError(f"a {what} is bytes or str, not {type(given).__name__}: {given!r}")


def as_key(key: Bytes) -> bytes:
    """A key as bytes.

    Raises:
        InvalidArgumentError: not bytes or str, or empty.
        LimitExceededError: longer than ``KEY_BYTES_MAX``.
    """
    found = as_bytes(key, "key")
    if not found:
        raise InvalidArgumentError("a key has at least one byte")
    if len(found) > KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a key of {len(found)} bytes is over the limit of {KEY_BYTES_MAX}"
        )
    return found


def as_value(value: Bytes) -> bytes:
    """A value as bytes.

    Raises:
        InvalidArgumentError: not bytes or str.
        LimitExceededError: longer than ``VALUE_BYTES_MAX``.
    """
    found = as_bytes(value, "value")
    if len(found) > VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"a value of {len(found)} bytes is over the limit of {VALUE_BYTES_MAX}"
        )
    return found


def as_integer(number: int, what: str) -> int:
    """*number* if it is a 64-bit integer.

    Raises:
        InvalidArgumentError: it is not.
    """
    given: object = number
    if type(given) is not int or not INTEGER_MIN <= given <= INTEGER_MAX:
        raise InvalidArgumentError(f"{what} is an integer of 64 bits, not {given!r}")
    return given


class Leased(Protocol):
    """What may stand for a lease: a ``Lease``, or whatever has the ``id`` of one."""

    @property
    def id(self) -> int: ...


class Granted(Protocol):
    """What may stand for a fence: a grant of a lock, or whatever has a ``fence``."""

    @property
    def fence(self) -> Fence: ...


def as_lease(lease: int | Leased) -> int:
    """The id of a lease; 0 is none.

    Raises:
        InvalidArgumentError: it is no lease, or one that was not granted yet.
    """
    found: object = lease if isinstance(lease, int) else getattr(lease, "id", None)
    if type(found) is not int or not 0 <= found <= INTEGER_MAX:
        raise InvalidArgumentError(f"a lease is a Lease or its id, not {lease!r}")
    if found == 0 and not isinstance(lease, int):
        raise InvalidArgumentError(f"{lease!r} was not granted yet")
    return found


def fenced(command: KvWrite, fence: Fence | Granted | Iterable[Fence | Granted] | None) -> object:
    """*command*, to be refused unless each of *fence* is the present grant.

    Raises:
        InvalidArgumentError: *fence* is no grant, nor some.
        LimitExceededError: more than ``FENCES_MAX``.
    """
    if fence is None:
        return command
    one = isinstance(fence, Fence) or hasattr(fence, "fence")
    given: tuple[object, ...] = (fence,) if one or not isinstance(fence, Iterable) else tuple(fence)
    fences = tuple(
        each if isinstance(each, Fence) else getattr(each, "fence", None) for each in given
    )
    if not fences:
        raise InvalidArgumentError("an empty fence keeps nobody out; None says that there is none")
    if len(fences) > FENCES_MAX:
        raise LimitExceededError(f"a command has up to {FENCES_MAX} fences, not {len(fences)}")
    for each, found in zip(given, fences, strict=True):
        if not isinstance(found, Fence):
            raise InvalidArgumentError(f"a fence is a grant of a lock or its Fence, not {each!r}")
    return Fenced(fences, command)  # type: ignore[arg-type]  # each was just looked at


# --- operations ------------------------------------------------------------------------------


def put(key: Bytes, value: Bytes, *, previous: bool = False, lease: int | Leased = 0) -> Put:
    """Set *key*; with *previous*, the result shows what was there. *lease*: the key goes when that
    lease ends; 0: it belongs to none from now on."""
    return Put(as_key(key), as_value(value), previous, as_lease(lease))


def get(key: Bytes) -> Get:
    """Read one key."""
    return Get(as_key(key))


def delete(key: Bytes, *, previous: bool = False) -> Delete:
    """Remove one key, if it is there."""
    return Delete(as_key(key), previous)


def increment(key: Bytes, delta: int = 1) -> Increment:
    """Add *delta* to the decimal number under *key*."""
    return Increment(as_key(key), as_integer(delta, "delta"))


def span(
    start: Bytes | None = None,
    end: Bytes | None = None,
    *,
    prefix: Bytes | None = None,
    limit: int = 0,
    reverse: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
) -> Range:
    """Read keys: all from *start* up to but not including *end*, or all that begin with *prefix*.

    *start* None: from the first; *end* None: to the last; a *prefix* of no bytes: every key.
    *limit* 0: as many as a reply may hold.
    """
    first, last, named = _bounds(start, end, prefix)
    return Range(first, last, named, _as_limit(limit), reverse, keys_only, count_only)


def delete_span(
    start: Bytes | None = None,
    end: Bytes | None = None,
    *,
    prefix: Bytes | None = None,
    limit: int = 0,
    previous: bool = False,
) -> DeleteRange:
    """Remove keys, named as in ``span``; one of *start*, *end* and *prefix* must be given, so that
    no slip of a keyword empties the store (``prefix=""`` does)."""
    if start is None and end is None and prefix is None:
        raise InvalidArgumentError("say what to remove: start, end or prefix (prefix='': all)")
    first, last, named = _bounds(start, end, prefix)
    return DeleteRange(first, last, named, _as_limit(limit), previous)


def watched(
    key: Bytes | None,
    prefix: Bytes | None,
    start: Bytes | None,
    end: Bytes | None,
    start_revision: int | None,
    *,
    previous: bool,
    puts: bool,
    deletes: bool,
) -> WatchKeys:
    """What ``Kv.watch`` asks for.

    Raises:
        InvalidArgumentError: the keys are named in no way, or in several; or a revision is below 1.
    """
    if key is None and prefix is None and start is None and end is None:
        raise InvalidArgumentError(
            "say what to watch: a key, prefix, start or end (prefix='': all)"
        )
    if key is not None:
        if prefix is not None or start is not None or end is not None:
            raise InvalidArgumentError("a watch is for a key, for a prefix, or for start and end")
        first = as_key(key)
        last: bytes | None = first + b"\0"
        named = False
    else:
        first, last, named = _bounds(start, end, prefix)
    begin = 0 if start_revision is None else as_integer(start_revision, "start_revision")
    if begin < 0 or (begin == 0 and start_revision is not None):
        raise InvalidArgumentError(f"revisions begin with 1, and start_revision is {begin}")
    return WatchKeys(first, last, named, begin, previous, puts, deletes)


def _bounds(
    start: Bytes | None, end: Bytes | None, prefix: Bytes | None
) -> tuple[bytes, bytes | None, bool]:
    if prefix is not None:
        if start is not None or end is not None:
            raise InvalidArgumentError("a range is named by start and end, or by a prefix")
        return _as_bound(prefix), None, True
    return (
        b"" if start is None else _as_bound(start),
        None if end is None else _as_bound(end),
        False,
    )


def _as_bound(bound: Bytes) -> bytes:
    found = as_bytes(bound, "bound of a range")
    if len(found) > KEY_BYTES_MAX + 1:
        raise LimitExceededError(
            f"a bound of {len(found)} bytes is over the limit of {KEY_BYTES_MAX + 1}"
        )
    return found


def _as_limit(limit: int) -> int:
    given: object = limit
    if type(given) is not int or not 0 <= given <= RANGE_LIMIT_MAX:
        raise InvalidArgumentError(f"a limit is 0 to {RANGE_LIMIT_MAX}, not {given!r}")
    return given


# --- conditions ------------------------------------------------------------------------------


class Subject:
    """One side of a condition: ``version("k") == 3`` is a ``Compare``. Operators: == != < >."""

    __slots__ = ("_key", "_target")
    __hash__ = None  # type: ignore[assignment]  # its == makes a condition, so it is no dict key

    def __init__(self, key: Bytes, target: Target) -> None:
        self._key = as_key(key)
        self._target = target

    def _compare(self, operator: Operator, operand: object) -> Compare:
        if self._target == "value":
            checked: bytes | int = as_value(operand)  # type: ignore[arg-type]  # it checks
        else:
            checked = as_integer(operand, self._target)  # type: ignore[arg-type]  # it checks
        return Compare(self._key, self._target, operator, checked)

    def __eq__(self, operand: object) -> Compare:  # type: ignore[override]  # makes a condition
        return self._compare("=", operand)

    def __ne__(self, operand: object) -> Compare:  # type: ignore[override]  # makes a condition
        return self._compare("!=", operand)

    def __lt__(self, operand: object) -> Compare:
        return self._compare("<", operand)

    def __gt__(self, operand: object) -> Compare:
        return self._compare(">", operand)


def value(key: Bytes) -> Subject:
    """The value of *key*; any comparison with it is false while there is no such key."""
    return Subject(key, "value")


def version(key: Bytes) -> Subject:
    """The number of writes of *key* since it was created, 0 while there is no such key."""
    return Subject(key, "version")


def create_revision(key: Bytes) -> Subject:
    """The revision that created *key*, 0 while there is no such key."""
    return Subject(key, "create")


def mod_revision(key: Bytes) -> Subject:
    """The revision that last wrote *key*, 0 while there is no such key."""
    return Subject(key, "mod")


def missing(key: Bytes) -> Compare:
    """There is no such key."""
    return Compare(as_key(key), "version", "=", 0)


def exists(key: Bytes) -> Compare:
    """There is such a key."""
    return Compare(as_key(key), "version", ">", 0)
