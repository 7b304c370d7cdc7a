"""Partitions as sets of directed links that are blocked. Pure: nodes in, pairs out.

Every shape takes the nodes in the order that the caller has shuffled them into; links are pairs of
(source, target), sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

Links = list[tuple[int, int]]


def between(left: Sequence[int], right: Sequence[int]) -> Links:
    """All links between two groups, both ways."""
    pairs = [(a, b) for a in left for b in right if a != b]
    return sorted({*pairs, *((b, a) for a, b in pairs)})


def isolated(nodes: Sequence[int]) -> Links:
    """The first one hears nobody, and nobody hears it."""
    return between(nodes[:1], nodes[1:])


def halves(nodes: Sequence[int]) -> Links:
    """Two groups that do not hear each other; the first is the smaller."""
    cut = len(nodes) // 2
    return between(nodes[:cut], nodes[cut:])


def mute(nodes: Sequence[int]) -> Links:
    """Nobody hears the first one, which hears all."""
    return sorted((nodes[0], other) for other in nodes[1:])


def deaf(nodes: Sequence[int]) -> Links:
    """The first one hears nobody, and all hear it."""
    return sorted((other, nodes[0]) for other in nodes[1:])


def bridge(nodes: Sequence[int]) -> Links:
    """Two groups that hear each other only through the first node."""
    rest = nodes[1:]
    cut = (len(rest) + 1) // 2
    return between(rest[:cut], rest[cut:])


def ring(nodes: Sequence[int]) -> Links:
    """Each hears a majority, itself included, and no two hear the same one."""
    count = len(nodes)
    majority = count // 2 + 1
    heard = {
        (nodes[(at + step) % count], nodes[at]) for at in range(count) for step in range(majority)
    }
    return sorted((a, b) for a in nodes for b in nodes if a != b and (a, b) not in heard)


def cut_off(nodes: Sequence[int], links: Links) -> list[int]:
    """Those of *nodes* that neither hear any other nor are heard by one."""
    blocked = frozenset(links)
    return [node for node in nodes if blocked.issuperset(between([node], nodes))]


#: By the name that events show.
SHAPES: Final[Mapping[str, Callable[[Sequence[int]], Links]]] = {
    "isolated": isolated,
    "halves": halves,
    "mute": mute,
    "deaf": deaf,
    "bridge": bridge,
    "ring": ring,
}
