"""What one seed draws: the cluster, the network, the load, and which faults it will meet."""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from jepsen_like.systems.pysyncobj.member import Settings
from jepsen_like.systems.pysyncobj.network import Quality

#: Faults that a seed may have; it has each with this probability.
FAULTS: Final[dict[str, float]] = {
    "isolate": 0.7,  # one member, more often the leader
    "halve": 0.3,  # two groups
    "one-way": 0.3,  # one direction between two members
    "kill": 0.4,  # end of a process, at times in the middle of a write
    "power": 0.25,  # of one machine, with what its files had not on the disk
    "pause": 0.3,
    "compact": 0.6,  # the log, on request
    "membership": 0.35,
    "transfer": 0.3,  # of leadership
    "clock": 0.3,  # one wall clock jumps
}
#: The seed has members' sets and lists used as well, by commands that may raise.
RAISING_PROBABILITY: Final = 0.25
LOOSE_PROBABILITY: Final = 0.5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """*faults*: names out of ``FAULTS``. Seconds are virtual; *fault_gap_s*, *think_s*: means.
    *local_reads*: of the member's own copy, as the library documents; else reads are commands."""

    members: int
    settings: Settings
    quality: Quality
    faults: tuple[str, ...]
    fault_gap_s: float
    rough_s: float
    clients: int
    think_s: float
    local_reads: bool
    batteries: bool
    locks: bool


def draw_plan(seed: int) -> Plan:
    """The plan of a seed; the same on every machine."""
    random = Random(f"plan {seed}")
    faults = tuple(name for name, chance in FAULTS.items() if random.random() < chance)
    settings = Settings(
        journal="kill" in faults or "power" in faults,
        append_entries_use_batch=random.random() < 0.5,
        log_compaction_min_entries=random.choice((10, 50, 200, 5000)),
        leader_fallback_timeout_s=random.choice((3.0, 30.0)),
        connection_retry_s=random.choice((0.2, 1.0, 5.0)),
        lock_timeout_s=random.choice((3.0, 10.0)),
    )
    quality = Quality(delay_s=random.choice((0.0005, 0.002, 0.01)))
    if random.random() < LOOSE_PROBABILITY:
        quality = Quality(
            style="loose",
            delay_s=quality.delay_s,
            lost=random.choice((0.0, 0.01, 0.05)),
            repeated=random.choice((0.0, 0.05, 0.3)),
            late=random.choice((0.0, 0.02, 0.1)),
            late_s=random.choice((0.2, 1.0, 5.0)),
        )
    return Plan(
        members=random.choice((3, 3, 4, 5, 5)),
        settings=settings,
        quality=quality,
        faults=faults,
        fault_gap_s=random.choice((0.5, 1.5, 4.0)),
        rough_s=random.choice((10.0, 20.0, 30.0)),
        clients=random.choice((2, 4, 8)),
        think_s=random.choice((0.02, 0.1, 0.5)),
        local_reads=random.random() < 0.5,
        batteries=random.random() < RAISING_PROBABILITY,
        locks="clock" in faults,
    )
