"""Random misfortune: no write is lost or done twice, no answer lies, and nothing hangs."""

# scripts see frames of all kinds

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorate.base.kv_commands import Get
from quorate.client.database import Database, connect
from quorate.errors import QuorateError, SessionExpiredError
from tests.client.fake_cluster import FINE, FakeCluster, FakeNode, Fault, fake_cluster

CALL_TIMEOUT_S = 0.4
RUN_TIMEOUT_S = 15.0  # far beyond what deadlines allow

#: A node that says these has not done it; one that does it all the same would be the liar.
DEFINITE_REFUSALS = ("not-leader", "unavailable", "overloaded", "read-only")

faults = st.builds(
    Fault,
    apply=st.booleans(),
    answer=st.sampled_from(
        (
            "once",
            "once",
            "twice",
            "never",
            "garbage",
            *DEFINITE_REFUSALS,
            "outcome-unknown",
            "closed",
        )
    ),
    hang_up=st.sampled_from([False, False, True]),
    delay_s=st.sampled_from([0.0, 0.0, 0.0, 0.005]),
).filter(lambda fault: fault.apply is False or fault.answer not in DEFINITE_REFUSALS)


class Event(NamedTuple):
    """*what* happens when request number *at* has come."""

    at: int
    what: str


events = st.builds(
    Event,
    st.integers(1, 25),
    st.sampled_from(["drop", "lead 0", "lead 1", "lead 2", "lead 3", "restart 1", "restart 2"])
    | st.just("expire"),
)


class Run:
    """One run: *faults* hit the requests in order, *events* happen between them."""

    def __init__(self, faults: list[Fault], events: list[Event]) -> None:
        self.faults = faults
        self.events = sorted(events)
        self.count = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.outcomes: dict[str, object] = {}

    def script(self, node: FakeNode, _frame: Any) -> Fault:
        self.count += 1
        while self.events and self.events[0].at <= self.count:
            self.happen(node.cluster, self.events.pop(0).what)
        return self.faults.pop(0) if self.faults else FINE

    def happen(self, cluster: FakeCluster, what: str) -> None:
        match what.split():
            case ["drop"]:
                for node in cluster.nodes.values():
                    node.drop()
            case ["lead", number]:
                cluster.lead(int(number))
            case ["expire"]:
                cluster.pass_time(120_000)
            case ["restart", number]:
                node = cluster.nodes[int(number)]
                self.tasks.append(asyncio.get_running_loop().create_task(restart(node)))

    async def write(self, db: Database, key: str) -> None:
        try:
            self.outcomes[key] = (await db.kv.increment(key, timeout=CALL_TIMEOUT_S)).value
        except QuorateError as error:
            self.outcomes[key] = error

    async def read(self, db: Database, key: str) -> None:
        try:
            item = await db.kv.get(key, timeout=CALL_TIMEOUT_S)
        except QuorateError:
            return
        assert item is None or item.value == b"1"

    async def lane(self, db: Database, name: str, calls: int) -> None:
        for at in range(calls):
            await asyncio.gather(
                self.write(db, f"{name}.{at}"), self.read(db, f"{name}.{at}"), db_status(db)
            )

    async def go(self) -> None:
        async with fake_cluster(3) as cluster:
            cluster.script = self.script
            db = connect(cluster.endpoints, stall_timeout=0.1, connect_timeout=0.2)
            try:
                await asyncio.gather(*(self.lane(db, f"lane{at}", 3) for at in range(3)))
                self.faults.clear()
                self.events.clear()
                await asyncio.gather(*self.tasks)
                cluster.lead(3)
                await finally_serves(db)
            finally:
                await db.close()
            for key, outcome in self.outcomes.items():
                self.judge(cluster, key, outcome)

    def judge(self, cluster: FakeCluster, key: str, outcome: object) -> None:
        item = cluster.replica.ask(Get(key.encode())).item
        times = 0 if item is None else int(item.value)
        if not isinstance(outcome, QuorateError):
            assert (times, outcome) == (1, 1), key
        elif outcome.definite:
            assert times == 0, (key, outcome)
        else:
            assert times in {0, 1}, (key, outcome)


async def db_status(db: Database) -> None:
    with contextlib.suppress(QuorateError):
        assert (await db.status(timeout=CALL_TIMEOUT_S))["node"] in {1, 2, 3}


async def finally_serves(db: Database) -> None:
    """Once all is well again, one write works; the session may have ended meanwhile."""
    while True:
        try:
            await db.kv.put("end", "well", timeout=5)
            return
        except SessionExpiredError:
            continue


async def restart(node: FakeNode) -> None:
    async with node.restarting:
        await node.stop()
        await asyncio.sleep(0.01)
        await node.start()


def attempt(given_faults: list[Fault], given_events: list[Event]) -> None:
    run = Run(list(given_faults), list(given_events))
    asyncio.run(asyncio.wait_for(run.go(), RUN_TIMEOUT_S))


SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(SLOW, max_examples=20)
@given(st.lists(faults, max_size=12), st.lists(events, max_size=3))
def test_nothing_is_lost_or_done_twice(
    given_faults: list[Fault], given_events: list[Event]
) -> None:
    attempt(given_faults, given_events)


@pytest.mark.deep
@settings(SLOW, max_examples=3000)
@given(st.lists(faults, max_size=40), st.lists(events, max_size=8))
def test_nothing_is_lost_or_done_twice_in_many_runs(
    given_faults: list[Fault], given_events: list[Event]
) -> None:
    attempt(given_faults, given_events)
