"""Watches of one node: which of them an event is for, and what is sent to each.

A watch sees the log's events in the log's order, from some point on, without a gap. That is all it
promises; when its connection breaks or does not take what is sent, it ends, and is begun anew from
where it was by whoever wanted it. So nothing here is kept for a watcher that is away, and what is
kept for one that is slow has a bound.

An event finds its watches by its key: exact keys and prefixes through dicts, so that ten thousand
watchers cost an event nothing that is not for them (a lookup per length of prefix in use); ranges
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from quorate.base.frames import Happened, Watch, WatchEnded, Watching
from quorate.base.limits import MIB, WATCH_PROGRESS_INTERVAL_S
from quorate.errors import (
    BadCommandError,
    OverloadedError,
    QuorateError,
    WatchLaggingError,
)
from quorate.replication.machine import Effect, Encoded, Interest, Machine
from quorate.replication.replies import array_header

#: Receives what a watch sends; False: the connection takes no more for now.
FeedSink = Callable[[Watching | Happened | WatchEnded], bool]

FEEDS_MAX: Final = 100_000  # watches of one node
#: Watches of ranges that are neither a key nor a prefix: each event is compared with each of them.
RANGES_MAX: Final = 1_000
#: Events in one frame; more come in several.
FRAME_EVENTS_MAX: Final = 1_000
FRAME_EVENTS_BYTES: Final = 1 * MIB
#: How many watches are told in one tick how far they have come: some 5 ms.
PROGRESS_FEEDS_MAX: Final = 500

_encode: Final = msgspec.msgpack.Encoder().encode


class Feed:
    """One watch. Made by ``Feeds.open``."""

    __slots__ = ("events", "id", "interest", "machine", "sink", "size_bytes")

    def __init__(self, id_: int, machine: str, interest: Interest, sink: FeedSink) -> None:
        self.id = id_
        self.machine = machine
        self.interest = interest
        self.sink = sink
        self.events: list[bytes] = []  # encoded, of the entries at hand
        self.size_bytes = 0


class _Index:
    """The watches of one machine, by what they are for. Dicts stand in for ordered sets."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, dict[Feed, None]] = {}
        self.by_prefix: dict[bytes, dict[Feed, None]] = {}
        self.lengths: dict[int, int] = {}  # of prefixes in use: how many prefixes
        self.ranges: dict[Feed, None] = {}
        self.initials: dict[bytes, int] = {}  # of keys and prefixes: how many begin so
        self.count = 0

    def add(self, feed: Feed) -> None:
        interest = feed.interest
        if interest.prefix is not None:
            if interest.prefix not in self.by_prefix:
                size = len(interest.prefix)
                self.lengths[size] = self.lengths.get(size, 0) + 1
                self._note(interest.prefix, 1)
            self.by_prefix.setdefault(interest.prefix, {})[feed] = None
        elif interest.keys:
            for key in interest.keys:
                if key not in self.by_key:
                    self.by_key[key] = {}
                    self._note(key, 1)
                self.by_key[key][feed] = None
        elif len(self.ranges) >= RANGES_MAX:
            raise OverloadedError(
                f"{RANGES_MAX} watches of ranges stand already at this node; watch keys or prefixes"
            )
        else:
            self.ranges[feed] = None
        self.count += 1

    def remove(self, feed: Feed) -> None:
        self.count -= 1
        interest = feed.interest
        if interest.prefix is not None:
            found = self.by_prefix[interest.prefix]
            del found[feed]
            if not found:
                del self.by_prefix[interest.prefix]
                self._note(interest.prefix, -1)
                size = len(interest.prefix)
                self.lengths[size] -= 1
                if not self.lengths[size]:
                    del self.lengths[size]
        elif interest.keys:
            for key in dict.fromkeys(interest.keys):
                found = self.by_key[key]
                del found[feed]
                if not found:
                    del self.by_key[key]
                    self._note(key, -1)
        else:
            del self.ranges[feed]

    def _note(self, key: bytes, by: int) -> None:
        initial = key[:1]
        count = self.initials.get(initial, 0) + by
        if count:
            self.initials[initial] = count
        else:
            del self.initials[initial]

    def may_match(self, initials: Iterable[bytes]) -> bool:
        """Whether a watch may be for a key that begins with one of *initials*."""
        mine = self.initials
        return bool(self.ranges) or b"" in mine or any(each in mine for each in initials)

    def matching_any(self, keys: Iterable[bytes]) -> Iterable[Feed]:
        """Each watch once."""
        return dict.fromkeys(feed for key in keys for feed in self.matching(key))

    def matching(self, key: bytes) -> Iterator[Feed]:
        if self.by_key:
            yield from self.by_key.get(key, ())
        for size in self.lengths:
            if size <= len(key):
                yield from self.by_prefix.get(key[:size], ())
        for feed in self.ranges:
            interest = feed.interest
            if interest.start <= key and (interest.end is None or key < interest.end):
                yield feed


