"""Arguments and results of tasks as bytes: msgpack of ``[args, kwargs]``, and of what is returned.

Types come from the annotations of the function, on the side that reads: dataclasses, msgspec
structs, datetimes, UUIDs, Decimals, enums, sets and so on. Models that have ``model_dump`` and
``model_validate``, as pydantic's have, are packed by the one and read by the other. Nothing that
is read here can run code of its own, as a pickle can.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from quorate.base.limits import VALUE_BYTES_MAX
from quorate.errors import InvalidArgumentError, TaskPayloadError

Arguments = tuple[Sequence[Any], Mapping[str, Any]]

#: Kinds of parameters that an argument by place may be for.
_PLACED: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)


def _pack_other(value: Any) -> Any:  # noqa: ANN401  whatever msgspec does not know
    dump = getattr(value, "model_dump", None)
    if dump is None or isinstance(value, type):
        raise TypeError(f"there is no msgpack for {type(value).__name__} objects")
    return dump()


def _read_other(kind: type, value: Any) -> Any:  # noqa: ANN401
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"a {kind.__name__} cannot be made of {type(value).__name__}")


_encode = msgspec.msgpack.Encoder(enc_hook=_pack_other).encode
_decode = msgspec.msgpack.Decoder(tuple[list[Any], dict[str, Any]]).decode
_decode_any = msgspec.msgpack.Decoder().decode


def pack_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], of: str = "a task") -> bytes:
    """The payload of a task.

    Raises:
        TaskPayloadError: an argument, which the text names, cannot be packed, or all are too long.
    """
    try:
        packed = _encode((args, kwargs))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise _refusal(args, kwargs, of, error) from error
    if len(packed) > VALUE_BYTES_MAX:
        raise TaskPayloadError(
            f"arguments of {of} take {len(packed)} bytes, the limit is {VALUE_BYTES_MAX}: store "
            "them elsewhere, and hand over where"
        )
    return packed


def _refusal(
    args: Sequence[Any], kwargs: Mapping[str, Any], of: str, error: Exception
) -> TaskPayloadError:
    named = [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            _encode(value)
        except Exception as cause:  # noqa: BLE001  also what a model's own code may raise
            return TaskPayloadError(
                f"{name} of {of}, of type {type(value).__name__}, cannot be packed: {cause}"
            )
    return TaskPayloadError(f"arguments of {of} cannot be packed: {error}")


def unpack_arguments(payload: bytes) -> Arguments:
    """What was packed, with types that msgpack has.

    Raises:
        TaskPayloadError: these bytes are no arguments.
    """
    if not payload:
        return (), {}
    try:
        return _decode(payload)
    except _UNREADABLE as error:
        raise TaskPayloadError(f"the payload is not msgpack of [args, kwargs]: {error}") from error


def pack_result(value: Any, of: str) -> bytes:  # noqa: ANN401
    """What a task came to.

    Raises:
        TaskPayloadError: it cannot be packed, or is too long.
    """
    if value is None:
        return b""
    try:
        packed = _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise TaskPayloadError(
            f"the result of {of}, of type {type(value).__name__}, cannot be packed: {error}"
        ) from error
    if len(packed) > VALUE_BYTES_MAX:
        raise TaskPayloadError(
            f"the result of {of} takes {len(packed)} bytes, the limit is {VALUE_BYTES_MAX}"
        )
    return packed


def unpack_result(result: bytes, kind: Any = Any, of: str = "a task") -> Any:  # noqa: ANN401
    """What ``pack_result`` packed, as *kind*.

    Raises:
        TaskPayloadError: these bytes are no such result.
    """
    if not result:
        return None
    try:
        value = _decode_any(result)
        if kind is Any:
            return value
        return msgspec.convert(value, kind, dec_hook=_read_other)
    except _UNREADABLE as error:
        raise TaskPayloadError(f"the result of {of} cannot be read: {error}") from error


class Shape:
    """The parameters of a function and what it returns. *name*: of the task, for errors.
    *wrapper*: a generic class; of ``wrapper[R]``, what is returned is R.

    Raises:
        InvalidArgumentError: an annotation names what cannot be found, or cannot be read from
            msgpack.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, wrapper: type | None = None
    ) -> None:
        self._name = name
        self._signature = _signature_of(function)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception as error:  # annotations are code: they may raise anything
            raise InvalidArgumentError(
                f"annotations of task {name!r} cannot be resolved: {error}"
            ) from error
        self.returns: Any = _unwrapped(hints.get("return", Any), wrapper)
        if self.returns is type(None):
            self.returns = Any  # nothing comes back, and is None
        self._places: list[tuple[str, Any]] = []
        self._names: dict[str, Any] = {}
        self._more: Any = None  # of ``*args``: the name and type
        self._others: Any = None  # of ``**kwargs``
        self._required = 0
        self._only_places = True  # nothing must be given by name
        for parameter in self._signature.parameters.values():
            self._note(parameter, hints.get(parameter.name, Any))
        self._plain = all(kind is Any for _, kind in self._places) and self._more is None
        if self.returns is not Any:
            self._check("what it returns", self.returns)

    def _note(self, parameter: inspect.Parameter, kind: Any) -> None:  # noqa: ANN401
        if kind is not Any:
            self._check(f"parameter {parameter.name!r}", kind)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            self._more = (parameter.name, kind)
            return
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            self._others = kind
            return
        needed = parameter.default is inspect.Parameter.empty
        if parameter.kind in _PLACED:
            self._places.append((parameter.name, kind))
            self._required += needed
        elif needed:
            self._only_places = False
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            self._names[parameter.name] = kind

    def _check(self, what: str, kind: Any) -> None:  # noqa: ANN401
        try:
            msgspec.msgpack.Decoder(kind, dec_hook=_read_other)
        except TypeError as error:
            raise InvalidArgumentError(
                f"{what} of task {self._name!r} is annotated as {kind!r}, which cannot be read "
                f"from msgpack: {error}"
            ) from error

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises TaskPayloadError: the function cannot be called with these."""
        count = len(args)
        fits = not kwargs and self._only_places and self._required <= count <= len(self._places)
        if not fits:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TaskPayloadError(
                    f"task {self._name!r} cannot be called so: {error}"
                ) from error

    def read(self, payload: bytes) -> Arguments:
        """The arguments in *payload*, as the annotations say.

        Raises:
            TaskPayloadError: they are none, or not such; the text names the argument.
        """
        args, kwargs = unpack_arguments(payload)
        self.check(args, kwargs)
        if not (self._plain and not kwargs):
            args = [self._read(value, *self._place(at)) for at, value in enumerate(args)]
            kwargs = {
                name: self._read(value, name, self._names.get(name, self._others))
                for name, value in kwargs.items()
            }
        return args, kwargs

    def _place(self, at: int) -> tuple[str, Any]:
        if at < len(self._places):
            return self._places[at]
        found: tuple[str, Any] = self._more
        return found

    def _read(self, value: Any, name: str, kind: Any) -> Any:  # noqa: ANN401
        if kind is Any:
            return value
        try:
            return msgspec.convert(value, kind, dec_hook=_read_other)
        except Exception as error:  # also what a model's own code may raise
            raise TaskPayloadError(
                f"argument {name!r} of task {self._name!r} is no {kind!r}: {error}"
            ) from error


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins do not say: whoever calls them finds out
        return inspect.signature(lambda *_args, **_kwargs: None)


def _unwrapped(returns: Any, wrapper: type | None) -> Any:  # noqa: ANN401
    if wrapper is not None and returns is wrapper:
        return Any
    if wrapper is not None and typing.get_origin(returns) is wrapper:
        return typing.get_args(returns)[0]
    return returns
