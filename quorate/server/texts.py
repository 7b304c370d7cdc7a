"""Text as test data and cargo: the lines of files and folders, as keys that a store accepts."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from quorate.base.limits import KEY_BYTES_MAX, KIB
from quorate.errors import InvalidArgumentError

#: Packages of Python's library, about 55,000 lines; they ship with every Python.
DEFAULT_PACKAGES: Final = ("asyncio", "email", "http", "logging", "pydoc_data", "urllib")
_SNIFFED_BYTES: Final = 8 * KIB  # a file with a NUL among its first bytes is no text (as in git)
_CHUNK_BYTES: Final = 64 * KIB


class Line(NamedTuple):
    """One line that is not empty. *key*: its bytes without the line's end. *place*: "FILE:NUMBER".
    *end*: bytes of its file up to and with this line. *shortened*: it was longer than a key may
    be, so that *key* is its beginning, "#" and the SHA-256 of the whole."""

    key: bytes
    place: str
    end: int
    shortened: bool


def default_texts() -> list[Path]:
    """Files that ship with Python.

    Raises:
        InvalidArgumentError: this Python came without the sources of its library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found = [library / name for name in DEFAULT_PACKAGES if (library / name).is_dir()]
    files = [file for folder in found for file in text_files(folder) if file.suffix == ".py"]
    if not files:
        raise InvalidArgumentError(
            f"{library} holds no sources of Python's library; name a text with --input"
        )
    return files


def text_files(path: Path) -> list[Path]:
    """*path* itself, or the text files below it, sorted; hidden and binary ones are passed over.

    Raises:
        InvalidArgumentError: there is no such path, or nothing readable below it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidArgumentError(f"{path} is neither a file nor a directory")
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        for name in sorted(names):
            file = Path(folder, name)
            if name[0] != "." and file.is_file() and _is_text(file):
                found.append(file)
    if not found:
        raise InvalidArgumentError(f"{path} holds no text files")
    return found


def _is_text(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return b"\0" not in opened.read(_SNIFFED_BYTES)
    except OSError:
        return False


def read_lines(files: Sequence[Path]) -> Iterator[Line]:
    """The lines of *files*, in order; empty ones are passed over.

    Raises:
        OSError: a file cannot be read.
    """
    for file in files:
        with file.open("rb") as opened:
            yield from lines_of(opened, str(file))


def lines_of(opened: IO[bytes], name: str, key_bytes_max: int = KEY_BYTES_MAX) -> Iterator[Line]:
    """The lines of one stream; holds no more than a chunk of a long one."""
    number, end = 0, 0
    while piece := opened.readline(_CHUNK_BYTES):
        number += 1
        end += len(piece)
        if len(piece) < _CHUNK_BYTES or piece.endswith(b"\n"):
            key, digest = piece.rstrip(b"\r\n"), None
        else:
            key, digest = piece, hashlib.sha256(piece)
            while not piece.endswith(b"\n") and (piece := opened.readline(_CHUNK_BYTES)):
                end += len(piece)
                digest.update(piece.rstrip(b"\r\n") if piece.endswith(b"\n") else piece)
        shortened = digest is not None or len(key) > key_bytes_max
        if shortened:
            mark = b"#" + (digest or hashlib.sha256(key)).hexdigest().encode("ascii")
            key = key[: key_bytes_max - len(mark)] + mark
        if key:
            yield Line(key, f"{name}:{number}", end, shortened)
