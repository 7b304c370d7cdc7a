"""What all commands of the command line share: where the cluster is, output, errors, exit codes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar

import typer

from quorate.client.database import Database, connect
from quorate.client.endpoints import Endpoint, parse_endpoints
from quorate.errors import (
    ConfigError,
    InvalidArgumentError,
    QuorateError,
    StorageError,
    UnconfirmedError,
)
from quorate.server.config import LISTEN_DEFAULT

T = TypeVar("T")


class Exit(IntEnum):
    """Exit statuses; docs/operating.md explains them to operators."""

    OK = 0
    FAILED = 1  #: the cluster refused or could not be reached; nothing happened
    USAGE = 2  #: wrong arguments or configuration; nothing was tried
    UNKNOWN = 3  #: no answer came: the change may have happened, or may yet
    NO = 4  #: it worked, and the answer is no: no such key, the comparison failed
    STORAGE = 5  #: the node's disk or data is damaged; starting again will not help
    LOST = 6  #: what the command ran under, a lock or leadership, was lost
    INTERNAL = 70  #: a bug in quorate; what was under way may have happened
    INTERRUPTED = 130


def exit_status(error: QuorateError) -> Exit:
    """The status that tells a script what *error* means."""
    if isinstance(error, InvalidArgumentError | ConfigError):
        return Exit.USAGE
    if isinstance(error, StorageError) and not error.definite:
        return Exit.STORAGE  # a disk that is only full, or a directory in use, may be free again
    return Exit.FAILED if error.definite else Exit.UNKNOWN


def report_error(error: QuorateError, *, as_json: bool) -> Exit:
    """Say on stderr, in one line, what went wrong; returns the exit status."""
    text = " ".join(str(error).split())
    if as_json:
        shown = {"error": {"code": error.code, "message": text, "definite": error.definite}}
        sys.stderr.write(json.dumps(shown) + "\n")
    else:
        told = isinstance(error, UnconfirmedError)  # it has happened, and the text says so
        open_end = exit_status(error) is Exit.UNKNOWN and not told
        unknown = " (it may have happened, or may yet)" if open_end else ""
        sys.stderr.write(f"quorate: {text or error.code}{unknown}\n")
    return exit_status(error)


# --- running --------------------------------------------------------------------------------------


def run(main: Coroutine[Any, Any, T], *, fast: bool = True) -> T:
    """``asyncio.run``; if *fast*, on uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if fast and importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def set_up_logging(level: str) -> None:
    """Log lines of the process go to stderr.

    Raises:
        ConfigError: there is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"--log-level {level!r} is none of debug, info, warning, error")
    logging.basicConfig(
        level=number, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )


# --- the cluster to talk to -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The cluster that a command talks to, and how."""

    endpoints: str
    timeout: float
    tls_cert: str
    tls_key: str
    tls_ca: str
    json: bool

    def places(self) -> tuple[Endpoint, ...]:
        """The endpoints, parsed.

        Raises:
            InvalidArgumentError: one of them is none.
        """
        return parse_endpoints(self.endpoints)

    def ssl_context(self) -> ssl.SSLContext | None:
        """For TLS, None without.

        Raises:
            ConfigError: only some of the files are given, or one is wrong.
        """
        given = (self.tls_cert, self.tls_key, self.tls_ca)
        if not any(given):
            return None
        if not all(given):
            raise ConfigError("--tls-cert, --tls-key and --tls-ca are needed together")
        tls = importlib.import_module("quorate.server.tls")
        context: ssl.SSLContext = tls.client_context(*given)
        return context


EndpointsOption = Annotated[
    str,
    typer.Option(
        "--endpoints", "-e", envvar="QUORATE_ENDPOINTS", help="Nodes, as HOST:PORT,HOST:PORT."
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", envvar="QUORATE_TIMEOUT", help="Seconds for each call.")
]
CertOption = Annotated[
    str, typer.Option("--tls-cert", envvar="QUORATE_TLS_CERT", help="Certificate (PEM).")
]
KeyOption = Annotated[
    str, typer.Option("--tls-key", envvar="QUORATE_TLS_KEY", help="Its key (PEM).")
]
AuthorityOption = Annotated[
    str, typer.Option("--tls-ca", envvar="QUORATE_TLS_CA", help="The cluster's authority (PEM).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_TARGET: Final[Mapping[str, tuple[Any, Any]]] = {
    "endpoints": (EndpointsOption, LISTEN_DEFAULT),
    "timeout": (TimeoutOption, 10.0),
    "tls_cert": (CertOption, ""),
    "tls_key": (KeyOption, ""),
    "tls_ca": (AuthorityOption, ""),
    "json": (JsonOption, False),
}


def client_command(
    function: Callable[..., Coroutine[Any, Any, int | None]],
) -> Callable[..., int]:
    """A command out of ``async def function(target: Target, ...)``: the options that make up a
    ``Target`` are added to those of *function*, and it is run to its end."""

    def command(**given: Any) -> int:  # noqa: ANN401  # whatever the command's options are
        # What matters to the caller is raised; the libraries' own remarks are for those who ask.
        set_up_logging(os.environ.get("QUORATE_LOG_LEVEL", "critical"))
        target = Target(**{name: given.pop(name) for name in _TARGET})
        # A TLS connection takes leave in the background, and uvloop's ``close`` may fail with
        # EBUSY while one does (0.23): then a command that worked would end with an error.
        return run(function(target, **given), fast=not target.tls_ca) or Exit.OK

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in _TARGET.items()
    ]
    keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
    functools.update_wrapper(command, function)
    del command.__wrapped__  # type: ignore[attr-defined]  # or its signature would be looked at
    command.__signature__ = inspect.Signature([*keyword, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in [*keyword, *added]}
    return command


@contextlib.asynccontextmanager
async def opened(target: Target, *, follow_leader: bool = True) -> AsyncIterator[Database]:
    """A handle of the cluster, closed at the end.

    Raises:
        UnavailableError: no node answers, within the time that *target* allows.
    """
    handle = connect(
        target.endpoints,
        tls=target.ssl_context(),
        timeout=target.timeout,
        follow_leader=follow_leader,
    )
    async with handle as db:
        yield db


# --- output ---------------------------------------------------------------------------------------


def emit(value: object) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """One line for a person on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_bytes(content: bytes, end: bytes = b"\n") -> None:
    """Stored bytes as they are on stdout, and *end* behind them."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content + end)
    sys.stdout.buffer.flush()


def to_bytes(argument: str) -> bytes:
    """An argument of the command line as the bytes that were typed, UTF-8 or not."""
    return os.fsencode(argument)


def json_bytes(name: str, content: bytes) -> dict[str, str]:
    """*content* under *name* if it is text, or else in base64 under ``name_base64``."""
    try:
        return {name: content.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode("ascii")}


def shown(content: bytes) -> str:
    """*content* on a terminal: escapes instead of control characters and bad UTF-8."""
    text = content.decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
