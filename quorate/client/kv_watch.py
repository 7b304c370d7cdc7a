"""Watching keys: everything that becomes of them, in order, wherever the connection goes.

A watch knows the revision up to which it has been told all, and names the next one each time it is
begun at a node. So a failover leaves no gap, a node that lags behind tells nothing twice, and a
watch whose application is slow simply stops (what has come waits here, bounded) and goes on from
the history of the cluster later. Only if that no longer goes back so far does it end, with
``CompactedError``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

import msgspec

from quorate.base.kv_watch import KeyEvent, KeyEvents, KeyTold, WatchKeys
from quorate.base.limits import KIB, MIB, WATCH_PROGRESS_INTERVAL_S
from quorate.client.settings import check_timeout
from quorate.client.watching import Subscription, Watches
from quorate.errors import (
    CompactedError,
    InvalidArgumentError,
    QuorateError,
    UnavailableError,
    WireFormatError,
)

#: What a watch holds that the application has not taken: beyond either it pauses, and goes on when
#: half of it is taken. One frame may come on top.
BUFFER_BYTES_MAX: Final = 4 * MIB
BUFFER_EVENTS_MAX: Final = 10_000
#: Memory of an event beside its key and values: objects and references.
EVENT_BYTES: Final = KIB // 2
SILENCE_S_MIN: Final = 2 * WATCH_PROGRESS_INTERVAL_S
#: How often a node that has not come so far yet is asked again by ``progress``.
ASK_AGAIN_S: Final = 0.05

_decode: Final = msgspec.msgpack.Decoder(list[KeyTold]).decode


class Watch:
    """Made by ``Kv.watch``. ``async with`` begins and ends it; iterating it gives its events, one
    by one, and ``batches`` what each revision did, whole. For one task at a time."""

    def __init__(
        self,
        watches: Callable[[], Watches],
        revision_now: Callable[[float], Awaitable[int]],
        request: WatchKeys,
        timeout: float,
        silence: float | None,
    ) -> None:
        self._watches = watches
        self._revision_now = revision_now
        self._asked = request
        self._timeout = timeout
        self._silence = None if silence is None else _check_silence(silence)
        self._subscription: Subscription | None = None
        self._buffer: deque[tuple[KeyEvents, int]] = deque()  # and bytes
        self._part: deque[KeyEvent] = deque()  # the rest of a revision that is given one by one
        self._buffered_events = 0
        self._buffered_bytes = 0
        self._given = 0  # the last revision that was given out whole
        self._received = 0  # the last revision up to which everything is here
        self._begun = False
        self._ended = False
        self._oldest = 0
        self._error: QuorateError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._heard_at = 0.0

    # --- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin. If no revision was named to start at, the first is the next one after this call:
        every write that is acknowledged from then on will be told.

        Raises:
            UnavailableError: it could not begin within the handle's timeout, and why.
            QuorateError: as any read.
        """
        if self._subscription is not None:
            raise InvalidArgumentError("a watch is begun once; make another one")
        start = self._asked.start_revision
        if start == 0:
            start = 1 + await self._revision_now(self._timeout)
        self._given = self._received = start - 1
        self._heard_at = asyncio.get_running_loop().time()
        self._subscription = subscription = self._watches().open(
            "kv", self._request, self._on_open, self._on_events, self._on_failed
        )
        try:
            async with asyncio.timeout(self._timeout):
                while not (self._begun or self._error):
                    await self._wait()
        except TimeoutError:
            await self.close()
            why = subscription.trouble or "no node could be reached"
            raise UnavailableError(
                f"the watch did not begin within {self._timeout:g} s: {why}"
            ) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End it; who iterates it comes to the end. What was not taken is dropped."""
        self._ended = True
        if self._subscription is not None:
            self._subscription.close()
        self._buffer.clear()
        self._part.clear()
        self._wake()

    # --- what it tells --------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """A bookmark: everything up to this revision has been given out. ``start_revision`` of a
        watch that goes on from here is one more. It moves on while nothing happens to these keys,
        but not past what waits to be taken."""
        return self._given if self._buffer or self._part else self._received

    def __aiter__(self) -> AsyncIterator[KeyEvent]:
        return self

    async def __anext__(self) -> KeyEvent:
        """The next event. It may be cancelled, and loses nothing.

        Raises:
            CompactedError: events that were not told yet are no longer kept; ``oldest`` is the
                first revision that is. Read the keys, and begin another watch behind that read.
            UnavailableError: nothing was heard of any node for *silence* seconds; iterate again to
                go on waiting.
            ClosedError: the handle was closed.
        """
        if not self._part:
            self._part.extend((await self._next()).events)
        event = self._part.popleft()
        if not self._part:
            self._given = event.mod_revision
        return event

    def batches(self) -> AsyncIterator[KeyEvents]:
        """The same by revisions: all events of one revision at once."""
        return _Batches(self._next_batch)

    async def take(self) -> list[KeyEvents]:
        """All that has come, by revisions, and at least one; none once the watch was closed.
        Otherwise as ``__anext__``."""
        try:
            found = [await self._next_batch()]
        except StopAsyncIteration:
            return []
        while self._buffer:
            found.append(await self._next_batch())
        return found

    async def _next_batch(self) -> KeyEvents:
        if self._part:
            batch = KeyEvents(self._part[0].mod_revision, tuple(self._part))
            self._part.clear()
        else:
            batch = await self._next()
        self._given = batch.revision
        return batch

    async def _next(self) -> KeyEvents:
        while not self._buffer:
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            if self._subscription is None:
                raise InvalidArgumentError("a watch is begun with `async with`")
            await self._wait_for_news()
        batch, size_bytes = self._buffer.popleft()
        self._buffered_events -= len(batch.events)
        self._buffered_bytes -= size_bytes
        self._make_room()
        return batch

    async def progress(self, *, timeout: float | None = None) -> int:
        """Wait until everything that had happened when this was called has come, and say up to
        which revision that is. It has been given out once ``revision`` is as high.

        Raises:
            UnavailableError: it did not come in time; as long as the application leaves too much
                untaken, nothing does.
            CompactedError, ClosedError: as for the events.
        """
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        try:
            async with asyncio.timeout(wait_s):
                goal = await self._revision_now(wait_s)
                while self._received < goal and not self._ended:
                    if self._error is not None:
                        raise self._error
                    await self._ask(goal)
        except TimeoutError:
            raise UnavailableError(
                f"the watch has come to revision {self._received}, and no further in {wait_s:g} s"
            ) from None
        return goal

    async def _ask(self, goal: int) -> None:
        """Have the node say how far the watch has come: it does when a watch begins."""
        subscription = self._subscription
        if subscription is None:
            raise InvalidArgumentError("a watch is begun with `async with`")
        if not subscription.paused:
            subscription.pause()
            subscription.resume()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_AGAIN_S):
                while self._received < goal and self._error is None and not self._ended:
                    await self._wait()

    # --- what comes -----------------------------------------------------------------------------

    def _request(self) -> WatchKeys:
        return msgspec.structs.replace(self._asked, start_revision=self._received + 1)

    def _on_open(self, _index: int) -> None:
        self._heard()

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        self._heard()
        try:
            told = _decode(events)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if self._subscription is not None:
                self._subscription.close()
            self._on_failed(WireFormatError(f"what a node told a watch is not valid: {error}"))
            return
        self._begun = True
        for each in told:
            if not isinstance(each, KeyEvents):
                self._oldest = each.oldest
            elif each.revision > self._received:
                if not (self._buffer or self._part):
                    self._given = self._received  # or the bookmark would go back to the last event
                self._received = each.revision
                if each.events:
                    self._keep(each)
        self._make_room()
        self._wake()

    def _on_failed(self, error: QuorateError) -> None:
        if isinstance(error, CompactedError):
            error.oldest = self._oldest
        self._error = error
        self._wake()

    def _keep(self, batch: KeyEvents) -> None:
        size_bytes = sum(map(_size_of, batch.events))
        self._buffer.append((batch, size_bytes))
        self._buffered_events += len(batch.events)
        self._buffered_bytes += size_bytes

    def _make_room(self) -> None:
        """Pause if too much is waiting, and go on when half of it has been taken."""
        share = max(
            self._buffered_events / BUFFER_EVENTS_MAX, self._buffered_bytes / BUFFER_BYTES_MAX
        )
        subscription = self._subscription
        if subscription is None or self._ended:
            return
        if share > 1:
            subscription.pause()
        elif share <= 1 / 2:
            subscription.resume()

    # --- waiting --------------------------------------------------------------------------------

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def _wait_for_news(self) -> None:
        if self._silence is None:
            await self._wait()
            return
        try:
            async with asyncio.timeout_at(self._heard_at + self._silence):
                await self._wait()
        except TimeoutError:
            if asyncio.get_running_loop().time() < self._heard_at + self._silence:
                return  # something came that was nothing for the application
            self._heard()  # so that who goes on waits as long again
            raise UnavailableError(
                f"no node was heard of for {self._silence:g} s; the watch has been told all up to "
                f"revision {self._received}, and goes on from there if it is iterated again"
            ) from None

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Batches:
    """A class and not a generator, which a cancelled ``anext`` would end for good."""

    def __init__(self, next_batch: Callable[[], Awaitable[KeyEvents]]) -> None:
        self._next_batch = next_batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyEvents:
        return await self._next_batch()


def _size_of(event: KeyEvent) -> int:
    previous = 0 if event.previous is None else len(event.previous.value) + len(event.key)
    return len(event.key) + len(event.value) + previous + EVENT_BYTES


def _check_silence(silence: float) -> float:
    if check_timeout(silence) < SILENCE_S_MIN:
        raise InvalidArgumentError(
            f"silence is at least {SILENCE_S_MIN:g} s: a node says only every "
            f"{WATCH_PROGRESS_INTERVAL_S:g} s that nothing happened"
        )
    return silence
