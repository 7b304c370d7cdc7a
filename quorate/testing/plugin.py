"""For pytest: the fixture ``quorate_world``, a world on virtual time. Found by pytest itself.

A plain test hands it a coroutine function: ``quorate_world.run(story)``. An ``async def`` test that
asks for it runs inside it, on virtual time, unless another plugin has made it a plain one already.
``@pytest.mark.quorate_world(start=...)`` has arguments for ``cluster``.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from quorate.testing.world import World, cluster

FIXTURE = "quorate_world"


def pytest_configure(config: pytest.Config) -> None:
    """The marker is known under ``--strict-markers``."""
    config.addinivalue_line(
        "markers", f"{FIXTURE}(start, machines, seed): arguments of quorate.testing.cluster"
    )


@pytest.fixture
def quorate_world(request: pytest.FixtureRequest) -> World:
    """A world of its own for each test, not entered yet."""
    marker = request.node.get_closest_marker(FIXTURE)
    return cluster(**(marker.kwargs if marker is not None else {}))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Run a coroutine function that asks for the fixture."""
    function = pyfuncitem.obj
    if FIXTURE not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(function):
        return None
    names = pyfuncitem._fixtureinfo.argnames  # noqa: SLF001  as pytest's own
    given: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    world: Any = pyfuncitem.funcargs[FIXTURE]

    async def story(_world: World) -> None:
        await function(**given)

    world.run(story)
    return True
