"""How workloads write values into the store: decimal text, lists with spaces between."""

from __future__ import annotations

from jepsen_like.systems.base import OutcomeError, Versioned


def text_of(number: int) -> bytes:
    """A number as it is stored."""
    return str(number).encode()


def number_of(found: Versioned, default: int | None = None) -> int | None:
    """What is stored as a number; *default* if nothing is.

    Raises:
        OutcomeError: something else is stored there. Nobody wrote that, and the text says so.
    """
    if found.value is None:
        return default
    return _number(found.value)


def list_of(found: Versioned) -> list[int]:
    """What is stored as a list of numbers. Raises as ``number_of``."""
    return [_number(each) for each in (found.value or b"").split()]


def text_of_list(numbers: list[int]) -> bytes:
    """A list of numbers as it is stored."""
    return b" ".join(text_of(number) for number in numbers)


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OutcomeError(
            f"the store holds {text[:40]!r}, which no client wrote", definite=True
        ) from error


def without_effect(error: OutcomeError) -> OutcomeError:
    """The error of a call that only read: whatever it was, nothing happened."""
    return error if error.definite else OutcomeError(str(error), definite=True)
