"""The task that Dramatiq's worker runs: nothing. The broker is where BENCH_REDIS says."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers import redis

_make_broker: Any = redis.RedisBroker  # with types or without, as it is installed or not
_make_actor: Any = dramatiq.actor

broker: Any = _make_broker(url=os.environ["BENCH_REDIS"])
dramatiq.set_broker(broker)


def _nothing(payload: str) -> None:
    """As little as can be."""


nothing: Any = _make_actor(_nothing, actor_name="nothing", queue_name="lives")
