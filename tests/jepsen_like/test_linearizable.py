"""The checker of linearizability against textbooks, against the definition, and against itself."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.checkers.counterexample import shrink
from jepsen_like.checkers.linearizable import Linearizable, witness
from jepsen_like.checkers.models import (
    DIFFERS,
    Call,
    CasRegisterModel,
    CounterModel,
    Model,
    RegisterModel,
    calls_of,
)
from jepsen_like.checkers.search import search
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, operations
from tests import sharing
from tests.jepsen_like.histories import any_order, history, run_register, sequential

CAS = CasRegisterModel()


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  our own text


def valid(events: list[Event], model: Model = CAS) -> object:
    return Linearizable(model).check(events).valid


# --- textbooks ------------------------------------------------------------------------------------

VALID = {
    "nothing": [],
    "read of nothing": sequential((0, "read", None, "ok", None)),
    # Porcupine's README and its test, from the exam of a course on distributed systems.
    "two reads during a write, in the order of their ends": history(
        (0, "invoke", "write", 100),
        (1, "invoke", "read", None),
        (2, "invoke", "read", None),
        (2, "ok", "read", None),
        (1, "ok", "read", 100),
        (0, "ok", "write", 100),
    ),
    "an unknown write takes effect much later": history(
        (0, "invoke", "write", 1),
        (0, "info", "write", 1),
        (1, "invoke", "write", 2),
        (1, "ok", "write", 2),
        (1, "invoke", "read", None),
        (1, "ok", "read", 2),
        (1, "invoke", "read", None),
        (1, "ok", "read", 1),
    ),
    "a write that never returned is the same as an unknown one": history(
        (0, "invoke", "write", 1),
        (1, "invoke", "read", None),
        (1, "ok", "read", None),
        (1, "invoke", "read", None),
        (1, "ok", "read", 1),
    ),
    "an unknown write never happens": history(
        (0, "invoke", "write", 1),
        (0, "info", "write", 1),
        (1, "invoke", "read", None),
        (1, "ok", "read", None),
    ),
    "a chain of unknown ones explains a read": history(
        (0, "invoke", "write", 1),
        (0, "info", "write", 1),
        (1, "invoke", "cas", [1, 2]),
        (1, "info", "cas", [1, 2]),
        (2, "invoke", "cas", [2, 3]),
        (2, "info", "cas", [2, 3]),
        (3, "invoke", "read", None),
        (3, "ok", "read", 3),
    ),
    "an unknown write makes a comparison fail that would have held": history(
        (0, "invoke", "write", 1),
        (0, "ok", "write", 1),
        (1, "invoke", "write", 7),
        (1, "info", "write", 7),
        (0, "invoke", "cas", [1, 2]),
        (0, "fail", "cas", DIFFERS),
    ),
    "a failed exchange that says no more": sequential(
        (0, "write", 1, "ok", 1), (0, "cas", [1, 2], "fail", [1, 2]), (0, "read", None, "ok", 1)
    ),
    "a read that failed says nothing": sequential(
        (0, "write", 1, "ok", 1), (0, "read", None, "fail", 9)
    ),
}

INVALID = {
    "a value that nobody wrote": sequential((0, "read", None, "ok", 1)),
    # The second half of that exam question.
    "a read that goes back while the write is still open": history(
        (0, "invoke", "write", 200),
        (1, "invoke", "read", None),
        (1, "ok", "read", 200),
        (2, "invoke", "read", None),
        (2, "ok", "read", None),
        (0, "ok", "write", 200),
    ),
    "stale read": sequential(
        (0, "write", 1, "ok", 1), (0, "write", 2, "ok", 2), (1, "read", None, "ok", 1)
    ),
    "lost write": sequential((0, "write", 1, "ok", 1), (1, "read", None, "ok", None)),
    "lost update: two exchanges of the same value": history(
        (0, "invoke", "cas", [None, 1]),
        (1, "invoke", "cas", [None, 2]),
        (0, "ok", "cas", [None, 1]),
        (1, "ok", "cas", [None, 2]),
    ),
    "split brain: two sides read their own": sequential(
        (0, "write", 1, "ok", 1),
        (1, "write", 2, "ok", 2),
        (0, "read", None, "ok", 1),
        (1, "read", None, "ok", 2),
    ),
    "reads that flap": history(
        (0, "invoke", "write", 1),
        (1, "invoke", "read", None),
        (1, "ok", "read", 1),
        (1, "invoke", "read", None),
        (1, "ok", "read", None),
    ),
    "a write that surely failed is seen": sequential(
        (0, "write", 1, "fail", 1), (1, "read", None, "ok", 1)
    ),
    "an unknown write is seen, gone, and seen again": sequential(
        (0, "write", 1, "info", 1),
        (1, "read", None, "ok", 1),
        (1, "write", 2, "ok", 2),
        (1, "read", None, "ok", 1),
    ),
    "seen before it was asked for": sequential(
        (1, "read", None, "ok", 1), (0, "write", 1, "ok", 1)
    ),
    "a comparison fails that must have held": sequential(
        (0, "write", 1, "ok", 1), (0, "cas", [1, 2], "fail", DIFFERS)
    ),
    "true is not 1": sequential((0, "write", 1, "ok", 1), (0, "read", None, "ok", True)),
}


@pytest.mark.parametrize("name", VALID)
def test_explained(name: str) -> None:
    assert valid(VALID[name]) is True


@pytest.mark.parametrize("name", INVALID)
def test_not_explained(name: str) -> None:
    verdict = Linearizable(CAS).check(INVALID[name])
    assert verdict.valid is False
    assert "no order explains" in verdict.problems[0]
    parse(verdict.picture)


def test_counter_results_are_checked() -> None:
    right = sequential((0, "add", 2, "ok", 2), (0, "add", -1, "ok", 1), (0, "read", None, "ok", 1))
    assert valid(right, CounterModel()) is True
    twice = history(
        (0, "invoke", "add", 1), (1, "invoke", "add", 1), (0, "ok", "add", 1), (1, "ok", "add", 1)
    )
    assert valid(twice, CounterModel()) is False
    unknown = sequential((0, "add", 5, "info", None), (1, "read", None, "ok", 5))
    assert valid(unknown, CounterModel()) is True


class Mutex(Model):
    """A plug of one's own: two methods are enough."""

    name = "mutex"

    def initial(self) -> Hashable:
        return False

    def step(self, state: Any, call: Call) -> Hashable | None:
        wanted = call.f == "release"
        return (not wanted) if state == wanted else None


