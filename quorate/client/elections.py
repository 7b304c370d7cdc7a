"""Handles of elections: one leader at a time, who proclaims a value, and those who look on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

import msgspec

from quorate.base.limits import LOCK_VALUE_BYTES_MAX
from quorate.base.lock_commands import (
    LOCK_MACHINE,
    Leads,
    LockEvent,
    LockQuery,
    Proclaim,
    WatchLeader,
)
from quorate.client.granting import LockCalls, Wanted
from quorate.client.locks import Lock
from quorate.client.operations import Bytes, as_bytes
from quorate.errors import LimitExceededError, QuorateError

_decode_events: Final = msgspec.msgpack.Decoder(list[LockEvent]).decode


class Leader(msgspec.Struct, frozen=True):
    """Who leads: what it proclaims, and the epoch (its token: higher than any before it)."""

    value: bytes
    epoch: int


class Election(Lock):
    """A handle of an election, for one candidate: ``campaign``, lead, ``resign``; or only to look
    who leads. Made by ``Database.election``. ``async with`` campaigns with *value*."""

    def __init__(
        self, calls: LockCalls, wanted: Wanted, value: Bytes, *, cancel_on_loss: bool = True
    ) -> None:
        super().__init__(calls, wanted, cancel_on_loss=cancel_on_loss)
        self._value = _as_value(value)

    async def campaign(self, value: Bytes | None = None, *, timeout: float | None = None) -> int:
        """Wait until this candidate leads; returns the epoch. *value*: what it proclaims then,
        None: what the handle was made with. Otherwise as ``acquire``."""
        if value is not None:
            self._value = _as_value(value)
        return await self.acquire(timeout)

    async def proclaim(self, value: Bytes) -> None:
        """Change what this leader proclaims.

        Raises:
            NotHeldError: it does not lead, or not any more.
        """
        grant = self._granted()
        checked = _as_value(value)
        command = Proclaim(self.name, grant.desk.lease.id, grant.owner, checked)
        await self._calls.run(command)
        self._value = checked

    async def resign(self) -> None:
        """Lead no more. As ``release``."""
        await self.release()

    @property
    def is_leader(self) -> bool:
        """Whether this candidate surely leads at this moment. It turns False before another can
        lead, even if this process was stopped meanwhile or reaches no node."""
        return self.held

    @property
    def epoch(self) -> int:
        """The token of the grant."""
        return self.token

    async def leader(self, *, timeout: float | None = None) -> Leader | None:
        """Who leads; None: nobody."""
        info = await self._calls.ask(LockQuery(self.name), timeout)
        for holder in info.holders:
            return Leader(holder.value, holder.token)
        return None

    def observe(self) -> Observation:
        """``async for leader in election.observe():`` who leads now (None: nobody), and then each
        change. Whoever is slow sees the latest leader, not all that were between."""
        return Observation(self._calls, self.name)


class Observation:
    """Who leads an election, as it changes. ``async with`` ends the watch at once; otherwise it
    ends when the loop over it does and this object is forgotten."""

    def __init__(self, calls: LockCalls, name: bytes) -> None:
        self._news = asyncio.Event()
        self._latest: Leads | None = None
        self._shown: Leads | None = None
        self._error: QuorateError | None = None
        self._watch = calls.desks.keeper.plans.watches.open(
            LOCK_MACHINE, lambda: WatchLeader(name), _pass_over, self._on_events, self._on_failed
        )

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for event in _decode_events(events):
            if isinstance(event, Leads):
                self._latest = event
        self._news.set()

    def _on_failed(self, error: QuorateError) -> None:
        self._error = error
        self._news.set()

    def close(self) -> None:
        """No more news."""
        self._watch.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Leader | None]:
        return self._changes()

    async def _changes(self) -> AsyncIterator[Leader | None]:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                latest = self._latest
                if latest is not None and latest != self._shown:
                    self._shown = latest
                    yield Leader(latest.value, latest.token) if latest.token else None
                if self._error is not None:
                    raise self._error
        finally:
            self.close()


def _pass_over(_index: int) -> None:
    return None


def _as_value(value: Bytes) -> bytes:
    found = as_bytes(value, "value")
    if len(found) > LOCK_VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"a proclaimed value of {len(found)} bytes is over the limit of {LOCK_VALUE_BYTES_MAX}"
        )
    return found
