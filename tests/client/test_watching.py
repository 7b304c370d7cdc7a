"""Subscriptions: begun anew wherever the connection goes, until nobody wants them."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from quorate.base.frames import Happened, Unwatch, Watch, WatchEnded, Watching
from quorate.client import watching
from quorate.client.watching import Subscription, Watches
from quorate.errors import ClosedError, LimitExceededError, QuorateError


class Bench:
    """Watches of a client whose clock and wake-ups are ours."""

    def __init__(self) -> None:
        self.now = 100.0
        self.woken = 0
        self.closed = False
        self.watches = Watches(lambda: self.now, self._wake, itertools.count(1).__next__)
        self.seen: list[object] = []
        self.resume_at = 7

    def _wake(self) -> None:
        if self.closed:
            raise ClosedError("closed")
        self.woken += 1

    def open(self) -> Subscription:
        def failed(error: QuorateError) -> None:
            self.seen.append(error.code)

        return self.watches.open(
            "kv",
            lambda: ["from", self.resume_at],
            lambda index: self.seen.append(("open", index)),
            lambda index, raw: self.seen.append((index, msgspec.msgpack.decode(raw))),
            failed,
        )

    def asked(self) -> list[tuple[int, object]]:
        """Watches that the client sends now: their ids and requests."""
        return [
            (frame.id, msgspec.msgpack.decode(frame.request))
            for frame in self.watches.pump()
            if isinstance(frame, Watch)
        ]


def _happened(id_: int, index: int, *events: str) -> Happened:
    return Happened(id_, index, msgspec.Raw(msgspec.msgpack.encode(events)))


def test_events_reach_whoever_watches() -> None:
    bench = Bench()
    bench.open()
    assert bench.woken
    assert bench.asked() == [(1, ["from", 7])]
    assert bench.asked() == []
    bench.watches.on_watching(Watching(1, 30))
    bench.watches.on_happened(_happened(1, 31, "a", "b"))
    bench.watches.on_happened(_happened(9, 31, "of nobody"))
    assert bench.seen == [("open", 30), (31, ["a", "b"])]


def test_a_new_connection_begins_anew_where_the_watcher_is() -> None:
    bench = Bench()
    bench.open()
    bench.asked()
    bench.watches.disconnected()
    bench.resume_at = 12
    assert bench.watches.waiting
    assert not bench.watches.in_flight
    assert bench.asked() == [(2, ["from", 12])]
    bench.watches.on_happened(_happened(1, 31, "of the connection before"))
    assert bench.seen == []


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "closed", "not-leader"])
def test_a_node_that_cannot_serve_is_asked_again_after_a_while(code: str) -> None:
    bench = Bench()
    bench.open()
    bench.asked()
    bench.watches.on_ended(WatchEnded(1, code, "not now", 50))
    assert bench.asked() == []
    assert bench.now < bench.watches.wake_at < bench.now + 1
    bench.now = bench.watches.wake_at
    assert bench.asked() == [(2, ["from", 7])]
    assert bench.seen == []


def test_one_that_lagged_goes_on_at_once() -> None:
    bench = Bench()
    bench.open()
    bench.asked()
    bench.watches.on_ended(WatchEnded(1, "watch-lagging", "too slow"))
    assert bench.asked() == [(2, ["from", 7])]


def test_a_refusal_ends_it() -> None:
    bench = Bench()
    bench.open()
    bench.asked()
    bench.watches.on_ended(WatchEnded(1, "compacted", "too late"))
    assert bench.seen == ["compacted"]
    assert not bench.watches.waiting
    assert bench.asked() == []


def test_closing_ends_it_at_the_node() -> None:
    bench = Bench()
    subscription = bench.open()
    bench.asked()
    subscription.close()
    subscription.close()
    assert bench.watches.pump() == [Unwatch(1)]
    bench.watches.on_happened(_happened(1, 31, "on its way already"))
    assert bench.seen == []
    assert not bench.watches.waiting


def test_one_closed_before_it_was_sent_is_never_sent() -> None:
    bench = Bench()
    bench.open().close()
    assert bench.watches.pump() == []


def test_a_pause_ends_it_and_a_resume_begins_anew() -> None:
    bench = Bench()
    subscription = bench.open()
    bench.asked()
    subscription.pause()
    subscription.pause()
    assert not bench.watches.waiting
    assert bench.watches.pump() == [Unwatch(1)]
    bench.watches.disconnected()
    assert bench.asked() == []
    bench.resume_at = 20
    subscription.resume()
    subscription.resume()
    assert bench.asked() == [(2, ["from", 20])]


def test_a_closed_handle_tells_all_and_takes_no_more() -> None:
    bench = Bench()
    first = bench.open()
    bench.open()
    bench.asked()
    bench.closed = True
    bench.watches.fail_all(ClosedError("closed"))
    assert bench.seen == ["closed", "closed"]
    first.close()
    first.pause()
    first.resume()
    with pytest.raises(ClosedError):
        bench.open()
    assert bench.watches.pump() == []


def test_there_is_a_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SUBSCRIPTIONS_MAX", 1)
    bench = Bench()
    first = bench.open()
    with pytest.raises(LimitExceededError):
        bench.open()
    first.close()
    bench.open()
