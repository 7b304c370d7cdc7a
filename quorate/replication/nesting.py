"""How deeply a command is nested: a bound of ours, far below anything an interpreter has.

Decoders recurse, even over fields that they skip, and give up at a depth that depends on how deep
the caller's own stack is and on the version of Python. A command near that depth would decode on
the leader and not on a follower, and the two would differ from then on. So the gateway refuses,
before anything enters the log, what no decoder could have trouble with.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from msgspec import inspect

from quorate.base.limits import COMMAND_DEPTH_MAX, COMMAND_PARTS_MAX
from quorate.errors import LimitExceededError

#: By first byte: bytes of a value of fixed size, all told; 0 for the others.
_FIXED: Final = [1] * 256
#: By first byte: bytes of the length of a string, binary or extension, which follows.
_LENGTH: Final = [0] * 256
#: By first byte: what is in an array (or in a map, twice as much); -1 if it is none, and
#: _COUNTED + bytes of the count, which follows.
_INSIDE: Final = [-1] * 256
_COUNTED: Final = 1000

for _byte in range(0x80, 0x90):
    _FIXED[_byte], _INSIDE[_byte] = 0, 2 * (_byte & 0x0F)
for _byte in range(0x90, 0xA0):
    _FIXED[_byte], _INSIDE[_byte] = 0, _byte & 0x0F
for _byte in range(0xA0, 0xC0):
    _FIXED[_byte] = 1 + (_byte & 0x1F)
for _byte, _size in (
    *((0xCC, 2), (0xCD, 3), (0xCE, 5), (0xCF, 9), (0xD0, 2), (0xD1, 3), (0xD2, 5), (0xD3, 9)),
    *((0xCA, 5), (0xCB, 9), (0xD4, 3), (0xD5, 4), (0xD6, 6), (0xD7, 10), (0xD8, 18)),
):
    _FIXED[_byte] = _size
for _byte, _size in (
    *((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)),
    *((0xC7, 1), (0xC8, 2), (0xC9, 4)),
):
    _FIXED[_byte], _LENGTH[_byte] = 0, _size
for _byte, _size in ((0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4)):
    _FIXED[_byte], _INSIDE[_byte] = 0, _COUNTED + _size

#: Types of values that have no values inside them.
_PLAIN: Final = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.EnumType,
    inspect.LiteralType,
)

_split: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


@functools.lru_cache(maxsize=256)  # a look takes 0.7 ms, and every node of a process asks again
def is_bounded(command_type: Any) -> bool:  # noqa: ANN401
    """Whether the type itself bounds the nesting of what decodes as it, so that nobody need look:
    it contains neither itself nor anything at all, and refuses fields that it does not know."""
    return _is_bounded(inspect.type_info(command_type), ())


def _is_bounded(found: inspect.Type, around: tuple[object, ...]) -> bool:
    if isinstance(found, _PLAIN):
        return True
    if isinstance(found, inspect.Metadata):
        return _is_bounded(found.type, around)
    if isinstance(found, inspect.UnionType):
        return all(_is_bounded(each, around) for each in found.types)
    if isinstance(found, inspect.VarTupleType | inspect.ListType):
        return _is_bounded(found.item_type, around)
    if isinstance(found, inspect.TupleType):
        return all(_is_bounded(each, around) for each in found.item_types)
    if isinstance(found, inspect.StructType):
        if found.cls in around or not found.forbid_unknown_fields:
            return False
        inner = (*around, found.cls)
        return all(_is_bounded(field.type, inner) for field in found.fields)
    return False


def check_nesting(items: msgspec.Raw) -> None:
    """Check every item of an array that a decoder has accepted already.

    Depth n takes n bytes, so that short items need no look. Those cost 70 ns each, and a longer
    one 0.3 us for every value in it.

    Raises:
        LimitExceededError: an item is nested deeper than ``COMMAND_DEPTH_MAX``, or all together
            have more than ``COMMAND_PARTS_MAX`` values inside them.
    """
    if len(items) <= COMMAND_DEPTH_MAX:
        return
    left = COMMAND_PARTS_MAX
    try:
        split = _split(items)
    except RecursionError as error:  # its stack is a call deeper than that of the first decoder
        raise LimitExceededError(
            f"a command is nested more than {COMMAND_DEPTH_MAX} levels deep"
        ) from error
    for at, item in enumerate(split):
        if len(item) > COMMAND_DEPTH_MAX:
            left = _walk(bytes(item), at, left)


def _walk(data: bytes, at: int, left: int) -> int:
    """Walk over one item; how many values may still come."""
    before: list[int] = []  # values still to come in the arrays and maps around this one
    here = 1
    place = 0
    while True:
        while here == 0:
            if not before:
                return left
            here = before.pop()
        here -= 1
        left -= 1
        if left < 0:
            raise LimitExceededError(
                f"the commands of a batch have more than {COMMAND_PARTS_MAX} values inside them; "
                "send fewer at once, or pack many numbers into one bytes field"
            )
        first = data[place]
        size = _FIXED[first]
        if size:
            place += size
            continue
        place += 1
        inside = _INSIDE[first]
        if inside < 0:
            behind = place + _LENGTH[first]
            place, length = behind, int.from_bytes(data[place:behind], "big")
            place += length + (0xC7 <= first <= 0xC9)  # an extension's type is not in its length
            continue
        if inside >= _COUNTED:
            behind = place + inside - _COUNTED
            inside = int.from_bytes(data[place:behind], "big") * (2 if first >= 0xDE else 1)
            place = behind
        before.append(here)
        here = inside
        if len(before) > COMMAND_DEPTH_MAX:
            raise LimitExceededError(
                f"command {at} is nested more than {COMMAND_DEPTH_MAX} levels deep"
            )
