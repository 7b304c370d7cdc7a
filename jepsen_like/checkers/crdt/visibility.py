"""What was visible to what, as far as places and the order of events prove it.

Three-valued: yes, no, or nobody knows. A write's own record is not named by its answer, but the
place of the answer holds it, and it was made after the call began: it lies between what its node
had told before and what it told then. A node shows nothing beyond its place, and holds all of it,
but while it takes over what another node holds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from jepsen_like.checkers.crdt.acts import DISK_LOST, Act, Story
from jepsen_like.checkers.crdt.folds import FOLDS, Marks, Seen, actor_of, life_of


class _Answer(NamedTuple):
    """A node told at event *at* that it had come to *marks*, or it had told so before: what it
    holds outlives its process, and is lost with its disk only."""

    at: int
    marks: Marks


class _Bounds(NamedTuple):
    """The record of a write is in one of these lives, behind *low* and up to *high*. *first*: or in
    this life or a later one of its node, if it was folded before there was an answer; 0: it was
    not. *folds*: of the answer."""

    low: Mapping[int, int]
    high: Mapping[int, int]
    first: int
    folds: int


class Visibility:
    """Of the operations of *story*."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._answers = _answers(story)
        self._bounds: dict[int, _Bounds | None] = {}
        self._knew: dict[int, Marks] = {}
        self._saw: dict[tuple[int, int], Seen] = {}

    # --- writes and places ------------------------------------------------------------------------

    def bounds(self, write: Act) -> _Bounds | None:
        """Where its record is; None: nobody knows."""
        if write.number not in self._bounds:
            self._bounds[write.number] = self._find_bounds(write)
        return self._bounds[write.number]

    def _find_bounds(self, write: Act) -> _Bounds | None:
        if write.place is None:
            return None
        folds, node = self._story.folds, write.node
        lives = sorted(actor for actor in write.place if life_of(actor)[0] == node)
        answer = self._last(node, write.begun)
        told = {} if answer is None else answer.marks
        gone = folds.last_taken(node, self._story.folds_before(write.begun))
        begun = max(
            (actor for actor in told if life_of(actor)[0] == node), default=actor_of(node, 0)
        )
        begun = max(begun, actor_of(node, gone + 1))
        possible = [actor for actor in lives if actor >= begun]
        folded = folds.taken(begun, write.place.get(FOLDS, 0)) is not Seen.NO
        if not possible and not folded:
            return None
        return _Bounds(
            {actor: told.get(actor, 0) for actor in possible},
            {actor: write.place[actor] for actor in possible},
            begun if folded else 0,
            write.place.get(FOLDS, 0),
        )

    def _last(self, node: int, at: int) -> _Answer | None:
        """What *node* had told before event *at*."""
        answers = self._answers.get(node, [])
        place = bisect_left(answers, at, key=lambda answer: answer.at)
        return answers[place - 1] if place else None

    def covered(self, write: Act, marks: Marks, at: int) -> Seen:
        """Whether a place with *marks*, told by event *at*, covers the record of *write*. Of lives
        that are folded it covers what was not lost before, with a disk or with a member."""
        bounds = self.bounds(write)
        if bounds is None:
            return Seen.MAYBE
        folds = self._story.folds
        surely = [folds.covers(marks, actor, high) for actor, high in bounds.high.items()]
        perhaps = [folds.covers(marks, actor, low + 1) for actor, low in bounds.low.items()]
        if bounds.first:
            surely.append(folds.covers(marks, FOLDS, bounds.folds))
            last = actor_of(write.node + 1, 0)
            later = any(bounds.first <= actor < last for actor in marks)
            taken = folds.taken(bounds.first, marks.get(FOLDS, 0))
            perhaps.append(max(taken, Seen.MAYBE) if later else taken)
        if all(each is Seen.YES for each in surely):
            named = all(marks.get(actor, 0) >= high for actor, high in bounds.high.items())
            whole = named and not bounds.first
            lost = not whole and self._story.lost_between(write.node, write.begun, at)
            return Seen.MAYBE if lost else Seen.YES
        return Seen.NO if all(each is Seen.NO for each in perhaps) else Seen.MAYBE

    def lacks(self, marks: Marks, others: Marks) -> bool:
        """Whether a place with *marks* surely lacks some of *others*."""
        folds = self._story.folds
        return any(folds.covers(marks, actor, last) is Seen.NO for actor, last in others.items())

    def holds(self, write: Act, act: Act) -> Seen:
        """Whether the node that answered *act* held *write* then."""
        if write.outcome == "fail" or write.begun > act.ended:
            return Seen.NO
        covered = self.covered(write, act.place or {}, act.ended)
        certain = self._story.certain(act)
        if covered is not Seen.YES or certain is None:
            return covered
        return max(self.covered(write, certain, act.ended), Seen.MAYBE)

    def exact(self, read: Act) -> bool:
        """Whether its node held just what its place says."""
        return self._story.certain(read) is None

    def repeats(self, write: Act) -> bool:
        """Whether *write* may have been carried out twice: its node forgot, with what it lost, that
        it had done so, and was asked again."""
        return self._story.between(DISK_LOST, write.node, write.begun, write.ended)

    # --- writes and writes ------------------------------------------------------------------------

    def saw(self, later: Act, earlier: Act) -> Seen:
        """Whether *later* was carried out where *earlier* was visible (if both took place)."""
        pair = (later.number, earlier.number)
        if pair not in self._saw:
            self._saw[pair] = self._find_saw(later, earlier)
        return self._saw[pair]

    def _find_saw(self, later: Act, earlier: Act) -> Seen:
        if earlier.outcome == "fail":
            return Seen.NO
        if later.seen is not None:
            return self.holds(earlier, later.seen)
        if later.outcome == "ok" and earlier.begun > later.ended:
            return Seen.NO
        if self.covered(earlier, self.knew(later), later.ended) is Seen.YES:
            return Seen.YES
        if later.place is None:
            return Seen.MAYBE
        held = self.holds(earlier, later)
        return Seen.NO if held is Seen.NO else Seen.MAYBE

    def knew(self, act: Act) -> Marks:
        """What the node of *act* had come to before, for certain."""
        if act.number not in self._knew:
            self._knew[act.number] = self._find_knew(act)
        return self._knew[act.number]

    def _find_knew(self, act: Act) -> Marks:
        answer = self._last(act.node, act.begun)
        if answer is None or self._story.between(DISK_LOST, act.node, answer.at, act.ended):
            return act.after
        return _joined(answer.marks, act.after)


def _answers(story: Story) -> dict[int, list[_Answer]]:
    """By node, what it told, in the order of time."""
    found: dict[int, list[_Answer]] = {}
    done = [act for act in story.acts if act.place is not None]
    for act in sorted(done, key=lambda act: act.ended):
        told = found.setdefault(act.node, [])
        certain = story.certain(act)
        marks = (act.place or {}) if certain is None else certain
        if told and not story.between(DISK_LOST, act.node, told[-1].at, act.ended):
            marks = _joined(told[-1].marks, marks)
        told.append(_Answer(act.ended, marks))
    return found


def _joined(one: Marks, other: Marks) -> Marks:
    joined = dict(one)
    for actor, sequence in other.items():
        if sequence > joined.get(actor, 0):
            joined[actor] = sequence
    return joined
