"""The tests are tested: bugs put in on purpose are caught by the quick ones."""

from __future__ import annotations

import pytest

from tests.consensus.mutants import MUTANTS, Mutant, judge


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    assert mutant.applied() != ""


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.deep
def test_the_healthy_core_survives() -> None:
    """On a red suite every mutant looks caught."""
    assert judge(None).killer == ""


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught(mutant: Mutant) -> None:
    verdict = judge(mutant)
    print(f"{verdict.name}: caught by {verdict.killer}")
    assert verdict.killer, f"nothing notices: {mutant.name}"
