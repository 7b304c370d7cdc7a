"""``quorate crdt``: counters, sets, registers, flags, texts, maps that every node takes writes for.

Every command names its data in the same way, so what that takes is added to each of them here.
"""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, NamedTuple, cast

import typer

from quorate.base.levels import CAUSAL, Level, check_level
from quorate.client.crdt import (
    BoundedCounter,
    Data,
    DisableWinsFlag,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWRegister,
    MVRegister,
    ORSet,
    PNCounter,
    TwoPSet,
)
from quorate.client.crdt_maps import ORMap
from quorate.client.crdt_text import Text
from quorate.client.views import View
from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import (
    Exit,
    Target,
    client_command,
    emit,
    opened,
    say,
    shown,
    write_bytes,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Counters, sets, registers, flags, texts, maps: writable even when the cluster is not.",
)
counter_app = typer.Typer(no_args_is_help=True, help="Counters.")
set_app = typer.Typer(no_args_is_help=True, help="Sets.")
register_app = typer.Typer(no_args_is_help=True, help="Registers, which hold one value.")
flag_app = typer.Typer(no_args_is_help=True, help="Flags, on or off.")
text_app = typer.Typer(no_args_is_help=True, help="Texts; they need quorate[text].")
map_app = typer.Typer(no_args_is_help=True, help="Maps of all these; --key leads into them.")
app.add_typer(counter_app, name="counter")
app.add_typer(set_app, name="set")
app.add_typer(register_app, name="register")
app.add_typer(flag_app, name="flag")
app.add_typer(text_app, name="text")
app.add_typer(map_app, name="map")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]
LevelOption = Annotated[
    str, typer.Option("--level", help="eventual, causal, quorum or strong.", metavar="LEVEL")
]
AfterOption = Annotated[
    str, typer.Option("--after", metavar="TOKEN", help="See what the bearer of TOKEN has seen.")
]
KeyOption = Annotated[
    list[str],
    typer.Option("--key", metavar="KEY", help="NAME is a map, and this its key; again: deeper."),
]
TypedOption = Annotated[
    bool, typer.Option("--typed", help='Keys, elements and values are JSON: 5, ["a", 1], null.')
]
ByArgument = Annotated[int, typer.Argument(metavar="[BY]", min=1)]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="End after so many values.")]


class Call(NamedTuple):
    """What a command is given: the data it is about, and how its arguments are read."""

    target: Target
    view: View
    data: Any
    typed: bool

    def parsed(self, text: str) -> Any:  # noqa: ANN401  whatever JSON has
        """An element, key or value of the command line.

        Raises:
            InvalidArgumentError: it is to be JSON, and is not.
        """
        return _parsed(text, typed=self.typed)

    def done(self) -> Exit:
        """Say that the write was acknowledged."""
        if self.target.json:
            emit({"done": True, "level": self.view.level, "token": self.view.token})
        else:
            say(f"done ({self.view.level})")
        return Exit.OK

    def tell(self, value: object) -> Exit:
        """Print what was read; no is an answer with a status of its own."""
        if self.target.json:
            emit({"value": jsonable(value), "token": self.view.token})
        elif value is not None:
            say(to_text(value))
        return Exit.NO if value is None else Exit.OK


def _parsed(text: str, *, typed: bool) -> Any:  # noqa: ANN401  whatever JSON has
    if not typed:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{text[:80]!r} is not JSON: {error}") from error


