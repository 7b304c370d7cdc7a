"""From the bytes of a run to commands: strictly at the gateway, forgivingly in the log.

A *run* is an array of commands or queries for one machine, decoded in one call by a typed decoder
(75 ns a put, measured; item by item it is four times that). Only if that fails are the items
looked at one by one, so that a bad one spoils nothing but itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any, Final

import msgspec

from quorate.base.frames import Run
from quorate.base.limits import MACHINE_NAME_MAX
from quorate.base.results import Failure
from quorate.errors import (
    BadCommandError,
    LimitExceededError,
    UnknownMachineError,
)
from quorate.replication.machine import Context, Machine
from quorate.replication.nesting import check_nesting, is_bounded
from quorate.replication.refusals import pass_through

#: How to run the commands of a run, and the commands.
Runnable = tuple[Callable[[Any, Context], Any], Sequence[Any]]

Decoder = msgspec.msgpack.Decoder[Any]


class Slot:
    """A registered machine as *version* of it, and its decoders for that, built once.

    Raises:
        TypeError: the machine's command or query type is nothing that msgspec can decode.
    """

    def __init__(self, machine: Machine, version: int) -> None:
        self.machine = machine
        self.version = version
        self.name = machine.name
        self.apply = machine.apply
        commands = machine.commands_at(version)
        self.command_type = commands
        if commands is None:
            raise TypeError("command_type is None")
        self.commands = _list_decoder(commands)
        self.bounded = is_bounded(commands)
        self.command = msgspec.msgpack.Decoder(commands)
        queries = machine.queries_at(version)
        self.queries = None if queries is None else _list_decoder(queries)
        self.query = None if queries is None else msgspec.msgpack.Decoder(queries)


def decode_checked(slot: Slot, run: Run) -> Sequence[Any]:
    """The commands of a run, for the gateway; an error says all it can.

    Raises:
        BadCommandError: a command does not decode.
        LimitExceededError: a field is too long, or a command is nested too deeply.
    """
    try:
        commands: Sequence[Any] = slot.commands.decode(run.items)
    except Exception as error:
        pass_through(error)
        text = (
            f"a command for machine {slot.name!r} is not valid: "
            f"{_describe(slot.command_type, run.items, error)}"
        )
        if _TOO_LONG.search(text):
            raise LimitExceededError(text) from error
        raise BadCommandError(text) from error
    if not slot.bounded:
        check_nesting(run.items)
    return commands


def runnable(slot: Slot | None, run: Run) -> Runnable:
    """The commands of a run from the log, with a ``Failure`` in the place of each that is bad.

    Raises:
        BadCommandError: the run is not even an array, so nobody can say of how many.
    """
    if slot is None:
        failure = Failure(
            UnknownMachineError.code,
            f"this cluster has no machine {run.machine[:MACHINE_NAME_MAX]!r}",
        )
        return _give_back, [failure] * len(_split(run))
    try:
        return slot.apply, slot.commands.decode(run.items)
    except Exception as error:  # noqa: BLE001  a __post_init__ may raise anything
        pass_through(error)
    real = slot.apply

    def apply(command: Any, context: Context) -> Any:  # noqa: ANN401
        return command if command.__class__ is Failure else real(command, context)

    return apply, [_decode_item(slot.command, run.machine, raw) for raw in _split(run)]


def _give_back(command: Any, context: Context) -> Any:  # noqa: ANN401, ARG001
    return command


def _list_decoder(item_type: Any) -> Decoder:  # noqa: ANN401
    return msgspec.msgpack.Decoder(GenericAlias(list, (item_type,)))


_raw_list_decoder: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def _split(run: Run) -> list[msgspec.Raw]:
    """Raises BadCommandError: not an array."""
    try:
        return _raw_list_decoder.decode(run.items)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadCommandError(
            f"a run for machine {run.machine[:MACHINE_NAME_MAX]!r} is not an array"
        ) from error


def _decode_item(decoder: Decoder, machine: str, raw: msgspec.Raw) -> Any:  # noqa: ANN401
    try:
        return decoder.decode(raw)
    except Exception as error:  # noqa: BLE001  a __post_init__ may raise anything
        pass_through(error)
        return Failure(BadCommandError.code, f"not a command or query of machine {machine!r}")


def decode_queries(slot: Slot, run: Run) -> Sequence[Any]:
    """As ``runnable``, of queries. Raises BadCommandError: the run is not an array."""
    if slot.queries is None or slot.query is None:
        failure = Failure(BadCommandError.code, f"machine {slot.name!r} answers no queries")
        return [failure] * len(_split(run))
    try:
        decoded: Sequence[Any] = slot.queries.decode(run.items)
    except Exception as error:  # noqa: BLE001  a __post_init__ may raise anything
        pass_through(error)
        return [_decode_item(slot.query, slot.name, raw) for raw in _split(run)]
    return decoded


_TOO_LONG: Final = re.compile(r"^.*: Expected `\w+` of length <= ")
_PATH: Final = re.compile(r"`\$\[(\d+)\](?:\[(\d+)\])?")


def _describe(command_type: Any, items: msgspec.Raw, error: Exception) -> str:  # noqa: ANN401
    """The decoder's complaint, with the command's position and the name of the field."""
    if not isinstance(error, msgspec.DecodeError):
        not_text = isinstance(error, UnicodeDecodeError)
        return "a text is not UTF-8" if not_text else f"it raised {type(error).__name__}"
    found = _PATH.search(str(error))
    if found is None:
        return str(error)
    text = f"command {found[1]}: {error}"
    if found[2] is None or found[2] == "0":
        return text
    try:
        tag = _raw_list_decoder.decode(_raw_list_decoder.decode(items)[int(found[1])])[0]
        tag = msgspec.msgpack.decode(tag)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, RecursionError):
        return text
    for each in getattr(command_type, "__args__", (command_type,)):
        config = getattr(each, "__struct_config__", None)
        if config is not None and config.tag == tag:
            fields = each.__struct_fields__
            at = int(found[2]) - 1
            return f"{text} ({each.__name__}.{fields[at]})" if at < len(fields) else text
    return text
