"""What a holder may lose: how it hears of it, and how work under it is stopped at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Protocol, Self

from quorate.errors import LeaseLostError

_logger = logging.getLogger(__name__)


class Loss:
    """That something was lost: ``is_set()`` at any time, ``await`` it, or ``wait()``. Once set, it
    stays. *reason*: what happened, "" as long as nothing has."""

    __slots__ = ("_event", "_watchers", "reason")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._watchers: dict[object, Callable[[], object]] = {}
        self.reason = ""

    def is_set(self) -> bool:
        """Whether it was lost, as far as this process has heard."""
        return self._event.is_set()

    async def wait(self) -> str:
        """Until it is lost; returns the reason."""
        await self._event.wait()
        return self.reason

    def __await__(self) -> Generator[Any, None, str]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"<Loss: {self.reason}>" if self.is_set() else "<Loss: none>"


def set_loss(loss: Loss, reason: str) -> None:
    """It is lost: tell everybody, once."""
    if loss.is_set():
        return
    loss.reason = reason
    loss._event.set()  # noqa: SLF001  a holder must not be able to set its own loss
    watchers, loss._watchers = loss._watchers, {}  # noqa: SLF001
    for tell in watchers.values():
        try:
            tell()
        except Exception:  # what a callback may raise is anything, and the others must hear
            _logger.exception("a callback for a loss failed")


def watch_loss(loss: Loss, tell: Callable[[], object]) -> Callable[[], None]:
    """Have *tell* called, on the loop, when it is lost (now, if it is). Returns what ends that."""
    if loss.is_set():
        tell()
        return _nothing
    token = object()
    loss._watchers[token] = tell  # noqa: SLF001
    return lambda: loss._watchers.pop(token, None) and None  # noqa: SLF001


def _nothing() -> None:
    return None


class Losable(Protocol):
    """What a ``Guard`` guards."""

    @property
    def alive(self) -> bool:
        """Whether it surely stands at this moment."""

    @property
    def lost(self) -> Loss: ...
    def loss_error(self) -> LeaseLostError:
        """What to raise now that it was lost."""


class Guard:
    """``async with`` work that must stop when something is lost: the body is cancelled, and the
    loss raised in place of the cancellation. A cancellation from elsewhere passes through.

    A body that came to its end although the loss was there before it is told as well: the error is
    raised at its end.
    """

    __slots__ = ("_before", "_cancelled", "_holding", "_stop", "_task")

    def __init__(self, holding: Losable) -> None:
        self._holding = holding
        self._task: asyncio.Task[Any] | None = None
        self._before = 0
        self._cancelled = False
        self._stop: Callable[[], None] = _nothing

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None or self._task is not None:
            raise RuntimeError("a guard is entered once, by a task")
        if not self._holding.alive:
            raise self._holding.loss_error()
        self._task = task
        self._before = task.cancelling()
        self._stop = watch_loss(self._holding.lost, self._on_loss)
        return self

    def _on_loss(self) -> None:
        # A task that cancels itself hears of it at its next await, which may lie behind the guard.
        if self._task is not None and self._task is not asyncio.current_task():
            self._cancelled = True
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        task = self._task
        if self._cancelled and task is not None:
            alone = task.uncancel() <= self._before
            if alone and isinstance(error, asyncio.CancelledError):
                raise self._holding.loss_error() from error
        if error is None and (self._holding.lost.is_set() or not self._holding.alive):
            raise self._holding.loss_error()
