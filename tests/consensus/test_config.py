"""Settings that cannot work together are refused at once, with a sentence."""

from __future__ import annotations

import pytest

from quorate.base.types import NodeId
from quorate.consensus.config import CoreConfig
from quorate.errors import ConfigError


def test_defaults_fit_together() -> None:
    config = CoreConfig(node_id=NodeId(1))
    assert config.election_ticks_min >= 3 * config.heartbeat_ticks
    assert not config.lease_reads


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"node_id": 0}, "node id"),
        ({"heartbeat_ticks": 0}, "three heartbeats"),
        ({"heartbeat_ticks": 14}, "three heartbeats"),
        ({"election_ticks_max": 40}, "greater than"),
        ({"lease_reads": True, "lease_ms": 301}, "at most three quarters"),
        ({"append_bytes_max": 0}, "append_bytes_max"),
        ({"inflight_messages_max": 0}, "inflight_messages_max"),
        ({"inflight_bytes_max": 0}, "inflight_bytes_max"),
        ({"uncommitted_bytes_max": 0}, "uncommitted_bytes_max"),
        ({"disk_stall_ticks": 0}, "disk_stall_ticks"),
        ({"tick_ms": 0}, "tick_ms"),
    ],
)
def test_refused(settings: dict[str, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        CoreConfig(**{"node_id": NodeId(1), **settings})  # type: ignore[arg-type]
