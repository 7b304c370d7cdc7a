"""Keys and values: equal ones have equal bytes, others are refused with a sentence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.base.limits import CRDT_KEY_BYTES_MAX, VALUE_BYTES_MAX
from quorate.crdt.values import decode_key, decode_value, encode_key, encode_value
from quorate.errors import CrdtFormatError, InvalidArgumentError, LimitExceededError

INTEGERS = st.integers(-(2**63), 2**64 - 1)
KEYS = st.recursive(
    st.text(max_size=5) | st.binary(max_size=5) | INTEGERS,
    lambda below: st.lists(below, max_size=3).map(tuple),
    max_leaves=5,
)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


@given(KEYS, KEYS)
def test_keys_are_equal_exactly_when_their_bytes_are(one: Any, other: Any) -> None:
    assert decode_key(encode_key(one)) == one
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    encoded = encode_value(value)
    assert decode_value(encoded) == value
    assert encode_value(decode_value(encoded)) == encoded


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=2), st.randoms())
def test_the_order_of_a_dict_does_not_show(value: dict[str, int], random: Any) -> None:
    value = {key: number % 1000 for key, number in value.items()}
    pairs = list(value.items())
    random.shuffle(pairs)
    assert encode_value([dict(pairs)]) == encode_value([value])


@pytest.mark.parametrize(
    "key", [True, None, 1.0, {"a": 1}, {1}, 2**64, -(2**63) - 1, ("a", None), object()]
)
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_key(key)


def test_a_key_nested_too_deep_is_refused() -> None:
    key: Any = "x"
    for _ in range(9):
        key = (key,)
    with pytest.raises(InvalidArgumentError):
        encode_key(key)


@pytest.mark.parametrize(
    "value", [float("nan"), [1, float("nan")], {1.5: 2}, {None: 1}, object(), 2**70, {"a": {1}}]
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_value(value)


@pytest.mark.parametrize("text", ["\ud800", ["\udfff"]])
def test_half_a_character_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_value(text)
    with pytest.raises(InvalidArgumentError):
        encode_key(tuple(text) if isinstance(text, list) else text)


def test_limits_are_kept() -> None:
    encode_key("x" * (CRDT_KEY_BYTES_MAX - 3))
    with pytest.raises(LimitExceededError):
        encode_key("x" * CRDT_KEY_BYTES_MAX)
    encode_value(b"x" * (VALUE_BYTES_MAX - 5))
    with pytest.raises(LimitExceededError):
        encode_value(b"x" * VALUE_BYTES_MAX)
    deep: Any = []
    for _ in range(70):
        deep = [deep]
    with pytest.raises(InvalidArgumentError, match="deeper"):
        encode_value(deep)


def test_negative_zero_is_zero() -> None:
    assert encode_value(-0.0) == encode_value(0.0)
    assert encode_value([{"a": -0.0}]) == encode_value([{"a": 0.0}])


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        b"\xcc\x01",  # 1, not in its shortest form
        b"\xd9\x01a",  # "a", not in its shortest form
        msgspec.msgpack.encode(-0.0),
        msgspec.msgpack.encode(float("nan")),
        b"\x82\xa1b\x01\xa1a\x02",  # a dict out of order
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\xc7\x01\x05x",  # an extension type
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\x90\x01",  # a list as a key
        b"\x01\x01",
        b"\x91" * 5000,
    ],
)
def test_bytes_that_are_not_canonical_are_refused(encoded: bytes) -> None:
    with pytest.raises(CrdtFormatError):
        decode_value(encoded)
    with pytest.raises(CrdtFormatError):
        decode_key(encoded)


@pytest.mark.parametrize("encoded", [b"\xc0", b"\xc3", b"\xcb" + b"\0" * 8, b"\x80", b"\x91\xc0"])
def test_values_that_are_no_keys_are_refused_as_keys(encoded: bytes) -> None:
    decode_value(encoded)
    with pytest.raises(CrdtFormatError):
        decode_key(encoded)
