"""Documents of the Yjs format, by pycrdt: a text from its updates, an update from its changes.

The only module that knows pycrdt, which is not installed with quorate itself. Everything here is
made from bytes and gone at the end of the call: documents belong to the thread that made them.

A document is put together from updates in any order; one that builds on another that is not here
waits in it unseen. A merged update must lose none of these, see ``_merge``. pycrdt 0.14 puts the
same document together in every order only if all updates are merged first, see ``_document``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

from quorate.base.invariants import must
from quorate.base.limits import CRDT_REPLACED_MAX, VALUE_BYTES_MAX
from quorate.client.crdt_draft import Draft
from quorate.errors import ConfigError, CrdtFormatError, LimitExceededError

if TYPE_CHECKING:
    import pycrdt

#: Of a document with all that Yjs keeps about it; beyond it, nothing is inserted any more. A merged
#: update holds a whole document, and is one value.
TEXT_BYTES_MAX: Final = VALUE_BYTES_MAX
#: So many updates are read before a change puts one in place of all of them.
MERGE_AFTER: Final = 64
CLIENT_ID_BITS: Final = 53  # what a number in JavaScript holds

ROOT: Final = "text"  #: the name of the text in its document


class Author(NamedTuple):
    """Under which client id updates are made, and how many numbers of it are used."""

    client: int
    clock: int


class Composed(NamedTuple):
    """A change as it is sent. *update*: what is new. *merged*: the same and all that those say
    whose *names* stand there, to take their place; b"" as long as there are few. *author*: who
    may make the next one."""

    update: bytes
    merged: bytes
    names: tuple[bytes, ...]
    author: Author


def require() -> ModuleType:
    """pycrdt; imported when it is first needed, for it is slow to import.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pycrdt  # noqa: PLC0415  optional, and see above
    except ModuleNotFoundError as missing:
        raise ConfigError(
            "shared text needs pycrdt; install it with: pip install 'quorate[text]'"
        ) from missing
    return pycrdt


def shown(updates: Iterable[bytes], what: str) -> str:
    """The text that *updates* amount to. *what*: names it in errors.

    Raises:
        CrdtFormatError: there is one that is none.
        ConfigError: pycrdt is not installed.
    """
    return str(_text(_document(updates, None, what)))


def compose(
    read: Mapping[bytes, bytes], draft: Draft, author: Author | None, what: str
) -> Composed:
    """What to send for the changes of *draft*, which are of the text that was *read*: updates by
    their names. *author*: who made the last change, if its handle knows that it stands.

    Raises:
        LimitExceededError: the text, or what is new of it, takes too much.
        CrdtFormatError, ConfigError: as ``shown``.
    """
    document = None
    if author is not None:
        document = _document(read.values(), author.client, what)
        if _clocks(document.get_state()).get(author.client, 0) != author.clock:
            document = None  # something it did is not here: its numbers must not come twice
    if document is None:
        client = 1 + secrets.randbelow(2**CLIENT_ID_BITS - 1)
        document = _document(read.values(), client, what)
    was = str(_text(document))
    update = _changed(document, draft)
    if len(update) > VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"one change of a text takes up to {VALUE_BYTES_MAX} bytes, this one {len(update)}: "
            "make it piece by piece"
        )
    size_bytes = sum(map(len, read.values())) + len(update)
    if size_bytes > TEXT_BYTES_MAX and len(draft) > len(was):
        size_bytes = len(document.get_update())
        if size_bytes > TEXT_BYTES_MAX:
            raise LimitExceededError(
                f"the text {what} would take {size_bytes} bytes, at most {TEXT_BYTES_MAX}: go on "
                "under another name"
            )
    clock = _clocks(document.get_state()).get(document.client_id, 0)
    merged: bytes = b""
    names: tuple[bytes, ...] = ()
    if len(read) >= MERGE_AFTER:
        merged, names = _merge(document, read, update)
    return Composed(update, merged, names, Author(document.client_id, clock))


