"""quorate: three ``quorate serve`` processes and the asyncio client, fsync on, default settings."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

from bench import access
from bench.cluster import QuorateCluster
from bench.measure import Sample, versions
from bench.processes import BenchError
from bench.workloads import Workload, drive, keys, values


class QuorateSystem:
    """Three node processes."""

    name = "quorate"

    def __init__(self) -> None:
        self.cluster: QuorateCluster | None = None

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        for module in ("quorate.client", "quorate.server.cli"):
            if importlib.util.find_spec(module) is None:
                return f"{module} cannot be imported"
        return None

    def version(self) -> str:
        """Of the installed distribution; "absent" when run from a source tree."""
        return versions("quorate")["quorate"]

    def start(self, directory: Path) -> None:
        """Start the cluster and wait until every node serves."""
        self.cluster = QuorateCluster(directory)
        self.cluster.start()

    def client_spec(self) -> dict[str, Any]:
        """All endpoints: the client finds the leader itself."""
        if self.cluster is None:
            raise BenchError("quorate was not started")
        return {"endpoints": self.cluster.endpoints}

    def stop(self) -> None:
        """End the processes."""
        if self.cluster is not None:
            self.cluster.stop()
            self.cluster = None


class QuorateClient:
    """Handles of the asyncio client: one per connection."""

    def __init__(self) -> None:
        self._endpoints: list[str] = []
        self._handles: list[Any] = []

    def variants(self, workload: Workload) -> tuple[str, ...]:  # noqa: ARG002
        """One way: as every user calls it."""
        return ("asyncio",)

    async def open(self, spec: dict[str, Any]) -> None:
        """Remember the endpoints; handles open when they are first needed."""
        self._endpoints = [str(endpoint) for endpoint in spec["endpoints"]]

    async def load(self) -> None:
        """Every key once, 100 at a time."""
        (handle,) = await self._connected(1)
        value, supply = values()[0], keys()
        for at in range(0, len(supply), 100):
            await asyncio.gather(*(handle.kv.put(key, value) for key in supply[at : at + 100]))

    async def run(self, workload: Workload, variant: str, seconds: float) -> Sample:  # noqa: ARG002
        """Drive ``db.kv.put`` or ``db.kv.get``."""
        handles = await self._connected(workload.connections)
        if workload.operation == "put":
            return await drive([h.kv.put for h in handles], workload.outstanding, seconds)

        def reader(handle: Any) -> Any:  # noqa: ANN401
            get = handle.kv.get
            return lambda key, _value: get(key)

        return await drive([reader(h) for h in handles], workload.outstanding, seconds)

    async def close(self) -> None:
        """Close every handle."""
        for handle in self._handles:
            await access.close(handle)
        self._handles = []

    async def _connected(self, count: int) -> list[Any]:
        while len(self._handles) < count:
            self._handles.append(await access.connect(self._endpoints))
        return self._handles[:count]
