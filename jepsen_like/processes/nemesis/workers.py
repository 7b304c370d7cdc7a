"""Workers of tasks are killed, and stopped for longer than their leases live."""

from __future__ import annotations

from jepsen_like.processes.crew import Crew
from jepsen_like.processes.nemesis.stage import Stage, shown
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.systems.system import System


class Workers:
    """SIGKILL, after which clients hire others; or SIGSTOP, and SIGCONT later."""

    name = "workers"

    def missing(self, system: System) -> str:
        return "" if system.crews else "only for workloads with workers of tasks"

    async def strike(self, stage: Stage) -> None:
        random = stage.random
        crew = random.choice(stage.system.crews)
        found = crew.free()
        random.shuffle(found)
        chosen = found[: random.choice((1, 1, 2, len(found)))]
        if not chosen:
            return
        with stage.claim(chosen):
            if random.random() < 0.6:
                await self._kill(stage, crew, chosen)
            else:
                await self._stop(stage, crew, chosen)

    async def _kill(self, stage: Stage, crew: Crew, chosen: list[NodeProcess]) -> None:
        async with stage.fault("worker-kill", f"{crew.app}: workers {shown(chosen)}"):
            for each in chosen:
                crew.kill(each)
            await stage.hold(0.1, 1.0)

    async def _stop(self, stage: Stage, crew: Crew, chosen: list[NodeProcess]) -> None:
        """Some lose their lease meanwhile, and come back with what is not theirs any more."""
        async with stage.fault("worker-stop", f"{crew.app}: workers {shown(chosen)}"):
            for each in chosen:
                crew.stop(each)
            try:
                await stage.hold(0.2, 5.0)
            finally:
                for each in chosen:
                    each.resume()
