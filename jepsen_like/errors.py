"""Errors of the kit itself. What the system under test did wrong is a verdict, not an error."""

from __future__ import annotations


class JepsenLikeError(Exception):
    """Root of all errors that the kit raises on purpose."""


class HistoryError(JepsenLikeError):
    """A history, or a line of one, does not follow the rules of ``jepsen_like.history``."""


class SetupError(JepsenLikeError):
    """A run cannot begin here: a program, a library or a permission is missing."""


class UsageError(JepsenLikeError):
    """An argument that means nothing; the text lists what is understood."""
