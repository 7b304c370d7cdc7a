"""A coordinator over real nodes whose leader crashes: workflows go on, no attempt is told twice,
and shared state loses no change."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from quorate import connect
from quorate.coordinator import Coordinator, OptimisticLockError
from tests.node.conftest import Cluster

QUICK = {"election_timeout_ms": 300, "heartbeat_ms": 30}


async def work(it: Coordinator, told: Counter[tuple[int, int]], parents: list[int]) -> None:
    """Play the workers: each task comes to the sum of what was before, and one."""
    distributor = it.get_distributor()
    while True:
        given = await distributor.assign_next(timeout=30)
        if given is None:
            return
        told[given.task_id, given.attempt] += 1
        await distributor.start_task(given)
        parents.append(len(given.raw.inputs))
        await distributor.complete_task(given, ok=True, result=given.task_id)


async def count(it: Coordinator, turns: int) -> int:
    """Add to a number, as often as nobody else has in between; how often that was."""
    done = 0
    for _ in range(turns):
        row = await it.state.get("n")
        value, version = (row.value, row.version) if row else (0, 0)
        try:
            await it.state.compare_and_set("n", value + 1, version)
            done += 1
        except OptimisticLockError:
            continue
    return done


async def test_workflows_and_state_go_on_through_a_crash_of_the_leader(cluster: Cluster) -> None:
    await cluster.found(3, **QUICK)
    endpoints = ",".join(cluster.addresses.values())
    width = 40
    tasks: list[dict[str, Any]] = [{"id": "first", "type": "f"}]
    tasks += [{"id": f"m{at}", "type": "f", "depends_on": ["first"]} for at in range(width)]
    tasks.append({"id": "last", "type": "f", "depends_on": [each["id"] for each in tasks[1:]]})
    told: Counter[tuple[int, int]] = Counter()
    parents: list[int] = []
    async with connect(endpoints, timeout=20) as db, connect(endpoints, timeout=20) as other_db:
        async with Coordinator(db) as it, Coordinator(other_db) as other:
            await it.get_worker_manager().register({"name": "w", "max_load": 2})
            working = asyncio.create_task(work(it, told, parents))
            flow = asyncio.create_task(it.execute_workflow({"id": "w", "tasks": tasks}, timeout=30))
            counting = [asyncio.create_task(count(each, 60)) for each in (it, other)]
            async with asyncio.timeout(20):
                while len(parents) < width // 4:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.005)
            leader = (await cluster.leader()).node_id
            await cluster.crash(leader)
            outcome = await flow
            added = sum(await asyncio.gather(*counting))
            await cluster.start(leader)
            working.cancel()
            row = await other.state.get("n")
        assert (outcome.status, len(outcome.results)) == ("done", width + 2)
        assert (parents[0], parents[-1], set(told.values())) == (0, width, {1})
        assert len(told) == width + 2  # nothing was taken from a worker that lived
        assert row is not None
        assert row.value == added
