"""``quorate kv load`` and ``kv dump``: many pairs in and out, with a progress bar on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from quorate.base.limits import KEY_BYTES_MAX, MIB, RANGE_LIMIT_MAX
from quorate.client.kv import after_prefix
from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import (
    Exit,
    Target,
    emit,
    json_bytes,
    opened,
    say,
    to_bytes,
)
from quorate.server.cli_txn import parse_pair
from quorate.server.pumping import pump
from quorate.server.texts import Line, lines_of, text_files

OUTSTANDING_DEFAULT = 1000
OUTSTANDING_LIMIT = 20_000  # under the client's own bound on waiting calls
REFRESH_S = 0.1
PAIR_BYTES_MAX = 8 * MIB  # of a line of JSON: a largest pair, all of it escaped
JSON_SUFFIXES = (".jsonl", ".ndjson")
FORMATS = ("auto", "json", "text")


class Loaded(NamedTuple):
    """What one input line asks for. *skipped*: it cannot be a key; the reason."""

    key: bytes
    value: bytes
    end: int
    skipped: str


class Counts:
    """How far a load has come."""

    def __init__(self) -> None:
        self.loaded = 0
        self.skipped = 0
        self.first_skipped = ""
        self.bytes_done = 0  # of finished files
        self.bytes_here = 0  # of the file that is read now


async def load(
    target: Target,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="'-' reads stdin.")],
    *,
    format_: Annotated[
        str, typer.Option("--format", help="auto, json (lines of pairs) or text (lines are keys).")
    ] = "auto",
    prefix: Annotated[str, typer.Option("--prefix", help="Put this before each key.")] = "",
    outstanding: Annotated[
        int,
        typer.Option("--outstanding", min=1, max=OUTSTANDING_LIMIT, help="Writes under way."),
    ] = OUTSTANDING_DEFAULT,
) -> Exit:
    """Write files and folders into the store.

    JSON lines (.jsonl, .ndjson) are pairs: {"key": "k", "value": "v"}, or key_base64 and
    value_base64. Of any other text each line that is not empty becomes a key, its value the place
    where it stands. Lines too long for a key are passed over and reported; the exit status is then
    1. Loading the same again changes nothing, so after an error just begin again.
    """
    if format_ not in FORMATS:
        raise InvalidArgumentError(f"--format is one of {', '.join(FORMATS)}, not {format_!r}")
    if len(to_bytes(prefix)) > KEY_BYTES_MAX // 2:
        raise InvalidArgumentError(f"--prefix leaves no room in a key of {KEY_BYTES_MAX} bytes")
    files = [file for path in paths for file in _files(path)]
    counts, began = Counts(), time.monotonic()
    items = _pairs(files, format_, to_bytes(prefix), counts)
    total = None if None in files else sum(file.stat().st_size for file in files if file)
    async with opened(target) as db:

        async def write(item: Loaded) -> None:
            await db.kv.put(item.key, item.value)
            counts.loaded += 1

        try:
            async with _progress(target, counts, total):
                await pump(items, write, outstanding=outstanding)
        except Exception:
            sys.stderr.write(f"quorate: {counts.loaded} were loaded before this:\n")
            raise
    return _report(target, counts, time.monotonic() - began)


def _report(target: Target, counts: Counts, seconds: float) -> Exit:
    rate = round(counts.loaded / max(seconds, 1e-9), 1)
    if target.json:
        emit(
            {
                "loaded": counts.loaded,
                "skipped": counts.skipped,
                "first_skipped": counts.first_skipped or None,
                "seconds": round(seconds, 3),
                "puts_per_s": rate,
            }
        )
    else:
        say(f"{counts.loaded} loaded in {seconds:.1f} s ({rate:,.0f} per second)")
    if counts.skipped:
        sys.stderr.write(
            f"quorate: {counts.skipped} lines were passed over, the first: {counts.first_skipped}\n"
        )
    return Exit.FAILED if counts.skipped else Exit.OK


def _files(path: str) -> list[Path | None]:
    return [None] if path == "-" else [*text_files(Path(path))]


def _pairs(
    files: list[Path | None], format_: str, prefix: bytes, counts: Counts
) -> Iterator[Loaded]:
    for file in files:
        as_json = format_ == "json"
        if format_ == "auto":
            as_json = file is not None and file.suffix.lower() in JSON_SUFFIXES
        convert = _from_json if as_json else _from_text
        with _open(file) as stream:
            name = "stdin" if file is None else str(file)
            for item in convert(stream, name, prefix):
                counts.bytes_here = item.end
                if item.skipped:
                    counts.skipped += 1
                    counts.first_skipped = counts.first_skipped or item.skipped
                else:
                    yield item
        counts.bytes_done += counts.bytes_here
        counts.bytes_here = 0


def _open(file: Path | None) -> contextlib.AbstractContextManager[IO[bytes]]:
    return contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb")


def _from_text(stream: IO[bytes], name: str, prefix: bytes) -> Iterator[Loaded]:
    for line in lines_of(stream, name, KEY_BYTES_MAX - len(prefix)):
        yield _text_pair(line, prefix)


def _text_pair(line: Line, prefix: bytes) -> Loaded:
    why = f"{line.place} is too long for a key" if line.shortened else ""
    place = line.place.encode("utf-8", "surrogateescape")
    return Loaded(prefix + line.key, place, line.end, why)


def _from_json(stream: IO[bytes], name: str, prefix: bytes) -> Iterator[Loaded]:
    end, number = 0, 0
    while line := stream.readline(PAIR_BYTES_MAX):
        number, end = number + 1, end + len(line)
        if len(line) == PAIR_BYTES_MAX and not line.endswith(b"\n"):
            raise InvalidArgumentError(f"{name}:{number} is longer than {PAIR_BYTES_MAX} bytes")
        if line.strip():
            key, value = parse_pair(line, f"{name}:{number}")
            yield Loaded(prefix + key, value, end, "")


@contextlib.asynccontextmanager
async def _progress(target: Target, counts: Counts, total: int | None) -> AsyncIterator[None]:
    """A bar on stderr, if a person looks at it."""
    console = Console(stderr=True)
    if target.json or not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("loading", total=total)

        def show() -> None:
            progress.update(
                bar,
                completed=counts.bytes_done + counts.bytes_here,
                description=f"{counts.loaded:,} keys",
                refresh=True,
            )

        ticking = asyncio.ensure_future(_repeat(show))
        try:
            yield
        finally:
            ticking.cancel()
            show()


async def _repeat(action: Callable[[], None]) -> None:
    while True:
        action()
        await asyncio.sleep(REFRESH_S)


async def dump(
    target: Target,
    *,
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that begin so.")] = "",
    output: Annotated[str, typer.Option("--output", help="A new file; '-': stdout.")] = "-",
) -> Exit:
    """Print every pair as a JSON line, as `kv load --format json` reads it.

    Pages of 10,000 keys are read from one state each; later pages may be newer than earlier ones.
    """
    first = to_bytes(prefix)
    last = after_prefix(first) if first else None
    count = 0
    async with opened(target) as db:
        with _create(output) as stream:
            more = True
            while more:
                page = await db.kv.range(first, last, limit=RANGE_LIMIT_MAX)
                stream.writelines(_dumped(item.key, item.value) for item in page.items)
                count += len(page.items)
                more = page.more and bool(page.items)
                if more:
                    first = page.items[-1].key + b"\0"
            stream.flush()
    if output != "-":
        emit({"dumped": count}) if target.json else say(f"{count} dumped to {output}")
    return Exit.OK


def _dumped(key: bytes, value: bytes) -> bytes:
    pair = {**json_bytes("key", key), **json_bytes("value", value)}
    return json.dumps(pair, ensure_ascii=False).encode() + b"\n"


def _create(output: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if output == "-":
        sys.stdout.flush()
        return contextlib.nullcontext(sys.stdout.buffer)
    return Path(output).open("xb")  # never over an older dump
