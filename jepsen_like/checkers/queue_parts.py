"""What watchers of queues were told in one go: a piece of the log without a gap, from which on all
that happened is known, and of what was before nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jepsen_like.checkers.queue_moves import AskedOf, Moves

_HANDED: Final = ("assigned", "started")
#: What a task may come to without having ended.
_LET_GO: Final = ("given-back", "stolen", "failed", "timeout", "crashed")
_ENDS: Final = ("done", "dead", "cancelled")


def check_part(
    part: Sequence[Sequence[Any]],
    asked_of: AskedOf,
    rules: Mapping[str, Mapping[str, Any]],
    loads: Mapping[int, int],
    moves: Moves,
) -> Iterator[str]:
    """What is wrong in it, in sentences. *rules*: of queues, by name; *loads*: of workers, how
    much each runs at once; *moves*: what was done by hand."""
    yield from check_attempts(part)
    yield from _check_order(part, asked_of, moves)
    yield from _check_priorities(part, asked_of, rules, moves)
    yield from _check_limits(part, asked_of, rules, moves)
    yield from _check_begun(part, asked_of, loads)
    yield from _check_pauses(part, asked_of)


def check_attempts(part: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Attempts grow; only the present one, of its worker, can come to anything; an end is one."""
    present: dict[int, tuple[str, int, int]] = {}
    ended: dict[int, str] = {}
    for what, task, attempt, worker, *_ in part:
        before = present.get(task)
        if what == "requeued":
            if before is not None and before[0] != "dead":
                yield f"task {task} is requeued, and was {before[0]}"
            ended.pop(task, None)
            present[task] = (what, attempt, worker)
            continue
        if task in ended:
            yield f"task {task} was {ended[task]}, and then {what}"
        if what in _HANDED:
            begins = before == ("assigned", attempt, worker) and what == "started"
            if before is not None and attempt <= before[1] and not begins:
                yield f"attempt {attempt} of task {task} is {what} after attempt {before[1]}"
            if before is not None and before[0] in _HANDED and not begins:
                yield f"attempt {attempt} of task {task} is {what} while {before[1]} stands"
        elif (
            (what in _LET_GO or what == "done")
            and before is not None
            and (before[0] not in _HANDED or (attempt, worker) != before[1:])
        ):
            yield (
                f"task {task} is {what} by attempt {attempt} of worker {worker}, and was "
                f"{before[0]} by attempt {before[1]} of worker {before[2]}"
            )
        if what in _ENDS:
            ended[task] = what
        if what in _HANDED or what in _LET_GO or what in _ENDS:
            present[task] = (what, attempt, worker)


def _line(asked: Mapping[str, Any]) -> tuple[Any, ...]:
    needs = (*asked.get("capabilities", ()), "/", *asked.get("excluded", ()))
    return asked["queue"], asked["priority"], asked["key"], needs


def _check_order(part: Sequence[Sequence[Any]], asked_of: AskedOf, moves: Moves) -> Iterator[str]:
    """In one line, of one key, tasks are handed out first in the order in which they came."""
    last: dict[tuple[Any, ...], int] = {}
    waiting: set[int] = set()
    for what, task, attempt, *_ in part:
        if what == "enqueued":
            waiting.add(task)
        if what in _ENDS:
            waiting.discard(task)
        if what not in _HANDED or attempt != 1 or task not in waiting:
            continue
        waiting.discard(task)
        asked = asked_of(task)
        if asked is None or "delay" in asked or "beside" in asked or moves.by_hand(task, attempt):
            continue
        line = _line(asked)
        if last.get(line, 0) > task:
            yield f"task {task} was handed out after task {last[line]}, which came later: {line}"
        last[line] = max(last.get(line, 0), task)


def _check_priorities(
    part: Sequence[Sequence[Any]],
    asked_of: AskedOf,
    rules: Mapping[str, Mapping[str, Any]],
    moves: Moves,
) -> Iterator[str]:
    """In a queue without rules nobody is handed out before one who is more urgent."""
    waiting: dict[int, Mapping[str, Any]] = {}
    for what, task, attempt, _worker, queue, *_ in part:
        rule = rules.get(queue, {})
        if any(rule.get(each) for each in ("running_max", "key_running_max", "rate", "key_rate")):
            continue
        asked = asked_of(task)
        if rule.get("ageing_ms") or asked is None or asked["key"] or "delay" in asked:
            continue
        if "capabilities" in asked or "excluded" in asked or "beside" in asked:
            continue
        if what == "enqueued":
            waiting[task] = asked
            continue
        was_waiting = waiting.pop(task, None) is not None
        if was_waiting and what in _HANDED and attempt == 1 and not moves.by_hand(task, attempt):
            for other, others in waiting.items():
                if others["queue"] == queue and others["priority"] > asked["priority"]:
                    yield f"task {task} was handed out before task {other}, which is more urgent"


