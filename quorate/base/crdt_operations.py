"""Operations on CRDTs, and the numbers of their kinds, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final

import msgspec

AMOUNT_MAX: Final = 2**63 - 1

Amount = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]


class KindTag(IntEnum):
    """What stands in bytes for a kind of data; a number never changes its meaning."""

    G_COUNTER = 1
    PN_COUNTER = 2
    BOUNDED_COUNTER = 3
    LWW_REGISTER = 4
    MV_REGISTER = 5
    G_SET = 6
    TWO_P_SET = 7
    OR_SET = 8
    OR_MAP = 9
    ENABLE_WINS_FLAG = 10
    DISABLE_WINS_FLAG = 11
    TEXT = 12


class Increment(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """Counters: raise by *by*."""

    by: Amount = 1


class Decrement(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """PN-counters and bounded counters: lower by *by*."""

    by: Amount = 1


class Transfer(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """Bounded counters: give the right to lower by *amount* to life *epoch* of *member*."""

    member: int
    epoch: int
    amount: Amount


class Assign(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    """Registers: write *value*, over everything that this replica has seen."""

    value: Any


class Add(msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True):
    """Sets: put *element* in."""

    element: Any


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True):
    """Sets and maps: take *element*, or the key *element* with all below it, out.

    What goes is what was *observed* (from ``observe``, opaque) by whoever removes; None: whatever
    the replica holds that carries the removal out.
    """

    element: Any
    observed: bytes | None = None


class Enable(
    msgspec.Struct, frozen=True, array_like=True, tag=7, forbid_unknown_fields=True, gc=False
):
    """Flags: switch on."""


class Disable(
    msgspec.Struct, frozen=True, array_like=True, tag=8, forbid_unknown_fields=True, gc=False
):
    """Flags: switch off."""


class Clear(
    msgspec.Struct, frozen=True, array_like=True, tag=9, forbid_unknown_fields=True, gc=False
):
    """Everything: back to the beginning, as far as *observed*, or seen by the replica; bounded
    counters refuse it."""

    observed: bytes | None = None


class Update(msgspec.Struct, frozen=True, array_like=True, tag=10, forbid_unknown_fields=True):
    """Maps: *operation* on the data of kind *kind* under *key*, which begins with it."""

    key: Any
    kind: int
    operation: (
        Increment
        | Decrement
        | Transfer
        | Assign
        | Add
        | Remove
        | Enable
        | Disable
        | Clear
        | Update
        | Edit
    )


class Edit(msgspec.Struct, frozen=True, array_like=True, tag=11, forbid_unknown_fields=True):
    """Text: add *update*, bytes of the Yjs format; it takes the place of those that *replaces*
    names, which its author has read and merged into it, or of none."""

    update: bytes
    replaces: tuple[bytes, ...] = ()


Operation = (
    Increment
    | Decrement
    | Transfer
    | Assign
    | Add
    | Remove
    | Enable
    | Disable
    | Clear
    | Update
    | Edit
)
