"""What a checker says of a history: valid, invalid with evidence, or unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

Validity = bool | Literal["unknown"]

#: Of these a verdict shows at most so many; counts are always whole.
PROBLEMS_MAX = 20


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """*valid*: True, False, or "unknown" if the checker gave up or the history proves nothing.
    *problems*: what is wrong, each a sentence with its evidence. *facts*: counts for a report.
    *picture*: SVG of a counterexample, "" without one."""

    checker: str
    valid: Validity
    problems: tuple[str, ...] = ()
    facts: Mapping[str, Any] = {}
    picture: str = ""


def merge(checker: str, parts: Iterable[Verdict]) -> Verdict:
    """All of them as one: invalid if any is, else unknown if any is, else valid."""
    verdicts = list(parts)
    valid: Validity = True
    if any(each.valid is False for each in verdicts):
        valid = False
    elif any(each.valid == "unknown" for each in verdicts):
        valid = "unknown"
    problems = [f"{each.checker}: {text}" for each in verdicts for text in each.problems]
    return Verdict(
        checker=checker,
        valid=valid,
        problems=tuple(problems[:PROBLEMS_MAX]),
        facts={each.checker: each.facts for each in verdicts},
        picture=next((each.picture for each in verdicts if each.picture), ""),
    )
