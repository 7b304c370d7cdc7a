"""A shopping cart and a visitor counter that go on while the shops cannot reach one another.

    python examples/shopping_cart.py

Three shops, each with a node in its own process, simulated here in one. The cables between them are
cut, so none of them knows a majority: the key-value store waits. Carts and counters do not. Every
shop goes on selling, and when the cables are back all have the same, and nothing is lost: what was
put into a cart while another shop emptied it stays, and what that shop had seen goes.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

import quorate
from quorate.errors import QuorateError

SHOPS = (1, 2, 3)
CART = "cart:17"
VISITORS = "visitors"


class Cable:
    """Carries connections to *target* until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = True
        self._lines: dict[asyncio.Task[None] | None, list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None

    async def lay(self) -> str:
        """The address at this end."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def cut(self) -> None:
        self._whole = False
        for ends in self._lines.values():
            for end in ends:
                end.transport.abort()

    def mend(self) -> None:
        self._whole = True

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*filter(None, self._lines))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = self._lines[asyncio.current_task()] = [writer]
        try:
            if self._whole:
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                ends.append(back)
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        except OSError:
            pass  # the other side hears of it when its end is closed
        finally:
            for end in ends:
                end.close()
            del self._lines[asyncio.current_task()]

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def seen_by(db: quorate.Database, cart: dict[str, int], visitors: int) -> None:
    """Wait until this shop has heard of everything."""
    async with asyncio.timeout(30), db.map(CART).watch() as carts:
        async for now in carts:
            if now == cart:
                break
    async with asyncio.timeout(30), db.counter(VISITORS).watch() as counts:
        async for count in counts:
            if count == visitors:
                break


async def sell(shops: dict[int, quorate.Database]) -> None:
    """What happens while everybody can reach everybody."""
    await asyncio.gather(*(db.counter(VISITORS).increment(10) for db in shops.values()))
    await shops[1].map(CART).counter("apple").increment(2)
    for db in shops.values():
        await seen_by(db, {"apple": 2}, visitors=30)
    print("together: 2 apples in the cart, 30 visitors, in every shop")


async def sell_alone(shops: dict[int, quorate.Database]) -> None:
    """What happens while nobody can reach anybody."""
    try:
        await shops[1].kv.put("price/apple", "3", timeout=0.5)
    except QuorateError as error:
        print(f"cut off, the key-value store waits: {type(error).__name__}")
    await shops[1].map(CART).counter("pear").increment()
    await shops[2].map(CART).counter("apple").increment()  # one more ...
    await shops[3].map(CART).remove("apple")  # ... while shop 3 takes out the two it has seen
    await asyncio.gather(*(db.counter(VISITORS).increment(100) for db in shops.values()))
    for number, db in shops.items():
        cart, visitors = await db.map(CART).value(), await db.counter(VISITORS).value()
        print(f"cut off, shop {number} has {cart} in the cart and {visitors} visitors")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ports = {number: free_port() for number in SHOPS}
        cables = {number: Cable(ports[number]) for number in SHOPS}
        addresses = {number: await cables[number].lay() for number in SHOPS}
        nodes = [
            quorate.Node(
                quorate.NodeConfig(
                    node_id=number,
                    data=str(Path(folder, str(number))),
                    listen=f"127.0.0.1:{ports[number]}",
                    initial=addresses,
                )
            )
            for number in SHOPS
        ]
        async with nodes[0], nodes[1], nodes[2]:
            shops = {node.node_id: node.db for node in nodes}
            await sell(shops)
            for cable in cables.values():
                cable.cut()
            await sell_alone(shops)
            for cable in cables.values():
                cable.mend()
            for db in shops.values():
                await seen_by(db, {"apple": 1, "pear": 1}, visitors=330)
            print("together again: 1 apple and 1 pear, 330 visitors, in every shop")
        for cable in cables.values():
            await cable.close()


if __name__ == "__main__":
    asyncio.run(main())
