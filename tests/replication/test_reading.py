"""Rounds of linearizable reads: contexts, tries, waiting for apply."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import QueryFailed, QueryReply
from quorate.base.types import LogIndex
from quorate.errors import OverloadedError, UnavailableError
from quorate.replication import reading as module
from quorate.replication.reading import Reads
from tests import sharing
from tests.replication.driving import how_many


class Desk:
    def __init__(self, *, at_once: bool = False) -> None:
        self.asked: list[int] = []
        self.at_once = at_once  #: as a leader with a lease answers
        self.reads = Reads(ask=self._ask, first_context=100)
        self.failed: dict[int, str] = {}
        self.count = 0

    def _ask(self, context: int) -> None:
        assert context not in self.asked, "a context is never used twice"
        self.asked.append(context)
        if self.at_once:
            self.grant(context, 1)

    def add(self) -> int:
        self.count += 1
        self.reads.add(how_many(self.count), self._sink)
        return self.count

    def _sink(self, answer: QueryReply | QueryFailed) -> None:
        assert isinstance(answer, QueryFailed)
        assert answer.id not in self.failed, "answered twice"
        self.failed[answer.id] = answer.code

    def grant(self, context: int, index: int) -> None:
        self.reads.on_index(context, LogIndex(index))

    def ready(self, applied: int) -> list[int]:
        return [each.query.id for each in self.reads.ready(LogIndex(applied))]


def test_reads_share_a_round_and_only_two_are_under_way() -> None:
    desk = Desk()
    for _ in range(3):
        desk.add()
        desk.add()
        desk.reads.start_round(1.0)
    assert desk.asked == [100, 101]
    assert not desk.reads.any_waiting
    desk.grant(101, 9)
    assert desk.reads.any_waiting
    desk.grant(100, 5)
    assert desk.ready(4) == []
    assert desk.ready(5) == [1, 2]
    assert desk.ready(9) == [3, 4]
    desk.reads.start_round(1.1)
    desk.grant(102, 9)
    assert desk.ready(9) == [5, 6]
    assert desk.reads.count == 0


def test_an_old_context_is_never_trusted_again() -> None:
    desk = Desk()
    desk.add()
    desk.reads.start_round(0.0)
    desk.reads.on_tick(module.ROUND_TIMEOUT_S)
    assert desk.asked == [100, 101]
    desk.grant(100, 5)
    assert desk.ready(99) == []
    desk.grant(101, 7)
    assert desk.ready(6) == []
    assert desk.ready(7) == [1]
    desk.grant(101, 3)  # repeated by the network
    assert desk.ready(99) == []


def test_refusals_are_asked_again_for_as_long_as_an_election_may_take() -> None:
    desk = Desk()
    desk.add()
    now_s = 0.0
    desk.reads.start_round(now_s)
    while now_s < module.ROUND_GIVE_UP_S - 0.06:
        desk.grant(desk.asked[-1], 0)
        now_s += 0.01
        desk.reads.on_tick(now_s)
        assert not desk.failed, f"given up after {now_s} s"
    assert 20 <= len(desk.asked) <= 45
    desk.grant(desk.asked[-1], 0)
    desk.reads.on_tick(now_s + 0.2)
    assert desk.failed == {1: UnavailableError.code}


def test_silence_is_given_up_too() -> None:
    desk = Desk()
    desk.add()
    for at in range(300):
        desk.reads.on_tick(at / 100)
    assert desk.failed == {1: UnavailableError.code}
    assert len(desk.asked) == 8
    assert desk.reads.count == 0


def test_a_member_that_does_not_get_on_with_applying_says_so() -> None:
    desk = Desk()
    desk.add()
    desk.reads.start_round(0.0)
    desk.grant(100, 50)
    desk.reads.on_tick(module.APPLY_GIVE_UP_S - 0.1)
    assert not desk.failed
    desk.reads.on_tick(module.APPLY_GIVE_UP_S + 0.1)
    assert desk.failed == {1: UnavailableError.code}
    assert desk.ready(99) == []


def test_an_answer_may_come_while_it_is_asked_for() -> None:
    desk = Desk(at_once=True)
    desk.add()
    desk.reads.on_tick(0.0)
    assert desk.ready(1) == [1]


def test_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES_WAITING_MAX", 2)
    desk = Desk()
    desk.add()
    desk.add()
    with pytest.raises(OverloadedError):
        desk.add()
    desk.reads.fail_all("closed", "")
    assert desk.failed == {1: "closed", 2: "closed"}


def test_a_stop_in_the_middle_of_asking_answers_each_once() -> None:
    desk = Desk()
    for _ in range(2):
        desk.add()
        desk.reads.start_round(0.0)
    desk.reads._ask = lambda context: desk.reads.fail_all("closed", "")  # noqa: ARG005
    desk.reads.on_tick(1.0)
    assert desk.failed == {1: "closed", 2: "closed"}
    desk.add()
    desk.reads.start_round(2.0)
    assert desk.reads.count == 1


plans = st.lists(
    st.tuples(
        st.sampled_from(["add", "start", "grant", "refuse", "apply", "tick"]), st.integers(0, 3)
    ),
    max_size=60,
)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(plan=plans)
def test_every_read_is_answered_once_and_never_from_before_its_round(
    plan: list[tuple[str, int]],
) -> None:
    desk = Desk()
    now_s, index, applied = 0.0, 1, 0
    began: dict[int, int] = {}  # the lowest index each may see
    served: set[int] = set()

    def serve() -> None:
        for number in desk.ready(applied):
            assert number not in served
            assert applied >= began[number]
            served.add(number)

    for what, amount in plan:
        if what == "add":
            began[desk.add()] = index
        elif what == "start":
            desk.reads.start_round(now_s)
        elif what == "grant" and desk.asked:
            desk.grant(desk.asked[-1 - amount % len(desk.asked)], index)
        elif what == "refuse" and desk.asked:
            desk.grant(desk.asked[-1 - amount % len(desk.asked)], 0)
        elif what == "apply":
            index += amount
            applied = max(applied, index - amount % 2)
        else:
            now_s += amount * 0.1
            desk.reads.on_tick(now_s)
        serve()
        assert desk.reads.count == len(began) - len(served) - len(desk.failed)
    desk.reads.fail_all("closed", "")
    assert served | set(desk.failed) == set(began)
