"""State that coordinators share: values with versions, changed only from the version that was read.

A table over the key-value store, under a prefix of its own. The version of a row is the revision
that last changed it: it only grows, and no two changes of a key have the same one. So whoever
changes a row from a version that is not the present one is refused, and nothing is lost that
somebody else wrote in between.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from quorate.base.kv_commands import KeyValue
from quorate.client.kv import Kv
from quorate.errors import InvalidArgumentError, OptimisticLockError

#: Before the keys of the rows.
STATE_PREFIX: Final = "quorate/coordinator/state/"


class StateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``distributed_state``. *version*: to change it from."""

    key: str
    value: Any
    version: int


class DistributedState:
    """See the module. Values are what msgpack has."""

    def __init__(self, kv: Kv, prefix: str = STATE_PREFIX) -> None:
        self._kv = kv
        self._prefix = prefix

    async def get(self, key: str) -> StateRow | None:
        """The row; None: there is none. Linearizable."""
        found = await self._kv.get(self._row(key))
        return None if found is None else self._made(found)

    async def put(self, key: str, value: Any) -> StateRow:  # noqa: ANN401
        """Write a row, whatever it was before."""
        written = await self._kv.put(self._row(key), _pack(key, value))
        return StateRow(key=key, value=value, version=written.revision)

    async def compare_and_set(
        self,
        key: str,
        value: Any,  # noqa: ANN401
        version: int,
    ) -> StateRow:
        """Write a row if its version is *version*; 0: if there is none.

        Raises:
            OptimisticLockError: it is another one; nothing was written.
        """
        written = await self._change(key, _pack(key, value), version)
        return StateRow(key=key, value=value, version=written)

    async def delete(self, key: str, version: int) -> None:
        """Remove a row, if its version is *version*.

        Raises:
            OptimisticLockError: it is another one; nothing was removed.
        """
        if version < 1:
            raise InvalidArgumentError(f"a row that is there has a version from 1, not {version!r}")
        await self._change(key, None, version)

    async def list(self, prefix: str = "") -> list[StateRow]:
        """All rows whose keys begin with *prefix*, by key."""
        start = self._prefix + prefix
        return [self._made(item) async for item in self._kv.scan(prefix=start)]

    async def _change(self, key: str, value: bytes | None, version: int) -> int:
        given: object = version
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise InvalidArgumentError(f"a version is a number from 0, not {version!r}")
        done = await self._kv.compare_and_set(self._row(key), version or None, value)
        if done.succeeded:
            return done.revision
        actual = 0 if done.current is None else done.current.mod_revision
        raise OptimisticLockError(
            f"{key!r} is at version {actual}, not {version}: read it again", key, version, actual
        )

    def _row(self, key: str) -> str:
        given: object = key
        if not isinstance(given, str) or not given:
            raise InvalidArgumentError(f"a key is a text of one character or more, not {key!r}")
        return self._prefix + key

    def _made(self, item: KeyValue) -> StateRow:
        key = item.key.decode()[len(self._prefix) :]
        try:
            value = msgspec.msgpack.decode(item.value)
        except msgspec.DecodeError:
            value = item.value  # somebody wrote it by other means
        return StateRow(key=key, value=value, version=item.mod_revision)


def _pack(key: str, value: Any) -> bytes:  # noqa: ANN401
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgumentError(f"the value of {key!r} cannot be packed: {error}") from error
