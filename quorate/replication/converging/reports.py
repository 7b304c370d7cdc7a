"""What the members have told of themselves: how far each has come, in one life of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from quorate.consensus.membership import Membership
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.records import Frontier, raise_to
from quorate.replication.transport import CrdtKnown


class PresentLives(Protocol):
    """What the log says of lives: ``lives.LivesMachine``."""

    def open_epoch(self, member: int) -> int: ...


class Report(NamedTuple):
    """What one member has on its disk: all records of *frontier*, at *stage* of folding. *epoch*:
    of the life that it was in, as far as the log was known here: the next one may have less."""

    stage: int
    frontier: Frontier
    epoch: int


class Reports:
    """The last report of each member, of its present life."""

    def __init__(
        self, engine: Engine, lives: PresentLives, membership: Callable[[], Membership]
    ) -> None:
        self._engine = engine
        self._lives = lives
        self._membership = membership
        self._told: dict[int, Report] = {}

    def on_known(self, frame: CrdtKnown) -> None:
        """A member says what it has."""
        if frame.whole:
            epoch = self._lives.open_epoch(frame.sender)
            self._told[frame.sender] = Report(frame.generation, dict(frame.frontier), epoch)

    def others(self) -> dict[int, Report] | None:
        """Those of all other members, ascending; None: some have told nothing in this life."""
        members = [node for node in self._membership().members() if node != self._engine.member]
        for node in [node for node in self._told if node not in members]:
            del self._told[node]
        found = {}
        for node in members:
            report = self._told.get(node)
            if report is None or report.epoch != self._lives.open_epoch(node):
                return None
            found[int(node)] = report
        return found

    def everyone(self) -> dict[int, Report] | None:
        """The same, with this node's own."""
        others, engine = self.others(), self._engine
        if others is None or engine.member not in self._membership().members():
            return None
        epoch = self._lives.open_epoch(engine.member)
        own = Report(engine.stage, engine.frontier, epoch)
        return dict(sorted({**others, engine.member: own}.items()))

    def silent(self) -> list[int]:
        """The other members that have told nothing in their present life."""
        return [
            node
            for node in self._membership().members()
            if node != self._engine.member
            and (node not in self._told or self._told[node].epoch != self._lives.open_epoch(node))
        ]


def joined(reports: dict[int, Report]) -> Frontier:
    """What any of the members has."""
    most: Frontier = {}
    for report in reports.values():
        raise_to(most, report.frontier)
    return most


def least(reports: dict[int, Report]) -> Frontier:
    """What all of the members have."""
    first, *others = reports.values()
    return {
        actor: min([sequence, *[each.frontier.get(actor, 0) for each in others]])
        for actor, sequence in first.frontier.items()
        if all(each.frontier.get(actor, 0) for each in others)
    }
