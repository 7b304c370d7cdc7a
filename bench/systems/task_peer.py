"""What the peers of ``bench tasks`` have in common: a row, the protocol, a Redis of their own."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bench import processes
from bench.measure import Sample, figures
from bench.processes import BenchError

#: Of a task's payload, in every system.
PAYLOAD: Final = b"x" * 100
START_S: Final = 30.0
#: Before the counted part of a worker's run: it imports, connects and fills its buffers.
WORKER_WARM_UP_S: Final = 1.0
SAMPLE_S: Final = 0.05


class TaskRow(msgspec.Struct, frozen=True):
    """One way of using tasks. *outstanding*: calls under way, or tasks that are not done."""

    what: str
    outstanding: int
    tasks_per_s: float
    p50_ms: float
    p99_ms: float
    system: str = "quorate"


def row_of(what: str, outstanding: int, sample: Sample, system: str = "quorate") -> TaskRow:
    """A sample as a row."""
    found = figures(sample)
    return TaskRow(what, outstanding, found.ops_per_s, found.p50_ms, found.p99_ms, system)


def rate_row(what: str, outstanding: int, per_s: float, system: str = "quorate") -> TaskRow:
    """A row of something that was counted, not timed one by one."""
    return TaskRow(what, outstanding, per_s, math.nan, math.nan, system)


class TaskPeer(Protocol):
    """Another system that queues tasks. *name*: as ``--peers`` takes it. *promises*: what an
    acknowledged task survives, for the report."""

    name: str
    promises: str

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def version(self) -> str:
        """Of the system, and of its client."""

    def start(self, directory: Path) -> None:
        """Start its processes; *directory* is removed by the caller."""

    def round(self, seconds: float) -> list[TaskRow]:
        """Measure every row once."""

    def stop(self) -> None:
        """End its processes. Idempotent."""


# --- Redis ----------------------------------------------------------------------------------------


def missing_redis() -> str | None:
    """Why there can be no Redis here, or None."""
    if shutil.which("redis-server") is None:
        return "redis-server is not on PATH: install it (Debian, Ubuntu: apt-get install redis)"
    return None


def redis_version() -> str:
    """The number alone."""
    shown = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    return next(word[2:] for word in shown.stdout.split() if word.startswith("v="))


class Redis:
    """One Redis that keeps everything in memory and writes nothing down."""

    def __init__(self, directory: Path) -> None:
        (self.port,) = processes.free_ports(1)
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        self._process = processes.start(command, directory / "redis.log")
        try:
            processes.wait_until(self._listens, START_S, "Redis")
        except BenchError:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """As clients take it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """End the process."""
        processes.kill(self._process)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


# --- what the two frameworks on Redis are asked ---------------------------------------------------


def enqueue_for(send: Callable[[], object], seconds: float) -> Sample:
    """One after another from one process: their calls block, and return when Redis has answered."""
    latencies = []
    began = before = time.perf_counter()
    while before - began < seconds:
        send()
        done = time.perf_counter()
        latencies.append(done - before)
        before = done
    return Sample(latencies, before - began)


def drained_per_s(left: Callable[[], int], seconds: float) -> float:
    """Tasks that a worker, just started on a queue that is full, gets done per second.

    Raises:
        BenchError: it does not begin, or the queue was too short to tell.
    """
    full = left()
    processes.wait_until(lambda: left() < full, START_S, "the worker to begin", SAMPLE_S)
    time.sleep(min(WORKER_WARM_UP_S, seconds / 2))
    began, before = time.perf_counter(), left()
    now, rest = began, before
    while rest and now - began < seconds:
        last = rest, now
        time.sleep(SAMPLE_S)
        rest, now = left(), time.perf_counter()
        if rest == 0:
            rest, now = last  # it ended somewhere in between
            break
    if rest == before:
        raise BenchError(f"{full} tasks were done before they could be counted: enqueue for longer")
    return (before - rest) / (now - began)
