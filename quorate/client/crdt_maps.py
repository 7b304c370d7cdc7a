"""Maps of CRDT data, any kind under any key, and what all of it hangs from: names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple, TypeVar

from quorate.base.crdt_frames import Names
from quorate.base.crdt_operations import KindTag, Remove
from quorate.base.invariants import must
from quorate.base.levels import Level
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
    _Clearable,
)
from quorate.client.crdt_calls import CrdtScope, Place
from quorate.client.crdt_text import Text
from quorate.client.crdt_values import Key, as_key, check_key, check_name
from quorate.client.levels import Receipt
from quorate.errors import InvalidArgumentError

D = TypeVar("D", bound=Data[Any])


class ORMap(_Clearable[dict[Any, Any]]):
    """A map whose keys hold data of any kind, maps included. A key is in it while something is
    below it. Of an update and a removal at the same time, the update stays, alone."""

    __slots__ = ()

    kind = KindTag.OR_MAP

    # --- what is under a key -------------------------------------------------------------------

    def crdt(self, key: Key, kind: type[D]) -> D:
        """The data of *kind*, such as ``quorate.MVRegister``, under *key*.

        Raises:
            InvalidArgumentError: *key* can be no key, or *kind* is none.
            LimitExceededError: maps are nested too deep.
        """
        chosen = _kind(kind)
        return chosen(self._place.below(key, chosen.kind), self._scope)

    def counter(self, key: Key) -> PNCounter:
        """The counter under *key*."""
        return self.crdt(key, PNCounter)

    def set(self, key: Key) -> ORSet:
        """The set under *key*."""
        return self.crdt(key, ORSet)

    def register(self, key: Key) -> LWWRegister:
        """The register under *key*."""
        return self.crdt(key, LWWRegister)

    def flag(self, key: Key) -> EnableWinsFlag:
        """The flag under *key*."""
        return self.crdt(key, EnableWinsFlag)

    def map(self, key: Key) -> ORMap:
        """The map under *key*."""
        return self.crdt(key, ORMap)

    def text(self, key: Key) -> Text:
        """The text under *key*."""
        return self.crdt(key, Text)

    # --- keys ----------------------------------------------------------------------------------

    async def remove(
        self,
        key: Key,
        *,
        observed: bytes | None = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take *key* out with all below it, as far as the node has seen it; with *observed*, a
        token of ``observe``, as far as that has.

        Raises:
            NotObservedError: the node has not seen yet what *observed* speaks of.
            CrdtError: there is a bounded counter below it.
        """
        await self._write(Remove(check_key(key), observed), level, receipt, timeout)

    async def observe(
        self,
        key: Key | None = None,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """A token of what is below *key* now, for ``remove``; without, one of all that is here,
        for ``clear``."""
        token: bytes = await self._scope.read(self._place.observe(key), level, receipt, timeout)
        return token

    async def contains(
        self,
        key: Key,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Whether something is under *key*."""
        question = self._place.contains(key)
        found: bool = await self._scope.read(question, level, receipt, timeout)
        return found

    async def keys(
        self, *, level: Level | None = None, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """``async for key in data.keys()``: the keys in order, page by page."""
        last: list[Any] = []
        async for page in self._pages(level, None, timeout):
            for key, _kind, _value in page:
                if last != [key]:
                    last = [key]
                    yield as_key(key)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.keys()

    # --- all of it -----------------------------------------------------------------------------

    async def items(
        self, *, level: Level | None = None, timeout: float | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """``async for key, value in data.items()``: page by page. Of two kinds that were begun
        under one key at the same time, the one with the lower tag; ``conflicts`` has both."""
        last: list[Any] = []
        async for key, kind, value in self._entries(level, None, timeout):
            if last != [key]:
                last = [key]
                whole = await self._whole(key, kind, level, timeout) if kind in MANY else value
                yield key, whole

    async def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> dict[Any, Any]:
        """Key by key what is below, maps as dicts; as ``items`` reads it."""
        found: dict[Any, Any] = {}
        async for key, kind, value in self._entries(level, receipt, timeout):
            if key not in found:
                whole = await self._whole(key, kind, level, timeout) if kind in MANY else value
                found[key] = whole
        return found

    async def conflicts(
        self, *, level: Level | None = None, timeout: float | None = None
    ) -> dict[Any, dict[str, Any]]:
        """The keys with data of more than one kind, and by kind what is there."""
        kinds: dict[Any, list[int]] = {}
        async for key, kind, _value in self._entries(level, None, timeout):
            kinds.setdefault(key, []).append(kind)
        found: dict[Any, dict[str, Any]] = {}
        for key, tags in kinds.items():
            if len(tags) > 1:
                found[key] = {
                    kind_name(tag): await self._whole(key, tag, level, timeout) for tag in tags
                }
        return found

    async def _entries(
        self, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> AsyncIterator[tuple[Any, int, Any]]:
        async for page in self._pages(level, receipt, timeout):
            for key, kind, value in page:
                yield as_key(key), kind, value

    async def _whole(
        self,
        key: Key,
        kind: int,
        level: Level | None,
        timeout: float | None,
    ) -> Any:  # noqa: ANN401  each kind has its own
        handle = KINDS.get(kind)
        if handle is None:  # of a newer version
            return None
        return await self.crdt(key, handle).value(level=level, timeout=timeout)


#: All kinds, by what stands for them on the wire.
KINDS: Final[dict[int, type[Data[Any]]]] = {
    each.kind: each
    for each in (
        GCounter,
        PNCounter,
        BoundedCounter,
        LWWRegister,
        MVRegister,
        GSet,
        TwoPSet,
        ORSet,
        ORMap,
        EnableWinsFlag,
        DisableWinsFlag,
        Text,
    )
}
#: Those of which a map does not show the value, because it may be long.
MANY: Final = frozenset(
    (
        KindTag.MV_REGISTER,
        KindTag.G_SET,
        KindTag.TWO_P_SET,
        KindTag.OR_SET,
        KindTag.OR_MAP,
        KindTag.TEXT,
    )
)
must({*MANY} <= {*KINDS}, "what has many can be read", kinds=sorted(KINDS))


def kind_name(tag: int) -> str:
    """What users know a kind of data as."""
    return KINDS[tag].__name__ if tag in KINDS else f"kind {tag}"


class CrdtName(NamedTuple):
    """A name in use, and as what: one kind, unless two were begun on two sides at once."""

    name: Any
    kinds: tuple[str, ...]


class Converging:
    """Base of ``Database`` and ``View``: handles of CRDT data, each by its name. The name is in use
    as one kind of data; another kind is refused with ``TypeMismatchError`` by the first write."""

    _crdt_scope: CrdtScope

    def crdt(self, name: str, kind: type[D]) -> D:
        """The data of *kind* under *name*: ``db.crdt("cart:1", quorate.ORSet)``.

        Raises:
            InvalidArgumentError: *name* can be no name, or *kind* is no kind of data.
        """
        chosen = _kind(kind)
        return chosen(Place(check_name(name), int(chosen.kind)), self._crdt_scope)

    def counter(self, name: str) -> PNCounter:
        """The counter under *name*, which goes up and down."""
        return self.crdt(name, PNCounter)

    def set(self, name: str) -> ORSet:
        """The set under *name*; adding wins over removing at the same time."""
        return self.crdt(name, ORSet)

    def register(self, name: str) -> LWWRegister:
        """The register under *name*; the last write wins."""
        return self.crdt(name, LWWRegister)

    def flag(self, name: str) -> EnableWinsFlag:
        """The flag under *name*; enabling wins over disabling at the same time."""
        return self.crdt(name, EnableWinsFlag)

    def map(self, name: str) -> ORMap:
        """The map under *name*."""
        return self.crdt(name, ORMap)

    def text(self, name: str) -> Text:
        """The text under *name*; it needs pycrdt, which ``quorate[text]`` installs."""
        return self.crdt(name, Text)

    async def remove_crdt(
        self,
        name: str,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Delete all that stands under *name*, as far as the node has seen it. What others write
        there at the same time stays.

        Raises:
            CrdtError: there is a bounded counter: lower it to zero instead.
        """
        await self._crdt_scope.write(Remove(check_name(name)), level, receipt, timeout)

    async def crdt_names(
        self, prefix: str = "", *, level: Level | None = None, timeout: float | None = None
    ) -> AsyncIterator[CrdtName]:
        """``async for name, kinds in db.crdt_names("cart:")``: the names in use that begin with
        *prefix*, in order, page by page."""
        if prefix:
            check_name(prefix)
        start = b""
        while True:
            question = Names(prefix, start)
            items, start = await self._crdt_scope.read(question, level, None, timeout)
            for name, kinds in items:
                yield CrdtName(as_key(name), tuple(map(kind_name, kinds)))
            if not start:
                return


def _kind(kind: type[D]) -> type[D]:
    given: object = kind
    if given not in KINDS.values():
        names = ", ".join(each.__name__ for each in KINDS.values())
        raise InvalidArgumentError(
            f"{kind!r} is no kind of CRDT data: use one of quorate's {names}"
        )
    return kind
