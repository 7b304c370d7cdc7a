"""Handles of barriers: wait for one another, and go on together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from quorate.base.barrier_commands import (
    BARRIER_MACHINE,
    Arrive,
    BarrierEvent,
    BarrierInfo,
    BarrierQuery,
    BarrierResult,
    Expecting,
    Leave,
    PartiesOf,
    WatchParties,
)
from quorate.base.lease_commands import LEASE_MACHINE, LeaseQuery, LeaseResult
from quorate.base.limits import BARRIER_PARTIES_MAX
from quorate.base.lock_commands import name_text
from quorate.client.claims import Awaited, Desk, Desks, Key
from quorate.client.settings import check_timeout
from quorate.errors import (
    AlreadyHeldError,
    InvalidArgumentError,
    LockTimeoutError,
    NotHeldError,
    QuorateError,
)

_decode_events: Final = msgspec.msgpack.Decoder(list[BarrierEvent]).decode


def check_parties(parties: int) -> int:
    """A number of parties.

    Raises:
        InvalidArgumentError: that cannot be.
    """
    if type(parties) is not int or not 1 <= parties <= BARRIER_PARTIES_MAX:
        raise InvalidArgumentError(
            f"a barrier has from 1 to {BARRIER_PARTIES_MAX} parties, not {parties!r}"
        )
    return parties


class _Door:
    """What both kinds have in common: one party, arriving and leaving."""

    def __init__(
        self, desks: Desks, name: bytes, parties: int, ttl_ms: int, *, double: bool
    ) -> None:
        self._desks = desks
        self._plans = desks.keeper.plans
        self._codec = self._plans.codec(BARRIER_MACHINE, BarrierResult)
        self._name = name
        self._parties = check_parties(parties)
        self._double = double
        self._ttl_ms = ttl_ms
        self._busy = False

    async def status(self, *, timeout: float | None = None) -> BarrierInfo:
        """How many are at the door and inside."""
        info: BarrierInfo = await self._plans.ask(
            self._codec, BarrierQuery(self._name), timeout or self._plans.timeout
        )
        return info

    async def _arrive(self) -> tuple[Desk, int]:
        """Wait at the door; returns under which lease and as which owner it passed."""
        desk = await self._desks.desk(self._ttl_ms)
        owner = desk.begin()
        command = Arrive(self._name, self._parties, self._double, desk.lease.id, owner)
        passed = False
        try:
            await self._pass(desk, command, owner, out=False)
            passed = True
        finally:
            if not passed or not self._double:
                desk.end()
        return desk, owner

    async def _pass(self, desk: Desk, command: object, owner: int, *, out: bool) -> None:
        awaited = desk.at(BARRIER_MACHINE, self._make_awaited)
        key = (self._name, owner, out)
        through = awaited.expect(key)
        answered = clean = False
        try:
            result = await self._plans.submit(self._codec, command, self._plans.timeout)
            answered = True
            if isinstance(result, Expecting):
                awaited.told_to_wait(key)
                await through
            clean = True
        except QuorateError as error:
            clean = error.definite and not answered
            raise
        finally:
            awaited.forget(key)
            if not clean:
                leave = Leave(self._name, desk.lease.id, owner, withdraw=True)
                desk.keeper.errand(desk.take_back(self._codec, leave))

    async def _within(self, what: Any, timeout: float | None) -> Any:  # noqa: ANN401
        """*what* in time, by one task at a time."""
        if self._busy:
            what.close()
            raise AlreadyHeldError("this handle waits already; make one for each party")
        self._busy = True
        limit = asyncio.timeout(None if timeout is None else check_timeout(timeout))
        try:
            async with limit:
                return await what
        except TimeoutError as error:
            if isinstance(error, QuorateError) and not limit.expired():
                raise
            raise LockTimeoutError(
                f"the other parties of barrier {name_text(self._name)} did not come within "
                f"{timeout:g} s"
            ) from None
        finally:
            self._busy = False

    def _make_awaited(self, desk: Desk) -> Awaited:
        lease = desk.lease.id

        async def ask(keys: list[Any]) -> Iterable[tuple[Key, Any]]:
            states = await self._states(lease)
            # Whoever was told to wait and is not there any more has passed: if the lease stands.
            leases = self._plans.codec(LEASE_MACHINE, LeaseResult)
            await self._plans.ask(leases, LeaseQuery(lease), self._plans.timeout)
            still = {False: ("waiting",), True: ("inside", "leaving")}
            return [
                (key, True) for key in keys if states.get((key[0], key[1]), "") not in still[key[2]]
            ]

        return Awaited(desk, BARRIER_MACHINE, lambda: WatchParties(lease), _read_events, ask)

    async def _states(self, lease: int) -> dict[tuple[bytes, int], str]:
        found: dict[tuple[bytes, int], str] = {}
        query = PartiesOf(lease)
        while True:
            page = await self._plans.ask(self._codec, query, self._plans.timeout)
            found.update({(each.name, each.owner): each.state for each in page.parties})
            if not page.more:
                return found
            query = PartiesOf(lease, page.parties[-1].name, page.parties[-1].owner)


class Barrier(_Door):
    """A handle of a barrier, for one party. Made by ``Database.barrier``."""

    def __init__(self, desks: Desks, name: bytes, parties: int, ttl_ms: int) -> None:
        super().__init__(desks, name, parties, ttl_ms, double=False)

    async def wait(self, timeout: float | None = None) -> None:
        """Until as many parties wait as the barrier has; then all go on, and the next round begins.
        A party that dies while it waits is not counted.

        Raises:
            LockTimeoutError: *timeout* seconds passed; this party does not wait any more.
            LockMismatchError: others named another number of parties.
            LeaseLostError: no node could be reached for too long.
            QuorateError: no node could be reached to begin with.
        """
        await self._within(self._arrive(), timeout)


class DoubleBarrier(_Door):
    """A handle of a double barrier, for one party: all enter together, and leave together. Made by
    ``Database.double_barrier``; ``async with`` enters and leaves."""

    def __init__(self, desks: Desks, name: bytes, parties: int, ttl_ms: int) -> None:
        super().__init__(desks, name, parties, ttl_ms, double=True)
        self._inside: tuple[Desk, int] | None = None

    async def enter(self, timeout: float | None = None) -> None:
        """Until as many parties wait as the barrier has, and all who were inside before have left.
        Errors as ``Barrier.wait``."""
        if self._inside is not None:
            raise AlreadyHeldError("this party is inside already")
        self._inside = await self._within(self._arrive(), timeout)

    async def leave(self, timeout: float | None = None) -> None:
        """Until all have left. A party that died inside has left.

        Raises:
            NotHeldError: it is not inside.
            LockTimeoutError: some are still inside after *timeout* seconds; this one is not.
            LeaseLostError: no node could be reached for too long.
        """
        await self._within(self._leave(), timeout)

    async def _leave(self) -> None:
        if self._inside is None:
            raise NotHeldError("this party is not inside")
        (desk, owner), self._inside = self._inside, None
        try:
            if not desk.lease.alive:
                raise desk.lease.loss_error()
            command = Leave(self._name, desk.lease.id, owner)
            await self._pass(desk, command, owner, out=True)
        finally:
            desk.end()

    async def __aenter__(self) -> Self:
        await self.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._inside is not None:
            await self.leave()


def _read_events(events: msgspec.Raw) -> Iterator[tuple[Key, Any]]:
    for event in _decode_events(events):
        yield (event.name, event.owner, event.out), True
