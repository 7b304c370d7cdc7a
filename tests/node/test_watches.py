"""Watches of keys over real nodes that stop, crash and come back: etcd's six guarantees, each by
name, and what becomes of watchers that are slow, late, or alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from quorate import Database, ops, sync
from quorate.base.kv_watch import KeyEvent, KeyEvents
from quorate.client import kv_watch
from quorate.client.kv_watch import Watch
from quorate.errors import (
    ClosedError,
    CompactedError,
    InvalidArgumentError,
    QuorateError,
    UnavailableError,
)
from quorate.replication import kv_history
from quorate.server import clients as clients_module
from tests.node.conftest import Cluster, until

QUICK = {"election_timeout_ms": 300, "heartbeat_ms": 30}


class Listener:
    """Takes what a watch tells, in a task."""

    def __init__(self, watch: Watch, pause_s: float = 0.0) -> None:
        self.batches: list[KeyEvents] = []
        self.error: QuorateError | None = None
        self._watch = watch
        self._pause_s = pause_s
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            async for batch in self._watch.batches():
                self.batches.append(batch)
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
        except QuorateError as error:
            self.error = error

    @property
    def revisions(self) -> list[int]:
        return [batch.revision for batch in self.batches]

    async def come_to(self, revision: int) -> None:
        await until(lambda: self.error or self._watch.revision >= revision)
        assert self.error is None, self.error


@contextlib.asynccontextmanager
async def listening(db: Database, *, pause_s: float = 0.0, **asked: Any) -> AsyncIterator[Listener]:
    async with db.kv.watch(**asked) as watch:
        yield Listener(watch, pause_s)


async def write(db: Database, count: int, seed: int) -> dict[int, dict[bytes, bytes | None]]:
    """Puts, deletes and transactions, one after the other. What each revision did."""
    chance = random.Random(seed)
    done: dict[int, dict[bytes, bytes | None]] = {}
    for at in range(count):
        key = b"k/%d" % chance.randrange(5)
        match chance.randrange(4):
            case 0:
                result = await db.kv.delete(key)
                if result.count:
                    done[result.revision] = {key: None}
            case 1:
                value, both = b"%d" % at, (b"k/5", b"k/6")
                told = await db.kv.txn(then=[ops.put(each, value) for each in both])
                done[told.revision] = dict.fromkeys(both, value)
            case _:
                put = await db.kv.put(key, b"%d" % at)
                done[put.revision] = {key: b"%d" % at}
    return done


def told_by(batches: list[KeyEvents]) -> dict[int, dict[bytes, bytes | None]]:
    return {
        batch.revision: {
            each.key: each.value if each.type == "put" else None for each in batch.events
        }
        for batch in batches
    }


async def disturbed(cluster: Cluster, db: Database, rounds: int) -> dict[int, Any]:
    """Writes while one leader after the other crashes and comes back."""
    done: dict[int, Any] = {}
    for seed in range(rounds):
        writing = asyncio.create_task(write(db, 40, seed))
        await asyncio.sleep(0.02)
        leader = await cluster.leader()
        await cluster.crash(leader.config.node_id)
        done.update(await writing)
        await cluster.start(leader.config.node_id)
    return done


@pytest.fixture
async def three(cluster: Cluster) -> Cluster:
    await cluster.found(3, **QUICK)
    return cluster


# --- the six -------------------------------------------------------------------------------------


async def test_ordered_events_come_by_revision_across_failovers(three: Cluster) -> None:
    db, other = three.connect(timeout=20.0), three.connect(timeout=20.0)
    async with listening(other, prefix="k/") as listener:
        done = await disturbed(three, db, 1)
        await listener.come_to(max(done))
    assert listener.revisions == sorted(listener.revisions)
    assert [event.mod_revision for batch in listener.batches for event in batch.events] == [
        batch.revision for batch in listener.batches for _ in batch.events
    ]


async def test_unique_no_event_comes_twice_across_failovers(three: Cluster) -> None:
    db, other = three.connect(timeout=20.0), three.connect(timeout=20.0)
    async with listening(other, prefix="k/") as listener:
        done = await disturbed(three, db, 1)
        await listener.come_to(max(done))
    assert len(listener.revisions) == len(set(listener.revisions))


async def test_reliable_no_event_is_missing_across_failovers(three: Cluster) -> None:
    db, other = three.connect(timeout=20.0), three.connect(timeout=20.0)
    async with listening(other, prefix="k/") as listener:
        done = await disturbed(three, db, 1)
        await listener.come_to(max(done))
    told = told_by(listener.batches)
    assert {number: told.get(number) for number in done} == done
    assert listener.revisions == list(range(1, max(done) + 1))


async def test_atomic_a_transaction_comes_whole(three: Cluster) -> None:
    db = three.connect()
    async with listening(db, prefix="t/") as listener, db.kv.watch(prefix="t/") as singly:
        for at in range(20):
            await db.kv.txn(then=[ops.put(f"t/{key}", str(at)) for key in range(50)])
        await listener.come_to(20)
        seen = []
        for _ in range(1000):
            seen.append(await anext(singly))
            whole = len(seen) % 50 == 0
            assert singly.revision == len(seen) // 50, "a bookmark is behind whole revisions only"
            assert whole == (singly.revision == seen[-1].mod_revision)
    assert [len(batch.events) for batch in listener.batches] == [50] * 20
    assert all(len({event.value for event in batch.events}) == 1 for batch in listener.batches)


async def test_resumable_from_any_revision_at_any_node(three: Cluster) -> None:
    db = three.connect(timeout=20.0)
    done = await disturbed(three, db, 1)
    last = max(done)
    # A node that was restored from its checkpoint, and replayed the rest, tells the same.
    follower = (await three.followers())[0].config.node_id
    await three.stop(follower)
    await three.start(follower)
    for number in three.nodes:
        one = three.connect(number, follow_leader=False)
        for start in (1, 2, last // 2, last):
            async with listening(one, prefix="k/", start_revision=start) as listener:
                await listener.come_to(last)
            assert listener.revisions == list(range(start, last + 1)), (number, start)
            told = told_by(listener.batches)
            assert all(told[at] == done[at] for at in done if at >= start)


async def test_bookmarkable_a_watch_without_events_comes_forward(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = three.connect()
    async with db.kv.watch("quiet") as watch:
        assert watch.revision == 0
        for at in range(10):
            await db.kv.put("loud", str(at))
        assert await watch.progress() == 10
        assert watch.revision == 10
        await db.kv.put("quiet", "1")
        # What waits to be taken holds the bookmark back.
        await db.kv.put("loud", "10")
        assert await watch.progress() == 12
        assert watch.revision < 11
        assert (await anext(watch)).mod_revision == 11
        assert watch.revision == 12
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)
        await db.kv.put("quiet", "2")
        await until(lambda: watch._buffer)
        assert watch.revision == 12, "it never goes back"
    # By itself, too, after a while.
    monkeypatch.setattr("quorate.replication.feeds.WATCH_PROGRESS_INTERVAL_S", 0.05)
    async with db.kv.watch("quiet") as watch:
        await db.kv.put("loud", "11")
        await until(lambda: watch.revision == 14)


# --- where it begins -----------------------------------------------------------------------------


async def test_a_watch_hears_all_that_is_written_after_it_began_and_nothing_before(
    three: Cluster,
) -> None:
    db = three.connect()
    lagging = three.connect((await three.followers())[0].config.node_id, follow_leader=False)
    for at in range(20):
        before = await db.kv.put("k", f"before {at}")
        async with lagging.kv.watch("k") as watch:
            after = await db.kv.put("k", f"after {at}")
            event = await asyncio.wait_for(anext(watch), 5)
        assert (event.mod_revision, event.value) == (after.revision, f"after {at}".encode())
        assert after.revision == before.revision + 1


async def test_a_watch_may_begin_in_the_future(three: Cluster) -> None:
    db = three.connect()
    async with db.kv.watch("k", start_revision=4) as watch:
        assert watch.revision == 3
        for at in range(5):
            await db.kv.put("k", str(at))
        assert [(await anext(watch)).mod_revision for _ in range(2)] == [4, 5]


async def test_filters_ranges_and_what_was_before(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.replication.feeds.WATCH_PROGRESS_INTERVAL_S", 0.05)
    db = three.connect()
    everything: dict[str, Any] = {"prefix": ""}
    asked: list[tuple[dict[str, Any], Callable[[KeyEvent], bool]]] = [
        (everything, lambda _: True),
        ({"start": "b", "end": "d"}, lambda event: b"b" <= event.key < b"d"),
        ({"start": "b"}, lambda event: event.key >= b"b"),
        ({"key": "a"}, lambda event: event.key == b"a"),
        ({"prefix": "c", "previous": True}, lambda event: event.key[:1] == b"c"),
        ({"prefix": "", "puts": False}, lambda event: event.type == "delete"),
        ({"prefix": "", "deletes": False}, lambda event: event.type == "put"),
    ]
    async with contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(db, **each)) for each, _ in asked]
        for key in ("a", "b", "c", "cc", "d", "c", "b"):
            await db.kv.put(key, key)
        await db.kv.delete_range(prefix="c")
        for listener in listeners:
            await listener.come_to(8)
    whole = [event for batch in listeners[0].batches for event in batch.events]
    assert len(whole) == 9
    for listener, (request, wants) in zip(listeners, asked, strict=True):
        found = [event for batch in listener.batches for event in batch.events]
        if "previous" in request:
            assert [event.previous is not None for event in found] == [
                False,
                False,
                True,
                True,
                True,
            ]
        else:
            assert found == [event for event in whole if wants(event)]


# --- who is slow, and who is late ----------------------------------------------------------------


async def test_a_slow_watcher_pauses_and_goes_on_from_the_history(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_watch, "BUFFER_EVENTS_MAX", 50)
    db = three.connect()
    async with db.kv.watch(prefix="k/") as watch:
        for at in range(20):
            await asyncio.gather(*(db.kv.put(f"k/{at}/{each}", "v" * 100) for each in range(100)))
        await until(lambda: watch._subscription is not None and watch._subscription.paused)
        assert watch._buffered_events < 500
        with pytest.raises(UnavailableError, match="no further"):
            await watch.progress(timeout=0.1)
        found = [(await anext(watch)).mod_revision for _ in range(2000)]
    assert found == list(range(1, 2001))


async def test_a_watcher_whose_connection_is_full_begins_anew(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "UNREAD_EVENTS_BYTES_MAX", 20_000)
    db = three.connect()
    async with listening(db, prefix="k/") as listener:
        for _ in range(30):
            await asyncio.gather(*(db.kv.put(f"k/{each}", b"v" * 50_000) for each in range(10)))
        await listener.come_to(300)
    assert listener.revisions == list(range(1, 301))


async def test_who_is_away_too_long_hears_that_it_missed_something(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_history, "HISTORY_REVISIONS_MAX", 100)
    monkeypatch.setattr(kv_watch, "BUFFER_EVENTS_MAX", 10)
    db = three.connect()
    async with db.kv.watch(prefix="k/") as watch:
        for _ in range(60):
            await asyncio.gather(*(db.kv.put("k/1", "") for _ in range(10)))
        heard = []
        with pytest.raises(CompactedError, match="no longer kept") as caught:
            async for event in watch:
                heard.append(event.mod_revision)  # noqa: PERF401  what came before the error counts
        assert heard == list(range(1, len(heard) + 1))
        assert 500 <= caught.value.oldest <= 601
        assert watch.revision == heard[-1]
        with pytest.raises(CompactedError):  # and says so again
            await anext(watch)
    async with db.kv.watch(prefix="k/", start_revision=caught.value.oldest) as watch:
        assert (await anext(watch)).mod_revision == caught.value.oldest
    async with db.kv.watch(prefix="k/", start_revision=3) as watch:
        with pytest.raises(CompactedError):
            await anext(watch)


async def test_silence_is_an_error_for_those_who_want_it_so(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.replication.feeds.WATCH_PROGRESS_INTERVAL_S", 0.1)
    monkeypatch.setattr(kv_watch, "SILENCE_S_MIN", 0.2)
    db = three.connect()
    with pytest.raises(InvalidArgumentError, match="silence is at least"):
        db.kv.watch("k", silence=0.1)
    async with db.kv.watch("k", silence=0.6) as watch:
        with pytest.raises(TimeoutError):  # it is told that nothing happened: no silence
            await asyncio.wait_for(anext(watch), 1.5)
        for number in list(three.nodes):
            await three.stop(number)
        with pytest.raises(UnavailableError, match="no node was heard of"):
            await anext(watch)
        for number in three.configs:
            await three.start(number)
        writer = three.connect(timeout=20.0)
        putting = asyncio.create_task(writer.kv.put("k", "1"))
        while True:
            with contextlib.suppress(UnavailableError):
                event = await anext(watch)
                break
        assert event.mod_revision == (await putting).revision


ILL_ASKED: list[dict[str, Any]] = [
    {},
    {"key": ""},
    {"key": "k", "prefix": "k"},
    {"key": "k", "start": "k"},
    {"prefix": "k", "end": "l"},
    {"key": "k", "start_revision": 0},
    {"key": "k", "puts": False, "deletes": False},
]


async def test_a_watch_ends_with_its_handle_and_its_block(three: Cluster) -> None:
    db = three.connect()
    with pytest.raises(InvalidArgumentError, match="async with"):
        await anext(db.kv.watch("k"))
    watch = db.kv.watch("k")
    async with watch:
        waiting = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0)
    assert await waiting is None
    with pytest.raises(InvalidArgumentError, match="once"):
        async with watch:
            pass
    async with db.kv.watch("k") as watch:
        waiting = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0)
        await db.close()
        with pytest.raises(ClosedError):
            await waiting
    for asked in ILL_ASKED:
        with pytest.raises(InvalidArgumentError):
            db.kv.watch(**asked)


async def test_a_watch_that_cannot_begin_says_why(three: Cluster) -> None:
    db = three.connect(timeout=0.3)
    await db.kv.put("k", "")
    for number in list(three.nodes):
        await three.stop(number)
    with pytest.raises(UnavailableError, match=r"did not begin|reached"):
        async with db.kv.watch("k", start_revision=1):
            pass


async def test_the_synchronous_twin(three: Cluster) -> None:
    addresses = ",".join(three.addresses.values())

    def in_a_thread() -> None:
        with sync.connect(addresses) as db, db.kv.watch(prefix="k/", previous=True) as watch:
            assert watch.wait(0.05) is None
            db.kv.txn(then=[ops.put("k/1", "a"), ops.put("k/2", "b")])
            db.kv.put("k/1", "c")
            db.kv.put("other", "")
            first = watch.wait(5)
            assert first is not None
            assert [event.key for event in first.events] == [b"k/1", b"k/2"]
            event = next(watch)
            assert event.previous is not None
            assert (event.value, event.previous.value) == (b"c", b"a")
            assert watch.progress() == 3
            assert watch.revision == 3
            db.kv.txn(then=[ops.put("k/1", "a"), ops.put("k/2", "b")])
            assert next(watch).key == b"k/1"
            assert watch.revision == 3
            rest = next(watch.batches())
            assert (rest.revision, len(rest.events), watch.revision) == (4, 1, 4)
            watch.close()
            assert list(watch) == []
            assert list(watch.batches()) == []
            with pytest.raises(InvalidArgumentError):
                db.kv.watch()

    await asyncio.to_thread(in_a_thread)


async def test_keys_with_a_lease_go_with_it(three: Cluster) -> None:
    db = three.connect()
    leases = db.machine("leases")
    granted = await leases.execute(_grant(1_000))
    lease: int = granted[1]
    async with listening(db, prefix="k/") as listener:
        await db.kv.put("k/1", "", lease=lease)
        await db.kv.txn(then=[ops.put("k/2", "", lease=lease)])
        assert (await db.kv.compare_and_set("k/3", None, "", lease=lease)).current is not None
        item = await db.kv.get("k/1")
        assert item is not None
        assert item.lease == lease
        await listener.come_to(4)
    assert [event.type for event in listener.batches[-1].events] == ["delete"] * 3
    with pytest.raises(QuorateError, match="does not stand"):
        await db.kv.put("k/1", "", lease=lease)


def _grant(ttl_ms: int) -> object:
    from quorate.base.lease_commands import GrantLease  # noqa: PLC0415

    return GrantLease(ttl_ms)
