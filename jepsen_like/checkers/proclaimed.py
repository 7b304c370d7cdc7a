"""What leaders proclaim: told in the order in which it was said, and never after what a later
leader said.

A leader's texts are numbered, beginning with the one that it campaigned with (0), so the pair of
epoch and number orders all that was ever said under a name. Whoever asks (linearizable) finds
nothing older than what was acknowledged or seen before; whoever follows is told only what is newer
than what it was told before. Nobody is told what was refused, or not said yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.checkers.linearizable import split
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict


class _Said(NamedTuple):
    """A text: from when on it may be told, and whether it was surely refused."""

    begun: int
    refused: bool


class ProclaimedChecker:
    """For histories with these operations beside others, the election as their key:

    =======  ======================================================================
    acquire  {"side": campaign, as text} in the invocation, {"token": epoch} in "ok"
    use      {"say": [campaign, number]} in the invocation; ok: it is proclaimed
    seen     [epoch, campaign, number], linearizable; epoch 0: nobody leads
    follow   a list of such, in the order in which one observer was told
    =======  ======================================================================
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nobody saw anything."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        facts = dict.fromkeys(("said", "seen", "followed", "told"), 0)
        for key, found in split(operations(history)):
            one = _Name(findings, facts, f"{self.name} {show(key)}", found)
            one.check_seen()
            one.check_followed()
        return findings.verdict("proclaimed", proves=facts["told"] > 0, **facts)


class _Name:
    """One election."""

    def __init__(
        self, findings: Findings, facts: dict[str, int], title: str, found: list[Operation]
    ) -> None:
        self._findings = findings
        self._title = title
        self._said: dict[tuple[int, int], _Said] = {}
        self._epochs: dict[int, int] = {}  # by epoch: whose campaign
        acquired = [each for each in found if each.invoked.f == "acquire"]
        for each in acquired:
            campaign = int(each.invoked.value["side"] or 0)
            self._said.setdefault((campaign, 0), _Said(each.invoked_at, refused=False))
            if each.outcome == "ok":
                self._epochs[_value(each)["token"]] = campaign
        epoch_of = {campaign: epoch for epoch, campaign in self._epochs.items()}
        self._sure: list[tuple[int, tuple[int, int]]] = []
        for each in (each for each in found if each.invoked.f == "use"):
            campaign, number = each.invoked.value["say"]
            refused = each.outcome == "fail"
            self._said[campaign, number] = _Said(each.invoked_at, refused)
            if each.outcome == "ok" and campaign in epoch_of:
                self._sure.append((each.completed_at, (epoch_of[campaign], number)))
        self._seen = _answered(found, "seen")
        self._followed = _answered(found, "follow")
        facts["said"] += len(self._sure)
        facts["seen"] += len(self._seen)
        facts["followed"] += len(self._followed)
        facts["told"] += sum(bool(_value(each)[0]) for each in self._seen)
        facts["told"] += sum(len(_value(each)) for each in self._followed)

    def _add(self, text: str) -> None:
        self._findings.add(f"{self._title}: {text}")

    def check_seen(self) -> None:
        """Whoever asks is not told what is out of date."""
        known = [*self._sure]
        for each in self._seen:
            epoch, _campaign, number = _value(each)
            known.append((each.completed_at, (epoch, number)))
        known.sort()
        ends = [end for end, _pair in known]
        highest = (0, 0)
        best = [highest := max(highest, pair) for _end, pair in known]
        for each in self._seen:
            epoch, campaign, number = _value(each)
            before = bisect_left(ends, each.invoked_at)
            if epoch and before and (epoch, number) < best[before - 1]:
                self._add(
                    f"{_at(each)} found text {number} of epoch {epoch}, although text "
                    f"{best[before - 1][1]} of epoch {best[before - 1][0]} was known before"
                )
            self._check_text(each, epoch, campaign, number)

    def check_followed(self) -> None:
        """Each observer is told what is newer, one thing at a time."""
        for each in self._followed:
            told = [entry for entry in _value(each) if entry[0]]
            for (epoch, _campaign, number), (later, _its, after) in pairwise(told):
                if (later, after) <= (epoch, number):
                    self._add(
                        f"{_at(each)} was told text {after} of epoch {later} after text {number} "
                        f"of epoch {epoch}"
                    )
            for epoch, campaign, number in told:
                self._check_text(each, epoch, campaign, number)

    def _check_text(self, each: Operation, epoch: int, campaign: int, number: int) -> None:
        if not epoch:
            return
        said = self._said.get((campaign, number))
        if said is None or said.begun > each.completed_at:
            self._add(f"{_at(each)} shows text {number} of campaign {campaign}: nobody had said it")
        elif said.refused:
            self._add(f"{_at(each)} shows text {number} of campaign {campaign}: it was refused")
        whose = self._epochs.setdefault(epoch, campaign)
        if whose != campaign:
            self._add(
                f"{_at(each)} shows a text of campaign {campaign} under epoch {epoch}, which is "
                f"that of campaign {whose}"
            )


def _answered(found: list[Operation], f: str) -> list[Operation]:
    return [each for each in found if each.invoked.f == f and each.outcome == "ok"]


def _value(each: Operation) -> Any:  # noqa: ANN401  as the operation has it
    return None if each.completed is None else each.completed.value


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )
