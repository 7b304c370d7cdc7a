"""The promise, shown: three processes, a killed leader, and every acknowledged write still there.

Writes each line of a text as a key with many writes outstanding, kills the leader with SIGKILL on
the way and starts it again, and reads everything back through each node, linearizably. What the
person sees is ``cli_demo``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from quorate.base.kv_commands import Range, RangeResult
from quorate.base.limits import RANGE_LIMIT_MAX
from quorate.client.database import connect
from quorate.client.endpoints import parse_endpoint
from quorate.errors import InvalidArgumentError, QuorateError, WireFormatError
from quorate.server.local_cluster import LocalCluster, LocalNode
from quorate.server.one_node import OneNode
from quorate.server.pumping import pump
from quorate.server.texts import read_lines

NODES_DEFAULT: Final = 3
OUTSTANDING_MAX: Final = 1000
KEYS_MAX: Final = 5_000_000  # they are held in memory, to be compared in the end
WRITE_TIMEOUT_S: Final = 30.0  # of one write, elections included
READ_TIMEOUT_S: Final = 30.0  # of one page
POLL_S: Final = 0.1

Put = Callable[[bytes, bytes], Awaitable[object]]


class DemoReport(msgspec.Struct, kw_only=True):
    """What came of it; printed as JSON. Times in milliseconds where the name says so."""

    nodes: int
    lines: int  #: of the input, empty ones left out
    keys: int  #: different lines
    acknowledged: int
    lost: int  #: acknowledged, and missing or different on some node
    leader_kills: int
    failover_ms: list[float]  #: SIGKILL of the leader to the next acknowledged write
    verified: bool  #: every node gave exactly what was written
    puts_per_s: float  #: over the whole time of writing, failovers included
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing lost, everything written, everything read back."""
        return self.verified and self.lost == 0 and self.acknowledged == self.keys


class DemoState(msgspec.Struct):
    """What goes on now, for whoever watches."""

    phase: str = "reading the text"
    keys: int = 0
    acknowledged: int = 0
    checked: int = 0  #: keys read back, over all nodes
    writing_s: float = 0.0
    failover_ms: list[float] = []
    nodes: dict[int, dict[str, Any]] = {}  #: status by number; empty while it does not answer
    killed: int = 0  #: the node that is dead at the moment
    events: list[str] = []  #: what happened, one line each; a few per kill


class Demo:
    """One run. ``state`` may be read at any time."""

    def __init__(
        self, files: Sequence[Path], *, nodes: int = NODES_DEFAULT, kills: int = 1
    ) -> None:
        if nodes < 3 and kills:
            raise InvalidArgumentError(
                f"{nodes} nodes cannot go on without one; take 3 or more, or --kills 0"
            )
        self.state = DemoState()
        self._cluster: LocalCluster | None = None
        self._files = files
        self._node_count = nodes
        self._kills = kills
        self._lines = 0
        self._began = 0.0
        self._pairs: dict[bytes, bytes] = {}
        self._acknowledged: set[bytes] = set()
        self._gate = asyncio.Event()  # writing may go on to the end
        self._progress = asyncio.Event()
        self._write_until = 0
        self._outstanding = 1

    @property
    def nodes(self) -> Mapping[int, LocalNode]:
        """The node processes, once they are started."""
        return self._cluster.nodes if self._cluster is not None else {}

    async def run(self) -> DemoReport:
        """Run from start to end; every process is gone afterwards.

        Raises:
            InvalidArgumentError: the text cannot be used.
            QuorateError: a node did not start, or the cluster did not come back.
        """
        self._began = time.monotonic()
        self._read_text()
        self.state.phase = "starting the nodes"
        self._cluster = LocalCluster(self._node_count, cluster="demo")
        async with self._cluster as cluster:
            try:
                lost, exact = await self._write_and_verify(cluster)
            except QuorateError as error:
                cluster.keep()
                error.args = (f"{error}; the nodes' logs are in {cluster.directory}",)
                raise
            report = self._report(lost, verified=exact)
            if not report.passed:
                cluster.keep()
                self._tell(f"the nodes' data and logs are in {cluster.directory}")
        self.state.phase = "done"
        return report

    async def _write_and_verify(self, cluster: LocalCluster) -> tuple[int, bool]:
        watching = asyncio.ensure_future(self._watch())
        try:
            await self._write()
            found = await self._verify()
        finally:
            watching.cancel()
        self.state.phase = "stopping the nodes"
        await asyncio.to_thread(cluster.stop)
        return found

    def _report(self, lost: int, *, verified: bool) -> DemoReport:
        state = self.state
        return DemoReport(
            nodes=self._node_count,
            lines=self._lines,
            keys=len(self._pairs),
            acknowledged=len(self._acknowledged),
            lost=lost,
            leader_kills=len(state.failover_ms),
            failover_ms=state.failover_ms,
            verified=verified,
            puts_per_s=round(len(self._acknowledged) / max(state.writing_s, 1e-9), 1),
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _read_text(self) -> None:
        for line in read_lines(self._files):
            self._lines += 1
            self._pairs.setdefault(line.key, line.place.encode("utf-8", "surrogateescape"))
            if len(self._pairs) > KEYS_MAX:
                raise InvalidArgumentError(f"the text has more than {KEYS_MAX} different lines")
        if len(self._pairs) <= self._kills:
            raise InvalidArgumentError(
                f"the text has {len(self._pairs)} different lines; more than {self._kills} are "
                "needed to kill the leader between them"
            )
        self.state.keys = len(self._pairs)

    # --- writing -------------------------------------------------------------------------------

    async def _write(self) -> None:
        cluster = self._running()
        self.state.phase = "writing"
        async with connect(cluster.endpoints, timeout=WRITE_TIMEOUT_S) as db:
            put = db.kv.put
            # Few outstanding for a short text, or all of it would be written before the kill.
            self._outstanding = max(1, min(OUTSTANDING_MAX, len(self._pairs) // 4))
            began = time.monotonic()
            killing = asyncio.ensure_future(self._kill_leaders(put))
            writing = asyncio.ensure_future(
                pump(self._items(), self._writer(put), outstanding=self._outstanding)
            )
            clock = asyncio.ensure_future(self._clock(began))
            try:
                done, _ = await asyncio.wait(
                    (killing, writing), return_when=asyncio.FIRST_EXCEPTION
                )
                for each in done:
                    await each
            finally:
                for each in (killing, writing, clock):
                    each.cancel()
                await asyncio.gather(killing, writing, clock, return_exceptions=True)

    async def _clock(self, began: float) -> None:
        """Writing time, until the last key is acknowledged."""
        while self.state.acknowledged < self.state.keys:
            self.state.writing_s = time.monotonic() - began
            await self._next_progress()
        self.state.writing_s = time.monotonic() - began

    async def _next_progress(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._progress.wait()

    def _items(self) -> Iterator[tuple[int, bytes, bytes]]:
        for number, (key, value) in enumerate(self._pairs.items()):
            yield number, key, value

    def _writer(self, put: Put) -> Callable[[tuple[int, bytes, bytes]], Awaitable[None]]:
        async def write(item: tuple[int, bytes, bytes]) -> None:
            number, key, value = item
            while number >= self._write_until:  # the next kill comes first
                self._gate.clear()
                await self._gate.wait()
            await put(key, value)
            self._acknowledged.add(key)
            self.state.acknowledged += 1
            self._progress.set()
            self._progress.clear()

        return write

    def _allow(self, until: int) -> None:
        self._write_until = until
        self._gate.set()

    async def _kill_leaders(self, put: Put) -> None:
        cluster, keys = self._running(), len(self._pairs)
        middles = [max(1, keys * n // (self._kills + 1)) for n in range(1, self._kills + 1)]
        # Writing goes on while a leader is looked for and killed, but not up to the next kill.
        limits = [self._limit(*pair) for pair in pairwise([*middles, keys])]
        for middle, limit, after in zip(middles, limits, [*limits, keys][1:], strict=True):
            self._allow(limit)
            while self.state.acknowledged < middle:
                await self._next_progress()
            await self._kill(await cluster.leader(), put, after)
        self._allow(keys)

    def _limit(self, middle: int, following: int) -> int:
        return max(middle, min(middle + 4 * self._outstanding, following - 1))

    async def _kill(self, leader: LocalNode, put: Put, after: int) -> None:
        cluster, state = self._running(), self.state
        pid, began = leader.pid, time.monotonic()
        leader.kill()
        state.phase, state.killed = f"leader {leader.number} killed", leader.number
        state.nodes[leader.number] = {}
        self._tell(f"SIGKILL to node {leader.number}, the leader (process {pid})")
        # Begun after the leader was gone: only a new one can acknowledge it.
        key, value = next(iter(self._pairs.items()))
        await put(key, value)
        state.failover_ms.append(round((time.monotonic() - began) * 1000, 1))
        self._tell(f"writes are acknowledged again, after {state.failover_ms[-1]:.0f} ms")
        self._allow(after)
        state.phase = f"writing; node {leader.number} comes back"
        leader.start()
        await leader.wait_serving()
        new_leader = await cluster.leader()
        self._tell(
            f"node {leader.number} serves again (process {leader.pid}); node {new_leader.number} "
            "leads"
        )
        state.phase, state.killed = "writing", 0

    def _tell(self, event: str) -> None:
        self.state.events.append(f"{time.monotonic() - self._began:6.2f} s  {event}")

    # --- reading back --------------------------------------------------------------------------

    async def _verify(self) -> tuple[int, bool]:
        """(keys that were acknowledged and are lost, whether every node has just what it should)"""
        cluster = self._running()
        self.state.phase = "reading back through each node"
        await cluster.wait_serving()
        lost: set[bytes] = set()
        exact = True
        for node in cluster.nodes.values():
            held = await self._read_all(node)
            lost.update(key for key in self._acknowledged if held.get(key) != self._pairs[key])
            exact = exact and held == self._pairs
        return len(lost), exact

    async def _read_all(self, node: LocalNode) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        start, more = b"", True
        async with await OneNode.open(parse_endpoint(node.endpoint)) as opened:
            while more:
                query = Range(start, limit=RANGE_LIMIT_MAX)
                page = await opened.query(query, timeout_s=READ_TIMEOUT_S)
                if not isinstance(page, RangeResult):
                    raise WireFormatError(f"node {node.number} answered a {type(page).__name__}")
                found.update((item.key, item.value) for item in page.items)
                self.state.checked += len(page.items)
                more = page.more and bool(page.items)
                if more:
                    start = page.items[-1].key + b"\0"
        return found

    # --- watching ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Keep ``state.nodes`` fresh."""
        cluster = self._running()
        while True:
            for node in cluster.nodes.values():
                self.state.nodes[node.number] = await _status_of(node)
            await asyncio.sleep(POLL_S)

    def _running(self) -> LocalCluster:
        if self._cluster is None:
            raise InvalidArgumentError("the demo's cluster has not been started")
        return self._cluster


async def _status_of(node: LocalNode) -> dict[str, Any]:
    if not node.running:
        return {}
    try:
        async with await OneNode.open(parse_endpoint(node.endpoint), timeout_s=1.0) as opened:
            status = await opened.call("status", timeout_s=1.0)
    except QuorateError:
        return {}
    return status if isinstance(status, dict) else {}
