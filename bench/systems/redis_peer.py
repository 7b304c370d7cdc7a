"""What task systems over one Redis have in common: that Redis, and a worker for a measurement."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.measure import versions
from bench.processes import BenchError
from bench.systems import task_peer
from bench.systems.task_peer import PAYLOAD, Redis, TaskRow


class RedisPeer:
    """*title*: what people call it; *module*: where its task is."""

    name: str
    title: str
    module: str
    promises = "one Redis, in memory: neither durable nor replicated"

    def __init__(self) -> None:
        self.redis: Redis | None = None
        self.app: Any = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._directory = Path()

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if versions(self.name)[self.name] == "absent":
            return f"{self.title} is not installed: pip install 'quorate[bench]'"
        return task_peer.missing_redis()

    def version(self) -> str:
        """Of the system and of Redis."""
        return f"{versions(self.name)[self.name]} on Redis {task_peer.redis_version()}"

    def start(self, directory: Path) -> None:
        """Start Redis."""
        self._directory = directory / self.name
        self._directory.mkdir()
        self.redis = Redis(self._directory)
        os.environ["BENCH_REDIS"] = self.redis.url
        self.app = importlib.import_module(self.module)

    def measure(
        self,
        send: Callable[[str], object],
        worker: Sequence[str],
        at_once: int,
        left: Callable[[], int],
        seconds: float,
    ) -> list[TaskRow]:
        """Fill the queue by *send*, and have *worker*, arguments of Python, empty it; *left*: what
        it has not acknowledged."""
        if self.redis is None:
            raise BenchError(f"{self.title} was not started")
        text = PAYLOAD.decode()
        sample = task_peer.enqueue_for(lambda: send(text), 2 * seconds)
        command = ["env", f"BENCH_REDIS={self.redis.url}", sys.executable, *worker]
        self._worker = processes.start(command, self._directory / "worker.log")
        per_s = task_peer.drained_per_s(left, seconds)
        self._end_worker()
        return [
            task_peer.row_of("enqueue", 1, sample, self.name),
            task_peer.rate_row("run by a worker", at_once, per_s, self.name),
        ]

    def close(self) -> None:
        """Close what the app holds open."""

    def stop(self) -> None:
        """End the processes."""
        self._end_worker()
        if self.redis is not None:
            if self.app is not None:
                self.close()
            self.redis.stop()
            self.redis = None

    def _end_worker(self) -> None:
        if self._worker is not None:
            processes.kill_group(self._worker)
            self._worker = None
