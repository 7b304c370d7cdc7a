"""What a checker is, and how several of them judge one history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from jepsen_like.errors import HistoryError
from jepsen_like.history import Event
from jepsen_like.verdict import PROBLEMS_MAX, Validity, Verdict, merge

#: Values in histories nest at most so deep: no workload needs more, and freezing them recurses.
NESTING_MAX: Final = 32

#: A value in a sentence is cut after so many characters.
SHOWN_CHARACTERS_MAX: Final = 120


class Checker(Protocol):
    """Judges whole histories. It has no memory: the same history gets the same verdict."""

    name: str

    def check(self, history: Sequence[Event]) -> Verdict:
        """Raises ``HistoryError`` if the history is none of this checker's kind."""
        ...


class Together:
    """Several checkers as one: invalid if any says so. The way to add one's own to a workload."""

    def __init__(self, name: str, checkers: Iterable[Checker]) -> None:
        self.name = name
        self._checkers = tuple(checkers)

    def check(self, history: Sequence[Event]) -> Verdict:
        """All of them, on the same history."""
        return merge(self.name, [checker.check(history) for checker in self._checkers])


class Findings:
    """Collects problems for a verdict: all are counted, the first ``PROBLEMS_MAX`` are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """One thing that is wrong, as a sentence with its evidence."""
        self.count += 1
        if len(self._texts) < PROBLEMS_MAX:
            self._texts.append(text)

    def verdict(self, checker: str, *, proves: bool = True, **facts: Any) -> Verdict:  # noqa: ANN401  facts are of any type
        """Invalid if anything was found; else valid, or unknown if the history *proves* nothing."""
        valid: Validity = False if self.count else (True if proves else "unknown")
        return Verdict(
            checker=checker,
            valid=valid,
            problems=tuple(self._texts),
            facts={**facts, "problems": self.count},
        )


@contextmanager
def readable(checker: str) -> Iterator[None]:
    """Values of a history are read here, as they come: what cannot be is a ``HistoryError``."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise HistoryError(
            f"a value is not as histories of {checker!r} have it: {type(error).__name__}: {error}"
        ) from error


def freeze(value: Any, *, depth: int = 0) -> Any:  # noqa: ANN401  any JSON value, made hashable
    """A hashable equal of a JSON value; unlike Python's own, it tells True from 1."""
    if value is None or type(value) in {int, str, float}:
        return value
    if depth >= NESTING_MAX:
        raise HistoryError(f"a value nests deeper than {NESTING_MAX} levels")
    if isinstance(value, bool):
        return ("true",) if value else ("false",)
    if isinstance(value, list | tuple):
        return ("list", *(freeze(each, depth=depth + 1) for each in value))
    if isinstance(value, dict):
        items = sorted((str(key), freeze(each, depth=depth + 1)) for key, each in value.items())
        return ("map", *items)
    return value


def show(value: Any) -> str:  # noqa: ANN401  any JSON value
    """A value in a sentence: as in Python, but cut to a length that people read."""
    text = "nil" if value is None else repr(value)
    if len(text) <= SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[: SHOWN_CHARACTERS_MAX - 1]}…"


def whole_number(value: Any, what: str) -> int:  # noqa: ANN401  checked here
    """*value*, which must be a whole number; *what* names it in the error."""
    if type(value) is not int:
        raise HistoryError(f"{what} is {show(value)}, not a whole number")
    return value
