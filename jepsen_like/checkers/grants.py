"""Grants of locks, semaphores and elections: never more of them in force than there are permits,
under tokens that only grow, given out in the order of the line.

Every process acquires, uses and releases; what proves that a grant was in force, or was believed
to be, is only what happened *between* two events of the history:

* A use that was accepted under a fencing token began while the grant was in force, and so it was
  in force from its acquisition's end until then. This holds however clocks run.
* A holder that found its grant held in the middle of a use believed in it all the time from the
  acquisition's end until the use began. While clocks keep within the margin, no two beliefs overlap
  either.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from jepsen_like.checkers.base import Findings, readable, show, whole_number
from jepsen_like.checkers.clocks import Bent
from jepsen_like.checkers.linearizable import split
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

#: For beliefs that bent clocks made wrong: the longest lease of the workloads, and some more.
AFTERMATH_S: Final = 5.0

#: Kinds of operations, see ``GrantChecker``.
_KINDS: Final = (
    *("acquire", "use", "believe", "release"),
    *("inspect", "leader", "observe", "read"),
)


class _Span(NamedTuple):
    """A grant was in force, or believed to be, between these places of the history."""

    start: int
    end: int
    token: int
    permits: int


class GrantChecker:
    """For histories with the operations below, each under the name as its key. Values of "ok"
    (and of a use that failed: it has a value, too):

    =========  ======================================================================
    acquire    {"token": t}, and "permits" if that is not 1
    use        {"token": t, "held": was found held, "after": still held at the end};
               with a register {"from": n, "to": n + 1}. Failed as "fenced": refused
    believe    {"token": t, "held": is found held}: nobody else was asked
    release    {"token": t, "held": was found held}
    inspect    {"total", "free", "holders": [[token, permits, lease, owner]],
               "waiters": [[ticket, permits, lease, owner]]}, of one state, linearizable
    leader     the token of the present grant, linearizable; 0: nobody
    observe    tokens in the order in which one watcher was told them
    read       [n, token]: the register, linearizable
    =========  ======================================================================

    *permits*: of every name; *totals*: of some, others. *register*: uses count in a register of
    the name, one by one, if they say so.
    """

    def __init__(
        self,
        name: str,
        *,
        permits: int = 1,
        totals: Mapping[str, int] | None = None,
        register: bool = False,
    ) -> None:
        self.name = name
        self._permits = permits
        self._totals = dict(totals or {})
        self._register = register

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was ever acquired."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        facts = dict.fromkeys(("names", "acquired", "used", "fenced", "inspected", "unknown"), 0)
        bent = Bent(history, int(AFTERMATH_S * 1e9))
        for key, found in split(operations(history)):
            facts["names"] += 1
            one = _Name(findings, facts, f"{self.name} {show(key)}", found, history)
            one.check_tokens()
            one.check_spans(self._totals.get(key, self._permits), bent)
            one.check_losses(bent)
            one.check_line()
            one.check_epochs()
            if self._register:
                one.check_register()
        return findings.verdict(self.name, proves=facts["acquired"] > 0, **facts)


class _Name:
    """One name."""

    def __init__(
        self,
        findings: Findings,
        facts: dict[str, int],
        title: str,
        found: list[Operation],
        history: Sequence[Event],
    ) -> None:
        self._findings = findings
        self._title = title
        self._history = history
        self._by_kind: dict[str, list[Operation]] = {kind: [] for kind in _KINDS}
        for each in found:
            if each.invoked.f not in self._by_kind:
                raise HistoryError(
                    f"event {each.invoked_at}: {each.invoked.f!r} is none of {', '.join(_KINDS)}"
                )
            self._by_kind[each.invoked.f].append(each)
        self._acquired: dict[int, Operation] = {}
        for each in self._answered("acquire"):
            token = _token(each)
            if token in self._acquired:
                self._add(
                    f"{_at(self._acquired[token])} and {_at(each)} were both granted token {token}"
                )
            self._acquired.setdefault(token, each)
        uses = self._by_kind["use"]
        facts["acquired"] += len(self._acquired)
        facts["used"] += sum(each.outcome == "ok" for each in uses)
        facts["fenced"] += sum(_fenced(each) for each in uses)
        facts["unknown"] += sum(each.outcome == "info" for each in found)
        facts["inspected"] += len(self._answered("inspect"))

    def _add(self, text: str) -> None:
        self._findings.add(f"{self._title}: {text}")

    def _answered(self, f: str) -> list[Operation]:
        return [each for each in self._by_kind[f] if each.outcome == "ok"]

    # --- tokens -----------------------------------------------------------------------------------

    def check_tokens(self) -> None:
        """What was acquired later has a higher token."""
        ended = sorted((each.completed_at, token, each) for token, each in self._acquired.items())
        ends = [end for end, _token, _each in ended]
        highest: list[tuple[int, Operation]] = []
        for _end, token, each in ended:
            best = highest[-1] if highest else (0, each)
            highest.append(max(best, (token, each), key=lambda one: one[0]))
        for token, each in self._acquired.items():
            before = bisect_left(ends, each.invoked_at)
            if before and highest[before - 1][0] >= token:
                earlier_token, earlier = highest[before - 1]
                self._add(
                    f"{_at(each)} was granted token {token}, although {_at(earlier)} had ended "
                    f"before with token {earlier_token}: tokens only grow"
                )

    # --- exclusion --------------------------------------------------------------------------------

    def check_spans(self, permits: int, bent: Bent) -> None:
        """At no time more permits in force, or believed in, than there are."""
        in_force: dict[int, int] = {}
        believed: dict[int, int] = {}
        kinds = ("use", "believe", "release")
        for each in (each for kind in kinds for each in self._by_kind[kind]):
            value = None if each.completed is None else each.completed.value
            if each.outcome == "info" or not isinstance(value, dict) or "token" not in value:
                continue
            token = value["token"]
            if token not in self._acquired:
                continue  # acquired by a call whose answer nobody recorded
            accepted = each.invoked.f == "use" and each.outcome == "ok"
            for spans, proven in ((in_force, accepted), (believed, value.get("held"))):
                if proven:
                    spans[token] = max(spans.get(token, -1), each.invoked_at)
        self._check_overlaps(in_force, permits, "were in force", None)
        self._check_overlaps(believed, permits, "were believed in", bent)

    def _check_overlaps(
        self, until: dict[int, int], permits: int, what: str, bent: Bent | None
    ) -> None:
        spans = []
        for token, end in until.items():
            acquired = self._acquired[token]
            value = acquired.completed.value if acquired.completed is not None else {}
            if acquired.completed_at < end:
                spans.append(_Span(acquired.completed_at, end, token, value.get("permits", 1)))
        active: list[_Span] = []
        for span in sorted(spans):
            active = [each for each in active if each.end > span.start]
            active.append(span)
            if sum(each.permits for each in active) <= permits:
                continue
            end = min(each.end for each in active)
            begin_ns, end_ns = self._history[span.start].time_ns, self._history[end].time_ns
            if bent is not None and bent.touches(begin_ns, end_ns):
                continue
            shown = ", ".join(
                f"token {each.token} from event {each.start} to {each.end}" for each in active
            )
            self._add(f"more than {permits} permit(s) {what} at event {span.start}: {shown}")

    def check_losses(self, bent: Bent) -> None:
        """Who is refused for a token that is out of date does not believe in it any more."""
        for each in self._by_kind["use"]:
            if not _fenced(each) or each.completed is None:
                continue
            value = each.completed.value
            if not isinstance(value, dict) or not value.get("after"):
                continue
            if not bent.touches(each.invoked.time_ns, each.completed.time_ns):
                self._add(
                    f"{_at(each)} was refused, because token {value['token']} is out of date, and "
                    "its holder still believes in it: it was not told of the loss"
                )

    # --- the line ---------------------------------------------------------------------------------

    def check_line(self) -> None:
        """Each state of the name is sound, and nobody is overtaken."""
        tickets: dict[tuple[int, int], int] = {}
        states = []
        for each in self._answered("inspect"):
            state = each.completed.value if each.completed is not None else {}
            states.append((each, state))
            for ticket, _permits, lease, owner in state["waiters"]:
                known = tickets.setdefault((lease, owner), ticket)
                if known != ticket:
                    self._add(f"{_at(each)}: a waiter's place changed from {known} to {ticket}")
        for each, state in states:
            self._check_state(each, state, tickets)

    def _check_state(
        self, each: Operation, state: dict[str, Any], tickets: dict[tuple[int, int], int]
    ) -> None:
        waiters, holders = state["waiters"], state["holders"]
        taken = sum(permits for _token, permits, _lease, _owner in holders)
        if taken + state["free"] > state["total"] or state["free"] < 0:
            self._add(
                f"{_at(each)}: {taken} permits are held and {state['free']} free, of "
                f"{state['total']}"
            )
        line = [ticket for ticket, _permits, _lease, _owner in waiters]
        if any(one >= other for one, other in pairwise(line)):
            self._add(f"{_at(each)}: the line is not in order: {show(line)}")
        if waiters and state["free"] >= waiters[0][1]:
            self._add(
                f"{_at(each)}: {state['free']} permits are free, and {len(waiters)} stand in line"
            )
        if not waiters:
            return
        first = waiters[0][0]
        for token, _permits, lease, owner in holders:
            ticket = tickets.get((lease, owner))
            if ticket is not None and ticket > first:
                self._add(
                    f"{_at(each)}: token {token} is held by one who stood in line behind another "
                    f"who still waits (places {ticket} and {first})"
                )

    # --- who leads --------------------------------------------------------------------------------

    def check_epochs(self) -> None:
        """Whoever looks sees epochs in order."""
        for each in self._answered("observe"):
            told = each.completed.value if each.completed is not None else []
            epochs = [epoch for epoch in told if epoch]
            if any(one > other for one, other in pairwise(epochs)):
                self._add(f"{_at(each)} was told epochs out of order: {show(told)}")
        known = sorted(
            (each.completed_at, epoch)
            for each, epoch in (
                *self._looks(),
                *((each, token) for token, each in self._acquired.items()),
            )
        )
        ends = [end for end, _epoch in known]
        highest = 0
        best = [highest := max(highest, epoch) for _end, epoch in known]
        for each, epoch in self._looks():
            before = bisect_left(ends, each.invoked_at)
            if before and 0 < epoch < best[before - 1]:
                self._add(
                    f"{_at(each)} found epoch {epoch}, although {best[before - 1]} was seen before"
                )

    def _looks(self) -> Iterable[tuple[Operation, int]]:
        for each in self._answered("leader"):
            value = each.completed.value if each.completed is not None else 0
            yield each, whole_number(value, _at(each))

    # --- the register -----------------------------------------------------------------------------

    def check_register(self) -> None:
        """Uses counted one by one, in the order of their tokens, and none is lost."""
        written: dict[int, tuple[int, Operation]] = {}
        uses = self._by_kind["use"]
        for each in uses:
            if each.outcome != "ok" or each.completed is None:
                continue
            value = each.completed.value
            if "to" not in value:
                continue  # a reader
            if value["to"] in written:
                other = written[value["to"]][1]
                self._add(f"{_at(other)} and {_at(each)} both wrote {value['to']}: one is lost")
            written.setdefault(value["to"], (value["token"], each))
        for (low, (token, each)), (high, (later_token, later)) in pairwise(
            sorted(written.items(), key=lambda item: item[0])
        ):
            if later_token < token:
                self._add(
                    f"{_at(later)} wrote {high} under token {later_token} after {_at(each)} wrote "
                    f"{low} under token {token}"
                )
        unknown = sum(each.outcome == "info" for each in uses)
        for each in self._answered("read"):
            self._check_read(each, written, unknown)

    def _check_read(
        self, each: Operation, written: dict[int, tuple[int, Operation]], unknown: int
    ) -> None:
        count, _token_found = each.completed.value if each.completed is not None else (0, 0)
        sure = sum(one.completed_at < each.invoked_at for _token, one in written.values())
        begun = sum(one.invoked_at < each.completed_at for _token, one in written.values())
        if not sure <= count <= begun + unknown:
            self._add(
                f"{_at(each)} shows {count}, although {sure} uses were acknowledged before, and at "
                f"most {begun + unknown} had begun: uses are lost, or counted twice"
            )


def _fenced(each: Operation) -> bool:
    completed = each.completed
    return (
        completed is not None
        and completed.type == "fail"
        and isinstance(completed.value, dict)
        and bool(completed.value.get("fenced"))
    )


def _token(each: Operation) -> int:
    value = each.completed.value if each.completed is not None else None
    token = value.get("token") if isinstance(value, dict) else None
    return whole_number(token, f"the token of {_at(each)}")


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )
