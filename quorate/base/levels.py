"""The four levels of consistency, and how they travel: see ``docs/consistency.md``.

A level is chosen per call, and never lowered silently: what cannot be had at the level asked for is
an error that says so.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from quorate.errors import InvalidArgumentError

Level = Literal["strong", "quorum", "causal", "eventual"]
#: Those at which a write is acknowledged when its result is known.
CertainLevel = Literal["strong", "quorum", "causal"]

STRONG: Final = "strong"
QUORUM: Final = "quorum"
CAUSAL: Final = "causal"
EVENTUAL: Final = "eventual"
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

#: ``Submit.level``: answer when it is applied by the leader (the results of ``quorum`` and
#: ``causal``), by every voter, or when it is durable on the leader alone.
ANSWER_APPLIED: Final = 0
ANSWER_EVERYWHERE: Final = 1
ANSWER_DURABLE: Final = 2

#: What a level asks of a submission.
ANSWERS: Final[dict[Level, int]] = {
    STRONG: ANSWER_EVERYWHERE,
    QUORUM: ANSWER_APPLIED,
    CAUSAL: ANSWER_APPLIED,
    EVENTUAL: ANSWER_DURABLE,
}


class Accepted(msgspec.Struct, frozen=True):
    """What an ``eventual`` write comes to: the leader of *term* has it on its disk, as part of the
    entry at *index*. Whether that entry will be committed, and what the command will come to, was
    not known when this was said: a failover may lose it, and the machine may refuse it."""

    index: int
    term: int


def check_level(level: object) -> Level:
    """*level* if it is one.

    Raises:
        InvalidArgumentError: it is not.
    """
    for known in LEVELS:
        if level == known:
            return known
    raise InvalidArgumentError(f"a level is one of {', '.join(LEVELS)}, not {level!r}")
