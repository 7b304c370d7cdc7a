"""CRDT data without ``await``: every call is that of the asynchronous handle of the same name."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from quorate.base.levels import Level
from quorate.client import crdt as asynchronous
from quorate.client import crdt_maps, crdt_text
from quorate.client.crdt_draft import Draft
from quorate.client.crdt_maps import CrdtName
from quorate.client.crdt_values import Key
from quorate.client.crdt_watch import PAUSE_S_DEFAULT
from quorate.client.crdt_watch import Watch as AsyncWatch
from quorate.client.levels import Receipt
from quorate.client.settings import check_timeout

T = TypeVar("T")
A = TypeVar("A")
P = ParamSpec("P")

#: Runs what it is given on the loop of the asynchronous twin.
Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]

#: Items that one visit to the loop brings back.
_ITEMS_AT_ONCE: Final = 1000


def _blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Data[Any], P], T]:
    def call(self: Data[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        made: Any = functools.partial(method, self._twin, *args, **kwargs)  # type: ignore[arg-type]
        result: T = self._run(made)
        return result

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[A, P], AsyncIterator[T]],
) -> Callable[Concatenate[Data[Any], P], Iterator[T]]:
    def iterate(self: Data[Any], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        made: Any = functools.partial(method, self._twin, *args, **kwargs)  # type: ignore[arg-type]
        yield from over(self._run, made)

    functools.update_wrapper(iterate, method)
    return iterate


def over(run: Run, begin: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """A generator of this thread over what is fetched on the loop."""
    items: list[AsyncIterator[T]] = []

    async def take() -> list[T]:
        if not items:
            items.append(begin())
        found: list[T] = []
        async for item in items[0]:
            found.append(item)
            if len(found) >= _ITEMS_AT_ONCE:
                break
        return found

    while found := run(take):
        yield from found


class Watch(Generic[T]):
    """As the asynchronous ``Watch``, without ``await``. For one thread at a time; another may close
    it, which ends the iteration."""

    def __init__(self, twin: AsyncWatch[T], run: Run) -> None:
        self._twin = twin
        self._run = run

    def __enter__(self) -> Self:
        self._run(self._twin.__aenter__)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """As ``Watch.close``."""
        self._run(self._twin.close)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """As ``Watch.__anext__``."""
        found = self._next(None)
        if not found:
            raise StopIteration
        return found[0]

    def wait(self, timeout: float) -> list[T]:
        """The next value, if there is another one within *timeout* seconds, or none."""
        try:
            return self._next(check_timeout(timeout))
        except TimeoutError:
            return []

    def _next(self, timeout: float | None) -> list[T]:
        async def take() -> list[T]:
            try:
                async with asyncio.timeout(timeout):
                    return [await self._twin.__anext__()]
            except StopAsyncIteration:
                return []

        found: list[T] = self._run(take)
        return found


class Data(Generic[T]):
    """As the asynchronous ``Data``."""

    def __init__(self, twin: asynchronous.Data[T], run: Run) -> None:
        self._twin = twin
        self._run = run

    @property
    def name(self) -> str:
        """As ``Data.name``."""
        return self._twin.name

    @property
    def keys_to_it(self) -> tuple[Any, ...]:
        """As ``Data.keys_to_it``."""
        return self._twin.keys_to_it

    def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> T:
        """As ``Data.value``."""
        found: T = self._run(
            lambda: self._twin.value(level=level, receipt=receipt, timeout=timeout)
        )
        return found

    def watch(self, *, pause: float = PAUSE_S_DEFAULT) -> Watch[T]:
        """As ``Data.watch``, for ``with`` and ``for``."""
        return Watch(self._twin.watch(pause=pause), self._run)

    def __repr__(self) -> str:
        return repr(self._twin)


class _Clearable(Data[T]):
    clear = _blocking(asynchronous._Clearable.clear)  # noqa: SLF001
    observe = _blocking(asynchronous._Clearable.observe)  # noqa: SLF001


class GCounter(_Clearable[int]):
    """As the asynchronous ``GCounter``."""

    increment = _blocking(asynchronous.GCounter.increment)


class PNCounter(GCounter):
    """As the asynchronous ``PNCounter``."""

    decrement = _blocking(asynchronous.PNCounter.decrement)


class BoundedCounter(Data[int]):
    """As the asynchronous ``BoundedCounter``."""

    increment = _blocking(asynchronous.BoundedCounter.increment)
    decrement = _blocking(asynchronous.BoundedCounter.decrement)
    transfer = _blocking(asynchronous.BoundedCounter.transfer)
    rights = _blocking(asynchronous.BoundedCounter.rights)


class LWWRegister(_Clearable[Any]):
    """As the asynchronous ``LWWRegister``."""

    assign = _blocking(asynchronous.LWWRegister.assign)


class MVRegister(_Clearable[list[Any]]):
    """As the asynchronous ``MVRegister``."""

    assign = _blocking(asynchronous.MVRegister.assign)


class EnableWinsFlag(_Clearable[bool]):
    """As the asynchronous ``EnableWinsFlag``."""

    enable = _blocking(asynchronous.EnableWinsFlag.enable)
    disable = _blocking(asynchronous.EnableWinsFlag.disable)


class DisableWinsFlag(EnableWinsFlag):
    """As the asynchronous ``DisableWinsFlag``."""


class GSet(_Clearable[frozenset[Any]]):
    """As the asynchronous ``GSet``."""

    add = _blocking(asynchronous.GSet.add)
    contains = _blocking(asynchronous.GSet.contains)
    count = _blocking(asynchronous.GSet.count)
    members = _iterating(asynchronous.GSet.members)

    def __iter__(self) -> Iterator[Any]:
        return self.members()


class _RemovableSet(GSet):
    remove = _blocking(asynchronous._RemovableSet.remove)  # noqa: SLF001
    observe = _blocking(asynchronous._RemovableSet.observe)  # noqa: SLF001


class ORSet(_RemovableSet):
    """As the asynchronous ``ORSet``."""


class TwoPSet(_RemovableSet):
    """As the asynchronous ``TwoPSet``."""


class Editing:
    """As the asynchronous ``Editing``, for ``with``."""

    def __init__(self, twin: crdt_text.Editing, run: Run) -> None:
        self._twin = twin
        self._run = run

    def __enter__(self) -> Draft:
        draft: Draft = self._run(self._twin.__aenter__)
        return draft

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(lambda: self._twin.__aexit__(kind, error, trace))


class Text(Data[str]):
    """As the asynchronous ``Text``."""

    _twin: crdt_text.Text

    def edit(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Editing:
        """As ``Text.edit``, for ``with``."""
        return Editing(self._twin.edit(level=level, receipt=receipt, timeout=timeout), self._run)

    length = _blocking(crdt_text.Text.length)
    insert = _blocking(crdt_text.Text.insert)
    append = _blocking(crdt_text.Text.append)
    delete = _blocking(crdt_text.Text.delete)
    replace = _blocking(crdt_text.Text.replace)
    clear = _blocking(crdt_text.Text.clear)


class ORMap(_Clearable[dict[Any, Any]]):
    """As the asynchronous ``ORMap``."""

    _twin: crdt_maps.ORMap

    def crdt(self, key: Key, kind: type[asynchronous.Data[Any]]) -> Any:  # noqa: ANN401
        """As ``ORMap.crdt``: *kind* is the asynchronous one, such as ``quorate.MVRegister``."""
        return TWINS[kind](self._twin.crdt(key, kind), self._run)

    def counter(self, key: Key) -> PNCounter:
        """As ``ORMap.counter``."""
        return PNCounter(self._twin.counter(key), self._run)

    def set(self, key: Key) -> ORSet:
        """As ``ORMap.set``."""
        return ORSet(self._twin.set(key), self._run)

    def register(self, key: Key) -> LWWRegister:
        """As ``ORMap.register``."""
        return LWWRegister(self._twin.register(key), self._run)

    def flag(self, key: Key) -> EnableWinsFlag:
        """As ``ORMap.flag``."""
        return EnableWinsFlag(self._twin.flag(key), self._run)

    def map(self, key: Key) -> ORMap:
        """As ``ORMap.map``."""
        return ORMap(self._twin.map(key), self._run)

    def text(self, key: Key) -> Text:
        """As ``ORMap.text``."""
        return Text(self._twin.text(key), self._run)

    remove = _blocking(crdt_maps.ORMap.remove)
    observe = _blocking(crdt_maps.ORMap.observe)
    contains = _blocking(crdt_maps.ORMap.contains)
    conflicts = _blocking(crdt_maps.ORMap.conflicts)
    keys = _iterating(crdt_maps.ORMap.keys)
    items = _iterating(crdt_maps.ORMap.items)

    def __iter__(self) -> Iterator[Any]:
        return self.keys()


#: By asynchronous class, its twin.
TWINS: Final[dict[type[asynchronous.Data[Any]], type[Data[Any]]]] = {
    asynchronous.GCounter: GCounter,
    asynchronous.PNCounter: PNCounter,
    asynchronous.BoundedCounter: BoundedCounter,
    asynchronous.LWWRegister: LWWRegister,
    asynchronous.MVRegister: MVRegister,
    asynchronous.EnableWinsFlag: EnableWinsFlag,
    asynchronous.DisableWinsFlag: DisableWinsFlag,
    asynchronous.GSet: GSet,
    asynchronous.ORSet: ORSet,
    asynchronous.TwoPSet: TwoPSet,
    crdt_maps.ORMap: ORMap,
    crdt_text.Text: Text,
}


class Converging:
    """Base of the synchronous ``Database`` and ``View``; what it makes is explained at the
    asynchronous ones."""

    def _run_converging(
        self, call: Callable[[crdt_maps.Converging], Coroutine[Any, Any, Any]]
    ) -> Any:  # noqa: ANN401  what *call* comes to, with the twin, on its loop
        raise NotImplementedError

    def _run_alone(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        return self._run_converging(lambda _twin: call())

    def crdt(self, name: str, kind: type[asynchronous.Data[Any]]) -> Any:  # noqa: ANN401
        """As ``Database.crdt``: *kind* is the asynchronous one, such as ``quorate.MVRegister``."""

        async def find(database: crdt_maps.Converging) -> asynchronous.Data[Any]:
            return database.crdt(name, kind)

        twin = self._run_converging(find)
        return TWINS[kind](twin, self._run_alone)

    def counter(self, name: str) -> PNCounter:
        """As ``Database.counter``."""
        found: PNCounter = self.crdt(name, asynchronous.PNCounter)
        return found

    def set(self, name: str) -> ORSet:
        """As ``Database.set``."""
        found: ORSet = self.crdt(name, asynchronous.ORSet)
        return found

    def register(self, name: str) -> LWWRegister:
        """As ``Database.register``."""
        found: LWWRegister = self.crdt(name, asynchronous.LWWRegister)
        return found

    def flag(self, name: str) -> EnableWinsFlag:
        """As ``Database.flag``."""
        found: EnableWinsFlag = self.crdt(name, asynchronous.EnableWinsFlag)
        return found

    def map(self, name: str) -> ORMap:
        """As ``Database.map``."""
        found: ORMap = self.crdt(name, crdt_maps.ORMap)
        return found

    def text(self, name: str) -> Text:
        """As ``Database.text``."""
        found: Text = self.crdt(name, crdt_text.Text)
        return found

    def remove_crdt(
        self,
        name: str,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """As ``Database.remove_crdt``."""
        self._run_converging(
            lambda twin: twin.remove_crdt(name, level=level, receipt=receipt, timeout=timeout)
        )

    def crdt_names(
        self, prefix: str = "", *, level: Level | None = None, timeout: float | None = None
    ) -> Iterator[CrdtName]:
        """As ``Database.crdt_names``."""

        async def begin(twin: crdt_maps.Converging) -> AsyncIterator[CrdtName]:
            return twin.crdt_names(prefix, level=level, timeout=timeout)

        names: AsyncIterator[CrdtName] = self._run_converging(begin)
        yield from over(self._run_alone, lambda: names)