def jsonable(value: object) -> object:
    """*value* for JSON: bytes in base64, sets as lists in order, maps whose keys are not all text
    as lists of pairs."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, frozenset):
        return sorted(map(jsonable, value), key=lambda each: json.dumps(each, ensure_ascii=False))
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: jsonable(each) for key, each in value.items()}
        return [[jsonable(key), jsonable(each)] for key, each in value.items()]
    return value


def to_text(value: object) -> str:
    """*value* for a person: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return shown(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return shown(value)
    return json.dumps(jsonable(value), ensure_ascii=False)


def _find(view: View, name: str, keys: list[Any], kind: type[Data[Any]]) -> Data[Any]:
    if not keys:
        return view.crdt(name, kind)
    found = view.map(name)
    for key in keys[:-1]:
        found = found.map(key)
    return found.crdt(keys[-1], kind)


Function = Callable[..., Coroutine[Any, Any, Exit]]
#: What takes part in every signature, behind a command's own arguments, and its default.
_SHARED: Final[dict[str, tuple[Any, Any]]] = {
    "key": (KeyOption, []),
    "typed": (TypedOption, False),
    "level": (LevelOption, CAUSAL),
    "after": (AfterOption, ""),
}


def _command(
    group: typer.Typer, name: str, *kinds: type[Data[Any]]
) -> Callable[[Function], Function]:
    """Make a command out of ``async def function(call: Call, ...)``. *kinds*: of the data it is
    for, the usual one first; there is an option if there are several."""
    by_name = {kind.__name__: kind for kind in kinds}

    def decorate(function: Function) -> Function:
        async def command(target: Target, **given: Any) -> Exit:  # noqa: ANN401
            wanted = given.pop("kind", kinds[0].__name__)
            if wanted not in by_name:
                raise InvalidArgumentError(f"--kind is one of {', '.join(by_name)}, not {wanted!r}")
            level, after, typed = (given.pop(each) for each in ("level", "after", "typed"))
            keys = [_parsed(key, typed=typed) for key in given.pop("key")]
            checked: Level = check_level(level)
            async with opened(target) as db:
                view = db.at(checked, after)
                data = _find(view, given.pop("name"), keys, by_name[wanted])
                return await function(Call(target, view, data, typed), **given)

        shared = dict(_SHARED)
        if len(kinds) > 1:
            option = typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(by_name)}.")
            shared["kind"] = (Annotated[str, option], kinds[0].__name__)
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("target", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                inspect.Parameter("name", keyword, annotation=NameArgument),
                *[each.replace(kind=keyword) for each in own],
                *[
                    inspect.Parameter(each, keyword, default=default, annotation=annotation)
                    for each, (annotation, default) in shared.items()
                ],
            ]
        )
        group.command(name)(client_command(command))
        return function

    return decorate


# --- counters -------------------------------------------------------------------------------------

_COUNTERS = (PNCounter, GCounter, BoundedCounter)


@_command(counter_app, "get", *_COUNTERS)
async def counter_get(call: Call) -> Exit:
    """Print the value of a counter."""
    return call.tell(await call.data.value())


@_command(counter_app, "incr", *_COUNTERS)
async def counter_incr(call: Call, by: ByArgument = 1) -> Exit:
    """Raise a counter by BY, or by 1."""
    await call.data.increment(by)
    return call.done()


@_command(counter_app, "decr", PNCounter, BoundedCounter)
async def counter_decr(call: Call, by: ByArgument = 1) -> Exit:
    """Lower a counter by BY, or by 1."""
    await call.data.decrement(by)
    return call.done()


@_command(counter_app, "clear", PNCounter, GCounter)
async def counter_clear(call: Call) -> Exit:
    """Set a counter back to 0, as far as the node has seen it."""
    await call.data.clear()
    return call.done()


@_command(counter_app, "rights", BoundedCounter)
async def counter_rights(call: Call) -> Exit:
    """Print how far the connected node may lower a bounded counter, and how far each life of a
    member."""
    rights = await call.data.rights()
    if call.target.json:
        shares = [share._asdict() for share in rights.shares]
        emit({"here": rights.here, "shares": shares, "token": call.view.token})
        return Exit.OK
    say(f"here\t{rights.here}")
    for share in rights.shares:
        say(f"member {share.member} epoch {share.epoch}\t{share.amount}")
    return Exit.OK


@_command(counter_app, "transfer", BoundedCounter)
async def counter_transfer(
    call: Call,
    member: Annotated[int, typer.Argument(metavar="MEMBER", min=1)],
    amount: Annotated[int, typer.Argument(metavar="AMOUNT", min=1)],
) -> Exit:
    """Give MEMBER the right to lower a bounded counter by AMOUNT, out of the connected node's."""
    await call.data.transfer(member, amount)
    return call.done()


