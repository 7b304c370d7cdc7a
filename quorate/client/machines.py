"""Typed handles of replicated state machines, the users' own ones included."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, cast, overload

from quorate.base.levels import Accepted, CertainLevel, Level
from quorate.base.limits import MACHINE_NAME_MAX
from quorate.client.codec import MachineCodec
from quorate.client.levels import Plans, Receipt, Scope
from quorate.client.settings import check_timeout
from quorate.errors import InvalidArgumentError

R = TypeVar("R")


class Machine(Generic[R]):
    """One machine, by name. Calls made in one turn of the loop leave in one frame. What the
    machine refused raises ``CommandError``, or what its code names."""

    __slots__ = ("_codec", "_plans", "_scope", "_timeout")

    def __init__(self, plans: Plans, scope: Scope, codec: MachineCodec, timeout: float) -> None:
        self._plans = plans
        self._scope = scope
        self._codec = codec
        self._timeout = timeout

    @property
    def name(self) -> str:
        """The machine's name, as registered on the nodes."""
        return self._codec.name

    @overload
    async def execute(
        self,
        command: object,
        *,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def execute(
        self,
        command: object,
        *,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R: ...
    async def execute(
        self,
        command: object,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R | Accepted:
        """Run one command, exactly once, and return its result. *command*: one of the machine's
        command structs, or what msgpack makes of one. *level*, *receipt*: as for ``db.kv``."""
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        if level is None and receipt is None and self._scope.plain:
            return cast("R", await self._plans.submit(self._codec, command, wait_s))
        return cast("R", await self._scope.write(self._codec, command, wait_s, level, receipt))

    async def query(
        self,
        query: object,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R:
        """Answer one query."""
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        if level is None and receipt is None and self._scope.plain:
            return cast("R", await self._plans.ask(self._codec, query, wait_s))
        return cast("R", await self._scope.read(self._codec, query, wait_s, level, receipt))


def machine_codec(name: str, result_type: Any) -> MachineCodec:  # noqa: ANN401
    """A codec for machine *name*.

    Raises:
        InvalidArgumentError: that cannot be a machine's name, or msgspec cannot decode the type.
    """
    given: object = name
    if not isinstance(given, str) or not 0 < len(given) <= MACHINE_NAME_MAX:
        raise InvalidArgumentError(
            f"a machine's name has 1 to {MACHINE_NAME_MAX} characters, not {name!r}"
        )
    try:
        return MachineCodec(name, result_type)
    except TypeError as error:
        raise InvalidArgumentError(
            f"results of {name!r} cannot be decoded as {result_type!r}: {error}"
        ) from error
