"""The operations of converging workloads, by kind, as calls of quorate's handles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from quorate.client.crdt import (
    Data,
    DisableWinsFlag,
    EnableWinsFlag,
    LWWRegister,
    MVRegister,
    ORSet,
    PNCounter,
)
from quorate.client.crdt_maps import ORMap
from quorate.client.views import View


class Kind(msgspec.Struct, frozen=True):
    """*handle*: of quorate. *verbs*: what is done to it, as often as each stands there."""

    handle: type[Data[Any]]
    verbs: tuple[str, ...]


#: By the names that ``checkers.crdt.acts`` has for them.
KINDS: Final[Mapping[str, Kind]] = {
    "counter": Kind(PNCounter, ("add",)),
    "set": Kind(ORSet, ("add", "add", "add", "remove", "remove")),
    "register": Kind(LWWRegister, ("assign",)),
    "multi": Kind(MVRegister, ("assign",)),
    "on-flag": Kind(EnableWinsFlag, ("enable", "disable")),
    "off-flag": Kind(DisableWinsFlag, ("enable", "disable")),
    "map": Kind(ORMap, ("add", "add", "add", "drop")),
}


async def carry_out(
    view: View,
    kind: str,
    name: str,
    asked: Mapping[str, Any],
    observed: bytes | None,
    options: dict[str, Any],
) -> None:
    """One update, with "verb", "cell" and "what" of *asked*. *observed*: what a removal takes,
    None: all that is seen. Raises ``QuorateError``."""
    data: Any = view.crdt(name, KINDS[kind].handle)
    verb, cell = asked["verb"], asked["cell"]
    what: Any = asked.get("what")
    if verb in {"enable", "disable"}:
        await getattr(data, verb)(**options)
    elif verb == "assign":
        await data.assign(what, **options)
    elif verb in {"remove", "drop"}:
        await data.remove(cell, observed=observed, **options)
    elif kind == "set":
        await data.add(cell, **options)
    else:
        counter = data.counter(cell) if kind == "map" else data
        await (
            counter.increment(what, **options) if what > 0 else counter.decrement(-what, **options)
        )


async def observe(
    view: View,
    kind: str,
    name: str,
    cell: str,
    options: dict[str, Any],
) -> bytes:
    """A token of what is in *cell* now. Raises ``QuorateError``."""
    data: Any = view.crdt(name, KINDS[kind].handle)
    token: bytes = await data.observe(cell, **options)
    return token


async def show(view: View, kind: str, name: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """What it comes to, as histories have it. Raises ``QuorateError``."""
    data: Any = view.crdt(name, KINDS[kind].handle)
    value = await data.value(**options)
    return sorted(value) if kind in {"set", "multi"} else value
