"""The page for those who come from PySyncObj leaves out none of its public names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-pysyncobj.md"


def _public(owner: Any) -> list[str]:
    return [name for name in vars(owner) if not name.startswith("_")]


def test_every_public_name_is_mapped() -> None:
    pysyncobj = pytest.importorskip("pysyncobj")
    batteries = pytest.importorskip("pysyncobj.batteries")
    words = set(re.findall(r"\w+", PAGE.read_text("utf-8")))
    names = [
        name for name in _public(pysyncobj) if not isinstance(getattr(pysyncobj, name), ModuleType)
    ]
    names += _public(pysyncobj.SyncObj)
    names += list(vars(pysyncobj.SyncObjConf()))
    names += _public(pysyncobj.SyncObjConf)
    names += _public(pysyncobj.FAIL_REASON)
    names += list(inspect.signature(pysyncobj.SyncObj).parameters)
    for name, member in vars(batteries).items():
        if name.startswith("Repl") and inspect.isclass(member):
            # "_v0" and so on are made by @replicated.
            names += [name, *(each for each in _public(member) if not re.search(r"_v\d+$", each))]
    missing = sorted({re.sub(r"_v\d+$", "", name) for name in names} - words)
    assert not missing, f"{PAGE.name} says nothing of {missing}"
