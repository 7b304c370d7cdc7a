"""Removing what somebody saw, rather than whatever is there by now.

``observe`` gives a reader an opaque token of what it read. Handed in with a removal, on any
replica, it makes the removal undo just that: what was added meanwhile stays. The token is the
removal itself, encoded, so it also says how much of a counter had been counted.
"""

from __future__ import annotations

from typing import Any

from quorate.base.limits import BATCH_BYTES_MAX
from quorate.crdt.cells import COMMON, owner_of
from quorate.crdt.codec import decode_delta, encode_delta
from quorate.crdt.delta import EMPTY_PART, NOTHING_ELSE, Delta, join_element
from quorate.crdt.dots import NO_ACTOR, Leaf, Part, Path, dots_of
from quorate.crdt.kind import Kind, Parts
from quorate.crdt.values import encode_key
from quorate.crdt.view import View
from quorate.errors import CrdtFormatError, LimitExceededError, NotObservedError


def observe(kind: type[Kind], view: View, prefix: Path = (), *, key: Any = None) -> bytes:  # noqa: ANN401  a key
    """A token of everything below *prefix*, where data of *kind* is; with *key*, of that element
    or key alone.

    Raises:
        CrdtError: the data cannot be removed.
        LimitExceededError: it holds too much for a token: remove it key by key.
    """
    parts = kind.removal(view, prefix, NO_ACTOR)
    if key is not None:
        parts = _below(parts, (*prefix, encode_key(key)))
    own = {path[len(prefix) :]: part for path, part in parts.items()}
    token = encode_delta(Delta(kind.tag, own))
    if len(token) > BATCH_BYTES_MAX:
        raise LimitExceededError(
            f"what was observed takes {len(token)} bytes, at most {BATCH_BYTES_MAX}: observe and "
            f"remove single elements"
        )
    return token


def observed_removal(
    kind: type[Kind], view: View, prefix: Path, token: bytes, *, within: Path
) -> Parts:
    """What undoes what *token* observed, as far as it lies below *within*.

    Raises:
        CrdtFormatError: it is no token of such data.
        NotObservedError: this replica has not seen all of it yet, or what was seen of a counter
            has become part of something larger since.
    """
    delta = decode_delta(token, bytes_max=BATCH_BYTES_MAX)
    if delta.tag != kind.tag or not delta.closed or delta.rest:
        raise CrdtFormatError(f"the token was not observed of {kind.name}")
    for path, (leaf, gone) in delta.elements.items():
        if kind.locate(path)[0].counts(leaf):
            raise CrdtFormatError("the token adds something: it was not observed")
        here = dots_of(view.leaf((*prefix, *path)))
        if not all(dot in here or view.sees(*dot) for dot in (*dots_of(leaf), *gone)):
            raise NotObservedError(
                "what is to be removed has not all arrived here yet: try again soon, or at the "
                "node where it was read"
            )
    parts = {(*prefix, *path): part for path, part in delta.elements.items()}
    return _below(_of_the_dead_all(kind, view, prefix, parts), within)


def _of_the_dead_all(kind: type[Kind], view: View, prefix: Path, parts: Parts) -> Parts:
    """*parts* so that of what actors that are no more left of a counter, they take all or nothing:
    it may have been summed up, or may be soon.

    Raises:
        NotObservedError: they take something else.
    """
    exact = dict(parts)
    for path in parts:
        owner, depth = kind.locate(path[len(prefix) :])
        if not owner.cells or not _is_dead(view, path) or path not in exact:
            continue
        counter = path[: len(prefix) + depth]
        exact = {
            place: part
            for place, part in exact.items()
            if place[: len(counter)] != counter or not _is_dead(view, place)
        }
        for place, leaf in view.scan(counter):
            if _is_dead(view, place):
                _must_take(owner, leaf, parts.get(place, EMPTY_PART))
                exact[place] = ((), dots_of(leaf))
    return exact


def _is_dead(view: View, path: Path) -> bool:
    return path[-1] == COMMON or view.finished(owner_of(path[-1]))


def _must_take(owner: type[Kind], leaf: Leaf, part: Part) -> None:
    left = join_element(leaf, part, NOTHING_ELSE, lambda _actor, _counter: True)
    if owner.counts_when_dead(left):
        raise NotObservedError(
            "since this was observed, more was counted in earlier lives of members, or it was all "
            "put together: observe it again"
        )


def cleared(kind: type[Kind], view: View, prefix: Path, token: bytes | None, actor: int) -> Parts:
    """What a ``Clear`` by *actor* makes of everything below *prefix*.

    Raises:
        CrdtError: the data cannot be removed, or as ``observed_removal``.
    """
    if token is None:
        return kind.removal(view, prefix, actor)
    return observed_removal(kind, view, prefix, token, within=prefix)


def _below(parts: Parts, prefix: Path) -> Parts:
    return {path: part for path, part in parts.items() if path[: len(prefix)] == prefix}
