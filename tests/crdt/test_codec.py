"""Bytes from anywhere: what is not canonical is refused with one error; nothing of it is used."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.crdt_operations import Add, Assign, Increment, KindTag, Operation, Update
from quorate.base.limits import VALUE_BYTES_MAX
from quorate.crdt.clock import Stamp
from quorate.crdt.codec import (
    decode_context,
    decode_delta,
    decode_element,
    decode_state,
    encode_delta,
    encode_leaf,
    encode_state,
)
from quorate.crdt.delta import Delta, path_key, path_of
from quorate.crdt.kind import KINDS, Kind, elements
from quorate.crdt.kinds import LWWRegister, MVRegister, ORMap, ORSet, PNCounter
from quorate.crdt.registers import STAMP_BYTES
from quorate.errors import CrdtFormatError, InvariantViolationError
from tests import sharing
from tests.crdt.support import ALL, pair, steps, world

encode = msgspec.msgpack.encode
ACTOR = bytes([0, 0, 0, 1, 0, 0, 0, 1])


def refused(encoded: bytes) -> bool:
    try:
        decode_delta(encoded)
    except CrdtFormatError:
        return True
    return False


@settings(max_examples=sharing.examples(300), deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_refused(encoded: bytes) -> None:
    """Or it is a delta, and then these are its only bytes."""
    for decode in (decode_delta, decode_state, decode_context):
        try:
            decode(encoded)
        except CrdtFormatError:
            continue
    assert refused(encoded) or encode_delta(decode_delta(encoded)) == encoded


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 5) | st.binary(max_size=9) | st.floats(),
    lambda below: st.lists(below, max_size=5),
    max_leaves=12,
)


@settings(max_examples=sharing.examples(300), deadline=None)
@given(st.integers(0, 12), st.booleans(), SHAPES, SHAPES)
def test_garbage_of_the_right_shape_is_refused(tag: int, closed: bool, one: Any, two: Any) -> None:
    encoded = encode([1, tag, closed, one, two])
    assert refused(encoded) or encode_delta(decode_delta(encoded)) == encoded


@settings(max_examples=sharing.examples(60), deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_damaged_bytes_never_pass_for_others(kind: type[Kind], data: st.DataObject) -> None:
    """A flipped byte, a cut, an addition: refused, or the only bytes of other sound data."""
    piece = data.draw(st.sampled_from(world(kind, data.draw(steps(kind))).pieces()))
    encoded = bytearray(encode_delta(piece))
    at = data.draw(st.integers(0, len(encoded) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "add"])):
        case "flip":
            encoded[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del encoded[at:]
        case _:
            encoded[at:at] = data.draw(st.binary(min_size=1, max_size=3))
    damaged = bytes(encoded)
    assert refused(damaged) or encode_delta(decode_delta(damaged)) == damaged
    if not refused(damaged):
        sound = decode_delta(damaged)
        replica, _other = pair(KINDS[sound.tag])
        replica.join(sound)
        replica.value()


def a_delta(
    tag: int, path: tuple[bytes, ...], payload: Any, *, actor: tuple[int, int] = (1, 1)
) -> bytes:
    """The bytes of a delta with one dot, in one element."""
    return encode([1, tag, True, [], [[list(path), [[*actor, 1, payload]], []]]])


def test_the_makers_of_these_tests_make_sound_bytes() -> None:
    assert not refused(a_delta(KindTag.OR_SET, (b"\xa1a",), b""))
    assert not refused(a_delta(KindTag.PN_COUNTER, (ACTOR,), [2, 1, 0, 0]))
    assert not refused(a_delta(KindTag.OR_MAP, (b"\xa1k", b"\x08", b"\xa1a"), b""))


@pytest.mark.parametrize(
    ("what", "encoded"),
    [
        ("another version", encode([2, 8, True, [], []])),
        ("no such kind", encode([1, 13, True, [], []])),
        ("one thing more", encode([1, 8, True, [], [], 0])),
        ("one thing less", encode([1, 8, True, []])),
        ("a payload in a set", a_delta(8, (b"\xa1a",), b"x")),
        ("numbers in a set", a_delta(8, (b"\xa1a",), [1])),
        ("an element that is no key", a_delta(8, (b"\xc0",), b"")),
        ("a long form of an element", a_delta(8, (b"\xd9\x01a",), b"")),
        ("an element below an element", a_delta(8, (b"\xa1a", b"\xa1a"), b"")),
        ("no path", a_delta(8, (), b"")),
        ("no actor", a_delta(2, (b"\0" * 7 + b"\1",), [1, 0, 0, 0])),
        ("the cell of another", a_delta(2, (ACTOR[:7] + b"\2",), [1, 0, 0, 0])),
        ("too few numbers", a_delta(2, (ACTOR,), [1, 0, 0])),
        ("more undone than done", a_delta(2, (ACTOR,), [1, 0, 2, 0])),
        ("a negative number", a_delta(2, (ACTOR,), [-1, 0, 0, 0])),
        ("a number beyond 63 bits", a_delta(2, (ACTOR,), [2**63, 0, 0, 0])),
        ("a GCounter that goes down", a_delta(1, (ACTOR,), [1, 1, 0, 0])),
        ("bytes in a counter", a_delta(2, (ACTOR,), b"1000")),
        ("a write without stamp", a_delta(4, (b"",), b"\xc0")),
        ("a write without value", a_delta(4, (b"",), b"\0" * STAMP_BYTES)),
        ("a wall time beyond 63 bits", a_delta(4, (b"",), b"\xff" * STAMP_BYTES + b"\xc0")),
        ("a value in a long form", a_delta(5, (b"",), b"\xcc\x01")),
        ("a register with two elements", a_delta(5, (b"x",), b"\x01")),
        ("a mark of a TwoPSet", a_delta(7, (b"\xa1a",), b"+")),
        ("a map's own leaf", a_delta(9, (b"\xa1k",), b"")),
        ("an unknown kind under a key", a_delta(9, (b"\xa1k", b"\x63", b""), b"")),
        ("a map's key that is none", a_delta(9, (b"\xc0", b"\x08", b"\xa1a"), b"")),
        ("a long form of a map's key", a_delta(9, (b"\xcc\x01", b"\x08", b"\xa1a"), b"")),
        (
            "an inner map's key that is none",
            a_delta(9, (b"\xa1k", b"\x09", b"\xc0", b"\x08", b"\xa1a"), b""),
        ),
        ("two bytes of kind", a_delta(9, (b"\xa1k", b"\x08\x08", b"\xa1a"), b"")),
        ("a map below a map without key", a_delta(9, (b"\xa1k", b"\x09", b"\xa1k"), b"")),
        ("a member beyond 32 bits", a_delta(8, (b"\xa1a",), b"", actor=(2**32, 1))),
        ("an empty element", encode([1, 8, True, [], [[[b"\xa1a"], [], []]]])),
        ("a run backwards", encode([1, 8, True, [[1, 1, [5, 4]]], []])),
        ("a run from zero", encode([1, 8, True, [[1, 1, [0, 4]]], []])),
        ("half a run", encode([1, 8, True, [[1, 1, [1]]], []])),
        ("runs that touch", encode([1, 8, True, [[1, 1, [1, 2, 3, 4]]], []])),
        ("an actor without runs", encode([1, 8, True, [[1, 1, []]], []])),
        ("an actor twice", encode([1, 8, True, [[1, 1, [1, 1]], [1, 1, [3, 3]]], []])),
        ("actors out of order", encode([1, 8, True, [[2, 1, [1, 1]], [1, 1, [1, 1]]], []])),
        (
            "a live dot outside an open context",
            encode([1, 8, False, [], [[[b"\xa1a"], [[1, 1, 1, b""]], []]]]),
        ),
        (
            "a listed dot in the rest again",
            encode([1, 8, True, [[1, 1, [1, 1]]], [[[b"\xa1a"], [[1, 1, 1, b""]], []]]]),
        ),
    ],
)
def test_what_cannot_be_is_refused(what: str, encoded: bytes) -> None:
    assert refused(encoded), what


def element(name: bytes, counter: int = 1, gone: list[Any] | None = None) -> list[Any]:
    return [[name], [[1, 1, counter, b""]], gone or []]


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("a dot in two elements", [element(b"\xa1a"), element(b"\xa1b")]),
        ("a dot alive and gone", [element(b"\xa1a"), element(b"\xa1b", 2, [[1, 1, 1]])]),
        ("a dot alive and gone in one", [element(b"\xa1a", 1, [[1, 1, 1]])]),
        ("elements out of order", [element(b"\xa1b"), element(b"\xa1a", 2)]),
        ("an element twice", [element(b"\xa1a"), element(b"\xa1a", 2)]),
        ("gone out of order", [element(b"\xa1a", 1, [[1, 1, 3], [1, 1, 2]])]),
        ("a leaf out of order", [[[b"\xa1a"], [[1, 1, 2, b""], [1, 1, 1, b""]], []]]),
    ],
)
def test_elements_that_contradict_each_other_are_refused(what: str, parts: list[Any]) -> None:
    assert not refused(encode([1, 8, True, [], [element(b"\xa1a"), element(b"\xa1b", 2)]]))
    assert refused(encode([1, 8, True, [], parts])), what


def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    replica, _other = pair(ORSet)
    for number in range(50):
        replica.apply(Add(number))
    encoded = encode_state(replica.state)
    assert decode_state(encoded, bytes_max=len(encoded)) == replica.state
    with pytest.raises(CrdtFormatError, match="at most"):
        decode_state(encoded, bytes_max=len(encoded) - 1)


def test_a_delta_is_no_whole_replica() -> None:
    replica, _other = pair(ORSet)
    with pytest.raises(CrdtFormatError, match="join it"):
        decode_state(encode_delta(replica.apply(Add(1))))


def test_deep_nesting_is_refused_without_a_crash() -> None:
    for encoded in (b"\x91" * 100_000, b"\x81" * 100_000, b"\x95\x01\x08\xc3" + b"\x91" * 100_000):
        assert refused(encoded)
        with pytest.raises(CrdtFormatError):
            decode_context(encoded)


def test_a_payload_longer_than_a_value_is_refused() -> None:
    long = encode(b"x" * (VALUE_BYTES_MAX + 1))
    assert refused(a_delta(KindTag.MV_REGISTER, (b"",), long))


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        (ORSet, Add("x")),
        (PNCounter, Increment(3)),
        (LWWRegister, Assign({"a": [1]})),
        (ORMap, Update("k", KindTag.MV_REGISTER, Assign(1))),
    ],
)
def test_elements_are_kept_one_by_one(kind: type[Kind], operation: Operation) -> None:
    """Key and leaf alone give the element back, and say so when they do not."""
    replica, _other = pair(kind)
    replica.apply(operation, wall_ms=7)
    ((path, leaf),) = elements(replica.state)
    key, encoded = path_key(path), encode_leaf(leaf)
    assert decode_element(kind, key, encoded) == (path, leaf)
    for other_key, other in [
        (key[:-1], encoded),
        (key + b"\0", encoded),
        (b"", encoded),
        (key, encoded[:-1]),
        (key, encoded + b"\0"),
        (key, encode_leaf(())),
        (key, b"\x91" * 9999),
        (key, encode_leaf((leaf[0], leaf[0]))),
    ]:
        with pytest.raises(CrdtFormatError):
            decode_element(kind, other_key, other)


def test_a_set_is_no_element_of_a_register() -> None:
    replica, _other = pair(ORSet)
    replica.apply(Add("x"))
    ((path, leaf),) = elements(replica.state)
    with pytest.raises(CrdtFormatError):
        decode_element(MVRegister, path_key(path), encode_leaf(leaf))


@pytest.mark.parametrize("key", [b"", b"\0", b"\0\5abc", b"\0\1a\0"])
def test_keys_that_no_path_has_are_a_bug(key: bytes) -> None:
    with pytest.raises(InvariantViolationError):
        path_of(key)


def test_stamps_are_read_back_from_payloads() -> None:
    replica, _other = pair(LWWRegister)
    replica.apply(Assign("x"), wall_ms=77)
    assert LWWRegister.stamp(replica.state) == Stamp(77, 0)


def test_bytes_do_not_change_between_versions() -> None:
    """A recorded form: whoever changes it changes the format, and its version."""
    replica, other = pair(ORMap)
    replica.apply(Update("tags", KindTag.OR_SET, Add("red")), wall_ms=5)
    other.join(replica)
    other.apply(Update("n", KindTag.PN_COUNTER, Increment(3)), wall_ms=5)
    other.apply(Update("who", KindTag.LWW_REGISTER, Assign("me")), wall_ms=5)
    delta = other.apply(Update("tags", KindTag.OR_SET, Add("red")))
    assert encode_delta(delta).hex() == RECORDED_DELTA
    assert encode_state(other.state).hex() == RECORDED_STATE
    assert isinstance(delta, Delta)


RECORDED_DELTA = "950109c390919393c405a474616773c40108c404a37265649194020103c4009193010101"
RECORDED_STATE = (
    "950109c292930101920101930201920103939393c402a16ec40102c4080000000200000001919402"
    "01019403000000909393c404a377686fc40104c4009194020102c417000000000000000500000001"
    "0000000200000001a26d65909393c405a474616773c40108c404a37265649194020103c40090"
)
