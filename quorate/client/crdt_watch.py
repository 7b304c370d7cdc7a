"""Watching CRDT data: its value whenever it has changed, as the connected node has it.

A node only tells that something has changed under a name, many changes at once as one. Then the
value is read again, when whoever watches asks for the next one. So a watcher that is slow costs
nobody anything, misses values in between, and never the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Self, TypeVar

import msgspec

from quorate.base.crdt_frames import CRDT_WATCH, WatchCrdt
from quorate.client.settings import check_timeout
from quorate.client.watching import Subscription, Watches
from quorate.errors import InvalidArgumentError, QuorateError, UnavailableError

T = TypeVar("T")

#: Between two readings of one watch: what changes all the time is not read all the time.
PAUSE_S_DEFAULT: Final = 0.05


class Watch(Generic[T]):
    """Made by ``watch`` of a handle. ``async with`` begins and ends it; iterating it gives the
    value at the beginning, and then each time it is found to be another. For one task at a time.
    """

    def __init__(
        self,
        watches: Callable[[], Watches],
        name: str,
        read: Callable[[], Awaitable[T]],
        timeout: float,
        pause: float,
    ) -> None:
        self._watches = watches
        self._name = name
        self._read = read
        self._timeout = timeout
        self._pause_s = check_timeout(pause) if pause else 0.0
        self._subscription: Subscription | None = None
        self._begun = self._changed = self._ended = False
        self._error: QuorateError | None = None
        self._given: list[T] = []  # the last value, if there was one
        self._next_at = 0.0
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin: no change after this is missed.

        Raises:
            UnavailableError: it could not begin within the handle's timeout, and why.
            ClosedError: the handle was closed.
        """
        if self._subscription is not None:
            raise InvalidArgumentError("a watch is begun once; make another one")
        self._subscription = subscription = self._watches().open(
            CRDT_WATCH, self._request, self._on_open, self._on_events, self._on_failed
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
        """End it; who iterates it comes to the end."""
        self._ended = True
        if self._subscription is not None:
            self._subscription.close()
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """The next value that is not equal to the one before; it waits until there is one. It may
        be cancelled, and misses nothing.

        Raises:
            UnavailableError, DeadlineExceededError: it changed, and could not be read in the time
                of a call; iterate again to go on.
            ClosedError: the handle was closed.
        """
        if self._subscription is None:
            raise InvalidArgumentError("a watch is begun with `async with`")
        while True:
            while not self._changed and self._error is None and not self._ended:
                await self._wait()
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            found = await self._read_again()
            if self._given != [found]:
                self._given = [found]
                return found

    async def _read_again(self) -> T:
        now = asyncio.get_running_loop().time
        if self._next_at > now():
            await asyncio.sleep(self._next_at - now())
        self._next_at = now() + self._pause_s
        self._changed = False
        try:
            return await self._read()
        except BaseException:
            self._changes()  # it has yet to be told
            raise

    # --- what comes -----------------------------------------------------------------------------

    def _request(self) -> WatchCrdt:
        return WatchCrdt(self._name)

    def _on_open(self, _index: int) -> None:
        self._begun = True
        self._changes()  # whatever happened while no node was watched

    def _on_events(self, _index: int, _events: msgspec.Raw) -> None:
        self._changes()

    def _changes(self) -> None:
        self._changed = True
        self._wake()

    def _on_failed(self, error: QuorateError) -> None:
        self._error = error
        self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
