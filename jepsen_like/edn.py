"""Histories in EDN, the form that Jepsen's own checkers read (Knossos, Elle).

One map for each event: ``{:index 0, :process 0, :type :invoke, :f :read, :value nil, :time 1}``.
The value of an operation on a key is the tuple ``[key value]``. Steps of transactions become
keywords (``[:append "x" 1]``), and so do the names in maps (``{:from 0, :to 1}``). The nemesis is
``:nemesis``. A ``fail`` gives the value that was asked for, as Jepsen does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from jepsen_like.errors import HistoryError, UsageError
from jepsen_like.history import Event

#: Values nest at most so deep.
NESTING_MAX: Final = 32

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)\Z")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_edn(value: Any, *, depth: int = 0) -> str:  # noqa: ANN401  any JSON value
    """A JSON value as EDN. Keys of maps become numbers or keywords where they look like such."""
    if depth > NESTING_MAX:
        raise HistoryError(f"a value nests deeper than {NESTING_MAX} levels")
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{' '.join(to_edn(each, depth=depth + 1) for each in value)}]"
    if isinstance(value, dict):
        items = [
            f"{_map_key(str(key))} {to_edn(each, depth=depth + 1)}" for key, each in value.items()
        ]
        return f"{{{', '.join(items)}}}"
    return _string(str(value))


def event_to_edn(event: Event, index: int, asked: Any = None) -> str:  # noqa: ANN401  any JSON value
    """One event; *asked*: the value of its invocation, which a ``fail`` gives, not its own."""
    said = asked if event.type == "fail" else event.value
    value = _transaction(said) if event.f == "txn" else to_edn(said)
    if event.key is not None:
        value = f"[{to_edn(event.key)} {value}]"
    fields = [
        f":index {index}",
        f":process {_process(event.process)}",
        f":type {_name(event.type)}",
        f":f {_name(event.f)}",
        f":value {value}",
        f":time {event.time_ns}",
    ]
    if event.node is not None:
        fields.append(f":node {event.node}")
    if event.error is not None:
        fields.append(f":error {_string(event.error)}")
    return f"{{{', '.join(fields)}}}"


def write_edn(path: str | Path, history: Iterable[Event]) -> None:
    """One event a line.

    Raises:
        HistoryError: a value cannot be written as EDN.
        UsageError: the file cannot be written.
    """
    asked: dict[int | str, Any] = {}
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            for index, event in enumerate(history):
                if event.type == "invoke":
                    asked[event.process] = event.value
                file.write(event_to_edn(event, index, asked.get(event.process)) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def _transaction(value: Any) -> str:  # noqa: ANN401  any JSON value
    if not isinstance(value, list | tuple):
        return to_edn(value)
    return f"[{' '.join(_step(each) for each in value)}]"


def _step(step: Any) -> str:  # noqa: ANN401  any JSON value
    if isinstance(step, list | tuple) and step and isinstance(step[0], str):
        return f"[{' '.join([_name(step[0]), *(to_edn(each, depth=1) for each in step[1:])])}]"
    return to_edn(step)


def _process(process: int | str) -> str:
    return str(process) if isinstance(process, int) else _name(process)


def _map_key(key: str) -> str:
    return key if _NUMBER.match(key) else _name(key)


def _name(name: str) -> str:
    """A keyword, or a string if it would be none."""
    return f":{name}" if _NAME.match(name) else _string(name)


def _string(text: str) -> str:
    return f'"{"".join(_ESCAPES.get(each, each) for each in text)}"'
