"""One known bug."""

from __future__ import annotations

from contextlib import AbstractContextManager

import msgspec

from jepsen_like.mutants.patching import Rewrite, rewritten
from jepsen_like.mutants.profiles import SWARM, Profile


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """*bug*: in a sentence. *source*: where it was made before, or the rule that it breaks.
    *rewrites*: what makes it, all at once. *budget*: seeds, from 1 on, within which a run in
    *profile* must end in a violation."""

    name: str
    bug: str
    source: str
    rewrites: tuple[Rewrite, ...]
    profile: Profile = SWARM
    budget: int = 20

    def applied(self) -> AbstractContextManager[None]:
        """The product with this bug in it, in this process, until the block ends."""
        return rewritten(self.rewrites)


def one(target: str, old: str, new: str) -> tuple[Rewrite, ...]:
    """The usual: one text of one function."""
    return (Rewrite(target, old, new),)
