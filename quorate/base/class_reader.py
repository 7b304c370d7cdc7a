"""From a class to its ``Declaration``: reads annotations, and refuses what could not work.

Everything is checked when the class is defined, so that a mistake shows in the traceback of the
line that made it, and not on one of five replicas.
"""

from __future__ import annotations

import inspect
import keyword
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, NoReturn, get_args, get_origin

import msgspec
from msgspec import inspect as types_of

from quorate.base.declaring import (
    MARK,
    PARAMETERS_MAX,
    RESERVED,
    Declaration,
    Mark,
    Method,
    Parameter,
    Since,
    derived_tag,
)
from quorate.base.tables import OrderedTable, Table, TableOptions, TableSpec, Value
from quorate.errors import CommandError, ConfigError, error_from_code

_KEY_TYPES: Final = (str, bytes, int)
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_ORDER: Final = "has no order that all replicas agree on: use a list, a tuple or a dict"
_EMPTY: Final = inspect.Parameter.empty


def declare(cls: type, names: Mapping[str, Any], *, untyped: bool = False) -> Declaration | None:
    """What *cls* declares; None if none of its methods is marked.

    *names*: local names where the class stands, for its annotations. *untyped*: parameters may go
    without annotations, and then take any msgpack value.

    Raises:
        ConfigError: something in it cannot work; the text names class, method and parameter.
    """
    functions = _marked(cls)
    if not functions:
        return None
    reader = _Reader(cls, names, untyped=untyped)
    version = getattr(cls, "version", 1)
    if type(version) is not int or version < 1:
        reader.refuse(f"version is {version!r}, which is not 1 or more")
    methods = [reader.method(name, function, version) for name, function in functions.items()]
    if not any(method.mark.kind == "command" for method in methods):
        reader.refuse("it has queries, and no command that could ever change what they read")
    reader.check_names(methods)
    tables = reader.tables()
    name = getattr(cls, "name", None) or snake_case(cls.__name__)
    return Declaration(name, version, methods, tables, reader.errors())


def snake_case(name: str) -> str:
    """``JobQueue`` as ``job_queue``."""
    return _WORD.sub("_", name.strip("_")).lower()


def _marked(cls: type) -> dict[str, Any]:
    """Marked functions of the class and its bases, by attribute, in the order of definition."""
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        for attribute, member in vars(owner).items():
            if hasattr(member, MARK):
                found[attribute] = member
            elif attribute in found:
                raise ConfigError(
                    f"{owner.__qualname__}.{attribute} takes the place of a command or query and "
                    "is not marked as one: mark it too"
                )
    return found


