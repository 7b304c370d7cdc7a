"""Transactions and key-value pairs as JSON: what ``kv txn`` and ``kv load`` read.

Bytes that are no UTF-8 text stand in base64, under a name that ends in ``_base64``.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from quorate.base.kv_commands import (
    Compare,
    DeleteResult,
    GetResult,
    IncrementResult,
    KeyValue,
    KvResult,
    Operation,
    Operator,
    PutResult,
    RangeResult,
    Target,
    Txn,
    TxnResult,
)
from quorate.client import operations as ops
from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import json_bytes


class _Keyed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    key: str | None = None
    key_base64: str | None = None

    def key_bytes(self) -> bytes:
        return ops.as_key(_one_of("key", self.key, self.key_base64))


class Pair(_Keyed, kw_only=True, forbid_unknown_fields=True):
    """A line of ``kv load`` and ``kv dump``."""

    value: str | None = None
    value_base64: str | None = None

    def value_bytes(self) -> bytes:
        """The value, decoded."""
        return ops.as_value(_one_of("value", self.value, self.value_base64))


class _Put(Pair, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="put"):
    previous: bool = False

    def build(self) -> Operation:
        return ops.put(self.key_bytes(), self.value_bytes(), previous=self.previous)


class _Get(_Keyed, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="get"):
    def build(self) -> Operation:
        return ops.get(self.key_bytes())


class _Delete(_Keyed, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="delete"):
    previous: bool = False

    def build(self) -> Operation:
        return ops.delete(self.key_bytes(), previous=self.previous)


class _Increment(_Keyed, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="increment"):
    delta: int = 1

    def build(self) -> Operation:
        return ops.increment(self.key_bytes(), self.delta)


class _Range(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="range"):
    start: str | None = None
    end: str | None = None
    prefix: str | None = None
    limit: int = 0
    reverse: bool = False
    keys_only: bool = False

    def build(self) -> Operation:
        return ops.span(
            self.start,
            self.end,
            prefix=self.prefix,
            limit=self.limit,
            reverse=self.reverse,
            keys_only=self.keys_only,
        )


class _DeleteRange(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="delete-range"
):
    start: str | None = None
    end: str | None = None
    prefix: str | None = None
    limit: int = 0

    def build(self) -> Operation:
        return ops.delete_span(self.start, self.end, prefix=self.prefix, limit=self.limit)


class _Condition(_Keyed, kw_only=True, forbid_unknown_fields=True):
    target: Target
    operator: Operator = "="
    operand: int | str | None = None
    operand_base64: str | None = None

    def build(self) -> Compare:
        operand: bytes | int
        if isinstance(self.operand, int):
            operand = self.operand
        else:
            operand = _one_of("operand", self.operand, self.operand_base64)
        return Compare(self.key_bytes(), self.target, self.operator, operand)


_Operation = _Put | _Get | _Delete | _Increment | _Range | _DeleteRange


class _Transaction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    compare: list[_Condition] = []
    then: list[_Operation] = []
    otherwise: list[_Operation] = []


_decode_transaction = msgspec.json.Decoder(_Transaction).decode
_decode_pair = msgspec.json.Decoder(Pair).decode


def parse_transaction(text: bytes, where: str) -> Txn:
    """A transaction from its JSON; *where* it stands is named in errors.

    Raises:
        InvalidArgumentError: it is none; the text says which part is wrong.
    """
    try:
        given = _decode_transaction(text)
        return Txn(
            tuple(item.build() for item in given.compare),
            tuple(item.build() for item in given.then),
            tuple(item.build() for item in given.otherwise),
        )
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"{where} is no transaction: {error}") from None
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None


def parse_pair(text: bytes, where: str) -> tuple[bytes, bytes]:
    """Key and value from one line of JSON.

    Raises:
        InvalidArgumentError: it is none; the text says why.
    """
    try:
        given = _decode_pair(text)
        return given.key_bytes(), given.value_bytes()
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgumentError(
            f'{where} is no line such as {{"key": "k", "value": "v"}}: {error}'
        ) from None
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None


def _one_of(name: str, text: str | None, encoded: str | None) -> bytes:
    if (text is None) == (encoded is None):
        raise InvalidArgumentError(f"give {name} or {name}_base64, one of the two")
    if text is not None:
        return ops.as_bytes(text, name)
    try:
        return base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise InvalidArgumentError(f"{name}_base64 is not base64: {error}") from None


# --- out ------------------------------------------------------------------------------------------


def item_json(item: KeyValue) -> dict[str, object]:
    """A key as it stands."""
    return {
        **json_bytes("key", item.key),
        **json_bytes("value", item.value),
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
        "lease": item.lease,
    }


def result_json(result: KvResult) -> dict[str, object]:
    """Any result of the key-value store."""
    match result:
        case GetResult():
            found = None if result.item is None else item_json(result.item)
            return {"revision": result.revision, "item": found}
        case RangeResult():
            items = [item_json(item) for item in result.items]
            shown = {"items": items, "more": result.more, "count": result.count}
            return {"revision": result.revision, **shown}
        case PutResult():
            previous = None if result.previous is None else item_json(result.previous)
            return {"revision": result.revision, "previous": previous}
        case DeleteResult():
            previous_items = [item_json(item) for item in result.previous]
            shown = {"count": result.count, "previous": previous_items, "more": result.more}
            return {"revision": result.revision, **shown}
        case IncrementResult():
            return {"revision": result.revision, "value": result.value}
        case TxnResult():
            results = [result_json(each) for each in result.results]
            return {
                "revision": result.revision,
                "succeeded": result.succeeded,
                "results": results,
            }
        case _:
            return {"revision": getattr(result, "revision", 0)}
