"""What faults act on, and how they tell of it.

A *package* is a family of faults. It strikes again and again while a run lasts; each strike begins
faults, holds them for a while, and heals what it did before it returns. When the run is to end,
``hold`` returns at once, so strikes are never cut off in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final, Protocol

from jepsen_like.history import NEMESIS, Event
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.systems.base import OutcomeError
from jepsen_like.systems.system import System

BEGIN: Final = "begin"
END: Final = "end"
NOTE: Final = "note"
#: Problems beyond so many are only counted.
PROBLEMS_MAX: Final = 100
RETRY_S: Final = 0.25
POLL_S: Final = 0.05


class Package(Protocol):
    """See the module. *name*: as in ``--nemesis``."""

    name: str

    def missing(self, system: System) -> str:
        """Why it cannot be used on *system*; "" if it can."""
        ...

    async def strike(self, stage: Stage) -> None:
        """One round of faults, from beginning to healing."""
        ...


class Stage:
    """*record*: takes the nemesis's events. *time_ns*: the run's clock."""

    def __init__(
        self,
        system: System,
        random: Random,
        record: Callable[[Event], None],
        time_ns: Callable[[], int],
    ) -> None:
        self.system = system
        self.random = random
        self._record = record
        self._time_ns = time_ns
        self._last_fault = 0
        self._stopping = asyncio.Event()
        #: Held by faults that must have no other of their kind beside them: those that replace
        #: nodes, or count on a majority to be left.
        self.surgery = asyncio.Lock()
        #: What the system did wrong under faults, each a sentence.
        self.problems: list[str] = []
        self.problems_count = 0
        #: How many faults began, by kind.
        self.counts: dict[str, int] = {}
        self._numbers_used = 0

    # --- time ------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether the run is to end."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """The run is to end: no more strikes, and what is held is healed."""
        self._stopping.set()

    async def hold(self, seconds_min: float, seconds_max: float) -> None:
        """Wait for a while, at most until the run is to end."""
        seconds = self.random.uniform(seconds_min, seconds_max)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- telling ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def fault(self, kind: str, what: str, nodes: Iterable[int] = ()) -> AsyncIterator[None]:
        """A fault of *kind* holds inside the block. *nodes*: those that it concerns, for checkers
        that go by what becomes of each."""
        self._last_fault += 1
        number = self._last_fault
        self.counts[kind] = self.counts.get(kind, 0) + 1
        concerned = sorted(nodes)
        self._tell(kind, number, BEGIN, what, concerned)
        try:
            yield
        finally:
            self._tell(kind, number, END, what, concerned)

    def note(self, kind: str, what: str) -> None:
        """Something worth knowing happened."""
        self._tell(kind, 0, NOTE, what, [])

    def problem(self, text: str) -> None:
        """The system broke a promise, not to a client but to its operator."""
        self.problems_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)
        self.note("problem", text)

    def _tell(self, kind: str, number: int, do: str, what: str, nodes: list[int]) -> None:
        value: dict[str, Any] = {"id": number, "do": do, "what": what}
        if nodes:
            value["nodes"] = nodes
        event = Event(process=NEMESIS, type="info", f=kind, value=value, time_ns=self._time_ns())
        self._record(event)

    # --- nodes -----------------------------------------------------------------------------------

    def free(self) -> list[NodeProcess]:
        """Nodes that run and that no fault holds, in random order."""
        found = [node for node in self.system.nodes.values() if node.running and not node.claimed]
        self.random.shuffle(found)
        return found

    async def pick(self) -> list[NodeProcess]:
        """Victims among the free nodes: one, the leader, a minority, or all; maybe nobody."""
        found = self.free()
        if not found:
            return []
        choice = self.random.choices(
            ("one", "leader", "minority", "all"), weights=(4, 4, 2, 1), k=1
        )[0]
        if choice == "leader":
            leader = await self.system.leader()
            return [node for node in self.free() if node.number == leader]
        if choice == "minority":
            return found[: max((len(self.system.nodes) - 1) // 2, 1)]
        return found if choice == "all" else found[:1]

    @contextlib.contextmanager
    def claim(self, nodes: Sequence[NodeProcess]) -> Iterator[None]:
        """Nobody else touches these processes inside the block."""
        for node in nodes:
            node.claimed = True
        try:
            yield
        finally:
            for node in nodes:
                node.claimed = False

    def new_number(self) -> int:
        """One that no node ever had."""
        self._numbers_used = max(self._numbers_used, *self.system.nodes, self.system.count) + 1
        return self._numbers_used

    async def persist(
        self,
        attempt: Callable[[], Awaitable[None]],
        is_so: Callable[[], Awaitable[bool]],
        timeout_s: float,
    ) -> bool:
        """Do *attempt* until it succeeds or *is_so*; whether that was in time. What fails with an
        ``OutcomeError`` is tried again."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            with contextlib.suppress(OutcomeError):
                await attempt()
                return True
            with contextlib.suppress(OutcomeError):
                if await is_so():
                    return True
            await asyncio.sleep(RETRY_S)
        return False


def numbers(nodes: Iterable[NodeProcess]) -> list[int]:
    """In order."""
    return sorted(node.number for node in nodes)


def shown(nodes: Iterable[NodeProcess]) -> str:
    """Numbers, for people."""
    return ", ".join(map(str, numbers(nodes)))


async def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether *condition* became true in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(POLL_S)
    return True