def _check_limits(
    part: Sequence[Sequence[Any]],
    asked_of: AskedOf,
    rules: Mapping[str, Mapping[str, Any]],
    moves: Moves,
) -> Iterator[str]:
    """Of the tasks that are known to be held, no more than a queue and a key may have; no more
    begun than the rate lets; no more that have not ended than the depth."""
    held: dict[str, dict[int, str]] = {}
    live: dict[str, dict[int, None]] = {}
    rates = _Rates()
    stolen: set[int] = set()  # it goes from one store to another, and has been counted
    known: set[int] = set()  # of which it is known whether they were handed out before
    for what, task, attempt, _worker, queue, at_ms, _kind in part:
        was_known = task in known
        known.add(task)
        rule = rules.get(queue, {})
        here = held.setdefault(queue, {})
        asked = asked_of(task) or {}
        key = asked.get("key", f"task {task}")
        if what in ("enqueued", "scheduled", "blocked", "requeued"):
            live.setdefault(queue, {})[task] = None
            if 0 < rule.get("depth_max", 0) < len(live[queue]):
                yield f"queue {queue!r} takes task {task}, and is full"
        if what in _LET_GO or what in _ENDS:
            here.pop(task, None)
        if what in _ENDS:
            live.get(queue, {}).pop(task, None)
        if what == "stolen":
            stolen.add(task)
        if what not in _HANDED:
            continue
        new, here[task] = task not in here, key
        if not new:
            continue
        same = sum(each == key for each in here.values())
        for count, most in ((len(here), "running_max"), (same, "key_running_max")):
            if 0 < rule.get(most, 0) < count:
                yield f"queue {queue!r}, key {key!r}: {count} tasks are held, {most} {rule[most]}"
        counted = task in stolen or moves.moved(task, attempt)
        if counted or not (what == "assigned" or was_known):
            stolen.discard(task)
            continue
        yield from rates.begin(queue, key, rule, at_ms)


class _Rates:
    """What was handed out, when: so many at once, and as many more in the time, one by one."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str | None], deque[int]] = {}

    def begin(self, queue: str, key: str, rule: Mapping[str, Any], at_ms: int) -> Iterator[str]:
        """One of *key*; what is wrong with that."""
        for place, rate in (((queue, None), "rate"), ((queue, key), "key_rate")):
            if not rule.get(rate):
                continue
            times = self._times.setdefault(place, deque())
            times.append(at_ms)
            while times[0] <= at_ms - rule["rate_ms"]:
                times.popleft()
            if len(times) > 2 * rule[rate]:
                yield f"queue {queue!r}: {len(times)} began in {rule['rate_ms']} ms, {rate}"


def _check_begun(
    part: Sequence[Sequence[Any]], asked_of: AskedOf, loads: Mapping[int, int]
) -> Iterator[str]:
    """Who runs one at a time begins first, within one line, what came first."""
    stored: dict[int, dict[int, None]] = {}
    known: set[int] = set()  # of which it is known where they were
    for what, task, _attempt, worker, *_ in part:
        was_known = task in known
        known.add(task)
        if loads.get(worker) != 1:
            continue
        here = stored.setdefault(worker, {})
        if what == "assigned":
            here[task] = None
            continue
        if what == "started" and was_known and (asked := asked_of(task)) is not None:
            for other in here:
                if other == task:
                    break
                others = asked_of(other)
                if other < task and others is not None and _line(others) == _line(asked):
                    yield f"worker {worker} began task {task} before task {other}, which it had"
        here.pop(task, None)


def _check_pauses(part: Sequence[Sequence[Any]], asked_of: AskedOf) -> Iterator[str]:
    """Nothing is handed out before its delay is over, nor before the pause after a failure: twice
    as long after each, as far as those are known."""
    not_before_ms: dict[int, int] = {}
    failures: dict[int, int] = {}
    for what, task, _attempt, _worker, _queue, at_ms, _kind in part:
        asked = asked_of(task) or {}
        if what == "scheduled" and task not in failures and "delay" in asked:
            not_before_ms[task] = at_ms + round(asked["delay"] * 1000)
        elif what == "requeued":  # with a clean record, and at once
            failures[task] = not_before_ms[task] = 0
        elif what in ("failed", "timeout"):
            failures[task] = failures.get(task, 0) + 1
            pause_ms = round(asked.get("backoff", 0.0) * 1000) * 2 ** (failures[task] - 1)
            not_before_ms[task] = at_ms + pause_ms
        elif what in _HANDED:
            limit_ms = not_before_ms.pop(task, at_ms)
            if at_ms < limit_ms:
                yield f"task {task} is {what} {limit_ms - at_ms} ms too early"
