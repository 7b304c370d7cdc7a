"""Handles of declared machines: their commands and queries as methods of the handle.

    stock = db.machine(Inventory)
    left = await stock.reserve("sku-1", 3, timeout=2)

Arguments are checked here, before anything is sent, and results come back as what the method says
that it returns. The class itself is only read; nothing of it runs in a client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from quorate.base.declaring import RESERVED, Caller, Declaration, Method
from quorate.base.results import Failure
from quorate.client.codec import AnyFuture, Finisher, MachineCodec
from quorate.client.machines import Machine
from quorate.errors import CommandError, InvalidArgumentError

P = ParamSpec("P")
T = TypeVar("T")


class Handle:
    """A declared machine on the cluster: awaitable methods, named as those of the class, which also
    take the options of ``Machine.execute`` or ``Machine.query`` by keyword (``timeout``, ``level``
    and so on)."""

    __slots__ = ("_machine",)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]: ...

    def __init__(self, machine: Machine[Any]) -> None:
        self._machine = machine

    @property
    def raw(self) -> Machine[Any]:
        """The same machine for commands that are structs already."""
        return self._machine

    def call(
        self, method: Callable[Concatenate[Any, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]:
        """``await stock.call(Inventory.reserve, "sku-1", 3)``: the same as ``stock.reserve(…)``, in
        a form that type checkers can follow."""
        name = getattr(method, "__name__", "")
        run: Callable[..., Awaitable[T]] | None = getattr(self, name, None)
        if not isinstance(name, str) or name not in type(self).__dict__ or run is None:
            raise InvalidArgumentError(f"{method!r} is no command or query of this machine")
        return run(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of machine {self._machine.name!r}>"


def _call(method: Method, caller: Caller) -> Callable[..., Any]:
    if method.mark.kind == "command":

        async def call(self: Handle, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            options = _split(kwargs)
            return await self._machine.execute(caller.make(args, kwargs), **options)
    else:

        async def call(self: Handle, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            options = _split(kwargs)
            return await self._machine.query(caller.make(args, kwargs), **options)

    call.__name__ = method.attribute
    call.__qualname__ = caller.where
    return call


def _split(keywords: dict[str, Any]) -> dict[str, Any]:
    """Take out of *keywords* what is for the call itself."""
    return {name: keywords.pop(name) for name in RESERVED & keywords.keys()} if keywords else {}


#: Made once for each declaration, and kept with it.
_KEPT: Final = "_quorate_handle_class"


def handle_class(declaration: Declaration) -> type[Handle]:
    """The class of handles of machines that *declaration* describes."""
    kept: type[Handle] | None = vars(declaration).get(_KEPT)
    if kept is None:
        methods = {
            method.attribute: _call(
                method, Caller(method, f"{declaration.name}.{method.attribute}")
            )
            for method in declaration.methods
        }
        name = f"{declaration.name.title().replace('_', '').replace('-', '')}Handle"
        kept = type(name, (Handle,), {"__slots__": (), "__module__": __name__, **methods})
        setattr(declaration, _KEPT, kept)
    return kept


def declared_codec(name: str, declaration: Declaration) -> MachineCodec:
    """A codec that gives callers what the methods return, and raises what they raise."""
    finishers: dict[type, Finisher] = {
        method.result: _finish_value for method in declaration.methods
    }
    codec = MachineCodec(name, declaration.results, finishers)
    usual = codec.finishers[Failure]
    errors = declaration.errors

    def finish_failure(future: AnyFuture, failure: Any) -> None:  # noqa: ANN401
        error = errors.get(failure.code)
        if error is None:
            usual(future, failure)
        else:
            future.set_exception(_made(error, failure.message))

    codec.finishers[Failure] = finish_failure
    return codec


def _finish_value(future: AnyFuture, result: Any) -> None:  # noqa: ANN401
    future.set_result(result.value)


def _made(error: type[CommandError], message: str) -> CommandError:
    try:
        return error(message)
    except TypeError:  # its constructor takes something else
        made = error.__new__(error, message)
        made.args = (message,)
        return made


def declaration_of(given: object) -> tuple[str, Declaration]:
    """The name and the declaration of a machine, of which a class or an object is given.

    Raises:
        InvalidArgumentError: it is none, or its methods are not marked.
    """
    declaration = getattr(given, "declaration", None)
    name = getattr(given, "name", None)
    if not isinstance(declaration, Declaration) or not isinstance(name, str):
        raise InvalidArgumentError(
            f"{given!r} is neither a machine's name nor a machine whose methods are marked with "
            "@command and @query"
        )
    return name, declaration
