"""A small file that both the harness and one node have mapped: how its clock and disk are bent.

The harness writes, ``processes.serve`` reads inside the node at every look at the clock and every
disk operation, and counts what it hit. Two slots hold the clock's parameters, and a number says
which is in force, so that a reader never sees half of a change.

Clocks: what the node sees is ``shown + (real - since) * rate`` for its monotonic clock, which so
never goes back, and the wall clock is the real one plus an offset, which may jump either way.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_FILE_BYTES: Final = 4096
_SLOT: Final = struct.Struct("<4d")  # rate, since_s, shown_s, wall_offset_s
_SLOTS_AT: Final = (64, 128)
_NUMBER: Final = struct.Struct("<Q")
_CURRENT_AT, _DISK_AT = 0, 8
#: Counters that the node writes.
_HITS_AT: Final = {"full": 256, "stall": 264, "fsync_error": 272, "write_error": 280}

#: Disk faults, as bits: no room for anything new; fsync hangs; the next fsync fails; the next
#: write fails.
FULL, STALL, FSYNC_ERROR, WRITE_ERROR = 1, 2, 4, 8


class ClockBend(NamedTuple):
    """See the module; *since_s* and *shown_s* on the real and the shown monotonic clock."""

    rate: float
    since_s: float
    shown_s: float
    wall_offset_s: float

    def monotonic_s(self, real_s: float) -> float:
        """What the node sees at *real_s*."""
        return self.shown_s + (real_s - self.since_s) * self.rate


STRAIGHT: Final = ClockBend(1.0, 0.0, 0.0, 0.0)


def real_monotonic_s() -> float:
    """The clock that the product uses by itself: one that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class FaultFile:
    """*path* is created if it does not exist. *real_s*: the real monotonic clock."""

    def __init__(self, path: Path, real_s: Callable[[], float] = real_monotonic_s) -> None:
        self.path = path
        self._real_s = real_s
        if not path.exists() or path.stat().st_size < _FILE_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(_FILE_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
        if self.clock().rate == 0.0:
            self._put(STRAIGHT)

    # --- the clock -------------------------------------------------------------------------------

    def clock(self) -> ClockBend:
        """What holds now."""
        (current,) = _NUMBER.unpack_from(self._map, _CURRENT_AT)
        return ClockBend(*_SLOT.unpack_from(self._map, _SLOTS_AT[current & 1]))

    def set_rate(self, rate: float) -> None:
        """From now on the node's monotonic clock runs at *rate* times the true pace."""
        now_s, before = self._real_s(), self.clock()
        self._put(before._replace(rate=rate, since_s=now_s, shown_s=before.monotonic_s(now_s)))

    def jump(self, seconds: float) -> None:
        """The monotonic clock goes *seconds* forward at once, as after a sleep of the machine."""
        now_s, before = self._real_s(), self.clock()
        shown_s = before.monotonic_s(now_s) + max(seconds, 0.0)
        self._put(before._replace(since_s=now_s, shown_s=shown_s))

    def set_wall_offset(self, seconds: float) -> None:
        """The wall clock is *seconds* ahead of the true one, or behind it."""
        self._put(self.clock()._replace(wall_offset_s=seconds))

    def straighten(self) -> None:
        """True pace and wall time; the monotonic clock keeps what it has gained."""
        self.set_rate(1.0)
        self.set_wall_offset(0.0)

    def _put(self, bend: ClockBend) -> None:
        (current,) = _NUMBER.unpack_from(self._map, _CURRENT_AT)
        _SLOT.pack_into(self._map, _SLOTS_AT[(current + 1) & 1], *bend)
        _NUMBER.pack_into(self._map, _CURRENT_AT, current + 1)

    # --- the disk --------------------------------------------------------------------------------

    def disk(self) -> int:
        """Disk faults in force, as bits."""
        found: int = _NUMBER.unpack_from(self._map, _DISK_AT)[0]
        return found

    def set_disk(self, bits: int) -> None:
        """Exactly these disk faults from now on; 0: none."""
        _NUMBER.pack_into(self._map, _DISK_AT, bits)

    def hits(self, kind: str) -> int:
        """How often the node has run into disk fault *kind*."""
        found: int = _NUMBER.unpack_from(self._map, _HITS_AT[kind])[0]
        return found

    def hit(self, kind: str) -> None:
        """Count one; called in the node."""
        _NUMBER.pack_into(self._map, _HITS_AT[kind], self.hits(kind) + 1)

    def close(self) -> None:
        """Unmap. The file stays."""
        self._map.close()
