"""The tests of the CRDTs, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crdt.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
#: A failure is enough; its smallest example, which takes minutes to find, is not wanted.
CONFTEST = """
from hypothesis import Phase, settings
settings.register_profile("no-shrinking", phases=[Phase.generate], database=None)
settings.load_profile("no-shrinking")
"""
FILES = tuple(
    sorted(
        path.stem.removeprefix("test_")
        for path in (ROOT / "tests" / "crdt").glob("test_*.py")
        if path.stem != "test_mutants"
    )
)


def _copy(to: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "quorate", to / "quorate", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "crdt", to / "tests" / "crdt", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)
    (to / "conftest.py").write_text(CONFTEST, "utf-8")


def _passes(place: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    files = [f"tests/crdt/test_{each}.py" for each in tests]
    command = [sys.executable, "-B", "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, "it never ended"
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.returncode == 0, done.stdout[-2000:]


def test_every_mutant_finds_its_place() -> None:
    for mutant in MUTANTS:
        found = (ROOT / mutant.file).read_text("utf-8").count(mutant.before)
        assert found == 1, f"{mutant.what}: its text stands {found} times in {mutant.file}"
        assert set(mutant.tests) <= set(FILES), mutant.what


@pytest.mark.deep
def test_without_a_mutant_all_is_green(tmp_path: Path) -> None:
    """On a red suite every mutant would look caught."""
    _copy(tmp_path)
    passes, said = _passes(tmp_path, FILES)
    assert passes, said


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    _copy(tmp_path)
    path = tmp_path / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.before, mutant.after), "utf-8")
    passes, _ = _passes(tmp_path, mutant.tests)
    assert not passes, f"no test notices that {mutant.what}"
