"""Updates of a text: what takes the place of what, and what stands in no page."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quorate.base.crdt_operations import Edit, KindTag, Remove, Update
from quorate.base.limits import CRDT_REPLACED_MAX, VALUE_BYTES_MAX
from quorate.crdt.codec import decode_delta
from quorate.crdt.dots import NUMBER_MAX, make_actor
from quorate.crdt.kinds import ORMap, Text
from quorate.crdt.text import NAME_BYTES, name_of, updates
from quorate.errors import (
    CrdtFormatError,
    InvalidArgumentError,
    LimitExceededError,
    NotObservedError,
)
from tests.crdt.support import ALL_NAMES, pair, resolved, sync


def test_who_reads_page_by_page_misses_nothing_that_is_merged_meanwhile() -> None:
    left, right = pair(Text)
    for number in range(3):  # the greater actor stands last
        right.apply(Edit(b"%d" % number))
    left.join(right)
    read = updates(left.state, ())[:1]
    merging = left.apply(resolved(Edit(b"012", ALL_NAMES), left.state))
    again = left.apply(resolved(Edit(b"0123", ALL_NAMES), left.state))
    for state in (left.state, right.state):
        rest = [each for each in updates(state, ()) if each[0] > read[-1][0]]
        assert {b"1", b"2"} <= {update for _name, update in rest} or rest[-1][1] >= b"012"
        right.join(merging)
    right.join(again)
    assert left.value() == right.value() == [b"0123"]


def test_what_is_here_no_more_cannot_be_merged() -> None:
    """Another has merged it, or removed it: it would come back."""
    left, right = pair(Text)
    left.apply(Edit(b"a"))
    mine, late = (resolved(Edit(b"ab", ALL_NAMES), left.state) for _ in range(2))
    with pytest.raises(NotObservedError, match="not arrived"):
        right.apply(mine)
    left.apply(mine)
    with pytest.raises(NotObservedError):
        left.apply(late)
    assert left.value() == [b"ab"]
    sync(left, right)
    merged = resolved(Edit(b"abc", ALL_NAMES), right.state)
    assert right.value() == [b"ab"]
    right.apply(merged)
    assert right.value() == [b"abc"]


def test_a_removal_takes_the_updates_that_its_author_saw() -> None:
    left, right = pair(ORMap)

    def edit(update: bytes) -> Update:
        return Update("k", int(KindTag.TEXT), Edit(update))

    left.apply(edit(b"a"))
    sync(left, right)
    left.apply(Remove("k"))
    right.apply(edit(b"b"))
    sync(left, right)
    assert left.value() == right.value() == {"k": [b"b"]}
    right.apply(Remove("k"))
    assert right.value() == {}


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (Edit(b""), LimitExceededError),
        (Edit(b"u" * (VALUE_BYTES_MAX + 1)), LimitExceededError),
        (Edit(b"u", (b"name",)), InvalidArgumentError),
        (Edit(b"u", (b"n" * NAME_BYTES,)), NotObservedError),
        (Edit(b"u", (b"n" * NAME_BYTES,) * (CRDT_REPLACED_MAX + 1)), LimitExceededError),
    ],
)
def test_edits_that_cannot_be(edit: Edit, error: type[Exception]) -> None:
    replica, _other = pair(Text)
    with pytest.raises(error):
        replica.apply(edit)
    assert not replica.state.context


NAME = name_of(0, (make_actor(1, 1), 1))


@pytest.mark.parametrize(
    ("path", "payload"),
    [
        ([b""], b"u"),
        ([NAME, b""], b"u"),
        ([NAME], b""),
        ([NAME], [1]),
        ([NAME], b"u" * (VALUE_BYTES_MAX + 1)),
        ([name_of(0, (make_actor(1, 1), 2))], b"u"),
        ([name_of(0, (make_actor(2, 1), 1))], b"u"),
    ],
)
def test_elements_that_cannot_be(path: list[bytes], payload: Any) -> None:
    def encoded(path: Any, payload: Any) -> bytes:
        element = [path, [[1, 1, 1, payload]], []]
        return msgspec.msgpack.encode([1, int(KindTag.TEXT), True, [], [element]])

    decode_delta(encoded([name_of(NUMBER_MAX, (make_actor(1, 1), 1))], b"u"))
    with pytest.raises(CrdtFormatError):
        decode_delta(encoded(path, payload))
