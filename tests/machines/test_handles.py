"""Handles of declared machines: awaited, blocking, through views, on nodes of this process and of
others; and what the command line does with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import quorate
from quorate.client.levels import Receipt
from quorate.errors import (
    BadCommandError,
    CommandError,
    ConfigError,
    InvalidArgumentError,
    UnknownMachineError,
)
from quorate.replication.machine import Context, Machine
from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster
from tests.machines.test_declaring import Inventory, Item, New, Old, OutOfStockError, make
from tests.replication.support import Node, run_of, submit


class LockedError(CommandError):
    code = "locked"

    def __init__(self, who: str, until: int) -> None:
        super().__init__(f"{who} until {until}")


class Door(quorate.Machine):
    errors = (LockedError,)

    @quorate.command
    def open(self, who: str) -> None:
        raise LockedError(who, 5)

    @quorate.command
    def close(self) -> None:
        raise OutOfStockError("of doors")  # not in errors


def test_an_embedded_node_serves_declared_machines(tmp_path: Path) -> None:
    def machines() -> list[Machine]:
        return [Inventory(), Door(), quorate.ReplDict("names")]

    async def first() -> None:
        async with quorate.open(tmp_path, machines=machines()) as db:
            stock = db.machine(Inventory)
            assert await stock.stock("a", 5) == 5
            assert await stock.call(Inventory.reserve, "a", 2) == Item(3)
            with pytest.raises(OutOfStockError, match="a: 3 left"):
                await stock.reserve("a", 9)
            results = await asyncio.gather(*(stock.stock("a") for _ in range(50)))
            assert results == list(range(4, 54))
            await refusals(db, stock)
            names = db.machine(quorate.ReplDict("names"))
            await names.set("x", [1])
            assert await names.items() == [("x", [1])]

    async def refusals(db: quorate.Database, stock: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="Expected `int`"):
            await stock.reserve("a", "2")
        with pytest.raises(InvalidArgumentError, match="no command or query of this machine"):
            await stock.call(Old.add, 1)
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await stock.left("a", timeout=-1)
        with pytest.raises(UnknownMachineError):
            await db.machine(quorate.ReplSet("nowhere")).add(1)
        with pytest.raises(InvalidArgumentError, match="neither a machine's name nor"):
            db.machine(Machine)
        door = db.machine(Door)
        with pytest.raises(LockedError, match="ann until 5"):
            await door.open("ann")
        with pytest.raises(CommandError, match="of doors") as other:
            await door.close()
        assert (type(other.value), other.value.code) == (CommandError, "out-of-stock")
        assert "machine 'door'" in repr(door)
        assert door.raw.name == "door"

    async def again() -> None:
        async with quorate.open(tmp_path, machines=machines()[::-1]) as db:  # in any order
            assert await db.machine(Inventory).left("a") == 53

    async def without() -> None:
        async with quorate.open(tmp_path):
            pass

    asyncio.run(first())
    asyncio.run(again())
    with pytest.raises(ConfigError, match="not registered"):
        asyncio.run(without())


def test_the_synchronous_twin(tmp_path: Path) -> None:
    with quorate.sync.open(tmp_path, machines=[Inventory()]) as db:
        stock = db.machine(Inventory)
        assert stock.stock("a", count=5) == 5
        assert stock.call(Inventory.left, "a") == 5
        with pytest.raises(OutOfStockError):
            stock.reserve("a", 9)
        assert stock.raw.name == "inventory"
        assert db.upgrade("inventory")["version"] == 1


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """Three node processes whose configuration names a machine."""
    cluster = LocalCluster(3, arguments=("--machines", "tests.machines.test_declaring:New"))
    try:
        asyncio.run(cluster.start())
        yield cluster.endpoints
    finally:
        cluster.close()


def test_processes_load_machines_by_name(shop: str) -> None:
    async def story() -> None:
        async with quorate.connect(shop) as db:
            handle = db.machine(New)
            receipt = Receipt()
            total = await handle.add(2, "first", level="strong", receipt=receipt)
            assert total == 4
            assert receipt.level == "strong"
            assert await handle.sum_and_notes(level="eventual")
            view = db.at("causal")
            assert await view.machine(New).add(1) == 6
            assert (await view.machine(New).sum_and_notes())[0] == 6
            with pytest.raises(BadCommandError):
                await db.machine(Old).halve()

    asyncio.run(story())


def test_upgrade_on_the_command_line(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrade", "shop", "--endpoints", shop]) == 0
    assert capsys.readouterr().out == "machine shop is at version 2 already\n"
    assert main(["upgrade", "shop", "--json", "--endpoints", shop]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"machine": "shop", "version": 2, "before": 2, "behind": {}}
    assert main(["upgrade", "nobody", "--endpoints", shop]) == 1
    assert "has no machine 'nobody'" in capsys.readouterr().err


# --- what it costs --------------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    number: int


class Add(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    key: str
    number: int


class Sum(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    number: int


class Bare(quorate.Machine):
    """The same as ``Easy``, by hand."""

    name = "bare"
    command_type = Add

    def attach(self, tables: Any) -> None:
        self.sums = tables.table("bare.sums", Record)

    def apply(self, command: Add, context: Context) -> Sum:
        key = command.key.encode()
        known = self.sums.get(key)
        number = command.number + (0 if known is None else known.number)
        self.sums.put(key, Record(number))
        return Sum(number)


class Easy(quorate.Machine):
    sums: quorate.Table[str, Record]

    @quorate.command
    def add(self, key: str, number: int) -> int:
        known = self.sums.get(key)
        number += 0 if known is None else known.number
        self.sums.put(key, Record(number))
        return number


def test_what_the_comfort_costs() -> None:
    """0.6 us a command on the reference machine; less than 3 on a busy one."""
    node = Node([Bare(), Easy()])
    count = 1000
    best = {}
    for _ in range(10):
        for name, commands in (
            ("bare", [Add(f"k{at % 100}", at) for at in range(count)]),
            ("easy", [make(Easy, "add", f"k{at % 100}", at) for at in range(count)]),
        ):
            payload = node.payload([submit(run_of(name, *commands))])
            began_s = time.perf_counter()
            node.machines.apply(node.machines.index + 1, 1, payload)
            took_us = (time.perf_counter() - began_s) / count * 1e6
            best[name] = min(best.get(name, took_us), took_us)
    assert best["easy"] - best["bare"] < 3.0, best
