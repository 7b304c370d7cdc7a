"""Fencing at a store that is not quorate: one row of SQLite, and a holder that was frozen.

    python examples/fenced_writer.py

Two clients want to write a balance. The first acquires the lock, reads, and is frozen before it
writes. Its lease runs out, the second gets the lock, and writes. Then the first thaws. What keeps
it from undoing the second's work is not the lock, which it still believes to hold in that line of
its code, but the token: the row has seen a higher one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import quorate
from quorate.errors import LockLostError

LOCK = "account/7"


class StaleTokenError(Exception):
    """A later holder has written already."""


class Account:
    """The store. The check and the write are one statement: that is all there is to it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS account (id INT PRIMARY KEY, balance INT, token INT)"
        )
        self._db.execute("INSERT OR IGNORE INTO account VALUES (7, 100, 0)")
        self._db.commit()

    def balance(self) -> int:
        (balance,) = self._db.execute("SELECT balance FROM account WHERE id = 7").fetchone()
        return int(balance)

    def set_balance(self, balance: int, token: int) -> None:
        with self._db:
            done = self._db.execute(
                "UPDATE account SET balance = ?, token = ? WHERE id = 7 AND token <= ?",
                (balance, token, token),
            )
        if done.rowcount != 1:
            raise StaleTokenError(f"token {token} is not the latest any more")

    def close(self) -> None:
        self._db.close()


async def frozen(db: quorate.Database, account: Account, frozen_s: float) -> str:
    """Reads, is frozen, and writes what it has read plus ten."""
    try:
        async with db.lock(LOCK, ttl=1.0) as lock:
            balance = account.balance()
            time.sleep(frozen_s)  # noqa: ASYNC251  the whole process stands still: a long pause
            account.set_balance(balance + 10, lock.token)
            return "written"
    except StaleTokenError as error:
        return f"refused: {error}"
    except LockLostError as error:
        return f"lost: {error}"


async def patient(db: quorate.Database, account: Account) -> int:
    """Waits for the lock, and adds one."""
    async with db.lock(LOCK, ttl=1.0) as lock:
        account.set_balance(account.balance() + 1, lock.token)
        return lock.token


async def main() -> None:
    """A node, a client in this process, and one in another, which is the one that is frozen."""
    with tempfile.TemporaryDirectory() as folder:
        config = quorate.NodeConfig(node_id=1, data=f"{folder}/node", listen="127.0.0.1:0")
        account = Account(Path(folder, "account.db"))
        async with quorate.Node(config) as node:
            endpoint = f"127.0.0.1:{node.port}"
            async with quorate.connect(endpoint) as db:
                arguments = (__file__, "--frozen", endpoint, f"{folder}/account.db")
                first = await asyncio.create_subprocess_exec(
                    sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
                )
                while not (await db.lock_status(LOCK)).holder_count:  # noqa: ASYNC110  a process's
                    await asyncio.sleep(0.02)
                token = await patient(db, account)
                print(f"the second wrote under token {token}")
                said, _ = await first.communicate()
                print(f"the first: {said.decode().strip()}")
        balance = account.balance()
        account.close()
        if balance != 101 or not said.startswith(b"refused"):
            raise SystemExit(f"the balance is {balance}")


async def _frozen(endpoint: str, path: str) -> None:
    async with quorate.connect(endpoint) as db:
        account = Account(Path(path))
        print(await frozen(db, account, 4.0))
        account.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--frozen"]:
        asyncio.run(_frozen(*sys.argv[2:4]))
    else:
        asyncio.run(main())
