"""Clients of the simulated members: the kit's own ``Client``, and the load that a run puts on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.linearizable import Linearizable
from jepsen_like.checkers.models import RegisterModel
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError, Versioned
from jepsen_like.systems.pysyncobj.dictionary import reason
from jepsen_like.systems.pysyncobj.member import Member
from jepsen_like.systems.pysyncobj.schedule import Answer, Schedule
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation, Workload

CALL_TIMEOUT_S: Final = 5.0
KEYS: Final = 5


class MemberClient:
    """Calls into one member, from within its process. *tags*: gives each command its own number."""

    def __init__(
        self,
        schedule: Schedule,
        member: Member,
        tags: Callable[[], int],
        *,
        local_reads: bool,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self.member = member
        self._schedule, self._tags = schedule, tags
        self._local_reads, self._timeout_s = local_reads, timeout_s

    async def get(self, key: str) -> Versioned:
        """As the plan says: of the member's own copy, or through the log."""
        if self._local_reads:
            if not self.member.running or self.member.paused:
                raise OutcomeError("the process does not run", definite=True)
            return Versioned(*self.member.replica.do_get(key))
        return Versioned(*await self._call("get", key))

    async def put(self, key: str, value: bytes) -> None:
        await self._call("put", key, value)

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        return bool(await self._call("compare_and_set", key, expected, value))

    async def add(self, key: str, number: int) -> int:
        return int(await self._call("add", key, number))

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        done, found = await self._call("transact", dict(expected), list(reads), dict(writes))
        return done, {key: Versioned(*value) for key, value in found.items()}

    async def close(self) -> None:
        """There is nothing to close."""

    async def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        answer = Answer()

        def called_back(result: object, error: int) -> None:
            text, definite = reason(error)
            answer.give(result, OutcomeError(text, definite=definite) if error else None)

        if not self.member.running:
            raise OutcomeError("the process does not run", definite=True)
        late = OutcomeError(f"no answer within {self._timeout_s:g} s", definite=False)
        self._schedule.after(self._timeout_s, lambda: answer.give(None, late))
        self.member.submit(method, (self._tags(), *arguments), called_back)
        return await answer


class Registers:
    """The load: reads and writes of a few keys, each value written once."""

    name = "register"

    def __init__(self) -> None:
        self._written = 0

    async def setup(self, client: Client) -> None:
        """Nothing to prepare."""

    def next(self, random: Random, process: int) -> Invocation:
        del process
        key = f"k{random.randrange(KEYS)}"
        if random.random() < 0.4:
            return Invocation("read", key)
        self._written += 1
        return Invocation("write", key, self._written)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "write":
            await client.put(invocation.key, b"%d" % invocation.value)
            return True, invocation.value
        value = (await client.get(invocation.key)).value
        return True, None if value is None else int(value)

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read", f"k{number}") for number in range(KEYS)]

    def check(self, history: Sequence[Event]) -> Verdict:
        return Linearizable(RegisterModel()).check(history)


class Recorder:
    """Runs the processes of a workload and writes the history down."""

    def __init__(self, schedule: Schedule, workload: Workload, random: Random) -> None:
        self.history: list[Event] = []
        self.counts = {"ok": 0, "fail": 0, "info": 0}
        self.over = False
        self._schedule, self._workload, self._random = schedule, workload, random
        self._processes = 0

    def process(self) -> int:
        """A number that no other process of the history has."""
        self._processes += 1
        return self._processes

    async def run(self, pick: Callable[[], MemberClient], think_s: float) -> None:
        """One client until ``over``; after an error it goes to another member."""
        process, client = self.process(), pick()
        while True:
            await self._schedule.sleep(self._random.expovariate(1.0 / think_s))
            if self.over:
                return
            outcome = await self.do(client, self._workload.next(self._random, process), process)
            if outcome != "ok":
                client = pick()
            if outcome == "info":
                process = self.process()

    async def do(self, client: MemberClient, invocation: Invocation, process: int) -> str:
        """One operation, into the history; its outcome."""
        self._record(client, invocation, process, "invoke", invocation.value)
        outcome, value, error = "ok", invocation.value, None
        try:
            done, value = await self._workload.do(client, invocation)
            outcome = "ok" if done else "fail"
        except OutcomeError as problem:
            outcome, error = ("fail" if problem.definite else "info"), str(problem)
        self._record(client, invocation, process, outcome, value, error)
        self.counts[outcome] += 1
        return outcome

    def _record(
        self,
        client: MemberClient,
        invocation: Invocation,
        process: int,
        kind: Any,  # noqa: ANN401  a type of event
        value: object,
        error: str | None = None,
    ) -> None:
        self.history.append(
            Event(
                process=process,
                type=kind,
                f=invocation.f,
                key=invocation.key,
                value=value,
                time_ns=int(self._schedule.now_s * 1e9),
                node=int(client.member.name[1:]),
                error=error,
            )
        )
