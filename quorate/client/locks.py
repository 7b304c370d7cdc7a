"""Handles of locks, read-write locks and semaphores.

::

    async with db.lock("nightly-report") as lock:
        await db.kv.put("report", text, fence=lock.fence)

A lock is held as long as its lease is kept alive, which the handle sees to. If that fails - the
process was stopped, no node can be reached - the body is cancelled before anybody else can have the
lock, and ``LockLostError`` is raised. What was under way at that moment may still arrive somewhere:
that is what the fence is for (docs/locks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Final, Self

from quorate.base.fencing import Fence
from quorate.base.limits import LOCK_PERMITS_MAX
from quorate.base.lock_commands import LockInfo, LockQuery, name_text
from quorate.client.claims import actor
from quorate.client.granting import Grant, LockCalls, Wanted
from quorate.client.losing import Guard, Loss, watch_loss
from quorate.errors import AlreadyHeldError, InvalidArgumentError, NotHeldError

#: Permits of a read-write lock: a writer takes all.
READERS_MAX: Final = LOCK_PERMITS_MAX
#: Of these, one pair of hands that holds it and waits for it would wait for ever.
_EXCLUSIVE: Final = frozenset(("lock", "rwlock", "election"))


class Lock:
    """A handle of something to be held: a lock, one side of a read-write lock, a semaphore's
    permits. Used by one task at a time, any number of times; made by ``Database``."""

    def __init__(self, calls: LockCalls, wanted: Wanted, *, cancel_on_loss: bool = True) -> None:
        self._calls = calls
        self._wanted = wanted
        self._cancel_on_loss = cancel_on_loss
        self._value = b""
        self._grant: Grant | None = None
        self._busy = False
        self._hands: tuple[bytes, Hashable] | None = None
        self._guard: Guard | None = None
        self._no_loss = Loss()
        self._callbacks: dict[object, Callable[[], object]] = {}

    # --- acquiring ------------------------------------------------------------------------------

    async def acquire(self, timeout: float | None = None) -> int:
        """Wait in line until it is granted, however long; returns the token.

        *timeout*: seconds to wait at most.

        Raises:
            LockTimeoutError: its turn did not come in that time; nothing waits any more.
            AlreadyHeldError: this handle, or another in the hands of this task, holds it.
            LockMismatchError: the name is in use as something else, or of another size.
            QuorateError: no node could be reached to begin with.
        """
        hands = self._take_in_hand()
        try:
            grant = await self._calls.acquire(self._wanted, self._value, timeout)
        finally:
            self._busy = False
        return self._hold(grant, hands)

    async def try_acquire(self) -> bool:
        """Acquire it if it is free and nobody waits for it. False: it is not.

        Raises:
            AlreadyHeldError: this handle holds it.
            LockMismatchError, QuorateError: as ``acquire``.
        """
        hands = self._take_in_hand(waits=False)
        try:
            grant = await self._calls.try_acquire(self._wanted, self._value)
        finally:
            self._busy = False
        if not isinstance(grant, Grant):
            return False
        self._hold(grant, hands)
        return True

    async def release(self) -> None:
        """Give it back. From the call on it is not held any more; if no node can be reached, it
        is given back later, or goes with its lease.

        Raises:
            NotHeldError: it was not acquired, or is released already.
            LockLostError: it was lost before; what was done under it may have met another's work.
        """
        grant = self._grant
        if grant is None or grant.released:
            raise NotHeldError(
                f"{self._wanted.kind} {name_text(self._wanted.name)} is not held here"
            )
        lost = not grant.alive
        await self._give_back(grant)
        if lost:
            raise grant.loss_error()

    def _take_in_hand(self, *, waits: bool = True) -> tuple[bytes, Hashable]:
        wanted = self._wanted
        if self._busy or self.held:
            doing = "is being acquired" if self._busy else "is held"
            raise AlreadyHeldError(
                f"{wanted.kind} {name_text(wanted.name)} {doing} by this very handle; "
                "make one for each task, and release it before acquiring it again"
            )
        hands = (wanted.name, actor())
        other = self._calls.desks.in_hands.get(hands)
        if waits and isinstance(other, Lock) and other.held and wanted.kind in _EXCLUSIVE:
            raise AlreadyHeldError(
                f"{wanted.kind} {name_text(wanted.name)} is held by another handle in the same "
                "task, which would wait for itself: locks are not reentrant; "
                "hand on the handle that holds it"
            )
        self._busy = True
        return hands

    def _hold(self, grant: Grant, hands: tuple[bytes, Hashable]) -> int:
        self._grant = grant
        self._hands = hands
        self._calls.desks.in_hands[hands] = self
        watch_loss(grant.lost, self._on_loss)
        return grant.token

    def _out_of_hands(self) -> None:
        if self._hands is not None and self._calls.desks.in_hands.get(self._hands) is self:
            del self._calls.desks.in_hands[self._hands]
        self._hands = None

    async def _give_back(self, grant: Grant) -> None:
        self._out_of_hands()
        if not grant.released:
            await self._calls.release(grant)

    # --- how it stands --------------------------------------------------------------------------

    @property
    def name(self) -> bytes:
        """As given, as bytes."""
        return self._wanted.name

    @property
    def held(self) -> bool:
        """Whether it surely is held at this moment. Looked at anew each time: a process that was
        stopped for too long sees False at once."""
        return self._grant is not None and self._grant.alive

    @property
    def token(self) -> int:
        """Of the grant: higher than of any before it. Stays what it was after a loss.

        Raises:
            NotHeldError: it was not acquired, or is released.
        """
        return self._granted().token

    @property
    def fence(self) -> Fence:
        """For the ``fence`` of key-value writes: they are refused once the grant is over. Otherwise
        as ``token``."""
        return self._granted().fence

    def _granted(self) -> Grant:
        if self._grant is None or self._grant.released:
            raise NotHeldError(
                f"{self._wanted.kind} {name_text(self._wanted.name)} is not held here"
            )
        return self._grant

    @property
    def lost(self) -> Loss:
        """Of the latest grant: await it, or ask ``is_set()``."""
        return self._no_loss if self._grant is None else self._grant.lost

    @property
    def alive(self) -> bool:
        """The same as ``held``; for ``Guard``."""
        return self.held

    def loss_error(self) -> Exception:
        """What to raise once it was lost."""
        return self._granted().loss_error()

    def on_lost(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call *callback*, on the loop, whenever a grant of this handle is lost. Returns what
        undoes it."""
        token = object()
        self._callbacks[token] = callback
        grant = self._grant
        if grant is not None and not grant.released and grant.lost.is_set():
            callback()
        return lambda: self._callbacks.pop(token, None) and None

    def _on_loss(self) -> None:
        self._out_of_hands()
        for callback in list(self._callbacks.values()):
            watch_loss(self.lost, callback)

    async def status(self, *, timeout: float | None = None) -> LockInfo:
        """Who holds it and who waits, as the cluster has it."""
        info: LockInfo = await self._calls.ask(LockQuery(self._wanted.name), timeout)
        return info

    # --- with -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.acquire()
        if self._cancel_on_loss:
            self._guard = Guard(self._granted())
            try:
                await self._guard.__aenter__()
            except BaseException:
                await self._give_back(self._granted())
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        grant, guard = self._grant, self._guard
        self._guard = None
        if grant is None:
            return
        lost = not grant.released and not grant.alive
        try:
            if guard is not None and not grant.released:
                await guard.__aexit__(kind, error, trace)
        finally:
            await self._give_back(grant)
        if lost and error is None:
            raise grant.loss_error()

    def __repr__(self) -> str:
        state = f"held, token {self.token}" if self.held else "not held"
        return f"<{type(self).__name__} {name_text(self._wanted.name)}: {state}>"


