"""Celery on one Redis that writes nothing down: what is enqueued survives its worker, not Redis.

One worker with Celery's defaults: processes, as many as there are cores, and a prefetch of four for
each. No results are kept.
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

QUEUE = "celery"
UNACKNOWLEDGED = "unacked"


class CelerySystem:
    """A Redis, and a worker for the time in which it is measured."""

    name = "celery"
    promises = "one Redis, in memory: neither durable nor replicated"

    def __init__(self) -> None:
        self._redis: Redis | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._app: Any = None
        self._client: Any = None

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if versions("celery")["celery"] == "absent":
            return "Celery is not installed: pip install 'quorate[bench]'"
        return task_peer.missing_redis()

    def version(self) -> str:
        """Of Celery and of Redis."""
        return f"{versions('celery')['celery']} on Redis {task_peer.redis_version()}"

    def start(self, directory: Path) -> None:
        """Start Redis."""
        import redis

        self._directory = directory / self.name
        self._directory.mkdir()
        self._redis = Redis(self._directory)
        os.environ["BENCH_REDIS"] = self._redis.url
        self._client = redis.Redis(port=self._redis.port)
        from bench.systems import celery_app

        self._app = celery_app

    def round(self, seconds: float) -> list[TaskRow]:
        """Fill the queue, and have a worker empty it."""
        if self._redis is None:
            raise BenchError("Celery was not started")
        text = PAYLOAD.decode()
        sample = task_peer.enqueue_for(lambda: self._app.nothing.delay(text), 2 * seconds)
        many = os.cpu_count() or 1
        command = [
            "env",
            f"BENCH_REDIS={self._redis.url}",
            sys.executable,
            "-m",
            "celery",
            "--app",
            "bench.systems.celery_app",
            "worker",
        ]
        command += ["--concurrency", str(many), "--loglevel", "warning"]
        self._worker = processes.start(command, self._directory / "worker.log")
        per_s = task_peer.drained_per_s(self._left, seconds)
        self._end_worker()
        self._client.flushdb()
        return [
            task_peer.row_of("enqueue", 1, sample, self.name),
            task_peer.rate_row("run by a worker", many, per_s, self.name),
        ]

    def stop(self) -> None:
        """End the processes."""
        self._end_worker()
        if self._redis is not None:
            if self._app is not None:
                self._app.app.close()
                self._client.close()
            self._redis.stop()
            self._redis = None

    def _left(self) -> int:
        """What a worker has not acknowledged, whether it has it already or not."""
        with self._client.pipeline() as pipe:
            pipe.llen(QUEUE)
            pipe.hlen(UNACKNOWLEDGED)
            return sum(pipe.execute())

    def _end_worker(self) -> None:
        if self._worker is not None:
            processes.kill_group(self._worker)
            self._worker = None
