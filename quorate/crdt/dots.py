"""Dots name mutations; leaves hold the dots that are alive in one element, each with its payload.

A *dot* is (actor, counter): the counter-th mutation of an actor. An *actor* is one life of one
member, (member, epoch): whoever may have forgotten mutations of its own (a wiped disk, an old
backup) comes back under a new epoch, so that no dot is ever given to two mutations.

Every mutation takes one dot, and a dot is alive in at most one leaf, ever. With the context of the
replica around it, a leaf of empty payloads is the ``DotSet`` and any other leaf the ``DotFun`` of
Almeida, Shoker and Baquero, "Delta state replicated data types" (2018); the paths to the leaves
are its ``DotMap``. ``join_leaves`` is their join, the only one there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NewType

from quorate.errors import InvalidArgumentError

Actor = NewType("Actor", int)
"""One life of one member: ``member << 32 | epoch``, so that numbers sort as the pairs do."""

Payload = bytes | tuple[int, ...]
"""What a dot carries. Of one dot, bytes never change, and numbers only grow, each by itself."""

Dot = tuple[int, int]
Dots = tuple[Dot, ...]
Entry = tuple[int, int, Payload]  # actor, counter, payload
Leaf = tuple[Entry, ...]  # in the order of the dots, each dot once; () when nothing is alive
Path = tuple[bytes, ...]  # from the root of the replica's data to a leaf; at least one segment
Part = tuple[Leaf, Dots]  # of one element: what is alive, and what is known to be alive no more

NUMBER_MAX: Final = 2**32 - 1  # of a member, of an epoch
COUNTER_MAX: Final = 2**63 - 1
NO_ACTOR: Final = Actor(0)  # nobody: of removals that whoever may carry out, of common cells


def make_actor(member: int, epoch: int) -> Actor:
    """The actor of *member* (from 1) in its life *epoch* (from 1, one more each time).

    Raises:
        InvalidArgumentError: a number is out of range.
    """
    if not (1 <= member <= NUMBER_MAX and 1 <= epoch <= NUMBER_MAX):
        raise InvalidArgumentError(
            f"an actor is a member and an epoch from 1 to {NUMBER_MAX}, not {member}, {epoch}"
        )
    return Actor(member << 32 | epoch)


def member_of(actor: int) -> int:
    """The member whose life *actor* is."""
    return actor >> 32


def epoch_of(actor: int) -> int:
    """Which life of its member *actor* is, from 1."""
    return actor & NUMBER_MAX


def dots_of(leaf: Leaf) -> Dots:
    """The dots that are alive in *leaf*."""
    if not leaf:  # most adds replace nothing
        return ()
    return tuple([(actor, counter) for actor, counter, _payload in leaf])


def join_payloads(mine: Payload, theirs: Payload) -> Payload:
    """The least payload that is as great as both. Kinds only ever meet equal bytes, or tuples of
    one length; the rest makes it a join for whatever a peer may send."""
    if mine == theirs:
        return mine
    if isinstance(mine, bytes) or isinstance(theirs, bytes):
        if isinstance(mine, bytes) and isinstance(theirs, bytes):
            return max(mine, theirs)
        return mine if isinstance(mine, bytes) else theirs
    if len(mine) < len(theirs):
        mine, theirs = theirs, mine
    padded = theirs + (0,) * (len(mine) - len(theirs))
    return tuple(max(one, other) for one, other in zip(mine, padded, strict=True))


def join_leaves(
    mine: Leaf,
    theirs: Leaf,
    mine_sees: Callable[[int, int], bool],
    theirs_sees: Callable[[int, int], bool],
) -> Leaf:
    """Alive is what both hold, and what one holds and the other has not seen.

    A dot that one side has seen and does not hold was removed or replaced there; a dot that it
    has not seen is news to it.
    """
    news = {(actor, counter): payload for actor, counter, payload in theirs}
    joined: list[Entry] = []
    for entry in mine:
        actor, counter, payload = entry
        other = news.pop((actor, counter), None)
        if other is not None:
            joined.append((actor, counter, join_payloads(payload, other)))
        elif not theirs_sees(actor, counter):
            joined.append(entry)
    for (actor, counter), payload in news.items():
        if not mine_sees(actor, counter):
            joined.append((actor, counter, payload))
    joined.sort()
    return tuple(joined)
