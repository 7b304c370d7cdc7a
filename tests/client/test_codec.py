"""Bytes and rows of calls: nothing that arrives can do worse than a typed error."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import (
    LENGTH_BYTES,
    AdminReply,
    LeaderInfo,
    MemberInfo,
    QueryReply,
    SubmitReply,
    Welcome,
    encode_frame,
)
from quorate.base.kv_commands import KvResult, Put, PutResult
from quorate.base.limits import BATCH_BYTES_MAX, BATCH_COMMANDS_MAX
from quorate.base.results import Failure
from quorate.client.channel import TcpChannel
from quorate.client.codec import MachineCodec, decode_results, pack_array
from quorate.client.segments import Bundle, SegmentQueue
from quorate.errors import (
    CommandError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    WireFormatError,
)
from tests import sharing

encode = msgspec.msgpack.encode


@given(st.lists(st.binary(min_size=0, max_size=5), max_size=40))
def test_an_array_of_encoded_parts_is_an_array(parts: list[bytes]) -> None:
    packed = pack_array([encode(part) for part in parts])
    assert msgspec.msgpack.decode(packed) == parts
    assert packed == encode(parts)


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536, 70_000])
def test_array_headers_at_their_bounds(count: int) -> None:
    assert pack_array([b"\x01"] * count) == encode([1] * count)


# --- answers -------------------------------------------------------------------------------------


class _Future:
    """As much of a future as a codec uses."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def done(self) -> bool:
        return bool(self.outcomes)

    def cancelled(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self.outcomes.append(result)

    def set_exception(self, error: QuorateError) -> None:
        self.outcomes.append(error)


def bundle_of(*counts: int) -> tuple[Bundle, list[_Future]]:
    """Runs for different machines, of so many calls each."""
    queue = SegmentQueue(
        _Future,  # type: ignore[arg-type]
        lambda: 0.0,
        lambda: None,
        commands_max=1000,
        bytes_max=100_000,
    )
    futures: list[Any] = []
    for at, count in enumerate(counts):
        codec = MachineCodec(f"m{at}", KvResult if at % 2 == 0 else None)
        futures += [queue.add(codec, Put(b"k", b"v"), 1.0) for _ in range(count)]
    return Bundle(queue.take()), futures


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
results = st.lists(
    st.lists(
        st.builds(PutResult, st.integers(0, 9))
        | st.builds(Failure, st.sampled_from(["bad-command", "x"]), st.text(max_size=5))
        | plain,
        max_size=4,
    ),
    max_size=4,
)


@settings(max_examples=sharing.examples(200))
@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    answer=results.map(encode) | plain.map(encode) | st.binary(max_size=40),
)
def test_any_answer_completes_every_call(counts: list[int], answer: bytes) -> None:
    bundle, futures = bundle_of(*counts)
    try:
        decoded = decode_results(bundle.runs, msgspec.Raw(answer))
    except OutcomeUnknownError as error:
        bundle.fail(error)
    else:
        for (codec, waiting), found in zip(bundle.runs, decoded, strict=True):
            codec.finish(waiting, found)
    assert [len(future.outcomes) for future in futures] == [1] * sum(counts)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\x91" * 200_000, id="nested deeper than any stack"),
        pytest.param(b"\x91\x91\xdd\xff\xff\xff\xff", id="four milliard items announced"),
        pytest.param(b"\x91\x91\x93\x00\xa1\xff\xa1\xff", id="text that is no text"),
    ],
)
def test_hostile_answers(answer: bytes) -> None:
    for counts in ((1,), (1, 1), (0, 2)):
        bundle, _ = bundle_of(*counts)
        with pytest.raises(OutcomeUnknownError):
            decode_results(bundle.runs, msgspec.Raw(answer))


def test_a_refusal_among_results_reaches_its_own_call() -> None:
    bundle, futures = bundle_of(3)
    answer = encode([[PutResult(1), Failure("bad-command", "no"), PutResult(2)]])
    ((codec, waiting),) = bundle.runs
    codec.finish(waiting, decode_results(bundle.runs, msgspec.Raw(answer))[0])
    assert [type(future.outcomes[0]).__name__ for future in futures] == [
        "PutResult",
        "BadCommandError",
        "PutResult",
    ]
    assert isinstance(futures[1].outcomes[0], CommandError)


# --- the stream ----------------------------------------------------------------------------------

FRAMES = [
    Welcome(1, "c", 1, "i", 1, 1, (MemberInfo(1, "a:1", "voter"),)),
    LeaderInfo(1, 2, ()),
    SubmitReply(1, 1, msgspec.Raw(encode([[PutResult(1)]]))),
    QueryReply(1, 1, msgspec.Raw(encode([]))),
    AdminReply(1, {"a": [1, None]}),
]


