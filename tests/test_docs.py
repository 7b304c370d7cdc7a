"""What is written for readers: links lead somewhere, examples run, example programs end well."""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import docs_rules

ROOT = Path(__file__).resolve().parent.parent
PAGES = docs_rules.documents(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = docs_rules.broken_links(page, ROOT)
    assert not broken, f"{page.relative_to(ROOT)}: no such file or heading: {broken}"


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One two\n[x](b.md) [y](a.md#one-two) [z](#three) `[n](no.md)`\n"
    )
    assert docs_rules.broken_links(tmp_path / "a.md", tmp_path) == ["b.md", "#three"]


def _examples() -> dict[str, list[docs_rules.Example]]:
    found = {}
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        runnable = list(docs_rules.examples(name, page.read_text("utf-8")))
        if any(not item.not_run for item in runnable):
            found[name] = [item for item in runnable if not item.not_run]
    return found


def _run_examples(items: list[docs_rules.Example]) -> None:
    """All fences of one page, in order, in one namespace and one event loop."""

    async def run() -> None:
        namespace: dict[str, Any] = {"__name__": "__example__"}
        for item in items:
            padded = "\n" * (item.line - 1) + item.code  # tracebacks name the page's own lines
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(padded, item.path, "exec", flags=flags, dont_inherit=True)
            result = eval(code, namespace)  # noqa: S307 - text of this repository
            if inspect.iscoroutine(result):
                await asyncio.wait_for(result, timeout=60)

    asyncio.run(run())


@pytest.mark.docs
@pytest.mark.parametrize(("name", "items"), _examples().items())
def test_examples_in_pages_run(
    name: str,
    items: list[docs_rules.Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    _run_examples(items)


def test_fences_are_found_and_run(tmp_path: Path) -> None:
    page = """text
```python
import asyncio
await asyncio.sleep(0)
x = 1
```
<!-- not run: needs a cluster -->
```python
1 / 0
```
```python
assert x == 2, x
```
```sh
false
```
"""
    found = list(docs_rules.examples("page.md", page))
    assert [(item.line, item.not_run) for item in found] == [
        (3, ""),
        (9, "needs a cluster"),
        (12, ""),
    ]
    with pytest.raises(AssertionError):
        _run_examples([item for item in found if not item.not_run])


@pytest.mark.docs
@pytest.mark.shared
@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
)
def test_example_programs_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