# --- sets -----------------------------------------------------------------------------------------

_SETS = (ORSet, GSet, TwoPSet)
ElementArgument = Annotated[str, typer.Argument(metavar="ELEMENT")]
ElementsArgument = Annotated[list[str], typer.Argument(metavar="ELEMENT...")]


@_command(set_app, "members", *_SETS)
async def set_members(call: Call) -> Exit:
    """Print the elements of a set, one a line."""
    async for element in cast("ORSet", call.data).members():
        emit(jsonable(element)) if call.target.json else say(to_text(element))
    return Exit.OK


@_command(set_app, "count", *_SETS)
async def set_count(call: Call) -> Exit:
    """Print how many elements a set has."""
    return call.tell(await call.data.count())


@_command(set_app, "contains", *_SETS)
async def set_contains(call: Call, element: ElementArgument) -> Exit:
    """Say whether ELEMENT is in a set; exit status 4 if it is not."""
    found = await call.data.contains(call.parsed(element))
    call.tell(found)
    return Exit.OK if found else Exit.NO


@_command(set_app, "add", *_SETS)
async def set_add(call: Call, elements: ElementsArgument) -> Exit:
    """Put elements into a set."""
    await call.data.add(*map(call.parsed, elements))
    return call.done()


@_command(set_app, "remove", ORSet, TwoPSet)
async def set_remove(call: Call, element: ElementArgument) -> Exit:
    """Take ELEMENT out of a set, as far as the node has seen it added."""
    await call.data.remove(call.parsed(element))
    return call.done()


@_command(set_app, "clear", *_SETS)
async def set_clear(call: Call) -> Exit:
    """Empty a set, as far as the node has seen it."""
    await call.data.clear()
    return call.done()


# --- registers and flags --------------------------------------------------------------------------

_REGISTERS = (LWWRegister, MVRegister)
_FLAGS = (EnableWinsFlag, DisableWinsFlag)


@_command(register_app, "get", *_REGISTERS)
async def register_get(call: Call) -> Exit:
    """Print the value of a register; exit status 4 if nothing was written."""
    value = await call.data.value()
    if isinstance(call.data, MVRegister) and not call.target.json:
        for each in value:
            say(to_text(each))
        return Exit.OK if value else Exit.NO
    return call.tell(value)


@_command(register_app, "assign", *_REGISTERS)
async def register_assign(
    call: Call, value: Annotated[str, typer.Argument(metavar="VALUE")]
) -> Exit:
    """Write VALUE, over all that the node has seen."""
    await call.data.assign(call.parsed(value))
    return call.done()


@_command(register_app, "clear", *_REGISTERS)
async def register_clear(call: Call) -> Exit:
    """Empty a register, as far as the node has seen it."""
    await call.data.clear()
    return call.done()


@_command(flag_app, "get", *_FLAGS)
async def flag_get(call: Call) -> Exit:
    """Print whether a flag is on; exit status 4 if it is off."""
    value: bool = await call.data.value()
    call.tell(value if call.target.json else "on" if value else "off")
    return Exit.OK if value else Exit.NO


@_command(flag_app, "enable", *_FLAGS)
async def flag_enable(call: Call) -> Exit:
    """Switch a flag on."""
    await call.data.enable()
    return call.done()


@_command(flag_app, "disable", *_FLAGS)
async def flag_disable(call: Call) -> Exit:
    """Switch a flag off."""
    await call.data.disable()
    return call.done()


# --- texts ----------------------------------------------------------------------------------------

PieceArgument = Annotated[str, typer.Argument(metavar="TEXT")]
IndexArgument = Annotated[int, typer.Argument(metavar="INDEX", min=0)]


@_command(text_app, "get", Text)
async def text_get(call: Call) -> Exit:
    """Print a text as it is."""
    value = await call.data.value()
    if call.target.json:
        return call.tell(value)
    write_bytes(value.encode(), b"")
    return Exit.OK


