"""What a replica counts, for metrics and for whoever asks why it is slow."""

from __future__ import annotations

import msgspec


class ReplicaStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and *loop_lag_ms_max* since the last call."""

    proposals: int
    submissions: int
    commands_applied: int
    entries_applied: int
    queries: int
    log_writes: int
    elections_seen: int
    leader_changes: int
    digests_compared: int
    queued_submissions: int
    loop_lag_ms_max: float


class Counts:
    """The counters that the replica keeps itself."""

    __slots__ = (
        "elections_seen", "lag_max_s", "leader_changes", "proposals", "queries", "submissions",
    )  # fmt: skip

    def __init__(self) -> None:
        self.proposals = 0
        self.submissions = 0
        self.queries = 0
        self.elections_seen = 0
        self.leader_changes = 0
        self.lag_max_s = 0.0

    def take_lag_ms(self) -> float:
        """The longest lag of the event loop since the last call."""
        lag_ms, self.lag_max_s = self.lag_max_s * 1000, 0.0
        return lag_ms
