"""CPython's own tests of executors, those that apply, against ``QuorateExecutor``.

They come from the package ``test`` of the Python that runs them, where that is installed; what they
are about is at ``EXCLUDED`` and ``ADAPTED``. Functions that they submit are registered as tasks;
nothing else of them is changed.
"""

from __future__ import annotations

import importlib
import tempfile
import time
import unittest
import unittest.mock
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from quorate import App, QuorateExecutor, sync
from quorate.errors import TaskFailedError

#: Up to 3.11 and 3.12.0 all is in one file, later in a package.
_PLACES = ("", ".executor", ".util", ".test_as_completed", ".test_wait", ".test_shutdown")


def _modules() -> list[ModuleType]:
    found = []
    for place in _PLACES:
        try:
            found.append(importlib.import_module(f"test.test_concurrent_futures{place}"))
        except ImportError:
            continue
    return found


MODULES = _modules()
if not MODULES:
    pytest.skip("this Python has come without its own tests", allow_module_level=True)


def _named(name: str) -> Any:
    return next(getattr(each, name) for each in MODULES if hasattr(each, name))


def _all_named(name: str) -> list[Any]:
    return list(
        {id(each): each for each in (getattr(m, name, None) for m in MODULES) if each}.values()
    )


#: Tests that do not apply, and why.
EXCLUDED = {
    # ExecutorTest
    "test_no_stale_references": "submits a method of an object of the test: no code travels",
    "test_max_workers_negative": "0 means workers elsewhere; test_executor.py has what is refused",
    # ExecutorShutdownTest: programs that import the class from concurrent.futures, by its name, and
    # wait for all calls at their end, which here belong to the cluster; test_executor.py has the
    # like of them
    "test_interpreter_shutdown": "names a class of concurrent.futures",
    "test_submit_after_interpreter_shutdown": "names a class of concurrent.futures",
    "test_hang_gh83386": "names a class of concurrent.futures",
    "test_hang_issue39205": "names a class of concurrent.futures",
    # ThreadPoolExecutorTest, ThreadPoolShutdownTest, ThreadPoolWaitTests, ProcessPool...: are about
    # the threads, processes, pipes and pickles of those classes, and submit closures over locks and
    # events: none of these classes is taken over.
}
#: Tests that are taken over with another expectation, and why.
ADAPTED = {
    "test_map_exception": "tuples come back as lists without annotation, errors as TaskFailedError",
    "test_cancel_futures": "one call at least is to have begun: so the first is waited for",
}
#: Tests that sleep for 1.5 seconds or more.
SLOW = frozenset(
    (
        "test_20369",
        "test_duplicate_futures",
        "test_first_completed_some_already_completed",
        "test_first_exception",
        "test_first_exception_one_already_failed",
        "test_first_exception_some_already_complete",
        "test_map_timeout",
    )
)

app = App("cpython")


def _register(function: Callable[..., Any], at: int = 0) -> None:
    name = f"{function.__module__}.{function.__qualname__}.{at}"
    app.task(name=name, retries=0)(function)


class _State:
    db: sync.Database
    folder: tempfile.TemporaryDirectory[str]


def _prepare() -> None:
    for function in (pow, divmod, abs, str, int, time.sleep):
        _register(function)
    _named("capture").__annotations__["return"] = tuple[tuple[int, ...], dict[str, int]]
    kind = _named("MyObject")
    kind.model_dump = lambda _self: {}
    kind.model_validate = classmethod(lambda cls, _value: cls())
    _named("make_dummy_object").__annotations__["return"] = kind
    for name in ("mul", "capture", "sleep_and_raise", "make_dummy_object"):
        for at, function in enumerate(_all_named(name)):
            _register(function, at)


_prepare()


def setUpModule() -> None:
    _State.folder = tempfile.TemporaryDirectory()
    _State.db = sync.open(_State.folder.name).open()


def tearDownModule() -> None:
    _State.db.close()
    _State.folder.cleanup()


ExecutorMixin: Any = _named("ExecutorMixin")


class Mixin(ExecutorMixin):  # type: ignore[misc]
    @staticmethod
    def executor_type(max_workers: int) -> QuorateExecutor:
        return QuorateExecutor(_State.db, app, workers=max_workers)


def _applying(name: str) -> type:
    """The class of that name, without what is excluded."""
    found: type = _named(name)
    for each in SLOW:
        if hasattr(found, each):
            setattr(found, each, pytest.mark.deep(getattr(found, each)))
    return type(name, (found,), {each: None for each in EXCLUDED if hasattr(found, each)})


ExecutorTest: Any = _applying("ExecutorTest")
AsCompletedTests: Any = _applying("AsCompletedTests")
WaitTests: Any = _applying("WaitTests")
ShutdownTest: Any = _applying("ExecutorShutdownTest")


class QuorateExecutorTest(Mixin, ExecutorTest, unittest.TestCase):  # type: ignore[misc]
    def test_map_exception(self) -> None:
        results = self.executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(results) == [0, 1]
        assert next(results) == [0, 1]
        with pytest.raises(TaskFailedError, match="ZeroDivisionError"):
            next(results)


class QuorateAsCompletedTest(Mixin, AsCompletedTests, unittest.TestCase):  # type: ignore[misc]
    pass


class QuorateWaitTest(Mixin, WaitTests, unittest.TestCase):  # type: ignore[misc]
    pass


class QuorateShutdownTest(Mixin, ShutdownTest, unittest.TestCase):  # type: ignore[misc]
    def test_cancel_futures(self) -> None:
        submit, sent = self.executor.submit, []

        def submit_and_wait(*args: Any) -> Any:
            sent.append(submit(*args))
            sent[0].enqueued(10)
            return sent[-1]

        with unittest.mock.patch.object(self.executor, "submit", submit_and_wait):
            super().test_cancel_futures()


def test_what_is_left_out_is_there() -> None:
    known = {name for module in MODULES for each in vars(module).values() for name in dir(each)}
    missing = {*EXCLUDED, *ADAPTED} - known
    assert len(missing) == 1
    assert missing <= {"test_hang_issue39205", "test_hang_gh83386"}  # one by its older name
