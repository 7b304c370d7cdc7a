"""Runs declared machines: makes ``attach``, ``apply`` and ``query`` of their methods.

What this costs per command is a look into a dict and two structs: 0.6 us more than a machine that
takes its structs apart itself (measured; a put of the key-value machine costs 3 us).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from quorate.base.class_reader import declare
from quorate.base.declaring import Declaration, Method
from quorate.base.tables import cell_name
from quorate.errors import ConfigError
from quorate.replication.keyed import keyed

if TYPE_CHECKING:
    from quorate.replication.machine import Context
    from quorate.replication.tables import Tables

_astuple = msgspec.structs.astuple

#: Types whose values need no look inside.
_SCALARS = (int, str, bytes, bool, float)


def read_class(cls: Any, *, untyped: bool) -> None:  # noqa: ANN401  a subclass of Machine
    """Called for each new class of machines: if its methods are marked, it becomes declared.

    Raises:
        ConfigError: see ``declare``.
    """
    declaration = declare(cls, _names_around(), untyped=untyped)
    if declaration is None:
        return
    cls.declaration = declaration
    if not vars(cls).get("name"):
        cls.name = declaration.name
    for hook in ("attach", "apply", "query", "commands_at", "queries_at"):
        if hook in vars(cls):
            raise ConfigError(
                f"{cls.__qualname__} has commands that are marked, and a method {hook} of its own: "
                "it is one or the other"
            )
    cls.attach, cls.apply, cls.query = attach, apply, query
    cls.commands_at, cls.queries_at = commands_at, queries_at
    if cls.frees_space is _plain(cls).frees_space:
        cls.frees_space = frees_space
    cls.command_type = declaration.commands_at(declaration.version)
    cls.query_type = declaration.queries_at(declaration.version)


def _names_around() -> Mapping[str, Any]:
    """Local names at the ``class`` statement, for annotations of classes within functions."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None and frame.f_code.co_name == "__init_subclass__":
        frame = frame.f_back
    return {} if frame is None else frame.f_locals


def attach(machine: Any, tables: Tables) -> None:  # noqa: ANN401
    """Make the declared tables, and remember how each command and query is run."""
    declaration: Declaration = machine.declaration
    for spec in declaration.tables:
        table = tables.table(
            f"{machine.name}.{spec.attribute}",
            spec.record_type,
            ordered=spec.ordered,
            packed=spec.packed,
        )
        if spec.lone:
            machine.__dict__[cell_name(spec.attribute)] = table
        else:
            machine.__dict__[spec.attribute] = keyed(table, spec)
    handlers = {}
    for method in declaration.methods:
        run = _runner(getattr(machine, method.attribute), method)
        for _since, shape in method.shapes:
            handlers[shape] = run
    machine.__dict__["_handlers"] = handlers
    machine.__dict__["_freeing"] = frozenset(
        shape
        for method in declaration.methods
        if method.mark.frees_space
        for _since, shape in method.shapes
    )


def apply(machine: Any, command: msgspec.Struct, context: Context) -> Any:  # noqa: ANN401
    """Run one command."""
    machine.context = context
    return machine._handlers[command.__class__](command)  # noqa: SLF001


def query(machine: Any, asked: msgspec.Struct) -> Any:  # noqa: ANN401
    """Answer one query."""
    machine.context = None
    return machine._handlers[asked.__class__](asked)  # noqa: SLF001


def commands_at(machine: Any, version: int) -> Any:  # noqa: ANN401
    """See ``Machine``."""
    return machine.declaration.commands_at(version)


def queries_at(machine: Any, version: int) -> Any:  # noqa: ANN401
    """See ``Machine``."""
    return machine.declaration.queries_at(version)


def frees_space(machine: Any, command: msgspec.Struct) -> bool:  # noqa: ANN401
    """As the commands are marked."""
    return command.__class__ in machine._freeing  # noqa: SLF001


def _plain(cls: type) -> Any:  # noqa: ANN401
    """``Machine`` itself, which this module cannot import."""
    return next(each for each in cls.__mro__ if each.__module__ == "quorate.replication.machine")


def _runner(function: Callable[..., Any], method: Method) -> Callable[[Any], Any]:
    """Calls the method with a command's parameters, and makes a result of what it returns. A wrong
    type must not reach a client: it could not read the other results of its batch either."""
    result = method.result
    returns = method.returns
    if returns in _SCALARS:

        def run_scalar(command: Any) -> Any:  # noqa: ANN401
            found = function(*_astuple(command))
            if found.__class__ is not returns:
                raise TypeError(f"{method.attribute} returned {found!r}, no {returns.__name__}")
            return result(found)

        return run_scalar
    if returns is None or returns is type(None):

        def run_nothing(command: Any) -> Any:  # noqa: ANN401
            found = function(*_astuple(command))
            if found is not None:
                raise TypeError(f"{method.attribute} returned {found!r}, which is not None")
            return result(None)

        return run_nothing
    if returns is Any:
        return lambda command: result(function(*_astuple(command)))
    check = msgspec.msgpack.Decoder(returns).decode
    encode = msgspec.msgpack.Encoder(order="deterministic").encode

    def run(command: Any) -> Any:  # noqa: ANN401
        encoded = encode(function(*_astuple(command)))
        check(encoded)
        return result(msgspec.Raw(encoded))

    return run
