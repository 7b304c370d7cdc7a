"""Settings that services follow as they change, without asking again and again.

    python examples/config_watcher.py --endpoints a:7400,b:7400,c:7400 --prefix shop/config/

Without endpoints it plays an operator and a service against a node of its own.

A service reads its settings once, and watches from the revision of that read on: so nothing that
happens in between is missed, whatever node it comes to be connected to. Should it ever have been
away for longer than the cluster remembers, it reads them again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Callable

import quorate
from quorate import ops
from quorate.errors import CompactedError

Settings = dict[str, str]
PREFIX = "shop/config/"


async def follow(
    db: quorate.Database, prefix: str, changed: Callable[[int, Settings], None]
) -> None:
    """Call *changed* with revision and settings: now, and after each change of any of them."""
    while True:
        found = await db.kv.range(prefix=prefix)
        if found.more:
            raise SystemExit(f"too many settings under {prefix!r} for one read")
        settings = {_name(item.key, prefix): item.value.decode() for item in found.items}
        changed(found.revision, settings)
        with contextlib.suppress(CompactedError):  # away for too long: read them again
            async with db.kv.watch(prefix=prefix, start_revision=found.revision + 1) as watch:
                async for batch in watch.batches():  # a transaction shows as a whole, or not at all
                    for event in batch.events:
                        name = _name(event.key, prefix)
                        if event.type == "put":
                            settings[name] = event.value.decode()
                        else:
                            settings.pop(name, None)
                    changed(batch.revision, dict(settings))


def _name(key: bytes, prefix: str) -> str:
    return key.decode().removeprefix(prefix)


def show(revision: int, settings: Settings) -> None:
    """What a service would do with its settings."""
    shown = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
    print(f"revision {revision}: {shown or 'no settings'}", flush=True)


async def _start() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", default="")
    parser.add_argument("--prefix", default=PREFIX)
    arguments = parser.parse_args()
    if not arguments.endpoints:
        await _play()
        return
    async with quorate.connect(arguments.endpoints) as db:
        await follow(db, arguments.prefix, show)


async def _play() -> None:
    done = asyncio.Event()

    def changed(revision: int, settings: Settings) -> None:
        show(revision, settings)
        if ("host" in settings) != ("port" in settings):
            raise SystemExit("a service saw half of a transaction")
        if settings == {"host": "db2", "port": "5433"}:
            done.set()

    with tempfile.TemporaryDirectory() as folder:
        async with quorate.open(folder) as db:
            await db.kv.put(f"{PREFIX}currency", "EUR")
            service = asyncio.create_task(follow(db, PREFIX, changed))
            await db.kv.txn(  # host and port belong together: no service sees only one of them
                then=[ops.put(f"{PREFIX}host", "db2"), ops.put(f"{PREFIX}port", "5433")]
            )
            await db.kv.put("shop/orders", "17")  # no setting
            await db.kv.delete(f"{PREFIX}currency")
            async with asyncio.timeout(10):
                await done.wait()
            service.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await service


if __name__ == "__main__":
    asyncio.run(_start())
