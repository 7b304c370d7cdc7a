"""Watches: events of a machine, as they happen, over whatever connection there is.

A watch at a node ends when its connection does, and when its events were not taken fast enough.
This module begins it anew, each time with a request that is made at that moment, so that whoever
watches says where it is. It never invents, drops or reorders an event; gaps between the end of
one watch and the beginning of the next are closed by the request (a key-value watch names the next
revision) or by looking at the state again in ``on_open``.

Decides only, like ``submitter``: frames come in, frames to send come out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from math import inf
from typing import Final

import msgspec

from quorate.base.frames import Happened, Unwatch, Watch, WatchEnded, Watching
from quorate.client.submitter import retry_delay_s
from quorate.errors import (
    ClosedError,
    LimitExceededError,
    NotLeaderError,
    OverloadedError,
    QuorateError,
    UnavailableError,
    WatchLaggingError,
    error_from_code,
)

SUBSCRIPTIONS_MAX: Final = 20_000  # of one handle; a node takes as many from a connection
#: Ends after which the same request may work, at this node or another.
_BEGUN_ANEW: Final = frozenset(
    each.code
    for each in (WatchLaggingError, UnavailableError, OverloadedError, ClosedError, NotLeaderError)
)

_encode = msgspec.msgpack.Encoder().encode


class Subscription:
    """One watch, for as long as it is wanted. Made by ``Watches.open``.

    The callbacks run on the loop, must not block, and may close, pause or open subscriptions.
    """

    __slots__ = (
        "_owner", "id", "machine", "on_events", "on_failed", "on_open", "paused", "request",
        "trouble",
    )  # fmt: skip

    def __init__(
        self,
        owner: Watches,
        machine: str,
        request: Callable[[], object],
        on_open: Callable[[int], None],
        on_events: Callable[[int, msgspec.Raw], None],
        on_failed: Callable[[QuorateError], None],
    ) -> None:
        self._owner = owner
        self.id = 0  #: of the watch at the connected node; 0: none
        self.machine = machine
        self.request = request
        self.on_open = on_open
        self.on_events = on_events
        self.on_failed = on_failed
        self.paused = False
        self.trouble = ""  #: why it could not begin when it was tried last

    def close(self) -> None:
        """No callback comes any more. Harmless when closed or failed already."""
        self._owner.close(self)

    def pause(self) -> None:
        """Stop the events, until ``resume`` has it begun anew with a new request."""
        if not self.paused:
            self.paused = True
            self._owner.halt(self)

    def resume(self) -> None:
        """See ``pause``."""
        if self.paused:
            self.paused = False
            self._owner.want(self)


class Watches:
    """All subscriptions of a client. *wake*: called when there is something new to send, raises
    when the handle is closed."""

    def __init__(
        self,
        now: Callable[[], float],
        wake: Callable[[], None],
        next_id: Callable[[], int],
    ) -> None:
        self._now = now
        self._wake = wake
        self._next_id = next_id
        self._subscriptions: dict[Subscription, None] = {}
        self._by_id: dict[int, Subscription] = {}
        self._to_open: dict[Subscription, None] = {}
        self._to_end: list[int] = []
        self._paused_until = -inf

    # --- for those who watch --------------------------------------------------------------------

    def open(
        self,
        machine: str,
        request: Callable[[], object],
        on_open: Callable[[int], None],
        on_events: Callable[[int, msgspec.Raw], None],
        on_failed: Callable[[QuorateError], None],
    ) -> Subscription:
        """Watch *machine*. *request*: makes the machine's ``watch_type``; called at each beginning.
        *on_open*: it stands, and every event of entries behind this log index will come.
        *on_events*: the index up to which nothing is still to come, and an array of events.
        *on_failed*: it is over, and why: the machine refused it, or the handle was closed.

        Raises:
            LimitExceededError: the handle watches ``SUBSCRIPTIONS_MAX`` things already.
            ClosedError: the handle was closed.
        """
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise LimitExceededError(f"one handle watches up to {SUBSCRIPTIONS_MAX} things")
        self._wake()
        found = Subscription(self, machine, request, on_open, on_events, on_failed)
        self._subscriptions[found] = None
        self._to_open[found] = None
        return found

    def close(self, subscription: Subscription) -> None:
        """See ``Subscription.close``."""
        if subscription in self._subscriptions:
            del self._subscriptions[subscription]
            self.halt(subscription)

    def halt(self, subscription: Subscription) -> None:
        """End the watch at the node, if there is one."""
        self._to_open.pop(subscription, None)
        if self._by_id.pop(subscription.id, None) is not None:
            self._to_end.append(subscription.id)
            subscription.id = 0
            self._wake_quietly()

    def want(self, subscription: Subscription) -> None:
        """Begin it anew."""
        if subscription in self._subscriptions and not subscription.id:
            self._to_open[subscription] = None
            self._wake_quietly()

    def _wake_quietly(self) -> None:
        with contextlib.suppress(ClosedError):  # ``fail_all`` tells them
            self._wake()

    # --- for the client -------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a connection is wanted."""
        return any(not each.paused for each in self._subscriptions)

    @property
    def in_flight(self) -> bool:
        """Whether the connection is to be looked after: an event may come at any time."""
        return bool(self._by_id)

    @property
    def wake_at(self) -> float:
        """Loop time at which ``pump`` has something to do at the latest."""
        return self._paused_until if self._to_open and self._paused_until > -inf else inf

    def pump(self) -> list[Watch | Unwatch]:
        """The frames to send now. Call only while connected to a node that is to be watched."""
        if not self._to_open and not self._to_end:
            return []
        frames: list[Watch | Unwatch] = [Unwatch(each) for each in self._to_end]
        self._to_end.clear()
        if self._paused_until > self._now():
            return frames
        self._paused_until = -inf
        opening, self._to_open = self._to_open, {}
        for subscription in opening:
            if subscription.paused or subscription not in self._subscriptions:
                continue
            subscription.id = self._next_id()
            self._by_id[subscription.id] = subscription
            request = msgspec.Raw(_encode(subscription.request()))
            frames.append(Watch(subscription.id, subscription.machine, request))
        return frames

    def on_watching(self, frame: Watching) -> None:
        subscription = self._by_id.get(frame.id)
        if subscription is not None:
            subscription.trouble = ""
            subscription.on_open(frame.index)

    def on_happened(self, frame: Happened) -> None:
        subscription = self._by_id.get(frame.id)
        if subscription is not None:
            subscription.on_events(frame.index, frame.events)

    def on_ended(self, frame: WatchEnded) -> None:
        subscription = self._by_id.pop(frame.id, None)
        if subscription is None:
            return
        subscription.id = 0
        if frame.code in _BEGUN_ANEW:
            self._to_open[subscription] = None
            subscription.trouble = frame.message
            if frame.code != WatchLaggingError.code:
                until = self._now() + retry_delay_s(frame.retry_after_ms)
                self._paused_until = max(self._paused_until, until)
            return
        del self._subscriptions[subscription]
        subscription.on_failed(error_from_code(frame.code, frame.message))

    def disconnected(self) -> None:
        """The connection is gone: all begin anew on the next one."""
        self._to_end.clear()
        self._paused_until = -inf
        for subscription in self._by_id.values():
            subscription.id = 0
            self._to_open[subscription] = None
        self._by_id.clear()

    def expire(self, trouble: str) -> None:
        """Nothing here has a deadline."""

    def fail_all(self, error: QuorateError) -> None:
        """The handle closes."""
        subscriptions, self._subscriptions = self._subscriptions, {}
        self._by_id.clear()
        self._to_open.clear()
        for subscription in subscriptions:
            subscription.id = 0
            subscription.on_failed(error)
