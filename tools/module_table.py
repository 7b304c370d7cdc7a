"""The table of modules in docs/architecture.md: one sentence each, from their own docstrings.

``python -m tools.module_table`` rewrites it; ``tests/test_docs_tables.py`` fails when it is stale.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- modules: `python -m tools.module_table` writes from here -->"
END = "<!-- to here -->"
ROOMS = (
    "base",
    "consensus",
    "crdt",
    "storage",
    "replication",
    "locks",
    "tasks",
    "client",
    "server",
)


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, as one line of markdown.

    Raises:
        ValueError: it has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not text:
        raise ValueError(f"{path} has no docstring")
    line = " ".join(text.split("\n\n")[0].split())
    found = re.match(r".*?[.!?](?=\s|$)(?<!e\.g\.)", line)
    return re.sub(r"``(.+?)``", r"`\1`", found[0] if found else line).replace("|", "\\|")


def table() -> str:
    """One table for each room."""
    parts = []
    for room in ROOMS:
        folder = ROOT / "quorate" / room
        parts.append(f"\n### {room}/\n\n{sentence(folder / '__init__.py')}\n")
        parts.append("| module | what it is for |\n|---|---|")
        parts.extend(
            f"| [`{path.stem}`](../quorate/{room}/{path.name}) | {sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        )
    return "\n".join(parts) + "\n"


def updated(page: str) -> str:
    """*page* with its table made anew.

    Raises:
        ValueError: the markers are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Rewrite the page; the exit status is 0."""
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