class _Reader:
    def __init__(self, cls: type, names: Mapping[str, Any], *, untyped: bool) -> None:
        self._class = cls
        self._names = names
        self._untyped = untyped
        self._results: dict[tuple[str, str], tuple[Any, type[msgspec.Struct]]] = {}

    def refuse(self, text: str, where: str = "") -> NoReturn:
        name = self._class.__qualname__
        raise ConfigError(f"{name}.{where}: {text}" if where else f"{name}: {text}")

    # --- methods ------------------------------------------------------------------------------

    def method(self, attribute: str, function: Any, version: int) -> Method:  # noqa: ANN401
        mark: Mark = getattr(function, MARK)
        if attribute.startswith("_") or keyword.iskeyword(attribute):
            self.refuse("the name of a command or query begins with a letter", attribute)
        if mark.since > version:
            self.refuse(
                f"it is there since version {mark.since}, and the machine has version {version}: "
                f"write version = {mark.since}",
                attribute,
            )
        hints = self._hints(function, attribute)
        parameters = self._parameters(function, attribute, hints, mark, version)
        name = mark.name or attribute
        returns = hints.get("return", _EMPTY)
        if returns is _EMPTY:
            if not self._untyped:
                self.refuse("say what it returns, -> None if nothing", attribute)
            returns = Any
        self._check_type(returns, attribute, "its result", sets=True)
        tag = mark.tag or derived_tag(name)
        return Method(
            attribute=attribute,
            mark=mark,
            name=name,
            tag=tag,
            parameters=parameters,
            returns=returns,
            shapes=self._shapes(attribute, tag, parameters, mark),
            result=self._result(attribute, mark.kind, name, returns),
        )

    def _result(
        self,
        attribute: str,
        kind: str,
        name: str,
        returns: Any,  # noqa: ANN401
    ) -> type[msgspec.Struct]:
        """Shared by methods of one name, of which each version has one: clients of older code must
        be able to read it."""
        known = self._results.get((kind, name))
        if known is None:
            made = msgspec.defstruct(
                f"{attribute}_result",
                [("value", returns)],
                frozen=True,
                array_like=True,
                tag=derived_tag(kind, name),
            )
            known = self._results[kind, name] = (returns, made)
        elif known[0] != returns:
            self.refuse(
                f"another {kind} of the name {name!r} returns {known[0]!r}; clients of that "
                "version could not read what this one returns: give it a name of its own",
                attribute,
            )
        return known[1]

    def _hints(self, function: Any, attribute: str) -> dict[str, Any]:  # noqa: ANN401
        try:
            return typing.get_type_hints(function, localns=dict(self._names), include_extras=True)
        except Exception as error:  # noqa: BLE001  an annotation may be any expression
            self.refuse(f"its annotations cannot be read: {error}", attribute)

    def _parameters(
        self,
        function: Any,  # noqa: ANN401
        attribute: str,
        hints: Mapping[str, Any],
        mark: Mark,
        version: int,
    ) -> tuple[Parameter, ...]:
        given = list(inspect.signature(function).parameters.values())
        if not given:
            self.refuse("it is a method, so its first parameter is self", attribute)
        if len(given) > PARAMETERS_MAX:
            self.refuse(f"it has more than {PARAMETERS_MAX} parameters", attribute)
        found: list[Parameter] = []
        for each in given[1:]:
            what = f"parameter {each.name}"
            if each.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                self.refuse(
                    f"{what} is not a plain one (no *, **, / in commands and queries)", attribute
                )
            if each.name in RESERVED:
                self.refuse(f"{what}: callers say {each.name}= to the call itself", attribute)
            annotation = hints.get(each.name, _EMPTY)
            if annotation is _EMPTY:
                if not self._untyped:
                    self.refuse(f"{what} has no annotation", attribute)
                annotation = Any
            annotation, since = _split_since(annotation, mark.since)
            self._check_since(since, found, attribute, what, version, each.default is _EMPTY)
            self._check_type(annotation, attribute, what)
            if each.default is not _EMPTY:
                self._check_default(annotation, each.default, attribute, what)
            found.append(Parameter(each.name, annotation, each.default, since))
        return tuple(found)

    def _check_since(
        self,
        since: int,
        before: list[Parameter],
        attribute: str,
        what: str,
        version: int,
        required: bool,  # noqa: FBT001
    ) -> None:
        if not (before[-1].since if before else 1) <= since <= version:
            self.refuse(
                f"{what}: a parameter that a later version adds goes last, and the version is one "
                f"of 1 to {version}",
                attribute,
            )
        if required and since > (before[0].since if before else since):
            self.refuse(f"{what} was added later, so it needs a default", attribute)

    def _check_default(self, annotation: Any, default: Any, attribute: str, what: str) -> None:  # noqa: ANN401
        try:
            same = msgspec.msgpack.decode(msgspec.msgpack.encode(default), type=annotation)
        except (TypeError, ValueError, OverflowError) as error:
            self.refuse(f"{what}: its default {default!r} is not of its type: {error}", attribute)
        if same.__class__ in (list, dict, set):
            self.refuse(f"{what}: write None in the place of a mutable default", attribute)

    def _shapes(
        self, attribute: str, tag: int, parameters: tuple[Parameter, ...], mark: Mark
    ) -> tuple[tuple[int, type[msgspec.Struct]], ...]:
        shapes: list[tuple[int, type[msgspec.Struct]]] = []
        for since in sorted({mark.since, *(each.since for each in parameters)}):
            fields = [
                (each.name, each.type) if each.required else (each.name, each.type, each.default)
                for each in parameters
                if each.since <= since
            ]
            try:
                shape = msgspec.defstruct(
                    attribute,
                    fields,
                    frozen=True,
                    array_like=True,
                    forbid_unknown_fields=True,
                    tag=tag,
                )
            except (TypeError, ValueError) as error:
                self.refuse(str(error), attribute)
            shapes.append((since, shape))
        return tuple(shapes)

    def check_names(self, methods: list[Method]) -> None:
        """No two that could be mistaken for each other under one version."""
        for at, one in enumerate(methods):
            for other in methods[:at]:
                apart = one.mark.until <= other.mark.since or other.mark.until <= one.mark.since
                if apart and one.mark.kind == other.mark.kind:
                    continue
                if one.name == other.name:
                    self.refuse(f"{other.attribute} has the name {one.name!r} too", one.attribute)
                if one.tag == other.tag:
                    self.refuse(
                        f"{other.attribute} has the tag {one.tag} too: give one of them another, "
                        "with tag=",
                        one.attribute,
                    )

    # --- types --------------------------------------------------------------------------------

    def _check_type(self, found: Any, attribute: str, what: str, *, sets: bool = False) -> None:  # noqa: ANN401
        try:
            information = types_of.type_info(found)
            msgspec.msgpack.Decoder(found)
        except (TypeError, NotImplementedError, ValueError) as error:
            self.refuse(f"{what}: {error}", attribute)
        problem = _problem_of(information, (), sets=sets)
        if problem:
            self.refuse(f"{what}: {problem}", attribute)

    # --- tables -------------------------------------------------------------------------------

    def tables(self) -> list[TableSpec]:
        found: dict[str, TableSpec] = {}
        for owner in reversed(self._class.__mro__):
            for attribute, annotation in inspect.get_annotations(owner).items():
                spec = self._table(owner, attribute, annotation)
                if spec is not None:
                    found[attribute] = spec
            for attribute, member in vars(owner).items():
                if isinstance(member, Value | TableOptions) and attribute not in found:
                    self.refuse("it needs an annotation: say what it holds", attribute)
        return list(found.values())

    def _table(self, owner: type, attribute: str, annotation: Any) -> TableSpec | None:  # noqa: ANN401
        member = vars(owner).get(attribute)
        ours = isinstance(member, Value | TableOptions)
        if isinstance(annotation, str):
            annotation = self._evaluate(owner, attribute, annotation, needed=ours)
        if isinstance(member, Value):
            record, _cell = self._record(attribute, annotation, cell=True)
            self._check_default(annotation, member.default, attribute, "value")
            return TableSpec(attribute, (bytes,), record, cell=True, lone=True)
        origin = get_origin(annotation)
        if origin not in (Table, OrderedTable):
            if annotation in (Table, OrderedTable):
                self.refuse("say what it holds, as Table[str, Item]", attribute)
            if ours:
                self.refuse("table() is for tables: annotate it as Table[str, Item]", attribute)
            return None
        key, value = get_args(annotation)
        composite = get_origin(key) is tuple
        key_types = get_args(key) if composite else (key,)
        if not key_types or any(each not in _KEY_TYPES for each in key_types):
            self.refuse(
                f"keys are str, bytes, int, or a tuple of so many of them, not {key!r}", attribute
            )
        record, cell = self._record(attribute, value)
        return TableSpec(
            attribute,
            key_types,
            record,
            composite=composite,
            cell=cell,
            ordered=origin is OrderedTable,
            packed=isinstance(member, TableOptions) and member.packed,
        )

    def _evaluate(self, owner: type, attribute: str, text: str, *, needed: bool) -> Any:  # noqa: ANN401
        module = inspect.getmodule(owner)
        known = {**(vars(module) if module else {}), **self._names}
        try:
            holder = type("holder", (), {"__annotations__": {attribute: text}})
            return typing.get_type_hints(holder, known, include_extras=True)[attribute]
        except Exception as error:  # noqa: BLE001
            if needed or "Table[" in text:
                self.refuse(f"its annotation cannot be read: {error}", attribute)
            return None  # not one of ours

    def _record(
        self,
        attribute: str,
        found: Any,  # noqa: ANN401
        *,
        cell: bool = False,
    ) -> tuple[type[msgspec.Struct], bool]:
        """The struct that holds what was declared, and whether it is one of ours around it."""
        config = getattr(found, "__struct_config__", None)
        if config is not None and not cell:
            if not config.frozen:
                self.refuse(
                    f"records are replaced, never changed: declare {found.__name__} as a frozen "
                    "struct",
                    attribute,
                )
            self._check_type(found, attribute, "its records", sets=True)
            return found, False
        self._check_type(found, attribute, "its records", sets=True)
        made = msgspec.defstruct(
            f"{attribute}_cell", [("value", found)], frozen=True, array_like=True
        )
        return made, True

    def errors(self) -> dict[str, type[CommandError]]:
        found: dict[str, type[CommandError]] = {}
        for each in getattr(self._class, "errors", ()):
            if not (isinstance(each, type) and issubclass(each, CommandError)):
                self.refuse(f"{each!r} in errors is no class below CommandError")
            code = each.code
            if code in found or type(error_from_code(code, "")) not in (each, *_UNKNOWN):
                self.refuse(
                    f"{each.__name__} in errors has the code {code!r} of another: give it "
                    "one of its own"
                )
            found[code] = each
        return found


