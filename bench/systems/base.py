"""What ``compare`` needs of a system, in two halves.

A ``System`` lives in the measuring process and owns the three node processes. A ``Client`` lives in
a process of its own (``bench.worker``), one per system for the whole run, so that no system's
client shares an interpreter, a heap or an event loop with another's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from bench.measure import Sample
from bench.workloads import Workload


class System(Protocol):
    """Three nodes on loopback. One call of ``start``, then one of ``stop``."""

    @property
    def name(self) -> str:
        """As in rows and flags."""
        ...

    def missing(self) -> str | None:
        """Why it cannot run here and how to mend that, or None if it can."""
        ...

    def start(self, directory: Path) -> None:
        """Start three nodes with their data in *directory*; return when they serve.

        Raises:
            BenchError: they did not; nothing is left running.
        """
        ...

    def client_spec(self) -> dict[str, Any]:
        """What the client process has to know, as plain JSON."""
        ...

    def version(self) -> str:
        """Of the system that runs."""
        ...

    def stop(self) -> None:
        """End the processes. Idempotent."""
        ...


class Client(Protocol):
    """The driving side. All calls come one after another."""

    def variants(self, workload: Workload) -> tuple[str, ...]:
        """Ways to drive *workload*; the fastest one is used. Empty: it makes no sense here."""
        ...

    async def open(self, spec: dict[str, Any]) -> None:
        """Connect; the spec is that of ``System.client_spec``."""
        ...

    async def load(self) -> None:
        """Write every key once, so that reads find something."""
        ...

    async def run(self, workload: Workload, variant: str, seconds: float) -> Sample:
        """Drive *workload* for a warm-up and then *seconds*. Any failed operation raises."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...
