"""The tests of the machines, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replication.driver_mutants import DRIVER_MUTANTS
from tests.replication.mutants import MUTANTS, Mutant
from tests.replication.watch_mutants import WATCH_MUTANTS

ROOT = Path(__file__).resolve().parents[2]
#: A failure is enough; its smallest example, which takes minutes to find, is not wanted.
CONFTEST = """
from hypothesis import Phase, settings
settings.register_profile("no-shrinking", phases=[Phase.generate], database=None)
settings.load_profile("no-shrinking")
"""
ALL = MUTANTS + DRIVER_MUTANTS + WATCH_MUTANTS
MACHINES = ("ordered_keys", "tables", "batch", "kv", "sessions", "runs", "machines", "restoring")
LOG = ("replica", "proposals", "log_cache", "sending", "disk", "reading", "clock", "recovery")
STATE = ("checkpoints", "snapshots", "divergence", "acknowledging", "fake_cluster")
WATCHES = ("feeds", "leases", "kv_watch", "kv_fences")
FILES = MACHINES + LOG + STATE + WATCHES


def _copy(to: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "quorate", to / "quorate", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "replication", to / "tests" / "replication", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)
    (to / "conftest.py").write_text(CONFTEST, "utf-8")


def _passes(place: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    files = [f"tests/replication/test_{each}.py" for each in tests]
    command = [sys.executable, "-B", "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "it never ended"
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.returncode == 0, done.stdout[-2000:]


def test_every_mutant_finds_its_place() -> None:
    for mutant in ALL:
        found = (ROOT / mutant.file).read_text("utf-8").count(mutant.before)
        assert found == 1, f"{mutant.what}: its text stands {found} times in {mutant.file}"


@pytest.mark.deep
def test_without_a_mutant_all_is_green(tmp_path: Path) -> None:
    """On a red suite every mutant would look caught."""
    _copy(tmp_path)
    passes, said = _passes(tmp_path, FILES)
    assert passes, said


@pytest.mark.deep
@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    _copy(tmp_path)
    path = tmp_path / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.before, mutant.after), "utf-8")
    passes, _ = _passes(tmp_path, mutant.tests)
    assert not passes, f"no test notices that {mutant.what}"
