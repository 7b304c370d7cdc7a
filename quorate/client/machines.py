"""Typed handles of replicated state machines, the users' own ones included."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, cast

from quorate.base.limits import MACHINE_NAME_MAX
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.settings import check_timeout
from quorate.errors import InvalidArgumentError

R = TypeVar("R")


class Plans(Protocol):
    """What plans commands and queries: ``Database``."""

    def submit(self, codec: MachineCodec, item: object, timeout: float) -> AnyFuture: ...
    def ask(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        linearizable: bool,  # noqa: FBT001
        /,
    ) -> AnyFuture: ...


class Machine(Generic[R]):
    """One machine, by name. Calls made in one turn of the loop leave in one frame. What the
    machine refused raises ``CommandError``, or what its code names."""

    __slots__ = ("_codec", "_plans", "_timeout")

    def __init__(self, plans: Plans, codec: MachineCodec, timeout: float) -> None:
        self._plans = plans
        self._codec = codec
        self._timeout = timeout

    @property
    def name(self) -> str:
        """The machine's name, as registered on the nodes."""
        return self._codec.name

    async def execute(self, command: object, *, timeout: float | None = None) -> R:
        """Run one command, exactly once, and return its result. *command*: one of the machine's
        command structs, or what msgpack makes of one."""
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        return cast("R", await self._plans.submit(self._codec, command, wait_s))

    async def query(
        self, query: object, *, linearizable: bool = True, timeout: float | None = None
    ) -> R:
        """Answer one query. Not *linearizable*: from what the connected node has, which may be
        old."""
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        return cast("R", await self._plans.ask(self._codec, query, wait_s, linearizable))


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
