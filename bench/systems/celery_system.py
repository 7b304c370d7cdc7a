"""Celery on one Redis that writes nothing down: what is enqueued survives its worker, not Redis.

One worker with Celery's defaults: processes, as many as there are cores, and a prefetch of four for
each. No results are kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.systems.redis_peer import RedisPeer
from bench.systems.task_peer import TaskRow

QUEUE = "celery"
UNACKNOWLEDGED = "unacked"


class CelerySystem(RedisPeer):
    """See the module."""

    name = "celery"
    title = "Celery"
    module = "bench.systems.celery_app"

    def __init__(self) -> None:
        super().__init__()
        self._client: Any = None

    def start(self, directory: Path) -> None:
        """Start Redis."""
        import redis

        super().start(directory)
        self._client = redis.Redis(port=self.redis.port if self.redis else 0)

    def round(self, seconds: float) -> list[TaskRow]:
        """Fill the queue, and have a worker empty it."""
        many = os.cpu_count() or 1
        worker = ["-m", "celery", "--app", self.module, "worker"]
        worker += ["--concurrency", str(many), "--loglevel", "warning"]
        rows = self.measure(self.app.nothing.delay, worker, many, self._left, seconds)
        self._client.flushdb()
        return rows

    def close(self) -> None:
        """Of the app and of this."""
        self.app.app.close()
        self._client.close()

    def _left(self) -> int:
        """What a worker has not acknowledged, whether it has it already or not."""
        with self._client.pipeline() as pipe:
            pipe.llen(QUEUE)
            pipe.hlen(UNACKNOWLEDGED)
            return sum(pipe.execute())
