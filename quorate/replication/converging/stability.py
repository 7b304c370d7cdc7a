"""What the leader proposes of CRDT data: who is gone, what every member has, which lives go.

It decides by what the members have told of their disks (``reports``). That stays true, as frontiers
only grow; of a member that has begun another life since, nothing counts that it said before. Only
members of the present configuration are asked. One that is away holds all of this up until it
comes back or is removed, and nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from quorate.consensus.membership import Membership
from quorate.crdt.dots import epoch_of, member_of
from quorate.crdt.folding import PREPARED
from quorate.replication.converging.life_records import Marks
from quorate.replication.converging.lives import (
    RETIRED_MAX,
    Expel,
    FoldLives,
    LivesCommand,
    PrepareFold,
    Stable,
    to_marks,
)
from quorate.replication.converging.records import Frontier
from quorate.replication.converging.reports import Report, Reports, joined, least

#: Between two proposals: by then what the first came to is known, mostly.
PROPOSE_S: Final = 0.15
#: The stable frontier is moved so often, if it can be: with 2 s, records kept until then took ten
#: times the store of a thousand elements that a busy client added and removed, with this a third.
STABLE_S: Final = 0.15
#: Lives are folded when none has begun or ended for so long: many end together, and what is on its
#: way from those who left has arrived.
QUIET_S: Final = 5.0
#: Lives whose stable records one entry moves.
STABLE_MARKS_MAX: Final = 10_000


class LeadersLives(Protocol):
    """What the log says of lives: ``lives.LivesMachine``."""

    @property
    def generation(self) -> int: ...
    @property
    def changes(self) -> int: ...
    @property
    def preparing(self) -> Marks: ...
    def present(self) -> tuple[int, ...]: ...
    def known(self) -> tuple[int, ...]: ...
    def closed(self) -> tuple[int, ...]: ...
    def is_admitted(self, actor: int) -> bool: ...
    def is_retired(self, actor: int) -> bool: ...
    def stable(self) -> Any: ...  # noqa: ANN401  a mapping


class Stability:
    """*leads*: whether this node does. *propose*: put a command into the log, if that is so."""

    def __init__(
        self,
        lives: LeadersLives,
        reports: Reports,
        membership: Callable[[], Membership],
        *,
        leads: Callable[[], bool],
        propose: Callable[[LivesCommand], None],
    ) -> None:
        self._lives = lives
        self._reports = reports
        self._membership = membership
        self._leads = leads
        self._propose = propose
        self._propose_s = 0.0
        self._stable_s = 0.0
        self._changes = -1
        self._changed_s = 0.0
        self._settling: tuple[Marks, Frontier] | None = None  # what was prepared, what is to be had

    def on_tick(self, now_s: float) -> None:
        """Propose what is due."""
        lives = self._lives
        if lives.changes != self._changes:
            self._changes, self._changed_s = lives.changes, now_s
        if not self._leads():
            self._settling = None
            return
        if now_s < self._propose_s:
            return
        command = self._expelled() or self._folding(now_s) or self._stable(now_s)
        if command is not None:
            self._propose_s = now_s + PROPOSE_S
            self._propose(command)

    # --- what to propose ----------------------------------------------------------------------

    def _expelled(self) -> Expel | None:
        """Lives of members that are members no more are over."""
        members = self._membership().members()
        gone = {member_of(each): None for each in self._lives.present()}
        found = tuple(member for member in gone if member not in members)
        return Expel(found) if found else None

    def _folding(self, now_s: float) -> PrepareFold | FoldLives | None:
        lives, everyone = self._lives, self._reports.everyone()
        if everyone is None or not lives.present():
            return None
        stages = {report.stage for report in everyone.values()}
        done = 3 * lives.generation
        if lives.preparing:
            if stages == {done + PREPARED}:
                return self._settle(everyone)
            self._settling = None
            return self._prepare_again(everyone)
        if stages != {done} or now_s - self._changed_s < QUIET_S or not lives.closed():
            return None
        most = joined(everyone)
        closed = self._foldable(most)[:RETIRED_MAX]
        return PrepareFold(lives.generation + 1, to_marks(most, closed)) if closed else None

    def _foldable(self, most: Frontier) -> tuple[int, ...]:
        """The closed lives, but for those behind one of the same member that was begun without the
        log and that it can still admit: folded with them, it could not be had any more. *most*:
        what any of the members has."""
        first: dict[int, int] = {}
        for actor in most:
            if self._is_strange(actor):
                member, epoch = member_of(actor), epoch_of(actor)
                first[member] = min(first.get(member, epoch), epoch)
        return tuple(
            actor
            for actor in self._lives.closed()
            if epoch_of(actor) < first.get(member_of(actor), epoch_of(actor) + 1)
        )

    def _is_strange(self, actor: int) -> bool:
        """Whether the log does not know that life."""
        return not (self._lives.is_admitted(actor) or self._lives.is_retired(actor))

    def _prepare_again(self, everyone: dict[int, Report]) -> PrepareFold | None:
        """Whoever had the last records of a life may be gone, and they with it: then they are
        waited for no more."""
        preparing, most = self._lives.preparing, joined(everyone)
        if all(sequence <= most.get(actor, 0) for actor, sequence in preparing):
            return None
        actors = [actor for actor, _sequence in preparing]
        return PrepareFold(self._lives.generation + 1, to_marks(most, actors))

    def _settle(self, everyone: dict[int, Report]) -> FoldLives | None:
        """Fold, once every member has what any of them had when all were prepared."""
        lives = self._lives
        if self._settling is None or self._settling[0] != lives.preparing:
            most = joined(everyone)
            self._settling = (
                lives.preparing,
                {actor: most.get(actor, 0) for actor in lives.known()},
            )
        settled = self._settling[1]
        if any(
            report.frontier.get(actor, 0) < sequence
            for report in everyone.values()
            for actor, sequence in settled.items()
        ):
            return None
        return FoldLives(lives.generation + 1, lives.changes, to_marks(settled, settled))

    def _stable(self, now_s: float) -> Stable | None:
        if now_s < self._stable_s:
            return None
        self._stable_s = now_s + STABLE_S
        everyone = self._reports.everyone()
        if everyone is None:
            return None
        before, lives = self._lives.stable(), self._lives
        news = {
            actor: sequence
            for actor, sequence in sorted(least(everyone).items())
            if sequence > before.get(actor, 0) and lives.is_admitted(actor)
        }
        marks = tuple(news.items())[:STABLE_MARKS_MAX]
        return Stable(marks) if marks else None

    # --- for operators ------------------------------------------------------------------------

    def waits_for(self) -> list[int]:
        """The members that folding waits for, as far as this node knows."""
        lives = self._lives
        if not lives.closed():
            return []
        wanted = 3 * lives.generation + (PREPARED if lives.preparing else 0)
        everyone = self._reports.everyone()
        if everyone is None:
            return self._reports.silent()
        return [
            node
            for node, report in everyone.items()
            if report.stage < wanted or any(map(self._is_strange, report.frontier))
        ]
