"""quorate as real processes: ``quorate serve``, its clock and disk bent where a run asks for it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

from jepsen_like.processes.fault_file import FaultFile
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.systems.base import OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient
from jepsen_like.systems.system import System
from quorate.base.frames import Welcome
from quorate.client.database import Database, connect
from quorate.client.endpoints import parse_endpoint
from quorate.errors import QuorateError
from quorate.server.cli_common import Exit
from quorate.server.one_node import OneNode

CLUSTER: Final = "under-test"
PROBE_TIMEOUT_S: Final = 1.0
#: Replicas that are quiet and healed agree after so long at most.
AGREE_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1
CHANGE_S: Final = 30.0  # of the membership, its learner's catching up included
TRANSFER_S: Final = 6.0


class QuorateSystem(System):
    """Adapter for quorate; can do everything that ``systems.system`` knows."""

    name = "quorate"
    forget = ("QUORATE_",)
    storage_exit_status: ClassVar[int] = int(Exit.STORAGE)

    def __init__(self, directory: Path, *, count: int, timeout_s: float, random: Random) -> None:
        super().__init__(directory, count=count, timeout_s=timeout_s, random=random)
        self._bends: dict[int, FaultFile] = {}
        self._joining: dict[int, str] = {}

    # --- processes -------------------------------------------------------------------------------

    def command(self, number: int) -> Sequence[str]:
        """The command line, as an operator would write it."""
        founders = range(1, self.count + 1)
        members = ",".join(f"{node}={self.address(node)}" for node in founders)
        command = [sys.executable, "-m", "jepsen_like.processes.serve"]
        command += [str(self.bend(number).path), "serve", "--id", str(number)]
        command += ["--listen", self.listen(number), "--advertise", self.address(number)]
        command += ["--data", str(self.nodes[number].data), "--cluster", CLUSTER]
        if number in self._joining:
            return [*command, "--join", self._joining[number]]
        return [*command, "--initial", members]

    def bend(self, number: int) -> FaultFile:
        """What bends the clock and disk of a node."""
        if number not in self._bends:
            self._bends[number] = FaultFile(self.directory / f"node-{number}.faults")
        return self._bends[number]

    def log_files(self, number: int) -> list[Path]:
        """Segments of its log, newest last."""
        return sorted((self.nodes[number].data / "log").glob("*.wal"))

    def close(self) -> None:
        super().close()
        for bend in self._bends.values():
            bend.close()

    # --- questions -------------------------------------------------------------------------------

    async def serves(self, number: int) -> bool:
        """Whether it answers a linearizable read itself."""
        try:
            async with await self._one(number) as node:
                await node.serves(timeout_s=PROBE_TIMEOUT_S)
        except QuorateError:
            return False
        return True

    async def leader(self) -> int:
        """As the node with the highest term says."""
        best = (0, 0)
        for welcome in await asyncio.gather(*(self._welcome(number) for number in self.nodes)):
            if welcome is not None:
                best = max(best, (welcome.term, welcome.leader))
        return best[1]

    async def audit(self) -> list[str]:
        """Members that raise alarms, or whose applied states differ."""
        end_s = time.monotonic() + AGREE_TIMEOUT_S
        while True:
            try:
                members = await self.voters()
            except OutcomeError as error:
                if time.monotonic() > end_s:
                    return [f"no node says who the members are: {error}"]
                await asyncio.sleep(POLL_S)
                continue
            states = {number: await self._status(number) for number in members}
            alarms = [
                f"node {number} raises an alarm: {alarm}"
                for number, status in states.items()
                for alarm in status.get("alarms", [])
            ]
            found = {
                number: (status.get("applied"), status.get("state_hash"))
                for number, status in states.items()
            }
            if alarms or len(set(found.values())) == 1:
                return alarms
            if time.monotonic() > end_s:
                return [f"replicas differ {AGREE_TIMEOUT_S:g} s after all was healed: {found}"]
            await asyncio.sleep(POLL_S)

    async def _one(self, number: int) -> OneNode:
        return await OneNode.open(parse_endpoint(self.listen(number)), timeout_s=PROBE_TIMEOUT_S)

    async def _welcome(self, number: int) -> Welcome | None:
        if not self.nodes[number].running or self.nodes[number].paused:
            return None
        try:
            async with await self._one(number) as node:
                return node.welcome
        except QuorateError:
            return None

    async def _status(self, number: int) -> dict[str, Any]:
        try:
            async with await self._one(number) as node:
                found: dict[str, Any] = await node.call("status")
        except QuorateError as error:
            return {"applied": str(error)}
        return found

    # --- clients ---------------------------------------------------------------------------------

    def client(self, process: int) -> QuorateClient:
        """Follows the leader, wherever it starts; every other one reads from one fixed node."""
        numbers = list(self.nodes)
        home = numbers[process % len(numbers)]
        others = [number for number in numbers if number != home]
        database = connect(
            [self.address(number) for number in (home, *others)], timeout=self.timeout_s
        )

        def another(*chosen: int, **options: Any) -> Database:  # noqa: ANN401
            options = {"timeout": self.timeout_s, **options}
            return connect([self.address(number) for number in chosen or self.nodes], **options)

        if process % 2 == 0:
            return QuorateClient(database, connect=another)
        pinned = connect(self.address(home), timeout=self.timeout_s, follow_leader=False)
        return QuorateClient(database, pinned, another)

    # --- operators -------------------------------------------------------------------------------

    async def voters(self) -> list[int]:
        """Members with a vote."""
        return [number for number, votes in (await self.members()).items() if votes]

    async def members(self) -> dict[int, bool]:
        """By number: whether it has a vote; as a node in touch with the leader knows them."""
        found = await self._operate(lambda database: database.members(timeout=self.timeout_s))
        return {member["node"]: member["role"] == "voter" for member in found["members"]}

    async def join(self, number: int) -> NodeProcess:
        """Create and start a node that looks for the cluster at the others' addresses."""
        known = [each for each, node in self.nodes.items() if node.running]
        self._joining[number] = ",".join(self.address(each) for each in known)
        node = await self.create(number)
        node.start()
        return node

    async def add(self, number: int) -> None:
        address = self.address(number)
        await self._operate(lambda database: database.add_member(number, address, timeout=CHANGE_S))

    async def promote(self, number: int) -> None:
        await self._operate(lambda database: database.promote(number, timeout=CHANGE_S))

    async def remove(self, number: int) -> None:
        await self._operate(lambda database: database.remove_member(number, timeout=CHANGE_S))

    async def transfer(self, target: int) -> None:
        await self._operate(lambda database: database.transfer_leader(target, timeout=TRANSFER_S))

    async def _operate(
        self, call: Callable[[Database], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        addresses = [self.address(number) for number in self.nodes]
        try:
            async with connect(addresses, timeout=self.timeout_s) as database:
                return await call(database)
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
