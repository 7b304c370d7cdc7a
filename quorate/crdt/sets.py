"""Sets: GSet only grows, TwoPSet loses an element for good, ORSet lets adds win over removals.

An element is one leaf. Adding replaces the dots that were seen by one new dot; removing takes the
dots that were seen. A removal leaves nothing behind but its dots in the context, which are ranges
of numbers: no tombstones (Bieniusa et al., "An optimized conflict-free replicated set", 2012).
"""

from __future__ import annotations

from typing import Any, Final

from quorate.base.crdt_operations import Add, Clear, KindTag, Operation, Remove
from quorate.crdt.dots import Leaf, Path, dots_of
from quorate.crdt.kind import Kind, Moment, Parts, check_marks, wrong_operation
from quorate.crdt.observing import cleared, observed_removal
from quorate.crdt.values import decode_key, encode_key
from quorate.crdt.view import View
from quorate.errors import CrdtError, CrdtFormatError

MARK: Final = b""  # the payload where the dot says it all
LOST: Final = b"-"  # in a TwoPSet: removed, for good


class _Set(Kind):
    """What the sets share."""

    @classmethod
    def value(cls, view: View, prefix: Path) -> frozenset[Any]:
        depth = len(prefix)
        return frozenset(decode_key(path[depth]) for path, _leaf in view.scan(prefix))

    @classmethod
    def contains(cls, view: View, element: Any, prefix: Path = ()) -> bool:  # noqa: ANN401  a key
        """Whether *element* is in, without looking at the others.

        Raises:
            InvalidArgumentError: it can be no element.
        """
        return cls.counts(view.leaf((*prefix, encode_key(element))))

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        if len(own) != 1:
            raise CrdtFormatError(f"an element of {cls.name} has the path {own!r:.80}")
        decode_key(own[0])
        check_marks(cls, leaf)


class GSet(_Set):
    """Only grows, until it is cleared."""

    tag = KindTag.G_SET
    name = "GSet"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Add):
            return _added(view, (*prefix, encode_key(operation.element)), at)
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)


class ORSet(_Set):
    """Adds and removals; of a concurrent add and removal of one element, the add wins."""

    tag = KindTag.OR_SET
    name = "ORSet"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Add):
            return _added(view, (*prefix, encode_key(operation.element)), at)
        if isinstance(operation, Remove):
            path = (*prefix, encode_key(operation.element))
            if operation.observed is not None:
                return observed_removal(cls, view, prefix, operation.observed, within=path)
            leaf = view.leaf(path)
            return {path: ((), dots_of(leaf))} if leaf else {}
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)


class TwoPSet(_Set):
    """Adds and removals; what was removed once never comes back, whoever adds it."""

    tag = KindTag.TWO_P_SET
    name = "TwoPSet"

    @classmethod
    def mutate(cls, view: View, prefix: Path, operation: Operation, at: Moment) -> Parts:
        if isinstance(operation, Add):
            path = (*prefix, encode_key(operation.element))
            if _lost(view.leaf(path)):
                raise CrdtError(
                    f"{operation.element!r:.80} was removed from a two-phase set and does not come "
                    f"back: use an ORSet where things return"
                )
            return _added(view, path, at)
        if isinstance(operation, Remove):
            path = (*prefix, encode_key(operation.element))
            leaf = view.leaf(path)
            if not cls.counts(leaf):
                return {}
            return {path: (((at.actor, at.counter, LOST),), dots_of(leaf))}
        if isinstance(operation, Clear):
            return cleared(cls, view, prefix, operation.observed, at.actor)
        raise wrong_operation(cls, operation)

    @classmethod
    def value(cls, view: View, prefix: Path) -> frozenset[Any]:
        depth = len(prefix)
        return frozenset(
            decode_key(path[depth]) for path, leaf in view.scan(prefix) if cls.counts(leaf)
        )

    @classmethod
    def counts(cls, leaf: Leaf) -> bool:
        return bool(leaf) and not _lost(leaf)

    @classmethod
    def check(cls, own: Path, leaf: Leaf) -> None:
        marks = tuple(
            (actor, counter, MARK if payload == LOST else payload)
            for actor, counter, payload in leaf
        )
        super().check(own, marks)


def _added(view: View, path: Path, at: Moment) -> Parts:
    return {path: (((at.actor, at.counter, MARK),), dots_of(view.leaf(path)))}


def _lost(leaf: Leaf) -> bool:
    return any(payload == LOST for _actor, _counter, payload in leaf)
