"""Canonical bytes of keys and values: equal ones are equal bytes, on every replica.

A *key* (an element of a set, a key of a map) is a string, bytes, an integer or a tuple of keys:
things that are equal in Python exactly when their bytes are. True equals 1, 1.0 equals 1, and NaN
not itself, so these are no keys. A *value* (of a register) is whatever MessagePack has, save NaN.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from quorate.base.limits import CRDT_KEY_BYTES_MAX, CRDT_KEY_DEPTH_MAX, VALUE_BYTES_MAX
from quorate.errors import CrdtFormatError, InvalidArgumentError, LimitExceededError

VALUE_DEPTH_MAX: Final = 64  # levels of nesting of one value
_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**64 - 1

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder().decode


def encode_key(key: Any) -> bytes:  # noqa: ANN401  checked here, and said so by an error
    """The canonical bytes of *key*; a list counts as a tuple.

    Raises:
        InvalidArgumentError: it is no key.
        LimitExceededError: it is longer than ``CRDT_KEY_BYTES_MAX``.
    """
    kind = type(key)
    if kind is not str and kind is not bytes:
        _check_key(key, 0)
    try:
        encoded = _encode(key)
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidArgumentError(f"the key {key!r:.80} cannot be encoded: {error}") from error
    if len(encoded) > CRDT_KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a key takes {len(encoded)} bytes, at most {CRDT_KEY_BYTES_MAX}: use a digest of it"
        )
    return encoded


def decode_key(encoded: bytes) -> Any:  # noqa: ANN401  a key
    """The key of canonical bytes.

    Raises:
        CrdtFormatError: these are not the canonical bytes of a key.
    """
    try:
        key = _tuples(_decode(encoded))
        again = encode_key(key)
    except (msgspec.DecodeError, InvalidArgumentError, RecursionError, UnicodeError) as error:
        raise CrdtFormatError(f"{encoded[:40]!r} is no key: {error}") from error
    if again != encoded:
        raise CrdtFormatError(f"{encoded[:40]!r} is not the canonical form of the key {key!r:.80}")
    return key


def encode_value(value: Any) -> bytes:  # noqa: ANN401  anything MessagePack has
    """The canonical bytes of *value*: maps sorted, the shortest integers, no negative zero.

    Raises:
        InvalidArgumentError: it holds something without canonical bytes.
        LimitExceededError: it is longer than ``VALUE_BYTES_MAX``.
    """
    try:
        encoded = _encode(_plain(value, 0))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"the value {value!r:.80} cannot be stored: {error}") from error
    if len(encoded) > VALUE_BYTES_MAX:
        raise LimitExceededError(f"a value takes {len(encoded)} bytes, at most {VALUE_BYTES_MAX}")
    return encoded


def decode_value(encoded: bytes) -> Any:  # noqa: ANN401  whatever was put in
    """The value of canonical bytes; tuples come back as lists.

    Raises:
        CrdtFormatError: these are not the canonical bytes of a value.
    """
    try:
        value = _decode(encoded)
        again = encode_value(value)
    except (msgspec.DecodeError, InvalidArgumentError, RecursionError, UnicodeError) as error:
        raise CrdtFormatError(f"{encoded[:40]!r} is no value: {error}") from error
    except TypeError as error:  # a map with a key that cannot be one
        raise CrdtFormatError(f"{encoded[:40]!r} is no value: {error}") from error
    if again != encoded:
        raise CrdtFormatError(f"{encoded[:40]!r} is not the canonical form of its value")
    return value


def _check_key(key: object, depth: int) -> None:
    kind = type(key)
    if kind is str or kind is bytes:
        return
    if kind is int:
        if not _INTEGER_MIN <= key <= _INTEGER_MAX:  # type: ignore[operator]
            raise InvalidArgumentError(f"the key {key} does not fit into 64 bits")
    elif isinstance(key, tuple | list) and depth < CRDT_KEY_DEPTH_MAX:
        for part in key:
            _check_key(part, depth + 1)
    else:
        raise InvalidArgumentError(
            f"{key!r:.80} is no key: use a string, bytes, an integer or a tuple of these"
        )


def _tuples(key: Any) -> Any:  # noqa: ANN401  a key, or what may be one
    return tuple(_tuples(part) for part in key) if isinstance(key, list) else key


def _plain(value: Any, depth: int) -> Any:  # noqa: ANN401  any value
    """*value* without negative zeros, its maps in one order.

    Raises:
        InvalidArgumentError: it has NaN, a type that does not come back as it went in, or is deep.
    """
    if value is None or isinstance(value, str | bytes | bool | int):
        return value
    if depth >= VALUE_DEPTH_MAX:
        raise InvalidArgumentError(f"a value is nested deeper than {VALUE_DEPTH_MAX} levels")
    if isinstance(value, float):
        if value != value:  # noqa: PLR0124  NaN
            raise InvalidArgumentError("NaN equals nothing, itself included: store None instead")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        pairs = [(_encode(_map_key(key)), key, item) for key, item in value.items()]
        pairs.sort(key=lambda pair: pair[0])
        return {key: _plain(item, depth + 1) for _encoded, key, item in pairs}
    raise InvalidArgumentError(
        f"a value holds a {type(value).__name__}: use None, bools, numbers, strings, bytes, lists "
        f"and dicts"
    )


def _map_key(key: Any) -> str | bytes | int:  # noqa: ANN401  any key of a dict
    if type(key) in {str, bytes, int}:
        return key  # type: ignore[no-any-return]
    raise InvalidArgumentError(f"a dict in a value has the key {key!r:.80}: use strings")
