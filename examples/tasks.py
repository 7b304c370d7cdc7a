"""A shop that takes orders at once, and does what they ask for later: durable tasks with a worker.

    python examples/tasks.py --endpoints a:7400,b:7400,c:7400

Without endpoints it plays a shop and its worker against a node of its own. In production the worker
is a process of its own, of which there may be many:

    quorate worker examples.tasks:app --connect a:7400,b:7400,c:7400 --queues orders,mail

An order is charged once, whatever happens on the way: the task may run again if its worker dies in
the middle, but the write that books the payment is fenced by the attempt, and is a compare and set.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import quorate
from quorate import Database, TaskContext, ops
from quorate.errors import TaskFailedError, TaskGiveUpError, TaskRetryError

app = quorate.App("shop")


@dataclasses.dataclass
class Order:
    """What a customer wants."""

    number: int
    customer: str
    cents: int


@app.task(
    name="charge",
    queue="orders",
    retries=5,
    backoff=0.05,
    timeout=10,
    unique=lambda order: f"{order.number}",
)
async def charge(order: Order) -> str:
    """Book the payment of an order, exactly once."""
    context = app.context()
    if order.cents <= 0:
        raise TaskGiveUpError(f"order {order.number} costs nothing")
    if order.number == 2 and context.attempt == 1:
        raise TaskRetryError("the bank does not answer", after=0.05)
    key = f"payments/{order.number}"
    booked = await app.db.kv.txn(
        [ops.version(key) == 0],
        then=[ops.put(key, f"{order.customer} {order.cents}")],
        fence=context.fence,  # refused if another attempt has begun meanwhile
    )
    await mail.submit(order.customer, f"order {order.number} is paid")
    return "paid" if booked.succeeded else "was paid before"


@app.task(name="mail", queue="mail", priority="low")
def mail(address: str, text: str) -> None:
    """Something slow that blocks: a plain function runs in a thread."""
    context = app.context()
    for part in range(3):
        if context.wait_cancelled(0.005):
            return
        context.progress((part + 1) / 3, f"sending to {address}")
    print(f"mail to {address}: {text}", flush=True)


@app.middleware
async def timed(context: TaskContext, run: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
    """Around every task."""
    began = time.perf_counter()
    try:
        return await run()
    finally:
        took_ms = (time.perf_counter() - began) * 1000
        print(f"{context.function}, attempt {context.attempt}: {took_ms:.1f} ms", flush=True)


async def shop(db: Database) -> None:
    """Take three orders, one of them twice, and see what becomes of them."""
    app.use(db)
    orders = [Order(1, "ada@example.org", 500), Order(2, "bob@example.org", 700)]
    results = [await charge.submit(order) for order in (*orders, orders[1])]
    if results[1].id != results[2].id:
        raise SystemExit("an order that was sent twice became two tasks")
    for result in results:
        print(f"task {result.id}: {await result.get(timeout=30)}")
    free = await charge.submit(Order(3, "eve@example.org", 0))
    try:
        await free
    except TaskFailedError as error:
        print(f"as it should be: {error}")
    dead = [info.task async for info in db.tasks.list("dead", "orders")]
    if dead != [free.id]:
        raise SystemExit(f"in the dead-letter queue are {dead}, not {free.id} alone")
    payments = await db.kv.range(prefix="payments/")
    if len(payments.items) != len(orders):
        raise SystemExit(f"{len(payments.items)} payments for {len(orders)} orders")


async def _start() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", default="")
    arguments = parser.parse_args()
    if arguments.endpoints:
        async with quorate.connect(arguments.endpoints) as db:
            await shop(db)
        return
    with tempfile.TemporaryDirectory() as folder:
        async with quorate.open(folder) as db, quorate.Worker(db, app, concurrency=4):
            await shop(db)


if __name__ == "__main__":
    asyncio.run(_start())
