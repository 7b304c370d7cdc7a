"""A node's own steps in folding lives away: ``crdt.folding`` says what that is and why it is right.

The log says which lives go, and when (``lives``); when this node has come so far it says by its
*stage*, which stands in its store and in what it tells the others. A step is taken between two
commits, and is one itself. Gathering what dead lives left in counters takes as many as there are
counters; it goes on in slices while all else goes on, too, and is done again from the beginning
after a restart, which does no harm.

A node that cannot take a step because its store is older than it told the others is *behind*: set
back, or lost. It takes over everything from one that has folded (``reconciling``). Should all
members be behind, the one with the lowest number folds by itself when it has what the others have
of those lives, and the others take over from that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from quorate.crdt.bounded import passed_on
from quorate.crdt.cells import owner_of, segment_of
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import path_key, path_of
from quorate.crdt.dots import Path, epoch_of, make_actor, member_of
from quorate.crdt.folding import (
    GATHERING,
    PREPARED,
    gather,
    generation_of,
    is_preparing,
    is_whole,
)
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import BoundedCounter, ORMap
from quorate.errors import QuorateError
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.life_records import FoldedAway, Marks
from quorate.replication.converging.reports import Reports
from quorate.replication.converging.view import key_after

_logger = logging.getLogger("quorate.crdt")

#: One slice of gathering: so many places where something stands, and so much time.
SLICE_PLACES: Final = 200
SLICE_S: Final = 0.004
PAUSE_S: Final = 0.002
#: What others have done already, and this node has not, may be on its way for so long.
BEHIND_S: Final = 5.0


class FoldedLives(Protocol):
    """What the log says of folding: ``lives.LivesMachine``."""

    @property
    def generation(self) -> int: ...
    @property
    def preparing(self) -> Marks: ...
    @property
    def fold(self) -> FoldedAway | None: ...
    def after(self, actor: int) -> Marks: ...
    def is_admitted(self, actor: int) -> bool: ...
    def is_retired(self, actor: int) -> bool: ...
    def retired(self) -> Mapping[int, int]: ...
    def present(self) -> tuple[int, ...]: ...


class Folding:
    """The steps of one node. *reports*: what the members told. *changed*: the stage has; tell."""

    def __init__(
        self,
        engine: Engine,
        lives: FoldedLives,
        reports: Reports,
        changed: Callable[[], None],
    ) -> None:
        self.problem = ""  #: why this node holds folding up, or ""
        self._engine = engine
        self._lives = lives
        self._reports = reports
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._queued = False
        self._at = b""  # gathered up to this key
        self._waits_s: float | None = None  # since when it could not do what others did

    @property
    def stage(self) -> int:
        """How far this node has come."""
        return self._engine.own.generation

    def look(self) -> None:
        """Take the next step, if there is one."""
        engine, lives = self._engine, self._lives
        if engine.stopped:
            return
        self._leave_closed_life()
        self._begin_life()
        if self._queued or lives.generation < generation_of(self.stage):  # the log is behind
            return
        step = self._next()
        if step is not None:
            self._queued = True
            engine.alone(lambda _engine: self._take(step))

    def is_behind(self) -> bool:
        """Whether this node is to take over everything from one that has folded."""
        folded, done = self._lives.generation, self._engine.folds
        if done >= folded or self._waits_s is None:
            return False
        waited_s = self._engine.clock.monotonic_s() - self._waits_s
        return folded > done + 1 or waited_s >= BEHIND_S

    # --- which step ---------------------------------------------------------------------------

    def _next(self) -> Callable[[Commit], None] | None:
        """The next step that can be taken now. Asked again when it is taken."""
        stage, lives = self.stage, self._lives
        done = generation_of(stage)
        self.problem = ""
        if not is_whole(stage):
            return self._gather
        if self._engine.own.ahead:
            return None
        lacks = self._engine.folds < done  # it began to take over what others folded, and has not
        if lives.generation == done and not lacks:
            self._waits_s = None
            if lives.preparing and not is_preparing(stage) and self._has(lives.preparing):
                return self._prepare
            return None
        if self._waits_s is None:
            self._waits_s = self._engine.clock.monotonic_s()
        fold = None if lacks else lives.fold
        if fold is not None and fold.generation == done + 1 and self._may_fold(fold):
            return self._begin if is_preparing(stage) else self._prepare
        return self._begin_for_all if self._is_first_of_all_behind() else None

    def _has(self, last: Marks) -> bool:
        """Whether all that these lives did is here, and nothing of others that go with them."""
        if any(self._engine.frontier.get(actor, 0) < sequence for actor, sequence in last):
            return False
        if not all(self._engine.covers(dict(self._lives.after(actor))) for actor, _ in last):
            return False
        going: dict[int, int] = {}
        for actor, _sequence in last:
            going[member_of(actor)] = max(going.get(member_of(actor), 0), epoch_of(actor))
        named = {actor for actor, _sequence in last}
        strangers = [
            actor
            for actor in self._engine.view.context.actors()
            if epoch_of(actor) <= going.get(member_of(actor), 0) and actor not in named
        ]
        if strangers:
            self.problem = (
                f"lives {[epoch_of(actor) for actor in strangers]} were never admitted, and hold "
                f"folding up: stop the node and set its CRDT data aside (quorate crdt rescue "
                f"DATA_DIR --discard)"
            )
        return not strangers

    def _may_fold(self, fold: FoldedAway) -> bool:
        """Whether this node has what every member had when the log decided, and of the lives that
        go, no more. (More would be of a life that went on after its end: it is given up.)"""
        settled, frontier = dict(fold.settled), self._engine.frontier
        going = tuple((actor, settled.get(actor, 0)) for actor, _heir in fold.heirs)
        return (
            all(frontier.get(actor, 0) == sequence for actor, sequence in going)
            and self._engine.covers(settled)
            and self._has(going)
        )

    def _is_first_of_all_behind(self) -> bool:
        """Whether nobody has folded what the log says was folded, and this node is to begin."""
        engine = self._engine
        if not self.is_behind():
            return False
        others = self._reports.others()
        if others is None or any(
            generation_of(each.stage) > engine.folds or node < engine.member
            for node, each in others.items()
        ):
            return False
        return all(
            sequence <= engine.frontier.get(actor, 0)
            for each in others.values()
            for actor, sequence in each.frontier.items()
            if self._lives.is_retired(actor)
        )

    # --- taking it ----------------------------------------------------------------------------

    def _take(self, planned: Callable[[Commit], None]) -> Commit | None:
        """Between two commits: the step, if it is still the next one."""
        step = self._next()
        if step != planned:
            self._queued = False
            return None
        before = self.stage
        commit = self._engine.open()
        step(commit)
        if step in {self._begin, self._begin_for_all}:
            self._engine.forget_arrived()  # some may be too old by then
        if commit.stands_still:
            self._loop.call_later(PAUSE_S, self._again)
            return None

        def ended(error: QuorateError | None) -> None:
            self._loop.call_later(PAUSE_S, self._again)
            if error is None and self.stage != before:
                self._changed()

        commit.ended = ended
        return commit

    def _again(self) -> None:
        self._queued = False
        self.look()

    def _prepare(self, commit: Commit) -> None:
        fold = self._lives.fold
        last = self._lives.preparing
        if self._lives.generation > generation_of(self.stage):
            last = () if fold is None else fold.heirs
        actors = tuple(actor for actor, _ in last)
        commit.begin_at(3 * generation_of(self.stage) + PREPARED, actors)

    def _begin(self, commit: Commit) -> None:
        fold = self._lives.fold
        going = () if fold is None else fold.heirs
        retired: dict[int, int] = {}
        for actor, _heir in going:
            retired[member_of(actor)] = max(retired.get(member_of(actor), 0), epoch_of(actor))
        self._retire(commit, retired, generation_of(self.stage) + 1)

    def _begin_for_all(self, commit: Commit) -> None:
        _logger.error(
            "no member has the CRDT data that it had when lives were folded for the last time: "
            "node %d goes on with what it has",
            self._engine.member,
        )
        self._retire(commit, self._lives.retired(), self._lives.generation)

    def _retire(self, commit: Commit, retired: Mapping[int, int], generation: int) -> None:
        commit.begin_at(3 * (generation - 1) + GATHERING)
        commit.complete(CausalContext(), {}, retired)
        self._at, self._waits_s = b"", None

    # --- gathering ----------------------------------------------------------------------------

    def _gather(self, commit: Commit) -> None:
        """One slice, or the end of it."""
        clock, view = self._engine.clock, self._engine.view
        until_s = clock.monotonic_s() + SLICE_S
        at: bytes | None = self._at
        for _ in range(SLICE_PLACES):
            key = None if at is None else view.first(at, None)
            if key is None:
                commit.begin_at(self.stage + 1)
                self._at = b""
                return
            path = path_of(key)
            owner, depth = ORMap.locate(path)
            if owner.cells:
                self._gather_one(commit, owner, path[:depth])
            at = key_after(path_key(path[:depth]))
            if clock.monotonic_s() >= until_s:
                break
        self._at = at or b""
        if at is None:
            commit.begin_at(self.stage + 1)

    def _gather_one(self, commit: Commit, owner: type[Kind], prefix: Path) -> None:
        view, depth = self._engine.view, len(prefix)
        cells = [(path[depth:], leaf) for path, leaf in view.scan(prefix)]
        for own, leaf in gather(owner, cells, view.finished, self._heir).items():
            commit.put((*prefix, *own), leaf)
        if owner is not BoundedCounter or not self._engine.own.actor:
            return
        for own, _leaf in cells:
            if own[0] == segment_of(self._engine.own.actor) and view.finished(owner_of(own[1])):
                commit.mutate(
                    lambda view, at, own=own: passed_on(  # type: ignore[misc]
                        ORMap, view, (*prefix, *own), at, self._heir
                    )
                )

    def _heir(self, actor: int) -> int:
        """Who has the rights of *actor*: itself, or who took over from it."""
        if not self._engine.is_retired(actor):
            return actor
        fold = self._lives.fold
        heir = None if fold is None else dict(fold.heirs).get(actor)
        if heir is not None:
            return heir
        present = self._lives.present()
        own = [each for each in present if member_of(each) == member_of(actor)]
        last = make_actor(member_of(actor), self._lives.retired()[member_of(actor)])
        return (*own, *present, last)[0]

    # --- lives --------------------------------------------------------------------------------

    def _begin_life(self) -> None:
        """Begin a life if that is what folding waits for: an earlier process of this node has one
        that is not over, or all are over, and nobody could inherit."""
        engine, present = self._engine, self._lives.present()
        if engine.own.actor:
            return
        if any(member_of(each) == engine.member for each in present) or (
            engine.frontier and not present
        ):
            engine.living.begin()

    def _leave_closed_life(self) -> None:
        """Another process of this member has begun a life: what this one would still write might
        come too late to be folded."""
        own = self._engine.own.actor
        if not own or own in self._lives.present():
            return
        if self._lives.is_admitted(own) or self._lives.is_retired(own):
            _logger.warning("life %d of this node is over: another one begins", epoch_of(own))
            self._engine.become(0)
            self._engine.living.again()
