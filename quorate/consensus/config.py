"""What an operator may set of the core. Times are in ticks; the driver says how long a tick is."""

from __future__ import annotations

import msgspec

from quorate.base.limits import MIB
from quorate.base.types import NodeId
from quorate.errors import ConfigError


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults are for ticks of 10 ms.

    Raises:
        ConfigError: values that cannot work together.
    """

    node_id: NodeId
    #: An election starts after a random time in [min, max) without a leader (Raft 5.2).
    election_ticks_min: int = 40
    election_ticks_max: int = 80
    #: Must fit several times into an election timeout: two lost heartbeats depose nobody.
    heartbeat_ticks: int = 5
    #: One append message; a larger entry goes alone.
    append_bytes_max: int = MIB
    #: Appends sent to one follower and not answered.
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 16 * MIB
    #: Proposed and not committed; beyond it proposals are refused.
    uncommitted_bytes_max: int = 64 * MIB
    #: A write not answered by the own disk for so long: a leader resigns (2 s).
    disk_stall_ticks: int = 200
    #: A leader lease ends this long after the heartbeat that a quorum answered was *sent*;
    #: shorter than any election timeout, by more than clocks may differ in rate.
    lease_reads: bool = False
    lease_ms: int = 300
    tick_ms: int = 10
    #: Campaign soon after the leader's connection broke instead of waiting out the timeout.
    #: Never used together with leases, which rely on the wait.
    fast_failover: bool = True
    #: A learner may be promoted when it is at most this many entries behind.
    promote_lag_entries_max: int = 1000

    def __post_init__(self) -> None:
        if self.node_id < 1:
            raise ConfigError(f"node id must be 1 or more, not {self.node_id}")
        if self.heartbeat_ticks < 1 or self.election_ticks_min < 3 * self.heartbeat_ticks:
            raise ConfigError(
                f"the election timeout ({self.election_ticks_min} ticks) must be at least three "
                f"heartbeats ({self.heartbeat_ticks} ticks each)"
            )
        if self.election_ticks_max <= self.election_ticks_min:
            raise ConfigError("election_ticks_max must be greater than election_ticks_min")
        if self.lease_reads and self.lease_ms * 4 > self.election_ticks_min * self.tick_ms * 3:
            raise ConfigError(
                "lease_ms must be at most three quarters of the shortest election timeout, "
                f"{self.election_ticks_min * self.tick_ms * 3 // 4} ms"
            )
        for name in (
            "append_bytes_max",
            "inflight_messages_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
            "disk_stall_ticks",
            "tick_ms",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more")
