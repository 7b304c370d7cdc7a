"""Users of the library's lock manager, on every member, each with the clock of its machine.

The library's manager runs a thread that prolongs its locks; here the schedule does that, with the
same period and the same calls. A lock that two of them believe to hold at once is a breach.
"""

from __future__ import annotations

from random import Random
from typing import Final, Protocol

from jepsen_like.systems.pysyncobj.member import Member
from jepsen_like.systems.pysyncobj.patches import VirtualClock
from jepsen_like.systems.pysyncobj.schedule import Schedule
from jepsen_like.systems.pysyncobj.watch import Watch

LOCK: Final = "lock"
#: Between a user's attempts, seconds.
ATTEMPT_S: Final = 0.5
#: How long a holder keeps it, seconds, on average.
HOLD_S: Final = 6.0


class Cluster(Protocol):
    """Where they are."""

    members: list[Member]
    schedule: Schedule
    clock: VirtualClock


class LockUsers:
    """One user for each member that there is when ``begin`` is called."""

    def __init__(self, cluster: Cluster, watch: Watch, random: Random) -> None:
        self._cluster, self._watch, self._random = cluster, watch, random

    def begin(self) -> None:
        """Start them."""
        for member in self._cluster.members:
            self._turn(member, release_at_s=0.0)
            self._prolong(member)

    def believes(self, member: Member) -> bool:
        """Whether the member's manager says that it holds the lock."""
        if not member.running or member.paused:
            return False
        locks = member.replica.locks
        return bool(locks.isAcquired(LOCK, member.name, self._wall_s(member)))

    def _wall_s(self, member: Member) -> float:
        clock = self._cluster.clock
        clock.enter(self._cluster.schedule.now_s, member.wall_offset_s, member)
        return clock.time()

    def _prolong(self, member: Member) -> None:
        period_s = member.settings.lock_timeout_s / 4
        if member.running and not member.paused:
            now_s, name = self._wall_s(member), member.name
            member.call(f"prolongate({name})", lambda: member.replica.locks.prolongate(name, now_s))
        self._cluster.schedule.after(period_s, lambda: self._prolong(member))

    def _turn(self, member: Member, release_at_s: float) -> None:
        schedule = self._cluster.schedule
        if self.believes(member):
            self._check(member)
            release_at_s = release_at_s or schedule.now_s + self._random.expovariate(1.0 / HOLD_S)
            if schedule.now_s >= release_at_s:
                release_at_s = 0.0
                member.call(
                    f"release({member.name})",
                    lambda: member.replica.locks.release(LOCK, member.name),
                )
        elif member.running and not member.paused:
            release_at_s, now_s, name = 0.0, self._wall_s(member), member.name
            member.call(f"acquire({name})", lambda: member.replica.locks.acquire(LOCK, name, now_s))
        schedule.after(ATTEMPT_S, lambda: self._turn(member, release_at_s))

    def _check(self, member: Member) -> None:
        holders = [each for each in self._cluster.members if self.believes(each)]
        if len(holders) > 1:
            offsets = {each.name: each.wall_offset_s for each in holders}
            self._watch.now_s = self._cluster.schedule.now_s
            self._watch.report(
                "lock-held-by-two",
                member,
                f"{' and '.join(offsets)} hold the same lock at once; their wall clocks are off by "
                f"{', '.join(f'{each:+g} s' for each in offsets.values())}",
                member.applied,
                {"wall_offsets_s": offsets},
            )