class Feeds:
    """All watches of a node. *machine_of*: by name; raises UnknownMachineError."""

    def __init__(self, machine_of: Callable[[str], Machine]) -> None:
        self._machine_of = machine_of
        self._indexes: dict[str, _Index] = {}
        self._feeds: dict[Feed, None] = {}
        self._touched: dict[Feed, None] = {}
        #: Since when those that want to be told of progress were told nothing, longest first.
        self._quiet_since_s: dict[Feed, float] = {}
        self._now_s = 0.0
        self._index = 0

    def __len__(self) -> int:
        return len(self._feeds)

    def open(self, watch: Watch, index: int, sink: FeedSink) -> Feed | None:
        """Begin a watch after the entry at *index*, the last applied; *sink* hears at once. None:
        it has ended already.

        Raises:
            UnknownMachineError, BadCommandError: there is nothing such to watch.
            CommandError: the machine refused, and why.
            OverloadedError: too many watches stand.
        """
        if len(self._feeds) >= FEEDS_MAX:
            raise OverloadedError(f"this node serves {FEEDS_MAX} watches already; ask another")
        interest = self._interest(watch)
        feed = Feed(watch.id, watch.machine, interest, sink)
        if interest.ends is None:
            self._indexes.setdefault(watch.machine, _Index()).add(feed)
            self._feeds[feed] = None
            if interest.progress is not None:
                self._quiet_since_s[feed] = self._now_s
        sink(Watching(watch.id, index))  # a full connection shows at the first event
        for event in interest.backlog:
            self._gather(feed, event)
        taken = not interest.backlog or self._send(feed, index)
        if taken and interest.ends is not None:
            self._end(feed, interest.ends)
        return feed if feed in self._feeds else None

    def _interest(self, watch: Watch) -> Interest:
        machine = self._machine_of(watch.machine)
        if machine.watch_type is None:
            raise BadCommandError(f"machine {watch.machine!r} has no events to watch")
        try:
            request = msgspec.msgpack.decode(watch.request, type=machine.watch_type)
        except (ValueError, RecursionError) as error:
            raise BadCommandError(
                f"what was asked to watch at machine {watch.machine!r} is not valid: {error}"
            ) from error
        return machine.watch(request)

    def close(self, feed: Feed) -> None:
        """End a watch, of which nobody wants to hear."""
        if feed in self._feeds:
            del self._feeds[feed]
            index = self._indexes[feed.machine]
            index.remove(feed)
            if not index.count:
                del self._indexes[feed.machine]  # so that its events cost nothing
            self._touched.pop(feed, None)
            self._quiet_since_s.pop(feed, None)

    def heard(self, machine: str, initials: Iterable[bytes]) -> bool:
        """Whether anybody watches keys of *machine* that begin with one of these bytes."""
        index = self._indexes.get(machine)
        return index is not None and index.may_match(initials)

    def happened(self, effects: Sequence[Effect]) -> None:
        """Events of one entry, in order; sent by ``flush``."""
        for name, key, event in effects:
            index = self._indexes.get(name)
            if index is None:
                continue
            if key is not None:
                self._spread(index.matching(key), key, event)
                continue
            topics = getattr(event, "topics", None)
            if topics is not None and not index.may_match(topics):
                continue
            for keys, each in event:
                if len(keys) == 1:
                    self._spread(index.matching(keys[0]), keys[0], each)
                else:
                    self._spread(index.matching_any(keys), keys[0], each)

    def _spread(self, feeds: Iterable[Feed], key: bytes, event: Any) -> None:  # noqa: ANN401
        for feed in feeds:
            selected = feed.interest.select(key, event)
            if selected is not None:
                self._gather(feed, selected)
                self._touched[feed] = None

    def flush(self, index: int) -> None:
        """Send what gathered; *index*: of the last entry applied."""
        self._index = index
        touched, self._touched = self._touched, {}
        for feed in touched:
            self._send(feed, index)

    def on_tick(self, now_s: float) -> None:
        """Tell those that were told nothing for long how far they have come."""
        self._now_s = now_s
        for feed in list(islice(self._quiet_since_s, PROGRESS_FEEDS_MAX)):
            if self._quiet_since_s[feed] > now_s - WATCH_PROGRESS_INTERVAL_S:
                return
            if feed.interest.progress is not None:
                self._gather(feed, feed.interest.progress())
                self._send(feed, self._index)

    def end_all(self, error: QuorateError) -> None:
        """The state was replaced, or the node stops: whoever watches begins anew."""
        for feed in list(self._feeds):
            self._end(feed, error)

    def _gather(self, feed: Feed, event: Any) -> None:  # noqa: ANN401
        encoded = event if event.__class__ is Encoded else _encode(event)
        feed.events.append(encoded)
        feed.size_bytes += len(encoded)

    def _send(self, feed: Feed, index: int) -> bool:
        """Send what gathered for *feed*. False: it was not taken, and the watch has ended."""
        events, feed.events, feed.size_bytes = feed.events, [], 0
        if self._quiet_since_s.pop(feed, None) is not None:
            self._quiet_since_s[feed] = self._now_s
        for part, last in _parts(events):
            # Only the last frame may say that nothing of the entry is still to come.
            told = index if last else index - 1
            if not feed.sink(Happened(feed.id, told, _array(part))):
                self._end(feed, WatchLaggingError("the watcher does not take its events"))
                return False
        return True

    def _end(self, feed: Feed, error: QuorateError) -> None:
        self.close(feed)
        feed.sink(WatchEnded(feed.id, error.code, str(error)))


def _parts(events: list[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """Events in portions that fit into a frame, and whether it is the last."""
    part: list[bytes] = []
    size_bytes = 0
    for event in events:
        if part and (len(part) >= FRAME_EVENTS_MAX or size_bytes + len(event) > FRAME_EVENTS_BYTES):
            yield part, False
            part, size_bytes = [], 0
        part.append(event)
        size_bytes += len(event)
    yield part, True


def _array(events: list[bytes]) -> msgspec.Raw:
    return msgspec.Raw(array_header(len(events)) + b"".join(events))
