"""What the workloads of locks, semaphores and elections have in common: each process acquires,
uses what it holds a few times, and gives it back; now and then somebody looks at the line."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from quorate.client.database import Database
from quorate.client.locks import Lock
from quorate.errors import (
    AlreadyHeldError,
    FencedError,
    LockLostError,
    LockTimeoutError,
    QuorateError,
)

#: Seconds that a lease lives. The shortest is the shortest there is.
TTLS_S: Final = (1.0, 1.0, 1.5, 3.0)
#: Seconds that somebody stands in line at most.
WAITS_S: Final = (0.05, 0.5, 1.0, 2.0)
USES_MAX: Final = 8
#: How often a holder does nothing with what it has, but looks now and then whether it has it still.
IDLE_CHANCE: Final = 0.3
IDLE_S: Final = (0.0, 0.1, 0.3)
#: Seconds between the two steps of a use: a holder that is stopped there comes back late.
LINGERS_S: Final = (0.0, 0.0, 0.1, 0.4)

#: What a client holds, and which side of it, by process and name.
_Held = dict[tuple[int, str], tuple[Lock, str]]


class HoldingWorkload:
    """*names* to be held; *looks*: the share of operations that only look. Not to be used itself:
    a subclass makes handles (``handle``), says what it is to use what is held (``use``), and how
    the history is judged (``check``)."""

    name = ""

    def __init__(self, *, names: int = 2, looks: float = 0.15) -> None:
        self._names = [f"{self.name}/{number}" for number in range(names)]
        self._looks = looks
        #: What each process is at: the name that it holds or tried to, and uses that are left.
        self._at: dict[int, tuple[str, int]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def setup(self, client: Client) -> None:
        """Nothing: a name comes to be by its first use."""
        quorate_client(client)

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        if random.random() < self._looks:
            return Invocation(random.choice(self.looks()), random.choice(self._names))
        name, uses = self._at.get(process, ("", 0))
        if not name:
            name = random.choice(self._names)
            self._at[process] = (name, random.randrange(USES_MAX))
            if random.random() < IDLE_CHANCE:
                self._at[process] = (name, -USES_MAX)
            asked = {"process": process, "side": random.choice(self.sides(name))}
            times = {"ttl": random.choice(TTLS_S), "wait": random.choice(WAITS_S)}
            return Invocation("acquire", name, {**asked, **times})
        if uses < 0:
            self._at[process] = (name, uses + 1)
            asked = {"process": process, "linger": random.choice(IDLE_S)}
            return Invocation("believe", name, asked)
        if uses:
            self._at[process] = (name, uses - 1)
            asked = {"process": process, "linger": random.choice(LINGERS_S)}
            return Invocation("use", name, asked)
        del self._at[process]
        return Invocation("release", name, {"process": process})

    def last(self) -> Sequence[Invocation]:
        """Every name can be had again, though its holders died, and its register is read."""
        asked = {"process": 0, "ttl": 3.0, "wait": 2.0}
        return [
            Invocation(f, name, {**asked, "side": self.sides(name)[-1]} if f == "acquire" else None)
            for name in self._names
            for f in ("acquire", *self.looks())
        ]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        f, name = invocation.f, invocation.key
        if f not in {"acquire", "use", "believe", "release"}:
            return True, await outcome_of(self.look(ours.database, f, name), reads=True)
        held: _Held = ours.kept.setdefault(self.name, {})
        place = (invocation.value["process"], name)
        if f == "acquire":
            return await self._acquire(ours, held, place, invocation.value)
        handle, _side = held.get(place, (None, ""))
        if handle is None:
            self._at.pop(place[0], None)
            return False, "not acquired"
        if f == "believe":
            await asyncio.sleep(invocation.value["linger"])
            return True, {"token": handle.token, "held": handle.held}
        if f == "use":
            return await self._use(ours.database, held, place, invocation.value["linger"])
        del held[place]
        believed, token = handle.held, handle.token
        try:
            await handle.release()
        except LockLostError:
            return False, {"token": token, "held": believed, "lost": True}
        return True, {"token": token, "held": believed}

    async def _acquire(
        self,
        ours: QuorateClient,
        held: _Held,
        place: tuple[int, str],
        asked: dict[str, Any],
    ) -> tuple[bool, Any]:
        process, name = place
        handle = self.handle(ours.database, name, asked["ttl"], asked["side"])
        try:
            token = await handle.acquire(asked["wait"])
        except (LockTimeoutError, AlreadyHeldError) as error:
            self._at.pop(process, None)
            return False, error.code
        except QuorateError as error:  # whatever it was, it leaves nothing behind
            self._at.pop(process, None)
            raise OutcomeError(f"{error.code}: {error}", definite=True) from error
        held[place] = (handle, asked["side"])
        return True, {"token": token, "permits": self.permits(asked["side"])}

    async def _use(
        self,
        database: Database,
        held: _Held,
        place: tuple[int, str],
        linger_s: float,
    ) -> tuple[bool, Any]:
        (process, name), (handle, side) = place, held[place]
        token, believed = handle.token, handle.held
        if not believed:
            self._let_go(held, place, handle)
            return False, "lost"
        ended = True
        try:
            used = await self.use(database, name, handle, linger_s, side)
            ended = False
        except FencedError:
            return False, {"token": token, "held": True, "fenced": True, "after": handle.held}
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
        finally:
            if ended:  # what is unknown may still come, so nothing more is done under this token
                self._at.pop(process, None)
                self._let_go(held, place, handle)
        return True, {"token": token, "held": True, "after": handle.held, **used}

    def _let_go(self, held: _Held, place: tuple[int, str], handle: Lock) -> None:
        """Give it back, behind the operation."""
        held.pop(place, None)
        self._at.pop(place[0], None)

        async def release() -> None:
            try:
                await handle.release()
            except QuorateError:
                return

        task = asyncio.get_running_loop().create_task(release())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def look(self, database: Database, f: str, name: str) -> Any:  # noqa: ANN401  by kind
        """One of ``looks``. Raises ``QuorateError``."""
        if f == "inspect":
            return await inspect(database, name)
        return await self.read(database, name)

    # --- for subclasses ---------------------------------------------------------------------------

    def looks(self) -> tuple[str, ...]:
        """Operations that change nothing."""
        return ("inspect", "read")

    def sides(self, name: str) -> tuple[str, ...]:
        """Of *name*, one of which a handle is for: of a read-write lock it has two. The last one
        wants the most."""
        del name
        return ("",)

    def permits(self, side: str) -> int:
        """That a handle of *side* takes."""
        del side
        return 1

    def handle(self, database: Database, name: str, ttl_s: float, side: str) -> Lock:
        """A new one."""
        raise NotImplementedError

    async def use(
        self, database: Database, name: str, handle: Lock, linger_s: float, side: str
    ) -> dict[str, Any]:
        """Read the register, add one to it, and write that under the handle's fence: two steps,
        that only exclusion makes one. What it came to. Raises ``QuorateError``."""
        del side
        count, _token = await self.read(database, name)
        await asyncio.sleep(linger_s)
        text = b"%d %d" % (count + 1, handle.token)
        await database.kv.put(f"{name}/register", text, fence=handle.fence)
        return {"from": count, "to": count + 1}

    async def read(self, database: Database, name: str) -> tuple[int, int]:
        """The register, and the token that it was last written under. Raises ``QuorateError``."""
        found = await database.kv.get(f"{name}/register")
        if found is None:
            return 0, 0
        count, token = found.value.split()
        return int(count), int(token)

    def check(self, history: Sequence[Event]) -> Verdict:
        """See ``workloads.base``."""
        raise NotImplementedError


async def inspect(database: Database, name: str) -> dict[str, Any]:
    """How a name stands, as ``checkers.grants`` wants it. Raises ``QuorateError``."""
    info = await database.lock_status(name)
    return {
        "total": info.total,
        "free": info.free,
        "holders": [[each.token, each.permits, each.lease, each.owner] for each in info.holders],
        "waiters": [[each.ticket, each.permits, each.lease, each.owner] for each in info.waiters],
    }
