"""Checkers of locks, leases, watches and levels: what is broken is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.checkers.base import Checker
from jepsen_like.checkers.clocks import Bent
from jepsen_like.checkers.grants import GrantChecker
from jepsen_like.checkers.leases import LeaseChecker
from jepsen_like.checkers.levels import LevelsChecker
from jepsen_like.checkers.watch import WatchChecker
from jepsen_like.errors import HistoryError
from jepsen_like.history import NEMESIS, Event, EventType

SECOND_NS = 1_000_000_000


class Scribe:
    """Writes a history: each event a millisecond after the one before, or when ``at_s`` says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_ns = 0

    def add(self, process: int | str, kind: EventType, f: str, key: Any, value: Any) -> None:
        self.now_ns += SECOND_NS // 1000
        self.events.append(
            Event(process=process, type=kind, f=f, key=key, value=value, time_ns=self.now_ns)
        )

    def did(
        self, process: int, f: str, key: Any, asked: Any, value: Any, kind: EventType = "ok"
    ) -> None:
        self.add(process, "invoke", f, key, asked)
        self.add(process, kind, f, key, value)

    def bend(self, do: str) -> None:
        self.add(NEMESIS, "info", "clock-rate", None, {"id": 1, "do": do, "what": "2"})


def verdict(checker: Checker, scribe: Scribe) -> tuple[object, str]:
    found = checker.check(scribe.events)
    return found.valid, " | ".join(found.problems)


# --- grants ---------------------------------------------------------------------------------------


def held(token: int, **more: Any) -> dict[str, Any]:
    return {"token": token, "held": True, "after": True, **more}


def acquired(scribe: Scribe, process: int, token: int) -> None:
    scribe.did(process, "acquire", "n", None, {"token": token})


def fine(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    scribe.did(1, "use", "n", None, held(3, **{"from": 0, "to": 1}))
    scribe.did(1, "release", "n", None, {"token": 3, "held": True})
    acquired(scribe, 2, 5)
    scribe.did(2, "use", "n", None, held(5, **{"from": 1, "to": 2}))
    scribe.did(3, "read", "n", None, [2, 5])


def same_token(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 3)


def smaller_token(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 2)


def two_in_force(scribe: Scribe) -> None:
    scribe.bend("begin")  # tokens hold whatever clocks do
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 5)
    scribe.did(1, "use", "n", None, held(3, **{"from": 0, "to": 1}))
    scribe.did(2, "use", "n", None, held(5, **{"from": 1, "to": 2}))


def two_believers(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 5)
    scribe.did(1, "release", "n", None, {"token": 3, "held": True})
    scribe.did(2, "release", "n", None, {"token": 5, "held": True})


def two_believers_by_bent_clocks(scribe: Scribe) -> None:
    scribe.bend("begin")
    scribe.bend("end")
    two_believers(scribe)


