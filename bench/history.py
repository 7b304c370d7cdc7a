"""What clients were told under faults, and the verdict on it, once the data are read back.

Pure: no processes, no clock. So that a verdict of "nothing lost" means something,
``tests/bench/test_history.py`` shows it histories in which something was.
"""

from __future__ import annotations

from collections import Counter as Multiset
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PROBLEMS_SHOWN = 20  # of each node; the counts are always whole


def value_of(key: bytes) -> bytes:
    """The one value that is ever put under *key*: tells a swapped value from the right one."""
    return b"value of " + key


@dataclass
class CounterHistory:
    """Increments by one of one counter. *results*: the value that each acknowledged one gave."""

    unknown: int = 0
    denied: int = 0
    results: list[int] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """Increments that surely happened."""
        return len(self.results)


@dataclass
class History:
    """Outcomes by kind. A put is *denied* if its error said that it surely did not happen."""

    acknowledged: set[bytes] = field(default_factory=set)
    unknown: set[bytes] = field(default_factory=set)
    denied: set[bytes] = field(default_factory=set)
    counters: dict[bytes, CounterHistory] = field(default_factory=dict)

    @property
    def acknowledged_count(self) -> int:
        """Puts and increments."""
        counts = [counter.acknowledged for counter in self.counters.values()]
        return len(self.acknowledged) + sum(counts)

    @property
    def unknown_count(self) -> int:
        """Puts and increments."""
        return len(self.unknown) + sum(counter.unknown for counter in self.counters.values())

    @property
    def denied_count(self) -> int:
        """Puts and increments."""
        return len(self.denied) + sum(counter.denied for counter in self.counters.values())


class Verdict(NamedTuple):
    """*lost*: acknowledged and not there. *duplicated*: increments that happened more often than
    they were asked for. *invented*: keys that are there although nobody put them, or although the
    client was told that they surely are not. *problems*: some of them, in words."""

    lost: int
    duplicated: int
    invented: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return self.lost == self.duplicated == self.invented == 0


def judge(history: History, keys: Mapping[bytes, bytes], counters: Mapping[bytes, int]) -> Verdict:
    """Hold what one node has in the end against what clients were told.

    *keys*: all pairs under the prefix of the puts. *counters*: value of each; a missing one is 0.
    """
    lost, invented, problems = _judge_puts(history, keys)
    duplicated = 0
    for name, counter in history.counters.items():
        value = counters.get(name, 0)
        # Two acknowledged increments that gave the same value: one overwrote the other.
        repeated = sum(times - 1 for times in Multiset(counter.results).values())
        missing = max(counter.acknowledged - value, max(counter.results, default=0) - value, 0)
        surplus = max(value - counter.acknowledged - counter.unknown, 0)
        lost += max(missing, repeated)
        duplicated += surplus
        if missing or repeated or surplus:
            problems.append(
                f"counter {name!r} is {value}: {counter.acknowledged} increments acknowledged, "
                f"{counter.unknown} unknown, {repeated} results given twice, highest result "
                f"{max(counter.results, default=0)}"
            )
    return Verdict(lost, duplicated, invented, tuple(problems))


def _judge_puts(history: History, keys: Mapping[bytes, bytes]) -> tuple[int, int, list[str]]:
    lost = [key for key in history.acknowledged if keys.get(key) != value_of(key)]
    foreign = [
        key
        for key, value in keys.items()
        if key not in history.acknowledged
        and (key not in history.unknown or value != value_of(key))
    ]
    problems = [f"acknowledged {key!r}: found {keys.get(key)!r}" for key in sorted(lost)]
    problems += [
        f"{'denied' if key in history.denied else 'never put'} {key!r}: found {keys[key]!r}"
        for key in sorted(foreign)
    ]
    return len(lost), len(foreign), problems[:PROBLEMS_SHOWN]


def merge(verdicts: Mapping[int, Verdict]) -> Verdict:
    """The worst of what the nodes, by number, hold."""
    return Verdict(
        lost=max(verdict.lost for verdict in verdicts.values()),
        duplicated=max(verdict.duplicated for verdict in verdicts.values()),
        invented=max(verdict.invented for verdict in verdicts.values()),
        problems=tuple(
            f"node {number}: {problem}"
            for number, verdict in verdicts.items()
            for problem in verdict.problems
        ),
    )
