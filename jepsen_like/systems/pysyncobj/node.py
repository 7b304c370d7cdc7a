"""``python -m jepsen_like.systems.pysyncobj.node``: one PySyncObj node as a process of its own.

The library runs as its users run it: over its own TCP transport, with its journal and its dump in
files, and ticked by a thread. That thread is this module's, and otherwise the library's own: its
constructor would start it before the object is complete. Clients of the kit are served by asyncio
in the main thread, in the protocol of ``wire``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import pysyncobj

from jepsen_like.processes.parent import die_with_parent
from jepsen_like.systems.pysyncobj import wire
from jepsen_like.systems.pysyncobj.dictionary import Dictionary, reason

#: The library's default period of its own thread.
TICK_S: Final = 0.05
#: It tries again so soon to reach a node that was away; the library's default of 5 s leaves it no
#: whole cluster between two faults.
RECONNECT_S: Final = 0.5
#: The journal is compacted into the dump after so many entries: a run of a minute should see it.
COMPACTION_ENTRIES: Final = 1000
#: A command that the library never calls back for is given up; clients do so earlier.
CALL_TIMEOUT_S: Final = 15.0

log = logging.getLogger("node")


class Store(pysyncobj.SyncObj, Dictionary):  # type: ignore[misc]  # the package has no types
    """The replicated object."""

    def __init__(self, address: str, others: Sequence[str], conf: Any) -> None:  # noqa: ANN401
        super().__init__(address, others, conf)
        # What is set from here on is the state: the library puts it into dumps.
        self.data = {}

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def get(self, key: str) -> wire.Pair:
        """A read through the log."""
        return self.do_get(key)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: bytes) -> None:
        """Set a key."""
        self.do_put(key, value)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Set a key if it holds what is expected."""
        return self.do_compare_and_set(key, expected, value)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def add(self, key: str, number: int) -> int:
        """Add to a number."""
        return self.do_add(key, number)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def transact(
        self, expected: dict[str, int], reads: list[str], writes: dict[str, bytes]
    ) -> tuple[bool, dict[str, wire.Pair]]:
        """Compare versions, write, and read."""
        return self.do_transact(expected, reads, writes)


def tick(store: Store) -> NoReturn:
    """What the library's own thread does: an exception is logged, and the tick tried again."""
    while True:
        try:
            store.doTick(TICK_S)
        except Exception:
            log.exception("the tick failed")
            time.sleep(TICK_S)


# --- answers --------------------------------------------------------------------------------------


def status(store: Store) -> wire.Status:
    """What the node knows of itself."""
    applied, data = store.raftLastApplied, dict(store.data)
    content = msgspec.json.encode(sorted(data.items()))
    return wire.Status(
        leads=store._isLeader(),  # noqa: SLF001  the library documents it
        term=store.raftCurrentTerm,
        applied=applied,
        digest=hashlib.sha256(content).hexdigest(),
        keys=len(data),
    )


def call_of(store: Store, request: wire.Request) -> tuple[Callable[..., None], list[Any]]:
    """The replicated method behind a request, and its arguments."""
    match request:
        case wire.Get(key, _):
            return store.get, [key]
        case wire.Put(key, value):
            return store.put, [key, value]
        case wire.CompareAndSet(key, expected, value):
            return store.compare_and_set, [key, expected, value]
        case wire.Add(key, number):
            return store.add, [key, number]
        case wire.Transact(versions, reads, writes):
            return store.transact, [versions, reads, writes]
    raise TypeError(f"{request!r} is no command")


async def replicate(store: Store, request: wire.Request) -> wire.Answer:
    """Hand a command to the library and wait for its callback, which comes on another thread."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[wire.Answer] = loop.create_future()

    def give(found: wire.Answer) -> None:
        if not answer.done():
            answer.set_result(found)

    def called_back(result: object, error: int) -> None:
        if error:
            text, definite = reason(error)
            found = wire.Answer(error=text, definite=definite)
        else:
            found = wire.success(result)
        loop.call_soon_threadsafe(give, found)

    method, arguments = call_of(store, request)
    method(*arguments, callback=called_back)
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await answer
    except TimeoutError:
        return wire.Answer(error=f"no callback within {CALL_TIMEOUT_S:g} s")


async def answer_to(store: Store, request: wire.Request) -> wire.Answer:
    """Carry out one request."""
    match request:
        case wire.Look():
            return wire.success(status(store))
        case wire.Get(key, local=True):
            return wire.success(store.do_get(key))
        case _:
            return await replicate(store, request)


async def converse(
    store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one connection until its end, or until it says what is no request."""
    try:
        writer.write(wire.GREETING)
        while text := await reader.readline():
            writer.write(wire.line(await answer_to(store, wire.read_request(text))))
            await writer.drain()
    except (OSError, ValueError, msgspec.MsgspecError) as error:  # ValueError: the line is too long
        log.warning("a connection ends: %r", error)
    finally:
        writer.close()


# --- the process ----------------------------------------------------------------------------------


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=__spec__.name, description=__doc__)
    parser.add_argument("--address", required=True, help="of this node, for the others")
    parser.add_argument("--bind", required=True, help="where it listens for them")
    parser.add_argument("--clients", required=True, help="where it listens for the kit")
    parser.add_argument("--others", required=True, help="addresses of the others, with commas")
    parser.add_argument("--data", required=True, type=Path, help="directory of its files")
    return parser.parse_args(arguments)


def opened(options: argparse.Namespace) -> Store:
    """The node, as its files know it; nothing happens before its first tick."""
    options.data.mkdir(parents=True, exist_ok=True)
    conf = pysyncobj.SyncObjConf(
        autoTick=False,
        bindAddress=options.bind,
        journalFile=str(options.data / "journal"),
        fullDumpFile=str(options.data / "dump"),
        logCompactionMinEntries=COMPACTION_ENTRIES,
        connectionRetryTime=RECONNECT_S,
    )
    others = [each for each in options.others.split(",") if each]
    return Store(options.address, others, conf)


async def serve(store: Store, address: str) -> NoReturn:
    """Tick, and answer, until the process is ended."""
    threading.Thread(target=tick, args=(store,), name="tick", daemon=True).start()
    host, port = address.rsplit(":", 1)
    server = await asyncio.start_server(
        lambda reader, writer: converse(store, reader, writer),
        host,
        int(port),
        limit=wire.LINE_BYTES_MAX,
    )
    await server.serve_forever()
    raise SystemExit(0)


def main(arguments: Sequence[str]) -> None:
    """Run until the process is ended from outside."""
    die_with_parent()
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    options = parsed(arguments)
    asyncio.run(serve(opened(options), options.clients))


if __name__ == "__main__":
    main(sys.argv[1:])
