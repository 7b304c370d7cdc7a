"""A machine of one's own: an inventory that never sells what it has not, first used, then put under
crashes, partitions and torn disks in the simulator.

    python examples/own_machine.py
"""

from __future__ import annotations

import asyncio
import tempfile
from random import Random

import quorate
from jepsen_like.machine import Call, simulate_machine


class OutOfStockError(quorate.CommandError):
    """There is less than was asked for."""

    code = "out-of-stock"


class Inventory(quorate.Machine):
    """Version history: 1, first release."""

    errors = (OutOfStockError,)
    stock: quorate.Table[str, int]

    @quorate.command
    def deliver(self, sku: str, count: int) -> int:
        """Returns what there is now."""
        self.stock.put(sku, self.stock.get(sku, 0) + count)
        return self.stock[sku]

    @quorate.command
    def reserve(self, sku: str, count: int) -> int:
        """Returns what is left."""
        left = self.stock.get(sku, 0) - count
        if left < 0:
            raise OutOfStockError(f"{sku}: {left + count} left")
        self.stock.put(sku, left)
        return left

    @quorate.query
    def left(self, sku: str) -> int:
        return self.stock.get(sku, 0)


async def use() -> None:
    """On one node in this process; `quorate.connect` gives the same handle on a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        async with quorate.open(folder, machines=[Inventory()]) as db:
            inventory = db.machine(Inventory)
            print("delivered:", await inventory.deliver("bolt", 5))
            print("left:", await inventory.reserve("bolt", 3))
            try:
                await inventory.reserve("bolt", 3)
            except OutOfStockError as error:
                print("refused:", error)


def calls(random: Random) -> Call:
    """What some client does next."""
    sku, count = random.choice(["bolt", "nut"]), random.randint(1, 3)
    if random.random() < 0.3:
        return Call("left", sku, key=sku)
    return Call(random.choice(["deliver", "reserve"]), sku, count, key=sku)


def main() -> None:
    """Use it, then break everything around it."""
    asyncio.run(use())
    report = simulate_machine(Inventory, calls, seeds=5)
    print(report)
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
