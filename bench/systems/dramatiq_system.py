"""Dramatiq on one Redis that writes nothing down: what is enqueued survives its worker, not Redis.

One worker process with its default of eight threads; its other settings are the defaults, too.
"""

from __future__ import annotations

from bench.systems.redis_peer import RedisPeer
from bench.systems.task_peer import TaskRow

THREADS = 8


class DramatiqSystem(RedisPeer):
    """See the module."""

    name = "dramatiq"
    title = "Dramatiq"
    module = "bench.systems.dramatiq_app"

    def round(self, seconds: float) -> list[TaskRow]:
        """Fill the queue, and have a worker empty it."""
        worker = ["-m", "dramatiq", self.module, "--processes", "1", "--threads", str(THREADS)]
        worker += ["--queues", "lives"]
        rows = self.measure(self.app.nothing.send, worker, THREADS, self._left, seconds)
        self.app.broker.flush_all()
        return rows

    def close(self) -> None:
        """Of the broker."""
        self.app.broker.close()

    def _left(self) -> int:
        """What a worker has not acknowledged, whether it has it already or not."""
        return int(self.app.broker.client.hlen("dramatiq:lives.msgs"))
