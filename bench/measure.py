"""What is measured and with what: latencies, disk, processes, machine."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

BLOCK_BYTES = 4096
MS = 1000.0


class Sample(msgspec.Struct, frozen=True):
    """Operations that completed within a window. *latencies_s*: one per operation, unordered."""

    latencies_s: list[float]
    window_s: float


class Figures(msgspec.Struct, frozen=True):
    """A sample in numbers; what rows of a report carry."""

    ops_per_s: float
    p50_ms: float
    p99_ms: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of an ascending sequence; NaN if it is empty.

    Nearest rank, because it is a value that was measured, never one in between.
    """
    if not ordered:
        return math.nan
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def median(values: Sequence[float]) -> float:
    """Lower median: one of the values."""
    return percentile(sorted(values), 50)


def figures(sample: Sample) -> Figures:
    """Throughput and latency of one sample."""
    ordered = sorted(sample.latencies_s)
    return Figures(
        ops_per_s=len(ordered) / sample.window_s,
        p50_ms=percentile(ordered, 50) * MS,
        p99_ms=percentile(ordered, 99) * MS,
    )


def median_figures(rounds: Sequence[Figures]) -> Figures:
    """Each number's median over the rounds, so that one disturbed round does not count."""
    return Figures(
        ops_per_s=median([item.ops_per_s for item in rounds]),
        p50_ms=median([item.p50_ms for item in rounds]),
        p99_ms=median([item.p99_ms for item in rounds]),
    )


def fsync_latencies_s(directory: Path, count: int = 300) -> list[float]:
    """Latencies of *count* times one 4-KiB ``pwrite`` and ``fdatasync`` of a preallocated file."""
    path = directory / "fsync-probe"
    block = os.urandom(BLOCK_BYTES)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
    try:
        os.pwrite(handle, b"\0" * BLOCK_BYTES * count, 0)
        os.fsync(handle)
        latencies = []
        for number in range(count):
            began = time.perf_counter()
            os.pwrite(handle, block, number * BLOCK_BYTES)
            sync(handle)
            latencies.append(time.perf_counter() - began)
    finally:
        os.close(handle)
        path.unlink()
    return latencies


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where /proc is not there to tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def machine(directory: Path) -> dict[str, object]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "system": platform.platform(),
        "file_system": file_system(directory),
        "load_average_1min": os.getloadavg()[0],
    }


def file_system(directory: Path) -> str:
    """Type of the file system that holds *directory*, such as "ext4"; "unknown" without /proc."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    place = str(directory.resolve())
    for line in mounts.read_text("utf-8", "replace").splitlines():
        fields = line.split()
        point = fields[1]
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the installed ones among *packages*."""
    found = {"python": f"{platform.python_implementation()} {sys.version.split()[0]}"}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