def not_told(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    refused = {"token": 3, "held": True, "fenced": True, "after": True}
    scribe.did(1, "use", "n", None, refused, "fail")


def told_late(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    refused = {"token": 3, "held": True, "fenced": True, "after": False}
    scribe.did(1, "use", "n", None, refused, "fail")


def lost_update(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    scribe.did(1, "use", "n", None, held(3, **{"from": 0, "to": 1}))
    scribe.did(1, "use", "n", None, held(3, **{"from": 0, "to": 1}))


def forgotten_update(scribe: Scribe) -> None:
    fine(scribe)
    scribe.did(3, "read", "n", None, [1, 5])


def unknown_update(scribe: Scribe) -> None:
    fine(scribe)
    scribe.did(2, "use", "n", None, None, "info")
    scribe.did(3, "read", "n", None, [3, 5])


def old_token_writes_later(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 5)
    scribe.did(2, "use", "n", None, held(5, **{"from": 0, "to": 1}))
    scribe.did(1, "use", "n", None, {"token": 3, "held": False, "from": 1, "to": 2})


def line(scribe: Scribe, waiters: list[Any], holders: list[Any], free: int = 0) -> None:
    state = {"total": 1, "free": free, "holders": holders, "waiters": waiters}
    scribe.did(9, "inspect", "n", None, state)


def in_turn(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    line(scribe, [[4, 1, 12, 1], [5, 1, 13, 1]], [[3, 1, 11, 1]])
    line(scribe, [[5, 1, 13, 1]], [[6, 1, 12, 1]])


def overtaken(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    line(scribe, [[4, 1, 12, 1], [5, 1, 13, 1]], [[3, 1, 11, 1]])
    line(scribe, [[4, 1, 12, 1]], [[6, 1, 13, 1]])


def stands_still(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    line(scribe, [[4, 1, 12, 1]], [], free=1)


def too_many_holders(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    line(scribe, [], [[3, 1, 11, 1], [4, 1, 12, 1]])


def epochs_go_back(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    scribe.did(2, "observe", "n", None, [0, 5, 3])


def stale_leader(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    acquired(scribe, 2, 5)
    scribe.did(3, "leader", "n", None, 3)


def nobody_leads(scribe: Scribe) -> None:
    acquired(scribe, 1, 3)
    scribe.did(3, "leader", "n", None, 0)
    scribe.did(3, "observe", "n", None, [3, 0, 5])


GRANTS: list[tuple[Callable[[Scribe], None], str]] = [
    (fine, ""),
    (same_token, "both granted token 3"),
    (smaller_token, "tokens only grow"),
    (two_in_force, "were in force"),
    (two_believers, "were believed in"),
    (two_believers_by_bent_clocks, ""),
    (not_told, "not told of the loss"),
    (told_late, ""),
    (lost_update, "one is lost"),
    (forgotten_update, "uses are lost"),
    (unknown_update, ""),
    (old_token_writes_later, "under token 3 after"),
    (in_turn, ""),
    (overtaken, "who still waits"),
    (stands_still, "stand in line"),
    (too_many_holders, "2 permits are held"),
    (epochs_go_back, "out of order"),
    (stale_leader, "although 5 was seen before"),
    (nobody_leads, ""),
]


@pytest.mark.parametrize(("story", "problem"), GRANTS, ids=[each.__name__ for each, _ in GRANTS])
def test_grants(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(GrantChecker("lock", register=True), scribe)
    assert valid is not bool(problem), problems
    assert problem in problems


def test_a_semaphore_has_as_many_holders_as_permits() -> None:
    scribe = Scribe()
    for process, token in ((1, 3), (2, 4), (3, 5)):
        acquired(scribe, process, token)
    for process, token in ((1, 3), (2, 4), (3, 5)):
        scribe.did(process, "use", "n", None, held(token))
    assert verdict(GrantChecker("semaphore", permits=3), scribe)[0] is True
    assert "more than 2 permit(s)" in verdict(GrantChecker("semaphore", permits=2), scribe)[1]


def test_nothing_acquired_proves_nothing() -> None:
    scribe = Scribe()
    scribe.did(1, "acquire", "n", None, "lock-timeout", "fail")
    assert verdict(GrantChecker("lock"), scribe)[0] == "unknown"
    scribe.did(1, "knock", "n", None, None)
    with pytest.raises(HistoryError, match="knock"):
        GrantChecker("lock").check(scribe.events)


def locked(random: Random, *, bug: bool) -> Scribe:
    """What clients of a lock see; with the *bug*, a holder that was overtaken still gets to write,
    if the store does not look at its token."""
    scribe, token, count = Scribe(), 0, 0
    holder, stale = 0, 0
    tokens: dict[int, int] = {}
    for _step in range(60):
        process = random.randint(1, 4)
        if holder == 0 or (bug and random.random() < 0.05):
            stale, holder = holder, process
            token += random.randint(1, 3)
            tokens[process] = token
            acquired(scribe, process, token)
        elif process == holder or (bug and process == stale):
            count += 1
            use = held(tokens[process], **{"from": count - 1, "to": count})
            scribe.did(process, "use", "n", None, use)
            if random.random() < 0.3 and process == holder:
                scribe.did(process, "release", "n", None, {"token": tokens[process], "held": True})
                holder = 0
    scribe.did(9, "read", "n", None, [count, token])
    return scribe


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_histories_of_a_right_lock_are_valid(seed: int) -> None:
    valid, problems = verdict(GrantChecker("lock", register=True), locked(Random(seed), bug=False))
    assert valid is True, problems


def test_histories_of_a_wrong_lock_are_found_out() -> None:
    wrong = [
        seed
        for seed in range(60)
        if verdict(GrantChecker("lock", register=True), locked(Random(seed), bug=True))[0] is False
    ]
    assert len(wrong) > 20


# --- clocks ---------------------------------------------------------------------------------------


def test_windows_of_bent_clocks() -> None:
    scribe = Scribe()
    scribe.bend("begin")
    scribe.bend("end")
    scribe.add(NEMESIS, "info", "clock-wall", None, {"id": 2, "do": "begin", "what": ""})
    scribe.now_ns += 10 * SECOND_NS
    scribe.add(NEMESIS, "info", "clock-jump", None, {"id": 3, "do": "begin", "what": ""})
    bent = Bent(scribe.events, SECOND_NS)
    begin_ns, end_ns = scribe.events[0].time_ns, scribe.events[1].time_ns
    assert bent.touches(0, begin_ns)
    assert bent.touches(end_ns + SECOND_NS, end_ns + 2 * SECOND_NS)
    assert not bent.touches(end_ns + SECOND_NS + 1, end_ns + 2 * SECOND_NS)
    assert bent.touches(scribe.now_ns, scribe.now_ns)


# --- leases ---------------------------------------------------------------------------------------


def lease(scribe: Scribe) -> None:
    scribe.did(1, "grant", "k", 1000, 1000)
    scribe.did(1, "bind", "k", None, None)


def ends_in_time(scribe: Scribe) -> None:
    lease(scribe)
    scribe.did(1, "read", "k", None, True)
    scribe.now_ns += SECOND_NS
    scribe.did(1, "read", "k", None, False)
    scribe.did(1, "renew", "k", None, "gone", "fail")


def ends_early(scribe: Scribe) -> None:
    lease(scribe)
    scribe.did(1, "read", "k", None, False)


def ends_early_after_renewal(scribe: Scribe) -> None:
    lease(scribe)
    scribe.now_ns += 9 * SECOND_NS // 10
    scribe.did(1, "renew", "k", None, None)
    scribe.now_ns += 5 * SECOND_NS // 10
    scribe.did(1, "read", "k", None, False)


def ends_early_by_bent_clocks(scribe: Scribe) -> None:
    scribe.bend("begin")
    ends_early(scribe)


def refused_early(scribe: Scribe) -> None:
    lease(scribe)
    scribe.did(1, "renew", "k", None, "gone", "fail")


def revoked(scribe: Scribe) -> None:
    lease(scribe)
    scribe.did(1, "revoke", "k", None, None)
    scribe.did(1, "read", "k", None, False)


def stays_after_revoking(scribe: Scribe) -> None:
    lease(scribe)
    scribe.did(1, "revoke", "k", None, None)
    scribe.did(1, "read", "k", None, True)


def renewed_after_its_end(scribe: Scribe) -> None:
    ends_in_time(scribe)
    scribe.did(1, "renew", "k", None, None)


def comes_back(scribe: Scribe) -> None:
    ends_in_time(scribe)
    scribe.did(1, "read", "k", None, True)


def bound_after_its_end(scribe: Scribe) -> None:
    ends_in_time(scribe)
    scribe.did(1, "bind", "k", None, None)


def believed_after_its_end(scribe: Scribe) -> None:
    scribe.did(1, "hold", "k", 1000, 1000)
    scribe.did(1, "bind", "k", None, None)
    scribe.did(1, "look", "k", None, {"there": False, "alive": True})


def known_after_its_end(scribe: Scribe) -> None:
    scribe.did(1, "hold", "k", 1000, 1000)
    scribe.did(1, "bind", "k", None, None)
    scribe.did(1, "look", "k", None, {"there": False, "alive": False})
    scribe.did(1, "end", "k", None, True)


LEASES: list[tuple[Callable[[Scribe], None], str]] = [
    (ends_in_time, ""),
    (ends_early, "before the 1000 ms can have passed"),
    (ends_early_after_renewal, "the renew by process 1"),
    (ends_early_by_bent_clocks, ""),
    (refused_early, "before the 1000 ms"),
    (revoked, ""),
    (stays_after_revoking, "shows its key, although"),
    (renewed_after_its_end, "renewed it, although"),
    (comes_back, "shows its key, although"),
    (bound_after_its_end, "bound a key to it"),
    (believed_after_its_end, "believes in it yet"),
    (known_after_its_end, ""),
]


@pytest.mark.parametrize(("story", "problem"), LEASES, ids=[each.__name__ for each, _ in LEASES])
def test_leases(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(LeaseChecker(), scribe)
    assert valid is not bool(problem), problems
    assert problem in problems


# --- watches --------------------------------------------------------------------------------------

Revisions = dict[int, list[list[Any]]]


def stored(random: Random, count: int) -> tuple[list[list[Any]], Revisions]:
    """Commands, and what each came to, by revision: one each."""
    commands: list[list[Any]] = []
    told: Revisions = {}
    state: dict[str, int] = {}
    value = 0
    for revision in range(1, count + 1):
        changes = []
        for key in random.sample(["k/a/1", "k/a/2", "k/b/1"], random.randint(1, 3)):
            value += 1
            delete = key in state and random.random() < 0.3
            changes.append(["delete", key, None] if delete else ["put", key, value])
        told[revision] = [[*change, state.get(change[1])] for change in changes]
        for kind, key, new in changes:
            if kind == "put":
                state[key] = new
            else:
                del state[key]
        commands.append(changes)
    return commands, told


Bug = Callable[[list[Any], Random], list[Any]]


def watched(random: Random, bug: Bug | None = None) -> Scribe:
    """Watchers of a store: each from some revision on, in parts; *bug* changes one part."""
    scribe = Scribe()
    commands, told = stored(random, 20)
    for revision, changes in enumerate(commands, 1):
        kind: EventType = "info" if random.random() < 0.2 else "ok"
        answer = changes if kind == "info" else {"revision": revision, "done": changes}
        scribe.did(100 + revision, "write", None, changes, answer, kind)
    scribe.did(300, "write", None, [["put", "k/a/1", 999]], "refused", "fail")
    parts = []
    for watcher, keys in (("whole", "k/"), ("w1", "k/"), ("w2", "k/a/"), ("w3", "k/b/")):
        first = 1 if watcher == "whole" else random.randint(1, 10)
        while first <= 20:
            last = 20 if watcher == "whole" else random.randint(first, 20)
            events = []
            for revision in range(first, last + 1):
                shown = [each for each in told[revision] if each[1].startswith(keys)]
                if shown:
                    events.append([revision, shown])
            parts.append({
                "watcher": watcher, "keys": keys, "from": first, "to": last, "events": events,
            })  # fmt: skip
            first = last + 1
    if bug is not None:
        part = random.choice([part for part in parts if len(part["events"]) > 3])
        part["events"] = bug(part["events"], random)
    for part in parts:
        scribe.did(1, "watch", None, None, part)
    state = {key: value for changes in commands for _kind, key, value in changes}
    now = {key: value for key, value in state.items() if value is not None}
    scribe.did(1, "read", None, None, {"revision": 20, "state": now})
    return scribe


def _torn(events: list[Any], random: Random) -> list[Any]:
    del random
    for revision, changes in events:
        if len(changes) > 1:
            return [
                [each, changed[:1] if each == revision else changed] for each, changed in events
            ]
    return events[1:]


BUGS: dict[str, Bug] = {
    "gap": lambda events, random: [
        each for each in events if each is not random.choice(events[1:-1])
    ][: len(events) - 1],
    "duplicate": lambda events, _random: [events[0], *events],
    "reordered": lambda events, _random: [events[1], events[0], *events[2:]],
    "torn": _torn,
    "undone": lambda events, _random: [
        *events[:-1], [events[-1][0], [["put", events[-1][1][0][1], 999, None]]]
    ],
    "invented": lambda events, _random: [
        *events[:-1], [events[-1][0], [["put", events[-1][1][0][1], 12345, None]]]
    ],
    "wrong value before": lambda events, _random: [
        *events[:-1], [events[-1][0], [[*each[:3], 4242] for each in events[-1][1]]]
    ],
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_histories_of_right_watches_are_valid(seed: int) -> None:
    valid, problems = verdict(WatchChecker(), watched(Random(seed)))
    assert valid is True, problems


@pytest.mark.parametrize("bug", BUGS)
def test_histories_of_wrong_watches_are_found_out(bug: str) -> None:
    for seed in range(15):
        valid, _problems = verdict(WatchChecker(), watched(Random(seed), BUGS[bug]))
        assert valid is False, (bug, seed)


def test_a_watch_is_cut_off_only_where_history_ends() -> None:
    part = {"watcher": "w", "keys": "k/", "from": 5, "to": 6, "events": []}
    for oldest, sound in ((8, True), (7, False), (3, False)):
        scribe = Scribe()
        scribe.did(1, "watch", None, None, {**part, "compacted": oldest})
        problems = verdict(WatchChecker(), scribe)[1]
        assert ("could not go on" not in problems) is sound


# --- levels ---------------------------------------------------------------------------------------


def leveled(random: Random, bug: str = "") -> Scribe:
    """Sessions on a log with replicas that lag; *bug*: which promise is not kept."""
    scribe = Scribe()
    log: list[tuple[str, int]] = []
    places: dict[str, int] = {}  # what each session has seen
    named = 0  # the highest place that anybody was told
    tokens = [0]
    for step in range(1, 120):
        session = f"s{random.randint(1, 4)}"
        key = random.choice("ab")
        token = random.choice(tokens) if random.random() < 0.3 else 0
        seen = max(places.get(session, 0), token)
        asked = {"level": random.choice(("quorum", "causal", "eventual")), "token": token}
        process = int(session[1:])
        if random.random() < 0.4:
            if asked["level"] == "eventual":
                asked["level"] = "causal"
            log.append((key, step))
            place = len(log)
            if bug == "place taken twice" and place > 1:
                place -= 1
            answer = {"session": session, "place": place}
            scribe.did(process, "write", key, {**asked, "value": step}, answer)
        else:
            least = {"quorum": named, "causal": seen, "eventual": 0}[asked["level"]]
            if asked["level"] in bug:
                least = 0
            place = random.randint(least, len(log))
            lag = 2 if bug == "older than it says" else 0
            upto = log[: max(place - lag, 0)]
            value = next((value for one, value in reversed(upto) if one == key), None)
            answer = {"session": session, "place": place, "value": value}
            scribe.did(process, "read", key, asked, answer)
        places[session] = max(seen, place)
        tokens.append(place)
        named = max(named, place)
    return scribe


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_histories_of_right_levels_are_valid(seed: int) -> None:
    valid, problems = verdict(LevelsChecker(), leveled(Random(seed)))
    assert valid is True, problems


@pytest.mark.parametrize(
    ("bug", "problem"),
    [
        ("quorum read locally", "stale read"),
        ("causal read locally", "had come to"),
        ("older than it says", "although"),
        ("place taken twice", "had been seen before it began"),
    ],
)
def test_histories_of_wrong_levels_are_found_out(bug: str, problem: str) -> None:
    for seed in range(10):
        valid, problems = verdict(LevelsChecker(), leveled(Random(seed), bug))
        assert valid is False, (bug, seed)
        assert problem in problems


def test_levels_by_hand() -> None:
    scribe = Scribe()
    strong = {"level": "strong", "token": 0, "value": 1}
    locals_ = [[1, 5, 1], [2, 4, None]]
    answer = {"session": "s", "place": 5, "locals": locals_}
    scribe.did(1, "write", "k", strong, answer)
    scribe.did(1, "write", "k", {**strong, "value": 2}, "refused", "fail")
    eventual = {"level": "eventual", "token": 0}
    scribe.did(2, "read", "k", eventual, {"session": "t", "place": 6, "value": 2})
    scribe.did(2, "read", "k", eventual, {"session": "t", "place": 6, "value": 3})
    problems = verdict(LevelsChecker(), scribe)[1]
    assert "node 2 had come to 4" in problems
    assert "surely did not write" in problems
    assert "which nobody wrote" in problems
