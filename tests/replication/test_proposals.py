"""Submissions between arrival and answer."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.frames import Run, Submit, SubmitFailed, SubmitReply
from quorate.base.limits import BATCH_COMMANDS_MAX, ENTRY_BYTES_MAX
from quorate.base.types import LogIndex, Term
from quorate.errors import NotLeaderError, OutcomeUnknownError, OverloadedError
from quorate.replication import proposals as module
from quorate.replication.batch import Batch, encode_batch
from quorate.replication.gateway import Prepared
from quorate.replication.machines import Machines
from quorate.replication.proposals import Proposals
from tests import sharing
from tests.replication.driving import Tally, hit

NO = NotLeaderError.code
UNKNOWN = OutcomeUnknownError.code


class Desk:
    """Proposals, and every answer by sequence."""

    def __init__(self) -> None:
        self.proposals = Proposals()
        self.machines = Machines((Tally(),))
        self.answers: dict[int, str] = {}
        self.count = 0

    def add(self, submit: Submit | None = None) -> int:
        self.count += 1
        number = self.count

        def sink(answer: SubmitReply | SubmitFailed) -> None:
            assert number not in self.answers, "answered twice"
            self.answers[number] = answer.code if isinstance(answer, SubmitFailed) else "ok"

        prepared = self.machines.prepare(submit or hit("a", sequence=number))
        self.proposals.add(prepared, sink)
        return number

    def propose(self, index: int, term: int) -> int:
        number = self.add()
        self.proposals.proposed(LogIndex(index), Term(term), self.proposals.take())
        return number

    def apply(self, index: int, term: int) -> bool:
        return self.proposals.at(LogIndex(index), Term(term)) is not None


def test_entries_of_earlier_terms_stand_in_nobodys_way() -> None:
    desk = Desk()
    first, second = desk.propose(5, 1), desk.propose(6, 1)
    assert desk.proposals.in_flight(Term(1)) == 2
    assert desk.proposals.in_flight(Term(3)) == 0
    desk.propose(4, 3)
    assert desk.proposals.in_flight(Term(3)) == 1
    assert desk.apply(4, 3)
    assert desk.answers == {}
    assert desk.apply(5, 1)  # committed after all, under another leader
    assert not desk.apply(6, 2)
    assert desk.answers == {second: NO}
    assert first not in desk.answers  # its caller answers


def test_two_entries_at_one_index() -> None:
    desk = Desk()
    old, _new = desk.propose(5, 1), desk.propose(5, 3)
    assert desk.apply(5, 3)
    assert desk.answers == {old: NO}


def test_what_a_snapshot_passes_over_is_unknown() -> None:
    desk = Desk()
    below, at, above = desk.propose(5, 1), desk.propose(6, 1), desk.propose(7, 1)
    desk.proposals.passed_over(LogIndex(6))
    assert desk.answers == {below: UNKNOWN, at: UNKNOWN}
    assert desk.proposals.in_flight(Term(1)) == 1
    assert not desk.apply(7, 2)
    assert desk.answers[above] == NO


def test_endless_elections_do_not_fill_the_memory() -> None:
    desk = Desk()
    for term in range(1, module.PROPOSED_MAX + 11):
        desk.propose(1000 - term, term)
    assert list(desk.answers.items()) == [(number, UNKNOWN) for number in range(1, 11)]
    assert desk.proposals.in_flight(Term(module.PROPOSED_MAX + 10)) == 1


def test_stop_answers_all_and_nobody_twice() -> None:
    desk = Desk()
    desk.propose(5, 1)
    desk.add()
    desk.proposals.fail_queued("closed", "")
    desk.proposals.fail_proposed(OutcomeUnknownError("stopped"))
    assert desk.answers == {1: UNKNOWN, 2: "closed"}
    assert desk.proposals.queued == desk.proposals.queued_bytes == 0
    assert not desk.apply(5, 1)


def test_what_is_given_back_keeps_its_place() -> None:
    desk = Desk()
    for _ in range(3):
        desk.add()
    size = desk.proposals.queued_bytes
    taken = desk.proposals.take()
    desk.add()
    desk.proposals.give_back(taken)
    assert desk.proposals.queued_bytes > size
    assert [each.prepared.submit.sequence for each in desk.proposals.take()] == [1, 2, 3, 4]


def test_a_full_queue_refuses_and_one_large_submission_always_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES_MAX", 1000)
    desk = Desk()
    desk.add(hit("x" * 2000))
    with pytest.raises(OverloadedError):
        desk.add()
    monkeypatch.setattr(module, "QUEUE_BYTES_MAX", 10**9)
    monkeypatch.setattr(module, "QUEUE_SUBMISSIONS_MAX", 2)
    desk.add()
    with pytest.raises(OverloadedError):
        desk.add()


@pytest.mark.parametrize(("runs", "items"), [(BATCH_COMMANDS_MAX, b"\x90"), (1, b"\x90"), (7, b"")])
def test_an_entry_of_the_smallest_submissions_is_within_its_limit(runs: int, items: bytes) -> None:
    """Their headers weigh more than what they hold."""
    raw = msgspec.Raw(items or msgspec.msgpack.encode([[1, ""]] * 3))
    submit = Submit(2**62, 2**62, 2**62, (Run("tally", raw),) * runs)
    prepared = Prepared(
        submit, (), 0, sum(len(run.items) + len(run.machine) for run in submit.runs)
    )
    proposals = Proposals()
    while (
        proposals.queued_bytes < ENTRY_BYTES_MAX and proposals.queued < module.QUEUE_SUBMISSIONS_MAX
    ):
        proposals.add(prepared, lambda answer: None)  # noqa: ARG005
    taken = proposals.take()
    batch = Batch(2**62, 2**62, 2**64 - 1, tuple(each.prepared.submit for each in taken))
    assert len(encode_batch(batch)) <= ENTRY_BYTES_MAX


events = st.lists(
    st.tuples(st.sampled_from(["lead", "propose", "apply", "install"]), st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(plan=events)
def test_every_answer_is_true_whatever_becomes_of_the_log(plan: list[tuple[str, int]]) -> None:
    """A log per leadership; what is committed never changes; answers are held to it."""
    desk = Desk()
    log: list[tuple[int, int]] = []  # (term, number); the index is the place + 1
    applied, term = 0, 1
    done: set[int] = set()
    maybe: set[int] = set()
    for what, amount in plan:
        if what == "lead":  # somebody else led, cut the log down, and then this node again
            term += 2
            cut = max(len(log) - amount, applied)
            log = [*log[:cut], (term, 0)]
        elif what == "propose":
            log.append((term, desk.propose(len(log) + 1, term)))
        elif what == "apply":
            for own, number in log[applied : applied + amount]:
                applied += 1
                found = desk.proposals.at(LogIndex(applied), Term(own))
                assert (found is not None) == bool(number)
                done |= {number}
        else:
            upto = min(applied + amount, len(log))
            maybe |= {number for _, number in log[applied:upto]}
            applied = upto
            desk.proposals.passed_over(LogIndex(applied))
        for number, code in desk.answers.items():
            assert code == UNKNOWN or number not in done | maybe, "refused, and done"
        assert desk.proposals.in_flight(Term(term)) == sum(
            1 for own, number in log[applied:] if own == term and number
        )
