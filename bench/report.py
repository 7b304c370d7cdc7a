"""Tables and JSON of the measurements; ratios and the bars they are held against."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

#: Required ratio of quorate's throughput to a peer's, by workload and peer.
RATIO_BARS: dict[str, dict[str, float]] = {
    "put@1": {"etcd": 2.0, "pysyncobj": 0.8},
    "put@100": {"etcd": 6.0, "pysyncobj": 3.0},
    "put@1000": {"etcd": 8.0, "pysyncobj": 5.0},
    "put 100x1": {"etcd": 4.0},
    "get@100": {"etcd": 6.0},
}
#: Load average per core at the start from which figures are marked as disturbed.
BUSY_LOAD_PER_CORE = 0.5
#: Put p50 with one outstanding, in units of the p50 of one pwrite and fdatasync of 4 KiB.
PUT_P50_FSYNCS_MAX = 8.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One system under one workload. *outstanding*: on each connection. *client*: how it was
    driven, the fastest of the ways that were tried."""

    system: str
    workload: str
    connections: int
    outstanding: int
    ops_per_s: float
    p50_ms: float
    p99_ms: float
    client: str


class Bar(NamedTuple):
    """A figure beside what it must be. *required* is a lower bound, or an upper one if *most*."""

    name: str
    value: float
    required: float
    most: bool = False

    @property
    def met(self) -> bool:
        """NaN, a figure that could not be taken, meets nothing."""
        return self.value <= self.required if self.most else self.value >= self.required

    def to_json(self) -> dict[str, object]:
        """Name, value, bound and verdict."""
        return {
            "name": self.name,
            "value": None if math.isnan(self.value) else round(self.value, 3),
            "at_most" if self.most else "at_least": self.required,
            "met": self.met,
        }


def ratio_bars(rows: Sequence[Row], fsync_p50_ms: float) -> list[Bar]:
    """Every bar whose two sides were measured, in the order of the workloads."""
    speed = {(row.system, row.workload): row for row in rows}
    bars = []
    for workload, peers in RATIO_BARS.items():
        ours = speed.get(("quorate", workload))
        for peer, required in peers.items():
            theirs = speed.get((peer, workload))
            if ours is not None and theirs is not None and theirs.ops_per_s > 0:
                ratio = ours.ops_per_s / theirs.ops_per_s
                bars.append(Bar(f"{workload}: quorate / {peer}", ratio, required))
    single = speed.get(("quorate", "put@1"))
    if single is not None and fsync_p50_ms > 0:
        ratio = single.p50_ms / fsync_p50_ms
        bars.append(Bar("put@1 p50 / fsync p50", ratio, PUT_P50_FSYNCS_MAX, most=True))
    return bars


def table(headings: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Plain text in columns; numbers to the right."""
    cells = [[shown(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    numeric = [
        bool(lines) and all(isinstance(line[i], int | float | None) for line in lines)
        for i in range(len(headings))
    ]

    def render(line: Sequence[str]) -> str:
        columns = zip(line, widths, numeric, strict=True)
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in columns).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([render(headings), rule, *(render(line) for line in cells)])


def shown(cell: object) -> str:
    """A table cell: three significant digits below a hundred, whole numbers above."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def rows_table(rows: Sequence[Row]) -> str:
    """The measured rows."""
    headings = ("workload", "system", "conns", "outstanding", "ops/s", "p50 ms", "p99 ms", "client")
    lines = [
        (r.workload, r.system, r.connections, r.outstanding, *_speed(r), r.client) for r in rows
    ]
    return table(headings, lines)


def _speed(row: Row) -> tuple[float, float, float]:
    return row.ops_per_s, row.p50_ms, row.p99_ms


def _bound(bar: Bar) -> str:
    return f"{'≤' if bar.most else '≥'} {bar.required:g}"


def bars_table(bars: Sequence[Bar]) -> str:
    """Figures beside their bounds."""
    lines = [(bar.name, bar.value, _bound(bar), "met" if bar.met else "NOT MET") for bar in bars]
    return table(("figure", "value", "required", "verdict"), lines)


def facts_text(facts: Mapping[str, object]) -> str:
    """Machine, versions and sizes, a line each."""
    lines = []
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            fact = ", ".join(f"{key} {shown(value)}" for key, value in fact.items())  # noqa: PLW2901
        lines.append(f"{name}: {fact if isinstance(fact, str) else shown(fact)}")
    return "\n".join([*lines, *disturbances(facts)])


def disturbances(facts: Mapping[str, object]) -> list[str]:
    """Warnings about a machine that was busy with something else when the run began."""
    found = facts.get("machine")
    if not isinstance(found, Mapping) or found["load_average_1min"] < BUSY_LOAD_PER_CORE * (
        found["cores"] or 1
    ):
        return []
    load = found["load_average_1min"]
    return [f"WARNING: load average {load:.1f} before the run: others disturbed these figures"]


def write_json(path: Path | None, content: object) -> None:
    """Write a report, NaN as null; nothing if no path was given."""
    if path is not None:
        plain = json.loads(msgspec.json.encode(content))
        path.write_text(json.dumps(plain, indent=2) + "\n", "utf-8")
        print(f"written: {path}")
