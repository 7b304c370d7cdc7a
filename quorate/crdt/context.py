"""Causal contexts: which dots a replica has accounted for, whatever became of them.

The *vector* says up to which counter all dots of an actor are in; the *cloud* holds runs of dots
beyond a gap. A context is in one normal form at any time (runs are disjoint, apart, in order, and
the first one joins the vector as soon as the gap closes), so equal contexts are equal bytes.

A dot that is in the context has been *accounted for*: it is alive in a leaf, or known to be dead.
That is not the same as having received the mutation that made it: an add that replaces an older
dot makes its receiver account for the older one too. What has been received from whom is counted
by those who send, in sequence.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from quorate.base.invariants import must
from quorate.crdt.dots import COUNTER_MAX, Dot

Run = tuple[int, int]  # the first and the last counter, both in


class CausalContext:
    """A set of dots, small when they are contiguous. ``vector`` and ``cloud`` are for reading."""

    __slots__ = ("cloud", "vector")

    def __init__(self) -> None:
        self.vector: dict[int, int] = {}
        self.cloud: dict[int, list[Run]] = {}

    @classmethod
    def of(cls, dots: Iterable[Dot]) -> CausalContext:
        """Exactly *dots*."""
        context = cls()
        for actor, counter in dots:
            context.add(actor, counter)
        return context

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, int, int]]) -> CausalContext:
        """The dots of all (actor, first, last)."""
        context = cls()
        for actor, first, last in runs:
            context.add_run(actor, first, last)
        return context

    # --- questions ----------------------------------------------------------------------------

    def contains(self, actor: int, counter: int) -> bool:
        """Whether that dot is in."""
        if counter <= self.vector.get(actor, 0):
            return counter > 0
        runs = self.cloud.get(actor)
        if runs is None:
            return False
        at = bisect_right(runs, (counter, COUNTER_MAX)) - 1
        return at >= 0 and counter <= runs[at][1]

    def runs_of(self, actor: int) -> list[Run]:
        """All runs of *actor*, in order."""
        last = self.vector.get(actor, 0)
        beyond = self.cloud.get(actor, [])
        return [(1, last), *beyond] if last else list(beyond)

    def actors(self) -> list[int]:
        """All that have a dot here, in order."""
        return sorted(self.vector.keys() | self.cloud.keys())

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(actor, first, last) of every run, in order."""
        for actor in self.actors():
            for first, last in self.runs_of(actor):
                yield actor, first, last

    def count(self) -> int:
        """How many dots are in."""
        return sum(last - first + 1 for _actor, first, last in self.runs())

    def width(self) -> int:
        """How many numbers it takes to write it down: one for an actor, two for a run."""
        return len(self.vector) + 2 * sum(len(runs) for runs in self.cloud.values())

    def covers(self, other: CausalContext) -> bool:
        """Whether every dot of *other* is in."""
        return all(
            self.contains(actor, first) and last <= self._end_of_run(actor, first)
            for actor, first, last in other.runs()
        )

    def is_disjoint(self, other: CausalContext) -> bool:
        """Whether no dot is in both."""
        few, many = (self, other) if self.width() <= other.width() else (other, self)
        return not any(
            _overlaps(many.runs_of(actor), first, last) for actor, first, last in few.runs()
        )

    def __bool__(self) -> bool:
        return bool(self.vector or self.cloud)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CausalContext):
            return NotImplemented
        return self.vector == other.vector and self.cloud == other.cloud

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CausalContext({list(self.runs())})"

    # --- changes ------------------------------------------------------------------------------

    def add(self, actor: int, counter: int) -> None:
        """Put one dot in."""
        end = self.vector.get(actor, 0)
        if counter == end + 1:
            self.vector[actor] = counter
            if actor in self.cloud:
                self._close_gap(actor)
        elif counter > end:
            _insert(self.cloud.setdefault(actor, []), counter, counter)
        else:
            must(counter > 0, "counters begin at 1", actor=actor, counter=counter)

    def add_run(self, actor: int, first: int, last: int) -> None:
        """Put the dots from *first* to *last* in."""
        must(0 < first <= last, "a run is not empty", actor=actor, first=first, last=last)
        end = self.vector.get(actor, 0)
        if first > end + 1:
            _insert(self.cloud.setdefault(actor, []), first, last)
        elif last > end:
            self.vector[actor] = last
            if actor in self.cloud:
                self._close_gap(actor)

    def update(self, other: CausalContext) -> None:
        """Put all dots of *other* in: the join of contexts is their union."""
        for actor, last in other.vector.items():
            if last > self.vector.get(actor, 0):
                self.add_run(actor, 1, last)
        for actor, runs in other.cloud.items():
            for first, last in runs:
                self.add_run(actor, first, last)

    def copy(self) -> CausalContext:
        """A context of its own with the same dots."""
        twin = CausalContext()
        twin.vector = dict(self.vector)
        twin.cloud = {actor: list(runs) for actor, runs in self.cloud.items()}
        return twin

    def minus(self, other: CausalContext) -> CausalContext:
        """The dots that *other* has not."""
        left = CausalContext()
        for actor in self.actors():
            for first, last in _subtract(self.runs_of(actor), other.runs_of(actor)):
                left.add_run(actor, first, last)
        return left

    def without(self, actors: Iterable[int]) -> CausalContext:
        """The dots of all other actors."""
        dropped = frozenset(actors)
        return CausalContext.from_runs(run for run in self.runs() if run[0] not in dropped)

    def _end_of_run(self, actor: int, counter: int) -> int:
        """The last counter of the run that *counter* is in."""
        end = self.vector.get(actor, 0)
        if counter <= end:
            return end
        runs = self.cloud[actor]
        return runs[bisect_right(runs, (counter, COUNTER_MAX)) - 1][1]

    def _close_gap(self, actor: int) -> None:
        """Let the vector take the runs that it has reached."""
        end, runs = self.vector[actor], self.cloud[actor]
        taken = 0
        while taken < len(runs) and runs[taken][0] <= end + 1:
            end = max(end, runs[taken][1])
            taken += 1
        self.vector[actor] = end
        if taken == len(runs):
            del self.cloud[actor]
        else:
            del runs[:taken]


def pointwise_minimum(contexts: Iterable[CausalContext]) -> CausalContext:
    """The dots that are in all of them; none for no contexts."""
    found: CausalContext | None = None
    for context in contexts:
        found = context.copy() if found is None else found.minus(found.minus(context))
    return found if found is not None else CausalContext()


def _insert(runs: list[Run], first: int, last: int) -> None:
    """Put a run among *runs*, one with all that it touches."""
    start = end = bisect_left(runs, (first, 0))
    if start > 0 and runs[start - 1][1] >= first - 1:
        start -= 1
        first, last = runs[start][0], max(last, runs[start][1])
    while end < len(runs) and runs[end][0] <= last + 1:
        last = max(last, runs[end][1])
        end += 1
    runs[start:end] = [(first, last)]


def _overlaps(runs: list[Run], first: int, last: int) -> bool:
    at = bisect_right(runs, (last, COUNTER_MAX)) - 1
    return at >= 0 and runs[at][1] >= first


def _subtract(runs: list[Run], others: list[Run]) -> Iterator[Run]:
    """What of *runs* is in none of *others*; both are in order."""
    at = 0
    for start, last in runs:
        first = start
        while at < len(others) and others[at][1] < first:
            at += 1
        here = at
        while here < len(others) and others[here][0] <= last:
            if others[here][0] > first:
                yield first, others[here][0] - 1
            first = others[here][1] + 1
            here += 1
        if first <= last:
            yield first, last
