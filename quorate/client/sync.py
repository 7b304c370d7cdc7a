"""The synchronous twin, for threads, scripts and frameworks that do not await.

The same names as in ``Database``, without ``await``. Each handle owns one thread with an event
loop, on which its asynchronous twin lives; any number of threads may share the handle, and what
they ask for at the same time leaves in the same frame. Handles left open are closed at exit.

A call blocks its thread. From within a running event loop that stalls the loop, but works; only
on the handle's own loop it would wait for itself for ever, and raises RuntimeError instead.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  is to be there before what is called at exit
import contextlib
import functools
import importlib.util
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from quorate.base.declaring import Declared
from quorate.base.kv_commands import Compare, Operation
from quorate.base.levels import Accepted, CertainLevel, Level
from quorate.base.task_specs import Task
from quorate.client import crdt_maps
from quorate.client import database as asynchronous
from quorate.client import kv as asynchronous_kv
from quorate.client import machines as asynchronous_machines
from quorate.client import views as asynchronous_views
from quorate.client.client import ClientStatistics
from quorate.client.endpoints import parse_endpoints
from quorate.client.handles import Handle as AsyncHandle
from quorate.client.kv import Fences
from quorate.client.levels import Receipt
from quorate.client.sync_crdt import Converging
from quorate.client.sync_kv import Kv
from quorate.client.sync_locks import Coordination
from quorate.client.sync_tasks import Schedules, Tasks, Workflows
from quorate.client.together import Attempt, Committed
from quorate.errors import ClosedError, InvalidArgumentError

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")

CLOSE_TIMEOUT_S: Final = 10.0  # closing an embedded node writes a checkpoint

_open_loops: weakref.WeakSet[_Loop] = weakref.WeakSet()


class _Twin:
    """What the thread has: the asynchronous handle, once made, and how closing it went."""

    database: asynchronous.Database | None = None
    error: BaseException | None = None


class _Loop:
    """A thread with an event loop, begun by the first call, ended by ``stop``."""

    def __init__(self) -> None:
        self.twin = _Twin()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._stopped = False
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()  # one per thread that is in a call
        self.at_exit: Callable[[], None] | None = None

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the coroutine that *make* gives, on the loop.

        Raises:
            RuntimeError: called on this very loop, which would wait for itself.
            ClosedError: the handle was closed, or belongs to the process that this one was
                forked from.
        """
        if self.is_here:
            raise RuntimeError(
                "a synchronous handle was called on its own event loop, where it would wait for "
                "itself; use the asynchronous handle there"
            )
        with self._lock:
            loop = self._ready()
            future = asyncio.run_coroutine_threadsafe(make(), loop)
            self._waiting.add(future)
        try:
            return future.result()
        except CancelledError:
            raise ClosedError("the handle was closed during the call") from None
        except BaseException:
            future.cancel()  # of consequence only if this thread was interrupted
            raise
        finally:
            with self._lock:
                self._waiting.discard(future)

    def _ready(self) -> asyncio.AbstractEventLoop:
        if self._stopped:
            raise ClosedError("the handle was closed; make another one")
        if self._loop is None:
            return self._start()
        if self._process != os.getpid():
            raise ClosedError(
                "the handle was opened before this process was forked, and its thread stayed "
                "behind; make handles after forking"
            )
        return self._loop

    def _start(self) -> asyncio.AbstractEventLoop:
        self._process = os.getpid()
        loop = self._loop = _new_loop()
        # A daemon: else the interpreter would wait for it before it closes what is left open.
        self._thread = threading.Thread(
            target=self._main, args=(loop, self.twin), name="quorate-sync", daemon=True
        )
        self._thread.start()
        _open_loops.add(self)
        return loop

    @staticmethod
    def _main(loop: asyncio.AbstractEventLoop, twin: _Twin) -> None:
        # Holds neither the handle nor this object: so they can be forgotten, and are closed then.
        runner = asyncio.Runner(loop_factory=lambda: loop)
        runner.get_loop().run_forever()
        try:
            if twin.database is not None:
                runner.run(twin.database.close())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that closes
            twin.error = error
        # At the end of the process, some Pythons begin no thread any more, as is done here to wait
        # for those of the loop's executor; there are none at work then.
        with contextlib.suppress(RuntimeError):
            runner.close()

    def soon(self, callback: Callable[[], object]) -> None:
        """Have *callback* called on the loop, without waiting for it.

        Raises:
            ClosedError: as ``run``.
        """
        with self._lock:
            self._ready().call_soon_threadsafe(callback)

    @property
    def is_here(self) -> bool:
        """Whether this thread is the loop's."""
        return threading.current_thread() is self._thread

    def abandon(self) -> None:
        """Nobody can call any more: end the thread, without waiting for it."""
        if self._loop is not None and self._process == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def stop(self) -> None:
        """Close the asynchronous handle and end the thread; later calls raise ClosedError.

        Raises:
            QuorateError: what closing raised.
        """
        with self._lock:
            loop, self._loop = self._loop, None
            self._stopped = True
        if loop is None or self._process != os.getpid() or self._thread is None:
            return
        _open_loops.discard(self)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        with self._lock:
            left = [future for future in self._waiting if not future.done()]
        for future in left:
            future.set_exception(ClosedError("the handle was closed during the call"))
        if self.twin.error is not None:
            raise self.twin.error


