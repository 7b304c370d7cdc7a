"""What tests of repairs by ranges share: sets to fill, journals to cut, sessions to count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from quorate.base.crdt_frames import Value
from quorate.base.crdt_operations import Add, KindTag
from quorate.replication.converging import pulling, serving
from tests.converging.tiers import Node

SET, COUNTER, REGISTER = KindTag.OR_SET, KindTag.PN_COUNTER, KindTag.LWW_REGISTER


def forget_records(*nodes: Node) -> None:
    """Their journals were cut: whoever lacks records has to compare ranges with them."""
    for node in nodes:
        table = node.image.tables.get("journal")
        for key in [] if table is None else list(table.keys):
            table.change(key, None)
        if node.tier is not None:
            node.engine._floors.clear()


async def fill(node: Node, *elements: object) -> None:
    for at in range(0, len(elements), 500):
        await node.write("s", SET, *[Add(each) for each in elements[at : at + 500]])


async def elements(node: Node) -> set[Any]:
    found: set[Any] = set()
    start: bytes | None = None
    while start != b"":
        (answer,), _ = await node.ask(Value("s", SET, (), start or b""))
        found |= set(answer[0])
        start = answer[1]
    return found


def count(node: Node) -> int:
    """Elements on its disk."""
    table = node.image.tables.get("elements")
    return 0 if table is None else len(table.keys)


def is_deaf(node: Node) -> bool:
    """Whether it drops records: it is taking ranges over."""
    return node.tier is not None and node.tier.disseminating.deaf


def sessions(node: Node) -> tuple[int, int]:
    """How many came to their end, and how many were given up."""
    assert node.tier is not None
    return node.tier.reconciling.done, node.tier.reconciling.given_up


async def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not true():
        assert loop.time() < end_s
        await asyncio.sleep(0.001)


def keeps_elements(patch: pytest.MonkeyPatch, elements_max: int) -> None:
    """So few elements in one frame."""
    for module in (serving, pulling):
        patch.setattr(module, "ELEMENTS_MAX", elements_max)
