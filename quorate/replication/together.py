"""Commands of several machines as one: a key is written if, and only if, a task is enqueued.

Nothing is locked and nothing is prepared, since all machines apply one log: the parts are applied
one after the other, and taken back, as any refused command is, if one of them comes to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.kv_commands import CompareAndSetResult, TxnResult
from quorate.base.results import Failure
from quorate.base.task_commands import Settlement
from quorate.base.together_commands import (
    TOGETHER_MACHINE,
    DoneTogether,
    Part,
    Together,
)
from quorate.errors import BadCommandError, NotTogetherError, UnknownMachineError
from quorate.replication.machine import Context, Machine
from quorate.replication.refusals import pass_through
from quorate.replication.runs import Slot
from quorate.replication.tables import Tables

#: Results that say in a sentence of their own that what was asked for was not done.
_UNDONE: Final[Mapping[type, Callable[[Any], str]]] = {
    TxnResult: lambda result: "" if result.succeeded else "its comparisons do not hold",
    CompareAndSetResult: lambda result: "" if result.succeeded else "the key is not as expected",
    Settlement: lambda result: (
        f"attempt {result.stale[0].attempt} of task {result.stale[0].task} is the present one"
        if result.stale
        else ""
    ),
}


class TogetherMachine(Machine):
    """Machine "together", part of every node. It has no state. Version history: 1, first release.

    *slots*: the machines in force, by name.
    """

    name = TOGETHER_MACHINE
    version = 1
    command_type: ClassVar[Any] = Together

    def __init__(self, slots: Callable[[], Mapping[str, Slot]]) -> None:
        self._slots = slots
        self._encode = msgspec.msgpack.Encoder(order="deterministic").encode

    def attach(self, tables: Tables) -> None:
        """None."""

    def apply(self, command: Together, context: Context) -> DoneTogether | Failure:
        """All parts, or, with a ``Failure``, which undoes what was done, none."""
        results: list[msgspec.Raw] = []
        version = context.version
        try:
            for at, part in enumerate(command.parts):
                result = self._apply(part, context)
                if result.__class__ is Failure:
                    return Failure(result.code, f"part {at} ({part.machine}): {result.message}")
                undone = _UNDONE.get(result.__class__)
                why = "" if undone is None else undone(result)
                if why:
                    return Failure(NotTogetherError.code, f"part {at} ({part.machine}): {why}")
                results.append(msgspec.Raw(self._encode(result)))
        finally:
            context.version = version
        return DoneTogether(tuple(results))

    def _apply(self, part: Part, context: Context) -> Any:  # noqa: ANN401
        slot = self._slots().get(part.machine)
        if slot is None:
            return Failure(UnknownMachineError.code, "this cluster has no such machine")
        try:
            decoded = slot.command.decode(part.command)
        except Exception as error:  # noqa: BLE001  a __post_init__ may raise anything
            pass_through(error)
            return Failure(BadCommandError.code, "that is not a command of this machine")
        context.version = slot.version
        return slot.apply(decoded, context)
