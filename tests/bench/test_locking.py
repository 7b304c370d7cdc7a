"""What measures locks and leases measures something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import quorate
from bench import locking, workloads

pytestmark = pytest.mark.shared


async def test_pairs_hand_overs_and_leases_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "WARM_UP_S", 0.1)
    async with quorate.open(tmp_path) as db:
        one = await locking.pairs(db, 0.3)
        many = await locking.pairs(db, 0.3, names=10)
        assert 0 < len(one.latencies_s) < len(many.latencies_s)
        line = await locking.hand_over(db, 0.3, waiters=3)
        assert line.count > 2
        assert 0 < line.p50_ms <= line.p99_ms
        assert line.put_p50_ms > 0
        cost = await locking.lease_cost(db, os.getpid(), 0.2, count=20)
        assert cost.count == 20
        assert cost.leader_cpu >= 0
        assert (await db.list_leases()).count == 1  # that of the locks
