"""PySyncObj as real processes, behind the proxies of ``run``.

Every node keeps its journal and its dump in files, so that the end of a process need not cost it
anything. Reads are what sets the two adapters apart: of the node's own copy, which is how the
library's documentation has it, or as commands, which is the best that it can do.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from jepsen_like.systems.base import OutcomeError, Versioned
from jepsen_like.systems.pysyncobj import command as virtual
from jepsen_like.systems.pysyncobj import wire
from jepsen_like.systems.system import System

T = TypeVar("T")

PROBE_TIMEOUT_S: Final = 1.0
#: Replicas that are quiet and healed agree after so long at most.
AGREE_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1


class PySyncObjSystem(System):
    """Adapter for PySyncObj, its reads of a node's own copy."""

    name = "pysyncobj"
    ports = ("clients", "members")
    local_reads: ClassVar[bool] = True

    @classmethod
    def missing(cls) -> str:
        """Needs the library."""
        return virtual.missing()

    def command(self, number: int) -> Sequence[str]:
        """The node's script."""
        founders = range(1, self.count + 1)
        others = [self.address(node, "members") for node in founders if node != number]
        return [
            *(sys.executable, "-m", "jepsen_like.systems.pysyncobj.node"),
            *("--address", self.address(number, "members")),
            *("--bind", self.listen(number, "members")),
            *("--clients", self.listen(number, "clients")),
            *("--others", ",".join(others)),
            *("--data", str(self.nodes[number].data)),
        ]

    async def serves(self, number: int) -> bool:
        """Whether it gets a command through, which needs a majority."""
        client = PySyncObjClient(self.listen(number), PROBE_TIMEOUT_S, local_reads=False)
        try:
            await client.get("?")
        except OutcomeError:
            return False
        finally:
            await client.close()
        return True

    async def leader(self) -> int:
        """The one that says so of itself, in the highest term."""
        best = (0, 0)
        for number, found in (await self._look()).items():
            if isinstance(found, wire.Status) and found.leads:
                best = max(best, (found.term, number))
        return best[1]

    async def audit(self) -> list[str]:
        """Members whose copies differ."""
        end_s = time.monotonic() + AGREE_TIMEOUT_S
        while True:
            found = await self._look()
            copies = {
                number: (each.applied, each.keys, each.digest[:12])
                if isinstance(each, wire.Status)
                else each
                for number, each in found.items()
            }
            if len(set(copies.values())) == 1:
                return []
            if time.monotonic() > end_s:
                told = "; ".join(f"node {number}: {copy}" for number, copy in copies.items())
                text = f"replicas differ {AGREE_TIMEOUT_S:g} s after all was healed"
                return [f"{text} (last applied, keys, digest): {told}"]
            await asyncio.sleep(POLL_S)

    def client(self, process: int) -> PySyncObjClient:
        """Talks to one member, whether it leads or not."""
        numbers = list(self.nodes)
        address = self.address(numbers[process % len(numbers)])
        return PySyncObjClient(address, self.timeout_s, local_reads=self.local_reads)

    async def _look(self) -> dict[int, wire.Status | str]:
        """What each node that can be asked says of itself; else why it does not."""
        found: dict[int, wire.Status | str] = {}
        for number, node in self.nodes.items():
            if not node.running or node.paused:
                found[number] = "does not run"
                continue
            client = PySyncObjClient(self.listen(number), PROBE_TIMEOUT_S, local_reads=True)
            try:
                found[number] = await client.look()
            except OutcomeError as error:
                found[number] = str(error)
            finally:
                await client.close()
        return found


class PySyncObjWithReadsInTheLog(PySyncObjSystem):
    """Adapter for PySyncObj, every read a command."""

    name = "pysyncobj-log-reads"
    local_reads = False


class PySyncObjClient:
    """One connection to one node, made again after an error; *timeout_s* for each call."""

    def __init__(self, address: str, timeout_s: float, *, local_reads: bool) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._timeout_s = timeout_s
        self._local_reads = local_reads
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, key: str) -> Versioned:
        request = wire.Get(key, self._local_reads)
        return Versioned(*await self._call(request, wire.Pair, reads=True))

    async def put(self, key: str, value: bytes) -> None:
        await self._call(wire.Put(key, value), None)

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        done: bool = await self._call(wire.CompareAndSet(key, expected, value), bool)
        return done

    async def add(self, key: str, number: int) -> int:
        total: int = await self._call(wire.Add(key, number), int)
        return total

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        request = wire.Transact(dict(expected), list(reads), dict(writes))
        kind = tuple[bool, dict[str, wire.Pair]]
        done, found = await self._call(request, kind, reads=not writes)
        return done, {key: Versioned(*pair) for key, pair in found.items()}

    async def look(self) -> wire.Status:
        """What the node says of itself."""
        found: wire.Status = await self._call(wire.Look(), wire.Status, reads=True)
        return found

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _call(self, request: wire.Request, kind: Any, *, reads: bool = False) -> Any:  # noqa: ANN401
        """The answer, decoded as *kind*. *reads*: whatever happens, the request has no effect."""
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await self._connected()
                sent = True
                writer.write(wire.line(request))
                await writer.drain()
                text = await reader.readline()
        except TimeoutError as error:
            await self.close()
            late = f"no answer within {self._timeout_s:g} s"
            raise OutcomeError(late, definite=reads or not sent) from error
        except (OSError, ValueError) as error:  # ValueError: the line is too long
            await self.close()
            raise OutcomeError(repr(error), definite=reads or not sent) from error
        except asyncio.CancelledError:
            await self.close()
            raise
        if not text.endswith(b"\n"):
            await self.close()
            raise OutcomeError("the connection ended", definite=reads)
        answer = wire.read_answer(text)
        if answer.error:
            raise OutcomeError(answer.error, definite=reads or answer.definite)
        return msgspec.json.decode(answer.result, type=kind)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, limit=wire.LINE_BYTES_MAX
            )
            if await self._streams[0].readline() != wire.GREETING:
                raise ConnectionResetError("there is no node at the end of the connection")
        return self._streams
