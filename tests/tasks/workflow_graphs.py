"""Nodes that make a workflow, or none, and how to tell."""

from __future__ import annotations

from collections.abc import Container
from graphlib import CycleError, TopologicalSorter

import msgspec
from hypothesis import strategies as st

from quorate.base.task_specs import Options, Retry, Task
from quorate.base.workflow_commands import (
    BLOCKING,
    OPTIONAL,
    RUN,
    SIGNAL,
    SLEEP,
    WEAK,
    After,
    Node,
)

ONCE = Options(retry=Retry(0), timeout_ms=0)
#: What a node may be: its kind and its task; more often what ends soon.
SHAPES = [
    *[(RUN, Task("f", options=ONCE))] * 4,
    (RUN, Task("f", options=Options(retry=Retry(1, 200), timeout_ms=1_000, crashes=0))),
    (RUN, Task("f", options=Options(retry=Retry(2, 0), timeout_ms=0, expires_ms=500))),
    (RUN, Task("f", delay_ms=200, options=ONCE)),
    (SLEEP, Task("s")),
    (SLEEP, Task("s", delay_ms=250)),
    (SLEEP, Task("s", delay_ms=500, options=Options(expires_ms=500))),
    (SIGNAL, Task("s")),
    (SIGNAL, Task("s", options=Options(expires_ms=500))),
]
UNDO = Task("u", options=Options(retry=Retry(1, 100), timeout_ms=1_000, crashes=0))


_some = st.integers(0, 99)


@st.composite
def graphs(draw: st.DrawFn, others: tuple[str, ...] = ()) -> tuple[Node, ...]:
    """Nodes of which most wait for ones before them, or for *others*; in any order. Names are in
    none. Some graphs are none: they have a cycle, or miss a node."""
    count = draw(st.integers(1, 7))
    letters = draw(st.permutations("abcdefghij"[: count + 1]))
    nodes: list[Node] = []
    wild = draw(_some) % 10 == 9
    for at in range(count):
        kind, task = draw(st.sampled_from(SHAPES))
        known = list(letters) if wild else [*letters[:at], *others]
        kinds = st.sampled_from((BLOCKING, BLOCKING, BLOCKING, OPTIONAL, WEAK))
        names = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        after = tuple(After(name, draw(kinds)) for name in names)
        undo = UNDO if draw(_some) % 2 else None
        beside = after[0].node if after and kind == RUN and draw(_some) % 4 == 0 else ""
        nodes.append(Node(letters[at], task, after, kind, undo, beside))
    return tuple(reversed(nodes) if draw(st.booleans()) else nodes)


def renamed(node: Node, own: set[str]) -> Node:
    """With other names for its *own*."""

    def new(name: str) -> str:
        return name + name if name in own else name

    return msgspec.structs.replace(
        node, name=new(node.name), beside=new(node.beside),
        after=tuple(After(new(each.node), each.kind) for each in node.after),
    )  # fmt: skip


def is_wrong(nodes: tuple[Node, ...], known: Container[str]) -> bool:
    """Whether they make no workflow, beside nodes that are *known*."""
    names = [each.name for each in nodes]
    after = {each.name: [other.node for other in each.after] for each in nodes}
    return (
        len(set(names)) < len(names)
        or any(len(set(each)) < len(each) for each in after.values())
        or any(name not in after and name not in known for each in after.values() for name in each)
        or has_cycle(after)
    )


def has_cycle(waits: dict[str, list[str]]) -> bool:
    try:
        TopologicalSorter(waits).prepare()
    except CycleError:
        return True
    return False
