"""What each kind means: a value from the operations that are visible, and which of them saw which.

Nothing of dots, leaves or joins is used here. An *event* is an operation that was carried out. It
touches *scopes* (an element of a set, a register, one actor's part of a counter, below the keys of
maps), and for each scope it *saw* certain events. What a replica knows is a set of events for each
scope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Edit,
    Enable,
    Increment,
    KindTag,
    Operation,
    Remove,
    Update,
)
from quorate.crdt.values import encode_value

Scope = tuple[Any, ...]
Known = dict[Scope, frozenset["Event"]]


@dataclass(frozen=True, eq=False)
class Event:
    """An operation, innermost, that *actor* carried out; *order*: its stamp, then the actor."""

    number: int
    actor: int
    operation: Any
    order: tuple[Any, ...]
    saw: dict[Scope, frozenset[Event]] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """An update in place of all that were there."""

    update: bytes


def innermost(operation: Operation) -> tuple[Operation, Scope]:
    """What is done, and below which keys."""
    prefix: Scope = ()
    while isinstance(operation, Update):
        prefix += (operation.key, KindTag(operation.kind))
        operation = operation.operation
    return operation, prefix


def touched(tag: KindTag, operation: Operation, actor: int, known: Known) -> list[Scope]:
    """The scopes that an operation concerns: of a removal, all known ones of what it removes."""
    inner, prefix = innermost(operation)
    kind = prefix[-1] if prefix else tag
    if isinstance(inner, Clear):
        return [scope for scope in known if scope[: len(prefix)] == prefix]
    if isinstance(inner, Remove) and kind is KindTag.OR_MAP:
        key = (*prefix, inner.element)
        return [scope for scope in known if scope[: len(key)] == key]
    if isinstance(inner, Add | Remove):
        return [(*prefix, inner.element)]
    if isinstance(inner, Increment | Decrement):
        return [(*prefix, actor)]
    if isinstance(inner, Edit):
        others = [scope for scope in known if scope[: len(prefix)] == prefix]
        own = (*prefix, f"{actor}/{len(known)}")
        return [own, *others] if inner.replaces else [own]
    return [(*prefix, "only")]


def effect(tag: KindTag, operation: Operation) -> Operation | Merged:
    """What an operation does in the scopes that it touches: removing a key clears what is there."""
    inner, prefix = innermost(operation)
    kind = prefix[-1] if prefix else tag
    if isinstance(inner, Edit) and inner.replaces:
        return Merged(inner.update)
    return Clear() if isinstance(inner, Remove) and kind is KindTag.OR_MAP else inner


def below(known: Known, prefix: Scope) -> Known:
    """What is known of the scopes below *prefix*."""
    return {scope: events for scope, events in known.items() if scope[: len(prefix)] == prefix}


def value(tag: KindTag, known: Known, prefix: Scope = ()) -> Any:
    """What those who know *known* must read below *prefix*."""
    here = below(known, prefix)
    if tag is not KindTag.OR_MAP:
        return VALUES[tag](here)
    found: dict[Any, Any] = {}
    for key in {scope[len(prefix)]: None for scope in here}:
        for kind in KindTag:
            if present(kind, here, (*prefix, key, kind)):
                found[key] = value(kind, here, (*prefix, key, kind))
                break
    return found


def present(tag: KindTag, known: Known, prefix: Scope) -> bool:
    """Whether a map that holds this has the key."""
    here = below(known, prefix)
    match tag:
        case KindTag.PN_COUNTER | KindTag.G_COUNTER:
            return any(_alive(*each, Increment | Decrement, Clear) for each in here.items())
        case KindTag.LWW_REGISTER:
            return any(_alive(*each, Assign, Assign | Clear) for each in here.items())
        case KindTag.DISABLE_WINS_FLAG:
            return value(tag, here, prefix) is False
        case KindTag.BOUNDED_COUNTER:
            return False  # has a machine of its own
        case _:
            return bool(value(tag, here, prefix))


def _alive(scope: Scope, events: frozenset[Event], made: Any, undoing: Any) -> list[Event]:
    """The events of the classes *made* that no event of the classes *undoing* saw."""
    undone: set[Event] = set()
    for event in events:
        if isinstance(event.operation, undoing):
            undone |= event.saw[scope]
    return [event for event in events if isinstance(event.operation, made) and event not in undone]


def _set(undoing: Any) -> Callable[[Known], frozenset[Any]]:
    return lambda here: frozenset(
        scope[-1] for scope, events in here.items() if _alive(scope, events, Add, undoing)
    )


def _two_phase(here: Known) -> frozenset[Any]:
    return frozenset(
        scope[-1]
        for scope, events in here.items()
        if _alive(scope, events, Add, Clear) and not _alive(scope, events, Remove, Clear)
    )


def _counter(here: Known) -> int:
    total = 0
    for scope, events in here.items():
        total += sum(event.operation.by for event in _alive(scope, events, Increment, Clear))
        total -= sum(event.operation.by for event in _alive(scope, events, Decrement, Clear))
    return total


def _writes(here: Known) -> list[Event]:
    """The writes that no other write, and no removal, saw."""
    return [write for each in here.items() for write in _alive(*each, Assign, Assign | Clear)]


def _lww(here: Known) -> Any:
    latest = max(_writes(here), key=lambda event: event.order, default=None)
    return None if latest is None else latest.operation.value


def _many(here: Known) -> list[Any]:
    values = {encode_value(event.operation.value): event.operation.value for event in _writes(here)}
    return [values[encoded] for encoded in sorted(values)]


def _text(here: Known) -> list[bytes]:
    undoing = Merged | Clear
    alive = {event for each in here.items() for event in _alive(*each, Edit | Merged, undoing)}
    return sorted(event.operation.update for event in alive)


def _flag(wins: Any, loses: Any) -> Callable[[Known], bool]:
    return lambda here: (
        any(_alive(*each, wins, loses | Clear) for each in here.items()) == (wins is Enable)
    )


VALUES: dict[KindTag, Callable[[Known], Any]] = {
    KindTag.G_COUNTER: _counter,
    KindTag.PN_COUNTER: _counter,
    KindTag.LWW_REGISTER: _lww,
    KindTag.MV_REGISTER: _many,
    KindTag.G_SET: _set(Clear),
    KindTag.OR_SET: _set(Clear | Remove),
    KindTag.TWO_P_SET: _two_phase,
    KindTag.ENABLE_WINS_FLAG: _flag(Enable, Disable),
    KindTag.DISABLE_WINS_FLAG: _flag(Disable, Enable),
    KindTag.TEXT: _text,
}
