"""Leases, each with a key bound to it: renewed by hand or kept alive, revoked, or forgotten. The
key stays until the end of its lease and goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.leases import LeaseChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.keys import FINAL_READS_MAX
from quorate.base.lease_commands import LEASE_MACHINE, GrantLease, LeaseResult
from quorate.client.leases import Lease
from quorate.errors import LeaseExpiredError, QuorateError

TTLS_MS: Final = (1000, 1000, 1500, 2500)


class LeaseWorkload:
    """*kept*: the share of leases that the client keeps alive."""

    name = "lease"

    def __init__(self, *, kept: float = 0.4) -> None:
        self._kept = kept
        self._made = 0
        #: By process: the key whose lease it works with, and whether that is kept alive.
        self._at: dict[int, tuple[str, bool]] = {}
        #: Leases that were granted, by key.
        self._leases: dict[str, int] = {}

    async def setup(self, client: Client) -> None:
        """Nothing."""
        quorate_client(client)

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        if self._made and random.random() < 0.2:  # anybody's key
            first = max(0, self._made - 10)
            f = "renew" if random.random() < 0.25 else "read"
            return Invocation(f, _key(random.randrange(first, self._made)))
        key, kept = self._at.get(process, ("", False))
        if not key:
            key, kept = _key(self._made), random.random() < self._kept
            self._made += 1
            self._at[process] = (key, kept)
            return Invocation("hold" if kept else "grant", key, random.choice(TTLS_MS))
        chance = random.random()
        if chance < 0.1 and key in self._leases:
            del self._at[process]
            # Gone for good, or left to itself.
            return Invocation("revoke" if random.random() < 0.5 else "read", key)
        if chance < 0.25:
            return Invocation("bind", key)
        if kept:
            return Invocation("look", key)
        return Invocation("renew" if chance < 0.6 else "read", key)

    def last(self) -> Sequence[Invocation]:
        """Nobody holds anything any more, so every key must go."""
        first = max(0, self._made - FINAL_READS_MAX)
        return [Invocation("end", _key(number)) for number in range(first, self._made)]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        f, key, database = invocation.f, invocation.key, ours.database
        if f in {"read", "end", "look"}:
            return await self._read(ours, f, key)
        if f == "grant":
            leases = database.machine(LEASE_MACHINE, LeaseResult)
            granted: Any = await outcome_of(leases.execute(GrantLease(invocation.value)))
            self._leases[key] = granted.lease
            return True, invocation.value
        if f == "hold":
            lease = database.lease(ttl=invocation.value / 1000)
            await outcome_of(lease.grant())
            _held(ours)[key] = lease
            self._leases[key] = lease.id
            return True, invocation.value
        number = self._leases.get(key, 0)
        if not number:
            return False, "never granted"
        try:
            if f == "bind":
                await database.kv.put(key, b"%d" % number, lease=number)
            elif f == "renew":
                if not await database.renew_lease(number):
                    return False, "gone"
            elif not await database.revoke_lease(number):
                return False, "gone"
        except LeaseExpiredError:
            return False, "gone"
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
        return True, None

    async def _read(self, ours: QuorateClient, f: str, key: str) -> tuple[bool, Any]:
        found = await outcome_of(ours.database.kv.get(key), reads=True)
        if f == "end" and found is not None:
            raise OutcomeError(f"{key} is still there", definite=True)
        lease = _held(ours).get(key)
        if f == "look":
            # Its holder believes in it after the read: so it stood while it was read.
            return True, {"there": found is not None, "alive": lease is not None and lease.alive}
        return True, found is not None

    def check(self, history: Sequence[Event]) -> Verdict:
        return LeaseChecker().check(history)


def _held(ours: QuorateClient) -> dict[str, Lease]:
    """Leases that this client keeps alive, by key."""
    held: dict[str, Lease] = ours.kept.setdefault("lease", {})
    return held


def _key(number: int) -> str:
    return f"lease/{number}"
