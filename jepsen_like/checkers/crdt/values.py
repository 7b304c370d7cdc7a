"""What a read must show: the declarative specification of each kind, where it decides.

A value is a function of the updates that the state holds and of which of them saw which. What puts
something in is *alive* until something that saw it takes it out. An element is in a set while one
of its adds is alive, a flag is up while one that raised it is, a counter is the sum of what is
alive, a register shows what is alive. Where it is not known who saw whom, both answers are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Final

from jepsen_like.checkers.base import Findings, show
from jepsen_like.checkers.crdt.acts import FINAL, READ, WRITE, Act
from jepsen_like.checkers.crdt.folds import Seen
from jepsen_like.checkers.crdt.visibility import Visibility

#: Of so many additions that may count or not, all sums are tried; of more, only the bounds.
SUMS_OF_MAX: Final = 10


class Values:
    """The reads of one name, against its writes."""

    def __init__(self, findings: Findings, visibility: Visibility, acts: Sequence[Act]) -> None:
        self._findings = findings
        self._visibility = visibility
        self._reads = [act for act in acts if act.f in {READ, FINAL} and act.place is not None]
        writes = [act for act in acts if act.f == WRITE and act.outcome != "fail"]
        self._cells = dict.fromkeys(act.cell for act in writes)
        self._puts: dict[Any, list[Act]] = {cell: [] for cell in self._cells}
        self._takes: dict[Any, list[Act]] = {cell: [] for cell in self._cells}
        for act in writes:
            if act.puts:
                self._puts[act.cell].append(act)
            if act.takes:
                self._takes[act.cell].append(act)
        self.decided = 0

    def check(self) -> None:
        """All of them."""
        for read in self._reads:
            shown = _cells_shown(read)
            for cell in {**self._cells, **dict.fromkeys(shown)}:
                self._check_cell(read, cell, shown.get(cell))
        self._check_equal()

    def _check_equal(self) -> None:
        """States that hold the same are the same."""
        first: dict[tuple[tuple[int, int], ...], Act] = {}
        for read in self._reads:
            if not self._visibility.exact(read):
                continue
            place = tuple(sorted((read.place or {}).items()))
            other = first.setdefault(place, read)
            if other.shows != read.shows:
                self._findings.add(
                    f"{other} and {read} are of the same place, and show {show(other.shows)} and "
                    f"{show(read.shows)}"
                )

    # --- what is alive ----------------------------------------------------------------------------

    def _alive(self, read: Act, cell: Any) -> tuple[list[Act], list[Act]]:  # noqa: ANN401
        """What is surely alive in *cell* where *read* was answered, and what may be."""
        sure: list[Act] = []
        perhaps: list[Act] = []
        for put in self._puts.get(cell, ()):
            alive = self._life(read, cell, put)
            if self._visibility.repeats(put) and put.begun < read.ended:
                perhaps.append(put)
            if alive is not Seen.NO:
                (sure if alive is Seen.YES else perhaps).append(put)
        return sure, perhaps

    def _life(self, read: Act, cell: Any, put: Act) -> Seen:  # noqa: ANN401
        visibility = self._visibility
        held = visibility.holds(put, read)
        if held is Seen.NO:
            return Seen.NO
        for take in self._takes[cell]:
            if take is put:
                continue
            there = visibility.holds(take, read)
            if there is Seen.NO:
                continue
            saw = self._takes_out(take, put, cell)
            if saw is Seen.YES and there is Seen.YES:
                return Seen.NO
            if saw is not Seen.NO or visibility.repeats(take):
                held = Seen.MAYBE
        return held

    def _takes_out(self, take: Act, put: Act, cell: Any) -> Seen:  # noqa: ANN401
        """Whether *take* takes *put* out wherever both are held. One that takes what was observed
        leaves alone what was not alive any more when it was."""
        saw = self._visibility.saw(take, put)
        if take.seen is None or saw is Seen.NO:
            return saw
        for other in self._takes[cell]:
            if other is take or other.begun > take.seen.ended:
                continue
            before = min(
                self._visibility.holds(other, take.seen), self._takes_out(other, put, cell)
            )
            saw = min(saw, Seen(Seen.YES - before))
        return saw

    # --- what is shown ----------------------------------------------------------------------------

    def _check_cell(self, read: Act, cell: Any, shown: Any) -> None:  # noqa: ANN401
        sure, perhaps = self._alive(read, cell)
        problem = _PROBLEMS[read.kind](shown, sure, perhaps)
        self.decided += not perhaps
        if problem:
            where = "" if cell is None else f" of {cell!r}"
            self._findings.add(f"{read} shows {show(shown)}{where}: {problem}")


def _present(shown: Any, sure: list[Act], perhaps: list[Act]) -> str:  # noqa: ANN401
    if not shown and sure:
        return f"it lacks what {_list(sure)} put in, and nothing took out"
    if shown and not sure and not perhaps:
        return "nothing that put it in is alive: it was taken out, or never was there"
    return ""


def _absent(shown: Any, sure: list[Act], perhaps: list[Act]) -> str:  # noqa: ANN401
    if shown and sure:
        return f"it is up, though {_list(sure)} lowered it, and nothing raised it since"
    if not shown and not sure and not perhaps:
        return "it is down, and all that lowered it was seen by what raised it"
    return ""


def _amount(shown: Any, sure: list[Act], perhaps: list[Act]) -> str:  # noqa: ANN401
    count = shown or 0
    least = sum(act.what for act in sure)
    maybe = [act.what for act in perhaps]
    low = least + sum(number for number in maybe if number < 0)
    high = least + sum(number for number in maybe if number > 0)
    if not low <= count <= high:
        return f"it is from {low} to {high}: additions are lost, or counted twice"
    if len(maybe) <= SUMS_OF_MAX and count not in _sums(least, maybe):
        return (
            f"no choice among {_list(perhaps)}, which may count or not, comes to that beside "
            f"{least}"
        )
    return ""


def _sums(least: int, maybe: Sequence[int]) -> set[int]:
    return {least + sum(chosen) for chosen in product(*((0, number) for number in maybe))}


def _one_of(shown: Any, sure: list[Act], perhaps: list[Act]) -> str:  # noqa: ANN401
    if shown is None:
        return f"it lacks {_list(sure)}" if sure else ""
    if all(act.what != shown for act in (*sure, *perhaps)):
        return f"that was replaced, or not written; alive is one of {_list((*sure, *perhaps))}"
    return ""


def _all_of(shown: Any, sure: list[Act], perhaps: list[Act]) -> str:  # noqa: ANN401
    there = list(shown or ())
    lacking = [act for act in sure if act.what not in there]
    if lacking:
        return f"it lacks {_list(lacking)}"
    known = [act.what for act in (*sure, *perhaps)]
    strange = [value for value in there if value not in known]
    return f"{show(strange)} were replaced, or not written" if strange else ""


_PROBLEMS: Final = {
    "counter": _amount,
    "map": _amount,
    "set": _present,
    "on-flag": _present,
    "off-flag": _absent,
    "register": _one_of,
    "multi": _all_of,
}


def _cells_shown(read: Act) -> dict[Any, Any]:
    """By cell, what the read shows in it."""
    if read.kind == "set":
        return dict.fromkeys(read.shows, True)
    if read.kind == "map":
        return dict(read.shows)
    return {None: read.shows}


def _list(acts: Iterable[Act]) -> str:
    found = [str(act) for act in acts]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
