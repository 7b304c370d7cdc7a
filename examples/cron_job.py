"""A job that runs once a day, on one host, whichever comes first: to be started by cron on each.

    python examples/cron_job.py --endpoints a:7400,b:7400,c:7400

Without endpoints it plays three hosts against a node of its own.

The lock keeps the others out while it runs; the key remembers the day, for those who come when it
is over. Both are decided in one place, the log, so the clocks of the hosts need not agree on the
minute.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import socket
import tempfile

import quorate

LOCK = "cron/nightly-report"
LAST = "cron/nightly-report/last"


async def report(db: quorate.Database, fence: quorate.Fence) -> None:
    """The job itself; what it writes carries the fence."""
    await db.kv.put("report", f"written by {socket.gethostname()}", fence=fence)


async def main(db: quorate.Database, today: str) -> bool:
    """Run the job, unless it has run today. Whoever comes while it runs waits, and finds it done;
    or, if the host that ran it died, does it."""
    async with db.lock(LOCK, ttl=10) as lock:  # stops the job, should the lock be lost
        last = await db.kv.get(LAST)
        if last is not None and last.value == today.encode():
            print("it has run today")
            return False
        await report(db, lock.fence)
        await db.kv.put(LAST, today, fence=lock.fence)
        print("done")
        return True


async def _start() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", default="")
    arguments = parser.parse_args()
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    if arguments.endpoints:
        async with quorate.connect(arguments.endpoints) as db:
            await main(db, today)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = quorate.NodeConfig(node_id=1, data=folder, listen="127.0.0.1:0")
        async with quorate.Node(config) as node:
            hosts = [quorate.connect(f"127.0.0.1:{node.port}") for _ in range(3)]
            ran = await asyncio.gather(*(main(db, today) for db in hosts))
            for db in hosts:
                await db.close()
            if sum(ran) != 1:
                raise SystemExit(f"it ran {sum(ran)} times")


if __name__ == "__main__":
    asyncio.run(_start())