def test_a_model_of_ones_own() -> None:
    taken = sequential((0, "acquire", None, "ok", None), (1, "acquire", None, "ok", None))
    assert valid(taken, Mutex()) is False
    passed = [*taken[:2], *sequential((0, "release", None, "ok", None)), *taken[2:]]
    assert valid(passed, Mutex()) is True
    lost = [*taken[:2], *sequential((0, "release", None, "info", None)), *taken[2:]]
    assert valid(lost, Mutex()) is True


def test_keys_are_judged_each_by_itself() -> None:
    events = history(
        (0, "invoke", "write", 1, "a"),
        (0, "ok", "write", 1, "a"),
        (0, "invoke", "read", None, "b"),
        (0, "ok", "read", None, "b"),
        (0, "invoke", "read", None, "a"),
        (0, "ok", "read", 2, "a"),
    )
    verdict = Linearizable(CAS).check(events)
    assert verdict.valid is False
    assert verdict.facts["keys"] == 2
    assert verdict.facts["wrong_keys"] == ["'a'"]
    assert valid(events[:4]) is True


@pytest.mark.parametrize(
    "events",
    [
        sequential((0, "push", 1, "ok", 1)),
        sequential((0, "cas", 1, "ok", 1)),
        sequential((0, "cas", [1], "fail", DIFFERS)),
    ],
)
def test_what_means_nothing_is_refused(events: list[Event]) -> None:
    with pytest.raises(HistoryError, match="event 0"):
        Linearizable(CAS).check(events)


# --- against the definition -----------------------------------------------------------------------


def arbitrary(random: Random) -> list[Event]:
    """Few operations with any answers at all: about as often right as wrong."""
    found: list[Event] = []
    open_: dict[int, Event] = {}
    active = [0, 1, 2]
    for _event in range(random.randint(2, 13)):
        place = random.randrange(3)
        process = active[place]
        if process not in open_:
            f = random.choice(["read", "write", "cas"])
            a, b = random.choice([None, 0, 1]), random.choice([0, 1, 2])
            asked: Any = {"read": None, "write": b, "cas": [a, b]}[f]
            open_[process] = Event(
                process=process, type="invoke", f=f, value=asked, time_ns=len(found)
            )
            found.append(open_[process])
            continue
        invoked = open_.pop(process)
        kind = random.choices(["ok", "info", "fail"], [6, 2, 2])[0]
        value = invoked.value
        if invoked.f == "read" and kind == "ok":
            value = random.choice([None, 0, 1, 2])
        if invoked.f == "cas" and kind == "fail" and random.random() < 0.7:
            value = DIFFERS
        if kind == "info":
            active[place] = max(active) + 1
        found.append(msgspec.structs.replace(invoked, type=kind, value=value))
    return found