def _new_loop() -> asyncio.AbstractEventLoop:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


def _close_all() -> None:
    for loop in list(_open_loops):
        if loop.at_exit is not None:
            loop.at_exit()


# Before the executors of the process shut down, which an embedded node still needs: what was
# registered last is called first, and theirs was when their module was imported. ``atexit`` itself
# comes after them.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


class Database(Coordination, Converging):
    """See the module. *make* builds the asynchronous handle, on the loop; it is called once."""

    def __init__(self, make: Callable[[], asynchronous.Database]) -> None:
        self._make = make
        self._runs = _Loop()
        self.kv = Kv(self._run_on_kv)
        self.tasks = Tasks(lambda call: self._run(lambda database: call(database.tasks)))
        self.workflows = Workflows(
            lambda call: self._run(lambda database: call(database.workflows))
        )
        self.schedules = Schedules(
            lambda call: self._run(lambda database: call(database.schedules))
        )
        this = weakref.ref(self)
        self._runs.at_exit = lambda: _close(this)

    async def _database(self) -> asynchronous.Database:
        twin = self._runs.twin
        if twin.database is None:
            twin.database = self._make()
        return twin.database

    def _run(self, call: Callable[[asynchronous.Database], Coroutine[Any, Any, T]]) -> T:
        async def on_loop() -> T:
            return await call(await self._database())

        return self._runs.run(on_loop)

    def _run_converging(self, call: Callable[[crdt_maps.Converging], Coroutine[Any, Any, T]]) -> T:
        return self._run(call)

    def _run_on_kv(self, call: Callable[[asynchronous_kv.Kv], Coroutine[Any, Any, T]]) -> T:
        return self._run(lambda database: call(database.kv))

    # --- for what lives on the handle's loop ----------------------------------------------------

    def on_loop(self, call: Callable[[asynchronous.Database], Coroutine[Any, Any, T]]) -> T:
        """What *call* comes to, with the asynchronous handle, on its loop."""
        return self._run(call)

    def soon(self, callback: Callable[[], object]) -> None:
        """Have *callback* called on the loop, without waiting for it.

        Raises:
            ClosedError: the handle was closed, or belongs to the process that this one was
                forked from.
        """
        self._runs.soon(callback)

    @property
    def is_here(self) -> bool:
        """Whether this thread is that of the loop, which must not wait for itself."""
        return self._runs.is_here

    # --- life ----------------------------------------------------------------------------------

    def open(self) -> Self:
        """As ``Database.open``."""
        try:
            self._run(lambda database: database.open())
        except BaseException:
            self._runs.stop()
            raise
        return self

    def close(self) -> None:
        """As ``Database.close``; then the thread ends."""
        self._runs.stop()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._runs.abandon()

    # --- machines and administration -----------------------------------------------------------

    @overload
    def machine(
        self, name: Declared | type[Declared], *, timeout: float | None = None
    ) -> Handle: ...
    @overload
    def machine(self, name: str) -> Machine[Any]: ...
    @overload
    def machine(self, name: str, result_type: type[R]) -> Machine[R]: ...
    @overload
    def machine(self, name: str, result_type: Any) -> Machine[Any]: ...  # noqa: ANN401
    def machine(
        self, name: Any, result_type: Any = None, *, timeout: float | None = None
    ) -> Machine[Any] | Handle:
        """As ``Database.machine``."""

        async def find(database: asynchronous.Database) -> Any:  # noqa: ANN401
            find_machine: Any = database.machine  # the overloads were checked above
            return find_machine(name, result_type, timeout=timeout)

        return _machine(self._run(find), self._runs)

    def at(self, level: Level, token: str = "") -> View:
        """As ``Database.at``."""

        async def look(database: asynchronous.Database) -> asynchronous_views.View:
            return database.at(level, token)

        return View(self._run(look), self._runs)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.status``."""
        return self._run(lambda database: database.status(timeout=timeout))

    def members(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.members``."""
        return self._run(lambda database: database.members(timeout=timeout))

    def add_member(
        self, node: int, address: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """As ``Database.add_member``."""
        return self._run(lambda database: database.add_member(node, address, timeout=timeout))

    def promote(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.promote``."""
        return self._run(lambda database: database.promote(node, timeout=timeout))

    def demote(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.demote``."""
        return self._run(lambda database: database.demote(node, timeout=timeout))

    def remove_member(self, node: int, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.remove_member``."""
        return self._run(lambda database: database.remove_member(node, timeout=timeout))

    def set_address(
        self, node: int, address: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """As ``Database.set_address``."""
        return self._run(lambda database: database.set_address(node, address, timeout=timeout))

    def transfer_leader(self, target: int = 0, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.transfer_leader``."""
        return self._run(lambda database: database.transfer_leader(target, timeout=timeout))

    def checkpoint(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.checkpoint``."""
        return self._run(lambda database: database.checkpoint(timeout=timeout))

    def upgrade(self, machine: str, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.upgrade``."""
        return self._run(lambda database: database.upgrade(machine, timeout=timeout))

    def together(
        self,
        compare: Iterable[Compare] = (),
        *,
        then: Iterable[Operation] = (),
        tasks: Iterable[Task] = (),
        completes: Attempt | None = None,
        fence: Fences = None,
        timeout: float | None = None,
    ) -> Committed:
        """As ``Database.together``."""
        return self._run(
            lambda database: database.together(
                compare,
                then=then,
                tasks=tasks,
                completes=completes,
                fence=fence,
                timeout=timeout,
            )
        )

    def crdt_digest(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``Database.crdt_digest``."""
        return self._run(lambda database: database.crdt_digest(timeout=timeout))

    def statistics(self) -> ClientStatistics:
        """As ``Database.statistics``."""

        async def count(database: asynchronous.Database) -> ClientStatistics:
            return database.statistics()

        return self._run(count)


def _close(handle: weakref.ref[Database]) -> None:
    database = handle()
    if database is not None:
        database.close()


class Machine(Generic[R]):
    """As the asynchronous ``Machine``."""

    def __init__(self, twin: asynchronous_machines.Machine[R], runs: _Loop) -> None:
        self._twin = twin
        self._runs = runs

    @property
    def name(self) -> str:
        """The machine's name, as registered on the nodes."""
        return self._twin.name

    @overload
    def execute(
        self,
        command: object,
        *,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    def execute(
        self,
        command: object,
        *,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R: ...
    def execute(
        self,
        command: object,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R | Accepted:
        """As ``Machine.execute``."""
        made = functools.partial(
            self._twin.execute, command, level=level, receipt=receipt, timeout=timeout
        )
        return self._runs.run(made)

    def query(
        self,
        query: object,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> R:
        """As ``Machine.query``."""
        made = functools.partial(
            self._twin.query, query, level=level, receipt=receipt, timeout=timeout
        )
        return self._runs.run(made)


class Handle:
    """As the asynchronous ``Handle``, without ``await``."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def __init__(self, twin: AsyncHandle, runs: _Loop) -> None:
        self._twin = twin
        self._runs = runs
        for name, method in vars(type(twin)).items():
            if not name.startswith("_"):
                setattr(self, name, self._blocking(method))

    def _blocking(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return self._runs.run(lambda: method(self._twin, *args, **kwargs))

        return call

    @property
    def raw(self) -> Machine[Any]:
        """As ``Handle.raw``."""
        return Machine(self._twin.raw, self._runs)

    def call(
        self, method: Callable[Concatenate[Any, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As ``Handle.call``."""

        async def on_loop() -> T:
            return await self._twin.call(method, *args, **kwargs)

        return self._runs.run(on_loop)


class View(Converging):
    """As the asynchronous ``View``."""

    def __init__(self, twin: asynchronous_views.View, runs: _Loop) -> None:
        self._twin = twin
        self._runs = runs
        self.kv = Kv(lambda call: runs.run(lambda: call(twin.kv)))

    def _run_converging(self, call: Callable[[crdt_maps.Converging], Coroutine[Any, Any, T]]) -> T:
        return self._runs.run(lambda: call(self._twin))

    @property
    def level(self) -> Level:
        """As ``View.level``."""
        return self._twin.level

    @property
    def token(self) -> str:
        """As ``View.token``."""
        return self._twin.token

    def merge(self, token: str) -> None:
        """As ``View.merge``."""
        self._twin.merge(token)

    def at(self, level: Level, token: str = "") -> View:
        """As ``View.at``."""
        return View(self._twin.at(level, token), self._runs)

    @overload
    def machine(
        self, name: Declared | type[Declared], *, timeout: float | None = None
    ) -> Handle: ...
    @overload
    def machine(self, name: str) -> Machine[Any]: ...
    @overload
    def machine(self, name: str, result_type: type[R]) -> Machine[R]: ...
    @overload
    def machine(self, name: str, result_type: Any) -> Machine[Any]: ...  # noqa: ANN401
    def machine(
        self, name: Any, result_type: Any = None, *, timeout: float | None = None
    ) -> Machine[Any] | Handle:
        """As ``Database.machine``."""
        find: Any = self._twin.machine  # the overloads were checked above
        return _machine(find(name, result_type, timeout=timeout), self._runs)


def _machine(twin: Any, runs: _Loop) -> Machine[Any] | Handle:  # noqa: ANN401
    return Handle(twin, runs) if isinstance(twin, AsyncHandle) else Machine(twin, runs)


def connect(endpoints: str | Sequence[str], **options: Unpack[asynchronous.Options]) -> Database:
    """A synchronous handle on the cluster at *endpoints*; *options* are those of
    ``quorate.connect``. Touches no network yet: ``with``, or the first call, does.

    Raises:
        InvalidArgumentError: an argument has the wrong type or range, or a node of this process
            is given: it belongs to a loop, so use the asynchronous handle there.
    """
    if any(place.local is not None for place in parse_endpoints(endpoints)):
        raise InvalidArgumentError("a synchronous handle connects to host:port endpoints only")
    asynchronous.connect(endpoints, **options)  # checks the arguments, here and now
    return Database(lambda: asynchronous.connect(endpoints, **options))
