"""Declared tables on plain ones: typed keys, kept in order as bytes, and values without a struct.

A key becomes bytes that sort as the keys do. A ``str`` is its UTF-8 form, in order of code points;
an ``int`` eight bytes, big-endian, with the sign turned; ``bytes`` themselves. In a tuple, a text
ends with 00 01 and a zero byte within it is 00 FF, so that a shorter one sorts first and none runs
into the next item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from quorate.base.tables import TableSpec
from quorate.replication.tables import Table

_SIGN: Final = 1 << 63
_END: Final = b"\x00\x01"

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


def _int_key(key: int) -> bytes:
    if key.__class__ is not int:
        raise TypeError(f"a key is an int, not {key!r}")
    return (key + _SIGN).to_bytes(8, "big")


def _int_of(key: bytes) -> int:
    return int.from_bytes(key, "big") - _SIGN


def _bytes_key(key: bytes) -> bytes:
    if key.__class__ is not bytes:
        raise TypeError(f"a key is bytes, not {key!r}")
    return key


def _str_key(key: str) -> bytes:
    if key.__class__ is not str:
        raise TypeError(f"a key is a str, not {key!r}")
    return key.encode()


_ENCODE: Final[dict[type, Encode]] = {int: _int_key, bytes: _bytes_key, str: _str_key}
_DECODE: Final[dict[type, Decode]] = {int: _int_of, bytes: bytes, str: bytes.decode}


def encoder_of(key_types: tuple[type, ...], *, composite: bool) -> Encode:
    """From a key of these types to bytes that sort alike; raises TypeError for any other key."""
    if not composite:
        return _ENCODE[key_types[0]]
    parts = [(_ENCODE[each], each is not int) for each in key_types]

    def encode(key: Any) -> bytes:  # noqa: ANN401
        if key.__class__ is not tuple or len(key) != len(parts):
            raise TypeError(f"a key is a tuple of {len(parts)}, not {key!r}")
        return b"".join(
            [
                one(item).replace(b"\x00", b"\x00\xff") + _END if text else one(item)
                for (one, text), item in zip(parts, key, strict=True)
            ]
        )

    return encode


def decoder_of(key_types: tuple[type, ...], *, composite: bool) -> Decode:
    """The way back."""
    if not composite:
        return _DECODE[key_types[0]]

    def decode(key: bytes) -> Any:  # noqa: ANN401
        found = []
        at = 0
        for each in key_types:
            end = at + 8 if each is int else key.index(_END, at)
            part = key[at:end]
            at = end
            if each is not int:
                part = part.replace(b"\x00\xff", b"\x00")
                at += len(_END)
            found.append(_DECODE[each](part))
        return tuple(found)

    return decode


class KeyedTable:
    """A declared table without an order (``base.tables.Table``)."""

    __slots__ = ("_key", "_make", "_table", "_unkey")

    def __init__(self, table: Table[Any], spec: TableSpec) -> None:
        self._table = table
        self._make = spec.record_type if spec.cell else None
        self._key = encoder_of(spec.key_types, composite=spec.composite)
        self._unkey = decoder_of(spec.key_types, composite=spec.composite)

    def get(self, key: Any, default: Any = None, /) -> Any:  # noqa: ANN401
        """The record of *key*, or *default*."""
        found = self._table.get(self._key(key))
        if found is None:
            return default
        return found if self._make is None else found.value

    def __getitem__(self, key: Any, /) -> Any:  # noqa: ANN401
        found = self._table.get(self._key(key))
        if found is None:
            raise KeyError(key)
        return found if self._make is None else found.value

    def put(self, key: Any, record: Any, /) -> None:  # noqa: ANN401
        """Store a record, in the place of the one that was there."""
        self._table.put(self._key(key), record if self._make is None else self._make(record))

    def delete(self, key: Any, /) -> Any:  # noqa: ANN401
        """Remove a key; its record, or None if there was none."""
        found = self._table.delete(self._key(key))
        return found if found is None or self._make is None else found.value

    def __contains__(self, key: Any, /) -> bool:  # noqa: ANN401
        return self._key(key) in self._table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(
            f"table {self._table.name} has no order to be walked through: declare it as an "
            "OrderedTable, and use items() or keys()"
        )

    def __repr__(self) -> str:
        return repr(self._table)


class KeyedOrderedTable(KeyedTable):
    """A declared table with an order (``base.tables.OrderedTable``)."""

    __slots__ = ()

    def items(
        self,
        start: Any = None,  # noqa: ANN401
        end: Any = None,  # noqa: ANN401
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Keys and records with *start* <= key < *end*, at most *limit*, in order."""
        unkey, plain = self._unkey, self._make is None
        low, high = self._bounds(start, end)
        for key, found in self._table.range(low, high, reverse=reverse, limit=limit):
            yield unkey(key), found if plain else found.value

    def keys(
        self,
        start: Any = None,  # noqa: ANN401
        end: Any = None,  # noqa: ANN401
        *,
        reverse: bool = False,
    ) -> Iterator[Any]:
        """Keys of the same range."""
        low, high = self._bounds(start, end)
        return map(self._unkey, self._table.keys(low, high, reverse=reverse))

    def count(self, start: Any = None, end: Any = None) -> int:  # noqa: ANN401
        """How many keys there are in the range."""
        return self._table.count(*self._bounds(start, end))

    def first(self) -> tuple[Any, Any] | None:
        """The least key and its record, or None."""
        return next(self.items(limit=1), None)

    def last(self) -> tuple[Any, Any] | None:
        """The greatest key and its record, or None."""
        return next(self.items(reverse=True, limit=1), None)

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def _bounds(self, start: Any, end: Any) -> tuple[bytes, bytes | None]:  # noqa: ANN401
        return (
            b"" if start is None else self._key(start),
            None if end is None else self._key(end),
        )


def keyed(table: Table[Any], spec: TableSpec) -> KeyedTable:
    """*table* as *spec* declares it."""
    return KeyedOrderedTable(table, spec) if spec.ordered else KeyedTable(table, spec)
