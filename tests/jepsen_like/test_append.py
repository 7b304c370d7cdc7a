"""Anomalies of transactions, each from its shortest history, and serial runs that have none."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.checkers.append import AppendChecker
from jepsen_like.checkers.graph import Graph, Kind
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event
from tests import sharing
from tests.jepsen_like.histories import (
    asked,
    at_once,
    history,
    in_turn,
    sequential,
    transaction,
    with_outcomes,
)

#: Name: history, the anomalies in it, words of the explanation.
ANOMALIES: dict[str, tuple[list[Event], dict[str, int], str]] = {
    "G0: writes of two transactions in opposite orders": (
        at_once("ax1 ay1", "ax2 ay2", "rx12 ry21"),
        {"G0": 1},
        "the other appended 2 to 'x' after its 1",
    ),
    "G1a: an aborted write is read": (
        with_outcomes(("ax1", "fail"), ("rx1", "ok")),
        {"G1a": 1},
        "which was aborted",
    ),
    "G1b: an intermediate state is read": (
        at_once("ax1 ax2", "rx1", "rx12"),
        {"G1b": 1, "G-single": 1},
        "which went on to append 2",
    ),
    "G1c: information flows in a circle": (
        at_once("ax1 ry1", "ax2 ay1", "rx12"),
        {"G1c": 1},
        "the other saw 1 in 'y', which it appended",
    ),
    "G1c: two read each other's writes": (
        at_once("ax1 ry1", "ay1 rx1"),
        {"G1c": 1},
        "a contradiction",
    ),
    "G-single: read skew": (
        at_once("ax1 ay1", "rx1 ry", "ry1"),
        {"G-single": 1},
        "it read 'y' without 1, which the other appended",
    ),
    "G-single: lost update": (
        at_once("rx ax1", "rx ax2", "rx12"),
        {"G-single": 1},
        "it read 'x' without",
    ),
    "G2: write skew": (
        at_once("rx ay1", "ry ax1", "rx1 ry1"),
        {"G2-item": 1},
        "it read 'x' without 1",
    ),
    "G2: of writes that nobody ever reads": (
        at_once("rx ay1", "ry ax1"),
        {"G2-item": 1},
        "it read 'x' without 1",
    ),
    "process: it does not see its own write": (
        in_turn("ax1", "rx", "rx1", process=0),
        {"G-single-process": 1},
        "process 0 did them one after the other",
    ),
    "realtime: a stale read": (
        in_turn("ax1", "rx", "rx1"),
        {"G-single-realtime": 1},
        "it ended at event 1, before the other began",
    ),
    "realtime: an acknowledged write is lost": (
        in_turn("ax1", "rx"),
        {"G-single-realtime": 1},
        "it read 'x' without 1",
    ),
    "realtime: a write lands before one that had ended": (
        in_turn("ax1", "ax2", "rx21"),
        {"G0-realtime": 1},
        "the other appended 1 to 'x' after its 2",
    ),
    "two histories of one key": (
        at_once("ax1", "ax2", "rx1", "rx2"),
        {"incompatible-order": 1},
        "neither is a beginning of the other",
    ),
    "an element twice": (at_once("ax1", "rx11"), {"duplicate-elements": 1}, "is there twice"),
    "an element from nowhere": (at_once("rx9"), {"garbage": 1}, "nobody appended 9"),
    "an element from the future": (
        in_turn("rx1", "ax1"),
        {"future-read": 1, "G1c-realtime": 1},
        "only afterwards",
    ),
    "it does not see its own append": (
        at_once("rx ax1 rx", "rx1"),
        {"internal": 1},
        "it should be [1]",
    ),
    "a read changes within a transaction": (
        at_once("ax1", "rx rx1"),
        {"internal": 1, "G-single": 1},
        "it should be []",
    ),
    "its own append is not the last": (
        at_once("ax1 rx12", "ax2"),
        {"internal": 1, "G1c": 1},
        "a list that ends with [1]",
    ),
}


@pytest.mark.parametrize("name", ANOMALIES)
def test_anomalies(name: str) -> None:
    events, anomalies, said = ANOMALIES[name]
    verdict = AppendChecker().check(events)
    assert verdict.valid is False
    assert verdict.facts["anomalies"] == anomalies
    assert said in " ".join(verdict.problems)


VALID = {
    "nothing": [],
    "in turn": in_turn("ax1", "rx1 ax2", "rx12 ay1", "ry1 rx12"),
    "at once": at_once("ax1", "rx", "ay1 rx1", "ry1 ax2", "rx12"),
    "unknown, and seen": with_outcomes(("ax1 ay1", "info"), ("rx1 ry1", "ok")),
    "unknown, and not seen": with_outcomes(("ax1", "info"), ("rx", "ok")),
    # An unknown transaction's reads are not known: empty lists there say nothing.
    "unknown reads": with_outcomes(("ax2 ry", "info"), ("ax1 ay1", "ok"), ("rx12 ry1", "ok")),
    "own appends are read": at_once("rx ax1 rx1 ax2 rx12", "rx12"),
    "an intermediate state of its own": at_once("ax1 rx1 ax2", "rx12"),
    "aborted, and not seen": with_outcomes(("ax1", "fail"), ("rx", "ok")),
}


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str) -> None:
    verdict = AppendChecker().check(VALID[name])
    assert verdict.valid is True
    assert not verdict.problems


def test_without_reads_nothing_is_proved() -> None:
    assert AppendChecker().check(at_once("ax1", "ax2")).valid == "unknown"


def test_an_unknown_write_that_lands_late_is_fine() -> None:
    steps = transaction("ax1")
    events = history(
        (0, "invoke", "txn", steps),
        (0, "info", "txn", steps),
        (1, "invoke", "txn", asked(transaction("rx"))),
        (1, "ok", "txn", transaction("rx")),
        (1, "invoke", "txn", asked(transaction("rx1"))),
        (1, "ok", "txn", transaction("rx1")),
        (1, "invoke", "txn", asked(transaction("rx"))),
        (1, "ok", "txn", transaction("rx")),
    )
    assert AppendChecker().check(events[:6]).valid is True
    assert AppendChecker().check(events).valid is False, "and then it stays"


def test_weaker_promises_allow_more() -> None:
    stale = in_turn("ax1", "rx", "rx1")
    own = in_turn("ax1", "rx", "rx1", process=0)
    skew = at_once("rx ay1", "ry ax1")
    assert AppendChecker("strong-session-serializable").check(stale).valid is True
    assert AppendChecker("strong-session-serializable").check(own).valid is False
    assert AppendChecker("serializable").check(own).valid is True
    assert AppendChecker("serializable").check(skew).valid is False


# --- runs -----------------------------------------------------------------------------------------


def run_lists(random: Random, count: int, processes: int, *, snapshot: bool = False) -> list[Event]:
    """What clients of a serial store of lists see. *snapshot*: it reads as of the beginning of each
    transaction, and never asks whether that still holds when it appends."""
    lists: dict[str, list[int]] = {}
    found: list[Event] = []
    open_: dict[int, tuple[list[list[Any]], dict[str, list[int]]]] = {}
    done: dict[int, list[list[Any]]] = {}
    begun = element = 0
    while begun < count or open_ or done:
        process = random.randrange(processes)
        if process in done:
            steps = done.pop(process)
            found.append(event(process, "ok", steps, len(found)))
        elif process in open_:
            steps, before = open_.pop(process)
            seen = before if snapshot else lists
            own: dict[str, list[int]] = {}
            for step in steps:
                key = step[1]
                if step[0] == "r":
                    step[2] = [*seen.get(key, []), *(own.get(key, []) if snapshot else [])]
                else:
                    own.setdefault(key, []).append(step[2])
                    if not snapshot:
                        lists.setdefault(key, []).append(step[2])
            if snapshot:
                for key, elements in own.items():
                    lists.setdefault(key, []).extend(elements)
            done[process] = steps
        elif begun < count:
            begun += 1
            steps = []
            for _step in range(random.randint(1, 4)):
                key = f"k{random.randrange(3) + begun // 60 * 3}"
                element += 1
                new = random.random() < 0.5
                steps.append(["append", key, element] if new else ["r", key, None])
            found.append(event(process, "invoke", asked(steps), len(found)))
            open_[process] = (steps, {key: list(each) for key, each in lists.items()})
    return found


def event(process: int, kind: Any, steps: list[list[Any]], at: int) -> Event:
    return Event(process=process, type=kind, f="txn", value=steps, time_ns=at)


@settings(max_examples=sharing.examples(40), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_a_serial_store_really_did_is_valid(seed: int) -> None:
    verdict = AppendChecker().check(run_lists(Random(seed), 120, 5))
    assert verdict.valid is True, verdict.problems


def test_a_store_that_never_looks_again_is_found() -> None:
    found = [
        AppendChecker().check(run_lists(Random(seed), 100, 5, snapshot=True)) for seed in range(20)
    ]
    assert sum(verdict.valid is False for verdict in found) >= 19


@pytest.mark.parametrize("count", [200, 2000])
def test_edges_grow_with_the_history_not_its_square(count: int) -> None:
    facts = AppendChecker().check(run_lists(Random(1), count, 6)).facts
    assert facts["edges"] < 20 * count


# --- graphs ---------------------------------------------------------------------------------------


def reachable(graph: Graph, source: int) -> list[int]:
    seen: list[int] = []
    left = list(graph.edges[source])
    while left:
        node = left.pop()
        if node not in seen:
            seen.append(node)
            left += graph.edges[node]
    return seen


@settings(max_examples=sharing.examples(60))
@given(
    edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20),
)
def test_components_are_those_of_the_definition(edges: list[tuple[int, int]]) -> None:
    graph = Graph(8)
    for source, target in edges:
        graph.add(source, Kind.WW, target)
    reach = [reachable(graph, node) for node in range(8)]
    together = {
        tuple(other for other in range(8) if other in reach[node] and node in reach[other])
        for node in range(8)
    }
    expected = sorted(list(each) for each in together if len(each) > 1)
    assert sorted(graph.components(Kind.WW)) == expected
    assert graph.components(Kind.WR) == []


def test_a_deep_graph_needs_no_recursion() -> None:
    count = 20_000
    graph = Graph(count)
    for node in range(count):
        graph.add(node, Kind.WW, (node + 1) % count)
    (component,) = graph.components(Kind.WW)
    assert len(component) == count
    cycle, _steps = graph.cycle([0, 1, 2], Kind.WW, Kind.WW, 1000)
    assert cycle == []


def test_the_shortest_cycle_is_shown() -> None:
    graph = Graph(6)
    for source, target in ((0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 3)):
        graph.add(source, Kind.WW, target)
    cycle, _steps = graph.cycle(range(6), Kind.WW, Kind.WW, 1000)
    assert sorted(edge.source for edge in cycle) == [3, 4]


@pytest.mark.parametrize(
    "value",
    [5, [5], [["append", "x"]], [["w", "x", 1]], [["r", "x", 5]], [[[], "x", 1]], {"a": 1}],
)
def test_what_is_no_transaction_is_refused(value: Any) -> None:
    with pytest.raises(HistoryError, match="event 0"):
        AppendChecker().check(sequential((0, "txn", value, "ok", value)))


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(HistoryError, match="appended twice"):
        AppendChecker().check(at_once("ax1", "ax1"))
    with pytest.raises(HistoryError, match="other steps"):
        AppendChecker().check(
            sequential((0, "txn", [["append", "x", 1]], "ok", [["append", "x", 2]]))
        )
    with pytest.raises(HistoryError, match="'txn'"):
        AppendChecker().check(sequential((0, "read", None, "ok", None)))
