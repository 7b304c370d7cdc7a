"""Watches: each hears all that is for it, in the log's order, and nothing else."""
# events are of many types

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import Happened, Watch, WatchEnded, Watching
from quorate.base.results import Failure
from quorate.errors import (
    BadCommandError,
    CommandError,
    CompactedError,
    OverloadedError,
    UnavailableError,
    UnknownMachineError,
)
from quorate.replication import feeds as feeds_module
from quorate.replication.feeds import Feed, Feeds
from quorate.replication.machine import Context, Interest, Machine
from quorate.replication.machines import Machines
from quorate.replication.tables import Tables
from tests import sharing
from tests.replication.support import Node, Note, run_of, submit


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=1):
    keys: tuple[bytes, ...] = ()
    prefix: bytes | None = None
    start: bytes = b""
    end: bytes | None = None
    refuse: bool = False
    backlog: int = 0


class Say(msgspec.Struct, frozen=True, array_like=True, tag=1):
    key: bytes
    text: str
    then: str = ""  #: "raise" or "refuse"


class Crier(Machine):
    """Says what it is told to, and may raise afterwards."""

    name = "crier"
    command_type: ClassVar[Any] = Say
    watch_type: ClassVar[Any] = Ask

    def attach(self, tables: Tables) -> None:
        self.said = tables.table("crier.said", Note)

    def apply(self, command: Say, context: Context) -> Any:
        context.effects.append((self.name, command.key, command.text))
        if command.then == "raise":
            raise CommandError("said too much")
        if command.then:
            return Failure("no", "unsaid")
        return Say(command.key, command.text)

    def watch(self, request: Ask) -> Interest:
        if request.refuse:
            raise CompactedError("too late")
        return Interest(
            lambda key, text: None if text == "mute" else [key, text],
            keys=request.keys,
            prefix=request.prefix,
            start=request.start,
            end=request.end,
            backlog=[[b"old", str(each)] for each in range(request.backlog)],
        )


class Ear:
    """Takes what a watch sends, as long as *room* lasts."""

    def __init__(self, room: int = 1000) -> None:
        self.frames: list[Watching | Happened | WatchEnded] = []
        self.room = room

    def __call__(self, frame: Watching | Happened | WatchEnded) -> bool:
        if self.room <= 0 and not isinstance(frame, WatchEnded):
            return False
        self.room -= 1
        self.frames.append(frame)
        return True

    @property
    def heard(self) -> list[str]:
        return [
            text
            for frame in self.frames
            if isinstance(frame, Happened)
            for _, text in msgspec.msgpack.decode(frame.events)
        ]


def _feeds() -> Feeds:
    return Feeds(Machines([Crier()]).machine)


def _watch(feeds: Feeds, ask: Ask, ear: Ear, id_: int = 1) -> Feed | None:
    return feeds.open(Watch(id_, "crier", msgspec.Raw(msgspec.msgpack.encode(ask))), 10, ear)


def _say(feeds: Feeds, *said: tuple[bytes, str], index: int = 11) -> None:
    feeds.happened([("crier", key, text) for key, text in said])
    feeds.flush(index)


def test_a_watch_says_where_it_begins_and_then_what_happens() -> None:
    feeds, ear = _feeds(), Ear()
    _watch(feeds, Ask(prefix=b"a/"), ear)
    _say(feeds, (b"a/1", "x"), (b"b/1", "y"), (b"a/2", "z"), (b"a/1", "mute"))
    _say(feeds, (b"b", "nothing for it"), index=12)
    events = msgspec.Raw(msgspec.msgpack.encode([[b"a/1", "x"], [b"a/2", "z"]]))
    assert ear.frames == [Watching(1, 10), Happened(1, 11, events)]


def test_the_past_comes_first_and_no_frame_outgrows_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds_module, "FRAME_EVENTS_MAX", 2)
    feeds, ear = _feeds(), Ear()
    _watch(feeds, Ask(keys=(b"k",), backlog=5), ear)
    _say(feeds, (b"k", "now"))
    assert ear.heard == ["0", "1", "2", "3", "4", "now"]
    told = [frame.index for frame in ear.frames if isinstance(frame, Happened)]
    assert told == [9, 9, 10, 11]  # an entry is complete with its last frame only


def test_who_does_not_take_its_events_hears_that_it_ended() -> None:
    feeds, slow, quick = _feeds(), Ear(room=2), Ear()
    _watch(feeds, Ask(keys=(b"k",)), slow)
    _watch(feeds, Ask(keys=(b"k",)), quick, 2)
    for index in range(11, 15):
        _say(feeds, (b"k", str(index)), index=index)
    assert quick.heard == ["11", "12", "13", "14"]
    assert slow.heard == ["11"]
    assert isinstance(slow.frames[-1], WatchEnded)
    assert slow.frames[-1].code == "watch-lagging"
    assert len(feeds) == 1


def test_what_a_refused_command_said_is_not_told() -> None:
    node = Node([Crier()])
    said = [Say(b"k", "a"), Say(b"k", "b", "raise"), Say(b"k", "c", "refuse"), Say(b"k", "d")]
    applied = node.entry(submit(run_of("crier", *said)))
    assert [text for _, _, text in applied.effects] == ["a", "d"]


