"""Whether nodes make a workflow: every name once, every one waited for there, and no cycle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quorate.base.workflow_commands import Node

#: Nodes of a cycle that a refusal names.
SHOWN_MAX = 5


def trouble_in(nodes: Sequence[Node], known: Iterable[str]) -> str:
    """What is wrong with *nodes*, which may also wait for nodes that are *known*; "": nothing."""
    there = set(known)
    left: dict[str, int] = {}
    children: dict[str, list[str]] = {}
    for node in nodes:
        if node.name in left:
            return f"there are two nodes {node.name!a}"
        left[node.name] = 0
    for node in nodes:
        names = [each.node for each in node.after]
        if len(names) != len(dict.fromkeys(names)):
            return f"node {node.name!a} waits for the same node twice"
        for name in names:
            if name in left:
                left[node.name] += 1
                children.setdefault(name, []).append(node.name)
            elif name not in there:
                return f"node {node.name!a} waits for {name!a}, which is not there"
    free = [name for name, count in left.items() if not count]
    while free:
        name = free.pop()
        del left[name]
        for child in children.get(name, ()):
            left[child] -= 1
            if not left[child]:
                free.append(child)
    if not left:
        return ""
    shown = ", ".join(f"{name!a}" for name in list(left)[:SHOWN_MAX])
    return f"nodes wait for each other in a cycle: {shown}"
