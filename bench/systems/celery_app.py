"""The task that Celery's worker runs: nothing. The broker is where BENCH_REDIS says."""

from __future__ import annotations

import os
from typing import Any

import celery

app: Any = celery.Celery("bench", broker=os.environ["BENCH_REDIS"])


def _nothing(payload: str) -> None:
    """As little as can be."""


nothing: Any = app.task(name="nothing", ignore_result=True)(_nothing)
