"""``python -m jepsen_like``."""

from __future__ import annotations

import sys

from jepsen_like.cli import main

sys.exit(main())
