"""``python -m quorate`` is the ``quorate`` command."""

from __future__ import annotations

import sys

from quorate.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