# --- documents ------------------------------------------------------------------------------------


def _document(updates: Iterable[bytes], client: int | None, what: str) -> pycrdt.Doc[pycrdt.Text]:
    document: pycrdt.Doc[pycrdt.Text] = require().Doc(client_id=client)
    given = tuple(updates)
    try:
        if given:  # as one: those that wait for others come out wrong if these come after them
            document.apply_update(require().merge_updates(*given))
    except ValueError as error:
        raise CrdtFormatError(f"the text {what} holds an update that is none: {error}") from error
    return document


def _text(document: pycrdt.Doc[pycrdt.Text]) -> pycrdt.Text:
    return document.get(ROOT, type=require().Text)


def _changed(document: pycrdt.Doc[pycrdt.Text], draft: Draft) -> bytes:
    """Carry the changes of *draft* out; returns the update that says just that."""
    text = _text(document)
    told: list[bytes] = []
    subscription = document.observe(lambda event: told.append(event.update))
    try:
        with document.transaction():
            for at, length, inserted in draft.changes:  # in bytes, as in pycrdt
                if length:
                    del text[at : at + length]
                if inserted:
                    text.insert(at, inserted)
    finally:
        document.unobserve(subscription)
    must(str(text) == str(draft), "the document and the draft agree", sizes=(len(text), len(draft)))
    must(len(told) == 1, "one change, one update", count=len(told))
    return told[0]


# --- merging --------------------------------------------------------------------------------------


def _merge(
    document: pycrdt.Doc[pycrdt.Text], read: Mapping[bytes, bytes], update: bytes
) -> tuple[bytes, tuple[bytes, ...]]:
    """One update in place of many of those that were *read*, and of *update*.

    If everything that they say is in the document, that is what it holds now: what was deleted has
    no content there. Else updates wait for others that may yet come, and the document would forget
    them; then, and if it is too large, as many are put together as they are, small ones first.
    """
    merge_updates = require().merge_updates
    if _is_whole(document, merge_updates(*read.values(), update)):
        whole = document.get_update()
        if len(whole) <= VALUE_BYTES_MAX:
            return whole, tuple(read)[:CRDT_REPLACED_MAX]
    chosen: list[bytes] = []
    size_bytes = len(update)
    for name in sorted(read, key=lambda each: (len(read[each]), each)):
        size_bytes += len(read[name])
        if size_bytes > VALUE_BYTES_MAX or len(chosen) == CRDT_REPLACED_MAX:
            break
        chosen.append(name)
    if len(chosen) < MERGE_AFTER // 2:
        return b"", ()  # not worth it
    merged: bytes = merge_updates(*(read[name] for name in chosen), update)
    return (merged, tuple(sorted(chosen))) if len(merged) <= VALUE_BYTES_MAX else (b"", ())


def _is_whole(document: pycrdt.Doc[pycrdt.Text], everything: bytes) -> bool:
    """Whether nothing of the update *everything*, which was put into the document, waits there:
    nothing that was inserted is missing, and nothing is deleted that was not inserted."""
    state = document.get_state()
    clocks = _clocks(state)
    missing = _Numbers(require().get_update(everything, state))
    if missing.next():
        return False
    for _client in range(missing.next()):
        client = missing.next()
        for _run in range(missing.next()):
            first = missing.next()
            if first + missing.next() > clocks.get(client, 0):
                return False
    return True


def _clocks(state: bytes) -> dict[int, int]:
    """By client id, how many of its numbers are in a document: pairs behind their count."""
    numbers = _Numbers(state)
    return {numbers.next(): numbers.next() for _client in range(numbers.next())}


class _Numbers:
    """Reads what Yjs writes: seven bits a byte, the low ones first, the eighth if more follow."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._at = 0

    def next(self) -> int:
        """The next one."""
        number = shift = 0
        while True:
            byte = self._encoded[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
