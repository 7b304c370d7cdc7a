"""Isolation of transactions that append to lists, as Elle finds it out (Kingsbury and Alvaro,
"Elle: inferring isolation anomalies from experimental observations", VLDB 2020).

Elements are unique and lists only grow, so a read shows the whole past of its key: who wrote each
version, and in which order. That gives a graph of what must come before what, and a cycle in it is
a contradiction. Which kinds of edges it needs says what was broken:

=========== ================================================ ===================================
anomaly     edges of the cycle                               such a store is not even
=========== ================================================ ===================================
G0          only writes over writes                          read uncommitted
G1c         also reads of writes                             read committed
G-single    also exactly one write over what was read        snapshot isolated
G2-item     also several of these                            serializable
=========== ================================================ ===================================

With the suffix ``-process`` or ``-realtime`` the cycle also needs the order of a process, or that
of a clock: then the store may be serializable, but not strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal

from jepsen_like.checkers.base import Findings, show
from jepsen_like.checkers.graph import Edge, Graph, Kind
from jepsen_like.checkers.transactions import Transaction, transactions
from jepsen_like.checkers.versions import Versions
from jepsen_like.history import Event, operations
from jepsen_like.verdict import Verdict

Consistency = Literal["serializable", "strong-session-serializable", "strict-serializable"]

#: Edges looked at in the search for the shortest cycles of one component; a longer one is shown
#: when they are used up.
CYCLE_STEPS_MAX: Final = 1_000_000

_WRITES: Final = Kind.WW
_DATA: Final = Kind.WW | Kind.WR
_ALL: Final = Kind.WW | Kind.WR | Kind.RW
_LEVELS: Final[dict[str, tuple[tuple[str, Kind], ...]]] = {
    "serializable": (("", Kind(0)),),
    "strong-session-serializable": (("", Kind(0)), ("-process", Kind.PROCESS)),
    "strict-serializable": (
        ("", Kind(0)),
        ("-process", Kind.PROCESS),
        ("-realtime", Kind.PROCESS | Kind.REALTIME),
    ),
}
_FORMS: Final = (
    ("G0", Kind.WW, _WRITES),
    ("G1c", Kind.WR, _DATA),
    ("G-single", Kind.RW, _DATA),
    ("G2-item", Kind.RW, _ALL),
)


class AppendChecker:
    """For "txn" (value: steps, see ``checkers.transactions``). *consistency*: what the store
    promises; anomalies that this allows are not looked for."""

    name = "append"

    def __init__(self, consistency: Consistency = "strict-serializable") -> None:
        self._levels = _LEVELS[consistency]

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was read. Raises ``HistoryError`` for other operations than these."""
        findings = Findings()
        found = transactions(operations(history))
        versions = Versions(found, findings)
        graph = dependencies(found, versions)
        _add_time(graph, found)
        self._find_cycles(graph, found, versions)
        read = sum(
            each.outcome == "ok" and any(step.f == "r" for step in each.steps) for each in found
        )
        return findings.verdict(
            self.name,
            proves=read > 0 or not found,
            transactions=len(found),
            reading=read,
            keys=len({step.key for each in found for step in each.steps}),
            edges=sum(len(each) for each in graph.edges),
            anomalies=versions.anomalies,
        )

    def _find_cycles(self, graph: Graph, found: Sequence[Transaction], versions: Versions) -> None:
        """Of each component the worst anomaly; with clocks only where it needs them."""
        told: set[int] = set()
        for suffix, extra in self._levels:
            for component in graph.components(_ALL | extra):
                if any(node in told for node in component):
                    continue
                for name, through, back in _FORMS:
                    cycle, _steps = graph.cycle(component, through, back | extra, CYCLE_STEPS_MAX)
                    if cycle:
                        text = explain_cycle(cycle, found, versions)
                        versions.found(f"{name}{suffix}", text)
                        told.update(component)
                        break


def dependencies(found: Sequence[Transaction], versions: Versions) -> Graph:
    """What the reads say about who came before whom. Aborted transactions are not in it."""
    graph = Graph(len(found))

    def add(source: Transaction | None, kind: Kind, target: Transaction | None) -> None:
        if (
            source is not None
            and target is not None
            and "fail" not in {source.outcome, target.outcome}
        ):
            graph.add(source.number, kind, target.number)

    writers = versions.writers
    next_of: dict[tuple[Any, Any], Any] = {}
    for key, order in versions.orders.items():
        for element, after in pairwise(order):
            next_of.setdefault((key, element), after)
            add(writers.get((key, element)), Kind.WW, writers.get((key, after)))
    unseen = _unseen(found, versions)
    for reader in found:
        for step in reader.steps:
            if step.f != "r" or step.value is None or not versions.follows(step):
                continue
            order = versions.orders[step.key]
            if step.value:
                add(writers.get((step.key, step.value[-1])), Kind.WR, reader)
            if len(step.value) < len(order):
                add(reader, Kind.RW, writers.get((step.key, order[len(step.value)])))
            else:
                for writer in unseen.get(step.key, ()):
                    add(reader, Kind.RW, writer)
    for key, later in unseen.items():
        order = versions.orders.get(key, ())
        if order:
            for writer in later:
                add(writers.get((key, order[-1])), Kind.WW, writer)
    return graph


