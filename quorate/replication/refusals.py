"""What a command that raised comes to: a ``Failure`` that is the same on every replica.

The text names machine, command type and exception type, never the exception's own words: those may
hold addresses or hash orders. Only a ``CommandError`` speaks for itself, because its machine wrote
it as an answer.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from quorate.base.results import Failure
from quorate.errors import CommandError, InvariantViolationError, MachineError

_logger = logging.getLogger(__name__)

FAILURE_MESSAGE_MAX: Final = 500  # characters of a refusal's text; the rest is cut
FAILURE_CODE_MAX: Final = 64  # characters of its code
#: Kinds of exceptions counted apart; a machine may make up ever new ones.
RAISED_KINDS_MAX: Final = 1000


def pass_through(error: Exception) -> None:
    """Let go of what is no function of the log: the node has to stop.

    Raises:
        MemoryError, InvariantViolationError: *error* itself, if it is one of these.
    """
    if isinstance(error, MemoryError | InvariantViolationError):
        raise error


class Refusals:
    """Makes failures of exceptions, and logs those that machines should not have raised."""

    def __init__(self) -> None:
        self._raised: dict[tuple[str, str, str], int] = {}

    def failure(self, machine: str, command: Any, error: Exception) -> Failure:  # noqa: ANN401
        """The deterministic result of a command, or query, that raised.

        Raises:
            MemoryError, InvariantViolationError: *error* itself, if it is one of these.
        """
        pass_through(error)
        if isinstance(error, CommandError):
            code = _text(error.code, FAILURE_CODE_MAX) or CommandError.code
            return Failure(code, _text(error, FAILURE_MESSAGE_MAX))
        what = type(command).__name__
        self.log(machine, what, error)
        said = f"machine {machine}: {what} raised {type(error).__name__}"
        return Failure(MachineError.code, _text(said, FAILURE_MESSAGE_MAX))

    def log(self, machine: str, what: str, error: Exception) -> None:
        """With the traceback, the 1st, 2nd, 4th, 8th ... time: a bad client must not fill disks."""
        key = (machine, what, type(error).__name__)
        if key not in self._raised and len(self._raised) >= RAISED_KINDS_MAX:
            self._raised.clear()
        count = self._raised[key] = self._raised.get(key, 0) + 1
        if count & (count - 1) == 0:
            _logger.error(
                "machine %s: %s raised (%d times so far); its changes were undone",
                machine,
                what,
                count,
                exc_info=error,
            )


def _text(said: object, length_max: int) -> str:
    """*said* as text, cut, and free of what UTF-8 cannot carry."""
    try:
        text = str(said)[:length_max]
        return text.encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # noqa: BLE001  the ``__str__`` is the machine's too
        pass_through(error)
        return f"{type(said).__name__}, whose text cannot be read"[:length_max]
