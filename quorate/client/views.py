"""Views of a handle: the same cluster and connections, at a level of their own, with a session."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, overload

from quorate.base.declaring import Declared
from quorate.base.levels import Level, check_level
from quorate.client.codec import MachineCodec
from quorate.client.crdt_calls import Converges, CrdtScope
from quorate.client.crdt_maps import Converging
from quorate.client.handles import Handle, declaration_of, handle_class
from quorate.client.kv import Kv
from quorate.client.levels import Scope, Seen
from quorate.client.machines import Machine
from quorate.client.settings import check_timeout

R = TypeVar("R")


class Viewed(Converges, Protocol):
    """What a view looks through: ``Database``."""

    def codec(self, name: str, result_type: Any) -> MachineCodec: ...  # noqa: ANN401


class View(Converging):
    """Every call at one level, unless it says otherwise. Made by ``Database.at``.

    A view is a session: it remembers how much its calls have seen, of the log and of CRDT data,
    reads and writes, whatever their level. ``causal`` reads see at least that. ``token`` carries it
    elsewhere.
    """

    def __init__(self, handle: Viewed, level: Level, seen: Seen) -> None:
        self._handle = handle
        self._seen = seen
        self._scope = Scope(handle, check_level(level), seen)
        self._crdt_scope = CrdtScope(handle, self._scope.level, seen)
        #: The key-value store.
        self.kv = Kv(handle.submit, handle.ask, self._scope, handle.timeout)

    @property
    def level(self) -> Level:
        """Of calls that do not name one."""
        return self._scope.level

    @property
    def token(self) -> str:
        """What the session has seen, for ``at`` and ``merge`` in any process: printable ASCII,
        without spaces. "" if it has seen nothing."""
        return self._seen.token

    def merge(self, token: str) -> None:
        """From now on, see at least what the bearer of *token* has seen. "" changes nothing.

        Raises:
            TokenError: it is malformed, or of another cluster. If no node has answered yet, the
                latter is found by the next call.
        """
        self._seen.merge(token, self._handle.cluster)

    def at(self, level: Level, token: str = "") -> View:
        """The same session at another level. *token*: as for ``merge``."""
        view = View(self._handle, level, self._seen)
        view.merge(token)
        return view

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
        return machine_handle(self._handle, self._scope, name, result_type, timeout)


def machine_handle(
    handle: Viewed,
    scope: Scope,
    name: Any,  # noqa: ANN401
    result_type: Any,  # noqa: ANN401
    timeout: float | None,
) -> Machine[Any] | Handle:
    """See ``Database.machine``."""
    declaration = None
    if not isinstance(name, str):
        name, declaration = declaration_of(name)
        result_type = declaration
    wait_s = handle.timeout if timeout is None else check_timeout(timeout)
    machine: Machine[Any] = Machine(handle, scope, handle.codec(name, result_type), wait_s)
    return machine if declaration is None else handle_class(declaration)(machine)
