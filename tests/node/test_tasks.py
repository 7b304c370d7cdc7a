"""Workers and those who wait, over real nodes whose leader crashes: nothing is lost, nothing that
was handed out is run twice, and everybody goes on by himself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from quorate import App, QuorateExecutor, Worker, connect, sync
from quorate.errors import QuorateError
from tests.node.conftest import Cluster

QUICK = {"election_timeout_ms": 300, "heartbeat_ms": 30}
LANES = 20


async def test_tasks_go_on_through_crashes_of_the_leader(cluster: Cluster) -> None:
    app = App("through")
    ran: Counter[int] = Counter()
    over = asyncio.Event()

    @app.task(name="add")
    async def add(number: int) -> int:
        ran[app.context().id] += 1
        await asyncio.sleep(0.002)
        return number + 1

    await cluster.found(3, **QUICK)
    endpoints = ",".join(cluster.addresses.values())
    results: list[int] = []

    async def lane(first: int) -> None:
        number = first
        while not over.is_set():
            results.append(await (await add.submit(number)))
            assert results[-1] == number + 1
            number += LANES

    async with connect(endpoints, timeout=20) as db, connect(endpoints, timeout=20) as other:
        app.use(db)
        async with Worker(other, app, concurrency=8, prefetch=4) as worker:
            lanes = [asyncio.create_task(lane(first)) for first in range(LANES)]
            for _ in range(2):
                await asyncio.sleep(0.3)
                leader = (await cluster.leader()).node_id
                await cluster.crash(leader)
                before = len(results)
                async with asyncio.timeout(15):
                    while len(results) < before + LANES:  # noqa: ASYNC110  nobody tells
                        await asyncio.sleep(0.01)
                await cluster.start(leader)
            over.set()
            await asyncio.wait_for(asyncio.gather(*lanes), 20)
            told = worker.statistics()
        assert told.registrations == 1
        assert told.dropped == told.stale == 0
        assert told.done == len(results) == len(ran)
        assert set(ran.values()) == {1}
        left = await db.tasks.system()
        assert (left.ready, left.assigned, left.running) == (0, 0, 0)
    await cluster.converged()


async def test_futures_of_an_executor_outlive_a_leader(cluster: Cluster) -> None:
    app = App("futures")
    ran: Counter[int] = Counter()

    @app.task(name="add")
    def add(number: int) -> int:
        ran[number] += 1
        time.sleep(0.005)
        return number + 1

    await cluster.found(3, **QUICK)
    db = sync.connect(",".join(cluster.addresses.values()), timeout=20)
    # Aside: the nodes are on this loop.
    pool = await asyncio.to_thread(QuorateExecutor, db, app, workers=4)
    futures = [asyncio.wrap_future(pool.submit(add, n)) for n in range(200)]
    await asyncio.sleep(0.1)
    await cluster.crash((await cluster.leader()).node_id)
    futures += [asyncio.wrap_future(pool.submit(add, n)) for n in range(200, 250)]
    results = await asyncio.wait_for(asyncio.gather(*futures), 30)
    assert results == list(range(1, 251))
    assert set(ran.values()) == {1}
    await asyncio.to_thread(pool.shutdown)
    await asyncio.to_thread(db.close)


async def test_who_waits_hears_of_what_ended_while_no_node_was_there(cluster: Cluster) -> None:
    await cluster.found(1, **QUICK)
    async with connect(cluster.addresses[1], timeout=20) as db:
        task = await db.tasks.enqueue("nobody")
        waiting = asyncio.ensure_future(db.tasks.wait([task]))
        await db.tasks.system()
        async with connect(cluster.addresses[1]) as other:
            await cluster.stop(1)
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await cluster.start(1)
            async with asyncio.timeout(15):
                while True:
                    try:
                        await other.tasks.cancel(task)
                        break
                    except QuorateError:
                        await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(waiting, 15))[0].what == "cancelled"