class _Transport:
    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def received(chunks: list[bytes]) -> tuple[list[Any], QuorateError | None]:
    """Frames that come out of a channel, and why it was lost, if it was by itself."""
    frames: list[Any] = []
    lost: list[QuorateError | None] = []
    channel = TcpChannel(frames.append, lost.append, lambda: None)
    transport = _Transport()
    channel.connection_made(transport)  # type: ignore[arg-type]
    for chunk in chunks:
        if not transport.aborted:
            channel.data_received(chunk)
    assert not lost
    channel.connection_lost(None)
    assert len(lost) == 1
    return frames, lost[0] if transport.aborted else None


@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_frames_survive_any_cutting(frames: list[Any], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, frames))
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert received(chunks) == (frames, None)


@settings(max_examples=sharing.examples(200))
@given(
    st.lists(
        st.binary(max_size=60)
        | plain.map(lambda value: _framed(encode(value)))
        | st.sampled_from(FRAMES).map(encode_frame),
        max_size=5,
    )
)
def test_garbage_is_a_wire_format_error_or_nothing(chunks: list[bytes]) -> None:
    _frames, error = received(chunks)
    assert error is None or isinstance(error, WireFormatError)


@given(st.data())
def test_a_flipped_bit_is_harmless(data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(encode_frame, FRAMES)))
    place = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[place // 8] ^= 1 << place % 8
    received([bytes(stream)])


def test_deep_frames_are_garbage() -> None:
    _frames, error = received([_framed(b"\x93\x15\x01" + b"\x91" * 100_000 + b"\xc0")])
    assert isinstance(error, WireFormatError)
    _frames, error = received([_framed(b"\x93\x03\xa1\xff\xa0")])
    assert isinstance(error, WireFormatError)


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


# --- rows of calls -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@settings(max_examples=sharing.examples(200))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "turn", "take", "expire", "cancel"]),
            st.integers(0, 1),
            st.integers(1, 400),
        ),
        max_size=60,
    )
)
def test_a_queue_loses_and_repeats_nothing(
    loop: asyncio.AbstractEventLoop, steps: list[tuple[str, int, int]]
) -> None:
    """Model: every call is in the queue, taken, expired, or cancelled before it was taken."""
    clock = [0.0]
    codecs = [MachineCodec("a"), MachineCodec("b")]
    queue = SegmentQueue(
        loop.create_future, lambda: clock[0], lambda: None, commands_max=30, bytes_max=3000
    )
    waiting: list[asyncio.Future[Any]] = []
    seen: list[asyncio.Future[Any]] = []
    for verb, which, size in steps:
        clock[0] += 0.01
        if verb == "add":
            try:
                waiting.append(queue.add(codecs[which], bytes(size), 0.1 + which))
            except OverloadedError:
                assert len(waiting) >= 30 or size >= 0
        elif verb == "turn":
            queue.close_turn()
        elif verb == "cancel" and waiting and waiting[-1] not in seen:
            waiting[-1].cancel()
        elif verb == "take":
            bundle = Bundle(queue.take(size * 10))
            taken = [future for _, futures in bundle.runs for future in futures]
            assert bundle.size_bytes <= size * 10
            assert not any(future.done() for future in taken)
            seen += taken
        elif verb == "expire":
            queue.expire(clock[0], QuorateError("late"))
    rest = Bundle(queue.take())
    seen += [future for _, futures in rest.runs for future in futures]
    queue.fail_all(QuorateError("closed"))
    ended = [future for future in waiting if future.done()]
    assert len(set(seen)) == len(seen)
    assert set(seen) | set(ended) == set(waiting)
    assert not set(seen) & set(ended)
    assert (queue.commands, queue.size_bytes, bool(queue)) == (0, 0, False)
    for future in ended:
        assert future.cancelled() or future.exception()


def test_batches_keep_to_their_limits(loop: asyncio.AbstractEventLoop) -> None:
    queue = SegmentQueue(
        loop.create_future, lambda: 0.0, lambda: None, commands_max=10**6, bytes_max=10**9
    )
    codec = MachineCodec("a")
    for _ in range(BATCH_COMMANDS_MAX + 5):
        queue.add(codec, 1, 1.0)
    for _ in range(5):
        queue.add(codec, bytes(1_000_000), 1.0)
    sizes = []
    while queue:
        bundle = Bundle(queue.take())
        assert bundle.count <= BATCH_COMMANDS_MAX
        assert bundle.size_bytes <= BATCH_BYTES_MAX
        sizes.append(bundle.count)
    assert sum(sizes) == BATCH_COMMANDS_MAX + 10
