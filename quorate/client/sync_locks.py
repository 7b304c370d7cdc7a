"""Leases, locks, semaphores and elections without ``await``.

A thread cannot be cancelled, so nobody is when a lock is lost: look at ``held``, which is true to
the moment on any thread, or use ``on_lost``, whose callback runs on the handle's own thread. The
loss is raised at the end of the ``with`` block in any case.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from quorate.base.fencing import Fence
from quorate.base.lock_commands import LockInfo
from quorate.client import elections, leases, locks
from quorate.client.claims import ACTOR
from quorate.client.leases import LEASE_TTL_S_DEFAULT
from quorate.client.operations import Bytes

T = TypeVar("T")

#: Runs what it is given on the loop of the asynchronous twin, whose ``Database`` it hands in.
OnLoop = Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Any]


class Lease:
    """As the asynchronous ``Lease``."""

    def __init__(self, twin: leases.Lease, run: OnLoop) -> None:
        self._twin = twin
        self._run = run

    def grant(self) -> Self:
        """As ``Lease.grant``."""
        self._run(lambda _db: self._twin.grant())
        return self

    def revoke(self) -> bool:
        """As ``Lease.revoke``."""
        existed: bool = self._run(lambda _db: self._twin.revoke())
        return existed

    def time_to_live(self, *, timeout: float | None = None) -> float:
        """As ``Lease.time_to_live``."""
        found: float = self._run(lambda _db: self._twin.time_to_live(timeout=timeout))
        return found

    @property
    def id(self) -> int:
        """As ``Lease.id``."""
        return self._twin.id

    @property
    def ttl(self) -> float:
        """As ``Lease.ttl``."""
        return self._twin.ttl

    @property
    def alive(self) -> bool:
        """As ``Lease.alive``; on any thread."""
        return self._twin.alive

    @property
    def good_for(self) -> float:
        """As ``Lease.good_for``; on any thread."""
        return self._twin.good_for

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call *callback*, on the handle's thread, when it is lost."""

        async def add(_db: object) -> None:
            self._twin.on_lost(callback)

        self._run(add)

    def __enter__(self) -> Self:
        return self.grant()

    def __exit__(self, *_exception: object) -> None:
        self._run(lambda _db: self._twin.__aexit__())


class Lock:
    """As the asynchronous ``Lock``, ``Semaphore``, and sides of an ``RwLock``."""

    def __init__(self, twin: locks.Lock, run: OnLoop) -> None:
        self._twin = twin
        self._run = run

    def acquire(self, timeout: float | None = None) -> int:
        """As ``Lock.acquire``: blocks until its turn has come."""
        token: int = self._run(self._as_thread(lambda: self._twin.acquire(timeout)))
        return token

    def try_acquire(self) -> bool:
        """As ``Lock.try_acquire``."""
        acquired: bool = self._run(self._as_thread(self._twin.try_acquire))
        return acquired

    def release(self) -> None:
        """As ``Lock.release``."""
        self._run(lambda _db: self._twin.release())

    @staticmethod
    def _as_thread(
        call: Callable[[], Coroutine[Any, Any, T]],
    ) -> Callable[[Any], Coroutine[Any, Any, T]]:
        """It is this thread that would wait for itself, not the task that works for it."""
        thread = ("thread", threading.get_ident())

        async def on_loop(_db: object) -> T:
            ACTOR.set(thread)  # of this task's own context
            return await call()

        return on_loop

    @property
    def name(self) -> bytes:
        """As ``Lock.name``."""
        return self._twin.name

    @property
    def held(self) -> bool:
        """As ``Lock.held``; on any thread."""
        return self._twin.held

    @property
    def token(self) -> int:
        """As ``Lock.token``."""
        return self._twin.token

    @property
    def fence(self) -> Fence:
        """As ``Lock.fence``."""
        return self._twin.fence

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call *callback*, on the handle's thread, whenever a grant of this handle is lost."""

        async def add(_db: object) -> None:
            self._twin.on_lost(callback)

        self._run(add)

    def status(self, *, timeout: float | None = None) -> LockInfo:
        """As ``Lock.status``."""
        info: LockInfo = self._run(lambda _db: self._twin.status(timeout=timeout))
        return info

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(lambda _db: self._twin.__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._twin)


