"""Checkers of barriers and of what leaders proclaim: what is broken is found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jepsen_like.checkers.barriers import BarrierChecker
from jepsen_like.checkers.proclaimed import ProclaimedChecker
from tests.jepsen_like.test_coordination_checkers import Scribe, verdict

# --- barriers -------------------------------------------------------------------------------------


def begin(scribe: Scribe, process: int, f: str = "wait", visit: int = 0) -> None:
    scribe.add(process, "invoke", f, "b", {"parties": 2, "visit": visit})


def end(scribe: Scribe, process: int, f: str = "wait", *, passed: bool = True) -> None:
    scribe.add(process, "ok" if passed else "fail", f, "b", None)


def two_pass(scribe: Scribe) -> None:
    begin(scribe, 1)
    begin(scribe, 2)
    begin(scribe, 3)
    end(scribe, 2)
    begin(scribe, 2)
    end(scribe, 2)
    end(scribe, 1)
    end(scribe, 3)


def one_passes(scribe: Scribe) -> None:
    begin(scribe, 1)
    end(scribe, 1)
    begin(scribe, 2)
    end(scribe, 2)


def three_pass(scribe: Scribe) -> None:
    for process in (1, 2, 3):
        begin(scribe, process)
    for process in (1, 2, 3):
        end(scribe, process)


def one_went_away(scribe: Scribe) -> None:
    begin(scribe, 3)
    end(scribe, 3, passed=False)
    three_pass(scribe)


def one_came_too_late(scribe: Scribe) -> None:
    three_pass(scribe)
    begin(scribe, 3)
    end(scribe, 3, passed=False)


def entered(scribe: Scribe, first: int = 1) -> None:
    for each in (first, first + 1):
        begin(scribe, each, "enter", each)
    for each in (first, first + 1):
        end(scribe, each, "enter")


def leave_together(scribe: Scribe) -> None:
    entered(scribe)
    for each in (1, 2):
        begin(scribe, each, "leave", each)
    for each in (1, 2):
        end(scribe, each, "leave")


def leave_alone(scribe: Scribe) -> None:
    entered(scribe)
    for each in (1, 2):
        begin(scribe, each, "leave", each)
        end(scribe, each, "leave")


def left_by_the_dead(scribe: Scribe) -> None:
    entered(scribe)
    begin(scribe, 1, "leave", 1)
    end(scribe, 1, "leave")
    begin(scribe, 2, "leave", 2)
    end(scribe, 2, "leave", passed=False)


def two_rounds_inside(scribe: Scribe) -> None:
    entered(scribe)
    entered(scribe, 3)
    for each in (1, 2, 3, 4):
        begin(scribe, each, "leave", each)
    for each in (1, 2, 3, 4):
        end(scribe, each, "leave")


def stands_still(scribe: Scribe) -> None:
    two_pass(scribe)
    state = {"parties": 2, "waiting": 2, "inside": 0, "leaving": 0}
    scribe.did(9, "count", "b", None, state)


BARRIERS: list[tuple[Callable[[Scribe], None], str]] = [
    (two_pass, ""),
    (one_passes, "of 2 parties"),
    (three_pass, "there were 0"),
    (one_went_away, ""),
    (one_came_too_late, "there were 0"),
    (leave_together, ""),
    (leave_alone, "wanted to leave only later"),
    (left_by_the_dead, ""),
    (two_rounds_inside, "were inside"),
    (stands_still, "stands still"),
]


@pytest.mark.parametrize(("story", "problem"), BARRIERS, ids=[e.__name__ for e, _ in BARRIERS])
def test_barriers(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(BarrierChecker(), scribe)
    assert valid is not bool(problem), problems
    assert problem in problems


# --- what is proclaimed ---------------------------------------------------------------------------


def campaign(scribe: Scribe, process: int, number: int, epoch: int) -> None:
    scribe.did(process, "acquire", "n", {"side": str(number)}, {"token": epoch})


def says(scribe: Scribe, process: int, number: int, count: int, kind: str = "ok") -> None:
    scribe.add(process, "invoke", "use", "n", {"say": [number, count]})
    scribe.add(process, "ok" if kind == "ok" else "fail", "use", "n", None)


def two_leaders(scribe: Scribe) -> None:
    campaign(scribe, 1, 1, 3)
    says(scribe, 1, 1, 1)
    campaign(scribe, 2, 2, 5)
    says(scribe, 2, 2, 1)


def in_order(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "follow", "n", None, [[3, 1, 1], [0, 0, 0], [5, 2, 0], [5, 2, 1]])
    scribe.did(3, "seen", "n", None, [5, 2, 1])


def earlier_leader_after_a_later_one(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "follow", "n", None, [[5, 2, 1], [0, 0, 0], [3, 1, 1]])


def told_twice(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "follow", "n", None, [[5, 2, 1], [5, 2, 1]])


def out_of_date(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "seen", "n", None, [5, 2, 0])


def not_said(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "seen", "n", None, [5, 2, 2])
    says(scribe, 2, 2, 2)


def refused(scribe: Scribe) -> None:
    two_leaders(scribe)
    says(scribe, 1, 1, 2, "fail")
    scribe.did(3, "follow", "n", None, [[3, 1, 2]])


def under_anothers_epoch(scribe: Scribe) -> None:
    two_leaders(scribe)
    scribe.did(3, "seen", "n", None, [5, 1, 1])


PROCLAIMED: list[tuple[Callable[[Scribe], None], str]] = [
    (in_order, ""),
    (earlier_leader_after_a_later_one, "of epoch 3 after text 1 of epoch 5"),
    (told_twice, "text 1 of epoch 5 after text 1 of epoch 5"),
    (out_of_date, "was known before"),
    (not_said, "nobody had said it"),
    (refused, "it was refused"),
    (under_anothers_epoch, "that of campaign 2"),
]


@pytest.mark.parametrize(("story", "problem"), PROCLAIMED, ids=[e.__name__ for e, _ in PROCLAIMED])
def test_proclaimed(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(ProclaimedChecker("proclaim"), scribe)
    assert valid is not bool(problem), problems
    assert problem in problems
