"""Many seeds on several processes, each result as soon as it is there."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from types import FrameType
from typing import Any, Final

import msgspec

from jepsen_like.simulation.outcome import Outcome

#: Seeds that wait for each process: one, so that it never does.
WINDOW: Final = 2
#: A process is replaced after so many seeds: what a run leaves behind (1.7 MB at most) is bounded.
SEEDS_PER_LIFE: Final = 200

#: Runs one seed; must be a function of a module, or a partial of one.
Run = Callable[[int], Outcome]


class WallLimitError(KeyboardInterrupt):
    """The run took too long in real time. Not an ``Exception``, and of the one kind of
    ``BaseException`` that event loops let through: nothing in a run may swallow it."""


def limited(run: Run, seed: int, wall_s: float) -> Outcome:
    """Run *seed*; one that takes longer than *wall_s* seconds of real time is a livelock. Only in
    the main thread, and not on Windows, is a single step that never ends found out."""
    began_s = time.perf_counter()
    usable = hasattr(signal, "setitimer")
    previous: Any = None
    if usable:
        previous = signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, wall_s)
    try:
        return run(seed)
    except WallLimitError as error:
        wall = time.perf_counter() - began_s
        return Outcome.stuck(seed, f"not at its end after {wall_s:g} s of real time: {error}", wall)
    finally:
        if usable:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def _too_long(_number: int, frame: FrameType | None) -> None:
    where = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
    raise WallLimitError(f"it was at {where}")


def results(
    run: Run, seeds: Iterable[int], *, jobs: int, wall_s: float, budget_s: float
) -> Iterator[Outcome]:
    """Outcomes in the order in which they come; none begins after *budget_s* seconds, if that is
    not 0. *wall_s*: limit of one seed. *seeds* may be chosen as they are asked for: a few more
    than there are *jobs* are under way."""
    end_s = time.monotonic() + budget_s if budget_s else float("inf")
    if jobs <= 1:
        for seed in seeds:
            if time.monotonic() > end_s:
                return
            yield limited(run, seed, wall_s)
        return
    left = iter(seeds)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs,
        context,
        initializer=_begin,
        initargs=(run, wall_s),
        max_tasks_per_child=SEEDS_PER_LIFE,
    ) as pool:
        waiting = {pool.submit(_work, seed) for seed in islice(left, jobs * WINDOW)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            if time.monotonic() < end_s:
                waiting |= {pool.submit(_work, seed) for seed in islice(left, len(done))}
            for each in done:
                yield msgspec.msgpack.decode(each.result(), type=Outcome)


_given: list[Any] = []


def _begin(run: Run, wall_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    _given[:] = [run, wall_s]


def _work(seed: int) -> bytes:
    run, wall_s = _given
    return msgspec.msgpack.encode(limited(run, seed, wall_s))
