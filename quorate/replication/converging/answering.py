"""Answers to questions about CRDT data: values by kind, large ones a page at a time.

All questions of a frame are answered from one state; pages of one value are of several.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from quorate.base.crdt_frames import Contains, Names, Observe, Question, Rights, Value
from quorate.base.crdt_operations import KindTag
from quorate.base.limits import (
    CRDT_NESTING_MAX,
    CRDT_PAGE_BYTES_MAX,
    CRDT_PAGE_ITEMS_MAX,
    CRDT_QUESTIONS_MAX,
    REPLY_BYTES_MAX,
)
from quorate.crdt.bounded import all_rights, rights
from quorate.crdt.codec import decode_leaf
from quorate.crdt.delta import path_key, path_of
from quorate.crdt.dots import Path, epoch_of, member_of
from quorate.crdt.folding import generation_of
from quorate.crdt.kind import Kind, kind_of
from quorate.crdt.kinds import GSet, MVRegister, ORMap, ORSet, Text, TwoPSet
from quorate.crdt.maps import place
from quorate.crdt.observing import observe
from quorate.crdt.text import update_of
from quorate.crdt.values import decode_key, encode_key
from quorate.errors import (
    BadCommandError,
    CrdtFormatError,
    LimitExceededError,
    MachineError,
    QuorateError,
    StorageError,
    TypeMismatchError,
)
from quorate.replication.converging.committing import encode_token
from quorate.replication.converging.view import Elements, key_after

_logger = logging.getLogger("quorate.crdt")

_SETS: Final = (GSet, TwoPSet, ORSet)
#: Kinds that may have much: in a page of a map only their keys stand.
_MANY: Final = (*_SETS, ORMap, MVRegister, Text)
_encode = msgspec.msgpack.Encoder().encode
#: In place of what would not fit beside the other answers: the client asks again with fewer.
_NO_ROOM: Final = _encode([LimitExceededError.code, "no room is left beside the other answers"])


class _Budget:
    """How much one answer may still hold."""

    def __init__(self) -> None:
        self.items = CRDT_PAGE_ITEMS_MAX
        self.bytes = CRDT_PAGE_BYTES_MAX

    def take(self, size: int) -> None:
        """Count one more item of *size* bytes off."""
        self.items -= 1
        self.bytes -= size

    @property
    def spent(self) -> bool:
        """Whether no more is to be added."""
        return self.items <= 0 or self.bytes <= 0


class Asked(msgspec.Struct, frozen=True):
    """What is asked. *actor*: the present life of this node, *lives*: of all members. *generation*:
    of folding, which tokens are bound to."""

    view: Elements
    actor: int
    lives: tuple[int, ...]
    generation: int


def answer_all(asked: Asked, questions: tuple[Question, ...]) -> bytes:
    """The results of a frame, encoded.

    Raises:
        LimitExceededError: too many questions.
        StorageError: the disk cannot be read.
    """
    if not 0 < len(questions) <= CRDT_QUESTIONS_MAX:
        raise LimitExceededError(f"{len(questions)} questions at once, 1 to {CRDT_QUESTIONS_MAX}")
    results: list[msgspec.Raw] = []
    size_bytes = 0
    for question in questions:
        encoded = _NO_ROOM if size_bytes > REPLY_BYTES_MAX else _result(asked, question)
        size_bytes += len(encoded)
        results.append(msgspec.Raw(encoded))
    return _encode(results)


def _result(asked: Asked, question: Question) -> bytes:
    try:
        return _encode([_answer(asked, question)])
    except StorageError:
        raise
    except QuorateError as error:
        return _encode([error.code, str(error)])
    except Exception as error:  # a question changes nothing, and the node goes on
        _logger.exception("a question about CRDT data failed: %.200r", question)
        failed = f"the question failed in this node: {error!r:.200}"
        return _encode([MachineError.code, failed])


def _answer(asked: Asked, question: Question) -> Any:  # noqa: ANN401  each has its own
    view = asked.view
    if isinstance(question, Names):
        return _names(view, question)
    if isinstance(question, Rights):
        prefix = _place(view, question.name, KindTag.BOUNDED_COUNTER, question.within)[1]
        shares = {**dict.fromkeys(asked.lives, 0), **all_rights(view, prefix)}
        listed = [[member_of(each), epoch_of(each), shares[each]] for each in sorted(shares)]
        return [rights(view, prefix, asked.actor) if asked.actor else 0, listed]
    kind, prefix = _place(view, question.name, question.kind, question.within)
    if isinstance(question, Contains):
        return _contains(view, kind, prefix, question.element)
    if isinstance(question, Observe):
        return encode_token(
            generation_of(asked.generation), observe(kind, view, prefix, key=question.element)
        )
    return _value(view, kind, prefix, question, _Budget())


def _place(
    view: Elements, name: str, kind_tag: int, within: tuple[tuple[Any, int], ...]
) -> tuple[type[Kind], Path]:
    """The kind that is asked about, and the prefix of its data.

    Raises:
        BadCommandError, TypeMismatchError: there can be no such place, or something else is there.
    """
    if len(within) >= CRDT_NESTING_MAX:
        raise BadCommandError(f"maps are nested no deeper than {CRDT_NESTING_MAX} levels")
    steps = ((name, kind_tag), *within)
    prefix: Path = ()
    kind: type[Kind] = ORMap
    for key, tag in steps:
        if kind is not ORMap:
            raise BadCommandError(f"there is nothing below the keys of a {kind.name}")
        try:
            kind = kind_of(tag)
        except CrdtFormatError as error:
            raise BadCommandError(str(error)) from error
        prefix = place(key, kind, prefix)
        _check_kind(view, prefix, key, kind)
    return kind, prefix


def _check_kind(view: Elements, prefix: Path, key: object, kind: type[Kind]) -> None:
    others = [kind_of(segment[0]) for segment in view.branches(prefix[:-1])]
    if others and kind not in others:
        present = [
            each for each in others if each.present(view, (*prefix[:-1], bytes((each.tag,))))
        ]
        if present:
            held = " and ".join(each.name for each in present)
            raise TypeMismatchError(f"{key!r:.80} holds {held}, not {kind.name}")


def _names(view: Elements, question: Names) -> list[Any]:
    budget = _Budget()
    found: list[Any] = []
    last = b""
    for segment in view.branches_after((), question.start):
        if budget.spent:
            return [found, last]
        name = decode_key(segment)
        if not isinstance(name, str) or not name.startswith(question.prefix):
            continue
        kinds = [
            each[0]
            for each in view.branches((segment,))
            if kind_of(each[0]).present(view, (segment, each))
        ]
        if kinds:
            found.append([name, kinds])
        last = segment
        budget.take(len(segment) + 8)
    return [found, b""]


def _contains(view: Elements, kind: type[Kind], prefix: Path, element: object) -> bool:
    if kind in _SETS:
        return kind.counts(view.leaf((*prefix, encode_key(element))))
    if kind is ORMap:
        below = (*prefix, encode_key(element))
        return any(kind_of(each[0]).present(view, (*below, each)) for each in view.branches(below))
    raise TypeMismatchError(f"{kind.name} has no elements")


def _value(view: Elements, kind: type[Kind], prefix: Path, question: Value, budget: _Budget) -> Any:  # noqa: ANN401  each kind has its own
    if kind in _SETS:
        return _set_page(view, kind, prefix, question.start, budget)
    if kind is ORMap:
        return _map_page(view, prefix, question.start, budget)
    if kind is Text:
        return _text_page(view, prefix, question.start, budget)
    value = kind.value(view, prefix)
    return [value, b""] if kind is MVRegister else value


def _set_page(
    view: Elements, kind: type[Kind], prefix: Path, start: bytes, budget: _Budget
) -> list[Any]:
    below = path_key(prefix)
    first = key_after(below + path_key((start,))) if start else below
    found: list[Any] = []
    segment = b""
    for key, encoded in view.range(first or below, key_after(below)) if first else ():
        if budget.spent:
            return [found, segment]
        segment = path_of(key)[-1]
        if kind is not TwoPSet or kind.counts(decode_leaf(encoded)):
            found.append(decode_key(segment))
        budget.take(len(segment) + 2)
    return [found, b""]


def _text_page(view: Elements, prefix: Path, start: bytes, budget: _Budget) -> list[Any]:
    below = path_key(prefix)
    found: list[Any] = []
    name = b""
    first = key_after(below + path_key((start,))) if start else below
    for key, encoded in view.range(first or below, key_after(below)) if first else ():
        if budget.spent:
            return [found, name]
        name, update = path_of(key)[-1], update_of(decode_leaf(encoded))
        found.append([name, update])
        budget.take(len(name) + len(update) + 8)
    return [found, b""]


def _map_page(view: Elements, prefix: Path, start: bytes, budget: _Budget) -> list[Any]:
    found: list[Any] = []
    last = b""
    for segment in view.branches_after(prefix, start):
        if budget.spent:
            return [found, last]
        for each in view.branches((*prefix, segment)):
            kind, below = kind_of(each[0]), (*prefix, segment, each)
            if kind.present(view, below):
                value = None if kind in _MANY else kind.value(view, below)
                found.append([decode_key(segment), each[0], value])
                budget.take(8 if value is None else len(_encode(value)))
        last = segment
        budget.take(len(segment) + 8)
    return [found, b""]
