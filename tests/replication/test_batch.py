"""The payload of a log entry: what goes in comes out, and whatever else is refused in one way."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import Run, Submit
from quorate.errors import WireFormatError
from quorate.replication.batch import (
    TIME_MS_MAX,
    Batch,
    batch_time_ms,
    decode_batch,
    encode_batch,
)

times = st.integers(0, TIME_MS_MAX)
runs = st.builds(
    Run,
    st.text(max_size=8),
    st.lists(st.integers(0, 9)).map(msgspec.msgpack.encode).map(msgspec.Raw),
)
submits = st.builds(
    Submit,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(runs, max_size=3).map(tuple),
)
batches = st.builds(
    Batch, times, times, st.integers(0, 2**64 - 1), st.lists(submits, max_size=3).map(tuple)
)


@settings(deadline=None)
@given(batches)
def test_round_trip(batch: Batch) -> None:
    payload = encode_batch(batch)
    again = decode_batch(payload)
    assert encode_batch(again) == payload
    assert batch_time_ms(payload) == batch.time_ms
    assert [each.session for each in again.submissions] == [
        each.session for each in batch.submissions
    ]


@settings(deadline=None)
@given(st.binary(max_size=64) | batches.map(encode_batch).map(lambda data: data[:-1]))
def test_other_bytes_are_refused(data: bytes) -> None:
    with contextlib.suppress(WireFormatError):
        assert decode_batch(encode_batch(decode_batch(data)))
    with contextlib.suppress(WireFormatError):
        assert batch_time_ms(data) >= 0


@pytest.mark.parametrize(
    ("time_ms", "wall_ms", "seed"),
    [
        pytest.param(-1, 0, 0, id="the clock has no time before its start"),
        pytest.param(TIME_MS_MAX + 1, 0, 0, id="deadlines counted from it are 64-bit numbers"),
        pytest.param(0, -1, 0, id="wall time is after 1970"),
        pytest.param(0, 0, -1, id="a seed is 64 random bits"),
    ],
)
def test_numbers_out_of_range_are_no_batch(time_ms: int, wall_ms: int, seed: int) -> None:
    with pytest.raises(WireFormatError, match="not a batch"):
        decode_batch(encode_batch(Batch(time_ms, wall_ms, seed, ())))


def test_a_name_that_is_not_utf_8_is_no_batch() -> None:
    payload = encode_batch(Batch(1, 1, 1, (Submit(0, 0, 0, (Run("kv", msgspec.Raw(b"\x90")),)),)))
    with pytest.raises(WireFormatError, match="not a batch"):
        decode_batch(payload.replace(b"kv", b"\xff\xff"))


def test_endless_nesting_is_no_batch() -> None:
    nested = b"\x91" * 200_000 + b"\x90"  # CPython 3.13 lets C code go 10,000 deep
    payload = msgspec.msgpack.encode([1, 1, 1, [[10, 0, 0, 0, [["kv", msgspec.Raw(nested)]]]]])
    with pytest.raises(WireFormatError, match="not a batch"):
        decode_batch(payload)
    with pytest.raises(WireFormatError, match="not a batch"):
        batch_time_ms(nested)
