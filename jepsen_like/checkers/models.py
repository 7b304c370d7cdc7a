"""What the system under test is meant to be, as sequential machines: ``Linearizable`` asks whether
some order of the operations explains what clients saw.

A model of one's own derives from ``Model`` and says what state it begins in and what each call
makes of it. The optional methods only make checking faster; each states the promise it makes.
"""

from __future__ import annotations

import enum
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from jepsen_like.checkers.base import freeze, show, whole_number
from jepsen_like.errors import HistoryError
from jepsen_like.history import Operation

#: The value of a ``fail`` that is an answer: the comparison did not hold. Such a call is checked as
#: the read that it is; any other ``fail`` only says that nothing happened.
DIFFERS: Final = "differs"

#: The end of a call that may take effect at any later time.
NEVER: Final = sys.maxsize


class Answer(enum.Enum):
    """Outputs that are no values."""

    UNKNOWN = "unknown"
    DIFFERS = DIFFERS


class Call(NamedTuple):
    """One operation, ready for the search. *input*, *output*: the values of the invocation and the
    completion, frozen. *certain*: it took effect between *start* and *end* (places in the history);
    else it did at some time after *start*, or never, and its output is ``Answer.UNKNOWN``."""

    f: str
    input: Any
    output: Any
    certain: bool
    start: int
    end: int
    operation: Operation

    def weakened(self) -> Call:
        """The same, but nobody knows what came of it: a history with it allows more orders."""
        return self._replace(output=Answer.UNKNOWN, certain=False, end=NEVER)


class Model(ABC):
    """See the module. States are hashable and never None."""

    name = "model"

    @abstractmethod
    def initial(self) -> Hashable:
        """The state before the first call."""

    @abstractmethod
    def step(self, state: Any, call: Call) -> Hashable | None:  # noqa: ANN401  the model's own
        """The state after *call*, or None if it cannot have given its output in *state*."""

    def validate(self, call: Call) -> None:
        """Raise ``HistoryError`` if *call* means nothing here; ``step`` sees only valid ones."""
        del call

    def reads(self, call: Call) -> bool:
        """Promise: *call* changes no state, whatever the state and the output."""
        del call
        return False

    def blind(self, call: Call) -> bool:
        """Promise: *call* is possible in every state and leads from all of them to the same."""
        del call
        return False

    def needs(self, call: Call) -> Hashable | None:
        """Promise: *call* is possible in this state only. None: no promise."""
        del call
        return None

    def makes(self, call: Call) -> Hashable | None:
        """Promise: *call* leads to this state, if it is possible at all. None: no promise."""
        del call
        return None

    def simplify(self, calls: Sequence[Call]) -> list[Call]:
        """Leave out uncertain calls that explain nothing. Promise: the rest has an order if and
        only if all of *calls* have one."""
        return list(calls)

    def describe(self, call: Call) -> str:
        """In a sentence after the name of a process."""
        value = call.operation.invoked.value
        text = call.f if value is None else f"{call.f} {show(value)}"
        completed = call.operation.completed
        if not call.certain or completed is None:
            return f"{text} → ?"
        return text if completed.value == value else f"{text} → {show(completed.value)}"

    def show(self, state: Any) -> str:  # noqa: ANN401  the model's own
        """In a sentence after "the state is"."""
        return show(state)


