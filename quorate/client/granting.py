"""Grants: how a handle gets one, stands in line for it, gives it back, and hears of its loss."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from quorate.base.fencing import Fence
from quorate.base.limits import LOCK_NAME_BYTES_MAX
from quorate.base.lock_commands import (
    LOCK_MACHINE,
    Acquire,
    Acquired,
    Granted,
    Holdings,
    Kind,
    LockEvent,
    LockResult,
    NotAcquired,
    Release,
    WatchGrants,
    name_text,
)
from quorate.client.claims import Awaited, Desk, Desks, Key
from quorate.client.leases import RETRY_S_MAX, RETRY_S_MIN
from quorate.client.losing import Loss, set_loss, watch_loss
from quorate.client.operations import Bytes, as_bytes
from quorate.client.settings import check_timeout
from quorate.errors import (
    CommandError,
    DeadlineExceededError,
    InvalidArgumentError,
    LeaseExpiredError,
    LeaseLostError,
    LimitExceededError,
    LockLostError,
    LockTimeoutError,
    NotSentError,
    OutcomeUnknownError,
    OverloadedError,
    QuorateError,
    SessionExpiredError,
    UnavailableError,
)

#: What passes by itself: whoever stood in line goes on trying.
_PASSING: Final = (
    UnavailableError,
    DeadlineExceededError,
    NotSentError,
    OutcomeUnknownError,
    SessionExpiredError,
    OverloadedError,
)

_decode_events: Final = msgspec.msgpack.Decoder(list[LockEvent]).decode


class Wanted(msgspec.Struct, frozen=True):
    """What a handle is for: *permits* of the *total* of *name*, under a lease of *ttl_ms*."""

    name: bytes
    kind: Kind
    total: int
    permits: int
    ttl_ms: int


def as_lock_name(name: Bytes) -> bytes:
    """A name of locks and barriers as bytes.

    Raises:
        InvalidArgumentError: not bytes or str, or empty.
        LimitExceededError: longer than ``LOCK_NAME_BYTES_MAX``.
    """
    found = as_bytes(name, "name")
    if not found:
        raise InvalidArgumentError("a name has at least one byte")
    if len(found) > LOCK_NAME_BYTES_MAX:
        raise LimitExceededError(
            f"a name of {len(found)} bytes is over the limit of {LOCK_NAME_BYTES_MAX}"
        )
    return found


class Grant:
    """Something that was acquired."""

    __slots__ = ("_stop", "desk", "lost", "owner", "released", "token", "wanted")

    def __init__(self, desk: Desk, wanted: Wanted, owner: int, token: int) -> None:
        self.desk = desk
        self.wanted = wanted
        self.owner = owner
        self.token = token
        self.released = False
        self.lost = Loss()
        self._stop = watch_loss(desk.lease.lost, self._on_loss)

    @property
    def alive(self) -> bool:
        """Whether it surely stands at this moment."""
        return not self.released and self.desk.lease.alive

    @property
    def fence(self) -> Fence:
        """What a store is shown, which refuses a grant that has passed on."""
        return Fence(LOCK_MACHINE, self.wanted.name, self.token)

    def loss_error(self) -> LockLostError:
        """What to raise now that it is lost."""
        wanted, lease = self.wanted, self.desk.lease
        return LockLostError(
            f"{wanted.kind} {name_text(wanted.name)} under token {self.token} was lost: "
            f"lease {lease.id} {lease.lost.reason or 'may have ended'}; another may have it by now"
        )

    def _on_loss(self) -> None:
        if not self.released:
            set_loss(self.lost, self.desk.lease.lost.reason)

    def finish(self) -> None:
        """It is given back."""
        if not self.released:
            self.released = True
            self._stop()
            self.desk.end()


class LockCalls:
    """What handles ask of the lock machine."""

    def __init__(self, desks: Desks) -> None:
        self.desks = desks
        self._plans = desks.keeper.plans
        self._codec = self._plans.codec(LOCK_MACHINE, LockResult)

    async def ask(self, query: object, timeout: float | None = None) -> Any:  # noqa: ANN401
        """A query."""
        return await self._plans.ask(self._codec, query, self._wait_s(timeout))

    async def run(self, command: object, timeout: float | None = None) -> Any:  # noqa: ANN401
        """A command."""
        return await self._plans.submit(self._codec, command, self._wait_s(timeout))

    def _wait_s(self, timeout: float | None) -> float:
        return self._plans.timeout if timeout is None else check_timeout(timeout)

    async def acquire(self, wanted: Wanted, value: bytes, timeout: float | None) -> Grant:
        """Stand in line until it is granted. Whoever has stood in line and lost the lease, because
        no node could be reached for so long, stands in line again, at its end.

        Raises:
            LockTimeoutError: *timeout* seconds passed; nothing waits any more.
            QuorateError: it was refused, or no node could be reached to begin with.
        """
        if timeout is None:
            return await self._acquire(wanted, value)
        limit = asyncio.timeout(check_timeout(timeout))
        try:
            async with limit:
                return await self._acquire(wanted, value)
        except TimeoutError as error:
            if isinstance(error, QuorateError) and not limit.expired():
                raise
            raise LockTimeoutError(
                f"{wanted.kind} {name_text(wanted.name)} was not free within {timeout:g} s"
            ) from None

    async def _acquire(self, wanted: Wanted, value: bytes) -> Grant:
        stood_in_line = False
        retry_s = RETRY_S_MIN
        while True:
            try:
                desk = await self.desks.desk(wanted.ttl_ms)
                attempt = _Attempt(self, desk, wanted)
                try:
                    granted = await attempt.run(value, wait=True)
                finally:
                    stood_in_line = stood_in_line or attempt.waited
            except (LeaseLostError, LeaseExpiredError):
                pass
            except _PASSING:
                if not stood_in_line:
                    raise
            else:
                if isinstance(granted, Grant):
                    return granted
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def try_acquire(self, wanted: Wanted, value: bytes) -> Grant | NotAcquired:
        """Acquire it if it is free."""
        while True:
            desk = await self.desks.desk(wanted.ttl_ms)
            try:
                return await _Attempt(self, desk, wanted).run(value, wait=False)
            except LeaseExpiredError:
                continue

    async def release(self, grant: Grant) -> None:
        """Give it back. If no node answers in time, that goes on behind, while the lease stands."""
        grant.finish()
        desk = grant.desk
        if not desk.lease.alive:
            return
        command = Release(grant.wanted.name, desk.lease.id, grant.owner)
        answered = False
        try:
            await self.run(command)
            answered = True
        except CommandError:
            answered = True  # it went with its lease
        except QuorateError:
            pass
        finally:
            if not answered:
                self.take_back(desk, command)

    def take_back(self, desk: Desk, command: object) -> None:
        """See ``Desk.take_back``; behind everybody's back."""
        desk.keeper.errand(desk.take_back(self._codec, command))

    def awaited(self, desk: Desk) -> Awaited:
        """What is waited for under the lease of *desk*."""
        return desk.at(LOCK_MACHINE, self._make_awaited)

    def _make_awaited(self, desk: Desk) -> Awaited:
        lease = desk.lease.id

        async def ask(_keys: list[Any]) -> Iterable[tuple[Key, Any]]:
            found: list[tuple[Key, Any]] = []
            query = Holdings(lease)
            while True:
                page = await self.ask(query)
                found += [((each.name, each.owner), each.token) for each in page.holdings]
                if not page.more:
                    return [each for each in found if each[1]]
                last = page.holdings[-1]
                query = Holdings(lease, last.name, last.owner)

        return Awaited(desk, LOCK_MACHINE, lambda: WatchGrants(lease), _read_grants, ask)


