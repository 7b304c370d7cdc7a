"""Workers of which one works at a time: start it on several hosts; when one goes, another goes on.

    python examples/leader_worker.py --endpoints a:7400,b:7400,c:7400 --name host-a

Without endpoints it plays two hosts against a node of its own, and one of them goes.

Each step is written with the fence of its epoch, so that a worker which was stopped, and goes on
after another has taken over, writes nothing any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import tempfile

import quorate
from quorate.client.elections import Election
from quorate.errors import FencedError, LockLostError

ELECTION = "worker"
STEP = "worker/step"


async def work(db: quorate.Database, election: Election) -> int:
    """One step; the work goes on where the worker before stopped."""
    item = await db.kv.get(STEP)
    step = 1 if item is None else int(item.value) + 1
    await db.kv.put(STEP, str(step), fence=election.fence)
    return step


async def run(db: quorate.Database, name: str, steps: int, pause_s: float = 1.0) -> None:
    """Lead whenever it is our turn, until the work is done."""
    step = 0
    while step < steps:
        try:
            async with db.election(ELECTION, name) as election:
                print(f"{name} leads in epoch {election.epoch}")
                while step < steps:
                    step = await work(db, election)
                    print(f"{name}: step {step}")
                    await asyncio.sleep(pause_s)
        except (LockLostError, FencedError) as error:
            print(f"{name} leads no more: {error}")


async def _start() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", default="")
    parser.add_argument("--name", default=socket.gethostname())
    parser.add_argument("--steps", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if not arguments.endpoints:
        await _play()
        return
    async with quorate.connect(arguments.endpoints) as db:
        await run(db, arguments.name, arguments.steps)


async def _play() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = quorate.NodeConfig(node_id=1, data=folder, listen="127.0.0.1:0")
        async with quorate.Node(config) as node:
            first = quorate.connect(f"127.0.0.1:{node.port}")
            second = quorate.connect(f"127.0.0.1:{node.port}")
            worker = asyncio.create_task(run(first, "host-a", 1_000_000, 0.02))
            other = asyncio.create_task(run(second, "host-b", 20, 0.02))
            await asyncio.sleep(0.2)
            worker.cancel()  # host-a goes; its lock is given back as its process ends
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            await other
            for db in (first, second):
                await db.close()


if __name__ == "__main__":
    asyncio.run(_start())
