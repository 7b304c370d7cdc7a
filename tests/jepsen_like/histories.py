"""Histories for tests: written by hand, or made by really running a sequential machine."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.models import DIFFERS, Call, Model
from jepsen_like.history import Event, EventType


def history(*lines: tuple[Any, ...]) -> list[Event]:
    """From (process, type, f, value) or (process, type, f, value, key)."""
    return [
        Event(
            process=line[0],
            type=line[1],
            f=line[2],
            value=line[3],
            key=line[4] if len(line) > 4 else None,
            time_ns=at,
        )
        for at, line in enumerate(lines)
    ]


def sequential(*operations: tuple[Any, ...]) -> list[Event]:
    """One after the other, from (process, f, asked, outcome, answer)."""
    lines: list[tuple[Any, ...]] = []
    for process, f, asked, outcome, answer in operations:
        lines += [(process, "invoke", f, asked), (process, outcome, f, answer)]
    return history(*lines)


class _Open:
    """An operation under way in ``run_register``."""

    def __init__(self, f: str, asked: Any) -> None:
        self.f = f
        self.asked = asked
        self.done = False
        self.answer: Any = None


def run_register(
    random: Random,
    operations: int,
    processes: int,
    *,
    unknown: float = 0.1,
    values: int | None = None,
) -> list[Event]:
    """What clients of a correct register see, with points of effect drawn by *random*. Operations
    of unknown outcome take effect much later, or never. *values*: so many, else all are unique."""
    state: Any = None
    found: list[Event] = []
    open_: dict[int, _Open] = {}
    active = list(range(processes))
    late: list[_Open] = []
    begun = 0

    def record(process: int, kind: EventType, f: str, value: Any) -> None:
        found.append(Event(process=process, type=kind, f=f, value=value, time_ns=len(found)))

    def apply(each: _Open) -> None:
        nonlocal state
        each.done = True
        if each.f == "read":
            each.answer = state
        elif each.f == "write":
            state = each.answer = each.asked
        elif each.asked[0] == state:
            state, each.answer = each.asked[1], each.asked
        else:
            each.answer = DIFFERS

    while begun < operations or open_:
        if late and random.random() < 0.05:
            apply(late.pop(random.randrange(len(late))))
        place = random.randrange(len(active))
        process = active[place]
        each = open_.get(process)
        if each is None:
            if begun == operations:
                continue
            begun += 1
            new = begun if values is None else random.randrange(values)
            f = random.choice(["read", "read", "write", "cas"])
            guess = state if random.random() < 0.8 else new
            asked = {"read": None, "write": new, "cas": [guess, new]}[f]
            open_[process] = _Open(f, asked)
            record(process, "invoke", f, asked)
        elif not each.done:
            if random.random() < unknown:
                if each.f != "read":
                    late.append(each)
                del open_[process]
                record(process, "info", each.f, each.asked)
                active[place] = max(active) + 1
            else:
                apply(each)
        elif random.random() < 0.5:
            del open_[process]
            record(process, "fail" if each.answer == DIFFERS else "ok", each.f, each.answer)
    return found


def any_order(model: Model, calls: Sequence[Call]) -> bool:
    """The definition itself: tries every order, with and without each unknown call."""

    def go(state: Any, left: tuple[Call, ...]) -> bool:
        if not any(call.certain for call in left):
            return True
        deadline = min(call.end for call in left)
        for at, call in enumerate(left):
            if call.start < deadline:
                after = model.step(state, call)
                if after is not None and go(after, left[:at] + left[at + 1 :]):
                    return True
        return False

    return go(model.initial(), tuple(calls))


def transaction(text: str) -> list[list[Any]]:
    """ "ax1 ry12 rz" is: append 1 to x, read y as [1, 2], read z as []."""
    steps: list[list[Any]] = []
    for word in text.split():
        if word[0] == "a":
            steps.append(["append", word[1], int(word[2:])])
        else:
            steps.append(["r", word[1], [int(each) for each in word[2:]]])
    return steps


def asked(steps: list[list[Any]]) -> list[list[Any]]:
    """The invocation of a transaction: nothing is read yet."""
    return [[f, key, value if f == "append" else None] for f, key, value in steps]


def at_once(*texts: str, kind: EventType = "ok") -> list[Event]:
    """Transactions that all overlap, each of a process of its own."""
    return with_outcomes(*[(text, kind) for text in texts])


def with_outcomes(*each: tuple[str, EventType]) -> list[Event]:
    """Overlapping transactions, each with how it ended."""
    steps = [transaction(text) for text, _kind in each]
    lines: list[tuple[Any, ...]] = [
        (number, "invoke", "txn", asked(one)) for number, one in enumerate(steps)
    ]
    lines += [
        (number, kind, "txn", one)
        for number, (one, (_text, kind)) in enumerate(zip(steps, each, strict=True))
    ]
    return history(*lines)


def in_turn(*texts: str, process: int | None = None) -> list[Event]:
    """Transactions one after the other; of one *process*, or each of its own."""
    lines: list[tuple[Any, ...]] = []
    for number, text in enumerate(texts):
        steps = transaction(text)
        who = number if process is None else process
        lines += [(who, "invoke", "txn", asked(steps)), (who, "ok", "txn", steps)]
    return history(*lines)