class _Attempt:
    """One attempt to acquire: whatever becomes of it, it leaves nothing behind."""

    def __init__(self, calls: LockCalls, desk: Desk, wanted: Wanted) -> None:
        self._calls = calls
        self._desk = desk
        self._wanted = wanted
        self.waited = False  #: it stood in line

    async def run(self, value: bytes, *, wait: bool) -> Grant | NotAcquired:
        desk, wanted = self._desk, self._wanted
        owner = desk.begin()
        awaited = self._calls.awaited(desk)
        key = (wanted.name, owner)
        granted = awaited.expect(key)
        answered = clean = False
        try:
            result = await self._calls.run(
                Acquire(
                    wanted.name,
                    wanted.kind,
                    wanted.total,
                    wanted.permits,
                    desk.lease.id,
                    owner,
                    wait,
                    value,
                )
            )
            answered = True
            if isinstance(result, NotAcquired):
                clean = True
                desk.end()
                return result
            token = result.token if isinstance(result, Acquired) else await self._turn(key, granted)
            if not desk.lease.alive:
                raise desk.lease.loss_error()
            clean = True
            return Grant(desk, wanted, owner, token)
        except QuorateError as error:
            if isinstance(error, LeaseExpiredError):
                desk.lease.end("has ended")
            clean = error.definite and not answered
            if clean:
                desk.end()
            raise
        finally:
            awaited.forget(key)
            if not clean:
                desk.end()
                command = Release(wanted.name, desk.lease.id, owner, withdraw=not answered)
                self._calls.take_back(desk, command)

    async def _turn(self, key: Key, granted: asyncio.Future[Any]) -> int:
        self.waited = True
        self._calls.awaited(self._desk).told_to_wait(key)
        token: int = await granted
        return token


def _read_grants(events: msgspec.Raw) -> Iterator[tuple[Key, Any]]:
    for event in _decode_events(events):
        if isinstance(event, Granted):
            yield (event.name, event.owner), event.token
