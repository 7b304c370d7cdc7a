"""Whether some order of the calls explains their outputs: the search of Wing and Gong with the
memory of Lowe ("Testing for linearizability", 2017), as in Porcupine.

It goes down one order, taking next any call that may come next: one that began before every call
that is not yet taken ended. A set of calls taken that leads to a state already met with the same
set is not explored twice. Calls with unknown outcome are never due, so they are taken only on the
way to something that is. These facts keep the search small; each has its reason beside the code:

1. a read that is possible now is taken now, without alternatives;
2. equal calls of unknown outcome are taken in the order of their starts;
3. a call of unknown outcome is not taken right before one that overwrites its effect, and only if
   the state that it leads to is one that something needs;
4. a state is not left while something still needs it that nothing left can bring back;
5. what must end first is tried first.

Effort is counted in steps, each a look at one call that might be taken, so a verdict never depends
on the speed of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from jepsen_like.checkers.models import NEVER, Call, Model
from jepsen_like.verdict import Validity

#: After so many steps on one key the answer is "unknown": a few seconds.
STEPS_MAX: Final = 500_000

#: So many of the longest orders are kept: they differ in their last choices only.
ORDERS_MAX: Final = 4


class Found(NamedTuple):
    """*order*: places in the calls that were searched, an order that explains all, if valid.
    *longest*: of an invalid history, orders that explain the most; *stuck_at*: no order gets past
    the completion at this place in the history, and some order may get past each one before."""

    valid: Validity
    steps: int
    order: tuple[int, ...] = ()
    longest: tuple[tuple[int, ...], ...] = ()
    stuck_at: int = -1


class _Frame:
    """A set of taken calls with the state that they lead to, and what may be taken next."""

    __slots__ = ("base", "choices", "deadline", "lone", "state", "taken", "unknown", "window")

    def __init__(self, state: Any, base: int, window: int, unknown: int, *, lone: bool) -> None:  # noqa: ANN401  the model's own
        self.state = state
        self.base = base  # every certain call before this one is taken
        self.window = window  # bit n: the certain call base + n is taken
        self.unknown = unknown  # bit n: the uncertain call n is taken
        self.lone = lone  # the last call taken is uncertain, and nothing has needed it yet
        self.taken = -1
        self.deadline = NEVER
        self.choices: list[tuple[int, Any]] = []

    @property
    def key(self) -> tuple[int, int, int, bool, Any]:
        """Equal for frames that can go on in the same ways."""
        return (self.base, self.window, self.unknown, self.lone, self.state)


class _Ahead:
    """Which states are needed by calls that must be taken, and which can still be brought about:
    the reason to give up a way long before the call that fails on it is due."""

    def __init__(self, model: Model, ordered: Sequence[Call], needs: Sequence[Any]) -> None:
        makes = [None if model.reads(call) else model.makes(call) for call in ordered]
        #: A call that may lead anywhere could bring back every state.
        self.blind = any(
            state is None and not model.reads(call)
            for call, state in zip(ordered, makes, strict=True)
        )
        self._makes = makes
        self._needs = [
            need if call.certain else None for call, need in zip(ordered, needs, strict=True)
        ]
        self._needed: dict[Any, int] = {}
        self._left: dict[Any, int] = {}
        for need, made in zip(self._needs, makes, strict=True):
            if need is not None:
                self._needed[need] = self._needed.get(need, 0) + 1
            if made is not None:
                self._left[made] = self._left.get(made, 0) + 1

    def count(self, at: int, change: int) -> None:
        """The call *at* is taken (-1) or put back (+1)."""
        need, made = self._needs[at], self._makes[at]
        if need is not None:
            self._needed[need] += change
        if made is not None:
            self._left[made] += change

    def lost(self, state: Any) -> bool:  # noqa: ANN401  the model's own
        """Whether leaving *state* loses something that is still needed."""
        return self._needed.get(state, 0) > 0 and not self._left.get(state, 0)

    def hopeless(self, initial: Any) -> bool:  # noqa: ANN401  the model's own
        """Whether a state is needed that nothing brings about at all."""
        return any(state != initial and self.lost(state) for state in self._needed)


class _Search:
    """One search over the calls of one key."""

    def __init__(self, model: Model, calls: Sequence[Call], steps_max: int, *, ahead: bool) -> None:
        self._step = model.step
        self._places = sorted(range(len(calls)), key=lambda at: calls[at].start)
        self._places.sort(key=lambda at: not calls[at].certain)
        ordered = [calls[at] for at in self._places]
        self._count = sum(call.certain for call in calls)
        self._certain = ordered[: self._count]
        self._unknown = ordered[self._count :]
        self._reads = [model.reads(call) for call in self._certain]
        self._blind = [model.blind(call) for call in ordered]
        self._needs = [model.needs(call) for call in ordered]
        kinds: dict[tuple[str, Any], int] = {}
        self._kind = [kinds.setdefault((call.f, call.input), len(kinds)) for call in self._unknown]
        #: Uncertain calls by the state that they lead to; None: it depends.
        self._makers: dict[Any, list[int]] = {}
        for number, call in enumerate(self._unknown):
            self._makers.setdefault(model.makes(call), []).append(number)
        look = _Ahead(model, ordered, self._needs)
        self._ahead = look if ahead and not look.blind else None
        # A ring of the certain calls that are not taken, in the order of their starts; its head is
        # the place after the last one.
        self._next = [*range(1, self._count + 1), 0]
        self._previous = [self._count, *range(self._count)]
        self._steps_max = steps_max
        self._steps = 0
        self._longest: list[tuple[int, ...]] = []
        self._longest_certain = -1
        self._stuck_at = -1

    def run(self, initial: Any) -> Found:  # noqa: ANN401  the model's own
        """Depth first, without recursion."""
        if self._ahead is not None and self._ahead.hopeless(initial):
            return Found(valid=False, steps=0)
        head, next_ = self._count, self._next
        frame = _Frame(initial, 0, 0, 0, lone=False)
        stack = [frame]
        seen = {frame.key}
        self._offer(frame)
        while next_[head] != head:
            if self._steps > self._steps_max:
                return Found("unknown", self._steps)
            if not frame.choices:
                self._note(stack)
                stack.pop()
                if not stack:
                    longest = tuple(self._longest)
                    return Found(
                        valid=False, steps=self._steps, longest=longest, stuck_at=self._stuck_at
                    )
                frame = stack[-1]
                self._put_back(frame.taken)
                continue
            at, state = frame.choices.pop()
            below = self._take(frame, at, state)
            key = below.key
            lost = self._ahead and state != frame.state and self._ahead.lost(frame.state)
            if lost or key in seen:
                self._put_back(at)
                continue
            seen.add(key)
            frame.taken = at
            stack.append(below)
            frame = below
            self._offer(frame)
        order = tuple(self._places[each.taken] for each in stack[:-1])
        return Found(valid=True, steps=self._steps, order=order)

    def _offer(self, frame: _Frame) -> None:
        """Fill in what may be taken next, the best choice last."""
        step, state, next_, head = self._step, frame.state, self._next, self._count
        needs, lone = self._needs, frame.lone
        deadline = NEVER
        choices: list[tuple[int, int, Any]] = []
        wanted: list[Any] = []
        at = next_[head]
        while at != head:
            call = self._certain[at]
            if call.start > deadline:
                break  # so does every later one, and none of them ends earlier
            deadline = min(deadline, call.end)
            need = needs[at]
            if need is not None and need != state:
                wanted.append(need)
            elif not (lone and self._blind[at]):
                # What overwrites an effect that nothing has needed goes as well without it.
                self._steps += 1
                after = step(state, call)
                if after is None:
                    wanted.append(None)
                elif self._reads[at]:
                    # Any order that goes on from here still holds with the read moved to here: it
                    # changes no state, and nothing that is not taken has to come before it.
                    frame.choices = [(at, after)]
                    frame.deadline = deadline
                    return
                else:
                    choices.append((call.end, at, after))
                    if need is None and not self._blind[at]:
                        wanted.append(None)
            at = next_[at]
        frame.deadline = deadline
        choices.sort(key=lambda choice: choice[0], reverse=True)
        frame.choices = [(at, after) for _end, at, after in choices]
        if self._unknown:
            frame.choices = self._uncertain(frame, wanted) + frame.choices

    def _uncertain(self, frame: _Frame, wanted: list[Any]) -> list[tuple[int, Any]]:
        """Calls of unknown outcome worth taking: such as lead to a state that is *wanted* by a call
        that must be taken now, or by a call of unknown outcome on the way there. None among the
        wanted: any state may do. Of equal calls the first: it can stand wherever a later one
        can."""
        numbers: list[int] = []
        offered = 0
        anything = None in wanted
        makers = range(len(self._unknown)) if anything else self._makers.get(None, ())
        asked = {frame.state}
        while True:
            for number in makers:
                self._steps += 1
                if self._unknown[number].start > frame.deadline:
                    break
                kind = 1 << self._kind[number]
                if frame.unknown >> number & 1 or offered & kind:
                    continue
                offered |= kind
                numbers.append(number)
                need = self._needs[self._count + number]
                if need is not None:
                    wanted.append(need)
            state = frame.state
            while wanted and (state is None or state in asked):
                state = wanted.pop()
            if anything or state is None or state in asked:
                break
            asked.add(state)
            makers = self._makers.get(state, ())
        choices = []
        for number in sorted(numbers, reverse=True):
            at = self._count + number
            need = self._needs[at]
            if (need is None or need == frame.state) and not (frame.lone and self._blind[at]):
                after = self._step(frame.state, self._unknown[number])
                if after is not None:
                    choices.append((at, after))
        return choices

    def _take(self, frame: _Frame, at: int, state: Any) -> _Frame:  # noqa: ANN401  the model's own
        if self._ahead is not None:
            self._ahead.count(at, -1)
        head = self._count
        if at >= head:
            unknown = frame.unknown | 1 << (at - head)
            return _Frame(state, frame.base, frame.window, unknown, lone=True)
        next_, previous = self._next, self._previous
        next_[previous[at]] = next_[at]
        previous[next_[at]] = previous[at]
        window = frame.window | 1 << (at - frame.base)
        base = next_[head]
        return _Frame(state, base, window >> (base - frame.base), frame.unknown, lone=False)

    def _put_back(self, at: int) -> None:
        if self._ahead is not None:
            self._ahead.count(at, 1)
        if at < self._count:
            self._next[self._previous[at]] = at
            self._previous[self._next[at]] = at

    def _note(self, stack: list[_Frame]) -> None:
        """Remember a dead end if no order got further."""
        self._stuck_at = max(self._stuck_at, stack[-1].deadline)
        if len(stack) <= self._longest_certain:
            return
        certain = sum(each.taken < self._count for each in stack[:-1])
        if certain < self._longest_certain:
            return
        order = tuple(self._places[each.taken] for each in stack[:-1])
        if certain > self._longest_certain:
            self._longest_certain = certain
            self._longest = [order]
        elif len(self._longest) < ORDERS_MAX:
            self._longest.append(order)


def search(
    model: Model, calls: Sequence[Call], steps_max: int = STEPS_MAX, *, ahead: bool = True
) -> Found:
    """Look for an order of *calls*, which ``calls_of`` has made; at most *steps_max* steps.

    *ahead* False: slower, but the longest orders of an invalid history go as far as they can, not
    only as far as there is hope.
    """
    return _Search(model, calls, steps_max, ahead=ahead).run(model.initial())
