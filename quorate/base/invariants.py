"""Invariants that stay on: ``must`` crashes where a plain assert would be stripped by ``-O``."""

from __future__ import annotations

from quorate.errors import InvariantViolationError


def must(condition: bool, claim: str, **facts: object) -> None:  # noqa: FBT001
    """Crash unless *condition* holds; *facts* are what the reader needs at 3 am.

    Raises:
        InvariantViolationError: the claim is false, which is a bug in quorate.
    """
    if not condition:
        shown = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        raise InvariantViolationError(f"{claim} ({shown})")
