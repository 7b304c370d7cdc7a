"""From a history that no order explains, the few operations that already show it.

Every step weakens: the end of the history is cut off, a read is left out, or a call's outcome is
declared unknown. What had an order before still has one afterwards, so if the small history has
none, neither has the whole one. A write is never just left out, because a history without a write
can be wrong where the whole one is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from jepsen_like.checkers.models import Answer, Call, Model
from jepsen_like.checkers.search import Found, search

#: Steps for making one counterexample small; when they are used up it is shown as small as it then
#: is. Setting up a search counts as one step for each call: a second or two in all.
SHRINK_STEPS_MAX: Final = 400_000

#: For one attempt. What is harder to decide than this makes no good example.
ATTEMPT_STEPS_MAX: Final = 20_000

#: Sentences and orders name at most so many operations, the last ones.
TOLD_MAX: Final = 12


class Counterexample(NamedTuple):
    """*calls*: no order explains these; in the order of their starts. *found*: what the search said
    of them. *minimal*: weakening any one of them more would allow an order."""

    calls: tuple[Call, ...]
    found: Found
    minimal: bool

    def longest(self) -> tuple[Call, ...]:
        """The calls of the first of the longest orders, in that order."""
        if not self.found.longest:
            return ()
        return tuple(self.calls[at] for at in self.found.longest[0])

    def stuck(self) -> tuple[Call, ...]:
        """The calls that this order does not explain: known to have happened, and not in it."""
        taken = {call.start for call in self.longest()}
        return tuple(call for call in self.calls if call.certain and call.start not in taken)


class _Shrinker:
    """The budget, and the question that it is spent on."""

    def __init__(self, model: Model, steps_max: int) -> None:
        self._model = model
        self._steps_left = steps_max

    @property
    def spent(self) -> bool:
        """Whether nothing more can be asked."""
        return self._steps_left <= 0

    def wrong(self, calls: Sequence[Call]) -> bool:
        """Whether it is certain that no order explains *calls*."""
        if self.spent:
            return False
        found = search(self._model, self._model.simplify(calls), ATTEMPT_STEPS_MAX)
        self._steps_left -= found.steps + len(calls) + 1
        return found.valid is False

    def weaken(self, calls: Sequence[Call]) -> list[Call]:
        """Fewer reads, and what else happened happened perhaps."""
        return [call.weakened() for call in calls if not self._model.reads(call)]


def cut(model: Model, calls: Sequence[Call], at: int) -> list[Call]:
    """The history up to and with the completion at place *at*: what is open then is unknown."""
    kept = []
    for call in calls:
        if call.start > at:
            continue
        if not call.certain or call.end <= at:
            kept.append(call)
        elif not model.reads(call):
            kept.append(call.weakened())
    return kept


def shrink(
    model: Model, calls: Sequence[Call], found: Found, steps_max: int = SHRINK_STEPS_MAX
) -> Counterexample:
    """Make *calls*, for which the search *found* no order, as few as the budget allows."""
    shrinker = _Shrinker(model, steps_max)
    small = _shortest_prefix(shrinker, model, calls, found.stuck_at)
    small = _fewest(shrinker, model, small)
    minimal = not shrinker.spent
    small = model.simplify(small)
    small.sort(key=lambda call: call.start)
    again = search(model, small, steps_max // 4, ahead=False)
    if again.valid is not False:  # too many to tell how far an order gets
        again, minimal = found._replace(longest=()), False
    return Counterexample(tuple(small), again, minimal)


def _shortest_prefix(
    shrinker: _Shrinker, model: Model, calls: Sequence[Call], stuck_at: int
) -> list[Call]:
    """The search gets past every completion before *stuck_at*; mostly nothing later is needed."""
    ends = sorted(call.end for call in calls if call.certain and call.end >= stuck_at)
    low, high = 0, len(ends) - 1  # no order past ends[high]; nothing is known of those before
    while low < high:
        middle = low if low == 0 else (low + high) // 2
        if shrinker.wrong(cut(model, calls, ends[middle])):
            high = middle
        else:
            low = middle + 1
    return cut(model, calls, ends[high]) if ends else list(calls)


def _fewest(shrinker: _Shrinker, model: Model, calls: list[Call]) -> list[Call]:
    """Weaken pieces of the history, the later and the larger ones first, while it stays wrong."""
    calls = sorted(model.simplify(calls), key=lambda call: call.start)
    size = max(1, len(calls) // 2)
    while not shrinker.spent:
        changed = False
        end = len(calls)
        while end > 0 and not shrinker.spent:
            begin = max(0, end - size)
            piece = calls[begin:end]
            if any(call.certain for call in piece):
                smaller = [*calls[:begin], *shrinker.weaken(piece), *calls[end:]]
                if shrinker.wrong(smaller):
                    calls, changed = smaller, True
            end = begin
        calls = model.simplify(calls)
        if size == 1 and not changed:
            break
        size = max(1, size // 2)
    return calls


def explain(model: Model, example: Counterexample) -> str:
    """The counterexample in words: what happened, and where the best order gets stuck."""
    said = _last("; ", [_sentence(model, call) for call in example.calls])
    state = model.initial()
    order = example.longest()
    for call in order:
        after = model.step(state, call)
        if after is not None:
            state = after
    stuck = _last(
        " and ",
        [
            f"process {call.operation.invoked.process} {model.describe(call)}"
            for call in example.stuck()
        ],
    )
    text = f"no order explains {len(example.calls)} operations: {said}"
    if not example.found.longest:
        return text
    tried = _last(", ", [model.describe(call) for call in order]) or "nothing"
    return (
        f"{text}. The longest order explains {tried}; the state is then {model.show(state)}, which "
        f"leaves: {stuck}"
    )


def _last(separator: str, texts: list[str]) -> str:
    """Joined; of many only the last ones, and how many come before."""
    if len(texts) <= TOLD_MAX:
        return separator.join(texts)
    return f"({len(texts) - TOLD_MAX} earlier ones) {separator.join(texts[-TOLD_MAX:])}"


def _sentence(model: Model, call: Call) -> str:
    operation = call.operation
    end = operation.completed_at if call.output is not Answer.UNKNOWN else "…"
    return (
        f"process {operation.invoked.process} {model.describe(call)} [{operation.invoked_at}-{end}]"
    )
