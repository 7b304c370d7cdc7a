"""A text as it was read, and what is to become of it: plain Python, sent when all is done."""

from __future__ import annotations

from typing import NamedTuple

from quorate.base.limits import VALUE_BYTES_MAX
from quorate.errors import InvalidArgumentError, LimitExceededError


class Change(NamedTuple):
    """In place of *length* bytes at *at*, both counted in UTF-8, comes *text*."""

    at: int
    length: int
    text: str


class Draft:
    """Changes of one text, which leave together. Positions are characters, as in a ``str``, of
    the text as the changes before have made it: ``str(draft)``.

    ``draft[7:12] = "all"`` and ``del draft[:3]`` work as they do on a list; methods do not take
    positions that are not there.
    """

    __slots__ = ("_changes", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._changes: list[Change] = []

    @property
    def changes(self) -> tuple[Change, ...]:
        """What was done so far."""
        return tuple(self._changes)

    def insert(self, index: int, text: str) -> None:
        """Put *text* before the character at *index*, or at the end."""
        self.replace(index, 0, text)

    def append(self, text: str) -> None:
        """Put *text* at the end."""
        self.replace(len(self._text), 0, text)

    def delete(self, index: int, length: int) -> None:
        """Take *length* characters out, from *index* on."""
        self.replace(index, length, "")

    def replace(self, index: int, length: int, text: str) -> None:
        """Put *text* in place of *length* characters, from *index* on."""
        end = len(self._text)
        for number in (index, length):
            if type(number) is not int or number < 0:
                raise InvalidArgumentError(
                    f"positions and lengths are integers from 0, not {number!r}"
                )
        if index + length > end:
            raise InvalidArgumentError(
                f"there are {end} characters now, so none from {index} to {index + length}"
            )
        _check_text(text)
        if not length and not text:
            return
        before, gone = self._text[:index], self._text[index : index + length]
        self._changes.append(Change(_bytes_of(before), _bytes_of(gone), text))
        self._text = before + text + self._text[index + length :]

    def clear(self) -> None:
        """Take all of it out."""
        self.replace(0, len(self._text), "")

    def __setitem__(self, where: int | slice, text: str) -> None:
        start, stop = self._range(where)
        self.replace(start, stop - start, text)

    def __delitem__(self, where: int | slice) -> None:
        self[where] = ""

    def __getitem__(self, where: int | slice) -> str:
        return self._text[where]

    def __len__(self) -> int:
        return len(self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Draft({self._text!r})"

    def _range(self, where: int | slice) -> tuple[int, int]:
        end = len(self._text)
        if isinstance(where, slice):
            start, stop, step = where.indices(end)
            if step != 1:
                raise InvalidArgumentError("a slice of a text has no step")
            return start, max(start, stop)
        start = where + end if where < 0 else where
        return start, start + 1


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidArgumentError(f"a text is made of strings, not of {text!r:.80}")
    try:
        size_bytes = _bytes_of(text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{text!r:.80} cannot be encoded: {error}") from error
    if size_bytes > VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"a text takes up to {VALUE_BYTES_MAX} bytes, this piece of it {size_bytes}"
        )