class RegisterModel(Model):
    """One value: "read" and "write". It begins with *value*; a state is ``(value,)``."""

    name = "register"
    functions = frozenset({"read", "write"})

    def __init__(self, value: Any = None) -> None:  # noqa: ANN401  any JSON value
        self._initial = (freeze(value),)

    def initial(self) -> Hashable:
        return self._initial

    def step(self, state: Any, call: Call) -> Hashable | None:  # noqa: ANN401  ``(value,)``
        if call.f == "read":
            return state if call.output == state[0] else None
        return (call.input,)

    def validate(self, call: Call) -> None:
        if call.f not in self.functions:
            raise HistoryError(f"a {self.name} knows {sorted(self.functions)}, not {call.f!r}")

    def reads(self, call: Call) -> bool:
        return call.f == "read" or call.output is Answer.DIFFERS

    def blind(self, call: Call) -> bool:
        return call.f == "write"

    def needs(self, call: Call) -> Hashable | None:
        if call.f == "write" or call.output is Answer.DIFFERS:
            return None
        return (call.output if call.f == "read" else call.input[1],)

    def makes(self, call: Call) -> Hashable | None:
        return None if self.reads(call) else (_made(call),)

    def simplify(self, calls: Sequence[Call]) -> list[Call]:
        """An uncertain write, or an exchange, of a value that no other call asks for only hides the
        value before it. Without it that value stays for as long: nobody looked in between, unless
        a comparison that did not hold is after its start, which the hiding may explain."""
        wanted = set()
        last_refused = -1
        for call in calls:
            if call.f == "read":
                wanted.add(call.output)
            elif call.f == "cas":
                wanted.add(call.input[1])
                if call.output is Answer.DIFFERS:
                    last_refused = max(last_refused, call.end)
        return [
            call
            for call in calls
            if call.certain or call.start < last_refused or _made(call) in wanted
        ]

    def describe(self, call: Call) -> str:
        value = call.operation.invoked.value
        if call.f == "read":
            seen = "?" if call.output is Answer.UNKNOWN else _completion(call)
            return f"read {seen}"
        text = f"wrote {show(value)}"
        if call.f == "cas":
            text = f"exchanged {show(value[0])} for {show(value[1])}"
            if call.output is Answer.DIFFERS:
                return f"found no {show(value[0])} to exchange for {show(value[1])}"
        return text if call.certain else f"{text}, perhaps"

    def show(self, state: Any) -> str:  # noqa: ANN401  ``(value,)``
        return show(state[0])


class CasRegisterModel(RegisterModel):
    """A register that also knows "cas": input ``[expected, new]``."""

    name = "cas-register"
    functions = frozenset({"read", "write", "cas"})

    def step(self, state: Any, call: Call) -> Hashable | None:  # noqa: ANN401  ``(value,)``
        f = call.f
        if f == "read":
            return state if call.output == state[0] else None
        if f == "write":
            return (call.input,)
        _list, expected, new = call.input
        if call.output is Answer.DIFFERS:
            return None if state[0] == expected else state
        return (new,) if state[0] == expected else None

    def validate(self, call: Call) -> None:
        super().validate(call)
        pair = call.operation.invoked.value
        if call.f == "cas" and not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise HistoryError(f"the value of a cas is [expected, new], not {show(pair)}")


class CounterModel(Model):
    """A number from 0: "read" gives it, "add" changes it; its output, if any, is the new one."""

    name = "counter"

    def initial(self) -> Hashable:
        return 0

    def step(self, state: Any, call: Call) -> Hashable | None:  # noqa: ANN401  a number
        if call.f == "read":
            return state if (call.output or 0) == state else None
        number: int = state + call.input
        if call.output is Answer.UNKNOWN or call.output is None or call.output == number:
            return number
        return None

    def validate(self, call: Call) -> None:
        if call.f not in {"read", "add"}:
            raise HistoryError(f"a counter knows ['add', 'read'], not {call.f!r}")
        if call.f == "add":
            whole_number(call.input, "the value of an add")
        if call.certain and call.output is not None:
            whole_number(call.output, f"the result of a counter's {call.f}")

    def reads(self, call: Call) -> bool:
        return call.f == "read"


def _made(call: Call) -> Any:  # noqa: ANN401  a frozen value
    """The value that a write or an exchange leaves behind."""
    return call.input[2] if call.f == "cas" else call.input


def _completion(call: Call) -> str:
    completed = call.operation.completed
    return "?" if completed is None else show(completed.value)


def calls_of(model: Model, found: Iterable[Operation]) -> list[Call]:
    """Operations as calls, in the order of invocation. Left out: what surely did not happen, and
    reads that were not answered.

    Raises:
        HistoryError: one of them means nothing to *model*.
    """
    calls = []
    for operation in found:
        invoked, completed = operation.invoked, operation.completed
        certain, output, end = False, Answer.UNKNOWN, NEVER
        if completed is not None and completed.type == "ok":
            certain, output, end = True, freeze(completed.value), operation.completed_at
        elif completed is not None and completed.type == "fail":
            if completed.value != DIFFERS:
                continue
            certain, output, end = True, Answer.DIFFERS, operation.completed_at
        value = freeze(invoked.value)
        call = Call(invoked.f, value, output, certain, operation.invoked_at, end, operation)
        try:
            model.validate(call)
        except HistoryError as error:
            raise HistoryError(f"event {operation.invoked_at}: {error}") from error
        if certain or not model.reads(call):
            calls.append(call)
    return calls
