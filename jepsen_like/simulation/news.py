"""What histories of converging data are told of nodes: which of them run undisturbed, whose disk
was lost, who was removed, who has a vote, what a node may hold beyond the place that it tells."""

from __future__ import annotations

from jepsen_like.checkers.crdt.acts import AWAY, DISK_LOST, MEMBERS, REMOVED, WATCHED
from jepsen_like.simulation.load import Load
from jepsen_like.simulation.membership import Keeper
from jepsen_like.simulation.stage import Stage


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
        self._voters: list[int] = []
        self._wanted = any(load.follows_nodes(name) for name in load.workloads)
        self._begun = False

    def look(self) -> None:
        """Tell what has changed."""
        if not self._wanted:
            return
        if not self._begun:
            self._begun = True
            self._tell(WATCHED, "begin", "all", [0])
        for node in self._stage.nodes():
            well = self._stage.undisturbed(node)
            if well and node in self._away:
                number = self._away.pop(node)
                self._tell(AWAY, "end", f"node {node}", [node], number)
            elif not well and node not in self._away:
                self._number += 1
                self._away[node] = self._number
                self._tell(AWAY, "begin", f"node {node}", [node], self._number)
        for node in self._keeper.leaving:
            if node not in self._removed:
                self._removed[node] = None
                self._tell(REMOVED, "begin", f"node {node}", [node])
        for node in self._stage.disks_lost[self._lost :]:
            self._lost += 1
            self._tell(DISK_LOST, "note", f"node {node}", [node])
        voters = self._stage.voters()
        if voters and voters != self._voters:
            self._voters = voters
            self._tell(MEMBERS, "note", f"voters {voters}", [0], voters=voters)

    def _tell(
        self, kind: str, do: str, what: str, nodes: list[int], number: int = 0, **more: object
    ) -> None:
        value = {"id": number, "do": do, "what": what, "nodes": nodes, **more}
        self._load.tell_of_nodes(kind, value, self._stage.now_s)
