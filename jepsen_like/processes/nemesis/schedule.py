"""Which packages there are, when they strike, and how everything is healed at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from jepsen_like.errors import UsageError
from jepsen_like.processes.nemesis.clock import Clock
from jepsen_like.processes.nemesis.disk import Disk
from jepsen_like.processes.nemesis.membership import Membership, tidy
from jepsen_like.processes.nemesis.network import Clients, Partition, Reset, Slow
from jepsen_like.processes.nemesis.processes import Kill, Pause, Rolling, Transfer
from jepsen_like.processes.nemesis.stage import Package, Stage
from jepsen_like.processes.nemesis.workers import Workers
from jepsen_like.systems.system import Bendable, System

_ALL: Final[tuple[Package, ...]] = (
    Kill(),
    Pause(),
    Partition(),
    Slow(),
    Reset(),
    Clients(),
    Clock(),
    Disk(),
    Membership(),
    Rolling(),
    Transfer(),
    Workers(),
)
PACKAGES: Final[Mapping[str, Package]] = {package.name: package for package in _ALL}

#: Healed nodes all serve again within this time.
RECOVERY_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
PACKAGES_AT_ONCE: Final = 3


def packages(names: str, system: System) -> list[Package]:
    """Those named in "kill,pause"; "all": every one that *system* can take; "none": none.

    Raises:
        UsageError: a name means nothing, or the system cannot take it.
    """
    if names in ("", "none"):
        return []
    if names == "all":
        return [package for package in _ALL if not package.missing(system)]
    found = []
    for name in names.split(","):
        package = PACKAGES.get(name.strip())
        if package is None:
            raise UsageError(f"no nemesis {name!r}; there are {', '.join(PACKAGES)}, all and none")
        if missing := package.missing(system):
            raise UsageError(f"nemesis {name}: {missing}")
        found.append(package)
    return found


async def strike_until_stopped(stage: Stage, chosen: Sequence[Package], interval_s: float) -> None:
    """Each package strikes by itself, with pauses of *interval_s* on average between; longer ones
    if there are more than a few packages, or nothing would ever get done."""
    interval_s *= max(len(chosen) / PACKAGES_AT_ONCE, 1.0)
    async with asyncio.TaskGroup() as group:
        for package in chosen:
            group.create_task(_strike(stage, package, interval_s))


async def _strike(stage: Stage, package: Package, interval_s: float) -> None:
    while True:
        await stage.hold(0.2 * interval_s, 1.8 * interval_s)
        if stage.stopping:
            return
        await package.strike(stage)


async def heal(stage: Stage) -> float:
    """End every fault, start what does not run, and wait until all nodes serve; the seconds that
    took. What does not recover in time is a problem of the stage."""
    system, began_s = stage.system, time.monotonic()
    system.network.heal()
    for number, node in system.nodes.items():
        node.claimed = False
        if isinstance(system, Bendable):
            system.bend(number).set_disk(0)
            system.bend(number).straighten()
        node.resume()
        node.start()
    await tidy(stage)
    waiting = list(system.nodes)
    while waiting:
        waiting = [number for number in waiting if not await system.serves(number)]
        if waiting and time.monotonic() - began_s > RECOVERY_TIMEOUT_S:
            for number in waiting:
                stage.problem(_not_recovered(stage, number))
            break
        if waiting:
            await asyncio.sleep(POLL_S)
    return time.monotonic() - began_s


def _not_recovered(stage: Stage, number: int) -> str:
    node = stage.system.nodes[number]
    state = "runs" if node.running else f"ended with status {node.exit_status}"
    return (
        f"node {number} did not serve again within {RECOVERY_TIMEOUT_S:g} s after all faults were "
        f"healed; it {state}; its log ends:\n{node.log_tail()}"
    )
