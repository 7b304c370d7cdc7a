"""Faults of clocks: other rates, jumps, and both many times a second, on some nodes or all."""

from __future__ import annotations

from jepsen_like.processes.fault_file import FaultFile
from jepsen_like.processes.nemesis.stage import Stage
from jepsen_like.systems.system import Bendable, System

RATES = (0.1, 0.5, 0.9, 1.1, 2.0, 5.0)
JUMPS_S = (0.2, 1.0, 5.0, 30.0, 90.0)
WALL_OFFSETS_S = (-86_400.0, -3_600.0, -1.0, 0.5, 60.0, 86_400.0 * 365)


class Clock:
    """One of: a rate of the monotonic clock; a jump of it, forward, as after a machine's sleep; an
    offset of the wall clock; all of them in quick succession (a strobe)."""

    name = "clock"

    def missing(self, system: System) -> str:
        return "" if isinstance(system, Bendable) else f"the clocks of {system.name} cannot be bent"

    async def strike(self, stage: Stage) -> None:
        system, random = stage.system, stage.random
        if not isinstance(system, Bendable):
            return
        numbers = list(system.nodes)
        chosen = sorted(random.sample(numbers, random.randint(1, len(numbers))))
        bends = [system.bend(number) for number in chosen]
        named = f"nodes {', '.join(map(str, chosen))}"
        match random.choice(("rate", "jump", "wall", "strobe")):
            case "rate":
                rate = random.choice(RATES)
                async with stage.fault("clock-rate", f"{named} run at {rate:g}", chosen):
                    for bend in bends:
                        bend.set_rate(rate)
                    await stage.hold(0.5, 5.0)
                    _straighten(bends)
            case "jump":
                jump_s = random.choice(JUMPS_S)
                async with stage.fault("clock-jump", f"{named} by {jump_s:g} s", chosen):
                    for bend in bends:
                        bend.jump(jump_s)
            case "wall":
                offset_s = random.choice(WALL_OFFSETS_S)
                async with stage.fault("clock-wall", f"{named} by {offset_s:g} s", chosen):
                    for bend in bends:
                        bend.set_wall_offset(offset_s)
                    await stage.hold(0.5, 5.0)
                    _straighten(bends)
            case _:
                async with stage.fault("clock-strobe", named, chosen):
                    await _strobe(stage, bends)
                    _straighten(bends)


async def _strobe(stage: Stage, bends: list[FaultFile]) -> None:
    for _ in range(stage.random.randint(5, 60)):
        for bend in bends:
            bend.set_rate(stage.random.choice(RATES))
            bend.set_wall_offset(stage.random.choice(WALL_OFFSETS_S))
            bend.jump(stage.random.choice((0.0, 0.01, 0.1)))
        await stage.hold(0.05, 0.05)


def _straighten(bends: list[FaultFile]) -> None:
    for bend in bends:
        bend.straighten()
