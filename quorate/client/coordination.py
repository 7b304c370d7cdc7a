"""What a ``Database`` offers for coordination: leases, locks, elections, barriers."""

from __future__ import annotations

from quorate.base.lease_commands import (
    LEASE_MACHINE,
    GrantLease,
    LeaseInfo,
    LeaseList,
    LeaseQuery,
    LeaseResult,
    ListLeases,
    RenewLeases,
    RevokeLease,
)
from quorate.base.lock_commands import ListLocks, LockInfo, LockList, LockQuery
from quorate.client.barriers import Barrier, DoubleBarrier
from quorate.client.claims import Desks
from quorate.client.elections import Election
from quorate.client.granting import LockCalls, Wanted, as_lock_name
from quorate.client.leases import (
    LEASE_TTL_S_DEFAULT,
    Keeper,
    Lease,
    LeasePlans,
    check_name,
    check_ttl,
)
from quorate.client.locks import READERS_MAX, Lock, RwLock, Semaphore, check_permits
from quorate.client.operations import Bytes


class _Parts:
    """What is made when it is first needed."""

    def __init__(self, plans: LeasePlans) -> None:
        self.keeper = Keeper(plans)
        self.desks = Desks(self.keeper)
        self.calls = LockCalls(self.desks)


class Coordination:
    """Base of ``Database``. All handles with the same *ttl* share one lease, which is granted at
    the first use and kept alive. *ttl*: seconds after which the cluster gives on what was held by a
    process that is gone, or could not be reached; and within nine tenths of which this process
    knows that it has lost it."""

    _parts: _Parts | None = None

    def _coordination(self: LeasePlans) -> _Parts:
        parts: _Parts | None = self.__dict__.get("_parts")
        if parts is None:
            parts = self.__dict__["_parts"] = _Parts(self)
        return parts

    async def _end_coordination(self) -> None:
        """Give back what is held, if that is quickly done."""
        if self._parts is not None:
            await self._parts.keeper.close()

    # --- leases ---------------------------------------------------------------------------------

    def lease(self: LeasePlans, *, ttl: float = LEASE_TTL_S_DEFAULT, name: str = "") -> Lease:
        """A lease of its own: ``async with db.lease(ttl=30) as lease``. *name*: for operators.

        Raises:
            InvalidArgumentError: *ttl* or *name* cannot be.
        """
        return Lease(Coordination._coordination(self).keeper, check_ttl(ttl), check_name(name))

    # --- locks ----------------------------------------------------------------------------------

    def lock(
        self: LeasePlans,
        name: Bytes,
        *,
        ttl: float = LEASE_TTL_S_DEFAULT,
        cancel_on_loss: bool = True,
    ) -> Lock:
        """A lock: ``async with db.lock("name") as lock``. *cancel_on_loss* False: the body is not
        cancelled when the lock is lost; look at ``lock.held``, or use ``lock.on_lost``. The loss is
        raised at its end nonetheless.

        Raises:
            InvalidArgumentError: *name* or *ttl* cannot be.
        """
        wanted = Wanted(as_lock_name(name), "lock", 1, 1, check_ttl(ttl))
        return Lock(Coordination._coordination(self).calls, wanted, cancel_on_loss=cancel_on_loss)

    def rwlock(
        self: LeasePlans,
        name: Bytes,
        *,
        ttl: float = LEASE_TTL_S_DEFAULT,
        cancel_on_loss: bool = True,
    ) -> RwLock:
        """A read-write lock: ``async with db.rwlock("name").reader()``, or ``.writer()``."""
        wanted = Wanted(as_lock_name(name), "rwlock", READERS_MAX, 1, check_ttl(ttl))
        calls = Coordination._coordination(self).calls
        return RwLock(calls, wanted, cancel_on_loss=cancel_on_loss)

    def semaphore(
        self: LeasePlans,
        name: Bytes,
        permits: int,
        *,
        take: int = 1,
        ttl: float = LEASE_TTL_S_DEFAULT,
        cancel_on_loss: bool = True,
    ) -> Semaphore:
        """A semaphore of *permits*, of which this handle takes *take*. All who use it at the same
        time name the same number of permits."""
        total, some = check_permits(permits, take)
        wanted = Wanted(as_lock_name(name), "semaphore", total, some, check_ttl(ttl))
        calls = Coordination._coordination(self).calls
        return Semaphore(calls, wanted, cancel_on_loss=cancel_on_loss)

    def election(
        self: LeasePlans,
        name: Bytes,
        value: Bytes = b"",
        *,
        ttl: float = LEASE_TTL_S_DEFAULT,
        cancel_on_loss: bool = True,
    ) -> Election:
        """An election: ``async with db.election("name", "this host") as me``. *value*: what this
        candidate proclaims when it leads."""
        wanted = Wanted(as_lock_name(name), "election", 1, 1, check_ttl(ttl))
        calls = Coordination._coordination(self).calls
        return Election(calls, wanted, value, cancel_on_loss=cancel_on_loss)

    def barrier(
        self: LeasePlans, name: Bytes, parties: int, *, ttl: float = LEASE_TTL_S_DEFAULT
    ) -> Barrier:
        """A barrier for *parties*: ``await db.barrier("name", 3).wait()``."""
        desks = Coordination._coordination(self).desks
        return Barrier(desks, as_lock_name(name), parties, check_ttl(ttl))

    def double_barrier(
        self: LeasePlans, name: Bytes, parties: int, *, ttl: float = LEASE_TTL_S_DEFAULT
    ) -> DoubleBarrier:
        """A double barrier for *parties*: ``async with db.double_barrier("name", 3)``."""
        desks = Coordination._coordination(self).desks
        return DoubleBarrier(desks, as_lock_name(name), parties, check_ttl(ttl))

    # --- for operators --------------------------------------------------------------------------

    async def lock_status(self: LeasePlans, name: Bytes) -> LockInfo:
        """Who holds a lock, semaphore or election, and who waits for it. Of a name that is free,
        *kind* is ""."""
        info: LockInfo = await Coordination._coordination(self).calls.ask(
            LockQuery(as_lock_name(name))
        )
        return info

    async def list_locks(self: LeasePlans, after: bytes = b"", limit: int = 100) -> LockList:
        """Names in use behind *after*, in order: locks, semaphores, elections."""
        found: LockList = await Coordination._coordination(self).calls.ask(ListLocks(after, limit))
        return found

    async def lease_status(self: LeasePlans, lease: int) -> LeaseInfo:
        """A lease by its id, whoever holds it.

        Raises:
            LeaseExpiredError: it has ended.
        """
        codec = self.codec(LEASE_MACHINE, LeaseResult)
        info: LeaseInfo = await self.ask(codec, LeaseQuery(lease), self.timeout)
        return info

    async def list_leases(self: LeasePlans, after: int = 0, limit: int = 100) -> LeaseList:
        """Leases with an id above *after*."""
        codec = self.codec(LEASE_MACHINE, LeaseResult)
        found: LeaseList = await self.ask(codec, ListLeases(after, limit), self.timeout)
        return found

    async def grant_lease(
        self: LeasePlans, ttl: float = LEASE_TTL_S_DEFAULT, name: str = ""
    ) -> int:
        """A lease that nobody keeps alive but who calls ``renew_lease``; returns its id."""
        codec = self.codec(LEASE_MACHINE, LeaseResult)
        command = GrantLease(check_ttl(ttl), check_name(name))
        lease: int = (await self.submit(codec, command, self.timeout)).lease
        return lease

    async def renew_lease(self: LeasePlans, lease: int) -> bool:
        """Renew a lease once, whoever holds it. False: it has ended."""
        codec = self.codec(LEASE_MACHINE, LeaseResult)
        result = await self.submit(codec, RenewLeases((lease,)), self.timeout)
        return not result.gone

    async def revoke_lease(self: LeasePlans, lease: int) -> bool:
        """End a lease, whoever holds it, with all that is bound to it: its locks pass on, its keys
        go. False: it had ended before."""
        codec = self.codec(LEASE_MACHINE, LeaseResult)
        existed: bool = (await self.submit(codec, RevokeLease(lease), self.timeout)).existed
        return existed
