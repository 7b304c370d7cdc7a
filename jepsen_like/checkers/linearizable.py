"""Whether every key behaves as if each operation took effect at one instant between its beginning
and its end.

Keys are judged each by itself: a history is linearizable if and only if the part of every key is
(Herlihy and Wing 1990, theorem 1). A verdict is "unknown" when the budget of steps for a key is
used up, never because of a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jepsen_like.checkers.base import freeze, show
from jepsen_like.checkers.counterexample import Counterexample, explain, shrink
from jepsen_like.checkers.models import Call, Model, calls_of
from jepsen_like.checkers.picture import draw
from jepsen_like.checkers.search import STEPS_MAX, search
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import PROBLEMS_MAX, Validity, Verdict

#: Keys whose violation is made small and told in words; further ones are only named. The first
#: bug found is the one that gets mended.
EXAMPLES_MAX: Final = 3


class Linearizable:
    """The checker, for any ``Model``. *steps_max*: of the model, for each key."""

    def __init__(self, model: Model, *, steps_max: int = STEPS_MAX) -> None:
        self.name = f"linearizable {model.name}"
        self._model = model
        self._steps_max = steps_max

    def check(self, history: Sequence[Event]) -> Verdict:
        """Judge every key. Raises ``HistoryError`` if an operation means nothing to the model."""
        keys = split(operations(history))
        steps = 0
        wrong: list[str] = []
        unknown: list[str] = []
        problems: list[str] = []
        picture = ""
        operations_count = 0
        for key, found in keys:
            calls = self._model.simplify(calls_of(self._model, found))
            operations_count += len(found)
            result = search(self._model, calls, self._steps_max)
            steps += result.steps
            if result.valid == "unknown":
                unknown.append(show(key))
                problems.append(f"key {show(key)}: not decided within {self._steps_max} steps")
            elif result.valid is False:
                wrong.append(show(key))
                if len(wrong) > EXAMPLES_MAX:
                    problems.append(f"key {show(key)}: not linearizable")
                    continue
                example = shrink(self._model, calls, result)
                problems.append(f"key {show(key)}: {explain(self._model, example)}")
                picture = picture or draw(self._model, example, title=self._title(key, found))
        valid: Validity = False if wrong else ("unknown" if unknown else True)
        return Verdict(
            checker=self.name,
            valid=valid,
            problems=tuple(problems[:PROBLEMS_MAX]),
            facts={
                "keys": len(keys),
                "operations": operations_count,
                "steps": steps,
                "wrong_keys": wrong[:PROBLEMS_MAX],
                "unknown_keys": unknown[:PROBLEMS_MAX],
            },
            picture=picture,
        )

    def example(self, history: Sequence[Event]) -> Counterexample | None:
        """The counterexample itself, of the first key that has one."""
        for _key, found in split(operations(history)):
            calls = self._model.simplify(calls_of(self._model, found))
            result = search(self._model, calls, self._steps_max)
            if result.valid is False:
                return shrink(self._model, calls, result)
        return None

    def _title(self, key: Any, found: list[Operation]) -> str:  # noqa: ANN401  any JSON value
        name = "" if key is None else f"key {show(key)}: "
        return f"{name}no order explains these of {len(found)} operations on a {self._model.name}"


def split(found: Sequence[Operation]) -> list[tuple[Any, list[Operation]]]:
    """Operations by key, in the order in which the keys first appear."""
    keys: dict[Any, tuple[Any, list[Operation]]] = {}
    for operation in found:
        key = operation.invoked.key
        keys.setdefault(freeze(key), (key, []))[1].append(operation)
    return list(keys.values())


def witness(model: Model, calls: Sequence[Call]) -> tuple[Call, ...] | None:
    """An order that explains *calls*, or None if there is none or the budget is used up."""
    found = search(model, calls)
    return tuple(calls[at] for at in found.order) if found.valid is True else None