#: What an unknown code gives.
_UNKNOWN: Final = (type(error_from_code("", "")),)


def _split_since(annotation: Any, least: int) -> tuple[Any, int]:  # noqa: ANN401
    """The annotation without its ``Since``, and the version that this names."""
    if get_origin(annotation) is not Annotated:
        return annotation, least
    inner, *rest = get_args(annotation)
    since = [each.version for each in rest if isinstance(each, Since)]
    others = [each for each in rest if not isinstance(each, Since)]
    return (Annotated[(inner, *others)] if others else inner), (since or [least])[-1]


def _problem_of(found: types_of.Type, around: tuple[object, ...], *, sets: bool) -> str:
    """Why values of the type cannot be parameters (or results or records: *sets* may be)."""
    if isinstance(found, types_of.CustomType):
        return f"{found.cls!r} is no type that msgspec encodes: use a msgspec.Struct"
    if isinstance(found, types_of.RawType | types_of.ExtType):
        return "msgspec.Raw and Ext are not for machines"
    if not sets and isinstance(found, types_of.SetType | types_of.FrozenSetType):
        return f"a set {_NO_ORDER}"
    cls = getattr(found, "cls", None)
    if cls is not None:
        if cls in around:
            return ""
        around = (*around, cls)
    for inner in _inside(found):
        problem = _problem_of(inner, around, sets=sets)
        if problem:
            return problem
    return ""


def _inside(found: types_of.Type) -> list[types_of.Type]:
    inner: list[types_of.Type] = [
        getattr(found, name)
        for name in ("type", "item_type", "key_type", "value_type")
        if isinstance(getattr(found, name, None), types_of.Type)
    ]
    inner += getattr(found, "types", ()) or getattr(found, "item_types", ())
    inner += [field.type for field in getattr(found, "fields", ())]
    return inner