@_command(text_app, "insert", Text)
async def text_insert(call: Call, index: IndexArgument, text: PieceArgument) -> Exit:
    """Put TEXT before the character at INDEX, from 0."""
    await call.data.insert(index, text)
    return call.done()


@_command(text_app, "append", Text)
async def text_append(call: Call, text: PieceArgument) -> Exit:
    """Put TEXT at the end."""
    await call.data.append(text)
    return call.done()


@_command(text_app, "delete", Text)
async def text_delete(
    call: Call,
    index: IndexArgument,
    length: Annotated[int, typer.Argument(metavar="LENGTH", min=0)],
) -> Exit:
    """Take LENGTH characters out of a text, from INDEX on."""
    await call.data.delete(index, length)
    return call.done()


@_command(text_app, "clear", Text)
async def text_clear(call: Call) -> Exit:
    """Take all characters out of a text."""
    await call.data.clear()
    return call.done()


# --- maps -----------------------------------------------------------------------------------------


@_command(map_app, "get", ORMap)
async def map_get(call: Call) -> Exit:
    """Print the keys of a map and what is below them, one key a line."""
    async for key, value in cast("ORMap", call.data).items():
        if call.target.json:
            emit({"key": jsonable(key), "value": jsonable(value)})
        else:
            say(f"{to_text(key)}\t{to_text(value)}")
    return Exit.OK


@_command(map_app, "keys", ORMap)
async def map_keys(call: Call) -> Exit:
    """Print the keys of a map, one a line."""
    async for key in cast("ORMap", call.data).keys():
        emit(jsonable(key)) if call.target.json else say(to_text(key))
    return Exit.OK


@_command(map_app, "remove", ORMap)
async def map_remove(call: Call, entry: Annotated[str, typer.Argument(metavar="ENTRY")]) -> Exit:
    """Take the key ENTRY out of a map with all below it, as far as the node has seen it."""
    await call.data.remove(call.parsed(entry))
    return call.done()


@_command(map_app, "clear", ORMap)
async def map_clear(call: Call) -> Exit:
    """Empty a map, as far as the node has seen it."""
    await call.data.clear()
    return call.done()


# --- all kinds ------------------------------------------------------------------------------------


@_command(counter_app, "watch", *_COUNTERS)
@_command(set_app, "watch", *_SETS)
@_command(register_app, "watch", *_REGISTERS)
@_command(flag_app, "watch", *_FLAGS)
@_command(text_app, "watch", Text)
@_command(map_app, "watch", ORMap)
async def watch(call: Call, *, limit: LimitOption = 0) -> Exit:
    """Print the value now, and whenever it has changed, until interrupted.

    Values in between may be left out, the last one never.
    """
    left = limit
    async with cast("Data[Any]", call.data).watch() as values:
        async for value in values:
            emit({"value": jsonable(value)}) if call.target.json else say(to_text(value))
            left -= 1
            if limit and not left:
                break
    return Exit.OK


async def names(
    target: Target,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]")] = "",
    *,
    level: LevelOption = CAUSAL,
    after: AfterOption = "",
) -> Exit:
    """Print the names in use that begin with PREFIX, and as what kind of data."""
    checked: Level = check_level(level)
    async with opened(target) as db:
        async for name, kinds in db.at(checked, after).crdt_names(prefix):
            if target.json:
                emit({"name": name, "kinds": list(kinds)})
            else:
                say(f"{to_text(name)}\t{', '.join(kinds)}")
    return Exit.OK


async def remove(
    target: Target,
    name: NameArgument,
    *,
    level: LevelOption = CAUSAL,
    after: AfterOption = "",
) -> Exit:
    """Delete all that stands under NAME, as far as the node has seen it."""
    checked: Level = check_level(level)
    async with opened(target) as db:
        view = db.at(checked, after)
        await view.remove_crdt(name)
        return Call(target, view, None, typed=False).done()


app.command("names")(client_command(names))
app.command("remove")(client_command(remove))
