"""The tests of this room, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locks.mutants import MUTANTS
from tests.replication.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
#: A failure is enough; its smallest example, which takes minutes to find, is not wanted.
CONFTEST = """
from hypothesis import Phase, settings
settings.register_profile("no-shrinking", phases=[Phase.generate], database=None)
settings.load_profile("no-shrinking")
"""


def test_every_mutant_finds_its_place() -> None:
    for mutant in MUTANTS:
        found = (ROOT / mutant.file).read_text("utf-8").count(mutant.before)
        assert found == 1, f"{mutant.what}: its text stands {found} times in {mutant.file}"


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("quorate", "jepsen_like", "tests/locks", "tests/replication"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "conftest.py").write_text(CONFTEST, "utf-8")
    path = tmp_path / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.before, mutant.after), "utf-8")
    files = [f"tests/locks/test_{each}.py" for each in mutant.tests]
    command = [sys.executable, "-B", "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return  # it never ended: that is noticed
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    assert done.returncode == 1, f"no test notices that {mutant.what}"