def test_what_cannot_be_watched_is_refused_and_leaves_nothing() -> None:
    feeds, ear = _feeds(), Ear()
    with pytest.raises(UnknownMachineError):
        feeds.open(Watch(1, "nobody", msgspec.Raw(b"\x90")), 1, ear)
    with pytest.raises(BadCommandError, match="no events"):
        feeds.open(Watch(1, "sessions", msgspec.Raw(b"\x90")), 1, ear)
    with pytest.raises(BadCommandError, match="not valid"):
        feeds.open(Watch(1, "crier", msgspec.Raw(b"\x91\x05")), 1, ear)
    with pytest.raises(CompactedError):
        _watch(feeds, Ask(refuse=True), ear)
    assert (len(feeds), ear.frames) == (0, [])


def test_there_is_a_most_of_watches_and_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds, ear = _feeds(), Ear()
    monkeypatch.setattr(feeds_module, "RANGES_MAX", 1)
    monkeypatch.setattr(feeds_module, "FEEDS_MAX", 2)
    _watch(feeds, Ask(start=b"a", end=b"b"), ear)
    with pytest.raises(OverloadedError, match="ranges"):
        _watch(feeds, Ask(start=b"a"), ear, 2)
    kept = _watch(feeds, Ask(keys=(b"a",)), ear, 3)
    with pytest.raises(OverloadedError, match="serves"):
        _watch(feeds, Ask(keys=(b"b",)), ear, 4)
    assert kept is not None
    feeds.close(kept)
    feeds.close(kept)  # harmless
    _watch(feeds, Ask(keys=(b"b",)), ear, 5)


def test_all_end_when_the_state_is_replaced() -> None:
    feeds, ear = _feeds(), Ear()
    for id_ in (1, 2, 3):
        _watch(feeds, Ask(prefix=b""), ear, id_)
    feeds.end_all(UnavailableError("gone"))
    assert [each.id for each in ear.frames if isinstance(each, WatchEnded)] == [1, 2, 3]
    assert len(feeds) == 0
    _say(feeds, (b"k", "x"))
    assert ear.heard == []


class Many:
    """Events with topics; *looked*: whether anybody wanted to see them."""

    topics = (b"t", b"q")

    def __init__(self) -> None:
        self.looked = False

    def __iter__(self) -> Iterator[tuple[tuple[bytes, ...], str]]:
        self.looked = True
        yield (b"t1", b"q1"), "x"


@pytest.mark.parametrize(
    ("ask", "hears"),
    [
        pytest.param(Ask(keys=(b"w1",)), None, id="other keys"),
        pytest.param(Ask(prefix=b"w"), None, id="another prefix"),
        pytest.param(Ask(keys=(b"w1", b"q2")), [], id="a key that begins so"),
        pytest.param(Ask(keys=(b"w1", b"q1")), ["x"], id="a key"),
        pytest.param(Ask(prefix=b"t"), ["x"], id="a prefix"),
        pytest.param(Ask(prefix=b""), ["x"], id="everything"),
        pytest.param(Ask(start=b"t", end=b"u"), ["x"], id="a range"),
    ],
)
def test_events_with_topics_are_looked_at_if_such_keys_are_watched(
    ask: Ask, hears: list[str] | None
) -> None:
    feeds, ear = _feeds(), Ear()
    feed = _watch(feeds, ask, ear)
    many = Many()
    feeds.happened([("crier", None, many)])
    feeds.flush(11)
    assert many.looked is (hears is not None)
    assert ear.heard == (hears or [])
    assert feed is not None
    feeds.close(feed)
    _watch(feeds, Ask(keys=(b"w",)), ear, 2)
    again = Many()
    feeds.happened([("crier", None, again)])
    assert not again.looked


_keys = st.binary(max_size=3)
_asks = st.one_of(
    st.builds(Ask, keys=st.lists(_keys, min_size=1, max_size=3).map(tuple)),
    st.builds(Ask, prefix=_keys),
    st.builds(Ask, start=_keys, end=st.none() | _keys),
)


def _wants(ask: Ask, key: bytes) -> bool:
    if ask.prefix is not None:
        return key.startswith(ask.prefix)
    if ask.keys:
        return key in ask.keys
    return ask.start <= key and (ask.end is None or key < ask.end)


@given(st.lists(st.tuples(_asks, st.booleans()), max_size=8), st.lists(_keys, max_size=12))
@settings(max_examples=sharing.examples(150), deadline=None)
def test_every_event_finds_exactly_its_watches(
    asks: list[tuple[Ask, bool]], keys: list[bytes]
) -> None:
    feeds = _feeds()
    ears = [Ear() for _ in asks]
    opened = [
        _watch(feeds, ask, ear, id_)
        for id_, ((ask, _), ear) in enumerate(zip(asks, ears, strict=True))
    ]
    for feed, (_, close) in zip(opened, asks, strict=True):
        if close and feed is not None:
            feeds.close(feed)
    _say(feeds, *((key, f"{at}") for at, key in enumerate(keys)))
    for (ask, closed), ear in zip(asks, ears, strict=True):
        wanted = [f"{at}" for at, key in enumerate(keys) if _wants(ask, key)]
        assert ear.heard == ([] if closed else wanted)
