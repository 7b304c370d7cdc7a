"""Faults of whole processes: killed, frozen, restarted in order; leadership moved on request."""

from __future__ import annotations

import signal
import time
from typing import Final

from jepsen_like.processes.nemesis.stage import Stage, numbers, shown
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.systems.base import OutcomeError
from jepsen_like.systems.system import System, Transfers

#: A node that is asked to end does so within this time.
STOP_TIMEOUT_S: Final = 30.0
#: A process younger than this may not yet know what to do with SIGTERM.
YOUNG_S: Final = 5.0
SERVE_TIMEOUT_S: Final = 10.0


class Kill:
    """SIGKILL: one node, the leader, a minority, or all at once; started again later."""

    name = "kill"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        victims = await stage.pick()
        if not victims:
            return
        with stage.claim(victims):
            async with stage.fault("kill", f"nodes {shown(victims)}", numbers(victims)):
                for node in victims:
                    node.kill()
                await stage.hold(0.1, 3.0)
                for node in victims:
                    node.start()


class Pause:
    """SIGSTOP and, later, SIGCONT: connections stay, nothing answers, and then all at once."""

    name = "pause"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        victims = await stage.pick()
        if not victims:
            return
        with stage.claim(victims):
            async with stage.fault("pause", f"nodes {shown(victims)}", numbers(victims)):
                for node in victims:
                    node.pause()
                await stage.hold(0.2, 4.0)
                for node in victims:
                    node.resume()


class Rolling:
    """SIGTERM, and a new start, one node after the other: an upgrade."""

    name = "rolling"

    def missing(self, _system: System) -> str:
        return ""

    async def strike(self, stage: Stage) -> None:
        nodes = list(stage.system.nodes)
        async with stage.surgery, stage.fault("rolling", "every node restarts in turn", nodes):
            for number in list(stage.system.nodes):
                node = stage.system.nodes[number]
                if node.claimed or not node.running or stage.stopping:
                    continue
                with stage.claim([node]):
                    await _restart(stage, node)

    # A node that is frozen or cut off from the others still has to end when it is asked to.


async def _restart(stage: Stage, node: NodeProcess) -> None:
    began_s, young = time.monotonic(), node.age_s < YOUNG_S
    node.terminate()
    status = await node.wait_ended(STOP_TIMEOUT_S)
    if status is None:
        stage.problem(
            f"node {node.number} still ran {STOP_TIMEOUT_S:g} s after SIGTERM; its log ends:\n"
            f"{node.log_tail()}"
        )
        node.kill()
    elif status != 0 and not (young and status == -signal.SIGTERM):
        stage.problem(
            f"node {node.number} ended with status {status} after SIGTERM, not 0; its log ends:\n"
            f"{node.log_tail()}"
        )
    stage.note("rolling", f"node {node.number} ended in {time.monotonic() - began_s:.1f} s")
    node.start()
    end_s = time.monotonic() + SERVE_TIMEOUT_S
    while time.monotonic() < end_s and not stage.stopping:
        if await stage.system.serves(node.number):
            return
        await stage.hold(0.1, 0.1)


class Transfer:
    """Leadership is handed to a node that is asked for, or to any."""

    name = "transfer"

    def missing(self, system: System) -> str:
        if isinstance(system, Transfers):
            return ""
        return f"{system.name} cannot hand over leadership on request"

    async def strike(self, stage: Stage) -> None:
        system = stage.system
        target = stage.random.choice([0, *system.nodes])
        if not isinstance(system, Transfers):
            return
        async with stage.fault("transfer", f"to node {target}" if target else "to any"):
            try:
                await system.transfer(target)
            except OutcomeError as error:
                stage.note("transfer", f"not done: {error}")