class RwLock:
    """As the asynchronous ``RwLock``."""

    def __init__(self, twin: locks.RwLock, run: OnLoop) -> None:
        self._twin = twin
        self._run = run

    def reader(self) -> Lock:
        """As ``RwLock.reader``."""
        return Lock(self._twin.reader(), self._run)

    def writer(self) -> Lock:
        """As ``RwLock.writer``."""
        return Lock(self._twin.writer(), self._run)


class Election(Lock):
    """As the asynchronous ``Election``."""

    _twin: elections.Election

    def __init__(self, twin: elections.Election, run: OnLoop) -> None:
        super().__init__(twin, run)

    def campaign(self, value: Bytes | None = None, *, timeout: float | None = None) -> int:
        """As ``Election.campaign``: blocks until this candidate leads."""
        twin = self._twin
        epoch: int = self._run(self._as_thread(lambda: twin.campaign(value, timeout=timeout)))
        return epoch

    def proclaim(self, value: Bytes) -> None:
        """As ``Election.proclaim``."""
        self._run(lambda _db: self._twin.proclaim(value))

    def resign(self) -> None:
        """As ``Election.resign``."""
        self.release()

    @property
    def is_leader(self) -> bool:
        """As ``Election.is_leader``; on any thread."""
        return self._twin.is_leader

    @property
    def epoch(self) -> int:
        """As ``Election.epoch``."""
        return self._twin.epoch

    def leader(self, *, timeout: float | None = None) -> elections.Leader | None:
        """As ``Election.leader``."""
        found: elections.Leader | None = self._run(lambda _db: self._twin.leader(timeout=timeout))
        return found

    def observe(self) -> Iterator[elections.Leader | None]:
        """As ``Election.observe``: blocks between the changes."""

        async def begin(_db: object) -> AsyncIterator[elections.Leader | None]:
            return aiter(self._twin.observe())

        changes: AsyncIterator[elections.Leader | None] = self._run(begin)

        async def turn(_db: object) -> elections.Leader | None:
            return await anext(changes)

        while True:
            yield self._run(turn)


class Coordination:
    """Base of the synchronous ``Database``; what it makes is explained at the asynchronous one."""

    _run: OnLoop

    def _made(self, make: Callable[[Any], T]) -> T:
        async def on_loop(database: Any) -> T:  # noqa: ANN401  the asynchronous twin
            return make(database)

        made: T = self._run(on_loop)
        return made

    def lease(self, *, ttl: float = LEASE_TTL_S_DEFAULT, name: str = "") -> Lease:
        """As ``Database.lease``."""
        return Lease(self._made(lambda db: db.lease(ttl=ttl, name=name)), self._run)

    def lock(self, name: Bytes, *, ttl: float = LEASE_TTL_S_DEFAULT) -> Lock:
        """As ``Database.lock``."""
        twin = self._made(lambda db: db.lock(name, ttl=ttl, cancel_on_loss=False))
        return Lock(twin, self._run)

    def rwlock(self, name: Bytes, *, ttl: float = LEASE_TTL_S_DEFAULT) -> RwLock:
        """As ``Database.rwlock``."""
        twin = self._made(lambda db: db.rwlock(name, ttl=ttl, cancel_on_loss=False))
        return RwLock(twin, self._run)

    def semaphore(
        self, name: Bytes, permits: int, *, take: int = 1, ttl: float = LEASE_TTL_S_DEFAULT
    ) -> Lock:
        """As ``Database.semaphore``."""
        options = {"take": take, "ttl": ttl, "cancel_on_loss": False}
        return Lock(self._made(lambda db: db.semaphore(name, permits, **options)), self._run)

    def election(
        self, name: Bytes, value: Bytes = b"", *, ttl: float = LEASE_TTL_S_DEFAULT
    ) -> Election:
        """As ``Database.election``."""
        twin = self._made(lambda db: db.election(name, value, ttl=ttl, cancel_on_loss=False))
        return Election(twin, self._run)
