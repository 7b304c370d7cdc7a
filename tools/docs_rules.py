"""Rules about what is written for readers: links that lead somewhere, examples that run.

A fence marked ``python`` in README.md or docs/ is run by ``tests/test_docs.py``: the fences
of one file run in order, in one namespace, in an empty directory, with ``await`` allowed at the top
level. A fence that cannot run there (it needs a cluster, say) stands under an HTML comment
``<!-- not run: REASON -->``, which readers of the rendered page do not see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|!\[[^\]]*\]\(([^)\s]+)\)")
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*?) -->\s*$")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")


class Example(NamedTuple):
    """One fenced block. *line* is that of its first line of code; *not_run* the reason or ""."""

    path: str
    line: int
    code: str
    not_run: str


def documents(root: Path) -> list[Path]:
    """The pages: markdown at the root, in docs/ and beside the code that it explains."""
    folders = ("docs", "bench", "examples", "jepsen_like", "tests")
    nested = [path for folder in folders for path in sorted((root / folder).rglob("*.md"))]
    return sorted(root.glob("*.md")) + nested


def examples(path: str, text: str) -> Iterator[Example]:
    """The ``python`` fences of a page, in order."""
    reason, start, code = "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if start:
            if line.startswith("```"):
                yield Example(path, start, "\n".join(code) + "\n", reason)
                reason, start, code = "", 0, []
            else:
                code.append(line)
        elif line.rstrip() == "```python":
            start = number + 1
        elif match := _NOT_RUN.match(line):
            reason = match["reason"]
        elif line.strip():
            reason = ""


def broken_links(page: Path, root: Path) -> list[str]:
    """Relative links of *page* whose file, or whose heading in it, does not exist."""
    broken = []
    for line in _without_fences(page.read_text("utf-8")):
        for match in _LINK.finditer(line):
            target = unquote(match[1] or match[2])
            if re.match(r"[a-z][a-z0-9+.-]*:", target):  # another site: not ours to keep alive
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page.resolve()
            inside = file.is_relative_to(root.resolve())
            if not inside or not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(target)
    return broken


def anchors(page: Path) -> set[str]:
    """The fragments that a rendered page offers: one for each heading, as GitHub makes them."""
    if page.suffix != ".md":
        return set()
    found: set[str] = set()
    for line in _without_fences(page.read_text("utf-8")):
        if match := _HEADING.match(line):
            words = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
            found.add(words)
    return found


def _without_fences(text: str) -> Iterator[str]:
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield re.sub(r"`[^`]*`", "`code`", line) if not line.startswith("#") else line
