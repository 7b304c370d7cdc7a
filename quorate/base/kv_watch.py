"""What watchers of the key-value store ask for, and what they are told.

These are wire formats, with the rules of ``kv_commands``. What a watcher is told comes by whole
revisions: a ``KeyEvents`` holds everything that one revision did to the keys asked for, so nobody
sees half a transaction.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from quorate.base.kv_commands import INTEGER_MAX, Bound, KeyValue, check_range
from quorate.errors import InvalidArgumentError

EventType = Literal["put", "delete"]


class WatchKeys(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Watch keys named as in ``Range``; one key is the range from it to the same key with
    a byte of zero behind it.

    *start_revision*: tell all from this revision on, and nothing before it; 0: from now on. One
    that is no longer kept comes to ``KeysCompacted``; for one that is yet to come the watch waits.
    *previous*: events show what was there before. *puts*, *deletes*: which events.
    *progress*: say from time to time how far the watch has come, if there are no events to say it.
    """

    start: Bound
    end: Bound | None = None
    prefix: bool = False
    start_revision: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)] = 0
    previous: bool = False
    puts: bool = True
    deletes: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        check_range(self.end, prefix=self.prefix)
        if not (self.puts or self.deletes):
            raise InvalidArgumentError("a watch is for puts, for deletes, or for both")


class KeyEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one key. Of a deletion, *value* is empty and *create_revision*, *version* and
    *lease* are 0. *mod_revision*: the revision that did it. *previous*: what was there before, if
    it was asked for, and there was something; *previous_omitted*: there was, but one revision
    replaced more than is kept."""

    type: EventType
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0
    previous: KeyValue | None = None
    previous_omitted: bool = False


class KeyEvents(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """All that *revision* did to the keys watched, in the order of its operations. With no events:
    the watch has come to *revision*, and all before it has been told."""

    revision: int
    events: tuple[KeyEvent, ...] = ()


class KeysCompacted(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """What was asked for is no longer kept; the watch ends with code "compacted". *oldest*: the
    first revision that can still be watched from."""

    oldest: int


KeyTold = KeyEvents | KeysCompacted
