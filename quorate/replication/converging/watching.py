"""Who watches CRDT data at this node: told that something under a name changed, not what.

Changes that come faster than a watcher takes them, or than every ``PACE_S``, are told as one:
whoever is told reads what there is by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from quorate.base.crdt_frames import WatchCrdt
from quorate.base.frames import Happened, Watch, WatchEnded, Watching
from quorate.crdt.values import encode_key
from quorate.errors import BadCommandError, QuorateError

PACE_S: Final = 0.01

Sink = Callable[[Watching | Happened | WatchEnded], bool]

_decode = msgspec.msgpack.Decoder(WatchCrdt).decode
_encode = msgspec.msgpack.Encoder().encode


class CrdtFeed:
    """One watch."""

    __slots__ = ("id", "name", "sink")

    def __init__(self, number: int, name: bytes, sink: Sink) -> None:
        self.id = number
        self.name = name
        self.sink = sink


class Watchers:
    """*count*: the changes that this node has made so far. *later*: run something after so many
    seconds."""

    def __init__(
        self, count: Callable[[], int], later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._count = count
        self._later = later
        self._feeds: dict[bytes, dict[CrdtFeed, None]] = {}
        self._due: dict[CrdtFeed, None] = {}
        self._planned = False

    def __len__(self) -> int:
        return sum(len(feeds) for feeds in self._feeds.values())

    def open(self, watch: Watch, sink: Sink) -> CrdtFeed:
        """Begin to tell; the first frame says that the watch stands.

        Raises:
            BadCommandError: the request is none.
            InvalidArgumentError, LimitExceededError: there can be no such name.
        """
        try:
            request = _decode(watch.request)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise BadCommandError(f"this is no watch of CRDT data: {error}") from error
        feed = CrdtFeed(watch.id, encode_key(request.name), sink)
        self._feeds.setdefault(feed.name, {})[feed] = None
        sink(Watching(watch.id, self._count()))
        return feed

    def close(self, feed: CrdtFeed) -> None:
        """Tell no more."""
        feeds = self._feeds.get(feed.name, {})
        feeds.pop(feed, None)
        if not feeds:
            self._feeds.pop(feed.name, None)
        self._due.pop(feed, None)

    def changed(self, names: Mapping[bytes, None]) -> None:
        """Something under these names changed."""
        if not self._feeds:
            return
        for name in names:
            self._due.update(self._feeds.get(name, {}))
        self._plan()

    def _plan(self) -> None:
        if self._due and not self._planned:
            self._planned = True
            self._later(PACE_S, self._tell)

    def _tell(self) -> None:
        self._planned = False
        due, self._due = self._due, {}
        count = self._count()
        events = msgspec.Raw(_encode([count]))
        for feed in due:
            if not feed.sink(Happened(feed.id, count, events)):
                self._due[feed] = None  # it reads slowly; what it is told later says as much
        self._plan()

    def stop(self, error: QuorateError) -> None:
        """The node stops: all end."""
        feeds, self._feeds = self._feeds, {}
        self._due.clear()
        for each in feeds.values():
            for feed in each:
                feed.sink(WatchEnded(feed.id, error.code, str(error)))
