"""Machines declared by their methods: what nodes and clients both read off one class.

::

    class Inventory(quorate.Machine):
        items: quorate.Table[str, Item]

        @quorate.command
        def reserve(self, sku: str, count: int) -> int: ...

``declare`` looks at such a class once, when it is defined, and makes of every method a frozen,
array-like struct for its parameters and one for its result. Nothing here runs a command: nodes do
that (``replication.declared``); clients send the structs and read the results.

On the wire and in the log a command is ``[tag, parameter, ...]``. The tag is derived from the name
(``derived_tag``), so the order of methods means nothing, or is given. What a node accepts depends
on the version in force, not on its code alone: ``Declaration.commands_at``. Under version 1 the
code of version 3 accepts to the byte what the code of version 1 accepted.
"""

from __future__ import annotations

import functools
import inspect
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar, overload

import msgspec

from quorate.base.tables import TableSpec
from quorate.errors import CommandError, ConfigError, InvalidArgumentError

F = TypeVar("F", bound=Callable[..., Any])

Kind = Literal["command", "query"]

#: Keyword arguments of a handle's calls; no parameter may have such a name.
RESERVED: Final = frozenset({"timeout", "level", "receipt"})
#: Tags that may be given; those derived from names are above.
TAG_GIVEN_MAX: Final = 65_535
VERSION_MAX: Final = 1_000_000
PARAMETERS_MAX: Final = 64
#: Where the decorators leave their word on a function.
MARK: Final = "__quorate__"


class Since(msgspec.Struct, frozen=True):
    """In ``Annotated[T, Since(2)]``: a parameter that version 2 of the machine added."""

    version: int


class Mark(msgspec.Struct, frozen=True):
    """What a decorator said of a method."""

    kind: Kind
    name: str
    tag: int
    since: int
    until: int
    frees_space: bool


class Parameter(msgspec.Struct, frozen=True):
    """One parameter. *default*: ``inspect.Parameter.empty`` if it must be given."""

    name: str
    type: Any
    default: Any
    since: int

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty


class Method(msgspec.Struct, frozen=True):
    """A command or query. *attribute*: the method's name in the class; *name*: on the wire.

    *shapes*: from which version on which struct carries its parameters, ascending. *result*: the
    struct of its result, whose one field is *value*.
    """

    attribute: str
    mark: Mark
    name: str
    tag: int
    parameters: tuple[Parameter, ...]
    returns: Any
    shapes: tuple[tuple[int, type[msgspec.Struct]], ...]
    result: type[msgspec.Struct]

    def shape_at(self, version: int) -> type[msgspec.Struct] | None:
        """The struct under *version* of the machine; None: there is no such method then."""
        if not self.mark.since <= version < self.mark.until:
            return None
        found = None
        for since, shape in self.shapes:
            if since <= version:
                found = shape
        return found


class Declared(Protocol):
    """A class (or an object of one) that has been declared."""

    name: Any
    declaration: Any


class Declaration:
    """All that a class declares. *errors*: what its commands raise, by code, for clients."""

    def __init__(
        self,
        name: str,
        version: int,
        methods: Sequence[Method],
        tables: Sequence[TableSpec],
        errors: Mapping[str, type[CommandError]],
    ) -> None:
        self.name = name
        self.version = version
        self.methods = tuple(methods)
        self.tables = tuple(tables)
        self.errors = dict(errors)
        self.by_attribute = {method.attribute: method for method in methods}

    def commands_at(self, version: int) -> Any:  # noqa: ANN401  a union is not a class
        """The union of the commands that there are under *version*; None: there are none."""
        return self._union("command", version)

    def queries_at(self, version: int) -> Any:  # noqa: ANN401
        """As ``commands_at``, of queries."""
        return self._union("query", version)

    def _union(self, kind: Kind, version: int) -> Any:  # noqa: ANN401
        shapes = [
            shape
            for method in self.methods
            if method.mark.kind == kind and (shape := method.shape_at(version)) is not None
        ]
        return _union_of(shapes)

    @functools.cached_property
    def results(self) -> Any:  # noqa: ANN401
        """The union of all results, of all versions."""
        return _union_of([method.result for method in self.methods])


def _union_of(types: Sequence[type]) -> Any:  # noqa: ANN401
    return functools.reduce(operator.or_, types) if types else None


