"""What a state is made of: every command executed on it, named by one short string in the state.

The string is a chained hash, so it travels with snapshots and dumps as part of the state, and
costs them nothing; the commands behind it stay with the onlooker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

#: Of the state before any command.
NOTHING: Final = ""


class Lineages:
    """All states that there ever were in a run."""

    def __init__(self) -> None:
        self._links: dict[str, tuple[str, int, bytes]] = {}
        #: Of the states that members are in now, mostly; rebuilt if it is another.
        self._latest: dict[str, tuple[str, dict[int, bytes]]] = {}

    def after(self, head: str, index: int, content: bytes) -> str:
        """The name of the state after one more command."""
        text = f"{head} {index} ".encode() + content
        name = hashlib.blake2b(text, digest_size=12).hexdigest()
        self._links[name] = (head, index, content)
        return name

    def commands(self, member: str, head: str) -> Mapping[int, bytes]:
        """Index and content of every command in the state *head*, in which *member* is now."""
        known, found = self._latest.get(member, (NOTHING, {}))
        if known != head:
            link = self._links.get(head)
            if link is not None and known == link[0]:
                found[link[1]] = link[2]
            else:
                found = {}
                at = head
                while at != NOTHING:
                    at, index, content = self._links[at]
                    found.setdefault(index, content)
            self._latest[member] = (head, found)
        return found
