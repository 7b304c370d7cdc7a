"""Claims: what handles of locks and barriers have, or wait for, under a lease that they share.

All handles of one ``Database`` with the same time to live share one lease, which is granted at the
first use. Each attempt has a number of its own within it (the *owner*), so that whatever becomes of
an attempt, it can be taken back by name: who is cancelled or runs out of time while waiting leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.leases import (
    RETRY_S_MAX,
    RETRY_S_MIN,
    Keeper,
    Lease,
)
from quorate.client.losing import watch_loss
from quorate.client.watching import Subscription
from quorate.errors import CommandError, LeaseLostError, QuorateError

#: A lease that no handle uses is given back after so long: a client that used a lock once must not
#: cost the cluster a renewal every few seconds for ever.
IDLE_S_MAX: Final = 60.0

#: Who acts, if it is not the running task: the synchronous twin names its threads.
ACTOR: ContextVar[Hashable | None] = ContextVar("quorate_actor", default=None)

Key = Hashable
Asked = Callable[[list[Any]], Awaitable[Iterable[tuple[Key, Any]]]]


def actor() -> Hashable:
    """Who acts: two handles in the same hands would wait for each other for ever."""
    given = ACTOR.get()
    return asyncio.current_task() if given is None else given


class Awaited:
    """What is waited for under one lease at one machine: told by the one watch of that lease, or,
    after a gap in it, by looking at the state.

    *request*: of the watch. *read*: the keys and values in an array of events. *ask*: those of the
    given keys that have come by now, of keys for which the machine is known to have said "wait".
    """

    def __init__(
        self,
        desk: Desk,
        machine: str,
        request: Callable[[], object],
        read: Callable[[msgspec.Raw], Iterable[tuple[Key, Any]]],
        ask: Asked,
    ) -> None:
        self._desk = desk
        self._machine = machine
        self._request = request
        self._read = read
        self._ask = ask
        self._futures: dict[Key, AnyFuture] = {}
        self._told_to_wait: dict[Key, None] = {}
        self._watch: Subscription | None = None
        self._looking: asyncio.Task[Any] | None = None

    def expect(self, key: Key) -> AnyFuture:
        """The future of *key*; to be made before the command goes out."""
        future: AnyFuture = asyncio.get_running_loop().create_future()
        self._futures[key] = future
        return future

    def forget(self, key: Key) -> None:
        """Nobody waits for it any more."""
        self._told_to_wait.pop(key, None)
        future = self._futures.pop(key, None)
        if future is not None and not future.done():
            future.cancel()

    def told_to_wait(self, key: Key) -> None:
        """The machine has answered that an event will come."""
        self._told_to_wait[key] = None
        if self._watch is None:
            self._watch = self._desk.keeper.plans.watches.open(
                self._machine, self._request, self._on_open, self._on_events, self._on_failed
            )

    def fail_all(self, error: QuorateError) -> None:
        """The lease is lost, or nothing will be heard of it any more."""
        for future in list(self._futures.values()):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits has it; nobody need
        if self._watch is not None:
            self._watch.close()

    def _on_open(self, _index: int) -> None:
        """What happened before is not told any more."""
        if self._told_to_wait and self._looking is None:
            self._looking = self._desk.keeper.errand(self._look())

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for key, value in self._read(events):
            self._come(key, value)

    def _on_failed(self, error: QuorateError) -> None:
        self._watch = None
        self.fail_all(error)

    def _come(self, key: Key, value: Any) -> None:  # noqa: ANN401
        future = self._futures.get(key)
        if future is not None and not future.done():
            future.set_result(value)

    async def _look(self) -> None:
        try:
            retry_s = RETRY_S_MIN
            while waiting := list(self._told_to_wait):
                try:
                    for key, value in await self._ask(waiting):
                        self._come(key, value)
                except QuorateError:  # no node answers: until the lease is lost
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, RETRY_S_MAX)
                else:
                    return
        finally:
            self._looking = None


class Desk:
    """One shared lease, and what is held and waited for under it."""

    def __init__(self, keeper: Keeper, lease: Lease) -> None:
        self.keeper = keeper
        self.lease = lease
        self.users = 0  #: claims, held or waiting
        self.idle_since = keeper.clock()
        self.next_owner = itertools.count(1).__next__
        self.awaited: dict[str, Awaited] = {}
        watch_loss(lease.lost, self._on_loss)

    def at(self, machine: str, make: Callable[[Desk], Awaited]) -> Awaited:
        """What is waited for at *machine*."""
        found = self.awaited.get(machine)
        if found is None:
            found = self.awaited[machine] = make(self)
        return found

    def begin(self) -> int:
        """A new claim: its owner."""
        self.users += 1
        return self.next_owner()

    def end(self) -> None:
        """A claim is over."""
        self.users -= 1
        self.idle_since = self.keeper.clock()

    def _on_loss(self) -> None:
        for awaited in self.awaited.values():
            awaited.fail_all(self.lease.loss_error())

    async def take_back(self, codec: MachineCodec, command: object) -> None:
        """Have *command* applied, which takes back a claim, however long that takes: until it is
        answered, or the lease is over and everything with it."""
        plans = self.keeper.plans
        retry_s = RETRY_S_MIN
        while self.lease.alive:
            try:
                await plans.submit(codec, command, plans.timeout)
            except CommandError:
                return  # there is nothing to take back
            except QuorateError:
                pass
            else:
                return
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)


class Desks:
    """The shared leases of a handle, by their time to live."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self._desks: dict[int, Desk] = {}
        self._granting: dict[int, asyncio.Task[Desk]] = {}
        self._sweeper: asyncio.Task[Any] | None = None
        #: Whose hands hold which name, for locks.
        self.in_hands: dict[tuple[bytes, Hashable], object] = {}

    async def desk(self, ttl_ms: int) -> Desk:
        """The one for *ttl_ms*, with a lease that stands.

        Raises:
            QuorateError: no lease was granted.
        """
        found = self._desks.get(ttl_ms)
        if found is not None and found.lease.alive:
            return found
        self.keeper.check_open()
        task = self._granting.get(ttl_ms)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._grant(ttl_ms))
            self._granting[ttl_ms] = task
            task.add_done_callback(lambda _task: self._granted(ttl_ms))
        # One caller that is cancelled must not spoil it for the others.
        return await asyncio.shield(task)

    async def _grant(self, ttl_ms: int) -> Desk:
        lease = await Lease(self.keeper, ttl_ms, "locks").grant()
        if not lease.alive:
            raise LeaseLostError("the cluster took longer to grant a lease than it lives")
        desk = self._desks[ttl_ms] = Desk(self.keeper, lease)
        if self._sweeper is None:
            self._sweeper = self.keeper.errand(self._sweep())
        return desk

    def _granted(self, ttl_ms: int) -> None:
        task = self._granting.pop(ttl_ms)
        if not task.cancelled():
            task.exception()  # those who wait have it

    async def _sweep(self) -> None:
        """Give back leases that nobody uses."""
        try:
            while self._desks:
                await asyncio.sleep(IDLE_S_MAX / 2)
                now = self.keeper.clock()
                for ttl_ms, desk in list(self._desks.items()):
                    idle = desk.users == 0 and now - desk.idle_since >= IDLE_S_MAX
                    if idle or not desk.lease.alive:
                        del self._desks[ttl_ms]
                        if desk.lease.alive:
                            await desk.lease.__aexit__()
        finally:
            self._sweeper = None