@settings(max_examples=sharing.examples(400), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_agrees_with_the_definition(seed: int) -> None:
    events = arbitrary(Random(seed))
    calls = calls_of(CAS, operations(events))
    expected = any_order(CAS, calls)
    for ahead in (True, False):
        found = search(CAS, CAS.simplify(calls), ahead=ahead)
        assert found.valid is expected
    assert search(CAS, calls).valid is expected, "simplified or not"
    if expected:
        order = witness(CAS, calls)
        assert order is not None
        state: Any = CAS.initial()
        for call in order:
            state = CAS.step(state, call)
            assert state is not None


def test_both_verdicts_are_common_there() -> None:
    verdicts = [valid(arbitrary(Random(seed))) for seed in range(300)]
    assert 60 < verdicts.count(False) < 240


@settings(max_examples=sharing.examples(150), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_counterexamples_are_sound_and_small(seed: int) -> None:
    events = arbitrary(Random(seed))
    calls = calls_of(CAS, operations(events))
    found = search(CAS, CAS.simplify(calls))
    if found.valid is True:
        return
    example = shrink(CAS, CAS.simplify(calls), found)
    assert example.minimal
    assert not any_order(CAS, example.calls), "it is wrong by itself"
    assert len(example.calls) <= len(calls)
    assert example.stuck()
    for at, call in enumerate(example.calls):  # and each of its facts is needed
        if call.certain:
            others = [*example.calls[:at], *example.calls[at + 1 :]]
            weaker = others if CAS.reads(call) else [*others, call.weakened()]
            assert any_order(CAS, weaker)


# --- against itself -------------------------------------------------------------------------------


@settings(max_examples=sharing.examples(60), deadline=None)
@given(seed=st.integers(0, 2**32), values=st.sampled_from([None, 3]))
def test_what_a_register_really_did_is_valid(seed: int, values: int | None) -> None:
    assert valid(run_register(Random(seed), 120, 5, values=values)) is True


@settings(max_examples=sharing.examples(60), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_read_of_an_old_value_is_found(seed: int) -> None:
    random = Random(seed)
    events = run_register(random, 120, 5, unknown=0.05)
    reads = [at for at, each in enumerate(events) if each.f == "read" and each.type == "ok"]
    late = reads[-1]
    old = events[reads[len(reads) // 4]].value
    if any(events[at].value == old for at in reads[len(reads) // 2 :]):
        return  # it was not overwritten for good in the meantime
    if any(each.type == "info" and _made(each) == old for each in events):
        return  # it may be written again
    if any(each.type == "invoke" and _made(each) == old for each in events[late - 20 :]):
        return
    stale = msgspec.structs.replace(events[late], value=old)
    assert valid([*events[:late], stale, *events[late + 1 :]]) is False


def _made(event: Event) -> Any:
    return event.value[1] if event.f == "cas" and isinstance(event.value, list) else event.value


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_effort_grows_with_the_history_not_faster(unknown: float) -> None:
    """Counted in steps: twenty for each operation are enough at any length."""
    for operations_count in (200, 1000, 4000):
        events = run_register(Random(7), operations_count, 6, unknown=unknown)
        facts = Linearizable(CAS).check(events).facts
        assert facts["steps"] <= 20 * operations_count


def test_a_long_stuck_operation_costs_little() -> None:
    """One client waits for its answer while thousands of others get theirs."""
    events = run_register(Random(3), 2000, 4, unknown=0.0)
    events = [
        Event(process=99, type="invoke", f="write", value=-1, time_ns=0),
        *events,
        Event(process=99, type="ok", f="write", value=-1, time_ns=0),
    ]
    verdict = Linearizable(CAS).check(events)
    assert verdict.valid is True
    assert verdict.facts["steps"] < 40 * 2000


def test_the_budget_gives_unknown() -> None:
    events = run_register(Random(1), 200, 5)
    verdict = Linearizable(CAS, steps_max=10).check(events)
    assert verdict.valid == "unknown"
    assert "not decided" in verdict.problems[0]


def test_stale_reads_of_a_long_history_are_told_in_few_operations() -> None:
    events = run_register(Random(5), 400, 5, unknown=0.02)
    last = max(int(each.time_ns) for each in events) + 1
    seen = [each.value for each in events if each.f == "read" and each.type == "ok"]
    stale = next(value for value in seen if value is not None)
    more = [
        Event(process=500, type="invoke", f="read", time_ns=last),
        Event(process=500, type="ok", f="read", value=stale, time_ns=last),
    ]
    example = Linearizable(CAS).example([*events, *more])
    assert example is not None
    assert len(example.calls) <= 5


def test_registers_keep_their_reasons() -> None:
    """The shortest stale read: what was tried, and what it leaves."""
    verdict = Linearizable(RegisterModel()).check(INVALID["stale read"])
    (problem,) = verdict.problems
    assert "process 0 wrote 1 [0-1]; process 0 wrote 2 [2-3]; process 1 read 1 [4-5]" in problem
    assert problem.endswith("the state is then 2, which leaves: process 1 read 1")
    picture = parse(verdict.picture)
    classes = [each.get("class") for each in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert classes.count("stuck") == 1
    assert classes.count("ok") == 2


def test_labels_fit_into_their_bars() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    for name, events in INVALID.items():
        model = CAS if any(event.f == "cas" for event in events) else RegisterModel()
        for group in parse(Linearizable(model).check(events).picture).iter(f"{svg}g"):
            bar, label = group.find(f"{svg}rect"), group.findall(f"{svg}text")[-1]
            right = float(bar.get("x")) + float(bar.get("width"))
            assert float(label.get("x")) + 7 * len(label.text) <= right, (name, label.text)


def test_names_in_pictures_cannot_break_out() -> None:
    events = history((0, "invoke", "read", None, "<b>&"), (0, "ok", "read", "<script>", "<b>&"))
    verdict = Linearizable(RegisterModel()).check(events)
    assert "<script>" not in verdict.picture
    parse(verdict.picture)
