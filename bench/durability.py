"""``durability``: SIGKILL nodes under writes, then count what was lost or done twice.

Clients put unique keys and increment shared counters, by a plain command and by reading and
compare-and-set. Some of them are patient (the client's default timeout, within which it retries)
and some are not, so that there are unknown outcomes too. Meanwhile nodes are killed and restarted
after a seeded plan. In the end everything is read back from each node by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import access, report
from bench.cluster import NodeProcess, QuorateCluster
from bench.history import CounterHistory, History, Verdict, judge, merge, value_of
from bench.measure import machine, versions
from bench.processes import BenchError, scratch_directory
from quorate.errors import QuorateError

CLIENTS = 4
PUT_LANES = 4  # of each client
BURST_MAX = 20  # puts that a lane has in flight at once
PAUSE_S = 0.03  # of a lane between two bursts: some 5,000 puts a second in all
COUNTER_PAUSE_S = 0.002
IMPATIENT_TIMEOUT_S = 0.25  # shorter than a failover: leaves outcomes unknown
RUN_UP_S = 1.0  # writes before the first kill and after the last
PREFIX = b"put/"
PLAIN_COUNTERS = (b"count/plain/1", b"count/plain/2")
CAS_COUNTERS = (b"count/cas/1", b"count/cas/2")


# --- the plan of kills ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Strike:
    """One kill. *whom*: "one" (any node), "leader" or "all". *down_s*: until the restart.
    *wait*: whether the next kill waits until all nodes serve again."""

    whom: str
    pause_s: float
    down_s: float
    wait: bool


def plan(kills: int, seed: int) -> list[Strike]:
    """The same strikes for the same seed. Of ten kills four hit any node, four the leader and two
    all nodes at once; after a quarter of them the next one comes while nodes still recover."""
    rng = random.Random(seed)
    strikes: list[Strike] = []
    while len(strikes) < kills:
        deck = ["leader", "one"] * 4 + ["all"] * 2
        rng.shuffle(deck)
        strikes += [
            Strike(whom, rng.uniform(0.2, 1.0), rng.uniform(0.0, 1.0), rng.random() < 0.75)
            for whom in deck
        ]
    return strikes[:kills]


@dataclass
class Tally:
    """What the killing did. *sigkills*: processes; a kill of all nodes counts as one kill."""

    kills: int = 0
    sigkills: int = 0
    leader_kills: int = 0
    all_at_once: int = 0


async def _victims(
    cluster: QuorateCluster, strike: Strike, rng: random.Random
) -> list[NodeProcess]:
    running = [node for node in cluster.nodes.values() if node.running]
    if strike.whom == "all":
        return running
    leader = cluster.nodes.get((await asyncio.to_thread(cluster.leadership))[1])
    if strike.whom == "leader" and leader is not None and leader.running:
        return [leader]
    return [rng.choice(running)]


async def nemesis(
    cluster: QuorateCluster, strikes: list[Strike], seed: int, told: Callable[[str], None]
) -> Tally:
    """Carry out the plan; all nodes run and serve at the end.

    Raises:
        BenchError: a node did not come back.
    """
    rng, tally = random.Random(seed), Tally()
    for strike in strikes:
        await asyncio.sleep(strike.pause_s)
        leader = (await asyncio.to_thread(cluster.leadership))[1]
        victims = await _victims(cluster, strike, rng)
        for node in victims:
            node.send_kill()
        for node in victims:
            node.kill()
        tally.kills += 1
        tally.sigkills += len(victims)
        tally.leader_kills += any(node.number == leader for node in victims)
        tally.all_at_once += len(victims) == len(cluster.nodes)
        await asyncio.sleep(strike.down_s)
        for node in victims:
            node.start()
        if strike.wait:
            await asyncio.to_thread(cluster.wait_serving)
        told(f"{tally.kills} of {len(strikes)}: node {', '.join(str(n.number) for n in victims)}")
    await asyncio.to_thread(cluster.wait_serving)
    return tally


# --- the clients ----------------------------------------------------------------------------------


class Clients:
    """Lanes of writes that note in *history* what they were told, until *stopped* is set."""

    def __init__(self, handles: list[Any], history: History) -> None:
        self.stopped = False
        self._handles = handles
        self._history = history
        for name in PLAIN_COUNTERS + CAS_COUNTERS:
            history.counters[name] = CounterHistory()

    def lanes(self) -> Iterator[Awaitable[None]]:
        """Every second client is impatient."""
        for number, handle in enumerate(self._handles):
            options = {"timeout": IMPATIENT_TIMEOUT_S} if number % 2 else {}
            for lane in range(PUT_LANES):
                yield self._put_lane(handle.kv, b"%s%d/%d/" % (PREFIX, number, lane), options)
            for name in PLAIN_COUNTERS:
                yield self._counter_lane(self._increment, handle.kv, name, options)
            for name in CAS_COUNTERS:
                yield self._counter_lane(self._compare_and_set, handle.kv, name, options)

    async def _put_lane(self, kv: Any, prefix: bytes, options: Mapping[str, float]) -> None:  # noqa: ANN401
        rng, count = random.Random(prefix), 0
        while not self.stopped:
            burst = rng.randrange(1, BURST_MAX + 1)
            keys = [b"%s%08d" % (prefix, count + i) for i in range(burst)]
            count += burst
            await asyncio.gather(*(self._put(kv, key, options) for key in keys))
            await asyncio.sleep(PAUSE_S)

    async def _put(self, kv: Any, key: bytes, options: Mapping[str, float]) -> None:  # noqa: ANN401
        try:
            await kv.put(key, value_of(key), **options)
        except QuorateError as error:
            (self._history.denied if error.definite else self._history.unknown).add(key)
        else:
            self._history.acknowledged.add(key)

    async def _counter_lane(
        self,
        step: Callable[[Any, bytes, Mapping[str, float]], Awaitable[int | None]],
        kv: Any,  # noqa: ANN401
        name: bytes,
        options: Mapping[str, float],
    ) -> None:
        counter = self._history.counters[name]
        while not self.stopped:
            try:
                result = await step(kv, name, options)
            except QuorateError as error:
                if error.definite:
                    counter.denied += 1
                else:
                    counter.unknown += 1
            else:
                if result is not None:
                    counter.results.append(result)
            await asyncio.sleep(COUNTER_PAUSE_S)

    async def _increment(self, kv: Any, name: bytes, options: Mapping[str, float]) -> int:  # noqa: ANN401
        result = await kv.increment(name, **options)
        return int(result.value)

    async def _compare_and_set(
        self,
        kv: Any,  # noqa: ANN401
        name: bytes,
        options: Mapping[str, float],
    ) -> int | None:
        """One more than what was read, or None if another lane was first."""
        try:
            item = await kv.get(name, **options)
        except QuorateError:
            return None  # nothing was written yet
        wanted = 1 if item is None else int(item.value) + 1
        expected = None if item is None else item.value
        answer = await kv.compare_and_set(name, expected=expected, value=b"%d" % wanted, **options)
        return wanted if answer.succeeded else None


# --- the run --------------------------------------------------------------------------------------


def read_back(cluster: QuorateCluster, history: History) -> tuple[Verdict, int]:
    """(verdict, keys found): what each node by itself answers, once with a linearizable read and
    once from its own state, which by then must be the same."""
    verdicts: dict[int, Verdict] = {}
    count = 0
    for number, node in cluster.nodes.items():
        for linearizable in (True, False):
            keys = _all(node, PREFIX, linearizable=linearizable)
            counters = {
                name: int(value)
                for name, value in _all(node, b"count/", linearizable=linearizable).items()
            }
            found = judge(history, keys, counters)
            verdicts[number] = merge(
                {n: v for n, v in ((0, verdicts.get(number)), (1, found)) if v}
            )
            count = max(count, len(keys))
    return merge(verdicts), count


def _all(node: NodeProcess, prefix: bytes, *, linearizable: bool) -> dict[bytes, bytes]:
    items = access.read_all(node.endpoint, prefix, linearizable=linearizable)
    return {item.key: item.value for item in items}


async def _write_under_kills(
    cluster: QuorateCluster, strikes: list[Strike], seed: int, history: History
) -> Tally:
    async with contextlib.AsyncExitStack() as stack:
        handles = []
        for _ in range(CLIENTS):
            handles.append(await access.connect(cluster.endpoints))
            stack.push_async_callback(access.close, handles[-1])
        clients = Clients(handles, history)

        def told(text: str) -> None:
            print(f"kill {text}; {history.acknowledged_count:,} acknowledged", flush=True)

        writing = asyncio.gather(*clients.lanes())
        striking = asyncio.create_task(_strike(cluster, strikes, seed, told))
        try:
            await asyncio.wait((writing, striking), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():  # only by failing
                await writing
            return await striking
        finally:
            clients.stopped = True
            striking.cancel()
            await asyncio.gather(writing, striking, return_exceptions=True)


async def _strike(
    cluster: QuorateCluster, strikes: list[Strike], seed: int, told: Callable[[str], None]
) -> Tally:
    await asyncio.sleep(RUN_UP_S)
    tally = await nemesis(cluster, strikes, seed, told)
    await asyncio.sleep(RUN_UP_S)
    return tally


def durability(*, kills: int = 30, seed: int = 1, parent: Path | None = None) -> dict[str, object]:
    """Kill, write, read back, print; returns the report. ``passed`` False: a promise was broken."""
    history, strikes = History(), plan(kills, seed)
    began = time.monotonic()
    with scratch_directory(parent) as directory, QuorateCluster(directory) as cluster:
        facts = {"machine": machine(directory), "versions": versions("quorate", "msgspec", "lmdb")}
        print(report.facts_text({**facts, "seed": seed}), flush=True)
        tally = access.run(_write_under_kills(cluster, strikes, seed, history))
        try:
            verdict, keys = read_back(cluster, history)
        except (OSError, QuorateError) as error:
            raise BenchError(f"the data could not be read back: {error}") from error
    content: dict[str, object] = {
        "kills": tally.kills,
        "acknowledged": history.acknowledged_count,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "unknown": history.unknown_count,
        "invented": verdict.invented,
        "denied": history.denied_count,
        "passed": verdict.passed,
        "sigkills": tally.sigkills,
        "leader_kills": tally.leader_kills,
        "all_at_once": tally.all_at_once,
        "keys_read_back": keys,
        "increments_acknowledged": history.acknowledged_count - len(history.acknowledged),
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
    }
    print("", report.table(("figure", "value"), list(content.items())), sep="\n")
    for problem in verdict.problems:
        print(problem)
    return {**content, "problems": verdict.problems, **facts}