class RwLock:
    """A lock for many readers or one writer. A writer that waits is not overtaken by readers."""

    def __init__(self, calls: LockCalls, wanted: Wanted, *, cancel_on_loss: bool = True) -> None:
        self._calls = calls
        self._wanted = wanted
        self._cancel_on_loss = cancel_on_loss

    def reader(self) -> Lock:
        """A handle for reading, beside other readers."""
        return self._side(1)

    def writer(self) -> Lock:
        """A handle for writing, alone."""
        return self._side(READERS_MAX)

    def _side(self, permits: int) -> Lock:
        given = self._wanted
        wanted = Wanted(given.name, "rwlock", READERS_MAX, permits, given.ttl_ms)
        return Lock(self._calls, wanted, cancel_on_loss=self._cancel_on_loss)


class Semaphore(Lock):
    """A handle of permits of a semaphore. Who waits for many is not overtaken by those who want
    few."""


def check_permits(permits: int, take: int) -> tuple[int, int]:
    """How many permits there are, and how many a handle takes.

    Raises:
        InvalidArgumentError: that cannot be.
    """
    for given in (permits, take):
        if type(given) is not int or not 1 <= given <= LOCK_PERMITS_MAX:
            raise InvalidArgumentError(
                f"permits are a number from 1 to {LOCK_PERMITS_MAX}, not {given!r}"
            )
    if take > permits:
        raise InvalidArgumentError(f"{take} permits are more than the {permits} that there are")
    return permits, take
