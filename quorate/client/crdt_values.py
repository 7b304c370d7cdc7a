"""What may be an element, a key or a value of CRDT data, checked before anything is sent.

A node checks again. Here it is done so that the error is raised where the mistake is, and that one
call's mistake costs none of the others that leave in the same frame.
"""

from __future__ import annotations

from typing import Any, Final

from quorate.base.crdt_operations import AMOUNT_MAX
from quorate.base.limits import CRDT_KEY_BYTES_MAX, CRDT_KEY_DEPTH_MAX
from quorate.errors import InvalidArgumentError, LimitExceededError

#: An element of a set, a key of a map; a list is taken as a tuple.
Key = str | bytes | int | tuple[Any, ...]

VALUE_DEPTH_MAX: Final = 64  # levels of nesting of one value of a register


def check_key(key: Any) -> Any:  # noqa: ANN401  checked here
    """*key* if it can be one.

    Raises:
        InvalidArgumentError: it cannot.
    """
    kind = type(key)
    if kind is not str and kind is not bytes:
        _check_key(key, 0)
    return key


def _check_key(key: object, depth: int) -> None:
    kind = type(key)
    if kind is str or kind is bytes:
        return
    if type(key) is int:
        if not -(2**63) <= key < 2**64:
            raise InvalidArgumentError(f"{key} does not fit into 64 bits")
        return
    if not isinstance(key, tuple | list) or depth >= CRDT_KEY_DEPTH_MAX:
        raise InvalidArgumentError(
            f"{key!r:.80} is neither an element nor a key: use a string, bytes, an integer or a "
            "tuple of these"
        )
    for part in key:
        _check_key(part, depth + 1)


def check_name(name: object) -> str:
    """*name* if CRDT data can stand under it.

    Raises:
        InvalidArgumentError, LimitExceededError: it is no text, empty, or too long.
    """
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(f"a name is a text that is not empty, not {name!r:.80}")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the name {name!r:.80} cannot be encoded: {error}") from error
    if size_bytes + 5 > CRDT_KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a name takes up to {CRDT_KEY_BYTES_MAX - 5} bytes, this one {size_bytes}"
        )
    return name


def check_amount(amount: object) -> int:
    """*amount* if a counter can be changed by it.

    Raises:
        InvalidArgumentError: it is no integer from 1 to ``AMOUNT_MAX``.
    """
    if type(amount) is not int or not 0 < amount <= AMOUNT_MAX:
        raise InvalidArgumentError(
            f"a counter is changed by an integer from 1 to {AMOUNT_MAX}, not {amount!r}"
        )
    return amount


def check_value(value: Any, depth: int = 0) -> Any:  # noqa: ANN401  checked here
    """A copy of *value* if a register can hold it: later changes of the caller's do not touch it.

    Raises:
        InvalidArgumentError: it holds something that would not come back as it went in.
    """
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if depth >= VALUE_DEPTH_MAX:
        raise InvalidArgumentError(f"a value is nested deeper than {VALUE_DEPTH_MAX} levels")
    if isinstance(value, list | tuple):
        return [check_value(item, depth + 1) for item in value]
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, bytes, int):
                raise InvalidArgumentError(
                    f"a dict in a value has the key {key!r:.80}: use strings"
                )
        return {key: check_value(item, depth + 1) for key, item in value.items()}
    raise InvalidArgumentError(
        f"a value holds a {type(value).__name__}: use None, bools, numbers, strings, bytes, lists "
        "and dicts"
    )


def as_key(answer: Any) -> Any:  # noqa: ANN401  whatever msgpack made of a key
    """A key as it was put in: msgpack has lists for tuples."""
    return tuple(map(as_key, answer)) if isinstance(answer, list) else answer