# --- marking methods ------------------------------------------------------------------------------


@overload
def command(method: F, /) -> F: ...
@overload
def command(
    *, name: str = "", tag: int = 0, since: int = 1, until: int = 0, frees_space: bool = False
) -> Callable[[F], F]: ...
def command(
    method: Any = None,
    /,
    *,
    name: str = "",
    tag: int = 0,
    since: int = 1,
    until: int = 0,
    frees_space: bool = False,
) -> Any:
    """Make a method of a ``Machine`` a command: it runs on every replica, in the order of the log.

    Args:
        method: given when the decorator is used without parentheses.
        name: on the wire and in the log; the method's own if "". Give it to rename a method.
        tag: 1 to 65,535, instead of the one that is derived from the name.
        since: the version of the machine that added it.
        until: the version that took it away; 0: none has.
        frees_space: it may run while the disk is full, as it can only make the state smaller.
    """
    return _marking("command", method, Mark("command", name, tag, since, until, frees_space))


@overload
def query(method: F, /) -> F: ...
@overload
def query(*, name: str = "", tag: int = 0, since: int = 1, until: int = 0) -> Callable[[F], F]: ...
def query(
    method: Any = None, /, *, name: str = "", tag: int = 0, since: int = 1, until: int = 0
) -> Any:
    """Make a method of a ``Machine`` a query: one node answers it from the state that it has. It
    must not change anything. Arguments as of ``command``."""
    return _marking("query", method, Mark("query", name, tag, since, until, frees_space=False))


def _marking(kind: str, method: object, mark: Mark) -> Any:  # noqa: ANN401
    end = VERSION_MAX + 1 if mark.until == 0 else mark.until
    if not (1 <= mark.since <= VERSION_MAX and mark.since < end):
        raise ConfigError(f"@{kind}: since={mark.since}, until={mark.until} are no versions")
    if not 0 <= mark.tag <= TAG_GIVEN_MAX:
        raise ConfigError(f"@{kind}(tag={mark.tag}): a tag is from 1 to {TAG_GIVEN_MAX}")
    mark = msgspec.structs.replace(mark, until=end)

    def marked(function: Any) -> Any:  # noqa: ANN401
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            raise ConfigError(f"@{kind} is for plain methods (no async), not for {function!r}")
        if hasattr(function, MARK):
            raise ConfigError(f"{function.__qualname__} is marked twice")
        setattr(function, MARK, mark)
        return function

    return marked if method is None else marked(method)


def derived_tag(*words: object) -> int:
    """The tag of a name: CRC-32 of the words, above all that may be given."""
    return zlib.crc32(" ".join(map(str, words)).encode()) | 1 << 32


# --- calling ----------------------------------------------------------------------------------


class Caller:
    """Makes a command or query of arguments, for clients."""

    __slots__ = ("_checks", "_encode", "_method", "_shapes", "where")

    def __init__(self, method: Method, where: str) -> None:
        self.where = where
        self._method = method
        self._shapes = [shape for _since, shape in method.shapes]
        self._checks = [msgspec.msgpack.Decoder(shape).decode for shape in self._shapes]
        self._encode = msgspec.msgpack.Encoder().encode

    def make(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> msgspec.Struct:
        """The struct to send: of the oldest shape that carries what was given, so that newer
        clients get along with clusters whose machine is not upgraded yet.

        Raises:
            InvalidArgumentError: an argument is missing, unknown, or not of its type.
        """
        try:
            made = self._shapes[-1](*arguments, **keywords)
            at = self._least(made) if len(self._shapes) > 1 else 0
            if at < len(self._shapes) - 1:
                given = msgspec.structs.astuple(made)
                made = self._shapes[at](*given[: len(self._shapes[at].__struct_fields__)])
            checked: msgspec.Struct = self._checks[at](self._encode(made))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgumentError(f"{self.where}: {error}") from error
        return checked

    def _least(self, made: msgspec.Struct) -> int:
        values = msgspec.structs.astuple(made)
        needed = 0
        for place, parameter in enumerate(self._method.parameters, 1):
            if parameter.required or values[place - 1] != parameter.default:
                needed = place
        for at, shape in enumerate(self._shapes):
            if len(shape.__struct_fields__) >= needed:
                return at
        return len(self._shapes) - 1
