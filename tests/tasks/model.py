"""The rules of queues and workers as anybody would write them down: lists, and no cleverness.

What the machine does by choice (which task goes to which worker) is not foretold but judged: each
step of handing out must have been allowed, and the right one; and in the end none may be left. All
else - results, events, states, times, counts - is foretold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quorate.base.results import Failure
from quorate.base.task_commands import (
    Assign,
    Assignment,
    Attend,
    Attended,
    Begin,
    Cancel,
    Changed,
    Claim,
    Claimed,
    Complete,
    Configure,
    Configured,
    Enqueue,
    Enqueued,
    Fail,
    GiveBack,
    Purge,
    Purged,
    Register,
    Registered,
    Report,
    Requeue,
    Settle,
    Settled,
    Settlement,
    Stale,
    Unregister,
)
from quorate.base.task_queries import Assigned, Stop, TaskEvent, WorkerEvent
from quorate.base.task_specs import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    FOR_A_TIME,
    NO_NEEDS,
    NO_OPTIONS,
    NO_RETRY,
    READY,
    RUNNING,
    SCHEDULED,
    STATE_NAMES,
    UNTIL_STARTED,
    Needs,
    Options,
    Retry,
    Task,
)
from tests.tasks.support import WALL_AHEAD_MS

LIVE = (SCHEDULED, BLOCKED, READY, ASSIGNED, RUNNING)
HELD = (ASSIGNED, RUNNING)


@dataclass
class Item:
    """A task."""

    id: int
    spec: Task
    enqueued: int
    state: int = 0
    since: int = 0
    due: int = 0
    after: int = 0
    attempt: int = 0
    worker: int = 0
    errors: int = 0
    crashes: int = 0
    begun: bool = False
    stopping: bool = False
    pin: str = ""
    waits_for: int = 0
    kind: str = ""
    result: bytes = b""
    keep: int = 0
    tried: list[int] = field(default_factory=list)
    jitter: bool = False  # its time is not foretold, but for a range
    firm: bool = False  # its worker was named by a command
    fresh: bool = False  # became ready while tasks were being handed out

    @property
    def options(self) -> Options:
        return self.spec.options or NO_OPTIONS

    @property
    def place(self) -> tuple[str, bytes]:
        return self.spec.queue, self.spec.key

    @property
    def needs(self) -> Needs:
        needs = self.options.needs or NO_NEEDS
        return msgspec.structs.replace(needs, worker=self.pin) if self.pin else needs

    @property
    def expires(self) -> int:
        late = self.options.expires_ms
        return self.enqueued + late if late and not self.begun else 0


@dataclass
class Hand:
    """A worker."""

    id: int
    spec: Register
    load: int
    prefetch: int
    state: str = "active"
    in_row: int = 0
    done: int = 0
    failed: int = 0
    crashed: int = 0
    ran: int = 0


def _tried_again(retry: Retry, kind: str) -> bool:
    return kind not in retry.fatal and (not retry.only or kind in retry.only)


def happened(event: Any, key: bytes) -> tuple[Any, ...]:
    """An event as the model writes it."""
    match event:
        case TaskEvent():
            return ("task", event.what, event.task, event.state, event.attempt, event.worker,
                    event.kind)  # fmt: skip
        case Stop():
            return "stop", int.from_bytes(key[1:], "big"), event.task, event.attempt, event.why
        case WorkerEvent():
            return "worker", event.what, event.worker
        case Assigned():
            assert not event.whole
            worker = int.from_bytes(key[1:], "big")
            return "assigned", worker, [(each.task, each.attempt, each.running, each.due_ms)
                                        for each in event.tasks]  # fmt: skip
    raise AssertionError(event)


class Model:
    def __init__(self) -> None:
        self.now = 0
        self.items: dict[int, Item] = {}
        self.hands: dict[int, Hand] = {}
        self.names: dict[int, str] = {}  # of all workers that ever were
        self.gone: dict[int, Hand] = {}
        self.last_task = self.last_worker = self.last_chosen = self.turn = 0
        self.leases: dict[int, int] = {}  # until when
        self.rules: dict[str, Configure] = {}
        self.settings = Settle()
        self.turns: dict[tuple[str, bytes], int] = {}
        self.unique: dict[tuple[str, bytes], tuple[int, int]] = {}  # who, until when
        self.used: dict[tuple[str, bytes | None], int] = {}  # of rates: until when, in us
        self.totals: dict[str, Counter[str]] = {}
        self.told: list[tuple[Any, ...]] = []  # what is to be heard
        self.heard: list[tuple[Any, ...]] = []  # what was, in the entry at hand

    # --- looking --------------------------------------------------------------------------------

    def live(self) -> list[Item]:
        return [each for each in self.items.values() if each.state in LIVE]

    def having(self, hand: Hand, state: int = 0) -> list[Item]:
        return [
            each for each in self.items.values()
            if each.worker == hand.id and (each.state == state if state else each.state in HELD)
        ]  # fmt: skip

    def rule(self, queue: str) -> Configure:
        return self.rules.get(queue, Configure(queue))

    def fullness(self, hand: Hand) -> int:
        return len(self.having(hand)) * 1_000_000 // max(hand.load + hand.prefetch, 1)

    def has_room(self, hand: Hand) -> bool:
        room = len(self.having(hand)) < hand.load + hand.prefetch
        within = self.fullness(hand) <= self.settings.load_max * 1000
        return hand.state == "active" and room and within

    def serves(self, hand: Hand, item: Item) -> bool:
        if hand.spec.queues and item.spec.queue not in hand.spec.queues:
            return False
        needs, settings = item.needs, self.settings
        if settings.capabilities and not set(needs.capabilities) <= set(hand.spec.capabilities):
            return False
        if not settings.affinity:
            return True
        return needs.worker in ("", hand.spec.name) and hand.spec.name not in needs.excluded

    def is_open(self, item: Item) -> bool:
        """Whether the limits of all, of its queue and of its key let it be handed out now."""
        rule = self.rule(item.spec.queue)
        held = [each for each in self.items.values() if each.state in HELD]
        of_queue = [each for each in held if each.spec.queue == item.spec.queue]
        of_key = [each for each in of_queue if each.spec.key == item.spec.key]
        return (
            not rule.paused
            and (not self.settings.running_max or len(held) < self.settings.running_max)
            and (not rule.running_max or len(of_queue) < rule.running_max)
            and (not rule.key_running_max or len(of_key) < rule.key_running_max)
            and self._in_rate(item.spec.queue, None, rule.rate, rule)
            and self._in_rate(item.spec.queue, item.spec.key, rule.key_rate, rule)
        )

    def _in_rate(self, queue: str, key: bytes | None, rate: int, rule: Configure) -> bool:
        if not rate:
            return True
        step = -(-rule.rate_ms * 1000 // rate)
        return self.used.get((queue, key), 0) - (rate - 1) * step <= self.now * 1000

    def priority(self, item: Item) -> int:
        ageing = self.rule(item.spec.queue).ageing_ms
        return item.spec.priority + ((self.now - item.since) // ageing if ageing else 0)

    def heads(self) -> list[Item]:
        """Of those who may be handed out, the first of each kind, first those who go first."""
        lines: dict[Any, list[Item]] = {}
        for each in self.items.values():
            if each.state == READY and self.is_open(each):
                line = each.spec.queue, each.needs, each.spec.priority
                lines.setdefault(line, []).append(each)
        found = [
            min(line, key=lambda item: (self.turns.get(item.place, 0), item.id))
            for line in lines.values()
        ]
        return sorted(found, key=lambda item: (-self.priority(item), item.id))

    # --- telling, counting ----------------------------------------------------------------------

    def tell(self, what: str, item: Item, *, worker: int | None = None, kind: str = "") -> None:
        by = item.worker if worker is None else worker
        self.told.append(("task", what, item.id, item.state, item.attempt, by, kind))

    def tell_stop(self, item: Item, why: str) -> None:
        if item.worker:
            self.told.append(("stop", item.worker, item.id, item.attempt, why))

    def count(self, item: Item, what: str, by: int = 1) -> None:
        self.totals.setdefault(item.spec.queue, Counter())[what] += by

    # --- time -----------------------------------------------------------------------------------

    def pass_to(self, now: int) -> None:
        """An entry begins."""
        self.now = now
        for until, lease in sorted((until, lease) for lease, until in self.leases.items()):
            if until <= now:
                self.end_lease(lease)
        while due := [(each.due, each.id) for each in self.live() if 0 < each.due <= now]:
            self._act(self.items[min(due)[1]])
        for each in list(self.items.values()):
            if each.state in (DONE, CANCELLED) and each.keep <= now:
                del self.items[each.id]
        self.unique = {key: (task, until) for key, (task, until) in self.unique.items()
                       if not until or until > now}  # fmt: skip
        self.used = {key: until for key, until in self.used.items() if until > now * 1000}

    def _act(self, item: Item) -> None:
        if item.stopping:
            self.tell_stop(item, "moved")
            self._end(item, CANCELLED, "no-answer")
        elif item.state == RUNNING:
            self.tell_stop(item, "timeout")
            self._failed(item, "timeout")
        elif item.state == SCHEDULED and item.after <= self.now:
            self._wait(item)
            self.tell("ready", item)
        else:
            if item.state == ASSIGNED:
                self.tell_stop(item, "moved")
            self._bury(item, "expired")

    def end_lease(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None:
            for hand in [each for each in self.hands.values() if each.spec.lease == lease]:
                self._lose(hand, crashed=True)

    def _lose(self, hand: Hand, *, crashed: bool) -> int:
        had = sorted(self.having(hand), key=lambda item: item.id)
        hand.crashed += sum(crashed and item.state == RUNNING for item in had)
        for item in had:
            if item.stopping:
                self._end(item, CANCELLED, "crashed" if crashed else "")
            elif crashed and item.state == RUNNING:
                self._crashed(item)
            else:
                self._give_back(item)
        self.gone[hand.id] = self.hands.pop(hand.id)
        self.told.append(("worker", "gone", hand.id))
        return len(had)

    # --- the life of a task ---------------------------------------------------------------------

    def _wait(self, item: Item, wait: int = 0, *, keep: bool = False) -> None:
        """No worker has it. *keep*: it may have to wait for its first time yet."""
        item.worker, item.since, item.stopping = 0, self.now, False
        if not keep:
            item.after = self.now + wait if wait else 0
        if item.waits_for:
            item.state = BLOCKED
        elif item.after > self.now:
            item.state = SCHEDULED
        else:
            item.state, item.after = READY, 0
        times = [item.after if item.state == SCHEDULED else 0, item.expires]
        item.due = min((each for each in times if each), default=0)

    def _give_back(self, item: Item, what: str = "given-back") -> None:
        worker = item.worker
        self._count_waited(item)
        self._wait(item)
        self.tell(what, item, worker=worker)

    def _crashed(self, item: Item) -> None:
        worker = item.worker
        item.crashes += 1
        item.tried.append(worker)
        self.count(item, "crashes")
        if item.crashes > item.options.crashes:
            self._bury(item, "crashed")
        else:
            self._wait(item)
            self.tell("crashed", item, worker=worker, kind="crashed")

    def _failed(self, item: Item, kind: str, *, final: bool = False, after: Any = None) -> None:
        worker, retry = item.worker, item.options.retry or NO_RETRY
        item.errors += 1
        item.tried.append(worker)
        self.count(item, "timeouts" if kind == "timeout" else "failures")
        hand = self.hands[worker]
        hand.failed, hand.in_row = hand.failed + 1, hand.in_row + 1
        if hand.in_row >= 3 and hand.state == "active":
            hand.state = "error"
            self.told.append(("worker", "error", hand.id))
        if item.stopping:
            self._end(item, CANCELLED, kind)
        elif final or item.errors > retry.retries or not _tried_again(retry, kind):
            self._bury(item, kind)
        else:
            power = retry.factor ** (item.errors - 1)
            wait = int(min(retry.base_ms * power, retry.max_ms)) if after is None else after
            self._wait(item, wait)
            item.jitter = bool(retry.jitter and after is None)
            what = "timeout" if kind == "timeout" else "failed"
            self.tell(what, item, worker=worker, kind=kind)

    def _end(self, item: Item, state: int, kind: str = "", result: bytes = b"") -> None:
        if state == DONE:
            self.count(item, "ran_ms", self.now - item.since)
        item.state, item.kind, item.result = state, kind, result
        item.since, item.keep = self.now, self.now + item.options.keep_ms
        self._left(item)
        self.count(item, STATE_NAMES[state])
        self.tell(STATE_NAMES[state], item, kind=kind)

    def _bury(self, item: Item, kind: str) -> None:
        item.state, item.kind, item.since = DEAD, kind, self.now
        self._left(item)
        self.count(item, "died")
        self.tell("dead", item, kind=kind)

    def _left(self, item: Item) -> None:
        item.due, item.stopping, item.waits_for = 0, False, 0
        unique = item.options.unique
        if unique is not None and unique.hold != FOR_A_TIME:
            self._free(item)
        self._unblock(item, "")
        if all(each.place != item.place for each in self.live()):
            self.turns.pop(item.place, None)

    def _free(self, item: Item) -> None:
        unique = item.options.unique
        key = (item.spec.queue, unique.key if unique else b"")
        if self.unique.get(key, (0, 0))[0] == item.id:
            del self.unique[key]

    def _unblock(self, item: Item, name: str) -> None:
        for other in sorted(self.items.values(), key=lambda each: each.id):
            if other.waits_for == item.id and other.state == BLOCKED:
                other.waits_for, other.pin = 0, name
                self._wait(other, keep=True)
                if other.state == READY:
                    self.tell("ready", other)

    def _holder(self, spec: Task) -> int:
        unique = spec.options.unique if spec.options else None
        if unique is None:
            return 0
        task, until = self.unique.get((spec.queue, unique.key), (0, 0))
        return task if not until or until > self.now else 0

    def _take(self, item: Item) -> None:
        unique = item.options.unique
        if unique is not None:
            until = self.now + unique.hold_ms if unique.hold == FOR_A_TIME else 0
            self.unique[item.spec.queue, unique.key] = (item.id, until)

    def _came(self, item: Item) -> None:
        """If it is the only one of its key, that comes last."""
        alone = all(each is item or each.place != item.place for each in self.live())
        if item.spec.key and alone:
            self._next_turn(item)

    def _next_turn(self, item: Item) -> None:
        named = any(each.spec.queue == item.spec.queue and each.spec.key for each in self.live())
        if named:
            self.turn += 1
            self.turns[item.place] = self.turn

    # --- handing out ----------------------------------------------------------------------------

    def _assign(self, item: Item, hand: Hand, *, running: bool, stolen: bool = False) -> None:
        rule = self.rule(item.spec.queue)
        if not stolen:
            for key, rate in ((None, rule.rate), (item.spec.key, rule.key_rate)):
                if rate:
                    step = -(-rule.rate_ms * 1000 // rate)
                    before = self.used.get((item.spec.queue, key), 0)
                    self.used[item.spec.queue, key] = max(before, self.now * 1000) + step
        self._count_waited(item)
        item.state, item.worker, item.since = ASSIGNED, hand.id, self.now
        item.attempt += 1
        item.firm = False
        self._next_turn(item)
        self._unblock(item, hand.spec.name)
        if running:
            self._begin(item)
        self.tell("started" if running else "assigned", item)

    def _count_waited(self, item: Item) -> None:
        if not item.begun:
            self.count(item, "waited_ms", self.now - item.since)

    def _begin(self, item: Item) -> None:
        self._count_waited(item)
        item.state, item.since, item.begun = RUNNING, self.now, True
        item.due = self._limit(item)
        self.count(item, "begun")
        if item.options.unique is not None and item.options.unique.hold == UNTIL_STARTED:
            self._free(item)

    def _limit(self, item: Item) -> int:
        options = item.options
        times = [
            item.since + options.timeout_ms if options.timeout_ms else 0,
            self.now + options.heartbeat_ms if options.heartbeat_ms else 0,
        ]
        return min((each for each in times if each), default=0)

    def claimed(self, hand: Hand, count: int, tasks: tuple[Assignment, ...]) -> None:
        """The claim took the right ones, in the right order, and no fewer than it could."""
        for each in tasks:
            heads = [item for item in self.heads() if self.serves(hand, item)]
            assert heads, f"task {each.task} is not to be had"
            assert heads[0].id == each.task, f"{heads[0].id} goes before {each.task}"
            self._assign(heads[0], hand, running=True)
        if len(tasks) < count:
            assert [item.id for item in self.heads() if self.serves(hand, item)] == []

    def assigned(self, command: Assign, result: Any) -> None:
        """Who was to get it got it, if that may be; or somebody who may, and no other."""
        item = self.items.get(command.task)
        trouble = self._unassignable(item, command.worker)
        if trouble or item is None:
            assert (isinstance(result, Failure), getattr(result, "code", "")) == (True, trouble)
            return
        wanted = [self.hands[command.worker]] if command.worker else list(self.hands.values())
        fit = [
            each for each in wanted
            if each.id != item.worker and self.has_room(each) and self.serves(each, item)
            and each.spec.lease in self.leases
        ]  # fmt: skip
        if not fit or (not item.worker and not self.is_open(item)):
            assert isinstance(result, Failure)
            assert result.code == "no-available-worker"
            return
        (given,) = result.tasks
        moved = bool(item.worker)
        if moved:
            self.tell_stop(item, "moved")
            self._give_back(item)
        got = [worker for what, worker, tasks, *_ in self.heard
               if what == "assigned" and (given.task, given.attempt) in [each[:2] for each in tasks]
               ]  # fmt: skip
        hand = next(each for each in fit if [each.id] == got)
        self._judge_choice(item, hand, fit, preferences=False)
        if self.settings.strategy == "round-robin" and not command.worker:
            self.last_chosen = hand.id
        stores = self.having(hand, ASSIGNED)
        running = not stores and len(self.having(hand, RUNNING)) < hand.load
        self._assign(item, hand, running=running, stolen=moved)
        item.firm = True
        assert (given.task, given.attempt, given.running, given.reason) == (
            item.id, item.attempt, running, "moved" if moved else "assigned")  # fmt: skip
        handed = (item.id, item.attempt, running, item.due)
        self.told.append(("assigned", hand.id, [handed]))

    def _unassignable(self, item: Item | None, worker: int) -> str:
        if item is None:
            return "task-not-found"
        if item.state not in (READY, *HELD) or item.stopping:
            return "task-state"
        if worker and worker not in self.hands:
            return "worker-not-found"
        return "task-state" if worker and worker == item.worker else ""

    def hand_out(self, events: list[tuple[Any, ...]]) -> None:
        """The end of an entry: every step of it was right, and nothing is left to do."""
        handed: dict[int, list[tuple[int, int, bool, int]]] = {}
        assigned = [each for each in events if each[0] == "assigned"]
        steps = iter([each for each in events if each[0] != "assigned"])
        for step in steps:
            if step[0] == "stop" or step[1] == "stolen":
                self._judge_theft(step, steps, handed)
                continue
            ready = []
            while step[1] == "ready":
                ready.append(step)
                step = next(steps)  # noqa: PLW2901
            _, what, task, _, _, worker, _ = step
            item, hand = self.items[task], self.hands[worker]
            self._judge(item, hand)
            stores = self.having(hand, ASSIGNED)
            running = not stores and len(self.having(hand, RUNNING)) < hand.load
            assert what == ("started" if running else "assigned")
            self.told.clear()
            self._assign(item, hand, running=running)
            assert self.told == [*ready, step]
            self._fresh(ready)
            self.told.clear()
            handed.setdefault(worker, []).append((task, item.attempt, running, item.due))
        assert assigned == [("assigned", worker, handed[worker]) for worker in sorted(handed)
                            if handed[worker]]  # fmt: skip
        for each in self.items.values():
            each.fresh = False
        self._judge_rest()

    def _fresh(self, ready: list[tuple[Any, ...]]) -> None:
        for _, _, task, *_ in ready:
            self.items[task].fresh = True

    def _judge(self, item: Item, hand: Hand) -> None:
        assert item.state == READY
        assert self.is_open(item), f"a limit is passed by {item.id}"
        assert self.serves(hand, item)
        assert self.has_room(hand)
        hands = [each for each in self.hands.values() if self.has_room(each)]
        if not item.fresh:
            first = next(
                head for head in self.heads()
                if not head.fresh and any(self.serves(each, head) for each in hands)
            )  # fmt: skip
            assert first.id == item.id, f"{first.id} goes before {item.id}"
        fit = [each for each in hands if self.serves(each, item)]
        self._judge_choice(item, hand, fit)
        if self.settings.strategy == "round-robin":
            self.last_chosen = hand.id

    def _judge_choice(
        self, item: Item, hand: Hand, fit: list[Hand], *, preferences: bool = True
    ) -> None:
        prefers = item.options.prefers if self.settings.affinity and preferences else ""
        preferred = [each for each in fit if prefers and each.spec.name == prefers]
        least = sorted(preferred or fit, key=lambda each: (self.fullness(each), each.id))
        strategy = self.settings.strategy
        if preferred or strategy == "least-loaded":
            assert hand is least[0]
        elif strategy == "capability-match":
            assert hand is min(least, key=lambda each: len(each.spec.capabilities))
        elif strategy == "round-robin":
            ids = sorted(each.id for each in fit)
            assert hand.id == next((each for each in ids if each > self.last_chosen), ids[0])
        else:
            assert hand in fit

    def _judge_theft(self, step: Any, steps: Any, handed: dict[int, list[Any]]) -> None:
        task, victim = (step[2], step[1]) if step[0] == "stop" else (step[2], step[5])
        item = self.items[task]
        given = [each for each in handed.get(victim, []) if each[0] == task]
        if given:  # it has not heard of it yet
            handed[victim].remove(given[0])
        else:
            assert step == ("stop", victim, task, item.attempt, "stolen")
            step = next(steps)
        self.told.clear()
        assert (item.worker, item.state) == (victim, ASSIGNED)
        thefts = self._thefts()
        self._give_back(item, "stolen")
        assert self.told == [step]
        self.told.clear()
        last = next(steps)
        thief = self.hands[last[5]]
        assert (thief.id, task) in thefts
        self._assign(item, thief, running=True, stolen=True)
        assert self.told == [last]
        self.told.clear()
        handed.setdefault(thief.id, []).append((task, item.attempt, True, item.due))

    def _thefts(self) -> list[tuple[int, int]]:
        """Who may take what from those who have most in store."""
        found = []
        hands = self.hands.values()
        stores = {each.id: self.having(each, ASSIGNED) for each in hands}
        for thief in hands:
            idle = len(self.having(thief, RUNNING)) < thief.load and not stores[thief.id]
            if not idle or not self.has_room(thief):
                continue
            loot = [
                (-len(stores[victim.id]), victim.id, -item.id)
                for victim in hands if victim is not thief
                for item in stores[victim.id]
                if self.serves(thief, item) and not self.rule(item.spec.queue).paused
                and not item.firm
            ]  # fmt: skip
            if loot:
                found.append((thief.id, -min(loot)[2]))
        return found

    def _judge_rest(self) -> None:
        hands = [each for each in self.hands.values() if self.has_room(each)]
        for item in self.heads():
            able = [each.id for each in hands if self.serves(each, item)]
            assert not able, f"{item.id} is left, and {able} could take it"
        assert self._thefts() == []

    # --- commands -------------------------------------------------------------------------------

    def do(self, command: Any, result: Any) -> None:
        """What the command does, and that the result is right."""
        if isinstance(command, Claim):
            hand = self.hands.get(command.worker)
            if hand is None or hand.spec.lease not in self.leases:
                assert isinstance(result, Failure)
            elif hand.state != "active":
                assert result == Claimed(())
            else:
                self.claimed(hand, command.count, result.tasks)
            return
        if isinstance(command, Assign):
            self.assigned(command, result)
            return
        expected = getattr(self, "_do_" + type(command).__name__.lower())(command)
        if isinstance(expected, str):
            assert isinstance(result, Failure)
            assert result.code == expected, result
        else:
            assert result == expected, (result, expected)

    def _do_enqueue(self, command: Enqueue) -> Any:
        new: Counter[str] = Counter()
        for spec in command.tasks:
            beside = spec.options.beside if spec.options else 0
            other = self.items.get(beside)
            if beside and (other is None or (other.state not in LIVE and not other.worker)):
                return "task-not-found"
            new[spec.queue] += not self._holder(spec)
        for queue, count in new.items():
            depth = self.rule(queue).depth_max
            there = sum(each.spec.queue == queue for each in self.live())
            if count and depth and there + count > depth:
                return "queue-full"
        tasks, known = [], []
        begun: dict[int, list[Any]] | None = {}
        for at, spec in enumerate(command.tasks):
            task = self._holder(spec)
            if task:
                known.append(at)
            else:
                task = self._enqueue(spec)
                if begun is not None and not self._begun_at_once(self.items[task], begun):
                    last = self.told.pop()
                    self._tell_begun(begun)
                    self.told.append(last)
                    begun = None
            tasks.append(task)
        self._tell_begun(begun or {})
        return Enqueued(tuple(tasks), tuple(known))

    def _begun_at_once(self, item: Item, begun: dict[int, list[Any]]) -> bool:
        """Whether a worker began with it in this very step; then that was right."""
        (step,) = self.heard[len(self.told) : len(self.told) + 1] or [()]
        if step[:3] != ("task", "started", item.id):
            return False
        assert not any(each.state == READY for each in self.items.values() if each is not item)
        hand = self.hands[step[5]]
        self._judge(item, hand)
        assert len(self.having(hand)) < hand.load
        self._assign(item, hand, running=True)
        begun.setdefault(hand.id, []).append((item.id, item.attempt, True, item.due))
        return True

    def _tell_begun(self, begun: dict[int, list[Any]]) -> None:
        self.told.extend(("assigned", each, begun[each]) for each in sorted(begun))

    def _enqueue(self, spec: Task) -> int:
        self.last_task += 1
        item = self.items[self.last_task] = Item(self.last_task, spec, self.now)
        self._take(item)
        other = self.items.get(item.options.beside)
        if other is not None:
            if other.worker:
                item.pin = self.names[other.worker]
            else:
                item.waits_for = other.id
        left = spec.at_ms - self.now - WALL_AHEAD_MS
        self._wait(item, max(left, 0) if spec.at_ms else spec.delay_ms)
        self._came(item)
        self.count(item, "enqueued")
        what = {SCHEDULED: "scheduled", BLOCKED: "blocked", READY: "enqueued"}[item.state]
        self.tell(what, item)
        return item.id

    def _do_cancel(self, command: Cancel) -> Any:
        changed = []
        for task in dict.fromkeys(command.tasks):
            item = self.items.get(task)
            if item is None or item.state not in LIVE:
                continue
            if command.waiting_only and item.state == RUNNING:
                continue
            changed.append(task)
            if item.state != RUNNING:
                self.tell_stop(item, "moved")
                self._end(item, CANCELLED)
            elif not item.stopping:
                item.stopping, item.due = True, max(self.now + command.grace_ms, 1)
                self.tell_stop(item, "cancelled")
                self.tell("stopping", item)
        return Changed(tuple(changed))

    def _do_requeue(self, command: Requeue) -> Any:
        changed = []
        for task in dict.fromkeys(command.tasks):
            item = self.items.get(task)
            if item is None or item.state != DEAD or self._holder(item.spec) not in (0, task):
                continue
            depth = self.rule(item.spec.queue).depth_max
            if depth and sum(each.spec.queue == item.spec.queue for each in self.live()) >= depth:
                continue
            changed.append(task)
            self._take(item)
            item.errors = item.crashes = 0
            item.enqueued, item.begun, item.tried = self.now, True, []
            other = self.items.get(item.options.beside)
            item.pin = self.names.get(other.worker, "") if other else ""
            self._wait(item)
            self._came(item)
            self.count(item, "requeued")
            self.tell("requeued", item)
        return Changed(tuple(changed))

    def _do_purge(self, command: Purge) -> Any:
        state = STATE_NAMES.index(command.state)
        found = [
            each for each in sorted(self.items.values(), key=lambda each: each.id)
            if each.id > command.after and each.state == state
            and command.queue in ("", each.spec.queue)
            and each.since + command.older_ms <= self.now
        ]  # fmt: skip
        gone = found[: command.limit]
        for item in gone:
            if item.state in LIVE:
                self._end(item, CANCELLED)
            self.count(item, "purged")
            del self.items[item.id]
        return Purged(len(gone), gone[-1].id if len(gone) == command.limit else 0)

    def _do_configure(self, command: Configure) -> Any:
        self.rules[command.queue] = command
        return Configured()

    def _do_settle(self, command: Settle) -> Any:
        self.settings = command
        return Settled()

    def _do_register(self, command: Register) -> Any:
        if command.lease not in self.leases:
            return "lease-expired"
        self.last_worker += 1
        hand = Hand(self.last_worker, command, command.load, command.prefetch)
        self.hands[hand.id] = hand
        self.names[hand.id] = command.name
        self.told.append(("worker", "registered", hand.id))
        return Registered(hand.id)

    def _do_attend(self, command: Attend) -> Any:
        hand = self.hands.get(command.worker)
        if hand is None:
            return "worker-not-found"
        if hand.state != command.state:
            self.told.append(("worker", command.state, hand.id))
        hand.state = command.state
        hand.in_row = 0 if command.state == "active" else hand.in_row
        hand.load = hand.load if command.load is None else command.load
        hand.prefetch = hand.prefetch if command.prefetch is None else command.prefetch
        return Attended(len(self.having(hand)))

    def _do_unregister(self, command: Unregister) -> Any:
        hand = self.hands.get(command.worker)
        return "worker-not-found" if hand is None else Attended(self._lose(hand, crashed=False))

    # --- what workers do ------------------------------------------------------------------------

    def _present(self, each: Any, worker: int, states: tuple[int, ...], stale: list[Stale]) -> Any:
        item = self.items.get(each.task)
        if item is None:
            stale.append(Stale(each.task, 0, 0, 0))
        elif (item.attempt, item.worker) != (each.attempt, worker) or item.state not in states:
            stale.append(Stale(item.id, item.state, item.attempt, item.worker))
        else:
            return item
        return None

    def _do_begin(self, command: Begin) -> Any:
        stale: list[Stale] = []
        for each in command.tasks:
            item = self._present(each, command.worker, (ASSIGNED,), stale)
            if item is not None:
                self._begin(item)
                self.tell("started", item)
        return Settlement(tuple(stale))

    def _do_complete(self, command: Complete) -> Any:
        stale: list[Stale] = []
        for each in command.tasks:
            item = self._present(each, command.worker, (RUNNING,), stale)
            if item is not None:
                hand = self.hands[item.worker]
                hand.done, hand.in_row = hand.done + 1, 0
                hand.ran += self.now - item.since
                self._end(item, DONE, result=each.result)
        return Settlement(tuple(stale))

    def _do_fail(self, command: Fail) -> Any:
        stale: list[Stale] = []
        for each in command.tasks:
            item = self._present(each, command.worker, (RUNNING,), stale)
            if item is None:
                continue
            if each.cancelled and item.stopping:
                self._end(item, CANCELLED, each.kind)
            else:
                self._failed(item, each.kind, final=each.final, after=each.after_ms)
        return Settlement(tuple(stale))

    def _do_giveback(self, command: GiveBack) -> Any:
        stale: list[Stale] = []
        for each in command.tasks:
            item = self._present(each, command.worker, HELD, stale)
            if item is not None and item.stopping:
                self._end(item, CANCELLED)
            elif item is not None:
                self._give_back(item)
        return Settlement(tuple(stale))

    def _do_report(self, command: Report) -> Any:
        stale: list[Stale] = []
        for each in command.tasks:
            item = self._present(each, command.worker, HELD, stale)
            if item is None:
                continue
            if item.stopping:
                stale.append(Stale(item.id, item.state, item.attempt, item.worker, stop=True))
            elif item.state == RUNNING and item.options.heartbeat_ms:
                item.due = self._limit(item)
        return Settlement(tuple(stale))
