"""Text: updates of a shared document, each an element by itself; what they say is none of ours.

An update is bytes of the Yjs format, which whoever reads the text puts together: in any order, some
of them twice, the same document comes out. So updates are only ever added, and what keeps them few
is that an author puts one in place of many it has read, having merged them. Two may do so at the
same time: then both merged updates stand, and say some things twice, until the next one does it.

The name of an element is its level and its dot. A merged update is a level above all those that
it is in place of: who reads the elements in the order of their names, a page at a time, comes by
what a merged update says even when it takes the place of updates that were still to be read.
"""

from __future__ import annotations

from typing import Final

from quorate.base.crdt_operations import Clear, Edit, KindTag, Operation
from quorate.base.limits import CRDT_REPLACED_MAX, VALUE_BYTES_MAX
from quorate.crdt.dots import NUMBER_MAX, Dot, Leaf, Part, Path, dots_of
from quorate.crdt.kind import Kind, Moment, Parts, wrong_operation
from quorate.crdt.observing import cleared
from quorate.crdt.view import View
from quorate.errors import (
    CrdtFormatError,
    InvalidArgumentError,
    LimitExceededError,
    NotObservedError,
)

LEVEL_BYTES: Final = 4
NUMBER_BYTES: Final = 8
NAME_BYTES: Final = LEVEL_BYTES + 2 * NUMBER_BYTES  # level, actor, counter, big-endian


class Text(Kind):
    """Updates of a document, in no order that would matter."""

    tag = KindTag.TEXT
    name = "Text"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Edit):
            _check_edit(operation)
            parts = _replaced(view, prefix, operation.replaces)
            level = max((level_of(path[-1]) + 1 for path in parts), default=0)
            if level > NUMBER_MAX:
                raise LimitExceededError("the text was merged too often: copy it to another name")
            own = (*prefix, name_of(level, (at.actor, at.counter)))
            parts[own] = (((at.actor, at.counter, operation.update),), ())
            return parts
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def value(cls, view: View, prefix: Path) -> list[bytes]:
        """The updates, in the order of their bytes."""
        return sorted(update for _name, update in updates(view, prefix))

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        if len(own) != 1 or len(own[0]) != NAME_BYTES:
            raise CrdtFormatError(f"no update of a text stands at {own!r:.80}")
        for actor, counter, payload in leaf:
            if (actor, counter) != dot_of(own[0]):
                raise CrdtFormatError("an update of a text stands under the name of another")
            if not isinstance(payload, bytes) or not 0 < len(payload) <= VALUE_BYTES_MAX:
                raise CrdtFormatError("an update of a text is no bytes, or none that it can be")


def updates(view: View, prefix: Path) -> list[tuple[bytes, bytes]]:
    """The updates below *prefix*, each with the name that ``Edit.replaces`` takes."""
    return [(path[-1], update_of(leaf)) for path, leaf in view.scan(prefix)]


def update_of(leaf: Leaf) -> bytes:
    """The update that an element holds.

    Raises:
        CrdtFormatError: none, or several.
    """
    if len(leaf) != 1 or not isinstance(leaf[0][2], bytes):
        raise CrdtFormatError("an element of a text holds no update")
    return leaf[0][2]


def name_of(level: int, dot: Dot) -> bytes:
    """What the update of *dot* is called."""
    actor, counter = dot
    return (
        level.to_bytes(LEVEL_BYTES, "big")
        + actor.to_bytes(NUMBER_BYTES, "big")
        + counter.to_bytes(NUMBER_BYTES, "big")
    )


def level_of(name: bytes) -> int:
    """The level that is in the name of an update."""
    return int.from_bytes(name[:LEVEL_BYTES], "big")


def dot_of(name: bytes) -> Dot:
    """The dot that is in the name of an update."""
    actor = name[LEVEL_BYTES : LEVEL_BYTES + NUMBER_BYTES]
    return int.from_bytes(actor, "big"), int.from_bytes(name[-NUMBER_BYTES:], "big")


def _check_edit(edit: Edit) -> None:
    if not 0 < len(edit.update) <= VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"an update of a text has 1 to {VALUE_BYTES_MAX} bytes, this one {len(edit.update)}"
        )
    if len(edit.replaces) > CRDT_REPLACED_MAX:
        raise LimitExceededError(
            f"one update takes the place of up to {CRDT_REPLACED_MAX} others, not of "
            f"{len(edit.replaces)}"
        )
    for name in edit.replaces:
        if len(name) != NAME_BYTES:
            raise InvalidArgumentError(f"{name!r:.80} is the name of no update of a text")


def _replaced(view: View, prefix: Path, names: tuple[bytes, ...]) -> Parts:
    """What takes these updates away: all of them, for who merged them has read them all.

    Raises:
        NotObservedError: one is not here. If it is here no more, somebody has merged it already,
            or removed it: what was merged with it would come back.
    """
    parts: dict[Path, Part] = {}
    for name in names:
        leaf = view.leaf((*prefix, name))
        if not leaf:
            raise NotObservedError(
                "an update that was merged has not arrived here, or stands no more: read the "
                "text again"
            )
        parts[(*prefix, name)] = ((), dots_of(leaf))
    return parts
