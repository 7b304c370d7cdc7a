"""The version of this package, for ``status`` and the CLI; pyproject.toml holds the same."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
