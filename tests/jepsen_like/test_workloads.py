"""Each workload against a store in memory: a right one is valid, a wrong one is found out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import pytest

from jepsen_like.errors import UsageError
from jepsen_like.history import Event, EventType, operations
from jepsen_like.simulation.plan import CONVERGING, COORDINATION, QUEUEING
from jepsen_like.systems.base import Client, OutcomeError, Versioned
from jepsen_like.workloads import WORKLOADS
from jepsen_like.workloads.base import Invocation, Workload
from jepsen_like.workloads.keys import RotatingKeys
from jepsen_like.workloads.registry import make

#: Those that need no more than a store.
NO_STORE = (*COORDINATION, *CONVERGING, *QUEUEING)
PLAIN = tuple(name for name in WORKLOADS if name not in NO_STORE)


class Store:
    """*bug*: "" or what is wrong with it; it strikes with probability *chance*."""

    def __init__(self, random: Random, bug: str = "", chance: float = 0.1) -> None:
        self.random = random
        self.bug = bug
        self.chance = chance
        self.values: dict[str, Versioned] = {}
        self.old: dict[str, Versioned] = {}
        self.version = 0

    def strikes(self, bug: str) -> bool:
        return self.bug == bug and self.random.random() < self.chance

    def read(self, key: str) -> Versioned:
        nothing = Versioned(None, 0)
        if self.strikes("stale reads"):
            return self.old.get(key, nothing)
        return self.values.get(key, nothing)

    def write(self, key: str, value: bytes) -> None:
        if self.strikes("lost writes"):
            return
        self.version += 1
        if key in self.values and self.random.random() < 0.3:
            self.old[key] = self.values[key]
        self.values[key] = Versioned(value, self.version)


class StoreClient:
    """A client of *store*, whose answers take some turns of the loop, and get lost at times."""

    def __init__(self, store: Store, unknown: float) -> None:
        self._store = store
        self._unknown = unknown

    async def _turns(self, most: int) -> None:
        for _turn in range(self._store.random.randint(1, most)):
            await asyncio.sleep(0)

    async def _before(self) -> None:
        await self._turns(4)
        if self._store.random.random() < self._unknown:
            raise OutcomeError("refused", definite=True)

    async def _after(self, *, writes: bool = True) -> None:
        await self._turns(4)
        if self._store.random.random() < self._unknown:
            raise OutcomeError("no answer", definite=not writes)

    async def get(self, key: str) -> Versioned:
        await self._before()
        found = self._store.read(key)
        await self._after(writes=False)
        return found

    async def put(self, key: str, value: bytes) -> None:
        await self._before()
        self._store.write(key, value)
        await self._after()

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        await self._before()
        same = self._store.read(key).value == expected or self._store.strikes("blind exchanges")
        if same:
            self._store.write(key, value)
        await self._after()
        return same

    async def add(self, key: str, number: int) -> int:
        await self._before()
        times = 2 if self._store.strikes("applied twice") else 1
        total = int(self._store.read(key).value or b"0")
        for _time in range(times):
            total += number
            self._store.write(key, str(total).encode())
        await self._after()
        return total

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        await self._before()
        blind = self._store.strikes("blind exchanges")
        if not blind and any(self._store.read(k).version != v for k, v in expected.items()):
            await self._after()
            return False, {}
        torn = self._store.strikes("torn transactions")
        for key, value in list(writes.items())[: 1 if torn else None]:
            self._store.write(key, value)
        found = {}
        for key in reads:
            found[key] = self._store.read(key)
            if self._store.strikes("torn reads"):
                await self._turns(20)
        await self._after()
        return True, found

    async def close(self) -> None:
        """Nothing."""


async def drive(
    workload: Workload, store: Store, operations_count: int = 600, unknown: float = 0.02
) -> list[Event]:
    """Five clients at once, then the final reads."""
    found: list[Event] = []
    processes = iter(range(10_000))
    random = Random(store.random.random())
    client: Client = StoreClient(store, unknown)
    sure: Client = StoreClient(store, 0.0)
    bug, store.bug = store.bug, ""
    await workload.setup(sure)
    await workload.setup(sure)
    store.bug = bug

    def record(process: int, kind: EventType, asked: Invocation, value: object) -> None:
        found.append(
            Event(
                process=process,
                type=kind,
                f=asked.f,
                key=asked.key,
                value=value,
                time_ns=len(found),
            )
        )

    async def one(process: int, client: Client, asked: Invocation) -> int:
        record(process, "invoke", asked, asked.value)
        try:
            done, value = await workload.do(client, asked)
        except OutcomeError as error:
            record(process, "fail" if error.definite else "info", asked, asked.value)
            return process if error.definite else next(processes)
        record(process, "ok" if done else "fail", asked, value)
        return process

    async def work() -> None:
        process = next(processes)
        for _operation in range(operations_count // 5):
            process = await one(process, client, workload.next(random, process))

    await asyncio.gather(*(work() for _client in range(5)))
    store.bug = ""
    process = next(processes)
    for asked in workload.last():
        process = await one(process, sure, asked)
    return found


@pytest.mark.parametrize("name", PLAIN)
async def test_a_right_store_is_found_valid(name: str) -> None:
    for seed in range(4):
        workload = make(name)
        history = await drive(workload, Store(Random(seed)))
        verdict = workload.check(history)
        assert verdict.valid is True, verdict.problems
        outcomes = [each.outcome for each in operations(history)]
        assert outcomes.count("ok") > 300
        assert "info" in outcomes


BUGS = [
    *[("register", bug) for bug in ("stale reads", "lost writes")],
    *[("cas-register", bug) for bug in ("stale reads", "lost writes", "blind exchanges")],
    *[("set", bug) for bug in ("stale reads", "lost writes", "blind exchanges")],
    *[("counter", bug) for bug in ("stale reads", "lost writes", "applied twice")],
    *[("bank", bug) for bug in ("stale reads", "lost writes", "blind exchanges")],
    *[("bank", bug) for bug in ("torn transactions", "torn reads")],
    *[("append", bug) for bug in ("stale reads", "lost writes", "blind exchanges")],
    *[("append", bug) for bug in ("torn transactions", "torn reads")],
]


@pytest.mark.parametrize(("name", "bug"), BUGS)
async def test_a_wrong_store_is_found_out(name: str, bug: str) -> None:
    caught = 0
    for seed in range(3):
        workload = make(name)
        chance = 0.9 if bug == "torn reads" else 0.1  # each one is short
        verdict = workload.check(await drive(workload, Store(Random(seed), bug, chance)))
        caught += verdict.valid is False
        assert bool(verdict.problems) == (verdict.valid is False)
        if caught == 2:
            return
    pytest.fail("not caught twice in three runs")


@pytest.mark.parametrize("name", PLAIN)
async def test_a_workload_is_its_seed(name: str) -> None:
    first, second = [await drive(make(name), Store(Random(5)), 100) for _run in range(2)]
    assert first == second


async def test_what_no_client_wrote_is_said() -> None:
    store = Store(Random(1))
    store.write("register/0", b"garbage")
    with pytest.raises(OutcomeError, match="no client wrote"):
        await make("register").do(StoreClient(store, 0.0), Invocation("read", "register/0"))


async def test_bank_setup_never_fills_accounts_again() -> None:
    store = Store(Random(1))
    bank = make("bank")
    client = StoreClient(store, 0.0)
    await bank.setup(client)
    store.write("bank/0", b"3")
    await bank.setup(client)
    assert store.values["bank/0"].value == b"3"


def test_keys_rotate() -> None:
    keys = RotatingKeys("k", 2, 10)
    random = Random(1)
    drawn = [keys.draw(random) for _use in range(200)]
    assert max(drawn.count(key) for key in keys.used()) == 10
    assert 20 <= len(keys.used()) <= 22
    with pytest.raises(ValueError, match="at least 1"):
        RotatingKeys("k", 0, 1)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="cas-register"):
        make("nothing")
