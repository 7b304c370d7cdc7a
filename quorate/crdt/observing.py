"""Removing what somebody saw, rather than whatever is there by now.

``observe`` gives a reader an opaque token of what it read. Handed in with a removal, on any
replica, it makes the removal undo just that: what was added meanwhile stays. The token is the
removal itself, encoded, so it also says how much of a counter had been counted.
"""

from __future__ import annotations

from typing import Any

from quorate.base.limits import BATCH_BYTES_MAX
from quorate.crdt.codec import decode_delta, encode_delta
from quorate.crdt.delta import Delta
from quorate.crdt.dots import NO_ACTOR, Path, dots_of
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
        NotObservedError: this replica has not seen all of it yet.
    """
    delta = decode_delta(token, bytes_max=BATCH_BYTES_MAX)
    if delta.tag != kind.tag or not delta.closed or delta.rest:
        raise CrdtFormatError(f"the token was not observed of {kind.name}")
    for path, (leaf, gone) in delta.elements.items():
        if kind.locate(path)[0].counts(leaf):
            raise CrdtFormatError("the token adds something: it was not observed")
        if not all(view.sees(actor, counter) for actor, counter in (*dots_of(leaf), *gone)):
            raise NotObservedError(
                "what is to be removed has not all arrived here yet: try again soon, or at the "
                "node where it was read"
            )
    return _below({(*prefix, *path): part for path, part in delta.elements.items()}, within)


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
