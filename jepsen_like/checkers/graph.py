"""Directed graphs of numbered nodes whose edges are of kinds: components and shortest cycles."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Kind(enum.IntFlag):
    """Why one transaction comes before another (Adya 1999; Kingsbury and Alvaro 2020)."""

    WW = 1  # it wrote the version that the other replaced
    WR = 2  # it wrote what the other read
    RW = 4  # it read what the other replaced
    PROCESS = 8  # it is earlier in the same process
    REALTIME = 16  # it ended before the other began


class Edge(NamedTuple):
    """One step of a cycle."""

    source: int
    kind: Kind
    target: int


class Graph:
    """*edges*: for each node its successors, each with all kinds of edges that lead there."""

    def __init__(self, count: int) -> None:
        self.edges: list[dict[int, Kind]] = [{} for _number in range(count)]

    def add(self, source: int, kind: Kind, target: int) -> None:
        """An edge; one to itself says nothing and is left out."""
        if source != target:
            self.edges[source][target] = self.edges[source].get(target, Kind(0)) | kind

    def components(self, allowed: Kind) -> list[list[int]]:
        """The strongly connected components of more than one node, over edges of *allowed* kinds;
        nodes in ascending order. Tarjan 1972, without recursion."""
        count = len(self.edges)
        index = [-1] * count
        low = [0] * count
        on_stack = [False] * count
        stack: list[int] = []
        found: list[list[int]] = []
        number = 0
        for root in range(count):
            if index[root] >= 0:
                continue
            index[root] = low[root] = number
            number += 1
            stack.append(root)
            on_stack[root] = True
            work = [(root, iter(self.edges[root].items()))]
            while work:
                node, successors = work[-1]
                for target, kind in successors:
                    if not kind & allowed:
                        continue
                    if index[target] < 0:
                        index[target] = low[target] = number
                        number += 1
                        stack.append(target)
                        on_stack[target] = True
                        work.append((target, iter(self.edges[target].items())))
                        break
                    if on_stack[target]:
                        low[node] = min(low[node], index[target])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == index[node]:
                        component = _pop(stack, on_stack, node)
                        if len(component) > 1:
                            found.append(sorted(component))
        return found

    def cycle(
        self, nodes: Sequence[int], through: Kind, back: Kind, steps_max: int
    ) -> tuple[list[Edge], int]:
        """The shortest cycle within *nodes* that has an edge of kind *through*, the rest being of
        kinds *back*; empty if there is none, or none was found in *steps_max* edges looked at. Also
        the number of these."""
        inside = frozenset(nodes)
        best: list[Edge] = []
        steps = 0
        for source in nodes:
            for target, kind in self.edges[source].items():
                if not kind & through or target not in inside:
                    continue
                if steps > steps_max:
                    return best, steps
                path, looked = self._path(target, source, back, inside, len(best) - 1)
                steps += looked
                if path is not None:
                    best = [Edge(source, through, target), *path]
                    if len(best) == 2:
                        return best, steps
        return best, steps

    def _path(
        self, source: int, target: int, allowed: Kind, inside: frozenset[int], length_max: int
    ) -> tuple[list[Edge] | None, int]:
        """The shortest way, of fewer than *length_max* edges if that is not negative."""
        came: dict[int, Edge] = {}
        queue = deque([(source, 0)])
        steps = 0
        while queue:
            node, length = queue.popleft()
            if 0 <= length_max <= length + 1:
                return None, steps
            for after, kind in self.edges[node].items():
                steps += 1
                usable = kind & allowed
                if not usable or after in came or after not in inside:
                    continue
                came[after] = Edge(node, Kind(usable & -usable), after)
                if after == target:
                    return _walk_back(came, source, target), steps
                queue.append((after, length + 1))
        return None, steps


def _pop(stack: list[int], on_stack: list[bool], until: int) -> list[int]:
    component = []
    while True:
        node = stack.pop()
        on_stack[node] = False
        component.append(node)
        if node == until:
            return component


def _walk_back(came: dict[int, Edge], source: int, target: int) -> list[Edge]:
    path = [came[target]]
    while path[-1].source != source:
        path.append(came[path[-1].source])
    path.reverse()
    return path
