"""What histories of converging data are told of nodes: which of them run undisturbed, whose disk
was lost, who was removed, who has a vote, what a node may hold beyond the place that it tells."""

from __future__ import annotations

from jepsen_like.checkers.crdt.acts import (
    AHEAD,
    AWAY,
    CHANGING,
    DISK_LOST,
    FOLDED,
    REMOVED,
    VOTERS,
    WATCHED,
)
from jepsen_like.checkers.crdt.folds import FOLDS
from jepsen_like.simulation.load import Load
from jepsen_like.simulation.membership import Keeper
from jepsen_like.simulation.stage import Stage
from quorate.consensus.membership import Membership


class NodeNews:
    """Tells *load* of the nodes of *stage*; ``look`` is called whenever time is about to pass."""

    def __init__(self, stage: Stage, keeper: Keeper, load: Load) -> None:
        self._stage = stage
        self._keeper = keeper
        self._load = load
        self._away: dict[int, int] = {}  # by node: the number that its absence is told under
        self._number = 0
        self._lost = 0
        self._removed: dict[int, None] = {}
        self._members: dict[int, Membership] = {}
        self._voters: dict[int, list[int]] = {}
        self._asked = 0
        self._changing = False
        self._wanted = any(load.follows_nodes(name) for name in load.workloads)
        self._begun = False
        self._ahead: dict[int, None] = {}
        self._folds: dict[int, int] = {}

    def look(self) -> None:
        """Tell what has changed."""
        if not self._wanted:
            return
        if not self._begun:
            self._begun = True
            self._tell(WATCHED, "begin", "all", [0])
        running = self._stage.running()
        for number in self._stage.nodes():
            node = running.get(number)
            self._look_at(number, well=node is not None and self._stage.is_well(number))
            if node is None:
                continue
            tier = node.parts.converging.engine
            if self._folds.get(number) != tier.folds:
                self._folds[number] = tier.folds
                retired = sorted(tier.own.retired.items())
                self._tell(
                    FOLDED,
                    "note",
                    f"node {number}",
                    [number],
                    folds=tier.folds,
                    retired=retired if tier.folds else [],
                )
            if bool(tier.own.ahead) != (number in self._ahead):
                self._tell_ahead(number, {FOLDS: tier.folds, **tier.frontier})
            membership = node.replica.core.state.membership
            if self._members.get(number) is not membership:
                self._members[number] = membership
                self._tell_of_voters(number, voters_of(membership))
        self._look_for_changes()
        for number in self._keeper.leaving:
            if number not in self._removed:
                self._removed[number] = None
                self._tell(REMOVED, "begin", f"node {number}", [number])
        for number in self._stage.disks_lost[self._lost :]:
            self._lost += 1
            self._tell(DISK_LOST, "note", f"node {number}", [number])

    def _look_at(self, node: int, *, well: bool) -> None:
        if well and node in self._away:
            self._tell(AWAY, "end", f"node {node}", [node], self._away.pop(node))
        elif not well and node not in self._away:
            self._number += 1
            self._away[node] = self._number
            self._tell(AWAY, "begin", f"node {node}", [node], self._number)

    def _tell_of_voters(self, node: int, voters: list[int]) -> None:
        if voters and voters != self._voters.get(node):
            self._voters[node] = voters
            self._tell(VOTERS, "note", f"node {node}: {voters}", [node], voters=voters)

    def _look_for_changes(self) -> None:
        asked = self._keeper.asked
        if not self._changing and (asked > self._asked or self._keeper.in_doubt):
            self._changing = True
            self._tell(CHANGING, "begin", "the members", [0])
        elif self._changing and self._keeper.idle and self._stage.agreed_on_members():
            self._changing = False
            self._tell(CHANGING, "end", "the members", [0])
        self._asked = asked

    def _tell_ahead(self, node: int, frontier: dict[int, int]) -> None:
        if node in self._ahead:
            del self._ahead[node]
            self._tell(AHEAD, "end", f"node {node}", [node])
        else:
            self._ahead[node] = None
            marks = sorted(frontier.items())
            self._tell(AHEAD, "begin", f"node {node}", [node], marks=marks)

    def _tell(
        self, kind: str, do: str, what: str, nodes: list[int], number: int = 0, **more: object
    ) -> None:
        value = {"id": number, "do": do, "what": what, "nodes": nodes, **more}
        self._load.tell_of_nodes(kind, value, self._stage.now_s)


def voters_of(membership: Membership) -> list[int]:
    """Half of the way to another configuration those of both."""
    return sorted({*map(int, membership.voters), *map(int, membership.voters_old)})
