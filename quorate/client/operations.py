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

from quorate.base.kv_commands import (
    INTEGER_MAX,
    INTEGER_MIN,
    Compare,
    Delete,
    DeleteRange,
    Get,
    Increment,
    Operator,
    Put,
    Range,
    Target,
)
from quorate.base.limits import KEY_BYTES_MAX, RANGE_LIMIT_MAX, VALUE_BYTES_MAX
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


# --- operations ------------------------------------------------------------------------------


def put(key: Bytes, value: Bytes, *, previous: bool = False) -> Put:
    """Set *key*; with *previous*, the result shows what was there."""
    return Put(as_key(key), as_value(value), previous)


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
