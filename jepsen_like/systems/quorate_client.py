"""quorate's client library behind the operations that workloads use.

Takes ready ``Database`` handles, so it serves real processes and the simulator alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from jepsen_like.systems.base import OutcomeError, Versioned
from quorate.base.kv_commands import Compare, GetResult, KeyValue, TxnResult
from quorate.client import operations as ops
from quorate.client.database import Database
from quorate.errors import QuorateError

T = TypeVar("T")


class QuorateClient:
    """*database*: opened by the first call, closed by ``close``. *reader*: for reads of single
    keys, if they are to go elsewhere: to one node, whether it leads or not."""

    def __init__(self, database: Database, reader: Database | None = None) -> None:
        self._database = database
        self._reader = reader or database

    async def get(self, key: str) -> Versioned:
        try:
            return _versioned(await self._reader.kv.get(key))
        except QuorateError as error:  # whatever it was, a read has no effect
            raise OutcomeError(_text(error), definite=True) from error

    async def put(self, key: str, value: bytes) -> None:
        await _outcome(self._database.kv.put(key, value))

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        return (await _outcome(self._database.kv.compare_and_set(key, expected, value))).succeeded

    async def add(self, key: str, number: int) -> int:
        return (await _outcome(self._database.kv.increment(key, number))).value

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        result: TxnResult = await _outcome(
            self._database.kv.txn(
                [Compare(key.encode(), "mod", "=", version) for key, version in expected.items()],
                then=[
                    *(ops.put(key, value) for key, value in writes.items()),
                    *(ops.get(key) for key in reads),
                ],
            )
        )
        if not result.succeeded:
            return False, {}
        found = [each.item for each in result.results if isinstance(each, GetResult)]
        return True, {key: _versioned(item) for key, item in zip(reads, found, strict=True)}

    async def close(self) -> None:
        await self._database.close()
        if self._reader is not self._database:
            await self._reader.close()


async def _outcome(call: Awaitable[T]) -> T:
    try:
        return await call
    except QuorateError as error:
        raise OutcomeError(_text(error), definite=error.definite) from error


def _text(error: QuorateError) -> str:
    return f"{error.code}: {error}"


def _versioned(item: KeyValue | None) -> Versioned:
    return Versioned(None, 0) if item is None else Versioned(item.value, item.mod_revision)
