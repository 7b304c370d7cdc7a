"""Bugs put into a copy of the product, one at a time: the tests of its room must fail with each.

A room lists its bugs in ``mutants.py`` and runs them from its ``test_mutants.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RUN_SECONDS_MAX = 300
#: A failure is enough; its smallest example, which takes minutes to find, is not wanted.
CONFTEST = """
from hypothesis import Phase, settings
settings.register_profile("no-shrinking", phases=[Phase.generate], database=None)
settings.load_profile("no-shrinking")
"""


class Mutant(NamedTuple):
    """*what*: the bug, in words. *before* stands exactly once in *file*; *after* is the bug.
    *tests*: the quick tests that are to catch it."""

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


class Room(NamedTuple):
    """*tests*: the folder of its tests. *needs*: what they import besides."""

    tests: str
    needs: tuple[str, ...] = ()

    def check_places(self, mutants: Iterable[Mutant]) -> None:
        """Each mutant still fits the product, and names tests that are there."""
        for mutant in mutants:
            found = (ROOT / mutant.file).read_text("utf-8").count(mutant.before)
            assert found == 1, f"{mutant.what}: its text stands {found} times in {mutant.file}"
            assert mutant.tests, mutant.what
            for each in mutant.tests:
                assert (ROOT / self.tests / f"test_{each}.py").is_file(), mutant.what

    def check_green(self, files: tuple[str, ...], place: Path) -> None:
        """On a red suite every mutant would look caught."""
        self._copy(place)
        passes, said = self._passes(place, files)
        assert passes, said

    def check_caught(self, mutant: Mutant, place: Path) -> None:
        """Put the bug into a copy in *place*, and see red."""
        self._copy(place)
        path = place / mutant.file
        path.write_text(path.read_text("utf-8").replace(mutant.before, mutant.after), "utf-8")
        passes, _ = self._passes(place, mutant.tests)
        assert not passes, f"no test notices that {mutant.what}"

    def _copy(self, place: Path) -> None:
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("quorate", self.tests, *self.needs):
            shutil.copytree(ROOT / name, place / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", place)
        shutil.copy(ROOT / "tests" / "sharing.py", place / "tests")
        (place / "conftest.py").write_text(CONFTEST, "utf-8")

    def _passes(self, place: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
        files = [f"{self.tests}/test_{each}.py" for each in tests]
        command = [sys.executable, "-B", "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
        try:
            done = subprocess.run(
                command,
                cwd=place,
                env={**os.environ, "PYTHONPATH": str(place)},
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, "it never ended"
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        return done.returncode == 0, done.stdout[-2000:]
