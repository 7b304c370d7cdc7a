"""Runs a coroutine on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import linecache
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar

from quorate.errors import InvalidArgumentError, StuckError
from quorate.testing.loop import VirtualTimeLoop
from quorate.testing.sorts import timer_sorts

P = ParamSpec("P")
T = TypeVar("T")

#: Real seconds after which a test is given up.
PATIENCE_S_DEFAULT: Final = 60.0
#: Tasks whose place is told when a test is given up.
TASKS_SHOWN_MAX: Final = 20

_NOT_SHOWN: Final = (
    str(Path(asyncio.__file__).parent),
    str(Path(contextlib.__file__)),
    str(Path(__file__).parent.parent),
)


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``await function(*args, **kwargs)`` returns, on a loop of its own on virtual time: while
    nothing is to be done, the clock jumps to what comes next.

    Raises:
        StuckError: it waits for what never comes, or was not over after ``PATIENCE_S_DEFAULT``
            seconds of real time. It has been cancelled.
    """
    return run_for(PATIENCE_S_DEFAULT, functools.partial(function, *args, **kwargs))


def run_for(patience: float, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As ``run``; *patience*: real seconds after which it is given up. Where a loop runs already,
    it is done in a thread, for which that loop waits."""
    given: object = patience
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < 1e7:
        raise InvalidArgumentError(f"patience is a number of seconds above 0, not {patience!r}")
    if asyncio._get_running_loop() is None:  # noqa: SLF001  the other one raises
        return _run(patience, function)
    with ThreadPoolExecutor(1, "virtual-time") as pool:
        return pool.submit(_run, patience, function).result()


def _run(patience: float, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(timer_sorts(), patience)) as runner:
        loop = runner.get_loop()
        coroutine = function()
        if not inspect.iscoroutine(coroutine):
            raise InvalidArgumentError(
                f"{function!r} is no coroutine function: it returned {coroutine!r}"
            )
        try:
            result: T = runner.run(coroutine)
        except StuckError as error:
            places = "\n".join(_places(loop))
            _give_up(loop)
            raise StuckError(f"{error}. What waits, and where:\n{places}") from None
        return result


def virtual_time(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A decorator: what was a coroutine function is a plain one, which runs on virtual time."""

    @functools.wraps(function)
    def runs(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(function, *args, **kwargs)

    return runs


def current_loop() -> VirtualTimeLoop:
    """The running loop.

    Raises:
        InvalidArgumentError: it is another one.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        return loop
    raise InvalidArgumentError(
        f"this runs on a {type(loop).__name__}, on real time: run it with quorate.testing.run(...)"
        " or under @quorate.testing.virtual_time"
    )


def _give_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel everything, as the end of a runner does, but not for ever."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if isinstance(loop, VirtualTimeLoop):
        loop.forgive()
    with contextlib.suppress(StuckError):
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  told


def _places(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    shown = 0
    for task in sorted(asyncio.all_tasks(loop), key=lambda each: each.get_name()):
        place = _place(task)
        if place and shown < TASKS_SHOWN_MAX:
            shown += 1
            yield f"  {task.get_name()}: {place}"


def _place(task: asyncio.Task[Any]) -> str:
    """The innermost line of the user's own code in *task*; "": there is none."""
    found = ""
    awaited: object = task.get_coro()
    while awaited is not None:
        frame: FrameType | None = getattr(awaited, "cr_frame", None) or getattr(
            awaited, "ag_frame", None
        )
        if frame is not None and not frame.f_code.co_filename.startswith(_NOT_SHOWN):
            name = frame.f_code.co_filename
            line = linecache.getline(name, frame.f_lineno).strip()
            found = f"{name}:{frame.f_lineno}, in {frame.f_code.co_name}: {line}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return found
