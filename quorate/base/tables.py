"""The tables that a machine declares: what they look like to its methods.

    items: quorate.Table[str, Item]
    by_age: quorate.OrderedTable[tuple[int, str], Item]
    total: int = quorate.value(0)

Keys are ``str``, ``bytes``, 64-bit ``int`` or a tuple of such; records are frozen structs, or any
type that msgspec can encode. The tables themselves are made where nodes run
(``replication.keyed``); a client only reads past the declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, Self, TypeVar, overload

import msgspec

from quorate.errors import ConfigError

K = TypeVar("K")
V = TypeVar("V")


class Table(Protocol[K, V]):  # type: ignore[misc]  # K is invariant where OrderedTable gives it
    """Records by key. Without an order, so that nothing can depend on one."""

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    def get(self, key: K, default: V | None = None, /) -> V | None:
        """The record of *key*, or *default*."""
        ...

    def __getitem__(self, key: K, /) -> V:
        """Raises KeyError."""
        ...

    def put(self, key: K, record: V, /) -> None:
        """Store a record, in the place of the one that was there."""
        ...

    def delete(self, key: K, /) -> V | None:
        """Remove a key; its record, or None if there was none."""
        ...

    def __contains__(self, key: K, /) -> bool: ...
    def __len__(self) -> int: ...


class OrderedTable(Table[K, V], Protocol[K, V]):
    """Records by key, and in the order of the keys: ``str`` by code point, tuples item by item.
    Nothing may be changed while one of the iterators runs."""

    def items(
        self,
        start: K | None = None,
        end: K | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[K, V]]:
        """Keys and records with *start* <= key < *end*, at most *limit*."""
        ...

    def keys(
        self, start: K | None = None, end: K | None = None, *, reverse: bool = False
    ) -> Iterator[K]:
        """Keys of the same range."""
        ...

    def count(self, start: K | None = None, end: K | None = None) -> int:
        """How many keys there are in the range: at most 0.1 ms for a million."""
        ...

    def first(self) -> tuple[K, V] | None:
        """The least key and its record, or None."""
        ...

    def last(self) -> tuple[K, V] | None:
        """The greatest key and its record, or None."""
        ...


class TableSpec(msgspec.Struct, frozen=True):
    """A declared table. *attribute*: of the machine, and the table's name behind the machine's.
    *key_types*: one, or several for tuples. *record_type*: a frozen struct; *cell*: it is one of
    ours around a value of the declared type. *lone*: the table of a single ``value``."""

    attribute: str
    key_types: tuple[type, ...]
    record_type: type[msgspec.Struct]
    composite: bool = False
    cell: bool = False
    ordered: bool = False
    packed: bool = False
    lone: bool = False


class TableOptions(msgspec.Struct, frozen=True):
    """What ``table`` was told."""

    packed: bool


def table(*, packed: bool = False) -> Any:  # noqa: ANN401  stands where a table will
    """Options of a declared table, as its value in the class: ``items: Table[str, Item] =
    table(packed=True)``.

    *packed*: keep records encoded, for large tables of small records: less memory, and 0.25 us
    for each read.
    """
    return TableOptions(packed)


#: The key of a lone record.
LONE_KEY = b""


class Value(Generic[V]):
    """A single replicated value that reads and writes like an attribute. Made by ``value``."""

    __slots__ = ("default", "name")

    def __init__(self, default: V) -> None:
        self.default = default
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, machine: None, owner: type) -> Self: ...
    @overload
    def __get__(self, machine: object, owner: type) -> V: ...
    def __get__(self, machine: object | None, owner: type) -> Self | V:
        if machine is None:
            return self
        table = self._table(machine)
        record = table.get(LONE_KEY)
        found: V = self.default if record is None else record.value
        return found

    def __set__(self, machine: object, value: V) -> None:
        table = self._table(machine)
        table.put(LONE_KEY, table.record_type(value))

    def _table(self, machine: object) -> Any:  # noqa: ANN401  the replication side's
        try:
            return machine.__dict__[cell_name(self.name)]
        except KeyError:
            raise ConfigError(
                f"{type(machine).__name__}.{self.name} is replicated state: it can be used in the "
                "machine's methods once a node runs it, not before (not in __init__)"
            ) from None


def value(default: V) -> Any:  # noqa: ANN401  stands where a value of the declared type will
    """A single replicated value of a machine: ``total: int = quorate.value(0)``. It is *default*
    until a command sets it. To change what is in a container, set a new one."""
    return Value(default)


def cell_name(attribute: str) -> str:
    """Where in a machine's ``__dict__`` the table of a ``value`` is."""
    return f"_{attribute}_cell"
