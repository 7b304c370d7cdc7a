"""Whatever clients do, whenever workers die and nodes restart: the machine against plain lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from quorate.base.lease_commands import GrantLease, RenewLeases, RevokeLease
from quorate.base.results import Failure
from quorate.base.task_commands import (
    Assign,
    Attend,
    Begin,
    Cancel,
    Claim,
    Complete,
    Configure,
    Done,
    Enqueue,
    Fail,
    Failed,
    GiveBack,
    Held,
    Purge,
    Register,
    Report,
    Requeue,
    Settle,
    Unregister,
)
from quorate.base.task_specs import (
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    FOR_A_TIME,
    LIVE_STATES,
    READY,
    UNTIL_STARTED,
    Needs,
    Options,
    Retry,
    Task,
    Unique,
)
from quorate.tasks.records import id_key, id_of, scoped
from tests import sharing
from tests.tasks.model import HELD, LIVE, Item, Model, happened
from tests.tasks.support import WALL_AHEAD_MS, TaskNode

QUEUES = ("a", "b")
NAMES = ("n", "m", "o")

PLAIN = [Task("f", b"x", queue, priority, key) for queue in QUEUES for priority in (2, 3)
         for key in (b"", b"x", b"y")]  # fmt: skip
DELAYED = [
    Task("f", queue="a", key=b"x", delay_ms=250),
    Task("f", queue="b", delay_ms=1_000),
    Task("f", queue="a", at_ms=WALL_AHEAD_MS + 2_500),  # soon it has passed
    Task("f", queue="b", options=Options(expires_ms=1_500), at_ms=WALL_AHEAD_MS + 5_000),
]
CHOOSY = [
    Options(needs=Needs(("gpu",))),
    Options(needs=Needs(worker="n")),
    Options(needs=Needs(excluded=("n",)), expires_ms=500),
    Options(needs=Needs(("gpu",), excluded=("m",))),
    Options(prefers="m"),
]
FRAIL = [
    Options(retry=Retry(1, 100), crashes=1),
    Options(retry=Retry(2, 100, only=("Bad",)), timeout_ms=250),
    Options(retry=Retry(3, 100, 150), timeout_ms=250),
    Options(retry=Retry(2, 100, jitter=0.5, fatal=("Bad",)), heartbeat_ms=200),
    Options(retry=Retry(1, 0), heartbeat_ms=100, timeout_ms=0, crashes=0),
    Options(timeout_ms=0, keep_ms=500),
    Options(expires_ms=250),
]
ALONE = [
    Options(unique=Unique(b"u")),
    Options(unique=Unique(b"u", UNTIL_STARTED), retry=Retry(0)),
    Options(unique=Unique(b"t", FOR_A_TIME, 1_000)),
]
OTHERS = [
    Task("f", queue=queue, key=key, priority=priority, delay_ms=delay_ms, options=options)
    for at, options in enumerate([*CHOOSY, *FRAIL, *ALONE])
    for queue, key, priority, delay_ms in (
        ("a", b"", 2, 0), ("ab"[at % 2], (b"x", b"y")[at % 2], 3, 250 * (at % 3 == 0)),
    )
]  # fmt: skip
RULES = [
    Configure("a"),
    Configure("a", paused=True),
    Configure("a", running_max=2, key_running_max=1),
    Configure("a", key_running_max=1),
    Configure("b", running_max=1),
    Configure("b", rate=2, rate_ms=500),
    Configure("b", key_rate=1, rate_ms=300, running_max=3),
    Configure("a", rate=3, key_rate=2, rate_ms=1_000),
    Configure("b", ageing_ms=250),
    Configure("b", depth_max=4),
    Configure("b"),
]
SETTINGS = [
    Settle(),
    Settle("round-robin"),
    Settle("capability-match", load_max=500),
    Settle("random", running_max=3),
    Settle("weighted", affinity=False),
    Settle(capabilities=False),
]

tasks = st.sampled_from([*PLAIN, *DELAYED, *DELAYED, *OTHERS])
some = st.integers(0, 99)
#: Time that passes before.
times = st.sampled_from((0, 0, 0, 1, 50, 200, 250, 500, 1_000, 3_000))
later = st.booleans()
#: Break the command after so many moves of tasks; None: do not.
breaks = st.sampled_from((*[None] * 9, 0, 1, 2, 99))


class TasksAgainstAModel(RuleBasedStateMachine):
    """*node* restarts, *twin* never does; *model* is what both should be."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.twin, self.model = TaskNode(), TaskNode(), Model()
        self.node.time_ms = 1_000
        self.batch: list[tuple[Any, int | None]] = []
        self.leases: list[int] = []
        self.seen: list[tuple[int, int, int]] = [(1, 1, 1)]
        self.ended: dict[int, tuple[int, int, int]] = {}
        for load, prefetch in ((2, 2), (1, 1)):
            self.lease(3_000)
            self.register(len(self.leases) - 1, load, prefetch, 0)

    # --- entries --------------------------------------------------------------------------------

    def entry(self, machine: str, commands: list[Any], judge: Callable[[list[Any]], None]) -> None:
        """One entry on both nodes; *judge* does the same to the model."""
        results = self.node.run(machine, *commands)
        self.twin.time_ms = self.node.time_ms
        self.twin.feed(self.node.log[-1])
        assert self.twin.machines.state_hash == self.node.machines.state_hash
        model = self.model
        model.told = []
        model.pass_to(self.node.time_ms)
        model.heard = events = [happened(event, keys[0]) for keys, event in self.node.told]
        judge(results)
        count = len(model.told)
        assert events[:count] == model.told
        model.hand_out(events[count:])
        self.check()

    def flush(self, ms: int) -> None:
        self.node.time_ms += ms
        batch, self.batch = self.batch, []

        def judge(results: list[Any]) -> None:
            for (command, broken), result in zip(batch, results, strict=True):
                if broken is None:
                    self.model.do(command, result)
                else:
                    assert isinstance(result, Failure)

        for node in (self.node, self.twin):
            node.tasks.breaks = {
                at: each[1] for at, each in enumerate(batch) if each[1] is not None
            }
        self.entry("tasks", [each[0] for each in batch], judge)
        for node in (self.node, self.twin):
            node.tasks.breaks = {}

    def do(self, command: Any, ms: int = 0, *, later: bool = False, broken: Any = None) -> None:
        """*later*: in one entry with the next."""
        self.batch.append((command, broken))
        if not later:
            self.flush(ms)

    # --- choosing -------------------------------------------------------------------------------

    def held(self, at: int) -> tuple[int, int, int]:
        """(worker, task, attempt) that is so, or was."""
        held = [(each.worker, each.id, each.attempt) for each in self.model.live()
                if each.state in HELD]  # fmt: skip
        self.seen.extend(each for each in held if each not in self.seen)
        return self.seen[at % len(self.seen)] if at % 8 == 7 or not held else held[at % len(held)]

    def some_of(self, state: int, at: int) -> int:
        found = [each.id for each in self.model.items.values() if each.state == state]
        return found[at % len(found)] if found and at % 5 else 1 + at % (self.model.last_task + 1)

    def worker(self, at: int) -> int:
        found = list(self.model.hands)
        return found[at % len(found)] if found else 1

    # --- what may happen ------------------------------------------------------------------------

    @rule(specs=st.lists(tasks, min_size=1, max_size=4), ms=times, later=later, broken=breaks)
    def enqueue(self, specs: list[Task], ms: int, *, later: bool, broken: Any) -> None:
        self.do(Enqueue(tuple(specs)), ms, later=later, broken=broken)

    @rule(at=some, spec=tasks, broken=breaks)
    def enqueue_beside(self, at: int, spec: Task, broken: Any) -> None:
        beside = self.some_of(READY, at)
        options = Options(beside=beside, expires_ms=500 * (at % 2), retry=Retry(0))
        self.do(Enqueue((Task("f", queue=spec.queue, key=spec.key, delay_ms=spec.delay_ms,
                              options=options),)), broken=broken)  # fmt: skip

    @rule(ms=times)
    def wait(self, ms: int) -> None:
        self.flush(ms)

    @rule(at=some, count=st.integers(1, 5), ms=times, later=later, broken=breaks)
    def claim(self, at: int, count: int, ms: int, *, later: bool, broken: Any) -> None:
        self.do(Claim(self.worker(at), count), ms, later=later, broken=broken)

    @rule(at=some, ms=times, later=later, broken=breaks)
    def begin(self, at: int, ms: int, *, later: bool, broken: Any) -> None:
        worker, task, attempt = self.held(at)
        self.do(Begin(worker, (Held(task, attempt),)), ms, later=later, broken=broken)

    @rule(at=some, ms=times, later=later, broken=breaks)
    def complete(self, at: int, ms: int, *, later: bool, broken: Any) -> None:
        first, second = self.held(at), self.held(at + 1)
        found = [each for each in (first, second) if each[0] == first[0]]
        done = tuple(Done(task, attempt, b"r") for _, task, attempt in found)
        self.do(Complete(first[0], done), ms, later=later, broken=broken)

    @rule(at=some, ms=times, how=st.integers(0, 5), later=later, broken=breaks)
    def fail(self, at: int, ms: int, how: int, *, later: bool, broken: Any) -> None:
        worker, task, attempt = self.held(at)
        more: dict[str, Any] = (
            {}
            if how > 3
            else (
                {"kind": "Bad"},
                {"final": True},
                {"after_ms": 50 * (at % 2)},
                {"cancelled": True},
            )[how]
        )
        self.do(Fail(worker, (Failed(task, attempt, **more),)), ms, later=later, broken=broken)

    @rule(at=some, ms=times, later=later, broken=breaks)
    def give_back(self, at: int, ms: int, *, later: bool, broken: Any) -> None:
        worker, task, attempt = self.held(at)
        self.do(GiveBack(worker, (Held(task, attempt),)), ms, later=later, broken=broken)

    @rule(at=some, ms=times, broken=breaks)
    def report(self, at: int, ms: int, broken: Any) -> None:
        worker, task, attempt = self.held(at)
        permille = at if at % 2 else None
        self.do(Report(worker, (Held(task, attempt),), permille, "n" * (at % 3)), ms, broken=broken)

    @rule(at=some, ms=times, later=later, broken=breaks)
    def cancel(self, at: int, ms: int, *, later: bool, broken: Any) -> None:
        chosen = (self.some_of(at % 6 + 1, at), self.some_of(5, at + 1))
        command = Cancel(chosen, grace_ms=250 * (at % 2), waiting_only=at % 3 == 0)
        self.do(command, ms, later=later, broken=broken)

    @rule(at=some, ms=times, broken=breaks)
    def requeue(self, at: int, ms: int, broken: Any) -> None:
        self.do(Requeue((self.some_of(DEAD, at), self.some_of(DEAD, at + 1))), ms, broken=broken)

    @rule(at=some, ms=times, later=later, broken=breaks)
    def assign(self, at: int, ms: int, *, later: bool, broken: Any) -> None:
        live = [each.id for each in self.model.live() if each.state in (READY, *HELD) or at < 20]
        task = live[at % len(live)] if live else self.some_of(DEAD, at)
        worker = 0 if at % 3 == 0 else self.worker(at // 3)
        self.do(Assign(task, worker), ms, later=later, broken=broken)

    @rule(
        state=st.sampled_from(("done", "cancelled", "dead", "ready", "scheduled")),
        queue=st.sampled_from(("", "a")), limit=st.integers(1, 3),
        older_ms=st.sampled_from((0, 250)), broken=breaks,
    )  # fmt: skip
    def purge(self, state: Any, queue: str, limit: int, older_ms: int, broken: Any) -> None:
        self.do(Purge(state, queue, older_ms, limit), broken=broken)

    @rule(rules=st.sampled_from(RULES), ms=times, later=later)
    def configure(self, rules: Configure, ms: int, *, later: bool) -> None:
        self.do(rules, ms, later=later)

    @rule(settings=st.sampled_from(SETTINGS), ms=times, broken=breaks)
    def settle(self, settings: Settle, ms: int, broken: Any) -> None:
        self.do(settings, ms, broken=broken)

    @rule(
        at=some, load=st.integers(0, 3), prefetch=st.integers(0, 3), ms=times,
    )  # fmt: skip
    def register(self, at: int, load: int, prefetch: int, ms: int) -> None:
        if len(self.model.hands) < 4:
            lease = self.leases[at % len(self.leases)]
            capabilities = (("gpu",), (), ("cpu", "gpu"))[at % 3]
            self.do(Register(NAMES[at % 3], lease, load, prefetch, capabilities,
                             ("a",) if at % 5 == 4 else (), 1 + at % 2), ms)  # fmt: skip

    @rule(at=some, draining=st.booleans(), load=st.sampled_from((None, 0, 2)), broken=breaks)
    def attend(self, at: int, load: Any, broken: Any, *, draining: bool) -> None:
        state: Any = "draining" if draining and at % 3 == 0 else "active"
        self.do(Attend(self.worker(at), state, load), broken=broken)

    @rule(at=some, ms=times, broken=breaks)
    def unregister(self, at: int, ms: int, broken: Any) -> None:
        self.do(Unregister(self.worker(at)), ms, broken=broken)

    @rule(ttl_ms=st.sampled_from((3_000, 10_000)))
    def lease(self, ttl_ms: int) -> None:
        def judge(results: list[Any]) -> None:
            self.leases.append(results[0].lease)
            self.model.leases[results[0].lease] = self.node.time_ms + ttl_ms
            self.ttls = {**getattr(self, "ttls", {}), results[0].lease: ttl_ms}

        self.entry("leases", [GrantLease(ttl_ms)], judge)

    @rule(ms=times)
    def renew(self, ms: int) -> None:
        def judge(_: list[Any]) -> None:
            for lease in self.model.leases:
                self.model.leases[lease] = self.node.time_ms + self.ttls[lease]

        self.node.time_ms += ms
        self.entry("leases", [RenewLeases(tuple(self.leases[-50:]))], judge)

    @rule(at=some)
    def revoke(self, at: int) -> None:
        lease = self.leases[at % len(self.leases)]
        self.entry("leases", [RevokeLease(lease)], lambda _: self.model.end_lease(lease))

    @rule()
    def restart(self) -> None:
        self.node.restart()

    def teardown(self) -> None:
        if self.batch:
            self.flush(0)

    # --- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        """What stands in the tables is what the model has, no more and no less."""
        model, tables = self.model, self.node.tasks.ledger.tables
        live = {id_of(key): record for key, record in tables.live.items()}
        assert sorted(live) == sorted(each.id for each in model.live())
        for id_, record in live.items():
            self.check_live(model.items[id_], record)
        for item in model.items.values():
            if item.state not in LIVE:
                found = (tables.dead if item.state == DEAD else tables.ended).get(id_key(item.id))
                assert found is not None
                assert (found.attempt, found.worker, found.kind) == (
                    item.attempt, item.worker, item.kind)  # fmt: skip
        dead = [each for each in model.items.values() if each.state == DEAD]
        assert len(tables.dead) == len(dead)
        assert [
            (each.errors, each.crashes, list(each.workers)) for _, each in tables.dead.items()
        ] == [
            (each.errors, each.crashes, each.tried)
            for each in sorted(dead, key=lambda each: each.id)
        ]
        assert [(id_of(key), each.state, each.result) for key, each in tables.ended.items()] == [
            (each.id, each.state, each.result)
            for each in sorted(model.items.values(), key=lambda each: each.id)
            if each.state in (DONE, CANCELLED)
        ]
        assert len(tables.specs) == len(live) + len(dead)
        unique = {scoped(*key): each for key, each in model.unique.items()}
        assert {key: (each.task, each.until_ms) for key, each in tables.unique.items()} == unique
        assert len(tables.beside) == sum(each.state == BLOCKED for each in model.live())
        rates = {(b"q" if key is None else b"k") + scoped(queue, key or b""): until
                 for (queue, key), until in model.used.items()}  # fmt: skip
        assert {key: each.full_at_us for key, each in tables.rates.items()} == rates
        assert {key for key, _ in tables.turns.items()} == {scoped(*key) for key in model.turns}
        assert {id_of(key) for key, _ in tables.progress.items()} <= {
            each.id for each in model.live() if each.state in HELD}  # fmt: skip
        assert {id_of(key) for key, _ in tables.trials.items()} == {
            each.id for each in model.live() if each.tried}  # fmt: skip
        self.check_workers()
        self.check_totals()

    def check_live(self, item: Item, record: Any) -> None:
        if item.jitter:
            item.jitter = False
            retry = item.options.retry
            assert retry is not None
            least = item.after - self.node.time_ms
            assert 0 <= record.after_ms - item.after <= least * retry.jitter
            item.due = item.after = record.after_ms
        mine = (item.state, item.enqueued, item.since, item.due, item.attempt, item.worker,
                item.errors, item.crashes, item.after, item.begun, item.stopping,
                item.pin)  # fmt: skip
        assert mine == (
            record.state, record.enqueued_ms, record.since_ms, record.due_ms, record.attempt,
            record.worker, record.errors, record.crashes, record.after_ms, record.begun,
            record.stopping, record.pin,
        ), item  # fmt: skip

    def check_workers(self) -> None:
        ledger = self.node.tasks.ledger
        assert sorted(ledger.crew.workers) == sorted(self.model.hands)
        for hand in self.model.hands.values():
            record = ledger.crew.workers[hand.id].record
            assert (record.state, record.load, record.prefetch, record.failures_in_row) == (
                hand.state, hand.load, hand.prefetch, hand.in_row)  # fmt: skip
        workers = {id_of(key): record for key, record in ledger.tables.workers.items()}
        hands = self.model.hands | self.model.gone
        assert {id_: (each.done, each.failed, each.crashed, each.ran_ms, bool(each.gone_ms))
                for id_, each in workers.items()} == {
            id_: (each.done, each.failed, each.crashed, each.ran, id_ in self.model.gone)
            for id_, each in hands.items()}  # fmt: skip

    def check_totals(self) -> None:
        """Nothing is lost: whatever came is there, or came to one end."""
        ledger = self.node.tasks.ledger
        for queue, counts in self.model.totals.items():
            totals = ledger.tables.totals.get(queue.encode())
            for name, count in counts.items():
                assert getattr(totals, name) == count, name
            found = ledger.queues.get(queue)
            states = [0 if found is None else found.counts[state] for state in LIVE_STATES]
            ended = counts["done"] + counts["died"] + counts["cancelled"]
            assert counts["enqueued"] + counts["requeued"] == sum(states) + ended
            mine = [each.state for each in self.model.live() if each.spec.queue == queue]
            assert states == [mine.count(state) for state in LIVE_STATES]


TestTasksAgainstAModel = TasksAgainstAModel.TestCase
TestTasksAgainstAModel.settings = settings(
    max_examples=sharing.examples(36), stateful_step_count=30, deadline=None
)


@pytest.mark.deep
def test_for_long() -> None:
    search = settings(max_examples=1_500, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(TasksAgainstAModel, settings=search)
