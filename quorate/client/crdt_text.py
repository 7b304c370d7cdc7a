"""Shared text: what several people write at the same time, character by character.

The nodes keep updates of the Yjs format and know nothing of text. It is put together here, by
``crdt_yjs``. The document has one text, whose name in it is "text".

A change is a read, the change on what was read, and one update that says what is new. Whatever
others do meanwhile, theirs and this one stay, each where its surroundings are. Every update is
made under a Yjs client id and numbers that nobody has used: an id is random, of 53 bits, and a
handle goes on under its id only while all that it did before is in what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final

from quorate.base.crdt_operations import Edit, KindTag
from quorate.base.levels import Level
from quorate.base.limits import MIB
from quorate.client.crdt import Data
from quorate.client.crdt_calls import CrdtScope, Place
from quorate.client.crdt_draft import Draft
from quorate.client.crdt_yjs import Author, Composed, compose, require, shown
from quorate.client.levels import Receipt
from quorate.errors import InvalidArgumentError, LimitExceededError, NotObservedError

#: Of all updates together: several nodes apart from each other may bring in as much as each lets
#: in, and may each have merged it.
READ_BYTES_MAX: Final = 64 * MIB


class Text(Data[str]):
    """A text that everybody may change everywhere at once. Positions are characters, as in a
    ``str``, of what the handle reads right before: to see the text and then change it, use
    ``edit``. Reading and changing take the whole text over the wire, up to 1 MiB.

    Keep the handle for a series of changes: they are stored as one author's, and take less room.
    All calls raise ``ConfigError`` without pycrdt; *timeout* is that of reading the text and of
    writing the change, each.
    """

    __slots__ = ("_author",)

    kind = KindTag.TEXT

    def __init__(self, place: Place, scope: CrdtScope) -> None:
        super().__init__(place, scope)
        self._author: Author | None = None

    async def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text."""
        return self._shown(await self._read(level, receipt, timeout))

    async def length(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many characters it has."""
        return len(await self.value(level=level, receipt=receipt, timeout=timeout))

    def edit(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Editing:
        """``async with text.edit() as draft``: the text is read at the beginning, and all that was
        done to *draft* is sent at the end, as one update; nothing if the block raises.

        Raises:
            LimitExceededError: the text would take more than 1 MiB.
        """
        return Editing(self, level, receipt, timeout)

    async def insert(
        self,
        index: int,
        text: str,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Put *text* before the character at *index*, or at the end.

        Raises:
            InvalidArgumentError: there is no such position.
            LimitExceededError: as for ``edit``.
        """
        async with self.edit(level=level, receipt=receipt, timeout=timeout) as draft:
            draft.insert(index, text)

    async def append(
        self,
        text: str,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Put *text* at the end."""
        async with self.edit(level=level, receipt=receipt, timeout=timeout) as draft:
            draft.append(text)

    async def delete(
        self,
        index: int,
        length: int,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take *length* characters out, from *index* on. What others insert among them meanwhile
        stays."""
        async with self.edit(level=level, receipt=receipt, timeout=timeout) as draft:
            draft.delete(index, length)

    async def replace(
        self,
        index: int,
        length: int,
        text: str,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Put *text* in place of *length* characters, from *index* on."""
        async with self.edit(level=level, receipt=receipt, timeout=timeout) as draft:
            draft.replace(index, length, text)

    async def clear(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take all characters out that are there. What others insert meanwhile stays."""
        async with self.edit(level=level, receipt=receipt, timeout=timeout) as draft:
            draft.clear()

    # --- reading and sending ------------------------------------------------------------------

    async def _read(
        self, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> dict[bytes, bytes]:
        """The updates by their names."""
        require()  # nothing is asked for that cannot be read
        found: dict[bytes, bytes] = {}
        size_bytes = 0
        async for page in self._pages(level, receipt, timeout):
            for name, update in page:
                found[name] = update
                size_bytes += len(update)
            if size_bytes > READ_BYTES_MAX:
                raise LimitExceededError(
                    f"the updates of the text {self._place!r} take more than {READ_BYTES_MAX} "
                    "bytes: remove it, and write it anew"
                )
        return found

    def _shown(self, read: Mapping[bytes, bytes]) -> str:
        return shown(read.values(), repr(self._place))

    async def _send(
        self,
        read: Mapping[bytes, bytes],
        draft: Draft,
        level: Level | None,
        receipt: Receipt | None,
        timeout: float | None,
    ) -> None:
        if not draft.changes:
            return
        made = compose(read, draft, self._author, repr(self._place))
        self._author = None  # it has gone on: another change that begins now is somebody else's
        if not (made.merged and await self._merging(made, level, receipt, timeout)):
            await self._write(Edit(made.update), level, receipt, timeout)
        self._author = made.author  # not if it is unknown whether it happened

    async def _merging(
        self, made: Composed, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> bool:
        """Send the change as the merged update; False: somebody has merged some of it meanwhile,
        and nothing was done."""
        try:
            await self._write(Edit(made.merged, made.names), level, receipt, timeout)
        except NotObservedError:
            return False
        return True


class Editing:
    """Made by ``Text.edit``; for one ``async with``."""

    __slots__ = ("_draft", "_level", "_read", "_receipt", "_text", "_timeout")

    def __init__(
        self, text: Text, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> None:
        self._text = text
        self._level = level
        self._receipt = receipt
        self._timeout = timeout
        self._read: dict[bytes, bytes] = {}
        self._draft: Draft | None = None

    async def __aenter__(self) -> Draft:
        if self._draft is not None:
            raise InvalidArgumentError("a change is begun once; make another one")
        self._read = await self._text._read(self._level, self._receipt, self._timeout)  # noqa: SLF001
        self._draft = draft = Draft(self._text._shown(self._read))  # noqa: SLF001
        return draft

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        draft = self._draft
        if error is None and draft is not None:
            await self._text._send(  # noqa: SLF001
                self._read, draft, self._level, self._receipt, self._timeout
            )
