"""What happened, as clients saw it: a list of events, and its forms on disk.

Every operation is an ``invoke`` followed by at most one completion of the same process: ``ok`` (it
happened), ``fail`` (it surely did not), or ``info`` (nobody knows; it may still happen at any
later time, and the process does nothing more under its number). Events of the fault injector have
process "nemesis" and type ``info``. Times are nanoseconds since the run began, on one clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from jepsen_like.errors import HistoryError

NEMESIS: Final = "nemesis"

EventType = Literal["invoke", "ok", "fail", "info"]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a history. *key* None: the operation concerns no single key. *node*: the one
    that the client talked to, as far as it knows; *error*: why it failed or is unknown."""

    process: int | str
    type: EventType
    f: str
    key: Any = None
    value: Any = None
    time_ns: int
    node: int | None = None
    error: str | None = None


class Operation(NamedTuple):
    """An invocation with what came of it. *completed* None: the history ends before, which means
    the same as ``info``. The positions are places in the history, and order the two events."""

    invoked: Event
    completed: Event | None
    invoked_at: int
    completed_at: int

    @property
    def outcome(self) -> EventType:
        """Of the completion; "info" without one."""
        return "info" if self.completed is None else self.completed.type


def operations(history: Iterable[Event]) -> list[Operation]:
    """Pair invocations with completions, in the order of invocation; the nemesis is left out.

    Raises:
        HistoryError: a completion without an invocation, two at once of one process, or an
            operation of a process after one whose outcome is unknown.
    """
    found: list[Operation] = []
    open_at: dict[int | str, int] = {}
    ended: set[int | str] = set()
    count = 0
    for at, event in enumerate(history):
        count = at + 1
        if event.process == NEMESIS:
            continue
        if event.type == "invoke":
            if event.process in open_at or event.process in ended:
                raise HistoryError(
                    f"event {at}: process {event.process} invokes {event.f!r} while its last "
                    "operation is open or unknown; give the operation a process of its own"
                )
            open_at[event.process] = len(found)
            found.append(Operation(event, None, at, -1))
            continue
        place = open_at.pop(event.process, None)
        if place is None:
            raise HistoryError(
                f"event {at}: process {event.process} completes {event.f!r}, which it never invoked"
            )
        found[place] = found[place]._replace(completed=event, completed_at=at)
        if event.type == "info":
            ended.add(event.process)
    return [each if each.completed_at >= 0 else each._replace(completed_at=count) for each in found]


def faults(history: Iterable[Event]) -> list[Event]:
    """What the nemesis did."""
    return [event for event in history if event.process == NEMESIS]


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One line of JSON, without the newline."""
    return _encoder.encode(event)


def write_history(path: str | Path, history: Iterable[Event]) -> None:
    """As JSON lines."""
    with Path(path).open("wb") as file:
        file.writelines(_encoder.encode(event) + b"\n" for event in history)


def read_history(path: str | Path) -> Iterator[Event]:
    """From JSON lines.

    Raises:
        HistoryError: the file cannot be read, or a line is not an event; the text names the line.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _decoder.decode(line)
                except (ValueError, RecursionError) as error:
                    raise HistoryError(f"{path}:{number}: not an event: {error}") from error
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or error}") from error
