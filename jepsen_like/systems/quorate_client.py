"""quorate's client library behind the operations that workloads use.

Takes ready ``Database`` handles, so it serves real processes and the simulator alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from jepsen_like.systems.base import Client, OutcomeError, UnsupportedError, Versioned
from quorate.base.kv_commands import Compare, GetResult, KeyValue, TxnResult
from quorate.client import operations as ops
from quorate.client.database import Database
from quorate.errors import QuorateError

T = TypeVar("T")


#: Makes a further handle on some nodes, or all if none is named, with options of ``connect``.
Connect = Callable[..., Database]


class QuorateClient:
    """*database*: opened by the first call, closed by ``close``. *reader*: for reads of single
    keys, if they are to go elsewhere: to one node, whether it leads or not. *connect*: for
    ``another``."""

    def __init__(
        self,
        database: Database,
        reader: Database | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._database = database
        self._reader = reader or database
        self._connect = connect
        self._others: dict[str, Database] = {}
        #: What workloads keep with a client, by their name: grants, watches, sessions.
        self.kept: dict[str, Any] = {}
        #: What workloads have to end before the client is closed.
        self.at_close: list[Callable[[], Awaitable[None]]] = []

    @property
    def database(self) -> Database:
        """The handle itself, for what only quorate has."""
        return self._database

    def another(self, name: str, *nodes: int, **options: Any) -> Database:  # noqa: ANN401
        """A further handle of this client under *name*, made at the first call.

        Raises:
            UnsupportedError: whoever made this client cannot make another.
        """
        if name not in self._others:
            if self._connect is None:
                raise UnsupportedError("this client has one handle only")
            self._others[name] = self._connect(*nodes, **options)
        return self._others[name]

    async def get(self, key: str) -> Versioned:
        try:
            return _versioned(await self._reader.kv.get(key))
        except QuorateError as error:  # whatever it was, a read has no effect
            raise OutcomeError(_text(error), definite=True) from error

    async def put(self, key: str, value: bytes) -> None:
        await outcome_of(self._database.kv.put(key, value))

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        return (await outcome_of(self._database.kv.compare_and_set(key, expected, value))).succeeded

    async def add(self, key: str, number: int) -> int:
        return (await outcome_of(self._database.kv.increment(key, number))).value

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        result: TxnResult = await outcome_of(
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
        for end in self.at_close:
            await end()
        await self._database.close()
        if self._reader is not self._database:
            await self._reader.close()
        for other in self._others.values():
            await other.close()


def quorate_client(client: Client) -> QuorateClient:
    """*client*, which must be of quorate.

    Raises:
        UnsupportedError: it is of another system.
    """
    if isinstance(client, QuorateClient):
        return client
    raise UnsupportedError("only quorate has these operations: there are no others to compare with")


async def outcome_of(call: Awaitable[T], *, reads: bool = False) -> T:
    """Its result, or an ``OutcomeError`` in the place of quorate's. *reads*: it has no effect."""
    try:
        return await call
    except QuorateError as error:
        raise OutcomeError(_text(error), definite=error.definite or reads) from error


def _text(error: QuorateError) -> str:
    return f"{error.code}: {error}"


def _versioned(item: KeyValue | None) -> Versioned:
    return Versioned(None, 0) if item is None else Versioned(item.value, item.mod_revision)
