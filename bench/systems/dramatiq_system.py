"""Dramatiq on one Redis that writes nothing down: what is enqueued survives its worker, not Redis.

One worker process with its default of eight threads; its other settings are the defaults, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import processes
from bench.measure import versions
from bench.processes import BenchError
from bench.systems import task_peer
from bench.systems.task_peer import PAYLOAD, Redis, TaskRow

THREADS = 8


class DramatiqSystem:
    """A Redis, and a worker for the time in which it is measured."""

    name = "dramatiq"
    promises = "one Redis, in memory: neither durable nor replicated"

    def __init__(self) -> None:
        self._redis: Redis | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._app: Any = None

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if versions("dramatiq")["dramatiq"] == "absent":
            return "Dramatiq is not installed: pip install 'quorate[bench]'"
        return task_peer.missing_redis()

    def version(self) -> str:
        """Of Dramatiq and of Redis."""
        return f"{versions('dramatiq')['dramatiq']} on Redis {task_peer.redis_version()}"

    def start(self, directory: Path) -> None:
        """Start Redis."""
        self._directory = directory / self.name
        self._directory.mkdir()
        self._redis = Redis(self._directory)
        os.environ["BENCH_REDIS"] = self._redis.url
        from bench.systems import dramatiq_app

        self._app = dramatiq_app

    def round(self, seconds: float) -> list[TaskRow]:
        """Fill the queue, and have a worker empty it."""
        if self._redis is None:
            raise BenchError("Dramatiq was not started")
        text = PAYLOAD.decode()
        sample = task_peer.enqueue_for(lambda: self._app.nothing.send(text), 2 * seconds)
        command = [
            "env",
            f"BENCH_REDIS={self._redis.url}",
            sys.executable,
            "-m",
            "dramatiq",
            "bench.systems.dramatiq_app",
        ]
        command += ["--processes", "1", "--threads", str(THREADS), "--queues", "lives"]
        self._worker = processes.start(command, self._directory / "worker.log")
        per_s = task_peer.drained_per_s(self._left, seconds)
        self._end_worker()
        self._app.broker.flush_all()
        return [
            task_peer.row_of("enqueue", 1, sample, self.name),
            task_peer.rate_row("run by a worker", THREADS, per_s, self.name),
        ]

    def stop(self) -> None:
        """End the processes."""
        self._end_worker()
        if self._redis is not None:
            self._app.broker.close() if self._app is not None else None
            self._redis.stop()
            self._redis = None

    def _left(self) -> int:
        """What a worker has not acknowledged, whether it has it already or not."""
        return int(self._app.broker.client.hlen("dramatiq:lives.msgs"))

    def _end_worker(self) -> None:
        if self._worker is not None:
            processes.kill_group(self._worker)
            self._worker = None