def _unseen(found: Sequence[Transaction], versions: Versions) -> dict[Any, list[Transaction]]:
    """Acknowledged appends that no read shows: they come after everything that was read."""
    shown = {(key, element) for key, order in versions.orders.items() for element in order}
    unseen: dict[Any, list[Transaction]] = {}
    for each in found:
        for step in each.steps:
            if step.f == "append" and each.outcome == "ok" and (step.key, step.value) not in shown:
                unseen.setdefault(step.key, []).append(each)
    return unseen


def _add_time(graph: Graph, found: Sequence[Transaction]) -> None:
    """The orders of processes and of time. Of the latter only its transitive reduction: an edge
    from everything that had ended, and was not known to precede something else that had ended
    too; so there are at most as many for each transaction as there are processes."""
    events: list[tuple[int, bool, Transaction]] = []
    for each in found:
        if each.outcome == "fail":
            continue
        events.append((each.operation.invoked_at, False, each))
        if each.outcome == "ok":
            events.append((each.operation.completed_at, True, each))
    events.sort(key=lambda event: event[0])
    frontier: dict[int, None] = {}
    before: dict[int, list[int]] = {}
    last: dict[int | str, int] = {}
    for _at, ended, each in events:
        if ended:
            for node in before.pop(each.number):
                frontier.pop(node, None)
            frontier[each.number] = None
            continue
        before[each.number] = list(frontier)
        for node in frontier:
            graph.add(node, Kind.REALTIME, each.number)
        process = each.operation.invoked.process
        if process in last:
            graph.add(last[process], Kind.PROCESS, each.number)
        last[process] = each.number


def explain_cycle(cycle: Sequence[Edge], found: Sequence[Transaction], versions: Versions) -> str:
    """A cycle in words: who is in it, and why each comes before the next."""
    who = "; ".join(found[edge.source].told() for edge in cycle)
    why = []
    for edge in cycle:
        source, target = found[edge.source], found[edge.target]
        reason = _reason(edge.kind, source, target, versions)
        why.append(f"T{source.number} before T{target.number}, because {reason}")
    return f"{who}. Then {'; and '.join(why)}: a contradiction"


def _reason(kind: Kind, source: Transaction, target: Transaction, versions: Versions) -> str:
    if kind is Kind.REALTIME:
        return f"it ended at event {source.operation.completed_at}, before the other began"
    if kind is Kind.PROCESS:
        return f"process {source.operation.invoked.process} did them one after the other"
    if kind is Kind.WW:
        return _replaced(source, target, versions)
    reader, writer = (target, source) if kind is Kind.WR else (source, target)
    for step in reader.steps:
        if step.f != "r" or step.value is None or not versions.follows(step):
            continue
        at = len(step.value)
        order = versions.orders[step.key]
        if kind is Kind.WR:
            if at and _wrote(writer, step.key, step.value[-1]):
                return (
                    f"the other saw {show(step.value[-1])} in {show(step.key)}, which it appended"
                )
        elif at < len(order):
            if _wrote(writer, step.key, order[at]):
                return (
                    f"it read {show(step.key)} without {show(order[at])}, which the other appended"
                )
        else:
            for each in writer.steps:
                if each.f == "append" and each.key == step.key and each.value not in order:
                    return (
                        f"it read {show(step.key)} without {show(each.value)}, which the other "
                        "appended"
                    )
    return "of what it read"


def _wrote(writer: Transaction, key: Any, element: Any) -> bool:  # noqa: ANN401  frozen
    return any(
        step.f == "append" and step.key == key and step.value == element for step in writer.steps
    )


def _replaced(source: Transaction, target: Transaction, versions: Versions) -> str:
    for step in target.steps:
        if step.f != "append":
            continue
        order = versions.orders.get(step.key, ())
        at = order.index(step.value) if step.value in order else len(order)
        if at and _wrote(source, step.key, order[at - 1]):
            return (
                f"the other appended {show(step.value)} to {show(step.key)} after its "
                f"{show(order[at - 1])}"
            )
    return "of what it appended"
